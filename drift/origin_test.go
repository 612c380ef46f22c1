package drift_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// The mount ids of the node's root and of the container's.
const (
	nodeMount      = 30
	containerMount = 500
)

// child is a process that holds everything, with the given parents, the nearest first.
func child(pid int, ancestors ...drift.Ancestor) drift.Process {
	return tweak(process(pid, 0, all, all), func(p *drift.Process) {
		p.Name, p.UserNamespace.Inode = "runc:[2:INIT]", 0
		p.Lineage = &drift.Lineage{Ancestors: ancestors, Mount: containerMount, Origin: "c1"}
		p.NamespacePIDs = []int{pid, 1}
		if len(ancestors) > 0 {
			p.ParentPID = ancestors[0].PID
		}
	})
}

func forked(p *drift.Process) { p.Forked = true }
func mountedAt(mount int, origin string) func(*drift.Process) {
	return func(p *drift.Process) { p.Lineage.Mount, p.Lineage.Origin = mount, origin }
}

func TestWhoIsAStage(t *testing.T) {
	runc := drift.Ancestor{PID: 900, Name: "runc", StartTime: 900, Mount: nodeMount, Outside: true}
	shim := drift.Ancestor{PID: 800, Name: "containerd-shim", StartTime: 800, Mount: nodeMount, Outside: true}
	conmon := drift.Ancestor{PID: 850, Name: "conmon", StartTime: 850, Mount: nodeMount, Outside: true}
	inside := func(a drift.Ancestor) drift.Ancestor { a.Outside, a.Container = false, true; return a }
	init := tweak(process(10, 0, bind, bind), func(p *drift.Process) { p.ParentPID = shim.PID })
	inNode := func(p *drift.Process) {
		p.Lineage.Mount, p.Lineage.Origin, p.NamespacePIDs = nodeMount, "", []int{p.PID}
	}
	named := func(name string) func(*drift.Process) { return func(p *drift.Process) { p.Name = name } }
	monitor := tweak(tweak(child(850, drift.Ancestor{PID: 700, Name: "crio", Outside: true, Mount: nodeMount}), inNode), named("conmon"))
	calls := tweak(tweak(child(860, inside(conmon)), inNode), named("crun"))

	for name, row := range map[string]struct {
		handler   drift.Handler
		initPID   int
		processes []drift.Process // the last one is asked about
		want      drift.Observation
	}{
		"runc's last stage, its parent alive":               {processes: []drift.Process{init, tweak(child(11, runc, shim), forked)}, want: drift.Starting},
		"however its name reads":                            {processes: []drift.Process{init, tweak(tweak(child(11, runc), forked), named("sh"))}, want: drift.Starting},
		"runc's first stage, in the node's mount namespace": {processes: []drift.Process{init, tweak(child(11, runc), mountedAt(nodeMount, ""))}, want: drift.Starting},
		"both at once": {processes: []drift.Process{init, tweak(child(12, runc), mountedAt(nodeMount, "")), tweak(child(11, runc), forked)}, want: drift.Starting},
		"a child of the shim, named like a stage":               {processes: []drift.Process{init, tweak(child(11, shim), forked)}, want: drift.Observed},
		"a child of the node's first process":                   {processes: []drift.Process{init, tweak(child(11, drift.Ancestor{PID: 1, Name: "systemd", Outside: true}), forked)}, want: drift.Observed},
		"a child of something named runc inside":                {processes: []drift.Process{init, tweak(child(11, inside(runc)), forked)}, want: drift.Observed},
		"a child of runc that executed the program":             {processes: []drift.Process{init, child(11, runc)}, want: drift.Observed},
		"its clone with the same parent":                        {processes: []drift.Process{init, child(11, runc), tweak(child(12, runc), forked)}, want: drift.Observed},
		"a child of a runc that is younger":                     {processes: []drift.Process{init, tweak(child(11, drift.Ancestor{PID: 900, Name: "runc", StartTime: 5000, Outside: true}), forked)}, want: drift.Observed},
		"a child of the wrapper that is configured":             {handler: drift.Handler{Binary: "/usr/local/bin/nvidia-container-runtime"}, processes: []drift.Process{init, tweak(child(11, drift.Ancestor{PID: 900, Name: "nvidia-containe", Outside: true}), forked)}, want: drift.Starting},
		"the first process, created and not started":            {initPID: 11, processes: []drift.Process{tweak(child(11, shim), forked)}, want: drift.Starting},
		"a hook that it runs":                                   {initPID: 11, processes: []drift.Process{tweak(child(11, shim), forked), tweak(child(12, drift.Ancestor{PID: 11, Container: true}), named("hook"))}, want: drift.Starting},
		"the first process, once it runs the program":           {initPID: 11, processes: []drift.Process{child(11, shim)}, want: drift.Observed},
		"where nobody saw a parent":                             {processes: []drift.Process{init, tweak(child(11), forked)}, want: drift.Observed},
		"CRI-O's monitor of an exec":                            {handler: drift.Handler{Monitor: "/usr/bin/conmon", MonitorInContainer: true}, processes: []drift.Process{init, monitor}, want: drift.Helper},
		"the OCI runtime that it calls":                         {handler: drift.Handler{Monitor: "/usr/bin/conmon", MonitorInContainer: true}, processes: []drift.Process{init, monitor, calls}, want: drift.Helper},
		"the stage of that":                                     {handler: drift.Handler{Monitor: "/usr/bin/conmon", MonitorInContainer: true}, processes: []drift.Process{init, monitor, calls, tweak(child(870, inside(drift.Ancestor{PID: 860, Name: "crun", Mount: nodeMount})), forked)}, want: drift.Starting},
		"the monitor where it should not be":                    {handler: drift.Handler{Monitor: "/usr/bin/conmon"}, processes: []drift.Process{init, monitor}, want: drift.Observed},
		"something in the container that is named like it":      {handler: drift.Handler{Monitor: "/usr/bin/conmon", MonitorInContainer: true}, processes: []drift.Process{init, tweak(child(11, shim), named("conmon"))}, want: drift.Observed},
		"a child of the monitor that is in its container's own": {handler: drift.Handler{Monitor: "/usr/bin/conmon", MonitorInContainer: true}, processes: []drift.Process{init, monitor, tweak(child(870, inside(conmon)), named("crun"))}, want: drift.Observed},
	} {
		c := container(spec(bind), row.processes...)
		if row.initPID != 0 {
			c.InitPID = row.initPID
		}
		n := node()
		n.Mount = nodeMount
		drift.Settle(n, &drift.Runtime{Handlers: map[string]drift.Handler{"": row.handler}}, &c)
		if got := c.Processes[len(c.Processes)-1].Observation; got != row.want {
			t.Errorf("%s: %s, want %s", name, got, row.want)
		}
		findings := drift.Compare(n, c)
		found := slices.ContainsFunc(findings, func(f drift.Finding) bool {
			return f.PID == c.Processes[len(c.Processes)-1].PID && f.Severity >= drift.High
		})
		if found != (row.want == drift.Observed) && !slices.ContainsFunc(row.processes[:len(row.processes)-1], func(p drift.Process) bool { return p.Caps.Bounding == all }) {
			t.Errorf("%s: found %v: %v", name, found, findings)
		}
	}
}

// TestWhoIsBlamed holds what is said of a process above the ceiling by where it came from.
func TestWhoIsBlamed(t *testing.T) {
	runc := drift.Ancestor{PID: 900, Name: "runc", Outside: true, Mount: nodeMount}
	shim := drift.Ancestor{PID: 800, Name: "containerd-shim", Outside: true, Mount: nodeMount}
	shell := drift.Ancestor{PID: 700, Name: "bash", Outside: true, Mount: nodeMount}
	first := drift.Ancestor{PID: 10, Name: "app", Container: true}
	for name, row := range map[string]struct {
		p    drift.Process
		want []string
	}{
		"put there by runc exec, the shim its parent now":   {child(11, shim), []string{"critical bounding_excess c1", "critical permitted_excess c1"}},
		"put there by runc exec that waits for it":          {child(11, runc), []string{"critical bounding_excess c1", "critical permitted_excess c1"}},
		"moved there from the node":                         {tweak(child(11, shell), mountedAt(nodeMount, "")), []string{"critical bounding_excess c1", "critical permitted_excess c1"}},
		"adopted inside, the namespace's identity refused":  {child(11, first), []string{"high bounding_excess c1", "high permitted_excess c1"}},
		"the same, its bounding set as no new namespace's":  {tweak(child(11, first), func(p *drift.Process) { p.Caps.Bounding = bind | sysAdmin }), []string{"critical bounding_excess c1", "critical permitted_excess c1"}},
		"the same, seen to come from outside before":        {tweak(child(11, first), func(p *drift.Process) { p.Entered = true }), []string{"critical bounding_excess c1", "critical permitted_excess c1"}},
		"the same, and the identity is the container's":     {tweak(child(11, first), func(p *drift.Process) { p.UserNamespace.Inode = drift.InitialUserNamespace }), []string{"critical bounding_excess c1", "critical permitted_excess c1"}},
		"the same, and the identity is another's":           {tweak(child(11, first), func(p *drift.Process) { p.UserNamespace.Inode = 4026532777 }), []string{"info nested_userns c1"}},
		"moved there by another container":                  {tweak(child(11, shell), mountedAt(600, "c2")), nil},
		"nobody's by its parents or its mounts":             {tweak(child(11, shell), mountedAt(600, "")), []string{"critical unknown_origin "}},
		"not in the container's cgroup, and within its own": {tweak(process(11, 0, bind, bind), func(p *drift.Process) { p.Elsewhere = "/other" }), []string{"high moved c1"}},
	} {
		c := container(spec(bind), process(10, 0, bind, bind), row.p)
		n := node()
		n.Mount = nodeMount
		drift.Settle(n, nil, &c)
		var got []string
		for _, f := range drift.Compare(n, c) {
			got = append(got, f.Severity.String()+" "+string(f.Kind)+" "+f.ContainerID)
		}
		slices.Sort(got)
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: told %q, want %q", name, got, row.want)
		}
	}
}

// TestJoined: a process of the node in the pid namespace of some container is one critical
// of the node, which accuses none of them.
func TestJoined(t *testing.T) {
	no := false
	session := drift.Container{ID: "/user.slice/session-7.scope", Managed: &no, Observation: drift.Observed,
		MayHaveJoined: []string{"a", "b", "c", "d", "e", "f"}, Processes: []drift.Process{process(50, 0, all, all), process(51, 0, all, all)}}
	got := drift.Compare(node(), session)
	if len(got) != 1 || got[0].Severity != drift.Critical || got[0].ContainerID != "" || !strings.Contains(got[0].Message, "one of: a, b, c, d, e and 1 more") {
		t.Errorf("told %+v", got)
	}
}

// TestRemember: who is adopted inside stays who came from outside, and so do those that he
// starts; a number that was given again does not.
func TestRemember(t *testing.T) {
	entered := tweak(process(20, 0, all, all), func(p *drift.Process) { p.Entered = true })
	now := []drift.Process{
		process(10, 0, bind, bind),
		process(20, 0, all, all),
		tweak(process(21, 0, all, all), func(p *drift.Process) { p.ParentPID = 20 }),
		tweak(process(22, 0, all, all), func(p *drift.Process) { p.ParentPID = 10 }),
	}
	drift.Remember([]drift.Process{process(10, 0, bind, bind), entered}, now)
	if now[0].Entered || !now[1].Entered || !now[2].Entered || now[3].Entered {
		t.Errorf("entered: %v %v %v %v", now[0].Entered, now[1].Entered, now[2].Entered, now[3].Entered)
	}
	again := []drift.Process{tweak(process(20, 0, bind, bind), func(p *drift.Process) { p.StartTime++ })}
	if drift.Remember([]drift.Process{entered}, again); again[0].Entered {
		t.Error("a number that was given again is taken for the same process")
	}
}

// TestRootInAnyUID: each of the four user ids gives root back.
func TestRootInAnyUID(t *testing.T) {
	nonroot := with(spec(defaults), func(o *drift.OCI) { o.UID = 1000 })
	user := drift.UIDs{Real: 1000, Effective: 1000, Saved: 1000, FileSystem: 1000}
	for name, row := range map[string]struct {
		leader, thread drift.UIDs
		want           []string
	}{
		"nobody is root":         {user, user, nil},
		"the saved uid":          {drift.UIDs{Real: 1000, Effective: 1000, Saved: 0, FileSystem: 1000}, user, []string{"medium became_root 10"}},
		"the real uid":           {drift.UIDs{Real: 0, Effective: 1000, Saved: 1000, FileSystem: 1000}, user, []string{"medium became_root 10"}},
		"the filesystem uid":     {drift.UIDs{Real: 1000, Effective: 1000, Saved: 1000, FileSystem: 0}, user, []string{"medium became_root 10"}},
		"a thread":               {user, drift.UIDs{Real: 0, Effective: 0, Saved: 0, FileSystem: 0}, []string{"medium became_root 10/12"}},
		"a thread's saved uid":   {user, drift.UIDs{Real: 1000, Effective: 1000, Saved: 0, FileSystem: 1000}, []string{"medium became_root 10/12"}},
		"the leader, not thread": {drift.UIDs{Real: 0, Effective: 0, Saved: 0, FileSystem: 0}, user, []string{"medium became_root 10"}},
	} {
		p := tweak(process(10, row.leader.Effective, 0, defaults), func(p *drift.Process) {
			p.UIDs, p.ThreadCount = row.leader, 2
			p.Threads = []drift.Thread{{TID: 12, UID: row.thread.Effective, UIDs: row.thread, Caps: capdecode.Sets{Bounding: defaults}}}
		})
		c := container(nonroot, p)
		if got := told(c); !slices.Equal(got, row.want) && len(got)+len(row.want) > 0 {
			t.Errorf("%s: told %q, want %q", name, got, row.want)
		}
		if drift.Suspicious(node().UserNamespace, &c, &p) != (row.want != nil) {
			t.Errorf("%s: suspicious %v", name, row.want == nil)
		}
	}
}

// TestDroppedIsOfAllThreads: a worker thread that still holds what the leader gave up keeps
// it for the whole process.
func TestDroppedIsOfAllThreads(t *testing.T) {
	worker := drift.Thread{TID: 12, Caps: capdecode.Sets{Permitted: defaults, Effective: defaults, Bounding: defaults}}
	for name, row := range map[string]struct {
		threads []drift.Thread
		read    bool
		want    []string
	}{
		"all gave it up":            {nil, true, []string{"info dropped 10 " + names(defaults)}},
		"a worker holds it":         {[]drift.Thread{worker}, true, []string{}},
		"nobody read the threads":   {nil, false, []string{}},
		"a worker holds a part":     {[]drift.Thread{{TID: 12, Caps: capdecode.Sets{Permitted: bind, Bounding: defaults}}}, true, []string{"info dropped 10 " + names(defaults&^bind)}},
		"some threads are not read": {[]drift.Thread{worker}, false, []string{}},
	} {
		got := told(container(spec(defaults), tweak(process(10, 0, 0, defaults), func(p *drift.Process) {
			p.ThreadCount, p.Threads, p.ThreadsRead = 2, row.threads, row.read
		})))
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: told %q, want %q", name, got, row.want)
		}
	}
}

// TestHomeIsJustBelowTheNode: the first process of a pod with a user namespace of its own
// moves into one below that looks the same; the others stay at home and are compared.
func TestHomeIsJustBelowTheNode(t *testing.T) {
	pod := drift.IDRange{Inside: 0, Outside: 100000, Length: 65536}
	lives := func(inode, parent uint64) func(*drift.Process) {
		return func(p *drift.Process) { in(inode, pod)(p); p.UserNamespace.Parent = parent }
	}
	oci := with(spec(bind), func(o *drift.OCI) { o.UserNamespace, o.UIDMap = true, []drift.IDRange{pod} })
	got := told(container(oci,
		tweak(process(10, 100000, all, all), lives(4026532888, 4026532777)),
		tweak(process(11, 100000, bind|sysAdmin, bind|sysAdmin), lives(4026532777, drift.InitialUserNamespace))))
	want := []string{"critical bounding_excess 11 CAP_SYS_ADMIN", "critical permitted_excess 11 CAP_SYS_ADMIN", "info nested_userns 10 " + names(all)}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestLimits(t *testing.T) {
	n := node()
	n.CapLastCap = 42
	slow := container(spec(bind), tweak(child(11), func(p *drift.Process) { p.Observation = drift.Starting }))
	got := drift.Limits(n, []drift.Container{slow})
	if len(got) != 2 || got[0].Blind || got[1].Blind {
		t.Errorf("limits %+v", got)
	}
	sealed := container(spec(bind), process(10, 0, bind, bind))
	sealed.Declared.OCI.NoNewPrivileges, sealed.Processes[0].Observation = true, drift.Observed
	for _, row := range []struct {
		shown *bool
		want  int
	}{{nil, 1}, {new(true), 0}, {new(false), 0}} {
		sealed.Processes[0].NoNewPrivileges = row.shown
		if got := drift.Limits(node(), []drift.Container{sealed}); len(got) != row.want || row.want > 0 && !got[0].Blind {
			t.Errorf("declared no_new_privs, shown as %v: limits %+v", row.shown, got)
		}
	}
	if got := drift.Limits(node(), []drift.Container{container(spec(bind), process(10, 0, bind, bind))}); len(got) != 0 {
		t.Errorf("limits of nothing: %+v", got)
	}
	if got := told(container(spec(bind), process(10, 0, bind, bind|1<<41))); len(got) != 0 {
		t.Errorf("a capability without a name is found: %q", got)
	}
}

// TestWhatIsDeclaredAndNotShownIsALimit: old kernels show neither no_new_privs, nor seccomp, nor
// ambient sets. What declares one of them is no pass, and what does not is whole.
func TestWhatIsDeclaredAndNotShownIsALimit(t *testing.T) {
	old := func(p *drift.Process) { p.NoNewPrivileges, p.Seccomp, p.AmbientUnshown = nil, nil, true }
	today := func(p *drift.Process) { p.NoNewPrivileges, p.Seccomp = new(true), new(2) }
	for what, row := range map[string]struct {
		declare func(*drift.Declared)
		since   string
	}{
		"no_new_privs":                 {func(d *drift.Declared) { d.OCI.NoNewPrivileges = true }, "since 4.10"},
		"a seccomp profile by the CRI": {func(d *drift.Declared) { d.CRI = &drift.CRI{SeccompProfile: new("RuntimeDefault")} }, "since 3.8"},
		"one by the pod spec":          {func(d *drift.Declared) { d.Pod = &drift.PodSecurity{SeccompProfile: new("Localhost")} }, "since 3.8"},
		"none":                         {func(d *drift.Declared) { d.CRI = &drift.CRI{SeccompProfile: new("Unconfined")} }, ""},
		"ambient capabilities":         {func(d *drift.Declared) { d.OCI.Ambient = bind }, "since 4.3"},
		"nothing":                      {func(*drift.Declared) {}, ""},
	} {
		for kernel, shows := range map[string]func(*drift.Process){"old": old, "today's": today} {
			c := container(spec(bind), process(10, 0, bind, bind))
			oci := *c.Declared.OCI
			c.Declared.OCI, c.Processes[0].Observation = &oci, drift.Observed
			row.declare(&c.Declared)
			shows(&c.Processes[0])
			got := drift.Limits(node(), []drift.Container{c})
			if want := row.since != "" && kernel == "old"; len(got) > 1 || (len(got) == 1) != want {
				t.Errorf("%s on the kernel of %s: %+v", what, kernel, got)
			} else if want && (!got[0].Blind || !strings.Contains(got[0].Why, row.since)) {
				t.Errorf("%s: %+v", what, got)
			}
		}
	}
}
