package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// policyView is what rules say of one container, and how it could satisfy them.
type policyView struct {
	Packs           []string     `json:"packs"`
	Failing         []resultForm `json:"failing"`
	SecurityContext suggestion   `json:"securityContext"`
}

// suggestion is one securityContext that satisfies the rules on paper and keeps what
// the processes are seen to hold, as far as both can be had.
type suggestion struct {
	YAML string `json:"yaml"`
	// Guesses are what it takes for granted and nobody can see.
	Guesses []string `json:"guesses"`
	Unmet   []string `json:"unmet"` // rules that no securityContext found satisfies
}

// viewOf holds one container of a report against rules.
func viewOf(report drift.Report, c drift.Container, rules *policy.Policy) *policyView {
	view := &policyView{Packs: []string{}, Failing: []resultForm{}, SecurityContext: suggest(report.Node, c, rules)}
	for _, pack := range rules.Packs() {
		view.Packs = append(view.Packs, pack.Name)
	}
	report.Containers, report.Findings = []drift.Container{c}, nil
	for _, r := range rules.Judge(report, report.TakenAt).Results {
		if r.Fails() {
			view.Failing = append(view.Failing, formOfResult(r))
		}
	}
	return view
}

// suggest begins with the strictest securityContext and gives back each capability
// that a process holds, as long as no rule minds.
func suggest(node drift.Node, c drift.Container, rules *policy.Policy) suggestion {
	s := suggestion{Guesses: []string{}}
	var held capdecode.Set
	var users []int64
	for _, p := range c.Processes {
		if p.UserNamespace.Relation == drift.RelationSame {
			held |= p.Caps.Permitted
		}
		if p.ContainerUID != nil && !slices.Contains(users, int64(*p.ContainerUID)) {
			users = append(users, int64(*p.ContainerUID))
		}
	}
	pod := drift.PodSecurity{
		Role: drift.RoleContainer, Drop: []string{"ALL"}, AllowPrivilegeEscalation: new(false), RunAsNonRoot: true, SeccompProfile: new("RuntimeDefault"),
		PodFields: &drift.PodFields{},
	}
	if untold := pod; c.Declared.Pod == nil || c.Declared.Pod.PodFields == nil {
		if untold.PodFields = nil; len(unmet(node, c, rules, untold)) > len(unmet(node, c, rules, pod)) {
			s.Guesses = append(s.Guesses, "its pod spec, which was not told, asks for no namespace, directory or port of the node and for nothing else that these rules forbid")
		}
	}
	root := slices.Contains(users, 0)
	if !root && len(users) == 1 {
		pod.RunAsUser = &users[0]
	}
	if root { // kept, where no rule minds
		relaxed := pod
		relaxed.RunAsNonRoot = false
		if len(unmet(node, c, rules, relaxed)) <= len(unmet(node, c, rules, pod)) {
			pod = relaxed
		} else {
			s.Guesses = append(s.Guesses, "the program runs as another user than root, which it does now; the image needs a numeric USER")
		}
	}
	var kept, left capdecode.Set
	for _, name := range held.Names() {
		one, _ := capdecode.ParseSet(name, newestCap) // its own name
		more := pod
		more.Add = append(slices.Clone(pod.Add), strings.TrimPrefix(name, "CAP_"))
		if len(unmet(node, c, rules, more)) > len(unmet(node, c, rules, pod)) {
			left |= one
			continue
		}
		pod, kept = more, kept|one
	}
	switch {
	case len(c.Processes) == 0 || c.Observation != drift.Observed:
		s.Guesses = append(s.Guesses, "what its processes hold was not seen, or only in part, so nothing is kept for them")
	case !left.Empty():
		s.Guesses = append(s.Guesses, fmt.Sprintf("it can do without %s, which its processes hold and a rule forbids; whether they use it cannot be seen", brief(left)))
	}
	if !kept.Empty() {
		s.Guesses = append(s.Guesses, "what is added is held; whether it is used cannot be seen, so perhaps less will do")
		if pod.RunAsNonRoot {
			s.Guesses = append(s.Guesses, "a user other than root gets what is added only by file capabilities of the program, or a setuid one")
		}
	}
	if slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.NoNewPrivileges != nil && !*p.NoNewPrivileges }) {
		s.Guesses = append(s.Guesses, "it starts no setuid program and none with file capabilities, which no_new_privs takes the effect from")
	}
	if slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.Seccomp != nil && *p.Seccomp == 0 }) {
		s.Guesses = append(s.Guesses, "the runtime's seccomp profile, without which it runs now, lets it do what it does")
	}
	s.YAML, s.Unmet = contextYAML(pod), unmet(node, c, rules, pod)
	return s
}

// unmet are the rules that fail, or cannot be told, on paper of a container declared so.
func unmet(node drift.Node, c drift.Container, rules *policy.Policy, pod drift.PodSecurity) []string {
	if d := c.Declared.Pod; d != nil {
		pod.Role, pod.HostUsers, pod.RuntimeClass = d.Role, d.HostUsers, d.RuntimeClass
		if d.PodFields != nil {
			pod.PodFields = d.PodFields
		}
	}
	c.Declared, c.Processes = drift.Declared{Pod: &pod}, nil
	ids := []string{}
	for _, r := range rules.Judge(drift.Report{Node: node, Containers: []drift.Container{c}}, c.Created).Results {
		if r.Declared.Verdict == policy.Fail || r.Declared.Verdict == policy.Unknown {
			ids = append(ids, r.Rule.ID)
		}
	}
	return ids
}

func contextYAML(pod drift.PodSecurity) string {
	var out strings.Builder
	out.WriteString("securityContext:\n  allowPrivilegeEscalation: false\n")
	if pod.RunAsNonRoot {
		out.WriteString("  runAsNonRoot: true\n")
	}
	if pod.RunAsUser != nil {
		fmt.Fprintf(&out, "  runAsUser: %d\n", *pod.RunAsUser)
	}
	out.WriteString("  capabilities:\n    drop: [ALL]\n")
	if len(pod.Add) > 0 {
		fmt.Fprintf(&out, "    add: [%s]\n", strings.Join(pod.Add, ", "))
	}
	out.WriteString("  seccompProfile:\n    type: RuntimeDefault\n")
	return out.String()
}

// write adds the view to explain's page.
func (v *policyView) write(out *strings.Builder) {
	fmt.Fprintf(out, "\nPolicy (%s):\n", strings.Join(v.Packs, ", "))
	if len(v.Failing) == 0 {
		fmt.Fprintln(out, "  Nothing fails.")
	}
	for _, r := range v.Failing {
		paragraph(out, "  ", fmt.Sprintf("%s %s: on paper %s, in the kernel %s.", r.Severity, r.Rule, r.Declared.text(), r.Actual.text()))
	}
	fmt.Fprintln(out, "\n  This satisfies it on paper, and keeps what the processes hold as far as the rules allow:")
	pasted(out, v.SecurityContext.YAML)
	for _, guess := range v.SecurityContext.Guesses {
		paragraph(out, "    a guess: ", guess+".")
	}
	if len(v.SecurityContext.Unmet) > 0 {
		paragraph(out, "    not satisfied by it: ", strings.Join(v.SecurityContext.Unmet, ", "))
	}
}

func (o outcomeForm) text() string { return strings.ReplaceAll(o.Verdict.String(), "_", " ") }
