//go:build linux

package live

import (
	"bufio"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/node"
)

// told is a line of `capdrift watch` about a process that holds too much.
type told struct {
	pid int
	at  time.Time
}

// BenchmarkTold measures from the moment at which a process above the ceiling says that it
// runs to the line of `capdrift watch` that tells of it, while the node has a hundred ordinary
// execs a minute. What starts the process takes before is not in it. p50-ms and p95-ms are
// what counts; run it with -benchtime 200x. false counts findings about other processes. Each
// process is in a container of its own: a second one within a minute would be no news.
func BenchmarkTold(b *testing.B) {
	if theNode == nil {
		b.Skip("needs root, for a container runtime of its own; run: sudo make bench")
	}
	steps := []string{"name=debug", "ready", "sleep"}
	for _, way := range []struct {
		name  string
		start func(context.Context, *node.Container) (pid int, err error)
	}{
		{"exec-event", func(ctx context.Context, c *node.Container) (int, error) { // containerd tells of it, with its pid
			return theNode.TaskExec(ctx, c, []string{"CAP_SYS_ADMIN"}, steps...)
		}},
		{"runc-exec", func(ctx context.Context, c *node.Container) (int, error) { // nobody tells
			return theNode.RuncExec(ctx, c, []string{"CAP_SYS_ADMIN"}, steps...)
		}},
		{"joined", func(ctx context.Context, c *node.Container) (int, error) { // nobody tells
			p, err := theNode.Inject(ctx, c, "ready", "sleep")
			if err != nil {
				return 0, err
			}
			return p.Pid, nil
		}},
	} {
		b.Run(way.name, func(b *testing.B) { benchmarkTold(b, way.start) })
	}
}

func benchmarkTold(b *testing.B, start func(context.Context, *node.Container) (int, error)) {
	a := startAgent(b)
	var containers [2]*node.Container
	for i := range containers {
		c, err := theNode.Run(b.Context(), node.Pod{Security: dropAll()})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = theNode.Remove(context.WithoutCancel(b.Context()), c) }()
		containers[i] = c
	}
	lines, stop := a.tellsOf(b)
	defer stop()
	execs := ordinaryExecs(b, containers[:])
	defer execs()
	var delays []time.Duration
	others := 0
	for b.Loop() {
		c, err := theNode.Run(b.Context(), node.Pod{Security: dropAll()})
		if err != nil {
			b.Fatal(err)
		}
		a.await("the container is seen", func() bool { return a.sees(c.ID) })
		pid, err := start(b.Context(), c)
		ready := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		for line := range lines {
			if line.pid == pid {
				delays = append(delays, line.at.Sub(ready))
				break
			}
			others++
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		if err := theNode.Remove(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(delays)
	b.ReportMetric(float64(delays[len(delays)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(delays[len(delays)*95/100].Milliseconds()), "p95-ms")
	b.ReportMetric(float64(delays[len(delays)-1].Milliseconds()), "max-ms")
	b.ReportMetric(float64(others), "false")
	b.ReportMetric(0, "ns/op")
}

// tellsOf watches, and passes on which processes hold more than their ceiling.
func (a *anAgent) tellsOf(b *testing.B) (lines <-chan told, stop func()) {
	b.Helper()
	watch := exec.Command(filepath.Join(programs, "capdrift"), "watch", "-o", "jsonl", "--agent", "unix://"+a.socket)
	out, err := watch.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		b.Fatal(err)
	}
	passed := make(chan told, 4096)
	go func() {
		defer close(passed)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			at := time.Now()
			var record struct {
				Change  string
				Finding *finding
			}
			if json.Unmarshal(scanner.Bytes(), &record) == nil && record.Change == "opened" && record.Finding.Kind == "bounding_excess" {
				passed <- told{record.Finding.Pid, at}
			}
		}
	}()
	return passed, func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
	}
}

// ordinaryExecs has the runtime start a process in a container a hundred times a minute.
func ordinaryExecs(b *testing.B, containers []*node.Container) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	var count atomic.Int64
	began := time.Now()
	all.Go(func() {
		every := time.NewTicker(time.Minute / 100)
		defer every.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
			}
			if _, _, err := theNode.Exec(ctx, containers[i%len(containers)], "/bin/actor", "exit"); err != nil && ctx.Err() == nil {
				b.Error(err)
				return
			}
			count.Add(1)
		}
	})
	return func() {
		cancel()
		all.Wait()
		b.ReportMetric(float64(count.Load())/time.Since(began).Minutes(), "execs/min")
	}
}
