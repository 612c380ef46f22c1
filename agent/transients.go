package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

const (
	// remembered is for how long a suspicion counts that no second look confirmed.
	remembered = time.Hour
	// maxTransients bounds the containers whose unconfirmed suspicions are remembered, and
	// maxTold those that a view names.
	maxTransients, maxTold = 512, 32
)

// transients counts what one look saw above [drift.Info] and no second look confirmed:
// the process ended first, or gave it up, or nobody could look again. What became of it
// is not known, and a container where it happens in two looks is a finding of its own.
type transients struct {
	of     map[string]*transient // by container
	counts map[drift.Kind]uint64 // since the start
}

// transient is what was not confirmed of one container.
type transient struct {
	example drift.Finding // the last one
	looks   int           // in which there was something
	look    time.Time     // the last of them
	last    time.Time     // when a suspicion was given up last
	seen    capdecode.Set // all capabilities that they were about
}

func newTransients() transients {
	return transients{of: make(map[string]*transient), counts: make(map[drift.Kind]uint64)}
}

// resume begins with a finding that was open when the agent ended.
func (t *transients) resume(f drift.Finding, at time.Time) {
	t.of[f.ContainerID] = &transient{example: f, looks: 2, last: at, seen: f.Capabilities}
}

// note enters a suspicion that is given up, and reports whether its container has now
// shown something in two looks or more.
func (t *transients) note(at time.Time, s *suspicion) (repeats bool) {
	if s.Severity <= drift.Info {
		return false
	}
	t.counts[s.Kind]++
	one := t.of[s.ContainerID]
	if one == nil {
		t.makeRoom()
		one = &transient{}
		t.of[s.ContainerID] = one
	}
	// A stranger in one look is most often a container that starts or ends: that it comes
	// again is told, and is no finding.
	if one.looks == 0 || tied(s.Finding) && !s.since.Equal(one.look) {
		one.looks++
	}
	one.example, one.look, one.last = s.Finding, s.since, at
	one.seen |= s.Capabilities
	return one.looks > 1 && tied(s.Finding)
}

// makeRoom forgets the container of which least is to be told, where there are too many.
func (t *transients) makeRoom() {
	if len(t.of) >= maxTransients {
		ids := t.sorted()
		delete(t.of, ids[len(ids)-1])
	}
}

// sorted lists the containers: those with most looks first, then the latest.
func (t *transients) sorted() []string {
	return slices.SortedFunc(maps.Keys(t.of), func(a, b string) int {
		return cmp.Or(t.of[b].looks-t.of[a].looks, t.of[b].last.Compare(t.of[a].last), cmp.Compare(a, b))
	})
}

// pass forgets containers of which nothing was seen for long.
func (t *transients) pass(at time.Time) {
	maps.DeleteFunc(t.of, func(_ string, one *transient) bool { return at.Sub(one.last) >= remembered })
}

// repeats reports whether a container has shown something in two looks or more.
func (t *transients) repeats(containerID string) bool {
	one := t.of[containerID]
	return one != nil && one.looks > 1
}

// finding returns the finding about a container that repeats.
func (t *transients) finding(containerID string) drift.Finding {
	one := t.of[containerID]
	return drift.Transient(one.example, one.seen)
}

// limits says what was not confirmed.
func (t *transients) limits() (list []drift.Limit) {
	if len(t.of) == 0 {
		return nil
	}
	ids, looks := t.sorted(), 0
	for at, id := range ids {
		one := t.of[id]
		if at >= maxTold {
			looks += one.looks
			continue
		}
		list = append(list, drift.Limit{
			What:  fmt.Sprintf("what became of suspicions seen in one look only (%d): %s", one.looks, one.example.Label()),
			Why:   one.example.Message + "; it had ended, or given that up, before a second look, or nobody could look again",
			Blind: true, Code: drift.GapUnconfirmed, Object: drift.GapObject(one.example.Label()),
		})
	}
	if looks > 0 {
		list = append(list, drift.Limit{
			What: fmt.Sprintf("what became of suspicions seen in one look only (%d): %d more containers", looks, len(ids)-maxTold),
			Why:  "their processes had ended, or given up what they held, before a second look", Blind: true, Code: drift.GapUnconfirmed,
		})
	}
	return list
}
