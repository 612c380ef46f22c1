package proc

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// threads reads up to most of a process's threads beside its leader (all when
// negative) and keeps those in p whose credentials are not the leader's. Which
// ones are read when there are more turns with every call that passes another turn.
// Once they have cost as much processor time as limit the others are skipped; there is
// no such limit when it is 0. cost is what it cost in all.
//
// Between the listing and the last read, stat stays open and tells in the end
// whether it has been the same process all along, as in [reader.process].
func (r *reader) threads(p *drift.Process, most int, turn uint32, limit time.Duration) (read, skipped int, cost time.Duration, err error) {
	others := p.ThreadCount - 1
	if others <= 0 {
		return 0, 0, 0, nil
	}
	if most == 0 {
		return 0, others, 0, nil
	}
	defer func() { cost += r.spent(p.PID) }()
	file, err := open(r.proc, r.of(p.PID, "stat"), 0)
	if err != nil {
		return 0, 0, cost, outcome(r.of(p.PID, "stat"), err)
	}
	defer unix.Close(file)
	dir, err := open(r.proc, r.of(p.PID, "task"), unix.O_DIRECTORY)
	if err != nil {
		return 0, others, cost, outcome(r.of(p.PID, "task"), err)
	}
	defer unix.Close(dir)
	tids, err := r.pids(dir)
	if err != nil {
		return 0, others, cost, outcome(r.of(p.PID, "task"), err)
	}
	tids = slices.DeleteFunc(tids, func(tid int) bool { return tid == p.PID })
	if most > 0 && len(tids) > most {
		skipped = len(tids) - most
		start := int(turn%uint32(len(tids))) * most % len(tids)
		tids = append(tids[start:], tids[:start]...)[:most]
	}
	// Of which limit cuts off the end begin elsewhere each time, evenly spread.
	tids = append(tids[spread(turn, len(tids)):], tids[:spread(turn, len(tids))]...)
	var differing []drift.Thread
	for at, tid := range tids {
		if limit > 0 && cost >= limit {
			skipped += len(tids) - at
			break
		}
		s, err := r.thread(dir, p.PID, tid)
		cost += r.spent(tid)
		switch {
		case errors.Is(err, ErrVanished):
			continue // a thread that ended holds nothing
		case err != nil:
			return read, skipped + len(tids) - at, cost, err
		}
		read++
		t := drift.Thread{TID: tid, UID: s.UID[1], UIDs: s.uids(), NoNewPrivileges: s.noNewPrivileges(), Seccomp: s.seccomp(), Caps: s.Caps}
		if t.Caps != p.Caps || t.UIDs != p.UIDs || !same(t.NoNewPrivileges, p.NoNewPrivileges) || !same(t.Seccomp, p.Seccomp) {
			t.Name = s.Comm()
			differing = append(differing, t)
		}
	}
	text, err := r.read(file)
	if err != nil {
		return 0, 0, cost, readError(r.of(p.PID, "stat"), err)
	}
	now, err := parseStat(text)
	if err != nil {
		return 0, 0, cost, locate(err, r.of(p.PID, "stat"))
	}
	if now.start != p.StartTime {
		return 0, 0, cost, ErrVanished
	}
	slices.SortFunc(differing, func(a, b drift.Thread) int { return a.TID - b.TID })
	p.Threads, p.ThreadsRead = differing, skipped == 0
	return read, skipped, cost, nil
}

// spread returns a number below n for each turn such that those of any turns in a row
// lie far apart: multiples of the golden ratio, as in Knuth's multiplicative hashing.
func spread(turn uint32, n int) int {
	return int(uint64(turn*2654435769) * uint64(n) >> 32)
}

// threadsExplained is threads and, where one of them needs an explanation that the leader
// does not, where the process came from. The threads are then read once more: a stage of the
// runtime, whose threads hold what the runtime does, may have executed its program since.
func (r *reader) threadsExplained(l *look, c *drift.Container, p *drift.Process, most int, turn uint32, limit time.Duration) (read, skipped int, cost time.Duration, err error) {
	read, skipped, cost, err = r.threads(p, most, turn, limit)
	if err != nil || p.Lineage != nil || !l.needsOrigin(c, p) {
		return read, skipped, cost, err
	}
	explained, _, err := r.withOrigin(l, c, *p, l.needsOrigin)
	cost += r.spent(p.PID)
	if err != nil {
		return 0, 0, cost, err
	}
	*p = explained
	first := cost
	read, skipped, cost, err = r.threads(p, most, turn, limit)
	return read, skipped, first + cost, err
}

// thread reads task/TID/status.
func (r *reader) thread(dir, pid, tid int) (Status, error) {
	file := strconv.Itoa(pid) + "/task/" + r.of(tid, "status")
	text, err := r.file(dir, r.of(tid, "status"))
	if err != nil {
		return Status{}, readError(file, err)
	}
	s, err := ParseStatus(text)
	if err != nil {
		return Status{}, locate(err, file)
	}
	if s.Tgid != pid || s.ended() {
		return Status{}, ErrVanished
	}
	return s, nil
}

// survivor returns the directory of a thread of a process whose leader has ended and which
// lives on, "PID/task/TID"; "" where it is no such process. A few of the threads are looked at, for a process chooses how many it has.
func (r *reader) survivor(process string) string {
	s, err := r.statusOf(process)
	if err != nil || !s.ended() || s.Threads <= 1 {
		return ""
	}
	dir, err := open(r.proc, process+"/task", unix.O_DIRECTORY)
	if err != nil {
		return ""
	}
	defer unix.Close(dir)
	tids, err := r.somePIDs(dir)
	if err != nil {
		return ""
	}
	const most = 4
	for _, tid := range tids[:min(len(tids), most+1)] { // the leader among them
		thread := process + "/task/" + strconv.Itoa(tid)
		if s, err := r.statusOf(thread); err == nil && !s.ended() {
			return thread
		}
	}
	return ""
}

func same[T comparable](a, b *T) bool {
	return a == nil || b == nil || *a == *b
}
