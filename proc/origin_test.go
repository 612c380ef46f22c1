package proc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// The mounts at the roots of the node, of the two containers, and of nobody else.
const (
	mountNode   = 21
	mountA      = 501
	mountB      = 601
	mountNobody = 701
)

// person is a process of a picture.
type person struct {
	pid, parent int
	name        string
	cgroup      string
	mount       int
	inner       int  // the pid in the pid namespace below; 0 in the node's own
	everything  bool // it holds all capabilities
	forked      bool
	exiting     bool
}

// person puts one into the picture.
func (p picture) person(who person) {
	p.t.Helper()
	p.process(who.pid, "default", who.cgroup)
	dir := fmt.Sprintf("proc/%d/", who.pid)
	p.edit(dir+"status", "PPid:\t21505", fmt.Sprintf("PPid:\t%d", who.parent))
	p.edit(dir+"status", "Name:\tsleep", "Name:\t"+who.name)
	if who.inner == 0 {
		p.edit(dir+"status", fmt.Sprintf("NSpid:\t%d\t1", who.pid), fmt.Sprintf("NSpid:\t%d", who.pid))
	} else {
		p.edit(dir+"status", fmt.Sprintf("NSpid:\t%d\t1", who.pid), fmt.Sprintf("NSpid:\t%d\t%d", who.pid, who.inner))
	}
	if who.everything {
		for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
			p.edit(dir+"status", set+":\t00000000a80425fb", set+":\t000001ffffffffff")
		}
	}
	if who.forked {
		p.edit(dir+"stat", " 4194560 ", " 4194624 ") // 0x400140
	}
	if who.exiting {
		p.edit(dir+"stat", " 4194560 ", " 4194564 ") // 0x400104
	}
	p.edit(dir+"stat", " 277437 ", fmt.Sprintf(" %d ", 200000+who.pid))
	p.write(dir+"mountinfo", fmt.Sprintf("%d 1 0:%d / / rw - overlay overlay rw\n%d %[1]d 0:40 / /proc rw - proc proc rw\n", who.mount, who.mount, who.mount+1))
}

// twoPods draws a node with two pods, their shims, and a runtime that is about to exec.
func twoPods(t *testing.T) (picture, []drift.Container) {
	p := draw(t, "v2")
	p.write("proc/1/mountinfo", fmt.Sprintf("%d 1 254:0 / / rw - ext4 /dev/vda rw\n", mountNode))
	for _, who := range []person{
		{pid: 80, parent: 1, name: "containerd-shim", cgroup: "/system.slice/containerd.service", mount: mountNode, everything: true},
		{pid: 81, parent: 1, name: "containerd-shim", cgroup: "/system.slice/containerd.service", mount: mountNode, everything: true},
		{pid: 90, parent: 80, name: "runc", cgroup: "/system.slice/containerd.service", mount: mountNode, everything: true},
		{pid: 100, parent: 80, name: "app", cgroup: "/kubepods/podA/" + idA, mount: mountA, inner: 1},
		{pid: 200, parent: 81, name: "app", cgroup: "/kubepods/podB/" + idB, mount: mountB, inner: 1},
	} {
		p.person(who)
	}
	declared := func(id, pod string, pid int) drift.Container {
		held := capdecode.Set(0xa80425fb)
		return drift.Container{
			ID: id, InitPID: pid, CgroupPath: "/kubepods/" + pod + "/" + id, Managed: new(true), Pod: &drift.Pod{Name: pod},
			Declared: drift.Declared{OCI: &drift.OCI{Sets: capdecode.Sets{Bounding: held, Permitted: held, Effective: held}}},
		}
	}
	return p, []drift.Container{declared(idA, "podA", 100), declared(idB, "podB", 200)}
}

func TestOrigins(t *testing.T) {
	inA := "/kubepods/podA/" + idA
	for name, row := range map[string]struct {
		who  person
		want string // "origin parent outside|inside|- forked"
	}{
		"what holds no more than declared is not asked": {person{pid: 101, parent: 100, cgroup: inA, mount: mountA, inner: 2}, ""},
		"a stage of the runtime":                        {person{pid: 101, parent: 90, cgroup: inA, mount: mountA, inner: 2, everything: true, forked: true}, "A runc outside forked"},
		"a program that runc exec started":              {person{pid: 101, parent: 80, cgroup: inA, mount: mountA, inner: 2, everything: true}, "A containerd-shim outside"},
		"the same in a mount namespace of its own":      {person{pid: 101, parent: 80, cgroup: inA, mount: mountNobody, inner: 2, everything: true}, "A containerd-shim outside"},
		"a child of the container's first process":      {person{pid: 101, parent: 100, cgroup: inA, mount: mountA, inner: 2, everything: true}, "A app inside"},
		"a child of another container, moved here":      {person{pid: 101, parent: 200, cgroup: inA, mount: mountNobody, inner: 2, everything: true}, "B app -"},
		"one that another's first process adopted":      {person{pid: 101, parent: 200, cgroup: inA, mount: mountA, inner: 2, everything: true}, "A app -"},
		"an orphan that sees another's mounts":          {person{pid: 101, parent: 1, cgroup: inA, mount: mountB, everything: true}, "B sleep outside"},
		"an orphan of another's shim":                   {person{pid: 101, parent: 81, cgroup: inA, mount: mountNobody, everything: true}, "B containerd-shim outside"},
		"an orphan that sees nobody's mounts":           {person{pid: 101, parent: 1, cgroup: inA, mount: mountNobody, everything: true}, " sleep outside"},
		"a process of the node that was moved here":     {person{pid: 101, parent: 1, cgroup: inA, mount: mountNode, everything: true}, " sleep outside"},
	} {
		t.Run(name, func(t *testing.T) {
			p, containers := twoPods(t)
			row.who.name = "x"
			p.person(row.who)
			p.cgroup("kubepods/podA/"+idA, 100, 101)
			p.cgroup("kubepods/podB/"+idB, 200)
			var seen []drift.Process
			for _, c := range p.sweep(proc.Options{}, containers...).Containers {
				seen = append(seen, c.Processes...)
			}
			at := slices.IndexFunc(seen, func(p drift.Process) bool { return p.PID == 101 })
			if got := origin(seen[at]); got != row.want {
				t.Errorf("a sweep: %q, want %q", got, row.want)
			}

			m := proc.New(p.root, proc.Options{}).Members()
			defer m.Close()
			m.Follow(containers)
			read, _, err := m.Read(context.Background(), idA, []int{101})
			if err != nil || len(read) != 1 {
				t.Fatalf("read %v, %v", read, err)
			}
			if got := origin(read[0]); got != row.want {
				t.Errorf("a member: %q, want %q", got, row.want)
			}
		})
	}
}

// origin is what the tests compare of a lineage.
func origin(p drift.Process) string {
	l := p.Lineage
	if l == nil {
		return ""
	}
	from := map[string]string{idA: "A", idB: "B"}[l.Origin]
	if len(l.Ancestors) == 0 {
		return from + " nobody"
	}
	where := "-"
	switch parent := l.Ancestors[0]; {
	case parent.Outside:
		where = "outside"
	case parent.Container:
		where = "inside"
	}
	text := fmt.Sprintf("%s %s %s", from, l.Ancestors[0].Name, where)
	if p.Forked {
		text += " forked"
	}
	return text
}

// TestSharedMountsTellNobodyApart: a container that may enter others' mount namespaces is in
// that of A. An intruder in A, and one who joined those mounts from the node, are A's.
func TestSharedMountsTellNobodyApart(t *testing.T) {
	session := "/user.slice/session-7.scope"
	for _, first := range []int{0, 1} {
		p, containers := twoPods(t)
		p.cgroup("kubepods/podA/"+idA, 100, 101)
		p.cgroup("kubepods/podB/"+idB, 200)
		p.person(person{pid: 200, parent: 81, name: "app", cgroup: "/kubepods/podB/" + idB, mount: mountA, inner: 1})
		p.person(person{pid: 101, parent: 80, name: "x", cgroup: "/kubepods/podA/" + idA, mount: mountA, inner: 2, everything: true})
		p.person(person{pid: 50, parent: 1, name: "x", cgroup: session, mount: mountA, everything: true})
		containers[1].Declared.OCI.Bounding |= 1 << 21
		var got []string
		for _, c := range p.sweep(proc.Options{}, containers[first], containers[1-first]).Containers {
			for _, p := range c.Processes {
				got = append(got, fmt.Sprintf("%s %d", c.Pod.Name, p.PID))
			}
		}
		slices.Sort(got)
		if want := []string{"podA 100", "podA 101", "podA 50", "podB 200"}; !slices.Equal(got, want) {
			t.Errorf("read %q, want %q", got, want)
		}
	}
}

// TestGiveBack: who is in another container's cgroup is with the one that it came from.
func TestGiveBack(t *testing.T) {
	for name, row := range map[string]struct {
		who  person
		want string // of A, whose cgroup lists it, and of B
	}{
		"a child of another's first process, holding no more than allowed": {person{pid: 101, parent: 200, mount: mountB, inner: 2}, "A 100, B 101@ 200"},
		"the same, holding everything":                                     {person{pid: 101, parent: 200, mount: mountB, inner: 2, everything: true}, "A 100, B 101@ 200"},
		"an orphan that sees another's mounts":                             {person{pid: 101, parent: 1, mount: mountB}, "A 100, B 101@ 200"},
		"an orphan that another's first process adopted":                   {person{pid: 101, parent: 200, mount: mountA, inner: 3}, "A 100 101, B 200"},
		"an exec":                             {person{pid: 101, parent: 80, mount: mountA, inner: 2}, "A 100 101, B 200"},
		"a child of its own":                  {person{pid: 101, parent: 100, mount: mountNobody, inner: 2}, "A 100 101, B 200"},
		"an orphan that sees nobody's mounts": {person{pid: 101, parent: 1, mount: mountNobody}, "A 100 101, B 200"},
	} {
		p, containers := twoPods(t)
		row.who.name, row.who.cgroup = "x", containers[0].CgroupPath
		p.person(row.who)
		p.cgroup("kubepods/podA/"+idA, 100, 101)
		p.cgroup("kubepods/podB/"+idB, 200)
		fs := proc.New(p.root, proc.Options{})
		sweep, err := fs.Sweep(context.Background(), containers)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, c := range sweep.Containers {
			text := []string{"A", "B"}[i]
			for _, p := range c.Processes {
				text += fmt.Sprintf(" %d", p.PID)
				if p.Elsewhere != "" {
					text += "@"
				}
			}
			got = append(got, text)
		}
		if told := strings.Join(got, ", "); told != row.want {
			t.Errorf("%s: told %q, want %q", name, told, row.want)
		}
		m := fs.Members()
		m.Follow(sweep.Containers)
		if changes, err := m.Changes(context.Background()); err != nil || len(changes) > 0 {
			t.Errorf("%s: who follows them is told %+v, %v", name, changes, err)
		}
		_ = m.Close()
	}
}

// TestPodsMayShareProcesses: the first process of one container of a pod adopts the orphans of
// another, as with shareProcessNamespace and with kubectl debug --target.
func TestPodsMayShareProcesses(t *testing.T) {
	for _, pods := range []string{"the same pod", "two pods"} {
		p, containers := twoPods(t)
		p.person(person{pid: 101, parent: 200, name: "x", mount: mountNobody, inner: 3, everything: true, cgroup: containers[0].CgroupPath})
		p.cgroup("kubepods/podA/"+idA, 100, 101)
		p.cgroup("kubepods/podB/"+idB, 200)
		want := idB
		if pods == "the same pod" {
			containers[1].Pod, want = containers[0].Pod, idA
		}
		for _, c := range p.sweep(proc.Options{}, containers...).Containers {
			if there := slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.PID == 101 }); there != (c.ID == want) {
				t.Errorf("%s: it is with %.4s: %v", pods, c.ID, there)
			}
		}
	}
}

// TestOutsiders: processes in no container's cgroup that are a container's all the same.
func TestOutsiders(t *testing.T) {
	session := "/user.slice/session-7.scope"
	for name, row := range map[string]struct {
		who  []person
		want []string
	}{
		"a daemon of the node":                                        {[]person{{pid: 50, parent: 1, cgroup: "/system.slice/x.service", mount: mountNode, everything: true}}, []string{"A 100", "B 200"}},
		"a daemon with mounts of its own":                             {[]person{{pid: 50, parent: 1, cgroup: "/system.slice/x.service", mount: mountNobody, everything: true}}, []string{"A 100", "B 200"}},
		"joined the mounts from a session":                            {[]person{{pid: 50, parent: 1, cgroup: session, mount: mountA, everything: true}}, []string{"A 50@" + session + " 100", "B 200"}},
		"joined mounts and pids":                                      {[]person{{pid: 50, parent: 1, cgroup: session, mount: mountA, inner: 7, everything: true}}, []string{"A 50@" + session + " 100", "B 200"}},
		"a child that left for the root":                              {[]person{{pid: 250, parent: 200, cgroup: "/", mount: mountNode}}, []string{"A 100", "B 200 250@/"}},
		"and its own child":                                           {[]person{{pid: 250, parent: 200, cgroup: "/", mount: mountNobody}, {pid: 251, parent: 250, cgroup: "/", mount: mountNobody}}, []string{"A 100", "B 200 250@/ 251@/"}},
		"joined the pids alone":                                       {[]person{{pid: 50, parent: 1, cgroup: session, mount: mountNode, inner: 7, everything: true}}, []string{"A 100", "B 200", session + " joined one of 2 50"}},
		"a process of a container that is about to end, on cgroup v1": {[]person{{pid: 50, parent: 80, cgroup: "/", mount: mountNode, inner: 7, exiting: true}}, []string{"A 100", "B 200"}},
		"the same where there are other namespaces":                   {[]person{{pid: 50, parent: 1, cgroup: session, mount: mountNode, inner: 7}, {pid: 60, parent: 1, cgroup: "/machine", mount: mountNode, inner: 1}}, []string{"A 100", "B 200", "/machine 60", session + " 50"}},
		"a stage before the list shows it":                            {[]person{{pid: 50, parent: 90, cgroup: "/kubepods/podA/" + idC, mount: mountNode, inner: 1, everything: true, forked: true}}, []string{"A 100", "B 200", "C of podA 50"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, containers := twoPods(t)
			p.cgroup("kubepods/podA/"+idA, 100)
			p.cgroup("kubepods/podB/"+idB, 200)
			for _, who := range row.who {
				who.name = "x"
				p.person(who)
				if strings.HasPrefix(who.cgroup, "/kubepods") {
					p.cgroup(who.cgroup, who.pid)
				}
			}
			var got []string
			for _, c := range p.sweep(proc.Options{}, containers...).Containers {
				text := c.ID
				if short := map[string]string{idA: "A", idB: "B", idC: "C"}[c.ID]; short != "" {
					text = short
				}
				if !*c.Managed && c.Pod != nil {
					text += " of " + c.Pod.Name
				}
				if len(c.MayHaveJoined) > 0 {
					text += fmt.Sprintf(" joined one of %d", len(c.MayHaveJoined))
				}
				for _, p := range c.Processes {
					text += fmt.Sprintf(" %d", p.PID)
					if p.Elsewhere != "" {
						text += "@" + p.Elsewhere
					}
				}
				got = append(got, text)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("told %q, want %q", got, row.want)
			}
		})
	}
}

// TestNewcomers: a process that starts its successor and ends while others are read is in no
// list, and its successor is read all the same, in either pid namespace of the reader.
func TestNewcomers(t *testing.T) {
	for ends, row := range map[string]struct {
		end  func(t *testing.T, p picture)
		read bool // its successor
	}{
		"it does not end": {func(*testing.T, picture) {}, false},
		"it is gone": {func(t *testing.T, p picture) {
			if err := os.RemoveAll(filepath.Join(p.root, "proc/101")); err != nil {
				t.Fatal(err)
			}
		}, true},
		"nobody has waited for it": {func(_ *testing.T, p picture) { p.edit("proc/101/status", "State:\tS (sleeping)", "State:\tZ (zombie)") }, true},
	} {
		for _, foreign := range []bool{false, true} {
			p, containers := twoPods(t)
			if foreign {
				p.write("proc/self/status", string(p.capture("default", "status")))
			}
			p.cgroup("kubepods/podB/"+idB, 200)
			p.cgroup("kubepods/podA/"+idA, 100, 101)
			p.person(person{pid: 101, parent: 100, name: "x", mount: mountA, inner: 2, cgroup: containers[0].CgroupPath})
			fs := proc.New(p.root, proc.Options{Readers: 1})
			began := false
			fs.Costs(func(int) time.Duration { // when the first one is read
				if !began {
					began = true
					if row.read {
						p.person(person{pid: 102, parent: 100, name: "x", mount: mountA, inner: 3, everything: true, cgroup: containers[0].CgroupPath})
						p.cgroup("kubepods/podA/"+idA, 100, 102)
					}
					row.end(t, p)
				}
				return 0
			})
			sweep, err := fs.Sweep(context.Background(), containers)
			if err != nil {
				t.Fatal(err)
			}
			seen := slices.ContainsFunc(sweep.Containers[0].Processes, func(p drift.Process) bool { return p.PID == 102 && p.Lineage != nil })
			if seen != row.read {
				t.Errorf("%s (foreign %v): its successor is read: %v: %+v", ends, foreign, seen, sweep.Containers[0].Processes)
			}
		}
	}
}

// TestWhoEndsAfterItWasRead is told of: what it held is true, and its successor may have ended
// in the same way at the next look.
func TestWhoEndsAfterItWasRead(t *testing.T) {
	for _, foreign := range []bool{false, true} {
		p, containers := twoPods(t)
		if foreign {
			p.write("proc/self/status", string(p.capture("default", "status")))
		}
		p.cgroup("kubepods/podA/"+idA, 100, 101)
		p.cgroup("kubepods/podB/"+idB, 200)
		p.person(person{pid: 101, parent: 100, name: "x", mount: mountA, inner: 2, everything: true, cgroup: containers[0].CgroupPath})
		fs := proc.New(p.root, proc.Options{Readers: 1})
		fs.Costs(func(pid int) time.Duration {
			if pid == 101 {
				p.cgroup("kubepods/podA/"+idA, 100)
				if err := os.RemoveAll(filepath.Join(p.root, "proc/101")); err != nil {
					t.Fatal(err)
				}
			}
			return 0
		})
		sweep, err := fs.Sweep(context.Background(), containers)
		if err != nil {
			t.Fatal(err)
		}
		if got := pidsOf(sweep.Containers[0].Processes); !slices.Equal(got, []int{100, 101}) {
			t.Errorf("foreign %v: read %v", foreign, got)
		}
	}
}

// TestWhoMovesWhileItIsRead is the container's in whose mount namespace it is, and is not lost
// between two cgroups.
func TestWhoMovesWhileItIsRead(t *testing.T) {
	p, containers := twoPods(t)
	p.cgroup("kubepods/podA/"+idA, 100, 101)
	p.cgroup("kubepods/podB/"+idB, 200)
	p.person(person{pid: 101, parent: 100, name: "x", mount: mountA, inner: 2, everything: true, cgroup: containers[0].CgroupPath})
	fs := proc.New(p.root, proc.Options{Readers: 1})
	fs.Costs(func(int) time.Duration {
		p.cgroup("kubepods/podA/"+idA, 100)
		p.cgroup("kubepods/podB/"+idB, 200, 101)
		p.write("proc/101/cgroup", "0::"+containers[1].CgroupPath+"\n")
		return 0
	})
	sweep, err := fs.Sweep(context.Background(), containers)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range sweep.Containers {
		for _, p := range c.Processes {
			got = append(got, fmt.Sprintf("%s %d %s", c.Pod.Name, p.PID, p.Elsewhere))
		}
	}
	if want := []string{"podA 100 ", "podA 101 " + containers[1].CgroupPath, "podB 200 "}; !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}
