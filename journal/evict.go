package journal

import (
	"bytes"
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

const (
	// maxAged bounds the records that go by age in one transaction: a clock that jumps
	// must not fill the memory with pages to rewrite.
	maxAged = 1000
	// maxAhead bounds the records that are evicted in one transaction beyond what has to
	// be, so that not every one has to look for some.
	maxAhead = 1000
)

// holders are the bytes that each class holds.
type holders map[class]uint64

func (h holders) add(c class, size uint64) { h[c] += size }

func (h holders) remove(c class, size uint64) {
	if h[c] -= min(size, h[c]); h[c] == 0 {
		delete(h, c)
	}
}

// loadHolders reads the order.
func loadHolders(tx *bbolt.Tx) (holders, error) {
	h := holders{}
	return h, tx.Bucket(bucketOrder).ForEach(func(key, sealed []byte) error {
		value, err := unseal(bucketOrder, key, sealed)
		if err != nil {
			return err
		}
		e, err := decodeEntry(value)
		h.add(e.class, e.size)
		return err
	})
}

// ranks lists the ranks of which something is held, lowest first.
func (h holders) ranks() []uint8 {
	var seen [256]bool
	for c := range h {
		seen[c.rank] = true
	}
	var list []uint8
	for rank, is := range seen {
		if is {
			list = append(list, uint8(rank))
		}
	}
	return list
}

// queue is a heap of the classes of one rank: who holds most is first.
type queue []holding

type holding struct {
	class class
	bytes uint64
}

func (h holders) queue(rank uint8) *queue {
	var q queue
	for c, size := range maps.All(h) {
		if c.rank == rank {
			q = append(q, holding{c, size})
		}
	}
	heap.Init(&q)
	return &q
}

func (q queue) Len() int { return len(q) }

// Less orders who hold the same by their digests: the same journal evicts the same.
func (q queue) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[j].bytes, q[i].bytes), cmp.Compare(q[i].class.owner, q[j].class.owner)) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(holding)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// second is what the one holds that comes after the first.
func (q queue) second() uint64 {
	var most uint64
	for _, h := range q[min(1, len(q)):min(3, len(q))] {
		most = max(most, h.bytes)
	}
	return most
}

// dropped is a record that goes.
type dropped struct {
	place place
	class class
	size  uint64
}

// trim evicts what the bounds do not allow. A limit of bytes that is not 0 ends it there:
// it has to be called again.
func (w *writer) trim(limit uint64) error {
	drop, err := w.overdue()
	if err != nil {
		return err
	}
	if err := w.drop(drop); err != nil {
		return err
	}
	excess := w.index.bytes() - w.options.MaxBytes
	if excess <= 0 {
		return nil
	}
	least := uint64(excess)
	if limit > 0 {
		least = min(least, limit)
	}
	if drop, err = w.choose(least, least+uint64(w.options.MaxBytes/32)); err != nil {
		return err
	}
	return w.drop(drop)
}

// overdue lists the records that go by their age, and those of the oldest epochs where
// there are too many. It stops at the first that stays.
func (w *writer) overdue() ([]dropped, error) {
	excess := len(w.index.epochs) - maxEpochs
	for _, e := range w.index.epochs[:max(0, len(w.index.epochs)-1)] {
		if e.records == 0 {
			excess-- // it can be forgotten
		}
	}
	if excess <= 0 && w.options.MaxAge == 0 {
		return nil, nil
	}
	var horizon time.Time
	if w.options.MaxAge > 0 {
		horizon = w.options.Now().Add(-w.options.MaxAge)
	}
	var drop []dropped
	var last uint64 // the epoch of the record before
	log := w.tx.Bucket(bucketRecords)
	cursor := w.tx.Bucket(bucketOrder).Cursor()
	for key, sealed := cursor.First(); key != nil; key, sealed = cursor.Next() {
		one, _, err := orderEntry(key, sealed)
		if err != nil {
			return nil, err
		}
		if len(drop) == 0 || one.place.epoch != last {
			excess--
			last = one.place.epoch
		}
		if excess < 0 {
			if w.options.MaxAge == 0 || len(drop) >= maxAged {
				break
			}
			recordKey := recordKey(one.class, one.place)
			value, err := unseal(bucketRecords, recordKey, log.Get(recordKey))
			if err != nil {
				return nil, err
			}
			if then, err := recordTime(value); err != nil {
				return nil, err
			} else if !then.Before(horizon) {
				break
			}
		}
		drop = append(drop, one)
	}
	return drop, nil
}

// choose lists records to evict, of least bytes together: of the lowest ranks, there of
// who holds most, there the oldest. Of the last rank that it comes to it lists some more,
// up to goal, so that not every transaction has to choose.
func (w *writer) choose(least, goal uint64) (drop []dropped, err error) {
	var sum uint64
	cursor := w.tx.Bucket(bucketRecords).Cursor()
	for _, rank := range w.holders.ranks() {
		if sum >= least {
			break
		}
		q := w.holders.queue(rank)
		next := map[class][]byte{} // where a class goes on
		for ahead := 0; len(*q) > 0 && sum < goal && ahead < maxAhead; {
			top := &(*q)[0]
			// At least a sixteenth: who hold the same do not take turns for each record.
			share := min(max(top.bytes-q.second(), top.bytes/16, 1), goal-sum)
			prefix := top.class.key()
			from := next[top.class]
			if from == nil {
				from = prefix
			}
			key, sealed := cursor.Seek(from)
			var taken uint64
			for ; taken < share && ahead < maxAhead && bytes.HasPrefix(key, prefix); key, sealed = cursor.Next() {
				_, p, err := decodeRecordKey(key)
				if err != nil {
					return nil, err
				}
				size := recordSize(key, sealed)
				drop = append(drop, dropped{p, top.class, size})
				if taken += size; sum+taken >= least {
					ahead++
				}
			}
			next[top.class] = bytes.Clone(key)
			sum += taken
			switch {
			case taken == 0 || taken > top.bytes:
				return nil, fmt.Errorf("%w: records of a class are missing", ErrDamaged)
			case taken == top.bytes:
				heap.Pop(q)
			default:
				top.bytes -= taken
				heap.Fix(q, 0)
			}
		}
	}
	return drop, nil
}

// orderEntry decodes an entry of the order.
func orderEntry(key, sealed []byte) (dropped, entry, error) {
	p, err := decodePlace(key)
	if err != nil {
		return dropped{}, entry{}, err
	}
	value, err := unseal(bucketOrder, key, sealed)
	if err != nil {
		return dropped{}, entry{}, err
	}
	e, err := decodeEntry(value)
	return dropped{p, e.class, e.size}, e, err
}

// drop removes records and leaves gaps: each is told with the next record of its epoch
// that stays, or with the epoch's end.
func (w *writer) drop(list []dropped) error {
	slices.SortFunc(list, func(a, b dropped) int { return a.place.compare(b.place) })
	gaps := map[place]entry{} // of those that stay
	var carried uint64
	cursor := w.tx.Bucket(bucketOrder).Cursor()
	at := 0
	for i, one := range list {
		for at < len(w.index.epochs) && w.index.epochs[at].number < one.place.epoch {
			at++
		}
		key, sealed := cursor.Seek(one.place.key())
		if at == len(w.index.epochs) || w.index.epochs[at].number != one.place.epoch || !bytes.Equal(key, one.place.key()) {
			return fmt.Errorf("%w: a record has no place", ErrDamaged)
		}
		_, gone, err := orderEntry(key, sealed)
		if err != nil {
			return err
		}
		carried += gone.lost + 1
		e := w.epoch(at)
		e.records--
		e.bytes -= one.size
		e.lost++
		w.index.about.lost++
		w.holders.remove(one.class, one.size)

		key, sealed = cursor.Next()
		if key == nil {
			e.tail, carried = e.tail+carried, 0
			continue
		}
		next, stays, err := orderEntry(key, sealed)
		switch {
		case err != nil:
			return err
		case next.place.epoch != one.place.epoch:
			e.tail, carried = e.tail+carried, 0
		case i+1 == len(list) || next.place != list[i+1].place:
			stays.lost, carried = stays.lost+carried, 0
			gaps[next.place] = stays
		}
	}
	return w.rewrite(list, gaps)
}

// rewrite stores what drop worked out.
func (w *writer) rewrite(list []dropped, gaps map[place]entry) error {
	log, order := w.tx.Bucket(bucketRecords), w.tx.Bucket(bucketOrder)
	for _, one := range list {
		if err := log.Delete(recordKey(one.class, one.place)); err != nil {
			return err
		}
		if err := order.Delete(one.place.key()); err != nil {
			return err
		}
	}
	for p, stays := range gaps {
		if err := order.Put(p.key(), seal(bucketOrder, p.key(), stays.encode())); err != nil {
			return err
		}
	}
	return nil
}
