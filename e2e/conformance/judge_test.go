//go:build linux

package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sets are the five capability sets, of an OCI spec or of a process.
type sets struct{ Bounding, Permitted, Effective, Inheritable, Ambient hexSet }

// A hexSet is the number behind "hex".
type hexSet uint64

func (s hexSet) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// A prediction is what `capdrift predict` printed of one request.
type prediction struct {
	Refused string
	OCI     struct {
		sets
		NoNewPrivileges, UserNamespace bool
		UnknownNames                   []string
	}
	AtStart []atStart
}

// atStart is what the first program holds when it starts as that user.
type atStart struct {
	User string // "root" or a uid
	Caps sets
}

// An outcome is what a runtime made of one request.
type outcome struct {
	Refused string // why it was not created
	Spec    struct {
		sets
		NoNewPrivileges, UserNamespace bool
		UID                            uint32
		Unknown                        []string // names of no capability, in any of the sets, sorted
	}
	// Process is the first one after its start; nil if that was not tried.
	Process *process
}

type process struct {
	Failed string // why it was not started
	sets
	NoNewPrivileges bool
}

// judge tells in what a prediction and the outcome differ. held is what the runtime's own
// process holds.
func judge(p prediction, o outcome, held hexSet) (differences []string) {
	compare := func(what string, predicted, got any) {
		if predicted != got {
			differences = append(differences, fmt.Sprintf("%s: predicted %v, got %v", what, predicted, got))
		}
	}
	compareSets := func(where string, predicted, got sets) {
		compare(where+"'s bounding set", predicted.Bounding, got.Bounding)
		compare(where+"'s permitted set", predicted.Permitted, got.Permitted)
		compare(where+"'s effective set", predicted.Effective, got.Effective)
		compare(where+"'s inheritable set", predicted.Inheritable, got.Inheritable)
		compare(where+"'s ambient set", predicted.Ambient, got.Ambient)
	}
	if p.Refused != "" || o.Refused != "" {
		if p.Refused == "" || o.Refused == "" {
			compare("refusal", strconv.Quote(p.Refused), strconv.Quote(o.Refused))
		}
		return differences
	}
	compareSets("the OCI spec", p.OCI.sets, o.Spec.sets)
	compare("the OCI spec's noNewPrivileges", p.OCI.NoNewPrivileges, o.Spec.NoNewPrivileges)
	compare("the OCI spec's user namespace", p.OCI.UserNamespace, o.Spec.UserNamespace)
	if !slices.Equal(p.OCI.UnknownNames, o.Spec.Unknown) {
		compare("the OCI spec's unknown names", fmt.Sprintf("%q", p.OCI.UnknownNames), fmt.Sprintf("%q", o.Spec.Unknown))
	}
	if len(p.AtStart) != 1 {
		return append(differences, fmt.Sprintf("%d predictions of the start, though the user is known", len(p.AtStart)))
	}
	user := strconv.FormatUint(uint64(o.Spec.UID), 10)
	if user == "0" {
		user = "root"
	}
	compare("the user", p.AtStart[0].User, user)
	if o.Process == nil {
		return differences
	}
	// Why the runtime must fail, which is no matter of the request alone: capset(2) raises
	// nothing above what the caller holds, and runc's init holds what containerd does
	// unless a new user namespace gives it everything (user_namespaces(7)).
	beyond := (p.OCI.Permitted | p.OCI.Effective | p.OCI.Inheritable) &^ held
	if beyond != 0 && !p.OCI.UserNamespace {
		if !strings.Contains(o.Process.Failed, "unable to apply caps: ") || !strings.Contains(o.Process.Failed, "operation not permitted") {
			differences = append(differences, fmt.Sprintf("the start: predicted to fail, for the runtime does not hold %v; got %q", beyond, o.Process.Failed))
		}
		return differences
	}
	if o.Process.Failed != "" {
		return append(differences, "the start: predicted to succeed, got "+o.Process.Failed)
	}
	compareSets("the process", p.AtStart[0].Caps, o.Process.sets)
	compare("the process's NoNewPrivs", p.OCI.NoNewPrivileges, o.Process.NoNewPrivileges)
	return differences
}

// shrink makes a request that fails as small as it gets while it still fails, leaving out one
// thing at a time.
func shrink(r request, fails func(request) bool) request {
	for {
		i := slices.IndexFunc(r.smaller(), fails)
		if i < 0 {
			return r
		}
		r = r.smaller()[i]
	}
}

// smaller are the requests that lack one thing of r.
func (r request) smaller() (all []request) {
	without := func(change func(*request)) {
		smaller := r
		change(&smaller)
		all = append(all, smaller)
	}
	for _, list := range []func(*request) *[]string{
		func(r *request) *[]string { return &r.Add },
		func(r *request) *[]string { return &r.Drop },
		func(r *request) *[]string { return &r.Ambient },
	} {
		names := *list(&r)
		if len(names) > 1 {
			without(func(r *request) { *list(r) = nil })
		}
		for i := range names {
			without(func(r *request) { *list(r) = slices.Concat(names[:i], names[i+1:]) })
		}
	}
	if r.Privileged {
		without(func(r *request) { r.Privileged = false })
	}
	if r.NoNewPrivs {
		without(func(r *request) { r.NoNewPrivs = false })
	}
	if r.RunAsUser != nil {
		without(func(r *request) { r.RunAsUser = nil })
	}
	if r.UserNamespace != "" {
		without(func(r *request) { r.UserNamespace = "" })
	}
	return all
}

// rightly returns a prediction and the outcome that it predicts.
func rightly() (p prediction, o outcome) {
	five := sets{Bounding: 0xf0, Permitted: 0x70, Effective: 0x30, Inheritable: 0x10, Ambient: 0x01}
	p.OCI.sets, o.Spec.sets = five, five
	p.OCI.NoNewPrivileges, o.Spec.NoNewPrivileges = true, true
	p.OCI.UnknownNames, o.Spec.Unknown = []string{"CAP_BOGUS"}, []string{"CAP_BOGUS"}
	atStarted := sets{Bounding: 0xf0, Inheritable: 0x10}
	p.AtStart, o.Spec.UID = []atStart{{"1000", atStarted}}, 1000
	o.Process = &process{sets: atStarted, NoNewPrivileges: true}
	return p, o
}

func TestJudgeTellsEachWrongPrediction(t *testing.T) {
	const held = 0xff
	if p, o := rightly(); judge(p, o, held) != nil {
		t.Fatalf("a right prediction: %q", judge(p, o, held))
	}
	for name, change := range map[string]func(*prediction, *outcome){
		"the OCI spec's bounding set":     func(p *prediction, _ *outcome) { p.OCI.Bounding |= 0x100 },
		"the OCI spec's permitted set":    func(p *prediction, _ *outcome) { p.OCI.Permitted &^= 0x40 },
		"the OCI spec's effective set":    func(p *prediction, _ *outcome) { p.OCI.Effective = 0 },
		"the OCI spec's inheritable set":  func(_ *prediction, o *outcome) { o.Spec.Inheritable = 0 },
		"the OCI spec's ambient set":      func(_ *prediction, o *outcome) { o.Spec.Ambient = 0 },
		"the OCI spec's noNewPrivileges":  func(_ *prediction, o *outcome) { o.Spec.NoNewPrivileges = false },
		"the OCI spec's user namespace":   func(_ *prediction, o *outcome) { o.Spec.UserNamespace = true },
		"the OCI spec's unknown names":    func(_ *prediction, o *outcome) { o.Spec.Unknown = nil },
		"the user":                        func(_ *prediction, o *outcome) { o.Spec.UID = 0 },
		"2 predictions of the start":      func(p *prediction, _ *outcome) { p.AtStart = append(p.AtStart, p.AtStart[0]) },
		"the process's bounding set":      func(_ *prediction, o *outcome) { o.Process.Bounding = 0 },
		"the process's permitted set":     func(_ *prediction, o *outcome) { o.Process.Permitted = 1 },
		"the process's effective set":     func(p *prediction, _ *outcome) { p.AtStart[0].Caps.Effective = 1 },
		"the process's inheritable set":   func(_ *prediction, o *outcome) { o.Process.Inheritable = 0 },
		"the process's ambient set":       func(_ *prediction, o *outcome) { o.Process.Ambient = 1 },
		"the process's NoNewPrivs":        func(_ *prediction, o *outcome) { o.Process.NoNewPrivileges = false },
		"refusal: predicted \"\"":         func(_ *prediction, o *outcome) { o.Refused = "no such container" },
		"refusal: predicted \"never\"":    func(p *prediction, _ *outcome) { p.Refused = "never" },
		"the start: predicted to succeed": func(_ *prediction, o *outcome) { o.Process = &process{Failed: "unable to apply caps"} },
	} {
		t.Run(name, func(t *testing.T) {
			p, o := rightly()
			change(&p, &o)
			if got := judge(p, o, held); len(got) != 1 || !strings.HasPrefix(got[0], name) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestJudgeKnowsWhichStartsFail(t *testing.T) {
	const refusal = "unable to apply caps: can't apply capabilities: operation not permitted"
	for _, row := range []struct {
		name          string
		held          hexSet
		userNamespace bool
		failed        string
		want          int
	}{
		{"the runtime lacks one and fails", 0x3f, false, refusal, 0},
		{"the runtime lacks one and succeeds all the same", 0x3f, false, "", 1},
		{"the runtime lacks one and fails for another reason", 0x3f, false, "no such file or directory", 1},
		{"the runtime lacks one, but not in the new user namespace", 0x3f, true, "", 0},
		{"the runtime lacks one and fails in a new user namespace", 0x3f, true, refusal, 1},
		{"the runtime holds all and fails", 0xff, false, refusal, 1},
		{"the runtime holds all and succeeds", 0xff, false, "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, o := rightly()
			p.OCI.UserNamespace, o.Spec.UserNamespace = row.userNamespace, row.userNamespace
			if row.failed != "" {
				o.Process = &process{Failed: row.failed}
			}
			if got := judge(p, o, row.held); len(got) != row.want {
				t.Errorf("got %q, want %d differences", got, row.want)
			}
		})
	}
}

// A runtime that forgets a drop when the same list has an empty name, for one user.
func TestShrinkLeavesTheCauseAlone(t *testing.T) {
	uid, tries := int64(1000), 0
	fails := func(r request) bool {
		tries++
		return slices.Contains(r.Drop, "") && slices.Contains(r.Drop, "KILL") && r.RunAsUser != nil
	}
	large := request{
		Add: everyName, Drop: append([]string{"", "", "KILL", "KILL", "ALL"}, everyName...), Ambient: []string{"CHOWN"},
		Privileged: true, NoNewPrivs: true, RunAsUser: &uid, UserNamespace: podUsers,
	}
	before := large.String()
	want := request{Drop: []string{"", "KILL"}, RunAsUser: &uid}
	if got := shrink(large, fails); got.String() != want.String() {
		t.Errorf("got %v, want %v", got, want)
	}
	if large.String() != before {
		t.Errorf("it changed what it was given to %v", large)
	}
	if tries > 5000 {
		t.Errorf("%d tries, each of them a container", tries)
	}
}
