package main

import (
	"fmt"
	"io"
	"time"

	human "k8s.io/apimachinery/pkg/util/duration"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// staleAfter is the age from which an answer of an agent says how old it is: two sweeps. How
// often an agent sweeps it does not tell, so these are the sweeps of the default cadence.
func staleAfter() time.Duration { return 2 * agent.DefaultCadence().Sweep }

// tellAge says when a node was looked at, where that is longer ago than two sweeps, by the clock of
// who asks. node is its name where several are asked, else "".
func tellAge(errs io.Writer, node string, takenAt, now time.Time) {
	age := now.Sub(takenAt)
	if takenAt.IsZero() || age <= staleAfter() {
		return
	}
	who := "the node"
	if node != "" {
		who = "node " + printable(node)
	}
	fmt.Fprintf(errs, "capdrift: warning: %s was looked at %s ago\n", who, human.HumanDuration(age))
}

// tellAge says it of a report, where an agent looked.
func (o *sourceOptions) tellAge(errs io.Writer, report drift.Report) {
	if o.client.agent != "" {
		tellAge(errs, "", report.TakenAt, time.Now())
	}
}

// openedFirst is when the first of the findings was opened; nil where that is not known of any.
func openedFirst(findings []drift.Finding) (first *time.Time) {
	for _, f := range findings {
		if f.OpenedAt != nil && (first == nil || f.OpenedAt.Before(*first)) {
			first = f.OpenedAt
		}
	}
	return first
}
