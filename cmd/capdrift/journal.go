package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

// journalSchema names the published form of what a journal holds.
const journalSchema = "capdrift.journal/v1"

// journalEvery is how often --follow looks whether a folder's journal was written to.
const journalEvery = time.Second

// journalOptions are the flags of `capdrift journal`.
type journalOptions struct {
	dir       string
	since     string
	kinds     []string
	namespace string
	finding   string
	follow    bool
	format    string
	color     string
	noHeaders bool

	from time.Time // what since means
}

func journalFormats() []string { return []string{"table", "jsonl"} }

// changeKinds are the kinds of records.
func changeKinds() []string {
	return []string{
		string(agent.ContainerAdded), string(agent.ContainerChanged), string(agent.ContainerRemoved),
		string(agent.FindingOpened), string(agent.FindingUpdated), string(agent.FindingResolved), string(agent.StatusChanged),
	}
}

// recordKinds are what --kind takes: the kinds of records, and those of findings.
func recordKinds() []string {
	kinds := changeKinds()
	for _, kind := range drift.Kinds() {
		kinds = append(kinds, string(kind))
	}
	return kinds
}

func journalCommand() *cobra.Command {
	var o journalOptions
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "List what the journal of an agent that has ended holds",
		Long: `List the records of an agent's journal, oldest first: findings that were opened, updated and resolved,
containers that came and went, and parts of the agent that failed. Records that were evicted or
damaged are told where they were.

The journal is read as a whole and copied into memory. Nothing in its folder is written to, and an
agent can start there meanwhile. Of a damaged journal what is whole is listed, and the rest is
counted. An agent that runs has its journal for itself; what it knows is told by capdrift get and
capdrift watch.

--kind takes kinds of records, and of findings. With --follow new records are listed when the journal
was written to and no agent works there any more.

Exit status: 0 done, 1 could not do it (a finding or namespace that the journal does not have, a
damaged journal, and a record that cannot be read too; the others are still listed), 2 wrong usage.`,
		Example: `  capdrift journal --since 24h
  capdrift journal --data-dir /mnt/node-7/var/lib/capdrift -n shop --kind finding_opened
  capdrift journal --finding 3f2a9c01 -o jsonl
  capdrift journal --kind bounding_excess --kind userns_escape`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(time.Now()); err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error {
				folder := &journalFolder{dir: o.dir, follow: o.follow, errs: cmd.ErrOrStderr(), wait: wait}
				return o.list(cmd.Context(), folder, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "data-dir", defaultConfig().Journal.Dir, "the folder of the journal")
	flags.StringVar(&o.since, "since", "", "only records that are not older: a duration (90m), or a time (2026-11-21T12:00:00Z)")
	flags.StringSliceVar(&o.kinds, "kind", nil, "only records of this kind, or about findings of it; may be repeated")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "only records about pods in this namespace")
	flags.StringVar(&o.finding, "finding", "", "only records about this finding: its id or the start of it")
	flags.BoolVarP(&o.follow, "follow", "f", false, "go on with new records")
	flags.StringVarP(&o.format, "output", "o", "table", "output format: "+strings.Join(journalFormats(), ", "))
	flags.StringVar(&o.color, "color", "auto", "color the table: auto (on a terminal, unless NO_COLOR is set), always, never")
	flags.BoolVar(&o.noHeaders, "no-headers", false, "leave out the heading line of the table")
	if err := cmd.MarkFlagDirname("data-dir"); err != nil {
		panic(err) // a flag of this name was just defined
	}
	complete(cmd, "kind", recordKinds()...)
	complete(cmd, "output", journalFormats()...)
	complete(cmd, "color", "auto", "always", "never")
	return cmd
}

func (o *journalOptions) validate(now time.Time) error {
	if !slices.Contains(journalFormats(), o.format) {
		return fmt.Errorf("--output=%s: want one of %s", printable(o.format), strings.Join(journalFormats(), ", "))
	}
	for _, kind := range o.kinds {
		if !slices.Contains(recordKinds(), kind) {
			return fmt.Errorf("--kind=%s: no record and no finding is of this kind%s", printable(kind), nearest(kind, recordKinds()))
		}
	}
	if o.dir == "" {
		return errors.New("--data-dir is empty: name the folder of the journal")
	}
	if err := o.parseSince(now); err != nil {
		return err
	}
	return (&outputOptions{format: "table", color: o.color}).validate()
}

func (o *journalOptions) parseSince(now time.Time) error {
	if o.since == "" {
		return nil
	}
	if before, err := time.ParseDuration(o.since); err == nil && before >= 0 {
		o.from = now.Add(-before)
		return nil
	}
	at, err := time.Parse(time.RFC3339, o.since)
	if err != nil {
		return fmt.Errorf("--since=%s: want a duration such as 90m, or a time such as 2026-11-21T12:00:00Z", printable(o.since))
	}
	o.from = at
	return nil
}

// journalSource is where the entries of a journal come from.
type journalSource interface {
	// entries yields what comes after a position, oldest first, until there is no more for
	// now. [journal.ErrGone] means that the position is not known any more.
	entries(ctx context.Context, after journal.Key) iter.Seq2[journal.Entry, error]
	// more returns when there may be more, or with the context's error.
	more(ctx context.Context) error
	// incomplete is the error of a source that could not give all that was recorded.
	incomplete() error
}

// journalFolder is the journal of an agent that does not run.
type journalFolder struct {
	dir    string
	follow bool
	errs   io.Writer
	wait   func(context.Context, time.Duration) error

	written time.Time // the file, when it was read last
	waiting bool      // it was said that an agent works there
	damage  error     // of the newest file that was read
}

// entries implements [journalSource].
func (f *journalFolder) entries(_ context.Context, after journal.Key) iter.Seq2[journal.Entry, error] {
	return func(yield func(journal.Entry, error) bool) {
		written, err := journal.Written(f.dir)
		if err != nil {
			yield(journal.Entry{}, err)
			return
		}
		copied, found, err := journal.Snapshot(f.dir, journal.Options{Classify: classify})
		switch {
		case errors.Is(err, journal.ErrLocked) && f.follow:
			if !f.waiting {
				f.waiting = true
				fmt.Fprintf(f.errs, "capdrift: an agent works in %s; what it writes is listed when it has ended\n", printable(f.dir))
			}
			return
		case errors.Is(err, journal.ErrLocked):
			yield(journal.Entry{}, fmt.Errorf("%w; 'capdrift get' and 'capdrift watch' ask an agent that runs", err))
			return
		case errors.Is(err, fs.ErrNotExist):
			yield(journal.Entry{}, fmt.Errorf("%w; name the folder of an agent's journal with --data-dir", err))
			return
		case err != nil:
			yield(journal.Entry{}, err)
			return
		}
		defer copied.Close()
		f.written, f.waiting = written, false
		f.tell(found)
		for entry, err := range copied.All(after) {
			if !yield(entry, err) {
				return
			}
		}
	}
}

// tell says what is wrong with the file, and how old its form is.
func (f *journalFolder) tell(found journal.Report) {
	if found.Form != 0 {
		fmt.Fprintf(f.errs, "capdrift: the journal in %s has form %d, which an older release wrote; it is listed as it would be carried over and is not changed: an agent of this release carries it over when it starts\n",
			printable(f.dir), found.Form)
	}
	f.damage = nil
	if len(found.Damage) == 0 {
		return
	}
	lost := many(int(found.Lost), "record") + " lost"
	if found.Uncounted {
		lost += " or more"
	}
	fmt.Fprintf(f.errs, "capdrift: warning: the journal in %s is damaged: %s\n", printable(f.dir), printable(strings.Join(found.Damage, "; ")))
	f.damage = fmt.Errorf("the journal in %s is damaged: %s whole, %s; the file was not changed, and an agent that starts with it keeps it beside a new one of what is whole",
		printable(f.dir), many(found.Records, "record"), lost)
}

// more implements [journalSource].
func (f *journalFolder) more(ctx context.Context) error {
	for {
		if err := f.wait(ctx, journalEvery); err != nil {
			return err
		}
		written, err := journal.Written(f.dir)
		if err != nil || !written.Equal(f.written) {
			return err
		}
	}
}

// incomplete implements [journalSource].
func (f *journalFolder) incomplete() error { return f.damage }

// list prints what is asked for.
func (o *journalOptions) list(ctx context.Context, from journalSource, out, errs io.Writer) error {
	colors := outputOptions{color: o.color}
	l := journalList{
		options: o, errs: errs,
		out: watchOutput{Writer: out, errs: errs, resource: "finding", jsonl: o.format == "jsonl", table: table{colored: colors.colored(out), noHeaders: o.noHeaders}},
	}
	for {
		if err := l.read(ctx, from); err != nil {
			return err
		}
		if !o.follow {
			break
		}
		if err := from.more(ctx); err != nil {
			if ctx.Err() != nil { // whoever follows ends it so
				return l.failure(from)
			}
			return err
		}
	}
	if err := l.failure(from); err != nil {
		return err
	}
	return l.unmatched()
}

// journalList is a list under way.
type journalList struct {
	options *journalOptions
	out     watchOutput
	errs    io.Writer

	after      journal.Key
	gaps       []journal.Entry // since the last record: told when something after them is
	unreadable int
	namespaces []string // of all records
	findings   []string
	matched    bool // something is of the namespace and the finding that are asked for
}

// read prints what comes after what was printed.
func (l *journalList) read(ctx context.Context, from journalSource) error {
	for entry, err := range from.entries(ctx, l.after) {
		switch {
		case errors.Is(err, journal.ErrGone):
			fmt.Fprintln(l.errs, "capdrift: what was listed last is not in the journal any more; all that is there now follows, and what came between is lost")
			l.after = journal.Key{}
			return l.read(ctx, from)
		case err != nil:
			return err
		}
		l.after = entry.Key()
		if err := l.entry(entry); err != nil {
			return err
		}
	}
	return l.tellGaps()
}

func (l *journalList) entry(e journal.Entry) error {
	if e.Gap != nil {
		l.gaps = append(l.gaps, e)
		return nil
	}
	if e.At.Before(l.options.from) {
		l.gaps = nil // what is missing is older
		return nil
	}
	if err := l.tellGaps(); err != nil {
		return err
	}
	var told entry
	if err := json.Unmarshal(e.Data, &told); err != nil {
		if l.unreadable++; l.unreadable == 1 {
			fmt.Fprintf(l.errs, "capdrift: warning: record %d of epoch %s cannot be read: %s\n", e.Sequence, printable(e.Epoch), said(err.Error()))
		}
		return nil
	}
	if !l.takes(e.Record, told) {
		return nil
	}
	if l.out.jsonl {
		return writeJSONLine(l.out, lineOfRecord(e.Record, told))
	}
	return l.row(e.Record, told)
}

// takes reports whether a record is asked for. It notes what there is to ask for.
func (l *journalList) takes(r journal.Record, told entry) bool {
	o, pod := l.options, (*drift.Pod)(nil)
	switch {
	case told.Finding != nil:
		pod = told.Finding.Pod
		l.findings = note(l.findings, told.Finding.ID)
	case told.Container != nil:
		pod = told.Container.Pod
	}
	if pod != nil {
		l.namespaces = note(l.namespaces, pod.Namespace)
	}
	if o.namespace != "" && (pod == nil || pod.Namespace != o.namespace) || o.finding != "" && !o.means(told.Finding) {
		return false
	}
	l.matched = true
	return len(o.kinds) == 0 || slices.Contains(o.kinds, r.Kind) || told.Finding != nil && slices.Contains(o.kinds, string(told.Finding.Kind))
}

// note adds a name to the names that an error may propose, up to a bound.
func note(names []string, name string) []string {
	const most = 1000
	if len(names) >= most || slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}

// means reports whether --finding is the finding's id or enough of its start.
func (o *journalOptions) means(f *drift.Finding) bool {
	return f != nil && (f.ID == o.finding || len(o.finding) >= 4 && strings.HasPrefix(f.ID, o.finding))
}

// failure is why the list is not of all that was recorded; nil where it is.
func (l *journalList) failure(from journalSource) error {
	if l.unreadable > 0 {
		return errors.Join(from.incomplete(), fmt.Errorf("%s cannot be read: a newer release may have written them, which can list them", many(l.unreadable, "record")))
	}
	return from.incomplete()
}

// unmatched is the error for a finding or namespace that no record is about; nil where one is.
func (l *journalList) unmatched() error {
	o := l.options
	switch {
	case l.matched || o.finding == "" && o.namespace == "":
		return nil
	case o.namespace != "" && !slices.Contains(l.namespaces, o.namespace):
		return fmt.Errorf("no record is about the namespace %s%s", printable(o.namespace), nearest(o.namespace, l.namespaces))
	}
	return fmt.Errorf("no record is about the finding %s%s", printable(o.finding), nearest(o.finding, l.findings))
}

// journalLine is one line of -o jsonl.
type journalLine struct {
	Schema   string     `json:"schema"`
	Type     string     `json:"type"` // record, gap
	Position place      `json:"position"`
	Time     *time.Time `json:"time,omitempty"` // by the node's clock

	Kind      string           `json:"kind,omitempty"` // of a record
	Finding   *drift.Finding   `json:"finding,omitempty"`
	Resolved  string           `json:"resolved,omitempty"` // why
	Container *drift.Container `json:"container,omitempty"`
	Component *component       `json:"component,omitempty"`
	Clipped   bool             `json:"clipped,omitempty"` // something of it was too long

	// From, To and Count are of a gap: the first and the last sequence that are missing, and how
	// many records. From and To are absent where whole epochs before this one are.
	From  uint64 `json:"from,omitempty"`
	To    uint64 `json:"to,omitempty"`
	Count uint64 `json:"count,omitempty"`
}

func lineOfRecord(r journal.Record, told entry) journalLine {
	line := journalLine{
		Schema: journalSchema, Type: "record", Position: place{r.BootID, r.Epoch, r.Sequence}, Time: &r.At,
		Kind: r.Kind, Finding: told.Finding, Resolved: told.Resolved, Container: told.Container, Clipped: told.Clipped,
	}
	if c := told.Component; c != nil {
		line.Component = &component{Name: c.Name, OK: c.OK, Why: c.Why, Since: &c.Since}
	}
	return line
}

// tellGaps prints the gaps that have come.
func (l *journalList) tellGaps() error {
	for _, e := range l.gaps {
		gap := *e.Gap
		var err error
		if l.out.jsonl {
			err = writeJSONLine(l.out, journalLine{
				Schema: journalSchema, Type: "gap", Position: place{e.BootID, e.Epoch, e.Sequence}, From: gap.From, To: gap.To, Count: gap.Count,
			})
		} else {
			err = l.print(nil, "lost", many(int(gap.Count), "record"))
		}
		if err != nil {
			return err
		}
	}
	l.gaps = nil
	return nil
}

// row prints a record as capdrift watch does a change.
func (l *journalList) row(r journal.Record, told entry) error {
	change := strings.TrimPrefix(strings.TrimPrefix(r.Kind, "finding_"), "container_")
	if told.Resolved != "" {
		change += " (" + said(told.Resolved) + ")"
	}
	switch {
	case told.Finding != nil:
		item := subject{finding: told.Finding}
		return l.out.print(&r.At, change, l.out.lineOf(item), suffixOf(item))
	case told.Container != nil:
		item := subject{container: told.Container}
		text := strings.Join([]string{pad(podOf(item.pod())+"/"+item.called(), placeWidth), pad("-", taskWidth), "container", cellID(item.id())}, " ")
		return l.print(&r.At, change, text)
	case told.Component != nil && told.Component.OK:
		return l.print(&r.At, "status", "the agent's "+printable(told.Component.Name)+" is well")
	case told.Component != nil:
		return l.print(&r.At, "status", "the agent's "+printable(told.Component.Name)+" is not well: "+said(told.Component.Why))
	}
	return l.print(&r.At, "status", "the coverage changed")
}

// print prints a row without a severity.
func (l *journalList) print(at *time.Time, change, text string) error {
	return l.out.print(at, change, watchLine{severity: pad("-", severityWidth) + " ", rest: text}, "")
}
