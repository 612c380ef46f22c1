//go:build linux

// Command guest is PID 1 of the microVM: it makes a machine out of a bare
// kernel, runs the commands of its plan and powers off. It never returns: what
// goes wrong is printed on the console, and the host sees that no status came.
//
// With systemd it stops halfway, becomes systemd, and is started again by a
// unit ("/init run") to run the commands.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/e2e/microvm/internal/wire"
)

func main() {
	err := start(os.Args[1:])
	fmt.Fprintln(os.Stderr, "init:", err)
	powerOff()
}

func start(args []string) error {
	plan, err := readPlan()
	if err != nil {
		return err
	}
	if len(args) == 1 && args[0] == "run" {
		return run(plan)
	}
	if err := leaveRootfs(); err != nil {
		return err
	}
	if err := mountAll(); err != nil {
		return err
	}
	for _, m := range plan.Modules {
		if err := loadModule(m); err != nil {
			return err
		}
	}
	if err := mountDisk(); err != nil {
		return err
	}
	if plan.Systemd {
		err := unix.Exec("/usr/lib/systemd/systemd", []string{"systemd"}, os.Environ())
		return fmt.Errorf("exec systemd: %w", err)
	}
	if err := setUp(); err != nil {
		return err
	}
	return run(plan)
}

func readPlan() (wire.Plan, error) {
	var plan wire.Plan
	data, err := os.ReadFile(wire.PlanPath)
	if err != nil {
		return plan, err
	}
	if err := json.Unmarshal(data, &plan); err != nil {
		return plan, fmt.Errorf("%s: %w", wire.PlanPath, err)
	}
	return plan, nil
}

// leaveRootfs mounts the root once more over itself and moves into that mount.
// pivot_root(2), which runc uses, refuses a root that has no parent mount, as
// the kernel's initial rootfs. Nothing needs to be copied for that.
func leaveRootfs() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"bind /", func() error { return unix.Mount("/", "/mnt", "", unix.MS_BIND, "") }},
		{"chdir /mnt", func() error { return unix.Chdir("/mnt") }},
		{"move the root", func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") }},
		{"chroot", func() error { return unix.Chroot(".") }},
		{"chdir /", func() error { return unix.Chdir("/") }},
		// As systemd does: runtimes rely on a shared root for propagation.
		{"share /", func() error { return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "") }},
	} {
		if err := step.do(); err != nil {
			return wrap(step.name, err)
		}
	}
	return nil
}

func mountAll() error {
	const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"proc", "/proc", strict, ""},
		{"sysfs", "/sys", strict, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"securityfs", "/sys/kernel/security", strict, ""},
		{"tracefs", "/sys/kernel/tracing", strict, ""},
		{"bpf", "/sys/fs/bpf", strict, "mode=0700"},
		{"cgroup2", "/sys/fs/cgroup", strict, "nsdelegate,memory_recursiveprot"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.dir, err)
		}
	}
	return errors.Join(
		os.Symlink("/proc/self/fd", "/dev/fd"),
		os.Symlink("fd/0", "/dev/stdin"),
		os.Symlink("fd/1", "/dev/stdout"),
		os.Symlink("fd/2", "/dev/stderr"),
	)
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return wrap("load "+file, unix.FinitModule(int(f.Fd()), "", 0))
}

// mountDisk puts /var and /tmp on a real file system, where overlayfs and
// idmapped mounts work as they do on nodes.
func mountDisk() error {
	const disk = "/dev/vda"
	if err := await(disk, func() (bool, error) { return exists(disk) }); err != nil {
		return err
	}
	if err := unix.Mount(disk, "/var", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s on /var: %w", disk, err)
	}
	for dir, mode := range map[string]os.FileMode{"/var/lib": 0o755, "/var/log": 0o755, "/var/tmp": 0o777 | os.ModeSticky} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, mode)); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", "/var/run"); err != nil && !errors.Is(err, os.ErrExist) { // from an earlier boot
		return err
	}
	return errors.Join(
		wrap("bind /tmp", unix.Mount("/var/tmp", "/tmp", "", unix.MS_BIND, "")),
	)
}

// setUp does what systemd would.
func setUp() error {
	return errors.Join(
		leaveRootCgroup("/sys/fs/cgroup"),
		loopbackUp(),
		wrap("hostname", unix.Sethostname([]byte("microvm"))),
		// The kernel's default of 4096 is too few for containerd.
		wrap("RLIMIT_NOFILE", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20})),
	)
}

// leaveRootCgroup moves us to a child and hands every controller down.
func leaveRootCgroup(root string) error {
	init := filepath.Join(root, "init")
	if err := os.Mkdir(init, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(init, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("controller %s: %w", c, err)
		}
	}
	return nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return wrap("socket", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return wrap("lo up", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo))
}

// run runs the commands and powers off. It returns only an error.
func run(plan wire.Plan) error {
	for k, v := range map[string]string{
		"PATH":   "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":   "/root",
		"TMPDIR": "/tmp",
	} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	status, err := openPort(wire.StatusPort)
	if err != nil {
		return err
	}
	port, err := openPort(wire.OutputPort)
	if err != nil {
		return err
	}
	// A pipe between: a port cannot be reopened through /dev/stdout.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(port, r)
		copied <- err
	}()
	events := json.NewEncoder(status)
	for i, c := range plan.Commands {
		code, err := runCommand(c, w)
		if err != nil {
			fmt.Fprintln(w, "init:", err)
			code = 127
		}
		if err := events.Encode(wire.Event{Command: i, Status: code}); err != nil {
			return fmt.Errorf("write status: %w", err)
		}
	}
	// What commands left running may hold the pipe: its end comes with theirs.
	_ = w.Close()
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return wrap("kill all", err)
	}
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			break
		}
	}
	if err := <-copied; err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	powerOff()
	return nil
}

// runCommand waits for any child, as PID 1 inherits orphans and must reap them;
// there is no other waiter whose status it could take.
func runCommand(c wire.Command, out *os.File) (int, error) {
	file, err := exec.LookPath(c.Args[0])
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(file, c.Args, &os.ProcAttr{
		Dir:   "/" + strings.TrimPrefix(c.Dir, "/"),
		Env:   append(os.Environ(), c.Env...),
		Files: []*os.File{null, out, out},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	_ = p.Release()
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", c.Args[0], err)
		case got == pid && ws.Exited():
			return ws.ExitStatus(), nil
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}

// openPort opens a virtio-serial port by its name. The driver makes ports after
// it was loaded, when the host has answered.
func openPort(name string) (*os.File, error) {
	var dev string
	err := await("virtio port "+name, func() (bool, error) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return false, err
		}
		for _, f := range names {
			if got, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(got)) == name {
				dev = filepath.Join("/dev", filepath.Base(filepath.Dir(f)))
				return exists(dev)
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	return os.OpenFile(dev, os.O_WRONLY, 0)
}

// await polls for what the kernel makes in its own time.
func await(what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) { //nolint:forbidigo // the kernel does not tell
		if ok, err := done(); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s did not appear within a minute", what)
}

func exists(file string) (bool, error) {
	_, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// powerOff does not return: there is nothing to sync, the disk is a snapshot.
func powerOff() {
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "init: power off:", err)
	select {}
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
