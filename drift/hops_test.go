package drift_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// made returns a container of the runtime that was given the orders and made what
// the runtime makes of them, with changes.
func made(t *testing.T, runtime string, orders drift.CRI, changes ...func(*drift.Container)) drift.Container {
	t.Helper()
	oci, err := drift.PredictOCI(runtime, orders, drift.Stock(runtime, 40))
	if err != nil {
		t.Fatal(err)
	}
	managed := true
	c := drift.Container{
		ID: "c1", Name: "app", Managed: &managed, Observation: drift.Observed, Pod: &drift.Pod{Namespace: "shop", Name: "web", UID: "u1"},
		Declared: drift.Declared{CRI: &orders, OCI: &oci},
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

func uid(n int64) *int64 { return &n }

func podSpec(p drift.PodSecurity) func(*drift.Container) {
	return func(c *drift.Container) { p.Source = "a test"; c.Declared.Pod = &p }
}

func ofOCI(change func(*drift.OCI)) func(*drift.Container) {
	return func(c *drift.Container) {
		oci := *c.Declared.OCI
		change(&oci)
		c.Declared.OCI = &oci
	}
}

// summary writes findings as "severity kind from→layer cause capabilities".
func summary(findings []drift.Finding) []string {
	var list []string
	for _, f := range findings {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %s→%s %s %s", f.Severity, f.Kind, f.From, f.Layer, f.Cause, f.Capabilities)))
		if f.ID == "" || f.Message == "" || f.Remedy == "" {
			list = append(list, "without id, message or remedy")
		}
	}
	slices.Sort(list)
	return list
}

func TestHops(t *testing.T) {
	hidden := func(c *drift.Container) { c.Declared.CRI = nil }
	for what, row := range map[string]struct {
		runtime string
		orders  drift.CRI
		changes []func(*drift.Container)
		want    []string
		paste   string
	}{
		"what is written as documented raises nothing": {
			orders: drift.CRI{Add: []string{"NET_BIND_SERVICE"}, Drop: []string{"ALL"}},
		},
		"lower case is understood":                   {orders: drift.CRI{Add: []string{"net_admin"}, Drop: []string{"all"}}},
		"a drop of what nobody has by default is ok": {orders: drift.CRI{Drop: []string{"CAP_SYS_ADMIN"}}},
		"a prefixed drop drops nothing on containerd": {
			orders: drift.CRI{Drop: []string{"CAP_NET_RAW"}},
			want:   []string{"high drop_ignored cri→oci cap_prefix cap_net_raw"},
			paste:  "drop: [NET_RAW]",
		},
		"a prefixed ALL drops nothing on containerd": {
			orders: drift.CRI{Drop: []string{"CAP_ALL"}, Add: []string{"NET_BIND_SERVICE"}},
			want:   []string{"high drop_ignored cri→oci cap_prefix " + defaults.Minus(1<<10).String()},
			paste:  "add: [NET_BIND_SERVICE]\n    drop: [ALL]",
		},
		"a name with a space drops nothing": {
			orders: drift.CRI{Drop: []string{"NET_RAW "}},
			want:   []string{"high drop_ignored cri→oci spelling cap_net_raw"},
			paste:  "drop: [NET_RAW]",
		},
		"a prefixed add adds nothing on containerd": {
			orders: drift.CRI{Add: []string{"CAP_SYS_ADMIN"}},
			want:   []string{"medium add_ignored cri→oci cap_prefix cap_sys_admin"},
			paste:  "add: [SYS_ADMIN]",
		},
		"a prefixed add of a default is no loss":  {orders: drift.CRI{Add: []string{"CAP_CHOWN"}}},
		"CRI-O takes the prefix":                  {runtime: drift.CRIO, orders: drift.CRI{Drop: []string{"CAP_CHOWN"}, Add: []string{"CAP_SYS_ADMIN"}}},
		"CRI-O hides its orders without pod spec": {runtime: drift.CRIO, orders: drift.CRI{}, changes: []func(*drift.Container){hidden}},
		"a name that no kernel knows is said, with the one it is likely to mean": {
			orders: drift.CRI{Add: []string{"NETADMIN"}},
			want:   []string{"medium unknown_name cri→oci spelling"},
			paste:  "add: [NET_ADMIN]",
		},
		"a misspelt drop leaves what it is likely to mean": {
			orders: drift.CRI{Drop: []string{"NETRAW"}},
			want:   []string{"high unknown_name cri→oci spelling cap_net_raw"},
			paste:  "drop: [NET_RAW]",
		},
		"a star was meant to drop everything": {
			orders: drift.CRI{Drop: []string{"*"}},
			want:   []string{"high unknown_name cri→oci spelling " + defaults.String()},
			paste:  "drop: [ALL]",
		},
		"a star beside an add": {
			orders: drift.CRI{Add: []string{"CHOWN"}, Drop: []string{"“ALL”"}},
			want:   []string{"high unknown_name cri→oci spelling " + defaults.Minus(1).String()},
			paste:  "add: [CHOWN]\n    drop: [ALL]",
		},
		"several names in one text": {
			orders: drift.CRI{Drop: []string{"NET_RAW,MKNOD"}},
			want:   []string{"high unknown_name cri→oci spelling " + (netRaw | 1<<27).String()},
			paste:  "drop: [NET_RAW, MKNOD]",
		},
		"an ALL with a space drops nothing": {
			orders: drift.CRI{Drop: []string{"all "}},
			want:   []string{"high drop_ignored cri→oci spelling " + defaults.String()},
			paste:  "drop: [ALL]",
		},
		"a name that lacks letters": {
			orders: drift.CRI{Add: []string{"SYS_ADM"}, Drop: []string{"NET_RAWS"}},
			want:   []string{"high unknown_name cri→oci spelling cap_net_raw"},
			paste:  "add: [SYS_ADMIN]\n    drop: [NET_RAW]",
		},
		"ALL in both lists: the drop wins on containerd": {
			orders: drift.CRI{Add: []string{"ALL"}, Drop: []string{"all"}},
			want:   []string{"low add_ignored cri→oci same_in_both_lists " + all.String()},
			paste:  "drop: [ALL]",
		},
		"ALL in both lists: the add wins on Docker": {
			runtime: drift.Docker, orders: drift.CRI{Add: []string{"ALL"}, Drop: []string{"ALL"}},
			want:  []string{"high drop_ignored cri→oci same_in_both_lists " + all.String()},
			paste: "drop: [ALL]",
		},
		"privileged with a drop list misleads": {
			orders: drift.CRI{Drop: []string{"ALL"}, Privileged: true},
			want:   []string{"low drop_ignored cri→oci privileged " + all.String()},
		},
		"privileged alone is what it says": {orders: drift.CRI{Privileged: true}},
		"both lists: the drop wins on containerd": {
			orders: drift.CRI{Add: []string{"NET_ADMIN"}, Drop: []string{"NET_ADMIN"}},
			want:   []string{"low add_ignored cri→oci same_in_both_lists cap_net_admin"},
			paste:  "drop: [NET_ADMIN]",
		},
		"both lists: the add wins on Docker": {
			runtime: drift.Docker, orders: drift.CRI{Add: []string{"CHOWN"}, Drop: []string{"CHOWN"}},
			want:  []string{"low drop_ignored cri→oci same_in_both_lists cap_chown"},
			paste: "add: [CHOWN]",
		},
		"a user other than root gets nothing of an add": {
			orders: drift.CRI{Add: []string{"NET_BIND_SERVICE"}, Drop: []string{"ALL"}, RunAsUser: uid(1000)},
			want:   []string{"info ineffective_add oci→kernel non_root cap_net_bind_service"},
			paste:  "net.ipv4.ip_unprivileged_port_start",
		},
		"neither does the image's user": {
			orders:  drift.CRI{Add: []string{"NET_ADMIN"}, RunAsUser: uid(1000)},
			changes: []func(*drift.Container){podSpec(drift.PodSecurity{Add: []string{"NET_ADMIN"}})},
			want:    []string{"info ineffective_add oci→kernel image_user cap_net_admin"},
			paste:   "runAsUser: 0\n  capabilities:\n    add: [NET_ADMIN]\n    drop: [ALL]",
		},
		"unless its program has file capabilities": {
			orders: drift.CRI{Add: []string{"NET_RAW"}, Drop: []string{"ALL"}, RunAsUser: uid(1000)},
			changes: []func(*drift.Container){func(c *drift.Container) {
				c.Processes = []drift.Process{{PID: 1, Caps: capdecode.Sets{Permitted: netRaw}}}
			}},
		},
		"a browser's sandbox holds everything and uses no add": {
			orders: drift.CRI{Add: []string{"NET_RAW"}, Drop: []string{"ALL"}, RunAsUser: uid(1000)},
			changes: []func(*drift.Container){func(c *drift.Container) {
				c.Processes = []drift.Process{{PID: 1, Caps: capdecode.Sets{Permitted: all}, UserNamespace: drift.UserNamespace{Relation: drift.RelationChild}}}
			}},
			want: []string{"info ineffective_add oci→kernel non_root cap_net_raw"},
		},
		"privileged gives nothing to a user other than root": {
			orders: drift.CRI{Privileged: true, RunAsUser: uid(1000)},
			want:   []string{"info ineffective_add oci→kernel non_root " + all.String()},
		},
		"the default set of a user other than root is nobody's wish": {orders: drift.CRI{RunAsUser: uid(1000)}},
		"an OCI spec with more than it should": {
			orders: drift.CRI{Drop: []string{"ALL"}},
			changes: []func(*drift.Container){ofOCI(func(o *drift.OCI) {
				o.Bounding = sysAdmin
			})},
			want: []string{"high drop_ignored cri→oci  cap_sys_admin", "high oci_mismatch cri→oci  cap_sys_admin"},
		},
		"an OCI spec without the no_new_privs it should have": {
			orders:  drift.CRI{NoNewPrivileges: true},
			changes: []func(*drift.Container){ofOCI(func(o *drift.OCI) { o.NoNewPrivileges = false })},
			want:    []string{"high oci_mismatch cri→oci"},
		},
		"an OCI spec as root for another user": {
			orders:  drift.CRI{RunAsUser: uid(7)},
			changes: []func(*drift.Container){ofOCI(func(o *drift.OCI) { o.UID = 0 })},
			want:    []string{"high oci_mismatch cri→oci"},
		},
		"an OCI spec without the user namespace": {
			orders:  drift.CRI{UserNamespace: true},
			changes: []func(*drift.Container){ofOCI(func(o *drift.OCI) { o.UserNamespace = false })},
			want:    []string{"high oci_mismatch cri→oci"},
		},
		"a pod spec that the kubelet copied": {
			orders: drift.CRI{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL", "CHOWN"}, NoNewPrivileges: true, RunAsUser: uid(0)},
			changes: []func(*drift.Container){podSpec(drift.PodSecurity{
				Add: []string{"NET_ADMIN"}, Drop: []string{"CHOWN", "ALL"}, AllowPrivilegeEscalation: new(false),
			})},
		},
		"a CRI config with more than the pod spec": {
			orders:  drift.CRI{Add: []string{"NET_ADMIN", "SYS_ADMIN"}},
			changes: []func(*drift.Container){podSpec(drift.PodSecurity{Add: []string{"NET_ADMIN"}})},
			want:    []string{"high cri_mismatch pod→cri direct_cri_client cap_sys_admin"},
		},
		"a CRI config with more than a manifest that may be old": {
			orders:  drift.CRI{Add: []string{"NET_ADMIN", "SYS_ADMIN"}},
			changes: []func(*drift.Container){podSpec(drift.PodSecurity{Add: []string{"NET_ADMIN"}}), func(c *drift.Container) { c.ByName = true }},
			want:    []string{"medium cri_mismatch pod→cri file_is_not_live cap_sys_admin"},
		},
		"a CRI config without the user of the pod spec": {
			orders:  drift.CRI{},
			changes: []func(*drift.Container){podSpec(drift.PodSecurity{RunAsUser: uid(1000)})},
			want:    []string{"high cri_mismatch pod→cri direct_cri_client"},
		},
		"an ambient request, which no kubelet makes": {
			orders:  drift.CRI{AddAmbient: []string{"NET_ADMIN"}},
			changes: []func(*drift.Container){podSpec(drift.PodSecurity{})},
			want:    []string{"high cri_mismatch pod→cri direct_cri_client"},
		},
		"CRI-O is judged by the pod spec": {
			runtime: drift.CRIO, orders: drift.CRI{Drop: []string{"ALL"}},
			changes: []func(*drift.Container){hidden, podSpec(drift.PodSecurity{Drop: []string{"ALL"}}), ofOCI(func(o *drift.OCI) {
				o.Sets = capdecode.Sets{Bounding: 1, Permitted: 1, Effective: 1}
			})},
			want: []string{"high drop_ignored pod→oci  cap_chown", "high oci_mismatch pod→oci  cap_chown"},
		},
		"a container that no pod spec explains": {
			orders:  drift.CRI{Privileged: true},
			changes: []func(*drift.Container){func(c *drift.Container) { c.Unexplained = "the kubelet knows no such pod" }},
			want:    []string{"medium unmanaged_container pod→cri direct_cri_client"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			runtime := row.runtime
			if runtime == "" {
				runtime = drift.Containerd
			}
			c := made(t, runtime, row.orders, row.changes...)
			node := drift.Node{CapLastCap: 40}
			full := all
			// Another container of the node shows that its defaults are the usual ones.
			usual := made(t, runtime, drift.CRI{}, func(c *drift.Container) { c.Declared.Pod = new(drift.PodSecurity) })
			expect := drift.Expect(node, drift.Runtime{Name: runtime}, &full, drift.Given{}, []drift.Container{usual, usual, c})
			findings := drift.Hops(node, expect, c)
			if got := summary(findings); !slices.Equal(got, row.want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
			if got := summary(expect.Findings()); got != nil {
				t.Errorf("about the handler: %q", got)
			}
			if row.paste != "" && !slices.ContainsFunc(findings, func(f drift.Finding) bool { return strings.Contains(f.Paste, row.paste) }) {
				t.Errorf("nothing to paste with %q in %+v", row.paste, findings)
			}
		})
	}
}

// TestExpect: a configuration that shifts all containers of a handler is one
// finding, and what differs from the others of its handler is one about itself.
func TestExpect(t *testing.T) {
	node := drift.Node{CapLastCap: 40}
	full := all
	with := func(default_ capdecode.Set, handler string, orders drift.CRI) drift.Container {
		s := drift.Stock(drift.Containerd, 40)
		s.Default = capdecode.Sets{Bounding: default_, Permitted: default_, Effective: default_}
		oci, err := drift.PredictOCI(drift.Containerd, orders, s)
		if err != nil {
			t.Fatal(err)
		}
		return drift.Container{ID: "c", Name: "app", RuntimeHandler: handler, Declared: drift.Declared{CRI: &orders, OCI: &oci}}
	}
	runtime := drift.Runtime{Name: "containerd", DefaultHandler: "runc", Handlers: map[string]drift.Handler{"runc": {}, "wide": {BaseSpec: "/etc/wide.json"}}}
	wide := defaults | sysAdmin
	given := func(set capdecode.Set) drift.Given { return drift.Given{Default: &set} }
	for what, row := range map[string]struct {
		given      drift.Given
		containers []drift.Container
		handler    []string
		each       []string
	}{
		"nothing runs": {},
		"the usual":    {containers: []drift.Container{with(defaults, "", drift.CRI{}), with(defaults, "", drift.CRI{Drop: []string{"ALL"}})}},
		"a base runtime spec that adds": {
			containers: []drift.Container{with(wide, "wide", drift.CRI{}), with(wide, "wide", drift.CRI{Add: []string{"NET_ADMIN"}, Drop: []string{"CHOWN"}}), with(defaults, "", drift.CRI{})},
			handler:    []string{"medium oci_mismatch cri→oci base_runtime_spec cap_sys_admin"},
		},
		"a base runtime spec that only takes away": {
			containers: []drift.Container{with(defaults&^netRaw, "wide", drift.CRI{})},
			handler:    []string{"info oci_mismatch cri→oci base_runtime_spec cap_net_raw"},
		},
		"a base runtime spec that is stated": {given: given(wide), containers: []drift.Container{with(wide, "wide", drift.CRI{})}},
		"a container with lists alone shows the default where its lists say nothing": {
			containers: []drift.Container{with(wide, "wide", drift.CRI{Drop: []string{"CHOWN"}, Add: []string{"SYS_TIME"}})},
			handler:    []string{"medium oci_mismatch cri→oci base_runtime_spec cap_sys_admin"},
		},
		"ALL in a list shows no default": {containers: []drift.Container{with(wide, "wide", drift.CRI{Drop: []string{"ALL"}})}},
		"one that is older than the configuration": {
			containers: []drift.Container{with(wide, "wide", drift.CRI{}), with(wide, "wide", drift.CRI{}), with(defaults, "wide", drift.CRI{})},
			handler:    []string{"medium oci_mismatch cri→oci base_runtime_spec cap_sys_admin"},
			each:       []string{"low oci_mismatch cri→oci earlier_config cap_sys_admin"},
		},
		"one that has more than the others": {
			containers: []drift.Container{with(defaults, "", drift.CRI{}), with(defaults, "", drift.CRI{}), with(wide, "", drift.CRI{})},
			each:       []string{"high oci_mismatch cri→oci  cap_sys_admin"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			expect := drift.Expect(node, runtime, &full, row.given, row.containers)
			if got := summary(expect.Findings()); !slices.Equal(got, row.handler) {
				t.Errorf("about handlers %q, want %q", got, row.handler)
			}
			var each []drift.Finding
			for _, c := range row.containers {
				each = append(each, drift.Hops(node, expect, c)...)
			}
			if got := summary(each); !slices.Equal(got, row.each) {
				t.Errorf("about containers %q, want %q", got, row.each)
			}
			if len(expect.Limits()) > 0 {
				t.Errorf("limits %+v", expect.Limits())
			}
		})
	}
}

// TestHeldIsLearnt: where the runtime's process cannot be read, its privileged
// containers show what it holds, and the report says so.
func TestHeldIsLearnt(t *testing.T) {
	node := drift.Node{CapLastCap: 40}
	lacking := all &^ (1 << 24)
	privileged := made(t, drift.Containerd, drift.CRI{Privileged: true}, ofOCI(func(o *drift.OCI) {
		o.Bounding, o.Permitted, o.Effective = lacking, lacking, lacking
	}))
	expect := drift.Expect(node, drift.Runtime{Name: "containerd"}, nil, drift.Given{}, []drift.Container{privileged})
	if got := drift.Hops(node, expect, privileged); len(got) > 0 {
		t.Errorf("%q", summary(got))
	}
	if len(expect.Limits()) != 1 || expect.Limits()[0].Blind {
		t.Errorf("limits %+v", expect.Limits())
	}
	// A runtime that is read and holds less than it gave is told of.
	few := capdecode.Set(1)
	expect = drift.Expect(node, drift.Runtime{Name: "containerd"}, &few, drift.Given{}, []drift.Container{privileged})
	if got := summary(drift.Hops(node, expect, privileged)); len(got) != 1 || !strings.HasPrefix(got[0], "high oci_mismatch") {
		t.Errorf("%q", got)
	}
	novel := drift.Expect(node, drift.Runtime{Name: "novel"}, nil, drift.Given{}, []drift.Container{privileged})
	if got := drift.Hops(node, novel, privileged); len(got) > 0 || len(novel.Limits()) != 1 {
		t.Errorf("a runtime that is not known: %q, %+v", summary(got), novel.Limits())
	}
}

func TestJoin(t *testing.T) {
	noon := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	container := func(namespace, pod, uid, name string, created time.Time) drift.Container {
		return drift.Container{
			ID: pod + name, Name: name, Managed: new(true), Created: created,
			Pod: &drift.Pod{Namespace: namespace, Name: pod, UID: uid},
		}
	}
	spec := func(namespace, name, uid, hash string, containers ...string) drift.PodSpec {
		s := drift.PodSpec{Pod: drift.Pod{Namespace: namespace, Name: name, UID: uid}, CRIUID: hash, Created: noon}
		for _, c := range containers {
			s.Containers = append(s.Containers, drift.PodContainer{Name: c, Security: drift.PodSecurity{Source: uid + c}})
		}
		return s
	}
	web := spec("shop", "web", "u1", "", "app", "setup", "debugger")
	for what, row := range map[string]struct {
		pods        drift.Pods
		container   drift.Container
		joined      bool
		unexplained string
		limits      int
	}{
		"by uid and name":                               {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{web}}, container: container("shop", "web", "u1", "setup", noon), joined: true},
		"a static pod by its hash":                      {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{spec("kube-system", "etcd-a", "mirror", "hash", "etcd")}}, container: container("kube-system", "etcd-a", "hash", "etcd", noon), joined: true},
		"a manifest by its name":                        {pods: drift.Pods{Specs: []drift.PodSpec{spec("shop", "web", "", "", "app")}}, container: container("shop", "web", "u9", "app", noon), joined: true},
		"the uid of another pod is no proof":            {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{web, spec("shop", "db", "u2", "", "app")}}, container: container("shop", "db", "u1", "app", noon), unexplained: "with another uid"},
		"another pod's author cannot take the uid away": {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{spec("shop", "db", "u2", "", "app"), spec("evil", "x", "u3", "u2", "app"), web}}, container: container("shop", "db", "u2", "app", noon), joined: true},
		"a pod that nobody knows":                       {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{web}}, container: container("shop", "miner", "u3", "app", noon), unexplained: "knows no such pod"},
		"a container that the spec does not have":       {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{web}}, container: container("shop", "web", "u1", "miner", noon), unexplained: "no container of this name"},
		"an earlier pod of the same name, ending":       {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{web}}, container: container("shop", "web", "u0", "app", noon.Add(-time.Hour))},
		"a later one with another uid":                  {pods: drift.Pods{Whole: true, Specs: []drift.PodSpec{web}}, container: container("shop", "web", "u0", "app", noon.Add(time.Hour)), unexplained: "with another uid"},
		"files do not know every pod":                   {pods: drift.Pods{Specs: []drift.PodSpec{web}}, container: container("shop", "miner", "u3", "app", noon), limits: 1},
	} {
		t.Run(what, func(t *testing.T) {
			anchor := container("shop", "web", "u1", "app", noon)
			containers := []drift.Container{anchor, row.container}
			if !row.pods.Whole {
				containers = containers[1:]
			}
			if what == "a static pod by its hash" {
				containers = containers[1:]
			}
			limits := drift.Join(containers, row.pods)
			c := containers[len(containers)-1]
			if c.ByName != (what == "a manifest by its name") {
				t.Errorf("by name: %t", c.ByName)
			}
			if (c.Declared.Pod != nil) != row.joined || len(limits) != row.limits {
				t.Errorf("joined %v, limits %+v", c.Declared.Pod, limits)
			}
			if (c.Unexplained == "") != (row.unexplained == "") || !strings.Contains(c.Unexplained, row.unexplained) {
				t.Errorf("unexplained %q, want %q", c.Unexplained, row.unexplained)
			}
		})
	}
	t.Run("a file that is older than an ephemeral container makes it no stranger", func(t *testing.T) {
		containers := []drift.Container{container("shop", "web", "u1", "app", noon), container("shop", "web", "u1", "newer", noon)}
		limits := drift.Join(containers, drift.Pods{Source: "pods.yaml", Specs: []drift.PodSpec{web}})
		if containers[0].Declared.Pod == nil || containers[1].Unexplained != "" || len(limits) != 1 || !limits[0].Blind {
			t.Errorf("%+v, %q, %+v", containers[0].Declared.Pod, containers[1].Unexplained, limits)
		}
	})
	t.Run("a source of another cluster makes nobody a stranger", func(t *testing.T) {
		containers := []drift.Container{container("shop", "web", "u1", "app", noon)}
		limits := drift.Join(containers, drift.Pods{Source: "API server x", Whole: true, Specs: []drift.PodSpec{spec("a", "b", "c", "", "d")}})
		if containers[0].Unexplained != "" || len(limits) != 1 || !limits[0].Blind {
			t.Errorf("%q, %+v", containers[0].Unexplained, limits)
		}
	})
}
