package policy

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"github.com/capdrift/capdrift/drift"
)

// vetting is one walk over a checked expression. It refuses what type checking
// lets pass and the language forbids, notes what the expression reads, and reads
// literal capability names once and for all.
type vetting struct {
	ast    *ast.AST
	nouns  nouns
	notes  bool // a loop notes which names matter
	reads  map[string]bool
	locals []string // variables of the macros that we are in
	loops  int
	lastID int64
	wrong  *FilterError
	report func(id int64, message, hint string) *FilterError
}

func (v *vetting) refuse(e ast.Expr, hint, format string, args ...any) {
	if v.wrong == nil {
		v.wrong = v.report(e.ID(), fmt.Sprintf(format, args...), hint)
	}
}

func (v *vetting) visit(e ast.Expr) {
	if v.wrong != nil {
		return
	}
	if typ := v.ast.GetType(e.ID()); typ != nil && typ.Kind() == types.ListKind && len(typ.Parameters()) == 1 {
		// Lists in lists can share their elements, so that a short text means a
		// structure too large to walk through.
		if kind := typ.Parameters()[0].Kind(); kind == types.ListKind || kind == types.MapKind {
			v.refuse(e, "", "lists of lists are not part of the language")
			return
		}
	}
	switch e.Kind() {
	case ast.LiteralKind:
		switch e.AsLiteral().Type() {
		case types.NullType:
			v.refuse(e, "write known(pod), has(declared.cri) or their opposite with !", "null is not part of the language")
		case types.BytesType:
			v.refuse(e, "", "bytes are not part of the language")
		}
	case ast.MapKind, ast.StructKind:
		v.refuse(e, "", "braces are not part of the language")
	case ast.IdentKind:
		name := e.AsIdent()
		if slices.Contains(v.locals, name) {
			return
		}
		if _, ok := variables[name]; !ok {
			v.refuse(e, "", "%s is no variable", name) // the name of a type
			return
		}
		v.reads[name] = true
	case ast.SelectKind:
		v.visit(e.AsSelect().Operand())
	case ast.ListKind:
		for _, element := range e.AsList().Elements() {
			v.visit(element)
		}
	case ast.ComprehensionKind:
		v.loop(e)
	case ast.CallKind:
		v.call(e)
	}
}

func (v *vetting) loop(e ast.Expr) {
	if v.loops == maxLoops {
		v.refuse(e, "", "exists(), all() and filter() are nested more than %d deep", maxLoops)
		return
	}
	c := e.AsComprehension()
	list, matters := v.listOfNames(c.IterRange())
	v.visit(c.IterRange())
	depth := len(v.locals)
	v.locals = append(v.locals, c.IterVar(), c.AccuVar())
	v.loops++
	for _, part := range []ast.Expr{c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()} {
		v.visit(part)
	}
	v.loops--
	v.locals = v.locals[:depth]
	if v.wrong != nil {
		return
	}
	if matters {
		v.note(c, list)
	}
	v.tick(c)
}

func (v *vetting) call(e ast.Expr) {
	call := e.AsCall()
	operands := call.Args()
	if call.IsMemberFunction() {
		operands = append([]ast.Expr{call.Target()}, operands...)
	}
	for _, operand := range operands {
		v.visit(operand)
	}
	if v.wrong != nil || len(operands) == 0 {
		return
	}
	first := v.ast.GetType(operands[0].ID())
	last := operands[len(operands)-1]
	switch name := call.FunctionName(); name {
	case operators.Equals, operators.NotEquals, operators.In:
		if isSet(first) && name != operators.In {
			v.replace(e, name, operands)
			return
		}
		if !comparable(first) {
			v.refuse(e, "compare one of its fields", "%s cannot be compared", cel.FormatCELType(first))
		}
		// A list that is written out counts by its nodes.
		for i, operand := range operands {
			if v.ast.GetType(operand.ID()).Kind() == types.ListKind && operand.Kind() != ast.ListKind {
				v.weigh(e, i, perStep)
			}
		}
	case operators.Add:
		// Only filter() itself adds to a list: the macro's own variable begins with @.
		if first.Kind() == types.ListKind && !strings.HasPrefix(operands[0].AsIdent(), "@") {
			v.refuse(e, "", "lists cannot be joined")
		}
	case overloads.Size:
		if isSet(first) || first.Kind() == types.ListKind {
			v.replace(e, name, operands)
		} else {
			v.weigh(e, 0, 1) // a text's characters are counted each time
		}
	case overloads.Matches:
		v.pattern(e, last)
	case "severity":
		if text, ok := last.AsLiteral().(types.String); ok {
			var s drift.Severity
			if err := s.UnmarshalText([]byte(text)); err != nil {
				v.refuse(last, "", "%s", err)
			}
		}
	case overloads.Contains:
		if text, ok := last.AsLiteral().(types.String); ok && isSet(first) {
			v.literal(e, last, []ast.Expr{last}, string(text))
		}
	case "capabilities":
		v.names(e, last)
		if e.Kind() == ast.CallKind {
			v.ofNode(e, last)
		}
	case "hasAny", "hasAll", "hasExactly", "hasNone", "isSubsetOf":
		v.names(e, last)
		if now := e.AsCall().Args()[0]; now.Kind() != ast.LiteralKind && !isSet(v.ast.GetType(last.ID())) {
			v.ofNames(e, last)
		}
	}
}

func isSet(t *types.Type) bool { return t.IsExactType(capSetType) }

// comparable tells whether CEL's own comparison is right: of plain values, and of
// lists of them.
func comparable(t *types.Type) bool {
	if t.Kind() == types.ListKind {
		return len(t.Parameters()) == 1 && (comparable(t.Parameters()[0]) || t.Parameters()[0].Kind() == types.TypeParamKind)
	}
	return slices.Contains([]types.Kind{types.BoolKind, types.IntKind, types.UintKind, types.DoubleKind, types.StringKind}, t.Kind()) || t.IsExactType(severityType)
}

// replace puts our own function in the place of CEL's.
func (v *vetting) replace(e ast.Expr, name string, operands []ast.Expr) {
	by := replacements[name]
	e.SetKindCase(ast.NewExprFactory().NewCall(e.ID(), by.function, operands...))
	v.ast.SetReference(e.ID(), ast.NewFunctionReference(by.overload))
}

// ofNode hands capabilities() what ALL means, and the meter: the lists of a pod
// spec are as long as somebody likes.
func (v *vetting) ofNode(e, names ast.Expr) {
	e.SetKindCase(ast.NewExprFactory().NewCall(e.ID(), capabilitiesFunction, names, v.hidden(nodeVariable, nodeSetsType)))
	v.ast.SetReference(e.ID(), ast.NewFunctionReference(capabilitiesOverload))
}

// ofNames makes the call ask about a set, which capabilities() makes of the names
// that are not known yet.
func (v *vetting) ofNames(call, names ast.Expr) {
	c, factory := call.AsCall(), ast.NewExprFactory()
	set := factory.NewCall(v.newID(), capabilitiesFunction, names, v.hidden(nodeVariable, nodeSetsType))
	v.ast.SetReference(set.ID(), ast.NewFunctionReference(capabilitiesOverload))
	call.SetKindCase(factory.NewMemberCall(call.ID(), c.FunctionName(), c.Target(), set))
	v.ast.SetReference(call.ID(), ast.NewFunctionReference(c.FunctionName()+"_set"))
}

// names reads a list of capability names as far as they are literal.
func (v *vetting) names(call, list ast.Expr) {
	if list.Kind() != ast.ListKind {
		return
	}
	elements := list.AsList().Elements()
	var literal []ast.Expr
	var names []string
	for _, element := range elements {
		if text, ok := element.AsLiteral().(types.String); ok {
			literal, names = append(literal, element), append(names, string(text))
		}
	}
	into := list
	if len(literal) < len(elements) {
		into = nil // the others are read when it is evaluated
	}
	v.literal(call, into, literal, names...)
}

// literal reads literal capability names, and puts the set that they mean in the
// place of a call's argument; of the call, where the call only makes a set.
func (v *vetting) literal(call, argument ast.Expr, places []ast.Expr, names ...string) {
	var set capSet
	for i, name := range names {
		one, err := parseNames(name)
		if err != nil {
			v.refuse(places[i], "", "%s%s", err, nearCapability(name))
			return
		}
		set.held, set.all = set.held|one.held, set.all || one.all
	}
	factory, function := ast.NewExprFactory(), call.AsCall().FunctionName()
	switch {
	case argument == nil:
	case function == "capabilities" && !set.all:
		call.SetKindCase(factory.NewLiteral(call.ID(), set))
	case function != "capabilities":
		argument.SetKindCase(factory.NewLiteral(argument.ID(), set))
		v.ast.SetReference(call.ID(), ast.NewFunctionReference(function+"_set"))
	}
}

// pattern refuses patterns that are not known now, for only they are compiled once,
// and makes the call count what the pattern has to do.
func (v *vetting) pattern(call, e ast.Expr) {
	text, ok := e.AsLiteral().(types.String)
	if !ok {
		v.refuse(e, "", "matches() takes a literal pattern")
		return
	}
	parsed, err := syntax.Parse(string(text), syntax.Perl)
	if err != nil {
		v.refuse(e, "", "%s", err)
		return
	}
	program, err := syntax.Compile(parsed.Simplify())
	switch {
	case err != nil:
		v.refuse(e, "", "%s", err)
	case len(program.Inst) > maxPattern:
		v.refuse(e, "", "the pattern is too large")
	default:
		v.weigh(call, 0, len(program.Inst))
	}
}
