package agent

import (
	"slices"

	"github.com/capdrift/capdrift/drift"
)

// maxEnded bounds the containers that are looked for after they ended.
const maxEnded = 1024

// ended returns containers as they are looked for after they ended: their first process
// has ended too, and its pid may be another's.
func ended(containers []drift.Container) []drift.Container {
	list := slices.Clone(containers)
	for i := range list {
		list[i].Ended, list[i].InitPID, list[i].Processes = true, 0, nil
	}
	return list
}

// nowEnded returns the containers that run no more, when the runtime has told another
// inventory: those that it tells of, those that it told of as running before, and those
// that were known to have ended, as long as their cgroups hold processes.
func (s *state) nowEnded(told drift.Inventory) (list []drift.Container) {
	known := make(map[string]bool, len(told.Containers)+len(told.Starting))
	for _, c := range told.Containers {
		known[c.ID] = true
	}
	for _, id := range told.Starting {
		known[id] = true
	}
	for _, c := range slices.Concat(ended(told.Ended), s.ended, ended(s.listed)) {
		if !known[c.ID] && len(list) < maxEnded {
			known[c.ID] = true
			list = append(list, c)
		}
	}
	return list
}

// living returns the containers of a sweep without those that ended and of which no
// process is left, which are looked for no more.
func (s *state) living(seen []drift.Container) []drift.Container {
	over := make(map[string]bool)
	list := slices.DeleteFunc(seen, func(c drift.Container) bool {
		if c.Ended && len(c.Processes) == 0 {
			over[c.ID] = true
		}
		return over[c.ID]
	})
	s.ended = slices.DeleteFunc(s.ended, func(c drift.Container) bool { return over[c.ID] })
	return list
}

// named returns the containers that a runtime tells of, whatever has become of them.
func named(told drift.Inventory) map[string]bool {
	ids := make(map[string]bool, len(told.Containers)+len(told.Starting)+len(told.Ended))
	for _, c := range slices.Concat(told.Containers, told.Ended) {
		ids[c.ID] = true
	}
	for _, id := range told.Starting {
		ids[id] = true
	}
	return ids
}
