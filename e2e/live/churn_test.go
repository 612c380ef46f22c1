//go:build linux

package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/node"
)

const scansUnderLoad = 20

// fewer is scansUnderLoad, and a quarter of it on an emulated machine, where each scan
// takes as long as a dozen do elsewhere.
func fewer() int {
	if os.Getenv("CAPDRIFT_E2E_SLOW") != "" {
		return scansUnderLoad / 4
	}
	return scansUnderLoad
}

// scanUnderLoad scans often, a few at a time, while the caller keeps the node busy.
func scanUnderLoad(t *testing.T, times int, check func(*testing.T, report)) {
	t.Run("scans", func(t *testing.T) {
		for i := range times {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				r := scan(t)
				noAlarms(t, r)
				check(t, r)
			})
		}
	})
}

// Every exec and every probe passes through `runc init`, which sits in the container's
// cgroup with all capabilities for milliseconds. None of it may be found.
func TestExecStorm(t *testing.T) {
	containers := run(t,
		pod(restricted()),
		pod(dropAll()),
		pod(userNamespace(&cri.LinuxContainerSecurityContext{})),
	)
	ctx, stop := context.WithCancel(t.Context())
	var execs atomic.Int64
	var group sync.WaitGroup
	for worker := range 2 { // as many as the machine can: a common one does ten times 300 a minute
		group.Go(func() {
			for i := worker; ctx.Err() == nil; i++ {
				c := containers[i%len(containers)]
				if _, _, err := theNode.Exec(ctx, c, "/bin/actor", "exit"); err != nil && ctx.Err() == nil {
					t.Errorf("exec: %v", err)
					return
				}
				execs.Add(1)
			}
		})
	}
	defer group.Wait()
	defer stop()

	started := time.Now()
	scanUnderLoad(t, scansUnderLoad, func(*testing.T, report) {})
	for execs.Load() < scansUnderLoad && !t.Failed() { // a slow machine: at least one exec for each scan
		noAlarms(t, scan(t))
	}
	t.Logf("%d execs, %.0f a minute", execs.Load(), float64(execs.Load())/time.Since(started).Minutes())
}

// Processes that start and end during the scan are counted, not misjudged.
func TestDyingProcesses(t *testing.T) {
	const workers = 2
	churn := []string{"churn=" + strconv.Itoa(workers), "ready", "sleep"}
	containers := run(t,
		pod(restricted(), churn...),
		pod(dropAll(), churn...),
		pod(&cri.LinuxContainerSecurityContext{Privileged: true}, churn...),
	)
	scanUnderLoad(t, fewer(), func(t *testing.T, r report) {
		for _, c := range containers {
			seen := r.container(t, c.ID)
			if seen.Observation != "observed" {
				t.Errorf("container with dying processes: %s", seen.Observation)
			}
			seen.process(t, c.Pid) // the first process never dies
			// A child being made is there twice for a moment.
			if n := len(seen.Processes); n > 1+2*workers {
				t.Errorf("%d processes in a container of at most %d", n, 1+2*workers)
			}
			unique := map[int]bool{}
			for _, p := range seen.Processes {
				if unique[p.Pid] {
					t.Errorf("process %d is there twice", p.Pid)
				}
				unique[p.Pid] = true
			}
		}
	})
}

// A pid goes to and fro between a privileged container and one without capabilities,
// sometimes within one tick of the clock that start times are measured in. What the one
// holds must never be found in the other.
func TestReusedPids(t *testing.T) {
	containers := run(t,
		pod(&cri.LinuxContainerSecurityContext{Privileged: true}),
		pod(&cri.LinuxContainerSecurityContext{Capabilities: capabilities(nil, []string{"ALL"}), NoNewPrivs: true}),
	)
	privileged, err := maker(t, containers[0], "ready", "serve")
	if err != nil {
		t.Fatal(err)
	}
	powerless, err := maker(t, containers[1], "bound=0", "caps=0", "nnp", "ready", "serve")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var reused atomic.Int64
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			again, err := passOn(privileged, powerless)
			if err != nil {
				t.Error(err)
				return
			}
			if again {
				reused.Add(1)
			}
		}
	})
	defer group.Wait()
	defer stop()

	scans := fewer()
	scanUnderLoad(t, scans, func(*testing.T, report) {})
	if reused.Load() < int64(scans) {
		t.Errorf("only %d pids reused during %d scans", reused.Load(), scans)
	}
	t.Logf("%d pids reused", reused.Load())
}

// maker is a process in the container's cgroups that makes children there on command. It
// stays in the host's pid namespace, where pids can be chosen.
func maker(t *testing.T, c *node.Container, steps ...string) (*node.Process, error) {
	p, err := theNode.StartActor(t.Context(), steps...)
	if err != nil {
		return nil, err
	}
	t.Cleanup(p.Stop)
	return p, theNode.MoveTo(c, p)
}

// passOn lets one maker have a child, ends it, and lets the other have one with the same
// pid, if nobody else was faster to take it.
func passOn(from, to *node.Process) (again bool, err error) {
	first, err := childOf(from)
	if err != nil {
		return false, err
	}
	// pid_namespaces(7): the next process gets the number after this one, if it is free.
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(first-1)), 0); err != nil {
		return false, err
	}
	second, err := childOf(to)
	return first == second, err
}

// childOf returns the pid of a child that has lived and ended.
func childOf(maker *node.Process) (int, error) {
	answer, err := maker.Ask("spawn")
	if err != nil {
		return 0, fmt.Errorf("spawn: %w", err)
	}
	pid, err := strconv.Atoi(answer)
	if err != nil {
		return 0, err
	}
	if answer, err = maker.Ask("kill"); err != nil || answer != "gone" {
		return 0, errors.Join(err, fmt.Errorf("kill: answered %q", answer))
	}
	return pid, nil
}
