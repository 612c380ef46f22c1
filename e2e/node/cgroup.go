//go:build linux

package node

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

// A hierarchy is one mounted cgroup tree: one on v2, one per controller on v1, both on hybrid.
type hierarchy struct {
	mount       string
	controllers []string // of v1, also "name=systemd"; none is v2
}

func hierarchies() ([]hierarchy, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for _, m := range mounts {
		if !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") {
			continue // a container's view of it
		}
		h := hierarchy{mount: m.Mountpoint}
		if m.FSType == "cgroup" {
			h.controllers = strings.Split(m.VFSOptions, ",")
		}
		all = append(all, h)
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroup tree is mounted below /sys/fs/cgroup")
	}
	return all, nil
}

// carries tells whether a line of /proc/PID/cgroup, "ID:CONTROLLERS:PATH", is about h.
func (h hierarchy) carries(controllers string) bool {
	if controllers == "" || h.controllers == nil {
		return controllers == "" && h.controllers == nil
	}
	for _, c := range strings.Split(controllers, ",") {
		if !slices.Contains(h.controllers, c) {
			return false
		}
	}
	return true
}

// enterCgroups moves pid into the cgroups of another process, in every hierarchy.
func enterCgroups(of, pid int) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", of))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		for _, h := range all {
			if !h.carries(parts[1]) {
				continue
			}
			procs := filepath.Join(h.mount, parts[2], "cgroup.procs")
			if err := os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0); err != nil {
				return fmt.Errorf("move process %d: %w", pid, err)
			}
			break
		}
	}
	return nil
}

// RemoveCgroup ends what runs in a cgroup and below, in every hierarchy, and
// removes it.
func RemoveCgroup(ctx context.Context, path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := removeTree(ctx, filepath.Join(h.mount, path)); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

func removeTree(ctx context.Context, root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
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
		// Busy as long as a dying process is in it.
		err := Until(ctx, "cgroup "+dir+" is empty", func() (bool, error) {
			if err := killIn(dir); err != nil {
				return false, err
			}
			switch err := syscall.Rmdir(dir); {
			case errors.Is(err, syscall.EBUSY):
				return false, nil
			case errors.Is(err, fs.ErrNotExist): // systemd was faster
				return true, nil
			default:
				return err == nil, err
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func killIn(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil // gone meanwhile
		}
		return err
	}
	for _, field := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return err
		}
		if pid != 0 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}
