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
	// operand is true of what another field is only compared with.
	operand bool
	// question is the function that asks, about the names in asked or the set of against;
	// empty where nothing is asked of its capabilities.
	question string
	asked    capSet
	against  func(*vars) any // nil where it asks about names
	// written are the texts that the elements of a list may be; nil where the
	// expression does not say it in so many words.
	written []string
}

// factsOf lists what a checked expression reads of its variables, each once for
// each question.
func factsOf(e ast.Expr, nouns nouns) []fact {
	c := collector{nouns: nouns}
	c.visit(e)
	return c.facts
}

type collector struct {
	nouns  nouns
	locals []string
	facts  []fact
}

func (c *collector) add(f fact) {
	f.name = strings.Join(f.path, ".")
	f.get = c.nouns.getter(f.path)
	if f.against == nil && slices.ContainsFunc(c.facts, func(other fact) bool {
		return f.name == other.name && f.question == other.question && f.asked == other.asked && f.operand == other.operand
	}) {
		return
	}
	c.facts = append(c.facts, f)
}

// getter reads a field as an expression does.
func (n nouns) getter(path []string) func(*vars) any {
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

// path is the field that an expression is, nil where it is none.
func (c *collector) path(e ast.Expr) []string {
	switch e.Kind() {
	case ast.IdentKind:
		if _, ok := variables[e.AsIdent()]; ok && !slices.Contains(c.locals, e.AsIdent()) {
			return []string{e.AsIdent()}
		}
	case ast.SelectKind:
		if parent := c.path(e.AsSelect().Operand()); parent != nil {
			return append(parent, e.AsSelect().FieldName())
		}
	case ast.CallKind: // capabilities(declared.add) is about that field
		if call := e.AsCall(); call.FunctionName() == "capabilities" && len(call.Args()) == 1 {
			return c.path(call.Args()[0])
		}
	}
	return nil
}

func (c *collector) visit(e ast.Expr) {
	if path := c.path(e); path != nil {
		c.add(fact{path: path})
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

func (c *collector) loop(loop ast.ComprehensionExpr) {
	if path := c.path(loop.IterRange()); path != nil {
		c.add(fact{path: path, written: among(loop.LoopStep(), loop.IterVar())})
	} else {
		c.visit(loop.IterRange())
	}
	depth := len(c.locals)
	c.locals = append(c.locals, loop.IterVar(), loop.AccuVar())
	for _, part := range []ast.Expr{loop.AccuInit(), loop.LoopCondition(), loop.LoopStep(), loop.Result()} {
		c.visit(part)
	}
	c.locals = c.locals[:depth]
}

// among returns the list in "x in [texts]", where a loop asks just that of its
// variable; nil otherwise.
func among(step ast.Expr, variable string) []string {
	if step.Kind() != ast.CallKind || step.AsCall().FunctionName() != operators.LogicalAnd {
		return nil
	}
	in := step.AsCall().Args()[1]
	if in.Kind() != ast.CallKind || in.AsCall().FunctionName() != operators.In {
		return nil
	}
	args := in.AsCall().Args()
	if args[0].AsIdent() != variable || args[1].Kind() != ast.ListKind {
		return nil
	}
	texts := []string{}
	for _, element := range args[1].AsList().Elements() {
		text, ok := element.AsLiteral().(types.String)
		if !ok {
			return nil
		}
		texts = append(texts, string(text))
	}
	return texts
}

func (c *collector) call(call ast.CallExpr) {
	operands := call.Args()
	if call.IsMemberFunction() {
		operands = append([]ast.Expr{call.Target()}, operands...)
	}
	name := call.FunctionName()
	_, asks := setFunctions[name]
	asks = asks || name == overloads.Contains || name == operators.Equals || name == operators.NotEquals
	if !asks || len(operands) != 2 {
		for _, operand := range operands {
			c.visit(operand)
		}
		return
	}
	path, other := c.path(operands[0]), c.path(operands[1])
	if path == nil {
		c.visit(operands[0])
		c.visit(operands[1])
		return
	}
	f := fact{path: path, question: name}
	switch argument := operands[1]; {
	case other != nil:
		f.against = c.nouns.getter(other)
		c.add(fact{path: other, operand: true})
	case argument.Kind() == ast.ListKind:
		for _, element := range argument.AsList().Elements() {
			f.ask(element)
		}
		c.visit(argument)
	default:
		f.ask(argument)
		c.visit(argument)
	}
	c.add(f)
}

// ask notes a literal name that is asked for.
func (f *fact) ask(e ast.Expr) {
	if text, ok := e.AsLiteral().(types.String); ok {
		if one, err := parseNames(string(text)); err == nil {
			f.asked.held, f.asked.all = f.asked.held|one.held, f.asked.all || one.all
		}
	}
}

const (
	maxShown = 16  // elements of a list that evidence repeats
	maxText  = 128 // bytes of a text
)

// see tells what was there of one fact: what it held, where that is to be shown, and
// what of it offends. nameless is true where a name offends that means no capability,
// so that no set can hold it.
func (v *vars) see(f *fact, show bool) (value string, offends capdecode.Set, nameless, ok bool) {
	switch held := f.get(v).(type) {
	case absence:
		value = string(held)
	case types.Bool:
		value = strconv.FormatBool(bool(held))
	case types.Int:
		value = strconv.FormatInt(int64(held), 10)
	case types.String:
		if show {
			value = strconv.Quote(clip(string(held)))
		}
	case []string:
		if show {
			value = listed(held)
		}
		// What was added offends, where it was asked for; what was dropped does not.
		if last := f.path[len(f.path)-1]; (f.written != nil || f.question != "") && (last == "add" || last == "addAmbient") {
			offends, nameless = v.written(f, held)
		}
	case capSet:
		if show {
			value = held.held.Hex()
		}
		if !f.operand {
			offends = v.asked(f, held.held)
		}
	default:
		return "", 0, false, false // a noun, or a list of them: the fields that were read tell
	}
	return value, offends, nameless, true
}

// asked is what a question is about of a set that was seen.
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
			names, _ = v.written(&fact{written: []string{}}, other)
		}
	}
	switch f.question {
	case "isSubsetOf", "hasExactly", operators.Equals:
		return held &^ names
	case "hasNone", "hasAny", "hasAll", overloads.Contains:
		return held & names
	}
	return held
}

// written is asked of a list of names.
func (v *vars) written(f *fact, list []string) (set capdecode.Set, nameless bool) {
	for _, name := range list {
		if f.written != nil && slices.Contains(f.written, name) {
			continue
		}
		one, err := parseNames(strings.TrimSpace(name))
		switch {
		case err != nil:
			nameless = true
		case one.all && v.full.Empty():
			set |= capdecode.Full(capdecode.MaxCap)
		case one.all:
			set |= v.full
		}
		set |= one.held
	}
	if f.written == nil {
		set = v.asked(f, set)
	}
	return set, nameless
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
