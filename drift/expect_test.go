package drift_test

import (
	"slices"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

const (
	sysChroot = capdecode.Set(1 << 18)
	crio      = capdecode.Set(0x5fb) // CRI-O's own defaults
)

// fleet makes containers of one runtime, each in a pod of its own.
type fleet struct {
	t       *testing.T
	runtime string
	list    []drift.Container
}

// add makes one container under the given default capabilities, in the given hour of a
// day; 0 where that is not known.
func (f *fleet) add(handler string, gets capdecode.Set, hour int, orders drift.CRI) {
	f.t.Helper()
	s := drift.Stock(f.runtime, 40)
	s.Default = capdecode.Sets{Bounding: gets, Permitted: gets, Effective: gets}
	oci, err := drift.PredictOCI(f.runtime, orders, s)
	if err != nil {
		f.t.Fatal(err)
	}
	id := string(rune('a' + len(f.list)))
	c := drift.Container{
		ID: id, Name: "app", RuntimeHandler: handler, Pod: &drift.Pod{Namespace: "shop", Name: id, UID: id}, Declared: drift.Declared{OCI: &oci, CRI: &orders},
	}
	if f.runtime == drift.CRIO {
		c.Declared.CRI, c.Declared.Pod = nil, &drift.PodSecurity{Add: orders.Add, Drop: orders.Drop, Source: "a test"}
	}
	if hour > 0 {
		c.Made = time.Date(2026, 5, 1, hour, 0, 0, 0, time.UTC)
	}
	f.list = append(f.list, c)
}

// TestToldThenStatedThenLearnt: the runtime's own word comes first, then what a person
// states, then what most containers show.
func TestToldThenStatedThenLearnt(t *testing.T) {
	old := crio | netRaw | sysChroot // CRI-O's before 1.18
	wide := crio | sysAdmin
	type made struct {
		gets    capdecode.Set
		hours   []int
		handler string
	}
	from := func(gets capdecode.Set, hours ...int) made { return made{gets: gets, hours: hours} }
	unknown := func(n int) []int { return make([]int, n) }
	some := func(set capdecode.Set) drift.Given { return drift.Given{Default: &set} }
	repeat := func(n int, finding string) (list []string) {
		for range n {
			list = append(list, finding)
		}
		return list
	}
	const (
		lowRaw  = "low oci_mismatch pod→oci earlier_config cap_net_raw,cap_sys_chroot"
		highRaw = "high oci_mismatch pod→oci earlier_config cap_net_raw,cap_sys_chroot"
		infoRaw = "info oci_mismatch pod→oci earlier_config cap_net_raw,cap_sys_chroot"
		adds    = "medium oci_mismatch pod→oci runtime_defaults cap_net_raw,cap_sys_chroot"
		admin   = "high oci_mismatch pod→oci  cap_sys_admin"
	)
	for what, row := range map[string]struct {
		told, stated drift.Given
		made         []made
		node, each   []string
	}{
		"told, and all obey":                         {told: some(crio), made: []made{from(crio, unknown(3)...)}},
		"told to be wider than usual is one finding": {told: some(old), made: []made{from(old, unknown(3)...)}, node: []string{adds}},
		"told to be wider, before any container":     {told: some(old), node: []string{adds}},
		"told, and stated likewise":                  {told: some(old), stated: some(old), made: []made{from(old, 0)}},
		"told wins over stated":                      {told: some(old), stated: some(crio), made: []made{from(old, unknown(3)...)}, node: []string{adds}},
		"one new pod after a change that widens": {
			told: some(old), made: []made{from(crio, 1, 2, 3, 4), from(old, 5)},
			node: []string{adds}, each: repeat(4, infoRaw),
		},
		"one new pod after a change that takes away": {told: some(crio), made: []made{from(old, 1, 2, 3, 4), from(crio, 5)}, each: repeat(4, infoRaw)},
		"no new pod yet after such a change": {
			told: some(crio), made: []made{from(old, 1, 2, 3, 4)},
			node: []string{"medium oci_mismatch pod→oci earlier_config cap_net_raw,cap_sys_chroot"},
		},
		"a change and back":                               {told: some(crio), made: []made{from(crio, 1, 2, 5), from(old, 3, 4)}, each: repeat(2, infoRaw)},
		"the last of the older ones":                      {told: some(crio), made: []made{from(old, 1), from(crio, 2, 3)}, each: repeat(1, infoRaw)},
		"other handlers have the same":                    {told: some(crio), made: []made{from(crio, 1), {gets: crio, hours: []int{2}, handler: "crun"}}},
		"several that agree, though it is not known when": {told: some(crio), made: []made{from(wide, unknown(2)...), from(crio, unknown(2)...)}, each: repeat(2, "info oci_mismatch pod→oci earlier_config cap_sys_admin")},
		"the newest that has more is no older one":        {told: some(crio), made: []made{from(crio, 1, 2), from(wide, 3)}, each: []string{admin}},
		"neither are two with another between them":       {told: some(crio), made: []made{from(crio, 1, 3, 5), from(wide, 2, 4)}, each: repeat(2, admin)},
		"one that has more than any runtime gave is weighed even where it is the oldest": {
			told: some(crio), made: []made{from(wide, 1), from(crio, 2, 3)}, each: []string{"medium oci_mismatch pod→oci earlier_config cap_sys_admin"},
		},
		"one of which it is not known when it was made": {told: some(crio), made: []made{from(wide, 0), from(crio, 0)}, each: []string{admin}},
		"stated, and some are older": {
			stated: some(old), made: []made{from(old, unknown(3)...), from(crio, unknown(5)...)}, each: repeat(5, lowRaw),
		},
		"stated, and nobody obeys": {stated: some(crio), made: []made{from(wide, unknown(3)...)}, each: repeat(3, "high oci_mismatch pod→oci  cap_sys_admin")},
		"learnt: most decide, and the cause of the others is said": {
			made: []made{from(old, unknown(3)...), from(crio, unknown(5)...)}, each: repeat(3, highRaw),
		},
		"learnt: those that are certainly older": {made: []made{from(old, 1, 2, 3), from(crio, 4, 5, 6, 7)}, each: repeat(3, infoRaw)},
		"learnt: two newer ones that agree are the configuration": {
			made: []made{from(crio, 1, 2, 3, 4), from(old, 5, 6)}, node: []string{adds}, each: repeat(4, infoRaw),
		},
		"learnt: one newer one may be anything": {made: []made{from(crio, 1, 2, 3, 4), from(wide, 5)}, each: []string{admin}},
		"learnt over all handlers": {
			made: []made{from(crio, unknown(3)...), {gets: wide, hours: []int{0}, handler: "crun"}}, each: []string{admin},
		},
	} {
		t.Run(what, func(t *testing.T) {
			f := fleet{t: t, runtime: drift.CRIO}
			for _, m := range row.made {
				for _, hour := range m.hours {
					f.add(m.handler, m.gets, hour, drift.CRI{})
				}
			}
			compareAll(t, drift.Runtime{Name: "cri-o", Told: row.told}, row.stated, f.list, row.node, row.each)
		})
	}
}

func compareAll(t *testing.T, runtime drift.Runtime, stated drift.Given, containers []drift.Container, node, each []string) {
	t.Helper()
	full := all
	expect := drift.Expect(drift.Node{CapLastCap: 40}, runtime, &full, stated, containers)
	if got := summary(expect.Findings()); !slices.Equal(got, node) {
		t.Errorf("about the node %q, want %q", got, node)
	}
	var found []drift.Finding
	for _, c := range containers {
		found = append(found, drift.Hops(drift.Node{CapLastCap: 40}, expect, c)...)
	}
	if got := summary(found); !slices.Equal(got, each) {
		t.Errorf("about containers %q, want %q", got, each)
	}
}

// TestOneDefaultOfSeveral: lists that name what a change is about tell nothing of it, and
// no_new_privs that are missing are never excused by a change of defaults.
func TestOneDefaultOfSeveral(t *testing.T) {
	told := drift.Given{Default: new(crio), Inheritable: new(false)}
	f := fleet{t: t, runtime: drift.CRIO}
	f.add("", crio|netRaw, 1, drift.CRI{})
	f.add("", crio|netRaw, 3, drift.CRI{Add: []string{"SYS_TIME"}})
	f.add("", crio|netRaw, 2, drift.CRI{Drop: []string{"NET_RAW"}})
	f.add("", crio|netRaw, 3, drift.CRI{Drop: []string{"ALL"}})
	f.add("", crio, 4, drift.CRI{})
	escalates := *f.list[0].Declared.Pod
	escalates.AllowPrivilegeEscalation = new(false)
	f.list[0].Declared.Pod = &escalates
	compareAll(t, drift.Runtime{Name: "cri-o", Told: told}, drift.Given{}, f.list, nil, []string{
		"high oci_mismatch pod→oci earlier_config cap_net_raw", "info oci_mismatch pod→oci earlier_config cap_net_raw",
	})
}

// TestInheritableIsToldToo: CRI-O's switch that gives file capabilities to non-root is a
// finding about the node.
func TestInheritableIsToldToo(t *testing.T) {
	told := drift.Given{Default: new(crio), Inheritable: new(true)}
	f := fleet{t: t, runtime: drift.CRIO}
	f.add("", crio, 1, drift.CRI{})
	f.list[0].Declared.OCI.Inheritable = crio
	compareAll(t, drift.Runtime{Name: "cri-o", Told: told}, drift.Given{}, f.list, []string{"medium oci_mismatch pod→oci runtime_defaults"}, nil)
	compareAll(t, drift.Runtime{Name: "cri-o", Told: told}, drift.Given{Inheritable: new(true)}, f.list, nil, nil)
}

// TestContainerdWithoutABaseSpec: such a handler has containerd's own defaults from now on,
// whatever most of its containers show; one with a base_runtime_spec is learnt alone.
func TestContainerdWithoutABaseSpec(t *testing.T) {
	runtime := drift.Runtime{Name: "containerd", DefaultHandler: "runc", Handlers: map[string]drift.Handler{
		"runc": {Type: "io.containerd.runc.v2"}, "wide": {Type: "io.containerd.runc.v2", BaseSpec: "/etc/wide.json"},
	}}
	wide := defaults | sysAdmin
	for what, row := range map[string]struct {
		stated     drift.Given
		make       func(*fleet)
		node, each []string
	}{
		"one new pod after a base spec was removed": {
			make: func(f *fleet) {
				f.add("", wide, 1, drift.CRI{})
				f.add("runc", wide, 1, drift.CRI{})
				f.add("", wide, 2, drift.CRI{})
				f.add("", defaults, 3, drift.CRI{})
				f.add("runc", defaults, 3, drift.CRI{})
			},
			each: []string{
				"info oci_mismatch cri→oci earlier_config cap_sys_admin", "info oci_mismatch cri→oci earlier_config cap_sys_admin",
				"medium oci_mismatch cri→oci earlier_config cap_sys_admin", // alone in its handler
			},
		},
		"none since": {
			make: func(f *fleet) { f.add("", wide, 1, drift.CRI{}); f.add("", wide, 2, drift.CRI{}) },
			node: []string{"medium oci_mismatch cri→oci earlier_config cap_sys_admin"},
		},
		"a base spec is a finding about its handler alone": {
			make: func(f *fleet) { f.add("wide", wide, 1, drift.CRI{}); f.add("", defaults, 1, drift.CRI{}) },
			node: []string{"medium oci_mismatch cri→oci base_runtime_spec cap_sys_admin"},
		},
		"stated defaults are the runtime's, and not those of a base spec": {
			stated: drift.Given{Default: new(defaults)},
			make:   func(f *fleet) { f.add("wide", wide, 1, drift.CRI{}); f.add("", wide, 1, drift.CRI{}) },
			node:   []string{"medium oci_mismatch cri→oci base_runtime_spec cap_sys_admin"},
			each:   []string{"high oci_mismatch cri→oci  cap_sys_admin"},
		},
		"what is stated for the base spec leaves the other handlers alone": {
			stated: drift.Given{Default: new(wide)},
			make: func(f *fleet) {
				f.add("wide", wide, 1, drift.CRI{})
				f.add("", defaults, 1, drift.CRI{})
				f.add("", defaults, 2, drift.CRI{})
			},
			node: []string{"info oci_mismatch cri→oci runtime_defaults cap_sys_admin"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			f := fleet{t: t, runtime: drift.Containerd}
			row.make(&f)
			compareAll(t, runtime, row.stated, f.list, row.node, row.each)
		})
	}
}

// TestNodeFindingNamesWhoSaysSo: a person sees at once whether it is the runtime's
// configuration or its containers that differ.
func TestNodeFindingNamesWhoSaysSo(t *testing.T) {
	f := fleet{t: t, runtime: drift.CRIO}
	f.add("", crio|netRaw, 1, drift.CRI{})
	full := all
	expect := drift.Expect(drift.Node{CapLastCap: 40}, drift.Runtime{Name: "cri-o", Told: drift.Given{Default: new(crio | netRaw)}}, &full, drift.Given{}, f.list)
	const want = "cri-o gives its containers other capabilities than the runtime's own defaults: default_capabilities or add_inheritable_capabilities of its configuration say so; it adds CAP_NET_RAW (seen in 1 of its containers)"
	if got := expect.Findings(); len(got) != 1 || got[0].Message != want || got[0].RuntimeHandler != "" {
		t.Errorf("%+v", got)
	}
}

// TestHeldIsCutToWhatHasAName: ALL and privileged give what the runtime holds and has a name
// for, however much the kernel knows.
func TestHeldIsCutToWhatHasAName(t *testing.T) {
	upTo := func(last capdecode.Cap) capdecode.Set { return capdecode.Full(last) }
	for what, row := range map[string]struct {
		kernel capdecode.Cap
		held   *capdecode.Set
		gives  capdecode.Set
	}{
		"a kernel with a capability that nobody has a name for": {41, new(upTo(41)), upTo(40)},
		"whose runtime cannot be read":                          {41, nil, upTo(40)},
		"a runtime in a container of an older engine":           {39, new(upTo(37)), upTo(37)},
		"which cannot be read":                                  {39, nil, upTo(37)},
		"a runtime whose table ends before the kernel's":        {40, new(upTo(40)), upTo(37)},
	} {
		t.Run(what, func(t *testing.T) {
			node := drift.Node{CapLastCap: row.kernel}
			var list []drift.Container
			for i, orders := range []drift.CRI{{Privileged: true}, {Add: []string{"ALL"}}, {Add: []string{"ALL"}, Drop: []string{"CHOWN"}}, {}} {
				s := drift.Stock(drift.Containerd, row.kernel)
				s.Held = row.gives
				oci, err := drift.PredictOCI(drift.Containerd, orders, s)
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, drift.Container{ID: string(rune('a' + i)), Name: "app", Declared: drift.Declared{CRI: &orders, OCI: &oci}})
			}
			expect := drift.Expect(node, drift.Runtime{Name: "containerd"}, row.held, drift.Given{}, list)
			found := expect.Findings()
			for _, c := range list {
				found = append(found, drift.Hops(node, expect, c)...)
			}
			if got := summary(found); len(got) > 0 {
				t.Errorf("%q", got)
			}
		})
	}
}
