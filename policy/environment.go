// Package policy judges containers, processes and findings by expressions:
// filters narrow what is shown, rules say what should be.
//
// Read it in this order: [CompileFilter] and [Filter.Match] are a filter; a [Pack]
// holds rules, an [Exception] what was accepted, [Compile] makes a [Policy] of both
// and [Policy.Judge] holds a report against it. Of the language, environment.go lists the variables and functions of the language; nouns.go the
// fields of each noun; capset.go what capability sets can be asked; vet.go what
// the language forbids, and why.
//
// # Promises
//
// Unknown is never fine: an expression that needs what was not seen or not told
// ends in an [UnknownError], never in false, and a rule in the verdict [Unknown],
// never in [Pass]. Whatever the expression, compiling
// and matching end soon, and in an error rather than a panic. Nothing here reads
// a file, a socket or a clock. A [Filter] and a [Policy] may be used by several
// goroutines.
package policy

import (
	"maps"
	"slices"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Subject is what an expression is evaluated on. What is nil is not known to the
// expression; of a finding without its container the finding itself tells the
// container's id, name and pod.
type Subject struct {
	Container *drift.Container
	Process   *drift.Process
	Finding   *drift.Finding
	Node      *drift.Node
	Runtime   *drift.Runtime
	// Kubernetes is the version by which a rule judges; nil of a filter.
	Kubernetes *Version
}

// environment is the language: variables, fields, functions, and their bounds.
type environment struct {
	cel   *cel.Env
	nouns nouns
	words []string // every name a writer may have meant
}

// language is built once, when the first expression is compiled.
var language = sync.OnceValues(newEnvironment)

// The macros and functions of the CEL standard that belong to the language. No
// map, which builds lists of lists; no conversion to dyn, behind which types hide.
var (
	standardMacros    = []string{operators.Has, operators.All, operators.Exists, operators.ExistsOne, operators.Filter}
	standardFunctions = []string{
		operators.Conditional, operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.NotStrictlyFalse,
		operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
		operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo, operators.Negate,
		operators.In, operators.Index, overloads.Size,
		overloads.Contains, overloads.StartsWith, overloads.EndsWith, overloads.Matches,
	}
)

func newEnvironment() (*environment, error) {
	e := &environment{nouns: newNouns()}
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	subset := &env.LibrarySubset{IncludeMacros: standardMacros}
	for _, name := range standardFunctions {
		subset.IncludeFunctions = append(subset.IncludeFunctions, &env.Function{Name: name})
	}
	// Numbers, and the list that filter() makes: what grows otherwise has no bound.
	subset.IncludeFunctions = append(subset.IncludeFunctions, &env.Function{Name: operators.Add, Overloads: []*env.Overload{
		{ID: overloads.AddInt64}, {ID: overloads.AddDouble}, {ID: overloads.AddList},
	}})
	options := []cel.EnvOption{
		cel.CustomTypeAdapter(adapter{registry}),
		cel.CustomTypeProvider(provider{registry, e.nouns}),
		cel.StdLib(cel.StdLibSubset(subset)),
		cel.ParserExpressionSizeLimit(maxLength),
		cel.ParserRecursionLimit(maxDepth),
		cel.ParserErrorRecoveryLimit(4),
		cel.ExpressionNodeLimit(maxNodes),
		cel.EnableHiddenAccumulatorName(true),
		cel.CrossTypeNumericComparisons(false),
	}
	for name, v := range variables {
		options = append(options, cel.Variable(name, v.typ))
		e.words = append(e.words, name)
	}
	options = append(options, capabilityFunctions()...)
	options = append(options, severityFunctions()...)
	options = append(options, meterFunction(), weighing(), noting())
	options = append(options, cel.Function("known", cel.Overload("known_value", []*cel.Type{cel.TypeParamType("T")}, cel.BoolType,
		cel.OverloadIsNonStrict(), cel.UnaryBinding(known))))
	if e.cel, err = cel.NewCustomEnv(options...); err != nil {
		return nil, err
	}
	for _, fields := range e.nouns {
		e.words = slices.AppendSeq(e.words, maps.Keys(fields))
	}
	e.words = append(e.words, "known", "has", "all", "exists", "exists_one", "filter", "severity", "capabilities", "size",
		"contains", "startsWith", "endsWith", "matches", "hasAny", "hasAll", "hasExactly", "hasNone", "isSubsetOf")
	slices.Sort(e.words)
	e.words = slices.Compact(e.words)
	return e, nil
}

// known tells whether there is a value: false for what is not known or not set.
// Other errors stay errors.
func known(value ref.Val) ref.Val {
	switch v := value.(type) {
	case *types.Err:
		if unknown, _ := failure(v); unknown != nil {
			return types.False
		}
		return v
	case capSet:
		return types.Bool(v.missing == nil)
	case lister:
		return types.Bool(v.incomplete() == nil)
	}
	return types.True
}

// severityFunctions makes severities ordered: severity("high") and comparisons.
func severityFunctions() []cel.EnvOption {
	two := []*cel.Type{severityType, severityType}
	options := []cel.EnvOption{cel.Function("severity",
		cel.Overload("severity_name", []*cel.Type{cel.StringType}, severityType, cel.UnaryBinding(func(name ref.Val) ref.Val {
			var s severity
			text, _ := name.(types.String)
			if err := (*drift.Severity)(&s).UnmarshalText([]byte(text)); err != nil {
				return types.WrapErr(err)
			}
			return s
		})))}
	for operator, id := range map[string]string{
		operators.Less: "less_severity", operators.LessEquals: "less_equals_severity",
		operators.Greater: "greater_severity", operators.GreaterEquals: "greater_equals_severity",
	} {
		options = append(options, cel.Function(operator, cel.Overload(id, two, cel.BoolType)))
	}
	return options
}

// variable is one name at the top of the language.
type variable struct {
	typ *types.Type
	get func(*vars) any
}

// variables are the container's fields, and the other nouns by their names.
var variables = map[string]variable{
	"id": {cel.StringType, func(v *vars) any { return v.own(func(c *drift.Container) string { return c.ID }, v.finding.id()) }},
	"name": {cel.StringType, func(v *vars) any {
		return v.own(func(c *drift.Container) string { return c.Name }, v.finding.container())
	}},
	"image":          {cel.StringType, func(v *vars) any { return v.own(func(c *drift.Container) string { return c.Image }, "") }},
	"pod":            {podType, (*vars).pod},
	"labels":         {cel.ListType(cel.StringType), of(labels)},
	"runtimeHandler": {cel.StringType, (*vars).runtimeHandler},
	"sandbox":        {cel.BoolType, of(func(c *drift.Container) any { return types.Bool(c.Sandbox) })},
	"managed":        {cel.BoolType, of(func(c *drift.Container) any { return maybeBool(c.Managed, notKnown) })},
	"origin":         {cel.StringType, of(func(c *drift.Container) any { return types.String(c.Origin) })},
	"observation":    {cel.StringType, of(func(c *drift.Container) any { return types.String(c.Observation) })},
	"reason":         {cel.StringType, of(func(c *drift.Container) any { return types.String(c.Reason) })},
	"declared":       {declaredType, (*vars).declaredLayers},
	"processes":      {cel.ListType(processType), (*vars).allProcesses},
	"caps":           {setsType, (*vars).union},
	"process":        {processType, (*vars).oneProcess},
	"finding":        {findingType, (*vars).oneFinding},
	"node":           {nodeType, (*vars).theNode},
	"runtime":        {runtimeType, (*vars).theRuntime},
	"kubernetes":     {kubernetesType, (*vars).theVersion},
}

func of(get func(*drift.Container) any) func(*vars) any {
	return func(v *vars) any {
		if v.subject.Container == nil {
			return notKnown
		}
		return get(v.subject.Container)
	}
}

// vars are the variables of one evaluation. It implements cel.Activation.
type vars struct {
	subject   Subject
	full      capdecode.Set // what ALL means; empty when the node is not known
	declared  declaredView
	processes list[processView]
	process   processView
	finding   findingView
	held      capdecode.Sets
	caps      heldSets
	meter     meter
	noted     map[string]named // nil where nobody asks (note.go)
}

func newVars(s Subject) *vars {
	v := &vars{subject: s, meter: meter{maxSteps}}
	if s.Node != nil {
		v.full = capdecode.Full(s.Node.CapLastCap)
	}
	v.finding = findingView{s.Finding, v.full}
	return v
}

// Parent implements cel.Activation.
func (v *vars) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (v *vars) ResolveName(name string) (any, bool) {
	switch name {
	case nodeVariable:
		return nodeSets{vars: v}, true
	case meterVariable:
		return &v.meter, true
	}
	variable, ok := variables[name]
	if !ok {
		return nil, false
	}
	value := variable.get(v)
	if why, missing := value.(absence); missing {
		return types.WrapErr(&UnknownError{What: name, Why: string(why)}), true
	}
	return value, true
}

// own is a text of the container; of the finding, where the container is not
// there. A text that every container has and that is empty was not told.
func (v *vars) own(get func(*drift.Container) string, fallback string) any {
	if v.subject.Container != nil {
		fallback = get(v.subject.Container)
	}
	if fallback == "" {
		return notKnown
	}
	return types.String(fallback)
}

func (v *vars) pod() any {
	switch {
	case v.subject.Container != nil && v.subject.Container.Pod != nil:
		return v.subject.Container.Pod
	case v.subject.Container == nil && v.subject.Finding != nil && v.subject.Finding.Pod != nil:
		return v.subject.Finding.Pod
	}
	return notKnown
}

// runtimeHandler is empty for the default one, which only the CRI can tell.
func (v *vars) runtimeHandler() any {
	c := v.subject.Container
	if c == nil || c.RuntimeHandler == "" && (c.Managed == nil || !*c.Managed) {
		return notKnown
	}
	return types.String(c.RuntimeHandler)
}

func (v *vars) declaredLayers() any {
	if v.subject.Container == nil {
		return notKnown
	}
	if v.declared.layers == nil {
		layers := &v.subject.Container.Declared
		v.declared = declaredView{declaration{layers}, ociView{layers.OCI, v.full}, ociView{layers.Bundle, v.full}}
	}
	return &v.declared
}

// seen is nil when all of the container's processes were seen.
func (v *vars) seen(c *drift.Container) *UnknownError {
	if c.Observation == drift.Observed {
		return nil
	}
	return &UnknownError{What: "processes", Why: "not all seen: " + string(c.Observation)}
}

func (v *vars) allProcesses() any {
	c := v.subject.Container
	if c == nil {
		return notKnown
	}
	if v.processes.of == nil {
		v.meter.spend(len(c.Processes))
		views := make([]processView, 0, len(c.Processes))
		if c.Observation != drift.UnsupportedRuntime {
			for i := range c.Processes {
				views = append(views, v.view(&c.Processes[i]))
			}
		}
		v.processes = list[processView]{of: views, missing: v.seen(c)}
	}
	return &v.processes
}

func (v *vars) view(p *drift.Process) processView {
	return processView{Process: p, caps: heldSets{&p.Caps, v.full, nil}}
}

// union is what the container's processes and their threads hold together. A
// process that is still the runtime's own stage holds everything for a moment; it
// adds nothing, and the union is then not all.
func (v *vars) union() any {
	c := v.subject.Container
	if c == nil {
		return notKnown
	}
	if v.caps.sets != nil {
		return &v.caps
	}
	v.meter.spend(len(c.Processes) / perStep)
	v.caps = heldSets{&v.held, v.full, v.seen(c)}
	for i := range c.Processes {
		switch p := &c.Processes[i]; {
		case c.Observation == drift.UnsupportedRuntime:
		case p.Observation == drift.Starting:
			v.caps.missing = &UnknownError{What: "processes", Why: "not all seen: one is starting"}
		default:
			unite(&v.held, p.Caps)
			v.meter.spend(len(p.Threads) / perStep)
			for t := range p.Threads {
				unite(&v.held, p.Threads[t].Caps)
			}
		}
	}
	return &v.caps
}

func unite(to *capdecode.Sets, s capdecode.Sets) {
	to.Inheritable |= s.Inheritable
	to.Permitted |= s.Permitted
	to.Effective |= s.Effective
	to.Bounding |= s.Bounding
	to.Ambient |= s.Ambient
}

func (v *vars) oneProcess() any {
	if v.subject.Process == nil {
		return notKnown
	}
	if v.process.Process == nil {
		v.process = v.view(v.subject.Process)
	}
	return &v.process
}

func (v *vars) oneFinding() any {
	if v.subject.Finding == nil {
		return notKnown
	}
	return &v.finding
}

func (v *vars) theNode() any {
	if v.subject.Node == nil {
		return notKnown
	}
	return v.subject.Node
}

func (v *vars) theRuntime() any {
	if v.subject.Runtime == nil {
		return notKnown
	}
	return v.subject.Runtime
}

func (v *vars) theVersion() any {
	if v.subject.Kubernetes == nil {
		return notKnown
	}
	return v.subject.Kubernetes
}

func labels(c *drift.Container) any {
	if c.Labels == nil {
		return notKnown
	}
	return c.Labels
}
