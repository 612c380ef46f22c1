package proc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/capdrift/capdrift/drift"
)

// maxFile bounds what is read of one file. A process's status is about 1.5 KiB,
// but it lists the supplementary groups: setgroups(2) takes 65536 of them
// (NGROUPS_MAX), ten digits each, and nobody shall hide behind his groups.
const maxFile = 1 << 20

// reader is what one worker of a sweep reads with: directories that everybody
// shares, buffers of its own.
type reader struct {
	proc int // file descriptor of the directory /proc
	buf  []byte
	path []byte
	lap  lap // nil where nobody reckons with the time
	// threaded is the time that the threads of one container's threaded cgroups took.
	threaded time.Duration
	maps     map[string][]drift.IDRange // by their text

	namespaces map[uint64]drift.UserNamespace            // by inode, the mapped ones
	shared     map[*drift.IDRange][]*drift.UserNamespace // those without, by their uid_map, which maps keeps once
}

func newReader(proc int) *reader {
	return &reader{
		proc: proc, buf: make([]byte, 16<<10), path: make([]byte, 0, 64),
		maps: make(map[string][]drift.IDRange), namespaces: make(map[uint64]drift.UserNamespace),
		shared: make(map[*drift.IDRange][]*drift.UserNamespace),
	}
}

// openDirectory opens a directory to look up others from.
func openDirectory(path string) (fd int, err error) {
	fd, err = open(unix.AT_FDCWD, path, unix.O_DIRECTORY)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", path, err)
	}
	return fd, nil
}

func open(dir int, path string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// of returns "PID/file".
func (r *reader) of(pid int, file string) string {
	r.path = strconv.AppendInt(r.path[:0], int64(pid), 10)
	r.path = append(r.path, '/')
	r.path = append(r.path, file...)
	return string(r.path)
}

// lastRead: a read that stops with so much room left has reached the end. The
// kernel fills a page or the reader's buffer, and stops short of it by no more
// than a line (fs/seq_file.c seq_read_iter). A second read, which would say so, is
// a tenth of what a process costs.
const lastRead = 2 << 10

// read returns all that is left of an open file; the bytes are the reader's until
// the next call. Files of /proc tell no size, and a short read alone is no end.
func (r *reader) read(fd int) ([]byte, error) {
	for n := 0; ; {
		if n == len(r.buf) {
			if n >= maxFile {
				return nil, errTooLarge
			}
			r.buf = append(r.buf, make([]byte, min(3*n, maxFile-n))...)
		}
		got, err := unix.Read(fd, r.buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case got < min(lastRead, len(r.buf)-n):
			return r.buf[:n+got], nil
		default:
			n += got
		}
	}
}

var errTooLarge = errors.New("larger than 1 MiB, which is more than the kernel writes")

// file reads a whole file below the directory.
func (r *reader) file(dir int, path string) ([]byte, error) {
	fd, err := open(dir, path, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return r.read(fd)
}

// entries calls visit with the name and d_type of each entry of an open
// directory, "." and ".." left out; getdents64(2). The name is valid only
// during the call.
func (r *reader) entries(fd int, visit func(name []byte, kind byte)) error {
	for {
		if n, err := r.someEntries(fd, visit); err != nil || n == 0 {
			return err
		}
	}
}

// someEntries is entries for as many as one call of the kernel tells; n is 0 after the last.
func (r *reader) someEntries(fd int, visit func(name []byte, kind byte)) (n int, err error) {
	const header = 8 + 8 + 2 + 1 // d_ino, d_off, d_reclen, d_type
	for {
		n, err = unix.ReadDirent(fd, r.buf)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || n == 0 {
		return 0, err
	}
	for list := r.buf[:n]; len(list) > header; {
		length := int(binary.NativeEndian.Uint16(list[16:]))
		if length <= header || length > len(list) {
			return 0, fmt.Errorf("directory entry of %d bytes", length)
		}
		name, _, _ := bytes.Cut(list[header:length], []byte{0})
		if s := string(name); s != "." && s != ".." {
			visit(name, list[18])
		}
		list = list[length:]
	}
	return n, nil
}

// pids lists the numbers among a directory's entries.
func (r *reader) pids(fd int) (list []int, err error) {
	err = r.entries(fd, addNumber(&list))
	return list, err
}

// somePIDs is pids of as many as one call of the kernel tells.
func (r *reader) somePIDs(fd int) (list []int, err error) {
	_, err = r.someEntries(fd, addNumber(&list))
	return list, err
}

func addNumber(list *[]int) func(name []byte, kind byte) {
	return func(name []byte, _ byte) {
		var pid int
		if name[0] != '0' && number(name, &pid) {
			*list = append(*list, pid)
		}
	}
}

// allPIDs lists the processes of the node, in order.
func (r *reader) allPIDs() ([]int, error) {
	fd, err := open(r.proc, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer unix.Close(fd)
	list, err := r.pids(fd)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	slices.Sort(list)
	return list, nil
}

// onProcfs tells whether a directory is a real /proc, not a picture of one.
func onProcfs(dir int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(dir, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}
