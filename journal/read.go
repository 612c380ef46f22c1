package journal

import (
	"fmt"
	"iter"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// maxRead bounds the bytes that one Read gives back.
const maxRead = 1 << 20

// Read returns records after a position, oldest first: up to limit of them and about
// 1 MiB, at least one. None means that there are no more.
//
// It returns ErrGone when the position's epoch is not kept, when records after the
// position went by the bounds, or when the position is beyond the last record: the
// reader missed something and has to start anew. From the zero Key, and from sequence
// 0 of an epoch, it starts with the oldest record that is kept. What damage took is
// told by [Report] and by [Epoch], not here.
func (j *Journal) Read(after Key, limit int) ([]Record, error) {
	var records []Record
	err := j.view(func(tx *bbolt.Tx, x *index) error {
		at := 0
		from := []byte{0}
		if after != (Key{}) {
			at = x.find(after.BootID, after.Epoch)
			if at < 0 {
				return fmt.Errorf("%w: epoch %q of boot %q", ErrGone, after.Epoch, after.BootID)
			}
			e := x.epochs[at]
			if after.Sequence > 0 && (after.Sequence < e.gone || after.Sequence > e.last) {
				return fmt.Errorf("%w: sequence %d of epoch %q, it has those after %d up to %d", ErrGone, after.Sequence, after.Epoch, e.gone, e.last)
			}
			from = recordKey(e.number, after.Sequence)
		}
		size := 0
		cursor := tx.Bucket(bucketRecords).Cursor()
		key, sealed := cursor.Seek(from)
		if string(key) == string(from) {
			key, sealed = cursor.Next()
		}
		for ; key != nil && len(records) < limit && size < maxRead; key, sealed = cursor.Next() {
			number, sequence, err := splitKey(key)
			if err != nil {
				return err
			}
			for at < len(x.epochs) && x.epochs[at].number < number {
				at++
			}
			if at == len(x.epochs) || x.epochs[at].number != number {
				return fmt.Errorf("%w: a record is of no epoch", ErrDamaged)
			}
			value, err := unseal(bucketRecords, key, sealed)
			if err != nil {
				return err
			}
			r := Record{BootID: x.epochs[at].boot, Epoch: x.epochs[at].name, Sequence: sequence}
			if err := decodeRecord(&r, value); err != nil {
				return err
			}
			records = append(records, r)
			size += len(sealed)
		}
		if size > maxRead/8 {
			j.release(tx)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return records, nil
}

// release gives the pages of the file that were read back to the kernel: they would
// count as this process's memory until it ends. The transaction holds the mapping,
// and the part below its size is mapped.
func (j *Journal) release(tx *bbolt.Tx) {
	// An error changes nothing but the memory that is shown for us.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, j.db.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
}

// All yields the records after a position, oldest first, until there are no more or an
// error ends it. It holds nothing between two records: writers go on meanwhile, and
// may drop what was not read yet (ErrGone).
func (j *Journal) All(after Key) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			records, err := j.Read(after, 256)
			if err != nil {
				yield(Record{}, err)
				return
			}
			if len(records) == 0 {
				return
			}
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
			}
			after = records[len(records)-1].Key()
		}
	}
}
