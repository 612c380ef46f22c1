// Package proc reads a live /proc and cgroup tree.
//
// Read it in this order: [FS] is a root under which the two trees are mounted;
// [FS.Node] tells what machine and kernel it is; [FS.Sweep] finds the processes
// of the given containers, and the containers that nobody gave; [FS.Process]
// tells of one process; [Members] tells between two sweeps which processes came
// and went. Each kernel file has a Go file of its own here, where
// parsing is a pure function of bytes and apart from reading.
//
// # Promises
//
// A process is read as one: what is told of it under one pid and start time is
// of that process and no other, however fast pids are reused ([FS.Process] says
// how). Vanished, unreadable and malformed are outcomes of their own, never a
// zero. Whatever was not looked at is counted and said as a [drift.Limit].
//
// Nothing here needs a privilege; CAP_SYS_PTRACE tells the identity of user
// namespaces where otherwise only their maps are known.
package proc

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/capdecode"
)

// The outcomes of reading a process that are no fault of the reader's.
var (
	ErrVanished   = errors.New("no such process any more")
	ErrUnreadable = errors.New("may not be read")
)

// MalformedError says that a file is not what the kernel writes.
type MalformedError struct {
	File string // path, or the kernel's name of the file when only text was given
	What string
}

func (e *MalformedError) Error() string { return e.File + ": " + e.What }

// Options bound what a sweep does.
type Options struct {
	// Threads is how many threads beside their leaders one sweep may read:
	// none when 0, all when negative. What does not fit is counted as skipped.
	Threads int
	// LeadersOnly is for a sweep that is not asked for threads: that it reads none
	// is then no limit.
	LeadersOnly bool
	// Readers is how many processes are read at the same time; as many as there are
	// cores when 0. One is the cheapest, by a sixth.
	Readers int
	// Time is how much processor time a sweep may take to read processes; to read their
	// threads it may take one and a half as much. Containers have equal parts of it. What
	// does not fit is told as overdue, and comes with the next sweeps. There is no bound
	// when it is 0.
	Time time.Duration
	// FirstTime is Time for the first sweep, where that is more: it knows nobody, and a
	// process of which nothing is known costs several times as much as one that is.
	FirstTime time.Duration
	// Arguments has the command lines of those read whose lineage is. They may hold
	// secrets.
	Arguments bool
}

// FS is a root directory under which a node's /proc and /sys/fs/cgroup are found.
// It may be used by several goroutines at once.
type FS struct {
	proc, cgroup string
	options      Options
	laps         func() lap
	held         func(pid int) (capdecode.Sets, bool) // by capget(2) when nil
	*memory
}

// memory is what one sweep leaves for the next.
type memory struct {
	sweeps atomic.Uint32 // turns which threads a budget too small for all reads
	births atomic.Pointer[births]
	rests  atomic.Pointer[map[string]rest]
	// accounts are of the time that reading took, by group.
	accounts atomic.Pointer[map[string]account]
	places   atomic.Pointer[map[string]place] // where the last sweep found each container

	programs *programs
}

// New returns the trees below root: "/" for the machine itself, "/host" where a
// pod mounts the node's trees as /host/proc and /host/sys/fs/cgroup.
func New(root string, o Options) *FS {
	return &FS{proc: filepath.Join(root, "/proc"), cgroup: filepath.Join(root, "sys/fs/cgroup"), options: o, laps: processorLaps, memory: &memory{programs: newPrograms(time.Now)}}
}

// With returns the same trees to be read in another way. What is known of the
// processes by the one is known to the other.
func (fs *FS) With(o Options) *FS {
	same := *fs
	same.options = o
	return &same
}

// outcome sorts a system call's error into what it means for a process: ENOENT
// is a pid that is not there, ESRCH a file whose process ended after it was opened.
func outcome(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%s: %w (%w)", path, ErrVanished, err)
	case err != nil:
		return fmt.Errorf("%s: %w (%w)", path, ErrUnreadable, err)
	}
	return nil
}
