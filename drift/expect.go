package drift

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"time"

	"github.com/capdrift/capdrift/capdecode"
)

// Given are settings that a person states, or the runtime tells of itself, and that are
// then not learnt from the node's containers; nil means not given.
type Given struct {
	Default     *capdecode.Set
	Held        *capdecode.Set
	Inheritable *bool
}

// Apply puts what is given in the place of what was there.
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
// What the runtime tells of itself comes first, then what a person states, then what most
// of the node's containers show: no list of defaults is the same everywhere. A
// configuration that changes every container is one finding about the runtime or its
// handler, and not one about each container.
type Expectations struct {
	runtime  string   // of [Runtimes]; "" when it is none of them
	declared Settings // the stock ones, or those that are stated
	given    Given
	told     Given // what the runtime tells of itself
	config   Runtime
	handlers map[string]handler  // by [Expectations.scope]
	generous map[string]generous // by runtime handler
	limits   []Limit
}

// handler is what is expected of the containers of one runtime handler, or of all of
// them where the runtime has one configuration for all.
type handler struct {
	Settings
	config     Handler
	containers int // that agree with it
	// told are the settings that the runtime tells, and that its next container gets;
	// nil where it does not tell.
	told *Settings
	// earlier are other settings under which some of its containers were made.
	earlier []earlier
}

// earlier are settings that the containers show which were made under another
// configuration of the runtime.
type earlier struct {
	Settings
	// severity is that of a container made under them; 0 where the sets decide, because
	// it is not sure enough when these were the runtime's.
	severity Severity
}

// scope returns the key of the settings that a container of the named runtime handler has.
func (e Expectations) scope(handler string) string {
	if !runtimes[e.runtime].perHandler {
		return ""
	}
	return handler
}

// of returns what is expected of the containers of a runtime handler.
func (e Expectations) of(name string) handler {
	if h, known := e.handlers[e.scope(name)]; known {
		return h
	}
	return e.learn(nil, e.configured(name))
}

// configured returns how a runtime handler is configured, as far as that is told.
func (e Expectations) configured(name string) Handler {
	return e.config.Handlers[cmp.Or(name, e.config.DefaultHandler)]
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
	e := Expectations{runtime: key, given: given, told: runtime.Told, config: runtime, handlers: make(map[string]handler)}
	e.declared = Stock(key, min(node.CapLastCap, newestName))
	if held != nil {
		e.declared.Held = *held & comparable(node.CapLastCap)
	}
	e.declared = given.Apply(e.declared)

	hidden := 0
	groups := make(map[string][]order)
	if !runtimes[key].perHandler {
		groups[""] = nil // its configuration is known, or assumed, without a container
	}
	var full []order // whose capabilities are what the runtime holds
	for i := range containers {
		if o, ok := e.order(&containers[i], node.CapLastCap); ok {
			scope := e.scope(containers[i].RuntimeHandler)
			groups[scope] = append(groups[scope], o)
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
		e.handlers[name] = e.learn(orders, e.configured(name))
	}
	e.generosity(node, containers)
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
	if e.runtime != "" {
		settings = e.of(c.RuntimeHandler).Settings
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
	made time.Time // zero when not known
	pod  string    // containers of one pod have the same
}

// order reads a container's orders, from its pod spec where the runtime hides the
// CRI config.
func (e Expectations) order(c *Container, last capdecode.Cap) (order, bool) {
	if c.Sandbox || c.Declared.OCI == nil {
		return order{}, false
	}
	o := order{got: c.Declared.OCI.upTo(last), made: c.Made, pod: podKey(c)}
	switch {
	case c.Declared.CRI != nil:
		o.CRI, o.from = *c.Declared.CRI, LayerCRI
	case c.Declared.Pod != nil && !runtimes[e.runtime].tellsCRI:
		o.CRI, o.from = Kubelet(*c.Declared.Pod), LayerPod
	default:
		return order{}, false
	}
	return o, true
}

// podKey tells containers of different pods apart.
func podKey(c *Container) string {
	if c.Pod == nil {
		return c.ID
	}
	return cmp.Or(c.Pod.UID, c.Pod.Namespace+"/"+c.Pod.Name)
}

// common returns what most of the containers hold.
func common(orders []order) capdecode.Set {
	count := make(map[capdecode.Set]int)
	for _, o := range orders {
		count[o.got.Bounding]++
	}
	return slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b capdecode.Set) int { return count[a] - count[b] })
}

// learn finds the settings by which the containers of one handler are judged, and those
// under which some of them were made before.
func (e Expectations) learn(orders []order, config Handler) handler {
	fixed := Given{Default: e.given.Default, Inheritable: e.given.Inheritable}
	if config.BaseSpec != "" {
		fixed.Default = nil // what is stated is the runtime's, and this handler has its own
	}
	h := handler{config: config}
	if told, ok := e.tells(config); ok {
		h.told, h.Settings = &told, told
	} else {
		h.Settings = e.majority(orders, fixed)
		// What is stated may be meant for a handler with a base_runtime_spec alone.
		own := e.declared
		own.Default = level(runtimes[e.runtime].stock)
		if fixed.Default != nil && runtimes[e.runtime].perHandler && e.explained(own, orders) > e.explained(h.Settings, orders) {
			h.Settings = own
		}
	}
	showing := slices.DeleteFunc(slices.Clone(orders), func(o order) bool { return !o.shows() })
	var others []order
	for _, o := range showing {
		if !e.explains(h.Settings, o) {
			others = append(others, o)
		}
	}
	if len(others) > 0 {
		e.history(&h, fixed, showing, others)
	}
	h.containers = e.explained(h.Settings, orders)
	return h
}

// tells returns the default capabilities that the runtime tells of itself, and gives to
// the next container of a handler. containerd has no other default than its own and the
// file of a handler, whose content it does not tell.
func (e Expectations) tells(config Handler) (Settings, bool) {
	switch {
	case e.told.Default != nil:
		return e.told.Apply(e.declared), true
	case e.runtime == Containerd && config.Type != "" && config.BaseSpec == "" && e.given.Default == nil:
		return e.declared, true
	}
	return Settings{}, false
}

// majority returns the settings that explain the most containers of one handler. What was
// declared wins over what explains no more.
func (e Expectations) majority(orders []order, fixed Given) Settings {
	best, most := e.declared, e.explained(e.declared, orders)
	for _, settings := range e.candidates(orders, fixed) {
		if n := e.explained(settings, orders); n > most {
			best, most = settings, n
		}
	}
	return best
}

// candidates returns the settings that single containers show.
func (e Expectations) candidates(orders []order, fixed Given) []Settings {
	const most = 64 // a node with so many different ones has no common cause
	tried := []Settings{e.declared}
	for _, o := range orders {
		settings, ok := e.suppose(o)
		if !ok {
			continue
		}
		if settings = fixed.Apply(settings); slices.Contains(tried, settings) {
			continue
		}
		if tried = append(tried, settings); len(tried) == most {
			break
		}
	}
	return tried[1:]
}

// history finds the configurations under which others of a handler's containers were made.
// A default that is one of a configuration is shared by containers of several pods, or is
// known as one of the runtime's, and fits into the order in which they were made: a spec
// that somebody changed on its way does neither.
func (e Expectations) history(h *handler, fixed Given, showing, others []order) {
	if h.told == nil && fixed.Default == nil { // nobody says what it is now
		for _, s := range e.candidates(others, fixed) {
			of, _ := e.split(s, others)
			if _, rest := e.split(s, showing); manyPods(of) && allBefore(rest, of) {
				h.earlier = append(h.earlier, earlier{h.Settings, Info}) // it was changed since
				h.Settings = s
				_, others = e.split(s, showing)
				break
			}
		}
	}
	current, _ := e.split(h.Settings, showing)
	for _, s := range append(e.candidates(others, Given{}), e.declared) {
		of, _ := e.split(s, others)
		if len(of) == 0 {
			continue
		}
		_, now := e.split(s, current) // which show that it is another now
		plausible := manyPods(of) || e.isKnown(s)
		switch {
		case len(now) == 0 && h.told != nil:
			if manyPods(of) { // all are older, or it does not do what it tells: one finding
				h.Settings = s
				current, _ = e.split(s, showing)
			}
		case len(now) == 0, contradicted(of, now):
		case h.told != nil && plausible:
			h.earlier = append(h.earlier, earlier{s, Info})
		case h.told != nil && allBefore(of, now):
			h.earlier = append(h.earlier, earlier{s, Medium})
		case plausible && manyPods(of) && allBefore(of, now):
			h.earlier = append(h.earlier, earlier{s, Info})
		case plausible:
			h.earlier = append(h.earlier, earlier{s, 0})
		}
	}
}

// isKnown reports whether a default is one that the runtime is known to have or to have
// had, or that was stated.
func (e Expectations) isKnown(s Settings) bool {
	rules := runtimes[e.runtime]
	return s == e.declared || s.Default == level(rules.stock) ||
		slices.ContainsFunc(rules.former, func(set capdecode.Set) bool { return s.Default == level(set) })
}

// split tells apart the containers that settings explain and those that they do not.
func (e Expectations) split(s Settings, orders []order) (explained, rest []order) {
	for _, o := range orders {
		if e.explains(s, o) {
			explained = append(explained, o)
		} else {
			rest = append(rest, o)
		}
	}
	return explained, rest
}

func manyPods(orders []order) bool {
	return slices.ContainsFunc(orders, func(o order) bool { return o.pod != orders[0].pod })
}

// span returns when the first and the last of the containers were made; false where that
// is not known of all, or where there are none.
func span(orders []order) (first, last time.Time, ok bool) {
	for i, o := range orders {
		if o.made.IsZero() {
			return time.Time{}, time.Time{}, false
		}
		if i == 0 || o.made.Before(first) {
			first = o.made
		}
		if i == 0 || o.made.After(last) {
			last = o.made
		}
	}
	return first, last, len(orders) > 0
}

// allBefore reports whether each of some containers is known to be older than each of
// the others.
func allBefore(some, others []order) bool {
	_, last, known := span(some)
	first, _, both := span(others)
	return known && both && last.Before(first)
}

// contradicted reports whether the containers are known not to be of one configuration
// that was changed since: another was made between them, or none after them.
func contradicted(of, now []order) bool {
	first, last, known := span(of)
	_, newest, both := span(now)
	if !known || !both {
		return false
	}
	return newest.Before(last) || slices.ContainsFunc(now, func(o order) bool { return o.made.After(first) && o.made.Before(last) })
}

// shows reports whether the defaults have a part in what the runtime made of the orders.
func (o order) shows() bool { return !o.Privileged && !hasAll(o.Add) && !hasAll(o.Drop) }

// suppose returns the settings under which the runtime would have made just this
// of the orders; false when the defaults have no part in it.
func (e Expectations) suppose(o order) (Settings, bool) {
	if !o.shows() {
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

// explains reports whether the runtime makes what it made of the orders under settings.
func (e Expectations) explains(s Settings, o order) bool {
	want, err := PredictOCI(e.runtime, o.CRI, s)
	return err == nil && want.upTo(s.LastCap).Sets == o.got.Sets
}

// explained counts the containers that the settings explain.
func (e Expectations) explained(s Settings, orders []order) (n int) {
	for _, o := range orders {
		if e.explains(s, o) {
			n++
		}
	}
	return n
}

// Limits are what had to be assumed and what could not be judged.
func (e Expectations) Limits() []Limit { return e.limits }

// Findings tells of the configurations that change every container.
func (e Expectations) Findings() []Finding {
	var findings []Finding
	for _, name := range slices.Sorted(maps.Keys(e.handlers)) {
		h := e.handlers[name]
		now := h.Settings
		if h.told != nil {
			now = *h.told
		}
		if f, ok := e.shifted(name, h, e.declared, now); ok {
			findings = append(findings, f)
		}
		if f, ok := e.shifted(name, h, now, h.Settings); ok {
			findings = append(findings, f)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.generous)) {
		findings = append(findings, e.giving(name, e.generous[name]))
	}
	return findings
}

// shifted tells of defaults that are others than they were thought to be: than the
// runtime's own or the stated ones, or than those that the runtime tells.
func (e Expectations) shifted(name string, h handler, thought, shown Settings) (Finding, bool) {
	if shown.Default == thought.Default && shown.Inheritable == thought.Inheritable {
		return Finding{}, false
	}
	was, is := everything(thought.Default), everything(shown.Default)
	more, less := is&^was, was&^is
	inherits := shown.Inheritable && !thought.Inheritable || !shown.Default.Inheritable.Within(thought.Default.Inheritable)
	f := Finding{
		ID:   findingID("handler", name, string(OCIMismatch), shown.Default.Bounding.Hex(), shown.Default.Permitted.Hex(), shown.Default.Inheritable.Hex(), fmt.Sprint(shown.Inheritable)),
		Kind: OCIMismatch, Severity: Info, From: LayerCRI, Layer: LayerOCI, Cause: CauseDefaults,
		RuntimeHandler: name, Capabilities: more | less,
	}
	if !runtimes[e.runtime].tellsCRI {
		f.From = LayerPod
	}
	if !more.Empty() || inherits {
		f.Severity = Medium
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
	if inherits {
		change += "; it fills the inheritable set, which gives file capabilities to non-root (the CVE-2022-24769 family)"
	}
	who, than := e.whose(name), "the runtime's own defaults"
	if e.given.Default != nil || e.given.Inheritable != nil {
		than = "the stated ones"
	}
	f.Remedy = fmt.Sprintf("If this is meant, say so: --assume default-caps=%s. If not, correct %s and create the pods anew.", shown.Default.Bounding.Hex(), inWordsOf(e.runtime, whatIsSet))
	why := "its default_capabilities or add_inheritable_capabilities are others"
	switch {
	case h.told != nil && thought == *h.told:
		f.Cause, than = CauseEarlierConfig, "those that the runtime tells now"
		why = "no container shows these; all were made under an earlier configuration, or by another runtime"
		f.Remedy = "Create one of the pods anew: where it still gets other defaults than the runtime tells, look for what changes its specs."
	case h.config.BaseSpec != "":
		f.Cause = CauseBaseSpec
		why = fmt.Sprintf("its base_runtime_spec %q replaces the default capabilities", clip(h.config.BaseSpec))
	case h.told != nil:
		why = "default_capabilities or add_inheritable_capabilities of its configuration say so"
	case shown.Default == level(runtimes[e.runtime].stock):
		why = "they are the runtime's own"
	case e.runtime == Containerd:
		f.Cause = CauseEarlierConfig
		why = "a base_runtime_spec that is not known, or another containerd, made them"
	}
	f.Message = fmt.Sprintf("%s gives its containers other capabilities than %s: %s%s", who, than, why, change)
	if shown == h.Settings {
		f.Message += fmt.Sprintf(" (seen in %d of its containers)", h.containers)
	}
	return f, true
}

// whose names a handler, or the runtime where all of its handlers have the same, for the
// start of a sentence.
func (e Expectations) whose(name string) string {
	switch {
	case !runtimes[e.runtime].perHandler:
		return e.runtime
	case name == "":
		return "the default runtime handler"
	}
	return fmt.Sprintf("runtime handler %q", clip(name))
}

// everything is what is in any of the sets that a program can get at.
func everything(s capdecode.Sets) capdecode.Set { return s.Bounding | s.Permitted | s.Inheritable }
