package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// Why a finding was resolved.
const (
	ResolvedEnded     = "ended"     // its process, or its container, is gone, and no other process shows it
	ResolvedExplained = "explained" // the very process was read again, and is as declared
	ResolvedUnknown   = "unknown"   // it is gone, and no run of the agent saw how
	ResolvedBoot      = "boot"      // the node booted since
	ResolvedPolicy    = "policy"    // its rule is not one of the policy any more
)

const (
	// damping is the least time between two updates of a finding that processes cause by
	// coming and going, and between two changes of a container that they cause.
	damping = time.Minute
	// returning is how soon after its end a finding that opens again has come back. From
	// then on it is resolved only when it was not seen for as long.
	returning = time.Minute
	// introduction is how long after the first look at a container that nobody named the
	// runtime is asked for it, before it is told: a busy runtime lists a pod's sandbox
	// seconds after the sandbox runs.
	introduction = 5 * time.Second
	// patience is for how many confirming times a suspicion waits for another process that
	// shows the same, when the one that showed it is gone.
	patience = 8
)

// ledger follows each finding from the first suspicion to its end. It is pure:
// time is passed in.
//
// What a process holds above [drift.Info] opens when two looks agree on its id, at
// least the confirming time apart. The id does not name the process, so a process that
// forks its successor and exits is confirmed by the successor. What only specs say
// opens at once, for they do not change, and so do violations of rules, for they come
// here when looks have agreed on them (policy.go). A suspicion that no second look
// confirms is counted (transients.go).
type ledger struct {
	confirm    time.Duration
	open       map[string]*entry
	suspects   map[string]*suspicion
	closed     map[string]time.Time // when findings were resolved, for as long as they can come back
	transients transients
}

// entry is a finding that is open.
type entry struct {
	drift.Finding
	told   drift.Finding // as the last change had it
	toldAt time.Time
	looked bool      // this run of the agent has seen it
	gone   time.Time // since when no process shows it; zero while one does
	why    string    // it is gone
	lasts  bool      // it is resolved only when it was gone for as long as it may come back
}

// suspicion is a finding that one look saw.
type suspicion struct {
	drift.Finding
	since time.Time // of the first look
	gone  time.Time // since when no process shows it; zero while one does
}

// newLedger returns a ledger that begins with what was open before.
func newLedger(confirm time.Duration, open []drift.Finding, at time.Time) *ledger {
	l := &ledger{
		confirm: confirm, open: make(map[string]*entry), suspects: make(map[string]*suspicion),
		closed: make(map[string]time.Time), transients: newTransients(),
	}
	for _, finding := range open {
		l.open[finding.ID] = &entry{Finding: finding, told: finding, toldAt: at}
		if finding.Kind == drift.TransientDrift {
			l.transients.resume(finding, at)
		}
	}
	return l
}

// sample is what one look, at all or at a part, found.
type sample struct {
	at    time.Time
	asked time.Time // when the runtime was asked what it runs
	found []drift.Finding
	// read reports whether the look itself read what shows a finding: only then does it
	// confirm a suspicion. nil where it read everything that it found.
	read func(drift.Finding) bool
	// kept is what earlier looks read, and what nothing has refuted since. It keeps a
	// finding open, and confirms nothing.
	kept []drift.Finding
	// partial is true where found counts only some of the processes that may show it.
	partial bool
	// over says why a finding that is in neither list is over, "" where the look cannot
	// tell.
	over func(drift.Finding) string
}

// take enters a sample and returns what it changed, in a stable order.
func (l *ledger) take(s sample) []Change {
	var changes []Change
	whole := make(map[string]drift.Finding, len(s.kept))
	for _, finding := range s.kept {
		whole[finding.ID] = finding
	}
	shown := make(map[string]bool, len(s.found))
	for _, finding := range s.found {
		if !shown[finding.ID] {
			shown[finding.ID] = true
			changes = append(changes, l.see(s, finding, whole)...)
		}
	}
	for _, finding := range s.kept {
		if !shown[finding.ID] {
			shown[finding.ID] = true
			changes = append(changes, l.keep(s.at, finding)...)
		}
	}
	for id, e := range l.open {
		if !shown[id] && e.gone.IsZero() {
			if why := s.over(e.Finding); why != "" {
				e.gone, e.why = s.at, e.reason(why)
			}
		}
	}
	for id, suspect := range l.suspects {
		if shown[id] || !suspect.gone.IsZero() {
			continue
		}
		switch why := s.over(suspect.Finding); {
		case why == ResolvedExplained && !tied(suspect.Finding):
			delete(l.suspects, id) // the runtime has told meanwhile what it is
		case why != "":
			suspect.gone = s.at
		}
	}
	return append(changes, l.pass(s.at)...)
}

// see enters a finding that a look found. whole has what all processes of its
// container show, where that is known.
func (l *ledger) see(s sample, found drift.Finding, whole map[string]drift.Finding) []Change {
	full, known := whole[found.ID]
	if !known {
		full = found
	}
	if e := l.open[found.ID]; e != nil {
		if e.looked = true; s.partial && !known && e.gone.IsZero() {
			return nil // the process that it names still shows it
		}
		return e.update(s.at, full)
	}
	suspect := l.suspects[found.ID]
	switch {
	case certain(found) || suspect != nil && l.confirms(s, suspect, found):
		if delete(l.suspects, found.ID); suspect != nil {
			full = worst(suspect.Finding, full)
		}
		return []Change{l.add(s.at, full)}
	case suspect == nil:
		l.suspects[found.ID] = &suspicion{Finding: full, since: s.at}
	default:
		suspect.see(full)
	}
	return nil
}

// see enters that a suspicion is shown again. It is about all capabilities that were shown,
// so that whoever shows others each time is confirmed as soon as one comes again.
func (s *suspicion) see(now drift.Finding) {
	now = worst(s.Finding, now)
	now.Capabilities |= s.Capabilities
	s.Finding, s.gone = now, time.Time{}
}

// keep enters that a finding is still shown by what an earlier look read.
func (l *ledger) keep(at time.Time, kept drift.Finding) []Change {
	if e := l.open[kept.ID]; e != nil {
		e.looked = true
		return e.update(at, kept)
	}
	if suspect := l.suspects[kept.ID]; suspect != nil {
		suspect.see(kept)
	}
	return nil
}

// add opens a finding. One that came back, and one of no weight that processes show by
// coming and going, lasts: neither can be made to open and end again and again.
func (l *ledger) add(at time.Time, f drift.Finding) Change {
	_, back := l.closed[f.ID]
	delete(l.closed, f.ID)
	l.open[f.ID] = &entry{Finding: f, told: f, toldAt: at, looked: true, lasts: back || tied(f) && f.Severity == drift.Info}
	return Change{At: at, Kind: FindingOpened, Finding: &f}
}

// update enters what a finding is like now. It is told at once where it is worse, and
// else only so often.
func (e *entry) update(at time.Time, now drift.Finding) []Change {
	now = worst(e.Finding, now)
	e.Finding, e.gone, e.why = now, time.Time{}, ""
	if alike(e.told, now) || !worse(e.told, now) && at.Sub(e.toldAt) < damping {
		return nil
	}
	return []Change{e.tell(at)}
}

// tell returns the change that says what a finding is like now.
func (e *entry) tell(at time.Time) Change {
	now := e.Finding
	e.told, e.toldAt = now, at
	return Change{At: at, Kind: FindingUpdated, Finding: &now}
}

// reason corrects why a finding is over: of one that this run of the agent never saw,
// nobody knows whether it had been put right before its process ended.
func (e *entry) reason(why string) string {
	if why == ResolvedEnded && !e.looked {
		return ResolvedUnknown
	}
	return why
}

// pass enters that time has passed: what is over and does not come back is resolved,
// and suspicions that nobody confirmed are counted.
func (l *ledger) pass(at time.Time) (changes []Change) {
	for _, id := range slices.Sorted(maps.Keys(l.suspects)) {
		if suspect := l.suspects[id]; !suspect.gone.IsZero() && at.Sub(suspect.gone) >= patience*l.confirm {
			changes = append(changes, l.give(at, id)...)
		}
	}
	l.transients.pass(at)
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		e := l.open[id]
		switch {
		case e.Kind == drift.TransientDrift && !l.transients.repeats(e.ContainerID):
			changes = append(changes, l.resolve(at, id, e.reason(ResolvedEnded)))
		case !e.gone.IsZero() && (!e.lasts || at.Sub(e.gone) >= returning):
			changes = append(changes, l.resolve(at, id, e.why))
		}
	}
	maps.DeleteFunc(l.closed, func(_ string, closed time.Time) bool { return at.Sub(closed) >= returning })
	return changes
}

// give gives a suspicion up that nobody confirmed.
func (l *ledger) give(at time.Time, id string) []Change {
	suspect := l.suspects[id]
	delete(l.suspects, id)
	if !l.transients.note(at, suspect) {
		return nil
	}
	repeated := l.transients.finding(suspect.ContainerID)
	if e := l.open[repeated.ID]; e != nil {
		e.looked = true
		return e.update(at, repeated)
	}
	return []Change{l.add(at, repeated)}
}

func (l *ledger) resolve(at time.Time, id, why string) Change {
	finding := l.open[id].Finding
	delete(l.open, id)
	l.closed[id] = at
	return Change{At: at, Kind: FindingResolved, Finding: &finding, Resolved: why}
}

// confirms reports whether a sample that found a suspicion again shows that it is true:
// it read what shows it, a while later, and of a container that nobody named, the runtime
// was asked long enough after it was seen: it may be one that has just started.
func (l *ledger) confirms(s sample, suspect *suspicion, found drift.Finding) bool {
	return s.at.Sub(suspect.since) >= l.confirm && drift.Agree(suspect.Finding, found) && (s.read == nil || s.read(found)) &&
		(suspect.Kind != drift.UnmanagedContainer || s.asked.Sub(suspect.since) >= introduction)
}

// certain tells whether one look is enough: what is harmless, and what only specs
// say. A container that cannot be read is most often one that just ended, and one that
// nobody named most often one that started after the runtime was asked.
func certain(f drift.Finding) bool {
	return f.Kind == drift.PolicyViolation || f.Kind != drift.NotReadable && f.Kind != drift.UnmanagedContainer && (f.Severity == drift.Info || f.PID == 0)
}

// tied reports whether a finding is about a process: it is over when no process shows
// it. One about a container may name a process too, as an example.
func tied(f drift.Finding) bool {
	return f.PID != 0 && f.Kind != drift.UnmanagedContainer && f.Kind != drift.Undeclared && f.Kind != drift.TransientDrift
}

// has tells whether a finding of this kind is open about the container.
func (l *ledger) has(containerID string, kind drift.Kind) bool {
	for _, finding := range l.open {
		if finding.ContainerID == containerID && finding.Kind == kind {
			return true
		}
	}
	return false
}

// current returns what is open or suspected and is not over yet.
func (l *ledger) current() (list []drift.Finding) {
	for _, e := range l.open {
		if e.gone.IsZero() {
			list = append(list, e.Finding)
		}
	}
	for _, suspect := range l.pending() {
		list = append(list, suspect.Finding)
	}
	return list
}

// pending returns the suspicions that wait for a second look, in order.
func (l *ledger) pending() (list []*suspicion) {
	for _, id := range slices.Sorted(maps.Keys(l.suspects)) {
		if suspect := l.suspects[id]; suspect.gone.IsZero() {
			list = append(list, suspect)
		}
	}
	return list
}

// acquit forgets the suspicion that nobody names a container: somebody does.
func (l *ledger) acquit(containerID string) {
	maps.DeleteFunc(l.suspects, func(_ string, suspect *suspicion) bool {
		return suspect.ContainerID == containerID && suspect.Kind == drift.UnmanagedContainer
	})
}

// end resolves the open findings that a predicate names, and gives up the suspicions
// that it names.
func (l *ledger) end(at time.Time, why string, ended func(drift.Finding) bool) []Change {
	var changes []Change
	for _, id := range slices.Sorted(maps.Keys(l.suspects)) {
		if ended(l.suspects[id].Finding) {
			changes = append(changes, l.give(at, id)...)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		if e := l.open[id]; ended(e.Finding) {
			changes = append(changes, l.resolve(at, id, e.reason(why)))
		}
	}
	return changes
}

// accept enters which exception accepts each of the open findings, "" for none.
func (l *ledger) accept(at time.Time, by func(drift.Finding) string) []Change {
	var changes []Change
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		e := l.open[id]
		if exception := by(e.Finding); exception != e.Exception {
			e.Exception = exception
			changes = append(changes, e.tell(at))
		}
	}
	return changes
}

// findings returns what is open, sorted worst first; never nil.
func (l *ledger) findings() []drift.Finding {
	list := make([]drift.Finding, 0, len(l.open))
	for _, e := range l.open {
		list = append(list, e.Finding)
	}
	drift.Sort(list)
	return list
}

// alike reports whether two findings of one id say the same, whichever process shows it.
func alike(a, b drift.Finding) bool {
	return a.Severity == b.Severity && a.Capabilities == b.Capabilities && a.Cause == b.Cause && a.Remedy == b.Remedy &&
		a.Declared == b.Declared && a.Actual == b.Actual && a.Exception == b.Exception &&
		a.PID == b.PID && a.StartTime == b.StartTime && a.TID == b.TID && a.Processes == b.Processes && a.Message == b.Message
}

// worst returns a finding as it is now, and as bad as it was: a process that came from
// outside and is adopted inside later looks harmless by itself.
func worst(before, now drift.Finding) drift.Finding {
	if tied(now) && now.Kind != drift.PolicyViolation && now.Severity < before.Severity {
		now.Severity, now.Message, now.Remedy, now.Paste = before.Severity, before.Message, before.Remedy, before.Paste
		now.Cause, now.Incident = before.Cause, before.Incident
	}
	return now
}

// worse reports whether a finding has become one that a person should hear of at once. So
// is another exception of a rule, for a policy gives it; that of drift may come and go with
// the processes that show it.
func worse(before, now drift.Finding) bool {
	return now.Severity > before.Severity || now.Declared == failed && before.Declared != failed ||
		now.Actual == failed && before.Actual != failed ||
		now.Exception != before.Exception && (now.Exception == "" || now.Kind == drift.PolicyViolation)
}
