package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/capdrift/capdrift/cri/fake"
)

// TestMain lets the scripts run the real program: this binary, under each of its names.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"capdrift": main, pluginFile: main, completionFile: main})
}

// TestScripts runs the binary as its users do, on nodes made of files and of
// recorded answers: testdata/script/*.txtar.
func TestScripts(t *testing.T) {
	fresh := shop()
	fresh.TakenAt = time.Now().Add(time.Hour) // however long the scripts take, it is not old
	env := map[string]string{
		"PID":             strconv.Itoa(os.Getpid()),
		"CONTAINERD":      fake.Serve(t, load(t, "containerd-2.4.2")).Endpoint,
		"CRIO":            fake.Serve(t, load(t, "cri-o-1.37.0")).Endpoint,
		"ANCIENT":         fake.Serve(t, &fake.Node{Name: "containerd", APIVersion: "v1alpha2"}).Endpoint,
		"REFUSING":        fake.Refusing(t),
		"SILENT":          fake.Silent(t),
		"CONTAINERD_ROOT": capturedNode(t, "containerd-2.4.2", "hybrid").root,
		"CRIO_ROOT":       capturedNode(t, "cri-o-1.37.0", "v2").root,
		"DRIFT_ROOT":      driftNode(t).root,
		"HOSTILE_ROOT":    hostileNode(t).root,
		"AGENT":           agentSocketOf(t, newTold(fresh)),
		"AGENT_NOT_YET":   agentSocketOf(t, newTold(nil)),
		"KUBECONFIG":      fleetOfThree(t).kubeconfig,
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			for name, value := range env {
				e.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": expectStatus},
	})
}

// expectStatus is `status N PROGRAM ARG…`: the program must end with that status.
func expectStatus(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: status N program [arg…]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("ended with %s, want status %s", got, args[0])
	}
}

func load(tb testing.TB, runtime string) *fake.Node {
	tb.Helper()
	node, err := fake.Load(filepath.Join(captures, runtime))
	if err != nil {
		tb.Fatal(err)
	}
	return node
}

// capturedNode is the node that the captures of a runtime were recorded on.
func capturedNode(tb testing.TB, runtime, cgroupMode string) *fixture {
	f := newFixture(tb, tb.TempDir(), cgroupMode)
	if f.captured(runtime) == 0 {
		tb.Fatalf("no captures of %s", runtime)
	}
	return f
}

// cgroupOf is the cgroup of a captured container.
func cgroupOf(tb testing.TB, runtime, name string) string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(captures, runtime, name, "proc", "cgroup"))
	if err != nil {
		tb.Fatal(err)
	}
	_, path, _ := strings.Cut(string(text), ":pids:")
	path, _, _ = strings.Cut(path, "\n")
	return path
}

// driftNode is containerd's with one process too much in the restricted container.
func driftNode(tb testing.TB) *fixture {
	f := capturedNode(tb, "containerd-2.4.2", "hybrid")
	f.process(70001, strings.Replace(status("injected", 70001, 1000, "000001ffffffffff"), "NoNewPrivs:\t0", "NoNewPrivs:\t1", 1), cgroupOf(tb, "containerd-2.4.2", "restricted"))
	return f
}

// hostileNode is containerd's with processes in the default container that do
// what they can to be taken for something else. As the kernel prints them: it
// escapes newline and backslash in a name, and nothing else (fs/proc/array.c).
func hostileNode(tb testing.TB) *fixture {
	f := capturedNode(tb, "containerd-2.4.2", "hybrid")
	cgroup := cgroupOf(tb, "containerd-2.4.2", "default")
	held := func(name string, pid int) string { return status(name, pid, 0, "00000000a80425fb") }
	for i, name := range []string{"CapEff:\tffffffff", `x\nCapEff:\tfff`, "\x1b[2J\x1b]0;x\a", "\xff\xfe\u202ex", "=HYPERLINK(0)"} {
		f.process(50001+i, held(name, 50001+i), cgroup)
	}
	whole := held("app", 1)
	for i, broken := range []string{
		strings.Replace(whole, "CapEff:\t00000000a80425fb\n", "", 1),
		whole[:strings.Index(whole, "CapBnd")+9],
		strings.Replace(whole, "CapPrm:\t0", "CapPrm:\t00", 1),
		strings.Replace(whole, "Groups:\t", "Groups:\t"+strings.Repeat("1 ", 5<<20), 1),
	} {
		pid := 60001 + i
		f.process(pid, strings.Replace(broken, "Pid:\t1\n", fmt.Sprintf("Pid:\t%d\n", pid), 1), cgroup)
	}
	return f
}

// capture runs the program in this process and returns what it printed.
func capture(tb testing.TB, args ...string) (stdout, stderr string, status int) {
	tb.Helper()
	var out, errs strings.Builder
	status = run(context.Background(), args, &out, &errs)
	return out.String(), errs.String(), status
}
