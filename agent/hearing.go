package agent

import (
	"fmt"
	"time"

	"github.com/capdrift/capdrift/drift"
)

// hearing is whether the runtime tells of what it does. What it does not tell is found by
// looking, later; what starts and ends in between is not found at all.
type hearing struct {
	silent string    // why nothing is told, as the runtime is configured; "" where it is
	why    string    // why nothing was told
	since  time.Time // from when; zero for never
	until  time.Time // zero while nothing is told
}

// deafTold is how long a time in which nothing was told is shown once it is over.
const deafTold = 10 * time.Minute

// hear enters what a runtime tells of its telling.
func (l *Loop) hear(event drift.RuntimeEvent) {
	h := &l.state.hearing
	switch event.Kind {
	case drift.EventSilent:
		*h = hearing{silent: event.Why}
	case drift.EventBlind:
		if h.silent = ""; h.since.IsZero() || !h.until.IsZero() {
			h.since, h.until = l.Now(), time.Time{}
		}
		h.why = event.Why
	case drift.EventHeard:
		if h.silent = ""; !h.since.IsZero() && h.until.IsZero() {
			h.until = l.Now()
		}
	default:
		return
	}
	l.publish(nil)
}

// limits says what is not told, and what was not. None of it is blind: what runs is listed
// all the same.
func (h hearing) limits(now time.Time, list time.Duration) []drift.Limit {
	switch {
	case h.silent != "":
		return []drift.Limit{{
			What: "when containers and execs start, as it happens",
			Why:  fmt.Sprintf("%s; what starts is found when the runtime is listed, every %s", h.silent, list),
		}}
	case h.since.IsZero() || !h.until.IsZero() && now.Sub(h.until) > deafTold:
		return nil
	case h.until.IsZero():
		return []drift.Limit{{What: "what starts and ends since " + h.since.UTC().Format(time.RFC3339), Why: "the runtime's events are not heard: " + h.why}}
	}
	return []drift.Limit{{
		What: fmt.Sprintf("what started and ended in the %s from %s", h.until.Sub(h.since).Round(100*time.Millisecond), h.since.UTC().Format(time.RFC3339)),
		Why:  "the runtime's events were not heard: " + h.why,
	}}
}
