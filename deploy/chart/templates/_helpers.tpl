{{- define "capdrift.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- with .Values.image.digest -}}
{{ $.Values.image.repository }}@{{ . }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "capdrift.agent.name" -}}
{{ .Release.Name }}-agent
{{- end -}}

{{- define "capdrift.agent.selector" -}}
app.kubernetes.io/name: capdrift
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "capdrift.agent.labels" -}}
{{ include "capdrift.agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
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
{{- $config := dict
  "node" (dict "hostRoot" "/host")
  "runtime" (dict "endpoint" (printf "unix:///host%s" (include "capdrift.socket" .)))
  "log" $agent.log
  "api" $api
  "health" (dict "address" (printf ":%v" $agent.health.port))
  "journal" (dict "dir" "/var/lib/capdrift" "maxBytes" (int64 $agent.journal.maxBytes))
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
