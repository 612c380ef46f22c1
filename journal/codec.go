package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// The buckets of the file. Every value in them is sealed: its checksum covers the
// bucket's name, the key and the value.
var (
	bucketAbout   = []byte("about")
	bucketEpochs  = []byte("epochs")
	bucketRecords = []byte("records")
	bucketState   = []byte("state")

	buckets  = [][]byte{bucketAbout, bucketEpochs, bucketRecords, bucketState}
	aboutKey = []byte("journal")
)

const (
	version         = 1
	elementOverhead = 16 + 4      // bbolt's element of a leaf page, and the checksum
	recordOverhead  = 16 + 4 + 32 // the same, with the key and the time
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
	lost        uint64 // records, ever
	appended    uint64 // records, ever
	nextEpoch   uint64
	stateCount  uint64
	stateBytes  uint64
	stateDigest uint64 // the sum of its entries' digests: tells when one is missing
}

func (a about) encode() []byte {
	b := binary.AppendUvarint(nil, version)
	for _, n := range []uint64{a.lost, a.appended, a.nextEpoch, a.stateCount, a.stateBytes, a.stateDigest} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func decodeAbout(b []byte) (about, error) {
	d := decoder{rest: b}
	if v := d.uint(); v != version {
		return about{}, fmt.Errorf("%w: its format is version %d, this program knows %d", errVersion, v, version)
	}
	a := about{d.uint(), d.uint(), d.uint(), d.uint(), d.uint(), d.uint()}
	return a, d.end()
}

// errVersion is of a journal that another release wrote.
var errVersion = errors.New("the journal is of another release")

// entryDigest stands for one entry of the state in about.stateDigest.
func entryDigest(key, sealed []byte) uint64 {
	low := crc32.Update(0, castagnoli, sealed)
	return uint64(crc32.Update(low, castagnoli, key))<<32 | uint64(low)
}

// epoch is an Epoch as it is stored; its key is the number.
type epoch struct {
	number     uint64
	boot, name string
	last       uint64
	gone       uint64
	records    uint64
	bytes      uint64
	lost       uint64
}

func (e *epoch) key() []byte { return binary.BigEndian.AppendUint64(nil, e.number) }

func (e *epoch) encode() []byte {
	b := appendText(appendText(nil, e.boot), e.name)
	for _, n := range []uint64{e.last, e.gone, e.records, e.bytes, e.lost} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func decodeEpoch(key, b []byte) (*epoch, error) {
	if len(key) != 8 {
		return nil, fmt.Errorf("%w: an epoch's key has %d bytes", ErrDamaged, len(key))
	}
	d := decoder{rest: b}
	e := &epoch{binary.BigEndian.Uint64(key), d.text(), d.text(), d.uint(), d.uint(), d.uint(), d.uint(), d.uint()}
	return e, d.end()
}

func recordKey(epoch, sequence uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, epoch), sequence)
}

// splitKey tells a record's epoch and sequence.
func splitKey(key []byte) (epoch, sequence uint64, err error) {
	if len(key) != 16 {
		return 0, 0, fmt.Errorf("%w: a record's key has %d bytes", ErrDamaged, len(key))
	}
	return binary.BigEndian.Uint64(key), binary.BigEndian.Uint64(key[8:]), nil
}

// encodeRecord leaves out what the key tells. A time is kept to the nanosecond,
// without its zone.
func encodeRecord(r Record) []byte {
	b := make([]byte, 0, len(r.Data)+len(r.Kind)+16)
	b = appendText(b, r.Kind)
	b = binary.AppendVarint(b, r.At.Unix())
	b = binary.AppendUvarint(b, uint64(r.At.Nanosecond()))
	return append(b, r.Data...)
}

// decodeRecord sets what encodeRecord wrote; the data is a copy.
func decodeRecord(r *Record, b []byte) error {
	d := decoder{rest: b}
	r.Kind, r.At = d.text(), d.time()
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
