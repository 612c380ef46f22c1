//go:build linux

// Package live runs `capdrift scan` against containers on a real containerd and asserts
// the published JSON.
//
// It needs root. CAPDRIFT_E2E_PROGRAMS names a folder with the built programs; without it they
// are built from the sources around. CAPDRIFT_E2E_ROOT is where the node's files go,
// CAPDRIFT_E2E_SLOW a factor for all deadlines, CAPDRIFT_E2E_CGROUP_DRIVER=systemd asks
// systemd for cgroups. CAPDRIFT_E2E_EXPECT=microvm says that the machine offers what the
// test VM offers, so that a lack of it is a failure.
package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

var (
	programs string     // folder of the built programs
	theNode  *node.Node // one for all tests; nil without root on a machine that is not CI
)

func TestMain(m *testing.M) {
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "live:", err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (status int, err error) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			return 0, errors.New("in CI the live tests must run as root")
		}
		return m.Run(), nil // each test skips and says why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if programs, err = provision.FromEnv(ctx, os.Stderr); err != nil {
		return 0, err
	}
	cfg := node.Config{
		Programs: programs,
		Parent:   os.Getenv("CAPDRIFT_E2E_ROOT"),
		Systemd:  os.Getenv("CAPDRIFT_E2E_CGROUP_DRIVER") == "systemd",
	}
	if slow := os.Getenv("CAPDRIFT_E2E_SLOW"); slow != "" {
		if cfg.Slow, err = strconv.ParseFloat(slow, 64); err != nil {
			return 0, fmt.Errorf("CAPDRIFT_E2E_SLOW: %w", err)
		}
	}
	if theNode, err = node.Start(ctx, cfg); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, theNode.Close()) }()
	// Scans under load wait for their second looks more than they compute.
	if err := flag.Set("test.parallel", "6"); err != nil {
		return 0, err
	}
	// An interrupt must not skip the closing.
	done := make(chan int, 1)
	go func() { done <- m.Run() }()
	select {
	case status = <-done:
		return status, nil
	case <-ctx.Done():
		return 0, errors.New("interrupted")
	}
}

func onNode(t testing.TB) *node.Node {
	t.Helper()
	if theNode == nil {
		t.Skip("needs root, for a container runtime of its own; run: sudo make test")
	}
	return theNode
}

// mustHave skips a test on a machine that lacks what it needs, and fails it where the
// machine is known to have it.
func mustHave(t *testing.T, have bool, what string) {
	t.Helper()
	switch {
	case have:
	case os.Getenv("CAPDRIFT_E2E_EXPECT") == "microvm":
		t.Fatalf("this machine must have %s", what)
	default:
		t.Skipf("this machine does not have %s", what)
	}
}

// inParallel does what is slow because it waits for containerd, a few at a time.
func inParallel[T any](t testing.TB, items []T, do func(i int, item T) error) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(4)
	for i, item := range items {
		g.Go(func() error { return do(i, item) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// run starts pods that last as long as the test.
func run(t testing.TB, pods ...node.Pod) []*node.Container {
	t.Helper()
	n := onNode(t)
	started := make([]*node.Container, len(pods))
	removeAfter(t, started)
	inParallel(t, pods, func(i int, p node.Pod) (err error) {
		started[i], err = n.Run(t.Context(), p)
		return err
	})
	return started
}

// removeAfter removes what the slice holds at the end of the test.
func removeAfter(t testing.TB, containers []*node.Container) {
	t.Cleanup(func() {
		inParallel(t, containers, func(_ int, c *node.Container) error {
			if c == nil {
				return nil
			}
			return theNode.Remove(context.Background(), c)
		})
	})
}

// The published form, "capdrift.node/v1", as far as the tests read it. These structs are
// the reader's own: they pin the contract.
type report struct {
	Schema  string
	Node    struct{ CgroupMode, Kernel string }
	Runtime *struct{ Name, Version, Endpoint string }

	Coverage struct {
		Containers struct{ Running, Observed, Partial, Unreadable, Unsupported int }
		Processes  struct{ Observed, Starting, Vanished, Unreadable int }
		Threads    struct{ Observed int }
		Complete   bool
		Limits     []struct {
			What, Why string
			Blind     bool
		}
	}
	Containers []container
	Findings   []finding
}

type container struct {
	ID, Name    string
	Pod         *struct{ Namespace, Name, UID string }
	Labels      []string
	Managed     *bool
	Sandbox     bool
	Observation string
	Declared    struct {
		CRI *struct {
			Add, Drop                   []string
			Privileged, NoNewPrivileges bool
		}
		OCI, Bundle *struct {
			Bounding, Permitted capSet
			NoNewPrivileges     bool
			UnknownNames        []string
		}
	}
	Processes []process
}

type process struct {
	Pid             int
	Name            string
	UID             uint32
	ContainerUID    *uint32
	NoNewPrivileges *bool
	UserNamespace   struct {
		Relation string
		Inode    *uint64
	}
	Caps struct{ Inheritable, Permitted, Effective, Bounding, Ambient capSet }
}

type capSet struct {
	Hex   string
	Names []string
}

type finding struct {
	Kind, Severity         string
	From, Layer, Cause     string
	RuntimeHandler         string
	ContainerID            string
	Pid, Tid               int
	Set                    string
	Capabilities           []string
	Message, Remedy, Paste string
}

func (f finding) alarming() bool { return f.Severity == "critical" || f.Severity == "high" }

func (r report) container(t *testing.T, id string) container {
	t.Helper()
	i := slices.IndexFunc(r.Containers, func(c container) bool { return c.ID == id })
	if i < 0 {
		t.Fatalf("container %s is not in the report", id)
	}
	return r.Containers[i]
}

func (c container) process(t *testing.T, pid int) process {
	t.Helper()
	i := slices.IndexFunc(c.Processes, func(p process) bool { return p.Pid == pid })
	if i < 0 {
		t.Fatalf("process %d is not in the report of container %s", pid, c.ID)
	}
	return c.Processes[i]
}

// capdrift runs the real binary and returns what it printed.
func capdrift(args ...string) (stdout, stderr string, status int, err error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(filepath.Join(programs, "capdrift"), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return "", "", 0, fmt.Errorf("capdrift %q: %w", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode(), nil
}

// scan is `capdrift scan -o json`, which must succeed.
func scan(t *testing.T) report {
	t.Helper()
	args := []string{"scan", "-o", "json", "--cri-endpoint", onNode(t).Endpoint()}
	stdout, stderr, status, err := capdrift(args...)
	if err != nil {
		t.Fatal(err)
	}
	if status != 0 {
		t.Fatalf("capdrift %q: exit status %d\n%s", args, status, stderr)
	}
	return parse(t, stdout)
}

func parse(t *testing.T, stdout string) report {
	t.Helper()
	var r report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("scan did not print JSON: %v\n%s", err, stdout)
	}
	if r.Schema != "capdrift.node/v1" {
		t.Fatalf("schema %q", r.Schema)
	}
	return r
}

// noAlarms asserts that nothing on the node is critical or high.
func noAlarms(t *testing.T, r report) {
	t.Helper()
	for _, f := range r.Findings {
		if f.alarming() {
			t.Errorf("false alarm: %+v", f)
		}
	}
}

// children of a process, those that its first thread forked.
func children(pid int) (pids []int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}
