//go:build linux

// Command machine makes a machine of package cluster out of namespaces, and brings programs into it.
//
//	machine boot ROOT CGROUP HOSTNAME PROGRAMS
//
// is the first process of new mount, pid, network, UTS and IPC namespaces, and stays their pid 1.
// It makes the folder ROOT its root file system, enters the cgroup CGROUP as the root of a cgroup
// namespace, prints "ready" and goes when its standard input ends, as it does when its owner is
// killed. With pid 1 the kernel ends all processes of the machine, and with them its mounts and its
// network (pid_namespaces(7)).
//
//	machine enter PID COMMAND [ARGUMENT]...
//
// runs a command in the namespaces and cgroups of PID, a machine's pid 1, with its own standard
// streams, hands on SIGTERM and SIGINT, and ends as the command ends. Killed, it takes the command
// along.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/cgroup"
)

// Namespaces are the threads': all that follows must happen on the one that processes are born of.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 5 && args[0] == "boot":
		return boot(args[1], args[2], args[3], args[4])
	case len(args) >= 3 && args[0] == "enter":
		return enter(args[1], args[2:])
	case len(args) >= 2 && args[0] == entered:
		return become(args[1:])
	}
	return errors.New("usage: machine boot ROOT CGROUP HOSTNAME PROGRAMS, or machine enter PID COMMAND")
}

func boot(root, group, hostname, programs string) error {
	// Nothing that is mounted here is to be seen elsewhere.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	trees, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	if err := enterCgroupNamespace(group); err != nil {
		return err
	}
	if err := mountAll(root, programs, trees); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := changeRoot(root); err != nil {
		return fmt.Errorf("make %s the root: %w", root, err)
	}
	for name, value := range networkSettings {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	go reap()
	if _, err := fmt.Fprintln(os.Stdout, "ready"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
	return err
}

// networkSettings are the network namespace's own.
var networkSettings = map[string]string{
	"ip_forward": "1", // pods' packets pass through
	// Connections of killed processes to a machine that is off are given up in a second. The
	// kernel keeps the namespace, and its interfaces, for minutes otherwise.
	"tcp_orphan_retries": "1",
}

// enterCgroupNamespace makes a cgroup the root of all that the machine sees. The machine's own programs
// are in a child of it, because on v2 a cgroup with processes gives its children no controllers.
func enterCgroupNamespace(path string) error {
	if err := cgroup.Enter(path); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare the cgroup namespace: %w", err)
	}
	return cgroup.Enter(path + "/services")
}

// reap collects the orphans, which are a pid 1's.
func reap() {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); errors.Is(err, unix.ECHILD) {
			<-died
		}
	}
}

func enter(pid string, command []string) error {
	first, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	if err := cgroup.Follow(first, os.Getpid()); err != nil {
		return err
	}
	if err := enterNamespaces(pid); err != nil {
		return err
	}
	// As this program again: only from within can a process ask to be killed with its
	// parent, which it cannot see. /proc is the machine's by now, and the child's "self" is in it.
	child := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"machine", entered}, command...)}
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if err := child.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	go func() {
		for s := range signals {
			_ = child.Process.Signal(s)
		}
	}()
	var ended *exec.ExitError
	if err := child.Wait(); errors.As(err, &ended) {
		status := ended.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			os.Exit(128 + int(status.Signal())) // as a shell does
		}
		os.Exit(status.ExitStatus())
	} else if err != nil {
		return err
	}
	return nil
}

// enterNamespaces brings this thread, and so its children, into those of a process.
func enterNamespaces(pid string) error {
	// The mount namespace last: the others' files are found in this one's /proc. It is refused
	// while the thread shares its root (setns(2)).
	kinds := []struct {
		name string
		flag int
	}{
		{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS},
		{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for _, kind := range kinds {
		f, err := os.Open("/proc/" + pid + "/ns/" + kind.name)
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), kind.flag)
		f.Close()
		if err != nil {
			return fmt.Errorf("enter the %s namespace of %s: %w", kind.name, pid, err)
		}
	}
	return nil
}

// entered is the command of the child that enter makes.
const entered = "entered"

// become turns this process into a command that dies with whoever entered.
func become(command []string) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, command, os.Environ())
}
