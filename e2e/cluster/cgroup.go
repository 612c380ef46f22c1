//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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
