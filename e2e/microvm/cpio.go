//go:build linux

package microvm

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// archive writes the "newc" form of cpio, the only one the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst). Everything in
// it belongs to root. Parent folders are added as needed.
type archive struct {
	w    io.Writer
	off  int64
	ino  uint32
	seen map[string]bool
	err  error // the first write error; later writes do nothing
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, seen: map[string]bool{".": true}}
}

// dir, file, symlink and node take a path in the guest, absolute or not. The
// first entry of a path wins, so callers add what must not be replaced first.

func (a *archive) dir(name string) { a.entry(name, unix.S_IFDIR|0o755, 0, 0, nil) }

func (a *archive) file(name string, perm fs.FileMode, size int64, r io.Reader) {
	a.entry(name, unix.S_IFREG|modeBits(perm), 0, size, r)
}

func (a *archive) text(name string, perm fs.FileMode, s string) {
	a.file(name, perm, int64(len(s)), strings.NewReader(s))
}

func (a *archive) symlink(name, target string) {
	a.entry(name, unix.S_IFLNK|0o777, 0, int64(len(target)), strings.NewReader(target))
}

func (a *archive) charDevice(name string, major, minor uint32) {
	a.entry(name, unix.S_IFCHR|0o666, unix.Mkdev(major, minor), 0, nil)
}

func (a *archive) close() error {
	a.record("TRAILER!!!", 0, 0, 0, nil)
	return a.err
}

func (a *archive) entry(name string, mode uint32, dev uint64, size int64, r io.Reader) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" || a.seen[name] {
		return
	}
	a.dir(path.Dir(name))
	a.seen[name] = true
	a.record(name, mode, dev, size, r)
}

func (a *archive) record(name string, mode uint32, dev uint64, size int64, r io.Reader) {
	if a.err == nil && size > 1<<32-1 {
		a.err = fmt.Errorf("initramfs: %s: %d bytes do not fit into a cpio entry", name, size)
	}
	a.ino++
	a.printf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, size, 0, 0, unix.Major(dev), unix.Minor(dev), len(name)+1, 0, name)
	a.pad()
	if a.err == nil && r != nil {
		n, err := io.CopyN(a.w, r, size)
		a.off += n
		if err != nil {
			a.err = fmt.Errorf("initramfs: %s: %w", name, err)
		}
	}
	a.pad()
}

func (a *archive) pad() {
	if n := a.off % 4; n != 0 {
		a.printf("%s", "\x00\x00\x00"[:4-n])
	}
}

func (a *archive) printf(format string, args ...any) {
	if a.err != nil {
		return
	}
	n, err := fmt.Fprintf(a.w, format, args...)
	a.off += int64(n)
	if err != nil {
		a.err = fmt.Errorf("initramfs: %w", err)
	}
}

// modeBits are the permission bits as stat(2) has them: fs.FileMode keeps
// setuid, setgid and sticky elsewhere.
func modeBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}
