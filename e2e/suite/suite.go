//go:build linux

// Package suite is what the packages of tests share that start something real, once for all of
// their tests: a node with its containerd, a cluster, a microVM.
//
// They need root. CAPDRIFT_E2E_PROGRAMS names a folder with the built programs; without it they
// are built from the sources around. CAPDRIFT_E2E_ROOT is where the files of what is started go,
// CAPDRIFT_E2E_SLOW a factor for all deadlines, CAPDRIFT_E2E_CGROUP_DRIVER=systemd asks systemd for
// cgroups. CAPDRIFT_E2E_EXPECT=microvm says that the machine is the microVM, so that a lack of what
// that offers is a failure.
package suite

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/cluster"
	"github.com/capdrift/capdrift/e2e/microvm"
	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

// Run starts what the tests need, runs them, closes it again, also after an interrupt, and ends the
// process. Without root nothing is started, and each test skips (see [NeedsRoot]); in CI that is a
// failure. parallel is how many tests run at a time, 0 for Go's own default.
func Run(m *testing.M, parallel int, start func(context.Context) (io.Closer, error)) {
	status, err := run(m, parallel, start)
	if err != nil {
		fmt.Fprintln(os.Stderr, "setting up the tests:", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M, parallel int, start func(context.Context) (io.Closer, error)) (status int, err error) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			return 0, errors.New("in CI these tests must run as root")
		}
		return m.Run(), nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	started, err := start(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, started.Close()) }()
	if parallel > 0 {
		if err := flag.Set("test.parallel", strconv.Itoa(parallel)); err != nil {
			return 0, err
		}
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

// Node starts a node as the environment describes it, and tells where its programs are.
func Node(ctx context.Context) (n *node.Node, programs string, err error) {
	if programs, err = provision.FromEnv(ctx, os.Stderr); err != nil {
		return nil, "", err
	}
	cfg := node.Config{
		Programs: programs,
		Parent:   os.Getenv("CAPDRIFT_E2E_ROOT"),
		Systemd:  os.Getenv("CAPDRIFT_E2E_CGROUP_DRIVER") == "systemd",
	}
	if cfg.Slow, err = slow(); err != nil {
		return nil, "", err
	}
	n, err = node.Start(ctx, cfg)
	return n, programs, err
}

// Cluster starts a cluster as the environment describes it. What cfg has besides is kept.
func Cluster(ctx context.Context, cfg cluster.Config) (c *cluster.Cluster, err error) {
	if cfg.Programs, err = provision.KubernetesFromEnv(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if cfg.Slow, err = slow(); err != nil {
		return nil, err
	}
	cfg.Parent = os.Getenv("CAPDRIFT_E2E_ROOT")
	return cluster.Start(ctx, cfg)
}

// slow is the factor for deadlines, 0 where none is given.
func slow() (float64, error) {
	text := os.Getenv("CAPDRIFT_E2E_SLOW")
	if text == "" {
		return 0, nil
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("CAPDRIFT_E2E_SLOW: %w", err)
	}
	return factor, nil
}

// NeedsRoot skips a test for which nothing was started, which [Run] lets happen outside of CI alone.
func NeedsRoot(t testing.TB, started bool) {
	t.Helper()
	if !started {
		t.Skip("needs root, for what it starts; run: sudo make test")
	}
}

// InVM reports whether this is the microVM.
func InVM() bool { return os.Getenv("CAPDRIFT_E2E_EXPECT") == "microvm" }

// Guest is what of a package's tests runs in a microVM.
type Guest struct {
	Programs string            // folder of the built programs, which the guest gets
	Files    map[string]string // further ones: where in the guest, and which of this machine
	Systemd  bool              // it boots systemd
	Disk     string            // its disk, which a later guest may get too; a new one when empty
	Args     []string          // of the test binary, besides -test.v
	Env      []string          // NAME=value, besides what package suite reads
}

// RunInVM runs this very test binary in a microVM (see package microvm), ten times and more slower
// than this machine.
func RunInVM(t *testing.T, g Guest) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/usr/local/bin/capdrift.test": self, "/opt/programs": g.Programs}
	maps.Copy(files, g.Files)
	statuses, err := microvm.Run(t.Context(), microvm.Config{
		Cache:   filepath.Join(repo, ".cache", "microvm"),
		Files:   files,
		Systemd: g.Systemd,
		Disk:    g.Disk,
		Commands: []microvm.Command{{
			Args: append([]string{"capdrift.test", "-test.v"}, g.Args...),
			Env:  append([]string{"CI=1", "CAPDRIFT_E2E_PROGRAMS=/opt/programs", "CAPDRIFT_E2E_SLOW=20", "CAPDRIFT_E2E_EXPECT=microvm"}, g.Env...),
		}},
		Output: t.Output(),
		Logf:   t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	if statuses[0] != 0 {
		t.Errorf("the tests inside ended with status %d", statuses[0])
	}
}
