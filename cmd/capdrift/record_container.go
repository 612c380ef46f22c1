package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/journal"
)

// stateContainer and a container's id: what was declared for a container that an open
// finding above info is about.
const stateContainer = "container/"

// What the journal's state holds of containers, in bytes: lists of capabilities are as long
// as a pod's author likes. Of one that is larger nothing is kept.
const (
	maxDeclared    = 16 << 10
	maxAllDeclared = 128 << 10
)

// storedContainer is the stored form of a container: what its JSON leaves out and a sweep
// needs to find it and to hold it against its spec.
type storedContainer struct {
	drift.Container
	Created    time.Time       `json:"created"`
	CgroupPath string          `json:"cgroupPath"`
	Binary     string          `json:"binary,omitempty"`
	UIDMap     []drift.IDRange `json:"uidMap,omitempty"`
}

func declarationOf(c *drift.Container) ([]byte, error) {
	stored := storedContainer{Container: *withoutProcesses(c), Created: c.Created, CgroupPath: c.CgroupPath, Binary: c.Binary}
	stored.Reason = ""
	if c.Declared.OCI != nil {
		stored.UIDMap = c.Declared.OCI.UIDMap
	}
	return json.Marshal(stored)
}

func (d storedContainer) container() drift.Container {
	c := d.Container
	c.Created, c.CgroupPath, c.Binary = d.Created, d.CgroupPath, d.Binary
	if c.Declared.OCI != nil {
		c.Declared.OCI.UIDMap = d.UIDMap
	}
	return c
}

// containersOf returns the containers of a journal's state, and why some are left out.
func containersOf(state map[string][]byte) (list []drift.Container, unreadable []error) {
	for _, key := range slices.Sorted(maps.Keys(state)) {
		id, ok := strings.CutPrefix(key, stateContainer)
		if !ok {
			continue
		}
		var stored storedContainer
		if err := json.Unmarshal(state[key], &stored); err != nil || stored.ID != id {
			unreadable = append(unreadable, fmt.Errorf("the journal's container %.40q: %w", id, err))
			continue
		}
		list = append(list, stored.container())
	}
	return list, unreadable
}

// declared keeps in the journal's state what was declared for containers for as long as a
// finding above info is open about them.
type declared struct {
	wanted  map[string][]byte // by key of the state
	written map[string]bool   // keys that the state has; nil where that is not known
}

// resume begins with what the state has.
func (d *declared) resume(state map[string][]byte) {
	d.wanted, d.written = make(map[string][]byte), make(map[string]bool)
	for key, text := range state {
		if strings.HasPrefix(key, stateContainer) {
			d.wanted[key], d.written[key] = text, true
		}
	}
}

// note enters what changed and what is open after it. A container that does not fit is left
// out: over a restart its findings are kept all the same.
func (d *declared) note(changes []agent.Change, open []drift.Finding) {
	needed := make(map[string]bool)
	for _, finding := range open {
		if finding.Severity > drift.Info && finding.ContainerID != "" {
			needed[stateContainer+finding.ContainerID] = true
		}
	}
	maps.DeleteFunc(d.wanted, func(key string, _ []byte) bool { return !needed[key] })
	sum := 0
	for _, text := range d.wanted {
		sum += len(text)
	}
	for _, change := range changes {
		if change.About == nil {
			continue
		}
		key := stateContainer + change.About.ID
		if _, known := d.wanted[key]; known || !needed[key] {
			continue
		}
		text, err := declarationOf(change.About)
		if err != nil || len(text) > maxDeclared || sum+len(text) > maxAllDeclared {
			continue
		}
		if d.wanted == nil {
			d.wanted = make(map[string][]byte)
		}
		d.wanted[key] = text
		sum += len(text)
	}
}

// cost is what the wanted entries take of the state's room.
func (d *declared) cost() (sum int64) {
	for key, text := range d.wanted {
		sum += stateCost(key, text)
	}
	return sum
}

// into returns a batch that makes the state hold what is wanted.
func (d *declared) into(batch journal.Batch) journal.Batch {
	dropped := make(map[string]bool)
	batch.Delete = slices.DeleteFunc(batch.Delete, func(key string) bool {
		dropped[key] = strings.HasPrefix(key, stateContainer)
		return d.wanted[key] != nil
	})
	for key := range d.written {
		if d.wanted[key] == nil && !dropped[key] {
			batch.Delete = append(batch.Delete, key)
		}
	}
	written := make(map[string]bool, len(d.wanted))
	for key, text := range d.wanted {
		if written[key] = true; d.written[key] {
			continue
		}
		if batch.Put == nil {
			batch.Put = make(map[string][]byte)
		}
		batch.Put[key] = text
	}
	d.written = written
	return batch
}
