package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// owned is a record of somebody.
func owned(sequence uint64, rank uint8, owner string, size int) Record {
	return Record{
		BootID: "boot", Epoch: "e", Sequence: sequence, At: start.Add(time.Duration(sequence) * time.Millisecond),
		Kind: "finding_opened", Rank: rank, Owner: owner, Data: bytes.Repeat([]byte{byte(sequence)}, size),
	}
}

// unsynced opens a journal that does not wait for the disk.
func unsynced(t testing.TB, change ...func(*Options)) *Journal {
	j, _ := open(t, t.TempDir(), change...)
	j.db.NoSync = true
	return j
}

// TestAnHourOfChurn: one owner makes 1,000 records of the lowest rank a second in a journal of
// 64 MiB, for an hour. What was there before of a higher rank stays, and what others have within
// their share. Rate and journal are a sixteenth of that, unless JOURNAL_TEST_WHOLE is set: the
// journal is turned over as often.
func TestAnHourOfChurn(t *testing.T) {
	t.Parallel()
	const seconds, step = 3600, 30
	scale := 16
	if os.Getenv("JOURNAL_TEST_WHOLE") != "" {
		scale = 1
	}
	bytes, perStep := int64(64<<20/scale), 1000*step/scale
	for name, attackers := range map[string]int{"one": 1, "several": 7} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := unsynced(t, func(o *Options) { o.MaxBytes = bytes })
			critical := owned(1, 5, "victim", 600)
			high := owned(2, 4, "attacker 0", 600)
			must(t, j.Append(critical, high))
			want := []Record{critical, high}
			sequence, appended := uint64(2), 2
			for at := 0; at < seconds; at += step {
				batch := make([]Record, 0, perStep+1)
				for n := range perStep {
					sequence++
					batch = append(batch, owned(sequence, 1, fmt.Sprint("attacker ", n%attackers), typical))
				}
				if at%360 == 0 { // others have something to tell now and then
					sequence++
					quiet := owned(sequence, 1, fmt.Sprint("quiet ", at%5), 600)
					batch, want = append(batch, quiet), append(want, quiet)
				}
				appended += len(batch)
				for part := range slices.Chunk(batch, 5000) {
					must(t, j.Append(part...))
				}
				if _, size := j.Depth(); size > bytes {
					t.Fatalf("%d bytes", size)
				}
			}
			got := all(t, j) // which holds the gaps against what is missing
			if len(got)+int(j.Lost()) != appended || j.Lost() < uint64(appended)/2 {
				t.Errorf("%d records and %d lost of %d", len(got), j.Lost(), appended)
			}
			kept := map[string]int{}
			for _, r := range got {
				kept[r.Owner]++
				if len(want) > 0 && r.Key() == want[0].Key() {
					same(t, r, want[0])
					want = want[1:]
				}
			}
			if len(want) > 0 {
				t.Errorf("%d records of others are missing, the first is %v of %s", len(want), want[0].Key(), want[0].Owner)
			}
			if newest := got[len(got)-1]; newest.Sequence != sequence {
				t.Errorf("the newest record is %d of %d", newest.Sequence, sequence)
			}
			for n := range attackers {
				if a, first := kept[fmt.Sprint("attacker ", n)], kept["attacker 0"]; a < first*8/10 || a > first*12/10 {
					t.Errorf("attacker %d holds %d records, the first one %d", n, a, first)
				}
			}
		})
	}
}

// TestALowerRankNeverEvictsAHigherOne: a journal that is full of the highest rank takes
// nothing else.
func TestALowerRankNeverEvictsAHigherOne(t *testing.T) {
	j := unsynced(t)
	var sequence uint64
	for j.index.bytes()+20200 <= MinBytes {
		sequence++
		must(t, j.Append(owned(sequence, 5, fmt.Sprint(sequence%3), 20000)))
	}
	before, _ := j.Depth()
	if j.Lost() > 0 {
		t.Fatalf("%d lost", j.Lost())
	}
	for range 300 {
		sequence++
		must(t, j.Append(owned(sequence, uint8(sequence%5), "other", 20000)))
	}
	high := 0
	for _, r := range all(t, j) {
		if r.Rank == 5 {
			high++
		}
	}
	if high != before {
		t.Errorf("%d records of the highest rank are left of %d", high, before)
	}
}

// TestOneCommitEvictsLittle: whatever the journal holds, a small batch drops a bounded number.
func TestOneCommitEvictsLittle(t *testing.T) {
	j := unsynced(t)
	var sequence, most uint64
	for j.Lost() < 5*maxAhead {
		lost := j.Lost()
		batch := make([]Record, 50)
		for i := range batch {
			sequence++
			batch[i] = owned(sequence, uint8(sequence%2), fmt.Sprint(sequence%700), 1)
		}
		must(t, j.Append(batch...))
		most = max(most, j.Lost()-lost)
	}
	if most > maxAhead+uint64(50)*2 {
		t.Errorf("a batch of 50 evicted %d", most)
	}
}

func TestATooLargeRecordIsRefusedAlone(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	long := strings.Repeat("x", MaxName+1)
	batch := []Record{owned(1, 1, "a", 10), owned(2, 5, "b", 3<<20), owned(3, 1, "c", 10), owned(4, 1, long, 10), owned(5, 1, "d", 10)}
	batch[4].Kind = long
	must(t, j.Commit(Batch{Records: batch, Put: map[string][]byte{"open": []byte("x")}}))
	check := func(want string) {
		t.Helper()
		var told []string
		for e, err := range j.All(Key{}) {
			must(t, err)
			if e.Gap != nil {
				told = append(told, fmt.Sprintf("%d-%d:%d", e.Gap.From, e.Gap.To, e.Gap.Count))
				continue
			}
			told = append(told, fmt.Sprint(e.Sequence))
		}
		if got := strings.Join(told, " "); got != want || j.Refused() != 3 || j.Lost() != 0 {
			t.Errorf("%s, %d refused, %d lost; want %s", got, j.Refused(), j.Lost(), want)
		}
	}
	check("1 2-2:1 3 4-5:2")
	state, err := j.State()
	must(t, err)
	if len(state) != 1 || j.Epochs()[0].Refused != 3 {
		t.Errorf("state %q, epochs %+v", state, j.Epochs())
	}
	must(t, j.Close())
	var report Report
	if j, report = open(t, dir); len(report.Damage) > 0 {
		t.Fatalf("%+v", report)
	}
	must(t, j.Append(owned(6, 1, "a", 10)))
	check("1 2-2:1 3 4-5:2 6")
}

// TestReadingFromWithinAGap: whoever comes back is told what went after that, and nothing twice.
func TestReadingFromWithinAGap(t *testing.T) {
	j := unsynced(t)
	var batch []Record
	for n := uint64(1); n <= 20; n++ {
		r := owned(n, 1, "a", 10)
		if n%5 != 0 || n == 20 {
			r.Data = make([]byte, MaxRecord+1)
		}
		batch = append(batch, r) // 5, 10 and 15 are kept
	}
	must(t, j.Append(batch...))
	for after, want := range map[uint64]string{
		0: "1-4:4 5 6-9:4 10 11-14:4 15 16-20:5", 2: "3-4:2 5 6-9:4 10 11-14:4 15 16-20:5", 4: "5 6-9:4 10 11-14:4 15 16-20:5",
		5: "6-9:4 10 11-14:4 15 16-20:5", 15: "16-20:5", 18: "19-20:2", 20: "",
	} {
		var told []string
		for at := (Key{"boot", "e", after}); ; {
			page, err := j.Read(at, 1)
			must(t, err)
			if len(page) == 0 {
				break
			}
			at = page[0].Key()
			if gap := page[0].Gap; gap != nil {
				told = append(told, fmt.Sprintf("%d-%d:%d", gap.From, gap.To, gap.Count))
			} else {
				told = append(told, fmt.Sprint(at.Sequence))
			}
		}
		if got := strings.Join(told, " "); got != want {
			t.Errorf("after %d: %s, want %s", after, got, want)
		}
	}
}

// TestForgottenEpochs: what was lost of epochs that are not known any more is told before the
// oldest one that is.
func TestForgottenEpochs(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	var batch []Record
	for n := range maxEpochs + 100 {
		batch = append(batch, numbered(fmt.Sprint(n), 1, 1))
	}
	must(t, j.Append(batch...))
	must(t, j.Close())
	j, report := open(t, dir)
	page, err := j.Read(Key{}, 2)
	must(t, err)
	if len(report.Damage) > 0 || page[0].Gap == nil || *page[0].Gap != (Gap{Count: 100}) || page[1].Epoch != "100" || page[1].Gap != nil {
		t.Errorf("%+v %+v", report, page)
	}
	next, err := j.Read(page[0].Key(), 1)
	must(t, err)
	if next[0].Key() != page[1].Key() {
		t.Errorf("after the gap comes %v, want %v", next[0].Key(), page[1].Key())
	}
}

// model is the log as it must be: without a file, an index or a bound on the work.
type model struct {
	kept, lost, refused, written int
}

// FuzzEvict: random ranks, owners and sizes hold to the invariants.
func FuzzEvict(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed, uint8(seed), uint8(1+seed*3))
	}
	f.Fuzz(func(t *testing.T, seed uint64, ranks, owners uint8) {
		evictAtRandom(t, seed, int(ranks%6)+1, int(owners%40)+1)
	})
}

func evictAtRandom(t *testing.T, seed uint64, ranks, owners int) {
	random := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	j, _ := open(t, dir)
	j.db.NoSync = true
	var m model
	before := map[Key]Record{}
	epoch, sequence := 0, uint64(0)
	for range 25 {
		var batch []Record
		for size := 0; size < MinBytes/4 && len(batch) < 400; {
			if random.IntN(100) == 0 {
				epoch, sequence = epoch+1, 0
			}
			sequence += 1 + uint64(random.IntN(2)) // gaps are the caller's, too
			length := 1 << random.IntN(17)
			if random.IntN(50) == 0 {
				length = MaxRecord + 1
				m.refused++
			} else {
				size += length
			}
			r := owned(sequence, uint8(random.IntN(ranks)), fmt.Sprint(random.IntN(owners)*random.IntN(2)), length)
			r.Epoch = fmt.Sprint(epoch)
			batch = append(batch, r)
		}
		m.written += len(batch)
		must(t, j.Commit(Batch{Records: batch, Put: map[string][]byte{fmt.Sprint(random.IntN(9)): batch[0].Data[:min(len(batch[0].Data), 5000)]}}))

		for _, r := range batch {
			if !r.tooLarge() {
				before[r.Key()] = r
			}
		}
		got := all(t, j)
		after := map[Key]Record{}
		for _, r := range got {
			same(t, r, before[r.Key()])
			after[r.Key()] = r
		}
		evicted := checkEvicted(t, before, after)
		m.lost += evicted
		m.kept = len(after)
		before = after
		if m.kept+m.lost+m.refused != m.written || int(j.Lost()) != m.lost || int(j.Refused()) != m.refused {
			t.Fatalf("%+v, the journal has %d lost and %d refused", m, j.Lost(), j.Refused())
		}
		if j.index.bytes() > MinBytes {
			t.Fatalf("%d bytes", j.index.bytes())
		}
		fresh := holders{}
		for _, r := range got {
			key := recordKey(classOf(r.Rank, r.Owner), place{})
			fresh.add(classOf(r.Rank, r.Owner), recordSize(key, seal(bucketRecords, key, encodeRecord(r))))
		}
		if fmt.Sprint(fresh) != fmt.Sprint(j.holders) {
			t.Fatalf("who holds how much: %v, want %v", j.holders, fresh)
		}
		if random.IntN(10) == 0 {
			must(t, j.Close())
			var report Report
			if j, report = open(t, dir); len(report.Damage) > 0 || report.Records != m.kept {
				t.Fatalf("%+v", report)
			}
			j.db.NoSync = true
		}
	}
}

// checkEvicted returns how many records went, and fails when a rank above the lowest that is
// left lost one, when something older of the same class stayed, or when it went of an owner
// who held less than a small part below who holds most now.
func checkEvicted(t *testing.T, before, after map[Key]Record) (evicted int) {
	t.Helper()
	type who struct {
		rank  uint8
		owner string
	}
	lowest := uint8(255)
	held, oldest := map[who]int{}, map[who]Record{}
	for _, r := range before {
		held[who{r.Rank, r.Owner}] += int(r.weight())
	}
	left := map[who]int{}
	for _, r := range after {
		lowest = min(lowest, r.Rank)
		w := who{r.Rank, r.Owner}
		left[w] += int(r.weight())
		if old, ok := oldest[w]; !ok || inLog(r, old) < 0 {
			oldest[w] = r
		}
	}
	touched, most := map[who]bool{}, map[uint8]int{}
	for key, r := range before {
		if _, ok := after[key]; ok {
			continue
		}
		evicted++
		w := who{r.Rank, r.Owner}
		touched[w] = true
		if r.Rank > lowest {
			t.Fatalf("%v of rank %d is gone, and one of rank %d is left", key, r.Rank, lowest)
		}
		if old, ok := oldest[w]; ok && inLog(r, old) > 0 {
			t.Fatalf("%v is gone, and the older %v of the same owner is left", key, old.Key())
		}
	}
	for w, size := range left {
		most[w.rank] = max(most[w.rank], size)
	}
	for w := range touched {
		if held[w] < most[w.rank]*9/10-2<<16 {
			t.Fatalf("owner %q held %d and lost some; another one of rank %d still holds %d", w.owner, held[w], w.rank, most[w.rank])
		}
	}
	return evicted
}

// inLog compares the places of two records whose epochs are numbers.
func inLog(a, b Record) int {
	return cmp.Or(cmp.Compare(len(a.Epoch), len(b.Epoch)), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Sequence, b.Sequence))
}

// TestTheSameAgainAfterItWasEvicted: what reached the disk and was evicted at once is not
// taken for new.
func TestTheSameAgainAfterItWasEvicted(t *testing.T) {
	j := unsynced(t)
	var sequence uint64
	for j.Lost() == 0 {
		sequence++
		must(t, j.Append(owned(sequence, 5, "a", 20000)))
	}
	batch := []Record{owned(sequence+1, 0, "b", 100000), owned(sequence+2, 5, "b", 100), owned(sequence+3, 0, "b", 500000)}
	must(t, j.Append(batch...))
	lost := j.Lost()
	j.doubt = true
	must(t, j.Append(batch...))
	if j.Lost() != lost {
		t.Errorf("%d lost, %d before", j.Lost(), lost)
	}
	j.doubt = true
	batch[1].Data = []byte("other")
	if err := j.Append(batch...); !errors.Is(err, ErrOrder) {
		t.Errorf("other records in their place: %v", err)
	}
}
