package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Snapshot returns a copy in memory of what is whole in a directory's journal, which
// may be damaged or of an older form. Nothing in the directory is written to. The lock
// is held only while the file is read, so that whoever writes there can start meanwhile.
//
// The copy takes about as much memory as the journal's records, and cannot be written
// to. The report's Damage, Lost, LostState, Uncounted and Form are of the file. Of the
// options only Classify is used.
//
// It returns [ErrLocked] where a process works in the directory, [ErrNewer] for a file of
// a newer form, and an error that is [fs.ErrNotExist] where there is no journal.
func Snapshot(dir string, options Options) (*Journal, Report, error) {
	options = Options{ReadOnly: true, Classify: options.Classify, Now: time.Now}
	d, err := openDirectory(dir, true)
	if err != nil {
		return nil, Report{}, err
	}
	defer d.close()
	j := &Journal{options: options, where: dir, dir: &directory{fd: -1}}
	report, err := j.copy(d)
	if err != nil {
		j.abandon()
		return nil, report, wrap(dir, err)
	}
	return j, report, nil
}

// copy fills the journal with what is whole in a directory's file.
func (j *Journal) copy(from *directory) (report Report, err error) {
	found, err := from.inspect(fileName)
	if err != nil {
		return report, err
	}
	defer found.close()
	if form := found.form(); form != thisForm {
		report.Form = form
	}
	if err := guard(j.openMemory); err != nil {
		return report, err
	}
	if err := guard(func() error { return fill(j.db, found, j.options, &report) }); err != nil {
		return report, err
	}
	report.Damage = found.damage
	if err := guard(j.reload); err != nil {
		return report, err
	}
	report.Records, report.Bytes = j.Depth()
	report.State = int(j.index.about.stateCount)
	return report, nil
}

// openMemory opens an empty database that is in no directory; memfd_create(2).
func (j *Journal) openMemory() error {
	fd, err := unix.MemfdCreate("capdrift-"+fileName, unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	j.file = os.NewFile(uintptr(fd), "the copy of "+fileName+" in memory")
	j.db, err = bbolt.Open(j.file.Name(), 0o600, &bbolt.Options{
		PageSize: pageSize, FreelistType: bbolt.FreelistArrayType, NoStatistics: true, NoSync: true,
		OpenFile: func(string, int, fs.FileMode) (*os.File, error) { return j.file, nil },
	})
	return err
}

// Written returns when the journal's file in a directory was written to last, the zero
// time where there is none.
func Written(dir string) (time.Time, error) {
	info, err := os.Lstat(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}
