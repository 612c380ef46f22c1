//go:build linux

package attacks

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

// TestRow01SlowStages: in a busy container with a CPU limit of 20m three plain execs at once take so long
// that a stage of the runtime, which holds every capability, is there for a quarter of a minute
// (CAPDRIFT_ATTACKS=full: one after the other for half an hour). That is nobody's drift. The agent
// says of the container that something starts in it.
func TestRow01SlowStages(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.innocent("throttled", &cri.LinuxContainerSecurityContext{
		Capabilities: &cri.Capability{DropCapabilities: []string{"ALL"}}, NoNewPrivs: true, RunAsUser: &cri.Int64Value{Value: 1000},
	}, "burn=40", "ready", "sleep")
	limit := func(quota int64) {
		if err := theNode.Resize(t.Context(), c, &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: quota}); err != nil {
			t.Fatal(err)
		}
	}
	limit(2000)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var probes sync.WaitGroup
	for range 3 {
		probes.Go(func() {
			for again := true; again && ctx.Err() == nil; again = full {
				_, _, err := theNode.Exec(ctx, c, "/bin/actor", "exit")
				if err != nil && ctx.Err() == nil && !full {
					t.Errorf("exec: %v", err)
				}
			}
		})
	}
	s.awaitFor(2*time.Minute, "a stage has lived for 15 s", func() bool {
		for _, one := range tasksOf(t, c) {
			if strings.HasPrefix(one.name, "runc:[2:INIT]") && one.permitted&sysAdmin != 0 && one.age > 15*time.Second {
				return true
			}
		}
		return false
	})
	s.look()
	s.mentions(c)
	s.scan()
	if full {
		began := time.Now()
		s.awaitFor(31*time.Minute, "half an hour of probes is over", func() bool { return time.Since(began) > 30*time.Minute })
	}
	stop()
	limit(-1)
	probes.Wait()
}

// TestRow02Relay: a process with CAP_SYS_ADMIN forks its successor and ends every 100 ms, so that
// none of them is there in two looks. It is found all the same, by the agent and by each scan.
func TestRow02Relay(t *testing.T) {
	s := begin(t)
	c := s.attacked("relay", nil, "drop", "ready", "sleep")
	s.innocent("neighbor", nil)
	s.intrude(c, "name=worker", "ready", "relay=100ms")
	s.holders(c, 10)
	s.finds(c, "critical")
	for range 3 {
		s.scanFinds(c, "critical")
	}
	s.keeps(c, "critical")
	s.holders(c, 3) // it did not end meanwhile
}

// TestRow03Thread: a thread holds CAP_SYS_ADMIN for 900 ms beside a leader that holds nothing, and
// does it again. The container is found.
func TestRow03Thread(t *testing.T) {
	s := begin(t, "cadence: {sweep: 2s, threads: 2s}") // threads are read once a minute else
	s.again(s.attacked("moments", nil), "bound=a80425fb", "worker=200000:900ms", "ready", "pause=1s", "exit")
}

// TestRow03GivenUp: a process gives up after 80 ms what it held too much, which is before a
// second look, and others do the same after it. The container is found.
func TestRow03GivenUp(t *testing.T) {
	s := begin(t)
	s.again(s.attacked("given-up", nil), "ready", "pause=80ms", "bound=a80425fb", "caps=a80425fb", "pause=300ms", "exit")
}

// again lets intruders with these steps come, one after the other, until the agent finds the container.
func (s *scene) again(c *node.Container, steps ...string) {
	s.t.Helper()
	s.innocent("neighbor", nil)
	s.await("the agent finds something high in "+c.Pod.Container, func() bool {
		pid := s.intrude(c, steps...)
		s.await("the intruder has ended", func() bool { return len(tasksIn(fmt.Sprintf("/proc/%d", pid))) == 0 })
		_, found := about(s.told.everFound(), c.ID, "high", nil)
		return found
	})
}

// TestRow03Once: a process does that a single time, in one container after the other. What was
// seen once and not confirmed is told: as a limit that names the container, or as a finding
// about it.
func TestRow03Once(t *testing.T) {
	s := begin(t)
	var tried []*node.Container
	s.awaitFor(time.Minute, "the agent mentions one of them", func() bool {
		c := s.attacked(fmt.Sprintf("once-%d", len(tried)), nil)
		tried = append(tried, c)
		s.intrude(c, "ready", "pause=400ms", "bound=a80425fb", "caps=a80425fb", "sleep")
		s.await("it has given it up", func() bool {
			tasks := tasksOf(t, c)
			for _, one := range tasks {
				if one.permitted&sysAdmin != 0 {
					return false
				}
			}
			return len(tasks) > 1
		})
		return slices.ContainsFunc(tried, func(c *node.Container) bool { return s.limited(c.Pod.Container) || s.told.informed(c.ID) })
	})
}

// TestRow04NamedAsStage: successors made with clone(CLONE_PARENT) are children of whoever is the
// parent of the first, which is outside of the container: containerd's shim, or what `runc exec` left.
// They have the names that the runtime's own processes have, and end after a second. They are found.
func TestRow04NamedAsStage(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	ways := map[string]func(context.Context, *node.Container, []string, ...string) (int, error){
		"shim": theNode.TaskExec, "runc": theNode.RuncExec,
	}
	var attacked []*node.Container
	for way, exec := range ways {
		for name, comm := range map[string]string{"stage": "runc:[2:INIT]", "runtime": "runc"} {
			c := s.attacked(way+"-"+name, nil, "drop", "ready", "sleep")
			if _, err := exec(t.Context(), c, []string{"CAP_SYS_ADMIN"}, "name="+comm, "ready", "relay=1s:parent"); err != nil {
				t.Fatal(err)
			}
			attacked = append(attacked, c)
		}
	}
	for _, c := range attacked {
		s.holders(c, 3)
		for _, one := range tasksOf(t, c) {
			if one.permitted&sysAdmin != 0 && (!strings.HasPrefix(one.name, "runc") || one.parent == c.Pid) {
				t.Errorf("the attack is not one: %+v", one)
			}
		}
	}
	s.findsAll(attacked)
}

// TestRow04PlainExec: the same from a plain exec, which holds nothing above the ceiling. Nothing is
// found, and none of the successors is taken for a stage: they are compared.
func TestRow04PlainExec(t *testing.T) {
	s := begin(t)
	c := s.innocent("plain", nil, "drop", "ready", "sleep")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { // it ends with its container
		_, _, _ = theNode.Exec(ctx, c, "/bin/actor", "name=runc:[2:INIT]", "relay=1s:parent")
	}()
	seen := map[int]bool{}
	s.await("successors follow each other", func() bool {
		for _, one := range tasksOf(t, c) {
			if one.name == "runc:[2:INIT]" && one.permitted == 0xa80425fb {
				seen[one.pid] = true
			}
		}
		return len(seen) >= 3
	})
	compared := func(r report) bool {
		for _, of := range r.Containers {
			for _, p := range of.Processes {
				if of.ID == c.ID && p.Name == "runc:[2:INIT]" && p.Observation == "observed" {
					return true
				}
			}
		}
		return false
	}
	s.await("the agent compares a successor", func() bool { return compared(s.look()) })
	s.await("a scan compares a successor", func() bool { return compared(s.scan()) })
}
