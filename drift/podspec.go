package drift

import (
	"fmt"
	"slices"
	"time"
)

// Role says in which of a pod's three lists a container stands.
type Role string

// The roles of a container in its pod. A sidecar is an init container with
// restartPolicy: Always.
const (
	RoleContainer Role = "container"
	RoleInit      Role = "init"
	RoleSidecar   Role = "sidecar"
	RoleEphemeral Role = "ephemeral"
)

// PodSpec is what a pod's own spec asks for each of its containers.
type PodSpec struct {
	Pod
	// CRIUID is the uid by which the runtime knows the pod where it is another:
	// that of a static pod is a hash of its manifest, in the annotation
	// kubernetes.io/config.hash (pkg/kubelet/types/pod_update.go).
	CRIUID     string
	Source     string    // where the spec was read, for people: "kubelet", "pods.yaml, document 3"
	Created    time.Time // since when it is known; zero when it does not say
	Containers []PodContainer
}

// PodContainer is one container of a pod's spec.
type PodContainer struct {
	Name     string
	Security PodSecurity
}

// PodSecurity is the part of a pod spec that decides one container's
// privileges, as written; what the container does not say for itself is taken
// from its pod. Source: k8s.io/api core/v1 SecurityContext, PodSecurityContext.
type PodSecurity struct {
	Role                     Role     `json:"role"`
	Add                      []string `json:"add"`
	Drop                     []string `json:"drop"`
	Privileged               bool     `json:"privileged"`
	AllowPrivilegeEscalation *bool    `json:"allowPrivilegeEscalation"`
	RunAsUser                *int64   `json:"runAsUser"`
	RunAsNonRoot             bool     `json:"runAsNonRoot"`
	HostUsers                *bool    `json:"hostUsers"`
	SeccompProfile           *string  `json:"seccompProfile"` // its type, as written: RuntimeDefault, Localhost, Unconfined
	ReadOnlyRootFilesystem   *bool    `json:"readOnlyRootFilesystem"`
	PodLevel                 PodLevel `json:"podLevel"`
	RuntimeClass             string   `json:"runtimeClass"`
	Source                   string   `json:"source"`
	*PodFields                        // nil where it was not told, as by an agent of an older version
}

// PodFields is what a pod spec says of a container and its pod that decides no
// capability, and that the Pod Security Standards restrict. Lists hold each value
// once, sorted; of what both pod and container may state they hold what either does.
// Source: k8s.io/pod-security-admission, policy.
type PodFields struct {
	HostNetwork bool   `json:"hostNetwork"`
	HostPID     bool   `json:"hostPID"`
	HostIPC     bool   `json:"hostIPC"`
	OS          string `json:"os"` // os.name, "" where it is not said
	// VolumeTypes are the fields that say what the pod's volumes are: hostPath, emptyDir;
	// "unknown" for one that has none. Several of one volume are joined with +, which the
	// API server refuses.
	VolumeTypes []string `json:"volumeTypes"`
	Sysctls     []string `json:"sysctls"` // names
	HostPorts   []int64  `json:"hostPorts"`
	// ProbeHosts are the hosts that probes and lifecycle handlers name.
	ProbeHosts         []string `json:"probeHosts"`
	ProcMount          *string  `json:"procMount"`
	WindowsHostProcess bool     `json:"windowsHostProcess"` // of the container or the pod
	AppArmorProfiles   []string `json:"appArmorProfiles"`   // types
	// AppArmorAnnotations are the values of the pod's container.apparmor.security.beta.kubernetes.io/*,
	// of whatever container.
	AppArmorAnnotations []string `json:"appArmorAnnotations"`
	// SeccompAnnotations are those of seccomp.security.alpha.kubernetes.io that are about
	// the pod or this container. They count up to Kubernetes 1.18.
	SeccompAnnotations []string `json:"seccompAnnotations"`
	SELinuxTypes       []string `json:"seLinuxTypes"`
	SELinuxUsers       []string `json:"seLinuxUsers"`
	SELinuxRoles       []string `json:"seLinuxRoles"`
}

// PodLevel is what the pod's own securityContext says, whether or not a container
// says otherwise: the Pod Security Standards forbid some of it all the same.
type PodLevel struct {
	RunAsUser      *int64  `json:"runAsUser"`
	RunAsNonRoot   *bool   `json:"runAsNonRoot"`
	SeccompProfile *string `json:"seccompProfile"`
}

// Pods is what a source of pod specs tells of one node.
type Pods struct {
	Source string // for people: "API server https://…", "kubelet http://…", "pods.yaml"
	// Whole is true when the source knows every pod of the node, so that a pod
	// that it does not know is no pod: the API server and the kubelet, not files.
	Whole  bool
	Specs  []PodSpec
	Limits []Limit
}

// Join gives each container of a pod its pod spec's layer, and says why where a
// whole source has none: the container was then made by somebody else than the
// kubelet. It writes to the containers and returns what could not be joined.
//
// The pods must have been listed after the containers: a pod is known before its
// containers run.
func Join(containers []Container, pods Pods) []Limit {
	limits := slices.Clone(pods.Limits)
	// A uid counts together with the name: the annotation that CRIUID comes from is
	// a pod author's to write, and must not take another pod's uid away.
	byUID, byName := make(map[Pod]*PodSpec), make(map[Pod]*PodSpec)
	for i := range pods.Specs {
		spec := &pods.Specs[i]
		for _, uid := range []string{spec.UID, spec.CRIUID} {
			if uid != "" {
				byUID[Pod{spec.Namespace, spec.Name, uid}] = spec
			}
		}
		byName[Pod{Namespace: spec.Namespace, Name: spec.Name}] = spec
	}
	of := func(c Container) (spec *PodSpec, same bool) {
		if spec := byUID[*c.Pod]; spec != nil {
			return spec, true
		}
		spec = byName[Pod{Namespace: c.Pod.Namespace, Name: c.Pod.Name}]
		// A manifest gives no uid; its pod goes by its name alone.
		return spec, spec != nil && spec.UID == "" && spec.CRIUID == ""
	}
	joined, unjoined := 0, 0
	for i := range containers {
		c := &containers[i]
		if c.Pod == nil || c.Sandbox || c.Managed == nil || !*c.Managed {
			continue
		}
		spec, same := of(*c)
		if same {
			at := slices.IndexFunc(spec.Containers, func(p PodContainer) bool { return p.Name == c.Name })
			if at >= 0 {
				c.Declared.Pod, c.ByName = &spec.Containers[at].Security, spec.UID == "" && spec.CRIUID == ""
				joined++
				continue
			}
		}
		if !same || !pods.Whole {
			unjoined++
		}
		switch {
		case !pods.Whole: // files do not claim to know every pod, nor its newest spec
		case same:
			c.Unexplained = fmt.Sprintf("its pod's spec (%s) has no container of this name", pods.Source)
		case spec == nil:
			c.Unexplained = fmt.Sprintf("%s knows no such pod", pods.Source)
		case !c.Created.IsZero() && c.Created.Before(spec.Created):
			// The pod of this name is a later one: a static pod that was edited, or
			// one that was deleted by force, takes a while to end.
		default:
			c.Unexplained = fmt.Sprintf("%s knows a pod of this name with another uid", pods.Source)
		}
	}
	if unjoined == 0 || joined > 0 && pods.Whole {
		return limits
	}
	for i := range containers {
		if containers[i].Declared.Pod == nil {
			containers[i].Unexplained = ""
		}
	}
	why := "they are not among what was read there"
	if pods.Whole {
		why = "it knows none of this node's pods; is it the right cluster, and --node-name the node's name there?"
	}
	return append(limits, Limit{What: fmt.Sprintf("the pod specs of %d containers in %s", unjoined, pods.Source), Why: why, Blind: true})
}
