package proc_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// followed is a container of the pictures, whose cgroup is named by its spec.
func followed(id string) drift.Container { return drift.Container{ID: id, CgroupPath: "/pods/" + id} }

func members(t testing.TB, fs *proc.FS) *proc.Members {
	t.Helper()
	m := fs.Members()
	t.Cleanup(func() {
		if err := m.Close(); err != nil || m.Open() != 0 {
			t.Errorf("%d descriptors, %v", m.Open(), err)
		}
	})
	return m
}

// changed says what changed: "A +10 +11 -12 ended".
func changed(t testing.TB, m *proc.Members) string {
	t.Helper()
	changes, err := m.Changes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, c := range changes {
		text := told(drift.Container{ID: c.ContainerID})
		for _, pid := range c.Appeared {
			text += fmt.Sprint("+", pid, " ")
		}
		for _, pid := range c.Gone {
			text += fmt.Sprint("-", pid, " ")
		}
		if c.Ended {
			text += "ended"
		}
		list = append(list, strings.TrimSpace(text))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func (p picture) remove(dir string) {
	p.t.Helper()
	if err := os.RemoveAll(filepath.Join(p.root, dir)); err != nil {
		p.t.Fatal(err)
	}
}

func TestMembers(t *testing.T) {
	for mode, hierarchy := range map[string]string{"v2": "", "v1": "pids/", "hybrid": "pids/"} {
		t.Run(mode, func(t *testing.T) {
			p := draw(t, mode)
			cgroup := func(dir string, pids ...int) { p.cgroup(hierarchy+"pods/"+dir, pids...) }
			remove := func(dir string) { p.remove("sys/fs/cgroup/" + hierarchy + "pods/" + dir) }
			cgroup(idA, 10, 11)
			cgroup(idB, 20)
			m := members(t, proc.New(p.root, proc.Options{}))
			a, b := followed(idA), followed(idB)
			if changed(t, m) != "" {
				t.Error("something changed before anything was followed")
			}
			limits := m.Follow([]drift.Container{a, b})
			if len(limits) != 0 {
				t.Errorf("limits %+v", limits)
			}
			for _, step := range []struct {
				what string
				do   func()
				want string
			}{
				{"whoever is there at first", func() {}, "A +10 +11, B +20"},
				{"nothing", func() {}, ""},
				{"the same, followed again", func() { m.Follow([]drift.Container{a, b}) }, ""},
				{"one joins", func() { cgroup(idA, 10, 11, 12) }, "A +12"},
				{"one leaves, two join, in no order and one twice", func() { cgroup(idA, 14, 10, 13, 12, 14) }, "A +13 +14 -11"},
				{"the same in another order", func() { cgroup(idA, 10, 12, 13, 14) }, ""},
				{"a cgroup inside", func() { cgroup(idA+"/inner", 15) }, "A +15"},
				{"one more, with another in it", func() { cgroup(idA+"/other/leaf", 16); cgroup(idA + "/other") }, "A +16"},
				{"one moves into it", func() { cgroup(idA, 10, 12, 13); cgroup(idA+"/other/leaf", 16, 14) }, ""},
				{"one moves out of it", func() { cgroup(idA, 10, 12, 13, 14); cgroup(idA+"/other/leaf", 16) }, ""},
				{"one goes while one comes", func() { remove(idA + "/inner"); cgroup(idA+"/new", 17) }, "A +17 -15"},
				{"a branch goes", func() { remove(idA + "/other") }, "A -16"},
				{"another container's turn", func() { cgroup(idB) }, "B -20"},
				{"empty is not gone", func() {}, ""},
				{"gone", func() { remove(idB) }, "B ended"},
				{"and not again", func() {}, ""},
				{"the runtime has not heard of it", func() {
					if limits := m.Follow([]drift.Container{a, b}); len(limits) != 0 {
						t.Errorf("limits %+v", limits)
					}
				}, ""},
				{"started again", func() { cgroup(idB, 21); m.Follow([]drift.Container{a, b}) }, "B +21"},
				{"gone with its processes", func() { remove(idA) }, "A -10 -12 -13 -14 -17 ended"},
				{"let go of", func() { m.Follow(nil); cgroup(idB, 22) }, ""},
			} {
				step.do()
				if got := changed(t, m); got != step.want {
					t.Errorf("%s: %q, want %q", step.what, got, step.want)
				}
			}
			if m.Open() != 0 {
				t.Errorf("%d descriptors are open for nobody", m.Open())
			}
		})
	}
}

func TestMembersKnowWhatASweepRead(t *testing.T) {
	p := draw(t, "v2")
	p.process(10, "default", "/elsewhere/cri-containerd-"+idA+".scope")
	p.cgroup("elsewhere/cri-containerd-"+idA+".scope", 10)
	p.process(20, "default", "/pods/"+idB)
	p.cgroup("pods/"+idB, 20)
	fs := proc.New(p.root, proc.Options{})
	m := members(t, fs)
	// A is not where its spec says, nobody gave B, and C has no cgroup.
	given := []drift.Container{followed(idA), followed(idC)}
	if limits := m.Follow(given); len(limits) != 1 || limits[0].Blind || !strings.Contains(limits[0].What, "2 containers") {
		t.Errorf("before a sweep: %+v", limits)
	}
	sweep, err := fs.Sweep(context.Background(), given)
	if err != nil {
		t.Fatal(err)
	}
	if limits := m.Follow(sweep.Containers); len(limits) != 1 || !strings.Contains(limits[0].What, idC) {
		t.Errorf("after a sweep: %+v", limits)
	}
	if got := changed(t, m); got != "" {
		t.Errorf("known processes: %q", got)
	}
	p.process(11, "default", "/elsewhere/cri-containerd-"+idA+".scope")
	p.cgroup("elsewhere/cri-containerd-"+idA+".scope", 11)
	p.cgroup("pods/"+idB, 20, 21)
	if got := changed(t, m); got != "A +11 -10, B +21" {
		t.Errorf("changed: %q", got)
	}
	// One that a sweep saw before Changes did; one that it saw and that is gone since.
	p.cgroup("elsewhere/cri-containerd-"+idA+".scope", 11, 12)
	sweep.Containers[0].Processes = []drift.Process{{PID: 12}, {PID: 13}}
	m.Follow(sweep.Containers)
	if got := changed(t, m); got != "A -13" {
		t.Errorf("read by a sweep meanwhile: %q", got)
	}
}

func TestMembersOfOneContainerInAnother(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("pods/"+idA, 10)
	p.cgroup("pods/" + idA + "/docker")
	p.cgroup("pods/"+idA+"/docker/x", 12)
	p.cgroup("pods/"+idA+"/docker/"+idB+"/leaf", 21)
	p.cgroup("pods/"+idA+"/docker/"+idB, 20)
	outer, inner := followed(idA), drift.Container{ID: idB, CgroupPath: "/pods/" + idA + "/docker/" + idB}
	twin := inner
	twin.ID = idC
	m := members(t, proc.New(p.root, proc.Options{}))
	for _, step := range []struct {
		follow []drift.Container
		want   string
	}{
		{[]drift.Container{outer}, "A +10 +12 +20 +21"},
		{[]drift.Container{outer, inner}, "A -20 -21, B +20 +21"},
		{[]drift.Container{outer, inner}, ""},
		{[]drift.Container{outer}, "A +20 +21"},
		{[]drift.Container{inner}, "B +20 +21"},
		{[]drift.Container{inner, outer}, "A +10 +12"},
	} {
		m.Follow(step.follow)
		if got := changed(t, m); got != step.want {
			t.Errorf("%d followed: %q, want %q", len(step.follow), got, step.want)
		}
	}
	if limits := m.Follow([]drift.Container{outer, inner, twin}); len(limits) != 1 || !strings.Contains(limits[0].What, idC) {
		t.Errorf("two specs name one cgroup: %+v", limits)
	}
	p.remove("sys/fs/cgroup/pods/" + idA + "/docker/" + idB)
	if got := changed(t, m); got != "B -20 -21 ended" {
		t.Errorf("the inner one ends: %q", got)
	}
	p.cgroup("pods/"+idA+"/docker/next", 13)
	if got := changed(t, m); got != "A +13" {
		t.Errorf("a cgroup in its place: %q", got)
	}
}

func pidsOf(processes []drift.Process) (pids []int) {
	for _, p := range processes {
		pids = append(pids, p.PID)
	}
	return pids
}

func TestMembersRead(t *testing.T) {
	p := draw(t, "v2")
	for _, pid := range []int{10, 11, 12, 13, 14} {
		p.process(pid, "default", "/pods/"+idA)
	}
	p.edit("proc/12/status", "S (sleeping)", "Z (zombie)")
	p.remove("proc/13")
	p.cgroup("pods/"+idA, 10, 12)
	p.cgroup("pods/"+idA+"/inner", 11)
	fs := proc.New(p.root, proc.Options{})
	m := members(t, fs)
	m.Follow([]drift.Container{followed(idA)})
	if got := changed(t, m); got != "A +10 +11 +12" {
		t.Fatal(got)
	}
	// 14 is another container's by now.
	read, vanished, err := m.Read(context.Background(), idA, []int{10, 11, 12, 14})
	if err != nil || vanished != 2 || !slices.Equal(pidsOf(read), []int{10, 11}) {
		t.Errorf("%v, %d vanished, %v", pidsOf(read), vanished, err)
	}
	want, err := fs.Process(10)
	if err != nil || read[0].StartTime != want.StartTime || read[0].Caps != want.Caps || read[0].Observation != drift.Observed || read[0].Age != want.Age {
		t.Errorf("%+v, want %+v, %v", read[0], want, err)
	}
	if got := changed(t, m); got != "" {
		t.Errorf("a zombie that is still listed appears again: %q", got)
	}
	// 13 is listed, and /proc does not show it.
	p.cgroup("pods/"+idA, 10, 12, 13)
	if got := changed(t, m); got != "A +13" {
		t.Error(got)
	}
	read, vanished, err = m.Read(context.Background(), idA, []int{13, 10})
	if !errors.Is(err, proc.ErrUnreadable) || vanished != 0 || !slices.Equal(pidsOf(read), []int{10}) {
		t.Errorf("%v, %d vanished, %v", pidsOf(read), vanished, err)
	}
	// Who had left when he was read is gone, and is told again when he is back.
	p.cgroup("pods/"+idA, 12)
	if read, vanished, err = m.Read(context.Background(), idA, []int{10}); len(read) != 0 || vanished != 1 || err != nil {
		t.Errorf("%v, %d vanished, %v", pidsOf(read), vanished, err)
	}
	p.cgroup("pods/"+idA, 10, 12)
	if got := changed(t, m); got != "A +10 -10 -13" {
		t.Error(got)
	}
	if read, vanished, err = m.Read(context.Background(), idB, []int{10}); len(read) != 0 || vanished != 1 || err != nil {
		t.Errorf("of a container that is not followed: %v, %d vanished, %v", pidsOf(read), vanished, err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, _, err = m.Read(ended, idA, []int{10})
	if _, failed := m.Changes(ended); !errors.Is(failed, context.Canceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", failed, err)
	}
}

// TestMembersFlood has one container fork more than one call tells: the rest comes
// with the next calls, each process once, and who ended before is counted.
func TestMembersFlood(t *testing.T) {
	for _, mode := range []string{"v2", "v1"} {
		for buffer, wantMissed := range map[int]int{
			4 << 10:  0, // 59,000 bytes in parts, so that the look at the end of the list is an old one
			64 << 10: 10,
		} {
			p := draw(t, mode)
			dir := map[string]string{"v2": "pods/", "v1": "pids/pods/"}[mode]
			many := make([]int, 10000)
			for i := range many {
				many[i] = 1000 + i
			}
			p.cgroup(dir+idA, many...)
			p.cgroup(dir+idB, 20)
			m := members(t, proc.New(p.root, proc.Options{}))
			m.Bound(100, 512, 512<<10, buffer)
			m.Follow([]drift.Container{followed(idA), followed(idB)})
			seen, behind, missed := map[int]bool{}, -1, 0
			for calls := 0; behind != 0; calls++ {
				if calls > 100 {
					t.Fatalf("%s: %d of them after %d calls, %d behind", mode, len(seen), calls, behind)
				}
				if calls == 17 {
					p.cgroup(dir+idA, many[:9990]...) // the last ten have to wait longest
					p.cgroup(dir+idB, 20, 21)
				}
				changes, err := m.Changes(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range changes {
					if c.ContainerID == idB {
						if calls != 0 && calls != 17 || len(c.Appeared) != 1 {
							t.Errorf("%s: call %d: %+v", mode, calls, c)
						}
						continue
					}
					if len(c.Appeared) > 512 || len(c.Gone) > 0 {
						t.Errorf("%s: call %d tells of %d and %d", mode, calls, len(c.Appeared), len(c.Gone))
					}
					for _, pid := range c.Appeared {
						if seen[pid] {
							t.Errorf("%s: %d is told twice", mode, pid)
						}
						seen[pid] = true
					}
					missed += c.Missed
					if calls > 17 {
						behind = c.Behind
					}
				}
			}
			if len(seen)+missed != len(many) || missed != wantMissed {
				t.Errorf("%s: %d told and %d missed of %d", mode, len(seen), missed, len(many))
			}
			p.cgroup(dir + idA) // all of them go
			for calls, gone := 0, 0; gone < len(seen); calls++ {
				changes, err := m.Changes(context.Background())
				if err != nil || calls > 100 {
					t.Fatal(calls, gone, err)
				}
				for _, c := range changes {
					gone += len(c.Gone)
				}
			}
		}
	}
}

func TestMembersTakeTurns(t *testing.T) {
	p := draw(t, "v2")
	var containers []drift.Container
	for i := range 20 {
		id := fmt.Sprintf("c%d", i)
		containers = append(containers, followed(id))
		p.cgroup("pods/"+id, 1000+i)
	}
	m := members(t, proc.New(p.root, proc.Options{}))
	m.Bound(1000, 512, 40, 4096) // eight lists of one pid each
	m.Follow(containers)
	var told []int
	for range 3 {
		changes, err := m.Changes(context.Background())
		if err != nil || len(changes) > 8 {
			t.Fatal(len(changes), err)
		}
		for _, c := range changes {
			told = append(told, c.Appeared...)
		}
	}
	slices.Sort(told)
	if len(slices.Compact(told)) != 20 {
		t.Errorf("told of %v", told)
	}
	if limits := m.Follow(containers); len(limits) != 1 || !strings.Contains(limits[0].Why, "take turns") {
		t.Errorf("limits %+v", limits)
	}
}

func TestMembersWithoutDescriptors(t *testing.T) {
	for _, mode := range []string{"v2", "v1"} {
		p := draw(t, mode)
		dir := map[string]string{"v2": "pods/", "v1": "pids/pods/"}[mode]
		p.cgroup(dir+idA, 10)
		p.cgroup(dir+idB, 20)
		m := members(t, proc.New(p.root, proc.Options{}))
		m.Bound(3, 512, 512<<10, 4096)
		limits := m.Follow([]drift.Container{followed(idA), followed(idB)})
		if len(limits) != 1 || limits[0].Blind || !strings.Contains(limits[0].Why, "RLIMIT_NOFILE") || !strings.Contains(limits[0].What, idB) || m.Open() > 3 {
			t.Errorf("%s: limits %+v, %d open", mode, limits, m.Open())
		}
		if got := changed(t, m); got != "A +10, B +20" {
			t.Error(mode, got)
		}
		p.cgroup(dir+idB, 21)
		p.cgroup(dir+idB+"/inner", 22)
		if got := changed(t, m); got != "B +21 +22 -20" {
			t.Error(mode, got)
		}
		p.remove("sys/fs/cgroup/" + dir + idB)
		if got := changed(t, m); got != "B -21 -22 ended" {
			t.Error(mode, got)
		}
	}
}

func TestMembersOfManyCgroups(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("pods/"+idA, 10)
	for i := range 600 {
		p.cgroup(fmt.Sprintf("pods/%s/c%d", idA, i), 1000+i)
	}
	m := members(t, proc.New(p.root, proc.Options{}))
	m.Follow([]drift.Container{followed(idA)})
	told := 0
	for changes := []proc.Change{{}}; len(changes) > 0; {
		var err error
		if changes, err = m.Changes(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			told += len(c.Appeared)
		}
	}
	if told != 601 {
		t.Fatalf("told of %d, want 601", told)
	}
	p.cgroup("pods/"+idA+"/c599", 5000)
	for calls := 1; ; calls++ {
		if got := changed(t, m); got == "A +5000 -1599" {
			break
		} else if got != "" || calls == 3 {
			t.Fatalf("after %d calls: %q", calls, got)
		}
	}
}

// TestMembersOfAHostileTree: one container with more cgroups than are followed takes
// neither all descriptors nor much of a call, and it is said.
func TestMembersOfAHostileTree(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("pods/"+idA, 10)
	p.cgroup("pods/"+idB, 20)
	for i := range 4200 {
		p.cgroup(fmt.Sprintf("pods/%s/c%d", idA, i))
	}
	m := members(t, proc.New(p.root, proc.Options{}))
	given := []drift.Container{followed(idA), followed(idB)}
	for range 2 {
		limits := m.Follow(given)
		if len(limits) != 2 || limits[0].Blind || !strings.Contains(limits[0].Why, "more than 4096 others") || !strings.Contains(limits[1].Why, "more than 256") || m.Open() > 520 {
			t.Errorf("limits %+v, %d open", limits, m.Open())
		}
		changed(t, m)
	}
	// What did not fit fits when others have gone.
	for i := range 4200 {
		p.remove(fmt.Sprintf("sys/fs/cgroup/pods/%s/c%d", idA, i))
	}
	for range 20 {
		changed(t, m)
	}
	p.cgroup("pods/"+idA+"/late", 11)
	limits := m.Follow(given)
	if got := changed(t, m); got != "A +11" || m.Open() > 6 {
		t.Errorf("%q, %d open, limits %+v", got, m.Open(), limits)
	}
	if limits := m.Follow(given); len(limits) != 0 {
		t.Errorf("limits %+v", limits)
	}
}

// TestMembersByAsking reads a node from within a pid namespace of its own.
func TestMembersByAsking(t *testing.T) {
	p := draw(t, "v2")
	p.write("proc/self/status", string(p.capture("default", "status")))
	p.cgroup("x/"+idA, 0, 0)
	p.cgroup("x/"+idB, 1)
	p.cgroup("x/reader", os.Getpid())
	p.write("proc/self/cgroup", "0::/\n")
	p.write("proc/1/cgroup", "0::/../../init.scope\n")
	p.process(10, "default", "/../"+idA)
	p.process(20, "default", "/../"+idB)
	p.process(40, "default", "/../../system.slice")
	a, b := drift.Container{ID: idA, CgroupPath: "/x/" + idA}, drift.Container{ID: idB, CgroupPath: "/x/" + idB}
	m := members(t, proc.New(p.root, proc.Options{}))
	limits := m.Follow([]drift.Container{a})
	if len(limits) != 1 || limits[0].Blind || !strings.Contains(limits[0].Why, "hostPID") {
		t.Errorf("limits %+v", limits)
	}
	moved := func(pid int, cgroup string) {
		p.write(fmt.Sprintf("proc/%d/cgroup", pid), "0::/../"+cgroup+"\n")
	}
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"at first", func() {}, "A +10"},
		{"nothing", func() {}, ""},
		{"a container that was not given before", func() { m.Follow([]drift.Container{a, b}) }, "B +20"},
		{"started outside", func() { p.process(11, "default", "/../../system.slice") }, ""},
		{"and moved in", func() { moved(11, idA+"/inner") }, "A +11"},
		{"one that a sweep has read", func() {
			p.process(12, "default", "/../"+idA)
			known := a
			known.Processes = []drift.Process{{PID: 12}}
			m.Follow([]drift.Container{known, b})
		}, ""},
		{"two end", func() { p.remove("proc/10"); p.remove("proc/12") }, "A -10 -12"},
		{"another has its number", func() { p.process(10, "default", "/../"+idB) }, "B +10"},
		{"the cgroup goes, and the process outlives it", func() { p.remove("sys/fs/cgroup/x/" + idB); p.remove("proc/10") }, "B -10"},
		{"the process goes too", func() { p.remove("proc/20") }, "B -20 ended"},
	} {
		step.do()
		if got := changed(t, m); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
	read, vanished, err := m.Read(context.Background(), idA, []int{11, 40})
	if err != nil || vanished != 1 || !slices.Equal(pidsOf(read), []int{11}) {
		t.Errorf("%v, %d vanished, %v", pidsOf(read), vanished, err)
	}
	// A reader that cannot find itself in the tree cannot make sense of the answers.
	p.remove("sys/fs/cgroup/x/reader")
	lost := members(t, proc.New(p.root, proc.Options{}))
	lost.Follow([]drift.Container{a})
	if got := changed(t, lost); got != "" {
		t.Error(got)
	}
	if limits := lost.Follow([]drift.Container{a}); len(limits) != 2 || !limits[1].Blind {
		t.Errorf("limits %+v", limits)
	}
}

// TestMembersByAskingUnderHidepid: who is hidden is not said to be gone, nor is who ends
// meanwhile, until it is seen that he has.
func TestMembersByAskingUnderHidepid(t *testing.T) {
	p := draw(t, "v2")
	p.write("proc/self/status", string(p.capture("default", "status")))
	p.cgroup("x/"+idA, 0, 0)
	p.cgroup("x/reader", os.Getpid())
	p.write("proc/self/cgroup", "0::/\n")
	p.write("proc/1/cgroup", "0::/../../init.scope\n")
	a := drift.Container{ID: idA, CgroupPath: "/x/" + idA}
	for _, pid := range []int{10, 11, 12} {
		p.process(pid, "default", "/../"+idA)
	}
	a.Processes = []drift.Process{{PID: 10}, {PID: 11}, {PID: 12}}
	m := members(t, proc.New(p.root, proc.Options{}))
	m.Follow([]drift.Container{a})
	move := func(from, to string) {
		if err := os.Rename(filepath.Join(p.root, from), filepath.Join(p.root, to)); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"at first", func() {}, ""},
		{"pid 1 and two more are hidden", func() { move("proc/1", "one"); move("proc/11", "eleven"); p.remove("proc/12") }, ""},
		{"another starts, in sight", func() { p.process(13, "default", "/../"+idA) }, "A +13"},
		{"they are seen again, but for the one that has ended", func() { move("one", "proc/1"); move("eleven", "proc/11") }, "A +11"},
		{"one ends in sight", func() { p.remove("proc/11") }, "A -11"},
		{"its container ends out of sight", func() {
			move("proc/1", "one")
			p.remove("proc/10")
			p.remove("proc/13")
			p.remove("sys/fs/cgroup/x/" + idA)
		}, "A -10 -13 ended"},
	} {
		step.do()
		if got := changed(t, m); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
}

func TestMembersByAskingAreBounded(t *testing.T) {
	p := draw(t, "v2")
	p.write("proc/self/status", string(p.capture("default", "status")))
	p.cgroup("x/" + idA)
	for pid := 1000; pid < 3500; pid++ {
		p.write(fmt.Sprintf("proc/%d/cgroup", pid), "0::/x/"+idA+"\n")
	}
	a := drift.Container{ID: idA, CgroupPath: "/x/" + idA}
	// Half of them are known: they are not gone before their turn comes.
	for pid := 2250; pid < 3500; pid++ {
		a.Processes = append(a.Processes, drift.Process{PID: pid})
	}
	m := members(t, proc.New(p.root, proc.Options{}))
	m.Follow([]drift.Container{a})
	told, quiet := 0, 0
	for quiet < 10 {
		changes, err := m.Changes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		quiet++
		for _, c := range changes {
			told += len(c.Appeared)
			if quiet = 0; len(c.Gone) > 0 || len(c.Appeared) > 512 {
				t.Fatalf("%d appeared, %d gone", len(c.Appeared), len(c.Gone))
			}
		}
	}
	if told != 1250 {
		t.Errorf("told of %d, want 1250", told)
	}
	if limits := m.Follow([]drift.Container{a}); len(limits) != 1 || !strings.Contains(limits[0].Why, "one look in 3") {
		t.Errorf("limits %+v", limits)
	}
}

func TestMembersSayWhatTheyCannotSee(t *testing.T) {
	p := draw(t, "v2")
	p.write("sys/fs/cgroup/pods/"+idA+"/cgroup.procs", "10\nx\n")
	p.write("sys/fs/cgroup/pods/"+idB+"/cgroup.procs", "0\n0\n")
	m := members(t, proc.New(p.root, proc.Options{}))
	given := []drift.Container{followed(idA), followed(idB), {ID: idC, Observation: drift.UnsupportedRuntime}}
	m.Follow(given)
	if got := changed(t, m); got != "" {
		t.Error(got)
	}
	limits := m.Follow(given)
	if len(limits) != 2 || !strings.Contains(limits[0].Why, "no pid") || !strings.Contains(limits[1].Why, "2 of its processes have no number") {
		t.Errorf("limits %+v", limits)
	}
	p.remove("sys/fs/cgroup")
	if limits := members(t, proc.New(p.root, proc.Options{})).Follow(given); len(limits) != 1 || !limits[0].Blind {
		t.Errorf("limits %+v", limits)
	}
}

// unifiedRoot returns a root below which the live /proc and the live cgroup v2 tree
// are, and where in the file system that tree is.
func unifiedRoot(t testing.TB) (root, tree string) {
	t.Helper()
	for _, tree = range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(tree, "cgroup.controllers")); err != nil {
			continue
		}
		root = t.TempDir()
		err := errors.Join(os.MkdirAll(filepath.Join(root, "sys/fs"), 0o755),
			os.Symlink("/proc", filepath.Join(root, "proc")), os.Symlink(tree, filepath.Join(root, "sys/fs/cgroup")))
		if err != nil {
			t.Fatal(err)
		}
		return root, tree
	}
	t.Skip("no cgroup v2 hierarchy is mounted")
	return "", ""
}

// hierarchies are the live trees: the one that sweeps look at, and cgroup v2.
func hierarchies(t testing.TB) map[string][2]string {
	t.Helper()
	found := map[string][2]string{}
	if _, err := os.Stat("/sys/fs/cgroup/pids/cgroup.procs"); err == nil {
		found["v1"] = [2]string{"/", "/sys/fs/cgroup/pids"}
	}
	for _, tree := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(tree, "cgroup.controllers")); err == nil {
			root, tree := unifiedRoot(t)
			found["v2"] = [2]string{root, tree}
			break
		}
	}
	return found
}

// made makes a live cgroup, which is empty again when the test ends.
func made(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		cannot(t, "no cgroup can be made", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return dir
}

func TestLiveMembers(t *testing.T) {
	needRoot(t)
	for version, where := range hierarchies(t) {
		t.Run(version, func(t *testing.T) {
			root, tree := where[0], where[1]
			name := fmt.Sprintf("capdrift-members-%d", os.Getpid())
			dir := made(t, filepath.Join(tree, name))
			x, _ := actor(t, "sleep", nil)
			y, _ := actor(t, "sleep", nil)
			a, b := x.Process.Pid, y.Process.Pid
			t.Cleanup(func() { enter(t, tree, a); enter(t, tree, b) })
			m := members(t, proc.New(root, proc.Options{}))
			given := []drift.Container{{ID: "a", CgroupPath: "/" + name}}
			if limits := m.Follow(given); len(limits) != 0 {
				t.Errorf("limits %+v", limits)
			}
			inner := filepath.Join(dir, "inner")
			step := func(what, want string, do func()) {
				t.Helper()
				do()
				if got := changed(t, m); got != want {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
			}
			step("empty", "", func() {})
			step("one joins", fmt.Sprintf("a +%d", a), func() { enter(t, dir, a) })
			// At once, though a list that was read so short a time ago is kept on v1.
			step("one more", fmt.Sprintf("a +%d", b), func() { enter(t, dir, b) })
			step("one leaves", fmt.Sprintf("a -%d", b), func() { enter(t, tree, b) })
			step("into a new cgroup inside", fmt.Sprintf("a +%d", b), func() { made(t, inner); enter(t, inner, b) })
			read, vanished, err := m.Read(context.Background(), "a", []int{a, b, os.Getpid()})
			if err != nil || vanished != 1 || !slices.Equal(pidsOf(read), []int{a, b}) {
				t.Errorf("%v, %d vanished, %v", pidsOf(read), vanished, err)
			}
			step("moves", "", func() { enter(t, inner, a) })
			step("the cgroup inside goes", fmt.Sprintf("a -%d", b), func() { enter(t, dir, a); enter(t, tree, b); removeEmpty(t, inner) })
			step("all leave", fmt.Sprintf("a -%d", a), func() { enter(t, tree, a) })
			if allocated := testing.AllocsPerRun(100, func() { changed(t, m) }); allocated != 0 {
				t.Errorf("%v allocations when nothing changes", allocated)
			}
			step("removed, while it is kept open", "a ended", func() { removeEmpty(t, dir) })
			step("and not again", "", func() {})
		})
	}
}

func removeEmpty(t *testing.T, dir string) {
	t.Helper()
	waitEmpty(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

// TestLiveMembersOfAThreadedCgroup: its processes are listed by the one above.
func TestLiveMembersOfAThreadedCgroup(t *testing.T) {
	needRoot(t)
	root, tree := unifiedRoot(t)
	name := fmt.Sprintf("capdrift-threaded-%d", os.Getpid())
	dir := made(t, filepath.Join(tree, name))
	inner := made(t, filepath.Join(dir, "inner"))
	x, _ := actor(t, "sleep", nil)
	pid := x.Process.Pid
	t.Cleanup(func() { enter(t, tree, pid) })
	m := members(t, proc.New(root, proc.Options{}))
	m.Follow([]drift.Container{{ID: "a", CgroupPath: "/" + name}})
	enter(t, inner, pid)
	if got := changed(t, m); got != fmt.Sprintf("a +%d", pid) {
		t.Error(got)
	}
	enter(t, dir, pid)
	waitEmpty(t, inner)
	if err := os.WriteFile(filepath.Join(inner, "cgroup.type"), []byte("threaded"), 0); err != nil {
		cannot(t, "no cgroup can be made a threaded one", err)
	}
	if err := os.WriteFile(filepath.Join(inner, "cgroup.threads"), []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}
	if got := changed(t, m); got != "" {
		t.Error(got)
	}
	if limits := m.Follow([]drift.Container{{ID: "a", CgroupPath: "/" + name}}); len(limits) != 0 {
		t.Errorf("limits %+v", limits)
	}
	if limits := m.Follow([]drift.Container{{ID: "b", CgroupPath: "/" + name + "/inner"}}); len(limits) != 1 || !strings.Contains(limits[0].Why, "threaded") {
		t.Errorf("limits %+v", limits)
	}
}

// TestLiveMembersChurn follows a container that forks all the time, from several
// goroutines: whatever is read of a process is read of the container's.
func TestLiveMembersChurn(t *testing.T) {
	needRoot(t)
	for version, where := range hierarchies(t) {
		t.Run(version, func(t *testing.T) {
			root, tree := where[0], where[1]
			name := fmt.Sprintf("capdrift-members-churn-%d", os.Getpid())
			dir := made(t, filepath.Join(tree, name))
			churn := exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs" && echo ready && while :; do /bin/true; done`, "sh", dir)
			out, err := churn.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			churn.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			if err := churn.Start(); err != nil {
				t.Fatal(err)
			}
			shell := churn.Process.Pid
			t.Cleanup(func() {
				enter(t, tree, shell)
				_ = churn.Process.Kill()
				_ = churn.Wait()
				waitEmpty(t, dir)
			})
			if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			m := members(t, proc.New(root, proc.Options{}))
			given := []drift.Container{{ID: "a", CgroupPath: "/" + name}}
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					for range 50 {
						if limits := m.Follow(given); len(limits) != 0 {
							t.Errorf("limits %+v", limits)
						}
						changes, err := m.Changes(context.Background())
						if err != nil {
							t.Error(err)
						}
						for _, c := range changes {
							read, _, err := m.Read(context.Background(), c.ContainerID, c.Appeared)
							if err != nil || c.Ended || c.Missed > 0 {
								t.Errorf("%+v, %v", c, err)
							}
							for _, p := range read {
								if p.PID != shell && p.ParentPID != shell {
									t.Errorf("process %d (%s) of parent %d is not the container's", p.PID, p.Name, p.ParentPID)
								}
							}
						}
					}
				})
			}
			all.Wait()
			if m.Follow(nil); m.Open() != 0 {
				t.Errorf("%d descriptors are open for nobody", m.Open())
			}
		})
	}
}
