package policy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// CEL's own cost limit keeps a stack that it searches at every step, so that the
// time to reach the limit grows with its square. What can take long here is a loop,
// so each round of one is counted, by how many nodes its body has; and what walks
// through a value whose size the node tells, and with it patterns.

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

// The stand-in for a value that is walked through: it is that value, counted.
const (
	weighFunction = "@weigh"
	weighOverload = "@weigh_value"
)

// perStep is how many instructions of a pattern on one byte, or how many processes
// looked at for their sets, take as long as a step.
const perStep = 8

func weighing() cel.EnvOption {
	value := cel.TypeParamType("T")
	return cel.Function(weighFunction, cel.Overload(weighOverload, []*cel.Type{value, cel.IntType, meterType}, value,
		cel.FunctionBinding(func(args ...ref.Val) ref.Val {
			size := 0
			switch of := args[0].(type) {
			case types.String:
				size = len(of)
			case traits.Sizer:
				size = int(of.Size().(types.Int))
			}
			args[2].(*meter).spend(size * int(args[1].(types.Int)) / perStep)
			return args[0]
		})))
}

// weigh makes a call count its operand: f(x, y) becomes f(@weigh(x, weight, @meter), y).
func (v *vetting) weigh(e ast.Expr, operand, weight int) {
	call, factory := e.AsCall(), ast.NewExprFactory()
	args := slices.Clone(call.Args())
	if call.IsMemberFunction() {
		args = append([]ast.Expr{call.Target()}, args...)
	}
	id := v.newID()
	v.ast.SetReference(id, ast.NewFunctionReference(weighOverload))
	v.ast.SetType(id, v.ast.GetType(args[operand].ID()))
	args[operand] = factory.NewCall(id, weighFunction, args[operand], factory.NewLiteral(v.newID(), types.Int(weight)), v.hidden(meterVariable, meterType))
	if call.IsMemberFunction() {
		e.SetKindCase(factory.NewMemberCall(e.ID(), call.FunctionName(), args[0], args[1:]...))
		return
	}
	e.SetKindCase(factory.NewCall(e.ID(), call.FunctionName(), args...))
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

// nodes is how much work an expression is.
func nodes(e ast.Expr) int {
	count := 2
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(ast.Expr) { count++ }))
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
