package journal

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// request is one caller's batch on its way into a transaction.
type request struct {
	batch Batch
	bytes int64
	done  bool // written under Journal.turn, as err is
	err   error
}

// Append commits records alone: see [Journal.Commit].
func (j *Journal) Append(records ...Record) error {
	return j.Commit(Batch{Records: records})
}

// Commit writes a batch and returns when it is on disk. Callers who come while
// another one is committing share the next transaction; a batch that is refused
// takes no other with it.
//
// After an error nothing of the batch can be relied on to be kept, and it may be
// committed again: what of it did reach the disk is not doubled. Reading goes on.
//
// The sequence of each record must be above that of the last one of its epoch, and
// once a new epoch began no record of an older one can follow (ErrOrder). A batch may
// take half of the journal's bytes, the state an eighth (ErrTooBig).
func (j *Journal) Commit(batch Batch) error {
	if len(batch.Records) == 0 && len(batch.Put) == 0 && len(batch.Delete) == 0 {
		return nil
	}
	r := &request{batch: batch, bytes: batch.size()}
	if err := j.bounded(r); err != nil {
		return err
	}
	j.queueMu.Lock()
	j.queue = append(j.queue, r)
	j.queueMu.Unlock()

	j.turn.Lock()
	defer j.turn.Unlock()
	for !r.done {
		j.commit(j.nextGroup())
	}
	return r.err
}

// nextGroup takes from the queue what goes into one transaction.
func (j *Journal) nextGroup() []*request {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	n, sum := 0, int64(0)
	for n < len(j.queue) && (n == 0 || sum+j.queue[n].bytes <= maxGroup) {
		sum += j.queue[n].bytes
		n++
	}
	group := j.queue[:n:n]
	j.queue = j.queue[n:]
	if len(j.queue) == 0 {
		j.queue = nil
	}
	return group
}

// bounded refuses what is too big whatever the journal holds.
func (j *Journal) bounded(r *request) error {
	if j.options.ReadOnly {
		return fmt.Errorf("the journal in %s was opened for reading only", j.where)
	}
	if r.bytes > j.options.MaxBytes/2 {
		return fmt.Errorf("%w: a batch of %d bytes, half of the journal is %d: commit it in parts", ErrTooBig, r.bytes, j.options.MaxBytes/2)
	}
	for _, record := range r.batch.Records {
		if len(record.Data) > MaxRecord {
			return fmt.Errorf("%w: a record of %d bytes, a record may have %d", ErrTooBig, len(record.Data), MaxRecord)
		}
		for _, name := range []string{record.BootID, record.Epoch, record.Kind} {
			if len(name) > MaxName {
				return fmt.Errorf("%w: a name of %d bytes (%.20q...), a name may have %d", ErrTooBig, len(name), name, MaxName)
			}
		}
	}
	for key, value := range r.batch.Put {
		if len(key) == 0 || len(key) > MaxName || len(value) > MaxRecord {
			return fmt.Errorf("%w: the state's entry %.20q of %d bytes: want a key of 1 to %d bytes and a value of up to %d",
				ErrTooBig, key, len(value), MaxName, MaxRecord)
		}
	}
	return nil
}

// commit writes a group of batches in one transaction and marks them done.
func (j *Journal) commit(group []*request) {
	j.mu.RLock()
	next, doubt, broken := j.index.clone(), j.doubt, j.broken
	j.mu.RUnlock()

	err := broken
	if err == nil {
		err = guard(func() error { return j.write(group, next, doubt) })
	}
	switch {
	case err == nil:
		j.mu.Lock()
		j.index, j.upcoming, j.doubt = next, nil, false
		j.mu.Unlock()
	case broken != nil:
	case errors.Is(err, ErrDamaged):
		err = j.breakOff(err)
	default:
		// The transaction may have reached the disk although the disk said no.
		j.mu.Lock()
		j.doubt = true
		j.mu.Unlock()
		err = fmt.Errorf("journal in %s: %w", j.where, advise(err))
		if again := guard(j.reload); again != nil {
			err = j.breakOff(again)
		}
	}
	for _, r := range group {
		r.done = true
		if r.err == nil {
			r.err = err
		}
	}
}

// write is the transaction: it stores what is in order and drops the oldest. next
// becomes the index after it.
func (j *Journal) write(group []*request, next *index, doubt bool) error {
	accepted := 0
	err := j.db.Update(func(tx *bbolt.Tx) error {
		w := writer{tx: tx, index: next, touched: map[uint64]bool{}}
		for _, r := range group {
			records := r.batch.Records
			if doubt && w.known(records) {
				records = nil
			}
			if r.err = w.check(records, r.batch, j.options.MaxBytes/8); r.err != nil {
				continue
			}
			accepted++
			if err := w.store(records, r.batch); err != nil {
				return err
			}
		}
		if accepted == 0 {
			return errNothing
		}
		if _, err := w.trim(j.options, 0); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return err
		}
		j.mu.Lock()
		j.upcoming = next
		j.mu.Unlock()
		return nil
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// errNothing ends a transaction that has nothing to write.
var errNothing = errors.New("nothing to write")

// trimAll brings a journal that was just opened within its bounds, in transactions
// small enough to be held in memory.
func (j *Journal) trimAll() error {
	for more := true; more; {
		next := j.index.clone()
		if next.bytes() <= j.options.MaxBytes {
			return nil
		}
		err := j.db.Update(func(tx *bbolt.Tx) (err error) {
			w := writer{tx: tx, index: next, touched: map[uint64]bool{}}
			if more, err = w.trim(j.options, maxGroup/4); err != nil {
				return err
			}
			return w.finish()
		})
		if err != nil {
			return err
		}
		j.mu.Lock()
		j.index = next
		j.mu.Unlock()
	}
	return nil
}

// writer is one transaction with the index that it leads to.
type writer struct {
	tx      *bbolt.Tx
	index   *index
	touched map[uint64]bool // numbers of the epochs to store
}

// known says whether the log ends in these very records.
func (w *writer) known(records []Record) bool {
	bucket := w.tx.Bucket(bucketRecords)
	for _, r := range records {
		i := w.index.find(r.BootID, r.Epoch)
		if i < 0 {
			return false
		}
		key := recordKey(w.index.epochs[i].number, r.Sequence)
		if !bytes.Equal(bucket.Get(key), seal(bucketRecords, key, encodeRecord(r))) {
			return false
		}
	}
	return len(records) > 0
}

// check refuses a batch before anything of it is stored.
func (w *writer) check(records []Record, batch Batch, maxState int64) error {
	var boot, name string
	var last uint64
	begun := len(w.index.epochs) > 0
	if begun {
		e := w.index.epochs[len(w.index.epochs)-1]
		boot, name, last = e.boot, e.name, e.last
	}
	for n, r := range records {
		if !begun || r.BootID != boot || r.Epoch != name {
			older := w.index.find(r.BootID, r.Epoch) >= 0
			for _, before := range records[:n] {
				older = older || before.BootID == r.BootID && before.Epoch == r.Epoch
			}
			if older {
				return fmt.Errorf("%w: epoch %q of boot %q ended when %q of %q began", ErrOrder, r.Epoch, r.BootID, name, boot)
			}
			boot, name, last, begun = r.BootID, r.Epoch, 0, true
		}
		if r.Sequence <= last {
			return fmt.Errorf("%w: sequence %d after %d in epoch %q", ErrOrder, r.Sequence, last, r.Epoch)
		}
		last = r.Sequence
	}
	grown := int64(w.index.about.stateBytes)
	state := w.tx.Bucket(bucketState)
	for _, key := range batch.Delete {
		if old := state.Get([]byte(key)); old != nil {
			grown -= stateSize(key, old)
		}
	}
	before := grown
	for key, value := range batch.Put {
		grown += stateSize(key, value) + 4
		if old := state.Get([]byte(key)); old != nil {
			grown -= stateSize(key, old)
		}
	}
	if grown > before && grown > maxState {
		return fmt.Errorf("%w: a state of %d bytes, it may have %d: give the journal more", ErrTooBig, grown, maxState)
	}
	return nil
}

func stateSize(key string, sealed []byte) int64 { return int64(len(key) + len(sealed) + 16) }

func recordSize(key, sealed []byte) uint64 { return uint64(len(key) + len(sealed) + 16) }

// store writes a batch that check let pass.
func (w *writer) store(records []Record, batch Batch) error {
	log, state := w.tx.Bucket(bucketRecords), w.tx.Bucket(bucketState)
	log.FillPercent = 1 // keys only ever come at the end
	for _, r := range records {
		at := len(w.index.epochs) - 1
		if at < 0 || w.index.epochs[at].name != r.Epoch || w.index.epochs[at].boot != r.BootID {
			w.index.epochs = append(w.index.epochs, &epoch{number: w.index.about.nextEpoch, boot: r.BootID, name: r.Epoch})
			w.index.about.nextEpoch++
			at++
		}
		e := w.index.change(at)
		key := recordKey(e.number, r.Sequence)
		sealed := seal(bucketRecords, key, encodeRecord(r))
		if err := log.Put(key, sealed); err != nil {
			return err
		}
		e.last = r.Sequence
		e.records++
		e.bytes += recordSize(key, sealed)
		w.index.about.appended++
		w.touched[e.number] = true
	}
	a := &w.index.about
	remove := func(key string) error {
		old := state.Get([]byte(key))
		if old == nil {
			return nil
		}
		a.stateCount--
		a.stateBytes -= uint64(stateSize(key, old))
		a.stateDigest -= entryDigest([]byte(key), old)
		return state.Delete([]byte(key))
	}
	for _, key := range batch.Delete {
		if err := remove(key); err != nil {
			return err
		}
	}
	for key, value := range batch.Put {
		if err := remove(key); err != nil {
			return err
		}
		sealed := seal(bucketState, []byte(key), value)
		if err := state.Put([]byte(key), sealed); err != nil {
			return err
		}
		a.stateCount++
		a.stateBytes += uint64(stateSize(key, sealed))
		a.stateDigest += entryDigest([]byte(key), sealed)
	}
	return nil
}

// maxAged bounds the records that go by age in one transaction: a clock that jumps
// must not fill the memory with pages to rewrite.
const maxAged = 1000

// trim drops the oldest records until the journal is within its bounds, and a
// thirty-second part further so that not every batch has to. Where a limit of bytes is
// given it stops there and says whether there is more to do.
func (w *writer) trim(options Options, limit uint64) (more bool, err error) {
	excess := w.index.bytes() - options.MaxBytes
	if excess > 0 {
		excess += options.MaxBytes / 32
	}
	epochs := len(w.index.epochs) - maxEpochs
	if excess <= 0 && epochs <= 0 && options.MaxAge == 0 {
		return false, nil
	}
	var horizon time.Time
	if options.MaxAge > 0 {
		horizon = options.Now().Add(-options.MaxAge)
	}

	var drop [][]byte
	var dropped uint64
	at := 0
	cursor := w.tx.Bucket(bucketRecords).Cursor()
	for key, sealed := cursor.First(); key != nil; key, sealed = cursor.Next() {
		number, sequence, err := splitKey(key)
		if err != nil {
			return false, err
		}
		for at < len(w.index.epochs) && w.index.epochs[at].number < number {
			at++
		}
		if at == len(w.index.epochs) || w.index.epochs[at].number != number {
			return false, fmt.Errorf("%w: a record is of no epoch", ErrDamaged)
		}
		if int64(dropped) >= excess && at >= epochs {
			if options.MaxAge == 0 || len(drop) >= maxAged {
				break
			}
			value, err := unseal(bucketRecords, key, sealed)
			if err != nil {
				return false, err
			}
			if then, err := recordTime(value); err != nil {
				return false, err
			} else if !then.Before(horizon) {
				break
			}
		}
		if limit > 0 && dropped >= limit {
			more = true
			break
		}
		e, size := w.index.change(at), recordSize(key, sealed)
		e.records--
		e.bytes -= size
		e.lost++
		e.gone = max(e.gone, sequence)
		w.index.about.lost++
		w.touched[number] = true
		dropped += size
		drop = append(drop, bytes.Clone(key)) // the page it is on may move
	}
	for _, key := range drop {
		if err := w.tx.Bucket(bucketRecords).Delete(key); err != nil {
			return false, err
		}
	}
	return more, nil
}

// finish stores the index.
func (w *writer) finish() error {
	w.index.tx = w.tx.ID()
	bucket := w.tx.Bucket(bucketEpochs)
	kept := w.index.epochs[:0:0]
	for i, e := range w.index.epochs {
		empty := e.records == 0 && i < len(w.index.epochs)-1
		if !empty {
			kept = append(kept, e)
		}
		var err error
		switch key := e.key(); {
		case empty:
			err = bucket.Delete(key)
		case w.touched[e.number]:
			err = bucket.Put(key, seal(bucketEpochs, key, e.encode()))
		}
		if err != nil {
			return err
		}
	}
	w.index.epochs = kept
	return w.tx.Bucket(bucketAbout).Put(aboutKey, seal(bucketAbout, aboutKey, w.index.about.encode()))
}
