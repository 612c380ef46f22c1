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

const sysTime capdecode.Set = 1 << 25

// court is a policy of which the test says what it holds. Its one rule is that nobody holds
// sysTime in the bounding set, and that the image is not "bad".
type court struct {
	mu         sync.Mutex
	rule       string
	exceptions []agent.Exception
	accepts    map[string]string // by exception, the rule or kind that it names
	judged     []string          // containers, in order
}

func newCourt() *court { return &court{rule: "no-time", accepts: map[string]string{}} }

func (p *court) accept(id, what string, until time.Time) *court {
	p.exceptions, p.accepts[id] = append(p.exceptions, agent.Exception{ID: id, Expires: until}), what
	return p
}

func (p *court) Contents() agent.PolicyContents {
	return agent.PolicyContents{Packs: []string{"pack"}, Rules: []string{p.rule}, Exceptions: p.exceptions}
}

func (p *court) Judge(_ drift.Node, _ *drift.Runtime, c *drift.Container, threads bool) (judged agent.Judged) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judged = append(p.judged, c.ID)
	v := agent.Violation{Finding: drift.Finding{
		ID: p.rule + c.ID, Kind: drift.PolicyViolation, Severity: drift.High, ContainerID: c.ID, Rule: p.rule, Declared: "pass", Actual: "pass",
	}}
	if c.Image == "bad" {
		v.Finding.Declared = "fail"
	}
	whole := c.Observation == drift.Observed && threads
	for _, one := range c.Processes {
		switch {
		case one.Observation == drift.Starting:
			whole = false
		case one.Caps.Bounding&sysTime != 0:
			v.Finding.Actual = "fail"
			v.Failing = append(v.Failing, agent.Seen{PID: one.PID, StartTime: one.StartTime, Age: one.Age})
		}
		for _, thread := range one.Threads {
			if thread.Caps.Bounding&sysTime != 0 {
				v.Finding.Actual = "fail"
			}
		}
	}
	if !whole && v.Finding.Actual == "pass" {
		v.Finding.Actual = "unknown"
	}
	v.Accepting = p.naming(p.rule)
	switch {
	case v.Finding.Declared == "fail" || v.Finding.Actual == "fail":
		judged.Violations = append(judged.Violations, v)
	case !whole:
		judged.Undecided = append(judged.Undecided, p.rule)
	}
	return judged
}

func (p *court) Accepting(_ drift.Node, _ *drift.Runtime, _ *drift.Container, f drift.Finding) []string {
	return p.naming(string(f.Kind))
}

func (p *court) naming(what string) (list []string) {
	for _, e := range p.exceptions {
		if p.accepts[e.ID] == what {
			list = append(list, e.ID)
		}
	}
	return list
}

func (p *court) judgements() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.judged)
}

// aging is a machine whose processes grow older as the clock goes on.
type aging struct {
	*machine
	clock *clock
}

func (m aging) aged(list []drift.Process) []drift.Process {
	for i := range list {
		list[i].Age += m.clock.Now().Sub(newClock().now)
	}
	return list
}

func (m aging) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := m.machine.Sweep(ctx, given)
	for i := range sweep.Containers {
		sweep.Containers[i].Processes = m.aged(sweep.Containers[i].Processes)
	}
	return sweep, err
}

func (m aging) Read(ctx context.Context, id string, pids []int) ([]drift.Process, error) {
	read, err := m.machine.Read(ctx, id, pids)
	return m.aged(read), err
}

// judging starts a loop with a policy on a machine.
func judging(t *testing.T, m *machine, c *clock, p *court, settle func(*agent.Loop)) *agent.Loop {
	t.Helper()
	// The ceiling allows it: what the rule says is not drift.
	m.change(func() {
		for i := range m.container {
			m.container[i].Declared.OCI = &drift.OCI{UID: 1000, Sets: capdecode.Sets{Bounding: bind | sysTime, Permitted: bind, Effective: bind}}
		}
	})
	return running(t, m, c, func(l *agent.Loop) {
		l.Host, l.Members = aging{m, c}, aging{m, c}
		l.Policy.Policy = p
		if settle != nil {
			settle(l)
		}
	})
}

// open lists what is open of rules and above info, "rule declared actual exception".
func open(loop *agent.Loop) (list []string) {
	view, _ := loop.View()
	for _, f := range view.Report.Findings {
		if f.Severity > drift.Info {
			list = append(list, strings.TrimSpace(strings.Join([]string{string(f.Kind), f.Declared, f.Actual, f.Exception}, " ")))
		}
	}
	slices.Sort(list)
	return list
}

func is(loop *agent.Loop, want ...string) func() bool {
	return func() bool { return slices.Equal(open(loop), want) }
}

// judgedAll tells whether nothing waits to be judged.
func judgedAll(loop *agent.Loop) bool {
	view, _ := loop.View()
	return view.Policy != nil && view.Policy.Pending == 0
}

// told is what the journal has of one kind, in order.
func (m *machine) tells(kind drift.Kind) (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, change := range m.journal {
		if f := change.Finding; f != nil && f.Kind == kind {
			list = append(list, strings.Join(strings.Fields(fmt.Sprint(change.Kind, " ", f.Declared, " ", f.Actual, " ", f.Exception, " ", change.Resolved)), " "))
		}
	}
	return list
}

func (m *machine) expect(t *testing.T, kind drift.Kind, want ...string) {
	t.Helper()
	if got := m.tells(kind); !slices.Equal(got, want) {
		t.Errorf("the journal has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestRules: when a finding of a rule opens, changes and ends.
func TestRules(t *testing.T) {
	const opened, ended = "finding_opened pass fail", "finding_resolved pass fail ended"
	late := process(11, bind|sysTime)
	for what, row := range map[string]struct {
		do   func(t *testing.T, m *machine, c *clock, loop *agent.Loop)
		want []string
	}{
		"two looks at a process that fails, and its end": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() { m.processes["c1"] = append(m.processes["c1"], late) })
			passes(t, c, "it is open", is(loop, "policy_violation pass fail"))
			m.change(func() { m.processes["c1"] = m.processes["c1"][:1] })
			passes(t, c, "it is over", is(loop))
		}, []string{opened, ended}},
		"it gives up what it held": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() { m.processes["c1"] = append(m.processes["c1"], late) })
			passes(t, c, "it is open", is(loop, "policy_violation pass fail"))
			m.change(func() { m.processes["c1"][1] = process(11, bind) })
			passes(t, c, "it is over", is(loop))
		}, []string{opened, "finding_resolved pass fail explained"}},
		"the container ends": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() { m.processes["c1"] = append(m.processes["c1"], late) })
			passes(t, c, "it is open", is(loop, "policy_violation pass fail"))
			m.change(func() { m.container, m.processes = nil, map[string][]drift.Process{} })
			passes(t, c, "it is over", is(loop))
		}, []string{opened, ended}},
		"a stage of the runtime": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() {
				m.processes["c1"] = append(m.processes["c1"], stage(11, sysTime))
			})
			passes(t, c, "it was seen", func() bool {
				view, _ := loop.View()
				return view.Policy.Unknown == 1
			})
			began := c.Now()
			passes(t, c, "two sweeps", func() bool { return c.Now().Sub(began) > 2*agent.DefaultCadence().Sweep })
		}, nil},
		"a container in the runtime's hands": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() {
				m.starting = []string{"c2"}
				m.processes["c2"] = []drift.Process{late} // which holds everything for as long as its hooks take
			})
			began := c.Now()
			passes(t, c, "two sweeps", func() bool { return c.Now().Sub(began) > 2*agent.DefaultCadence().Sweep })
			if view, _ := loop.View(); len(view.Report.Containers) != 2 {
				t.Errorf("%d containers", len(view.Report.Containers))
			}
		}, nil},
		"what is on paper": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() { m.container[0].Image, m.container[0].InitPID = "bad", 99 })
			passes(t, c, "it is open", is(loop, "policy_violation fail pass"))
			m.change(func() { m.processes["c1"] = append(m.processes["c1"], late) })
			passes(t, c, "it fails in the kernel too", is(loop, "policy_violation fail fail"))
		}, []string{"finding_opened fail pass", "finding_updated fail fail"}},
		"a process that starts hides nothing, and confuses nothing": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() { m.container[0].Image, m.container[0].InitPID = "bad", 99 })
			passes(t, c, "it is open", is(loop, "policy_violation fail pass"))
			starts := stage(12, bind)
			starts.Age = -time.Hour
			m.change(func() { m.processes["c1"] = append(m.processes["c1"], starts) })
			view, _ := loop.View()
			passes(t, c, "another sweep", func() bool {
				now, _ := loop.View()
				return now.Report.TakenAt.After(view.Report.TakenAt) && len(now.Report.Containers[0].Processes) == 2
			})
		}, []string{"finding_opened fail pass"}},
		"a container that is seen in part refutes nothing": {func(t *testing.T, m *machine, c *clock, loop *agent.Loop) {
			m.change(func() { m.processes["c1"] = append(m.processes["c1"], late) })
			passes(t, c, "it is open", is(loop, "policy_violation pass fail"))
			m.change(func() {
				m.container[0].Observation, m.container[0].Reason = drift.Partial, "hidepid"
			})
			passes(t, c, "it is seen in part", func() bool {
				view, _ := loop.View()
				return view.Report.Containers[0].Observation == drift.Partial
			})
			m.change(func() { m.processes["c1"] = m.processes["c1"][:1] })
			passes(t, c, "its rule is not decided", func() bool {
				view, _ := loop.View()
				return view.Policy.Unknown == 1
			})
			if got := open(loop); len(got) != 1 {
				t.Errorf("open %q", got)
			}
		}, []string{opened}},
	} {
		t.Run(what, func(t *testing.T) {
			m, c := newMachine(), newClock()
			loop := judging(t, m, c, newCourt(), func(l *agent.Loop) { l.Host = straying{aging{m, c}} })
			passes(t, c, "all is judged", func() bool { return judgedAll(loop) })
			row.do(t, m, c, loop)
			m.expect(t, drift.PolicyViolation, row.want...)
		})
	}
}

// fleeting is an aging machine where a process fails the rule in every look, and in each look
// another one.
type fleeting struct {
	aging
	pid *int // under the machine's lock
}

func (h fleeting) next() {
	h.change(func() {
		*h.pid++
		h.processes["c1"] = append(h.processes["c1"][:1:1], process(*h.pid, bind|sysTime))
	})
}

func (h fleeting) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	defer h.next()
	return h.aging.Sweep(ctx, given)
}

func (h fleeting) Read(ctx context.Context, id string, pids []int) ([]drift.Process, error) {
	defer h.next()
	return h.aging.Read(ctx, id, pids)
}

// TestLooksAgreeOnAProcess: a stage of the runtime that nobody takes for one, at every exec, is
// no violation of the container, however often it is seen.
func TestLooksAgreeOnAProcess(t *testing.T) {
	m, c := newMachine(), newClock()
	pid := 20
	loop := judging(t, m, c, newCourt(), func(l *agent.Loop) {
		all := fleeting{aging{m, c}, &pid}
		l.Host, l.Members = all, all
	})
	passes(t, c, "many were seen", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return pid > 100
	})
	if got := open(loop); got != nil {
		t.Errorf("open %q", got)
	}
	m.expect(t, drift.PolicyViolation)
}

// straying is an aging machine whose sweeps find what nobody named.
type straying struct{ aging }

func (h straying) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := strays{h.machine}.Sweep(ctx, given)
	for i := range sweep.Containers {
		sweep.Containers[i].Processes = h.aged(sweep.Containers[i].Processes)
	}
	return sweep, err
}

// TestRulesOfThreads: only another look at the threads confirms what they hold.
func TestRulesOfThreads(t *testing.T) {
	m, c := newMachine(), newClock()
	looks := 0
	loop := judging(t, m, c, newCourt(), func(l *agent.Loop) {
		l.Threads = timed{aging{m, c}, &looks}
	})
	passes(t, c, "it is open", is(loop, "policy_violation pass fail"))
	m.mu.Lock()
	defer m.mu.Unlock()
	if looks < 2 {
		t.Errorf("open after %d looks at threads", looks)
	}
}

// timed is a machine whose first process has a thread that fails the rule.
type timed struct {
	aging
	looks *int // under the machine's lock
}

func (h timed) Sweep(ctx context.Context, given []drift.Container) (drift.Sweep, error) {
	sweep, err := h.aging.Sweep(ctx, given)
	h.change(func() { *h.looks++ })
	for i := range sweep.Containers {
		sweep.Containers[i].Processes[0].Threads = []drift.Thread{{TID: 12, UID: 1000, Caps: capdecode.Sets{Bounding: sysTime}}}
	}
	return sweep, err
}

// TestExceptionsExpire: by the loop's clock, whatever happens on the node, and of drift as
// of rules.
func TestExceptionsExpire(t *testing.T) {
	m, c := newMachine(), newClock()
	midnight := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	c.advance(midnight.Add(-10 * time.Second).Sub(c.Now()))
	p := newCourt().accept("debugging", "bounding_excess", midnight).accept("clock", "no-time", midnight.Add(5*time.Second)).
		accept("former", "no-time", midnight.Add(-time.Hour)).accept("other", "nnp_missing", midnight)
	m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysTime|sysAdmin))
	loop := judging(t, m, c, p, func(l *agent.Loop) { l.Cadence.Sweep, l.Cadence.List = time.Hour, time.Hour })
	passes(t, c, "both are accepted", is(loop, "bounding_excess   debugging", "policy_violation pass fail clock"))
	view, _ := loop.View()
	if !c.Now().Before(midnight) {
		t.Fatal("that took until midnight")
	}
	states := func(view agent.View) (list []string) {
		for _, e := range view.Policy.Exceptions {
			list = append(list, fmt.Sprint(e.ID, " ", e.State, " ", e.Findings))
		}
		return list
	}
	if got, want := states(view), []string{"debugging used 1", "clock used 1", "former expired 1", "other unused 0"}; !slices.Equal(got, want) {
		t.Errorf("exceptions %q, want %q", got, want)
	}
	passes(t, c, "drift is not accepted any more", is(loop, "bounding_excess", "policy_violation pass fail clock"))
	if now := c.Now(); now.Before(midnight) {
		t.Errorf("expired at %s", now)
	}
	passes(t, c, "nor is the rule's", is(loop, "bounding_excess", "policy_violation pass fail"))
	view, _ = loop.View()
	if got, want := states(view), []string{"debugging expired 1", "clock expired 1", "former expired 1", "other expired 0"}; !slices.Equal(got, want) {
		t.Errorf("exceptions %q, want %q", got, want)
	}
	m.expect(t, drift.PolicyViolation, "finding_opened pass fail clock", "finding_updated pass fail")
	m.expect(t, drift.BoundingExcess, "finding_opened debugging", "finding_updated")
}

// TestPolicyChanges: another policy judges anew, a broken one changes nothing, none ends what
// its rules found.
func TestPolicyChanges(t *testing.T) {
	m, c := newMachine(), newClock()
	m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysTime))
	loop := judging(t, m, c, newCourt(), nil)
	passes(t, c, "it is open", is(loop, "policy_violation pass fail"))
	enforce := func(u agent.PolicyUpdate) {
		t.Helper()
		if err := loop.Enforce(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	component := func(want agent.Component) func() bool {
		return func() bool {
			view, _ := loop.View()
			return slices.ContainsFunc(view.Status, func(s agent.Component) bool {
				return s.Name == want.Name && s.OK == want.OK && s.Why == want.Why
			})
		}
	}
	accepting := newCourt().accept("clock", "no-time", c.Now().Add(24*time.Hour))
	enforce(agent.PolicyUpdate{Policy: accepting})
	passes(t, c, "it is accepted", is(loop, "policy_violation pass fail clock"))
	loaded, _ := loop.View()

	enforce(agent.PolicyUpdate{Err: errors.New("shop.yaml:3:1: no")})
	until(t, "it says so", component(agent.Component{Name: "policy", Why: "shop.yaml:3:1: no"}))
	if view, _ := loop.View(); !view.Policy.Since.Equal(loaded.Policy.Since) || !is(loop, "policy_violation pass fail clock")() {
		t.Errorf("a broken policy changed %+v, %q", view.Policy, open(loop))
	}
	enforce(agent.PolicyUpdate{Policy: newCourt()})
	passes(t, c, "it is as before", func() bool {
		return component(agent.Component{Name: "policy", OK: true})() && is(loop, "policy_violation pass fail")()
	})
	other := newCourt()
	other.rule = "no-clock"
	enforce(agent.PolicyUpdate{Policy: other})
	passes(t, c, "another rule says the same", func() bool {
		view, _ := loop.View()
		return is(loop, "policy_violation pass fail")() && view.Report.Findings[0].Rule == "no-clock"
	})
	enforce(agent.PolicyUpdate{})
	until(t, "nothing is judged", func() bool {
		view, _ := loop.View()
		return view.Policy == nil && is(loop)()
	})
	m.expect(t, drift.PolicyViolation, "finding_opened pass fail", "finding_updated pass fail clock", "finding_updated pass fail",
		"finding_resolved pass fail policy", "finding_opened pass fail", "finding_resolved pass fail policy")
}

// TestRulesRemember: over a restart a finding keeps its id and is not opened again, also where
// the policy cannot be read then; one of a container that is gone is over.
func TestRulesRemember(t *testing.T) {
	m, c := newMachine(), newClock()
	m.processes["c1"] = append(m.processes["c1"], process(11, bind|sysTime))
	first := judging(t, m, c, newCourt(), nil)
	passes(t, c, "it is open", is(first, "policy_violation pass fail"))
	view, _ := first.View()
	before := slices.Clone(view.Report.Findings)
	excepted := slices.Clone(before)
	excepted[0].Exception = "clock"

	for what, row := range map[string]struct {
		policy agent.PolicyUpdate
		gone   bool
		want   []string
		open   []drift.Finding
	}{
		"the same policy":                    {agent.PolicyUpdate{Policy: newCourt()}, false, nil, before},
		"a policy that cannot be read":       {agent.PolicyUpdate{Err: errors.New("no")}, false, nil, before},
		"no policy any more":                 {agent.PolicyUpdate{}, false, []string{"finding_resolved pass fail policy"}, before},
		"a container that is gone":           {agent.PolicyUpdate{Policy: newCourt()}, true, []string{"finding_resolved pass fail unknown"}, before},
		"one that is gone, and a bad policy": {agent.PolicyUpdate{Err: errors.New("no")}, true, []string{"finding_resolved pass fail unknown"}, before},
		"an exception that still counts": {
			agent.PolicyUpdate{Policy: newCourt().accept("clock", "no-time", c.Now().Add(time.Hour))}, false, nil, excepted,
		},
		"an exception that expired meanwhile": {
			agent.PolicyUpdate{Policy: newCourt().accept("clock", "no-time", newClock().now)}, false, []string{"finding_updated pass fail"}, excepted,
		},
		"exceptions that cannot be read": {agent.PolicyUpdate{Err: errors.New("no")}, false, []string{"finding_updated pass fail"}, excepted},
	} {
		t.Run(what, func(t *testing.T) {
			again, c := newMachine(), newClock()
			again.processes = map[string][]drift.Process{"c1": m.processes["c1"], "c2": {process(20, bind)}}
			if row.gone {
				again.container[0].ID = "c2"
			}
			loop := judging(t, again, c, nil, func(l *agent.Loop) { l.Open, l.Epoch, l.Policy = row.open, "e2", row.policy })
			began := c.Now()
			passes(t, c, "it has looked twice", func() bool { return c.Now().Sub(began) > 2*agent.DefaultCadence().Sweep })
			again.expect(t, drift.PolicyViolation, row.want...)
			if view, _ := loop.View(); row.want == nil && (len(view.Report.Findings) != 1 || view.Report.Findings[0].ID != before[0].ID) {
				t.Errorf("open %+v", view.Report.Findings)
			}
		})
	}
}

// TestOnlyChangesAreJudged: a quiet node is judged once, and of one that is not what moves.
func TestOnlyChangesAreJudged(t *testing.T) {
	m, c := newMachine(), newClock()
	for i := range 20 {
		one := restricted()
		one.ID, one.InitPID = fmt.Sprintf("d%d", i), 100+i
		m.container, m.processes[one.ID] = append(m.container, one), []drift.Process{process(100+i, bind)}
	}
	p := newCourt()
	loop := judging(t, m, c, p, nil)
	passes(t, c, "all is judged", func() bool { return judgedAll(loop) })
	began := c.Now()
	passes(t, c, "a minute", func() bool { return c.Now().Sub(began) > time.Minute })
	if n := p.judgements(); n != 21 {
		t.Errorf("%d judgements of 21 containers that were quiet", n)
	}
	m.change(func() { m.processes["d3"] = append(m.processes["d3"], process(200, bind)) })
	passes(t, c, "it is judged", func() bool { return p.judgements() > 21 })
	began = c.Now()
	passes(t, c, "another minute", func() bool { return c.Now().Sub(began) > time.Minute })
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.judged[21:], func(id string) bool { return id != "d3" }) || len(p.judged) > 23 {
		t.Errorf("judged again: %q", p.judged[21:])
	}
}

// TestStrangersAreJudgedWhenTheyAreKnownToBe: one that nobody named may have started after the
// runtime was asked.
func TestStrangersAreJudgedWhenTheyAreKnownToBe(t *testing.T) {
	m, c := newMachine(), newClock()
	p := newCourt()
	loop := judging(t, m, c, p, func(l *agent.Loop) { l.Host = straying{aging{m, c}} })
	m.change(func() { m.processes["stray"] = []drift.Process{process(20, bind|sysTime)} })
	passes(t, c, "it is judged", func() bool { return slices.Contains(open(loop), "policy_violation pass fail") })
	if kinds := openKinds(loop); !slices.Contains(kinds, string(drift.UnmanagedContainer)) {
		t.Errorf("open %q", kinds)
	}
	for _, change := range m.journal {
		if f := change.Finding; f != nil && f.ContainerID == "stray" {
			if f.Kind != drift.UnmanagedContainer {
				t.Errorf("first it told of %s", f.Kind)
			}
			break
		}
	}
}
