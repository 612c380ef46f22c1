//go:build linux

// Package live runs `capdrift scan` against containers on a real containerd and asserts
// the published JSON.
//
// It needs root, and reads the variables of package suite.
package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/suite"
)

var (
	programs string     // folder of the built programs
	theNode  *node.Node // one for all tests; nil without root on a machine that is not CI
)

func TestMain(m *testing.M) {
	// Scans under load wait for their second looks more than they compute.
	suite.Run(m, 6, func(ctx context.Context) (_ io.Closer, err error) {
		theNode, programs, err = suite.Node(ctx)
		return theNode, err
	})
}

func onNode(t testing.TB) *node.Node {
	t.Helper()
	suite.NeedsRoot(t, theNode != nil)
	return theNode
}

// mustHave skips a test on a machine that lacks what it needs, and fails it where the
// machine is known to have it.
func mustHave(t *testing.T, have bool, what string) {
	t.Helper()
	switch {
	case have:
	case suite.InVM():
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
