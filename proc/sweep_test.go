package proc_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

const (
	idA = "5b9acb833b06e73a6550954b75742b750404c7ab7ca5e07fbdd58a981cecb3a6"
	idB = "a7836eeae1c125e9e43262b053daf5f989f9f2fcb908c775b7207167f093a290"
	idC = "99715d741c3ab08abe9c95f0f100fe4f8301591bfddaa29d2ec66d8a2c6e0ddc"
)

// picture is a made-up node: a root with a /proc and a cgroup tree.
type picture struct {
	t    *testing.T
	root string
}

// draw makes a picture of a node on which nothing runs but init, with the cgroup
// tree of the given mode.
func draw(t *testing.T, mode string) picture {
	p := picture{t, t.TempDir()}
	p.write("proc/uptime", "3000.00 5000.00\n")
	p.write("proc/sys/kernel/random/boot_id", "30744e7f-6ba8-4a41-a9e1-015ba6700949\n")
	p.write("proc/sys/kernel/osrelease", "6.1.0\n")
	p.write("proc/sys/kernel/cap_last_cap", "40\n")
	p.write("proc/sys/kernel/hostname", "node-1\n")
	switch mode {
	case "v2":
		p.write("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
		p.write("sys/fs/cgroup/cgroup.procs", "1\n")
	case "hybrid":
		p.write("sys/fs/cgroup/unified/cgroup.procs", "1\n")
		fallthrough
	case "v1":
		for _, name := range []string{"blkio", "cpu", "memory", "pids", "systemd"} {
			p.write("sys/fs/cgroup/"+name+"/cgroup.procs", "1\n")
		}
	}
	p.process(1, "default", "/")
	p.write("proc/1/status", strings.ReplaceAll(string(p.capture("default", "status")), "21565\t1\n", "1\n"))
	return p
}

func (p picture) write(name, text string) {
	p.t.Helper()
	name = filepath.Join(p.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p picture) capture(name, file string) []byte {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join("../testdata/captures/containerd-2.4.2", name, "proc", file))
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// process puts a captured process into the picture under another pid.
func (p picture) process(pid int, capture, cgroup string) {
	p.t.Helper()
	status := string(p.capture(capture, "status"))
	was := strings.Fields(status[strings.Index(status, "\nPid:"):])[1]
	dir := fmt.Sprintf("proc/%d/", pid)
	p.write(dir+"status", strings.ReplaceAll(status, was, fmt.Sprint(pid)))
	p.write(dir+"stat", strings.Replace(string(p.capture(capture, "stat")), was, fmt.Sprint(pid), 1))
	p.write(dir+"uid_map", string(p.capture(capture, "uid_map")))
	p.write(dir+"cgroup", fmt.Sprintf("8:pids:%s\n1:name=systemd:%s\n0::%[1]s\n", cgroup, cgroup))
}

// edit replaces a part of a file.
func (p picture) edit(name, from, to string) {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.root, name))
	if err != nil || !strings.Contains(string(text), from) {
		p.t.Fatalf("no %q in %s: %v", from, name, err)
	}
	p.write(name, strings.Replace(string(text), from, to, 1))
}

// cgroup lists pids in a directory of the tree.
func (p picture) cgroup(dir string, pids ...int) {
	p.t.Helper()
	var text strings.Builder
	for _, pid := range pids {
		fmt.Fprintln(&text, pid)
	}
	p.write("sys/fs/cgroup/"+dir+"/cgroup.procs", text.String())
}

func (p picture) sweep(o proc.Options, containers ...drift.Container) drift.Sweep {
	p.t.Helper()
	sweep, err := proc.New(p.root, o).Sweep(context.Background(), containers)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, c := range sweep.Containers {
		if c.Processes == nil {
			p.t.Errorf("container %s: processes are nil", c.ID)
		}
	}
	return sweep
}

// told is what the tests compare of a container: "id observation pids".
func told(c drift.Container) string {
	text := c.ID
	if len(text) == len(idA) {
		text = map[string]string{idA: "A", idB: "B", idC: "C"}[text]
	}
	text += " " + string(c.Observation)
	for _, p := range c.Processes {
		text += fmt.Sprint(" ", p.PID)
	}
	return text
}

func tell(s drift.Sweep) (list []string) {
	for _, c := range s.Containers {
		list = append(list, told(c))
	}
	return list
}

func TestMembership(t *testing.T) {
	const pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/"
	A := drift.Container{ID: idA, InitPID: 10}
	B := drift.Container{ID: idB, InitPID: 20}
	at := func(c drift.Container, spec string) drift.Container { c.CgroupPath = spec; return c }
	for name, row := range map[string]struct {
		mode  string
		trees map[string][]int // directory: pids
		given []drift.Container
		want  []string
	}{
		"cgroupfs on v2": {
			"v2", map[string][]int{"kubepods/podx/" + idA: {10, 11}},
			[]drift.Container{at(A, "/kubepods/podx/"+idA)}, []string{"A observed 10 11"},
		},
		"of another namespace, which its id names and its cgroup does not": {
			"v2", map[string][]int{"kubepods/podx/" + idA: {10}, "docker/" + idB: {20}},
			[]drift.Container{A, {ID: "moby/" + idB, RuntimeID: idB, InitPID: 20}}, []string{"A observed 10", "moby/" + idB + " observed 20"},
		},
		"of another namespace, with the id of a pod's": {
			"v2", map[string][]int{"kubepods/podx/" + idA: {10}, "evil/x": {30}},
			[]drift.Container{A, {ID: "evil/" + idA, RuntimeID: idA, InitPID: 30, CgroupPath: "/evil/x"}},
			[]string{"A observed 10", "evil/" + idA + " observed 30"},
		},
		"cgroupfs on v1, in the hierarchy pids": {
			"v1", map[string][]int{"pids/kubepods/podx/" + idA: {11, 10, 11}, "cpu/kubepods/podx/" + idA: {10, 11, 12}},
			[]drift.Container{at(A, "/kubepods/podx/"+idA)}, []string{"A observed 10 11"},
		},
		"on hybrid v1 comes first": {
			"hybrid", map[string][]int{"pids/kubepods/podx/" + idA: {10}, "unified/kubepods/podx/" + idA: {}},
			[]drift.Container{at(A, "/kubepods/podx/"+idA)}, []string{"A observed 10"},
		},
		"on hybrid the unified part where nothing else is": {
			"hybrid", map[string][]int{"unified/kubepods/podx/" + idA: {10}},
			[]drift.Container{at(A, "/kubepods/podx/"+idA)}, []string{"A observed 10"},
		},
		"on hybrid by name in the unified part": {
			"hybrid", map[string][]int{"unified/kubepods/podx/" + idA: {10}},
			[]drift.Container{A}, []string{"A observed 10"},
		},
		"only memory on v1": {
			"v1", map[string][]int{"memory/x/" + idA: {10}},
			[]drift.Container{at(A, "/x/"+idA)}, []string{"A observed 10"},
		},
		"systemd's triple": {
			"v2", map[string][]int{strings.TrimPrefix(pod, "/") + "cri-containerd-" + idA + ".scope": {10}},
			[]drift.Container{at(A, "kubepods-burstable-pod1_2.slice:cri-containerd:"+idA)}, []string{"A observed 10"},
		},
		"crun's container below the scope, and conmon beside it": {
			"v2", map[string][]int{
				strings.TrimPrefix(pod, "/") + "crio-" + idA + ".scope":           {},
				strings.TrimPrefix(pod, "/") + "crio-" + idA + ".scope/container": {10},
				strings.TrimPrefix(pod, "/") + "crio-conmon-" + idA + ".scope":    {90},
			},
			[]drift.Container{at(A, "kubepods-burstable-pod1_2.slice:crio:"+idA)}, []string{"A observed 10"},
		},
		"by its name, for its spec names another place": {
			"v2", map[string][]int{"elsewhere/crio-" + idA: {10}, "elsewhere/crio-conmon-" + idA: {90}},
			[]drift.Container{at(A, "/kubepods/podx/"+idA)}, []string{"A observed 10"},
		},
		"a node in a container, seen from outside": {
			"v2", map[string][]int{"docker/" + idC + "/kubelet/kubepods/podx/" + idA: {10}, "docker/" + idC: {30}},
			[]drift.Container{A}, []string{"A observed 10", "C observed 30"},
		},
		"all cgroups below it": {
			"v2", map[string][]int{"x/" + idA: {}, "x/" + idA + "/init.scope": {10}, "x/" + idA + "/system.slice/a.service": {11}},
			[]drift.Container{at(A, "/x/"+idA)}, []string{"A observed 10 11"},
		},
		"a container below another's": {
			"v2", map[string][]int{"x/" + idA: {10}, "x/" + idA + "/y/" + idB: {20, 21}},
			[]drift.Container{at(A, "/x/"+idA), at(B, "/x/"+idA+"/y/"+idB)}, []string{"A observed 10", "B observed 20 21"},
		},
		"a decoy below a hostile container, the spec knows better": {
			"v2", map[string][]int{"x/" + idA: {10}, "x/" + idA + "/" + idB: {11}, "x/" + idB: {20}},
			[]drift.Container{at(A, "/x/"+idA), at(B, "/x/"+idB)}, []string{"A observed 10 11", "B observed 20"},
		},
		"a decoy nearer to the root, the first process knows better": {
			"v2", map[string][]int{"x/" + idA: {10}, "x/" + idA + "/" + idB: {11}, "x/y/z/z/" + idB: {20}},
			[]drift.Container{at(A, "/x/"+idA), B}, []string{"A observed 10 11", "B observed 20"},
		},
		"a decoy nearer to the root and nobody knows better": {
			"v2", map[string][]int{"x/" + idA: {10}, "x/" + idA + "/" + idB: {11}, "x/y/z/z/" + idB: {21}},
			[]drift.Container{at(A, "/x/"+idA), {ID: idB}}, []string{"A observed 10 11", "B observed 21"},
		},
		"a pid in two cgroups, as threads allow on v1": {
			"v1", map[string][]int{"pids/x/" + idA: {10, 20}, "pids/x/" + idB: {20}},
			[]drift.Container{at(A, "/x/"+idA), at(B, "/x/"+idB)}, []string{"A observed 10", "B observed 20"},
		},
		"no cgroup to be found": {
			"v2", map[string][]int{"x/" + idA: {10}},
			[]drift.Container{at(A, "/x/"+idA), {ID: idB, CgroupPath: "/x/" + idB}}, []string{"A observed 10", "B unreadable"},
		},
		"two of one cgroup": {
			"v2", map[string][]int{"x/" + idA: {10, 20}},
			[]drift.Container{at(A, "/x/"+idA), at(B, "/x/"+idA)}, []string{"A observed 10 20", "B unreadable"},
		},
		"a short name is its whole name": {
			"v2", map[string][]int{"user.slice/session-1.scope": {10}, "default/1": {20, 21}},
			[]drift.Container{{ID: "1", InitPID: 20}}, []string{"1 observed 20 21", "/user.slice/session-1.scope observed 10"},
		},
		"a short name alone proves nothing": {
			"v2", map[string][]int{"user.slice/1": {10}},
			[]drift.Container{{ID: "1"}}, []string{"1 unreadable", "/user.slice/1 observed 10"},
		},
		"its spec names the root": {
			"v2", nil, []drift.Container{{ID: idB, CgroupPath: "/"}}, []string{"B unreadable"},
		},
		"by its first process": {
			"v2", map[string][]int{"moved/by-a-plugin": {20, 21}},
			[]drift.Container{at(B, "/x/"+idB)}, []string{"B observed 20 21"},
		},
		"empty, and its first process is gone": {
			"v2", map[string][]int{"x/" + idA: {}},
			[]drift.Container{{ID: idA, InitPID: 99, CgroupPath: "/x/" + idA}}, []string{"A observed"},
		},
		"empty, and its first process lives elsewhere": {
			"v2", map[string][]int{"x/" + idA: {}, "system.slice/a.service": {10}},
			[]drift.Container{at(A, "/x/"+idA)}, []string{"A unreadable", "/system.slice/a.service observed 10"},
		},
		"a runtime whose processes mean nothing": {
			"v2", map[string][]int{"x/" + idA: {10}},
			[]drift.Container{{ID: idA, CgroupPath: "/x/" + idA, Observation: drift.UnsupportedRuntime, Reason: "gVisor"}}, []string{"A unsupported_runtime"},
		},
		"what could not be asked stays unreadable": {
			"v2", map[string][]int{"x/" + idA: {10}},
			[]drift.Container{{ID: idA, CgroupPath: "/x/" + idA, Observation: drift.Unreadable, Reason: "no answer"}}, []string{"A unreadable 10"},
		},
		"nobody gave it": {
			"v2", map[string][]int{"docker/" + idA: {10}, "docker/" + idA + "/" + idB: {20}, "system.slice/crio-conmon-" + idC + ".scope": {90}},
			nil, []string{"A observed 10 20"},
		},
		"a process directly in a pod's cgroup": {
			"v2", map[string][]int{"kubepods/podx": {10}, "kubepods/podx/" + idB: {20}},
			[]drift.Container{at(B, "/kubepods/podx/"+idB)}, []string{"B observed 20", "/kubepods/podx observed 10"},
		},
		"a decoy that carries a managed id is told by its path": {
			"v2", map[string][]int{"x/" + idA: {10}, "y/" + idA: {11}},
			[]drift.Container{at(A, "/x/"+idA)}, []string{"A observed 10", "/y/" + idA + " observed 11"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := draw(t, row.mode)
			for _, dir := range slices.Sorted(maps.Keys(row.trees)) {
				p.cgroup(dir, row.trees[dir]...)
				cgroup := "/" + dir
				if row.mode != "v2" { // the first component is the hierarchy
					cgroup = dir[strings.IndexByte(dir, '/'):]
				}
				if strings.HasPrefix(dir, "cpu/") { // where nobody looks
					cgroup = "/"
				}
				for _, pid := range row.trees[dir] {
					p.process(pid, "default", cgroup)
				}
			}
			// It is no container's, and lives in the node's own namespaces.
			if len(row.trees["cpu/kubepods/podx/"+idA]) > 0 {
				p.edit("proc/12/status", "NSpid:\t12\t1\n", "NSpid:\t12\n")
			}
			// conmon lives in the node's own namespaces.
			if _, err := os.Stat(filepath.Join(p.root, "proc/90")); err == nil {
				p.edit("proc/90/status", "NSpid:\t90\t1\n", "NSpid:\t90\n")
			}
			sweep := p.sweep(proc.Options{}, row.given...)
			if got := tell(sweep); !slices.Equal(got, row.want) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
			for i, c := range sweep.Containers {
				if (c.Observation == drift.Observed) != (c.Reason == "") {
					t.Errorf("%s: reason %q", told(c), c.Reason)
				}
				if stranger := i >= len(row.given); stranger != (c.Managed != nil) || stranger && (*c.Managed || c.Origin == "") {
					t.Errorf("%s: managed %v, origin %q", told(c), c.Managed, c.Origin)
				}
			}
		})
	}
}

func TestProcessIsReadWhole(t *testing.T) {
	p := draw(t, "v2")
	p.process(23000, "userns", "/x/"+idA)
	p.cgroup("x/"+idA, 23000)
	p.write("proc/23000/gid_map", "0 100000 65536\n")
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA})
	got := sweep.Containers[0].Processes[0]
	if got.StartTime != 277818 || got.ParentPID != 22930 || got.Name != "sleep" || got.State != "S" || got.UID != 100000 ||
		*got.NoNewPrivileges || *got.Seccomp != 0 || got.Caps.Effective.Hex() != "00000000a80425fb" || got.ThreadCount != 1 ||
		!slices.Equal(got.NamespacePIDs, []int{23000, 1}) || got.Age.Milliseconds() != 3000_000-2778_180 || got.Observation != drift.Observed {
		t.Errorf("%+v", got)
	}
	want := []drift.IDRange{{Inside: 0, Outside: 100000, Length: 65536}}
	if u := got.UserNamespace; !slices.Equal(u.UIDMap, want) || !slices.Equal(u.GIDMap, want) || u.ProjectIDMap != nil || u.Inode != 0 {
		t.Errorf("%+v", u)
	}
	if sweep.Processes != (drift.ProcessCoverage{Observed: 1}) {
		t.Errorf("%+v", sweep.Processes)
	}
}

func TestHostileFilesOfOneProcess(t *testing.T) {
	for why, hostile := range map[string]func(p picture){
		"17 digits":      func(p picture) { p.edit("proc/11/status", "CapEff:\t", "CapEff:\t0") },
		"no CapEff":      func(p picture) { p.edit("proc/11/status", "CapEff:", "CapXff:") },
		"10 MiB":         func(p picture) { p.write("proc/11/status", strings.Repeat("x\n", 5<<20)) },
		"10 MiB of stat": func(p picture) { p.write("proc/11/stat", strings.Repeat("x ", 5<<20)) },
		"cut": func(p picture) {
			p.edit("proc/11/status", "Seccomp:\t0\n", "")
			p.write("proc/11/status", "Name:\tx\nSta")
		},
		"no status":          func(p picture) { _ = os.Remove(filepath.Join(p.root, "proc/11/status")) },
		"a broken user map":  func(p picture) { p.write("proc/11/uid_map", "0 0\n") },
		"a name with digits": func(p picture) { p.edit("proc/11/stat", "(sleep)", "(sleep") },
	} {
		t.Run(why, func(t *testing.T) {
			p := draw(t, "v2")
			p.cgroup("x/"+idA, 10, 11)
			p.cgroup("x/"+idB, 20)
			for pid, id := range map[int]string{10: idA, 11: idA, 20: idB} {
				p.process(pid, "default", "/x/"+id)
			}
			hostile(p)
			sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA}, drift.Container{ID: idB, CgroupPath: "/x/" + idB})
			if got := tell(sweep); !slices.Equal(got, []string{"A partial 10", "B observed 20"}) {
				t.Errorf("%q", got)
			}
			if reason := sweep.Containers[0].Reason; !strings.Contains(reason, "1 of its 2 processes") || !strings.Contains(reason, "11") || len(reason) > 300 {
				t.Errorf("reason %q", reason)
			}
			if sweep.Processes != (drift.ProcessCoverage{Observed: 2, Unreadable: 1}) {
				t.Errorf("%+v", sweep.Processes)
			}
		})
	}
}

func TestManyGroupsHideNobody(t *testing.T) {
	p := draw(t, "v2")
	p.process(10, "default", "/x/"+idA)
	p.edit("proc/10/status", "Groups:\t0 \n", "Groups:\t"+strings.Repeat("4294967295 ", 1<<16)+"\n")
	p.cgroup("x/"+idA, 10)
	if got := tell(p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA})); !slices.Equal(got, []string{"A observed 10"}) {
		t.Errorf("%q", got)
	}
}

func TestHostileNames(t *testing.T) {
	p := draw(t, "v2")
	p.process(10, "drop-all", "/x/"+idA)
	p.edit("proc/10/status", "Name:\tsleep", "Name:\t"+`CapEff:\\tff\nCapEff:`+"\tffffffffffffffff")
	p.edit("proc/10/stat", "(sleep)", "(CapEff:\\tff\nCapEff:\tffffffffffffffff) S 1)")
	p.cgroup("x/"+idA, 10)
	hostile := "y/cri-containerd-\x1b[2J" + "\xff.scope"
	p.process(11, "default", "/"+hostile)
	p.cgroup(hostile, 11)
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA})
	if got := sweep.Containers[0].Processes[0]; !got.Caps.Effective.Empty() || got.Name != "CapEff:\\tff\nCapEff:\tffffffffffffffff" || got.StartTime == 0 {
		t.Errorf("%+v", got)
	}
	if len(sweep.Containers) != 2 || strings.ContainsFunc(sweep.Containers[1].ID+sweep.Containers[1].Origin, func(c rune) bool { return c < ' ' || c > '~' }) {
		t.Errorf("%q", tell(sweep))
	}
}

func TestWhatHoldsNothingIsSkipped(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("x/"+idA, 10, 11, 12, 13)
	for pid := 10; pid <= 13; pid++ {
		p.process(pid, "default", "/x/"+idA)
	}
	p.edit("proc/11/status", "State:\tS (sleeping)", "State:\tZ (zombie)")
	p.edit("proc/12/status", "Kthread:\t0", "Kthread:\t1")
	// A zombie whose threads live on.
	p.edit("proc/13/status", "State:\tS (sleeping)", "State:\tZ (zombie)")
	p.edit("proc/13/status", "Threads:\t1", "Threads:\t2")
	p.thread(13, 14, "CapEff:\t00000000a80425fb", "CapEff:\t0000000000000000")
	sweep := p.sweep(proc.Options{Threads: -1}, drift.Container{ID: idA, CgroupPath: "/x/" + idA})
	if got := tell(sweep); !slices.Equal(got, []string{"A observed 10 13"}) {
		t.Errorf("%q", got)
	}
	if threads := sweep.Containers[0].Processes[1].Threads; len(threads) != 1 || threads[0].TID != 14 || !threads[0].Caps.Effective.Empty() {
		t.Errorf("%+v", threads)
	}
}

// thread gives a process a thread that differs from it in one line.
func (p picture) thread(pid, tid int, from, to string) {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.root, fmt.Sprintf("proc/%d/status", pid)))
	if err != nil {
		p.t.Fatal(err)
	}
	status := strings.Replace(string(text), fmt.Sprintf("\nPid:\t%d", pid), fmt.Sprintf("\nPid:\t%d", tid), 1)
	status = strings.Replace(status, "Z (zombie)", "S (sleeping)", 1)
	name := fmt.Sprintf("proc/%d/task/%d/status", pid, tid)
	p.write(name, status)
	p.edit(name, from, to)
}

func TestThreadsAreSharedOut(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("x/"+idA, 10, 20, 30)
	for pid, threads := range map[int]int{10: 101, 20: 3, 30: 1} {
		p.process(pid, "default", "/x/"+idA)
		p.edit(fmt.Sprintf("proc/%d/status", pid), "Threads:\t1", fmt.Sprintf("Threads:\t%d", threads))
		for i := range threads {
			switch i {
			case 0: // the leader
				p.thread(pid, pid, "Pid", "Pid")
			case 1:
				p.thread(pid, 1000*pid+i, "CapPrm:\t00000000a80425fb", "CapPrm:\t00000000a80425ff")
			case 2:
				p.thread(pid, 1000*pid+i, "NoNewPrivs:\t0", "NoNewPrivs:\t1")
			default:
				p.thread(pid, 1000*pid+i, "Name:\tsleep", "Name:\tworker")
			}
		}
	}
	container := drift.Container{ID: idA, CgroupPath: "/x/" + idA}
	differing := func(s drift.Sweep) (tids []int) {
		for _, process := range s.Containers[0].Processes {
			for _, thread := range process.Threads {
				tids = append(tids, thread.TID)
			}
		}
		return tids
	}
	all := p.sweep(proc.Options{Threads: -1}, container)
	if got := differing(all); !slices.Equal(got, []int{10001, 10002, 20001, 20002}) || all.Threads != (drift.ThreadCoverage{Observed: 102}) || len(all.Limits) != 0 {
		t.Errorf("all: %v, %+v, %+v", got, all.Threads, all.Limits)
	}
	none := p.sweep(proc.Options{}, container)
	if got := differing(none); got != nil || none.Threads != (drift.ThreadCoverage{Skipped: 102}) || len(none.Limits) != 1 || !none.Limits[0].Blind {
		t.Errorf("none: %v, %+v, %+v", got, none.Threads, none.Limits)
	}
	// A budget of ten: the small process is read whole, the large one in turns.
	fs := proc.New(p.root, proc.Options{Threads: 10})
	seen := map[int]bool{}
	for range 13 {
		some, err := fs.Sweep(context.Background(), []drift.Container{container})
		if err != nil {
			t.Fatal(err)
		}
		got := differing(some)
		if !slices.Contains(got, 20001) || !slices.Contains(got, 20002) || some.Threads != (drift.ThreadCoverage{Observed: 10, Skipped: 92}) {
			t.Fatalf("some: %v, %+v", got, some.Threads)
		}
		for _, tid := range got {
			seen[tid] = true
		}
	}
	if !seen[10001] || !seen[10002] {
		t.Errorf("13 sweeps of 8 threads each did not come round to all 100: %v", seen)
	}
}

func TestStrangersByNamespace(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("system.slice/demo.service", 10, 11, 12, 13)
	p.cgroup("k8s.io/demo", 20)
	for pid := 10; pid <= 13; pid++ {
		p.process(pid, "default", "/system.slice/demo.service")
		p.edit(fmt.Sprintf("proc/%d/status", pid), fmt.Sprintf("NSpid:\t%d\t1\n", pid), fmt.Sprintf("NSpid:\t%d\n", pid))
	}
	p.edit("proc/11/status", "NSpid:\t11\n", "NSpid:\t11\t4\n")
	p.write("proc/12/uid_map", "0 1000 1\n")
	p.edit("proc/13/status", "State:\tS (sleeping)", "State:\tZ (zombie)")
	p.write("proc/13/uid_map", "0 1000 1\n")
	p.process(20, "default", "/../../k8s.io/demo") // as seen from a cgroup namespace
	sweep := p.sweep(proc.Options{})
	if got := tell(sweep); !slices.Equal(got, []string{"/k8s.io/demo observed 20", "/system.slice/demo.service observed 11"}) {
		t.Errorf("%q", got)
	}
	if got := sweep.Containers[1].Origin; got != "pid namespace of its own, cgroup /system.slice/demo.service" {
		t.Errorf("origin %q", got)
	}
}

// On cgroup v1 the kernel tells the root of a leader that has ended, while other threads of its
// process go on.
func TestDeadLeader(t *testing.T) {
	inA := "/kubepods/podA/" + idA
	for name, row := range map[string]struct {
		cgroup, state string // of the other thread
		want          []string
	}{
		"a thread lives on in the container":     {inA, "S (sleeping)", []string{"A observed 10 20"}},
		"its last thread has just ended as well": {inA, "Z (zombie)", []string{"A observed 10", "/ observed 20"}},
		"a thread lives on in no container":      {"/", "S (sleeping)", []string{"A observed 10", "/ observed 20"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := draw(t, "v1")
			p.write("proc/self/status", string(p.capture("default", "status"))) // the reader's pids are other ones
			p.cgroup("pids"+inA, 0, 0)
			p.process(10, "default", inA)
			p.process(20, "default", "/")
			p.edit("proc/20/status", "State:\tS (sleeping)", "State:\tZ (zombie)")
			p.edit("proc/20/status", "Threads:\t1\n", "Threads:\t2\n")
			for tid, state := range map[int]string{20: "Z (zombie)", 21: row.state} {
				status := strings.Replace(string(p.capture("default", "status")), "State:\tS (sleeping)", "State:\t"+state, 1)
				p.write(fmt.Sprintf("proc/20/task/%d/status", tid), status)
			}
			p.write("proc/20/task/20/cgroup", "8:pids:/\n")
			p.write("proc/20/task/21/cgroup", "8:pids:"+row.cgroup+"\n")
			sweep := p.sweep(proc.Options{LeadersOnly: true}, drift.Container{ID: idA, CgroupPath: inA})
			if got := tell(sweep); !slices.Equal(got, row.want) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

func TestUserNamespaceByInode(t *testing.T) {
	p := draw(t, "v2")
	p.cgroup("x/"+idA, 10, 11)
	for pid, inode := range map[int]string{1: "4026531837", 10: "4026531837", 11: "4026532999"} {
		if pid != 1 {
			p.process(pid, "default", "/x/"+idA)
		}
		p.write(fmt.Sprintf("proc/%d/gid_map", pid), "0 0 4294967295\n")
		dir := filepath.Join(p.root, fmt.Sprintf("proc/%d/ns", pid))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Symlink("user:["+inode+"]", filepath.Join(dir, "user"))); err != nil {
			t.Fatal(err)
		}
	}
	p.write("proc/11/uid_map", "") // nobody mapped it yet
	fs := proc.New(p.root, proc.Options{})
	node, limits, err := fs.Node()
	if err != nil || len(limits) != 0 || node.UserNamespace.Inode != drift.InitialUserNamespace || len(node.UserNamespace.UIDMap) != 1 {
		t.Errorf("%+v, %+v, %v", node, limits, err)
	}
	members := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA}).Containers[0].Processes
	if u := members[0].UserNamespace; u.Inode != drift.InitialUserNamespace || len(u.UIDMap) != 1 || len(u.GIDMap) != 1 {
		t.Errorf("%+v", u)
	}
	if u := members[1].UserNamespace; u.Inode != 4026532999 || u.UIDMap == nil || len(u.UIDMap) != 0 {
		t.Errorf("%+v", u)
	}
	// One that may not be read, of a kernel that has them, is said.
	said := func(readable string) (whats []string) {
		_ = os.RemoveAll(filepath.Join(p.root, "proc/self"))
		p.write("proc/self/status", string(p.capture("default", "status")))
		for _, link := range []string{readable, "proc/11/ns/user"} {
			name := filepath.Join(p.root, link)
			_ = os.Remove(name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink("user:[4026532999]", name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA}).Limits {
			whats = append(whats, l.What)
		}
		return whats
	}
	if got := said("proc/self/ns/user"); got != nil {
		t.Errorf("limits %q", got)
	}
	p.remove("proc/10/ns")
	if got := said("proc/self/ns/user"); !slices.Equal(got, []string{"the identity of the user namespaces of 1 processes"}) {
		t.Errorf("limits %q", got)
	}
	if got := said("elsewhere"); got != nil {
		t.Errorf("limits of a kernel without user namespaces %q", got)
	}
}

func TestNode(t *testing.T) {
	for _, mode := range []string{"v1", "hybrid", "v2"} {
		node, limits, err := proc.New(draw(t, mode).root, proc.Options{}).Node()
		if err != nil || node.Name != "node-1" || node.BootID != "30744e7f-6ba8-4a41-a9e1-015ba6700949" || node.Kernel != "6.1.0" || node.CapLastCap != 40 || node.CgroupMode != mode {
			t.Errorf("%s: %+v, %v", mode, node, err)
		}
		if len(limits) != 1 || limits[0].Blind || !strings.Contains(limits[0].Why, "CAP_SYS_PTRACE") {
			t.Errorf("%s: %+v", mode, limits)
		}
	}
}

func TestNodeSaysWhatItCannotSee(t *testing.T) {
	for why, row := range map[string]struct {
		change func(p picture)
		want   string
	}{
		"no cgroups": {func(p picture) { _ = os.RemoveAll(filepath.Join(p.root, "sys")) }, "sys/fs/cgroup"},
		"an empty mount": {func(p picture) {
			_ = os.RemoveAll(filepath.Join(p.root, "sys/fs/cgroup"))
			_ = os.Mkdir(filepath.Join(p.root, "sys/fs/cgroup"), 0o755)
		}, "no cgroup hierarchy"},
		"hidepid": {func(p picture) {
			_ = os.RemoveAll(filepath.Join(p.root, "proc/1"))
			p.write("proc/self/mountinfo", "22 27 0:21 / "+p.root+"/proc rw - proc proc rw,gid=26,hidepid=invisible\n")
		}, "hidepid=invisible; run with the group 26"},
		"hidepid by ptrace": {func(p picture) {
			_ = os.RemoveAll(filepath.Join(p.root, "proc/1"))
			p.write("proc/self/mountinfo", "22 27 0:21 / "+p.root+"/proc rw - proc proc rw,hidepid=4\n")
		}, "hidepid=ptraceable; run with CAP_SYS_PTRACE"},
		"pid 1 hidden otherwise": {func(p picture) { _ = os.RemoveAll(filepath.Join(p.root, "proc/1")) }, "pid 1 is not visible"},
		"no map of pid 1":        {func(p picture) { _ = os.Remove(filepath.Join(p.root, "proc/1/uid_map")) }, "may not be read"},
	} {
		p := draw(t, "v2")
		row.change(p)
		_, limits, err := proc.New(p.root, proc.Options{}).Node()
		if err != nil || !slices.ContainsFunc(limits, func(l drift.Limit) bool { return l.Blind && l.What != "" && strings.Contains(l.Why, row.want) }) {
			t.Errorf("%s: %+v, %v", why, limits, err)
		}
	}
}

func TestNodeNeedsItsIdentity(t *testing.T) {
	for _, file := range []string{"random/boot_id", "osrelease", "cap_last_cap", "hostname"} {
		p := draw(t, "v2")
		if err := os.Remove(filepath.Join(p.root, "proc/sys/kernel", file)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := proc.New(p.root, proc.Options{}).Node(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), file) {
			t.Errorf("without %s: %v", file, err)
		}
	}
	p := draw(t, "v2")
	p.write("proc/sys/kernel/cap_last_cap", "64\n")
	var malformed *proc.MalformedError
	if _, _, err := proc.New(p.root, proc.Options{}).Node(); !errors.As(err, &malformed) {
		t.Errorf("a capability 64: %v", err)
	}
}

func TestPIDsOfAnotherNamespaceAreSaid(t *testing.T) {
	p := draw(t, "v2")
	p.process(10, "default", "/x/"+idA)
	p.cgroup("x/"+idA, 0, 10, 0)
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA})
	if got := sweep.Containers[0]; told(got) != "A partial 10" || !strings.Contains(got.Reason, "2 of its processes have no number") {
		t.Errorf("%s: %s", told(got), got.Reason)
	}
}

// TestForeignPIDs is a pod that mounts the node's trees but has a pid namespace
// of its own: what it reads as pid 10 in cgroup.procs is not the node's pid 10.
func TestForeignPIDs(t *testing.T) {
	p := draw(t, "v2")
	p.write("proc/self/status", string(p.capture("default", "status")))
	p.cgroup("x/"+idA, 0, 0, 20)
	p.cgroup("x/"+idB, 1)
	p.cgroup("docker/"+idC, 0)
	// The reader, with a cgroup namespace of its own too: what has a common
	// ancestor with it goes up no farther than there.
	p.cgroup("x/reader", os.Getpid())
	p.write("proc/self/cgroup", "0::/\n")
	p.write("proc/1/cgroup", "0::/../../init.scope\n")
	for pid, cgroup := range map[int]string{10: "/../" + idA, 11: "/../" + idA + "/inner", 20: "/../" + idB, 30: "/../../docker/" + idC, 40: "/../../system.slice"} {
		p.process(pid, "default", cgroup)
		if pid == 11 || pid == 30 || pid == 40 { // in the node's own namespaces
			p.edit(fmt.Sprintf("proc/%d/status", pid), fmt.Sprintf("NSpid:\t%d\t1\n", pid), fmt.Sprintf("NSpid:\t%d\n", pid))
		}
	}
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, InitPID: 10}, drift.Container{ID: idB, CgroupPath: "/x/" + idB, InitPID: 20})
	if got := tell(sweep); !slices.Equal(got, []string{"A observed 10 11", "B observed 20", "C observed 30"}) || len(sweep.Limits) != 0 {
		t.Errorf("%q, %+v", got, sweep.Limits)
	}
	if err := os.RemoveAll(filepath.Join(p.root, "sys/fs/cgroup/x/reader")); err != nil {
		t.Fatal(err)
	}
	if sweep := p.sweep(proc.Options{}); len(sweep.Limits) != 1 || !sweep.Limits[0].Blind {
		t.Errorf("a reader that cannot find itself says %+v", sweep.Limits)
	}
	_, limits, err := proc.New(p.root, proc.Options{}).Node()
	if err != nil || !slices.ContainsFunc(limits, func(l drift.Limit) bool { return strings.Contains(l.Why, "hostPID") }) {
		t.Errorf("%+v, %v", limits, err)
	}
}

// TestForeignPIDsUnderHidepid is such a pod, from which /proc hides pid 1, 11 and 20: nothing
// but that tells it that there is more, and it still knows whose the others are.
func TestForeignPIDsUnderHidepid(t *testing.T) {
	p := draw(t, "v2")
	p.write("proc/self/status", string(p.capture("default", "status")))
	p.cgroup("x/"+idA, 0, 0)
	p.cgroup("x/"+idB, 0)
	p.cgroup("x/reader", os.Getpid())
	p.write("proc/self/cgroup", "0::/\n")
	if err := os.RemoveAll(filepath.Join(p.root, "proc/1")); err != nil {
		t.Fatal(err)
	}
	p.process(10, "default", "/../"+idA)
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA}, drift.Container{ID: idB, CgroupPath: "/x/" + idB})
	if got := tell(sweep); !slices.Equal(got, []string{"A partial 10", "B unreadable"}) {
		t.Errorf("%q", got)
	}
	for _, c := range sweep.Containers {
		if !strings.Contains(c.Reason, "hidepid") {
			t.Errorf("%s: %s", told(c), c.Reason)
		}
	}
}

func TestHostileTreeIsBounded(t *testing.T) {
	p := draw(t, "v2")
	p.process(10, "default", "/x/"+idA)
	p.process(20, "default", "/x/"+idB)
	p.cgroup("x/"+idA, 10)
	p.cgroup("x/"+idB, 20)
	dir := filepath.Join(p.root, "sys/fs/cgroup/x", idA)
	for i := range 4200 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("d", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA}, drift.Container{ID: idB, CgroupPath: "/x/" + idB})
	if got := tell(sweep); !slices.Equal(got, []string{"A partial 10", "B observed 20"}) || !strings.Contains(sweep.Containers[0].Reason, "more than 4096") {
		t.Errorf("%q: %s", got, sweep.Containers[0].Reason)
	}
	deep := "x/" + idB + strings.Repeat("/d", 70)
	p.cgroup(deep, 21)
	if got := p.sweep(proc.Options{}, drift.Container{ID: idB, CgroupPath: "/x/" + idB}).Containers[0]; told(got) != "B partial 20" {
		t.Errorf("%s: %s", told(got), got.Reason)
	}
}

func TestSweepHearsItsContext(t *testing.T) {
	p := draw(t, "v2")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	before := runtime.NumGoroutine()
	if _, err := proc.New(p.root, proc.Options{}).Sweep(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	for range 1000 { // a worker that is done is counted until it has been scheduled away
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d goroutines left", runtime.NumGoroutine()-before)
}

func TestSweepLeavesNoFileOpen(t *testing.T) {
	p := draw(t, "v1")
	p.process(10, "default", "/x/"+idA)
	p.cgroup("pids/x/"+idA, 10, 11)
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	p.sweep(proc.Options{Threads: -1})
	before := count()
	for range 3 {
		p.sweep(proc.Options{Threads: -1}, drift.Container{ID: idA, CgroupPath: "/x/" + idA})
	}
	if after := count(); after != before {
		t.Errorf("%d files open before, %d after", before, after)
	}
}

func TestNoProc(t *testing.T) {
	fs := proc.New(t.TempDir(), proc.Options{})
	if _, err := fs.Sweep(context.Background(), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sweep: %v", err)
	}
	if _, _, err := fs.Node(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("node: %v", err)
	}
	if _, err := fs.Process(1); !errors.Is(err, os.ErrNotExist) || errors.Is(err, proc.ErrVanished) {
		t.Errorf("process: %v", err)
	}
}

// TestMonitorsAlone: what is named like a monitor's scope and is none is an ordinary
// cgroup; in a monitor's scope, processes of the node's own pid namespace belong to none
// and all others are told.
func TestMonitorsAlone(t *testing.T) {
	const pod = "kubepods/podx/"
	A := drift.Container{ID: idA, InitPID: 10, CgroupPath: "/" + pod + idA}
	for name, row := range map[string]struct {
		dir  string
		host bool // the process is in the node's own pid namespace
		want []string
	}{
		"conmon in its scope":                       {pod + "crio-conmon-" + idA + ".scope", true, nil},
		"conmon in its cgroup without a scope":      {pod + "crio-conmon-" + idA, true, nil},
		"Podman's":                                  {pod + "libpod-conmon-" + idA + ".scope", true, nil},
		"a container's process in a monitor's":      {pod + "crio-conmon-" + idA + ".scope", false, []string{"/" + pod + "crio-conmon-" + idA + ".scope observed 20"}},
		"below a monitor's":                         {pod + "crio-conmon-" + idA + ".scope/x", true, []string{"/" + pod + "crio-conmon-" + idA + ".scope/x observed 20"}},
		"named after no container":                  {pod + "crio-conmon-x.scope", true, []string{"/" + pod + "crio-conmon-x.scope observed 20"}},
		"an id that is too short":                   {pod + "crio-conmon-" + idA[1:], true, []string{"/" + pod + "crio-conmon-" + idA[1:] + " observed 20"}},
		"with conmon in the middle of its name":     {pod + "x-conmon-" + idB, true, []string{"B observed 20"}},
		"with conmon in the middle and no id":       {pod + "my-conmon-x", true, []string{"/" + pod + "my-conmon-x observed 20"}},
		"named like a monitor's within a container": {pod + idA + "/crio-conmon-" + idB + ".scope", true, []string{"A observed 10 20"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := draw(t, "v2")
			p.cgroup(pod+idA, 10)
			p.cgroup(row.dir, 20)
			p.process(10, "default", "/"+pod+idA)
			p.process(20, "default", "/"+row.dir)
			if row.host {
				p.edit("proc/20/status", "NSpid:\t20\t1\n", "NSpid:\t20\n")
			}
			want := row.want
			if len(want) == 0 || !strings.HasPrefix(want[0], "A ") {
				want = append([]string{"A observed 10"}, want...)
			}
			if got := tell(p.sweep(proc.Options{}, A)); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// TestNamedHierarchies: processes are looked up in the hierarchy that is mounted, whatever
// other hierarchies are called.
func TestNamedHierarchies(t *testing.T) {
	for name, row := range map[string]struct {
		directory, told string
		want            string // how the stray's container is found
	}{
		"a named one called pids, beside the controller": {"pids", "13:name=pids:/forged\n8:pids:/y\n0::/\n", "/y observed 20"},
		"a directory called pids with a named one in it": {"pids", "13:name=pids:/y\n0::/\n", "/y observed 20"},
		"two controllers in one hierarchy":               {"cpu,cpuacct", "4:cpu,cpuacct:/y\n0::/\n", "/y observed 20"},
		"a directory that ends like a removed one":       {"unified", "0::/x (deleted)\n", "/x (deleted) observed 20"},
		"a removed one":           {"unified", "0::/y (deleted)\n", "/y observed 20"},
		"a directory with colons": {"pids", "8:pids:/x:y:z\n0::/\n", "/x:y:z observed 20"},
	} {
		t.Run(name, func(t *testing.T) {
			p := draw(t, "")
			p.cgroup(row.directory, 1)
			p.cgroup(row.directory+"/x (deleted)", 1)
			p.cgroup(row.directory+"/x/"+idA, 10)
			p.process(10, "default", "/")
			p.process(20, "default", "/")
			for _, pid := range []int{1, 20} {
				p.write(fmt.Sprintf("proc/%d/cgroup", pid), row.told)
			}
			got := tell(p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/x/" + idA}))
			if want := []string{"A observed 10", row.want}; !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}
