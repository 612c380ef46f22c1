//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The steps of this file are ways to be there without being seen, or to be taken for another.

// endLeader takes all that is above a mask from the leader's thread and ends that thread. The
// others keep what they hold, and the process goes on.
func endLeader(value string, _ []string) error {
	mask, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return err
	}
	for c := uintptr(0); c < 64; c++ {
		if mask>>c&1 == 0 {
			_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		}
	}
	if err := keepOnThisThread(mask); err != nil {
		return err
	}
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0) // of the thread
	return errors.New("the thread has not ended")
}

// stopSelf prints "ready" and stops the process by SIGSTOP, which a process of a container cannot
// send to itself where it is the first one.
func stopSelf(string, []string) error {
	fmt.Println("ready")
	return unix.Kill(os.Getpid(), unix.SIGSTOP)
}

// trace lets a child carry out the remaining steps until it says that it is ready, and stops it then by
// ptrace(2).
func trace(_ string, rest []string) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := self(rest...)
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		return err
	}
	if err := unix.PtraceSeize(cmd.Process.Pid); err != nil {
		return fmt.Errorf("seize: %w", err)
	}
	if err := unix.PtraceInterrupt(cmd.Process.Pid); err != nil {
		return fmt.Errorf("interrupt: %w", err)
	}
	fmt.Println("ready")
	select {}
}

// vfork makes a child that sleeps and executes nothing, until when the kernel keeps its parent
// from running.
func vfork(string, []string) error {
	fmt.Println("ready")
	pause := unix.Timespec{Sec: 1 << 32}
	pid, errno := fork(unix.CLONE_VFORK)
	if errno == 0 && pid == 0 {
		for {
			nap(&pause)
		}
	}
	return errno
}

// fromMemory executes the actor from a file in memory with the remaining steps.
func fromMemory(name string, rest []string) error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate(name, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.Write(program); err != nil {
		return err
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), append([]string{name}, rest...), os.Environ())
}

// cover mounts an empty file system over a directory.
func cover(path string, _ []string) error { return unix.Mount("tmpfs", path, "tmpfs", 0, "") }

// apart hands the remaining steps to a child in new namespaces, and gives up what containers have not
// by default.
func apart(value string, rest []string) error {
	cmd := self(rest...)
	for name := range strings.SplitSeq(value, ",") {
		cmd.SysProcAttr.Cloneflags |= uintptr(namespaceFlags[name])
	}
	// In a pid namespace of its own its parent looks dead already, as in inNamespacesOf.
	cmd.SysProcAttr.Pdeathsig = 0
	if err := cmd.Start(); err != nil {
		return err
	}
	const defaults = "a80425fb"
	if err := limitBounding(defaults, nil); err != nil {
		return err
	}
	if err := setCaps(defaults, nil); err != nil {
		return err
	}
	return handOver(cmd)
}

// newMounts has the leader go on in a mount namespace of its own.
func newMounts(string, []string) error { return unix.Unshare(unix.CLONE_NEWNS) }

// enterMounts has the leader go on in the mount namespace of another process.
func enterMounts(pid string, _ []string) error {
	f, err := os.Open("/proc/" + pid + "/ns/mnt")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNS)
}

// crowdOfThreads adds that many threads that sleep.
func crowdOfThreads(value string, _ []string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	debug.SetMaxThreads(n + 1000)
	there := make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread()
			there <- struct{}{}
			select {}
		}()
	}
	for range n {
		<-there
	}
	return nil
}

// stopStages stops every process of these namespaces that has the name of a stage of runc.
func stopStages(string, []string) error {
	go func() {
		for range time.Tick(time.Millisecond) {
			names, _ := filepath.Glob("/proc/[0-9]*/comm")
			for _, name := range names {
				text, err := os.ReadFile(name)
				if err != nil || !strings.HasPrefix(string(text), "runc:[2:INIT]") {
					continue
				}
				if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
					_ = unix.Kill(pid, unix.SIGSTOP)
				}
			}
		}
	}()
	return nil
}

// again runs a program that lives a while, waits for as long, and runs it again: "PATH:LIFE".
func again(value string, _ []string) error {
	path, life, _ := strings.Cut(value, ":")
	d, err := time.ParseDuration(life)
	if err != nil {
		return err
	}
	go func() {
		for {
			cmd := exec.Command(path, "pause="+life, "exit")
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Run(); err != nil {
				fatal(fmt.Errorf("again: %w", err))
			}
			<-time.After(d)
		}
	}()
	return nil
}

// bomb forks processes that fork processes, as many as may be.
func bomb(string, []string) error {
	pause := unix.NsecToTimespec(int64(time.Millisecond))
	pid, errno := fork(0)
	switch {
	case errno != 0:
		return errno
	case pid != 0:
		return nil
	}
	for {
		_, _ = fork(0)
		nap(&pause)
	}
}

// leaveClone makes a child of the caller's parent, which sleeps and executes nothing, and goes on.
func leaveClone(string, []string) error {
	pause := unix.Timespec{Sec: 1 << 32}
	pid, errno := fork(unix.CLONE_PARENT)
	switch {
	case errno != 0:
		return errno
	case pid != 0:
		return nil
	}
	for {
		nap(&pause)
	}
}

// ringSetup is struct io_uring_params, io_uring_setup(2). The offsets are those of head, tail, mask,
// entries, flags and dropped (or overflow), and of the array (or the completions).
type ringSetup struct {
	_          [10]uint32
	submission [8]uint32
	_          uint64
	completion [8]uint32
	_          uint64
}

// ring has io_uring(7) remember the credentials of now and gives up all above a mask everywhere. Then a
// worker of the kernel's, which is a thread of the process, sets an extended attribute of /tmp with
// the remembered credentials, which takes CAP_SYS_ADMIN (xattr(7)); it is an error where that was held
// before and fails. Another worker is left waiting for who opens a pipe.
func ring(value string, _ []string) error {
	mask, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return err
	}
	before, err := currentCaps()
	if err != nil {
		return err
	}
	r, err := newRing()
	if err != nil {
		return err
	}
	if err := limitBounding(value, nil); err != nil {
		return err
	}
	if err := capsetAll(func(s *capSets) { s.setHeld(mask) }); err != nil {
		return err
	}
	if err := os.MkdirAll("/tmp", 0o700); err != nil {
		return err
	}
	if err := unix.Setxattr("/tmp", "trusted.ring", []byte("1"), 0); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("set the attribute without CAP_SYS_ADMIN: %w", err)
	}
	if err := unix.Mkfifo("/tmp/pipe", 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	dir, err := os.Open("/tmp")
	if err != nil {
		return err
	}
	const setAttribute, open = 41, 18 // IORING_OP_FSETXATTR, IORING_OP_OPENAT
	name, one, pipe := [...]byte{'t', 'r', 'u', 's', 't', 'e', 'd', '.', 'r', 'i', 'n', 'g', 0}, [...]byte{'1'}, [...]byte{'/', 't', 'm', 'p', '/', 'p', 'i', 'p', 'e', 0}
	address := func(b *byte) uint64 { return uint64(uintptr(unsafe.Pointer(b))) }
	if err := r.submit(ringEntry{op: setAttribute, fd: int32(dir.Fd()), offset: address(&one[0]), address: address(&name[0]), length: 1}); err != nil {
		return err
	}
	if result := r.result(); result != 0 && before[0].Permitted>>unix.CAP_SYS_ADMIN&1 == 1 {
		return fmt.Errorf("set the attribute by io_uring: %w", syscall.Errno(-result))
	}
	err = r.submit(ringEntry{op: open, fd: unix.AT_FDCWD, address: address(&pipe[0])})
	runtime.KeepAlive(dir)
	inUse = append(inUse, name[:], one[:], pipe[:])
	return err
}

// inUse is what the kernel may still read.
var inUse [][]byte

// ringEntry is struct io_uring_sqe.
type ringEntry struct {
	op, flags       uint8
	_               uint16
	fd              int32
	offset, address uint64
	length, how     uint32
	_               uint64
	_, personality  uint16
	_               uint32
	_               [2]uint64
}

// aRing is an io_uring with a personality. Its files stay open.
type aRing struct {
	fd          uintptr
	personality uint16
	setup       ringSetup
	queues      []byte
	entries     []byte
}

func newRing() (*aRing, error) {
	const (
		size                = 8
		registerPersonality = 9
		entriesOffset       = 0x10000000 // IORING_OFF_SQES
	)
	r := &aRing{}
	var errno syscall.Errno
	if r.fd, _, errno = syscall.Syscall(unix.SYS_IO_URING_SETUP, size, uintptr(unsafe.Pointer(&r.setup)), 0); errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	id, _, errno := syscall.Syscall6(unix.SYS_IO_URING_REGISTER, r.fd, registerPersonality, 0, 0, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("register credentials: %w", errno)
	}
	r.personality = uint16(id)
	var err error
	// Both queues are in one mapping since Linux 5.4 (IORING_FEAT_SINGLE_MMAP).
	if r.queues, err = unix.Mmap(int(r.fd), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	r.entries, err = unix.Mmap(int(r.fd), entriesOffset, size*int(unsafe.Sizeof(ringEntry{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return r, err
}

func (r *aRing) at(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.queues[offset])) }

// submit has a worker carry out an entry with the credentials of the personality.
func (r *aRing) submit(e ringEntry) error {
	e.flags, e.personality = 1<<4, r.personality // IOSQE_ASYNC
	*(*ringEntry)(unsafe.Pointer(&r.entries[0])) = e
	tail := r.at(r.setup.submission[1])
	*r.at(r.setup.submission[6] + 4*(*tail&*r.at(r.setup.submission[2]))) = 0
	atomic.AddUint32(tail, 1)
	if _, _, errno := syscall.Syscall6(unix.SYS_IO_URING_ENTER, r.fd, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	return nil
}

// result waits for the first completion, and is what it says.
func (r *aRing) result() int32 {
	for atomic.LoadUint32(r.at(r.setup.completion[1])) == 0 {
		<-time.After(time.Millisecond)
	}
	return int32(*r.at(r.setup.completion[5] + 8)) // struct io_uring_cqe: user_data, res
}
