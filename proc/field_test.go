package proc_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// TestFieldCgroups are layouts of cgroups that people met: where a container's processes are,
// and that nobody is lost. The number in a row's name is that of its situation in
// testdata/field/README.md.
func TestFieldCgroups(t *testing.T) {
	const (
		slice  = "kubepods-besteffort-pod1_2.slice"
		triple = slice + ":cri-containerd:"
		under  = "/system.slice/containerd.service/"
		scopes = "/kubepods.slice/kubepods-besteffort.slice/" + slice + "/"
		user   = "/user.slice/user-1000.slice/user@1000.service/"
	)
	A, B := drift.Container{ID: idA, InitPID: 10}, drift.Container{ID: idB, InitPID: 20}
	at := func(c drift.Container, spec string) drift.Container { c.CgroupPath = spec; return c }
	for name, row := range map[string]struct {
		mode string
		// Of each pid its cgroup, where it is listed (v1 alone), and "node" where it is in no
		// pid namespace of its own.
		processes map[int][]string
		mounts    string // lines of mountinfo, without what is the same in all
		given     []drift.Container
		want      []string
	}{
		"03 systemd's triple taken for a path, one with the node's pids": {
			mode:      "v2",
			processes: map[int][]string{10: {under + triple + idA}, 11: {under + triple + idA}, 20: {under + triple + idB, "node"}, 21: {under + triple + idB, "node"}},
			given:     []drift.Container{at(A, triple+idA), at(B, triple+idB)},
			want:      []string{"A observed 10 11", "B observed 20 21"},
		},
		"03 the same, and no runtime to ask": {
			mode:      "v2",
			processes: map[int][]string{10: {under + triple + idA}, 20: {under + triple + idB, "node"}},
			want:      []string{"A observed 10", "B observed 20"},
		},
		"03 the triple of a container whose id is short": {
			mode:      "v2",
			processes: map[int][]string{10: {under + "a.slice:ctr:demo", "node"}},
			given:     []drift.Container{{ID: "demo", InitPID: 10, CgroupPath: "a.slice:ctr:demo"}},
			want:      []string{"demo observed 10"},
		},
		"03 a container that names a directory so below its own": {
			mode:      "v2",
			processes: map[int][]string{10: {under + triple + idA}, 11: {under + triple + idA + "/" + triple + idB}, 20: {under + "x/" + triple + idB}},
			given:     []drift.Container{at(A, triple+idA), at(B, triple+idB)},
			want:      []string{"A observed 10 11", "B observed 20"},
		},
		"03 the node's pids, found by the first process alone": {
			mode:      "v2",
			processes: map[int][]string{10: {"/moved/crio-" + idA + ".scope/container", "node"}, 90: {"/system.slice/sshd.service", "node"}},
			given:     []drift.Container{at(A, slice+":crio:"+idA), {ID: idB, InitPID: 90}},
			want:      []string{"A observed 10", "B unreadable"},
		},
		"23 a hierarchy that holds nobody, and containers in some of the others": {
			mode: "v1", processes: map[int][]string{10: {scopes + "crio-" + idA + ".scope", "pids", "memory"}, 20: {scopes + "crio-" + idB + ".scope", "memory", "blkio"}},
			given: []drift.Container{at(A, slice+":crio:"+idA), at(B, slice+":crio:"+idB)},
			want:  []string{"A observed 10", "B observed 20"},
		},
		"24 engines of users, below what is not the root": {
			mode: "v2", processes: map[int][]string{
				10: {user + "user.slice/libpod-" + idA + ".scope/container"},
				11: {user + "user.slice/libpod-conmon-" + idA + ".scope", "node"},
				12: {user + "user.slice/podman-pause-7.scope", "node"},
				20: {user + `app.slice/app-dbus\x2d:1.2.slice/` + idB},
				30: {"/distribution/systemd" + user + "user.slice/docker-" + idC + ".scope"},
			},
			want: []string{"C observed 30", "B observed 20", "A observed 10"},
		},
		"26 a node that is itself a container, its cgroups mounted twice": {
			mode:      "v1",
			processes: map[int][]string{10: {"/docker/" + idC + "/kubelet/kubepods/podx/" + idA, "pids", "memory"}, 20: {"/docker/" + idC + "/kubelet/kubepods/pody/" + idB, "pids", "memory"}, 30: {"/docker/" + idC + "/system.slice/a.service", "pids", "node"}},
			mounts:    "/docker/" + idC + " pids\n/docker/" + idC + " memory\n/docker/" + idC + " pids/docker/" + idC + "\n/docker/" + idC + " memory/docker/" + idC + "\n",
			given:     []drift.Container{at(A, "/kubelet/kubepods/podx/"+idA), B},
			want:      []string{"A observed 10", "B observed 20"},
		},
		"34 a monitor in a cgroup that is named by the container's id": {
			mode: "v2", processes: map[int][]string{
				10: {scopes + "crio-" + idA + ".scope/container"}, 11: {scopes + "crio-" + idA + ".scope/container/exec-2"}, 12: {scopes + "crio-conmon-" + idA + ".scope", "node"},
				20: {"/pod_7-8/crio-" + idB}, 22: {"/pod_7-8/crio-conmon-" + idB, "node"},
			},
			given: []drift.Container{at(A, slice+":crio:"+idA), at(B, "pod_7-8/crio-"+idB)},
			want:  []string{"A observed 10 11", "B observed 20"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := draw(t, row.mode)
			listed := make(map[string][]int)
			for _, pid := range slices.Sorted(maps.Keys(row.processes)) {
				cgroup, where := row.processes[pid][0], row.processes[pid][1:]
				p.process(pid, "default", cgroup)
				if slices.Contains(where, "node") {
					p.edit(fmt.Sprintf("proc/%d/status", pid), fmt.Sprintf("NSpid:\t%d\t1\n", pid), fmt.Sprintf("NSpid:\t%d\n", pid))
				}
				if row.mode == "v2" {
					listed[cgroup] = append(listed[cgroup], pid)
					continue
				}
				told := "11:files:/\n"
				for _, h := range []string{"blkio", "memory", "pids"} {
					if !slices.Contains(where, h) {
						told += "8:" + h + ":/system.slice/crio.service\n"
						continue
					}
					told += "8:" + h + ":" + cgroup + "\n"
					listed[h+cgroup] = append(listed[h+cgroup], pid)
					if inner, ok := strings.CutPrefix(cgroup, "/docker/"+idC); ok { // as the node's own root shows it
						listed[h+inner] = append(listed[h+inner], pid)
					}
				}
				p.write(fmt.Sprintf("proc/%d/cgroup", pid), told)
			}
			for dir, pids := range listed {
				p.cgroup(dir, pids...)
			}
			mounts := ""
			for line := range strings.Lines(row.mounts) {
				root, directory, _ := strings.Cut(strings.TrimSpace(line), " ")
				mounts += fmt.Sprintf("40 30 0:30 %s %s rw - cgroup cgroup rw\n", root, filepath.Join(p.root, "sys/fs/cgroup", directory))
			}
			p.write("proc/self/mountinfo", mounts)
			sweep := p.sweep(proc.Options{}, row.given...)
			if got := tell(sweep); !slices.Equal(got, row.want) {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

// TestFieldANodeInAContainerByAsking is that of row 26, seen from a pod with pids of its own, where
// each process is asked for its cgroup: what it tells begins with the node's own.
func TestFieldANodeInAContainerByAsking(t *testing.T) {
	p := draw(t, "v1")
	p.write("proc/self/status", string(p.capture("default", "status")))
	p.write("proc/self/mountinfo", "40 30 0:30 /docker/"+idC+" "+filepath.Join(p.root, "sys/fs/cgroup/pids")+" rw - cgroup cgroup rw\n")
	p.cgroup("pids/kubelet/kubepods/podx/"+idA, 0)
	p.process(10, "default", "/docker/"+idC+"/kubelet/kubepods/podx/"+idA)
	p.process(20, "default", "/kubelet/kubepods/podx/"+idA) // outside of the node
	sweep := p.sweep(proc.Options{}, drift.Container{ID: idA, CgroupPath: "/kubelet/kubepods/podx/" + idA})
	if got := tell(sweep); !slices.Equal(got, []string{"A observed 10", "/ observed 20"}) {
		t.Errorf("%q", got)
	}
}

// TestFieldJoinedPIDs (04): a process of the node joined the pid namespace of a container, and no
// other of its namespaces. Where namespaces may be read it is that container's, else one of
// several that it may be of.
func TestFieldJoinedPIDs(t *testing.T) {
	const session = "/user.slice/session-9.scope"
	for name, row := range map[string]struct {
		namespaces map[int]int // of each pid; nil: they may not be read
		want       []string
	}{
		"they may be read":                   {map[int]int{1: 1, 50: 7, 100: 7, 200: 8}, []string{"A 50 100", "B 200"}},
		"they may not":                       {nil, []string{"A 100", "B 200", "joined one of 2 50"}},
		"two containers share theirs":        {map[int]int{1: 1, 50: 7, 100: 7, 200: 7}, []string{"A 100", "B 200", "joined one of 2 50"}},
		"a container with that of the node":  {map[int]int{1: 1, 50: 1, 100: 1, 200: 8}, []string{"A 100", "B 200", "joined one of 2 50"}},
		"that of something that is no pod's": {map[int]int{1: 1, 50: 9, 100: 7, 200: 8}, []string{"A 100", "B 200", "joined one of 2 50"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, containers := twoPods(t)
			p.cgroup("kubepods/podA/"+idA, 100)
			p.cgroup("kubepods/podB/"+idB, 200)
			p.person(person{pid: 50, parent: 1, name: "sh", cgroup: session, mount: mountNode, inner: 7, everything: true})
			for pid, namespace := range row.namespaces {
				dir := filepath.Join(p.root, fmt.Sprintf("proc/%d/ns", pid))
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(fmt.Sprintf("pid:[%d]", namespace), filepath.Join(dir, "pid")); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for _, c := range p.sweep(proc.Options{}, containers...).Containers {
				text := map[string]string{idA: "A", idB: "B"}[c.ID]
				if n := len(c.MayHaveJoined); n > 0 {
					text = fmt.Sprintf("joined one of %d", n)
				}
				for _, process := range c.Processes {
					text += fmt.Sprint(" ", process.PID)
				}
				got = append(got, text)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}
