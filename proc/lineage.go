package proc

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// maxAncestors bounds a chain of parents; a pid reused while it is followed could
// make it a ring.
const maxAncestors = 32

// Lineage follows the parents of a process up to the first one of this /proc and
// reads its namespaces. members are the pids of its container. What ends meanwhile
// ends the chain; errors are those of [FS.Process], for the process itself.
func (fs *FS) Lineage(pid int, members map[int]bool) (drift.Lineage, error) {
	p, err := fs.Process(pid)
	if err != nil {
		return drift.Lineage{}, err
	}
	lineage := drift.Lineage{Ancestors: []drift.Ancestor{}, Namespaces: fs.namespaces(pid)}
	for next := p.ParentPID; next > 0 && len(lineage.Ancestors) < maxAncestors; next = p.ParentPID {
		if p, err = fs.Process(next); errors.Is(err, ErrVanished) || errors.Is(err, ErrUnreadable) {
			break
		} else if err != nil {
			return lineage, err
		}
		lineage.Ancestors = append(lineage.Ancestors, drift.Ancestor{PID: next, Name: p.Name, Container: members[next]})
	}
	return lineage, nil
}

// namespaces reads the inodes of PID/ns; nil where that is not permitted.
func (fs *FS) namespaces(pid int) map[string]uint64 {
	dir, err := openDirectory(fs.proc)
	if err != nil {
		return nil
	}
	defer unix.Close(dir)
	r := newReader(dir)
	inodes := make(map[string]uint64)
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"} {
		if inode := r.inode(r.of(pid, "ns/"+kind)); inode != 0 {
			inodes[kind] = inode
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	return inodes
}
