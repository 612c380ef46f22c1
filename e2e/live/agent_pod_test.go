//go:build linux

package live

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/agentpod"
	"github.com/capdrift/capdrift/e2e/node"
)

// podAgent is an agent that is a container of the node that it watches.
type podAgent struct {
	anAgent
	*node.Container
}

// agentView is `capdrift get node -o json` as far as the tests read it; of a report it
// has all but the lists.
type agentView struct {
	report
	TakenAt    string
	Findings   map[string]int // open, by severity
	Components []struct {
		Name, Why string
		OK        bool
	}
}

const nobody = 65534

// watched is what all agents of TestAgentFromPod look at.
type watched struct {
	plain, userns, privileged *node.Container
	victim                    *node.Container   // in which a process holds more than it may
	bounded                   *node.Container   // in which one could hold more, and holds nothing
	innocent                  []*node.Container // in which nothing was found yet
	sighted                   []*podAgent       // agents from which nothing is hidden

	known []string    // what is open about the victims since before the agents started
	host  []container // the node's, as a scan from the host sees them
}

// TestAgentFromPod: what an agent sees of its node with which privilege, what it says that
// it does not see, and that it never takes what it does not see for what is not there. Each
// goes on from a journal in which findings are open, as after an update that changed its
// privilege. Its sweeps and lists are an hour apart: what it tells of in between, it has from
// the cgroups.
func TestAgentFromPod(t *testing.T) {
	n := onNode(t)
	const tries = 14 // of what tellsAtOnce does, for all agents
	seen := run(t, append([]node.Pod{
		pod(nil), pod(userNamespace(&cri.LinuxContainerSecurityContext{})), pod(&cri.LinuxContainerSecurityContext{Privileged: true}),
		pod(dropAll()), pod(dropAll()),
	}, slices.Repeat([]node.Pod{pod(dropAll())}, tries)...)...)
	w := watched{plain: seen[0], userns: seen[1], privileged: seen[2], victim: seen[3], bounded: seen[4], innocent: seen[5:]}
	journal := w.drift(t)

	withPtrace := func(profile cri.SecurityProfile_ProfileType) node.Pod {
		p := agentPod(n, "/proc", 0)
		p.Security.Capabilities.AddCapabilities = []string{"SYS_PTRACE"}
		if agentpod.AppArmor() {
			p.Security.Apparmor = &cri.SecurityProfile{ProfileType: profile}
		}
		return p
	}
	// AppArmor lets who runs under a container's profile look at those alone that do too.
	var refused []string
	if agentpod.AppArmor() {
		refused = []string{"the identity of the user namespaces of"}
	}
	// Without hostPID, the pid of the runtime is one of another namespace too.
	apart := []string{"the identity of user namespaces", "which processes are in which cgroup", "processes that join containers from elsewhere", "what the runtime's own process holds"}
	hiding, hidingToo := hidingProc(t, n), hidingProc(t, n) // each row hides and shows when it likes
	hide(t, hiding)
	hide(t, hidingToo)
	rows := []struct {
		name   string
		pod    node.Pod
		test   func(t *testing.T, a *podAgent, w *watched)
		hidden bool // from it, what is above its own privilege
	}{
		{"no_capability", agentPod(n, "/proc", 0), seesAll("0000000000000000", "the identity of user namespaces"), false},
		{"ptrace", withPtrace(cri.SecurityProfile_Unconfined), seesAll("0000000000080000"), false},
		{"ptrace_confined", withPtrace(cri.SecurityProfile_RuntimeDefault), seesAll("0000000000080000", refused...), false},
		{"without_hostPID", agentpod.OwnPids(agentPod(n, "/proc", 0)), seesAll("0000000000000000", apart...), false},
		{"hidepid", agentPod(n, hiding, 0), seesSome(hiding, "the identity of user namespaces"), true},
		{"hidepid_without_hostPID", agentpod.OwnPids(agentPod(n, hidingToo, 0)), seesSome(hidingToo, apart...), true},
		{"nobody", agentPod(n, "/proc", nobody), seesNoRuntime, true},
	}
	agents := make([]*podAgent, len(rows))
	pods := make([]node.Pod, len(rows))
	ports := freePorts(t, len(rows))
	for i, row := range rows {
		pods[i], agents[i] = inPod(t, "capdrift-"+row.name, row.pod, journal, ports[i])
	}
	for i, c := range run(t, pods...) {
		agents[i].Container = c
	}
	for i, row := range rows {
		if !row.hidden {
			w.sighted = append(w.sighted, agents[i])
		}
	}
	for _, c := range scan(t).Containers {
		if c.Managed != nil && *c.Managed { // the machine may run other nodes
			w.host = append(w.host, c)
		}
	}
	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			a := agents[i]
			a.t = t
			t.Cleanup(a.showLog)
			row.test(t, a, &w)
		})
	}
}

// drift starts a process above the ceiling in each of the victims, has an agent on the host
// tell of them, and returns the journal of that.
func (w *watched) drift(t *testing.T) string {
	t.Helper()
	before := startAgent(t)
	before.await("it can tell of findings", func() bool {
		_, _, status, err := before.ask("get", "findings")
		return err == nil && status == 0
	})
	_, holds := exceed(t, w.victim, "CAP_SYS_ADMIN")
	// An agent from which hidepid hides those that hold more than it does sees this one,
	// and still cannot tell whether it is above its ceiling.
	_, may := exceed(t, w.bounded, "CAP_SYS_BOOT", "caps=0000000000000000")
	w.known = slices.Sorted(slices.Values(slices.Concat(holds, may[:1])))
	before.await("what is above the ceiling is open", func() bool { return slices.Equal(w.open(before), w.known) })
	before.end(syscall.SIGTERM)
	return filepath.Join(filepath.Dir(before.config), "journal")
}

// open is what an agent says is open about the victims.
func (w *watched) open(a *anAgent) []string {
	a.t.Helper()
	return slices.Sorted(slices.Values(slices.Concat(a.findings(w.victim.ID), a.findings(w.bounded.ID))))
}

// exceed starts a process in a container with a capability above its ceiling, and tells
// what is to be found about it, of which its steps may spare it the latter.
func exceed(t testing.TB, c *node.Container, capability string, steps ...string) (pid int, want []string) {
	t.Helper()
	pid, err := theNode.RuncExec(t.Context(), c, []string{capability}, append(steps, "name=debug", "ready", "sleep")...)
	if err != nil {
		t.Fatal(err)
	}
	return pid, []string{fmt.Sprintf("critical bounding_excess %d", pid), fmt.Sprintf("critical permitted_excess %d", pid)}
}

// inPod makes of a pod one that runs an agent, which goes on from a journal.
func inPod(t *testing.T, name string, p node.Pod, journal string, port int) (node.Pod, *podAgent) {
	t.Helper()
	dir := t.TempDir()
	a := &podAgent{anAgent: anAgent{t: t, socket: filepath.Join(dir, "agent.sock"), metrics: fmt.Sprintf("127.0.0.1:%d", port)}}
	own := filepath.Join(dir, "journal")
	if err := os.CopyFS(own, os.DirFS(journal)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(own, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := agentpod.Agent(p, dir, "cadence: {sweep: 1h, threads: 1h, list: 1h}", fmt.Sprintf("metrics: {address: %q}", a.metrics))
	if err != nil {
		t.Fatal(err)
	}
	p.Container = name
	return p, a
}

// freePorts finds ports of the loopback on which nobody listens.
func freePorts(t *testing.T, count int) (ports []int) {
	t.Helper()
	for range count { // all are held until the last is found, so that no two are the same
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// look has the agent ask its runtime and sweep, until the report of that is as wanted.
func (a *podAgent) look(what string, wanted func(report) bool) (r report, stderr string, status int) {
	a.t.Helper()
	defer func() {
		if a.t.Failed() {
			a.t.Logf("its last coverage: %+v", r.Coverage)
		}
	}()
	a.await(what, func() bool {
		var stdout string
		var err error
		stdout, stderr, status, err = a.ask("scan", "-o", "json")
		r = report{}
		return err == nil && json.Unmarshal([]byte(stdout), &r) == nil && wanted(r)
	})
	return r, stderr, status
}

// sees has the agent look until nothing is left unseen, and until it says that only these
// limits judge by a weaker means: there are more while something starts or ends.
func (a *podAgent) sees(limits []string) (r report, stderr string, status int) {
	a.t.Helper()
	return a.look(fmt.Sprintf("its coverage is complete, with the limits %q", limits), func(r report) bool {
		for _, limit := range limits {
			if !limited(r, limit, false) {
				return false
			}
		}
		return r.Coverage.Complete && len(r.Coverage.Limits) == len(limits)
	})
}

// looks has the agent look, whatever it sees.
func (a *podAgent) looks() (r report, stderr string, status int) {
	a.t.Helper()
	return a.look("it has looked at its node", func(report) bool { return true })
}

func (a *podAgent) view() (v agentView) {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "node", "-o", "json")
	if err != nil || status != 0 {
		a.t.Fatalf("get node: status %d, %v: %s", status, err, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		a.t.Fatalf("%v in %s", err, stdout)
	}
	return v
}

// showLog shows what the agent wrote, where its test failed.
func (a *podAgent) showLog() {
	if !a.t.Failed() {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(theNode.Root, "logs", "*", a.Pod.Container+"-*.log"))
	for _, name := range logs {
		text, err := os.ReadFile(name)
		a.t.Logf("the agent wrote, %v:\n%s", err, text)
	}
}

// hide takes from who is root without a capability what others, or root with capabilities,
// run; show gives it back.
func hide(t *testing.T, proc string) { t.Helper(); remount(t, proc, nobody) }
func show(t *testing.T, proc string) { t.Helper(); remount(t, proc, 0) }

// remount changes whose group a /proc with hidepid spares.
func remount(t *testing.T, proc string, group int) {
	t.Helper()
	if err := unix.Mount("proc", proc, "proc", unix.MS_REMOUNT, fmt.Sprintf("hidepid=2,gid=%d", group)); err != nil {
		t.Fatal(err)
	}
}

// seesAll: an agent that misses nothing, and which says no more than these limits.
func seesAll(holds string, limits ...string) func(*testing.T, *podAgent, *watched) {
	return func(t *testing.T, a *podAgent, w *watched) {
		r, stderr, status := a.sees(limits)
		if status != 0 {
			t.Errorf("exit status %d: %s", status, stderr)
		}
		w.asFromHost(t, r)
		a.faresWell()
		for _, c := range []*node.Container{w.plain, w.victim, w.bounded, w.userns, w.privileged} {
			got := r.container(t, c.ID).process(t, c.Pid).UserNamespace
			want := report{Containers: w.host}.container(t, c.ID).process(t, c.Pid).UserNamespace
			identified := holds != "0000000000000000" && (len(limits) == 0 || c != w.privileged) // which no profile confines
			if want.Inode == nil || identified && (got.Inode == nil || *got.Inode != *want.Inode) {
				t.Errorf("user namespace %+v, from the host %+v", got, want)
			}
			if !identified && got.Inode != nil {
				t.Errorf("user namespace %+v, want one judged by its maps", got)
			}
		}
		if self := r.container(t, a.ID).process(t, a.Pid); self.Caps.Permitted.Hex != holds || self.Caps.Bounding.Hex != holds || !*self.NoNewPrivileges {
			t.Errorf("the agent is %+v, want one that may hold %s", self, holds)
		}
		if about := r.about(a.ID); about != nil {
			t.Errorf("the agent finds about itself %q", about)
		}
		a.tellsAtOnce(w)
	}
}

// asFromHost asserts that all containers of the node and their processes were seen as
// from the host, and that the known findings alone are open.
func (w *watched) asFromHost(t *testing.T, r report) {
	t.Helper()
	for _, want := range w.host {
		got := r.container(t, want.ID)
		if got.Observation != "observed" || len(got.Processes) != len(want.Processes) || got.Managed == nil || !*got.Managed {
			t.Errorf("%s is %s with %d processes, want %d: %+v", want.Name, got.Observation, len(got.Processes), len(want.Processes), got)
		}
		for _, p := range want.Processes {
			seen := got.process(t, p.Pid)
			if seen.Caps.Permitted.Hex != p.Caps.Permitted.Hex || seen.UserNamespace.Relation != p.UserNamespace.Relation {
				t.Errorf("process %d: %+v, from the host %+v", p.Pid, seen, p)
			}
		}
	}
	w.onlyKnown(t, r)
}

// onlyKnown asserts that of what concerns the node's containers and their processes the
// known findings are open and no others: none was resolved and none invented.
func (w *watched) onlyKnown(t *testing.T, r report) {
	t.Helper()
	ours := func(f finding) bool {
		return slices.ContainsFunc(w.host, func(c container) bool {
			return c.ID == f.ContainerID || slices.ContainsFunc(c.Processes, func(p process) bool { return p.Pid == f.Pid })
		})
	}
	var open []string
	for _, f := range r.Findings {
		if f.Severity != "info" && (ours(f) || f.alarming()) {
			open = append(open, fmt.Sprintf("%s %s %d", f.Severity, f.Kind, f.Pid))
		}
	}
	slices.Sort(open)
	if !slices.Equal(open, w.known) {
		t.Errorf("open are %q, want %q", open, w.known)
	}
}

// faresWell asserts that the agent says of itself that it sees everything.
func (a *podAgent) faresWell() {
	a.t.Helper()
	v := a.view()
	for _, c := range v.Components {
		if !c.OK {
			a.t.Errorf("component %+v", c)
		}
	}
	if metric := a.metric("capdrift_coverage_complete"); !v.Coverage.Complete || metric != 1 {
		a.t.Errorf("coverage %+v, as a metric %v", v.Coverage, metric)
	}
}

// tellsAtOnce: the agent tells of a process above the ceiling, and of its end, by the
// cgroup alone.
func (a *podAgent) tellsAtOnce(w *watched) {
	a.t.Helper()
	// What the runtime tells of the containers that have just started makes the agent look at
	// the node: then it is not known what has told it of the process, and it is tried anew, in
	// another container: in the same one the finding would have come back, and would last.
	for len(w.innocent) > 0 {
		c := w.innocent[0]
		w.innocent = w.innocent[1:]
		before := a.view().TakenAt
		pid, want := exceed(a.t, c, "CAP_SYS_TIME")
		a.await("it tells of the process above the ceiling", func() bool { return slices.Equal(a.findings(c.ID), want) })
		alone := a.view().TakenAt == before
		for _, other := range w.sighted { // one that ends before its second look makes the coverage incomplete
			o := other.anAgent
			o.t = a.t
			o.await("the other agents tell of it", func() bool { return slices.Equal(o.findings(c.ID), want) })
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			a.t.Fatal(err)
		}
		a.await("it tells that the process has ended", func() bool { return a.findings(c.ID) == nil })
		if got := w.open(&a.anAgent); !slices.Equal(got, w.known) {
			a.t.Errorf("open are %q, want %q", got, w.known)
		}
		if alone {
			return
		}
	}
	a.t.Error("each time, the agent looked at the whole node meanwhile")
}

// seesSome: an agent to which hidepid shows some processes says so, resolves nothing and
// invents nothing; and once it sees again, as if nothing had been.
func seesSome(proc string, limits ...string) func(*testing.T, *podAgent, *watched) {
	return func(t *testing.T, a *podAgent, w *watched) {
		blind := func() {
			t.Helper()
			for range 2 { // findings open at the second look
				r, _, _ := a.looks()
				if r.Coverage.Complete || !limited(r, "hidepid", true) {
					t.Errorf("coverage %+v; want it not complete, and hidepid named", r.Coverage)
				}
				for c, want := range map[*node.Container]string{w.plain: "unreadable", w.victim: "partial"} {
					if got := r.container(t, c.ID); got.Observation != want {
						t.Errorf("container %s is %s with %d processes, want %s", c.ID, got.Observation, len(got.Processes), want)
					}
				}
				w.onlyKnown(t, r)
			}
			looks := `capdrift_looks_total{look="membership"}`
			enough := a.metric(looks) + 2
			a.await("it has looked at the cgroups", func() bool { return a.metric(looks) >= enough })
			if got := w.open(&a.anAgent); !slices.Equal(got, w.known) {
				t.Errorf("open are %q, want %q", got, w.known)
			}
			if v := a.view(); v.Coverage.Complete || !limited(v.report, "hidepid", true) || v.Findings["critical"] != len(w.known) {
				t.Errorf("the agent says %+v; want it not complete, hidepid named, and %d findings", v, len(w.known))
			}
			if complete, limits := a.metric("capdrift_coverage_complete"), a.metric(`capdrift_coverage_limits{blind="true"}`); complete != 0 || limits == 0 {
				t.Errorf("metrics: complete %v, %v limits", complete, limits)
			}
		}
		blind()
		show(t, proc)
		r, _, _ := a.sees(limits)
		w.asFromHost(t, r)
		a.faresWell()
		a.tellsAtOnce(w)
		hide(t, proc)
		blind()
		for _, kind := range []string{"bounding_excess", "permitted_excess"} {
			if got := a.metric(`capdrift_findings_resolved_total{kind="` + kind + `",why="explained"}`); got != 0 {
				t.Errorf("%v findings of kind %s were explained, want none", got, kind)
			}
		}
	}
}

// seesNoRuntime: an agent that may not open the runtime's socket says so, and keeps what
// is known, which it can neither confirm nor refute.
func seesNoRuntime(t *testing.T, a *podAgent, w *watched) {
	r, stderr, status := a.looks()
	w.onlyKnown(t, r)
	r.Findings = nil
	withoutRuntime(t, r, stderr, status, w.victim, w.bounded)
	if !limited(r, "permission denied", true) {
		t.Errorf("limits do not tell of the socket: %+v", r.Coverage.Limits)
	}
	if c := r.container(t, w.plain.ID); c.process(t, w.plain.Pid).Caps.Effective.Hex != "00000000a80425fb" {
		t.Errorf("processes %+v", c.Processes)
	}
	var failing []string
	v := a.view()
	for _, c := range v.Components {
		if !c.OK {
			failing = append(failing, c.Name)
		}
	}
	if !slices.Equal(failing, []string{"runtime"}) || v.Coverage.Complete {
		t.Errorf("components that fail: %q, coverage %+v", failing, v.Coverage)
	}
	if healthy, complete := a.metric(`capdrift_component_healthy{component="runtime"}`), a.metric("capdrift_coverage_complete"); healthy != 0 || complete != 0 {
		t.Errorf("metrics: healthy %v, complete %v", healthy, complete)
	}
}
