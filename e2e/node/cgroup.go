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

	"github.com/capdrift/capdrift/e2e/cgroup"
)

// removeCgroup ends what runs in a cgroup and below, in every hierarchy, and
// removes it.
func removeCgroup(ctx context.Context, path string) error {
	all, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := removeTree(ctx, filepath.Join(h.Mount, path)); err != nil {
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
