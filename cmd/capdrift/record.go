package main

import (
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

// journalAgain is how soon a journal that failed is opened again: that reads all of it.
const journalAgain = 5 * time.Second

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

// entry is the published form of a change in the journal.
type entry struct {
	Kind      agent.ChangeKind `json:"kind"`
	Finding   *drift.Finding   `json:"finding,omitempty"`
	Resolved  string           `json:"resolved,omitempty"`
	Container *drift.Container `json:"container,omitempty"` // without its processes
	Component *agent.Component `json:"component,omitempty"`
}

// Record implements [agent.Journal]: the changes and the findings that are open
// after them are written together, or not at all.
func (r *recorder) Record(changes []agent.Change, open []drift.Finding) error {
	if len(changes) > 0 {
		r.bootID = changes[0].Position.BootID
	}
	r.declared.note(changes, open)
	batch, err := batchOf(changes)
	if err != nil {
		r.behind = true
		return err
	}
	if err := r.reopen(); err != nil {
		return err
	}
	whole := r.behind && r.bootID != "" // before a boot is known nothing was told
	if whole {
		err = r.catchUp(&batch, open)
	}
	if err == nil {
		err = r.journal.Commit(r.declared.into(batch))
	}
	switch {
	case errors.Is(err, journal.ErrTooBig):
		// More is open than the state takes: what happened is written all the same.
		r.behind = true
		return errors.Join(err, r.journal.Append(batch.Records...))
	case err != nil:
		return r.failed(err)
	case whole:
		r.behind, r.unread = false, false
	}
	return nil
}

// batchOf is what the changes write.
func batchOf(changes []agent.Change) (journal.Batch, error) {
	batch := journal.Batch{Put: make(map[string][]byte)}
	for _, change := range changes {
		record, err := recordOf(change)
		if err != nil {
			return journal.Batch{}, err
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
		if batch.Put[key], err = json.Marshal(change.Finding); err != nil {
			return journal.Batch{}, fmt.Errorf("writing a finding: %w", err)
		}
	}
	return batch, nil
}

func recordOf(change agent.Change) (journal.Record, error) {
	data, err := json.Marshal(entry{change.Kind, change.Finding, change.Resolved, withoutProcesses(change.Container), change.Component})
	if err != nil {
		return journal.Record{}, fmt.Errorf("writing a change: %w", err)
	}
	at := change.Position
	return journal.Record{BootID: at.BootID, Epoch: at.Epoch, Sequence: at.Sequence, At: change.At, Kind: string(change.Kind), Data: data}, nil
}

// catchUp makes the batch write the state whole. What an unread state says of this
// boot stays in it, for the next run of the agent to take over: this one tells by
// itself what it sees of it. Of another boot it is over.
func (r *recorder) catchUp(batch *journal.Batch, open []drift.Finding) error {
	state, err := r.journal.State()
	if err != nil {
		return err
	}
	batch.Put, batch.Delete = map[string][]byte{stateBoot: []byte(r.bootID)}, nil
	for _, finding := range open {
		if batch.Put[stateFinding+finding.ID], err = json.Marshal(finding); err != nil {
			return fmt.Errorf("writing a finding: %w", err)
		}
	}
	if before := formerOf(state); r.unread {
		if before.bootID == r.bootID {
			return nil
		}
		ends, err := r.ends(before.open)
		if err != nil {
			return err
		}
		batch.Records = append(ends, batch.Records...)
		r.unread = false // once is enough, whatever becomes of the batch
	}
	for key := range state {
		if _, stays := batch.Put[key]; !stays {
			batch.Delete = append(batch.Delete, key)
		}
	}
	return nil
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
