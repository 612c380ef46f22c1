package policy

import (
	"fmt"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// capSetType is the type of a capability set in the language.
var capSetType = types.NewOpaqueType("capabilities")

// capSet is one capability set as a CEL value. It implements ref.Val.
type capSet struct {
	held    capdecode.Set
	all     bool          // ALL was named: everything that the other side's node knows
	full    capdecode.Set // everything that this node knows; empty when that is not known
	missing *UnknownError // why there may be more in it
}

func (s capSet) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("a capability set is no %s", to)
}
func (s capSet) ConvertToType(ref.Type) ref.Val { return unfit() }
func (s capSet) Type() ref.Type                 { return capSetType }
func (s capSet) Value() any                     { return s }

// Equal implements ref.Val; in an expression == is hasExactly (vet.go).
func (s capSet) Equal(other ref.Val) ref.Val {
	if o, ok := other.(capSet); ok {
		return judged(exactly(s, o))
	}
	return types.False
}

func (s capSet) size() ref.Val {
	s, _ = resolve(s, s)
	if s.missing != nil {
		return types.WrapErr(s.missing)
	}
	return types.Int(s.held.Len())
}

// resolve gives ALL its meaning, which either side's node tells.
func resolve(a, b capSet) (capSet, capSet) {
	full := a.full | b.full
	for _, s := range []*capSet{&a, &b} {
		if s.all {
			s.held |= full
		}
		if s.all && full.Empty() {
			s.missing = &UnknownError{What: "node.capLastCap", Why: string(notKnown)}
		}
	}
	return a, b
}

// The judgements are true or false, and certain only without an error.

func within(a, b capSet) (bool, *UnknownError) {
	a, b = resolve(a, b)
	if a.held.Within(b.held) {
		return true, a.missing
	}
	return false, b.missing
}

func shares(a, b capSet) (bool, *UnknownError) {
	switch {
	case b.all && !a.held.Empty() || a.all && !b.held.Empty():
		return true, nil // whatever the node knows, the kernel holds nothing beyond it
	case b.all:
		return false, a.missing
	case a.all:
		return false, b.missing
	case a.held&b.held != 0:
		return true, nil
	case a.missing != nil:
		return false, a.missing
	}
	return false, b.missing
}

func exactly(a, b capSet) (bool, *UnknownError) {
	up, notUp := within(a, b)
	down, notDown := within(b, a)
	switch {
	case !up && notUp == nil || !down && notDown == nil:
		return false, nil
	case notUp != nil:
		return false, notUp
	case notDown != nil:
		return false, notDown
	}
	return true, nil
}

func judged(is bool, unknown *UnknownError) ref.Val {
	if unknown != nil {
		return types.WrapErr(unknown)
	}
	return types.Bool(is)
}

// The names of what stands for operators and functions once an expression is compiled;
// nobody can write them.
const (
	sameFunction  = "@same"
	otherFunction = "@other"
	countFunction = "@count"

	// capabilities() with the node's own, nodeVariable, as a second argument: they
	// are what ALL means.
	capabilitiesFunction = "@capabilities"
	capabilitiesOverload = "@capabilities_of_node"
	nodeVariable         = "@node"
)

// nodeSets is nodeVariable's value: what capabilities() needs of the evaluation. It
// implements ref.Val.
type nodeSets struct {
	capSet
	vars *vars
}

var nodeSetsType = types.NewOpaqueType("node sets")

// Type implements ref.Val.
func (nodeSets) Type() ref.Type { return nodeSetsType }

// setFunctions are the questions that take names or another set.
var setFunctions = map[string]func(a, b capSet) ref.Val{
	"hasAny":     func(a, b capSet) ref.Val { return judged(shares(a, b)) },
	"hasAll":     func(a, b capSet) ref.Val { return judged(within(b, a)) },
	"hasExactly": func(a, b capSet) ref.Val { return judged(exactly(a, b)) },
	"isSubsetOf": func(a, b capSet) ref.Val { return judged(within(a, b)) },
	"hasNone": func(a, b capSet) ref.Val {
		any, unknown := shares(a, b)
		return judged(!any, unknown)
	},
}

func capabilityFunctions() []cel.EnvOption {
	list, set := cel.ListType(cel.StringType), capSetType
	one := func(id string, argument *cel.Type, answer func(a, b capSet) ref.Val) cel.FunctionOpt {
		return cel.MemberOverload(id, []*cel.Type{set, argument}, cel.BoolType, cel.BinaryBinding(binary(answer)))
	}
	var options []cel.EnvOption
	for name, answer := range setFunctions {
		options = append(options, cel.Function(name, one(name+"_names", list, answer), one(name+"_set", set, answer)))
	}
	return append(options,
		cel.Function(overloads.Contains, one("contains_name", cel.StringType, setFunctions["hasAll"])),
		// What vet.go makes of contains() with a literal name.
		cel.Function(overloads.Contains, one("contains_set", set, setFunctions["hasAll"])),
		cel.Function("capabilities", cel.Overload("capabilities_names", []*cel.Type{list}, set)),
		cel.Function(capabilitiesFunction, cel.Overload(capabilitiesOverload, []*cel.Type{list, nodeSetsType}, set, cel.BinaryBinding(func(names, node ref.Val) ref.Val {
			v := node.(nodeSets).vars
			if sized, ok := names.(traits.Sizer); ok {
				v.meter.spend(4 * int(sized.Size().(types.Int)))
			}
			set, err := operand(names)
			if err != nil {
				return types.WrapErr(err)
			}
			set.full = v.full
			return set
		}))),
		cel.Function(overloads.Size, cel.Overload("size_capabilities", []*cel.Type{set}, cel.IntType),
			cel.MemberOverload("capabilities_size", []*cel.Type{set}, cel.IntType)),
		cel.Function(sameFunction, cel.Overload("@same_sets", []*cel.Type{set, set}, cel.BoolType, cel.BinaryBinding(binary(setFunctions["hasExactly"])))),
		cel.Function(otherFunction, cel.Overload("@other_sets", []*cel.Type{set, set}, cel.BoolType, cel.BinaryBinding(binary(func(a, b capSet) ref.Val {
			same, unknown := exactly(a, b)
			return judged(!same, unknown)
		})))),
		cel.Function(countFunction, cel.Overload("@count_of", []*cel.Type{cel.TypeParamType("T")}, cel.IntType, cel.UnaryBinding(count))),
	)
}

// replacements are the functions that take the place of operators on capability
// sets and lists of nouns, with their overloads: CEL's own know nothing of unknown.
var replacements = map[string]struct{ function, overload string }{
	operators.Equals:    {sameFunction, "@same_sets"},
	operators.NotEquals: {otherFunction, "@other_sets"},
	overloads.Size:      {countFunction, "@count_of"},
}

func binary(answer func(a, b capSet) ref.Val) func(lhs, rhs ref.Val) ref.Val {
	return func(lhs, rhs ref.Val) ref.Val {
		a, err := operand(lhs)
		if err != nil {
			return types.WrapErr(err)
		}
		b, err := operand(rhs)
		if err != nil {
			return types.WrapErr(err)
		}
		return answer(a, b)
	}
}

// operand reads a set, or the names of one.
func operand(value ref.Val) (capSet, error) {
	switch v := value.(type) {
	case capSet:
		return v, nil
	case types.String:
		return parseNames(string(v))
	case traits.Lister:
		var set capSet
		for it := v.Iterator(); it.HasNext() == types.True; {
			name, ok := it.Next().(types.String)
			if !ok {
				return capSet{}, fmt.Errorf("a capability is named by a text")
			}
			one, err := parseNames(string(name))
			if err != nil {
				return capSet{}, err
			}
			set.held, set.all = set.held|one.held, set.all || one.all
		}
		return set, nil
	}
	return capSet{}, fmt.Errorf("%s is no capability set", value.Type().TypeName())
}

// parseNames reads names in any spelling; ALL is everything that the node knows.
func parseNames(names ...string) (capSet, error) {
	var set capSet
	for _, name := range names {
		if strings.EqualFold(name, "ALL") {
			set.all = true
			continue
		}
		c, ok := capdecode.ParseCap(name)
		if !ok {
			return capSet{}, fmt.Errorf("%.40q is no capability", name)
		}
		set.held |= capdecode.Of(c)
	}
	return set, nil
}

// nearCapability is what was probably meant. It is for who writes an expression: to
// search for it takes long where it is evaluated again and again.
func nearCapability(name string) string {
	return didYouMean(strings.TrimPrefix(strings.ToUpper(name), "CAP_"), capabilityNames())
}

func capabilityNames() []string {
	names := []string{"ALL"}
	for c := capdecode.Cap(0); c <= capdecode.MaxCap; c++ {
		if c.Known() {
			names = append(names, strings.TrimPrefix(c.String(), "CAP_"))
		}
	}
	return names
}

// severityType is the type of severities in the language.
var severityType = types.NewTypeValue("severity", traits.ComparerType) //nolint:staticcheck // an object type would have fields

// severity is a severity as a CEL value. It implements ref.Val and traits.Comparer.
type severity drift.Severity

func (s severity) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("a severity is no %s", to)
}
func (s severity) ConvertToType(ref.Type) ref.Val { return unfit() }
func (s severity) Type() ref.Type                 { return severityType }
func (s severity) Value() any                     { return s }
func (s severity) Equal(other ref.Val) ref.Val    { return types.Bool(other == ref.Val(s)) }

// Compare implements traits.Comparer.
func (s severity) Compare(other ref.Val) ref.Val {
	o, ok := other.(severity)
	if !ok {
		return unfit()
	}
	return types.Int(s).Compare(types.Int(o))
}
