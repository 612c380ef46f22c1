//go:build linux

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The steps of this file are attacks on whoever watches the actor.

// fork is clone(2) without execve. Of Go's threads the child has one, which may do nothing but
// raw system calls: it has no scheduler and must not allocate.
func fork(flags uintptr) (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD)|flags, 0, 0)
	return pid, errno
}

// nap is nanosleep(2), for children of fork.
func nap(d *unix.Timespec) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(d)), 0, 0)
}

// leave is exit_group(2), for children of fork.
func leave(status uintptr) {
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, status, 0, 0)
	}
}

// relay forks a successor and ends, again and again. With CLONE_PARENT the successor is a child
// of the caller's parent, whoever that is.
func relay(value string, _ []string) error {
	text, kind, _ := strings.Cut(value, ":")
	every, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	flags, pause := uintptr(0), unix.NsecToTimespec(every.Nanoseconds())
	if kind == "parent" {
		flags = unix.CLONE_PARENT
	}
	for {
		pid, errno := fork(flags)
		switch {
		case errno != 0:
			leave(1)
		case pid != 0:
			leave(0)
		}
		nap(&pause)
	}
}

// orphan hands the remaining steps to a child and ends.
func orphan(_ string, rest []string) error {
	cmd := self(rest...)
	cmd.SysProcAttr.Pdeathsig = 0
	if err := cmd.Start(); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// dropChildren lets the kernel collect ended children, wait(2): a first process inherits those
// that others leave.
func dropChildren(string, []string) error {
	signal.Ignore(syscall.SIGCHLD)
	return nil
}

// await goes on after SIGUSR1.
func await(string, []string) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	fmt.Println("ready")
	<-asked
	return nil
}

// pause goes on after a time.
func pause(value string, _ []string) error {
	d, err := time.ParseDuration(value)
	if err != nil {
		return err
	}
	<-time.After(d)
	return nil
}

// mapProjects gives the own user namespace the project ids that the initial one has.
func mapProjects(string, []string) error {
	return os.WriteFile("/proc/self/projid_map", []byte("0 0 4294967295"), 0)
}

// setGroups gives every thread that many supplementary groups of ten digits each.
func setGroups(value string, _ []string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	groups := make([]int, n)
	for i := range groups {
		groups[i] = 1<<32 - 2 - n + i
	}
	return syscall.Setgroups(groups)
}

// nests keeps a number of children in user namespaces of their own, each of which lives a while.
func nests(value string, _ []string) error {
	n, life, err := countAndPace(value)
	if err != nil {
		return err
	}
	pause := unix.NsecToTimespec(life.Nanoseconds())
	one := func() error {
		pid, errno := fork(unix.CLONE_NEWUSER)
		switch {
		case errno != 0:
			return errno
		case pid == 0:
			nap(&pause)
			leave(0)
		}
		return nil
	}
	for range n {
		if err := one(); err != nil {
			return err
		}
	}
	go func() {
		for {
			if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, syscall.EINTR) {
				fatal(fmt.Errorf("nests: wait: %w", err))
			}
			if err := one(); err != nil {
				fatal(fmt.Errorf("nests: %w", err))
			}
		}
	}()
	return nil
}

// burn forks children that compute for ever, and end with their parent.
func burn(value string, _ []string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	for range n {
		pid, errno := fork(0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
			for { //nolint:staticcheck // it is to spin
			}
		}
	}
	return nil
}

// setUIDs sets real, effective and saved uid, "R:E:S", of every thread.
func setUIDs(value string, _ []string) error {
	r, e, s, err := parseUIDs(value)
	if err != nil {
		return err
	}
	return allThreads(unix.SYS_SETRESUID, r, e, s)
}

// setLeaderUIDs does that to the leader alone.
func setLeaderUIDs(value string, _ []string) error {
	r, e, s, err := parseUIDs(value)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, r, e, s); errno != 0 {
		return errno
	}
	return nil
}

func parseUIDs(value string) (r, e, s uintptr, err error) {
	_, err = fmt.Sscanf(value, "%d:%d:%d", &r, &e, &s)
	return r, e, s, err
}

// move lets a child carry out the remaining steps in another cgroup of every v1 hierarchy, which
// the actor mounts for itself.
func move(path string, rest []string) error {
	lines, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	cmd := self(rest...)
	if err := cmd.Start(); err != nil {
		return err
	}
	for line := range strings.Lines(string(lines)) {
		parts := strings.SplitN(line, ":", 3)
		if parts[1] == "" {
			continue // v2
		}
		if err := enter(cmd.Process.Pid, parts[1], path); err != nil {
			return err
		}
	}
	return handOver(cmd)
}

// enter puts a process into a cgroup of the v1 hierarchy of these controllers.
func enter(pid int, controllers, path string) error {
	dir, err := os.MkdirTemp("/tmp", "cgroup-")
	if err != nil {
		return err
	}
	options := controllers
	if strings.HasPrefix(controllers, "name=") {
		options = "none," + controllers
	}
	if err := unix.Mount("cgroup", dir, "cgroup", 0, options); err != nil {
		return fmt.Errorf("mount hierarchy %s: %w", controllers, err)
	}
	if err := os.WriteFile(dir+path+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
		return err
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

// below carries out the remaining steps in a new user namespace, and as the same process. Go's threads
// may not enter one (user_namespaces(7)), so another program does, which is only in memory.
func below(_ string, rest []string) error {
	if runtime.GOARCH != "amd64" {
		return errors.New("the program is amd64's")
	}
	fd, err := unix.MemfdCreate("below", 0)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, unshareUser()); err != nil {
		return err
	}
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	return unix.Exec(self, append([]string{"below", "/bin/actor"}, rest...), os.Environ())
}

// unshareUser is a program, elf(5): unshare(CLONE_NEWUSER), then execve(argv[1], argv+1, environ).
func unshareUser() []byte {
	const base, head = 0x400000, 64 + 56 // the ELF header and one program header
	code := []byte{
		0xb8, 0x10, 0x01, 0x00, 0x00, // mov eax, SYS_unshare
		0xbf, 0x00, 0x00, 0x00, 0x10, // mov edi, CLONE_NEWUSER
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x75, 0x18, // jnz to exit
		0x48, 0x8b, 0x04, 0x24, // mov rax, [rsp]: argc
		0x48, 0x8d, 0x74, 0x24, 0x10, // lea rsi, [rsp+16]: argv+1
		0x48, 0x8b, 0x3e, // mov rdi, [rsi]
		0x48, 0x8d, 0x54, 0xc4, 0x10, // lea rdx, [rsp+8*rax+16]: environ
		0xb8, 0x3b, 0x00, 0x00, 0x00, // mov eax, SYS_execve
		0x0f, 0x05, // syscall
		0xb8, 0x3c, 0x00, 0x00, 0x00, // exit: mov eax, SYS_exit
		0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, 1
		0x0f, 0x05, // syscall
	}
	size := uint64(head + len(code))
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Entry: base + head, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
			Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 0x1000,
		},
		code,
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // to memory, of fixed sizes
	}
	return b.Bytes()
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "actor:", err)
	os.Exit(1)
}
