package drift_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/capdrift/capdrift/drift"
)

func TestIncidents(t *testing.T) {
	finding := func(incident string, severity drift.Severity, kind drift.Kind) drift.Finding {
		return drift.Finding{ID: incident + string(kind), Incident: incident, Severity: severity, Kind: kind}
	}
	accepted := finding("a", drift.Critical, drift.BoundingExcess)
	accepted.Exception = "known"
	for _, test := range []struct {
		name     string
		findings []drift.Finding
		want     []string // each "incident: worst; others"
	}{
		{name: "no findings, no incidents"},
		{
			"findings without an incident stand alone",
			[]drift.Finding{finding("", drift.High, drift.DropIgnored), finding("", drift.High, drift.DropIgnored)},
			[]string{": drop_ignored; ", ": drop_ignored; "},
		},
		{
			"one process is one incident, however bad each finding",
			[]drift.Finding{finding("a", drift.High, drift.NNPMissing), finding("a", drift.Critical, drift.PermittedExcess), finding("a", drift.Info, drift.GainedWithinCeiling)},
			[]string{"a: permitted_excess; nnp_missing gained_within_ceiling"},
		},
		{
			"the worst incident comes first, whatever came first",
			[]drift.Finding{finding("", drift.Medium, drift.AddIgnored), finding("a", drift.High, drift.NNPMissing), finding("b", drift.High, drift.InheritableExcess), finding("b", drift.Critical, drift.BoundingExcess)},
			[]string{"b: bounding_excess; inheritable_excess", "a: nnp_missing; ", ": add_ignored; "},
		},
		{
			"incidents of one severity stay in their order",
			[]drift.Finding{finding("z", drift.High, drift.NNPMissing), finding("", drift.High, drift.DropIgnored), finding("a", drift.High, drift.NNPMissing), finding("z", drift.High, drift.InheritableExcess)},
			[]string{"z: nnp_missing; inheritable_excess", ": drop_ignored; ", "a: nnp_missing; "},
		},
		{
			"what an exception accepts does not stand for the rest",
			[]drift.Finding{accepted, finding("a", drift.High, drift.NNPMissing)},
			[]string{"a: bounding_excess; ", "a: nnp_missing; "},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := fmt.Sprint(test.findings)
			var got []string
			for _, incident := range drift.Incidents(test.findings) {
				kinds := make([]string, 0, 4)
				for _, f := range incident.Others() {
					kinds = append(kinds, string(f.Kind))
				}
				got = append(got, fmt.Sprintf("%s: %s; %s", incident.ID, incident.Worst().Kind, strings.Join(kinds, " ")))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if fmt.Sprint(test.findings) != before {
				t.Error("the findings that were given were written to")
			}
		})
	}
}
