//go:build linux

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// self is this program again, running the given steps. /proc/self/exe also works in a
// mount namespace that has no copy of the program.
func self(args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   append([]string{"actor"}, args...),
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		// No child outlives the actor, also where no pid namespace ends with it.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
}

// successor is the child that the remaining steps were handed to.
var successor atomic.Pointer[os.Process]

// handOver lets cmd carry out the remaining steps, and ends as it ends.
func handOver(cmd *exec.Cmd) error {
	successor.Store(cmd.Process)
	if err := cmd.Wait(); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// terminate ends the actor. With a successor it ends as that does: not before it is collected,
// for a pid namespace does not end with a dead process in it.
func terminate() {
	if p := successor.Load(); p != nil {
		_ = p.Kill()
		return
	}
	os.Exit(0)
}

func inUserNamespace(kind string, rest []string) error {
	cmd := self(rest...)
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
	ids := func(outside, size int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: outside, Size: size}}
	}
	switch kind {
	case "root":
		cmd.SysProcAttr.UidMappings = ids(os.Getuid(), 1)
		cmd.SysProcAttr.GidMappings = ids(os.Getgid(), 1)
	case "identity": // its uid_map looks like the initial namespace's
		cmd.SysProcAttr.UidMappings = ids(0, 1<<32-1)
		cmd.SysProcAttr.GidMappings = ids(0, 1<<32-1)
	case "unmapped":
	default:
		return fmt.Errorf("unknown kind of user namespace %q", kind)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return handOver(cmd)
}

var namespaceFlags = map[string]int{
	"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "net": unix.CLONE_NEWNET,
	"pid": unix.CLONE_NEWPID, "mnt": unix.CLONE_NEWNS, "cgroup": unix.CLONE_NEWCGROUP,
}

// inNamespacesOf enters namespaces of another process on the leader thread alone and
// starts the rest from there. The user namespace stays the caller's:
// a threaded process cannot change it, and the tests want just that.
func inNamespacesOf(value string, rest []string) error {
	pid, list, ok := strings.Cut(value, ":")
	if !ok {
		list = "ipc,uts,net,pid,mnt"
	}
	names := strings.Split(list, ",")
	files := make([]*os.File, len(names))
	for i, name := range names { // all opened before /proc changes
		f, err := os.Open("/proc/" + pid + "/ns/" + name)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	own, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	defer own.Close()
	// setns of a mount namespace is refused while the thread shares its root.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for i, name := range names {
		if err := unix.Setns(int(files[i].Fd()), namespaceFlags[name]); err != nil {
			return fmt.Errorf("setns %s: %w", name, err)
		}
	}
	cmd := self(rest...)
	if slices.Contains(names, "mnt") && !slices.Contains(names, "pid") {
		cmd.Path = "/bin/actor" // there, /proc is of a pid namespace in which we are not
	}
	cmd.Stdin = os.Stdin
	// To a child in another pid namespace its parent looks dead already (getppid is 0), and
	// Go then has it kill itself. terminate ends it instead.
	cmd.SysProcAttr.Pdeathsig = 0
	if err := cmd.Start(); err != nil {
		return err
	}
	// Who started it is not in the container: that would be found too.
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns mnt: %w", err)
	}
	fmt.Println("pid", cmd.Process.Pid)
	return handOver(cmd)
}

func spawn(value string, _ []string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	for range n {
		if err := self("sleep").Start(); err != nil {
			return err
		}
	}
	return nil
}

// crowd forks without execve, because a Go program starts threads before it can be asked
// not to. The children use nothing of Go's: there is no scheduler in them.
func crowd(value string, _ []string) error {
	n, every, err := countAndPace(value)
	if err != nil {
		return err
	}
	pause := unix.NsecToTimespec(every.Nanoseconds())
	if every == 0 {
		pause.Sec = 1 << 32 // for ever
	}
	for range n {
		pid, errno := fork(0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
			for {
				nap(&pause)
			}
		}
	}
	return nil
}

// countAndPace parses "N" and "N:EVERY".
func countAndPace(value string) (n int, every time.Duration, err error) {
	count, pace, paced := strings.Cut(value, ":")
	if n, err = strconv.Atoi(count); err == nil && paced {
		every, err = time.ParseDuration(pace)
	}
	return n, every, err
}

func beat(value string, _ []string) error {
	every, err := time.ParseDuration(value)
	if err != nil {
		return err
	}
	go func() {
		for range time.Tick(every) {
			_ = os.Getppid() // it ran: that is all
		}
	}()
	return nil
}

func churn(value string, _ []string) error {
	n, every, err := countAndPace(value)
	if err != nil {
		return err
	}
	for range n {
		go func() {
			for {
				next := time.After(every)
				if err := self("exit").Run(); err != nil {
					fmt.Fprintln(os.Stderr, "actor: churn:", err)
					os.Exit(1)
				}
				<-next
			}
		}()
	}
	return nil
}

// serve makes one child at a time on command, so that a test decides when a pid is
// taken and when it is free again.
func serve(string, []string) error {
	var child *exec.Cmd
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "spawn":
			child = self("sleep")
			if err := child.Start(); err != nil {
				return err
			}
			fmt.Println(child.Process.Pid)
		case "kill":
			if err := child.Process.Kill(); err != nil {
				return err
			}
			_ = child.Wait() // "signal: killed"
			fmt.Println("gone")
		default:
			return fmt.Errorf("unknown command %q", lines.Text())
		}
	}
	return lines.Err()
}
