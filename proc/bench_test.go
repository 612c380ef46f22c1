package proc_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// crowdSize is how many processes the benchmarks start; they live until the
// last benchmark is done (TestMain).
const crowdSize = 2000

// crowd is one container of many sleeping processes, in a cgroup of its own where
// this process may make one, else in a made-up tree that lists them.
type crowd struct {
	pids      []int
	container drift.Container
	root      string
	end       []func()
}

var (
	theCrowd  *crowd
	crowdOnce sync.Once
)

func startCrowd(b *testing.B) *crowd {
	crowdOnce.Do(func() {
		c := &crowd{root: "/", container: drift.Container{
			ID: "crowd", CgroupPath: fmt.Sprintf("/capdrift-bench-%d", os.Getpid()),
			// A container that declares everything: comparing is measured, finding is not.
			Declared: drift.Declared{OCI: &drift.OCI{Sets: capdecode.Sets{Bounding: ^capdecode.Set(0), Permitted: ^capdecode.Set(0)}}},
		}}
		theCrowd = c
		var listing bytes.Buffer
		for range crowdSize {
			sleeper := exec.Command("sleep", "100000")
			// They die with this process even if it is killed.
			sleeper.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			if err := sleeper.Start(); err != nil {
				b.Fatal(err)
			}
			c.end = append(c.end, func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() })
			c.pids = append(c.pids, sleeper.Process.Pid)
			fmt.Fprintln(&listing, sleeper.Process.Pid)
		}
		if !c.ownCgroup() {
			c.root = b.TempDir()
			c.listedIn(b, listing.Bytes())
		}
	})
	return theCrowd
}

// ownCgroup puts the crowd into a cgroup of the live tree.
func (c *crowd) ownCgroup() bool {
	for _, hierarchy := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		procs := filepath.Join(hierarchy, "cgroup.procs")
		if _, err := os.Stat(procs); err != nil {
			continue
		}
		directory := filepath.Join(hierarchy, c.container.CgroupPath)
		if os.Mkdir(directory, 0o755) != nil {
			continue
		}
		c.end = append(c.end, func() { _ = os.Remove(directory) })
		for _, pid := range c.pids {
			if os.WriteFile(filepath.Join(directory, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) != nil {
				return false
			}
		}
		return true
	}
	return false
}

// listedIn makes a root where /proc is the live one and the cgroup tree a picture.
func (c *crowd) listedIn(b *testing.B, listing []byte) {
	directory := filepath.Join(c.root, "sys/fs/cgroup", c.container.CgroupPath)
	for _, err := range []error{
		os.MkdirAll(directory, 0o755),
		os.WriteFile(filepath.Join(c.root, "sys/fs/cgroup/cgroup.controllers"), nil, 0o600),
		os.WriteFile(filepath.Join(directory, "cgroup.procs"), listing, 0o600),
		os.Symlink("/proc", filepath.Join(c.root, "proc")),
	} {
		if err != nil {
			b.Fatal(err)
		}
	}
}

// perProcess reports the time by the number of processes that were read.
func perProcess(b *testing.B, processes int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(processes), "ns/process")
}

// BenchmarkFloor is the least that reading a status file of each process can
// cost: open, read, close, with one buffer and nothing done with what was read.
func BenchmarkFloor(b *testing.B) {
	c := startCrowd(b)
	dir, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(dir)
	buf := make([]byte, 64<<10)
	names := make([]string, len(c.pids))
	for i, pid := range c.pids {
		names[i] = strconv.Itoa(pid) + "/status"
	}
	for b.Loop() {
		for _, name := range names {
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := unix.Read(fd, buf); n <= 0 {
				b.Fatal(n, err)
			}
			unix.Close(fd)
		}
	}
	perProcess(b, len(c.pids))
}

// BenchmarkSweep is what `capdrift scan` does of a node after it has asked the
// runtime: list, read, parse, settle, compare.
func BenchmarkSweep(b *testing.B) {
	c := startCrowd(b)
	fs := proc.New(c.root, proc.Options{Threads: -1})
	node, _, err := fs.Node()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	seen := 0
	for b.Loop() {
		sweep, err := fs.Sweep(context.Background(), []drift.Container{c.container})
		if err != nil {
			b.Fatal(err)
		}
		for i := range sweep.Containers {
			drift.Settle(node, &sweep.Containers[i])
			drift.Compare(node, sweep.Containers[i])
		}
		if seen = len(sweep.Containers[0].Processes); seen != len(c.pids) {
			b.Fatalf("%d processes, want %d: %s", seen, len(c.pids), sweep.Containers[0].Reason)
		}
	}
	perProcess(b, seen)
}

// BenchmarkPscap is libcap-ng's lister of the same processes (Debian's libcap-ng-utils).
func BenchmarkPscap(b *testing.B) {
	if _, err := exec.LookPath("pscap"); err != nil {
		b.Skip("pscap is not installed (apt-get install libcap-ng-utils)")
	}
	c := startCrowd(b)
	for b.Loop() {
		if err := exec.Command("pscap", "-a").Run(); err != nil {
			b.Fatal(err)
		}
	}
	perProcess(b, len(c.pids))
}

func BenchmarkParseStatus(b *testing.B) {
	text, err := os.ReadFile("../testdata/captures/containerd-2.4.2/default/proc/status")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := proc.ParseStatus(text); err != nil {
			b.Fatal(err)
		}
	}
}
