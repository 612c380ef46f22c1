//go:build linux

package attacks

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/agentpod"
)

// BenchmarkToldUnderAttack measures how soon an intruder is told of while one pod is dear to
// read and another makes noise (TestRow07DearStatus and TestRow08Nests at once), and what the
// agent costs meanwhile: p50-ms and p95-ms from the moment at which the intruder says that it
// runs, of a core in percent, and the most memory that it had. Run it with -benchtime 20x.
func BenchmarkToldUnderAttack(b *testing.B) {
	s := begin(b)
	kept := s.attacked("kept", nil)
	s.intrude(kept, "name=debug", "ready", "sleep") // the critical of before
	before := s.finds(kept, "critical")
	noisy := s.innocent("noisy", nil, "groups=65536", "crowd=800:1s", "ready", "sleep")
	s.run(nests("nests"))
	s.limits(noisy) // the attack is under way

	began, used := time.Now(), s.usage().CPU
	var delays []time.Duration
	var resident []int64
	for b.Loop() {
		victim := s.attacked("victim", nil)
		s.await("the victim is seen", func() bool {
			stdout, _, _, err := s.ask("get", "containers", "-o", "jsonl") // 3 where one has findings
			return err == nil && strings.Contains(stdout, victim.ID)
		})
		pid := s.intrude(victim, "name=debug", "ready", "sleep")
		ready := time.Now()
		s.await("the intruder is told of", func() bool {
			_, told := about(s.told.open(), victim.ID, "critical", nil)
			return told
		})
		delays, resident = append(delays, time.Since(ready)), append(resident, s.usage().Resident)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	took := time.Since(began)
	slices.Sort(delays)
	b.ReportMetric(float64(delays[len(delays)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(delays[len(delays)*95/100].Milliseconds()), "p95-ms")
	b.ReportMetric(100*(s.usage().CPU-used).Seconds()/took.Seconds(), "%core")
	b.ReportMetric(float64(slices.Max(resident))/(1<<20), "rss-most-MiB")
	b.ReportMetric(0, "ns/op")
	if _, open := about(s.told.open(), kept.ID, "critical", []string{before.Kind}); !open {
		b.Error("what was open before the attacks is not open any more")
	}
	s.limits(noisy)
}

// usage is what the agent has used, and holds.
func (s *scene) usage() agentpod.Usage {
	s.t.Helper()
	u, err := agentpod.UsageOf(s.agent.Pid)
	if err != nil {
		s.t.Fatal(err)
	}
	return u
}
