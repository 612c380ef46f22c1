package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// The files of a journal's directory.
const (
	fileName  = "journal.db"
	newName   = "journal.new" // being written; takes the place of journal.db when it is whole
	lockName  = "lock"
	asideName = "journal.damaged-" // and the time at which it was set aside
)

const pageSize = 4096 // of the file; the same on machines whose pages are larger

// directory is the journal's directory, held open and locked: what happens to its path
// meanwhile does not matter.
type directory struct {
	path string
	fd   int
	lock *os.File
}

func openDirectory(path string, readOnly bool) (*directory, error) {
	fail := func(err error) (*directory, error) {
		return nil, fmt.Errorf("journal's directory %s: %w", path, advise(err))
	}
	if !readOnly {
		err := os.Mkdir(path, 0o700)
		switch {
		case err == nil:
			if err := syncDirectory(filepath.Dir(path)); err != nil {
				return fail(err)
			}
		case errors.Is(err, fs.ErrNotExist):
			return fail(fmt.Errorf("%w; make %s first", err, filepath.Dir(path)))
		case !errors.Is(err, fs.ErrExist):
			return fail(err)
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fail(errors.New("it is no directory, and symbolic links are not followed; name the directory itself"))
	case err != nil:
		return fail(err)
	}
	d := &directory{path: path, fd: fd}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		d.close()
		return fail(err)
	}
	if stat.Mode&0o022 != 0 {
		d.close()
		return fail(fmt.Errorf("others may write to it (mode %04o); chmod 0700 it", stat.Mode&0o7777))
	}
	if stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		d.close()
		return fail(fmt.Errorf("it is of user %d, this is user %d; chown it", stat.Uid, os.Geteuid()))
	}
	if err := d.acquire(readOnly); err != nil {
		d.close()
		return fail(err)
	}
	return d, nil
}

// syncDirectory makes a new entry of a directory last.
func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// acquire takes the lock that keeps the directory to one process. Readers share it.
func (d *directory) acquire(readOnly bool) error {
	flags, how := unix.O_RDWR|unix.O_CREAT, unix.LOCK_EX
	if readOnly {
		flags, how = unix.O_RDONLY, unix.LOCK_SH
	}
	lock, err := d.openFile(lockName, flags)
	if readOnly && errors.Is(err, fs.ErrNotExist) {
		return nil // nobody ever wrote here, or who did took the lock away
	}
	if err != nil {
		return err
	}
	d.lock = lock
	if err := unix.Flock(int(lock.Fd()), how|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: another process works in it; stop that one, or name another directory", ErrLocked)
		}
		return err
	}
	return nil
}

func (d *directory) close() {
	if d.lock != nil {
		unlock(d.lock)
		d.lock.Close()
	}
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// unlock does not wait for a child between fork(2) and execve(2) that holds the
// descriptor, and with it the lock, a moment longer than we do.
func unlock(file *os.File) {
	_ = unix.Flock(int(file.Fd()), unix.LOCK_UN) // closing does it too, if later
}

// openFile opens a regular file of the directory, which only its owner may access.
func (d *directory) openFile(name string, flags int) (*os.File, error) {
	path := filepath.Join(d.path, name)
	fd, err := unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, which is not followed; remove it", path)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		file.Close()
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		file.Close()
		return nil, fmt.Errorf("%s is no regular file; remove it", path)
	}
	if stat.Mode&0o077 != 0 && flags&(unix.O_RDWR|unix.O_WRONLY) != 0 {
		if err := unix.Fchmod(fd, 0o600); err != nil {
			file.Close()
			return nil, fmt.Errorf("%s: others may access it (mode %04o): %w", path, stat.Mode&0o777, err)
		}
	}
	return file, nil
}

// openDB opens a file that is known to be sound, or a new one.
func (d *directory) openDB(name string, readOnly bool, mapped int, opened **os.File) (*bbolt.DB, error) {
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{
		ReadOnly:        readOnly,
		PageSize:        pageSize,
		InitialMmapSize: mapped,
		FreelistType:    bbolt.FreelistArrayType, // gives the first free pages, so that the file stays small
		NoStatistics:    true,
		Timeout:         time.Second, // for the lock, which our own makes needless
		OpenFile: func(name string, flags int, _ os.FileMode) (*os.File, error) {
			file, err := d.openFile(name, flags)
			*opened = file
			return file, err
		},
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = allocation
	return db, nil
}

// inspect reads the journal's file and tells what it holds.
func (d *directory) inspect(name string) (*image, error) {
	file, err := d.openFile(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	i := inspect(file, info.Size())
	i.close = func() { file.Close() }
	if i.foreign != nil {
		file.Close()
		return nil, i.foreign
	}
	return i, nil
}

// build writes a journal of this form that holds what is whole in another one, or nothing,
// and puts it in place. The file that was in place is gone then, unless it has another name.
func (d *directory) build(from *image, options Options, report *Report) error {
	if err := d.remove(newName); err != nil {
		return err
	}
	var file *os.File
	err := guard(func() error {
		db, err := d.openDB(newName, false, 0, &file)
		if err != nil {
			return err
		}
		db.NoSync = true // it counts for nothing before the last step
		if err = fill(db, from, options, report); err == nil {
			err = db.Sync()
		}
		return errors.Join(err, db.Close())
	})
	if err == nil {
		err = unix.Renameat(d.fd, newName, d.fd, fileName)
	}
	if err == nil {
		err = unix.Fsync(d.fd)
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return errors.Join(fmt.Errorf("writing %s: %w", newName, err), d.remove(newName))
	}
	return nil
}

func (d *directory) remove(name string) error {
	if err := unix.Unlinkat(d.fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(d.path, name), Err: err}
	}
	return nil
}

// mend sets a damaged file aside and puts in its place a journal of what is whole in
// it.
func (d *directory) mend(found *image, options Options, report *Report) error {
	report.Damage = found.damage
	// The second name comes first: at no moment is there no file, or only one that
	// will be overwritten.
	base := asideName + options.Now().UTC().Format("20060102T150405Z")
	name := base
	for n := 2; ; n++ {
		err := unix.Linkat(d.fd, fileName, d.fd, name, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) || n > 100 {
			return fmt.Errorf("setting %s aside as %s: %w", fileName, name, err)
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
	if err := d.build(found, options, report); err != nil {
		return errors.Join(err, d.remove(name))
	}
	report.SetAside = filepath.Join(d.path, name)
	return d.tidy(name, report)
}

// tidy deletes the oldest damaged files: each may be as large as a journal.
func (d *directory) tidy(newest string, report *Report) error {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", d.fd))
	if err != nil {
		return err
	}
	type aside struct {
		name string
		at   time.Time
	}
	var files []aside
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), asideName) || entry.Name() == newest {
			continue
		}
		if info, err := entry.Info(); err == nil {
			files = append(files, aside{entry.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b aside) int { return a.at.Compare(b.at) })
	for ; len(files) >= keepAside; files = files[1:] {
		if err := d.remove(files[0].name); err != nil {
			return err
		}
		report.Removed = append(report.Removed, filepath.Join(d.path, files[0].name))
	}
	return nil
}
