//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

// hierarchies are the mounted cgroup trees: one on v2, one per controller on v1, both on
// hybrid. The first is one in which any process may be put into a new cgroup at once.
func hierarchies() (first *mountinfo.Info, all []*mountinfo.Info, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, nil, err
	}
	for _, m := range mounts {
		if !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") {
			continue // a container's view of it
		}
		all = append(all, m)
		// Not of cpuset, which takes no process before it is told the processors.
		if m.FSType == "cgroup2" || first == nil && strings.Contains(m.VFSOptions, "pids") {
			first = m
		}
	}
	if first == nil {
		return nil, nil, errors.New("neither a v2 cgroup tree nor the v1 controller pids is mounted below /sys/fs/cgroup")
	}
	return first, all, nil
}

// makeCgroup makes the cgroup that is the kubelet's root, in every hierarchy: the kubelet
// makes its own below, but demands this one, on v2 with all controllers that it uses.
func makeCgroup(path string) error {
	_, all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.Mountpoint, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if h.FSType != "cgroup2" {
			continue
		}
		for parent := h.Mountpoint; parent != dir; {
			if err := delegate(parent); err != nil {
				return err
			}
			next, _, _ := strings.Cut(strings.TrimPrefix(dir, parent+"/"), "/")
			parent = filepath.Join(parent, next)
		}
	}
	return nil
}

// delegate gives a v2 cgroup's children those of its controllers that the kubelet uses, as the
// kubelet would itself one level below.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	given, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		if slices.Contains(strings.Fields(string(given)), c) ||
			!slices.Contains([]string{"cpu", "cpuset", "memory", "hugetlb", "pids"}, c) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("delegate cgroup controller: %w", err)
		}
	}
	return nil
}

// enterCgroup puts a process into a cgroup, in one hierarchy.
func enterCgroup(path string, pid int) error {
	h, _, err := hierarchies()
	if err != nil {
		return err
	}
	dir := filepath.Join(h.Mountpoint, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// removeCgroup removes a cgroup with all below, in every hierarchy, once what runs
// there, which was killed, has ended.
func removeCgroup(ctx context.Context, path string) error {
	_, all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(h.Mountpoint, path), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		slices.Reverse(dirs) // children first
		for _, dir := range dirs {
			err := until(ctx, "cgroup "+dir+" is empty", func() (bool, error) {
				err := syscall.Rmdir(dir)
				if errors.Is(err, syscall.EBUSY) {
					return false, nil
				}
				if errors.Is(err, fs.ErrNotExist) {
					return true, nil
				}
				return err == nil, err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
