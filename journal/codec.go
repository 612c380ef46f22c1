package journal

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"slices"
	"time"
)

// The buckets of the file. Every value in them is sealed: its checksum covers the
// bucket's name, the key and the value.
//
// Records lie by class and within it by age, so that what is evicted together lies
// together. Order has their places in the log.
var (
	bucketAbout   = []byte("about")
	bucketEpochs  = []byte("epochs")
	bucketOrder   = []byte("order")
	bucketRecords = []byte("records")
	bucketState   = []byte("state")

	buckets  = [][]byte{bucketAbout, bucketEpochs, bucketOrder, bucketRecords, bucketState}
	aboutKey = []byte("journal")
)

// The forms of the file. In the first one a record has no rank and no owner, its key is
// its place in the log, and there is no order.
const (
	firstForm = 1
	thisForm  = 2
)

// bucketsOf lists the buckets of a form.
func bucketsOf(form uint64) [][]byte {
	if form == firstForm {
		return slices.DeleteFunc(slices.Clone(buckets), func(b []byte) bool { return bytes.Equal(b, bucketOrder) })
	}
	return buckets
}

const (
	elementOverhead = 16 + 4                                   // bbolt's element of a leaf page, and the checksum
	orderOverhead   = elementOverhead + 28                     // with the key, the class, the size and what was lost
	recordOverhead  = elementOverhead + 33 + 8 + orderOverhead // with the key, the time and the entry of the order
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(bucket, key, value []byte) uint32 {
	var length [2]byte // where the key ends
	binary.BigEndian.PutUint16(length[:], uint16(len(key)))
	sum := crc32.Update(0, castagnoli, bucket)
	sum = crc32.Update(sum, castagnoli, length[:])
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, value)
}

// seal puts the checksum before a value.
func seal(bucket, key, value []byte) []byte {
	sealed := make([]byte, 4, 4+len(value))
	binary.BigEndian.PutUint32(sealed, checksum(bucket, key, value))
	return append(sealed, value...)
}

// unseal returns the value within the sealed one, which it shares memory with.
func unseal(bucket, key, sealed []byte) ([]byte, error) {
	if len(sealed) < 4 || binary.BigEndian.Uint32(sealed) != checksum(bucket, key, sealed[4:]) {
		return nil, fmt.Errorf("%w: an entry of %s has another checksum", ErrDamaged, bucket)
	}
	return sealed[4:], nil
}

// about is what is known of the journal as a whole.
type about struct {
	form        uint64
	writer      string // the program that wrote it last
	lost        uint64 // records, ever
	refused     uint64 // records, ever
	appended    uint64 // records, ever; with those that were refused
	nextEpoch   uint64
	stateCount  uint64
	stateBytes  uint64
	stateDigest uint64 // the sum of its entries' digests: tells when one is missing
}

// encode begins with the form and the writer in all forms but the first: an older program
// tells them to whoever has to choose another.
func (a about) encode() []byte {
	b := appendText(binary.AppendUvarint(nil, thisForm), a.writer)
	for _, n := range []uint64{a.lost, a.refused, a.appended, a.nextEpoch, a.stateCount, a.stateBytes, a.stateDigest} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func decodeAbout(b []byte) (about, error) {
	d := decoder{rest: b}
	switch a := (about{form: d.uint()}); {
	case a.form == firstForm:
		a.lost, a.appended, a.nextEpoch = d.uint(), d.uint(), d.uint()
		a.stateCount, a.stateBytes, a.stateDigest = d.uint(), d.uint(), d.uint()
		return a, d.end()
	case a.form == thisForm:
		a.writer, a.lost, a.refused, a.appended, a.nextEpoch = d.text(), d.uint(), d.uint(), d.uint(), d.uint()
		a.stateCount, a.stateBytes, a.stateDigest = d.uint(), d.uint(), d.uint()
		return a, d.end()
	case d.failed || a.form == 0:
		d.failed = true
		return about{}, d.end()
	default:
		return about{}, newerForm(a.form, d.text())
	}
}

// newerForm is the error of a journal that this program is too old for.
func newerForm(form uint64, writer string) error {
	by := "a newer release"
	if writer != "" {
		by = fmt.Sprintf("%.80q", writer)
	}
	return fmt.Errorf("%w: %s wrote it in form %d, this program knows the forms up to %d; start that release again, or move %s away and begin a new journal",
		ErrNewer, by, form, thisForm, fileName)
}

// entryDigest stands for one entry of the state in about.stateDigest.
func entryDigest(key, sealed []byte) uint64 {
	low := crc32.Update(0, castagnoli, sealed)
	return uint64(crc32.Update(low, castagnoli, key))<<32 | uint64(low)
}

// epoch is an Epoch as it is stored; its key is the number.
type epoch struct {
	number     uint64
	boot, name string
	last       uint64 // the highest sequence that was appended, kept or not
	records    uint64
	bytes      uint64
	lost       uint64
	refused    uint64
	tail       uint64 // of lost and refused: those after the last record that is kept
	before     uint64 // that were lost of epochs between the one before and this one
}

func (e *epoch) key() []byte { return binary.BigEndian.AppendUint64(nil, e.number) }

func (e *epoch) encode() []byte {
	b := appendText(appendText(nil, e.boot), e.name)
	for _, n := range []uint64{e.last, e.records, e.bytes, e.lost, e.refused, e.tail, e.before} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func decodeEpoch(form uint64, key, b []byte) (*epoch, error) {
	if len(key) != 8 {
		return nil, fmt.Errorf("%w: an epoch's key has %d bytes", ErrDamaged, len(key))
	}
	d := decoder{rest: b}
	e := &epoch{number: binary.BigEndian.Uint64(key), boot: d.text(), name: d.text(), last: d.uint()}
	if form == firstForm {
		d.uint() // the highest sequence that was lost
		e.records, e.bytes, e.lost = d.uint(), d.uint(), d.uint()
	} else {
		e.records, e.bytes, e.lost, e.refused, e.tail, e.before = d.uint(), d.uint(), d.uint(), d.uint(), d.uint(), d.uint()
	}
	return e, d.end()
}

// place is where a record is in the log. As bytes it orders them.
type place struct{ epoch, sequence uint64 }

func (p place) key() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(make([]byte, 0, 16), p.epoch), p.sequence)
}

func decodePlace(key []byte) (place, error) {
	if len(key) != 16 {
		return place{}, fmt.Errorf("%w: a place has %d bytes", ErrDamaged, len(key))
	}
	return place{binary.BigEndian.Uint64(key), binary.BigEndian.Uint64(key[8:])}, nil
}

func (p place) compare(other place) int {
	return cmp.Or(cmp.Compare(p.epoch, other.epoch), cmp.Compare(p.sequence, other.sequence))
}

// class is what records share that are evicted oldest first: their rank and their owner.
type class struct {
	rank  uint8
	owner uint64 // a digest
}

// classOf returns the class of a record. The digest cannot be aimed at another owner's.
func classOf(rank uint8, owner string) class {
	if owner == "" {
		return class{rank: rank}
	}
	sum := sha256.Sum256([]byte(owner))
	return class{rank, binary.BigEndian.Uint64(sum[:])}
}

func (c class) key() []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 25), c.rank), c.owner)
}

// recordKey is the key of a record.
func recordKey(c class, p place) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(c.key(), p.epoch), p.sequence)
}

func decodeRecordKey(key []byte) (class, place, error) {
	if len(key) != 25 {
		return class{}, place{}, fmt.Errorf("%w: a record's key has %d bytes", ErrDamaged, len(key))
	}
	p, err := decodePlace(key[9:])
	return class{key[0], binary.BigEndian.Uint64(key[1:])}, p, err
}

// entry is what the order knows of a record. Its key is the place.
type entry struct {
	class class
	size  uint64 // as recordSize says
	lost  uint64 // records between the one before it, of the same epoch, and this one
}

func (e entry) encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(e.class.key(), e.size), e.lost)
}

func decodeEntry(b []byte) (entry, error) {
	if len(b) < 9 {
		return entry{}, fmt.Errorf("%w: an entry of the order has %d bytes", ErrDamaged, len(b))
	}
	d := decoder{rest: b[9:]}
	e := entry{class{b[0], binary.BigEndian.Uint64(b[1:])}, d.uint(), d.uint()}
	return e, d.end()
}

// digest stands for an entry in a sum that tells when one is missing. What was lost
// before it is not in it.
func (e entry) digest(p place) uint64 {
	sum := fnv.New64a()
	_, _ = sum.Write(binary.AppendUvarint(append(p.key(), e.class.key()...), e.size))
	return sum.Sum64()
}

// encodeRecord leaves out what the key tells. A time is kept to the nanosecond,
// without its zone.
func encodeRecord(r Record) []byte {
	b := make([]byte, 0, len(r.Data)+len(r.Kind)+len(r.Owner)+18)
	b = appendText(b, r.Kind)
	b = binary.AppendVarint(b, r.At.Unix())
	b = binary.AppendUvarint(b, uint64(r.At.Nanosecond()))
	b = appendText(b, r.Owner)
	return append(b, r.Data...)
}

// decodeRecord sets what encodeRecord wrote; the data is a copy.
func decodeRecord(form uint64, r *Record, b []byte) error {
	d := decoder{rest: b}
	r.Kind, r.At = d.text(), d.time()
	if form != firstForm {
		r.Owner = d.text()
	}
	if d.failed {
		return d.end()
	}
	r.Data = append([]byte{}, d.rest...)
	return nil
}

// recordTime is the time of an encoded record.
func recordTime(b []byte) (time.Time, error) {
	d := decoder{rest: b}
	d.text()
	at := d.time()
	if d.failed {
		return at, d.end()
	}
	return at, nil
}

// clipName returns what fits into a name.
func clipName(s string) string { return s[:min(len(s), MaxName)] }

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder takes values off a slice and remembers whether one was missing.
type decoder struct {
	rest   []byte
	failed bool
}

func (d *decoder) uint() uint64 {
	n, length := binary.Uvarint(d.rest)
	if length <= 0 {
		d.failed, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[length:]
	return n
}

func (d *decoder) text() string {
	n := d.uint()
	if n > MaxName || n > uint64(len(d.rest)) {
		d.failed, d.rest = true, nil
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) time() time.Time {
	seconds, length := binary.Varint(d.rest)
	if length <= 0 {
		d.failed, d.rest = true, nil
		return time.Time{}
	}
	d.rest = d.rest[length:]
	nanos := d.uint()
	if nanos >= uint64(time.Second) {
		d.failed = true
		return time.Time{}
	}
	return time.Unix(seconds, int64(nanos)).UTC()
}

func (d *decoder) end() error {
	if d.failed || len(d.rest) > 0 {
		return fmt.Errorf("%w: an entry has another form than its checksum promises", ErrDamaged)
	}
	return nil
}
