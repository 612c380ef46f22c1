package proc_test

import (
	"context"
	"fmt"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
	"golang.org/x/sys/unix"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

func cpu() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
func BenchmarkRatio(b *testing.B) {
	c := startCrowd(b)
	dir, _ := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	buf := make([]byte, 65536)
	names := []string{}
	for _, p := range c.pids {
		names = append(names, strconv.Itoa(p)+"/status")
	}
	fs := proc.New(c.root, proc.Options{Threads: -1})
	node, _, _ := fs.Node()
	floor := func() {
		for _, n := range names {
			fd, _ := unix.Openat(dir, n, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			unix.Read(fd, buf)
			unix.Close(fd)
		}
	}
	sweep := func() {
		s, err := fs.Sweep(context.Background(), []drift.Container{c.container})
		if err != nil {
			panic(err)
		}
		for i := range s.Containers {
			drift.Settle(node, &s.Containers[i])
			drift.Compare(node, s.Containers[i])
		}
	}
	pscap := func() { exec.Command("pscap", "-a").Run() }
	fsn := []func(){floor, sweep, pscap}
	best := [3]time.Duration{1 << 60, 1 << 60, 1 << 60}
	bc := best
	n := 30
	if v := os.Getenv("N"); v != "" {
		n, _ = strconv.Atoi(v)
	}
	for i := 0; i < n; i++ {
		for k, f := range fsn {
			c0 := cpu()
			t := time.Now()
			f()
			d := time.Since(t)
			cc := cpu() - c0
			best[k] = min(best[k], d)
			bc[k] = min(bc[k], cc)
		}
	}
	N := time.Duration(len(c.pids))
	fmt.Printf("floor %v sweep %v pscap %v  s/f %.2f s/p %.2f  cpu floor %v sweep %v\n", best[0]/N, best[1]/N, best[2]/N, float64(best[1])/float64(best[0]), float64(best[1])/float64(best[2]), bc[0]/N, bc[1]/N)
}
