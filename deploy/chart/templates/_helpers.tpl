{{- define "capdrift.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- with .Values.image.digest -}}
{{ $.Values.image.repository }}@{{ . }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "capdrift.agent.name" -}}
{{- .Values.fullnameOverride | default (printf "%s-%s" .Release.Name (.Values.nameOverride | default "agent")) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "capdrift.dashboard.name" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}-dashboard
{{- end -}}

{{- /* The name stays whatever overrides say: kubectl capdrift finds agents by it. */ -}}
{{- define "capdrift.agent.selector" -}}
app.kubernetes.io/name: capdrift
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "capdrift.agent.own" -}}
{{ include "capdrift.agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- /* The labels of an object: .own, which win, .more of this object, and those of all. */ -}}
{{- define "capdrift.labels" -}}
{{- mergeOverwrite (dict) (.root.Values.commonLabels | default dict) (.more | default dict) (include "capdrift.agent.own" .root | fromYaml) | toYaml -}}
{{- end -}}

{{- define "capdrift.agent.labels" -}}
{{- include "capdrift.labels" (dict "root" .) -}}
{{- end -}}

{{- /* What the schema cannot say, with the way out. */ -}}
{{- define "capdrift.checks" -}}
{{- $agent := .Values.agent -}}
{{- $own := include "capdrift.agent.own" . | fromYaml -}}
{{- range $key, $labels := dict "commonLabels" .Values.commonLabels "agent.podLabels" $agent.podLabels "monitoring.podMonitor.labels" .Values.monitoring.podMonitor.labels "monitoring.rules.labels" .Values.monitoring.rules.labels "monitoring.dashboard.labels" .Values.monitoring.dashboard.labels -}}
{{- range $label, $_ := $labels -}}
{{- if hasKey $own $label -}}
{{- fail (printf "%s: %s is a label of the chart's own, by which pods are selected: take another name" $key $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $annotation, $_ := $agent.podAnnotations -}}
{{- if has $annotation (list "checksum/config" "kubectl.kubernetes.io/default-container") -}}
{{- fail (printf "agent.podAnnotations: %s is an annotation of the chart's own: take another name" $annotation) -}}
{{- end -}}
{{- end -}}
{{- range $agent.extraEnv -}}
{{- if has .name (list "NODE_NAME" "GOMEMLIMIT") -}}
{{- fail (printf "agent.extraEnv: the chart sets %s itself: take it out; GOMEMLIMIT follows agent.resources.limits.memory" .name) -}}
{{- end -}}
{{- end -}}
{{- range $agent.extraVolumes -}}
{{- if regexMatch "^(proc|cgroup|runtime(-[0-9]+)?|journal|run|config|tls)$" .name -}}
{{- fail (printf "agent.extraVolumes: the chart has a volume %s itself: take another name" .name) -}}
{{- end -}}
{{- end -}}
{{- $ports := dict "agent.health.port" $agent.health.port -}}
{{- if $agent.metrics.enabled -}}{{- $_ := set $ports "agent.metrics.port" $agent.metrics.port -}}{{- end -}}
{{- if $agent.api.kubectl.enabled -}}{{- $_ := set $ports "agent.api.kubectl.port" $agent.api.kubectl.port -}}{{- end -}}
{{- if $agent.api.tcp.enabled -}}{{- $_ := set $ports "agent.api.tcp.port" $agent.api.tcp.port -}}{{- end -}}
{{- $taken := dict -}}
{{- range $key := keys $ports | sortAlpha -}}
{{- $port := get $ports $key | int | toString -}}
{{- with get $taken $port -}}
{{- fail (printf "%s: %s is the port of %s too, where only one can listen: give one of them another" $key $port .) -}}
{{- end -}}
{{- $_ := set $taken $port $key -}}
{{- end -}}
{{- end -}}

{{- /* What a platform asks for, by preset: the socket, the type that SELinux is to give the agent, and more. */ -}}
{{- define "capdrift.presets" -}}
containerd: {socket: /run/containerd/containerd.sock}
crio: {socket: /run/crio/crio.sock, seLinuxType: spc_t}
k3s: {socket: /run/k3s/containerd/containerd.sock}
rke2: {socket: /run/k3s/containerd/containerd.sock}
k0s: {socket: /run/k0s/containerd.sock}
microk8s: {socket: /var/snap/microk8s/common/run/containerd.sock}
talos: {socket: /run/containerd/containerd.sock}
bottlerocket: {socket: /run/containerd/containerd.sock, seLinuxType: super_t}
openshift: {socket: /run/crio/crio.sock, seLinuxType: spc_t, securityContextConstraints: true}
gke: {socket: /run/containerd/containerd.sock, quota: true}
{{- end -}}

{{- define "capdrift.preset" -}}
{{- get (include "capdrift.presets" . | fromYaml) .Values.agent.runtime.preset | toYaml -}}
{{- end -}}

{{- define "capdrift.socket" -}}
{{- .Values.agent.runtime.socket | default (include "capdrift.preset" . | fromYaml).socket -}}
{{- end -}}

{{- /* The paths of all sockets, that of the preset first. */ -}}
{{- define "capdrift.sockets" -}}
{{- $sockets := list (include "capdrift.socket" . | clean) -}}
{{- range .Values.agent.runtime.sockets -}}{{- $sockets = append $sockets (clean .) -}}{{- end -}}
{{- $sockets | uniq | toJson -}}
{{- end -}}

{{- /* What is mounted of the node for them. A runtime that restarts makes another socket, so the folder is, but for one that
others have their files in too: there it is the socket alone. */ -}}
{{- define "capdrift.runtimes" -}}
{{- $sockets := include "capdrift.sockets" . | fromJsonArray -}}
{{- $mixed := gt (len $sockets) 1 -}}
{{- $mounts := list -}}
{{- range $socket := $sockets -}}
{{- $path := dir $socket -}}
{{- $type := $mixed | ternary "DirectoryOrCreate" "Directory" -}}
{{- if regexMatch "^/([^/]*|var/run|var/lib)$" $path -}}
{{- if $mixed -}}
{{- fail (printf "agent.runtime.sockets: %s is in %s, which is not mounted whole, and on a node without the socket no pod would start: install another release for its nodes, with agent.runtime.socket and agent.nodeSelector" $socket $path) -}}
{{- end -}}
{{- $path = $socket -}}
{{- $type = "Socket" -}}
{{- end -}}
{{- $mounts = append $mounts (dict "path" $path "type" $type) -}}
{{- end -}}
{{- $named := list -}}
{{- range $i, $mount := $mounts | uniq -}}
{{- $named = append $named (set $mount "name" (eq $i 0 | ternary "runtime" (printf "runtime-%d" $i))) -}}
{{- end -}}
{{- $named | toJson -}}
{{- end -}}

{{- define "capdrift.journal" -}}
{{- if ne (toString .Values.agent.journal.enabled) "false" -}}true{{- end -}}
{{- end -}}

{{- /* The agent's configuration. */ -}}
{{- define "capdrift.agent.config" -}}
{{- $agent := .Values.agent -}}
{{- $api := dict "socket" "/run/capdrift/agent.sock" -}}
{{- if $agent.api.kubectl.enabled -}}
{{- $_ := set $api "plaintextLoopback" (printf "127.0.0.1:%v" $agent.api.kubectl.port) -}}
{{- end -}}
{{- if $agent.api.tcp.enabled -}}
{{- $_ := set $api "tcp" (dict "address" (printf ":%v" $agent.api.tcp.port) "certFile" "/etc/capdrift-tls/tls.crt" "keyFile" "/etc/capdrift-tls/tls.key" "clientCAFile" "/etc/capdrift-tls/ca.crt") -}}
{{- end -}}
{{- $runtime := dict -}}
{{- $endpoints := list -}}
{{- range include "capdrift.sockets" . | fromJsonArray -}}{{- $endpoints = append $endpoints (printf "unix:///host%s" .) -}}{{- end -}}
{{- if gt (len $endpoints) 1 -}}{{- $_ := set $runtime "endpoints" $endpoints -}}{{- else -}}{{- $_ := set $runtime "endpoint" (first $endpoints) -}}{{- end -}}
{{- $journal := dict "dir" "" -}}
{{- if include "capdrift.journal" . -}}{{- $journal = dict "dir" "/var/lib/capdrift" "maxBytes" (int64 $agent.journal.maxBytes) -}}{{- end -}}
{{- $config := dict
  "version" 1
  "node" (dict "hostRoot" "/host")
  "runtime" $runtime
  "log" $agent.log
  "api" $api
  "health" (dict "address" (printf ":%v" $agent.health.port))
  "journal" $journal
-}}
{{- with $agent.cadence -}}{{- $_ := set $config "cadence" . -}}{{- end -}}
{{- with $agent.assume -}}{{- $_ := set $config "assume" . -}}{{- end -}}
{{- if $agent.metrics.enabled -}}
{{- $_ := set $config "metrics" (dict "address" (printf ":%v" $agent.metrics.port)) -}}
{{- end -}}
{{- $packs := $agent.policy.packs -}}
{{- range $name := keys $agent.policy.packFiles | sortAlpha -}}
{{- $packs = append $packs (printf "/etc/capdrift/pack-%s.yaml" $name) -}}
{{- end -}}
{{- $exceptions := list -}}
{{- range $name := keys $agent.policy.exceptionFiles | sortAlpha -}}
{{- $exceptions = append $exceptions (printf "/etc/capdrift/exceptions-%s.yaml" $name) -}}
{{- end -}}
{{- $policy := dict -}}
{{- with $packs -}}{{- $_ := set $policy "packs" . -}}{{- end -}}
{{- with $exceptions -}}{{- $_ := set $policy "exceptions" . -}}{{- end -}}
{{- with $agent.policy.pssVersion -}}{{- $_ := set $policy "pssVersion" . -}}{{- end -}}
{{- with $policy -}}{{- $_ := set $config "policy" . -}}{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- /* What of the configuration only a restart takes: the rest may change under a running agent. */ -}}
{{- define "capdrift.agent.fixed" -}}
{{- $config := include "capdrift.agent.config" . | fromYaml -}}
{{- $_ := set $config "log" (omit $config.log "level") -}}
{{- omit $config "cadence" "assume" "policy" | toYaml -}}
{{- end -}}

{{- /* Nine tenths of the memory's limit, which the schema has as a number of Mi or Gi. */ -}}
{{- define "capdrift.agent.memoryLimit" -}}
{{- $limit := .Values.agent.resources.limits.memory -}}
{{- $mebibytes := trimSuffix "Mi" $limit | int64 -}}
{{- if hasSuffix "Gi" $limit -}}{{- $mebibytes = mul (trimSuffix "Gi" $limit | int64) 1024 -}}{{- end -}}
{{- div (mul $mebibytes 9) 10 }}MiB
{{- end -}}
