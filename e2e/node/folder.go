//go:build linux

package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// A Folder is all that its owner has on this machine: files, processes and mounts in it, and
// cgroups below one of its name. When the owner is killed, whoever makes the next Folder beside it
// removes it.
type Folder struct {
	Path   string
	Cgroup string // "/capdrift-e2e-…", in every hierarchy; nobody has made it yet
	lock   *os.File
}

// The name before the random part; also how orphans are found.
const folderPrefix = "capdrift-e2e-"

// NewFolder makes a folder in parent, default os.TempDir().
func NewFolder(ctx context.Context, parent string) (*Folder, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	if err := removeOrphans(ctx, parent); err != nil {
		return nil, fmt.Errorf("remove orphaned folders: %w", err)
	}
	path, err := os.MkdirTemp(parent, folderPrefix)
	if err != nil {
		return nil, err
	}
	// Containers in user namespaces pass through here as another uid.
	if err := os.Chmod(path, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	f := &Folder{Path: path, Cgroup: "/" + filepath.Base(path), lock: lock}
	return f, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
}

// Remove ends what is in the folder's cgroup and what else it knows to be the folder's, and
// removes all.
func (f *Folder) Remove(ctx context.Context) error {
	defer f.lock.Close()
	return teardown(ctx, f.Path)
}

// removeOrphans tears down the folders whose owner died without Remove.
func removeOrphans(ctx context.Context, parent string) error {
	locks, err := filepath.Glob(filepath.Join(parent, folderPrefix+"*", "lock"))
	if err != nil {
		return err
	}
	for _, path := range locks {
		f, err := os.Open(path)
		if err != nil {
			continue // removed meanwhile
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			err = teardown(ctx, filepath.Dir(path))
			if err != nil {
				f.Close()
				return err
			}
		}
		f.Close()
	}
	return nil
}

// teardown needs to know nothing but the folder: processes are known by the folder in their
// arguments and by the cgroup of its name, mounts by their place below it.
func teardown(ctx context.Context, root string) error {
	// The daemon first, then its shims, so that nothing starts anything anew.
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		if err := killPrograms(ctx, program, root); err != nil {
			return err
		}
	}
	if err := removeCgroup(ctx, "/"+filepath.Base(root)); err != nil {
		return err
	}
	removeShimSockets(root)
	if err := unmountBelow(root); err != nil {
		return err
	}
	return os.RemoveAll(root)
}
