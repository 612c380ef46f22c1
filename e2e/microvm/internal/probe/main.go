//go:build linux

// Command probe runs inside the microVM for the tests of package microvm. Its
// first argument picks one of acts.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var acts = map[string]func(args []string) error{
	"check":  check,
	"exit":   exit,
	"killed": func([]string) error { return unix.Kill(os.Getpid(), unix.SIGTERM) },
	"orphan": orphan,
	"hang":   hang,
	"panic":  func([]string) error { return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) },
	"forge":  forge,
	"cgroup": cgroup,
	"scope":  scope,
	"print":  printEnv,
	"flood":  flood,
}

func main() {
	if len(os.Args) < 2 || acts[os.Args[1]] == nil {
		fmt.Fprintf(os.Stderr, "probe: unknown act in %q\n", os.Args)
		os.Exit(2)
	}
	if err := acts[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "probe %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func exit([]string) error {
	os.Exit(7)
	return nil
}

// orphan leaves a grandchild behind that holds our output.
func orphan([]string) error {
	cmd := exec.Command("/proc/self/exe", "hang")
	cmd.Stdout = os.Stdout
	return cmd.Start()
}

func hang([]string) error {
	fmt.Println("hanging")
	for {
		_ = unix.Pause() // an empty select is a deadlock to Go's runtime
	}
}

// forge tries to write an event of its own.
func forge([]string) error {
	ports, err := filepath.Glob("/dev/vport*")
	if err != nil || len(ports) < 2 {
		return errors.Join(fmt.Errorf("ports: %q", ports), err)
	}
	for _, p := range ports {
		if f, err := os.OpenFile(p, os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString(`{"command":0,"status":0}` + "\n")
			return fmt.Errorf("%s could be opened", p)
		} else if !errors.Is(err, syscall.EBUSY) {
			return err
		}
	}
	return nil
}

func printEnv([]string) error {
	dir, err := os.Getwd()
	fmt.Printf("dir=%s PROBE=%s HOME=%s\n", dir, os.Getenv("PROBE"), os.Getenv("HOME"))
	fmt.Fprintln(os.Stderr, "on stderr")
	return err
}

// flood prints a megabyte and its end.
func flood([]string) error {
	line := strings.Repeat("x", 63) + "\n"
	for range 1 << 14 {
		if _, err := os.Stdout.WriteString(line); err != nil {
			return err
		}
	}
	fmt.Println("flood ends")
	return nil
}

func cgroup([]string) error {
	data, err := os.ReadFile("/proc/self/cgroup")
	fmt.Print(string(data))
	return err
}

// scope asks systemd for a scope in nested slices, as runc does.
func scope([]string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command("systemd-run", "--scope", "--unit=cri-containerd-probe", "--slice=kubepods-besteffort-pod1.slice",
		"--property=Delegate=yes", self, "cgroup")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
