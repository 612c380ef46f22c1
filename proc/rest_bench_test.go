package proc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// BenchmarkRest is a sweep of 200 containers at rest beside one that reads all of their
// processes, in turns.
func BenchmarkRest(b *testing.B) {
	const v1 = "/sys/fs/cgroup/"
	if _, err := os.Stat(v1 + "cpuacct/cpuacct.usage"); err != nil || os.Geteuid() != 0 {
		b.Skip("needs root and cgroup v1")
	}
	const n = 200
	c := startCrowd(b)
	name := fmt.Sprintf("capdrift-rest-%d", os.Getpid())
	var containers []drift.Container
	move := func(dir string, pid int) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			b.Fatal(err)
		}
	}
	for _, tree := range []string{v1 + "pids", v1 + "cpuacct"} {
		back := tree
		if filepath.Base(tree) == "pids" {
			back = filepath.Join(tree, c.container.CgroupPath)
		}
		parent := filepath.Join(tree, name)
		b.Cleanup(func() { _ = os.Remove(parent) })
		for i := range n {
			dir := filepath.Join(parent, fmt.Sprint("c", i))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = os.Remove(dir) })
			for _, pid := range c.pids[i*crowdSize/n : (i+1)*crowdSize/n] {
				move(dir, pid)
				b.Cleanup(func() { move(back, pid) })
			}
		}
	}
	for i := range n {
		containers = append(containers, drift.Container{ID: fmt.Sprint("c", i), CgroupPath: fmt.Sprintf("/%s/c%d", name, i)})
	}
	fs := proc.New("/", proc.Options{LeadersOnly: true, Readers: 1})
	sweep := func(given []drift.Container) []drift.Container {
		out, err := fs.Sweep(context.Background(), given)
		if err != nil || out.Processes.Observed < crowdSize {
			b.Fatal(out.Processes, err)
		}
		for i := range out.Containers {
			for j := range out.Containers[i].Processes {
				out.Containers[i].Processes[j].Observation = drift.Observed
			}
		}
		return out.Containers[:n]
	}
	sweep(containers)
	known := sweep(containers)
	var whole, rest time.Duration
	b.ReportAllocs()
	for b.Loop() {
		started := time.Now()
		sweep(containers)
		between := time.Now()
		known = sweep(known)
		whole += between.Sub(started)
		rest += time.Since(between)
	}
	b.ReportMetric(float64(rest)/float64(whole), "rest/whole")
	b.ReportMetric(float64(rest.Microseconds())/float64(b.N), "rest-µs")
	b.ReportMetric(float64(whole.Microseconds())/float64(b.N), "whole-µs")
}
