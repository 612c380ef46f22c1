package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// clock is time as the test says.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
	busy   int // how often time was to pass while the loop was at work
}

// A loop that has nothing to do waits for its next look at members, its next sweep and its
// next list. Time waits for it, but not for ever: it may have been stopped.
const (
	idleTimers = 3
	mostBusy   = 200
)

func newClock() *clock {
	return &clock{now: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), timers: make(map[chan time.Time]time.Time)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := make(chan time.Time, 1)
	c.timers[timer] = c.now.Add(d)
	return timer
}

// waits reports whether the loop has nothing to do. While it is at work time must not pass:
// on a busy machine it would be given fewer looks than it takes in so much time.
func (c *clock) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) < idleTimers && c.busy < mostBusy {
		c.busy++
		return false
	}
	c.busy = 0
	return true
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for timer, at := range c.timers {
		if !at.After(c.now) {
			timer <- c.now
			delete(c.timers, timer)
		}
	}
}

// machine is a node of which the test says what is on it: host, members and runtime
// in one.
type machine struct {
	mu        sync.Mutex
	boot      string
	container []drift.Container
	processes map[string][]drift.Process
	told      map[string][]int // pids that Changes has told of
	down      error            // of the runtime
	journal   []agent.Change
	open      []drift.Finding
	unwritten error
	sweeps    int
	looks     int // at memberships
	unswept   error
	attended  []string
	starting  []string
}

func newMachine() *machine {
	c := restricted()
	c.CgroupPath = "/c1"
	return &machine{
		boot: "boot", container: []drift.Container{c}, told: make(map[string][]int),
		processes: map[string][]drift.Process{"c1": {process(10, bind)}},
	}
}

func (m *machine) change(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *machine) Node() (drift.Node, []drift.Limit, error) {
	return drift.Node{BootID: m.boot, CapLastCap: 40, UserNamespace: drift.UserNamespace{UIDMap: whole}}, nil, nil
}

func (m *machine) Process(int) (drift.Process, error) {
	return drift.Process{}, errors.New("not read")
}

func (m *machine) Sweep(_ context.Context, given []drift.Container) (drift.Sweep, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweeps++
	for i := range given {
		given[i].Processes = slices.Clone(m.processes[given[i].ID])
	}
	return drift.Sweep{Containers: given}, m.unswept
}

func (m *machine) Inventory(context.Context) (drift.Inventory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return drift.Inventory{Runtime: drift.Runtime{Name: "containerd"}, Containers: slices.Clone(m.container), Starting: slices.Clone(m.starting)}, m.down
}

func (m *machine) Follow(containers []drift.Container) []drift.Limit {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range containers {
		m.told[c.ID] = nil
		for _, p := range c.Processes {
			m.told[c.ID] = append(m.told[c.ID], p.PID)
		}
	}
	return nil
}

func (m *machine) Attend(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attended = append(m.attended, id)
}

func (m *machine) Changes(context.Context) (changes []drift.MembershipChange, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	for _, c := range m.container {
		var now []int
		for _, p := range m.processes[c.ID] {
			now = append(now, p.PID)
		}
		change := drift.MembershipChange{ContainerID: c.ID}
		for _, pid := range now {
			if !slices.Contains(m.told[c.ID], pid) {
				change.Appeared = append(change.Appeared, pid)
			}
		}
		for _, pid := range m.told[c.ID] {
			if !slices.Contains(now, pid) {
				change.Gone = append(change.Gone, pid)
			}
		}
		if m.told[c.ID] = now; len(change.Appeared)+len(change.Gone) > 0 {
			changes = append(changes, change)
		}
	}
	return changes, nil
}

func (m *machine) Read(_ context.Context, id string, pids []int) (read []drift.Process, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.processes[id] {
		if slices.Contains(pids, p.PID) {
			read = append(read, p)
		}
	}
	return read, nil
}

func (m *machine) Record(changes []agent.Change, open []drift.Finding) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unwritten == nil {
		m.journal, m.open = append(m.journal, changes...), open
	}
	return m.unwritten
}

// running starts a loop on the machine, and stops it after the test.
func running(t *testing.T, m *machine, c *clock, settle func(*agent.Loop)) *agent.Loop {
	t.Helper()
	config := agent.Loop{
		Host: m, Members: m, Runtime: m, Journal: m, Cadence: agent.DefaultCadence(), Epoch: "e1", BootID: "boot", Now: c.Now, After: c.After,
	}
	if settle != nil {
		settle(&config)
	}
	loop := agent.NewLoop(config)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	until(t, "the first view has a container", func() bool {
		view, ok := loop.View()
		return ok && len(view.Report.Containers) > 0
	})
	return loop
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// passes advances the clock in steps of the membership cadence until a condition holds.
func passes(t *testing.T, c *clock, what string, holds func() bool) {
	t.Helper()
	until(t, what, func() bool {
		if holds() { // before more time passes
			return true
		}
		if c.waits() {
			c.advance(agent.DefaultCadence().Membership)
		}
		return false
	})
}

func openKinds(loop *agent.Loop) (kinds []string) {
	view, _ := loop.View()
	for _, f := range view.Report.Findings {
		if f.Severity > drift.Info {
			kinds = append(kinds, string(f.Kind))
		}
	}
	slices.Sort(kinds)
	return kinds
}

// story is what the journal has of findings above info, in order.
func (m *machine) story() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, change := range m.journal {
		if change.Finding != nil && change.Finding.Severity > drift.Info {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %d %s", change.Kind, change.Finding.Kind, change.Finding.PID, change.Resolved)))
		}
	}
	return list
}

func TestLoopTellsOfAnIntruderAndItsEnd(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	watch := loop.Watch(agent.Position{})
	defer watch.Close()
	if view, ok := watch.Snapshot(); !ok || len(view.Report.Containers) != 1 {
		t.Fatalf("snapshot %v %+v", ok, view)
	}
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it is open", func() bool { return slices.Equal(openKinds(loop), []string{"bounding_excess"}) })
	m.change(func() { m.processes["c1"] = m.processes["c1"][:1] })
	passes(t, c, "it is resolved", func() bool { return len(openKinds(loop)) == 0 })
	if got, want := m.story(), []string{"finding_opened bounding_excess 11", "finding_resolved bounding_excess 11 ended"}; !slices.Equal(got, want) {
		t.Errorf("the journal has %q, want %q", got, want)
	}
	var told []string
	last := uint64(0)
	for len(told) < 2 {
		change := <-watch.Changes()
		if last != 0 && change.Position.Sequence != last+1 {
			t.Errorf("after %d came %d", last, change.Position.Sequence)
		}
		if last = change.Position.Sequence; change.Finding != nil {
			told = append(told, string(change.Kind))
		}
	}
	if !slices.Equal(told, []string{"finding_opened", "finding_resolved"}) {
		t.Errorf("watched %q", told)
	}
}

// TestLoopBelievesNoStage: a process that holds everything in one look and not in the
// next was a runtime's stage.
func TestLoopBelievesNoStage(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it was read", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers[0].Processes) == 2
	})
	m.change(func() { m.processes["c1"][1] = process(11, bind) })
	passes(t, c, "it was read again", func() bool {
		view, _ := loop.View()
		return view.Report.Containers[0].Processes[1].Caps.Bounding == bind
	})
	if story := m.story(); story != nil {
		t.Errorf("the journal has %q", story)
	}
}

// TestAStageThatASweepSawIsReadAgain: a process that a sweep finds while the runtime
// starts it is judged when it has executed its program, not at the next sweep.
func TestAStageThatASweepSawIsReadAgain(t *testing.T) {
	m, c := newMachine(), newClock()
	stage := process(11, bind|sysAdmin)
	stage.ParentPID, stage.Forked = 5, true
	stage.Lineage = &drift.Lineage{Ancestors: []drift.Ancestor{{PID: 5, Name: "runc", Outside: true}}}
	m.processes["c1"] = append(m.processes["c1"], stage)
	loop := running(t, m, c, func(l *agent.Loop) {
		l.Cadence.Sweep, l.Cadence.Threads, l.Cadence.List = 1000*time.Hour, 1000*time.Hour, 1000*time.Hour
	})
	view, _ := loop.View()
	if got := view.Report.Containers[0].Processes[1].Observation; got != drift.Starting {
		t.Fatalf("the stage is %s", got)
	}
	executed := stage
	executed.Forked = false
	m.change(func() { m.processes["c1"][1] = executed })
	passes(t, c, "what it holds is told", func() bool { return len(openKinds(loop)) > 0 })
}

func TestLoopGoesOnWithoutItsRuntime(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	m.change(func() { m.down = errors.New("no answer") })
	passes(t, c, "it says so", func() bool {
		view, _ := loop.View()
		return !view.Report.Coverage.Complete && slices.ContainsFunc(view.Status, func(s agent.Component) bool { return s.Name == "runtime" && !s.OK })
	})
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it is open all the same", func() bool { return slices.Equal(openKinds(loop), []string{"bounding_excess"}) })
	m.change(func() { m.down = nil })
	passes(t, c, "it is whole again", func() bool {
		view, _ := loop.View()
		return view.Report.Coverage.Complete
	})
	if got := m.story(); !slices.Equal(got, []string{"finding_opened bounding_excess 11"}) {
		t.Errorf("the journal has %q", got)
	}
	m.change(func() { m.container, m.processes = nil, nil })
	passes(t, c, "the container is gone", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers) == 0
	})
	if got := m.story(); len(got) != 2 || got[1] != "finding_resolved bounding_excess 11 ended" {
		t.Errorf("the journal has %q", got)
	}
}

// TestLoopRemembers: what was open when the agent ended is not opened again, and
// resolved when it is over, or when the node booted since.
func TestLoopRemembers(t *testing.T) {
	m, c := newMachine(), newClock()
	m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin))
	first := running(t, m, c, nil)
	passes(t, c, "it is open", func() bool { return len(openKinds(first)) == 1 })
	view, _ := first.View()

	after := newMachine()
	after.processes = m.processes
	again := running(t, after, newClock(), func(l *agent.Loop) { l.Open, l.Epoch = view.Report.Findings, "e2" })
	if got := openKinds(again); !slices.Equal(got, []string{"bounding_excess"}) || after.story() != nil {
		t.Errorf("open %q, journal %q", got, after.story())
	}
	over := newMachine()
	ended := running(t, over, newClock(), func(l *agent.Loop) { l.Open = view.Report.Findings })
	until(t, "it is over", func() bool { return len(openKinds(ended)) == 0 })
	if got := over.story(); !slices.Equal(got, []string{"finding_resolved bounding_excess 11 unknown"}) {
		t.Errorf("the journal has %q", got)
	}
	booted := newMachine()
	booted.boot, booted.processes = "another", m.processes
	running(t, booted, newClock(), func(l *agent.Loop) { l.Open = view.Report.Findings })
	if got := booted.story(); len(got) == 0 || got[0] != "finding_resolved bounding_excess 11 boot" {
		t.Errorf("the journal has %q", got)
	}
}

func TestWatchersThatComeBackAndThoseThatAreSlow(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	slow := loop.Watch(agent.Position{})
	view, _ := loop.View()
	position := view.Position
	for i := range 1400 { // changes that nobody takes
		if err := loop.Report(t.Context(), "config", fmt.Errorf("line %d", i)); err != nil {
			t.Fatal(err)
		}
		if i == 5 {
			until(t, "it is told", func() bool {
				view, _ := loop.View()
				return view.Position.Sequence > position.Sequence
			})
			back := loop.Watch(position)
			if _, whole := back.Snapshot(); whole {
				t.Error("a watcher that comes back soon begins anew")
			}
			if change := <-back.Changes(); change.Position.Sequence <= position.Sequence {
				t.Errorf("it goes on with %d after %d", change.Position.Sequence, position.Sequence)
			}
			back.Close()
		}
	}
	taken := 0
	for range slow.Changes() {
		taken++
	}
	if !errors.Is(slow.Err(), agent.ErrSlow) || taken == 0 {
		t.Errorf("%v after %d changes", slow.Err(), taken)
	}
	for what, after := range map[string]agent.Position{
		"another epoch": {BootID: "boot", Epoch: "e0", Sequence: position.Sequence}, "the future": {BootID: "boot", Epoch: "e1", Sequence: 1 << 40}, "nothing": {},
	} {
		watch := loop.Watch(after)
		if _, whole := watch.Snapshot(); !whole {
			t.Errorf("after %s no whole view", what)
		}
		watch.Close()
		if _, more := <-watch.Changes(); more || watch.Err() != nil {
			t.Errorf("after Close: %v", watch.Err())
		}
	}
}

// threaded is a machine whose first process has a thread that holds too much.
type threaded struct{ *machine }

func (h threaded) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := h.machine.Sweep(ctx, given)
	for i := range sweep.Containers {
		p := &sweep.Containers[i].Processes[0]
		p.Threads = []drift.Thread{{TID: 12, UID: 1000, Caps: capdecode.Sets{Bounding: bind, Permitted: sysAdmin}}}
	}
	return sweep, err
}

// TestThreadsHaveACadenceOfTheirOwn: what they hold stays known between two looks at
// them, and a look without them ends nothing.
func TestThreadsHaveACadenceOfTheirOwn(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Threads = threaded{m} })
	passes(t, c, "it is open", func() bool { return slices.Equal(openKinds(loop), []string{"thread_excess"}) })
	for range 4 * 20 { // twenty seconds: a sweep and two lists without threads
		c.advance(agent.DefaultCadence().Membership)
	}
	view, _ := loop.View()
	passes(t, c, "there was another look", func() bool {
		now, _ := loop.View()
		return now.Report.TakenAt.After(view.Report.TakenAt)
	})
	if got := openKinds(loop); !slices.Equal(got, []string{"thread_excess"}) || len(m.story()) != 1 {
		t.Errorf("open %q, journal %q", got, m.story())
	}
	if view, _ := loop.View(); len(view.Report.Containers[0].Processes[0].Threads) != 1 {
		t.Errorf("%+v", view.Report.Containers[0].Processes)
	}
}

// late is a machine that has no time to read process 11 of its first container.
type late struct{ *machine }

func (h late) Read(context.Context, string, []int) ([]drift.Process, error) { return nil, nil }

func (h late) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := h.machine.Sweep(ctx, given)
	sweep.Containers[0].Overdue = &drift.Overdue{PIDs: []int{11}, Read: 1}
	return sweep, err
}

// TestWhatIsOverdueFailsAComponent: and what was read by an earlier look confirms no
// suspicion.
func TestWhatIsOverdueFailsAComponent(t *testing.T) {
	m, c := newMachine(), newClock()
	m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysTime))
	loop := running(t, m, c, func(l *agent.Loop) { l.Host, l.Members = late{m}, late{m} })
	sweeps := 0
	m.change(func() { sweeps = m.sweeps })
	passes(t, c, "three more sweeps", func() (done bool) {
		m.change(func() { done = m.sweeps >= sweeps+3 })
		return done
	})
	view, _ := loop.View()
	i := slices.IndexFunc(view.Status, func(c agent.Component) bool { return c.Name == "time" })
	if i < 0 || view.Status[i].OK || !strings.Contains(view.Status[i].Why, view.Report.Containers[0].Label()) {
		t.Errorf("%+v", view.Status)
	}
	if got := openKinds(loop); len(got) != 0 {
		t.Errorf("open %q, of what one look read", got)
	}
}

// noted is a machine that notes with how many processes it is given its containers, that it
// need not read again.
type noted struct {
	*machine
	what  string
	given *[]string
}

func (h noted) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	known := len(given[0].Processes)
	if given[0].Afresh {
		known = 0
	}
	h.change(func() { *h.given = append(*h.given, fmt.Sprint(h.what, " ", known)) })
	return h.machine.Sweep(ctx, given)
}

// TestLooksAreWholeWhereItMatters: a sweep says what is known, so that who was at rest is
// not read again; one that was asked for does not, nor the first, nor one in ten minutes.
func TestLooksAreWholeWhereItMatters(t *testing.T) {
	m, c := newMachine(), newClock()
	var given []string
	loop := running(t, m, c, func(l *agent.Loop) { l.Host, l.Threads = noted{m, "leaders", &given}, noted{m, "all", &given} })
	last := func() (what string) {
		m.change(func() { what = given[len(given)-1] })
		return what
	}
	if got := last(); got != "all 0" {
		t.Errorf("the first look: %q", got)
	}
	passes(t, c, "a sweep", func() bool { return last() == "leaders 1" })
	if _, err := loop.Scan(t.Context()); err != nil || last() != "all 0" {
		t.Errorf("asked for: %q, %v", last(), err)
	}
	passes(t, c, "a sweep again", func() bool { return last() == "leaders 1" })
	passes(t, c, "the look at threads", func() bool { return last() == "all 1" })
	c.advance(10 * agent.DefaultCadence().Threads)
	passes(t, c, "a whole look", func() bool { return last() == "all 0" })
}

// slow is a machine whose runtime answers when the test lets it, and with what was
// true when it was asked.
type slow struct {
	*machine
	asked  chan struct{}
	answer chan struct{}
}

func (s slow) Inventory(ctx context.Context) (drift.Inventory, error) {
	inventory, err := s.machine.Inventory(ctx)
	s.asked <- struct{}{}
	<-s.answer
	return inventory, err
}

// TestAHintDuringAQuestionIsNotLost: what starts while the runtime is being asked is not
// in its answer, and is asked for again.
func TestAHintDuringAQuestionIsNotLost(t *testing.T) {
	m, c := newMachine(), newClock()
	runtime := slow{m, make(chan struct{}), make(chan struct{})}
	events := make(chan drift.RuntimeEvent)
	loop := agent.NewLoop(agent.Loop{
		Host: m, Members: m, Runtime: runtime, Cadence: agent.DefaultCadence(), Epoch: "e1", BootID: "boot", Now: c.Now, After: c.After, Events: events,
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	<-runtime.asked
	second := restricted()
	second.ID = "c2"
	m.change(func() { m.container = append(m.container, second) })
	events <- drift.RuntimeEvent{Kind: drift.EventStarted, ContainerID: "c2"}
	scanned := make(chan agent.View, 1)
	go func() {
		view, err := loop.Scan(ctx)
		if err != nil {
			t.Error(err)
		}
		scanned <- view
	}()
	// Both are taken while the first question is under way.
	until(t, "the hint is due", func() bool {
		c.advance(time.Millisecond)
		return c.Now().Sub(newClock().now) > 200*time.Millisecond
	})
	runtime.answer <- struct{}{}
	for {
		select {
		case <-runtime.asked:
			runtime.answer <- struct{}{}
			continue
		case view := <-scanned:
			if len(view.Report.Containers) != 2 {
				t.Errorf("a scan saw %d containers, want 2", len(view.Report.Containers))
			}
			cancel()
			continue
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		}
		break
	}
}

// TestLoopSaysThatItsJournalFails, and goes on.
func TestLoopSaysThatItsJournalFails(t *testing.T) {
	m, c := newMachine(), newClock()
	m.unwritten = errors.New("no space left on device")
	loop := running(t, m, c, nil)
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it is open all the same", func() bool { return len(openKinds(loop)) == 1 })
	view, _ := loop.View()
	if !slices.ContainsFunc(view.Status, func(s agent.Component) bool { return s.Name == "journal" && !s.OK && s.Why != "" }) {
		t.Errorf("status %+v", view.Status)
	}
}

// TestANodeIsSweptForNewsOnly: a runtime that tells what it told before causes no sweep,
// and one that tells of another container does, long before the next one.
func TestANodeIsSweptForNewsOnly(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Cadence.Sweep = time.Hour })
	swept := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.sweeps
	}
	began := c.Now()
	passes(t, c, "five lists", func() bool { return c.Now().Sub(began) > 5*agent.DefaultCadence().List })
	if n := swept(); n != 1 {
		t.Errorf("%d sweeps", n)
	}
	second := restricted()
	second.ID = "c2"
	m.change(func() { m.container = append(m.container, second) })
	passes(t, c, "the second is there", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers) == 2
	})
	if n := swept(); n != 2 || c.Now().Sub(began) > time.Hour {
		t.Errorf("%d sweeps", n)
	}
}

// TestExecsAreLookedAtTogether: a thousand of them do not cause a thousand looks.
func TestExecsAreLookedAtTogether(t *testing.T) {
	m, c := newMachine(), newClock()
	events := make(chan drift.RuntimeEvent)
	loop := running(t, m, c, func(l *agent.Loop) { l.Events, l.Cadence.Membership = events, time.Hour })
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	for range 1000 {
		events <- drift.RuntimeEvent{Kind: drift.EventExecStarted, ContainerID: "c1", PID: 11}
	}
	until(t, "it is open", func() bool {
		c.advance(10 * time.Millisecond)
		return len(openKinds(loop)) == 1
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.looks == 0 || m.looks > 10 || len(m.attended) != 1000 || m.attended[0] != "c1" {
		t.Errorf("%d looks at %d", m.looks, len(m.attended))
	}
}

// starting is a machine whose second process was a runtime's stage when its threads were
// read, as it is for milliseconds.
type starting struct{ *machine }

func (h starting) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := h.machine.Sweep(ctx, given)
	p := stage(12, ^capdecode.Set(0))
	p.Threads = []drift.Thread{{TID: 13, Caps: capdecode.Sets{Bounding: ^capdecode.Set(0), Permitted: ^capdecode.Set(0)}}}
	sweep.Containers[0].Processes = append(sweep.Containers[0].Processes, p)
	return sweep, err
}

// TestTheThreadsOfAStageAreForgotten: what it executes is the same process by its pid and
// start time, and has none of them.
func TestTheThreadsOfAStageAreForgotten(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, func(l *agent.Loop) { l.Threads = starting{m} })
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(12, bind)) })
	began := c.Now()
	passes(t, c, "two sweeps without threads", func() bool { return c.Now().Sub(began) > 2*agent.DefaultCadence().Sweep })
	if got, story := openKinds(loop), m.story(); got != nil || story != nil {
		t.Errorf("open %q, journal %q", got, story)
	}
}

// TestWhatIsNotSeenIsNotOver: a process that cannot be held against what was declared is
// not as declared for that.
func TestWhatIsNotSeenIsNotOver(t *testing.T) {
	m, c := newMachine(), newClock()
	loop := running(t, m, c, nil)
	m.change(func() { m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysAdmin)) })
	passes(t, c, "it is open", func() bool { return len(openKinds(loop)) == 1 })
	view, _ := loop.View()
	m.change(func() {
		m.processes["c1"][1] = stage(11, bind|sysAdmin)
		m.processes["c1"][1].StartTime = 7
	})
	passes(t, c, "there was another sweep", func() bool {
		now, _ := loop.View()
		return now.Report.TakenAt.After(view.Report.TakenAt)
	})
	if got := openKinds(loop); len(got) != 1 {
		t.Errorf("open %q, journal %q", got, m.story())
	}
}

// strays is a machine whose sweeps find the containers that nobody named.
type strays struct{ *machine }

func (h strays) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := h.machine.Sweep(ctx, given)
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, processes := range h.processes {
		if !slices.ContainsFunc(given, func(c drift.Container) bool { return c.ID == id }) {
			sweep.Containers = append(sweep.Containers, drift.Container{
				ID: id, Origin: "cgroup /" + id, Managed: new(false), Observation: drift.Observed, Processes: slices.Clone(processes),
			})
		}
	}
	return sweep, err
}

// TestTheRuntimeIsAskedBeforeAStrangerIsTold: the runtime is asked, a container starts, two looks
// see it, and the answer is of before.
func TestTheRuntimeIsAskedBeforeAStrangerIsTold(t *testing.T) {
	m, c := newMachine(), newClock()
	runtime := slow{m, make(chan struct{}), make(chan struct{})}
	loop := agent.NewLoop(agent.Loop{
		Host: strays{m}, Members: m, Runtime: runtime, Journal: m, Cadence: agent.DefaultCadence(), Epoch: "e1", BootID: "boot", Now: c.Now, After: c.After,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-runtime.asked
	runtime.answer <- struct{}{}
	asked := func() bool {
		select {
		case <-runtime.asked:
			return true
		default:
			return false
		}
	}
	passes(t, c, "the runtime is asked again", asked)
	second := restricted()
	second.ID = "c2"
	m.change(func() {
		m.container, m.processes["c2"] = append(m.container, second), []drift.Process{process(20, bind)}
	})
	began := c.Now()
	passes(t, c, "two sweeps have seen it", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers) == 2 && c.Now().Sub(began) > 2*agent.DefaultCadence().Sweep
	})
	runtime.answer <- struct{}{} // of before it started
	passes(t, c, "the runtime is asked once more", asked)
	runtime.answer <- struct{}{}
	until(t, "it is explained", func() bool {
		view, _ := loop.View()
		return !slices.ContainsFunc(view.Report.Containers, func(c drift.Container) bool { return c.Managed == nil || !*c.Managed })
	})
	if story := m.story(); story != nil {
		t.Errorf("the journal has %q", story)
	}
}

// flashing is a machine of which the first looks at threads show one that holds too much.
// Those after them leave some threads out.
type flashing struct {
	*machine
	looks *int
	shown int
}

func (h flashing) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := h.machine.Sweep(ctx, given)
	h.change(func() {
		if *h.looks++; *h.looks <= h.shown {
			sweep.Containers[0].Processes[0].Threads = []drift.Thread{{TID: 12, UID: 1000, Caps: capdecode.Sets{Bounding: bind, Permitted: sysAdmin}}}
		} else {
			sweep.Threads.Skipped = 5
		}
	})
	return sweep, err
}

// TestOneLookAtThreadsIsOne: what it showed is kept, and does not confirm itself.
func TestOneLookAtThreadsIsOne(t *testing.T) {
	m, c := newMachine(), newClock()
	looks := 0
	loop := running(t, m, c, func(l *agent.Loop) { l.Threads = flashing{m, &looks, 1} })
	m.change(func() {
		m.container = append(m.container, drift.Container{ID: "c2", Declared: m.container[0].Declared})
	})
	passes(t, c, "a look without threads, for what is new", func() bool {
		view, _ := loop.View()
		return len(view.Report.Containers) == 2
	})
	m.change(func() {
		if looks != 1 {
			t.Fatalf("threads were read %d times", looks)
		}
	})
	if got, story := openKinds(loop), m.story(); got != nil || story != nil {
		t.Errorf("open %q, journal %q", got, story)
	}
}

// TestThreadsThatAreLeftOutAreNotOver: a look that did not read all threads ends nothing
// about one.
func TestThreadsThatAreLeftOutAreNotOver(t *testing.T) {
	m, c := newMachine(), newClock()
	looks := 0
	loop := running(t, m, c, func(l *agent.Loop) { l.Threads = flashing{m, &looks, 2} })
	passes(t, c, "it is open", func() bool { return slices.Equal(openKinds(loop), []string{"thread_excess"}) })
	passes(t, c, "some are left out", func() bool {
		view, _ := loop.View()
		return view.Report.Coverage.Threads.Skipped > 0
	})
	if got := openKinds(loop); len(got) != 1 {
		t.Errorf("open %q, journal %q", got, m.story())
	}
}

// TestALookThatFailsIsNone: what is told after it is said to be old, and whoever was to
// be read is read by the next.
func TestALookThatFailsIsNone(t *testing.T) {
	m, c := newMachine(), newClock()
	var given []string
	loop := running(t, m, c, func(l *agent.Loop) { l.Host, l.Threads = noted{m, "leaders", &given}, noted{m, "all", &given} })
	m.change(func() { m.unswept = errors.New("too many open files") })
	view, err := loop.Scan(t.Context())
	if err != nil || view.Report.Coverage.Complete {
		t.Errorf("it says that all is seen: %+v, %v", view.Report.Coverage, err)
	}
	m.change(func() { m.unswept, given = nil, nil })
	passes(t, c, "it looks again", func() bool {
		view, _ := loop.View()
		return view.Report.Coverage.Complete
	})
	m.change(func() {
		if given[0] != "all 0" {
			t.Errorf("the look after one that failed: %q", given)
		}
	})
}

// TestCadencesCountFromTheLastLook: one that is made shorter does not wait for the longer
// one to end.
func TestCadencesCountFromTheLastLook(t *testing.T) {
	m, c := newMachine(), newClock()
	var given []string
	loop := running(t, m, c, func(l *agent.Loop) {
		l.Host, l.Threads = noted{m, "leaders", &given}, noted{m, "all", &given}
		l.Cadence.Threads = 24 * time.Hour
	})
	if err := loop.Configure(t.Context(), agent.DefaultCadence(), drift.Given{}); err != nil {
		t.Fatal(err)
	}
	began := c.Now()
	passes(t, c, "threads are looked at", func() bool {
		var what string
		m.change(func() { what = given[len(given)-1] })
		return what == "all 1"
	})
	if took := c.Now().Sub(began); took > time.Hour {
		t.Errorf("after %v", took)
	}
}

// TestTheCoverageSaysWhatTheRuntimeDoesNotTell: a runtime that tells no events, and the seconds in
// which it did not, are said; the report is complete all the same, for what runs is listed.
func TestTheCoverageSaysWhatTheRuntimeDoesNotTell(t *testing.T) {
	m, c := newMachine(), newClock()
	events := make(chan drift.RuntimeEvent)
	loop := running(t, m, c, func(l *agent.Loop) { l.Events = events })
	passes(t, c, "it has looked", func() bool { _, ok := loop.View(); return ok })
	said := func(what, why string) bool {
		view, _ := loop.View()
		return view.Report.Coverage.Complete && slices.ContainsFunc(view.Report.Coverage.Limits, func(l drift.Limit) bool {
			return !l.Blind && strings.Contains(l.What, what) && strings.Contains(l.Why, why)
		})
	}
	nothing := func() bool { return !said("start", "event") }
	tell := func(kind drift.RuntimeEventKind, why string) { events <- drift.RuntimeEvent{Kind: kind, Why: why} }

	tell(drift.EventHeard, "")
	passes(t, c, "nothing is said of a runtime that tells", nothing)
	tell(drift.EventSilent, "no events: enable_pod_events is not set")
	passes(t, c, "that it tells nothing is said", func() bool {
		return said("when containers and execs start", "enable_pod_events is not set; what starts is found when the runtime is listed, every ")
	})
	tell(drift.EventHeard, "")
	passes(t, c, "it tells again", nothing)
	tell(drift.EventBlind, "the events end")
	passes(t, c, "that it is away is said", func() bool { return said("what starts and ends since ", "not heard: the events end") })
	c.advance(3 * time.Second)
	tell(drift.EventBlind, "no events from its socket")
	tell(drift.EventHeard, "")
	passes(t, c, "so are the seconds once they are over", func() bool {
		return said("what started and ended in the ", "were not heard: no events from its socket")
	})
	c.advance(11 * time.Minute)
	passes(t, c, "and not for ever", nothing)
}

// TestTheViewTellsHowOftenTheNodeIsLookedAt: before the first look too, and as it is changed.
func TestTheViewTellsHowOftenTheNodeIsLookedAt(t *testing.T) {
	m, c := newMachine(), newClock()
	before := false
	loop := running(t, m, c, func(l *agent.Loop) {
		l.Cadence.Sweep = 20 * time.Second
		view, looked := agent.NewLoop(*l).View()
		before = view.Sweep == 20*time.Second && !looked
	})
	view, _ := loop.View()
	if !before || view.Sweep != 20*time.Second {
		t.Errorf("it is told before the first look: %v, and after it: %v", before, view.Sweep)
	}
	cadence := agent.DefaultCadence()
	cadence.Sweep = time.Minute
	if err := loop.Configure(t.Context(), cadence, drift.Given{}); err != nil {
		t.Fatal(err)
	}
	if view, err := loop.Scan(t.Context()); err != nil || view.Sweep != time.Minute {
		t.Errorf("changed to a minute, it is %v, %v", view.Sweep, err)
	}
}
