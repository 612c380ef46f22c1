//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/cgroup"
)

// What a machine borrows of the one that it runs on, to read only: its tools.
var borrowed = []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"}

// mountAll makes of a folder a root file system. What it writes to /etc, /run, /tmp and /var stays
// in the folder.
func mountAll(root, programs string, trees []cgroup.Hierarchy) error {
	// A mount, or it could not become the root.
	if err := bind(root, root); err != nil {
		return err
	}
	for _, path := range borrowed {
		if err := borrow(path, root+path); err != nil {
			return fmt.Errorf("borrow %s: %w", path, err)
		}
	}
	if err := borrow(programs, root+"/opt/programs"); err != nil {
		return fmt.Errorf("borrow the programs: %w", err)
	}
	if err := os.MkdirAll(root+"/dev", 0o755); err != nil {
		return err
	}
	if err := bind("/dev", root+"/dev"); err != nil {
		return err
	}
	for _, m := range []struct{ kind, at, options string }{
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "/dev/shm", ""},
		{"proc", "/proc", ""},
		// Once more, with nothing mounted over it: where the kernel sees no such /proc it refuses
		// a container with a user namespace its own (mount_too_revealing in fs/namespace.c).
		{"proc", "/run/proc", ""},
		{"sysfs", "/sys", ""},
	} {
		if err := mount(m.kind, root+m.at, m.options); err != nil {
			return err
		}
	}
	if err := mountTrees(root, trees); err != nil {
		return err
	}
	return mountOver(filepath.Join(root, "over"), root)
}

// mountTrees mounts the cgroup trees where they are outside, from the cgroup namespace's root.
func mountTrees(root string, trees []cgroup.Hierarchy) error {
	if trees[0].Mount != cgroup.Root {
		if err := mount("tmpfs", root+cgroup.Root, "mode=755"); err != nil {
			return err
		}
	}
	for _, tree := range trees {
		kind, options := "cgroup2", ""
		if !tree.V2() {
			kind, options = "cgroup", strings.Join(tree.Controllers, ",")
			if strings.HasPrefix(options, "name=") {
				options = "none," + options
			}
		}
		if err := mount(kind, root+tree.Mount, options); err != nil {
			return err
		}
	}
	return nil
}

// mountOver puts each file below a folder in place of the one that has its path below root.
func mountOver(folder, root string) error {
	return filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		return bind(path, root+strings.TrimPrefix(path, folder))
	})
}

func mount(kind, at, options string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, at, kind, 0, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, at, err)
	}
	return nil
}

func bind(from, at string) error {
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, at, err)
	}
	return nil
}

// borrow binds a folder to read only; a link, as /bin may be, it makes anew.
func borrow(from, at string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not every machine has a /lib64
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, at); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := bind(from, at); err != nil {
		return err
	}
	// Only a second step makes a bind mount read-only (mount(2)).
	return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// changeRoot makes a folder the root and leaves nothing of the old one.
func changeRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root comes to lie over the new one (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As systemd has it: a kubelet's mounts are to reach containers.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}
