//go:build linux

package node_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

// A node is closed with everything still running, as after a failed test.
func TestCloseLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run this as root")
		}
		t.Skip("needs root; run: sudo make test")
	}
	ctx := t.Context()
	programs, err := provision.FromEnv(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, node.Config{Programs: programs})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			_ = n.Close()
		}
	}()

	pids := map[string]int{}
	c, err := n.Run(ctx, node.Pod{Args: []string{"spawn=2", "ready", "sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	pids["container"] = c.Pid
	injected, err := n.Inject(ctx, c, "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	pids["injected"] = injected.Pid
	if pids["runc exec"], err = n.RuncExec(ctx, c, []string{"CAP_SYS_ADMIN"}, "ready", "sleep"); err != nil {
		t.Fatal(err)
	}
	moby, err := n.RunMoby(ctx, "ready", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	pids["moby"] = moby.Pid
	alone, err := n.RunAlone(ctx, node.Alone{Capabilities: []string{"CAP_NET_ADMIN"}, Args: []string{"ready", "sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	pids["runc run"] = alone.Pid
	elsewhere := node.Pod{CgroupParent: n.Cgroup + "-elsewhere/kubepods/pod1"}
	if c, err = n.Run(ctx, elsewhere); err != nil {
		t.Fatal(err)
	}
	pids["elsewhere"] = c.Pid

	for what, pid := range pids {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("%s does not run before Close: %v", what, err)
		}
	}
	closed = true
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for what, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s still runs after Close (pid %d): %v", what, pid, err)
		}
	}
	if _, err := os.Stat(n.Root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", n.Root, err)
	}
	name := filepath.Base(n.Root)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), name) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, name) {
			t.Errorf("cgroup is left: %s", path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody else's, gone meanwhile
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// What a killed owner left is removed by the next start in the same folder.
func TestStartRemovesOrphans(t *testing.T) {
	parent := t.TempDir()
	orphan := filepath.Join(parent, "capdrift-e2e-orphan")
	if err := os.MkdirAll(filepath.Join(orphan, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(orphan, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// No programs: the start itself fails, and must then leave nothing of its own either.
	if _, err := node.Start(context.Background(), node.Config{Programs: t.TempDir(), Parent: parent}); err == nil {
		t.Fatal("started without programs")
	}
	left, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left: %s", e.Name())
	}
}
