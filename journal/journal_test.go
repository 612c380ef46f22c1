package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)

func numbered(epoch string, sequence uint64, size int) Record {
	data := bytes.Repeat([]byte{byte(sequence)}, size)
	copy(data, fmt.Sprintf("%s/%d", epoch, sequence))
	return Record{BootID: "boot", Epoch: epoch, Sequence: sequence, At: start.Add(time.Duration(sequence) * time.Second), Kind: "finding_opened", Data: data}
}

func open(t testing.TB, dir string, change ...func(*Options)) (*Journal, Report) {
	t.Helper()
	options := Options{MaxBytes: MinBytes}
	for _, c := range change {
		c(&options)
	}
	j, report, err := Open(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, report
}

// all returns the records that are kept, and fails unless the gaps between them account
// for all others.
func all(t testing.TB, j *Journal) []Record {
	t.Helper()
	var list []Record
	var missing uint64
	before := Key{}
	for e, err := range j.All(Key{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Gap != nil {
			missing += e.Gap.Count
		}
		switch {
		case e.Gap == nil:
			list = append(list, e.Record)
		case e.Gap.From == 0:
		case e.Gap.To != e.Sequence || e.Gap.To < e.Gap.From || e.Gap.Count > e.Gap.To-e.Gap.From+1:
			t.Fatalf("gap %+v at %v", e.Gap, e.Key())
		}
		if e.Epoch == before.Epoch && e.BootID == before.BootID && e.Sequence <= before.Sequence && before != (Key{before.BootID, before.Epoch, 0}) {
			t.Fatalf("%v after %v", e.Key(), before)
		}
		before = e.Key()
	}
	if missing != j.Lost()+j.Refused() {
		t.Fatalf("the gaps are of %d records, %d are lost and %d refused", missing, j.Lost(), j.Refused())
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same(t testing.TB, got, want Record) {
	t.Helper()
	if got.Key() != want.Key() || got.Rank != want.Rank || got.Owner != want.Owner || !got.At.Equal(want.At) || got.Kind != want.Kind || !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("got %v %s %v %.20q, want %v %s %v %.20q", got.Key(), got.Kind, got.At, got.Data, want.Key(), want.Kind, want.At, want.Data)
	}
}

func TestRecordsComeBackInOrder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, report := open(t, dir)
	if !report.New || len(report.Damage) > 0 {
		t.Fatalf("report of a new journal: %+v", report)
	}
	var want []Record
	for _, epoch := range []string{"z", "a", "m"} { // by appearance, not by name
		for n := uint64(1); n <= 300; n += 3 { // gaps are the caller's
			r := numbered(epoch, n, int(n))
			r.At = start.Add(time.Duration(rand.Int64N(1e15)) - 5e14) // a clock that jumps
			want = append(want, r)
		}
	}
	want[7].At, want[7].Kind, want[7].Data = time.Time{}, "", nil
	must(t, j.Append(want[:150]...))
	must(t, j.Append(want[150:]...))
	check := func(j *Journal) {
		t.Helper()
		got := all(t, j)
		if len(got) != len(want) {
			t.Fatalf("%d records, want %d", len(got), len(want))
		}
		for n := range want {
			same(t, got[n], want[n])
		}
		if records, size := j.Depth(); records != len(want) || size < 20000 {
			t.Fatalf("depth %d, %d bytes", records, size)
		}
		if list := j.Epochs(); len(list) != 3 || list[1].Epoch != "a" || list[1].Last != 298 || list[1].Lost != 0 || list[1].Records != 100 {
			t.Fatalf("epochs %+v", list)
		}
		page, err := j.Read(want[150].Key(), 3)
		must(t, err)
		if len(page) != 3 {
			t.Fatalf("%d records of 3", len(page))
		}
		same(t, page[0].Record, want[151])
		page, err = j.Read(Key{"boot", "a", 0}, 1)
		must(t, err)
		same(t, page[0].Record, want[100])
		if page, err := j.Read(want[299].Key(), 3); err != nil || len(page) != 0 {
			t.Fatalf("after the last: %d records, %v", len(page), err)
		}
	}
	check(j)
	must(t, j.Close())
	j, report = open(t, dir)
	if report.New || report.Records != 300 || len(report.Damage) > 0 {
		t.Fatalf("report: %+v", report)
	}
	check(j)
	must(t, j.Close())
	j, _ = open(t, dir, func(o *Options) { o.ReadOnly = true })
	check(j)
	if err := j.Append(numbered("new", 1, 1)); err == nil || !strings.Contains(err.Error(), "reading only") {
		t.Fatalf("append to a read-only journal: %v", err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	j, _ := open(t, t.TempDir())
	must(t, j.Append(numbered("one", 5, 10)))
	must(t, j.Append(numbered("two", 1, 10)))
	long := strings.Repeat("x", 256)
	for name, row := range map[string]struct {
		batch Batch
		want  error
	}{
		"the same again":          {Batch{Records: []Record{numbered("two", 1, 10)}}, ErrOrder},
		"an older epoch":          {Batch{Records: []Record{numbered("one", 6, 10)}}, ErrOrder},
		"back and forth":          {Batch{Records: []Record{numbered("3", 1, 1), numbered("4", 1, 1), numbered("3", 2, 1)}}, ErrOrder},
		"sequence zero":           {Batch{Records: []Record{numbered("three", 0, 10)}}, ErrOrder},
		"descending":              {Batch{Records: []Record{numbered("two", 9, 1), numbered("two", 8, 1)}}, ErrOrder},
		"a huge batch":            {Batch{Records: []Record{numbered("two", 9, MaxRecord), numbered("two", 10, MaxRecord)}}, ErrTooBig},
		"a long name":             {Batch{Records: []Record{{Epoch: long, Sequence: 1}}}, ErrTooBig},
		"a long key":              {Batch{Put: map[string][]byte{long: nil}}, ErrTooBig},
		"an empty key":            {Batch{Put: map[string][]byte{"": nil}}, ErrTooBig},
		"a state that is too big": {Batch{Records: []Record{numbered("two", 2, 1)}, Put: map[string][]byte{"x": make([]byte, MinBytes/8)}}, ErrTooBig},
	} {
		if err := j.Commit(row.batch); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
	if got := all(t, j); len(got) != 2 {
		t.Errorf("%d records after what was refused", len(got))
	}
	must(t, j.Append(numbered("two", 2, MaxRecord)))
	for name, key := range map[string]Key{"unknown epoch": {"boot", "none", 1}, "ahead": {"boot", "two", 3}} {
		if _, err := j.Read(key, 1); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, j.Close())
	must(t, j.Close())
	if err := j.Append(numbered("two", 3, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("append to a closed journal: %v", err)
	}
	if _, err := j.Read(Key{}, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("read of a closed journal: %v", err)
	}
}

func TestABatchThatIsRefusedTakesNoOtherWithIt(t *testing.T) {
	j, _ := open(t, t.TempDir())
	group := []*request{
		{batch: Batch{Records: []Record{numbered("e", 1, 1), numbered("e", 2, 1)}}},
		{batch: Batch{Records: []Record{numbered("e", 3, 1), numbered("e", 3, 1)}, Put: map[string][]byte{"a": nil}}},
		{batch: Batch{Records: []Record{numbered("f", 1, 1)}, Put: map[string][]byte{"b": nil}}},
	}
	j.commit(group)
	if group[0].err != nil || !errors.Is(group[1].err, ErrOrder) || group[2].err != nil {
		t.Fatal(group[0].err, group[1].err, group[2].err)
	}
	state, err := j.State()
	must(t, err)
	if got := all(t, j); len(got) != 3 || len(state) != 1 {
		t.Fatalf("%d records, state %v", len(got), state)
	}
}

func TestStateGoesWithTheLog(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	must(t, j.Commit(Batch{Records: []Record{numbered("e", 1, 1)}, Put: map[string][]byte{"a": []byte("1"), "b": []byte("2"), "c": nil}}))
	must(t, j.Commit(Batch{Records: []Record{numbered("e", 2, 1)}, Delete: []string{"a", "none"}, Put: map[string][]byte{"b": []byte("3")}}))
	must(t, j.Commit(Batch{Delete: []string{"c"}, Put: map[string][]byte{"c": []byte("4")}}))
	if err := j.Commit(Batch{Records: []Record{numbered("e", 2, 1)}, Delete: []string{"b"}}); !errors.Is(err, ErrOrder) {
		t.Fatal(err)
	}
	must(t, j.Close())
	j, report := open(t, dir)
	state, err := j.State()
	must(t, err)
	if fmt.Sprint(state) != fmt.Sprint(map[string][]byte{"b": []byte("3"), "c": []byte("4")}) || report.State != 2 {
		t.Fatalf("state %q, report %+v", state, report)
	}
}

func TestTheOldestGoAndAreCounted(t *testing.T) {
	for name, size := range map[string]int{"small": 100, "half a page": 2100, "pages": 30000, "huge": MaxRecord, "mixed": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			j, _ := open(t, dir)
			random := rand.New(rand.NewPCG(1, 2))
			var appended, written, largest int
			for sequence := uint64(1); written < 4*MinBytes; {
				var batch []Record
				for n := 0; n < MinBytes/8 && len(batch) < 2000; sequence++ {
					length := size
					if size == 0 {
						length = int(1 << random.IntN(20))
					}
					n += length
					batch = append(batch, numbered(fmt.Sprint(written/MinBytes), sequence, length))
				}
				appended += len(batch)
				for _, r := range batch {
					written += len(r.Data)
				}
				must(t, j.Append(batch...))
				info, err := os.Stat(filepath.Join(dir, fileName))
				must(t, err)
				largest = max(largest, int(info.Size()))
			}
			records, kept := j.Depth()
			if j.Lost() == 0 || int(j.Lost())+records != appended || kept > MinBytes || kept < MinBytes/2 {
				t.Errorf("lost %d, %d kept of %d; %d bytes", j.Lost(), records, appended, kept)
			}
			t.Logf("file of at most %.2f x the bound", float64(largest)/MinBytes)
			if largest > MinBytes*5/2 {
				t.Errorf("the file had %d bytes, the bound is %d", largest, MinBytes)
			}
			if got := all(t, j); len(got) != records {
				t.Errorf("%d records read of %d", len(got), records)
			}
			first := j.Epochs()[0]
			page, err := j.Read(Key{first.BootID, first.Epoch, 0}, 1)
			must(t, err)
			if first.Lost > 0 && (page[0].Gap == nil || page[0].Gap.From != 1 || page[0].Gap.Count != first.Lost) {
				t.Errorf("the oldest epoch %+v begins with %+v", first, page[0])
			}
			must(t, j.Close())
			lost := j.Lost()
			j, report := open(t, dir)
			if j.Lost() != lost || report.Records != records || len(report.Damage) > 0 {
				t.Errorf("after opening again: lost %d of %d, %+v", j.Lost(), lost, report)
			}
		})
	}
}

func TestALowerBoundShrinksTheFile(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir, func(o *Options) { o.MaxBytes = 8 * MinBytes })
	for n := uint64(1); n <= 300; n += 3 {
		must(t, j.Append(numbered("e", n, 100000), numbered("e", n+1, 100000), numbered("e", n+2, 100000)))
	}
	must(t, j.Close())
	j, report := open(t, dir)
	if report.Records+int(j.Lost()) != 300 || report.Bytes > MinBytes || len(report.Damage) > 0 {
		t.Errorf("lost %d, %+v", j.Lost(), report)
	}
	must(t, j.Close())
	j, _ = open(t, dir)
	info, err := os.Stat(filepath.Join(dir, fileName))
	must(t, err)
	if info.Size() > 2*MinBytes || len(all(t, j)) != report.Records {
		t.Errorf("file of %d bytes", info.Size())
	}
}

func TestAgeAndAClockThatJumps(t *testing.T) {
	now := start
	j, _ := open(t, t.TempDir(), func(o *Options) { o.MaxAge, o.Now = time.Hour, func() time.Time { return now } })
	for n := uint64(1); n <= 200; n++ {
		r := numbered("e", n, 10)
		now = start.Add(time.Duration(n) * time.Minute)
		r.At = now
		must(t, j.Append(r))
	}
	if records, _ := j.Depth(); records != 61 || j.Lost() != 139 {
		t.Fatalf("%d records, %d lost", records, j.Lost())
	}
	now = start.Add(-1000 * time.Hour) // back: nothing goes, and order stays
	r := numbered("e", 201, 10)
	r.At = now
	must(t, j.Append(r))
	got := all(t, j)
	if len(got) != 62 || got[61].Sequence != 201 {
		t.Fatalf("%d records", len(got))
	}
	now = start.Add(201 * time.Minute) // what the wrong clock wrote waits for those before it
	must(t, j.Append(numbered("e", 202, 10)))
	if got = all(t, j); got[0].Sequence != 141 || len(got) != 62 {
		t.Fatalf("%d records from %d", len(got), got[0].Sequence)
	}
}

func TestManyEpochs(t *testing.T) {
	j, _ := open(t, t.TempDir())
	var batch []Record
	for n := range maxEpochs + 100 {
		batch = append(batch, numbered(fmt.Sprint(n), 1, 1))
	}
	must(t, j.Append(batch...))
	if records, _ := j.Depth(); records != maxEpochs || j.Lost() != 100 || j.Epochs()[0].Epoch != "100" {
		t.Fatalf("%d records, %d lost", records, j.Lost())
	}
}

func TestManyWritersAndReaders(t *testing.T) {
	j, _ := open(t, t.TempDir())
	var turn sync.Mutex
	var sequence uint64
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var last uint64
				for r, err := range j.All(Key{}) {
					if err == nil && r.Gap != nil {
						last = r.Sequence
						continue
					}
					if err != nil || r.Sequence <= last || !strings.HasPrefix(string(r.Data), fmt.Sprintf("e/%d", r.Sequence)) {
						t.Errorf("%d after %d: %v", r.Sequence, last, err)
						return
					}
					last = r.Sequence
				}
			}
		})
	}
	var writers sync.WaitGroup
	for n := range 8 {
		writers.Go(func() {
			for i := range 40 {
				if n == 0 { // the log has one order, so one writer; the others change the state
					turn.Lock()
					sequence++
					r := numbered("e", sequence, 60000)
					turn.Unlock()
					if err := j.Append(r); err != nil {
						t.Error(err)
					}
					continue
				}
				if err := j.Commit(Batch{Put: map[string][]byte{fmt.Sprint(n): fmt.Append(nil, i)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	group.Wait()
	state, err := j.State()
	must(t, err)
	if len(state) != 7 || string(state["3"]) != "39" {
		t.Errorf("state %q", state)
	}
}

// What was read does not stay in the process's memory.
func TestReadingHoldsNoMemory(t *testing.T) {
	j, _ := open(t, t.TempDir(), func(o *Options) { o.MaxBytes = 32 << 20 })
	for n := uint64(1); n <= 250; n += 2 {
		must(t, j.Append(numbered("e", n, 100000), numbered("e", n+1, 100000)))
	}
	_, before := resident(t)
	if got := len(all(t, j)); got != 250 {
		t.Fatalf("%d records", got)
	}
	if _, after := resident(t); after-before > 8 {
		t.Errorf("%.1f MiB of files are mapped after reading 24 MiB, %.1f before", after, before)
	}
}

func TestOneAtATime(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	for _, readOnly := range []bool{false, true} {
		_, _, err := Open(dir, Options{MaxBytes: MinBytes, ReadOnly: readOnly})
		if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "stop that one") {
			t.Fatalf("a second one: %v", err)
		}
	}
	must(t, j.Close())
	first, _ := open(t, dir, func(o *Options) { o.ReadOnly = true })
	second, _ := open(t, dir, func(o *Options) { o.ReadOnly = true })
	must(t, first.Close())
	must(t, second.Close())
	open(t, dir)
}

func TestTheDirectory(t *testing.T) {
	parent := t.TempDir()
	old := unix.Umask(0)
	dir := filepath.Join(parent, "j")
	j, _ := open(t, dir)
	unix.Umask(old)
	must(t, j.Append(numbered("e", 1, 1)))
	must(t, j.Close())
	for path, want := range map[string]os.FileMode{"": 0o700 | os.ModeDir, fileName: 0o600, lockName: 0o600} {
		info, err := os.Lstat(filepath.Join(dir, path))
		must(t, err)
		if info.Mode() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}

	refuse := func(dir, words string) {
		t.Helper()
		if _, _, err := Open(dir, Options{MaxBytes: MinBytes}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", dir, err, words)
		}
	}
	link := filepath.Join(parent, "link")
	must(t, os.Symlink(dir, link))
	refuse(link, "symbolic links are not followed")
	refuse(filepath.Join(parent, "none", "j"), "make "+filepath.Join(parent, "none")+" first")
	refuse(filepath.Join(dir, fileName), "it is no directory")
	must(t, os.Chmod(dir, 0o720))
	refuse(dir, "chmod 0700")
	must(t, os.Chmod(dir, 0o700))

	file := filepath.Join(dir, fileName)
	must(t, os.Chmod(file, 0o644))
	j, _ = open(t, dir)
	must(t, j.Close())
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file's mode: %v, %v", info.Mode(), err)
	}
	must(t, os.Rename(file, file+"2"))
	must(t, os.Symlink(file+"2", file))
	refuse(dir, "is a symbolic link, which is not followed; remove it")
	must(t, os.Remove(file))
	must(t, unix.Mkfifo(file, 0o600))
	refuse(dir, "is no regular file")
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, 1, 1))
		refuse(dir, "chown it")
	}
	if _, _, err := Open(t.TempDir(), Options{MaxBytes: 100}); err == nil {
		t.Error("a bound of 100 bytes was taken")
	}
	if _, _, err := Open(t.TempDir(), Options{ReadOnly: true}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reading what is not there: %v", err)
	}
}
