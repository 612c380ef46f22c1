package proc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// clocked is a node on which time is what a test says.
type clocked struct {
	picture
	fs     *proc.FS
	costs  map[int]time.Duration // of a pid or tid
	uptime int
	reads  []int // what was read last, in order
}

// clock draws a node without containers.
func clock(t *testing.T, o proc.Options) *clocked {
	c := &clocked{picture: draw(t, "v2"), costs: map[int]time.Duration{}, uptime: 3000}
	o.Readers = 1
	c.fs = proc.New(c.root, o)
	c.fs.Costs(func(id int) time.Duration {
		if c.costs[id] > 0 {
			c.reads = append(c.reads, id)
		}
		return c.costs[id]
	})
	return c
}

// crowd draws processes of a container, all children of the first, at a cost each.
func (c *clocked) crowd(id string, cost time.Duration, from, to int) drift.Container {
	var pids []int
	for pid := from; pid < to; pid++ {
		c.process(pid, "default", "/x/"+id)
		c.parent(pid, from)
		c.costs[pid] = cost
		pids = append(pids, pid)
	}
	c.cgroup("x/"+id, pids...)
	return drift.Container{ID: id, Name: "app", Pod: &drift.Pod{Namespace: "shop", Name: "web"}, CgroupPath: "/x/" + id}
}

// parent gives a process a parent.
func (c *clocked) parent(pid, parent int) {
	c.t.Helper()
	stat := strings.Fields(string(c.capture("default", "stat")))
	c.write(fmt.Sprintf("proc/%d/stat", pid), fmt.Sprintf("%d (sleep) S %d %s\n", pid, parent, strings.Join(stat[4:], " ")))
}

// look sweeps as long after the last one as the agent does.
func (c *clocked) look(given ...drift.Container) drift.Sweep {
	c.t.Helper()
	c.uptime += 15
	c.write("proc/uptime", fmt.Sprintf("%d.00 5000.00\n", c.uptime))
	c.reads = nil
	for i := range given { // as a runtime tells of them
		given[i].Observation, given[i].Reason = "", ""
	}
	sweep, err := c.fs.Sweep(context.Background(), given)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range sweep.Containers {
		for p := range sweep.Containers[i].Processes {
			sweep.Containers[i].Processes[p].Observation = drift.Observed
		}
	}
	return sweep
}

// TestOneCostlyContainerDelaysNoOther: what a costly container does not get read is told,
// by its name, and nothing else is missed, in either pid namespace of the reader.
func TestOneCostlyContainerDelaysNoOther(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		t.Run(fmt.Sprintf("foreign=%v", foreign), func(t *testing.T) { oneCostlyContainer(t, foreign) })
	}
}

func oneCostlyContainer(t *testing.T, foreign bool) {
	c := clock(t, proc.Options{Time: 600 * time.Millisecond, LeadersOnly: true})
	if foreign {
		c.write("proc/self/status", string(c.capture("default", "status")))
	}
	costly := c.crowd(idA, 16*time.Millisecond, 100, 180)
	cheap := c.crowd(idB, 50*time.Microsecond, 1000, 1100)
	for look := range 5 {
		sweep := c.look(costly, cheap)
		a, b := sweep.Containers[0], sweep.Containers[1]
		if b.Overdue != nil || b.Observation != drift.Observed || len(b.Processes) != 100 {
			t.Fatalf("look %d: the cheap one: %s, %d processes, %+v", look, b.Observation, len(b.Processes), b.Overdue)
		}
		if a.Overdue == nil || a.Overdue.Took > 616*time.Millisecond || a.Overdue.Read < 20 || a.Overdue.Read+len(a.Overdue.PIDs) != 80 {
			t.Fatalf("look %d: the costly one: %+v", look, a.Overdue)
		}
		if len(sweep.Limits) != 1 || !sweep.Limits[0].Blind || sweep.Limits[0].What != "what some processes of shop/web/app hold now" {
			t.Fatalf("look %d: limits: %+v", look, sweep.Limits)
		}
		if look > 0 && slices.Index(c.reads, 1000) > slices.Index(c.reads, 100+a.Overdue.Read) && slices.Index(c.reads, 1000) > 0 {
			t.Errorf("look %d: the costly one was read first: %v", look, c.reads)
		}
		costly, cheap = a, b
	}
	if costly.Observation != drift.Observed || costly.Overdue.Unread != 0 || len(costly.Processes) != 80 {
		t.Errorf("after five looks: %s, %+v, %d processes", costly.Observation, costly.Overdue, len(costly.Processes))
	}
}

func TestWhatIsNeverReadIsPartial(t *testing.T) {
	c := clock(t, proc.Options{Time: 100 * time.Millisecond, LeadersOnly: true})
	a := c.look(c.crowd(idA, 10*time.Millisecond, 100, 150)).Containers[0]
	if a.Observation != drift.Partial || len(a.Processes) != a.Overdue.Read || a.Overdue.Unread != 50-a.Overdue.Read {
		t.Errorf("%s, %d processes, %+v", a.Observation, len(a.Processes), a.Overdue)
	}
	if want := fmt.Sprintf("reading %d of its 50 processes took %dms of processor time", a.Overdue.Read, 10*a.Overdue.Read); !strings.Contains(a.Reason, want) {
		t.Errorf("%q, want %q", a.Reason, want)
	}
}

// TestCostlyContainersShareEvenly: many costly ones do not starve one that needs its part.
func TestCostlyContainersShareEvenly(t *testing.T) {
	c := clock(t, proc.Options{Time: 800 * time.Millisecond, LeadersOnly: true})
	given := []drift.Container{c.crowd(idA, 20*time.Millisecond, 100, 150), c.crowd(idB, 20*time.Millisecond, 200, 250), c.crowd(idC, 20*time.Millisecond, 300, 302)}
	for look := range 4 {
		sweep := c.look(given...)
		a, b, small := sweep.Containers[0].Overdue, sweep.Containers[1].Overdue, sweep.Containers[2].Overdue
		if small != nil {
			t.Errorf("look %d: the one that costs 40ms is overdue: %+v", look, small)
		}
		if a == nil || b == nil || a.Took+b.Took > 840*time.Millisecond || max(a.Took, b.Took) > 2*min(a.Took, b.Took) {
			t.Errorf("look %d: %+v, %+v", look, a, b)
		}
		given = sweep.Containers
	}
	// What one does not need is another's.
	c.cgroup("x/"+idB, 200, 201, 202)
	for pid := 203; pid < 250; pid++ {
		c.remove(fmt.Sprintf("proc/%d", pid))
	}
	if a := c.look(given...).Containers[0].Overdue; a == nil || a.Took < 400*time.Millisecond {
		t.Errorf("one of them is left: %+v", a)
	}
}

// TestManySweepsReadNoMore: of a costly container one sweep after the other reads as much as
// fewer sweeps in the same time would.
func TestManySweepsReadNoMore(t *testing.T) {
	c := clock(t, proc.Options{Time: 600 * time.Millisecond, LeadersOnly: true})
	given := c.look(c.crowd(idA, 16*time.Millisecond, 100, 180)).Containers
	for range 5 {
		c.uptime -= 14 // a second after the last one
		given = c.look(given...).Containers
		if a := given[0].Overdue; a == nil || a.Took > time.Second/33+16*time.Millisecond {
			t.Errorf("it took %+v", a)
		}
	}
}

// TestEveryProcessIsReadInTime: 800 processes that cost 16 ms each are all read within ten
// minutes of sweeps each 15 seconds, over and over.
func TestEveryProcessIsReadInTime(t *testing.T) {
	if testing.Short() {
		t.Skip("it draws 800 processes")
	}
	c := clock(t, proc.Options{Time: 600 * time.Millisecond, LeadersOnly: true})
	a := c.crowd(idA, 16*time.Millisecond, 1000, 1800)
	oldest, last := time.Duration(0), map[int]int{}
	for look := range 90 {
		a = c.look(a).Containers[0]
		oldest = max(oldest, a.Overdue.Oldest)
		for _, pid := range c.reads {
			last[pid] = look
		}
	}
	if oldest > 10*time.Minute || oldest == 0 {
		t.Errorf("one was not read for %v", oldest)
	}
	for pid := 1000; pid < 1800; pid++ {
		if last[pid] < 90-40 {
			t.Fatalf("process %d was read in look %d last", pid, last[pid])
		}
	}
	if want := 89 * 15 * time.Second; a.Overdue.For != want {
		t.Errorf("overdue for %v, want %v", a.Overdue.For, want)
	}
	if found := drift.Compare(drift.Node{}, a); len(found) != 1 || found[0].Kind != drift.CostlyToRead || found[0].Severity != drift.High {
		t.Errorf("found %+v", found)
	}
}

// TestUrgentProcessesAreReadFirst: in a costly container, those that came from outside,
// then those whose sets changed, then those that came from inside, then the others.
func TestUrgentProcessesAreReadFirst(t *testing.T) {
	c := clock(t, proc.Options{Time: 200 * time.Millisecond, LeadersOnly: true})
	held := map[int]capdecode.Sets{}
	c.fs.Holds(func(pid int) (capdecode.Sets, bool) { sets, ok := held[pid]; return sets, ok })
	a := c.crowd(idA, 30*time.Millisecond, 100, 140)
	for range 10 {
		a = c.look(a).Containers[0]
	}
	if a.Overdue.Unread > 0 {
		t.Fatalf("%+v", a.Overdue)
	}
	c.crowd(idA, 30*time.Millisecond, 100, 145)
	c.parent(143, 1)                         // put there from outside
	held[135] = capdecode.Sets{Effective: 1} // it holds another set than it did
	a = c.look(a).Containers[0]
	if want := []int{143, 135, 140, 141, 142, 144}; len(c.reads) < len(want) || !slices.Equal(c.reads[:len(want)], want) {
		t.Errorf("read in the order %v, want %v first", c.reads, want)
	}
	for _, pid := range []int{143, 135} {
		if a.Stale(pid) {
			t.Errorf("%d is stale", pid)
		}
	}
	if pid := a.Overdue.PIDs[0]; !a.Stale(pid) || a.Stale(1) {
		t.Errorf("%d is not stale, or everybody is", pid)
	}
}

// TestAStageIsNotKept: what a runtime's stage held says nothing of the program after it.
func TestAStageIsNotKept(t *testing.T) {
	c := clock(t, proc.Options{Time: 100 * time.Millisecond, LeadersOnly: true})
	a := c.crowd(idA, 40*time.Millisecond, 100, 110)
	for range 6 {
		a = c.look(a).Containers[0]
	}
	next := c.look(a).Containers[0]
	stage := c.reads[0] // which is the last one that would be read again
	for i := range next.Processes {
		if next.Processes[i].PID == stage {
			next.Processes[i].Observation = drift.Starting
		}
	}
	if next = c.look(next).Containers[0]; c.reads[0] != stage {
		t.Errorf("read first: %v, want the stage %d", c.reads, stage)
	}
}

// TestCostlyThreads: threads are read as long as a container's part of the time lasts, and
// in the end all are.
func TestCostlyThreads(t *testing.T) {
	c := clock(t, proc.Options{Time: 120 * time.Millisecond, Threads: -1})
	a, b := c.crowd(idA, time.Microsecond, 100, 101), c.crowd(idB, time.Microsecond, 200, 201)
	for pid, cost := range map[int]time.Duration{100: 10 * time.Millisecond, 200: time.Microsecond} {
		c.edit(fmt.Sprintf("proc/%d/status", pid), "Threads:\t1", "Threads:\t31")
		c.thread(pid, pid, "Pid", "Pid")
		for tid := 1000 * pid; tid < 1000*pid+30; tid++ {
			c.thread(pid, tid, "NoNewPrivs:\t0", "NoNewPrivs:\t1")
			c.costs[tid] = cost
		}
	}
	seen := map[int]bool{}
	for look := range 30 {
		sweep := c.look(a, b)
		if got := len(sweep.Containers[1].Processes[0].Threads); got != 30 {
			t.Fatalf("look %d: %d threads of the cheap one", look, got)
		}
		threads := sweep.Containers[0].Processes[0].Threads
		if len(threads) < 5 || len(threads) > 11 || sweep.Threads.Observed != 30+len(threads) || sweep.Threads.Skipped != 30-len(threads) {
			t.Fatalf("look %d: %d threads of the costly one, %+v", look, len(threads), sweep.Threads)
		}
		if n := len(sweep.Limits); n != 2 || !strings.Contains(sweep.Limits[1].What, "threads of shop/web/app") {
			t.Fatalf("look %d: %+v", look, sweep.Limits)
		}
		for _, thread := range threads {
			seen[thread.TID] = true
		}
	}
	if len(seen) != 30 {
		t.Errorf("30 looks read %d of 30 threads", len(seen))
	}
}

// TestNewProcessesAreReadInTime: one container whose new processes cost much has those read
// first that came from outside; the others wait, and those of another container do not.
func TestNewProcessesAreReadInTime(t *testing.T) {
	c := clock(t, proc.Options{Time: 600 * time.Millisecond, LeadersOnly: true})
	a, b := c.crowd(idA, 20*time.Millisecond, 100, 101), c.crowd(idB, 20*time.Millisecond, 200, 201)
	m := members(t, c.fs)
	given := c.look(a, b).Containers
	m.Follow(given)
	changed(t, m)
	c.crowd(idA, 20*time.Millisecond, 100, 150)
	c.parent(149, 1)
	c.crowd(idB, 20*time.Millisecond, 200, 202)
	read := func() (list map[string][]int) {
		t.Helper()
		changes, err := m.Changes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		list = map[string][]int{}
		for _, change := range changes {
			c.reads = nil
			processes, vanished, err := m.Read(context.Background(), change.ContainerID, change.Appeared)
			if err != nil || vanished != 0 || len(processes) != len(c.reads) {
				t.Fatalf("%d of %d processes, %d vanished, %v", len(processes), len(c.reads), vanished, err)
			}
			list[change.ContainerID] = c.reads
		}
		return list
	}
	first := read()
	if got := first[idA]; len(got) < 5 || len(got) > 12 || !slices.Contains(got[:2], 149) {
		t.Errorf("read of the costly one: %v, want 149 soon and some more", got)
	}
	if got := first[idB]; !slices.Equal(got, []int{201}) {
		t.Errorf("read of the other: %v", got)
	}
	if again := read(); len(again[idA]) > 1 {
		t.Errorf("read at once again: %v", again)
	}
	// Who comes from outside waits only for twice as much.
	c.crowd(idA, 20*time.Millisecond, 100, 152)
	c.parent(149, 1)
	c.parent(151, 1)
	if got := read()[idA]; !slices.Equal(got, []int{151}) {
		t.Errorf("read in debt: %v, want 151", got)
	}
	c.crowd(idA, 20*time.Millisecond, 100, 180)
	for pid := 152; pid < 180; pid++ {
		c.parent(pid, 1)
	}
	if got := len(read()[idA]); got == 0 || got > 12 {
		t.Errorf("%d from outside were read in debt", got)
	}
	if got := changed(t, m); got != "" {
		t.Errorf("nobody of %s can be read now", got)
	}
	seen := map[int]bool{}
	for range 200 {
		c.uptime += 10
		c.write("proc/uptime", fmt.Sprintf("%d.00 5000.00\n", c.uptime))
		for _, pid := range read()[idA] {
			seen[pid] = true
		}
	}
	if len(seen) < 35 {
		t.Errorf("in 2000 s, which pay for 20 s, %d more were read", len(seen))
	}
}

// TestLiveGroups: processes that have 65,536 groups are read in turns, as long as the time
// lasts, and each is read; what reading them costs is measured.
func TestLiveGroups(t *testing.T) {
	needRoot(t)
	groups := make([]uint32, 1<<16)
	for i := range groups {
		groups[i] = 4_000_000_000 + uint32(i)
	}
	var pids []int
	for range 6 {
		c, _ := actor(t, "sleep", &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: groups}})
		pids = append(pids, c.Process.Pid)
	}
	fs := listed(t, pids...).With(proc.Options{LeadersOnly: true, Readers: 1, Time: time.Millisecond})
	given, read := drift.Container{ID: idA, CgroupPath: "/x"}, map[int]bool{}
	for n := 0; len(read) < len(pids); n++ {
		if n == len(pids) {
			t.Fatalf("%d sweeps read %d of %d processes", n, len(read), len(pids))
		}
		sweep, err := fs.Sweep(context.Background(), []drift.Container{given})
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(sweep.Containers, func(c drift.Container) bool { return c.ID == idA })
		o := sweep.Containers[at].Overdue
		if o == nil || o.Took < time.Millisecond || o.Read == 0 {
			t.Fatalf("overdue: %+v", o)
		}
		given.Processes = sweep.Containers[at].Processes
		for i := range given.Processes {
			p := &given.Processes[i]
			p.Observation = drift.Observed
			read[p.PID] = true
		}
	}
}

// TestTheFirstSweepMayTakeLonger: it knows nobody.
func TestTheFirstSweepMayTakeLonger(t *testing.T) {
	c := clock(t, proc.Options{Time: 100 * time.Millisecond, FirstTime: time.Second})
	given := c.crowd(idA, 10*time.Millisecond, 100, 150)
	first := c.look(given).Containers[0]
	if first.Overdue != nil || len(first.Processes) != 50 {
		t.Errorf("the first one: %d processes, %+v", len(first.Processes), first.Overdue)
	}
}
