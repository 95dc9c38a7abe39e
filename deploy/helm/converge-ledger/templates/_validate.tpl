{{/* What makes no sense though each value by itself is well-formed: refused with a sentence. Included by the StatefulSet. */}}
{{- define "ledger.validate" -}}
{{- $v := .Values -}}
{{- $owned := dict
  "data_dir" "the volume is mounted there"
  "grpc_listen" "probes and services expect the chart's ports; ipFamily chooses the family"
  "http_listen" "probes and services expect the chart's ports; ipFamily chooses the family"
  "gossip_listen" "probes and services expect the chart's ports; ipFamily chooses the family"
  "ready_file" "probes ask /readyz instead"
  "node_id" "it is the pod's name"
  "gossip_advertise" "it is the pod's address"
  "grpc_advertise" "it is the pod's name in the headless service"
  "seeds" "they are the headless service; add to them with cluster.extraSeeds"
  "cluster_key_file" "set cluster.keys"
  "insecure_gossip" "set cluster.insecureGossip"
  "zone" "set zones or zonePodLabel"
  "first_nodes" "set cluster.firstNodes"
  "tls_cert" "set tls" "tls_key" "set tls" "tls_client_ca" "set tls.clientAuth" -}}
{{- range $key, $value := $v.config -}}
{{- with get $owned $key -}}{{- fail (printf "config.%s is the chart's to set: %s" $key .) -}}{{- end -}}
{{- end -}}

{{- $nodes := int (include "ledger.nodes" .) -}}
{{- $copies := int (include "ledger.copies" .) -}}
{{- $minCopies := int (include "ledger.minCopies" .) -}}
{{- if $v.cluster.enabled -}}
  {{- if gt $copies $nodes -}}
  {{- fail (printf "config.copies is %d and there are %d nodes: nodes wait until they are as many as copies before they take anything, so set replicas to %d or more, config.copies to fewer, or cluster.enabled to false for one node by itself" $copies $nodes $copies) -}}
  {{- end -}}
  {{- if gt $minCopies $copies -}}
  {{- fail (printf "config.min_copies is %d and config.copies is %d: more copies than there should be are never reached" $minCopies $copies) -}}
  {{- end -}}
  {{- if not (or $v.cluster.keys.existingSecret $v.cluster.keys.generate $v.cluster.insecureGossip) -}}
  {{- fail "the cluster has no keys: set cluster.keys.existingSecret, or cluster.keys.generate; or cluster.insecureGossip, where whoever reaches the pods' network may take part" -}}
  {{- end -}}
  {{- if and $v.cluster.insecureGossip $v.cluster.keys.existingSecret -}}
  {{- fail "cluster.insecureGossip and cluster.keys.existingSecret are both set: gossip is sealed if there are keys, so leave one of them out" -}}
  {{- end -}}
  {{- if and (hasKey $v.config "accept_lost_writes") (gt $copies 1) -}}
  {{- fail "config.accept_lost_writes is for a node by itself: a member of a cluster with less than it promised joins as a new one, see docs/kubernetes.md" -}}
  {{- end -}}
  {{- if and $v.cluster.firstNodes (ne (len $v.cluster.firstNodes) $copies) -}}
  {{- fail (printf "cluster.firstNodes names %d nodes and config.copies is %d: name as many as there are copies" (len $v.cluster.firstNodes) $copies) -}}
  {{- end -}}
{{- else -}}
  {{- if or (ne $nodes 1) $v.zones -}}
  {{- fail (printf "cluster.enabled is false and there are %d nodes: nodes by themselves would not know of each other, so set replicas to 1 and no zones, or cluster.enabled to true" $nodes) -}}
  {{- end -}}
  {{- if or $v.cluster.firstNodes $v.cluster.extraSeeds $v.cluster.keys.existingSecret $v.cluster.insecureGossip -}}
  {{- fail "cluster.enabled is false, and cluster.firstNodes, extraSeeds, keys.existingSecret or insecureGossip is set: a node by itself does not gossip, so leave them out" -}}
  {{- end -}}
{{- end -}}

{{- if and $v.zones $v.zonePodLabel -}}
{{- fail "zones and zonePodLabel are both set: a node's zone is said by one of them" -}}
{{- end -}}
{{- $names := list -}}
{{- range (include "ledger.pools" . | fromJson).pools -}}
  {{- if has .name $names -}}
  {{- fail (printf "two zones give the StatefulSet %s: give one of them another name or suffix" .name) -}}
  {{- end -}}
  {{- if gt (len .name) 52 -}}
  {{- fail (printf "the StatefulSet's name %s has %d characters, and Kubernetes needs 11 of 63 for its own: set a shorter suffix, or fullnameOverride" .name (len .name)) -}}
  {{- end -}}
  {{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .name) -}}
  {{- fail (printf "the StatefulSet's name would be %q: pods' names are DNS names, so use small letters, digits and dashes (zones[].suffix, fullnameOverride)" .name) -}}
  {{- end -}}
  {{- $names = append $names .name -}}
{{- end -}}

{{- if and (eq $v.tls.mode "secret") (not $v.tls.existingSecret) -}}
{{- fail "tls.mode is secret, and tls.existingSecret does not say which" -}}
{{- end -}}
{{- if and (ne $v.tls.mode "secret") $v.tls.existingSecret -}}
{{- fail (printf "tls.existingSecret is set, and tls.mode is %s: set tls.mode to secret, or leave the Secret out" $v.tls.mode) -}}
{{- end -}}
{{- if and $v.tls.clientAuth (not (include "ledger.hasCa" .)) -}}
{{- fail "tls.clientAuth needs an authority to check clients by: set tls.mode, and tls.ca to true" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "certManager") $v.tls.certManager.issuerRef (not $v.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef has no name: name an Issuer or ClusterIssuer, or leave it empty for an authority of the release's own" -}}
{{- end -}}

{{- $limit := dig "limits" "memory" "" $v.resources -}}
{{- if not $limit -}}
  {{- if not (hasKey $v.config "memory") -}}
  {{- fail "resources.limits.memory is not set, so that ledgerd would take half of the machine's memory: set it, or config.memory" -}}
  {{- end -}}
{{- else if lt (int (include "ledger.mebibytes" $limit)) 256 -}}
{{- fail (printf "resources.limits.memory is %s: ledgerd keeps to half of it, and needs 128 MiB at least, so give it 256Mi or more" (toString $limit)) -}}
{{- end -}}
{{- if and $v.persistence.enabled (contains "ReadOnlyMany" (join "," $v.persistence.accessModes)) -}}
{{- fail "persistence.accessModes has ReadOnlyMany: a node writes to its volume, alone" -}}
{{- end -}}
{{- if contains "ReadWriteMany" (join "," $v.persistence.accessModes) -}}
{{- fail "persistence.accessModes has ReadWriteMany: one directory is for one node, so use ReadWriteOnce or ReadWriteOncePod" -}}
{{- end -}}

{{- $grace := int (include "ledger.grace" .) -}}
{{- $shutdown := int (include "ledger.seconds" ($v.config.shutdown_grace | default "10s")) -}}
{{- if le $grace $shutdown -}}
{{- fail (printf "terminationGracePeriodSeconds is %d and config.shutdown_grace is %d seconds: a node would be killed while it hands over" $grace $shutdown) -}}
{{- end -}}
{{- $leave := int (include "ledger.seconds" ($v.config.leave_grace | default "10m")) -}}
{{- if and $v.config.leave_on_shutdown (le $grace (add $shutdown $leave | int)) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, and config.leave_on_shutdown is true with %d seconds of leave_grace and %d of shutdown_grace: a node would be killed while it leaves" $grace $leave $shutdown) -}}
{{- end -}}

{{- $set := list "LEDGER_CONFIG" "LEDGER_NODE_ID" "LEDGER_GOSSIP_ADVERTISE" "LEDGER_GRPC_ADVERTISE" "LEDGER_SEEDS" "LEDGER_ZONE" "LEDGER_CLUSTER_KEY_FILE" "LEDGER_ENDPOINT" "LEDGER_CA" "LEDGER_CERT" "LEDGER_KEY" "POD_NAME" "POD_NAMESPACE" "POD_IP" "SSL_CERT_FILE" -}}
{{- range $v.extraEnv -}}
  {{- if has .name $set -}}{{- fail (printf "extraEnv has %s, which is the chart's to set" .name) -}}{{- end -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled -}}
{{- fail "metrics.serviceMonitor and metrics.podMonitor are both enabled: every node would be scraped twice, so enable one" -}}
{{- end -}}
{{- if and (eq $v.updateStrategy.type "OnDelete") (gt (int $v.updateStrategy.partition) 0) -}}
{{- fail "updateStrategy.partition is of RollingUpdate, and the type is OnDelete" -}}
{{- end -}}
{{- if and $v.service.nodePort (eq $v.service.type "ClusterIP") -}}
{{- fail "service.nodePort is set, and service.type is ClusterIP: set it to NodePort or LoadBalancer" -}}
{{- end -}}

{{- range $name := $names -}}
  {{- $there := lookup "apps/v1" "StatefulSet" $.Release.Namespace $name -}}
  {{- if $there -}}
    {{- $before := dig "metadata" "annotations" "converge-ledger/mode" "" $there -}}
    {{- $mode := ternary "cluster" "single" $v.cluster.enabled -}}
    {{- if and $before (ne $before $mode) -}}
    {{- fail (printf "cluster.enabled cannot change: %s runs as %q. Install another release, and move contexts with ledgerctl snapshot and load" $name $before) -}}
    {{- end -}}
    {{- range dig "spec" "volumeClaimTemplates" list $there -}}
      {{- $size := dig "spec" "resources" "requests" "storage" "" . -}}
      {{- if and $v.persistence.enabled (eq .metadata.name "data") $size (ne $size $v.persistence.size) -}}
      {{- fail (printf "persistence.size is %s, and %s was made with %s, which Kubernetes does not let change: see docs/kubernetes.md, \"A larger volume\"" $v.persistence.size $name $size) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}
