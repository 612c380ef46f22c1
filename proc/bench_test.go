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
	"time"

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

// floor returns the least that reading a status file of each process can cost:
// open, read, close, with one buffer and nothing done with what was read.
func (c *crowd) floor(b *testing.B) func() {
	dir, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Close(dir) })
	buf := make([]byte, 64<<10)
	names := make([]string, len(c.pids))
	for i, pid := range c.pids {
		names[i] = strconv.Itoa(pid) + "/status"
	}
	return func() {
		for _, name := range names {
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := unix.Read(fd, buf); n <= 0 {
				b.Fatal(n, err)
			}
			_ = unix.Close(fd)
		}
	}
}

// sweep does what `capdrift scan` does on a node after it has asked the runtime:
// list, read, parse, settle, compare.
func (c *crowd) sweep(b *testing.B, fs *proc.FS, node drift.Node) {
	sweep, err := fs.Sweep(context.Background(), []drift.Container{c.container})
	if err != nil {
		b.Fatal(err)
	}
	for i := range sweep.Containers {
		drift.Settle(node, nil, &sweep.Containers[i])
		drift.Compare(node, sweep.Containers[i])
	}
	if crowd := sweep.Containers[0]; len(crowd.Processes) != len(c.pids) {
		b.Fatalf("%d processes, want %d: %s", len(crowd.Processes), len(c.pids), crowd.Reason)
	}
}

func (c *crowd) fs(b *testing.B) (*proc.FS, drift.Node) {
	fs := proc.New(c.root, proc.Options{Threads: -1})
	node, _, err := fs.Node()
	if err != nil {
		b.Fatal(err)
	}
	return fs, node
}

// pscap is libcap-ng's lister of all processes (Debian's libcap-ng-utils).
func pscap(b *testing.B) {
	if err := exec.Command("pscap", "-a").Run(); err != nil {
		b.Fatal(err)
	}
}

func needPscap(b *testing.B) {
	if _, err := exec.LookPath("pscap"); err != nil {
		b.Skip("pscap is not installed (apt-get install libcap-ng-utils)")
	}
}

func BenchmarkFloor(b *testing.B) {
	c := startCrowd(b)
	floor := c.floor(b)
	for b.Loop() {
		floor()
	}
	perProcess(b, len(c.pids))
}

// BenchmarkSweep sweeps again and again, as the agent does.
func BenchmarkSweep(b *testing.B) {
	c := startCrowd(b)
	fs, node := c.fs(b)
	c.sweep(b, fs, node)
	b.ReportAllocs()
	for b.Loop() {
		c.sweep(b, fs, node)
	}
	perProcess(b, len(c.pids))
}

// BenchmarkFirstSweep sweeps once, with nothing known from before.
func BenchmarkFirstSweep(b *testing.B) {
	c := startCrowd(b)
	_, node := c.fs(b)
	b.ReportAllocs()
	for b.Loop() {
		fs := proc.New(c.root, proc.Options{Threads: -1})
		c.sweep(b, fs, node)
	}
	perProcess(b, len(c.pids))
}

func BenchmarkPscap(b *testing.B) {
	needPscap(b)
	c := startCrowd(b)
	for b.Loop() {
		pscap(b)
	}
	perProcess(b, len(c.pids))
}

// BenchmarkSideBySide runs all of them in turns, so that whatever else the machine
// does meets them alike, and reports how they compare.
func BenchmarkSideBySide(b *testing.B) {
	needPscap(b)
	c := startCrowd(b)
	fs, node := c.fs(b)
	c.sweep(b, fs, node)
	floor := c.floor(b)
	var floors, sweeps, firsts, pscaps time.Duration
	for b.Loop() {
		for _, each := range []struct {
			took *time.Duration
			run  func()
		}{
			{&floors, floor},
			{&sweeps, func() { c.sweep(b, fs, node) }},
			{&firsts, func() { c.sweep(b, proc.New(c.root, proc.Options{Threads: -1}), node) }},
			{&pscaps, func() { pscap(b) }},
		} {
			started := time.Now()
			each.run()
			*each.took += time.Since(started)
		}
	}
	b.ReportMetric(float64(sweeps)/float64(floors), "sweep/floor")
	b.ReportMetric(float64(sweeps)/float64(pscaps), "sweep/pscap")
	b.ReportMetric(float64(firsts)/float64(floors), "first/floor")
	b.ReportMetric(float64(firsts)/float64(pscaps), "first/pscap")
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
