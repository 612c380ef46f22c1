//go:build linux

package attacks

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// TestRow06Arguments: with 1.42 MiB of "<" in a pod's arguments its verbose status is more than
// containerd can send as it is, so that nobody learned from it what was declared. An intruder in the
// pod is found all the same.
func TestRow06Arguments(t *testing.T) {
	t.Parallel()
	s := begin(t)
	args := []string{"ready", "sleep"} // what follows is never read
	for range 15 {
		args = append(args, strings.Repeat("<", 1420<<10/15))
	}
	s.innocent("neighbor", nil)
	c := s.attacked("loud", nil, args...)
	if _, err := theNode.Info(t.Context(), c); err == nil {
		t.Fatal("the attack is not one: containerd sends the status")
	}
	s.intrude(c, "name=debug", "ready", "sleep")
	s.finds(c, "critical", "permitted_excess", "bounding_excess")
	s.scanFinds(c, "critical", "permitted_excess", "bounding_excess")
}

// TestRow17LongNames: a pod drops 1,024 capabilities whose names are 1,000 signs each that take six
// bytes in JSON. What is found about it, and about others at the same time, is written down.
func TestRow17LongNames(t *testing.T) {
	t.Parallel()
	s := begin(t)
	var names []string
	for i := range 1024 {
		names = append(names, strings.Repeat("<", 1000)+strconv.Itoa(i))
	}
	s.innocent("neighbor", nil)
	long := s.attacked("long-names", &cri.LinuxContainerSecurityContext{Capabilities: &cri.Capability{DropCapabilities: names}})
	other := s.attacked("other", nil)
	for _, c := range []*node.Container{long, other} {
		s.intrude(c, "name=debug", "ready", "sleep")
	}
	s.findsAll([]*node.Container{long, other})
	before := s.finds(other, "critical")
	s.restart(func() {})
	if stdout, stderr, status, err := s.ask("get", "node"); err != nil || status != 0 || strings.Contains(stdout, "journal: ") {
		t.Errorf("the journal fails: %v %s%s", err, stdout, stderr)
	}
	if now, _ := about(s.look().Findings, other.ID, "critical", []string{before.Kind}); now.ID != before.ID {
		t.Errorf("after a restart %q is open, before it was %q", now.ID, before.ID)
	}
	if strings.Count(s.log(), `finding_opened`) == 0 || strings.Contains(s.log(), "refused") {
		t.Errorf("the agent wrote %s", s.log())
	}
}

// TestRow07DearStatus: 800 processes that wake up once a second have 65,536 groups each, so that one
// status is 720 KB, which takes the kernel milliseconds to write. An intruder in another pod is told
// of within seconds all the same, and the pod that costs so much is named.
func TestRow07DearStatus(t *testing.T) {
	s := begin(t)
	noisy := s.innocent("noisy", nil, "groups=65536", "crowd=800:1s", "ready", "sleep")
	if n := len(tasksOf(t, noisy)); n < 800 {
		t.Fatalf("the attack is not one: %d processes", n)
	}
	intruders := 3
	if full {
		intruders = 20
	}
	var took []time.Duration
	for range intruders {
		victim := s.attacked("victim", nil) // a second one within a minute would be no news
		began := time.Now()
		pid := s.intrude(victim, "name=debug", "ready", "sleep")
		s.await("the intruder is told of", func() bool {
			for _, f := range s.told.open() {
				if f.ContainerID == victim.ID && f.Severity == "critical" && f.Pid == pid {
					return true
				}
			}
			return false
		})
		took = append(took, time.Since(began).Round(time.Millisecond))
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("told after %v", took)
	s.limits(noisy)
}

// TestRow08Nests: an unprivileged pod has 300 children at a time in user namespaces of their own,
// each of which lives for 600 ms. That is information by the thousand: it costs the journal no
// critical record of before, and no watch of others its connection.
func TestRow08Nests(t *testing.T) {
	s := begin(t, "journal: {maxBytes: 4194304}") // the smallest, so that it is soon full
	victim := s.attacked("victim", nil)
	filtered := s.watch("--filter", `finding.severity >= severity("high") && processes.exists(p, p.uid == 0)`)
	// One that does not read, and goes on where it was when the churn is over.
	behind := s.watch()
	if err := behind.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	count := 3000
	if full {
		count = 25000
	}
	before := forks(t)
	churned := func(children int) {
		t.Helper()
		s.awaitFor(10*time.Minute, "so many children have come", func() bool { return forks(t)-before > children })
	}
	s.run(nests(strings.Repeat("n", 63)))
	churned(count) // the agent has cut it off
	pid := s.intrude(victim, "name=debug", "ready", "sleep")
	found := s.finds(victim, "critical")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await("its end is told", func() bool {
		_, open := about(s.told.open(), victim.ID, "critical", nil)
		return !open
	})
	churned(4 * count)
	s.look()

	if !filtered.lives() {
		t.Error("a watch with a filter has ended")
	}
	if err := behind.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.await("a client that was behind is told of the critical finding of before", func() bool {
		for _, c := range behind.history() {
			if c.Finding.ID == found.ID {
				return true
			}
		}
		return false
	})
}

// nests is a pod of no capability that makes children in user namespaces of their own.
func nests(name string) node.Pod {
	return node.Pod{
		Container: name, Name: strings.Repeat("p", 253), Namespace: strings.Repeat("s", 63),
		Security: &cri.LinuxContainerSecurityContext{
			Capabilities: &cri.Capability{DropCapabilities: []string{"ALL"}}, NoNewPrivs: true, RunAsUser: &cri.Int64Value{Value: 1000},
		},
		Args: []string{"nests=300:600ms", "ready", "sleep"},
	}
}
