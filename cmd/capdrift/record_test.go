package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
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

// found is a finding; that of "info/…" is harmless, and what is before a slash is its owner.
func (r *recording) found(id string) drift.Finding {
	owner, _, _ := strings.Cut(id, "/")
	severity := drift.Critical
	if owner == "info" {
		severity = drift.Info
	}
	return drift.Finding{ID: id, Kind: drift.BoundingExcess, Severity: severity, ContainerID: owner, Message: r.message}
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
		if record.Gap != nil {
			log = append(log, fmt.Sprintf("%s %d-%d lost", record.Epoch, record.Gap.From, record.Gap.To))
			continue
		}
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

// TestRecorderTooBig: more open findings than the state takes do not silence the log, and the
// worst of them are remembered, some of each pod.
func TestRecorderTooBig(t *testing.T) {
	r := newRecording(t, t.TempDir(), "boot", "one")
	_, err := r.begin()
	r.must(nil, err)
	r.message = strings.Repeat("x", 15000)
	r.must(nil, r.opens("zz"), r.opens("other/zz"))
	want := []string{"one 1 finding_opened", "one 2 finding_opened"}
	for err == nil {
		want = append(want, fmt.Sprintf("one %d finding_opened", len(want)+1))
		err = r.opens(fmt.Sprintf("info/%d", len(want)))
	}
	said := fmt.Sprintf("1 of %d findings", len(r.ids))
	r.must(journal.ErrTooBig, err, r.opens("info/more"))
	if !strings.Contains(err.Error(), said) || !strings.Contains(err.Error(), "journal.maxBytes") {
		t.Errorf("%v", err)
	}
	r.must(journal.ErrTooBig, r.opens("other/late"), r.opens("worst"))
	if r.openings != 1 {
		t.Errorf("it was opened %d times", r.openings)
	}
	r.clock = r.clock.Add(journalAgain)
	r.must(journal.ErrTooBig, r.resolves("info/5"))
	state, err := r.journal.State()
	r.must(nil, err)
	for _, id := range []string{"worst", "zz", "other/zz", "other/late"} {
		if state[stateFinding+id] == nil {
			t.Errorf("%s is not remembered, of %d", id, len(state))
		}
	}
	r.ids = []string{"a"}
	r.clock = r.clock.Add(journalAgain)
	r.must(nil, r.opens("b"))
	for n := len(want) + 1; n <= int(r.at.Sequence); n++ {
		want = append(want, fmt.Sprintf("one %d finding_opened", n))
	}
	want[len(want)-2] = strings.Replace(want[len(want)-2], "opened", "resolved", 1)
	r.mustHold("boot", []string{"a", "b"}, want...)
}

// TestRecorderCharges: each record has the rank and the owner that it is evicted by.
func TestRecorderCharges(t *testing.T) {
	pod := &drift.Pod{Namespace: "n", Name: "p", UID: "uid"}
	for what, row := range map[string]struct {
		change agent.Change
		rank   drift.Severity
		owner  string
	}{
		"a finding is its pod's":               {agent.Change{Finding: &drift.Finding{Severity: drift.Critical, Pod: pod, ContainerID: "c"}}, drift.Critical, "uid"},
		"without a pod it is its container's":  {agent.Change{Finding: &drift.Finding{Severity: drift.Low, ContainerID: "c"}}, drift.Low, "c"},
		"a pod without a uid is no owner":      {agent.Change{Finding: &drift.Finding{Severity: drift.High, Pod: &drift.Pod{Name: "p"}, ContainerID: "c"}}, drift.High, "c"},
		"a finding of a handler is the node's": {agent.Change{Finding: &drift.Finding{Severity: drift.Medium, RuntimeHandler: "runc"}}, drift.Medium, ""},
		"a container is its pod's":             {agent.Change{Container: &drift.Container{ID: "c", Pod: pod}}, drift.Info, "uid"},
		"or its own":                           {agent.Change{Container: &drift.Container{ID: "c"}}, drift.Info, "c"},
		"a component is the node's":            {agent.Change{Component: &agent.Component{Name: "proc"}}, drift.Info, ""},
		"the coverage is the node's":           {agent.Change{Coverage: &drift.Coverage{}}, drift.Info, ""},
	} {
		record, err := recordOf(row.change)
		if err != nil || record.Rank != uint8(row.rank) || record.Owner != row.owner {
			t.Errorf("%s: rank %d, owner %q, %v", what, record.Rank, record.Owner, err)
		}
		again := journal.Record{Data: record.Data}
		if classify(&again); again.Rank != record.Rank || again.Owner != record.Owner {
			t.Errorf("%s: classified as rank %d, owner %q", what, again.Rank, again.Owner)
		}
	}
}

// TestRecorderHostileLists: what a pod's author wrote is clipped, and takes nothing of others
// along, however much comes at once.
func TestRecorderHostileLists(t *testing.T) {
	r := newRecording(t, t.TempDir(), "boot", "one")
	_, err := r.begin()
	r.must(nil, err)
	names := make([]string, 1024)
	for i := range names {
		names[i] = strings.Repeat("<", 256)
	}
	hostile := &drift.Container{
		ID: "hostile", Name: "app", Pod: &drift.Pod{UID: "uid"}, Labels: names, Reason: names[0], Observation: drift.Observed,
		Declared: drift.Declared{CRI: &drift.CRI{Add: names, Drop: names}, OCI: &drift.OCI{UnknownNames: names}},
	}
	var changes []agent.Change
	for n := range 100 {
		r.at.Sequence++
		changes = append(changes, agent.Change{Position: r.at, At: r.clock, Kind: agent.ContainerChanged, Container: hostile})
		if n == 50 {
			r.at.Sequence++
			changes = append(changes, agent.Change{Position: r.at, At: r.clock, Kind: agent.FindingOpened, Finding: new(r.found("a"))})
		}
	}
	r.must(nil, r.Record(changes, []drift.Finding{r.found("a")}))
	records, found := 0, false
	for record, err := range r.journal.All(journal.Key{}) {
		r.must(nil, err)
		if record.Gap != nil {
			continue
		}
		records++
		var told entry
		if err := json.Unmarshal(record.Data, &told); err != nil || len(record.Data) > maxRecorded {
			t.Fatalf("%d bytes, %v", len(record.Data), err)
		}
		if found = found || told.Finding != nil; told.Container == nil {
			continue
		}
		c := told.Container
		add := c.Declared.CRI.Add
		if !told.Clipped || c.ID != "hostile" || c.Pod.UID != "uid" || len(add) < 3 || len(add) > 100 || add[len(add)-1] != "…[clipped]" {
			t.Fatalf("%s has clipped %v and %d names, the last is %.40q", c.ID, told.Clipped, len(add), add[len(add)-1])
		}
	}
	if r.Refused() != 0 || !found || records+int(r.Lost()) != 101 {
		t.Errorf("%d records, the finding among them: %v; %d refused, %d lost", records, found, r.Refused(), r.Lost())
	}
}

// TestRecorderCarriesOver: a journal of the release before has its open findings and its log
// still, each record with its rank and owner.
func TestRecorderCarriesOver(t *testing.T) {
	dir := t.TempDir()
	zipped, err := os.Open("../../journal/testdata/form1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer zipped.Close()
	unzipped, err := gzip.NewReader(zipped)
	if err != nil {
		t.Fatal(err)
	}
	file, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal.db"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	r, before, err := openJournal(journalConfig{Dir: dir, MaxBytes: journal.MinBytes}, slog.New(slog.NewTextHandler(&told, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if len(before.open) != 78 || before.bootID != "boot-2" || len(before.unreadable) > 0 || !strings.Contains(told.String(), "older release was carried over") {
		t.Errorf("%d findings are open of boot %q, %v; %s", len(before.open), before.bootID, before.unreadable, &told)
	}
	ranks, owners := map[uint8]int{}, map[string]int{}
	for record, err := range r.journal.All(journal.Key{}) {
		if err != nil {
			t.Fatal(err)
		}
		if record.Gap == nil {
			ranks[record.Rank]++
			owners[record.Owner]++
		}
	}
	if len(ranks) != 5 || owners["0b9d1d3e-5f0a-4a57-9a3c-0e6c3c1a0001"] == 0 || owners[""] == 0 {
		t.Errorf("ranks %v, owners %v", ranks, owners)
	}
	next := agent.Change{Position: agent.Position{BootID: "boot-2", Epoch: "epoch-e", Sequence: 1}, Kind: agent.FindingResolved, Finding: &before.open[0]}
	if err := r.Record([]agent.Change{next}, before.open[1:]); err != nil {
		t.Error(err)
	}
	state, err := r.journal.State()
	if err != nil || len(formerOf(state).open) != 77 {
		t.Errorf("%d findings are open after one was resolved, %v", len(formerOf(state).open), err)
	}
}

// TestRecorderOfANewerRelease: an agent that is too old for the journal watches, and says what
// to do.
func TestRecorderOfANewerRelease(t *testing.T) {
	r := newRecording(t, t.TempDir(), "boot", "one")
	r.blind = fmt.Errorf("%w: start that release again", journal.ErrNewer)
	before, err := r.begin()
	r.must(journal.ErrNewer, err, r.opens("a"))
	if before.open != nil || !strings.Contains(err.Error(), "start that release again") {
		t.Errorf("%+v, %v", before, err)
	}
}

// TestRecorderFitting: where not all findings fit, each pod has its first one remembered before
// another has its second.
func TestRecorderFitting(t *testing.T) {
	r := newRecording(t, t.TempDir(), "boot", "one")
	var open []drift.Finding
	for _, id := range []string{"a/1", "a/2", "a/3", "info/1", "b/1", "c/1"} {
		open = append(open, r.found(id))
	}
	one, err := encodeFinding(&open[0])
	r.must(nil, err)
	put, err := r.fitting(open, 4*stateCost(stateFinding+"a/1", one))
	r.must(nil, err)
	r.must(journal.ErrTooBig, r.full)
	if got := strings.Join(slices.Sorted(maps.Keys(put)), " "); got != "finding/a/1 finding/a/2 finding/b/1 finding/c/1" {
		t.Errorf("remembered are %s", got)
	}
}
