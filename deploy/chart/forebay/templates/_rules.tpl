{{/* What is read of kinds without a namespace. */}}
{{- define "forebay.readCluster" -}}
- apiGroups: [gateway.networking.k8s.io]
  resources: [gatewayclasses]
  verbs: [get, list, watch]
# The release of Gateway API that is installed, for the condition SupportedVersion.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [gatewayclasses.gateway.networking.k8s.io]
  verbs: [get]
# Labels of namespaces, for listeners that choose routes by them.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get, list, watch]
{{- end -}}

{{/* What is read of kinds with one. */}}
{{- define "forebay.readNamespaced" -}}
# Routing.
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways, listenersets, httproutes, grpcroutes, tlsroutes, referencegrants, backendtlspolicies]
  verbs: [get, list, watch]
# Pools, objectives and rewrites.
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [get, list, watch]
- apiGroups: [llm-d.ai, inference.networking.x-k8s.io]
  resources: [inferenceobjectives, inferencemodelrewrites]
  verbs: [get, list, watch]
# Parameters of Gateways.
- apiGroups: [forebay.dev]
  resources: [gatewayconfigs]
  verbs: [get, list, watch]
# Backends: Services with their endpoints, and the pods of pools.
- apiGroups: [""]
  resources: [services, pods]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
# Certificates of listeners, and bundles of authorities that listeners and BackendTLSPolicies name.
- apiGroups: [""]
  resources: [secrets, configmaps]
  verbs: [get, list, watch]
{{- end -}}

{{/* The status that is written, and nothing else of an object. */}}
{{- define "forebay.writeNamespaced" -}}
- apiGroups: [gateway.networking.k8s.io]
  resources: [gateways/status, listenersets/status, httproutes/status, grpcroutes/status, tlsroutes/status, backendtlspolicies/status]
  verbs: [patch]
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools/status]
  verbs: [patch]
- apiGroups: [llm-d.ai, inference.networking.x-k8s.io]
  resources: [inferenceobjectives/status, inferencemodelrewrites/status]
  verbs: [patch]
- apiGroups: [forebay.dev]
  resources: [gatewayconfigs/status]
  verbs: [patch]
{{- end -}}

{{/* What shows a Gateway's metadata beside it. */}}
{{- define "forebay.accountsNamespaced" -}}
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, create, patch, delete]
{{- end -}}

{{/* Services, and pods of their own, of Gateways with placement Dedicated. */}}
{{- define "forebay.dedicatedNamespaced" -}}
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, create, patch, delete]
{{- end -}}
