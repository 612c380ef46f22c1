package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

// The entries of the journal's state.
const (
	stateBoot    = "boot"     // of the node when it was written last
	stateFinding = "finding/" // and a finding's id: those that are open
)

// recorder writes an agent's changes into its journal.
type recorder struct{ *journal.Journal }

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
func (r recorder) Record(changes []agent.Change, _ []drift.Finding) error {
	batch := journal.Batch{Put: make(map[string][]byte)}
	for _, change := range changes {
		data, err := json.Marshal(entry{change.Kind, change.Finding, change.Resolved, withoutProcesses(change.Container), change.Component})
		if err != nil {
			return fmt.Errorf("writing a change: %w", err)
		}
		position := change.Position
		batch.Records = append(batch.Records, journal.Record{
			BootID: position.BootID, Epoch: position.Epoch, Sequence: position.Sequence, At: change.At, Kind: string(change.Kind), Data: data,
		})
		batch.Put[stateBoot] = []byte(position.BootID)
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
			return fmt.Errorf("writing a finding: %w", err)
		}
	}
	return r.Commit(batch)
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

// remembered returns the findings that were open when the agent ended last, and the
// boot of the node at that time. What cannot be read any more is left out and told.
func (r recorder) remembered() (open []drift.Finding, bootID string, unreadable []error, err error) {
	state, err := r.State()
	if err != nil {
		return nil, "", nil, err
	}
	for key, value := range state {
		id, ok := strings.CutPrefix(key, stateFinding)
		if !ok {
			continue
		}
		var finding drift.Finding
		if err := json.Unmarshal(value, &finding); err != nil || finding.ID != id {
			unreadable = append(unreadable, fmt.Errorf("the journal's finding %.40q: %w", id, err))
			continue
		}
		open = append(open, finding)
	}
	return open, string(state[stateBoot]), unreadable, nil
}
