//go:build linux

// Package microvm runs commands in a virtual machine that is what most nodes
// are and a build machine happens not to be: Debian's 6.1 kernel, cgroup v2
// alone, AppArmor enforced, a root with all 41 capabilities, ext4 under
// containerd. It is emulated (QEMU's TCG): it needs no /dev/kvm, runs on any
// amd64 Debian, and boots in four seconds. Its programs run at a fraction of the
// host's speed, so what waits in it should wait patiently.
//
// [Run] provisions what it needs, boots, runs the commands one after another
// and returns their exit statuses:
//
//	statuses, err := microvm.Run(ctx, microvm.Config{
//		Cache:    ".cache/microvm",
//		Files:    map[string]string{"/usr/local/bin/live.test": "bin/live.test"},
//		Commands: []microvm.Command{{Args: []string{"live.test", "-test.v"}}},
//		Output:   os.Stdout,
//	})
//
// # The host
//
// Only QEMU is installed, if it is missing and we are root. The kernel, its
// modules and a few packages for the guest are downloaded by apt-get and
// unpacked into Config.Cache, nowhere else; whoever wants newer ones deletes the
// cache. Runs may share a cache. A run keeps its own files in one temporary folder that it removes, and
// its QEMU dies with it. The guest has no network.
//
// # The guest
//
// Its root is the initramfs (tmpfs), /var and /tmp are an ext4 disk of 8 GiB
// that starts empty each time, unless Config.Disk keeps it. PID 1 is the static program in ./guest or, with
// Config.Systemd, Debian's systemd (then runtimes can use systemd's cgroups:
// runc finds /run/systemd/private). There is no shell, and of libraries only
// libc6 and systemd's: commands are best static. They run as root, in the cgroup /init or
// /system.slice/microvm.service, with both output streams in Config.Output as
// they come. Exit statuses arrive on a port of their own that no command can
// open.
package microvm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/capdrift/capdrift/e2e/microvm/internal/wire"
)

// Config says what to boot and what to run in it. Cache and Commands are needed.
type Config struct {
	Cache    string            // folder for what comes from Debian, about 150 MB; made if missing
	Files    map[string]string // guest path → host file or folder; permissions are kept
	Commands []Command
	Output   io.Writer // what the commands print, as it comes; nil drops it
	Console  io.Writer // what kernel and init print; nil drops it, errors quote its end anyway; not Output

	// Disk is a file that keeps what the guest writes to /var, for a guest that boots
	// again; made if missing. The guest goes down without writing what it has in memory.
	Disk string

	Systemd    bool     // systemd is PID 1 and the commands run in a unit
	MemoryMiB  int      // 4096 if zero
	CPUs       int      // 2 if zero
	KernelArgs []string // beside our own; a later argument wins
	Modules    []string // kernel modules beside those that containers need

	// Logf hears of slow steps on the host, testing.T.Logf for one. May be nil.
	Logf func(format string, args ...any)
}

// Command is one program: Args, the first a path or a name on the guest's PATH,
// Env beside PATH, HOME and TMPDIR, and the folder Dir ("/" when empty).
type Command = wire.Command

// kernelModules are those that Debian does not build in: the two channels and
// the disk of the guest, and what containers are made of.
var kernelModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "overlay"}

// bootArgs is the kernel's command line.
var bootArgs = []string{
	"console=ttyS0", "quiet",
	"panic=-1",        // reboot at once, which ends QEMU under -no-reboot
	"mitigations=off", // they protect nothing here
	"lsm=landlock,lockdown,yama,apparmor,bpf",
}

// Run boots the guest, runs the commands one after another and powers it off.
//
// It returns one status for each command that ended: its exit status, 128+n
// if signal n killed it, 127 if it could not be started. A status other than
// zero is not an error and does not stop the next command. The error is not nil
// when not all commands have ended: the guest could not be had, went down by
// itself (a kernel panic), or ctx ended; it quotes the end of the console.
func Run(ctx context.Context, cfg Config) (statuses []int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("microvm: %w", err)
		}
	}()
	if cfg.Cache == "" || len(cfg.Commands) == 0 {
		return nil, errors.New("config: a Cache and at least one of Commands are needed")
	}
	for i, c := range cfg.Commands {
		if len(c.Args) == 0 {
			return nil, fmt.Errorf("command %d has no Args", i)
		}
	}
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 4096
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}

	packages, kernelArgs := guestPackages, cfg.KernelArgs
	if cfg.Systemd {
		packages = slices.Concat(packages, systemdPackages)
		kernelArgs = slices.Concat(systemdArgs, kernelArgs)
	}
	deb := debian{cache: cfg.Cache, logf: cfg.Logf}
	qemu, err := deb.provision(ctx, packages)
	if err != nil {
		return nil, err
	}
	kernel, moduleDir, err := deb.kernel()
	if err != nil {
		return nil, err
	}
	mods, err := modules(moduleDir, slices.Concat(kernelModules, cfg.Modules))
	if err != nil {
		return nil, err
	}

	tmp, err := os.MkdirTemp("", "microvm-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	init := filepath.Join(tmp, "init")
	if err := buildInit(ctx, init); err != nil {
		return nil, err
	}
	ramfs := initramfs{
		init:      init,
		modules:   mods,
		moduleDir: moduleDir,
		files:     cfg.Files,
		plan:      wire.Plan{Systemd: cfg.Systemd, Commands: cfg.Commands},
	}
	for _, p := range packages {
		ramfs.packages = append(ramfs.packages, deb.tree(p))
	}
	initrd := filepath.Join(tmp, "initramfs")
	if err := ramfs.write(initrd); err != nil {
		return nil, err
	}

	disk := "snapshot=on,file=" + deb.disk()
	if cfg.Disk != "" {
		if err := deb.makeDisk(ctx, cfg.Disk); err != nil {
			return nil, err
		}
		disk = "file=" + cfg.Disk
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// QEMU's own "microvm" boots half a second sooner, but has no clock besides
		// the PIT: on a busy host the guest cannot calibrate against it and hangs.
		"-machine", "pc",
		// KVM may hang on nested machines; emulation is the same everywhere. A
		// fifth level of page tables costs it a third of its speed.
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off",
		"-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMiB),
		"-kernel", kernel, "-initrd", initrd,
		"-append", strings.Join(slices.Concat(bootArgs, kernelArgs), " "),
		"-drive", "if=none,id=var,format=raw,cache=unsafe," + disk,
		"-device", "virtio-blk-pci,drive=var",
		"-device", "virtio-serial-pci",
	}
	return boot(ctx, exec.CommandContext(ctx, qemu, args...), tmp, cfg)
}

// buildInit compiles PID 1 of the guest: static, and without the race detector
// or other settings of whoever calls us.
func buildInit(ctx context.Context, file string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", file,
		"github.com/capdrift/capdrift/e2e/microvm/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if _, err := output(cmd); err != nil {
		return fmt.Errorf("%w (needs Go, and a working folder inside the module e2e)", err)
	}
	return nil
}

// boot runs QEMU until the guest powers off, with three ways out of it: the
// serial console, the commands' output, and the statuses.
func boot(ctx context.Context, qemu *exec.Cmd, tmp string, cfg Config) (statuses []int, err error) {
	var (
		console  tail
		stderr   bytes.Buffer
		events   bytes.Buffer
		wg       sync.WaitGroup
		ends     []*os.File
		copyErrs = make(chan error, 3)
	)
	defer func() {
		for _, f := range ends {
			_ = f.Close()
		}
	}()
	// QEMU writes to pipes that it inherits: nothing to name, to listen on or
	// to clean up, and their end is its end.
	channel := func(id string, to io.Writer) error {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		ends = append(ends, w)
		qemu.ExtraFiles = append(qemu.ExtraFiles, w)
		fd := 2 + len(qemu.ExtraFiles)
		qemu.Args = append(qemu.Args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd),
			// append: else QEMU truncates, which a pipe refuses.
			"-chardev", fmt.Sprintf("file,id=%s,append=on,path=/dev/fdset/%d", id, fd))
		wg.Go(func() {
			defer r.Close()
			_, err := io.Copy(to, r)
			if err != nil {
				copyErrs <- fmt.Errorf("copy the guest's %s: %w", id, err)
				_, _ = io.Copy(io.Discard, r) // or the guest would wait for us
			}
		})
		return nil
	}
	port := func(name string) {
		qemu.Args = append(qemu.Args, "-device", fmt.Sprintf("virtserialport,chardev=%[1]s,name=%[1]s", name))
	}
	if err := errors.Join(
		channel("console", io.MultiWriter(&console, orDiscard(cfg.Console))),
		channel(wire.StatusPort, &events),
		channel(wire.OutputPort, orDiscard(cfg.Output)),
	); err != nil {
		return nil, err
	}
	qemu.Args = append(qemu.Args, "-serial", "chardev:console")
	port(wire.StatusPort)
	port(wire.OutputPort)

	qemu.Stderr = &stderr
	qemu.Env = append(os.Environ(), "TMPDIR="+tmp) // for the disk's snapshot
	// Should we die without a chance to stop QEMU (a test's own timeout), the
	// kernel does. The signal comes when the thread ends, so keep the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := qemu.Start(); err != nil {
		return nil, err
	}
	for _, w := range ends {
		_ = w.Close()
	}
	ends = nil
	waitErr := qemu.Wait()
	wg.Wait()
	close(copyErrs)

	statuses, err = decode(&events)
	for e := range copyErrs {
		err = errors.Join(err, e)
	}
	ended := fmt.Sprintf("%d of %d commands had ended", len(statuses), len(cfg.Commands))
	switch {
	case err != nil:
		return statuses, err
	case len(statuses) == len(cfg.Commands) && waitErr == nil:
		return statuses, nil
	case ctx.Err() != nil:
		return statuses, fmt.Errorf("stopped when %s: %w; end of the console:\n%s", ended, context.Cause(ctx), console.text())
	case waitErr != nil:
		return statuses, fmt.Errorf("qemu: %w when %s: %s; end of the console:\n%s", waitErr, ended, lastLines(stderr.String(), 10), console.text())
	case strings.Contains(console.text(), "Kernel panic"):
		return statuses, fmt.Errorf("%w when %s; end of the console:\n%s", ErrPanic, ended, console.text())
	default:
		return statuses, fmt.Errorf("the guest went down when %s; end of the console:\n%s", ended, console.text())
	}
}

// ErrPanic is wrapped by Run's error when the guest's kernel panicked.
var ErrPanic = errors.New("the guest's kernel panicked")

// decode reads the events, which must come in the order of the commands.
func decode(r io.Reader) (statuses []int, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var e wire.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Command != len(statuses) {
			return statuses, fmt.Errorf("status port: %q after %d events", lines.Text(), len(statuses))
		}
		statuses = append(statuses, e.Status)
	}
	return statuses, lines.Err()
}

// tail keeps the end of what is written to it.
type tail struct{ data []byte }

const tailSize = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if len(t.data) > 2*tailSize {
		t.data = append(t.data[:0], t.data[len(t.data)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) text() string {
	return lastLines(strings.ReplaceAll(string(t.data), "\r\n", "\n"), 60)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func readLines(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
