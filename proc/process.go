package proc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// errSkip stands for what has no capabilities to compare: kernel threads and, as errEnded,
// zombies without a living thread.
var (
	errSkip  = errors.New("a kernel thread or a zombie")
	errEnded = fmt.Errorf("%w, which has ended", errSkip)
)

// look is how a sweep reads processes: what is the same for all of them.
type look struct {
	uptime time.Duration
	node   drift.UserNamespace // pid 1's
	inodes bool                // user namespaces may be told by their inode
	all    bool                // kernel threads and zombies too
	// foreign: the reader lives in a pid namespace below that of this /proc, and the
	// pids that cgroup.procs tells are its own namespace's (kernel/cgroup/cgroup.c
	// __cgroup_procs_show, task_pid_vnr): not those of this /proc. What is in which
	// cgroup is then told by /proc/PID/cgroup alone.
	foreign bool
	mount   int      // of pid 1's root
	origins *origins // nil where nobody is asked where he came from
	// programs hashes those of who is asked, and arguments has their command lines read.
	programs  *programs
	arguments bool
	cgroupOf  func(r *reader, pid int) (string, bool) // nil where nobody asks where new processes are
	hides     bool                                    // not even pid 1 is visible: who is not listed in this /proc may be there
	births    births                                  // of processes that were read before
}

// birth is the start time of a process and the inode by which it is known again.
// An inode of procfs belongs to one struct pid for good (see [reader.process]), so
// who has the same one is the same process, and its stat need not be read for the
// start time: a quarter of what a process costs. Inode numbers are counted
// through 32 bits (fs/inode.c get_next_ino); the time of the inode's making, which
// procfs never changes, tells apart what bears the same number a round later.
type birth struct {
	pid       int
	inode     uint64
	made      unix.Timespec
	start     uint64
	namespace *drift.UserNamespace // that it was in when it was read, nil if its inode was read; shared by many
	caps      capdecode.Sets       // that it had then
	known     bool                 // it was read by an earlier sweep
	cgroup    string               // of one that no sweep had read, when it was read; "" where it was not asked for
}

// births are in the order of their pids: a map of them would be three times as large.
type births []birth

func (b births) of(pid int) (birth, bool) {
	at, ok := slices.BinarySearchFunc(b, pid, func(each birth, pid int) int { return each.pid - pid })
	if !ok {
		return birth{}, false
	}
	return b[at], true
}

// process reads one process as one.
//
// A file in /proc/PID that was opened speaks of the process that had the pid
// then and of no later one: it keeps a reference to the struct pid (fs/proc/base.c
// proc_pid_make_inode), and reading it fails with ESRCH when no task is attached
// to that any more (proc_single_show, get_pid_task). A number is given away again
// only after its task was detached (kernel/exit.c release_task, kernel/pid.c
// free_pid). So when status was opened first and is read last, the pid meant one
// and the same process in between, and whatever was looked up by path in that time
// is of that process too. execve(2) in a thread hands the leader's struct pid and
// start time over (fs/exec.c de_thread): it stays the same process.
//
// Who enters a user namespace holds everything in it and nothing outside, at once
// (kernel/user_namespace.c set_cred_user_ns), and nobody enters one above his own,
// where he holds nothing (userns_install). So a process of the same sets as before is
// where it was, or further down and has lowered them again; its maps are not read anew,
// which would be half of what it costs. That holds for the container's own namespace
// alone, where what it holds is compared: a process that was in one below may have been
// given the node's credentials since, by a hole in the kernel. c is the container that it
// is of, nil where that is not known.
func (r *reader) process(l *look, c *drift.Container, pid int) (drift.Process, birth, error) {
	status, err := r.openStatus(pid)
	if err != nil {
		return drift.Process{}, birth{}, err
	}
	defer unix.Close(status)
	born, err := r.born(l, pid, status)
	if err != nil {
		return drift.Process{}, birth{}, err
	}
	var namespace drift.UserNamespace
	s, statusErr := r.status(status, pid)
	if statusErr == nil && (l.inodes || born.namespace == nil || born.caps != s.Caps || !drift.AtHome(l.node, c, *born.namespace)) {
		before := s.Caps
		namespace, err = r.userNamespace(l, pid)
		if l.cgroupOf != nil && !born.known {
			born.cgroup, _ = l.cgroupOf(r, pid)
		}
		if statusErr = r.rewind(status, pid); statusErr == nil {
			s, statusErr = r.status(status, pid)
		}
		born.namespace, born.caps = nil, s.Caps
		if before == s.Caps { // or it entered another one meanwhile, perhaps
			born.namespace = r.share(namespace)
		}
	} else if statusErr == nil {
		namespace = *born.namespace
	}
	switch {
	case statusErr != nil:
		return drift.Process{}, birth{}, statusErr // if it has ended, that is why the rest failed
	case err != nil:
		return drift.Process{}, birth{}, err
	}
	if err := s.skips(); err != nil && !l.all {
		return drift.Process{}, birth{}, fmt.Errorf("%s: %w", r.of(pid, "status"), err)
	}
	p := drift.Process{
		PID: pid, StartTime: born.start, ParentPID: s.PPid, Name: s.Comm(), State: string([]byte{s.State}), UID: s.UID[1], UIDs: s.uids(),
		NoNewPrivileges: s.noNewPrivileges(), Seccomp: s.seccomp(), UserNamespace: namespace, Caps: s.Caps, Observation: drift.Observed, AmbientUnshown: s.NoAmbient,
		ThreadCount: s.Threads, NamespacePIDs: s.NamespacePIDs(), Age: age(l.uptime, born.start),
	}
	return p, born, nil
}

// born returns the birth of the process whose status was opened.
func (r *reader) born(l *look, pid, status int) (birth, error) {
	var st unix.Stat_t
	if err := unix.Fstat(status, &st); err != nil {
		return birth{}, outcome(r.of(pid, "status"), err)
	}
	b := birth{pid: pid, inode: st.Ino, made: st.Ctim}
	if known, ok := l.births.of(pid); ok && known.inode == b.inode && known.made == b.made {
		return known, nil
	}
	s, err := r.stat(pid)
	if err != nil {
		return birth{}, err
	}
	b.start = s.start
	return b, nil
}

func (r *reader) openStatus(pid int) (fd int, err error) {
	if fd, err = open(r.proc, r.of(pid, "status"), 0); err != nil {
		return -1, outcome(r.of(pid, "status"), err)
	}
	return fd, nil
}

// status reads and parses an open status file.
func (r *reader) status(fd, pid int) (Status, error) {
	text, err := r.read(fd)
	if err != nil {
		return Status{}, readError(r.of(pid, "status"), err)
	}
	s, err := ParseStatus(text)
	if err != nil {
		return Status{}, locate(err, r.of(pid, "status"))
	}
	return s, nil
}

// rewind has an open status file told anew.
func (r *reader) rewind(fd, pid int) error {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return outcome(r.of(pid, "status"), err)
	}
	return nil
}

// readError is the outcome of a read that failed.
func readError(path string, err error) error {
	if errors.Is(err, errTooLarge) {
		return &MalformedError{File: path, What: err.Error()}
	}
	return outcome(path, err)
}

// locate puts the path into a parser's error.
func locate(err error, path string) error {
	var malformed *MalformedError
	if errors.As(err, &malformed) {
		malformed.File = path
	}
	return err
}

// skips returns errSkip or errEnded of what has no capabilities to compare.
func (s *Status) skips() error {
	switch {
	case s.kernel():
		return errSkip
	case s.ended() && s.Threads <= 1:
		return errEnded
	}
	return nil
}

func (s *Status) uids() drift.UIDs {
	return drift.UIDs{Real: s.UID[0], Effective: s.UID[1], Saved: s.UID[2], FileSystem: s.UID[3]}
}

func (s *Status) noNewPrivileges() *bool {
	if s.NoNewPrivs < 0 {
		return nil
	}
	return new(s.NoNewPrivs == 1)
}

// seccomp is nil where the kernel does not tell.
func (s *Status) seccomp() *int {
	if s.Seccomp < 0 {
		return nil
	}
	return new(s.Seccomp)
}

// userNamespace tells a process's user namespace by its inode where it may be
// read, and by its maps. ptrace_may_access guards the inode (fs/proc/namespaces.c
// proc_ns_readlink) and nothing guards the maps. A reader without the privilege
// does not try: every refusal may be written to the audit log.
func (r *reader) userNamespace(l *look, pid int) (drift.UserNamespace, error) {
	var u drift.UserNamespace
	if l.inodes {
		u.Inode, u.Parent = r.identity(pid)
		if u.Inode != 0 && u.Inode == l.node.Inode {
			return l.node, nil
		}
		if known, ok := r.namespaces[u.Inode]; ok {
			return known, nil
		}
	}
	for _, each := range []struct {
		file string
		to   *[]drift.IDRange
	}{{"uid_map", &u.UIDMap}, {"gid_map", &u.GIDMap}, {"projid_map", &u.ProjectIDMap}} {
		var err error
		if *each.to, err = r.idMap(pid, each.file); err != nil {
			return u, err
		}
	}
	if u.Inode != 0 && len(u.UIDMap) > 0 && len(u.GIDMap) > 0 {
		// A map is written once; an empty one may still be.
		r.namespaces[u.Inode] = u
	}
	return u, nil
}

// identity returns the inodes of a process's user namespace and of the one above it,
// ioctl_ns(2); 0 for what may not be read.
func (r *reader) identity(pid int) (own, above uint64) {
	own = r.inode(r.of(pid, "ns/user"))
	if own == 0 {
		return 0, 0
	}
	if known, ok := r.namespaces[own]; ok {
		return own, known.Parent
	}
	fd, err := open(r.proc, r.of(pid, "ns/user"), 0)
	if err != nil {
		return own, 0
	}
	defer unix.Close(fd)
	parent, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
	if err != nil {
		return own, 0
	}
	defer unix.Close(parent)
	var mine, st unix.Stat_t
	if unix.Fstat(fd, &mine) != nil || mine.Ino != own || unix.Fstat(parent, &st) != nil {
		return own, 0 // it moved on between the two
	}
	return own, st.Ino
}

// share returns where a namespace that is told by its maps is kept once for all who
// are in it; nil for others.
func (r *reader) share(u drift.UserNamespace) *drift.UserNamespace {
	if u.Inode != 0 || len(u.UIDMap) == 0 || len(u.GIDMap) == 0 {
		return nil
	}
	for _, known := range r.shared[&u.UIDMap[0]] {
		if slices.Equal(known.GIDMap, u.GIDMap) && slices.Equal(known.ProjectIDMap, u.ProjectIDMap) {
			return known
		}
	}
	r.shared[&u.UIDMap[0]] = append(r.shared[&u.UIDMap[0]], &u)
	return &u
}

// inode reads a link of PID/ns, "user:[4026531837]"; 0 when it may not be read.
func (r *reader) inode(link string) uint64 {
	n, err := unix.Readlinkat(r.proc, link, r.buf)
	if err != nil {
		return 0
	}
	_, digits, _ := bytes.Cut(r.buf[:n], []byte(":["))
	inode, err := strconv.ParseUint(string(bytes.TrimSuffix(digits, []byte("]"))), 10, 64)
	if err != nil {
		return 0
	}
	return inode
}

// idMap reads one map; nil without an error when there is none to be read, for
// then the process's status says more.
func (r *reader) idMap(pid int, file string) ([]drift.IDRange, error) {
	text, err := r.file(r.proc, r.of(pid, file))
	switch {
	case errors.Is(err, errTooLarge):
		return nil, readError(r.of(pid, file), err)
	case err != nil:
		return nil, nil
	}
	known, ok := r.maps[string(text)]
	if !ok {
		if known, err = parseIDMap(r.of(pid, file), text); err != nil {
			return nil, err
		}
		r.maps[string(text)] = known
	}
	return known, nil
}
