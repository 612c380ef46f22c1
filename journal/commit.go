package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

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
//
// A record of more than MaxRecord bytes, or with a kind or an owner of more than MaxName,
// is no error: it alone is refused, see [Journal.Refused].
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
		for _, name := range []string{record.BootID, record.Epoch} {
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

// write is the transaction: it stores what is in order and evicts what is too much. next
// becomes the index after it. After an error who holds how much has to be read anew.
func (j *Journal) write(group []*request, next *index, doubt bool) error {
	accepted := 0
	err := j.db.Update(func(tx *bbolt.Tx) error {
		w := newWriter(j, tx, next)
		for _, r := range group {
			records := r.batch.Records
			if doubt && w.known(records) {
				records = nil
			}
			if r.err = w.check(records, r.batch, j.MaxState()); r.err != nil {
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
		if err := w.trim(0); err != nil {
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
	for j.index.bytes() > j.options.MaxBytes {
		next, before := j.index.clone(), j.index.bytes()
		err := j.db.Update(func(tx *bbolt.Tx) (err error) {
			w := newWriter(j, tx, next)
			if err = w.trim(maxGroup / 4); err != nil {
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
		if next.bytes() >= before {
			return nil // the state takes it
		}
	}
	return nil
}

// writer is one transaction with the index that it leads to.
type writer struct {
	tx      *bbolt.Tx
	options Options
	index   *index
	holders holders
	touched map[uint64]bool // numbers of the epochs that are this writer's own, and to be stored
}

func newWriter(j *Journal, tx *bbolt.Tx, next *index) *writer {
	return &writer{tx: tx, options: j.options, index: next, holders: j.holders, touched: map[uint64]bool{}}
}

// epoch returns the epoch at a place in the index, to be written to.
func (w *writer) epoch(at int) *epoch {
	if e := w.index.epochs[at]; w.touched[e.number] {
		return e
	}
	e := w.index.change(at)
	w.touched[e.number] = true
	return e
}

// known says whether these very records were appended last: they are at their places, or
// something was lost there.
func (w *writer) known(records []Record) bool {
	log, order := w.tx.Bucket(bucketRecords), w.tx.Bucket(bucketOrder).Cursor()
	for _, r := range records {
		i := w.index.find(r.BootID, r.Epoch)
		if i < 0 || r.Sequence > w.index.epochs[i].last {
			return false
		}
		e := w.index.epochs[i]
		at := place{e.number, r.Sequence}
		key := recordKey(classOf(r.Rank, r.Owner), at)
		if bytes.Equal(log.Get(key), seal(bucketRecords, key, encodeRecord(r))) {
			continue
		}
		lost := e.tail
		next, sealed := order.Seek(at.key())
		if next != nil && binary.BigEndian.Uint64(next) == e.number {
			value, err := unseal(bucketOrder, next, sealed)
			if err != nil || bytes.Equal(next, at.key()) {
				return false
			}
			there, err := decodeEntry(value)
			if err != nil {
				return false
			}
			lost = there.lost
		}
		if lost == 0 {
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

// recordSize is what a record takes, with its entry of the order.
func recordSize(key, sealed []byte) uint64 {
	return uint64(len(key) + len(sealed) + 16 + orderOverhead)
}

// store writes a batch that check let pass.
func (w *writer) store(records []Record, batch Batch) error {
	for _, r := range records {
		if err := w.append(r); err != nil {
			return err
		}
	}
	state := w.tx.Bucket(bucketState)
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

// append writes one record, or counts it as refused.
func (w *writer) append(r Record) error {
	a := &w.index.about
	at := len(w.index.epochs) - 1
	if at < 0 || w.index.epochs[at].name != r.Epoch || w.index.epochs[at].boot != r.BootID {
		next := &epoch{number: a.nextEpoch, boot: r.BootID, name: r.Epoch}
		if at < 0 {
			next.before = a.lost + a.refused
		}
		w.index.epochs = append(w.index.epochs, next)
		a.nextEpoch++
		at++
	}
	e := w.epoch(at)
	e.last = r.Sequence
	a.appended++
	if r.tooLarge() {
		e.refused++
		e.tail++
		a.refused++
		return nil
	}
	log, order := w.tx.Bucket(bucketRecords), w.tx.Bucket(bucketOrder)
	log.FillPercent, order.FillPercent = 1, 1 // keys come at the end, in the log at that of their class
	p := place{e.number, r.Sequence}
	c := classOf(r.Rank, r.Owner)
	key := recordKey(c, p)
	sealed := seal(bucketRecords, key, encodeRecord(r))
	if err := log.Put(key, sealed); err != nil {
		return err
	}
	one := entry{c, recordSize(key, sealed), e.tail}
	if err := order.Put(p.key(), seal(bucketOrder, p.key(), one.encode())); err != nil {
		return err
	}
	e.tail = 0
	e.records++
	e.bytes += one.size
	w.holders.add(c, one.size)
	return nil
}

// finish stores the index. Of more epochs than are known at once, the oldest without
// records are forgotten: what was lost of them is told before the next one.
func (w *writer) finish() error {
	w.index.tx = w.tx.ID()
	bucket := w.tx.Bucket(bucketEpochs)
	excess := len(w.index.epochs) - maxEpochs
	kept := w.index.epochs[:0:0]
	var before uint64
	for i, e := range w.index.epochs {
		if excess > 0 && e.records == 0 && i < len(w.index.epochs)-1 {
			excess--
			before += e.before + e.lost + e.refused
			if err := bucket.Delete(e.key()); err != nil {
				return err
			}
			continue
		}
		if before > 0 {
			e = w.epoch(i)
			e.before += before
			before = 0
		}
		kept = append(kept, e)
		if !w.touched[e.number] {
			continue
		}
		if err := bucket.Put(e.key(), seal(bucketEpochs, e.key(), e.encode())); err != nil {
			return err
		}
	}
	w.index.epochs = kept
	w.index.about.form, w.index.about.writer = thisForm, clipName(w.options.Writer)
	return w.tx.Bucket(bucketAbout).Put(aboutKey, seal(bucketAbout, aboutKey, w.index.about.encode()))
}
