package policy

import (
	"slices"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// An exception accepts a failure where it names all that offends, and where nothing fails
// once those capabilities are taken away. Neither is enough for every condition. What
// offends is read from what a condition asks, and !names.exists(…) may hide from that what
// is missing. And where two capabilities fail only together, one of them taken away leaves
// nothing that fails, though the other offends as well.

// trial judges a container again without what an exception accepts.
type trial struct {
	exception  *Exception
	container  *drift.Container
	rest, bare *bench // without what is accepted, and without any capability
}

func newTrial(e *Exception, subject Subject, threads bool, steps *int) *trial {
	var full capdecode.Set
	if subject.Node != nil {
		full = capdecode.Full(subject.Node.CapLastCap)
	}
	put := func(set capdecode.Set, all bool) *bench {
		stripped := subject
		stripped.Container = without(subject.Container, set, all, full)
		return newBench(stripped, threads, steps)
	}
	t := &trial{exception: e, container: subject.Container, bare: put(0, true)}
	t.rest = t.bare
	if !e.AllCapabilities {
		t.rest = put(e.Capabilities, false)
	}
	return t
}

// accepts reports whether the exception, which names all that is known to offend, accepts
// what fails; and for each side why more might fail, which is not accepted with it.
func (t *trial) accepts(r *Result) (declared, actual string, accepts bool) {
	accepts = true
	if r.Declared.Verdict == Fail {
		declared, accepts = t.side(r.Rule.Declared, func(b *bench) Outcome { return b.declared(r.Rule) })
	}
	if accepts && r.Actual.Verdict == Fail {
		actual, accepts = t.side(r.Rule.Actual, func(b *bench) Outcome { return b.actual(r.Rule) })
	}
	return declared, actual, accepts
}

func (t *trial) side(f *Filter, judge func(*bench) Outcome) (unjudged string, accepts bool) {
	rest := judge(t.rest)
	switch {
	case rest.Verdict == Unknown:
		return rest.Reason, t.exception.AllCapabilities || !rest.wrong
	case rest.Verdict == Pass || t.exception.AllCapabilities:
		return rest.Unjudged, true
	}
	// It fails by something else than capabilities, such as a user, and naming the rule
	// accepts that; if nothing fails for want of taking more of them away. Of what is not
	// dropped nobody can tell.
	bare := judge(t.bare)
	return rest.Unjudged, bare.Verdict == Fail && bare.Failing == rest.Failing && (!f.readsField("drop") || dropsAll(t.container))
}

// without is the container with capabilities taken away in every layer; with all of them,
// it is not privileged either. Names that mean none are left, and ALL, unless all of it goes.
func without(c *drift.Container, set capdecode.Set, all bool, full capdecode.Set) *drift.Container {
	s := stripper{set: set, all: all, full: full}
	if all {
		s.set = ^capdecode.Set(0)
	}
	s.dropsAll = all || c.Declared.OCI != nil && (c.Declared.OCI.Bounding|c.Declared.OCI.Permitted).Within(set)
	stripped := *c
	d := &stripped.Declared
	if d.Pod != nil {
		layer := *d.Pod
		layer.Add, layer.Drop, layer.Privileged = s.added(layer.Add), s.dropped(layer.Drop), layer.Privileged && !all
		d.Pod = &layer
	}
	if d.CRI != nil {
		layer := *d.CRI
		layer.Add, layer.AddAmbient, layer.Drop, layer.Privileged = s.added(layer.Add), s.added(layer.AddAmbient), s.dropped(layer.Drop), layer.Privileged && !all
		d.CRI = &layer
	}
	for _, layer := range []**drift.OCI{&d.OCI, &d.Bundle} {
		if *layer != nil {
			spec := **layer
			spec.Sets = s.held(spec.Sets)
			*layer = &spec
		}
	}
	if d.Privileged != nil {
		d.Privileged = new(*d.Privileged && !all)
	}
	stripped.Processes = slices.Clone(c.Processes)
	for i := range stripped.Processes {
		p := &stripped.Processes[i]
		p.Caps, p.Threads = s.held(p.Caps), slices.Clone(p.Threads)
		for k := range p.Threads {
			p.Threads[k].Caps = s.held(p.Threads[k].Caps)
		}
	}
	return &stripped
}

// stripper takes a set of capabilities away.
type stripper struct {
	set, full capdecode.Set
	all       bool
	dropsAll  bool // nothing is left that the runtime gave
}

func (s *stripper) held(sets capdecode.Sets) capdecode.Sets {
	return capdecode.Sets{
		Inheritable: sets.Inheritable &^ s.set, Permitted: sets.Permitted &^ s.set, Effective: sets.Effective &^ s.set,
		Bounding: sets.Bounding &^ s.set, Ambient: sets.Ambient &^ s.set,
	}
}

func (s *stripper) added(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		var one named
		one.add(name, s.full)
		return s.all || !one.unnamed && one.set.Within(s.set)
	})
}

// dropped writes them as Kubernetes does, without CAP_.
func (s *stripper) dropped(names []string) []string {
	names = slices.Clone(names)
	if !s.all {
		for _, name := range s.set.Names() {
			names = append(names, strings.TrimPrefix(name, "CAP_"))
		}
	}
	if s.dropsAll {
		names = append(names, "ALL")
	}
	return names
}

// dropsAll reports whether every layer that has a list of what is dropped names ALL there.
func dropsAll(c *drift.Container) bool {
	all := func(names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			return strings.EqualFold(strings.TrimPrefix(strings.ToUpper(name), "CAP_"), "ALL")
		})
	}
	d := &c.Declared
	return (d.Pod == nil || all(d.Pod.Drop)) && (d.CRI == nil || all(d.CRI.Drop)) && (d.Pod != nil || d.CRI != nil)
}
