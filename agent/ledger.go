package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// Why a finding was resolved.
const (
	ResolvedEnded     = "ended"     // its process, or its container, is gone
	ResolvedExplained = "explained" // it was looked at again, and is as declared
	ResolvedBoot      = "boot"      // the node booted since
	ResolvedPolicy    = "policy"    // its rule is not one of the policy any more
)

// ledger follows each finding from the first suspicion to its end. It is pure:
// time is passed in.
//
// What a process holds above [drift.Info] opens when two samples agree, at least the
// confirming time apart: a runtime's own stages hold everything for milliseconds.
// What only specs say opens at once, for they do not change, and so do violations of
// rules, for they come here when looks have agreed on them (policy.go). An id is
// the same as long as the cause is, so a finding that was open before the agent
// was started anew is not opened again.
type ledger struct {
	confirm  time.Duration
	open     map[string]drift.Finding
	suspects map[string]suspicion
}

// suspicion is a finding that one sample saw.
type suspicion struct {
	drift.Finding
	since time.Time
}

func newLedger(confirm time.Duration, open []drift.Finding) *ledger {
	l := &ledger{confirm: confirm, open: make(map[string]drift.Finding), suspects: make(map[string]suspicion)}
	for _, finding := range open {
		l.open[finding.ID] = finding
	}
	return l
}

// sample is what one look, at all or at a part, found.
type sample struct {
	at    time.Time
	asked time.Time // when the runtime was asked what it runs
	found []drift.Finding
	// threads tells whether the look read them: else what is found of one is what an
	// earlier look read.
	threads bool
	// covers tells whether the look would have found this one, if it were still
	// there: only then is its absence an end.
	covers func(drift.Finding) bool
	// stale tells whether a finding is of what an earlier look read, which confirms
	// nothing; nil where none is.
	stale func(drift.Finding) bool
}

// take enters a sample and returns what it changed, in a stable order.
func (l *ledger) take(s sample) []Change {
	var changes []Change
	note := func(kind ChangeKind, finding drift.Finding, resolved string) {
		changes = append(changes, Change{At: s.at, Kind: kind, Finding: &finding, Resolved: resolved})
	}
	found := make(map[string]bool, len(s.found))
	for _, finding := range s.found {
		if found[finding.ID] {
			continue
		}
		found[finding.ID] = true
		before, open := l.open[finding.ID]
		suspect, suspected := l.suspects[finding.ID]
		switch {
		case open && !alike(before, finding):
			l.open[finding.ID] = finding
			note(FindingUpdated, finding, "")
		case open:
		case certain(finding) || suspected && s.confirms(suspect, l.confirm):
			delete(l.suspects, finding.ID)
			l.open[finding.ID] = finding
			note(FindingOpened, finding, "")
		case !suspected:
			l.suspects[finding.ID] = suspicion{finding, s.at}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		if finding := l.open[id]; !found[id] && s.covers(finding) {
			delete(l.open, id)
			note(FindingResolved, finding, ResolvedExplained)
		}
	}
	maps.DeleteFunc(l.suspects, func(id string, suspect suspicion) bool { return !found[id] && s.covers(suspect.Finding) })
	return changes
}

// confirms tells whether a suspicion that the sample saw again is true: a while later,
// and of a container that nobody named, when the runtime was asked after it was seen.
// Until it has answered, it may be one that has just started.
func (s sample) confirms(suspect suspicion, after time.Duration) bool {
	if s.stale != nil && s.stale(suspect.Finding) {
		return false
	}
	return s.at.Sub(suspect.since) >= after && (suspect.TID == 0 || s.threads) &&
		(suspect.Kind != drift.UnmanagedContainer || s.asked.After(suspect.since))
}

// certain tells whether one look is enough: what is harmless, and what only specs
// say. A container that cannot be read is most often one that just ended, and one that
// nobody named most often one that started after the runtime was asked.
func certain(f drift.Finding) bool {
	return f.Kind == drift.PolicyViolation || f.Kind != drift.NotReadable && f.Kind != drift.UnmanagedContainer && (f.Severity == drift.Info || f.PID == 0)
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

// suspected tells whether something about the process waits for a second look.
func (l *ledger) suspected(containerID string, pid int) bool {
	for _, suspect := range l.suspects {
		if suspect.ContainerID == containerID && suspect.PID == pid {
			return true
		}
	}
	return false
}

// end resolves the open findings that a predicate names, and forgets the
// suspicions that it names.
func (l *ledger) end(at time.Time, why string, ended func(drift.Finding) bool) []Change {
	var changes []Change
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		if finding := l.open[id]; ended(finding) {
			delete(l.open, id)
			changes = append(changes, Change{At: at, Kind: FindingResolved, Finding: &finding, Resolved: why})
		}
	}
	maps.DeleteFunc(l.suspects, func(_ string, suspect suspicion) bool { return ended(suspect.Finding) })
	return changes
}

// accept enters which exception accepts each of the open findings, "" for none.
func (l *ledger) accept(at time.Time, by func(drift.Finding) string) []Change {
	var changes []Change
	for _, id := range slices.Sorted(maps.Keys(l.open)) {
		finding := l.open[id]
		if exception := by(finding); exception != finding.Exception {
			finding.Exception = exception
			l.open[id] = finding
			changes = append(changes, Change{At: at, Kind: FindingUpdated, Finding: &finding})
		}
	}
	return changes
}

// findings returns what is open, sorted worst first; never nil.
func (l *ledger) findings() []drift.Finding {
	list := slices.AppendSeq(make([]drift.Finding, 0, len(l.open)), maps.Values(l.open))
	drift.Sort(list)
	return list
}

// alike tells whether a person would read the same.
func alike(a, b drift.Finding) bool {
	return a.Severity == b.Severity && a.Message == b.Message && a.Capabilities == b.Capabilities && a.Cause == b.Cause && a.Remedy == b.Remedy &&
		a.Declared == b.Declared && a.Actual == b.Actual && a.Exception == b.Exception
}
