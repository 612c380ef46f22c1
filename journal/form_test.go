package journal

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// firstFormFile is a journal that the code before the second form wrote, and what it read from it.
func firstFormFile(t testing.TB) (file []byte, want firstFormContent) {
	t.Helper()
	unzip := func(name string) []byte {
		zipped, err := os.Open(filepath.Join("testdata", name))
		must(t, err)
		defer zipped.Close()
		reader, err := gzip.NewReader(zipped)
		must(t, err)
		text, err := io.ReadAll(reader)
		must(t, err)
		return text
	}
	must(t, json.Unmarshal(unzip("form1.json.gz"), &want))
	return unzip("form1.db.gz"), want
}

type firstFormContent struct {
	Lost   uint64
	Epochs []struct {
		BootID, Epoch    string
		Last, Gone, Lost uint64
		Records          int
	}
	Records []Record
	State   map[string][]byte
}

// byLength classifies by what every record has.
func byLength(r *Record) { r.Rank, r.Owner = uint8(len(r.Data)%5), fmt.Sprint(len(r.Data)%7) }

// mustHold fails unless the journal holds what the file of the first form did.
func (want firstFormContent) mustHold(t *testing.T, j *Journal) {
	t.Helper()
	got := all(t, j)
	if len(got) != len(want.Records) || j.Lost() != want.Lost {
		t.Fatalf("%d records and %d lost, want %d and %d", len(got), j.Lost(), len(want.Records), want.Lost)
	}
	for i, r := range want.Records {
		byLength(&r)
		same(t, got[i], r)
	}
	state, err := j.State()
	must(t, err)
	if len(state) != 79 || !maps.EqualFunc(state, want.State, bytes.Equal) {
		t.Fatalf("%d entries of the state, want %d", len(state), len(want.State))
	}
	for i, e := range j.Epochs() {
		old := want.Epochs[i]
		if e.BootID != old.BootID || e.Epoch != old.Epoch || e.Last != old.Last || e.Records != old.Records || e.Lost != old.Lost {
			t.Errorf("epoch %+v, want %+v", e, old)
		}
	}
}

func TestTheFirstFormIsCarriedOver(t *testing.T) {
	file, want := firstFormFile(t)
	dir := damaged(t, file)
	options := Options{MaxBytes: MinBytes, Classify: byLength}
	j, report, err := Open(dir, options)
	must(t, err)
	if report.Form != 1 || len(report.Damage) > 0 || report.SetAside != "" || report.Records != len(want.Records) || report.State != len(want.State) {
		t.Errorf("%+v", report)
	}
	want.mustHold(t, j)
	page, err := j.Read(Key{}, 2)
	must(t, err)
	first := want.Epochs[0]
	if page[0].Gap == nil || *page[0].Gap != (Gap{Count: want.Lost - first.Lost}) || page[1].Gap == nil || *page[1].Gap != (Gap{1, first.Gone, first.Lost}) {
		t.Errorf("the log begins with %+v and %+v, want an epoch that is not known any more, and what went of %+v", page[0], page[1], first)
	}
	must(t, j.Append(Record{BootID: "boot-2", Epoch: "epoch-d", Sequence: want.Epochs[2].Last + 1, Kind: "k"}))
	must(t, j.Close())
	j, report, err = Open(dir, options)
	must(t, err)
	defer j.Close()
	if report.Form != 0 || len(report.Damage) > 0 || report.Records != len(want.Records)+1 {
		t.Errorf("opened again: %+v", report)
	}
}

// TestADamagedFirstForm: what is whole is carried over, what is not is said.
func TestADamagedFirstForm(t *testing.T) {
	file, want := firstFormFile(t)
	random := rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano())))
	used := len(bytes.TrimRight(file, "\x00"))
	said := 0
	for range 40 {
		changed := bytes.Clone(file)
		changed[random.IntN(used)] ^= 1 << random.IntN(8)
		dir := damaged(t, changed)
		j, report, err := Open(dir, Options{MaxBytes: MinBytes, Classify: byLength})
		must(t, err)
		byKey, oldest := map[Key]Record{}, map[string]uint64{}
		for _, r := range slices.Backward(want.Records) {
			byLength(&r)
			byKey[r.Key()], oldest[r.Epoch] = r, r.Sequence
		}
		got := all(t, j)
		for _, r := range got {
			// Where the last header's pages are damaged, the one before it may have more that is
			// whole, and what the last commit evicted: the oldest record of its epoch.
			if known, ok := byKey[r.Key()]; ok {
				same(t, r, known)
			} else if first, ok := oldest[r.Epoch]; !ok || r.Sequence >= first || len(report.Damage) == 0 {
				t.Fatalf("%+v was not in it: %+v", r.Key(), report)
			}
		}
		if missing := len(want.Records) - len(got); missing > 0 && int(report.Lost) != missing && !report.Uncounted {
			t.Fatalf("%d records are missing: %+v", missing, report)
		}
		if report.SetAside != "" {
			said++
		}
		must(t, j.Close())
		j, report = open(t, dir)
		if len(report.Damage) > 0 || report.Records != len(got) {
			t.Fatalf("opened again: %+v", report)
		}
		must(t, j.Close())
	}
	if said == 0 {
		t.Error("no damage was recognised")
	}
}

// TestKilledWhileCarryingOver: at whatever point it is killed, the next one has everything.
func TestKilledWhileCarryingOver(t *testing.T) {
	t.Parallel()
	file, want := firstFormFile(t)
	self, err := os.Executable()
	must(t, err)
	before := 0
	for round := range 25 {
		dir := damaged(t, file)
		command := exec.Command(self)
		command.Env = append(os.Environ(), "JOURNAL_TEST_WRITER="+dir, "JOURNAL_TEST_EPOCH=killed")
		out, err := command.StdoutPipe()
		must(t, err)
		must(t, command.Start())
		time.AfterFunc(time.Duration(round*6)*time.Millisecond, func() { _ = command.Process.Kill() })
		acknowledged, err := io.ReadAll(out)
		must(t, err)
		_ = command.Wait()
		j, report, err := Open(dir, Options{MaxBytes: MinBytes, Classify: func(*Record) {}})
		must(t, err)
		if report.Form == 1 {
			before++
		}
		got := all(t, j)
		if len(report.Damage) > 0 || len(got) < len(want.Records)+strings.Count(string(acknowledged), "\n") {
			t.Fatalf("round %d: %d records, %+v", round, len(got), report)
		}
		for i, r := range want.Records {
			same(t, got[i], r)
		}
		state, err := j.State()
		must(t, err)
		for key, value := range want.State {
			if !bytes.Equal(state[key], value) {
				t.Fatalf("round %d: the state has %.40q at %s", round, state[key], key)
			}
		}
		must(t, j.Close())
		if _, err := os.Stat(filepath.Join(dir, newName)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("%d of 25 were killed before it was carried over", before)
}

// TestTheFirstFormOnAFullDisk: it stays as it is, and its state can be read.
func TestTheFirstFormOnAFullDisk(t *testing.T) {
	file, want := firstFormFile(t)
	disk := mount(t, "size=700k,mode=0700")
	dir := filepath.Join(disk, "j")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, fileName)
	must(t, os.WriteFile(path, file, 0o600))
	if _, _, err := Open(dir, Options{MaxBytes: MinBytes}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Fatalf("carrying over on a full disk: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, file) {
		t.Fatalf("the file is another: %v", err)
	}
	j, _, err := Open(dir, Options{ReadOnly: true})
	must(t, err)
	state, err := j.State()
	must(t, err)
	if !maps.EqualFunc(state, want.State, bytes.Equal) {
		t.Errorf("%d entries of the state", len(state))
	}
	if _, err := j.Read(Key{}, 1); err == nil || !strings.Contains(err.Error(), "open it for writing") {
		t.Errorf("reading it: %v", err)
	}
	must(t, j.Close())
	must(t, unix.Mount("", disk, "", unix.MS_REMOUNT, "size=8m"))
	j, _, err = Open(dir, Options{MaxBytes: MinBytes, Classify: byLength})
	must(t, err)
	defer j.Close()
	want.mustHold(t, j)
}

// TestANewerFormIsRefused: with who wrote it and the way out, and nothing is touched.
func TestANewerFormIsRefused(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir, func(o *Options) { o.Writer = "capdrift v9.1.0" })
	must(t, j.Append(numbered("e", 1, 10)))
	must(t, j.db.Update(func(tx *bbolt.Tx) error {
		later := appendText(binary.AppendUvarint(nil, thisForm+1), "capdrift v9.1.0")
		later = append(later, "what nobody knows yet"...)
		return tx.Bucket(bucketAbout).Put(aboutKey, seal(bucketAbout, aboutKey, later))
	}))
	must(t, j.Close())
	path := filepath.Join(dir, fileName)
	before, err := os.ReadFile(path)
	must(t, err)
	for _, readOnly := range []bool{false, true} {
		_, _, err := Open(dir, Options{MaxBytes: MinBytes, ReadOnly: readOnly})
		if !errors.Is(err, ErrNewer) {
			t.Fatalf("%v", err)
		}
		for _, want := range []string{dir, `"capdrift v9.1.0" wrote it in form 3`, "up to 2", "start that release again", "move journal.db away"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: no %q in it", err, want)
			}
		}
	}
	after, err := os.ReadFile(path)
	must(t, err)
	entries, err := os.ReadDir(dir)
	must(t, err)
	if !bytes.Equal(before, after) || len(entries) != 2 {
		t.Errorf("%v are there, the file is the same: %v", entries, bytes.Equal(before, after))
	}
}

// TestDamageLeavesItsGap: records that damage took are told where they were, also where the
// caller's sequences have gaps of their own.
func TestDamageLeavesItsGap(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	var batch []Record
	for n := uint64(1); n <= 100; n++ {
		if n < 20 || n > 30 {
			batch = append(batch, owned(n, uint8(n/50), "a", 3000))
		}
	}
	must(t, j.Append(batch...))
	must(t, j.Close())
	path := filepath.Join(dir, fileName)
	file, err := os.ReadFile(path)
	must(t, err)
	at := bytes.Index(file, bytes.Repeat([]byte{70}, 3000))
	file[at] = 0
	must(t, os.WriteFile(path, file, 0o600))
	j, report := open(t, dir)
	got := all(t, j)
	var gaps []Gap
	for e, err := range j.All(Key{}) {
		must(t, err)
		if e.Gap != nil {
			gaps = append(gaps, *e.Gap)
		}
	}
	if report.Lost != 1 || len(got) != len(batch)-1 || !slices.Equal(gaps, []Gap{{70, 70, 1}}) {
		t.Errorf("%+v, %d records, gaps %v", report, len(got), gaps)
	}
}
