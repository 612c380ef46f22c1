//go:build linux

package microvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelPackage depends on the package of the current kernel image.
const kernelPackage = "linux-image-cloud-amd64"

// guestPackages is what every guest gets from Debian: apparmor_parser, which
// containerd runs to load its default profile, with its includes and library.
var guestPackages = []string{"apparmor", "libc6"}

// mke2fsPackages hold mke2fs and the libraries that a host may lack.
var mke2fsPackages = []string{"e2fsprogs", "libblkid1", "libcom-err2", "libext2fs2", "libss2", "libuuid1"}

// debian takes what it needs from Debian's archive into one folder. Nothing but
// QEMU is ever installed, and what is in the folder is not asked for again.
type debian struct {
	cache string
	logf  func(format string, args ...any)
}

// provision returns the path of qemu-system-x86_64 and makes everything else
// that a boot needs appear in the cache.
func (d debian) provision(ctx context.Context, packages []string) (qemu string, err error) {
	if runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("packages for the guest are taken from an amd64 Debian, this machine is %s", runtime.GOARCH)
	}
	if err := os.MkdirAll(d.cache, 0o755); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	// Two test runs may share a cache; the lock goes with the descriptor.
	lock, err := os.Open(d.cache)
	if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", d.cache, err)
	}
	if qemu, err = d.qemu(ctx); err != nil {
		return "", err
	}
	wanted := map[string]string{}
	for _, p := range slices.Concat(packages, mke2fsPackages) {
		wanted[p] = p
	}
	if !d.has(kernelPackage) {
		image, err := d.kernelImagePackage(ctx)
		if err != nil {
			return "", err
		}
		wanted[image] = kernelPackage
	}
	if err := d.unpack(ctx, wanted); err != nil {
		return "", err
	}
	return qemu, d.makeDisk(ctx, d.disk())
}

// tree is where a package is unpacked.
func (d debian) tree(pkg string) string { return filepath.Join(d.cache, "debian", pkg) }

func (d debian) has(pkg string) bool {
	_, err := os.Stat(d.tree(pkg))
	return err == nil
}

// disk is an empty ext4 file system; each guest gets it as a snapshot.
func (d debian) disk() string { return filepath.Join(d.cache, "disk.ext4") }

// kernel returns the bzImage and the folder of its modules.
func (d debian) kernel() (image, moduleDir string, err error) {
	for pattern, to := range map[string]*string{
		"boot/vmlinuz-*": &image,
		"lib/modules/*":  &moduleDir,
	} {
		pattern = filepath.Join(d.tree(kernelPackage), pattern)
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) != 1 {
			return "", "", fmt.Errorf("kernel: %d files match %s, want one; delete the cache", len(found), pattern)
		}
		*to = found[0]
	}
	return image, moduleDir, nil
}

func (d debian) qemu(ctx context.Context) (string, error) {
	const name = "qemu-system-x86_64"
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	if os.Geteuid() != 0 {
		return "", errors.New(name + " is missing and only root can install it: run as root, or install the package qemu-system-x86")
	}
	if err := d.apt(ctx, "", "install", "-y", "--no-install-recommends", "qemu-system-x86"); err != nil {
		return "", err
	}
	return exec.LookPath(name)
}

// kernelImagePackage asks apt's lists, which may be empty in a fresh container.
func (d debian) kernelImagePackage(ctx context.Context) (string, error) {
	find := func() (string, error) {
		out, err := output(exec.CommandContext(ctx, "apt-cache", "depends", "--important", kernelPackage))
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			if p, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(p, "linux-image-") {
				return p, nil
			}
		}
		return "", fmt.Errorf("apt-cache names no kernel image that %s depends on (is this Debian?): %q", kernelPackage, out)
	}
	image, err := find()
	if err == nil || ctx.Err() != nil {
		return image, err
	}
	if uerr := d.aptUpdate(ctx); uerr != nil {
		return "", errors.Join(err, uerr)
	}
	return find()
}

// unpack downloads packages, the keys, and unpacks each as tree(value), whole
// or not at all. It leaves alone what is there.
func (d debian) unpack(ctx context.Context, wanted map[string]string) error {
	maps.DeleteFunc(wanted, func(_, name string) bool { return d.has(name) })
	if len(wanted) == 0 {
		return nil
	}
	trees := d.tree("")
	if err := os.MkdirAll(trees, 0o755); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	tmp, err := os.MkdirTemp(trees, ".tmp-")
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := d.apt(ctx, tmp, append([]string{"download"}, slices.Sorted(maps.Keys(wanted))...)...); err != nil {
		return err
	}
	for pkg, name := range wanted {
		debs, err := filepath.Glob(filepath.Join(tmp, pkg+"_*.deb"))
		if err != nil || len(debs) != 1 {
			return fmt.Errorf("unpack %s: apt-get downloaded %d of it, want one", pkg, len(debs))
		}
		root := filepath.Join(tmp, pkg)
		if _, err := output(exec.CommandContext(ctx, "dpkg", "-x", debs[0], root)); err != nil {
			return err
		}
		if err := os.Rename(root, d.tree(name)); err != nil {
			return fmt.Errorf("unpack %s: %w", pkg, err)
		}
	}
	return nil
}

// apt runs apt-get in dir, and once more with fresh lists if that fails: lists
// may be missing, or older than what the archive still has.
func (d debian) apt(ctx context.Context, dir string, args ...string) error {
	try := func() error {
		d.logf("apt-get %s", strings.Join(args, " "))
		// Sandbox: _apt cannot write to our folder and apt would warn of it.
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{
			"-q", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		_, err := output(cmd)
		return err
	}
	err := try()
	if err == nil || ctx.Err() != nil {
		return err
	}
	if uerr := d.aptUpdate(ctx); uerr != nil {
		return errors.Join(err, uerr)
	}
	return try()
}

func (d debian) aptUpdate(ctx context.Context) error {
	d.logf("apt-get update")
	_, err := output(exec.CommandContext(ctx, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"))
	return err
}

// makeDisk makes a file system for /var, unless it is there. It must be a real one: the kernel of
// the guest has no idmapped mounts on tmpfs (they came with 6.3), which pods
// with a user namespace need.
func (d debian) makeDisk(ctx context.Context, file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	var libs []string
	for _, p := range mke2fsPackages {
		for _, dir := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"} {
			libs = append(libs, filepath.Join(d.tree(p), dir))
		}
	}
	tmp := file + ".tmp"
	defer os.Remove(tmp)
	_ = os.Remove(tmp)
	e2fsprogs := d.tree("e2fsprogs")
	cmd := exec.CommandContext(ctx, filepath.Join(e2fsprogs, "sbin/mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal", tmp, "8G")
	cmd.Env = append(os.Environ(),
		"LD_LIBRARY_PATH="+strings.Join(libs, ":"),
		"MKE2FS_CONFIG="+filepath.Join(e2fsprogs, "etc/mke2fs.conf"))
	if _, err := output(cmd); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// output runs a command and returns its standard output; an error carries what
// the command said.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, lastLines(stderr.String()+stdout.String(), 10))
	}
	return stdout.String(), nil
}
