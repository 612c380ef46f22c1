package policy

import (
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// list is a list of nouns as a CEL value, traits.Lister. One that is missing
// something ends, when it is walked through, in an element that is an error: so
// exists() is true where it finds something and unknown where it does not, and
// all() is false where it finds an exception and unknown where it does not.
type list[T any] struct {
	of      []T
	missing *UnknownError
}

// lister is a list that may be incomplete.
type lister interface{ incomplete() *UnknownError }

func (l *list[T]) incomplete() *UnknownError { return l.missing }

func (l *list[T]) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("a list of nouns is no %s", to)
}
func (l *list[T]) ConvertToType(ref.Type) ref.Val { return unfit() }
func (l *list[T]) Equal(ref.Val) ref.Val          { return unfit() }
func (l *list[T]) Add(ref.Val) ref.Val            { return unfit() }
func (l *list[T]) Contains(ref.Val) ref.Val       { return unfit() }
func (l *list[T]) Type() ref.Type                 { return types.ListType }
func (l *list[T]) Value() any                     { return l.of }

// Size is what CEL counts costs and bounds indexes by; size() in an expression is
// [count].
func (l *list[T]) Size() ref.Val { return types.Int(len(l.of)) }

func (l *list[T]) Get(index ref.Val) ref.Val {
	i, err := types.IndexOrError(index)
	if err != nil {
		return types.WrapErr(err)
	}
	if i < 0 || i >= len(l.of) {
		return types.NewErr("index out of bounds: %d", i)
	}
	return object[T]{&l.of[i]}
}

// Iterator implements traits.Iterable.
func (l *list[T]) Iterator() traits.Iterator { return &walk[T]{list: l} }

// walk is a traits.Iterator, and as such a ref.Val.
type walk[T any] struct {
	*list[T]
	next int
}

func (w *walk[T]) HasNext() ref.Val {
	return types.Bool(w.next < len(w.of) || w.next == len(w.of) && w.missing != nil)
}

func (w *walk[T]) Next() ref.Val {
	w.next++
	if w.next > len(w.of) {
		return types.WrapErr(w.missing)
	}
	return object[T]{&w.of[w.next-1]}
}

// count is size() of lists and capability sets: unknown where not all was seen.
func count(of ref.Val) ref.Val {
	switch v := of.(type) {
	case capSet:
		return v.size()
	case lister:
		if v.incomplete() != nil {
			return types.WrapErr(v.incomplete())
		}
	}
	if sized, ok := of.(traits.Sizer); ok {
		return sized.Size()
	}
	return unfit()
}

// unfit is what a value answers to a question that type checking keeps from it. A
// new one each time: CEL writes the place into an error.
func unfit() ref.Val { return types.NewErr("no such overload") }
