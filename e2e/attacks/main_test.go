//go:build linux

package attacks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

var (
	programs string     // folder of the built programs
	binary   string     // the capdrift that is tested
	theNode  *node.Node // one for all tests; nil without root on a machine that is not CI
	full     = os.Getenv("CAPDRIFT_ATTACKS") == "full"
)

func TestMain(m *testing.M) {
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (status int, err error) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			return 0, errors.New("in CI the attacks must run as root")
		}
		return m.Run(), nil // each test skips and says why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if programs, err = provision.FromEnv(ctx, os.Stderr); err != nil {
		return 0, err
	}
	if binary = os.Getenv("CAPDRIFT_BINARY"); binary == "" {
		binary = filepath.Join(programs, "capdrift")
	}
	cfg := node.Config{Programs: programs, Parent: os.Getenv("CAPDRIFT_E2E_ROOT")}
	if slow := os.Getenv("CAPDRIFT_E2E_SLOW"); slow != "" {
		if cfg.Slow, err = strconv.ParseFloat(slow, 64); err != nil {
			return 0, fmt.Errorf("CAPDRIFT_E2E_SLOW: %w", err)
		}
	}
	if theNode, err = node.Start(ctx, cfg); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, theNode.Close()) }()
	// The tests wait more than they compute.
	if err := flag.Set("test.parallel", "4"); err != nil {
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

func onNode(t testing.TB) {
	t.Helper()
	if theNode == nil {
		t.Skip("needs root, for a container runtime of its own; run: sudo make node")
	}
}
