{{- define "cinderblock.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "cinderblock.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "cinderblock.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "cinderblock.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* Environment that every process of ours gets: who it is. */ -}}
{{- define "cinderblock.env" -}}
- name: CINDERBLOCK_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: CINDERBLOCK_POD
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: CINDERBLOCK_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: CINDERBLOCK_LOG_LEVEL
  value: {{ .Values.logLevel | quote }}
- name: CINDERBLOCK_POOLS_ROOT
  value: {{ .Values.poolsPath | quote }}
{{- end }}

{{- /* Pod Security "restricted" for a container. */ -}}
{{- define "cinderblock.restricted" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "cinderblock.probes" -}}
startupProbe: {httpGet: {path: /healthz, port: {{ . }}}, periodSeconds: 2, failureThreshold: 60}
livenessProbe: {httpGet: {path: /healthz, port: {{ . }}}, periodSeconds: 15, timeoutSeconds: 5, failureThreshold: 4}
readinessProbe: {httpGet: {path: /readyz, port: {{ . }}}, periodSeconds: 5, timeoutSeconds: 5}
{{- end }}

{{- define "cinderblock.sidecarArgs" -}}
- --csi-address=/csi/csi.sock
- --leader-election
- --leader-election-namespace={{ .Release.Namespace }}
- --kube-api-qps={{ .Values.sidecars.kubeApiQps }}
- --kube-api-burst={{ .Values.sidecars.kubeApiBurst }}
- --retry-interval-start={{ .Values.sidecars.retryIntervalStart }}
- --retry-interval-max={{ .Values.sidecars.retryIntervalMax }}
{{- end }}
