{{/* Name of what is in the release's namespace; six letters are left for a suffix. */}}
{{- define "forebay-node.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains "forebay-node" .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-forebay-node" .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of what has no namespace: two releases must not share it. */}}
{{- define "forebay-node.clusterName" -}}
{{- printf "%s.%s" (include "forebay-node.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "forebay-node.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "forebay-node.fullname" .) -}}
{{- end -}}

{{/* Labels by which the pods are found; they never change. */}}
{{- define "forebay-node.selector" -}}
app.kubernetes.io/name: forebay-node
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forebay-node.labels" -}}
{{ include "forebay-node.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: forebay
{{- end -}}

{{- define "forebay-node.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* host:port of the metrics, with brackets for IPv6. */}}
{{- define "forebay-node.metricsAddress" -}}
{{- if contains ":" .Values.metrics.address -}}
{{- printf "[%s]:%v" .Values.metrics.address .Values.metrics.port -}}
{{- else -}}
{{- printf "%s:%v" .Values.metrics.address .Values.metrics.port -}}
{{- end -}}
{{- end -}}

{{/* Folders of the host that are mounted at the path that they have there: name, path, what has to be there. */}}
{{- define "forebay-node.mounts" -}}
- {name: plugins, path: {{ .Values.host.kubeletDir }}/plugins}
- {name: registry, path: {{ .Values.host.kubeletDir }}/plugins_registry}
- {name: nri, path: {{ .Values.host.nriDir }}}
- {name: cdi, path: {{ .Values.host.cdiDir }}}
- {name: state, path: {{ .Values.host.stateDir }}}
- {name: netns, path: {{ .Values.host.netnsDir }}}
{{- end -}}

{{/* What looks after all nodes: Deployment, Service, Secret and ServiceAccount have this name. */}}
{{- define "forebay-node.controller" -}}
{{- printf "%s-controller" (include "forebay-node.fullname" . | trunc 52 | trimSuffix "-") -}}
{{- end -}}

{{- define "forebay-node.controllerSelector" -}}
app.kubernetes.io/name: forebay-node-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forebay-node.controllerLabels" -}}
{{ include "forebay-node.controllerSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: forebay
{{- end -}}
