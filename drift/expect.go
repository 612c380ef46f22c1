package drift

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/capdrift/capdrift/capdecode"
)

// Given are the settings that a person states instead of letting them be learnt
// from the node; nil means not stated.
type Given struct {
	Default     *capdecode.Set
	Held        *capdecode.Set
	Inheritable *bool
}

// Apply puts what is stated in the place of what was there.
func (g Given) Apply(s Settings) Settings {
	if g.Default != nil {
		s.Default = level(*g.Default)
	}
	if g.Held != nil {
		s.Held = *g.Held
	}
	if g.Inheritable != nil {
		s.Inheritable = *g.Inheritable
	}
	return s
}

// Expectations are the settings by which the containers of each runtime handler
// are judged.
//
// They are learnt from the node, since no list of defaults is the same
// everywhere. A configuration that changes every container of a handler is
// therefore one finding about the handler, and not one about each container.
type Expectations struct {
	runtime  string // of [Runtimes]; "" when it is none of them
	declared Settings
	handlers map[string]handler
	limits   []Limit
}

// handler is what was learnt of one runtime handler.
type handler struct {
	Settings
	config     Handler
	containers int // that agree with it
}

// Expect learns what is to be expected of the containers of one node. held is
// what the runtime's own process holds, nil when it could not be read.
func Expect(node Node, runtime Runtime, held *capdecode.Set, given Given, containers []Container) Expectations {
	key, known := runtimeNamed(runtime.Name)
	if !known {
		return Expectations{limits: []Limit{{
			What: "whether the OCI specs are what the runtime makes of its orders",
			Why:  fmt.Sprintf("what %.60q makes of them is not known", runtime.Name),
		}}}
	}
	e := Expectations{runtime: key, handlers: make(map[string]handler)}
	e.declared = Stock(key, min(node.CapLastCap, newestName))
	if held != nil {
		e.declared.Held = *held & comparable(node.CapLastCap)
	}
	e.declared = given.Apply(e.declared)

	hidden := 0
	groups := make(map[string][]order)
	var full []order // whose capabilities are what the runtime holds
	for i := range containers {
		if o, ok := e.order(&containers[i], node.CapLastCap); ok {
			groups[containers[i].RuntimeHandler] = append(groups[containers[i].RuntimeHandler], o)
			if o.Privileged || hasAll(o.Add) && len(o.Drop) == 0 {
				full = append(full, o)
			}
		} else if c := containers[i]; c.Declared.OCI != nil && !c.Sandbox && c.Pod != nil {
			hidden++
		}
	}
	if hidden > 0 && !runtimes[key].tellsCRI {
		e.limits = append(e.limits, Limit{
			What: fmt.Sprintf("whether the OCI specs of %d containers are what their pods ask for", hidden),
			Why:  runtime.Name + " does not show what it was told, and no pod spec of theirs is known; give one with --kubeconfig, --kubelet or --pods",
		})
	}
	if held == nil && given.Held == nil && key != CRIO && len(full) > 0 {
		e.declared.Held = common(full)
		e.limits = append(e.limits, Limit{
			What: "what the runtime's own process holds, which is what privileged and ALL give",
			Why:  fmt.Sprintf("its process could not be read; taken from %d of its containers", len(full)),
		})
	}
	e.cutToNames(full)
	for name, orders := range groups {
		e.handlers[name] = e.learn(orders, runtime.Handlers[cmp.Or(name, runtime.DefaultHandler)])
	}
	return e
}

// cutToNames takes from what privileged and ALL give the capabilities that the runtime has
// no name for: its table may end before the kernel's does, and then none of the containers
// that get everything gets its newest ones (containerd pkg/cap/cap_linux.go Current).
func (e *Expectations) cutToNames(full []order) {
	given := capdecode.Set(0)
	for _, o := range full {
		given |= o.got.Bounding
	}
	if given.Empty() {
		return
	}
	newest := capdecode.Cap(bits.Len64(uint64(given)) - 1)
	if unnamed := e.declared.Held &^ capdecode.Full(newest); !unnamed.Empty() {
		e.declared.Held &^= unnamed
		e.limits = append(e.limits, Limit{
			What: "whether containers that get everything should have " + list(unnamed),
			Why:  "the runtime holds it and gives it to none of them: it has no name for it, as one that is older than the kernel",
		})
	}
}

// ordinary returns the most that a container gets which asks for nothing above the
// default, for one of which only the handler and perhaps the pod spec is known; by says
// what that is.
func (e Expectations) ordinary(c *Container) (ceiling capdecode.Set, by string) {
	settings := e.declared
	if h, known := e.handlers[c.RuntimeHandler]; known {
		settings = h.Settings
	}
	if pod := c.Declared.Pod; pod != nil && e.runtime != "" {
		if oci, err := PredictOCI(e.runtime, Kubelet(*pod), settings); err == nil {
			return oci.upTo(settings.LastCap).Ceiling(), "its pod spec allows"
		}
	}
	return everything(settings.Default), "the runtime gives by default"
}

// order is a container's orders to the runtime and what the runtime made of them.
type order struct {
	CRI
	from Layer // where the orders were read
	got  OCI
}

// order reads a container's orders, from its pod spec where the runtime hides the
// CRI config.
func (e Expectations) order(c *Container, last capdecode.Cap) (order, bool) {
	if c.Sandbox || c.Declared.OCI == nil {
		return order{}, false
	}
	got := c.Declared.OCI.upTo(last)
	switch {
	case c.Declared.CRI != nil:
		return order{CRI: *c.Declared.CRI, from: LayerCRI, got: got}, true
	case c.Declared.Pod != nil && !runtimes[e.runtime].tellsCRI:
		return order{CRI: Kubelet(*c.Declared.Pod), from: LayerPod, got: got}, true
	}
	return order{}, false
}

// common returns what most of the containers hold.
func common(orders []order) capdecode.Set {
	count := make(map[capdecode.Set]int)
	for _, o := range orders {
		count[o.got.Bounding]++
	}
	return slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b capdecode.Set) int { return count[a] - count[b] })
}

// learn finds the settings that explain the most containers of one handler. What
// was declared wins over what explains no more.
func (e Expectations) learn(orders []order, config Handler) handler {
	best := handler{Settings: e.declared, config: config, containers: e.explained(e.declared, orders)}
	tried := []Settings{e.declared}
	for _, o := range orders {
		settings, ok := e.suppose(o)
		if !ok || slices.Contains(tried, settings) {
			continue
		}
		tried = append(tried, settings)
		if n := e.explained(settings, orders); n > best.containers {
			best.Settings, best.containers = settings, n
		}
		if len(tried) == 64 {
			break // a node with so many different ones has no common cause
		}
	}
	return best
}

// suppose returns the settings under which the runtime would have made just this
// of the orders; false when the defaults have no part in it.
func (e Expectations) suppose(o order) (Settings, bool) {
	if o.Privileged || hasAll(o.Add) || hasAll(o.Drop) {
		return Settings{}, false
	}
	settings := e.declared
	// What the lists name, in whichever spelling, tells nothing about the default.
	blank := settings
	blank.Default = capdecode.Sets{}
	added, err := runtimes[e.runtime].predict(o.CRI, blank)
	if err != nil {
		return Settings{}, false
	}
	blank.Default = level(capdecode.Full(capdecode.MaxCap))
	blank.Default.Inheritable = capdecode.Full(capdecode.MaxCap)
	kept, err := runtimes[e.runtime].predict(o.CRI, blank)
	if err != nil {
		return Settings{}, false
	}
	told := kept.Bounding &^ added.Bounding
	mix := func(got, otherwise capdecode.Set) capdecode.Set { return got&told | otherwise&^told }
	settings.Default = capdecode.Sets{
		Bounding:    mix(o.got.Bounding, settings.Default.Bounding),
		Permitted:   mix(o.got.Permitted, settings.Default.Permitted),
		Effective:   mix(o.got.Effective, settings.Default.Effective),
		Inheritable: mix(o.got.Inheritable, settings.Default.Inheritable),
	}
	if e.runtime == CRIO { // its inheritable set is a switch, and no list
		settings.Inheritable = !o.got.Inheritable.Empty()
		settings.Default = level(settings.Default.Bounding)
	}
	return settings, true
}

// explained counts the containers that the settings explain.
func (e Expectations) explained(s Settings, orders []order) (n int) {
	for _, o := range orders {
		if want, err := PredictOCI(e.runtime, o.CRI, s); err == nil && want.upTo(s.LastCap).Sets == o.got.Sets {
			n++
		}
	}
	return n
}

// Limits are what had to be assumed and what could not be judged.
func (e Expectations) Limits() []Limit { return e.limits }

// Findings tells of the handlers whose configuration changes every container.
func (e Expectations) Findings() []Finding {
	var findings []Finding
	for _, name := range slices.Sorted(maps.Keys(e.handlers)) {
		if f, ok := e.shifted(name, e.handlers[name]); ok {
			findings = append(findings, f)
		}
	}
	return findings
}

func (e Expectations) shifted(name string, h handler) (Finding, bool) {
	if h.Default == e.declared.Default && h.Inheritable == e.declared.Inheritable {
		return Finding{}, false
	}
	was, is := everything(e.declared.Default), everything(h.Default)
	more, less := is&^was, was&^is
	label := "the default runtime handler"
	if name != "" {
		label = fmt.Sprintf("runtime handler %q", clip(name))
	}
	f := Finding{
		ID:   findingID("handler", name, string(OCIMismatch), h.Default.Bounding.Hex(), h.Default.Permitted.Hex(), h.Default.Inheritable.Hex(), fmt.Sprint(h.Inheritable)),
		Kind: OCIMismatch, Severity: Info, From: LayerCRI, Layer: LayerOCI, Cause: CauseDefaults,
		RuntimeHandler: name, Capabilities: more | less,
	}
	if !runtimes[e.runtime].tellsCRI {
		f.From = LayerPod
	}
	if !more.Empty() || !h.Default.Inheritable.Within(e.declared.Default.Inheritable) || h.Inheritable && !e.declared.Inheritable {
		f.Severity = High
	}
	why := "the runtime's configuration replaces its default capabilities"
	switch {
	case h.config.BaseSpec != "":
		f.Cause = CauseBaseSpec
		why = fmt.Sprintf("its base_runtime_spec %q replaces the default capabilities", clip(h.config.BaseSpec))
	case e.runtime == CRIO:
		why = "default_capabilities or add_inheritable_capabilities of crio.conf replace CRI-O's own"
	case e.runtime == Containerd:
		f.Cause = CauseEarlierConfig
		why = "no base_runtime_spec is configured now; they were made under another configuration, or another containerd"
	}
	change := ""
	for _, part := range []struct {
		set  capdecode.Set
		verb string
	}{{more, "adds"}, {less, "takes away"}} {
		if !part.set.Empty() {
			change += fmt.Sprintf("; it %s %s", part.verb, list(part.set))
		}
	}
	if h.Inheritable && !e.declared.Inheritable || !h.Default.Inheritable.Within(e.declared.Default.Inheritable) {
		change += "; it fills the inheritable set, which gives file capabilities to non-root (the CVE-2022-24769 family)"
	}
	f.Message = fmt.Sprintf("%s gives its containers other capabilities than the runtime's own defaults: %s%s (seen in %d of its containers)", label, why, change, h.containers)
	f.Remedy = fmt.Sprintf("If this is meant, say so: --assume default-caps=%s. If not, correct the runtime's configuration and create the pods anew.", h.Default.Bounding.Hex())
	return f, true
}

// everything is what is in any of the sets that a program can get at.
func everything(s capdecode.Sets) capdecode.Set { return s.Bounding | s.Permitted | s.Inheritable }
