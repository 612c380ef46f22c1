//go:build linux

package attacks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/e2e/cgroup"
	"github.com/capdrift/capdrift/e2e/node"
)

// host starts a process of the host, with all that the test holds, which lasts as long as the test.
func (s *scene) host(steps ...string) *node.Process {
	s.t.Helper()
	p, err := theNode.StartActor(s.t.Context(), steps...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Stop)
	return p
}

func pidOf(c *node.Container) string { return strconv.Itoa(c.Pid) }

// restart kills the agent, lets something happen, and starts another with its journal.
func (s *scene) restart(meanwhile func()) {
	s.t.Helper()
	s.stopAgent()
	meanwhile()
	s.startAgent()
}

// TestRow18Away: a pod with an intruder ends while no agent runs. The finding is closed as ended, or as
// unknown, and never as explained, which would acquit it.
func TestRow18Away(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.attacked("short", nil)
	s.intrude(c, "name=debug", "ready", "sleep")
	found := s.finds(c, "critical")
	s.restart(func() {
		if err := theNode.Remove(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	})
	closed := ""
	s.await("the log says that the finding is closed", func() bool {
		for line := range strings.Lines(s.log()) {
			if strings.Contains(line, "finding_resolved") && strings.Contains(line, found.ID) {
				closed = line
			}
		}
		return closed != ""
	})
	if strings.Contains(closed, "explained") {
		t.Errorf("it was closed by: %s", closed)
	}
}

// TestRow19LowestPid: the processes of a container that no pod explains end one after the other,
// beginning with the lowest pid. What is found about the container is found once.
func TestRow19LowestPid(t *testing.T) {
	s := begin(t)
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	s.guilty[id] = "nobody knows it"
	owners.Store(id, s)
	place := theNode.Cgroup + "/alone/" + id
	if err := cgroup.Make(place); err != nil {
		t.Fatal(err)
	}
	var processes []*node.Process
	for range 4 {
		p := s.host("ready", "sleep")
		if err := cgroup.Put(place, p.Pid); err != nil {
			t.Fatal(err)
		}
		processes = append(processes, p)
	}
	s.await("the agent finds the container", func() bool {
		_, ok := about(s.told.open(), id, "medium", []string{"unmanaged_container"})
		return ok
	})
	for _, p := range processes[:3] {
		p.Stop()
		s.look()
	}
	changes := map[string]int{}
	for _, one := range s.told.history() {
		if one.Finding.ContainerID == id && one.Finding.Kind == "unmanaged_container" {
			changes[one.Change]++
		}
	}
	if changes["opened"] != 1 || changes["resolved"] != 0 {
		t.Errorf("the finding was %v, want it opened once", changes)
	}
}

// TestRow21Survivor: an intruder outlives the container that he is in, and is in its cgroup. What is
// found about him stays critical and of the pod, for an agent that is started then, too.
func TestRow21Survivor(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.attacked("ended", nil)
	p := s.host("name=debug", "ready", "sleep")
	if err := theNode.MoveTo(c, p); err != nil {
		t.Fatal(err)
	}
	s.finds(c, "critical")
	place, err := cgroup.Of(p.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s.restart(func() {
		// containerd waits until a container's cgroup is empty: he steps aside.
		if err := cgroup.Put("/", p.Pid); err != nil {
			t.Fatal(err)
		}
		if err := theNode.Stop(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := cgroup.Make(place); err != nil {
			t.Fatal(err)
		}
		if err := cgroup.Put(place, p.Pid); err != nil {
			t.Fatal(err)
		}
	})
	r := s.look()
	for who, findings := range map[string][]finding{"the agent": r.Findings, "scan": s.scan().Findings} {
		if !slices.ContainsFunc(findings, func(f finding) bool {
			return f.ContainerID == c.ID && f.Container == c.Pod.Container && f.Severity == "critical"
		}) {
			t.Errorf("%s does not find him in the pod's container, but %v", who, findings)
		}
	}
}

// TestRow23SlowHook: a hook of the runtime takes seconds, so that a sandbox and then a container are
// there for long before the runtime's list shows that they run. Their stages are nobody's drift.
func TestRow23SlowHook(t *testing.T) {
	s := begin(t)
	var c *node.Container
	var err error
	started := make(chan struct{})
	go func() {
		defer close(started)
		if c, err = theNode.Create(t.Context(), node.Pod{Container: "hooked", Handler: node.HandlerSlow}); err == nil {
			owners.Store(c.ID, s)
			owners.Store(c.Sandbox, s)
			err = theNode.Start(t.Context(), c)
		}
	}()
	t.Cleanup(func() {
		<-started
		if c != nil {
			if err := theNode.Remove(context.Background(), c); err != nil {
				t.Error(err)
			}
		}
	})
	looks := 0
	for {
		select {
		case <-started:
			if err != nil {
				t.Fatal(err)
			}
			if looks == 0 {
				t.Fatal("the attack is not one: it took no longer than a look")
			}
			return
		default:
			s.look()
			looks++
			s.scan()
		}
	}
}
