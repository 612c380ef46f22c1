package drift

import "slices"

// Incident is one thing that happened, and the findings that show it: an injected
// process is too much in several sets, and lacks no_new_privs besides.
type Incident struct {
	ID       string    // the findings' [Finding.Incident]; empty for one that stands alone
	Findings []Finding // the worst first, at least one
}

// Worst returns the finding that stands for the incident where one line has to do.
func (i Incident) Worst() Finding { return i.Findings[0] }

// Others returns all findings but the worst.
func (i Incident) Others() []Finding { return i.Findings[1:] }

// Incidents groups findings by their incident, the worst group first. Findings and
// groups of one severity stay in the order in which they came. What an exception
// accepts is grouped apart: it must not stand for what none accepts. findings is not
// written to.
func Incidents(findings []Finding) []Incident {
	type key struct{ incident, exception string }
	var groups []Incident
	places := make(map[key]int)
	for _, f := range findings {
		at, known := places[key{f.Incident, f.Exception}]
		if !known || f.Incident == "" {
			at = len(groups)
			places[key{f.Incident, f.Exception}] = at
			groups = append(groups, Incident{ID: f.Incident})
		}
		groups[at].Findings = append(groups[at].Findings, f)
	}
	for _, group := range groups {
		slices.SortStableFunc(group.Findings, func(a, b Finding) int { return int(b.Severity - a.Severity) })
	}
	slices.SortStableFunc(groups, func(a, b Incident) int { return int(b.Worst().Severity - a.Worst().Severity) })
	return groups
}
