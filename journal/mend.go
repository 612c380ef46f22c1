package journal

import (
	"errors"

	"go.etcd.io/bbolt"
)

// fill writes a new file: empty, or what is whole in another one. It tells the report
// what is not.
func fill(db *bbolt.DB, from *image, report *Report) error {
	f := filler{db: db}
	if err := f.begin(); err != nil {
		return err
	}
	err := f.fill(from, report)
	if err == nil {
		return f.tx.Commit()
	}
	return errors.Join(err, f.tx.Rollback())
}

// filler writes in transactions small enough to be held in memory.
type filler struct {
	db      *bbolt.DB
	tx      *bbolt.Tx
	pending int
}

func (f *filler) begin() (err error) {
	if f.tx, err = f.db.Begin(true); err != nil {
		return err
	}
	for _, name := range buckets {
		bucket, err := f.tx.CreateBucketIfNotExists(name)
		if err != nil {
			return err
		}
		bucket.FillPercent = 1
	}
	f.pending = 0
	return nil
}

func (f *filler) put(bucket, key, sealed []byte) error {
	if f.pending > maxGroup/4 {
		if err := f.tx.Commit(); err != nil {
			return err
		}
		if err := f.begin(); err != nil {
			return err
		}
	}
	f.pending += len(key) + len(sealed)
	b := f.tx.Bucket(bucket)
	b.FillPercent = 1
	return b.Put(append([]byte{}, key...), append([]byte{}, sealed...))
}

func (f *filler) fill(from *image, report *Report) error {
	a := about{}
	if from != nil && from.best != nil && from.best.about != nil {
		var err error
		if a, err = f.carryOver(from, report); err != nil {
			return err
		}
	} else if report != nil {
		report.Uncounted = true
	}
	return f.put(bucketAbout, aboutKey, seal(bucketAbout, aboutKey, a.encode()))
}

// carryOver copies the whole records and entries of the state, and counts the others.
func (f *filler) carryOver(from *image, report *Report) (about, error) {
	w := from.best
	a := *w.about
	known := map[uint64]bool{}
	for _, old := range w.epochs {
		e := *old
		t := w.tally(e.number)
		if t.records < e.records {
			e.lost += e.records - t.records
		}
		e.records, e.bytes, e.last = t.records, t.bytes, max(e.last, t.last)
		a.nextEpoch = max(a.nextEpoch, e.number+1)
		known[e.number] = true
		if err := f.put(bucketEpochs, e.key(), seal(bucketEpochs, e.key(), e.encode())); err != nil {
			return a, err
		}
	}
	for number := range w.records { // of an epoch that was damaged: nobody knows whose they are
		a.nextEpoch = max(a.nextEpoch, number+1)
	}
	missing := from.missing(w)
	if report != nil {
		report.Lost = missing
		report.LostState = int(a.stateCount - min(a.stateCount, w.stateCount))
		report.Uncounted = from.oneHeader || from.newest.about == nil
	}
	if n := from.newest.about; n != nil {
		a.appended = max(a.appended, n.appended)
	}
	a.lost += missing
	a.stateCount, a.stateBytes, a.stateDigest = 0, 0, 0

	again := from.walk(w.header, func(bucket, key, sealed []byte) error {
		switch string(bucket) {
		case string(bucketRecords):
			if number, _, err := splitKey(key); err != nil || !known[number] {
				return err
			}
		case string(bucketState):
			a.stateCount++
			a.stateBytes += uint64(stateSize(string(key), sealed))
			a.stateDigest += entryDigest(key, sealed)
		default:
			return nil
		}
		return f.put(bucket, key, sealed)
	})
	return a, again.stopped
}
