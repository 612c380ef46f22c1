package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
)

// image is a journal's file as it lies on disk, read without trusting it.
//
// The format is bbolt's (version 2, the only one since 2014): two headers on the first
// two pages, which transactions write in turn; each names the root of a tree of
// branch and leaf pages, and a list of the pages that are free. Integers are in the
// machine's own byte order.
type image struct {
	size    int64
	damage  []string // what is wrong; empty when the file can be trusted
	foreign error    // it is a newer release's journal
	newest  *walk    // by the newest sound header; nil without one
	best    *walk    // by the header that leads to the most
	close   func()

	oneHeader bool // the other one is damaged; it may have been the newer

	file io.ReaderAt
	buf  []byte
}

// header is what the file's first pages tell: the state after one transaction.
type header struct {
	root, freelist, pages, transaction uint64
}

// walk is what was found on the way through one header's tree.
type walk struct {
	header header
	damage []string

	about       *about // nil when it could not be read
	epochs      []*epoch
	records     map[uint64]*tally // by the number of the epoch
	ordered     uint64            // entries of the order
	digest      uint64            // of the records less that of the order: 0 when they agree
	stateCount  uint64
	stateDigest uint64
	stopped     error // the visitor's

	seen []uint64 // a bit for each page
}

// tally counts the whole records of an epoch, and what its order has as lost between them.
type tally struct{ records, bytes, last, gaps uint64 }

const (
	headerMagic   = 0xED0CDAED
	headerVersion = 2
	pageHead      = 16 // id 8, flags 2, count 2, overflow 4
	elementHead   = 16
	flagBranch    = 0x01
	flagLeaf      = 0x02
	flagFreelist  = 0x10
	elementBucket = 1
	maxPage       = 8 << 20 // bytes: bbolt keeps up to four of the largest records on one
	maxPages      = 1 << 24
	maxDepth      = 16
	maxDamage     = 8 // that are told
)

var order = binary.NativeEndian

// inspect reads a file, all of it, and judges it.
func inspect(file io.ReaderAt, size int64) *image {
	i := &image{file: file, size: size}
	headers, damage := i.headers()
	i.damage = damage
	for _, h := range headers {
		w := i.walk(h, nil)
		if i.newest == nil {
			i.newest, i.best = w, w
			i.damage = append(i.damage, w.damage...)
		} else if w.about != nil && (i.best.about == nil || i.missing(w) < i.missing(i.best)) {
			i.best = w
		}
		if len(w.damage) == 0 {
			break
		}
	}
	i.oneHeader = len(headers) < 2
	if len(i.damage) > maxDamage {
		i.damage = append(i.damage[:maxDamage:maxDamage], "and more")
	}
	return i
}

// form is that of the file; the newest one where nothing can be told.
func (i *image) form() int {
	if i.best == nil {
		return thisForm
	}
	return int(i.best.form())
}

// form is that of what was walked; the newest one as long as it is not known.
func (w *walk) form() uint64 {
	if w.about == nil {
		return thisForm
	}
	return w.about.form
}

// missing counts the records that should be there and are not, of a walk that has its
// about.
func (i *image) missing(w *walk) uint64 {
	appended := w.about.appended
	if i.newest.about != nil {
		appended = max(appended, i.newest.about.appended)
	}
	there := w.about.lost + w.about.refused
	for _, e := range w.epochs {
		there += w.tally(e.number).records
	}
	return appended - min(appended, there)
}

// tally returns the whole records of an epoch.
func (w *walk) tally(number uint64) tally {
	if t := w.records[number]; t != nil {
		return *t
	}
	return tally{}
}

// count returns the tally of an epoch to be written to.
func (w *walk) count(number uint64) *tally {
	t := w.records[number]
	if t == nil {
		t = &tally{}
		w.records[number] = t
	}
	return t
}

// headers returns the sound headers, newest first.
func (i *image) headers() (sound []header, damage []string) {
	cut := ""
	for n := range uint64(2) {
		page := make([]byte, pageSize)
		if _, err := i.file.ReadAt(page, int64(n)*pageSize); err != nil {
			damage = append(damage, fmt.Sprintf("header %d cannot be read: %v", n+1, err))
			continue
		}
		m := page[pageHead:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:56])
		h := header{order.Uint64(m[16:]), order.Uint64(m[32:]), order.Uint64(m[40:]), order.Uint64(m[48:])}
		switch {
		case order.Uint32(m) != headerMagic || order.Uint32(m[4:]) != headerVersion || order.Uint64(m[56:]) != sum.Sum64():
			damage = append(damage, fmt.Sprintf("header %d is damaged: the newest batch may be missing", n+1))
		case order.Uint32(m[8:]) != pageSize || h.transaction%2 != n || h.pages < 4 || h.pages > maxPages:
			damage = append(damage, fmt.Sprintf("header %d is not of a journal", n+1))
		default:
			if there := uint64(i.size) / pageSize; h.pages > there { // what is whole of it is carried over
				cut = fmt.Sprintf("the file is cut: it has %d of %d pages", there, h.pages)
			}
			sound = append(sound, h)
		}
	}
	if cut != "" {
		damage = append(damage, cut)
	}
	slices.SortFunc(sound, func(a, b header) int {
		if a.transaction > b.transaction {
			return -1
		}
		return 1
	})
	return sound, damage
}

// walk goes through a header's tree and gives visit each sound entry: those of a bucket
// in the order of their keys. The slices are valid during the call.
func (i *image) walk(h header, visit func(bucket, key, sealed []byte) error) *walk {
	w := &walk{header: h, records: map[uint64]*tally{}, seen: make([]uint64, h.pages/64+1)}
	t := &tree{image: i, walk: w, visit: visit}
	w.claim(0, 1)
	t.freelist()
	t.root()
	for page := range h.pages {
		if w.seen[page/64]&(1<<(page%64)) == 0 {
			w.wrong("page %d and perhaps more are neither used nor free", page)
			break
		}
	}
	w.settle()
	return w
}

func (w *walk) wrong(format string, args ...any) {
	if len(w.damage) <= maxDamage {
		w.damage = append(w.damage, fmt.Sprintf(format, args...))
	}
}

// claim takes pages for one use; false when one has another, or does not exist.
func (w *walk) claim(page, more uint64) bool {
	if page >= w.header.pages || more >= w.header.pages-page {
		return false
	}
	for p := page; p <= page+more; p++ {
		if w.seen[p/64]&(1<<(p%64)) != 0 {
			return false
		}
	}
	for p := page; p <= page+more; p++ {
		w.seen[p/64] |= 1 << (p % 64)
	}
	return true
}

// settle holds what was found against what the journal says of itself.
func (w *walk) settle() {
	if w.about == nil {
		w.wrong("the journal's own entry is missing")
		return
	}
	kept := w.about.lost + w.about.refused
	var ordered, gone uint64
	for _, e := range w.epochs {
		t := w.tally(e.number)
		kept += e.records
		ordered += t.records
		gone += e.lost + e.refused + e.before
		if t.records != e.records || t.bytes != e.bytes || t.last > e.last || e.number >= w.about.nextEpoch {
			w.wrong("epoch %q: %d of %d records are whole", e.name, t.records, e.records)
		}
		if w.about.form != firstForm && t.gaps+e.tail != e.lost+e.refused {
			w.wrong("epoch %q: %d of %d lost records have a place", e.name, t.gaps+e.tail, e.lost+e.refused)
		}
	}
	if kept != w.about.appended {
		w.wrong("%d of %d records are accounted for", kept, w.about.appended)
	}
	for number, t := range w.records {
		if !slices.ContainsFunc(w.epochs, func(e *epoch) bool { return e.number == number }) {
			w.wrong("%d records are of an epoch that is not known", t.records)
		}
	}
	if w.about.form != firstForm {
		if w.ordered != ordered || w.digest != 0 {
			w.wrong("the order has %d entries that are whole, of %d", w.ordered, ordered)
		}
		if gone != w.about.lost+w.about.refused && len(w.epochs) > 0 {
			w.wrong("%d of %d lost records are of a known time", gone, w.about.lost+w.about.refused)
		}
	}
	if w.stateCount != w.about.stateCount || w.stateDigest != w.about.stateDigest {
		w.wrong("%d of %d entries of the state are whole", w.stateCount, w.about.stateCount)
	}
}

// tree is a walk under way.
type tree struct {
	image *image
	walk  *walk
	visit func(bucket, key, sealed []byte) error
	free  []byte
}

// read returns a page with the pages that continue it. It is valid until the next
// call with the same buffer.
func (t *tree) read(id uint64, buf *[]byte) []byte {
	if id < 2 || id >= t.walk.header.pages {
		t.walk.wrong("page %d of %d is referred to", id, t.walk.header.pages)
		return nil
	}
	get := func(from, to int) bool {
		*buf = slices.Grow((*buf)[:from], to-from)[:to]
		if _, err := t.image.file.ReadAt((*buf)[from:], int64(id)*pageSize+int64(from)); err != nil {
			t.walk.wrong("page %d cannot be read: %v", id, err)
			return false
		}
		return true
	}
	if !get(0, pageSize) {
		return nil
	}
	more := uint64(order.Uint32((*buf)[12:]))
	if order.Uint64(*buf) != id || more >= maxPage/pageSize || !t.walk.claim(id, more) {
		t.walk.wrong("page %d is not what it should be", id)
		return nil
	}
	if more > 0 && !get(pageSize, int(more+1)*pageSize) {
		return nil
	}
	return *buf
}

// freelist claims the free pages.
func (t *tree) freelist() {
	page := t.read(t.walk.header.freelist, &t.free)
	if page == nil {
		return
	}
	count, list := uint64(order.Uint16(page[10:])), page[pageHead:]
	if count == 0xFFFF {
		count, list = order.Uint64(list), list[8:]
	}
	if order.Uint16(page[8:]) != flagFreelist || count > uint64(len(list)/8) {
		t.walk.wrong("the list of free pages is damaged")
		return
	}
	for n := range count {
		if id := order.Uint64(list[n*8:]); !t.walk.claim(id, 0) {
			t.walk.wrong("the list of free pages names page %d", id)
			return
		}
	}
}

// root goes through the tree of buckets.
func (t *tree) root() {
	found := 0
	page := bytes.Clone(t.read(t.walk.header.root, &t.image.buf)) // what is below uses the buffer again
	if page == nil {
		return
	}
	if order.Uint16(page[8:]) != flagLeaf {
		t.walk.wrong("page %d is not what it should be", t.walk.header.root)
		return
	}
	t.leaf(page, nil, nil, true, func(flags uint32, name, value []byte) {
		switch {
		case t.image.foreign != nil: // nothing of it will be read
		case flags != elementBucket || !slices.ContainsFunc(bucketsOf(t.walk.form()), func(b []byte) bool { return bytes.Equal(b, name) }):
			t.walk.wrong("there is something else among the buckets")
		case len(value) < 16:
			t.walk.wrong("bucket %s is damaged", name)
		default:
			found++
			t.bucket(name, value)
		}
	})
	if want := len(bucketsOf(t.walk.form())); found != want {
		t.walk.wrong("%d of %d buckets are whole", found, want)
	}
}

// bucket goes through one bucket: a tree of its own, or a single leaf page within the
// entry.
func (t *tree) bucket(name, value []byte) {
	entry := func(flags uint32, key, sealed []byte) {
		if flags != 0 {
			t.walk.wrong("there is a bucket within %s", name)
			return
		}
		t.entry(name, key, sealed)
	}
	if root := order.Uint64(value); root != 0 {
		t.branch(root, 0, nil, nil, entry)
		return
	}
	page := value[16:]
	if len(page) < pageHead || order.Uint64(page) != 0 || order.Uint16(page[8:]) != flagLeaf || order.Uint32(page[12:]) != 0 {
		t.walk.wrong("bucket %s is damaged", name)
		return
	}
	t.leaf(page, nil, nil, true, entry)
}

// branch goes through a page and those below it. The first key of the page is the one
// that the page above it has for it, and all are below limit; nil is none.
func (t *tree) branch(id uint64, depth int, first, limit []byte, each func(flags uint32, key, value []byte)) {
	if depth > maxDepth {
		t.walk.wrong("the tree is too deep")
		return
	}
	page := t.read(id, &t.image.buf)
	if page == nil {
		return
	}
	switch order.Uint16(page[8:]) {
	case flagLeaf:
		t.leaf(page, first, limit, depth == 0, each)
	case flagBranch:
		t.children(id, bytes.Clone(page), depth, first, limit, each)
	default:
		t.walk.wrong("page %d is neither branch nor leaf", id)
	}
}

func (t *tree) children(id uint64, page []byte, depth int, first, limit []byte, each func(flags uint32, key, value []byte)) {
	type child struct {
		key []byte
		id  uint64
	}
	count := int(order.Uint16(page[10:]))
	if count == 0 || pageHead+count*elementHead > len(page) {
		t.walk.wrong("page %d is damaged", id)
		return
	}
	list := make([]child, 0, count)
	for n := range count {
		at := pageHead + n*elementHead
		key, ok := cut(page, at, count, uint64(order.Uint32(page[at:])), uint64(order.Uint32(page[at+4:])))
		if !ok || !inOrder(key, first, limit, n == 0) || n > 0 && bytes.Compare(list[n-1].key, key) >= 0 {
			t.walk.wrong("page %d is damaged", id)
			return
		}
		list = append(list, child{key, order.Uint64(page[at+8:])})
	}
	for n, c := range list {
		below := limit
		if n+1 < len(list) {
			below = list[n+1].key
		}
		t.branch(c.id, depth+1, c.key, below, each)
	}
}

// cut returns the bytes at a distance from an element.
func cut(page []byte, element, count int, distance, length uint64) ([]byte, bool) {
	from := uint64(element) + distance
	if from < uint64(pageHead+count*elementHead) || length > uint64(len(page)) || from+length > uint64(len(page)) {
		return nil, false
	}
	return page[from : from+length : from+length], true
}

// inOrder says whether a page's key is where the page above expects it.
func inOrder(key, first, limit []byte, isFirst bool) bool {
	if len(key) == 0 || len(key) > MaxName || limit != nil && bytes.Compare(key, limit) >= 0 {
		return false
	}
	return !isFirst || first == nil || bytes.Equal(key, first)
}

func (t *tree) leaf(page []byte, first, limit []byte, mayBeEmpty bool, each func(flags uint32, key, value []byte)) {
	count := int(order.Uint16(page[10:]))
	if pageHead+count*elementHead > len(page) || count == 0 && !mayBeEmpty {
		t.walk.wrong("page %d is damaged", order.Uint64(page))
		return
	}
	var before []byte
	for n := range count {
		at := pageHead + n*elementHead
		flags, distance := order.Uint32(page[at:]), uint64(order.Uint32(page[at+4:]))
		klen, vlen := uint64(order.Uint32(page[at+8:])), uint64(order.Uint32(page[at+12:]))
		both, ok := cut(page, at, count, distance, klen+vlen)
		if !ok || !inOrder(both[:klen], first, limit, n == 0) || n > 0 && bytes.Compare(before, both[:klen]) >= 0 {
			t.walk.wrong("page %d: entry %d is damaged", order.Uint64(page), n)
			continue // what is whole on it is carried over
		}
		before = both[:klen]
		each(flags, both[:klen:klen], both[klen:])
	}
}

// entry takes a bucket's entry, if it is whole.
func (t *tree) entry(bucket, key, sealed []byte) {
	w := t.walk
	value, err := unseal(bucket, key, sealed)
	if err == nil {
		switch string(bucket) {
		case string(bucketAbout):
			err = t.about(key, value)
		case string(bucketEpochs):
			var e *epoch
			if e, err = decodeEpoch(w.form(), key, value); err == nil {
				w.epochs = append(w.epochs, e)
			}
		case string(bucketOrder):
			err = t.order(key, value)
		case string(bucketRecords):
			err = t.record(key, sealed, value)
		case string(bucketState):
			w.stateCount++
			w.stateDigest += entryDigest(key, sealed)
		}
	}
	if err == nil && t.visit != nil && w.stopped == nil {
		w.stopped = t.visit(bucket, key, sealed)
	}
	if err != nil {
		w.wrong("%v", err)
	}
}

func (t *tree) about(key, value []byte) error {
	a, err := decodeAbout(value)
	if errors.Is(err, ErrNewer) {
		t.image.foreign = err
	}
	if err == nil && bytes.Equal(key, aboutKey) {
		t.walk.about = &a
	}
	return err
}

func (t *tree) record(key, sealed, value []byte) error {
	r, err := oldOrNew(t.walk.form(), key, sealed)
	if err == nil {
		_, err = recordTime(value)
	}
	if err != nil {
		return err
	}
	c := t.walk.count(r.place.epoch)
	c.records++
	c.bytes += r.size
	c.last = max(c.last, r.place.sequence)
	t.walk.digest += entry{class: r.class, size: r.size}.digest(r.place)
	return nil
}

// oldOrNew tells of a record's entry, of either form, what its key does, and its size.
func oldOrNew(form uint64, key, sealed []byte) (r dropped, err error) {
	if form == firstForm {
		r.place, err = decodePlace(key)
		r.size = recordSize(key, sealed) - orderOverhead
		return r, err
	}
	r.class, r.place, err = decodeRecordKey(key)
	r.size = recordSize(key, sealed)
	return r, err
}

func (t *tree) order(key, value []byte) error {
	p, err := decodePlace(key)
	if err != nil {
		return err
	}
	e, err := decodeEntry(value)
	if err != nil {
		return err
	}
	t.walk.ordered++
	t.walk.digest -= e.digest(p)
	if e.lost > 0 {
		t.walk.count(p.epoch).gaps += e.lost
	}
	return nil
}
