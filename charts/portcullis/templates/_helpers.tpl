{{- define "portcullis.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "portcullis.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := include "portcullis.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "portcullis.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "portcullis.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "portcullis.user" -}}
{{- printf "system:serviceaccount:%s:%s" .Release.Namespace (include "portcullis.serviceAccount" .) }}
{{- end }}

{{- define "portcullis.selector" -}}
app.kubernetes.io/name: {{ include "portcullis.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "portcullis.labels" -}}
app.kubernetes.io/name: {{ include "portcullis.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: portcullis
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "portcullis.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The credential `default`: exactly one of the three. */ -}}
{{- define "portcullis.credential" -}}
{{- $enabled := list }}
{{- range $kind := list "workloadIdentity" "clientSecret" "managedIdentity" }}
{{- if (index $.Values.azure $kind).enabled }}
{{- $enabled = append $enabled $kind }}
{{- end }}
{{- end }}
{{- if gt (len $enabled) 1 }}
{{- fail (printf "azure.%s are enabled together: enable one of azure.workloadIdentity, azure.clientSecret and azure.managedIdentity" (join " and azure." $enabled)) }}
{{- end }}
{{- if and (eq (len $enabled) 0) (not .Values.azure.extraCredentials) }}
{{- fail "no credential: enable one of azure.workloadIdentity, azure.clientSecret and azure.managedIdentity, or give azure.extraCredentials" }}
{{- end }}
{{- if and .Values.azure.workloadIdentity.enabled (not .Values.azure.workloadIdentity.clientId) .Values.serviceAccount.create }}
{{- $elsewhere := hasKey .Values.serviceAccount.annotations "azure.workload.identity/client-id" }}
{{- range .Values.extraEnv }}
{{- $elsewhere = or $elsewhere (eq (toString .name) "AZURE_CLIENT_ID") }}
{{- end }}
{{- if not $elsewhere }}
{{- fail "azure.workloadIdentity.clientId is needed: the client id of the managed identity or application that trusts this service account, such as `az identity show --query clientId` prints it. Where another credential is meant, set azure.workloadIdentity.enabled=false and enable azure.clientSecret or azure.managedIdentity" }}
{{- end }}
{{- end }}
{{- with .Values.azure }}
{{- if .workloadIdentity.enabled }}
- name: default
  workloadIdentity: {{ if .workloadIdentity.tenantId }}{tenantId: {{ .workloadIdentity.tenantId }}}{{ else }}{}{{ end }}
{{- else if .clientSecret.enabled }}
- name: default
  clientSecret:
    tenantId: {{ required "azure.clientSecret.tenantId is needed" .clientSecret.tenantId }}
    clientId: {{ required "azure.clientSecret.clientId is needed" .clientSecret.clientId }}
    secretFile: /etc/portcullis/credentials/default
{{- else if .managedIdentity.enabled }}
- name: default
  managedIdentity: {{ if .managedIdentity.clientId }}{clientId: {{ .managedIdentity.clientId }}}{{ else }}{}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What `Custom` alone has, and needs. */ -}}
{{- define "portcullis.cloud" -}}
{{- $azure := .Values.azure }}
{{- if eq $azure.cloud "Custom" }}
{{- range $field := list "resourceManager" "authority" }}
{{- if not (index $azure $field) }}
{{- fail (printf "azure.%s is needed where azure.cloud is Custom: a base URL such as https://%s.azure.example" $field (ternary "management" "login" (eq $field "resourceManager"))) }}
{{- end }}
{{- end }}
{{- else }}
{{- range $field := list "resourceManager" "authority" "audience" }}
{{- if index $azure $field }}
{{- fail (printf "azure.%s is for azure.cloud=Custom alone, and azure.cloud is %s: leave it out, or set azure.cloud=Custom" $field $azure.cloud) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Each namespace's credential is one that there is. */ -}}
{{- define "portcullis.credentials" -}}
{{- $names := list }}
{{- if or .Values.azure.workloadIdentity.enabled .Values.azure.clientSecret.enabled .Values.azure.managedIdentity.enabled }}
{{- $names = append $names "default" }}
{{- end }}
{{- range .Values.azure.extraCredentials }}
{{- $names = append $names (toString .name) }}
{{- end }}
{{- range $index, $namespace := .Values.namespaces }}
{{- $name := default "default" $namespace.credential }}
{{- if not (has $name $names) }}
{{- fail (printf "namespaces[%d].credential: %s is no credential: there is %s" $index $name (join ", " $names)) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Fields of the configuration file that have no value of their own: as in values.schema.json, whose messages would not
       say what there is. */ -}}
{{- define "portcullis.furtherFields" -}}
addressInterval admissionMargin allowedExemptSources concurrency driftInterval healthAddress honourDeniesBelow inventoryInterval maxAllowsPerFirewall metricsAddress otlpEndpoint pipelineUsers requestRetention sweepInterval unfinishedWrites
{{- end }}

{{- define "portcullis.further" -}}
{{- $own := dict "clusterId" "clusterId" "previousClusterIds" "previousClusterIds" "controllerUser" "serviceAccount.name" "cloud" "azure.cloud" "credentials" "azure" "namespaces" "namespaces" "dryRun" "dryRun" "logLevel" "log.level" }}
{{- $further := splitList " " (include "portcullis.furtherFields" .) }}
{{- range $field, $value := .Values.config }}
{{- if hasKey $own $field }}
{{- fail (printf "config.%s is not for here: there is a value of its own for it, %s" $field (index $own $field)) }}
{{- end }}
{{- if not (has $field $further) }}
{{- fail (printf "config.%s is no field of the configuration file. What may stand under config: %s" $field (join ", " $further)) }}
{{- end }}
{{- end }}
{{- range $field, $port := dict "metricsAddress" "8080" "healthAddress" "8081" }}
{{- $address := index $.Values.config $field }}
{{- if and $address (not (hasSuffix (printf ":%s" $port) $address)) }}
{{- fail (printf "config.%s has to end in :%s, since that is where probes and scrapes come: %s does not" $field $port $address) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "portcullis.config" -}}
{{- include "portcullis.cloud" . }}
{{- include "portcullis.further" . }}
clusterId: {{ required "clusterId is needed: a name that no other cluster has, such as prod-weu-1" .Values.clusterId | quote }}
{{- with .Values.previousClusterIds }}
previousClusterIds: {{ toJson . }}
{{- end }}
controllerUser: {{ include "portcullis.user" . }}
cloud:
  name: {{ .Values.azure.cloud }}
  {{- range $field := list "resourceManager" "authority" "audience" }}
  {{- with index $.Values.azure $field }}
  {{ $field }}: {{ . | quote }}
  {{- end }}
  {{- end }}
  {{- if .Values.azure.caCertificates }}
  caFile: /etc/portcullis/config/ca.pem
  {{- end }}
credentials:
  {{- with include "portcullis.credential" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .Values.azure.extraCredentials }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "portcullis.credentials" . }}
namespaces:
  {{- range .Values.namespaces }}
  - name: {{ .name | quote }}
    credential: {{ default "default" .credential | quote }}
    scopes: {{ toJson .scopes }}
  {{- else }}
  []
  {{- end }}
dryRun: {{ .Values.dryRun }}
logLevel: {{ .Values.log.level | quote }}
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "portcullis.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "portcullis.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "portcullis.mounts" -}}
- name: config
  mountPath: /etc/portcullis/config
  readOnly: true
{{- if .Values.azure.clientSecret.enabled }}
- name: credential
  mountPath: /etc/portcullis/credentials
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "portcullis.volumes" -}}
- name: config
  configMap:
    name: {{ include "portcullis.fullname" . }}-config
{{- if .Values.azure.clientSecret.enabled }}
- name: credential
  secret:
    secretName: {{ required "azure.clientSecret.existingSecret is needed: the name of a Secret in the release's namespace" .Values.azure.clientSecret.existingSecret }}
    items:
      - key: {{ .Values.azure.clientSecret.existingSecretKey }}
        path: default
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* One serves the whole cluster: its kinds and admission policies are the cluster's. */ -}}
{{- define "portcullis.alone" -}}
{{- $other := lookup "admissionregistration.k8s.io/v1" "ValidatingAdmissionPolicy" "" "portcullis-requests" }}
{{- if $other }}
{{- $annotations := default dict $other.metadata.annotations }}
{{- $release := index $annotations "meta.helm.sh/release-name" }}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" }}
{{- if not $release }}
{{- fail "Portcullis is in this cluster already, and not by Helm: delete that installation first (docs/operations.md), or go on with it" }}
{{- end }}
{{- if or (ne $release .Release.Name) (ne $namespace .Release.Namespace) }}
{{- fail (printf "Portcullis is in this cluster already, as release %s in namespace %s: one installation serves every namespace. Add yours to its values, under namespaces" $release $namespace) }}
{{- end }}
{{- end }}
{{- end }}
