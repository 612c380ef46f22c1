package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/types"
)

// The bounds of an expression.
const (
	maxLength  = 4096 // bytes
	maxDepth   = 48   // of parentheses and the like
	maxNodes   = 2500 // of the syntax tree, macros expanded
	maxLoops   = 3    // macros in macros
	maxPattern = 1000 // instructions of a regular expression

	// What an expression may be expected to cost on a container of usualProcesses, by
	// CEL's estimate, and how many steps it may take on any subject: about a tenth of
	// a second.
	maxEstimate    = 20_000_000
	maxSteps       = 3_000_000
	usualProcesses = 500
	usualText      = 128
	usualList      = 40
)

// Filter is a compiled expression that is true or false of a [Subject].
type Filter struct {
	expression string
	program    cel.Program
	steps      int // without its loops
	checked    *cel.Ast
	reads      map[string]bool
	facts      []fact // what it reads, for evidence
	// exhaustive is the program that evaluates everything, for the loops that note what
	// matters (note.go); nil where none does.
	exhaustive func() (cel.Program, error)
	language   *environment
}

// CompileFilter compiles an expression of the filter language, docs/filter.md. An
// error about the expression is a [*FilterError].
func CompileFilter(expression string) (*Filter, error) {
	e, err := language()
	if err != nil {
		return nil, fmt.Errorf("the filter language: %w", err)
	}
	wrong := func(message, hint string) *FilterError {
		return &FilterError{Expression: expression, Line: 1, Column: 1, Message: message, Hint: hint}
	}
	switch {
	case strings.TrimSpace(expression) == "":
		return nil, wrong("the expression is empty", "")
	case len(expression) > maxLength:
		return nil, &FilterError{Line: 1, Column: 1, Message: fmt.Sprintf("the expression has %d bytes, at most %d are allowed", len(expression), maxLength)}
	case !utf8.ValidString(expression):
		return nil, &FilterError{Line: 1, Column: 1, Message: "the expression is not UTF-8"}
	}
	checked, issues := e.cel.Compile(expression)
	if issues.Err() != nil {
		if len(issues.Errors()) == 0 {
			return nil, wrong(oneLine(issues.Err().Error()), "")
		}
		first := issues.Errors()[0]
		for _, issue := range issues.Errors() {
			if before(issue.Location, first.Location) {
				first = issue
			}
		}
		return nil, e.filterError(expression, first.Location, first.Message)
	}
	if !checked.OutputType().IsExactType(types.BoolType) {
		return nil, wrong(fmt.Sprintf("the expression is a %s, and has to be true or false", cel.FormatCELType(checked.OutputType())), "compare it with something")
	}
	estimate, err := e.cel.EstimateCost(checked, sizes{})
	if err != nil {
		return nil, wrong(oneLine(err.Error()), "")
	}
	if estimate.Max > maxEstimate {
		return nil, wrong("the expression may take too long", "use fewer exists(), all() and filter() inside each other")
	}
	f := &Filter{
		expression: expression, checked: checked, steps: nodes(checked.NativeRep().Expr()),
		reads: make(map[string]bool), facts: factsOf(checked.NativeRep(), e.nouns), language: e,
	}
	vet := vetting{ast: checked.NativeRep(), nouns: e.nouns, reads: f.reads, report: f.at}
	if vet.visit(checked.NativeRep().Expr()); vet.wrong != nil {
		return nil, vet.wrong
	}
	if f.program, err = e.cel.Program(checked, cel.EvalOptions(cel.OptOptimize)); err != nil {
		return nil, wrong(oneLine(err.Error()), "")
	}
	if vet.notes {
		f.exhaustive = sync.OnceValues(func() (cel.Program, error) {
			return e.cel.Program(checked, cel.EvalOptions(cel.OptOptimize, cel.OptExhaustiveEval))
		})
	}
	return f, nil
}

func before(a, b common.Location) bool {
	return a.Line() < b.Line() || a.Line() == b.Line() && a.Column() < b.Column()
}

// Reads tells whether the expression reads the variable, "finding" or "process".
func (f *Filter) Reads(variable string) bool { return f.reads[variable] }

// String returns the expression.
func (f *Filter) String() string { return f.expression }

// Match tells whether the expression is true of the subject. Where it cannot be
// told the error is an [*UnknownError], and the subject must not be taken for one
// that does not match; other errors are [ErrCost], and a [*FilterError] for what
// shows only on a subject, such as a division by zero.
func (f *Filter) Match(s Subject) (bool, error) {
	steps := f.steps + maxSteps
	return f.MatchWithin(s, &steps)
}

// MatchWithin is Match for many subjects that may take only so many steps together,
// of some 30 ns. It takes from them what it needs; those that are left are negative
// once it ends in [ErrCost] because they did not suffice.
func (f *Filter) MatchWithin(s Subject, steps *int) (bool, error) {
	return f.eval(newVars(s), steps)
}

// eval is MatchWithin on variables that several expressions share.
func (f *Filter) eval(v *vars, steps *int) (bool, error) {
	if *steps -= f.steps; *steps < 0 {
		return false, ErrCost
	}
	return f.run(f.program, v, steps)
}

func (f *Filter) run(program cel.Program, v *vars, steps *int) (bool, error) {
	granted := min(*steps, maxSteps)
	v.meter.left = granted
	out, _, err := program.Eval(v)
	*steps -= granted - v.meter.left
	if err == nil {
		matches, ok := out.(types.Bool)
		if !ok {
			return false, f.at(0, "the expression is neither true nor false", "")
		}
		return bool(matches), nil
	}
	if tooCostly(err) {
		return false, fmt.Errorf("%w (more than %d steps)", ErrCost, maxSteps)
	}
	unknown, node := failure(err)
	if unknown != nil {
		return false, unknown
	}
	var wrong *types.Err
	if errors.As(err, &wrong) {
		return false, f.at(node, wrong.String(), "")
	}
	return false, f.at(0, err.Error(), "")
}

// at is an error at a node of the expression.
func (f *Filter) at(node int64, message, hint string) *FilterError {
	location := f.checked.NativeRep().SourceInfo().GetStartLocation(node)
	return &FilterError{Expression: f.expression, Line: max(location.Line(), 1), Column: max(location.Column(), 0) + 1, Message: oneLine(message), Hint: hint}
}

// sizes tells how large things usually are. It implements checker.CostEstimator.
type sizes struct{}

func (sizes) EstimateSize(node checker.AstNode) *checker.SizeEstimate {
	size := uint64(1)
	switch t := node.Type(); {
	case t.Kind() == types.StringKind:
		size = usualText
	case t.Kind() == types.ListKind && len(t.Parameters()) == 1 && t.Parameters()[0].IsExactType(processType):
		size = usualProcesses
	case t.Kind() == types.ListKind:
		size = usualList
	}
	return &checker.SizeEstimate{Min: 0, Max: size}
}

func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}
