package policy

import (
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// Evidence is one field that a condition read, and what was there.
type Evidence struct {
	Field string `json:"field"` // "declared.drop", "process.caps.bounding"
	// Value is what it held: true, a number, a quoted text, a list of texts as they
	// were written, a capability set in hexadecimal; "not known", "not set".
	Value string `json:"value"`
	// Capabilities are those of the field that the condition is about: what it
	// forbids and the field has.
	Capabilities capdecode.Set `json:"capabilities"`
	// Whose field it is, where it is a process's or a thread's.
	Task *Task `json:"task,omitempty"`
}

// Task is a process or one of its threads.
type Task struct {
	PID       int    `json:"pid"`
	TID       int    `json:"tid,omitempty"` // 0 of the process itself
	StartTime uint64 `json:"startTime"`     // the process's, as in the report
	Name      string `json:"name"`          // hostile text, raw
}

// fact is a field that an expression reads, and what it asks of it.
type fact struct {
	path []string
	name string // the path as it is written
	get  func(*vars) any
	// operand is true of what another set is only compared with, present where it is
	// only asked whether there is a value.
	operand, present bool
	// question is the function that asks, about the names in asked or the set of against;
	// empty where nothing is asked of its capabilities.
	question string
	asked    capSet
	against  func(*vars) any // nil where it asks about names
	// written are the texts that a list of names is compared with, or that are looked for
	// in it; nil where the expression does not say them in so many words.
	written []string
	// noted is true of a list of names that a loop goes through: which of them matter
	// only an evaluation tells (see note.go).
	noted bool
	// since and until are the versions of Kubernetes in which it is read: from the one to
	// the one before the other, 0 for no bound.
	since, until Version
}

// read reports whether an expression reads the field in a version of Kubernetes, nil
// where none is known.
func (f *fact) read(in *Version) bool {
	return in == nil || *in >= f.since && (f.until == 0 || *in < f.until)
}

// last is the field's own name.
func (f *fact) last() string { return f.path[len(f.path)-1] }

// readsField reports whether the condition reads a field of this name, in any layer, and not
// only asks whether it is there.
func (f *Filter) readsField(name string) bool {
	return slices.ContainsFunc(f.facts, func(one fact) bool { return one.last() == name && !one.present })
}

// addLists are the fields that are lists of added capabilities. What a list drops, nobody
// holds.
var addLists = map[string]bool{"add": true, "addAmbient": true}

// factsOf lists what a checked expression reads of its variables, each once for
// each question.
func factsOf(checked *ast.AST, nouns nouns) []fact {
	c := collector{ast: checked, nouns: nouns}
	c.visit(checked.Expr())
	return c.facts
}

type collector struct {
	ast    *ast.AST
	nouns  nouns
	locals []string
	facts  []fact
	// since and until are those of the branch that is visited, see fact.
	since, until Version
}

func (c *collector) add(f fact) {
	f.name = strings.Join(f.path, ".")
	if f.path[0] == "kubernetes" || f.name == "declared.os" {
		return // they say which question is asked, and are no part of the answer
	}
	f.since, f.until = c.since, c.until
	f.get = c.nouns.getter(f.path)
	if f.against == nil && f.written == nil && slices.ContainsFunc(c.facts, func(other fact) bool {
		return other.against == nil && other.written == nil && f.name == other.name && f.question == other.question && f.asked == other.asked &&
			f.operand == other.operand && f.present == other.present && f.noted == other.noted && f.since == other.since && f.until == other.until
	}) {
		return
	}
	c.facts = append(c.facts, f)
}

// getter reads a field as an expression does.
func (n nouns) getter(path []string) func(*vars) any {
	if path[0] == anyOf {
		return anywhere(path[1], path[2])
	}
	variable := variables[path[0]]
	typ := variable.typ
	var fields []*types.FieldType
	for _, name := range path[1:] {
		field, ok := n[typ.TypeName()][name]
		if !ok {
			return func(*vars) any { return notKnown }
		}
		fields, typ = append(fields, field), field.Type
	}
	return func(v *vars) any {
		value := variable.get(v)
		for _, field := range fields {
			if _, missing := value.(absence); missing {
				return value
			}
			next, err := field.GetFrom(value)
			if err != nil {
				unknown, _ := failure(err)
				if unknown == nil {
					return notKnown
				}
				return absence(unknown.Why)
			}
			value = next
		}
		return value
	}
}

// anyOf begins the path of a field of something that has none: its type and its name
// follow.
const anyOf = "any"

// anywhere reads such a field of everything of that type: of processes and threads what
// all of them hold together, whether or not they are still the runtime's own.
func anywhere(typ, field string) func(*vars) any {
	return func(v *vars) any {
		c := v.subject.Container
		if c == nil {
			return notKnown
		}
		var held capdecode.Set
		var list []string
		privileged := false
		switch typ {
		case setsType.TypeName():
			for i := range c.Processes {
				held |= setOf(field, c.Processes[i].Caps)
				for _, t := range c.Processes[i].Threads {
					held |= setOf(field, t.Caps)
				}
			}
		case ociType.TypeName():
			for _, o := range []*drift.OCI{c.Declared.OCI, c.Declared.Bundle} {
				if o != nil {
					held |= setOf(field, o.Sets)
				}
			}
		case podSecurityType.TypeName():
			if p := c.Declared.Pod; p != nil {
				list, privileged = p.Add, p.Privileged
			}
		case criType.TypeName():
			if r := c.Declared.CRI; r != nil {
				list, privileged = slices.Concat(r.Add, r.AddAmbient), r.Privileged
			}
		}
		switch {
		case setFields[field] != nil:
			return capSet{held: held, full: v.full}
		case field == "privileged":
			return types.Bool(privileged)
		}
		return list
	}
}

func setOf(name string, s capdecode.Sets) capdecode.Set { return setFields[name](&s) }

// path is the field that an expression is, nil where it is none.
func (c *collector) path(e ast.Expr) []string {
	switch e.Kind() {
	case ast.IdentKind:
		if _, ok := variables[e.AsIdent()]; ok && !slices.Contains(c.locals, e.AsIdent()) {
			return []string{e.AsIdent()}
		}
	case ast.SelectKind:
		if parent := c.path(e.AsSelect().Operand()); parent != nil && parent[0] != anyOf {
			return append(parent, e.AsSelect().FieldName())
		}
		return c.pathless(e.AsSelect())
	case ast.CallKind: // capabilities(declared.add) is about that field
		if call := e.AsCall(); call.FunctionName() == "capabilities" && len(call.Args()) == 1 {
			return c.path(call.Args()[0])
		}
	}
	return nil
}

// pathless is a field about capabilities of what has no path, such as a loop's variable.
// It is taken for that field of everything of its type.
func (c *collector) pathless(e ast.SelectExpr) []string {
	of, field := c.ast.GetType(e.Operand().ID()), e.FieldName()
	switch {
	case setFields[field] != nil && (of.IsExactType(setsType) || of.IsExactType(ociType)),
		(addLists[field] || field == "drop" || field == "privileged") && (of.IsExactType(podSecurityType) || of.IsExactType(criType)):
		return []string{anyOf, of.TypeName(), field}
	}
	return nil
}

func (c *collector) visit(e ast.Expr) { c.read(e, fact{}) }

// read adds what is read of an expression, or of all its parts where it is no field.
func (c *collector) read(e ast.Expr, f fact) {
	if path := c.path(e); path != nil {
		f.path = path
		f.present = f.present || e.Kind() == ast.SelectKind && e.AsSelect().IsTestOnly()
		c.add(f)
		c.visitOwner(e)
		return
	}
	switch e.Kind() {
	case ast.SelectKind:
		c.visit(e.AsSelect().Operand())
	case ast.ListKind:
		for _, element := range e.AsList().Elements() {
			c.visit(element)
		}
	case ast.ComprehensionKind:
		c.loop(e.AsComprehension())
	case ast.CallKind:
		c.call(e.AsCall())
	}
}

// visitOwner visits what a field without a path is a field of.
func (c *collector) visitOwner(e ast.Expr) {
	if e.Kind() == ast.CallKind {
		e = e.AsCall().Args()[0]
	}
	if e.Kind() == ast.SelectKind && c.path(e)[0] == anyOf {
		c.visit(e.AsSelect().Operand())
	}
}

func (c *collector) loop(loop ast.ComprehensionExpr) {
	c.read(loop.IterRange(), fact{noted: true})
	depth := len(c.locals)
	c.locals = append(c.locals, loop.IterVar(), loop.AccuVar())
	for _, part := range []ast.Expr{loop.AccuInit(), loop.LoopCondition(), loop.LoopStep(), loop.Result()} {
		c.visit(part)
	}
	c.locals = c.locals[:depth]
}

func (c *collector) call(call ast.CallExpr) {
	operands := call.Args()
	if call.IsMemberFunction() {
		operands = append([]ast.Expr{call.Target()}, operands...)
	}
	name := call.FunctionName()
	switch {
	case name == operators.Conditional && sinceIn(operands[0]) > 0:
		c.branches(sinceIn(operands[0]), operands[1], operands[2])
	case name == "known":
		c.read(operands[0], fact{present: true})
	case name == operators.In:
		c.visit(operands[0])
		c.read(operands[1], fact{question: name, written: textsIn(operands[0])})
	case len(operands) == 2 && isSet(c.ast.GetType(operands[0].ID())) && asksSet(name):
		c.set(name, operands[0], operands[1])
	case name == operators.Equals || name == operators.NotEquals:
		c.read(operands[0], fact{question: name, written: textsIn(operands[1])})
		c.read(operands[1], fact{question: name, written: textsIn(operands[0])})
	default:
		for _, operand := range operands {
			c.visit(operand)
		}
	}
}

// sinceIn is the version that a condition kubernetes.minor >= 34 is about; 0 of others.
func sinceIn(e ast.Expr) Version {
	if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != operators.GreaterEquals {
		return 0
	}
	field, version := e.AsCall().Args()[0], e.AsCall().Args()[1]
	minor, literal := version.AsLiteral().(types.Int)
	if !literal || field.Kind() != ast.SelectKind || field.AsSelect().FieldName() != "minor" || field.AsSelect().Operand().AsIdent() != "kubernetes" {
		return 0
	}
	return Version(minor)
}

// branches visits what is read from a version on, and what before it.
func (c *collector) branches(version Version, since, before ast.Expr) {
	outer := *c
	c.since = max(c.since, version)
	c.visit(since)
	c.since = outer.since
	if c.until == 0 || version < c.until {
		c.until = version
	}
	c.visit(before)
	c.until = outer.until
}

func asksSet(name string) bool {
	_, asks := setFunctions[name]
	return asks || name == overloads.Contains || name == operators.Equals || name == operators.NotEquals
}

// set adds a question that is asked of a set.
func (c *collector) set(name string, of, argument ast.Expr) {
	path, other := c.path(of), c.path(argument)
	if path == nil {
		c.visit(of)
		c.visit(argument)
		return
	}
	f := fact{path: path, question: name}
	switch {
	case other != nil:
		f.against = c.nouns.getter(other)
		c.read(argument, fact{operand: true})
	default:
		if !f.ask(argument) {
			f.question, f.asked = "", capSet{} // about which names nobody can tell now: about all
		}
		c.visit(argument)
	}
	c.add(f)
	c.visitOwner(of)
}

// textsIn are the texts that an expression is or lists; nil where it may be others too.
func textsIn(e ast.Expr) []string {
	if e.Kind() != ast.ListKind {
		text, ok := e.AsLiteral().(types.String)
		if !ok {
			return nil
		}
		return []string{string(text)}
	}
	texts := []string{}
	for _, element := range e.AsList().Elements() {
		text, ok := element.AsLiteral().(types.String)
		if !ok {
			return nil
		}
		texts = append(texts, string(text))
	}
	return texts
}

// ask notes the literal names that are asked for, and reports whether those are all.
func (f *fact) ask(e ast.Expr) bool {
	if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == "capabilities" && len(e.AsCall().Args()) == 1 {
		e = e.AsCall().Args()[0]
	}
	texts := textsIn(e)
	if texts == nil {
		return false
	}
	names, err := parseNames(texts...)
	f.asked = names
	return err == nil
}

const (
	maxShown = 16  // elements of a list that evidence repeats
	maxText  = 128 // bytes of a text
)

// see tells what was there of one fact: what it held, where that is to be shown, and
// what of it offends. unnamed is true where something offends that no list of
// capabilities names: a name that means none, or privileged, which is more than all.
func (v *vars) see(f *fact, show bool) (value string, offends capdecode.Set, unnamed, ok bool) {
	switch held := f.get(v).(type) {
	case absence:
		value = string(held)
	case types.Bool:
		value = strconv.FormatBool(bool(held))
		unnamed = bool(held) && f.last() == "privileged" && !f.present
	case types.Int:
		value = strconv.FormatInt(int64(held), 10)
	case types.String:
		if show {
			value = strconv.Quote(clip(string(held)))
		}
	case []int64:
		if show {
			texts := make([]string, min(len(held), maxShown+1))
			for i := range texts {
				texts[i] = strconv.FormatInt(held[i], 10)
			}
			value = listed(texts)
		}
	case []string:
		if show {
			value = listed(held)
		}
		if addLists[f.last()] && !f.operand && !f.present {
			offends, unnamed = v.written(f, held)
		}
	case capSet:
		if show {
			value = held.held.Hex()
		}
		if !f.operand && !f.present {
			offends = v.asked(f, held.held)
		}
	default:
		return "", 0, false, false // a noun, or a list of them: the fields that were read tell
	}
	return value, offends, unnamed, true
}

// asked is what a question is about of a set that was seen: capabilities on which the
// answer depends, or would if others were not there.
func (v *vars) asked(f *fact, held capdecode.Set) capdecode.Set {
	names := f.asked.held
	if f.asked.all {
		names |= v.full
	}
	if f.against != nil {
		switch other := f.against(v).(type) {
		case capSet:
			names = other.held
		case []string:
			names = v.meaning(other).set
		}
	}
	switch f.question {
	case "isSubsetOf":
		return held &^ names
	case "hasExactly", operators.Equals, operators.NotEquals:
		if held == names {
			return held
		}
		return held &^ names
	case "hasAll":
		if f.against != nil {
			return names // those that are missing are what was too much in the other
		}
		return held & names
	case "hasNone", "hasAny", overloads.Contains:
		return held & names
	}
	return held
}

// written is asked of a list of names that were added. Without a question that tells them
// apart all of them matter.
func (v *vars) written(f *fact, list []string) (set capdecode.Set, unnamed bool) {
	among := func(name string) bool { return slices.Contains(f.written, name) }
	switch {
	case f.noted:
		return v.noted[f.name].set, v.noted[f.name].unnamed
	case f.written != nil && f.question == operators.In:
		list = slices.DeleteFunc(slices.Clone(list), func(name string) bool { return !among(name) })
	case f.written != nil:
		if others := slices.DeleteFunc(slices.Clone(list), among); len(others) > 0 {
			list = others
		}
	}
	all := v.meaning(list)
	if asksSet(f.question) && f.written == nil {
		all.set = v.asked(f, all.set)
	}
	return all.set, all.unnamed
}

// named is what a list of names means. unnamed is true where a name means no capability.
type named struct {
	set     capdecode.Set
	unnamed bool
}

func (n *named) add(name string, full capdecode.Set) {
	one, err := parseNames(strings.TrimSpace(name))
	n.set |= one.held
	n.unnamed = n.unnamed || err != nil
	switch {
	case !one.all:
	case full.Empty():
		n.set |= capdecode.Full(capdecode.MaxCap)
	default:
		n.set |= full
	}
}

func (v *vars) meaning(list []string) (all named) {
	for _, name := range list {
		all.add(name, v.full)
	}
	return all
}

// listed shows the first of a list of texts on one line.
func listed(texts []string) string {
	shown := make([]string, 0, maxShown+1)
	for _, text := range texts[:min(len(texts), maxShown)] {
		shown = append(shown, strconv.Quote(clip(text)))
	}
	if len(texts) > maxShown {
		shown = append(shown, "…")
	}
	return "[" + strings.Join(shown, ", ") + "]"
}

func clip(text string) string {
	if len(text) > maxText {
		return strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}
