package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

// journalDay is when the journals of these tests were written.
var journalDay = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// writeJournal records changes a minute apart, as an agent does that then ends.
func writeJournal(t *testing.T, dir, epoch string, changes ...agent.Change) {
	t.Helper()
	r, _, err := openJournal(journalConfig{Dir: dir, MaxBytes: journal.MinBytes}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i, change := range changes {
		change.Position = agent.Position{BootID: "boot", Epoch: epoch, Sequence: uint64(i + 1)}
		change.At = journalDay.Add(time.Duration(i) * time.Minute)
		if err := r.Record([]agent.Change{change}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// anHour is what happened to two pods and the agent.
func anHour() []agent.Change {
	web := &drift.Pod{Namespace: "shop", Name: "web", UID: "1"}
	excess := &drift.Finding{
		ID: "3f2a9c01aa", Kind: drift.BoundingExcess, Severity: drift.Critical, Pod: web, Container: "nginx\x1b[2J", ContainerID: "cccc", PID: 7,
		Capabilities: capdecode.Set(1 << 21),
	}
	other := &drift.Finding{ID: "77777777bb", Kind: drift.NNPMissing, Severity: drift.High, Pod: &drift.Pod{Namespace: "data", Name: "db", UID: "2"}, Container: "pg", ContainerID: "dddd"}
	return []agent.Change{
		{Kind: agent.ContainerAdded, Container: &drift.Container{ID: "cccc", Name: "nginx", Pod: web}},
		{Kind: agent.FindingOpened, Finding: excess},
		{Kind: agent.FindingOpened, Finding: other},
		{Kind: agent.StatusChanged, Component: &agent.Component{Name: "runtime", Why: "it does not answer"}},
		{Kind: agent.FindingResolved, Finding: excess, Resolved: agent.ResolvedEnded},
	}
}

// filesIn are the files of a folder, with their names.
func filesIn(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if files[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// journalOf runs capdrift journal on a folder, and fails where that changed the folder.
func journalOf(t *testing.T, dir string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	before := filesIn(t, dir)
	stdout, stderr, status = capture(t, append([]string{"journal", "--data-dir", dir}, args...)...)
	if !maps.EqualFunc(before, filesIn(t, dir), bytes.Equal) {
		t.Errorf("journal %q changed the folder", args)
	}
	return stdout, stderr, status
}

// sequences are those of a list in JSON lines, "-" for a gap.
func sequences(t *testing.T, text string) string {
	t.Helper()
	var list []string
	for line := range strings.Lines(text) {
		var one journalLine
		if err := json.Unmarshal([]byte(line), &one); err != nil || one.Schema != journalSchema {
			t.Fatalf("%q: %v", line, err)
		}
		if one.Type == "gap" {
			list = append(list, "-")
			continue
		}
		list = append(list, fmt.Sprint(one.Position.Sequence))
	}
	return strings.Join(list, " ")
}

// TestJournalChooses: each flag leaves what it says.
func TestJournalChooses(t *testing.T) {
	dir := t.TempDir()
	writeJournal(t, dir, "one", anHour()...)
	for args, want := range map[string]string{
		"":                                      "1 2 3 4 5",
		"--since 2026-11-21T12:02:00Z":          "3 4 5",
		"--kind finding_opened":                 "2 3",
		"--kind bounding_excess":                "2 5",
		"--kind finding_resolved,nnp_missing":   "3 5",
		"-n shop":                               "1 2 5",
		"-n data --kind finding_resolved":       "",
		"--finding 3f2a9c01aa":                  "2 5",
		"--finding 3f2a":                        "2 5",
		"--finding 3f2a --kind container_added": "",
	} {
		stdout, stderr, status := journalOf(t, dir, append(strings.Fields(args), "-o", "jsonl")...)
		if got := sequences(t, stdout); got != want || status != exitDone || stderr != "" {
			t.Errorf("%q lists %q, want %q; status %d, %s", args, got, want, status, stderr)
		}
	}
	o := journalOptions{dir: dir, since: "90m", format: "table", color: "auto"}
	if err := o.validate(journalDay); err != nil || !o.from.Equal(journalDay.Add(-90*time.Minute)) {
		t.Errorf("90 minutes ago is %v, %v", o.from, err)
	}
	for args, want := range map[string]string{
		"--finding 3f2":     "no record is about the finding 3f2",
		"--finding nothing": "no record is about the finding nothing",
		"-n shup":           `no record is about the namespace shup`,
	} {
		if _, stderr, status := journalOf(t, dir, strings.Fields(args)...); status != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("%q: status %d, %s", args, status, stderr)
		}
	}
	for args, want := range map[string]string{
		"--kind finding_open": "did you mean finding_opened",
		"--since yesterday":   "want a duration such as 90m",
		"--since -5m":         "want a duration such as 90m",
		"-o yaml":             "want one of table, jsonl",
	} {
		if _, stderr, status := journalOf(t, dir, strings.Fields(args)...); status != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%q: status %d, %s", args, status, stderr)
		}
	}
}

// TestJournalTable: a line for each record, safe to look at.
func TestJournalTable(t *testing.T) {
	dir := t.TempDir()
	writeJournal(t, dir, "one", anHour()...)
	stdout, stderr, status := journalOf(t, dir)
	if status != exitDone || stderr != "" {
		t.Errorf("status %d, %s", status, stderr)
	}
	var lines []string
	for line := range strings.Lines(stdout) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"TIME CHANGE SEVERITY POD/CONTAINER PID FINDING CAPABILITIES",
		"2026-11-21T12:00:00.000Z added - shop/web/nginx - container cccc",
		`2026-11-21T12:01:00.000Z opened critical shop/web/nginx\x1b[2J 7 bounding_excess CAP_SYS_ADMIN`,
		"2026-11-21T12:02:00.000Z opened high data/db/pg - nnp_missing",
		"2026-11-21T12:03:00.000Z status - the agent's runtime is not well: it does not answer",
		`2026-11-21T12:04:00.000Z resolved (ended) critical shop/web/nginx\x1b[2J 7 bounding_excess CAP_SYS_ADMIN`,
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("it is\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// TestJournalThatIsDamaged yields what is whole, counts the rest, and is left as it is.
func TestJournalThatIsDamaged(t *testing.T) {
	dir := t.TempDir()
	var changes []agent.Change
	for range 20 {
		changes = append(changes, anHour()...)
	}
	writeJournal(t, dir, "one", changes...)
	name := filepath.Join(dir, "journal.db")
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(file, []byte(`"finding_resolved"`)) // within a record
	file[at]++
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status := journalOf(t, dir, "-o", "jsonl")
	listed := strings.Fields(sequences(t, stdout))
	whole, gaps := 0, 0
	for _, one := range listed {
		if one == "-" {
			gaps++
		} else {
			whole++
		}
	}
	if status != exitFailed || whole < 20 || whole >= len(changes) || gaps == 0 {
		t.Errorf("status %d, %d of %d records and %d gaps", status, whole, len(changes), gaps)
	}
	for _, says := range []string{"is damaged: ", fmt.Sprintf("%d records whole, %s lost", whole, many(len(changes)-whole, "record")), "the file was not changed"} {
		if !strings.Contains(stderr, says) {
			t.Errorf("it does not say %q: %s", says, stderr)
		}
	}
}

// TestJournalOfTheFirstForm is listed, and the way out of it is said.
func TestJournalOfTheFirstForm(t *testing.T) {
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
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "journal.db"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status := journalOf(t, dir, "-o", "jsonl")
	if len(strings.Fields(sequences(t, stdout))) < 100 || !strings.Contains(stderr, "has form 1, which an older release wrote") || !strings.Contains(stderr, "an agent of this release carries it over when it starts") {
		t.Errorf("status %d, %d bytes, %s", status, len(stdout), stderr)
	}
}

// TestJournalThatCannotBeRead names the next move.
func TestJournalThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	if _, stderr, status := journalOf(t, dir); status != exitFailed || !strings.Contains(stderr, "name the folder of an agent's journal with --data-dir") {
		t.Errorf("an empty folder: status %d, %s", status, stderr)
	}
	writeJournal(t, dir, "one", anHour()...)
	writer, _, err := journal.Open(dir, journal.Options{MaxBytes: journal.MinBytes})
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, stderr, status := journalOf(t, dir); status != exitFailed || !strings.Contains(stderr, "'capdrift get' and 'capdrift watch' ask an agent that runs") {
		t.Errorf("while an agent runs: status %d, %s", status, stderr)
	}
	if err := writer.Append(journal.Record{BootID: "boot", Epoch: "one", Sequence: 9, At: journalDay, Kind: "of_a_newer_release", Data: []byte("no JSON")}); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, status := journalOf(t, dir, "-o", "jsonl")
	if got := sequences(t, stdout); status != exitFailed || got != "1 2 3 4 5" || !strings.Contains(stderr, "1 record cannot be read") {
		t.Errorf("a record of another form: status %d, %q, %s", status, got, stderr)
	}
}

// TestJournalFollows: what an agent writes is listed once it has ended, and nothing twice.
func TestJournalFollows(t *testing.T) {
	dir := t.TempDir()
	writeJournal(t, dir, "one", anHour()...)
	ctx, interrupt := context.WithCancel(t.Context())
	later := journalDay
	written := func() { // as if later
		later = later.Add(time.Hour)
		if err := os.Chtimes(filepath.Join(dir, "journal.db"), later, later); err != nil {
			t.Error(err)
		}
	}
	var writer *journal.Journal
	steps := []func(){
		func() {},
		func() {
			var err error
			if writer, _, err = journal.Open(dir, journal.Options{MaxBytes: journal.MinBytes}); err != nil {
				t.Error(err)
			}
			written()
		},
		func() {},
		func() { writer.Close() },
		func() { writeJournal(t, dir, "two", anHour()[:2]...); written() },
		func() { // of another node
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			writeJournal(t, dir, "three", anHour()[:1]...)
			written()
		},
		interrupt,
	}
	folder := &journalFolder{dir: dir, follow: true, wait: func(ctx context.Context, _ time.Duration) error {
		steps[0]()
		steps = steps[1:]
		return ctx.Err()
	}}
	var out, errs strings.Builder
	folder.errs = &errs
	o := journalOptions{follow: true, format: "jsonl", color: "auto"}
	err := o.list(ctx, folder, &out, &errs)
	if got := sequences(t, out.String()); got != "1 2 3 4 5 1 2 1" || err != nil || len(steps) > 0 {
		t.Errorf("%q, %v, %d steps are left", got, err, len(steps))
	}
	if strings.Count(errs.String(), "an agent works in") != 1 || strings.Count(errs.String(), "what came between is lost") != 1 {
		t.Errorf("it says %s", &errs)
	}
}

// TestJournalTellsGaps where they are, unless all that is missing is older than what is asked for.
func TestJournalTellsGaps(t *testing.T) {
	dir := t.TempDir()
	j, _, err := journal.Open(dir, journal.Options{MaxBytes: journal.MinBytes})
	if err != nil {
		t.Fatal(err)
	}
	for sequence := uint64(1); sequence <= 5; sequence++ {
		record := journal.Record{BootID: "boot", Epoch: "one", Sequence: sequence, At: journalDay.Add(time.Duration(sequence) * time.Minute), Kind: "status_changed", Data: []byte("{}")}
		if sequence%3 == 0 {
			record.Data = make([]byte, journal.MaxRecord+1) // refused
		}
		if err := j.Append(record); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{"": "1 2 - 4 5", "--since 2026-11-21T12:05:00Z": "5", "--since 2026-11-21T12:04:00Z": "- 4 5"} {
		stdout, stderr, status := journalOf(t, dir, append(strings.Fields(args), "-o", "jsonl")...)
		if got := sequences(t, stdout); got != want || status != exitDone {
			t.Errorf("%q: status %d, %q, want %q, %s", args, status, got, want, stderr)
		}
	}
	if table, _, _ := journalOf(t, dir); !strings.Contains(table, "lost") || !strings.Contains(table, "1 record\n") {
		t.Errorf("the table says\n%s", table)
	}
}
