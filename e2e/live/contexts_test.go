//go:build linux

package live

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/capability"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

const (
	defaults = 0xa80425fb // containerd's 14
	netAdmin = 1 << 12
	netRaw   = 1 << 13
	netBind  = 1 << 10
	chown    = 1 << 0
)

func uid(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }

func capabilities(add, drop []string) *cri.Capability {
	return &cri.Capability{AddCapabilities: add, DropCapabilities: drop}
}

func dropAll() *cri.LinuxContainerSecurityContext {
	return &cri.LinuxContainerSecurityContext{Capabilities: capabilities(nil, []string{"ALL"})}
}

func restricted() *cri.LinuxContainerSecurityContext {
	return &cri.LinuxContainerSecurityContext{
		Capabilities: capabilities([]string{"NET_BIND_SERVICE"}, []string{"ALL"}),
		NoNewPrivs:   true,
		RunAsUser:    uid(1000),
	}
}

// hostIDs is where user namespaces of pods are mapped to.
const hostIDs = 100000

func userNamespace(sc *cri.LinuxContainerSecurityContext) *cri.LinuxContainerSecurityContext {
	ids := []*cri.IDMapping{{HostId: hostIDs, Length: 65536}}
	sc.NamespaceOptions = &cri.NamespaceOption{
		Network:       cri.NamespaceMode_NODE,
		Pid:           cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
	}
	return sc
}

// held is what this machine's root has to give, and so what ALL and privileged mean to a
// containerd that it starts. A build machine may lack some.
var held = sync.OnceValue(func() uint64 {
	sets, err := capability.NewPid2(0)
	if err == nil {
		err = sets.Load()
	}
	if err != nil {
		panic(err)
	}
	var all uint64
	for _, c := range capability.ListKnown() {
		if sets.Get(capability.EFFECTIVE, c) {
			all |= 1 << c
		}
	}
	return all
})

// names of a set's capabilities in bit order, by another decoder than ours.
func names(set uint64) []string {
	var list []string
	for _, c := range capability.ListKnown() {
		if set>>c&1 == 1 {
			list = append(list, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return list
}

// Security contexts as people write them: none is drift, whatever the kernel makes of it,
// but where a list is not understood.
func TestContexts(t *testing.T) {
	onNode(t)
	all := held()
	none := &cri.LinuxContainerSecurityContext{}
	with := func(add, drop []string) *cri.LinuxContainerSecurityContext {
		return &cri.LinuxContainerSecurityContext{Capabilities: capabilities(add, drop)}
	}
	cases := []struct {
		name                string
		security            *cri.LinuxContainerSecurityContext
		effective, bounding uint64 // what init holds
		uid                 uint32 // in the container
		unknown             []string
	}{
		{"default", none, defaults, defaults, 0, nil},
		{"drop-all", dropAll(), 0, 0, 0, nil},
		{"drop-net-raw", with(nil, []string{"NET_RAW"}), defaults &^ netRaw, defaults &^ netRaw, 0, nil},
		{"add-net-admin", with([]string{"NET_ADMIN"}, nil), defaults | netAdmin, defaults | netAdmin, 0, nil},
		{"add-all", with([]string{"ALL"}, nil), all, all, 0, nil},
		{"add-all-drop-chown", with([]string{"ALL"}, []string{"CHOWN"}), all &^ chown, all &^ chown, 0, nil},
		{"add-all-drop-all", with([]string{"ALL"}, []string{"ALL"}), 0, 0, 0, nil},
		{"add-and-drop-same", with([]string{"NET_ADMIN"}, []string{"NET_ADMIN"}), defaults, defaults, 0, nil},
		{"restricted", restricted(), 0, netBind, 1000, nil},
		{"nonroot", &cri.LinuxContainerSecurityContext{RunAsUser: uid(1000)}, 0, defaults, 1000, nil},
		{"runasuser0", &cri.LinuxContainerSecurityContext{RunAsUser: uid(0)}, defaults, defaults, 0, nil},
		{"lower-case", with([]string{"net_admin"}, []string{"all"}), netAdmin, netAdmin, 0, nil},
		// containerd adds the prefix itself: nothing is added, nothing dropped.
		{"cap-prefix-add", with([]string{"CAP_SYS_ADMIN"}, nil), defaults, defaults, 0, []string{"CAP_CAP_SYS_ADMIN"}},
		{"cap-prefix-drop", with(nil, []string{"CAP_NET_RAW"}), defaults, defaults, 0, nil},
		{"unknown-name", with([]string{"BOGUS"}, nil), defaults, defaults, 0, []string{"CAP_BOGUS"}},
		{"privileged", &cri.LinuxContainerSecurityContext{Privileged: true}, all, all, 0, nil},
		{"privileged-nonroot", &cri.LinuxContainerSecurityContext{Privileged: true, RunAsUser: uid(1000)}, 0, all, 1000, nil},
		{"userns", userNamespace(&cri.LinuxContainerSecurityContext{}), defaults, defaults, 0, nil},
		{"userns-nonroot", userNamespace(&cri.LinuxContainerSecurityContext{RunAsUser: uid(1000)}), 0, defaults, 1000, nil},
		{"ambient-requested", &cri.LinuxContainerSecurityContext{
			Capabilities: &cri.Capability{
				AddCapabilities:        []string{"NET_BIND_SERVICE"},
				AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
				DropCapabilities:       []string{"ALL"},
			},
			RunAsUser: uid(1000),
		}, 0, netBind, 1000, nil},
	}
	pods := make([]node.Pod, len(cases))
	for i, c := range cases {
		pods[i] = node.Pod{Container: c.name, Security: c.security, Shared: true}
	}
	containers := run(t, pods...)
	r := scan(t)

	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := r.container(t, containers[i].ID)
			if pod := containers[i].Pod; got.Name != c.name || got.Pod == nil || got.Pod.Name != pod.Name || got.Pod.Namespace != pod.Namespace {
				t.Errorf("listed as %q of pod %+v", got.Name, got.Pod)
			}
			if label := "io.kubernetes.pod.name=" + containers[i].Pod.Name; !slices.Contains(got.Labels, label) {
				t.Errorf("labels %q, want %s among them", got.Labels, label)
			}
			if got.Managed == nil || !*got.Managed || got.Observation != "observed" {
				t.Errorf("managed %v, %s; want a managed one, observed", got.Managed, got.Observation)
			}
			if got.Declared.CRI == nil || got.Declared.OCI == nil {
				t.Fatalf("declared %+v, want both layers", got.Declared)
			}
			if cri := got.Declared.CRI; cri.Privileged != c.security.Privileged || cri.NoNewPrivileges != c.security.NoNewPrivs ||
				!slices.Equal(cri.Add, c.security.GetCapabilities().GetAddCapabilities()) ||
				!slices.Equal(cri.Drop, c.security.GetCapabilities().GetDropCapabilities()) {
				t.Errorf("declared to the CRI %+v, want %v", cri, c.security)
			}
			if !slices.Equal(got.Declared.OCI.UnknownNames, c.unknown) {
				t.Errorf("unknown names %q, want %q", got.Declared.OCI.UnknownNames, c.unknown)
			}
			init := got.process(t, containers[i].Pid)
			if want := fmt.Sprintf("%016x", c.effective); init.Caps.Effective.Hex != want || init.Caps.Permitted.Hex != want {
				t.Errorf("effective %s, permitted %s, want %s", init.Caps.Effective.Hex, init.Caps.Permitted.Hex, want)
			}
			if want := fmt.Sprintf("%016x", c.bounding); init.Caps.Bounding.Hex != want {
				t.Errorf("bounding %s, want %s", init.Caps.Bounding.Hex, want)
			}
			if init.ContainerUID == nil || *init.ContainerUID != c.uid {
				t.Errorf("uid in the container %v, want %d", init.ContainerUID, c.uid)
			}
			if init.UserNamespace.Relation != "same" {
				t.Errorf("user namespace relation %q, want same", init.UserNamespace.Relation)
			}
		})
	}
	// What the lists do not give, by the case's name.
	ignored := map[string][]string{
		"cap-prefix-add":    {"medium add_ignored cap_prefix cri→oci CAP_SYS_ADMIN"},
		"cap-prefix-drop":   {"high drop_ignored cap_prefix cri→oci CAP_NET_RAW"},
		"unknown-name":      {"medium unknown_name spelling cri→oci"},
		"add-all-drop-all":  {"low add_ignored same_in_both_lists cri→oci " + strings.Join(names(all), " ")},
		"add-and-drop-same": {"low add_ignored same_in_both_lists cri→oci CAP_NET_ADMIN"},
	}
	t.Run("nothing else is alarming", func(t *testing.T) {
		for i, c := range cases {
			loud := slices.DeleteFunc(r.about(containers[i].ID), func(f string) bool { return strings.HasPrefix(f, "info ") })
			if !slices.Equal(loud, ignored[c.name]) {
				t.Errorf("%s: %q, want %q", c.name, loud, ignored[c.name])
			}
		}
		if handlers := r.about(""); handlers != nil {
			t.Errorf("about handlers: %q", handlers)
		}
		if !r.Coverage.Complete || r.Coverage.Containers.Observed != r.Coverage.Containers.Running ||
			r.Coverage.Containers.Running < len(cases) {
			t.Errorf("coverage %+v", r.Coverage)
		}
	})
}
