//go:build linux

package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/agentpod"
	"github.com/capdrift/capdrift/e2e/node"
)

// The node that the agent's cost is measured on.
const (
	costContainers = 200
	costProcesses  = 5000
)

// never is a cadence that does not come round while it is measured.
const never = "1000h"

// BenchmarkCost measures what the agent costs a node of 200 containers and 5,000 processes
// that all sleep; one iteration is a second, so run it with -benchtime 600x. After the agent
// with its default settings run others that have one of its cadences each, and in the end,
// once, the loop that a user would write instead.
func BenchmarkCost(b *testing.B) { cost(b) }

// BenchmarkCostAwake is the same where half of the containers wake up once a second: those
// are read at every sweep.
func BenchmarkCostAwake(b *testing.B) { cost(b, "beat=1s") }

// cost measures among containers of which every second one takes some steps more.
func cost(b *testing.B, steps ...string) {
	if theNode == nil {
		b.Skip("needs root, for a container runtime of its own; run: sudo make bench-agent")
	}
	containers := crowded(b, steps)
	share := func(cpu, of time.Duration) float64 { return math.Round(cpu.Seconds()/of.Seconds()*1e4) / 100 }
	runtime := theNode.RuntimePid()

	// A node has one agent, and so it is measured alone.
	a := startAgent(b)
	a.awaitFor(2*time.Minute, "all processes are seen", func() bool { return a.processes() >= costProcesses }) // a busy node takes more than a look
	pid := a.cmd.Process.Pid
	_ = a.scrape() // the connection stays
	settled, goroutines, asked := usage(b, pid), a.metric("go_goroutines"), usage(b, runtime).CPU
	began := time.Now()
	var resident []int64
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for b.Loop() {
		<-tick.C
		resident = append(resident, usage(b, pid).Resident)
	}
	took, now := time.Since(began), usage(b, pid)
	b.ReportMetric(share(now.CPU-settled.CPU, took), "all-%core")
	b.ReportMetric(share(usage(b, runtime).CPU-asked, took), "containerd-%core")
	slices.Sort(resident)
	b.ReportMetric(float64(resident[len(resident)/2])/(1<<20), "rss-median-MiB")
	b.ReportMetric(float64(resident[len(resident)-1])/(1<<20), "rss-most-MiB")
	b.ReportMetric(float64(now.Descriptors-settled.Descriptors), "fds-grown")
	b.ReportMetric(float64(now.Threads-settled.Threads), "threads-grown")
	b.ReportMetric(a.metric("go_goroutines")-goroutines, "goroutines-grown")
	b.ReportMetric(0, "ns/op")
	a.end(syscall.SIGTERM)

	// The shares of the cadences: agents that have one each, two minutes of them.
	rows := []struct{ name, cadence string }{
		{"membership", "{list: " + never + ", sweep: " + never + ", threads: " + never + "}"},
		{"list", "{membership: " + never + ", sweep: " + never + ", threads: " + never + "}"},
		{"sweep", "{membership: " + never + ", list: " + never + ", threads: " + never + "}"},
		{"threads", "{membership: " + never + ", list: " + never + ", sweep: 1m, threads: 1m}"},
		{"none", "{membership: " + never + ", list: " + never + ", sweep: " + never + ", threads: " + never + "}"},
	}
	agents := make([]*anAgent, len(rows))
	before := make([]time.Duration, len(rows))
	for i, row := range rows {
		agents[i] = startAgent(b, "cadence: "+row.cadence)
		before[i] = usage(b, agents[i].cmd.Process.Pid).CPU
	}
	began = time.Now()
	for range min(len(resident), 120) {
		<-tick.C
	}
	for i, a := range agents {
		b.ReportMetric(share(usage(b, a.cmd.Process.Pid).CPU-before[i], time.Since(began)), rows[i].name+"-%core")
	}

	round, err := byHand(b.Context(), containers)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(round.Seconds(), "by-hand-cpu-s/round")
	b.ReportMetric(share(round, 15*time.Second), "by-hand-every-15s-%core")
}

// crowded brings the node to its containers and processes until the benchmark ends.
// Half of the containers have a pod of their own, and half of those, and of the others,
// take the further steps.
func crowded(b *testing.B, further []string) []*node.Container {
	b.Helper()
	var group errgroup.Group
	group.SetLimit(4)
	containers := make([]*node.Container, costContainers)
	for i := range containers {
		group.Go(func() (err error) {
			steps := []string{"spawn=4", "crowd=" + strconv.Itoa(costProcesses/costContainers-5), "ready", "sleep"}
			if i%4 < 2 {
				steps = slices.Concat(further, steps)
			}
			spec := pod(restricted(), steps...)
			spec.Shared = i%2 == 0
			containers[i], err = theNode.Run(b.Context(), spec)
			return err
		})
	}
	b.Cleanup(func() {
		for _, c := range containers {
			if c != nil {
				if err := theNode.Remove(context.Background(), c); err != nil {
					b.Error(err)
				}
			}
		}
	})
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return containers
}

// processes is how many the agent sees.
func (a *anAgent) processes() int {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "node", "-o", "json")
	if err != nil || status != 0 {
		a.t.Fatalf("get node: status %d, %v: %s", status, err, stderr)
	}
	var answer struct {
		Coverage struct{ Processes struct{ Observed int } }
	}
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		a.t.Fatal(err)
	}
	return answer.Coverage.Processes.Observed
}

// usage is what a process has used, and holds.
func usage(t testing.TB, pid int) agentpod.Usage {
	t.Helper()
	u, err := agentpod.UsageOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// byHand is one round of the loop that a user would write: inspect each container, grep
// the bitmaps of its processes, and decode with capsh what is new in it. It returns the
// processor time of that, the runtime's own left out.
func byHand(ctx context.Context, containers []*node.Container) (time.Duration, error) {
	began, err := processorTime()
	if err != nil {
		return 0, err
	}
	var pids strings.Builder
	for _, c := range containers {
		text, err := theNode.Info(ctx, c)
		if err != nil {
			return 0, err
		}
		var info struct{ Pid int }
		if err := json.Unmarshal(text, &info); err != nil {
			return 0, err
		}
		fmt.Fprintln(&pids, info.Pid)
	}
	const loop = `while read init; do
  cgroup=$(sed -n 's/^0:://p; s/^[0-9]*:pids://p' /proc/$init/cgroup | head -1)
  for root in /sys/fs/cgroup /sys/fs/cgroup/pids; do
    [ -e $root$cgroup/cgroup.procs ] && grep -h ^Cap $(sed 's|.*|/proc/&/status|' $root$cgroup/cgroup.procs) && break
  done | sort -u | while read set bits; do capsh --decode=$bits; done
done`
	run := exec.CommandContext(ctx, "bash", "-c", loop)
	run.Stdin = strings.NewReader(pids.String())
	out, err := run.Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		return 0, fmt.Errorf("the loop by hand: %w: %s", err, exit.Stderr)
	}
	if !slices.ContainsFunc(strings.Split(string(out), "\n"), func(line string) bool { return strings.Contains(line, "=") }) {
		return 0, fmt.Errorf("the loop by hand decoded nothing: %.200s", out)
	}
	ended, err := processorTime()
	return ended - began, err
}

// processorTime is what this process and the children it waited for have used.
func processorTime() (total time.Duration, err error) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			return 0, err
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total, nil
}
