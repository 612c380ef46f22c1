package journal

import (
	"errors"
	"maps"
	"math"
	"slices"
	"sort"

	"go.etcd.io/bbolt"
)

// fill writes a new file: empty, or what is whole in another one, of this form or an older
// one. It tells the report what is not whole.
func fill(db *bbolt.DB, from *image, options Options, report *Report) error {
	f := filler{db: db, options: options}
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
	options Options
	tx      *bbolt.Tx
	pending int

	records []dropped // that were carried over
	old     []ordered // the old order
}

// ordered is an entry of the old order: of a record that was carried over or is missing.
type ordered struct {
	place place
	lost  uint64
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
	a := about{writer: clipName(f.options.Writer)}
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
	a.writer = clipName(f.options.Writer)
	epochs := map[uint64]*epoch{}
	for _, old := range w.epochs {
		e := *old
		t := w.tally(e.number)
		e.lost += e.records - min(e.records, t.records)
		e.records, e.bytes, e.last = 0, 0, max(e.last, t.last)
		a.nextEpoch = max(a.nextEpoch, e.number+1)
		epochs[e.number] = &e
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
		case string(bucketOrder):
			found, old, err := orderEntry(key, sealed)
			f.old = append(f.old, ordered{found.place, old.lost})
			return err
		case string(bucketRecords):
			return f.record(w.about.form, epochs, key, sealed)
		case string(bucketState):
			a.stateCount++
			a.stateBytes += uint64(stateSize(string(key), sealed))
			a.stateDigest += entryDigest(key, sealed)
			return f.put(bucket, key, sealed)
		}
		return nil
	})
	if again.stopped != nil {
		return a, again.stopped
	}
	return a, f.arrange(&a, epochs)
}

// record copies a record of either form, if its epoch is known.
func (f *filler) record(form uint64, epochs map[uint64]*epoch, key, sealed []byte) error {
	one, err := oldOrNew(form, key, sealed)
	if err != nil {
		return err
	}
	e := epochs[one.place.epoch]
	if e == nil {
		return nil
	}
	if form == firstForm {
		r := Record{BootID: e.boot, Epoch: e.name, Sequence: one.place.sequence}
		if err := decodeRecord(form, &r, sealed[4:]); err != nil {
			return err
		}
		if f.options.Classify != nil {
			f.options.Classify(&r)
		}
		r.Owner = clipName(r.Owner)
		one.class = classOf(r.Rank, r.Owner)
		key = recordKey(one.class, one.place)
		sealed = seal(bucketRecords, key, encodeRecord(r))
		one.size = recordSize(key, sealed)
	}
	e.records++
	e.bytes += one.size
	f.records = append(f.records, one)
	return f.put(bucketRecords, key, sealed)
}

// arrange writes the order, and the epochs.
func (f *filler) arrange(a *about, epochs map[uint64]*epoch) error {
	slices.SortFunc(f.records, func(a, b dropped) int { return a.place.compare(b.place) })
	rest := a.lost + a.refused
	for _, number := range slices.Sorted(maps.Keys(epochs)) {
		e := epochs[number]
		own := f.records[:e.records]
		f.records = f.records[e.records:]
		if err := f.order(e, own); err != nil {
			return err
		}
		rest -= min(rest, e.lost+e.refused+e.before)
	}
	for i, number := range slices.Sorted(maps.Keys(epochs)) {
		e := epochs[number]
		if i == 0 {
			e.before += rest // nobody knows when
		}
		if err := f.put(bucketEpochs, e.key(), seal(bucketEpochs, e.key(), e.encode())); err != nil {
			return err
		}
	}
	return nil
}

// order writes the order of one epoch. What was lost is told where it was, by the old
// order. What has no place, because it was lost by damage or before there was an order, is
// told where sequences are missing, from the first one on; what is too much for these,
// before the first epoch.
func (f *filler) order(e *epoch, records []dropped) error {
	unplaced := e.lost + e.refused
	gaps := make([]uint64, len(records)+1) // before each record, and after the last
	room := make([]uint64, len(gaps))
	fill := func(i int, count uint64) {
		count = min(count, unplaced, room[i])
		gaps[i] += count
		room[i] -= count
		unplaced -= count
	}
	f.old = f.old[sort.Search(len(f.old), func(i int) bool { return f.old[i].place.epoch >= e.number }):]
	var last uint64
	for i, r := range records {
		room[i] = r.place.sequence - 1 - last
		last = r.place.sequence
		fill(i, f.known(r.place))
	}
	room[len(records)] = e.last - last
	fill(len(records), f.known(place{e.number, math.MaxUint64})+e.tail)
	for i := range gaps {
		fill(i, unplaced)
	}
	e.tail = gaps[len(records)]
	fromRefused := unplaced - min(unplaced, e.lost)
	e.lost -= unplaced - fromRefused
	e.refused -= fromRefused
	for i, r := range records {
		key := r.place.key()
		if err := f.put(bucketOrder, key, seal(bucketOrder, key, entry{r.class, r.size, gaps[i]}.encode())); err != nil {
			return err
		}
	}
	return nil
}

// known takes off the old order what it has up to a place, and counts what is not there:
// what was lost before, and each record but the one at the place itself.
func (f *filler) known(p place) (lost uint64) {
	for len(f.old) > 0 && f.old[0].place.compare(p) <= 0 {
		lost += f.old[0].lost
		if f.old[0].place != p {
			lost++
		}
		f.old = f.old[1:]
	}
	return lost
}
