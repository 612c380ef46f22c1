package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

// The entries of the journal's state.
const (
	stateBoot    = "boot"     // of the node when it was written last
	stateFinding = "finding/" // and a finding's id: those that are open
)

const (
	// journalAgain is how soon a journal that failed is opened again: that reads all of it.
	// As soon a state that did not fit is written whole again.
	journalAgain = 5 * time.Second
	// maxCommit bounds what is written at once: a quarter of the smallest journal.
	maxCommit = journal.MinBytes / 4
)

// recorder writes an agent's changes into its journal. A journal that fails is closed,
// for a disk can be mended, or mounted anew, only when nobody holds its files; when
// there is something to record it is opened again.
//
// What happened meanwhile is not in the log, and the gap in its sequences tells so.
// What is open is written whole as soon as the journal can be written.
type recorder struct {
	open func(readOnly bool) (*journal.Journal, error)
	now  func() time.Time

	journal *journal.Journal                // nil while it cannot be written
	latest  atomic.Pointer[journal.Journal] // closed or not: metrics ask it beside the loop
	failure error                           // why it cannot be written
	again   time.Time                       // when it is to be opened again
	full    error                           // why its state cannot take all that is open
	refit   time.Time                       // when it is to be tried again
	behind  bool                            // its state is not what is open
	unread  bool                            // its state of the agent's last run was never read
	bootID  string                          // of the node, as the last change told

	declared declared // of the containers that findings above info are about
}

// begin opens the journal for the first time and returns what was open when the agent
// ended last, also of a journal that can only be read.
func (r *recorder) begin() (former, error) {
	err := r.reopen()
	from := r.journal
	if err != nil && !errors.Is(err, journal.ErrLocked) {
		if readable, unreadable := r.open(true); unreadable == nil {
			defer readable.Close()
			from = readable
		}
	}
	r.behind, r.unread = true, true
	if from == nil {
		return former{}, err
	}
	state, readErr := from.State()
	r.unread = readErr != nil
	r.behind = r.unread || err != nil
	r.declared.resume(state)
	return formerOf(state), err
}

// reopen opens the journal, unless it is open or failed a moment ago.
func (r *recorder) reopen() error {
	switch {
	case r.journal != nil:
		return nil
	case r.now().Before(r.again):
		return r.failure
	}
	opened, err := r.open(false)
	if err != nil {
		return r.failed(err)
	}
	r.journal = opened
	r.latest.Store(opened)
	return nil
}

// failed lets go of a journal that failed.
func (r *recorder) failed(err error) error {
	r.failure, r.again, r.behind = err, r.now().Add(journalAgain), true
	r.declared.written = nil
	if r.journal != nil {
		_ = r.journal.Close() // why it failed is said already
		r.journal = nil
	}
	return err
}

// Close implements [io.Closer].
func (r *recorder) Close() error {
	if r.journal == nil {
		return nil
	}
	return r.journal.Close()
}

// Depth implements [metrics.Stored].
func (r *recorder) Depth() (records int, bytes int64) {
	if latest := r.latest.Load(); latest != nil {
		return latest.Depth()
	}
	return 0, 0
}

// Lost implements [metrics.Stored].
func (r *recorder) Lost() uint64 {
	if latest := r.latest.Load(); latest != nil {
		return latest.Lost()
	}
	return 0
}

// Refused implements [metrics.Stored].
func (r *recorder) Refused() uint64 {
	if latest := r.latest.Load(); latest != nil {
		return latest.Refused()
	}
	return 0
}

// entry is the published form of a change in the journal.
type entry struct {
	Kind      agent.ChangeKind `json:"kind"`
	Finding   *drift.Finding   `json:"finding,omitempty"`
	Resolved  string           `json:"resolved,omitempty"`
	Container *drift.Container `json:"container,omitempty"` // without its processes
	Component *agent.Component `json:"component,omitempty"`
	Clipped   bool             `json:"clipped,omitempty"` // something of it was too long
}

// Record implements [agent.Journal]: the changes and the findings that are open
// after them are written together, or not at all. More than maxCommit is written in parts,
// what is open with the last one.
func (r *recorder) Record(changes []agent.Change, open []drift.Finding) error {
	if len(changes) > 0 {
		r.bootID = changes[0].Position.BootID
	}
	r.declared.note(changes, open)
	batch, unwritable := batchOf(changes)
	if unwritable != nil {
		r.behind = true // of that one alone: the others are written
	}
	if err := r.reopen(); err != nil {
		return err
	}
	if r.full != nil && r.now().Before(r.refit) {
		batch.Put, batch.Delete = nil, nil
		if err := r.commit(batch); err != nil {
			return r.failed(err)
		}
		return errors.Join(unwritable, r.full)
	}
	whole := r.behind && r.bootID != "" // before a boot is known nothing was told
	var err error
	if whole {
		err = r.catchUp(&batch, open)
	}
	if err == nil {
		err = r.commit(r.declared.into(batch))
	}
	if errors.Is(err, journal.ErrTooBig) && !whole && r.bootID != "" {
		whole = true
		if err = r.catchUp(&batch, open); err == nil {
			err = r.commit(r.declared.into(batch))
		}
	}
	switch {
	case err != nil:
		return r.failed(err)
	case whole:
		r.behind, r.unread = r.full != nil, false
	}
	return errors.Join(unwritable, r.full)
}

// commit writes a batch, in parts where it is large.
func (r *recorder) commit(batch journal.Batch) error {
	var sum int
	for n, record := range batch.Records {
		if sum += len(record.Data); sum <= maxCommit || n == 0 {
			continue
		}
		first := batch.Records[:n]
		batch.Records = batch.Records[n:]
		if err := r.journal.Append(first...); err != nil {
			return err
		}
		return r.commit(batch)
	}
	return r.journal.Commit(batch)
}

// batchOf is what the changes write. An error is of those that cannot be written.
func batchOf(changes []agent.Change) (journal.Batch, error) {
	batch := journal.Batch{Put: make(map[string][]byte)}
	var failed error
	for _, change := range changes {
		record, err := recordOf(change)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		batch.Records = append(batch.Records, record)
		batch.Put[stateBoot] = []byte(record.BootID)
		if change.Finding == nil {
			continue
		}
		key := stateFinding + change.Finding.ID
		if change.Kind == agent.FindingResolved {
			batch.Delete = append(batch.Delete, key)
			delete(batch.Put, key)
			continue
		}
		text, err := encodeFinding(change.Finding)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		batch.Put[key] = text
	}
	return batch, failed
}

// encodeFinding returns a finding as JSON within its bound.
func encodeFinding(finding *drift.Finding) ([]byte, error) {
	text, _, err := encodeClipped(finding, maxFinding)
	if err != nil {
		return nil, fmt.Errorf("writing a finding: %w", err)
	}
	return text, nil
}

func recordOf(change agent.Change) (journal.Record, error) {
	at := change.Position
	record := journal.Record{BootID: at.BootID, Epoch: at.Epoch, Sequence: at.Sequence, At: change.At, Kind: string(change.Kind)}
	told := entry{change.Kind, change.Finding, change.Resolved, withoutProcesses(change.Container), change.Component, false}
	charge(&record, told)
	limit := maxRecorded
	if change.Finding != nil {
		limit = maxFinding
	}
	text, clipped, err := encodeClipped(&told, limit)
	if clipped {
		told.Clipped = true
		text, _, err = encodeClipped(&told, limit)
	}
	if err != nil {
		return journal.Record{}, fmt.Errorf("writing a change: %w", err)
	}
	record.Data = text
	return record, nil
}

// charge sets the rank and the owner of a record. Changes of containers and of components
// rank as the least findings do: a pod makes as many as it likes.
func charge(record *journal.Record, told entry) {
	severity, pod, container := drift.Info, (*drift.Pod)(nil), ""
	switch {
	case told.Finding != nil:
		severity, pod, container = told.Finding.Severity, told.Finding.Pod, told.Finding.ContainerID
	case told.Container != nil:
		pod, container = told.Container.Pod, told.Container.ID
	}
	record.Rank, record.Owner = uint8(severity), container
	if pod != nil && pod.UID != "" {
		record.Owner = pod.UID
	}
	record.Owner = record.Owner[:min(len(record.Owner), journal.MaxName)]
}

// classify charges a record of a journal that knew neither rank nor owner. One that cannot
// be read is kept as long as any.
func classify(record *journal.Record) {
	var told entry
	if err := json.Unmarshal(record.Data, &told); err != nil {
		record.Rank = uint8(drift.Critical)
		return
	}
	charge(record, told)
}

// catchUp makes the batch write the state whole, as far as it takes that. What an unread
// state says of this boot stays in it, for the next run of the agent to take over: this
// one tells by itself what it sees of it. Of another boot it is over.
func (r *recorder) catchUp(batch *journal.Batch, open []drift.Finding) error {
	state, err := r.journal.State()
	if err != nil {
		return err
	}
	before := formerOf(state)
	stays := r.unread && before.bootID == r.bootID
	room := r.journal.MaxState() - stateCost(stateBoot, []byte(r.bootID)) - r.declared.cost()
	if stays {
		for key, value := range state {
			room -= stateCost(key, value)
		}
	}
	put, err := r.fitting(open, room)
	if err != nil {
		return err
	}
	put[stateBoot] = []byte(r.bootID)
	batch.Put, batch.Delete = map[string][]byte{}, nil
	for key, value := range put {
		if old, same := state[key]; !same || !bytes.Equal(old, value) {
			batch.Put[key] = value
		}
	}
	if stays {
		return nil
	}
	if r.unread {
		ends, err := r.ends(before.open)
		if err != nil {
			return err
		}
		batch.Records = append(ends, batch.Records...)
		r.unread = false // once is enough, whatever becomes of the batch
	}
	for key := range state {
		if _, stays := put[key]; !stays {
			batch.Delete = append(batch.Delete, key)
		}
	}
	return nil
}

// stateCost is what an entry takes of [journal.Journal.MaxState].
func stateCost(key string, value []byte) int64 { return int64(len(key) + len(value) + 32) }

// fitting returns the entries of the findings that the state has room for: the worst, and
// of the same severity one of each pod, then a second, and so on. That some are left out
// it keeps in r.full.
func (r *recorder) fitting(open []drift.Finding, room int64) (map[string][]byte, error) {
	type class struct {
		rank  uint8
		owner string
	}
	held := make(map[class]int)
	turns := make([]int, len(open)) // the how many-eth of its pod a finding is
	order := make([]int, len(open))
	for i := range open {
		var charged journal.Record
		charge(&charged, entry{Finding: &open[i]})
		of := class{charged.Rank, charged.Owner}
		turns[i], order[i] = held[of], i
		held[of]++
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(open[b].Severity, open[a].Severity), cmp.Compare(turns[a], turns[b]))
	})
	put := make(map[string][]byte, len(open))
	left := 0
	for _, i := range order {
		text, err := encodeFinding(&open[i])
		if err != nil {
			return nil, err
		}
		key := stateFinding + open[i].ID
		cost := stateCost(key, text)
		if cost > room {
			left++
			continue
		}
		room -= cost
		put[key] = text
	}
	r.full = nil
	if left > 0 {
		r.refit = r.now().Add(journalAgain)
		r.full = fmt.Errorf("%w: %d of %d findings that are open are not remembered over a restart: make journal.maxBytes larger", journal.ErrTooBig, left, len(open))
	}
	return put, nil
}

// ends are the records of what ended with an earlier boot, in the epoch that told of it.
func (r *recorder) ends(findings []drift.Finding) (records []journal.Record, err error) {
	epochs := r.journal.Epochs()
	if len(epochs) == 0 {
		return nil, nil
	}
	last := epochs[len(epochs)-1]
	for _, finding := range findings {
		last.Last++
		record, err := recordOf(agent.Change{
			Position: agent.Position{BootID: last.BootID, Epoch: last.Epoch, Sequence: last.Last},
			At:       r.now(), Kind: agent.FindingResolved, Finding: &finding, Resolved: agent.ResolvedBoot,
		})
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}

// withoutProcesses bounds what is written of a container: its processes are the
// business of the moment.
func withoutProcesses(c *drift.Container) *drift.Container {
	if c == nil {
		return nil
	}
	slim := *c
	slim.Processes = []drift.Process{}
	return &slim
}

// former is what a journal's state tells of the run of an agent before.
type former struct {
	open       []drift.Finding
	bootID     string            // of the node at that time
	containers []drift.Container // that some of them are about, as declared
	unreadable []error           // findings and containers that are left out
}

func formerOf(state map[string][]byte) former {
	before := former{bootID: string(state[stateBoot])}
	before.containers, before.unreadable = containersOf(state)
	for _, key := range slices.Sorted(maps.Keys(state)) {
		id, ok := strings.CutPrefix(key, stateFinding)
		if !ok {
			continue
		}
		var finding drift.Finding
		if err := json.Unmarshal(state[key], &finding); err != nil || finding.ID != id {
			before.unreadable = append(before.unreadable, fmt.Errorf("the journal's finding %.40q: %w", id, err))
			continue
		}
		before.open = append(before.open, finding)
	}
	return before
}
