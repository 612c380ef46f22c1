package proc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// sleeper is a process of one thread that sleeps but when it is woken.
type sleeper struct {
	pid  int
	wake io.Writer
}

// sleeping returns when it sleeps: one that still starts uses processor time, which is
// what a pulse is.
func sleeping(t testing.TB) sleeper {
	t.Helper()
	shell := exec.Command("sh", "-c", "echo; while read line; do :; done")
	shell.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = shell.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for !asleep(t, shell.Process.Pid) {
		runtime.Gosched()
	}
	return sleeper{shell.Process.Pid, in}
}

func asleep(t testing.TB, pid int) bool {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(status, []byte("\nState:\tS"))
}

// TestLivePulse: where nothing runs, the lists are not read, and yet whoever comes is told
// at once; but one who is exchanged asleep for another, when he wakes.
func TestLivePulse(t *testing.T) {
	needRoot(t)
	const v1 = "/sys/fs/cgroup/"
	if _, err := os.Stat(v1 + "cpuacct/cpuacct.usage"); err != nil {
		t.Skip("on cgroup v2 a test's cgroup has no pids controller; the end-to-end tests feel those of containers")
	}
	name := fmt.Sprintf("capdrift-pulse-%d", os.Getpid())
	var trees, dirs, others []string
	for _, controller := range []string{"pids", "cpuacct"} {
		all := made(t, filepath.Join(v1+controller, name))
		pod, other := made(t, filepath.Join(all, "pod")), made(t, filepath.Join(all, "other"))
		trees, dirs = append(trees, v1+controller), append(dirs, made(t, filepath.Join(pod, "a")))
		made(t, filepath.Join(pod, "b"))
		others = append(others, made(t, filepath.Join(other, "c")))
	}
	into := func(dirs []string, pid int) {
		for _, dir := range dirs {
			enter(t, dir, pid)
		}
	}
	a, b, c := sleeping(t), sleeping(t), sleeping(t)
	t.Cleanup(func() {
		for _, each := range []sleeper{a, b, c} {
			into(trees, each.pid)
		}
	})
	m := members(t, proc.New("/", proc.Options{}))
	into(dirs, a.pid)
	m.Follow([]drift.Container{
		{ID: "a", CgroupPath: "/" + name + "/pod/a"}, {ID: "b", CgroupPath: "/" + name + "/pod/b"}, {ID: "c", CgroupPath: "/" + name + "/other/c"},
	})
	calm := func() {
		t.Helper()
		for n := 0; !m.Steady("a"); n++ {
			if got := changed(t, m); got != "" || n > 1000 {
				t.Fatalf("%q after %d looks", got, n)
			}
		}
	}
	step := func(what, want string, do func()) {
		t.Helper()
		calm()
		do()
		if got := changed(t, m); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	if got := changed(t, m); got != fmt.Sprintf("a +%d", a.pid) {
		t.Fatal(got)
	}
	step("one joins asleep", fmt.Sprintf("a +%d", b.pid), func() { into(dirs, b.pid) })
	step("one leaves asleep", fmt.Sprintf("a -%d", b.pid), func() { into(trees, b.pid) })
	step("one is exchanged asleep", "", func() { into(trees, a.pid); into(dirs, c.pid) })
	m.Attend("a")
	if got, want := changed(t, m), fmt.Sprintf("a +%d -%d", c.pid, a.pid); got != want {
		t.Errorf("somebody says so: %q, want %q", got, want)
	}
	step("and back", "", func() { into(trees, c.pid); into(dirs, a.pid) })
	if _, err := io.WriteString(a.wake, "\n"); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("a +%d -%d", a.pid, c.pid)
	got := ""
	for n := 0; got == "" && n < 1_000_000; n++ { // until it ran
		got = changed(t, m)
		runtime.Gosched()
	}
	if got != want {
		t.Errorf("it woke: %q, want %q", got, want)
	}

	// Who comes while another leaves another pod is told of when he runs.
	into(others, c.pid)
	if got, want := changed(t, m), fmt.Sprintf("c +%d", c.pid); got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	step("one joins asleep where another leaves elsewhere", "", func() {
		for !m.Steady("c") {
			if got := changed(t, m); got != "" {
				t.Fatal(got)
			}
		}
		into(dirs, b.pid)
		into(trees, c.pid)
	})
	if _, err := io.WriteString(b.wake, "\n"); err != nil {
		t.Fatal(err)
	}
	got = ""
	for n := 0; got == "" && n < 1_000_000; n++ {
		got = changed(t, m)
		runtime.Gosched()
	}
	if want := fmt.Sprintf("a +%d", b.pid); got != want {
		t.Errorf("it woke: %q, want %q", got, want)
	}
	calm()
	if allocated := testing.AllocsPerRun(100, func() { _, _ = m.Changes(context.Background()) }); allocated != 0 {
		t.Errorf("%v allocations when nothing changes", allocated)
	}
}
