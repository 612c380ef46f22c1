package policy

import (
	"errors"
	"fmt"
	"reflect"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// CEL's own cost limit keeps a stack that it searches at every step, so that the
// time to reach the limit grows with its square. All that can take long here is a
// loop, so each round of one is counted, by how many nodes its body has.

// meter counts the steps of one evaluation. It implements ref.Val.
type meter struct{ left int }

var meterType = types.NewOpaqueType("meter")

func (m *meter) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("a meter is no %s", to)
}
func (m *meter) ConvertToType(ref.Type) ref.Val { return unfit() }
func (m *meter) Equal(ref.Val) ref.Val          { return unfit() }
func (m *meter) Type() ref.Type                 { return meterType }
func (m *meter) Value() any                     { return m }

// spend ends the evaluation when all is spent; Program.Eval recovers it as an error.
func (m *meter) spend(steps int) {
	if m.left -= steps; m.left < 0 {
		panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: ErrCost.Error()})
	}
}

func tooCostly(err error) bool {
	var cancelled interpreter.EvalCancelledError
	return errors.As(err, &cancelled)
}

// The loop condition's stand-in, and the variable that holds the meter; nobody can
// write them.
const (
	tickFunction  = "@tick"
	tickOverload  = "@tick_round"
	meterVariable = "@meter"
)

func meterFunction() cel.EnvOption {
	return cel.Function(tickFunction, cel.Overload(tickOverload, []*cel.Type{cel.BoolType, cel.IntType, meterType}, cel.BoolType,
		cel.FunctionBinding(func(args ...ref.Val) ref.Val {
			args[2].(*meter).spend(int(args[1].(types.Int)))
			return args[0]
		})))
}

// tick makes the loop condition count the round: cond becomes @tick(cond, nodes
// of the step, @meter).
func (v *vetting) tick(loop ast.ComprehensionExpr) {
	condition, factory := loop.LoopCondition(), ast.NewExprFactory()
	id := v.newID()
	var inner ast.Expr
	switch condition.Kind() {
	case ast.CallKind:
		call := condition.AsCall()
		inner = factory.NewCall(id, call.FunctionName(), call.Args()...)
		v.ast.SetReference(id, v.ast.ReferenceMap()[condition.ID()])
	case ast.LiteralKind:
		inner = factory.NewLiteral(id, condition.AsLiteral())
	default:
		v.refuse(condition, "", "this loop is not part of the language")
		return
	}
	weight := factory.NewLiteral(v.newID(), types.Int(nodes(loop.LoopStep())))
	condition.SetKindCase(factory.NewCall(condition.ID(), tickFunction, inner, weight, v.hidden(meterVariable, meterType)))
	v.ast.SetReference(condition.ID(), ast.NewFunctionReference(tickOverload))
}

// nodes is how much work an expression is: its nodes, and the length of its patterns.
func nodes(e ast.Expr) int {
	count := 2
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		count++
		if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == overloads.Matches {
			args := e.AsCall().Args()
			if pattern, ok := args[len(args)-1].AsLiteral().(types.String); ok {
				count += len(pattern)
			}
		}
	}))
	return count
}

// newID is an id that no node has yet.
func (v *vetting) newID() int64 {
	if v.lastID == 0 {
		for id := range v.ast.IDs() {
			v.lastID = max(v.lastID, id)
		}
	}
	v.lastID++
	return v.lastID
}

// hidden is a variable that nobody can write.
func (v *vetting) hidden(name string, typ *types.Type) ast.Expr {
	id := v.newID()
	v.ast.SetReference(id, ast.NewIdentReference(name, nil))
	v.ast.SetType(id, typ)
	return ast.NewExprFactory().NewIdent(id, name)
}
