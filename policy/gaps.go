package policy

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/capdrift/capdrift/drift"
)

// AcceptedGap is what somebody accepted not to be seen, where, and until when. It accepts
// gaps that it names and no others.
type AcceptedGap struct {
	ID    string
	Codes []drift.GapCode
	// Node and Object are names, in which a * stands for any text.
	Node, Object  string
	Owner, Reason string
	// Expires is the first moment at which it counts no more, as an [Exception]'s.
	Expires time.Time
	File    string
	Line    int
}

// LoadGaps reads what a file of exceptions accepts of gaps in the coverage,
// docs/exit-status.md. file is its name in errors, each of which is a [*LoadError].
func LoadGaps(file string, text []byte) ([]AcceptedGap, error) {
	_, gaps, err := loadExceptions(file, text)
	return gaps, err
}

func (r *reader) gap(n *yaml.Node) AcceptedGap {
	g := AcceptedGap{File: r.file, Line: n.Line}
	r.mapping(n, "an accepted gap", map[string]func(*yaml.Node){
		"id": r.id(&g.ID, "the gap's id"),
		"gaps": func(n *yaml.Node) {
			r.each(n, "gaps", func(n *yaml.Node) { g.Codes = append(g.Codes, r.gapCode(n)) })
		},
		"node":    r.put(&g.Node, "node"),
		"object":  r.put(&g.Object, "object"),
		"owner":   r.put(&g.Owner, "owner"),
		"reason":  r.put(&g.Reason, "reason"),
		"expires": func(n *yaml.Node) { g.Expires = r.expiry(n, "expires") },
	}, "id", "gaps", "node", "object", "owner", "reason", "expires")
	return g
}

func (r *reader) gapCode(n *yaml.Node) drift.GapCode {
	code := drift.GapCode(r.text(n, "a gap"))
	if r.err == nil && !slices.Contains(drift.AcceptableGaps(), code) {
		var names []string
		for _, known := range drift.AcceptableGaps() {
			names = append(names, string(known))
		}
		hint := didYouMean(string(code), names)
		if hint == "" {
			hint = "; want one of " + strings.Join(names, ", ")
		}
		r.fail(n, "no gap that can be accepted is called %.40q%s", string(code), hint)
	}
	return code
}

// accepts reports whether it names the gap.
func (g *AcceptedGap) accepts(gap drift.Gap) bool {
	return slices.Contains(g.Codes, gap.Code) && matchesName(g.Node, gap.Node) && matchesName(g.Object, gap.Object)
}

// matchesName reports whether a name is the pattern's, in which a * stands for any text.
func matchesName(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile(`(?s)^` + strings.Join(parts, ".*") + `$`).MatchString(name)
}

// AcceptGaps takes from the gaps what is accepted at this time. States say what became of each
// acceptance, in their order; an expired one accepts nothing.
func AcceptGaps(accepted []AcceptedGap, gaps []drift.Gap, now time.Time) (left []drift.Gap, states []ExceptionState) {
	states = make([]ExceptionState, len(accepted))
	for i := range accepted {
		states[i] = ExceptionUnused
		if !now.Before(accepted[i].Expires) {
			states[i] = ExceptionExpired
		}
	}
	for _, gap := range gaps {
		taken := false
		for i := range accepted {
			if states[i] != ExceptionExpired && accepted[i].accepts(gap) {
				states[i], taken = ExceptionUsed, true
			}
		}
		if !taken {
			left = append(left, gap)
		}
	}
	return left, states
}
