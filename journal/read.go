package journal

import (
	"fmt"
	"iter"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// maxRead bounds the bytes that one Read gives back.
const maxRead = 1 << 20

// Read returns the entries after a position, oldest first: up to limit of them and about
// 1 MiB, at least one. None means that there are no more. The key of the last one is the
// position to go on from, be it a record or a gap.
//
// A gap comes before the first record after it, and with its range cut to what is after
// the position; its count then may be of more than is after the position. From the zero
// Key reading starts with the oldest epoch that is known, from sequence 0 of an epoch with
// that epoch.
//
// It returns ErrGone when the position's epoch is not known, or when the position is
// beyond the last record that was appended: the reader has to start anew.
func (j *Journal) Read(after Key, limit int) ([]Entry, error) {
	var r *reader
	err := j.view(func(tx *bbolt.Tx, x *index) error {
		if x.about.form != thisForm {
			return fmt.Errorf("the journal in %s has form %d: open it for writing to carry it over into form %d", j.where, x.about.form, thisForm)
		}
		var err error
		if r, err = newReader(tx, x, after, limit); err != nil {
			return err
		}
		err = r.read()
		if r.size > maxRead/8 {
			j.release(tx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.entries, nil
}

// reader is one Read under way.
type reader struct {
	log     *bbolt.Bucket
	order   *bbolt.Cursor
	epochs  []*epoch // that are left
	last    uint64   // the sequence up to which the first of them was told
	inside  bool     // what was lost before it was told, too
	limit   int
	entries []Entry
	size    int
}

func newReader(tx *bbolt.Tx, x *index, after Key, limit int) (*reader, error) {
	r := &reader{log: tx.Bucket(bucketRecords), order: tx.Bucket(bucketOrder).Cursor(), epochs: x.epochs, limit: limit}
	if after == (Key{}) {
		return r, nil
	}
	at := x.find(after.BootID, after.Epoch)
	if at < 0 {
		return nil, fmt.Errorf("%w: epoch %q of boot %q", ErrGone, after.Epoch, after.BootID)
	}
	if e := x.epochs[at]; after.Sequence > e.last {
		return nil, fmt.Errorf("%w: sequence %d of epoch %q, its last one is %d", ErrGone, after.Sequence, after.Epoch, e.last)
	}
	r.epochs, r.last, r.inside = x.epochs[at:], after.Sequence, true
	return r, nil
}

func (r *reader) full() bool { return len(r.entries) >= r.limit || r.size >= maxRead }

// gap adds one up to a sequence.
func (r *reader) gap(e *epoch, to, count uint64) {
	if count > 0 && to > r.last {
		r.entries = append(r.entries, Entry{Record{BootID: e.boot, Epoch: e.name, Sequence: to}, &Gap{r.last + 1, to, min(count, to-r.last)}})
		r.last = to
	}
}

func (r *reader) read() error {
	for ; len(r.epochs) > 0 && !r.full(); r.epochs, r.last, r.inside = r.epochs[1:], 0, false {
		e := r.epochs[0]
		if !r.inside && e.before > 0 {
			r.entries = append(r.entries, Entry{Record{BootID: e.boot, Epoch: e.name}, &Gap{Count: e.before}})
		}
		key, sealed := r.order.Seek(place{e.number, r.last + 1}.key())
		for ; key != nil && !r.full(); key, sealed = r.order.Next() {
			found, entry, err := orderEntry(key, sealed)
			if err != nil {
				return err
			}
			if found.place.epoch != e.number {
				break
			}
			r.gap(e, found.place.sequence-1, entry.lost)
			if r.full() {
				return nil
			}
			if err := r.record(e, found); err != nil {
				return err
			}
		}
		if r.full() {
			return nil
		}
		r.gap(e, e.last, e.tail)
	}
	return nil
}

func (r *reader) record(e *epoch, found dropped) error {
	key := recordKey(found.class, found.place)
	sealed := r.log.Get(key)
	value, err := unseal(bucketRecords, key, sealed)
	if err != nil {
		return err
	}
	record := Record{BootID: e.boot, Epoch: e.name, Sequence: found.place.sequence, Rank: found.class.rank}
	if err := decodeRecord(thisForm, &record, value); err != nil {
		return err
	}
	r.entries = append(r.entries, Entry{Record: record})
	r.size += len(sealed)
	r.last = found.place.sequence
	return nil
}

// release gives the pages of the file that were read back to the kernel: they would
// count as this process's memory until it ends. The transaction holds the mapping,
// and the part below its size is mapped.
func (j *Journal) release(tx *bbolt.Tx) {
	// An error changes nothing but the memory that is shown for us.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, j.db.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
}

// All yields the entries after a position, oldest first, until there are no more or an
// error ends it. It holds nothing between two entries: writers go on meanwhile, and what
// they evict that was not read yet is a gap.
func (j *Journal) All(after Key) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for {
			entries, err := j.Read(after, 256)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if len(entries) == 0 {
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			after = entries[len(entries)-1].Key()
		}
	}
}
