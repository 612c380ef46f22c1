package proc

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// ordinaryCost is what reading a process is expected to cost of which nothing is known.
const ordinaryCost = 50 * time.Microsecond

// costlyPart is the part of the time since the last sweep that processes of containers may
// take, all together, that a sweep could not read in its time: a list of containers that
// changes often makes many sweeps. 800 processes at 16 ms each are read within seven minutes.
const costlyPart = 33

// budget shares processor time out among groups, one after another. Each gets an equal
// part of what is left, so that what the cheap ones leave is for the costly ones, which
// come last. No group gets less than its part of the whole.
type budget struct {
	mu     sync.Mutex
	left   time.Duration
	groups int // that have no share yet
}

// share is one group's part of a budget.
type share struct {
	limit   time.Duration // 0 until the group's turn has come
	used    time.Duration
	pending int // reads that are not done
}

// newBudget shares out the given time, or without a bound where it is 0.
func newBudget(total time.Duration, groups int) *budget {
	if total <= 0 {
		total = math.MaxInt64
	}
	return &budget{left: total, groups: groups}
}

// open returns how much of a share is left, at least 1 ns at its group's turn so that
// each group gets something read, and for how many reads.
func (b *budget) open(s *share) (left time.Duration, pending int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.limit == 0 {
		s.limit = max(1, b.left/time.Duration(max(1, b.groups)))
		b.groups--
		b.left -= s.limit
	}
	return s.limit - s.used, max(1, s.pending)
}

// charge enters what a read cost, and gives back what the last one leaves.
func (b *budget) charge(s *share, cost time.Duration, done int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.used += cost
	if s.pending -= done; s.pending == 0 && done > 0 {
		b.left += s.limit - s.used
	}
}

// account is what a sweep remembers of a group for the next one.
type account struct {
	each  time.Duration // what reading one of its processes costs on average; 0 where none was
	swept time.Duration // when, by the node's uptime
	// late is when each process was read last or, where it never was, first listed.
	// It is nil unless some were not read for want of time, for the first time in a row
	// at since.
	late  map[int]time.Duration
	since time.Duration
}

// key names a group across sweeps. It is "" for the processes that no group claims.
func (g *group) key() string {
	if g.root == "" {
		return ""
	}
	return g.hierarchy.at(g.root)
}

// last returns the processes that a group was given with, by pid, but for those that
// were a runtime's stage: what is read of those soon means nothing.
func (g *group) last() map[int]*drift.Process {
	if g.byPID == nil {
		g.byPID = make(map[int]*drift.Process, len(g.before))
		for i := range g.before {
			if p := &g.before[i]; p.Observation == drift.Observed {
				g.byPID[p.PID] = p
			}
		}
	}
	return g.byPID
}

// readInTime reads what the groups have to read, as far as their time allows. First all
// are read in the order of their pids, the cheapest groups first by what they cost last
// time. Of those that this leaves unfinished, and of those that could not be finished
// last time, the most urgent processes are read next.
func (s *sweep) readInTime(groups []*group) error {
	groups = slices.DeleteFunc(groups, func(g *group) bool { return len(g.readings) == 0 })
	expected := func(g *group) time.Duration {
		return time.Duration(len(g.readings)) * cmp.Or(s.accounts[g.key()].each, ordinaryCost)
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return cmp.Compare(expected(a), expected(b)) })
	var first []*reading
	n := 0
	for _, g := range groups {
		if s.accounts[g.key()].late != nil {
			continue
		}
		n++
		g.share.pending = len(g.readings)
		for i := range g.readings {
			first = append(first, &g.readings[i])
		}
	}
	total := s.time
	b := newBudget(total/2, n)
	err := s.parallel(len(first), func(r *reader, i int) {
		o := first[i]
		var cost time.Duration
		if left, _ := b.open(&o.group.share); left > 0 {
			cost = s.readOne(r, o)
		}
		b.charge(&o.group.share, cost, 1)
	})
	if err != nil {
		return err
	}
	for _, g := range groups {
		g.cost = g.share.used
		total -= g.cost
	}
	unfinished := slices.DeleteFunc(groups, func(g *group) bool {
		return !slices.ContainsFunc(g.readings, func(o reading) bool { return !o.done })
	})
	if s.time > 0 {
		for _, g := range unfinished {
			if last := s.accounts[g.key()]; last.late != nil {
				total = min(total, (s.look.uptime-last.swept)/costlyPart)
			}
		}
		total = max(1, total)
	}
	b = newBudget(total, len(unfinished))
	return s.parallel(len(unfinished), func(r *reader, i int) {
		g := unfinished[i]
		g.share = share{pending: 1}
		left, _ := b.open(&g.share)
		queue, cost := s.urgent(r, g, left/4)
		for n, o := range queue {
			if n > 0 && cost >= left || s.ctx.Err() != nil {
				break
			}
			cost += s.readOne(r, o)
		}
		g.cost += cost
		b.charge(&g.share, cost, 1)
	})
}

// readOne reads one process and returns what that cost.
func (s *sweep) readOne(r *reader, o *reading) time.Duration {
	o.done = true
	if o.group == s.others {
		s.readOutsider(r, o.pid, o)
	} else {
		*o.process, o.born, o.err = r.explained(&s.look, &o.group.container, o.pid)
		o.placed = o.born.cgroup != "" && o.group.hierarchy == s.main && o.group.has(o.born.cgroup)
	}
	return r.spent(o.pid)
}

// urgent returns what is left to be read of a group, the most urgent first:
//
//   - who came since the last sweep and whose parent is none of the group's: who is
//     put into a container from outside has such a one;
//   - whose sets are not those that were read last;
//   - who else came;
//   - all others, those that were read the longest ago first.
//
// The parent is told by stat and the sets by capget(2), which both cost the same
// whatever a process's groups are. Finding out costs no more than most; who could not
// be asked counts as if there were nothing special about him.
func (s *sweep) urgent(r *reader, g *group, most time.Duration) (queue []*reading, cost time.Duration) {
	before, last := g.last(), s.accounts[g.key()]
	rank := make(map[*reading]int, len(g.readings))
	for i := range g.readings {
		o := &g.readings[i]
		if o.done {
			continue
		}
		queue = append(queue, o)
		known := before[o.pid]
		switch asked := cost < most && g != s.others; {
		case known == nil && asked && !has(g.pids, r.parentInStat(o.pid)):
			rank[o] = 0
		case known != nil && asked && s.changed(o.pid, known.Caps):
			rank[o] = 1
		case known == nil:
			rank[o] = 2
		default:
			rank[o] = 3
		}
		cost += r.spent(0)
	}
	slices.SortStableFunc(queue, func(a, b *reading) int {
		return cmp.Or(rank[a]-rank[b], cmp.Compare(last.late[a.pid], last.late[b.pid]))
	})
	return queue, cost
}

// changed reports whether a process holds other sets than those, as far as that can
// be told without reading its status. It is no evidence, as the pid may have been given
// to another process.
func (s *sweep) changed(pid int, caps capdecode.Sets) bool {
	if s.held == nil {
		return false
	}
	now, ok := s.held(pid)
	return ok && (now.Effective != caps.Effective || now.Permitted != caps.Permitted || now.Inheritable != caps.Inheritable)
}

// heldBy returns the effective, permitted and inheritable set of a process of the
// caller's pid namespace. Any process may ask for any other's (security/commoncap.c
// cap_capget).
func heldBy(pid int) (sets capdecode.Sets, ok bool) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(pid)}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return sets, false
	}
	both := func(low, high uint32) capdecode.Set { return capdecode.Set(uint64(high)<<32 | uint64(low)) }
	sets.Effective = both(data[0].Effective, data[1].Effective)
	sets.Permitted = both(data[0].Permitted, data[1].Permitted)
	sets.Inheritable = both(data[0].Inheritable, data[1].Inheritable)
	return sets, true
}

// late enters a process that was not read for want of time. What was read of it before
// is told again.
func (s *sweep) late(g *group, pid int) {
	if g.overdue == nil {
		g.overdue = &drift.Overdue{}
	}
	g.overdue.PIDs = append(g.overdue.PIDs, pid)
	known := g.last()[pid]
	if known == nil {
		g.overdue.Unread++
		return
	}
	p := *known
	p.Age = age(s.look.uptime, p.StartTime)
	g.processes = append(g.processes, p)
	if born, ok := s.look.births.of(pid); ok {
		s.births = append(s.births, born)
	}
}

// settle returns a group's account after its processes were read, and completes what is
// told of those that are overdue.
func (s *sweep) settle(g *group) account {
	now := s.look.uptime
	last, known := s.accounts[g.key()]
	a := account{each: last.each, swept: now}
	late := 0
	if g.overdue != nil {
		late = len(g.overdue.PIDs)
	}
	if read := len(g.readings) - late; read > 0 {
		a.each = g.cost / time.Duration(read)
	}
	switch {
	case g.overdue == nil:
		return a
	case !known:
		last.swept = now
	}
	if a.since = last.since; last.late == nil {
		a.since = now
	}
	a.late = make(map[int]time.Duration, len(g.readings))
	for i := range g.readings {
		a.late[g.readings[i].pid] = now
	}
	o := g.overdue
	for _, pid := range o.PIDs {
		at, ok := last.late[pid]
		switch {
		case ok:
		case g.last()[pid] != nil:
			at = last.swept
		default:
			at = now
		}
		a.late[pid] = at
		o.Oldest = max(o.Oldest, now-at)
	}
	o.For, o.Read, o.Took = now-a.since, len(g.readings)-late, g.cost
	return a
}

// settleAccounts does so for all groups.
func (s *sweep) settleAccounts() map[string]account {
	accounts := make(map[string]account, len(s.groups)+1)
	for _, g := range s.groups {
		accounts[g.key()] = s.settle(g)
	}
	accounts[""] = s.settle(s.others)
	return accounts
}

// blindIn says what there was no time to read of a container.
func (s *sweep) blindIn(g *group, what, why string) {
	s.limits = append(s.limits, drift.Limit{What: what, Why: why, Blind: true, Code: drift.GapOverdue, Object: drift.GapObject(g.container.Label())})
}

// nameOverdue names the containers of which not everything was read for want of time.
func (s *sweep) nameOverdue(groups []*group) {
	const most = 16 // are named
	n := 0
	for _, g := range groups {
		if g.overdue == nil && g.lateThreads == 0 {
			continue
		}
		if n++; n > most {
			continue
		}
		if g.overdue != nil {
			s.blindIn(g, "what some processes of "+g.container.Label()+" hold now", g.overdue.String())
		}
		if g.lateThreads > 0 {
			s.blindIn(g, fmt.Sprintf("%d threads of %s", g.lateThreads, g.container.Label()),
				fmt.Sprintf("reading its other threads took %v of processor time, which is its part of one look", g.share.used.Round(time.Millisecond)))
		}
	}
	if n > most {
		s.blind(drift.GapOverdue, fmt.Sprintf("what some processes of %d more containers hold now", n-most), "reading them takes more processor time than one look has")
	}
	if o := s.others.overdue; o != nil {
		s.blind(drift.GapOverdue, "whether some processes in no known container are in one", o.String())
	}
}

// parentInStat returns a process's parent by its stat, 0 when that cannot be read.
func (r *reader) parentInStat(pid int) (parent int) {
	text, err := r.file(r.proc, r.of(pid, "stat"))
	if err != nil {
		return 0
	}
	// After the name, which may hold anything, come the state and the parent.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 || !number(fields[1], &parent) {
		return 0
	}
	return parent
}
