package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain is also the process that TestKilled kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("JOURNAL_TEST_WRITER"); dir != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(dir, os.Getenv("JOURNAL_TEST_EPOCH")))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// writeUntilKilled appends until it is killed and tells each sequence that was acknowledged.
// The state holds the last one, and one finding that is open at odd sequences.
func writeUntilKilled(dir, epoch string) error {
	j, report, err := Open(dir, Options{MaxBytes: MinBytes})
	if err != nil {
		return err
	}
	if len(report.Damage) > 0 {
		return fmt.Errorf("%+v", report)
	}
	for sequence := uint64(1); ; {
		first := sequence
		b := Batch{Put: map[string][]byte{}}
		for range 1 + first%5 {
			b.Records = append(b.Records, numbered(epoch, sequence, int(sequence%50)*400))
			sequence++
		}
		last := fmt.Sprintf("%s/%d", epoch, sequence-1)
		b.Put["last"] = []byte(last)
		if sequence%2 == 0 {
			b.Put["open"] = []byte(last)
		} else {
			b.Delete = []string{"open"}
		}
		if err := j.Commit(b); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, sequence-1); err != nil {
			return err
		}
	}
}

func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	must(t, err)
	acknowledged := map[string]uint64{}
	var total uint64
	for round := range 100 {
		epoch := fmt.Sprintf("e%d", round)
		command := exec.Command(self)
		command.Env = append(os.Environ(), "JOURNAL_TEST_WRITER="+dir, "JOURNAL_TEST_EPOCH="+epoch)
		out, err := command.StdoutPipe()
		must(t, err)
		var complaint bytes.Buffer
		command.Stderr = &complaint
		must(t, command.Start())
		// At any point of its start, or of a commit after some others.
		kill := func(within time.Duration) {
			time.AfterFunc(rand.N(within), func() { _ = command.Process.Kill() })
		}
		commits := rand.IntN(15)
		if commits == 0 {
			kill(30 * time.Millisecond)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); commits-- {
			if acknowledged[epoch], err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatal(err) // a line is written whole
			}
			if commits == 1 {
				kill(5 * time.Millisecond)
			}
		}
		_ = command.Wait()
		if complaint.Len() > 0 {
			t.Fatalf("round %d: %s", round, &complaint)
		}
		total += acknowledged[epoch]

		j, report := open(t, dir)
		if len(report.Damage) > 0 {
			t.Fatalf("round %d: %+v", round, report)
		}
		epochs := j.Epochs()
		for n, e := range epochs {
			if e.Last < acknowledged[e.Epoch] || e.Records+int(e.Lost) != int(e.Last) {
				t.Fatalf("round %d: %+v, acknowledged were %d", round, e, acknowledged[e.Epoch])
			}
			if n > 0 && e.Epoch < epochs[n-1].Epoch && len(e.Epoch) == len(epochs[n-1].Epoch) {
				t.Fatalf("round %d: epoch %s after %s", round, e.Epoch, epochs[n-1].Epoch)
			}
		}
		if acknowledged[epoch] > 0 && epochs[len(epochs)-1].Epoch != epoch {
			t.Fatalf("round %d: the newest epoch is %s", round, epochs[len(epochs)-1].Epoch)
		}
		if round%10 == 9 || round < 3 {
			checkKilled(t, j)
		}
		must(t, j.Close())
	}
	t.Logf("%d records acknowledged", total)
}

func checkKilled(t *testing.T, j *Journal) {
	t.Helper()
	var last Record
	for _, r := range all(t, j) {
		want := numbered(r.Epoch, r.Sequence, int(r.Sequence%50)*400)
		same(t, r, want)
		if r.Epoch == last.Epoch && r.Sequence != last.Sequence+1 {
			t.Fatalf("%v after %v", r.Key(), last.Key())
		}
		last = r
	}
	state, err := j.State()
	must(t, err)
	name := fmt.Sprintf("%s/%d", last.Epoch, last.Sequence)
	if last.Epoch != "" && (string(state["last"]) != name || (last.Sequence%2 == 1) != (string(state["open"]) == name)) {
		t.Fatalf("the log ends at %s, the state is %q", name, state)
	}
}

// sample is a journal's file with records of several sizes, some space that is free
// and some state; want are its records.
func sample(t testing.TB) (file []byte, want []Record) {
	t.Helper()
	dir := t.TempDir()
	j, _ := open(t, dir)
	for n := range uint64(60) {
		var batch []Record
		for k := range uint64(10) {
			epoch := fmt.Sprint("e", n/20)
			batch = append(batch, numbered(epoch, n*10+k+1, int(1+k*k*k/2)))
		}
		want = append(want, batch...)
		must(t, j.Commit(Batch{Records: batch, Put: map[string][]byte{fmt.Sprint("f", n%30): fmt.Append(nil, "finding", n)}}))
	}
	must(t, j.Close())
	file, err := os.ReadFile(filepath.Join(dir, fileName))
	must(t, err)
	return file, want
}

// examine opens a directory whose file was damaged: whatever comes back must be true,
// in order, and what does not must be said. It returns the records that came back.
func examine(t *testing.T, dir string, want []Record) (int, Report) {
	t.Helper()
	before, err := os.ReadFile(filepath.Join(dir, fileName))
	must(t, err)
	j, report, err := Open(dir, Options{MaxBytes: MinBytes})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if report.New {
		t.Fatal("it says that the journal is new")
	}
	got := all(t, j)
	at := 0
	for _, r := range got {
		for at < len(want) && want[at].Key() != r.Key() {
			at++
		}
		if at == len(want) {
			t.Fatalf("%v is doubled, out of order or invented", r.Key())
		}
		same(t, r, want[at])
		at++
	}
	missing := len(want) - len(got)
	if missing > 0 && int(report.Lost) != missing && !report.Uncounted {
		t.Fatalf("%d records are missing, the report: %+v", missing, report)
	}
	state, err := j.State()
	must(t, err)
	for key, value := range state {
		n, _ := strconv.Atoi(key[1:])
		if s := string(value); s != fmt.Sprint("finding", n+30) && s != fmt.Sprint("finding", n) {
			t.Fatalf("state %s is %q", key, value)
		}
	}
	if len(state) != 30 && report.LostState == 0 && !report.Uncounted {
		t.Fatalf("%d entries of the state, the report: %+v", len(state), report)
	}
	if (len(report.Damage) > 0) != (report.SetAside != "") {
		t.Fatalf("report: %+v", report)
	}
	if report.SetAside != "" {
		aside, err := os.ReadFile(report.SetAside)
		must(t, err)
		if !bytes.Equal(aside, before) {
			t.Fatal("the file that was set aside is another")
		}
	}
	must(t, j.Commit(Batch{Records: []Record{numbered("after", 1, 5000)}, Put: map[string][]byte{"f1": []byte("x")}}))
	must(t, j.Close())
	_, again := open(t, dir)
	if len(again.Damage) > 0 || again.Records != len(got)+1 {
		t.Fatalf("opened again: %+v", again)
	}
	return len(got), report
}

func damaged(t *testing.T, file []byte) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, fileName), file, 0o600))
	return dir
}

func TestFlippedBytes(t *testing.T) {
	t.Parallel()
	file, want := sample(t)
	random := rand.New(rand.NewPCG(7, uint64(time.Now().UnixNano())))
	used := len(bytes.TrimRight(file, "\x00"))
	said, kept := 0, 0
	const rounds = 80
	for range rounds {
		changed := bytes.Clone(file)
		for range 1 + random.IntN(3) {
			offset := random.IntN(used)
			if random.IntN(4) == 0 { // where the structure is
				offset = random.IntN(used/pageSize)*pageSize + random.IntN(64)
			}
			changed[offset] ^= 1 << random.IntN(8)
		}
		n, report := examine(t, damaged(t, changed), want)
		kept += n
		if report.SetAside != "" {
			said++
		}
	}
	t.Logf("%d of %d recognised (the others hit what is not used), %.1f %% of the records carried over",
		said, rounds, float64(kept)*100/float64(rounds*len(want)))
	if said < rounds/10 || kept < rounds*len(want)/2 {
		t.Error("too few")
	}
}

func TestTruncated(t *testing.T) {
	file, want := sample(t)
	used := len(bytes.TrimRight(file, "\x00"))
	for _, size := range []int{0, 1, 100, pageSize, 2 * pageSize, 3*pageSize + 5, used / 2, used * 3 / 4, used - pageSize, used - 1, len(file) - pageSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			kept, report := examine(t, damaged(t, file[:size]), want)
			t.Logf("%d of %d records: %q", kept, len(want), report.Damage)
			if size < used-pageSize && len(report.Damage) == 0 {
				t.Error("it was not noticed")
			}
			if size == len(file)-pageSize && size > used && kept != len(want) {
				t.Error("nothing was missing")
			}
		})
	}
}

func TestDamagedPages(t *testing.T) {
	file, want := sample(t)
	for name, change := range map[string]func([]byte){
		"zeros in a page":           func(b []byte) { clear(b[9*pageSize : 10*pageSize]) },
		"the first header":          func(b []byte) { clear(b[:pageSize]) },
		"the second header":         func(b []byte) { clear(b[pageSize : 2*pageSize]) },
		"both headers":              func(b []byte) { clear(b[:2*pageSize]) },
		"a page in another's place": func(b []byte) { copy(b[9*pageSize:10*pageSize], b[11*pageSize:]) },
		"another file":              func(b []byte) { copy(b, bytes.Repeat([]byte("no journal "), len(b)/11)) },
	} {
		t.Run(name, func(t *testing.T) {
			changed := bytes.Clone(file)
			change(changed)
			kept, report := examine(t, damaged(t, changed), want)
			t.Logf("%d of %d records: %q", kept, len(want), report.Damage)
			if len(report.Damage) == 0 {
				t.Error("it was not noticed")
			}
		})
	}
}

func TestDamagedFilesDoNotPileUp(t *testing.T) {
	dir := t.TempDir()
	removed := 0
	for n := range keepAside + 3 {
		must(t, os.WriteFile(filepath.Join(dir, fileName), []byte("nothing"), 0o600))
		j, report, err := Open(dir, Options{MaxBytes: MinBytes, Now: func() time.Time { return start.Add(time.Duration(n/2) * time.Second) }})
		must(t, err)
		must(t, j.Close())
		removed += len(report.Removed)
	}
	files, err := filepath.Glob(filepath.Join(dir, asideName+"*"))
	must(t, err)
	if len(files) != keepAside || removed != 3 {
		t.Errorf("%q are kept, %d were removed", files, removed)
	}
}

func TestDamageIsNotMendedByAReader(t *testing.T) {
	file, _ := sample(t)
	clear(file[9*pageSize : 10*pageSize])
	dir := damaged(t, file)
	_, _, err := Open(dir, Options{ReadOnly: true})
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "open it for writing") {
		t.Errorf("%v", err)
	}
}

// The file is cut under an open journal: its mapping faults.
func TestDamagedWhileOpen(t *testing.T) {
	file, want := sample(t)
	dir := damaged(t, file)
	j, _ := open(t, dir)
	must(t, os.Truncate(filepath.Join(dir, fileName), 3*pageSize))
	var err error
	for _, err = range j.All(Key{}) {
		if err != nil {
			break
		}
	}
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "open the journal again") {
		t.Fatalf("reading: %v", err)
	}
	if err := j.Append(numbered("new", 1, 1)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("appending: %v", err)
	}
	must(t, j.Close())
	kept, report := examine(t, dir, want)
	if len(report.Damage) == 0 {
		t.Errorf("%d kept, %+v", kept, report)
	}
}

// mount mounts a small file system for the test.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("capdrift-test", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("cannot mount a tmpfs: %v; run the tests as root", err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestDiskFull(t *testing.T) {
	disk := mount(t, "size=3m,mode=0700")
	dir := filepath.Join(disk, "j")
	j, _ := open(t, dir)
	filler := filepath.Join(disk, "filler")
	var sequence uint64
	for round := range 3 {
		var err error
		for range 100000 {
			r := numbered("e", sequence+1, 3000)
			if err = j.Commit(Batch{Records: []Record{r}, Put: map[string][]byte{"last": r.Data}}); err != nil {
				break
			}
			sequence++
			if round == 0 && sequence == 100 { // now the disk fills up by another's doing
				file, err := os.Create(filler)
				must(t, err)
				_, err = io.Copy(file, io.LimitReader(zeros{}, 1<<30))
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				must(t, file.Close())
			}
		}
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
			t.Fatalf("round %d, %d records: %v", round, sequence, err)
		}
		check := func(j *Journal) {
			t.Helper()
			got := all(t, j)
			if len(got) != int(sequence) {
				t.Fatalf("%d records, %d were acknowledged", len(got), sequence)
			}
			same(t, got[sequence-1], numbered("e", sequence, 3000))
			state, err := j.State()
			must(t, err)
			if !bytes.Equal(state["last"], got[sequence-1].Data) {
				t.Fatalf("state %.30q", state["last"])
			}
		}
		check(j)
		if round == 1 { // it is opened on the full disk
			must(t, j.Close())
			j, _ = open(t, dir)
			check(j)
		}
		if info, err := os.Stat(filler); err == nil && info.Size() > 0 { // there is room again
			must(t, os.Truncate(filler, info.Size()/2))
		}
		r := numbered("e", sequence+1, 3000)
		must(t, j.Commit(Batch{Records: []Record{r}, Put: map[string][]byte{"last": r.Data}}))
		sequence++
		check(j)
	}
	must(t, j.Close())
	// A new one on a full disk says so, and leaves nothing behind.
	other := filepath.Join(mount(t, "size=4k,mode=0700"), "j")
	if _, _, err := Open(other, Options{MaxBytes: MinBytes}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("a new one on a full disk: %v", err)
	}
}

func TestDamagedOnAFullDisk(t *testing.T) {
	file, want := sample(t)
	clear(file[9*pageSize : 10*pageSize])
	disk := mount(t, "size=320k,mode=0700")
	dir := filepath.Join(disk, "j")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, fileName)
	must(t, os.WriteFile(path, file, 0o600))
	for range 2 {
		if _, _, err := Open(dir, Options{MaxBytes: MinBytes}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
			t.Fatal(err)
		}
	}
	after, err := os.ReadFile(path)
	must(t, err)
	entries, err := os.ReadDir(dir)
	must(t, err)
	if !bytes.Equal(after, file) || len(entries) != 2 {
		t.Fatalf("%v are left", entries)
	}
	must(t, unix.Mount("", disk, "", unix.MS_REMOUNT, "size=8m"))
	if kept, _ := examine(t, dir, want); kept != len(want)-20 {
		t.Errorf("%d records", kept)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestReadOnlyDisk(t *testing.T) {
	disk := mount(t, "size=8m,mode=0700")
	dir := filepath.Join(disk, "j")
	j, _ := open(t, dir)
	must(t, j.Append(numbered("e", 1, 1)))
	must(t, j.Close())
	must(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for _, dir := range []string{dir, filepath.Join(disk, "new")} {
		if _, _, err := Open(dir, Options{MaxBytes: MinBytes}); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "mount it writable") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	j, _ = open(t, dir, func(o *Options) { o.ReadOnly = true })
	if len(all(t, j)) != 1 {
		t.Error("a read-only journal gives nothing")
	}
}

// A commit whose acknowledgment failed may have reached the disk: the same again is
// not doubled.
func TestTheSameAgainAfterAnError(t *testing.T) {
	j, _ := open(t, t.TempDir())
	batch := Batch{Records: []Record{numbered("e", 1, 10), numbered("e", 2, 10)}, Put: map[string][]byte{"a": []byte("1")}}
	must(t, j.Commit(batch))
	j.doubt = true
	must(t, j.Commit(batch))
	if got := all(t, j); len(got) != 2 {
		t.Fatalf("%d records", len(got))
	}
	j.doubt = true
	other := numbered("e", 2, 11)
	if err := j.Append(other); !errors.Is(err, ErrOrder) {
		t.Fatalf("another record in its place: %v", err)
	}
}

// What is in the file stays true whatever bytes are in it, and nothing crashes.
func FuzzOpen(f *testing.F) {
	file, want := sample(f)
	used := len(bytes.TrimRight(file, "\x00"))
	f.Add([]byte(nil), uint32(0), uint16(0), uint8(0))
	f.Add([]byte("no journal at all"), uint32(0), uint16(0), uint8(0))
	for n := range used / pageSize { // heads of all pages
		at := []int{0, 8, 10, 12, 16, 20, 24, 28}[n%8]
		f.Add([]byte(nil), uint32(n*pageSize+at), []uint16{1, 0xFFFF}[n%2], uint8(0))
	}
	byKey := map[Key]Record{}
	for _, r := range want {
		byKey[r.Key()] = r
	}
	f.Fuzz(func(t *testing.T, raw []byte, offset uint32, change uint16, swap uint8) {
		content := raw
		if len(raw) < pageSize { // a change of a sound file
			content = bytes.Clone(file[:used])
			copy(content[min(int(offset), used):], raw)
			if at := int(offset) % (used - 1); change != 0 {
				content[at] ^= byte(change)
				content[at+1] ^= byte(change >> 8)
			}
			if n := int(swap) % (used / pageSize); n > 0 {
				to := int(offset) / pageSize % (used / pageSize) * pageSize
				copy(content[to:to+pageSize], file[n*pageSize:])
			}
		}
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, fileName), content, 0o600))
		j, _, err := Open(dir, Options{MaxBytes: MinBytes})
		if err != nil {
			if errors.Is(err, ErrNewer) {
				return
			}
			t.Fatal(err)
		}
		defer j.Close()
		for _, r := range all(t, j) {
			if len(raw) < pageSize {
				same(t, r, byKey[r.Key()])
			}
		}
		records, _ := j.Depth()
		must(t, j.Commit(Batch{Records: []Record{numbered("fuzz", 1, 9000), numbered("fuzz", 2, 9)}, Put: map[string][]byte{"f7": []byte("x"), "new": nil}, Delete: []string{"f3"}}))
		must(t, j.Close())
		j, report, err := Open(dir, Options{MaxBytes: MinBytes})
		must(t, err)
		defer j.Close()
		if len(report.Damage) > 0 || report.Records != records+2 {
			t.Fatalf("opened again with %d records and two more: %+v", records, report)
		}
	})
}
