//go:build linux

package live

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/node"
)

// BenchmarkTold measures from the moment at which a process above the ceiling says that it
// runs to the line of `capdrift watch` that tells of it. runc exec is told by no event; what
// runc itself takes before is not in it. p50-ms and p95-ms are what counts; run it with
// -benchtime 200x.
func BenchmarkTold(b *testing.B) {
	if theNode == nil {
		b.Skip("needs root, for a container runtime of its own; run: sudo make bench")
	}
	a := startAgent(b)
	c, err := theNode.Run(b.Context(), node.Pod{Security: dropAll()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = theNode.Remove(b.Context(), c) }()
	watch := exec.CommandContext(b.Context(), filepath.Join(programs, "capdrift"), "watch", "-o", "jsonl", "--agent", "unix://"+a.socket)
	out, err := watch.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		b.Fatal(err)
	}
	type told struct {
		pid int
		at  time.Time
	}
	lines := make(chan told, 4096)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			at := time.Now()
			var record struct {
				Finding *finding
				Type    string
			}
			if json.Unmarshal(scanner.Bytes(), &record) == nil && record.Finding != nil && record.Finding.Kind == "bounding_excess" {
				lines <- told{record.Finding.Pid, at}
			}
		}
	}()
	var delays []time.Duration
	for b.Loop() {
		pid, err := theNode.RuncExec(b.Context(), c, []string{"CAP_SYS_ADMIN"}, "name=debug", "ready", "sleep")
		ready := time.Now()
		if err != nil {
			b.Fatal(err)
		}
		for line := range lines {
			if line.pid == pid {
				delays = append(delays, line.at.Sub(ready))
				break
			}
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	slices.Sort(delays)
	b.ReportMetric(float64(delays[len(delays)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(delays[len(delays)*95/100].Milliseconds()), "p95-ms")
	b.ReportMetric(float64(delays[len(delays)-1].Milliseconds()), "max-ms")
}
