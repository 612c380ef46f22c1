package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/capdrift/capdrift/drift"
)

// podList is a PodList with what is read of it.
type podList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []pod `json:"items"`
}

// pod is a Pod with what is read of it: what is not decoded is never held.
type pod struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metadata `json:"metadata"`
	Spec            podSpec  `json:"spec"`
}

// metadata is the part of an object's metadata that is read.
type metadata struct {
	Name              string      `json:"name"`
	GenerateName      string      `json:"generateName"`
	Namespace         string      `json:"namespace"`
	UID               string      `json:"uid"`
	ResourceVersion   string      `json:"resourceVersion"`
	CreationTimestamp time.Time   `json:"creationTimestamp"`
	Annotations       annotations `json:"annotations"`
}

// annotations are the few that are read. Secrets get into the others (kubectl's
// last-applied-configuration), which are not kept.
type annotations struct {
	// What the kubelet notes on a static pod and on its mirror in the API server
	// (pkg/kubelet/types/pod_update.go).
	hash, mirror, seen string
	// Profiles by their annotations' names: those of AppArmor, and of seccomp, which
	// counted up to Kubernetes 1.18.
	appArmor, seccomp map[string]string
}

const (
	appArmorPrefix   = "container.apparmor.security.beta.kubernetes.io/"
	seccompOfPod     = "seccomp.security.alpha.kubernetes.io/pod"
	seccompPrefix    = "container.seccomp.security.alpha.kubernetes.io/"
	kubeletOwnPrefix = "kubernetes.io/config."
)

// UnmarshalJSON implements [json.Unmarshaler].
func (a *annotations) UnmarshalJSON(raw []byte) error {
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil {
		return errors.New("annotations are no object")
	}
	*a = annotations{appArmor: make(map[string]string), seccomp: make(map[string]string)}
	kubelet := map[string]*string{"hash": &a.hash, "mirror": &a.mirror, "seen": &a.seen}
	for name, raw := range all {
		var into map[string]string
		own := kubelet[strings.TrimPrefix(name, kubeletOwnPrefix)]
		switch {
		case strings.HasPrefix(name, kubeletOwnPrefix) && own != nil:
		case strings.HasPrefix(name, appArmorPrefix):
			into = a.appArmor
		case strings.HasPrefix(name, seccompPrefix) || name == seccompOfPod:
			into = a.seccomp
		default:
			continue
		}
		var value string
		if json.Unmarshal(raw, &value) != nil {
			return errors.New("an annotation is no string")
		}
		if into == nil {
			*own = value
		} else {
			into[name] = clip(value)
		}
	}
	return nil
}

// podSpec is the part of a PodSpec that decides privileges. Every field here is
// one that may be shown: env, args and what is in volumes stay out.
// Source: k8s.io/api core/v1 types.go.
type podSpec struct {
	OS *struct {
		Name string `json:"name"`
	} `json:"os"`
	HostUsers             *bool            `json:"hostUsers"`
	HostNetwork           bool             `json:"hostNetwork"`
	HostPID               bool             `json:"hostPID"`
	HostIPC               bool             `json:"hostIPC"`
	ShareProcessNamespace *bool            `json:"shareProcessNamespace"`
	RuntimeClassName      *string          `json:"runtimeClassName"`
	SecurityContext       *securityContext `json:"securityContext"`
	Volumes               []volume         `json:"volumes"`
	InitContainers        []container      `json:"initContainers"`
	Containers            []container      `json:"containers"`
	EphemeralContainers   []container      `json:"ephemeralContainers"`
}

type container struct {
	Name            string           `json:"name"`
	RestartPolicy   *string          `json:"restartPolicy"`
	SecurityContext *securityContext `json:"securityContext"`
	Ports           []struct {
		HostPort int64 `json:"hostPort"`
	} `json:"ports"`
	LivenessProbe  *handler `json:"livenessProbe"`
	ReadinessProbe *handler `json:"readinessProbe"`
	StartupProbe   *handler `json:"startupProbe"`
	Lifecycle      *struct {
		PostStart *handler `json:"postStart"`
		PreStop   *handler `json:"preStop"`
	} `json:"lifecycle"`
}

// securityContext is a container's or a pod's: each has fields that the other has not.
type securityContext struct {
	Capabilities *struct {
		Add  []string `json:"add"`
		Drop []string `json:"drop"`
	} `json:"capabilities"`
	Privileged               *bool    `json:"privileged"`
	AllowPrivilegeEscalation *bool    `json:"allowPrivilegeEscalation"`
	RunAsUser                *int64   `json:"runAsUser"`
	RunAsGroup               *int64   `json:"runAsGroup"`
	RunAsNonRoot             *bool    `json:"runAsNonRoot"`
	ReadOnlyRootFilesystem   *bool    `json:"readOnlyRootFilesystem"`
	ProcMount                *string  `json:"procMount"`
	SeccompProfile           *profile `json:"seccompProfile"`
	AppArmorProfile          *profile `json:"appArmorProfile"`
	SELinuxOptions           *struct {
		User string `json:"user"`
		Role string `json:"role"`
		Type string `json:"type"`
	} `json:"seLinuxOptions"`
	WindowsOptions *struct {
		HostProcess *bool `json:"hostProcess"`
	} `json:"windowsOptions"`
	Sysctls []struct {
		Name string `json:"name"`
	} `json:"sysctls"`
	FSGroup                  *int64  `json:"fsGroup"`
	FSGroupChangePolicy      present `json:"fsGroupChangePolicy"`
	SupplementalGroups       []int64 `json:"supplementalGroups"`
	SupplementalGroupsPolicy present `json:"supplementalGroupsPolicy"`
	SELinuxChangePolicy      present `json:"seLinuxChangePolicy"`
}

// profile is one of seccomp or AppArmor.
type profile struct {
	Type      string  `json:"type"`
	Localhost *string `json:"localhostProfile"`
}

// seccomp is the profile's type; nil where there is none.
func (s *securityContext) seccomp() *string {
	if s.SeccompProfile == nil {
		return nil
	}
	return new(clip(s.SeccompProfile.Type))
}

// windows says that the pod runs on a node of another kind than any that is
// looked at.
func (p *podSpec) windows() bool { return p.OS != nil && p.OS.Name == "windows" }

// part is one of the lists of a pod's containers.
type part struct {
	field      string
	role       drift.Role
	containers []container
}

// parts are in the order in which they run.
func (p *podSpec) parts() []part {
	return []part{
		{"initContainers", drift.RoleInit, p.InitContainers}, {"containers", drift.RoleContainer, p.Containers},
		{"ephemeralContainers", drift.RoleEphemeral, p.EphemeralContainers},
	}
}

// containers takes what decides each container's capabilities. What it returns
// beside them, if anything, says why they are not all.
func (p *podSpec) containers(marks annotations, source string) (list []drift.PodContainer, lacks string) {
	ofPod, lacks := p.fields(marks)
	var pod securityContext
	if p.SecurityContext != nil {
		pod = *p.SecurityContext
	}
	runtimeClass := ""
	if p.RuntimeClassName != nil {
		runtimeClass = clip(*p.RuntimeClassName)
	}
	for _, part := range p.parts() {
		for _, c := range part.containers {
			if len(list) == maxContainers {
				return list, fmt.Sprintf("only %d of its containers are kept", maxContainers)
			}
			security := drift.PodSecurity{
				Role: part.role, Add: []string{}, Drop: []string{},
				RunAsUser: pod.RunAsUser, RunAsNonRoot: pod.RunAsNonRoot != nil && *pod.RunAsNonRoot,
				HostUsers: p.HostUsers, SeccompProfile: pod.seccomp(), RuntimeClass: runtimeClass, Source: source,
				PodLevel: drift.PodLevel{RunAsUser: pod.RunAsUser, RunAsNonRoot: pod.RunAsNonRoot, SeccompProfile: pod.seccomp()},
			}
			if part.role == drift.RoleInit && c.RestartPolicy != nil && *c.RestartPolicy == "Always" {
				security.Role = drift.RoleSidecar
			}
			if own := c.SecurityContext; own != nil {
				security.Privileged = own.Privileged != nil && *own.Privileged
				security.AllowPrivilegeEscalation = own.AllowPrivilegeEscalation
				security.ReadOnlyRootFilesystem = own.ReadOnlyRootFilesystem
				if own.SeccompProfile != nil {
					security.SeccompProfile = own.seccomp()
				}
				if own.RunAsUser != nil {
					security.RunAsUser = own.RunAsUser
				}
				if own.RunAsNonRoot != nil {
					security.RunAsNonRoot = *own.RunAsNonRoot
				}
				if own.Capabilities != nil {
					if len(own.Capabilities.Add) > maxNames || len(own.Capabilities.Drop) > maxNames {
						lacks = fmt.Sprintf("only %d names of a list of capabilities are kept", maxNames)
					}
					security.Add, security.Drop = names(own.Capabilities.Add), names(own.Capabilities.Drop)
				}
			}
			var lack string
			if security.PodFields, lack = ofPod.of(&c, marks); lack != "" {
				lacks = lack
			}
			list = append(list, drift.PodContainer{Name: clip(c.Name), Security: security})
		}
	}
	return list, lacks
}

// names is a bounded copy, never nil.
func names(given []string) []string {
	kept := make([]string, min(len(given), maxNames))
	for i := range kept {
		kept[i] = clip(given[i])
	}
	return kept
}

// criUID is the uid by which the runtime knows a static pod: the kubelet's hash of
// its manifest, which the mirror in the API server carries as an annotation.
func (m *metadata) criUID() string {
	if m.Annotations.mirror != "" {
		return clip(m.Annotations.mirror)
	}
	return clip(m.Annotations.hash)
}

// since is when the pod came to be known: a static pod has no creation time at
// the kubelet, which notes when it saw it.
func (m *metadata) since() time.Time {
	if !m.CreationTimestamp.IsZero() {
		return m.CreationTimestamp
	}
	seen, err := time.Parse(time.RFC3339Nano, m.Annotations.seen)
	if err != nil {
		return time.Time{} // it does not say
	}
	return seen
}

// spec makes what a scan is told of a pod. The annotations are those of the pod, which
// for a template are not the object's. What it returns beside it, if
// anything, says why that is not all.
func (m *metadata) spec(p *podSpec, marks annotations, source string) (spec drift.PodSpec, lacks string) {
	spec = drift.PodSpec{
		Pod:    drift.Pod{Namespace: clip(m.Namespace), Name: clip(m.Name), UID: clip(m.UID)},
		CRIUID: m.criUID(), Source: source, Created: m.since(),
	}
	spec.Containers, lacks = p.containers(marks, source)
	return spec, lacks
}

// tell makes what a scan is told of all pods of a node.
func tell(list []pod, source string) drift.Pods {
	pods := drift.Pods{Source: source, Whole: true}
	for i := range list {
		p := &list[i]
		if p.Spec.windows() {
			continue
		}
		spec, lacks := p.Metadata.spec(&p.Spec, p.Metadata.Annotations, source)
		if lacks != "" {
			pods.Limits = append(pods.Limits, drift.Limit{
				What: fmt.Sprintf("the pod spec of %s/%s", spec.Namespace, spec.Name), Why: lacks, Blind: true,
			})
		}
		pods.Specs = append(pods.Specs, spec)
	}
	return pods
}
