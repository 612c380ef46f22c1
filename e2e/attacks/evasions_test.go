//go:build linux

package attacks

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/cgroup"
	"github.com/capdrift/capdrift/e2e/node"
)

// The tests of this file are of intruders who are there and would not be found.

// defaults is what containerd gives a container, as a step's mask.
const defaults = "a80425fb"

// stateOf is the state of a thread as its stat tells it, "Z" of one that has ended; "" where there is
// none.
func stateOf(pid, tid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
	if err != nil {
		return ""
	}
	return string(text[bytes.LastIndexByte(text, ')')+2:][:1])
}

// holder waits for a thread of a container that holds CAP_SYS_ADMIN and of which more holds.
func (s *scene) holder(c *node.Container, what string, more func(task) bool) (found task) {
	s.t.Helper()
	s.await(what+" in "+c.Pod.Container, func() bool {
		tasks := tasksOf(s.t, c)
		at := slices.IndexFunc(tasks, func(one task) bool { return one.permitted&sysAdmin != 0 && more(one) })
		if at >= 0 {
			found = tasks[at]
		}
		return at >= 0
	})
	return found
}

// TestDeadLeader: the leader's thread gives everything up and ends, and the other threads keep
// CAP_SYS_ADMIN. Such a process looks like one that has ended, and on cgroup v1 the kernel tells the root as
// its cgroup. It is found in its container.
func TestDeadLeader(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("dead-leader", nil)
	s.intrude(c, "name=debug", "ready", "end-leader="+defaults)
	s.holder(c, "a thread outlives its leader", func(one task) bool { return one.tid != one.pid && stateOf(one.pid, one.pid) == "Z" })
	s.await("the agent finds the thread", func() bool {
		_, found := about(s.look().Findings, c.ID, "critical", nil)
		return found
	})
	s.scanFinds(c, "critical")
}

// TestStopped: intruders who do not run any more when they are looked at again: one is stopped, one is
// stopped by its tracer, one waits in vfork for a child that holds the same, and one's whole container is
// frozen. All are found.
func TestStopped(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	var attacked []*node.Container
	for name, way := range map[string]struct {
		steps []string
		state string
	}{
		"stopped": {[]string{"stop"}, "T"},
		"traced":  {[]string{"trace", "ready", "sleep"}, "t"},
		"vforked": {[]string{"vfork"}, "D"},
	} {
		c := s.attacked(name, nil, "drop", "ready", "sleep")
		if _, err := theNode.RuncExec(t.Context(), c, []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}, append([]string{"name=" + name}, way.steps...)...); err != nil {
			t.Fatal(err)
		}
		s.holder(c, "an intruder is in state "+way.state, func(one task) bool { return stateOf(one.pid, one.tid) == way.state })
		attacked = append(attacked, c)
	}
	c := s.attacked("frozen", nil)
	pid := s.intrude(c, "name=debug", "ready", "sleep")
	freeze(t, c)
	s.holder(c, "the frozen intruder", func(one task) bool { return one.pid == pid })
	s.findsAll(append(attacked, c))
	s.keeps(c, "critical")
}

// freeze freezes a container's cgroup until the test ends.
func freeze(t *testing.T, c *node.Container) {
	t.Helper()
	own, err := cgroup.Of(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for file, words := range map[string][2]string{
		"/sys/fs/cgroup/freezer" + own + "/freezer.state": {"FROZEN", "THAWED"},
		"/sys/fs/cgroup" + own + "/cgroup.freeze":         {"1", "0"},
	} {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if err := os.WriteFile(file, []byte(words[0]), 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, []byte(words[1]), 0); err != nil {
				t.Error(err)
			}
		})
		return
	}
	t.Fatalf("cgroup %s cannot be frozen", own)
}

// TestRing: an intruder has io_uring keep its credentials and then holds nothing above the ceiling: a
// worker of the kernel's, which is a thread of its process, acts with them. Nothing in a status tells
// of it any more; that it held too much was seen once, and is said. The same workers in another
// container are not drift.
func TestRing(t *testing.T) {
	if text, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled"); err != nil || strings.TrimSpace(string(text)) != "0" {
		t.Skip("this kernel has no io_uring for everybody")
	}
	s := begin(t)
	works := func(c *node.Container) {
		t.Helper()
		s.await("a worker of io_uring is there", func() bool {
			return slices.ContainsFunc(tasksOf(t, c), func(one task) bool { return strings.HasPrefix(one.name, "iou-wrk-") && one.permitted&sysAdmin == 0 })
		})
	}
	works(s.innocent("neighbor", nil, "ring="+defaults, "ready", "sleep"))
	c := s.attacked("ring", nil)
	pid := s.intrude(c, "ready", "pause=2s", "ring="+defaults, "sleep")
	works(c)
	if n, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root/tmp", pid), "trusted.ring", make([]byte, 8)); err != nil || n != 1 {
		t.Fatalf("the attack is not one: the attribute has %d bytes, %v", n, err)
	}
	if slices.ContainsFunc(tasksOf(t, c), func(one task) bool { return one.permitted&sysAdmin != 0 }) {
		t.Fatal("the attack is not one: a thread still holds it")
	}
	s.mentions(c)
}

// TestNames: intruders with the names of what nobody suspects, one with what a terminal obeys, and one
// that runs from memory under the name of runc's own copy. All are found, and no byte of a
// name reaches a terminal or makes a line of the log.
func TestNames(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	var attacked []*node.Container
	for name, steps := range map[string][]string{
		"as-systemd": {"name=systemd"},
		"as-shim":    {"name=containerd-shim"},
		"as-kernel":  {"name=kworker/0:1"},
		"as-copy":    {"memory=runc_cloned:/proc/self/exe"},
		"as-escape":  {`name=\x1b[2J\n{\"a\":1}\x9b`},
	} {
		c := s.attacked(name, nil)
		pid := s.intrude(c, append(steps, "ready", "sleep")...)
		s.holder(c, "the intruder", func(one task) bool { return one.pid == pid && one.name != "actor" })
		attacked = append(attacked, c)
	}
	s.findsAll(attacked)
	shown, _, _, err := s.ask("get", "findings")
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"get findings": shown, "the log": s.log()} {
		if strings.ContainsAny(text, "\x1b\u009b") || strings.Contains(text, "\n{\"a\":1}") {
			t.Errorf("%s: the name is there as it is: %q", where, text)
		}
	}
}

// TestHidden: intruders who hide from who looks in from the container, and whose parents have ended: one
// mounts something over /proc, one is in a pid namespace below the container's whose maker gave up what
// it held, and one in a mount namespace of its own. All are found in their containers.
func TestHidden(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	var attacked []*node.Container
	for name, steps := range map[string][]string{
		"covered": {"cover=/proc", "ready", "sleep"},
		"nested":  {"apart=pid,mnt", "cover=/proc", "ready", "sleep"},
		"mounts":  {"own-mounts", "ready", "sleep"},
	} {
		c := s.attacked(name, nil, "drop", "ready", "sleep")
		s.intrude(c, append([]string{"orphan"}, steps...)...)
		s.holder(c, "the intruder", func(task) bool { return true })
		attacked = append(attacked, c)
	}
	for _, c := range attacked { // critical where a look saw their parents
		s.finds(c, "high", "permitted_excess", "bounding_excess")
		s.scanFinds(c, "high", "permitted_excess", "bounding_excess")
	}
}

// TestManyThreads: one of thousands of threads holds CAP_SYS_ADMIN, more than are read in one look. It is
// found (CAPDRIFT_ATTACKS=full: of twenty thousand).
func TestManyThreads(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	count := 6000
	if full {
		count = 20000
	}
	c := s.attacked("threads", nil)
	s.intrude(c, "bound="+defaults, "worker=200000", fmt.Sprintf("threads=%d", count), "ready", "sleep")
	holding := 0
	for _, one := range tasksOf(t, c) {
		if one.permitted&sysAdmin != 0 {
			holding++
		}
	}
	if holding != 1 {
		t.Fatalf("the attack is not one: %d threads hold it", holding)
	}
	s.awaitFor(3*time.Minute, "the agent finds the thread", func() bool {
		_, found := about(s.look().Findings, c.ID, "high", nil)
		return found
	})
}

// TestRotating: intruders come one after the other for a moment, and each holds another capability
// above the ceiling, so that no two looks agree on one. The container is found.
func TestRotating(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("rotating", nil)
	names := []string{"SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "SYS_BOOT", "SYS_TIME", "NET_ADMIN", "SYSLOG", "BPF", "SYS_RAWIO", "IPC_LOCK", "PERFMON", "MAC_ADMIN"}
	for at := 0; ; at++ {
		if _, found := about(s.told.everFound(), c.ID, "high", nil); found {
			return
		}
		if at == 3*len(names) {
			t.Fatalf("nothing was found after %d of them; open is %v, coverage %+v", at, s.told.open(), s.told.covers())
		}
		if _, err := theNode.RuncExec(t.Context(), c, []string{"CAP_" + names[at%len(names)]}, "ready", "pause=300ms", "exit"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSetuidForMoments: a program that a setuid binary makes root comes for a third of a second, again
// and again. It is found that it becomes root.
func TestSetuidForMoments(t *testing.T) {
	t.Parallel()
	s := begin(t)
	c := s.attacked("moments-root", &cri.LinuxContainerSecurityContext{RunAsUser: &cri.Int64Value{Value: 1000}},
		"again=/bin/actor-setuid:300ms", "ready", "sleep")
	roots := map[int]bool{}
	s.await("programs become root one after the other", func() bool {
		for _, one := range tasksOf(t, c) {
			if one.uids[1] == "0" {
				roots[one.pid] = true
			}
		}
		return len(roots) >= 3
	})
	s.finds(c, "medium")
}

// TestFast: a process with CAP_SYS_ADMIN forks its successor and ends every ten milliseconds, so that most
// have ended before they are read. The container is named.
func TestFast(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("fast", nil, "drop", "ready", "sleep")
	s.intrude(c, "name=worker", "ready", "relay=10ms")
	s.holders(c, 10)
	s.mentions(c)
}

// TestStoppedStage: a container stops each stage of an exec that it sees, so that something that holds
// every capability is there for as long as it likes. What runc waits for counts as starting, and a limit
// names the container. Where runc has left the stage already, which it does just before the program is
// executed, its threads hold too much: that is found. No other container is accused.
func TestStoppedStage(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("catcher", nil, "drop", "stop-stages", "ready", "sleep")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range 20 { // not each is caught
		go func() { _, _, _ = theNode.Exec(ctx, c, "/bin/actor", "pause=1s", "exit") }()
	}
	s.holder(c, "a stage is stopped", func(one task) bool {
		return strings.HasPrefix(one.name, "runc:[2:INIT]") && stateOf(one.pid, one.pid) == "T" && one.age > 10*time.Second
	})
	s.look()
	s.mentions(c)
	s.scan()
}

// foreground runs `runc exec --cap` as a person does who waits for it, and stops it when the test ends.
func (s *scene) foreground(c *node.Container, steps ...string) *exec.Cmd {
	s.t.Helper()
	args := []string{"--root", filepath.Join(theNode.Root, "runc", "k8s.io"), "exec", "--cap", "CAP_SYS_ADMIN", c.ID, "/bin/actor"}
	cmd := exec.Command(filepath.Join(programs, "runc"), append(args, steps...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil || string(line) != "ready\n" {
		s.t.Fatalf("it said %q, %v", line, err)
	}
	return cmd
}

// TestForeground: the program of a `runc exec` that somebody waits for forks a child of runc with
// CLONE_PARENT, which executes nothing, as a stage of runc does, and gives up itself what is
// above the ceiling. The child is found.
func TestForeground(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("foreground", nil)
	cmd := s.foreground(c, "clone", "bound="+defaults, "caps="+defaults, "ready", "sleep")
	s.holder(c, "a child of runc", func(one task) bool { return one.parent == cmd.Process.Pid })
	s.finds(c, "critical")
	s.scanFinds(c, "critical")
}

// TestForegroundEnded: such a program ends, and its child keeps runc's pipe open, so that runc waits. There
// is then nothing that tells the child from a stage, and it counts as starting; a limit says so and names
// the container.
func TestForegroundEnded(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil)
	c := s.attacked("foreground-ended", nil)
	cmd := s.foreground(c, "clone", "bound="+defaults, "caps="+defaults, "ready", "exit")
	s.holder(c, "a child of runc is there alone", func(one task) bool {
		return one.parent == cmd.Process.Pid && len(tasksIn(fmt.Sprintf("/proc/%d", cmd.Process.Pid))) > 0 &&
			!slices.ContainsFunc(tasksOf(t, c), func(other task) bool { return other.parent == one.parent && other.pid != one.pid })
	})
	s.await("the agent finds it, or says what it counts as", func() bool {
		_, found := about(s.look().Findings, c.ID, "high", []string{"bounding_excess", "permitted_excess"})
		return found || s.limited("/foreground-ended for one")
	})
}

// pidsMax bounds how many processes a container may have.
func pidsMax(t *testing.T, c *node.Container, most string) {
	t.Helper()
	own, err := cgroup.Of(c.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if err = os.WriteFile(dir+own+"/pids.max", []byte(most), 0); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestStorms: one pod starts a hundred programs a second, one forks as fast as it can up to its limit of
// processes. An intruder in another pod is told of within seconds, one beside the programs is too, and
// nobody else is accused.
func TestStorms(t *testing.T) {
	s := begin(t)
	s.innocent("neighbor", nil, "churn=2:20ms", "ready", "sleep")
	busy := s.attacked("busy", nil, "churn=1:20ms", "ready", "sleep")
	bombed := s.innocent("bombed", nil, "drop", "await", "bomb", "sleep")
	pidsMax(t, bombed, "200")
	if err := syscall.Kill(bombed.Pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	s.await("the bomb is at its limit", func() bool {
		pids, err := cgroup.Beside(bombed.Pid)
		return err == nil && len(pids) > 150
	})
	victim := s.attacked("victim", nil)
	for _, c := range []*node.Container{victim, busy} {
		began := time.Now()
		s.intrude(c, "name=debug", "ready", "sleep")
		s.finds(c, "critical", "permitted_excess", "bounding_excess")
		t.Logf("told of %s after %v", c.Pod.Container, time.Since(began).Round(time.Millisecond))
	}
	s.findsAll([]*node.Container{victim, busy})
}
