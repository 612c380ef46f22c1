package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// membership enters which processes came and went in the known containers.
func (l *Loop) membership(ctx context.Context) {
	s := &l.state
	moved, err := l.Members.Changes(ctx)
	if ctx.Err() != nil {
		return
	}
	changes := l.component("members", err)
	for _, m := range moved {
		s.missed += m.Missed
		changes = append(changes, l.step(ctx, m.ContainerID, m.Gone, m.Appeared)...)
	}
	changes = append(changes, s.ledger.pass(l.Now())...)
	ruled, judged := l.rule(false)
	if changes = append(changes, ruled...); len(moved) > 0 || len(changes) > 0 || judged {
		l.publish(changes)
	}
}

// step enters that processes of a container have ended, and reads others: those that were
// not there before, and those that are to be looked at again.
func (l *Loop) step(ctx context.Context, id string, gone, pids []int) []Change {
	s := &l.state
	if s.containers[id] == nil || len(gone)+len(pids) == 0 {
		return nil
	}
	before := s.containers[id].Processes
	var changes []Change
	var read []drift.Process
	if len(pids) > 0 {
		var err error
		read, err = l.Members.Read(ctx, id, pids)
		if err != nil {
			s.unread[id] = err // until a sweep reads everybody
		}
		changes = l.readable()
	}
	next := *s.containers[id] // a copy: views that were published share the old one
	next.Processes = moved(before, gone, read)
	s.containers[id] = &next
	drift.Remember(before, next.Processes)
	drift.Settle(s.node, s.runtime, &next)
	s.rules.mark(id)
	if s.runtime != nil {
		changes = append(changes, s.ledger.take(l.part(&next, before, read))...)
	}
	l.rereadLater(id, startingAmong(next.Processes, read))
	return changes
}

// startingAmong lists those of the processes that were read that a runtime is starting.
func startingAmong(settled, read []drift.Process) (pids []int) {
	fresh := make(map[int]bool, len(read))
	for _, p := range read {
		fresh[p.PID] = true
	}
	for _, p := range settled {
		if fresh[p.PID] && p.Observation == drift.Starting {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// moved returns a container's processes without those that are gone and with those that
// were read. Who is known keeps his place, so that who is told of first is the same.
func moved(list []drift.Process, gone []int, read []drift.Process) []drift.Process {
	left := make(map[int]bool, len(gone))
	for _, pid := range gone {
		left[pid] = true
	}
	next := make([]drift.Process, 0, len(list)+len(read))
	for _, p := range list {
		if !left[p.PID] || p.Elsewhere != "" { // which only a sweep finds
			next = append(next, p)
		}
	}
	places := make(map[int]int, len(next))
	for i, p := range next {
		places[p.PID] = i
	}
	read = slices.Clone(read)
	keepThreads(list, read)
	for _, p := range read {
		if at, known := places[p.PID]; known {
			next[at] = p
		} else {
			next = append(next, p)
		}
	}
	return next
}

// part is the sample of a look at some processes of a container, of which before are
// those that it had.
func (l *Loop) part(c *drift.Container, before, read []drift.Process) sample {
	s := &l.state
	fresh := make(map[int]bool, len(read))
	seen := make([]int, 0, len(read))
	for _, p := range read {
		fresh[p.PID] = true
		seen = append(seen, p.PID)
	}
	bare := *c
	if processes := withoutThreads(c.Processes); processes != nil {
		bare.Processes = processes // threads were not read
	}
	part := sample{at: l.Now(), found: l.except(s.expectations.Fold(drift.CompareProcesses(s.node, bare, seen))), partial: true}
	part.over = func(f drift.Finding) string {
		if f.ContainerID != c.ID || !tied(f) {
			return ""
		}
		switch p := processOf(c.Processes, f); {
		case p == nil && processOf(before, f) != nil:
			return ResolvedEnded
		case p != nil && fresh[p.PID] && f.TID == 0 && compared(p):
			return ResolvedExplained
		}
		return ""
	}
	// Others may show what the process showed that is named.
	if slices.ContainsFunc(s.ledger.current(), func(f drift.Finding) bool { return part.over(f) != "" }) {
		part.kept = l.except(s.expectations.Fold(drift.Compare(s.node, *c)))
	}
	return part
}

// readable enters whether the processes of every container can be read. Another text about
// one that cannot is told only so often: which process it names is the pod's doing.
func (l *Loop) readable() []Change {
	var err error
	for _, id := range slices.Sorted(maps.Keys(l.state.unread)) {
		err = l.state.unread[id]
		break
	}
	before, known := l.state.components["read"]
	if err != nil && known && !before.OK && l.Now().Sub(before.Since) < damping {
		return nil
	}
	return l.component("read", err)
}

// rereads are processes to be looked at again, by container.
type rereads []reread

type reread struct {
	at          time.Time
	containerID string
	pids        []int
}

// maxReread is how many processes of one container are read again before it is another
// one's turn.
const maxReread = 64

// add has processes of a container read again, but for those that wait already.
func (r *rereads) add(at time.Time, containerID string, pids []int) {
	waiting := make(map[int]bool)
	for _, one := range *r {
		for _, pid := range one.pids {
			waiting[pid] = waiting[pid] || one.containerID == containerID
		}
	}
	pids = slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return waiting[pid] })
	if len(pids) > 0 {
		*r = append(*r, reread{at, containerID, pids})
	}
}

// next is when something is to be read again; false for never.
func (r rereads) next() (at time.Time, waits bool) {
	for i, one := range r {
		if i == 0 || one.at.Before(at) {
			at = one.at
		}
	}
	return at, len(r) > 0
}

// due takes out what is to be read now: of each container so many, the rest is due at once
// and comes after the others.
func (r *rereads) due(now time.Time) (due []reread) {
	var wait rereads
	for _, one := range *r {
		if now.Before(one.at) {
			wait = append(wait, one)
			continue
		}
		if len(one.pids) > maxReread {
			wait = append(wait, reread{now, one.containerID, one.pids[maxReread:]})
			one.pids = one.pids[:maxReread]
		}
		due = append(due, one)
	}
	*r = wait
	return due
}

// again takes the second looks that are due.
func (l *Loop) again(ctx context.Context) (changes []Change) {
	for _, one := range l.state.rereads.due(l.Now()) {
		changes = append(changes, l.step(ctx, one.containerID, nil, one.pids)...)
	}
	ruled, _ := l.rule(false)
	return append(changes, ruled...)
}

// rereadLater marks processes of a container for a second look: those given, and those
// that are suspected.
func (l *Loop) rereadLater(containerID string, pids []int) {
	for _, suspect := range l.state.ledger.pending() {
		if l.state.holder(suspect.Finding) == containerID && l.state.rereadable(suspect.Finding) && !slices.Contains(pids, suspect.PID) {
			pids = append(pids, suspect.PID)
		}
	}
	l.state.rereads.add(l.Now().Add(l.Cadence.Confirm), containerID, pids)
}

// rereadSuspects marks all suspected processes for a second look.
func (l *Loop) rereadSuspects() {
	suspected := make(map[string]bool)
	for _, suspect := range l.state.ledger.pending() {
		suspected[l.state.holder(suspect.Finding)] = true
	}
	for _, id := range slices.Sorted(maps.Keys(suspected)) {
		l.rereadLater(id, nil)
	}
}

// rereadStages marks all processes that a runtime is starting for a second look: nobody
// tells when one has executed its program, and the next sweep is far.
func (l *Loop) rereadStages() {
	containers := l.state.containers
	for _, id := range slices.Sorted(maps.Keys(containers)) {
		if pids := startingAmong(containers[id].Processes, containers[id].Processes); len(pids) > 0 {
			l.rereadLater(id, pids)
		}
	}
}
