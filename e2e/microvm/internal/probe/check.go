//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// checks are what the guest is for, each a sentence that must be true.
var checks = []struct {
	name string
	is   func() error
}{
	{"cgroup v2 is the only hierarchy", func() error {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return err
		}
		if n := strings.Count(string(mounts), " cgroup2 "); n != 1 || strings.Contains(string(mounts), " cgroup ") {
			return fmt.Errorf("mounts: %s", mounts)
		}
		return contains("/proc/self/cgroup", "0::/")
	}},
	{"controllers are handed down to new cgroups", func() error {
		const dir = "/sys/fs/cgroup/probe"
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		defer os.Remove(dir)
		return contains(dir+"/cgroup.controllers", "cpu", "io", "memory", "pids")
	}},
	{"init holds all 41 capabilities", func() error {
		return errors.Join(
			equals("/proc/sys/kernel/cap_last_cap", "40"),
			contains("/proc/1/status", "CapEff:\t000001ffffffffff", "CapBnd:\t000001ffffffffff"),
			contains("/proc/self/status", "CapEff:\t000001ffffffffff", "CapBnd:\t000001ffffffffff"))
	}},
	{"the kernel is Debian's 6.1", func() error {
		return contains("/proc/version", "Linux version 6.1.", "Debian")
	}},
	{"AppArmor is enforced beside the other modules", func() error {
		return errors.Join(
			equals("/sys/module/apparmor/parameters/enabled", "Y"),
			contains("/sys/kernel/security/lsm", "capability", "apparmor", "bpf"))
	}},
	{"AppArmor profiles can be loaded and are enforced", appArmor},
	{"overlayfs works", overlay},
	{"/var and /tmp are ext4 with idmapped mounts", func() error {
		return errors.Join(idmapped("/var"), idmapped("/tmp"))
	}},
	{"user namespaces work", func() error {
		out, err := inNamespaces(unix.CLONE_NEWUSER, "uid_map")
		if err != nil || strings.Join(strings.Fields(out), " ") != "0 100000 65536" {
			return errors.Join(fmt.Errorf("uid_map %q", out), err)
		}
		return nil
	}},
	{"the root can be pivoted", func() error {
		_, err := inNamespaces(unix.CLONE_NEWNS, "pivot")
		return err
	}},
	{"orphans are reaped", func() error {
		out, err := inNamespaces(0, "orphan")
		if err != nil {
			return err
		}
		proc := filepath.Join("/proc", strings.TrimSpace(out))
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) { //nolint:forbidigo // nobody tells when init has reaped
			if _, err := os.Stat(proc); errors.Is(err, os.ErrNotExist) {
				return nil
			}
		}
		return fmt.Errorf("%s is still there", proc)
	}},
	{"the clock ticks finer than a microsecond", func() error {
		var tick unix.Timespec
		if err := unix.ClockGetres(unix.CLOCK_MONOTONIC, &tick); err != nil || tick.Nano() > 1000 {
			return errors.Join(fmt.Errorf("resolution %d ns", tick.Nano()), err)
		}
		return nil
	}},
	{"the loopback interface is up", func() error {
		return contains("/proc/net/fib_trie", "127.0.0.1")
	}},
	{"kernel tracing and BTF are there", func() error {
		_, err := os.Stat("/sys/kernel/btf/vmlinux")
		return errors.Join(err, contains("/sys/kernel/tracing/available_events", "sched:sched_process_exec"))
	}},
	{"a thousand descriptors are not the limit", func() error {
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max < 1<<19 {
			return errors.Join(fmt.Errorf("limit %+v", l), err)
		}
		return nil
	}},
	{"names resolve and users exist", func() error {
		return errors.Join(contains("/etc/hosts", "localhost"), contains("/etc/passwd", "nobody:x:65534"),
			contains("/etc/group", "root:"), contains("/etc/os-release", "ID=debian"), contains("/etc/resolv.conf", "nameserver"))
	}},
}

// check runs all checks, or with arguments a part of one in new namespaces.
func check(args []string) error {
	if len(args) > 0 {
		return parts[args[0]]()
	}
	failed := false
	for _, c := range checks {
		if err := c.is(); err != nil {
			failed = true
			fmt.Printf("FAIL: %s: %v\n", c.name, err)
			continue
		}
		fmt.Printf("ok: %s\n", c.name)
	}
	if failed {
		return errors.New("not the machine that was promised")
	}
	fmt.Println("all checks passed")
	return nil
}

// parts run in namespaces of their own.
var parts = map[string]func() error{
	"uid_map": func() error {
		data, err := os.ReadFile("/proc/self/uid_map")
		fmt.Print(string(data))
		return err
	},
	"pivot": func() error {
		dir, err := os.MkdirTemp("", "pivot")
		if err != nil {
			return err
		}
		return errors.Join(
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, ""),
			unix.Chdir(dir),
			unix.PivotRoot(".", "."))
	},
	"orphan": func() error {
		child := exec.Command("/proc/self/exe", "exit")
		err := child.Start()
		fmt.Println(child.Process.Pid)
		return err
	},
	"confined": func() error {
		// The attribute belongs to the thread that will exec.
		runtime.LockOSThread()
		if err := os.WriteFile("/proc/thread-self/attr/exec", []byte("exec probe"), 0); err != nil {
			return err
		}
		return unix.Exec("/proc/self/exe", []string{"probe", "check", "denied"}, nil)
	},
	"denied": func() error {
		if _, err := os.ReadFile("/etc/passwd"); !errors.Is(err, syscall.EACCES) {
			return errors.Join(errors.New("reading /etc/passwd was not denied with EACCES under the profile"), err)
		}
		return equals("/proc/self/attr/current", "probe (enforce)")
	},
}

func inNamespaces(flags uintptr, part string) (string, error) {
	cmd := exec.Command("/proc/self/exe", "check", part)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.Credential = &syscall.Credential{}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return string(out), err
}

// appArmor loads a profile as containerd does, with the distribution's
// includes, and lives under it for one refused read.
func appArmor() error {
	const profile = `#include <tunables/global>
profile probe flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>
  file,
  capability,
  deny /etc/passwd r,
}
`
	load := exec.Command("apparmor_parser", "-Kr")
	load.Stdin = strings.NewReader(profile)
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("apparmor_parser: %w: %s", err, out)
	}
	if err := contains("/sys/kernel/security/apparmor/profiles", "probe (enforce)"); err != nil {
		return err
	}
	_, err := inNamespaces(0, "confined")
	return err
}

func overlay() error {
	dir, err := os.MkdirTemp("", "overlay")
	if err != nil {
		return err
	}
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(dir+"/lower/a", []byte("below"), 0o600); err != nil {
		return err
	}
	merged := dir + "/merged"
	if err := unix.Mount("overlay", merged, "overlay", 0,
		fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(merged, 0) }()
	if err := equals(merged+"/a", "below"); err != nil {
		return err
	}
	return os.Remove(merged + "/a")
}

func idmapped(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		return errors.Join(fmt.Errorf("%s: type %#x", dir, st.Type), err)
	}
	// Any user namespace will do, so borrow that of a child.
	cmd := exec.Command("/proc/self/exe", "hang")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", dir, err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd()),
	}); err != nil {
		return fmt.Errorf("mount_setattr %s: %w", dir, err)
	}
	return nil
}

func equals(file, want string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(data)); got != want {
		return fmt.Errorf("%s is %q, want %q", file, got, want)
	}
	return nil
}

func contains(file string, want ...string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, w := range want {
		if !strings.Contains(string(data), w) {
			return fmt.Errorf("%s lacks %q: %s", file, w, data)
		}
	}
	return nil
}
