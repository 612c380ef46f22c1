package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// captures is where the answers of real runtimes were recorded, with the /proc
// files of the same processes.
const captures = "../../testdata/captures"

// fixture is the root of a node made of files: its /proc and /sys/fs/cgroup.
type fixture struct {
	root   string
	cgroup string // where container cgroups go: "pids" on hybrid, "" on v2
	fail   func(error)
}

// newFixture lays out a node with nothing on it but its first process.
func newFixture(tb testing.TB, root, cgroupMode string) *fixture {
	f := &fixture{root: root, fail: func(err error) { tb.Helper(); tb.Fatal(err) }}
	for name, text := range map[string]string{
		"proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
		"proc/sys/kernel/osrelease":      "6.18.44\n",
		"proc/sys/kernel/cap_last_cap":   "40\n",
		"proc/sys/kernel/hostname":       "node-a\n",
		"proc/uptime":                    "9000.00 17000.00\n",
		"proc/mounts":                    "proc /proc proc rw,relatime 0 0\n",
		"proc/self/mountinfo":            "22 1 0:21 / /proc rw,relatime - proc proc rw\n",
	} {
		f.write(name, text)
	}
	switch cgroupMode {
	case "hybrid":
		f.cgroup = "pids"
		f.write("sys/fs/cgroup/pids/cgroup.procs", "1\n")
		f.write("sys/fs/cgroup/unified/cgroup.procs", "1\n")
		f.write("sys/fs/cgroup/unified/cgroup.controllers", "\n")
	case "v2":
		f.write("sys/fs/cgroup/cgroup.procs", "1\n")
		f.write("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
	default:
		f.fail(fmt.Errorf("cgroup mode %q", cgroupMode))
	}
	f.process(1, status("init", 1, 0, "000001ffffffffff"), "/")
	return f
}

func (f *fixture) write(name, text string) {
	path := filepath.Join(f.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.fail(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		f.fail(err)
	}
}

// process adds one in the initial user namespace to the cgroup.
func (f *fixture) process(pid int, status, cgroup string) {
	stat := fmt.Sprintf("%d (x) S 1 %d %d 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 %d 0 0\n", pid, pid, pid, 1000+pid)
	f.add(pid, map[string]string{"status": status, "stat": stat, "uid_map": "         0          0 4294967295\n"}, cgroup)
}

// add puts the files of one process below /proc and its pid into the cgroup.
func (f *fixture) add(pid int, files map[string]string, cgroup string) {
	dir := fmt.Sprintf("proc/%d/", pid)
	for name, text := range files {
		f.write(dir+name, text)
	}
	f.write(fmt.Sprintf("%stask/%d/status", dir, pid), files["status"])
	f.write(dir+"gid_map", files["uid_map"])
	projects, inode := files["uid_map"], "user:[4026531837]"
	if !strings.Contains(files["uid_map"], "4294967295") {
		projects, inode = "", fmt.Sprintf("user:[%d]", 4026540000+pid)
	}
	f.write(dir+"projid_map", projects)
	if f.cgroup == "" {
		f.write(dir+"cgroup", "0::"+cgroup+"\n")
	} else {
		f.write(dir+"cgroup", "8:pids:"+cgroup+"\n0::"+cgroup+"\n")
	}
	f.write(dir+"ns/placeholder", "")
	if err := os.Symlink(inode, filepath.Join(f.root, dir, "ns/user")); err != nil {
		f.fail(err)
	}
	members := filepath.Join("sys/fs/cgroup", f.cgroup, cgroup, "cgroup.procs")
	already, _ := os.ReadFile(filepath.Join(f.root, members))
	if cgroup != "/" {
		f.write(members, fmt.Sprintf("%s%d\n", already, pid))
	}
}

// status is a /proc/PID/status with the same permitted, effective and bounding set.
func status(name string, pid, uid int, set string) string {
	return fmt.Sprintf("Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t%d\nNgid:\t0\nPid:\t%d\nPPid:\t0\nTracerPid:\t0\n"+
		"Uid:\t%d\t%d\t%d\t%d\nGid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t \nNStgid:\t%d\nNSpid:\t%d\nNSpgid:\t%d\nNSsid:\t%d\nThreads:\t1\n"+
		"CapInh:\t0000000000000000\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t%s\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\n",
		name, pid, pid, uid, uid, uid, uid, pid, pid, pid, pid, set, set, set)
}

// captured adds the processes of every recorded case of a runtime and returns
// how many there are.
func (f *fixture) captured(runtime string) int {
	cases, err := filepath.Glob(filepath.Join(captures, runtime, "*", "proc"))
	if err != nil {
		f.fail(err)
	}
	for _, dir := range cases {
		files := make(map[string]string)
		for _, name := range []string{"status", "stat", "uid_map", "cgroup"} {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				f.fail(err)
			}
			files[name] = string(text)
		}
		var pid int
		if _, err := fmt.Sscan(files["stat"], &pid); err != nil {
			f.fail(fmt.Errorf("%s/stat: %w", dir, err))
		}
		_, cgroup, _ := strings.Cut(files["cgroup"], ":pids:")
		cgroup, _, _ = strings.Cut(cgroup, "\n")
		f.add(pid, files, cgroup)
	}
	return len(cases)
}
