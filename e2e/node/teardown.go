//go:build linux

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/cgroup"
)

// Close ends everything that the node started and removes what it made, in whatever state
// a test left it. It may take some seconds, and needs no context: it must happen.
func (n *Node) Close() error {
	ctx, cancel := n.Within(context.Background(), time.Minute)
	defer cancel()
	close(n.closing)
	for _, p := range n.actors {
		p.Stop()
	}
	if n.client != nil {
		_ = n.client.Close()
	}
	if n.conn != nil {
		_ = n.conn.Close()
	}
	if n.daemon != nil && n.daemon.Process != nil {
		_ = n.daemon.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.exited:
		case <-ctx.Done(): // teardown kills it
		}
	}
	err := n.folder.Remove(ctx)
	for _, c := range n.cgroups {
		err = errors.Join(err, removeCgroup(ctx, c), removeEmptyParents(c))
	}
	return errors.Join(err, reapAll(ctx))
}

// keepReaping collects what this process inherits (Start makes it the reaper) as it dies.
// A pid namespace does not end before the last of its processes is collected.
func (n *Node) keepReaping() {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-died:
			_, _ = reap() // Close reports
		case <-n.closing:
			return
		}
	}
}

// reapAll waits until everything inherited, all of it killed by now, is collected.
func reapAll(ctx context.Context) error {
	return Until(ctx, "all inherited children have ended", func() (bool, error) {
		left, err := reap()
		return left == 0, err
	})
}

// reap collects the dead among the inherited children and counts those there were. What
// is in the session of this process, it started itself and waits for elsewhere.
func reap() (inherited int, err error) {
	self, err := unix.Getsid(0)
	if err != nil {
		return 0, err
	}
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // a thread that has ended
		}
		for _, field := range strings.Fields(string(b)) {
			stat, err := os.ReadFile("/proc/" + field + "/stat")
			if err != nil {
				continue
			}
			// After the name, which may contain anything: state, parent, group, session.
			fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			if len(fields) < 4 || fields[3] == strconv.Itoa(self) {
				continue
			}
			inherited++
			pid, err := strconv.Atoi(field)
			if err != nil {
				return inherited, err
			}
			// ECHILD: the daemon or an actor, and whoever started it was faster.
			if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) {
				return inherited, err
			}
		}
	}
	return inherited, nil
}

func eachProcess(do func(pid int) error) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if err := do(pid); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeEmptyParents removes the cgroups that were made on the way to a given one.
func removeEmptyParents(name string) error {
	all, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			if syscall.Rmdir(filepath.Join(h.Mount, dir)) != nil {
				break // in use, or gone
			}
		}
	}
	return nil
}

// killPrograms kills every process of a program that has root in its arguments.
func killPrograms(ctx context.Context, program, root string) error {
	return Until(ctx, program+" has ended", func() (bool, error) {
		found := false
		err := eachProcess(func(pid int) error {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if err != nil || strings.TrimSuffix(filepath.Base(exe), " (deleted)") != program {
				return nil // gone, a zombie, or another's
			}
			args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil || !strings.Contains(string(args), root+"/") {
				return nil
			}
			found = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return nil
		})
		return !found, err
	})
}

// removeShimSockets removes what killed shims left in containerd's fixed folder for
// sockets (pkg/shim: DefaultStateDir/s), and that folder if nothing else is in it.
func removeShimSockets(root string) {
	files, _ := filepath.Glob(filepath.Join(root, "state", "io.containerd.runtime.v2.task", "*", "*", "bootstrap.json"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var bootstrap struct{ Address string }
		if err := json.Unmarshal(b, &bootstrap); err != nil {
			continue
		}
		if socket, ok := strings.CutPrefix(bootstrap.Address, "unix://"); ok {
			_ = os.Remove(socket)
		}
	}
	for _, dir := range []string{"/run/containerd/s", "/run/containerd"} {
		_ = syscall.Rmdir(dir) // not if anybody else uses it
	}
}

// unmountBelow unmounts what is mounted in a folder and below it.
func unmountBelow(root string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return err
	}
	slices.Reverse(mounts) // the last mounted first
	for _, m := range mounts {
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: went with its parent
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
