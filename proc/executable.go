package proc

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxExecutable bounds what is hashed of one program: larger than what people ship,
	// and some tenths of a second of processor time.
	maxExecutable = 256 << 20
	// hashBudget bounds what is hashed of one file system within a minute. An image's
	// writable layer is a file system of its own, so a container that runs one large
	// program after the other uses up its own budget.
	hashBudget = 256 << 20
	// hashWait is for how long a reader waits for one file, while others wait for him. A
	// slower one is hashed to its end meanwhile, and known to the next look.
	hashWait = 100 * time.Millisecond
	// keptHashes bounds the cache; a node runs fewer suspicious programs than that.
	keptHashes = 256
	// maxArguments bounds what is kept of a command line.
	maxArguments = 4 << 10
)

// programs hashes the files of programs, one at a time.
//
// A process chooses the file that it runs, so what happens when that is opened and
// read may be its choice too. A FUSE server need not answer, and who has asked it can
// then not even be killed (fs/fuse/dev.c request_wait_answer). So only files are opened
// whose file system is known to answer by itself; the file system is told by
// mountinfo, which asks nobody. Beyond that a file that takes too long, as on a broken
// disk, costs one thread: while it hangs, nothing else is hashed, and nobody waits for it.
type programs struct {
	now     func() time.Time
	reading chan struct{} // holds one while a file is being read

	mu     sync.Mutex
	since  time.Time // the newest file is being read, or was
	sums   map[fileVersion]string
	minute time.Time
	spent  map[uint64]int64 // bytes since then, by device
	memory func() (device uint64, ok bool)
}

// fileVersion is a file and its content: writing changes ctime, which nobody can set.
type fileVersion struct {
	device, inode, size uint64
	modified, changed   unix.StatxTimestamp
}

func newPrograms(now func() time.Time) *programs {
	return &programs{now: now, reading: make(chan struct{}, 1), sums: make(map[fileVersion]string), spent: make(map[uint64]int64), memory: sync.OnceValues(memfdDevice)}
}

const withoutPtrace = "it may not be read without CAP_SYS_PTRACE"

// executable returns the path of a process's program, as /proc/PID/exe tells it, and
// the SHA-256 of its file in hex. why says why the hash, or both, are missing; it is
// empty where neither is. Path and hash are of the same file, and of the moment:
// execve(2) replaces it. "/memfd:NAME (deleted)" is a program that was in memory only.
//
// To tell the process from a later one of the same pid, call it between two reads of
// its status ([reader.process]).
func (p *programs) executable(r *reader, pid int) (path, sum, why string) {
	for range 2 { // once more where it executed another program meanwhile
		if path, why = r.link(pid); why != "" {
			return path, "", why
		}
		fd, err := open(r.proc, r.of(pid, "exe"), unix.O_PATH)
		if err != nil {
			return path, "", refused(err)
		}
		again, _ := r.link(pid)
		if again == path {
			sum, why = p.sum(r, pid, fd)
		}
		unix.Close(fd)
		if again == path {
			return path, sum, why
		}
	}
	return path, "", "the process executes one program after the other"
}

// link reads the link /proc/PID/exe.
func (r *reader) link(pid int) (path, why string) {
	buf := make([]byte, 4<<10) // PATH_MAX; the kernel tells no longer one (d_path)
	n, err := unix.Readlinkat(r.proc, r.of(pid, "exe"), buf)
	if err != nil {
		return "", refused(err)
	}
	return string(buf[:n]), ""
}

// refused says why a system call on /proc/PID/exe failed.
func refused(err error) string {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return withoutPtrace // proc_pid_get_link, ptrace_may_access
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return "it has none, or has ended"
	}
	return "it could not be read: " + err.Error()
}

// sum hashes the file that an O_PATH descriptor of the process's program names.
func (p *programs) sum(r *reader, pid, fd int) (sum, why string) {
	before, err := versionOf(fd)
	if err != nil {
		return "", err.Error()
	}
	if sum, ok := p.known(before); ok {
		return sum, ""
	}
	if why := p.foreign(r, pid, fd, before.device); why != "" {
		return "", why
	}
	if before.size > maxExecutable {
		return "", fmt.Sprintf("its file has %d bytes, more than the %d MiB that are hashed", before.size, maxExecutable>>20)
	}
	file, err := open(r.proc, "self/fd/"+strconv.Itoa(fd), unix.O_NONBLOCK) // does not wait for a lease to be broken, fcntl(2)
	if err != nil {
		return "", "its file may not be read: " + err.Error()
	}
	if why := p.begin(before); why != "" {
		unix.Close(file)
		return "", why
	}
	type outcome struct{ sum, why string }
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		o.sum, o.why = hashOf(file, before)
		p.end(before, o.sum)
		done <- o
	}()
	timer := time.NewTimer(hashWait)
	defer timer.Stop()
	select {
	case o := <-done:
		return o.sum, o.why
	case <-timer.C:
		return "", fmt.Sprintf("its file took longer than %s to read", hashWait)
	}
}

func (p *programs) known(v fileVersion) (sum string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum, ok = p.sums[v]
	return sum, ok
}

// begin takes the right to read one file, or says why there is none. It waits for a file
// that is being read, but not for one that is overdue.
func (p *programs) begin(v fileVersion) (why string) {
	if !p.spend(v) {
		return fmt.Sprintf("more than %d MiB of its file system were hashed within a minute", hashBudget>>20)
	}
	p.mu.Lock()
	patience := max(0, hashWait-p.now().Sub(p.since))
	p.mu.Unlock()
	select {
	case p.reading <- struct{}{}:
	default:
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case p.reading <- struct{}{}:
		case <-timer.C:
			return "the file of another program is being read, and takes long"
		}
	}
	p.mu.Lock()
	p.since = p.now()
	p.mu.Unlock()
	return ""
}

// spend takes the size of a file off the budget of its file system, if that has so much.
func (p *programs) spend(v fileVersion) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); now.Sub(p.minute) >= time.Minute || now.Before(p.minute) {
		p.minute = now
		clear(p.spent)
	}
	if p.spent[v.device]+int64(v.size) > hashBudget {
		return false
	}
	p.spent[v.device] += int64(v.size)
	return true
}

// end gives the right back. A sum of "" is none.
func (p *programs) end(v fileVersion, sum string) {
	<-p.reading
	if sum == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sums) >= keptHashes {
		clear(p.sums)
	}
	p.sums[v] = sum
}

// hashOf hashes an open file, which has to be the given version of it before and after,
// and closes it.
func hashOf(fd int, want fileVersion) (sum, why string) {
	file := os.NewFile(uintptr(fd), "program")
	defer file.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, io.LimitReader(file, int64(want.size)+1))
	if err != nil {
		return "", "reading its file: " + err.Error()
	}
	if after, err := versionOf(fd); err != nil || after != want || uint64(n) != want.size {
		return "", "its file changed while it was read"
	}
	return hex.EncodeToString(hash.Sum(nil)), ""
}

// versionOf asks only what the kernel knows already: a network file system is not asked.
func versionOf(fd int) (fileVersion, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &st); err != nil {
		return fileVersion{}, fmt.Errorf("its file could not be asked for its size: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileVersion{}, errors.New("it is no regular file")
	}
	return fileVersion{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, st.Size, st.Mtime, st.Ctime}, nil
}

// memfdDevice is the device of memfd_create(2)'s files. They lie on a mount of the
// kernel's that no mountinfo lists (mm/shmem.c shm_mnt).
func memfdDevice() (device uint64, ok bool) {
	fd, err := unix.MemfdCreate("capdrift", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false
	}
	return st.Dev, true
}

// answering are the file systems that answer by themselves, by their names in
// mountinfo: no program, and no other machine, decides when. Of those that may be
// mounted in a user namespace (FS_USERNS_MOUNT), only the ones in memory are here.
var answering = map[string]bool{
	"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "f2fs": true, "zfs": true, "bcachefs": true,
	"squashfs": true, "erofs": true, "iso9660": true, "vfat": true, "tmpfs": true, "ramfs": true, "rootfs": true,
}

// foreign says why a file is not to be opened: what answers for its file system is not
// known. An overlay is as good as what lies below it, and anybody can make one in a
// user namespace, so it has to be one that is mounted on the node itself, as runtimes do.
func (p *programs) foreign(r *reader, pid, fd int, device uint64) (why string) {
	if memory, ok := p.memory(); ok && memory == device {
		return ""
	}
	text, err := r.file(r.proc, "self/fdinfo/"+strconv.Itoa(fd))
	id, ok := parseMountID(text)
	if err != nil || !ok {
		return "which mount its file is on could not be told"
	}
	on := func(m mount) bool { return m.id == id }
	m, ok := r.mount(r.of(pid, "mountinfo"), on)
	if !ok { // its file is the node's, and it has left the node's mount namespace
		m, ok = r.mount("1/mountinfo", on)
	}
	switch {
	case !ok:
		return "its file is on a mount that is not visible"
	case answering[m.kind]:
		return ""
	case m.kind == "overlay":
		if _, ok := r.mount("1/mountinfo", func(each mount) bool { return each.device == m.device && each.kind == m.kind }); ok {
			return ""
		}
		return "its file is on an overlay that was not mounted by the node"
	}
	return fmt.Sprintf("its file is on a file system of type %s, which may keep a reader waiting", strconv.QuoteToASCII(clip([]byte(m.kind))))
}

// mount is a line of mountinfo, proc_pid_mountinfo(5).
type mount struct {
	id     int
	device string // "MAJOR:MINOR" of the file system
	kind   string // "ext4", "fuse.sshfs"
}

// maxMountinfo bounds a mountinfo: a process can mount a hundred thousand times
// (fs.mount-max), each with a long path.
const maxMountinfo = 16 << 20

// mount returns the first mount in a mountinfo that matches.
func (r *reader) mount(path string, matches func(mount) bool) (mount, bool) {
	fd, err := open(r.proc, path, 0)
	if err != nil {
		return mount{}, false
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, maxMountinfo))
	lines.Buffer(nil, 256<<10)
	for lines.Scan() {
		if m, ok := parseMount(lines.Bytes()); ok && matches(m) {
			return m, true
		}
	}
	return mount{}, false
}

// parseMount parses a line of mountinfo. Blanks in paths are escaped there
// (fs/proc_namespace.c show_mountinfo, mangle), so fields are what blanks part.
func parseMount(line []byte) (mount, bool) {
	fields := bytes.Split(line, []byte{' '})
	const optional = 6 // the first of any number of fields, which "-" ends
	for i := optional; i+1 < len(fields); i++ {
		if string(fields[i]) != "-" {
			continue
		}
		var m mount
		if !number(fields[0], &m.id) || len(fields[2]) == 0 || len(fields[i+1]) == 0 {
			return mount{}, false
		}
		m.device, m.kind = string(fields[2]), string(fields[i+1])
		return m, true
	}
	return mount{}, false
}

// parseMountID returns mnt_id of a /proc/PID/fdinfo/FD, proc_pid_fdinfo(5).
func parseMountID(text []byte) (id int, ok bool) {
	for line := range bytes.SplitSeq(text, []byte{'\n'}) {
		if digits, found := bytes.CutPrefix(line, []byte("mnt_id:\t")); found {
			ok = number(digits, &id)
			return id, ok
		}
	}
	return 0, false
}

// arguments reads the begin of a process's command line, which is its own to write and
// may hold secrets. nil where there is none.
func (r *reader) arguments(pid int) []string {
	fd, err := open(r.proc, r.of(pid, "cmdline"), 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	buf := make([]byte, maxArguments+1)
	n, err := unix.Read(fd, buf)
	if err != nil || n <= 0 {
		return nil
	}
	return parseArguments(buf[:n])
}

// parseArguments parses a /proc/PID/cmdline, proc_pid_cmdline(5). What is above
// [maxArguments] bytes is cut, and said with "…".
func parseArguments(text []byte) []string {
	cut := len(text) > maxArguments
	text = bytes.TrimSuffix(text[:min(len(text), maxArguments)], []byte{0})
	if len(text) == 0 {
		return nil
	}
	list := strings.Split(string(text), "\x00")
	if cut {
		list[len(list)-1] += "…"
	}
	return list
}
