// Package journal keeps records on disk: in order, within a bound, and through
// crashes.
//
// Read it in this order: [Open] yields a [Journal] and a [Report] of what it found;
// [Journal.Commit] writes a [Batch] of records together with changes of a small
// keyed state; [Journal.Read] and [Journal.All] give the records back, and the gaps
// between them; [Snapshot] reads a journal of which nothing may be changed.
//
// # Promises
//
// What Commit acknowledged is on disk: it survives the death of the process at any
// point, and the machine's where the disk keeps its word about fdatasync(2). A batch
// is kept whole or not at all, records and state together.
//
// Records are ordered by epoch, in the order in which epochs first came, and by
// sequence within one. Clocks decide nothing but the age at which a record goes.
//
// Everything carries a checksum. What was damaged is recognised when the journal is
// opened, never given back, and counted; the damaged file is set aside, what is whole
// in it is carried over. Nothing is overwritten silently.
//
// When the bound of bytes is passed, records are evicted and counted as lost: those of
// the lowest rank first, and among them those of the owner who holds most, oldest first.
// So a record is never evicted for one of a lower rank, nor, within a rank, for one of an
// owner who holds more. The bound of age takes records whatever their rank.
//
// What was lost is told where it was: readers get a [Gap] in its place. Its count is
// exact; its range may also cover sequences that were never appended.
//
// A record that is too large is refused alone: the others of its batch are kept, it is
// counted, and readers get a gap.
//
// # The file
//
// One file of go.etcd.io/bbolt, which brings transactions, a lock and the reuse of
// space. It has no checksums but in its two headers and trusts its file: a damaged one
// makes it panic, overflow the stack or loop. So Open first reads the file by
// itself, page by page (image.go), and lets bbolt see only what is sound.
//
// The file has a form, which is a number. Open carries a file of an older form over into
// a new file, which takes the place of the old one when it is complete. A file of a newer
// form is refused ([ErrNewer]).
package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Limits of what one call can store.
const (
	MinBytes   = 4 << 20 // the smallest Options.MaxBytes
	MaxRecord  = 1 << 20 // of Record.Data, and of one value of the state
	MaxName    = 255     // of Record.BootID, Epoch, Kind and Owner, and of a key of the state
	maxEpochs  = 1024    // known at once; each start of an agent makes one
	maxGroup   = 4 << 20 // bytes of batches that share one transaction
	maxMapped  = 1 << 30 // bytes of address space taken at once; more come when they are needed
	allocation = 256 << 10
	keepAside  = 3 // damaged files that are kept
)

// Errors that callers may tell apart.
var (
	ErrLocked = errors.New("the journal is open elsewhere")
	ErrGone   = errors.New("the position is not kept in the journal")
	ErrOrder  = errors.New("the record does not follow the last one")
	ErrTooBig = errors.New("more than the journal takes")
	ErrClosed = errors.New("the journal is closed")
	// ErrNewer is of a file that a newer release wrote.
	ErrNewer = errors.New("the journal has a newer form than this program knows")
	// ErrDamaged is of a file that was damaged while it was open. Opening it again
	// carries over what is whole.
	ErrDamaged = errors.New("the journal's file is damaged")
)

// Options are the journal's bounds.
type Options struct {
	// MaxBytes bounds the records and the state together, at least [MinBytes]. The
	// file stays within about twice of it.
	MaxBytes int64
	// MaxAge is the age at which a record goes, by Now and its own time; 0 keeps all.
	// Records go from the oldest in order, and only when others come.
	MaxAge time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// ReadOnly opens an existing journal and writes nothing: a damaged one is then an
	// error. One of an older form gives its state, and its records only after it was
	// carried over.
	ReadOnly bool
	// Writer names the program. A release that is too old for the file tells the name.
	Writer string
	// Classify sets rank and owner of a record of the first form, which has neither. nil
	// leaves them zero.
	Classify func(*Record)
}

// Record is one entry of the log.
type Record struct {
	BootID   string
	Epoch    string
	Sequence uint64 // above that of the record before it in its epoch
	At       time.Time
	Kind     string
	Rank     uint8  // what is of a lower rank is evicted first
	Owner    string // who is charged for it; empty is an owner too
	Data     []byte
}

// Key is the record's place.
func (r Record) Key() Key { return Key{r.BootID, r.Epoch, r.Sequence} }

// Key is a place in the log. The zero Key is before all records.
type Key struct {
	BootID   string
	Epoch    string
	Sequence uint64
}

// Gap tells of records that are not in the log: they were evicted, damaged, or refused as
// too large.
type Gap struct {
	// From and To are the first and the last sequence in question. Both are 0 in a gap
	// of whole epochs before this one, which are not known any more.
	From, To uint64
	Count    uint64 // how many records
}

// Entry is what reading yields: a record, or a gap.
type Entry struct {
	// Record has nothing but its place in an entry that is a gap: the sequence is Gap.To.
	Record
	Gap *Gap // nil in an entry that is a record
}

// Epoch is what is known of one epoch.
type Epoch struct {
	BootID  string
	Epoch   string
	Last    uint64 // the highest sequence that was appended
	Records int    // kept
	Bytes   int64  // that they take
	Lost    uint64 // records that went by the bounds or by damage
	Refused uint64 // records that were too large
}

// Report tells what Open found.
type Report struct {
	New     bool // there was no journal yet
	Records int
	Bytes   int64
	State   int
	// Form is the older form that the file had; 0 when nothing was carried over from one.
	Form int

	// Damage says what was wrong with the file; empty when nothing was.
	Damage []string
	// SetAside is where the damaged file is now.
	SetAside string
	// Removed are older damaged files that were deleted: the newest three are kept.
	Removed []string
	// Lost counts the records that the damage took. They are in [Journal.Lost] too.
	Lost uint64
	// LostState counts the entries of the state that the damage took.
	LostState int
	// Uncounted is true when more may be missing than Lost and LostState say.
	Uncounted bool
}

// Journal is an open journal. Its methods may be called from several goroutines.
type Journal struct {
	options Options
	where   string
	dir     *directory
	db      *bbolt.DB
	file    *os.File // db's own

	turn    sync.Mutex // held by the one that commits
	holders holders    // who holds how much; guarded by turn
	queueMu sync.Mutex
	queue   []*request

	mu       sync.RWMutex // guards what follows
	index    *index       // never written to, as upcoming is
	upcoming *index       // of the transaction that is being committed
	broken   error        // why nothing can be done any more
	doubt    bool         // a commit failed: what it wrote may be there
}

// Open opens the journal in a directory, and makes both where they are missing. The
// directory must be the user's own or root's, and not writable by others; a symbolic
// link in the place of the directory or of a file in it is refused.
func Open(dir string, options Options) (*Journal, Report, error) {
	if options.MaxBytes < MinBytes && !options.ReadOnly {
		return nil, Report{}, fmt.Errorf("journal of %d bytes: give it %d or more", options.MaxBytes, MinBytes)
	}
	if options.MaxAge < 0 {
		return nil, Report{}, fmt.Errorf("journal's age of %v: want 0 (no limit) or more", options.MaxAge)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	d, err := openDirectory(dir, options.ReadOnly)
	if err != nil {
		return nil, Report{}, err
	}
	j := &Journal{options: options, where: dir, dir: d}
	report, err := j.open()
	if err != nil {
		j.abandon()
		return nil, report, wrap(dir, err)
	}
	return j, report, nil
}

// wrap says of which journal an error is, and what to do about it.
func wrap(dir string, err error) error { return fmt.Errorf("journal in %s: %w", dir, advise(err)) }

func (j *Journal) open() (Report, error) {
	var report Report
	found, err := j.dir.inspect(fileName)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !j.options.ReadOnly:
		report.New = true
		if err := j.dir.build(nil, j.options, nil); err != nil {
			return report, err
		}
	case err != nil:
		return report, err
	case len(found.damage) > 0 && j.options.ReadOnly:
		report.Damage = found.damage
		return report, fmt.Errorf("%w: %s; open it for writing to carry over what is whole", ErrDamaged, found.damage[0])
	case len(found.damage) > 0:
		if err := j.dir.mend(found, j.options, &report); err != nil {
			return report, err
		}
	case !j.options.ReadOnly && (found.form() != thisForm || found.size > 3*j.options.MaxBytes):
		// It has an older form, the bound was lowered, or the space got fragmented: write
		// it anew.
		if err := j.dir.build(found, j.options, nil); err != nil {
			return report, err
		}
	}
	if found != nil {
		if form := found.form(); form != thisForm && !j.options.ReadOnly {
			report.Form = form
		}
		found.close()
	}

	err = guard(j.openDB)
	if err == nil {
		err = guard(j.reload)
	}
	if err == nil && !j.options.ReadOnly {
		err = guard(j.trimAll)
	}
	if err != nil {
		return report, err
	}
	report.Records, report.Bytes = j.Depth()
	report.State = int(j.index.about.stateCount)
	return report, nil
}

func (j *Journal) openDB() error {
	db, err := j.dir.openDB(fileName, j.options.ReadOnly, int(min(3*j.options.MaxBytes, maxMapped)), &j.file)
	if err != nil {
		return err
	}
	j.db = db
	return nil
}

// guard turns the panics of a library that trusts its file into an error, also those
// of a page that cannot be read (SIGBUS of mmap(2)).
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}

// advise adds the next move to an error of the disk.
func advise(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w; make room on that disk and try again", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; mount it writable, or name another directory", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; make the directory this user's own, mode 0700", err)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w; the disk fails: name a directory on another one", err)
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%w; open the journal again to carry over what is whole", err)
	}
	return err
}

// view runs f in a transaction that sees one state of the journal.
func (j *Journal) view(f func(*bbolt.Tx, *index) error) error {
	j.mu.RLock()
	broken := j.broken
	j.mu.RUnlock()
	if broken != nil {
		return broken
	}
	err := guard(func() error {
		return j.db.View(func(tx *bbolt.Tx) error {
			x, err := j.indexOf(tx)
			if err != nil {
				return err
			}
			return f(tx, x)
		})
	})
	switch {
	case errors.Is(err, ErrDamaged):
		return j.breakOff(err)
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return ErrClosed
	}
	return err
}

// indexOf returns the index that belongs to what a transaction sees: between a
// commit's end and the moment that we hear of it, that is not the current one.
func (j *Journal) indexOf(tx *bbolt.Tx) (*index, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	for _, x := range []*index{j.index, j.upcoming} {
		if x != nil && x.tx == tx.ID() {
			return x, nil
		}
	}
	return loadIndex(tx)
}

// breakOff ends a journal whose file cannot be trusted any more.
func (j *Journal) breakOff(cause error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = wrap(j.where, cause)
	}
	return j.broken
}

// Lost counts the records that went since the journal was made: by its bounds, or by
// damage as far as it could be counted.
func (j *Journal) Lost() uint64 {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.index.about.lost
}

// Refused counts the records that were refused as too large since the journal was made.
func (j *Journal) Refused() uint64 {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.index.about.refused
}

// MaxState is how many bytes the state may have, its keys and some twenty bytes for each
// entry included.
func (j *Journal) MaxState() int64 { return j.options.MaxBytes / 8 }

// Depth is how many records are kept, and the bytes that they take.
func (j *Journal) Depth() (records int, bytes int64) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	for _, e := range j.index.epochs {
		records += int(e.records)
		bytes += int64(e.bytes)
	}
	return records, bytes
}

// Epochs lists the epochs, oldest first.
func (j *Journal) Epochs() []Epoch {
	j.mu.RLock()
	defer j.mu.RUnlock()
	list := make([]Epoch, 0, len(j.index.epochs))
	for _, e := range j.index.epochs {
		list = append(list, Epoch{e.boot, e.name, e.last, int(e.records), int64(e.bytes), e.lost, e.refused})
	}
	return list
}

// State returns the keyed state as the last batch left it.
func (j *Journal) State() (map[string][]byte, error) {
	state := map[string][]byte{}
	err := j.view(func(tx *bbolt.Tx, _ *index) error {
		return tx.Bucket(bucketState).ForEach(func(k, v []byte) error {
			value, err := unseal(bucketState, k, v)
			state[string(k)] = slices.Clone(value)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return state, nil
}

// Close waits for a commit that is under way and closes the journal. What was
// acknowledged is on disk already.
func (j *Journal) Close() error {
	j.turn.Lock()
	defer j.turn.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if errors.Is(j.broken, ErrClosed) {
		return nil
	}
	wasBroken := j.broken != nil
	j.broken = ErrClosed
	if wasBroken { // bbolt may hold its locks for ever
		j.abandon()
		return nil
	}
	err := guard(j.db.Close)
	j.dir.close()
	return err
}

// abandon closes the files under the library's feet: their locks go with them.
func (j *Journal) abandon() {
	if j.file != nil {
		unlock(j.file)
		j.file.Close()
	}
	j.dir.close()
}

// index is what is kept in memory of the log: its counters.
type index struct {
	tx     int // the transaction that led to it
	about  about
	epochs []*epoch // oldest first; shared between indexes, so never written to
}

// clone is an index that can be changed without the other noticing.
func (x *index) clone() *index {
	return &index{x.tx, x.about, slices.Clone(x.epochs)}
}

// change returns the epoch at a place, to be written to.
func (x *index) change(i int) *epoch {
	e := *x.epochs[i]
	x.epochs[i] = &e
	return &e
}

func (x *index) bytes() int64 {
	sum := int64(x.about.stateBytes)
	for _, e := range x.epochs {
		sum += int64(e.bytes)
	}
	return sum
}

// find returns the place of an epoch, or -1.
func (x *index) find(boot, name string) int {
	return slices.IndexFunc(x.epochs, func(e *epoch) bool { return e.name == name && e.boot == boot })
}

// reload reads the index from the file, and who holds how much where that is needed. It
// is called with the turn held, or before anybody else has the journal.
func (j *Journal) reload() error {
	var fresh *index
	err := j.db.View(func(tx *bbolt.Tx) (err error) {
		if fresh, err = loadIndex(tx); err != nil || j.options.ReadOnly {
			return err
		}
		j.holders, err = loadHolders(tx)
		return err
	})
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.index, j.upcoming = fresh, nil
	return nil
}

func loadIndex(tx *bbolt.Tx) (*index, error) {
	x := &index{tx: tx.ID()}
	if tx.Bucket(bucketAbout) == nil {
		return nil, fmt.Errorf("%w: it has no %s", ErrDamaged, bucketAbout)
	}
	value, err := unseal(bucketAbout, aboutKey, tx.Bucket(bucketAbout).Get(aboutKey))
	if err != nil {
		return nil, err
	}
	if x.about, err = decodeAbout(value); err != nil {
		return nil, err
	}
	for _, name := range bucketsOf(x.about.form) {
		if tx.Bucket(name) == nil {
			return nil, fmt.Errorf("%w: it has no %s", ErrDamaged, name)
		}
	}
	return x, tx.Bucket(bucketEpochs).ForEach(func(k, v []byte) error {
		value, err := unseal(bucketEpochs, k, v)
		if err != nil {
			return err
		}
		e, err := decodeEpoch(x.about.form, k, value)
		x.epochs = append(x.epochs, e)
		return err
	})
}

// Batch is what one commit writes, whole or not at all.
type Batch struct {
	Records []Record
	Put     map[string][]byte // entries of the state to set
	Delete  []string          // entries of the state to remove; done before Put
}

// weight is about what a record takes.
func (r Record) weight() int64 {
	return int64(len(r.Data) + len(r.Kind) + len(r.Owner) + recordOverhead)
}

// tooLarge reports whether the record is refused.
func (r Record) tooLarge() bool {
	return len(r.Data) > MaxRecord || len(r.Kind) > MaxName || len(r.Owner) > MaxName
}

func (b Batch) size() int64 {
	var sum int64
	for _, r := range b.Records {
		if !r.tooLarge() {
			sum += r.weight()
		}
	}
	for k, v := range maps.All(b.Put) {
		sum += int64(len(k) + len(v) + elementOverhead)
	}
	return sum
}
