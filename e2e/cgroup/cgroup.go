//go:build linux

// Package cgroup is the machine's cgroup trees as the tests need them: one tree on v2, one for
// each controller on v1, both on a hybrid machine. A path, "/a/b", means the same place in each.
package cgroup

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

// Root is where the trees are mounted.
const Root = "/sys/fs/cgroup"

// A Hierarchy is one mounted tree.
type Hierarchy struct {
	Mount       string
	Controllers []string // of v1, also "name=systemd"; none is v2
}

// V2 tells whether it is the unified tree.
func (h Hierarchy) V2() bool { return h.Controllers == nil }

// Hierarchies are the trees below Root.
func Hierarchies() ([]Hierarchy, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var all []Hierarchy
	for _, m := range mounts {
		if !strings.HasPrefix(m.Mountpoint, Root) {
			continue // a container's view of it
		}
		h := Hierarchy{Mount: m.Mountpoint}
		if m.FSType == "cgroup" {
			h.Controllers = controllers(m.VFSOptions)
		}
		all = append(all, h)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no cgroup tree is mounted below %s", Root)
	}
	return all, nil
}

// controllers are those of v1's mount options that name what the tree is for.
func controllers(options string) (names []string) {
	for _, option := range strings.Split(options, ",") {
		word, _, _ := strings.Cut(option, "=")
		if !slices.Contains([]string{"rw", "ro", "xattr", "clone_children", "cpuset_v2_mode", "release_agent"}, word) {
			names = append(names, option)
		}
	}
	return names
}

// carries tells whether a line of /proc/PID/cgroup, "ID:CONTROLLERS:PATH", is about h.
func (h Hierarchy) carries(controllers string) bool {
	if controllers == "" || h.V2() {
		return controllers == "" && h.V2()
	}
	for _, c := range strings.Split(controllers, ",") {
		if !slices.Contains(h.Controllers, c) {
			return false
		}
	}
	return true
}

// Make makes a cgroup in every tree, and what is missing on the way to it. Processes may be put
// into it at once; on v2 its children may have the controllers that a kubelet uses, as long as no
// process is in it itself.
func Make(path string) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		for dir := range h.way(path) {
			if err := h.makeOne(dir); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	return nil
}

// way yields the folders from the root's child to path itself.
func (h Hierarchy) way(path string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		dir := h.Mount
		for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
			dir = filepath.Join(dir, name)
			if !yield(dir) {
				return
			}
		}
	}
}

func (h Hierarchy) makeOne(dir string) error {
	if h.V2() {
		if err := delegate(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return h.mkdir(dir)
}

func (h Hierarchy) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if slices.Contains(h.Controllers, "cpuset") {
		return inheritProcessors(dir)
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

// inheritProcessors: the v1 controller cpuset takes no process before it is told the
// processors and the memory nodes (cgroup-v1/cpusets.rst).
func inheritProcessors(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(own)) != "" {
			continue
		}
		above, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), above, 0); err != nil {
			return err
		}
	}
	return nil
}

// Enter puts the calling process into a cgroup, in every tree. It may be missing, but not what is above
// it; unlike Make, Enter lets the caller come from there.
func Enter(path string) error { return Put(path, 0) }

// Put is Enter for another process.
func Put(path string, pid int) error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := filepath.Join(h.Mount, path)
		if err := h.mkdir(dir); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := put(dir, pid); err != nil {
			return err
		}
	}
	return nil
}

// Follow moves pid into the cgroups of another process, in every tree.
func Follow(of, pid int) error {
	dirs, err := dirsOf(of)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := put(dir, pid); err != nil {
			return err
		}
	}
	return nil
}

// Of is the cgroup of a process in one of the trees.
func Of(pid int) (string, error) {
	all, err := Hierarchies()
	if err != nil {
		return "", err
	}
	dirs, err := dirsOf(pid)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(all, func(h Hierarchy) bool { return strings.HasPrefix(dirs[0], h.Mount+"/") })
	return strings.TrimPrefix(dirs[0], all[i].Mount), nil
}

// Beside lists the processes in the cgroup of another process, in one of the trees.
func Beside(of int) (pids []int, err error) {
	dirs, err := dirsOf(of)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dirs[0], "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// dirsOf are the cgroups of a process, in every tree.
func dirsOf(pid int) (dirs []string, err error) {
	all, err := Hierarchies()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		i := slices.IndexFunc(all, func(h Hierarchy) bool { return h.carries(parts[1]) })
		if i < 0 {
			continue // mounted nowhere
		}
		dirs = append(dirs, filepath.Join(all[i].Mount, parts[2]))
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("process %d is in no cgroup that is mounted below %s", pid, Root)
	}
	return dirs, nil
}

// put moves a process; 0 is the caller.
func put(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		return fmt.Errorf("move process %d: %w", pid, err)
	}
	return nil
}
