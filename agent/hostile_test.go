package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// What programs that are written to deceive do, and what the loop then tells.

// count counts what the journal has of a kind of change; of findings of one kind.
func (m *machine) count(kind agent.ChangeKind, of drift.Kind) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, change := range m.journal {
		if change.Kind == kind && (change.Finding == nil || change.Finding.Kind == of) {
			n++
		}
	}
	return n
}

// TestAChainOfProcessesIsOneFinding: each forks its successor and exits before anybody can
// look at it again.
func TestAChainOfProcessesIsOneFinding(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	began, pid := c.Now(), 11
	next := func() {
		pid++
		m.change(func() { m.processes["c1"] = append(m.processes["c1"][:1:1], process(pid, bind|sysAdmin)) })
	}
	next()
	passes(t, c, "it is open", func() bool {
		defer next()
		return slices.Equal(openKinds(loop), []string{"bounding_excess"})
	})
	if took := c.Now().Sub(began); took > 10*time.Second {
		t.Errorf("open after %v", took)
	}
	opened := c.Now()
	passes(t, c, "three minutes", func() bool {
		next()
		return c.Now().Sub(opened) > 3*time.Minute
	})
	// Where none of them could be read in time it ends, and lasts when it is back.
	if n := m.count(agent.FindingOpened, drift.BoundingExcess); n < 1 || n > 2 || !slices.Equal(openKinds(loop), []string{"bounding_excess"}) {
		t.Errorf("opened %d times, open are %q: %q", n, openKinds(loop), m.story())
	}
	if n, took := m.count(agent.FindingUpdated, drift.BoundingExcess), c.Now().Sub(opened); n == 0 || n > int(took/time.Minute) {
		t.Errorf("%d updates in %v", n, took)
	}
	view, _ := loop.View()
	if f := view.Report.Findings[0]; f.PID < pid-40 {
		t.Errorf("the view names process %d of %d", f.PID, pid)
	}
}

// TestHarmlessProcessesThatComeAndGoAreSummedUp: their container is one finding, and one
// change a minute.
func TestHarmlessProcessesThatComeAndGoAreSummedUp(t *testing.T) {
	m, c := newMachine(), newClock()
	running(t, m, c, nil)
	child := func(pid int) drift.Process {
		p := process(pid, ^drift.OCI{}.Bounding)
		p.UserNamespace.UIDMap = []drift.IDRange{{Inside: 0, Outside: 1000, Length: 1}}
		return p
	}
	began, pid := c.Now(), 100
	passes(t, c, "five minutes", func() bool {
		m.change(func() {
			list := m.processes["c1"][:1:1]
			for range pid % 7 { // none of them at times
				pid++
				list = append(list, child(pid))
			}
			pid++
			m.processes["c1"] = list
		})
		return c.Now().Sub(began) > 5*time.Minute
	})
	minutes := int(c.Now().Sub(began)/time.Minute) + 1
	if opened, updated, changed := m.count(agent.FindingOpened, drift.NestedUserns), m.count(agent.FindingUpdated, drift.NestedUserns),
		m.count(agent.ContainerChanged, ""); opened != 1 || updated > minutes || changed > minutes {
		t.Errorf("%d processes in %d minutes: opened %d, updated %d, and the container changed %d times", pid, minutes, opened, updated, changed)
	}
}

// TestSuspicionsThatNobodyConfirmedAreTold: as a limit the first time, as a finding the second.
func TestSuspicionsThatNobodyConfirmedAreTold(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Cadence.Sweep = time.Hour }) // it does not take one
	limit := func() string {
		view, _ := loop.View()
		for _, l := range view.Report.Coverage.Limits {
			if l.Blind && !view.Report.Coverage.Complete {
				return l.What
			}
		}
		return ""
	}
	flash := func(pid int, told string) {
		t.Helper()
		m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(pid, bind|sysAdmin)) })
		passes(t, c, "it was read", func() bool {
			view, _ := loop.View()
			return len(view.Report.Containers[0].Processes) == 2
		})
		m.change(func() { m.processes["c1"] = m.processes["c1"][:1] })
		passes(t, c, "it is told", func() bool { return limit() == told })
	}
	flash(11, "what became of suspicions seen in one look only (1): container app")
	if story := m.story(); story != nil {
		t.Errorf("the journal has %q", story)
	}
	flash(12, "what became of suspicions seen in one look only (2): container app")
	view, _ := loop.View()
	if !slices.Equal(openKinds(loop), []string{"transient_drift"}) || view.Unconfirmed[drift.BoundingExcess] != 2 {
		t.Errorf("open %q, counted %v", openKinds(loop), view.Unconfirmed)
	}
	if f := view.Report.Findings[0]; f.Severity != drift.High || f.ContainerID != "c1" || f.Capabilities != sysAdmin || strings.Contains(f.Message, "12") {
		t.Errorf("%+v", f)
	}
	m.change(func() { m.container, m.processes = nil, nil })
	passes(t, c, "its container is gone", func() bool { return len(openKinds(loop)) == 0 })
	if got, want := m.story(), []string{"finding_opened transient_drift 0", "finding_resolved transient_drift 0 ended"}; !slices.Equal(got, want) {
		t.Errorf("the journal has %q, want %q", got, want)
	}
}

// TestAnIntruderOutlivesItsContainer, and a restart of the agent, and is told of as before.
func TestAnIntruderOutlivesItsContainer(t *testing.T) {
	m, c := newMachine(), newClock()
	m.container[0].Pod = &drift.Pod{Namespace: "shop", Name: "web-1"}
	loop := running(t, m, c, func(l *agent.Loop) { l.Host = strays{m} })
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it is open", func() bool { return slices.Equal(openKinds(loop), []string{"bounding_excess"}) })
	before, _ := loop.View()

	stopped := m.container
	m.change(func() { m.container, m.processes["c1"] = nil, m.processes["c1"][1:] })
	passes(t, c, "the container has ended", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers) == 1 && view.Report.Containers[0].Ended
	})
	passes(t, c, "another sweep", func() bool {
		view, _ := loop.View()
		return view.Report.TakenAt.Sub(before.Report.TakenAt) > 2*agent.DefaultCadence().Sweep
	})
	same := func(after *agent.Loop) {
		t.Helper()
		view, _ := after.View()
		for _, f := range view.Report.Findings {
			if b := before.Report.Findings[0]; f.ID != b.ID || f.Severity != b.Severity || f.Pod == nil || *f.Pod != *b.Pod {
				t.Errorf("%+v, before it was %+v", f, b)
			}
		}
		if !slices.Equal(openKinds(after), []string{"bounding_excess"}) {
			t.Errorf("open %q", openKinds(after))
		}
	}
	same(loop)
	if got := m.story(); got[0] != "finding_opened bounding_excess 11" || slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "resolved") }) {
		t.Errorf("the journal has %q", got)
	}

	after := newMachine()
	after.container, after.processes = nil, m.processes
	clock := newClock()
	again := running(t, after, clock, func(l *agent.Loop) {
		l.Host, l.Open, l.Former, l.Epoch = strays{after}, before.Report.Findings, stopped, "e2"
	})
	passes(t, clock, "it has looked again", func() bool { return clock.Now().Sub(newClock().now) > 2*agent.DefaultCadence().Sweep })
	same(again)
	after.change(func() { after.processes = map[string][]drift.Process{} })
	passes(t, clock, "it is over", func() bool {
		view, _ := again.View()
		return len(view.Report.Findings) == 0 && len(view.Report.Containers) == 0
	})
	if got := after.story(); got[len(got)-1] != "finding_resolved bounding_excess 11 ended" {
		t.Errorf("the journal has %q", got)
	}
}

// TestARestartAcquitsNobody: what nobody saw is not explained, and a pid is not a process.
func TestARestartAcquitsNobody(t *testing.T) {
	m, c := newMachine(), newClock()
	m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin))
	first := running(t, m, c, nil)
	passes(t, c, "it is open", func() bool { return len(openKinds(first)) == 1 })
	view, _ := first.View()
	another := process(11, bind)
	another.StartTime = 99
	for what, row := range map[string]struct {
		change func(m *machine)
		why    string
	}{
		"its container is gone": {func(m *machine) {
			other := restricted()
			other.ID = "c2"
			m.container, m.processes = []drift.Container{other}, map[string][]drift.Process{"c2": {process(20, bind)}}
		}, "unknown"},
		"its pid is another process now":             {func(m *machine) { m.processes["c1"] = append(m.processes["c1"], another) }, "unknown"},
		"its process has ended":                      {func(*machine) {}, "unknown"},
		"the very process does not show it any more": {func(m *machine) { m.processes["c1"] = append(m.processes["c1"], process(11, bind)) }, "explained"},
	} {
		t.Run(what, func(t *testing.T) {
			again := newMachine()
			row.change(again)
			loop := running(t, again, newClock(), func(l *agent.Loop) { l.Open = view.Report.Findings })
			until(t, "it is over", func() bool { return len(openKinds(loop)) == 0 })
			if got := again.story(); !slices.Equal(got, []string{"finding_resolved bounding_excess 11 " + row.why}) {
				t.Errorf("the journal has %q", got)
			}
		})
	}
}

// TestAPidIsNoProcess: a pid that is given again is another process, also while the agent runs.
func TestAPidIsNoProcess(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it is open", func() bool { return len(openKinds(loop)) == 1 })
	m.change(func() {
		m.processes["c1"][1] = process(11, bind)
		m.processes["c1"][1].StartTime = 99
	})
	passes(t, c, "it is over", func() bool { return len(openKinds(loop)) == 0 })
	if got := m.story(); got[len(got)-1] != "finding_resolved bounding_excess 11 ended" {
		t.Errorf("the journal has %q", got)
	}
}

// podded is a machine whose sweeps find strangers below the cgroup of a known pod.
type podded struct{ *machine }

func (h podded) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := strays(h).Sweep(ctx, given)
	for i := range sweep.Containers {
		if c := &sweep.Containers[i]; c.Origin != "" {
			c.Pod = &drift.Pod{Namespace: "shop", Name: "web-1"}
		}
	}
	return sweep, err
}

// TestAContainerThatItsRuntimeDoesNotListYetIsNoStranger, for as long as only the runtime's
// stages are in it.
func TestAContainerThatItsRuntimeDoesNotListYetIsNoStranger(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Host = podded{m} })
	m.change(func() { m.processes["c2"] = []drift.Process{stage(20, ^drift.OCI{}.Bounding)} })
	began := c.Now()
	passes(t, c, "its hook has run for a minute", func() bool { return c.Now().Sub(began) > time.Minute })
	view, _ := loop.View()
	if len(view.Report.Containers) != 2 || view.Report.Coverage.Complete || openKinds(loop) != nil || m.story() != nil {
		t.Errorf("open %q, journal %q, %+v", openKinds(loop), m.story(), view.Report.Coverage)
	}
	m.change(func() { m.processes["c2"] = []drift.Process{process(20, bind)} })
	passes(t, c, "it is a stranger", func() bool { return slices.Equal(openKinds(loop), []string{"unmanaged_container"}) })
	for pid := 30; pid > 25; pid-- { // its lowest pid is another one each time
		m.change(func() { m.processes["c2"] = []drift.Process{process(pid, bind)} })
		began := c.Now()
		passes(t, c, "a sweep", func() bool { return c.Now().Sub(began) > agent.DefaultCadence().Sweep })
	}
	if opened, resolved := m.count(agent.FindingOpened, drift.UnmanagedContainer), m.count(agent.FindingResolved, drift.UnmanagedContainer); opened != 1 || resolved != 0 {
		t.Errorf("opened %d times and resolved %d times: %q", opened, resolved, m.story())
	}
}

// TestABusyRuntimeListsAContainerLate: it runs for seconds before the runtime lists it, and
// is no stranger; one that is never listed is told.
func TestABusyRuntimeListsAContainerLate(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Host = strays{m} })
	seen := func(n int) func() bool {
		return func() bool {
			view, _ := loop.View()
			return len(view.Report.Containers) == n
		}
	}
	m.change(func() { m.processes["c2"] = []drift.Process{process(20, bind)} })
	passes(t, c, "a sweep has seen it", seen(2))
	began := c.Now()
	passes(t, c, "three seconds have passed", func() bool { return c.Now().Sub(began) >= 3*time.Second })
	late := restricted()
	late.ID = "c2"
	m.change(func() { m.container = append(m.container, late) })
	passes(t, c, "it is explained", func() bool {
		view, _ := loop.View()
		return !slices.ContainsFunc(view.Report.Containers, func(c drift.Container) bool { return c.Managed == nil || !*c.Managed })
	})
	if story := m.story(); story != nil {
		t.Errorf("the journal has %q", story)
	}
	m.change(func() { m.processes["c3"] = []drift.Process{process(30, bind)} })
	passes(t, c, "another one is seen", seen(3))
	began = c.Now()
	passes(t, c, "it is told", func() bool { return slices.Equal(openKinds(loop), []string{"unmanaged_container"}) })
	if took := c.Now().Sub(began); took < 5*time.Second || took > 10*time.Second {
		t.Errorf("it was told after %s", took)
	}
}

// mapped is a machine whose node tells the identity of user namespaces, and whose runtime
// has handlers.
type mapped struct {
	*machine
	handlers map[string]drift.Handler
}

func (h mapped) Node() (drift.Node, []drift.Limit, error) {
	node, limits, err := h.machine.Node()
	node.UserNamespace.Inode = drift.InitialUserNamespace
	return node, limits, err
}

func (h mapped) Inventory(ctx context.Context) (drift.Inventory, error) {
	inventory, err := h.machine.Inventory(ctx)
	inventory.Runtime.Handlers = h.handlers
	return inventory, err
}

// TestAHandlerThatGivesEverythingIsOneFinding, for as long as it does: who is in the node's
// user namespace is found all the same.
func TestAHandlerThatGivesEverythingIsOneFinding(t *testing.T) {
	maps := []drift.IDRange{{Inside: 0, Outside: 362144, Length: 65536}}
	everything := capdecode.Full(40)
	holder := func(pid int) drift.Process {
		p := process(pid, everything)
		p.UID, p.Caps.Permitted, p.Caps.Effective = 362144, everything, everything
		p.UserNamespace = drift.UserNamespace{Inode: 4026532800, Parent: drift.InitialUserNamespace, UIDMap: maps}
		return p
	}
	m, c := newMachine(), newClock()
	inner := restricted()
	inner.RuntimeHandler, inner.CgroupPath, inner.Pod = "system", "/c1", &drift.Pod{Namespace: "ci", Name: "runner"}
	inner.Declared.OCI.UID, inner.Declared.OCI.UserNamespace, inner.Declared.OCI.UIDMap = 0, true, maps
	m.container, m.processes["c1"] = []drift.Container{inner}, []drift.Process{holder(10)}
	host := mapped{m, map[string]drift.Handler{"system": {Binary: "/usr/bin/sysbox-runc"}}}
	is := func(loop *agent.Loop, want ...string) func() bool {
		return func() bool { return slices.Equal(openKinds(loop), want) }
	}

	once := agent.Scanner{Host: host, Runtime: host, Now: c.Now, Wait: func(context.Context, time.Duration) error { return nil }}
	report, err := once.Scan(t.Context())
	if err != nil || len(report.Findings) != 1 || report.Findings[0].Cause != drift.CauseGenerous {
		t.Errorf("a scan found %+v, %v", report.Findings, err)
	}
	loop := running(t, m, c, func(l *agent.Loop) { l.Host, l.Runtime = host, host })
	passes(t, c, "it is about the handler", is(loop, "permitted_excess"))
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], holder(11)) })
	passes(t, c, "a second process was read", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers[0].Processes) == 2
	})
	outside := holder(12)
	outside.UserNamespace = drift.UserNamespace{Inode: drift.InitialUserNamespace, UIDMap: whole}
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], outside) })
	passes(t, c, "who is in the node's namespace is found", is(loop, "permitted_excess", "userns_escape"))
	if got := m.story(); !slices.Equal(got, []string{"finding_opened permitted_excess 0", "finding_opened userns_escape 12"}) {
		t.Errorf("the journal has %q", got)
	}
}

// TestANewContainerIsToldOnceItHasAName: a sweep may see it before the runtime lists it. Who
// watches is told of it with its name, and of one that the runtime never lists by its id.
func TestANewContainerIsToldOnceItHasAName(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Host = strays{m} })
	told := func() (list []string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, change := range m.journal {
			if change.Container != nil && change.Container.ID != "c1" && change.Kind != agent.ContainerChanged {
				list = append(list, fmt.Sprintf("%s %s %s", change.Kind, change.Container.ID, change.Container.Name))
			}
		}
		return list
	}
	sees := func(n int) func() bool {
		return func() bool { view, _ := loop.View(); return len(view.Report.Containers) == n }
	}
	m.change(func() { m.processes["c2"] = []drift.Process{process(20, bind)} })
	passes(t, c, "a sweep has seen it", sees(2))
	if got := told(); got != nil {
		t.Errorf("told without a name: %q", got)
	}
	late := restricted()
	late.ID, late.Name = "c2", "late"
	m.change(func() { m.container = append(m.container, late) })
	passes(t, c, "it is told with its name", func() bool { return slices.Equal(told(), []string{"container_added c2 late"}) })
	m.change(func() { m.processes["c3"] = []drift.Process{process(30, bind)} })
	passes(t, c, "one without a name is told by its id", func() bool { return slices.Contains(told(), "container_added c3 ") })
	m.change(func() { delete(m.processes, "c3") })
	passes(t, c, "and its end", func() bool { return slices.Contains(told(), "container_removed c3 ") })
}
