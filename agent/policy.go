package agent

import (
	"context"
	"slices"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// Policy is rules that containers are held against, and exceptions from them. Its answers
// depend on what it is asked alone, and not on the time: the loop knows when an exception
// expires.
type Policy interface {
	Contents() PolicyContents
	// Judge puts every rule to a settled container. threads tells whether those of its
	// processes were read.
	Judge(node drift.Node, runtime *drift.Runtime, c *drift.Container, threads bool) Judged
	// Accepting lists the exceptions, in their order, that accept a drift finding about
	// the container, whether or not they have expired.
	Accepting(node drift.Node, runtime *drift.Runtime, c *drift.Container, f drift.Finding) []string
}

// PolicyContents names what is in a policy.
type PolicyContents struct {
	Packs      []string
	Rules      []string // ids
	Exceptions []Exception
}

// Exception is one, by its id, and the first moment at which it counts no more.
type Exception struct {
	ID      string
	Expires time.Time
}

// Judged is what the rules say of one container.
type Judged struct {
	Violations []Violation // one for each rule that fails, on paper or in the kernel
	Undecided  []string    // rules that fail nowhere as far as is known, and that is not all
}

// Violation is a rule that fails.
type Violation struct {
	Finding drift.Finding // its exception is not set
	// Failing are the processes that fail in the kernel, the first of many; none where
	// only threads do, or the container as a whole.
	Failing   []Seen
	Accepting []string // the exceptions, in their order, whether or not they have expired
}

// Seen is a process as one look saw it; the next one sees it older.
type Seen struct {
	PID       int
	StartTime uint64
	Age       time.Duration
}

// Verdicts of a rule, as a finding has them.
const (
	failed  = "fail"
	unknown = "unknown"
)

// PolicyUpdate is what is judged by from now on. With an error it is what was judged by
// before, and without a policy nothing.
type PolicyUpdate struct {
	Policy Policy
	Err    error // why the newest one cannot be
}

// PolicyStatus is the policy of a view, and how the node fares by it.
type PolicyStatus struct {
	Packs      []string
	Rules      int
	Since      time.Time // when it was loaded; zero where none could be yet
	Pending    int       // containers that wait to be judged
	Unknown    int       // results, of a rule and a container, of which a verdict is unknown
	Exceptions []ExceptionStatus
}

// ExceptionStatus is an exception, and how many of the open findings it accepts or, once
// it has expired, would accept.
type ExceptionStatus struct {
	Exception
	State    ExceptionState
	Findings int
}

// ExceptionState says what becomes of an exception.
type ExceptionState string

// The states of exceptions.
const (
	ExceptionUsed    ExceptionState = "used"
	ExceptionUnused  ExceptionState = "unused"
	ExceptionExpired ExceptionState = "expired"
)

// rules is what the loop knows of its policy, and has concluded by it.
type rules struct {
	asked     bool // there should be one
	policy    Policy
	contents  PolicyContents
	since     time.Time
	judged    map[string]Judged // by container
	suspects  map[string]failure
	queue     []string // containers that were looked at since they were judged last
	queued    map[string]bool
	accepting map[string][]string // by the id of a finding, the exceptions that name it
	expiry    time.Time           // the next of an exception; zero for none
	pace      pace
}

// failure is a violation that one look saw in the kernel.
type failure struct {
	container string
	since     time.Time
	failing   []Seen
	threads   int // how often threads had been read
}

// maxTurn is how long the loop judges before it does something else.
const maxTurn = 50 * time.Millisecond

// Enforce changes the policy. It returns when the loop has taken it, or with the context's
// error.
func (l *Loop) Enforce(ctx context.Context, update PolicyUpdate) error {
	return l.order(ctx, func() []Change { return l.enforce(update) })
}

// Report enters how a part that is not the loop's own fares.
func (l *Loop) Report(ctx context.Context, part string, err error) error {
	return l.order(ctx, func() []Change { return l.component(part, err) })
}

// order has the loop do something, and publish what it changed.
func (l *Loop) order(ctx context.Context, do func() []Change) error {
	select {
	case l.orders <- do:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enforce takes another policy: everything is judged anew.
func (l *Loop) enforce(update PolicyUpdate) []Change {
	s := &l.state
	r := &s.rules
	if update.Err != nil {
		r.asked = true
		changes := l.component("policy", update.Err)
		if r.policy == nil {
			changes = append(changes, l.accept()...) // of no exception is it known that it still counts
		}
		return changes
	}
	changes := l.component("policy", nil)
	*r = rules{}
	if update.Policy == nil {
		delete(s.components, "policy")
	} else {
		*r = rules{
			asked: true, policy: update.Policy, contents: update.Policy.Contents(), since: l.Now(), judged: make(map[string]Judged),
			suspects: make(map[string]failure), queued: make(map[string]bool), accepting: make(map[string][]string),
		}
	}
	l.markAll()
	changes = append(changes, s.ledger.end(l.Now(), ResolvedPolicy, func(f drift.Finding) bool {
		return f.Kind == drift.PolicyViolation && !slices.Contains(r.contents.Rules, f.Rule)
	})...)
	return append(changes, l.accept()...)
}

// mark has a container judged that was looked at.
func (r *rules) mark(id string) {
	if r.policy != nil && !r.queued[id] {
		r.queued[id] = true
		r.queue = append(r.queue, id)
	}
}

func (l *Loop) markAll() {
	for _, c := range l.state.sorted() {
		l.state.rules.mark(c.ID)
	}
}

// forget drops what is known of a container that is gone.
func (r *rules) forget(id string) {
	delete(r.judged, id)
	for finding, f := range r.suspects {
		if f.container == id {
			delete(r.suspects, finding)
		}
	}
}

// suspected tells whether something about the container waits for a second look.
func (r *rules) suspected(id string) bool {
	for _, f := range r.suspects {
		if f.container == id {
			return true
		}
	}
	return false
}

// unread tells whether only a sweep with threads can confirm one of the suspicions.
func (r *rules) unread() bool {
	for _, f := range r.suspects {
		if len(f.failing) == 0 {
			return true
		}
	}
	return false
}

// rule judges containers that were looked at, for so long and so seldom that it takes a
// tenth of the time: containers change as often as whoever runs in them likes. At once are
// all of them judged only for those who asked for a look. judged tells whether any was.
func (l *Loop) rule(atOnce bool) (changes []Change, judged bool) {
	s, began := &l.state, l.Now()
	r := &s.rules
	stamp := l.stamp()
	if !r.expiry.IsZero() && !began.Before(r.expiry) {
		changes = l.accept()
	}
	if s.runtime == nil || len(r.queue) == 0 || began.Before(r.pace.rest) && !atOnce {
		return changes, false
	}
	turn := turn{violated: make(map[string]bool), judged: make(map[string]Judged)}
	for more := true; more && len(r.queue) > 0; more = atOnce || l.Now().Sub(began) < maxTurn {
		id := r.queue[0]
		r.queue = r.queue[1:]
		delete(r.queued, id)
		if c := s.containers[id]; c != nil && l.judgeable(c) {
			l.hold(c, &turn)
		}
	}
	now := l.Now()
	changes = append(changes, s.ledger.take(sample{at: now, found: turn.found, over: turn.outcome})...)
	r.pace.did(now, l.since(stamp))
	return changes, len(turn.judged) > 0
}

// judgeable tells whether it is known what the container is. One that its runtime is starting
// is the runtime's own; one that nobody named may have started after the runtime was asked,
// and so is none until that is found.
func (l *Loop) judgeable(c *drift.Container) bool {
	s := &l.state
	switch {
	case c.Sandbox || c.Managed == nil:
		return false
	case *c.Managed:
		return !drift.BeingStarted(c, s.starting)
	}
	return s.ledger.has(c.ID, drift.UnmanagedContainer)
}

// turn is what was judged at one time.
type turn struct {
	judged   map[string]Judged // by container
	found    []drift.Finding   // that looks agree on
	violated map[string]bool   // ids, of those that wait for another look too
	over     []string          // ids of those whose processes have all ended
}

// covers tells whether the turn would have found this one, if it were still there. A rule
// that could not be decided refutes nothing.
func (t *turn) covers(f drift.Finding) bool {
	judged, ok := t.judged[f.ContainerID]
	return ok && f.Kind == drift.PolicyViolation && !t.violated[f.ID] && !slices.Contains(judged.Undecided, f.Rule)
}

// outcome says why a violation is over, "" where the turn cannot tell.
func (t *turn) outcome(f drift.Finding) string {
	switch {
	case !t.covers(f):
		return ""
	case slices.Contains(t.over, f.ID):
		return ResolvedEnded
	}
	return ResolvedExplained
}

// hold holds a container against every rule.
func (l *Loop) hold(c *drift.Container, t *turn) {
	s, now := &l.state, l.Now()
	r := &s.rules
	for _, v := range r.judged[c.ID].Violations {
		if v.Finding.Declared != failed && len(v.Failing) > 0 && !slices.ContainsFunc(v.Failing, func(p Seen) bool { return runs(c, p) }) {
			t.over = append(t.over, v.Finding.ID)
		}
	}
	judged := r.policy.Judge(s.node, s.runtime, c, s.sweep.Threads.Skipped == 0)
	r.judged[c.ID], t.judged[c.ID] = judged, judged
	var pids []int
	for _, v := range judged.Violations {
		f := v.Finding
		t.violated[f.ID], r.accepting[f.ID] = true, v.Accepting
		f.Exception = r.exception(v.Accepting, now)
		open, isOpen := s.ledger.open[f.ID]
		switch {
		case f.Actual != failed || isOpen && open.Actual == failed || l.agrees(v):
			delete(r.suspects, f.ID)
			if isOpen && f.Actual == unknown && f.Declared == open.Declared && starts(c) {
				// For a moment nobody can say: what was known stands.
				stands := open.Finding
				stands.Exception = f.Exception
				f = stands
			}
			t.found = append(t.found, f)
		default:
			for _, p := range v.Failing {
				pids = append(pids, p.PID)
			}
		}
	}
	for id, f := range r.suspects {
		if f.container == c.ID && !t.violated[id] {
			delete(r.suspects, id)
		}
	}
	if slices.Sort(pids); len(pids) > 0 {
		s.rereads.add(now.Add(l.Cadence.Confirm), c.ID, slices.Compact(pids))
	}
}

// agrees tells whether two looks saw the same process fail, the confirming time apart: a
// runtime's own stages hold everything for milliseconds, and another container's process may
// be just such a one. What is about no single process needs another look at all threads.
func (l *Loop) agrees(v Violation) bool {
	r, now := &l.state.rules, l.Now()
	first, same := r.suspects[v.Finding.ID]
	later := first.threads < l.state.threadLooks
	if len(first.failing)+len(v.Failing) > 0 {
		same, later = false, false
	}
	for _, p := range first.failing {
		at := slices.IndexFunc(v.Failing, func(q Seen) bool { return p.PID == q.PID && p.StartTime == q.StartTime })
		if at >= 0 {
			// Half of it, for ages are told in hundredths of a second.
			same, later = true, later || v.Failing[at].Age-p.Age >= l.Cadence.Confirm/2
		}
	}
	if !same {
		r.suspects[v.Finding.ID] = failure{v.Finding.ContainerID, now, v.Failing, l.state.threadLooks}
		return false
	}
	return later && now.Sub(first.since) >= l.Cadence.Confirm
}

// runs tells whether a process that was seen is still there.
func runs(c *drift.Container, seen Seen) bool {
	return slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.PID == seen.PID && p.StartTime == seen.StartTime })
}

// starts tells whether a runtime is starting a process in the container.
func starts(c *drift.Container) bool {
	return slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.Observation == drift.Starting })
}

// exception is the first of those that have not expired, "" for none.
func (r *rules) exception(accepting []string, now time.Time) string {
	for _, id := range accepting {
		for _, e := range r.contents.Exceptions {
			if e.ID == id && now.Before(e.Expires) {
				return id
			}
		}
	}
	return ""
}

// except enters into drift findings which exception accepts each.
func (l *Loop) except(found []drift.Finding) []drift.Finding {
	r, now := &l.state.rules, l.Now()
	if r.policy == nil || len(r.contents.Exceptions) == 0 {
		return found
	}
	for i := range found {
		accepting := l.accepting(found[i])
		if len(accepting) > 0 {
			r.accepting[found[i].ID] = accepting
		}
		found[i].Exception = r.exception(accepting, now)
	}
	return found
}

// accepting lists the exceptions that name a finding. What a rule says of a container that was
// not judged yet stays accepted as it was.
func (l *Loop) accepting(f drift.Finding) []string {
	r := &l.state.rules
	if f.Kind == drift.PolicyViolation {
		if known, ok := r.accepting[f.ID]; ok {
			return known
		}
		return []string{f.Exception}
	}
	if c := l.state.containers[f.ContainerID]; c != nil && r.policy != nil {
		return r.policy.Accepting(l.state.node, l.state.runtime, c, f)
	}
	return nil
}

// accept enters what is accepted now of all that is open, and when that changes next.
func (l *Loop) accept() []Change {
	s, now := &l.state, l.Now()
	r := &s.rules
	r.expiry = time.Time{}
	for _, e := range r.contents.Exceptions {
		if now.Before(e.Expires) && (r.expiry.IsZero() || e.Expires.Before(r.expiry)) {
			r.expiry = e.Expires
		}
	}
	accepting := make(map[string][]string)
	changes := s.ledger.accept(now, func(f drift.Finding) string {
		by := l.accepting(f)
		if len(by) > 0 || f.Kind == drift.PolicyViolation {
			accepting[f.ID] = by
		}
		return r.exception(by, now)
	})
	r.accepting = accepting
	return changes
}

// status is the policy for a view with these findings; nil where none is asked for.
func (r *rules) status(open []drift.Finding, now time.Time) *PolicyStatus {
	if !r.asked {
		return nil
	}
	status := &PolicyStatus{Packs: r.contents.Packs, Rules: len(r.contents.Rules), Since: r.since, Pending: len(r.queue)}
	for _, judged := range r.judged {
		status.Unknown += len(judged.Undecided)
		for _, v := range judged.Violations {
			if v.Finding.Declared == unknown || v.Finding.Actual == unknown {
				status.Unknown++
			}
		}
	}
	named := make(map[string]int)
	for _, f := range open {
		for _, id := range r.accepting[f.ID] {
			named[id]++
		}
	}
	for _, e := range r.contents.Exceptions {
		one := ExceptionStatus{Exception: e, State: ExceptionUsed, Findings: named[e.ID]}
		switch {
		case !now.Before(e.Expires):
			one.State = ExceptionExpired
		case one.Findings == 0:
			one.State = ExceptionUnused
		}
		status.Exceptions = append(status.Exceptions, one)
	}
	return status
}

// sameToRules tells whether rules would see the same: everything that they can read but a
// process's state and the number of its threads, which change as the process runs.
func sameToRules(a, b *drift.Container) bool {
	return a.Name == b.Name && a.Image == b.Image && same(a.Pod, b.Pod) && a.RuntimeHandler == b.RuntimeHandler && same(a.Managed, b.Managed) &&
		a.Observation == b.Observation && a.Reason == b.Reason && a.Declared == b.Declared && slices.Equal(a.Labels, b.Labels) &&
		slices.EqualFunc(a.Processes, b.Processes, sameProcess)
}

func sameProcess(a, b drift.Process) bool {
	return a.PID == b.PID && a.StartTime == b.StartTime && a.Caps == b.Caps && a.UID == b.UID && a.UIDs == b.UIDs && a.ParentPID == b.ParentPID && a.Name == b.Name &&
		a.Observation == b.Observation && (a.ThreadCount > 1) == (b.ThreadCount > 1) &&
		same(a.ContainerUID, b.ContainerUID) && same(a.NoNewPrivileges, b.NoNewPrivileges) && same(a.Seccomp, b.Seccomp) &&
		a.UserNamespace.Relation == b.UserNamespace.Relation && a.UserNamespace.Inode == b.UserNamespace.Inode &&
		slices.EqualFunc(a.Threads, b.Threads, func(a, b drift.Thread) bool {
			return a.TID == b.TID && a.Caps == b.Caps && a.UID == b.UID && a.UIDs == b.UIDs && a.Name == b.Name && same(a.NoNewPrivileges, b.NoNewPrivileges) &&
				same(a.Seccomp, b.Seccomp)
		})
}

// sameNode tells the same of the node.
func sameNode(a, b drift.Node) bool {
	return a.Name == b.Name && a.BootID == b.BootID && a.Kernel == b.Kernel && a.CapLastCap == b.CapLastCap && a.CgroupMode == b.CgroupMode
}

// same tells whether both are known and equal, or neither is.
func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}
