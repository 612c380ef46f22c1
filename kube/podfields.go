package kube

import (
	"fmt"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/drift"
)

// present reports whether a field has a value, whatever it is.
type present bool

// UnmarshalJSON implements [json.Unmarshaler].
func (p *present) UnmarshalJSON(raw []byte) error {
	*p = string(raw) != "null"
	return nil
}

// volume says which fields of a pod's volume are set. What is in them is not kept.
type volume map[string]present

// volumeSources are the fields by which a volume says what it is, sorted.
// Source: k8s.io/api core/v1 VolumeSource, which a test holds this list against.
var volumeSources = []string{
	"awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "fc",
	"flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "hostPath", "image", "iscsi", "nfs", "persistentVolumeClaim",
	"photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd", "scaleIO", "secret", "storageos", "vsphereVolume",
}

// kind is the volume's source; several are joined with +.
func (v volume) kind() string {
	var sources []string
	for _, source := range volumeSources {
		if v[source] {
			sources = append(sources, source)
		}
	}
	if sources == nil {
		return "unknown"
	}
	return strings.Join(sources, "+")
}

// handler is a probe or a lifecycle handler, with the host that it asks.
type handler struct {
	HTTPGet   *hosted `json:"httpGet"`
	TCPSocket *hosted `json:"tcpSocket"`
}

type hosted struct {
	Host string `json:"host"`
}

// hosts are those that probes and lifecycle handlers of the container name.
func (c *container) hosts() (list []string) {
	handlers := []*handler{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe}
	if c.Lifecycle != nil {
		handlers = append(handlers, c.Lifecycle.PostStart, c.Lifecycle.PreStop)
	}
	for _, h := range handlers {
		if h == nil {
			continue
		}
		for _, asked := range []*hosted{h.HTTPGet, h.TCPSocket} {
			if asked != nil && asked.Host != "" {
				list = append(list, asked.Host)
			}
		}
	}
	return list
}

// podFields is what a pod says for all its containers.
type podFields struct {
	drift.PodFields
	lacks string // why they are not known; "" where they are
}

// fields reads those of the pod. Where there are too many of something to keep, none
// is known: what is left out may be what a rule forbids.
func (p *podSpec) fields(marks annotations) (podFields, string) {
	f := podFields{PodFields: drift.PodFields{HostNetwork: p.HostNetwork, HostPID: p.HostPID, HostIPC: p.HostIPC}}
	if p.OS != nil {
		f.OS = clip(p.OS.Name)
	}
	var kinds, sysctls, profiles []string
	for _, v := range p.Volumes {
		kinds = append(kinds, v.kind())
	}
	if p.SecurityContext != nil {
		for _, s := range p.SecurityContext.Sysctls {
			sysctls = append(sysctls, s.Name)
		}
	}
	for _, profile := range marks.appArmor {
		profiles = append(profiles, profile)
	}
	f.VolumeTypes, f.Sysctls, f.AppArmorAnnotations = f.texts("volumes", kinds), f.texts("sysctls", sysctls), f.texts("annotations", profiles)
	f.AppArmorProfiles, f.SELinuxTypes, f.SELinuxUsers, f.SELinuxRoles = []string{}, []string{}, []string{}, []string{}
	f.SeccompAnnotations = []string{}
	if profile, stated := marks.seccomp[seccompOfPod]; stated {
		f.SeccompAnnotations = append(f.SeccompAnnotations, profile)
	}
	f.state(p.SecurityContext)
	return f, f.lacks
}

// of adds what the container says for itself; nil where not all is known.
func (f podFields) of(c *container, marks annotations) (*drift.PodFields, string) {
	f.state(c.SecurityContext)
	if c.SecurityContext != nil && c.SecurityContext.ProcMount != nil {
		f.ProcMount = new(clip(*c.SecurityContext.ProcMount))
	}
	if profile, stated := marks.seccomp[seccompPrefix+c.Name]; stated {
		f.SeccompAnnotations = f.texts("annotations", append(slices.Clone(f.SeccompAnnotations), profile))
	}
	ports := []int64{}
	for _, port := range c.Ports {
		if port.HostPort != 0 {
			ports = append(ports, port.HostPort)
		}
	}
	slices.Sort(ports)
	if f.HostPorts = slices.Compact(ports); len(f.HostPorts) > maxNames {
		f.lacks = tooMany("ports")
	}
	f.ProbeHosts = f.texts("probes", c.hosts())
	if f.lacks != "" {
		return nil, f.lacks
	}
	return &f.PodFields, ""
}

// state adds what a securityContext, the pod's or the container's, says.
func (f *podFields) state(s *securityContext) {
	if s == nil {
		return
	}
	if s.WindowsOptions != nil && s.WindowsOptions.HostProcess != nil && *s.WindowsOptions.HostProcess {
		f.WindowsHostProcess = true
	}
	add := func(to *[]string, value string) { *to = f.texts("", append(slices.Clone(*to), value)) }
	if s.AppArmorProfile != nil {
		add(&f.AppArmorProfiles, s.AppArmorProfile.Type)
	}
	if o := s.SELinuxOptions; o != nil {
		for _, one := range []struct {
			to    *[]string
			value string
		}{{&f.SELinuxTypes, o.Type}, {&f.SELinuxUsers, o.User}, {&f.SELinuxRoles, o.Role}} {
			if one.value != "" {
				add(one.to, one.value)
			}
		}
	}
}

// texts has each text once, clipped and sorted, never nil.
func (f *podFields) texts(what string, given []string) []string {
	kept := make([]string, 0, len(given))
	for _, text := range given {
		kept = append(kept, clip(text))
	}
	slices.Sort(kept)
	if kept = slices.Compact(kept); len(kept) > maxNames {
		f.lacks = tooMany(what)
		return []string{}
	}
	return slices.Clip(kept)
}

func tooMany(what string) string { return fmt.Sprintf("more than %d different %s", maxNames, what) }
