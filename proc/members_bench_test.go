package proc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// benchContainers makes live cgroups, each with one process of the crowd as long as
// there are any, and returns them as containers.
func benchContainers(b *testing.B, tree string, n int) (containers []drift.Container, dirs []string) {
	if os.Geteuid() != 0 {
		b.Skip("not root")
	}
	name := fmt.Sprintf("capdrift-members-bench-%d", os.Getpid())
	parent := filepath.Join(tree, name)
	move := func(dir string, pid int) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.Mkdir(parent, 0o755); err != nil {
		b.Fatal(err)
	}
	c := startCrowd(b)
	for i := range n {
		id := fmt.Sprintf("c%d", i)
		dir := filepath.Join(parent, id)
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if i < len(c.pids) {
			move(dir, c.pids[i])
		}
		dirs = append(dirs, dir)
		containers = append(containers, drift.Container{ID: id, CgroupPath: "/" + name + "/" + id})
	}
	b.Cleanup(func() {
		back := tree
		if filepath.Base(tree) == "pids" {
			back = filepath.Join(tree, c.container.CgroupPath) // where the crowd is
		}
		for i := range n {
			if i < len(c.pids) {
				move(back, c.pids[i])
			}
			if err := os.Remove(dirs[i]); err != nil {
				b.Error(err)
			}
		}
		if err := os.Remove(parent); err != nil {
			b.Error(err)
		}
	})
	return containers, dirs
}

// leastLook returns the least that looking at a list of each cgroup can cost: pread of
// an open one on v2, open, read and close on v1.
func leastLook(b *testing.B, version string, dirs []string) func() {
	var files []int
	buf := make([]byte, 4096)
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if version == "v2" && err == nil {
			_ = unix.Close(fd)
			fd, err = unix.Open(filepath.Join(dir, "cgroup.procs"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = unix.Close(fd) })
		files = append(files, fd)
	}
	return func() {
		for _, fd := range files {
			var err error
			if version == "v2" {
				_, err = unix.Pread(fd, buf, 0)
			} else if fd, err = unix.Openat(fd, "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
				_, err = unix.Read(fd, buf)
				_ = unix.Close(fd)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkMembers is one tick of the membership cadence when nothing changes, in
// turns with the least that it can cost.
func BenchmarkMembers(b *testing.B) {
	for version, where := range hierarchies(b) {
		for _, n := range []int{200, 2000} {
			b.Run(fmt.Sprintf("%s/%d", version, n), func(b *testing.B) {
				containers, dirs := benchContainers(b, where[1], n)
				least := leastLook(b, version, dirs)
				m := members(b, proc.New(where[0], proc.Options{}))
				if limits := m.Follow(containers); len(limits) != 0 {
					b.Fatal(limits)
				}
				look := func() int {
					changes, err := m.Changes(context.Background())
					if err != nil {
						b.Fatal(err)
					}
					return len(changes)
				}
				for look() > 0 {
				}
				if allocated := testing.AllocsPerRun(10, func() { look() }); allocated != 0 {
					b.Errorf("%v allocations", allocated)
				}
				var looks, leasts time.Duration
				for b.Loop() {
					started := time.Now()
					if look() != 0 {
						b.Fatal("something changed")
					}
					looks += time.Since(started)
					started = time.Now()
					least()
					leasts += time.Since(started)
				}
				b.ReportMetric(float64(looks.Nanoseconds())/float64(b.N)/float64(n), "ns/container")
				b.ReportMetric(float64(looks)/float64(leasts), "look/floor")
				b.ReportMetric(float64(m.Open())/float64(n), "fds/container")
			})
		}
	}
}

// BenchmarkMembersOfOne is one tick of one container with the whole crowd in it: when
// nothing changes, and when one process leaves or joins.
func BenchmarkMembersOfOne(b *testing.B) {
	for version, where := range hierarchies(b) {
		b.Run(version, func(b *testing.B) {
			containers, dirs := benchContainers(b, where[1], 1)
			c := startCrowd(b)
			home := where[1]
			if version == "v1" {
				home = filepath.Join(home, c.container.CgroupPath)
			}
			enter := func(dir string, pid int) {
				if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
					b.Fatal(err)
				}
			}
			for _, pid := range c.pids {
				enter(dirs[0], pid)
			}
			defer func() {
				for _, pid := range c.pids {
					enter(home, pid)
				}
			}()
			m := members(b, proc.New(where[0], proc.Options{}))
			m.Follow(containers)
			look := func() []proc.Change {
				changes, err := m.Changes(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				return changes
			}
			for len(look()) > 0 {
			}
			one := c.pids[len(c.pids)/2]
			var still, moved time.Duration
			for b.Loop() {
				started := time.Now()
				if look() != nil {
					b.Fatal("something changed")
				}
				still += time.Since(started)
				for _, dir := range []string{home, dirs[0]} {
					enter(dir, one)
					started = time.Now()
					if len(look()) != 1 {
						b.Fatal("nothing changed")
					}
					moved += time.Since(started)
				}
			}
			b.ReportMetric(float64(still.Microseconds())/float64(b.N), "µs/unchanged")
			b.ReportMetric(float64(moved.Microseconds())/float64(b.N)/2, "µs/changed")
		})
	}
}

// BenchmarkMembersRead reads one process that appeared.
func BenchmarkMembersRead(b *testing.B) {
	for version, where := range hierarchies(b) {
		b.Run(version, func(b *testing.B) {
			containers, _ := benchContainers(b, where[1], 1)
			pid := startCrowd(b).pids[0]
			m := members(b, proc.New(where[0], proc.Options{}))
			m.Follow(containers)
			for b.Loop() {
				if read, _, err := m.Read(context.Background(), containers[0].ID, []int{pid}); err != nil || len(read) != 1 {
					b.Fatal(len(read), err)
				}
			}
		})
	}
}
