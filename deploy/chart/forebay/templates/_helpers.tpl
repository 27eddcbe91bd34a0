{{/* Name of what is in the release's namespace; six letters are left for a suffix. */}}
{{- define "forebay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains "forebay" .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-forebay" .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of what has no namespace: two releases must not share it. */}}
{{- define "forebay.clusterName" -}}
{{- printf "%s.%s" (include "forebay.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "forebay.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "forebay.fullname" .) -}}
{{- end -}}

{{/* Labels by which the pods are found; they never change. */}}
{{- define "forebay.selector" -}}
app.kubernetes.io/name: forebay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forebay.labels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: forebay
{{- end -}}

{{- define "forebay.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* host:port of the admin server, with brackets for IPv6. */}}
{{- define "forebay.adminAddress" -}}
{{- if contains ":" .Values.admin.address -}}
{{- printf "[%s]:%v" .Values.admin.address .Values.admin.port -}}
{{- else -}}
{{- printf "%s:%v" .Values.admin.address .Values.admin.port -}}
{{- end -}}
{{- end -}}

{{/* "true" where Gateways may have pods of their own. */}}
{{- define "forebay.dedicated" -}}
{{- if or .Values.rbac.dedicated (eq .Values.placement "Dedicated") -}}true{{- end -}}
{{- end -}}
