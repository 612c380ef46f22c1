package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

// recording is one run of an agent as its recorder sees it.
type recording struct {
	*recorder
	t        *testing.T
	dir      string
	at       agent.Position
	clock    time.Time
	openings int
	trouble  error    // of opening it for writing
	blind    error    // of opening it at all
	ids      []string // that are open
	message  string   // of all findings
}

func newRecording(t *testing.T, dir, boot, epoch string) *recording {
	r := &recording{t: t, dir: dir, at: agent.Position{BootID: boot, Epoch: epoch}, clock: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	r.recorder = &recorder{now: func() time.Time { return r.clock }, open: func(readOnly bool) (*journal.Journal, error) {
		r.openings++
		if r.blind != nil || r.trouble != nil && !readOnly {
			return nil, errors.Join(r.blind, r.trouble)
		}
		opened, _, err := journal.Open(dir, journal.Options{MaxBytes: journal.MinBytes, ReadOnly: readOnly})
		return opened, err
	}}
	t.Cleanup(func() { r.Close() })
	return r
}

// opens and resolves are what the loop would record.
func (r *recording) opens(id string) error {
	r.ids = append(r.ids, id)
	return r.tell(agent.FindingOpened, id)
}

func (r *recording) resolves(id string) error {
	r.ids = slices.DeleteFunc(r.ids, func(other string) bool { return other == id })
	return r.tell(agent.FindingResolved, id)
}

func (r *recording) tell(kind agent.ChangeKind, id string) error {
	r.at.Sequence++
	open := make([]drift.Finding, 0, len(r.ids))
	for _, id := range r.ids {
		open = append(open, r.found(id))
	}
	return r.Record([]agent.Change{{Position: r.at, At: r.clock, Kind: kind, Finding: new(r.found(id))}}, open)
}

func (r *recording) found(id string) drift.Finding {
	return drift.Finding{ID: id, Kind: drift.BoundingExcess, Severity: drift.Critical, Message: r.message}
}

// must fails the test unless the errors are as wanted.
func (r *recording) must(want error, got ...error) {
	r.t.Helper()
	for i, err := range got {
		if !errors.Is(err, want) {
			r.t.Fatalf("step %d: %v, want %v", i, err, want)
		}
	}
}

// written is what the journal holds once the run has ended: its log, and its state.
func (r *recording) written() (log []string, before former) {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatal(err)
	}
	j, _, err := journal.Open(r.dir, journal.Options{ReadOnly: true})
	if err != nil {
		r.t.Fatal(err)
	}
	defer j.Close()
	for record, err := range j.All(journal.Key{}) {
		if err != nil {
			r.t.Fatal(err)
		}
		var told entry
		if err := json.Unmarshal(record.Data, &told); err != nil {
			r.t.Fatal(err)
		}
		log = append(log, strings.TrimSpace(fmt.Sprintf("%s %d %s %s", record.Epoch, record.Sequence, record.Kind, told.Resolved)))
	}
	state, err := j.State()
	if err != nil {
		r.t.Fatal(err)
	}
	return log, formerOf(state)
}

func (r *recording) mustHold(boot string, ids []string, log ...string) {
	r.t.Helper()
	told, before := r.written()
	var got []string
	for _, finding := range before.open {
		got = append(got, finding.ID)
	}
	if !slices.Equal(got, ids) || before.bootID != boot || len(before.unreadable) > 0 {
		r.t.Errorf("open are %q of boot %q (%v), want %q of %q", got, before.bootID, before.unreadable, ids, boot)
	}
	if !slices.Equal(told, log) {
		r.t.Errorf("the log is\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(log, "\n"))
	}
}

// TestRecorderCatchesUp: what opened and what ended while the journal could not be written
// is right in it as soon as it can, and it is not tried more often than is good for the disk.
func TestRecorderCatchesUp(t *testing.T) {
	r := newRecording(t, t.TempDir(), "boot", "one")
	_, err := r.begin()
	r.must(nil, err, r.opens("a"), r.opens("b"))
	if err := r.journal.Close(); err != nil { // as good as any other failure
		t.Fatal(err)
	}
	r.trouble = syscall.ENOSPC
	r.must(journal.ErrClosed, r.resolves("a"), r.opens("c"))
	if r.openings != 1 {
		t.Errorf("opened %d times", r.openings)
	}
	r.clock = r.clock.Add(journalAgain)
	r.must(syscall.ENOSPC, r.opens("d"), r.resolves("b"))
	r.trouble = nil
	r.must(syscall.ENOSPC, r.opens("e"))
	if records, _ := r.Depth(); records != 2 || r.openings != 2 {
		t.Errorf("%d records after it was opened %d times", records, r.openings)
	}
	r.clock = r.clock.Add(journalAgain)
	r.must(nil, r.resolves("c"), r.opens("f"))
	r.mustHold("boot", []string{"d", "e", "f"}, "one 1 finding_opened", "one 2 finding_opened", "one 8 finding_resolved", "one 9 finding_opened")
}

// TestRecorderReadOnly: from a journal that cannot be written when the agent starts, it
// still knows what was open.
func TestRecorderReadOnly(t *testing.T) {
	first := newRecording(t, t.TempDir(), "boot", "one")
	_, err := first.begin()
	first.must(nil, err, first.opens("a"), first.opens("b"), first.Close())

	r := newRecording(t, first.dir, "boot", "two")
	r.trouble = syscall.EROFS
	before, err := r.begin()
	r.must(syscall.EROFS, err)
	if len(before.open) != 2 || before.bootID != "boot" {
		t.Fatalf("%+v", before)
	}
	r.ids = []string{"a", "b"}
	r.must(syscall.EROFS, r.resolves("a"))
	r.trouble = nil
	r.clock = r.clock.Add(journalAgain)
	r.must(nil, r.opens("c"))
	r.mustHold("boot", []string{"b", "c"}, "one 1 finding_opened", "one 2 finding_opened", "two 2 finding_opened")
}

// TestRecorderUnread: what was open in a journal that is seen only later is taken over by
// the next run, unless the node booted since.
func TestRecorderUnread(t *testing.T) {
	for boot, row := range map[string]struct{ open, log []string }{
		"boot": {[]string{"a", "b", "c"}, nil},
		"next": {[]string{"b", "c"}, []string{"one 3 finding_resolved boot", "one 4 finding_resolved boot"}},
	} {
		t.Run(boot, func(t *testing.T) {
			first := newRecording(t, t.TempDir(), "boot", "one")
			_, err := first.begin()
			first.must(nil, err, first.opens("a"), first.opens("b"), first.Close())

			r := newRecording(t, first.dir, boot, "two")
			r.blind = syscall.ENOENT
			before, err := r.begin()
			r.must(syscall.ENOENT, err, r.opens("b"))
			if before.open != nil {
				t.Fatalf("%+v", before)
			}
			r.blind = nil
			r.clock = r.clock.Add(journalAgain)
			r.must(nil, r.opens("c"))
			log := slices.Concat([]string{"one 1 finding_opened", "one 2 finding_opened"}, row.log, []string{"two 2 finding_opened"})
			r.mustHold(boot, row.open, log...)
		})
	}
}

// TestRecorderTooBig: more open findings than the state takes do not silence the log.
func TestRecorderTooBig(t *testing.T) {
	r := newRecording(t, t.TempDir(), "boot", "one")
	_, err := r.begin()
	r.must(nil, err)
	r.message = strings.Repeat("x", 20000)
	var want []string
	for n := 1; err == nil; n++ {
		err = r.opens(fmt.Sprint(n))
		want = append(want, fmt.Sprintf("one %d finding_opened", n))
	}
	r.must(journal.ErrTooBig, err, r.opens("one more"))
	r.ids = []string{"a"}
	r.must(nil, r.opens("b"))
	n := len(want)
	r.mustHold("boot", []string{"a", "b"}, append(want, fmt.Sprintf("one %d finding_opened", n+1), fmt.Sprintf("one %d finding_opened", n+2))...)
}
