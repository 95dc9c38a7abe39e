{{/* Names. 43 characters leave room for "-headless", for a zone, and for what Kubernetes adds to a StatefulSet's name. */}}
{{- define "ledger.fullname" -}}
{{- $default := .Release.Name -}}
{{- if not (contains "ledger" .Release.Name) -}}{{- $default = printf "%s-ledger" .Release.Name -}}{{- end -}}
{{- .Values.fullnameOverride | default $default | trunc 43 | trimSuffix "-" -}}
{{- end }}

{{- define "ledger.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "ledger.headless" -}}
{{ include "ledger.fullname" . }}-headless
{{- end }}

{{- define "ledger.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "ledger.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* What selects this release's objects. Immutable in a StatefulSet: nothing is ever added here. */}}
{{- define "ledger.selector" -}}
app.kubernetes.io/name: {{ include "ledger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of an object: the chart's own win over an object's, and those over common ones: (dict "root" $ "own" map). */}}
{{- define "ledger.labels" -}}
{{- $chart := dict
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/managed-by" .root.Release.Service
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63) -}}
{{- with .component }}{{ $_ := set $chart "app.kubernetes.io/component" . }}{{ end -}}
{{- merge (include "ledger.selector" .root | fromYaml) $chart (deepCopy (.own | default dict)) (.root.Values.commonLabels | default dict) | toYaml -}}
{{- end }}

{{/* Annotations of an object: common ones, and its own: (dict "root" $ "own" map). */}}
{{- define "ledger.annotations" -}}
{{- $all := merge (deepCopy (.own | default dict)) (.root.Values.commonAnnotations | default dict) -}}
{{- if $all -}}
annotations:
  {{- toYaml $all | nindent 2 }}
{{- end -}}
{{- end }}

{{- define "ledger.image" -}}
{{- $name := .Values.image.repository -}}
{{- with .Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if .Values.image.digest -}}
{{ $name }}@{{ .Values.image.digest }}
{{- else -}}
{{ $name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "ledger.any" -}}
{{ ternary "[::]" "0.0.0.0" (eq .Values.ipFamily "IPv6") }}
{{- end }}

{{/* The end of DNS names of services: svc or svc.cluster.local. */}}
{{- define "ledger.svc" -}}
svc{{ with .Values.clusterDomain }}.{{ . }}{{ end }}
{{- end }}

{{/* The StatefulSets, as JSON: {"pools": [{"name", "replicas", "zone"}]}. Without zones it is one. */}}
{{- define "ledger.pools" -}}
{{- $full := include "ledger.fullname" . -}}
{{- $pools := list -}}
{{- range .Values.zones -}}
{{- $suffix := .suffix | default (.name | lower | replace "." "-" | replace "_" "-") -}}
{{- $pools = append $pools (dict "name" (printf "%s-%s" $full $suffix) "replicas" (int .replicas) "zone" .name) -}}
{{- end -}}
{{- if not $pools -}}
{{- $pools = list (dict "name" $full "replicas" (int .Values.replicas) "zone" "") -}}
{{- end -}}
{{- dict "pools" $pools | toJson -}}
{{- end }}

{{- define "ledger.nodes" -}}
{{- $nodes := 0 -}}
{{- range (include "ledger.pools" . | fromJson).pools -}}{{- $nodes = add $nodes .replicas -}}{{- end -}}
{{- $nodes -}}
{{- end }}

{{- define "ledger.copies" -}}
{{ int (.Values.config.copies | default 3) }}
{{- end }}

{{- define "ledger.minCopies" -}}
{{ int (.Values.config.min_copies | default (min 2 (int (include "ledger.copies" .)))) }}
{{- end }}

{{/*
The nodes that form the cluster, as JSON: the first `copies`, one zone after the other and then their next ordinals. It does not
depend on how many nodes there are, so that scaling changes no configuration and restarts nobody.
*/}}
{{- define "ledger.firstNodes" -}}
{{- $first := .Values.cluster.firstNodes -}}
{{- if not $first -}}
{{- $copies := int (include "ledger.copies" .) -}}
{{- $pools := (include "ledger.pools" . | fromJson).pools -}}
{{- range $ordinal := until $copies -}}
{{- range $pools -}}
{{- if and (lt (len $first) $copies) (or (lt $ordinal (int .replicas)) (eq (len $pools) 1)) -}}
{{- $first = append $first (printf "%s-%d" .name $ordinal) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "nodes" $first | toJson -}}
{{- end }}

{{- define "ledger.keySecret" -}}
{{- .Values.cluster.keys.existingSecret | default (printf "%s-cluster-key" (include "ledger.fullname" .)) -}}
{{- end }}

{{- define "ledger.hasKeys" -}}
{{- $generate := and .Values.cluster.keys.generate (not .Values.cluster.insecureGossip) -}}
{{- if and .Values.cluster.enabled (or .Values.cluster.keys.existingSecret $generate) -}}yes{{- end -}}
{{- end }}

{{- define "ledger.hasTls" -}}
{{- if ne .Values.tls.mode "none" -}}yes{{- end -}}
{{- end }}

{{- define "ledger.hasCa" -}}
{{- if or (eq .Values.tls.mode "generate") (and (ne .Values.tls.mode "none") .Values.tls.ca) -}}yes{{- end -}}
{{- end }}

{{- define "ledger.tlsSecret" -}}
{{- if eq .Values.tls.mode "secret" -}}{{ .Values.tls.existingSecret }}{{- else -}}{{ include "ledger.fullname" . }}-tls{{- end -}}
{{- end }}

{{/* What a certificate must be good for, as JSON: the client service, every node by its own name, and a shell in a pod. */}}
{{- define "ledger.dnsNames" -}}
{{- $names := list "localhost" -}}
{{- $ends := list "svc" -}}
{{- with .Values.clusterDomain }}{{ $ends = append $ends (printf "svc.%s" .) }}{{ end -}}
{{- $names = concat $names (list (include "ledger.fullname" .) (printf "%s.%s" (include "ledger.fullname" .) .Release.Namespace)) -}}
{{- range $end := $ends -}}
{{- $names = concat $names (list (printf "%s.%s.%s" (include "ledger.fullname" $) $.Release.Namespace $end) (printf "*.%s.%s.%s" (include "ledger.headless" $) $.Release.Namespace $end)) -}}
{{- end -}}
{{- dict "names" (concat $names .Values.tls.extraDnsNames | uniq) | toJson -}}
{{- end }}

{{/* A time as ledgerd writes it (250ms, 10s, 5m, 1h) in whole seconds, rounded up. */}}
{{- define "ledger.seconds" -}}
{{- $number := regexFind "^[0-9]+" (toString .) | int64 -}}
{{- $unit := regexFind "[a-z]*$" (toString .) -}}
{{- if eq $unit "h" -}}{{ mul $number 3600 }}
{{- else if eq $unit "m" -}}{{ mul $number 60 }}
{{- else if eq $unit "ms" -}}{{ div (add $number 999) 1000 }}
{{- else -}}{{ $number }}
{{- end -}}
{{- end }}

{{- define "ledger.grace" -}}
{{- if not (kindIs "invalid" .Values.terminationGracePeriodSeconds) -}}
{{ int .Values.terminationGracePeriodSeconds }}
{{- else -}}
{{- $grace := add 30 (int (include "ledger.seconds" (.Values.config.shutdown_grace | default "10s"))) -}}
{{- if .Values.cluster.enabled -}}
{{- $grace = add $grace (int (include "ledger.seconds" (.Values.config.leave_grace | default "10m"))) -}}
{{- end -}}
{{ $grace }}
{{- end -}}
{{- end }}

{{/* A quantity of memory (512Mi, 1Gi, 1G, 1e9) in MiB, rounded down. */}}
{{- define "ledger.mebibytes" -}}
{{- $number := regexFind "^[0-9.]+" (toString .) | float64 -}}
{{- $unit := regexFind "(Ki|Mi|Gi|Ti|k|M|G|T|m)$" (toString .) -}}
{{- $bytes := get (dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "k" 1000.0 "M" 1000000.0 "G" 1000000000.0 "T" 1000000000000.0 "m" 0.001) $unit | default 1.0 -}}
{{- if not $unit -}}{{- $number = float64 . -}}{{- end -}}
{{- divf (mulf $number $bytes) 1048576.0 | floor | int64 -}}
{{- end }}

{{/* A value as TOML: text, number, truth, or a list of texts. */}}
{{- define "ledger.toml" -}}
{{- if kindIs "bool" . -}}{{ . }}
{{- else if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}{{ int64 . }}
{{- else -}}{{ toJson . }}
{{- end -}}
{{- end }}

{{/* ledgerd.toml: what all nodes share. What a pod has of its own is in its environment. */}}
{{- define "ledger.config" -}}
# Written by Helm from the value `config`. `kubectl exec POD -- ledgerd config` shows what is in effect.
data_dir = "/var/lib/ledger/data"
grpc_listen = "{{ include "ledger.any" . }}:50051"
http_listen = "{{ include "ledger.any" . }}:50080"
{{- if .Values.cluster.enabled }}
gossip_listen = "{{ include "ledger.any" . }}:50052"
{{- if .Values.cluster.insecureGossip }}
insecure_gossip = true
{{- end }}
first_nodes = {{ (include "ledger.firstNodes" . | fromJson).nodes | toJson }}
{{- end }}
{{- if include "ledger.hasTls" . }}
tls_cert = "/etc/ledger/tls/tls.crt"
tls_key = "/etc/ledger/tls/tls.key"
{{- if .Values.tls.clientAuth }}
tls_client_ca = "/etc/ledger/tls/ca.crt"
{{- end }}
{{- end }}
{{- range $key, $value := .Values.config }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "ledger.toml" $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* How ledgerctl reaches the ledger from a pod: (dict "root" $ "host" name). The key's file is a setting of ledgerd, too. */}}
{{- define "ledger.ctlEnv" -}}
- name: LEDGER_ENDPOINT
  value: {{ printf "%s://%s" (ternary "https" "http" (eq (include "ledger.hasTls" .root) "yes")) .host | quote }}
{{- if include "ledger.hasKeys" .root }}
- name: LEDGER_CLUSTER_KEY_FILE
  value: /etc/ledger/keys/{{ .root.Values.cluster.keys.secretKey }}
{{- end }}
{{- if include "ledger.hasCa" .root }}
- name: LEDGER_CA
  value: /etc/ledger/tls/ca.crt
{{- end }}
{{- if .root.Values.tls.clientAuth }}
- name: LEDGER_CERT
  value: /etc/ledger/tls/tls.crt
- name: LEDGER_KEY
  value: /etc/ledger/tls/tls.key
{{- end }}
{{- end }}

{{- define "ledger.secretMounts" -}}
{{- if include "ledger.hasKeys" . -}}
- name: keys
  mountPath: /etc/ledger/keys
  readOnly: true
{{- end }}
{{- if include "ledger.hasTls" . }}
- name: tls
  mountPath: /etc/ledger/tls
  readOnly: true
{{- end }}
{{- end }}

{{- define "ledger.secretVolumes" -}}
{{- if include "ledger.hasKeys" . -}}
- name: keys
  secret:
    secretName: {{ include "ledger.keySecret" . }}
    # The volume's files belong to root and fsGroup: ledgerd reads them as its group.
    defaultMode: 0440
    items:
      - key: {{ .Values.cluster.keys.secretKey | quote }}
        path: {{ .Values.cluster.keys.secretKey | quote }}
{{- end }}
{{- if include "ledger.hasTls" . }}
- name: tls
  secret:
    secretName: {{ include "ledger.tlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* A pod that runs ledgerctl beside the ledger: its spec without containers. */}}
{{- define "ledger.toolPod" -}}
restartPolicy: Never
enableServiceLinks: false
automountServiceAccountToken: false
serviceAccountName: {{ include "ledger.serviceAccount" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* A container of such a pod: (dict "root" $ "name" name "args" arguments). */}}
{{- define "ledger.toolContainer" -}}
name: {{ .name }}
image: {{ include "ledger.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [ledgerctl]
args: {{ .args | toJson }}
env:
  {{- include "ledger.ctlEnv" (dict "root" .root "host" (printf "%s.%s.%s:%d" (include "ledger.fullname" .root) .root.Release.Namespace (include "ledger.svc" .root) (int .root.Values.service.port))) | nindent 2 }}
  # What is trusted on first use is kept there, for the steps after.
  - name: XDG_STATE_HOME
    value: /work
resources:
  requests: {cpu: 50m, memory: 64Mi}
  limits: {memory: 128Mi}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
volumeMounts:
  - name: work
    mountPath: /work
  {{- with include "ledger.secretMounts" .root }}{{ . | trim | nindent 2 }}{{ end }}
{{- end }}

{{- define "ledger.toolVolumes" -}}
- name: work
  emptyDir:
    sizeLimit: 16Mi
{{- with include "ledger.secretVolumes" . }}{{ . | trim | nindent 0 }}{{ end }}
{{- end }}

{{/* What Prometheus selects this release's series by. */}}
{{- define "ledger.series" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "ledger.fullname" . }}(-.+)?-[0-9]+"
{{- end }}
