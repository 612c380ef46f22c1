package policy

import (
	"errors"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// What a set is asked about stands in the expression. Which names of a list matter does
// not: declared.add.exists(a, a.matches("…")) may ask anything of them. So the body of
// such a loop notes each name for which it is not what leaves the loop's outcome as it is,
// and where a condition fails, all of it is evaluated once more without short cuts: a name
// that is behind the first false offends as well.

// The stand-in for a loop's body; nobody can write it.
const (
	noteFunction = "@note"
	noteOverload = "@note_name"
)

// noting makes the function: the body's answer, the name it is about, the answer that
// changes nothing, the list's field, and the evaluation. An answer that could not be given
// is noted too.
func noting() cel.EnvOption {
	return cel.Function(noteFunction, cel.Overload(noteOverload,
		[]*cel.Type{cel.BoolType, cel.StringType, cel.BoolType, cel.StringType, nodeSetsType}, cel.BoolType,
		cel.OverloadIsNonStrict(), cel.FunctionBinding(func(args ...ref.Val) ref.Val {
			of, ok := args[4].(nodeSets)
			if !ok || of.vars.noted == nil || args[0] == args[2] {
				return args[0]
			}
			name, _ := args[1].(types.String)
			list := string(args[3].(types.String))
			noted := of.vars.noted[list]
			noted.add(string(name), of.vars.full)
			of.vars.noted[list] = noted
			return args[0]
		})))
}

// listOfNames reports whether a loop's range has names of capabilities that were added,
// and which field's; empty where it is made of one, or of several.
func (v *vetting) listOfNames(e ast.Expr) (field string, matters bool) {
	typ := v.ast.GetType(e.ID())
	if typ.Kind() != types.ListKind || len(typ.Parameters()) != 1 || typ.Parameters()[0].Kind() != types.StringKind {
		return "", false
	}
	c := collector{ast: v.ast, nouns: v.nouns, locals: v.locals}
	if path := c.path(e); path != nil {
		return strings.Join(path, "."), addLists[path[len(path)-1]]
	}
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(part ast.Expr) {
		matters = matters || part.Kind() == ast.SelectKind && addLists[part.AsSelect().FieldName()]
	}))
	return "", matters
}

// note makes a loop's body note its names.
func (v *vetting) note(loop ast.ComprehensionExpr, field string) {
	step := loop.LoopStep()
	if step.Kind() != ast.CallKind {
		v.refuse(step, "", "this loop is not part of the language")
		return
	}
	body, neutral := step.AsCall().Args()[0], false // exists_one(), filter(): body ? … : …
	switch step.AsCall().FunctionName() {
	case operators.LogicalAnd: // all(): … && body
		body, neutral = step.AsCall().Args()[1], true
	case operators.LogicalOr:
		body = step.AsCall().Args()[1]
	}
	factory := ast.NewExprFactory()
	inner := factory.NewUnspecifiedExpr(v.newID())
	inner.SetKindCase(body)
	if reference, ok := v.ast.ReferenceMap()[body.ID()]; ok {
		v.ast.SetReference(inner.ID(), reference)
	}
	v.ast.SetType(inner.ID(), types.BoolType)
	name := factory.NewIdent(v.newID(), loop.IterVar())
	v.ast.SetType(name.ID(), types.StringType)
	v.ast.SetReference(name.ID(), ast.NewIdentReference(loop.IterVar(), nil))
	body.SetKindCase(factory.NewCall(body.ID(), noteFunction, inner, name,
		factory.NewLiteral(v.newID(), types.Bool(neutral)), factory.NewLiteral(v.newID(), types.String(field)), v.hidden(nodeVariable, nodeSetsType)))
	v.ast.SetReference(body.ID(), ast.NewFunctionReference(noteOverload))
	v.notes = true
}

// note evaluates all of the expression, and fills v.noted. It reports whether it came to
// the end, be it true, false or unknown.
func (f *Filter) note(v *vars, steps *int) bool {
	v.noted = nil
	if f.exhaustive == nil {
		return true
	}
	program, err := f.exhaustive()
	if *steps -= f.steps; err != nil || *steps < 0 {
		return false
	}
	v.noted = make(map[string]named)
	_, err = f.run(program, v, steps)
	return !errors.Is(err, ErrCost)
}
