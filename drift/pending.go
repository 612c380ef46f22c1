package drift

import (
	"fmt"
	"slices"
	"time"
)

// justMade is for how long a container may take until it can be read.
const justMade = 30 * time.Second

// Pending is what a look could not read yet, and what another one soon may: processes that an
// OCI runtime is starting, and containers that were just made or are about to end.
type Pending struct {
	processes  map[startingProcess]bool
	containers bool
}

type startingProcess struct {
	container string
	pid       int
	startTime uint64
}

// PendingOf returns what a first look could not read yet.
func PendingOf(containers []Container) Pending {
	p := Pending{processes: make(map[startingProcess]bool)}
	for i := range containers {
		c := &containers[i]
		p.containers = p.containers || halfSeen(c)
		for _, process := range c.Processes {
			if process.Observation == Starting {
				p.processes[startingProcess{c.ID, process.PID, process.StartTime}] = true
			}
		}
	}
	return p
}

// Any reports whether another look may say more.
func (p Pending) Any() bool { return p.containers || len(p.processes) > 0 }

// After returns what of it the next look could not read either. Processes that a runtime
// began to start since the first look are not among it, since a node where probes run at
// every moment would never be read. A container is for as long as it was just made.
func (p Pending) After(containers []Container, at time.Time) Pending {
	next := PendingOf(containers)
	for process := range next.processes {
		if !p.processes[process] {
			delete(next.processes, process)
		}
	}
	next.containers = false
	for i := range containers {
		c := &containers[i]
		next.containers = next.containers || halfSeen(c) && (c.Reason == beingStarted || !c.Created.IsZero() && at.Sub(c.Created) < justMade)
	}
	return next
}

// Missed reports whether processes came and went faster than they could be read, of which another
// look may miss none.
func Missed(limits []Limit) bool {
	return slices.ContainsFunc(limits, func(l Limit) bool { return l.Blind && l.Code == GapMissed })
}

// halfSeen reports whether not all was seen of a container that the host's /proc can show.
func halfSeen(c *Container) bool {
	return !c.Sandbox && !c.Ended && (c.Observation == Partial || c.Observation == Unreadable)
}

// Without returns the containers without the processes that a runtime began to start since the
// first look. What is left out is said by a limit, nil where nothing is.
func (p Pending) Without(containers []Container) (kept []Container, said *Limit) {
	left, first := 0, ""
	kept = make([]Container, len(containers))
	for i, c := range containers {
		processes := make([]Process, 0, len(c.Processes))
		for _, process := range c.Processes {
			if process.Observation == Starting && !p.processes[startingProcess{c.ID, process.PID, process.StartTime}] {
				if left++; left == 1 {
					first = c.Label()
				}
				continue
			}
			processes = append(processes, process)
		}
		c.Processes = processes
		kept[i] = c
	}
	if left == 0 {
		return containers, nil
	}
	return kept, &Limit{
		What: fmt.Sprintf("%d processes that an OCI runtime began to start after the first look, in %s for one", left, first),
		Why:  "they had executed nothing yet, and the report is about the moment before; the next one sees them",
	}
}
