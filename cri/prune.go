package cri

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
)

// decode reads one JSON value into a T as json.Unmarshal does, but never holds more of
// it than T's fields: the rest is skipped as it is read. So a pod with long arguments
// costs time and no memory, and a secret that T has no field for is never kept.
//
// An error says where the value is wrong and never quotes it: those of encoding/json
// do.
func decode[T any](r io.Reader) (value T, err error) {
	text, err := prune(r, shapeOf(reflect.TypeFor[T]()))
	if err != nil {
		return value, err
	}
	if err := json.Unmarshal(text, &value); err != nil {
		var zero T
		return zero, errForm
	}
	return value, nil
}

// What is wrong with a document, beside where it is not JSON.
var (
	errEmpty = errors.New("is empty")
	errForm  = errors.New("is not of the form expected") // a field takes another kind of value
)

const (
	maxKept    = 1 << 20 // bytes of one document that its fields may have
	maxNesting = 10000   // as in encoding/json
	maxLiteral = 1024    // bytes of a number
	// maxEscaped bounds a kept text as it is written, where one byte may take six. What is
	// longer is cut, and still too long for whoever checks it.
	maxEscaped = 6 * (maxPath + 1)
)

// shape says what is kept of a JSON value.
type shape struct {
	kind   kind
	fields map[string]shape // of an object, by name
	each   *shape           // of a list's elements; of an object's members where it has no fields
}

type kind int

const (
	nothing kind = iota
	everything
	scalar
	object
	list
	nameList // see [names]
)

// shapeOf returns the shape of what json.Unmarshal puts into a Go type.
func shapeOf(t reflect.Type) shape {
	switch {
	case t == reflect.TypeFor[names]():
		return shape{kind: nameList}
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()):
		return shape{kind: everything}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return shapeOf(t.Elem())
	case reflect.Slice:
		return shape{kind: list, each: new(shapeOf(t.Elem()))}
	case reflect.Map:
		return shape{kind: object, each: new(shapeOf(t.Elem()))}
	case reflect.Struct:
		s := shape{kind: object, fields: make(map[string]shape, t.NumField())}
		for i := range t.NumField() {
			field := t.Field(i)
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			s.fields[name] = shapeOf(field.Type)
		}
		return s
	}
	return shape{kind: scalar}
}

// member returns the shape of an object's member, and the name to write it under.
func (s shape) member(quoted []byte) (string, shape) {
	var key string
	switch {
	case s.kind == everything:
		return string(quoted), s
	case s.kind != object || json.Unmarshal(quoted, &key) != nil:
		return "", shape{}
	case s.fields == nil:
		return string(quoted), *s.each
	}
	for name, field := range s.fields {
		if strings.EqualFold(name, key) { // as encoding/json matches
			return `"` + name + `"`, field
		}
	}
	return "", shape{}
}

// names is a list of capability names, of which a bounded part is kept.
type names struct {
	Kept []string `json:"kept"`
	Left int      `json:"left"` // how many others there were
}

const (
	maxNames     = 1024 // kept of one list
	maxNameBytes = 16 << 10
)

// collector keeps the first names of a list, and of the others one of each spelling
// that means something: a capability at the end of a long list counts as much as one
// at its beginning.
type collector struct {
	names
	bytes int
	seen  map[string]bool
}

func (c *collector) add(name string) {
	known := false
	if upper := strings.ToUpper(name); len(name) < 64 {
		_, known = capdecode.ParseName(name)
		known = (known || upper == "ALL" || upper == "CAP_ALL") && !c.seen[upper]
		if known {
			c.seen[upper] = true
		}
	}
	if name = clip(name); !known && (len(c.Kept) >= maxNames || c.bytes+len(name) > maxNameBytes) {
		c.Left++
		return
	}
	c.Kept, c.bytes = append(c.Kept, name), c.bytes+len(name)
}

// pruner copies the parts of one JSON document (RFC 8259) that a shape names.
type pruner struct {
	r       io.Reader
	buffer  []byte
	at, end int   // what of the buffer is not read yet
	passed  int64 // bytes before the buffer
	failed  error // of r
	text    []byte
	out     []byte
}

// prune returns a document that holds of another what a shape names.
func prune(r io.Reader, keep shape) ([]byte, error) {
	p := &pruner{r: r, buffer: make([]byte, 32<<10)}
	if !p.more() && errors.Is(p.failed, io.EOF) {
		return nil, errEmpty
	}
	if err := p.value(keep, 0); err != nil {
		return nil, err
	}
	if _, ok := p.first(); ok {
		return nil, p.bad()
	}
	if !errors.Is(p.failed, io.EOF) {
		return nil, p.failed
	}
	return p.out, nil
}

// more makes sure that there is a byte to read.
func (p *pruner) more() bool {
	for p.at == p.end && p.failed == nil {
		p.passed += int64(p.end)
		p.at = 0
		p.end, p.failed = p.r.Read(p.buffer)
	}
	return p.at < p.end
}

// bad says that the document is no JSON at the byte that is read next, or that it could
// not be read.
func (p *pruner) bad() error {
	if p.failed != nil && !errors.Is(p.failed, io.EOF) && p.at == p.end {
		return p.failed
	}
	return badAt(p.passed + int64(p.at))
}

func badAt(offset int64) error { return fmt.Errorf("is not JSON (at byte %d)", offset+1) }

// first returns the next byte that is not white space, and leaves it to be read.
func (p *pruner) first() (byte, bool) {
	for p.more() {
		switch c := p.buffer[p.at]; c {
		case ' ', '\t', '\r', '\n':
			p.at++
		default:
			return c, true
		}
	}
	return 0, false
}

// take reads the given byte, and reports whether it was the next one.
func (p *pruner) take(c byte) bool {
	if next, ok := p.first(); !ok || next != c {
		return false
	}
	p.at++
	return true
}

func (p *pruner) emit(keep shape, text ...byte) error {
	if keep.kind == nothing {
		return nil
	}
	if len(p.out)+len(text) > maxKept {
		return errForm
	}
	p.out = append(p.out, text...)
	return nil
}

func (p *pruner) value(keep shape, depth int) error {
	c, ok := p.first()
	if !ok || (c == '{' || c == '[') && depth >= maxNesting {
		return p.bad()
	}
	switch c {
	case '{':
		if keep.kind == scalar || keep.kind == list || keep.kind == nameList {
			return errForm
		}
		return p.object(keep, depth)
	case '[':
		switch keep.kind {
		case scalar, object:
			return errForm
		case nameList:
			return p.names()
		}
		return p.list(keep, depth)
	case '"':
		if keep.kind > scalar {
			return errForm
		}
		text, err := p.string(keep.kind != nothing)
		if err != nil {
			return err
		}
		return p.emit(keep, text...)
	}
	literal, err := p.literal()
	switch {
	case err != nil:
		return err
	case keep.kind > scalar && string(literal) != "null":
		return errForm
	}
	return p.emit(keep, literal...)
}

func (p *pruner) object(keep shape, depth int) error {
	p.at++
	if err := p.emit(keep, '{'); err != nil {
		return err
	}
	for n, kept := 0, 0; !p.take('}'); n++ {
		if n > 0 && !p.take(',') {
			return p.bad()
		}
		if c, ok := p.first(); !ok || c != '"' {
			return p.bad()
		}
		quoted, err := p.string(keep.kind != nothing)
		if err != nil {
			return err
		}
		name, member := keep.member(quoted)
		if !p.take(':') {
			return p.bad()
		}
		if member.kind != nothing {
			if kept > 0 {
				name = "," + name
			}
			kept++
		}
		if err := p.emit(member, []byte(name+":")...); err != nil {
			return err
		}
		if err := p.value(member, depth+1); err != nil {
			return err
		}
	}
	return p.emit(keep, '}')
}

func (p *pruner) list(keep shape, depth int) error {
	p.at++
	if err := p.emit(keep, '['); err != nil {
		return err
	}
	each := keep
	if keep.kind == list {
		each = *keep.each
	}
	for n := 0; !p.take(']'); n++ {
		if n > 0 {
			if !p.take(',') {
				return p.bad()
			}
			if err := p.emit(keep, ','); err != nil {
				return err
			}
		}
		if err := p.value(each, depth+1); err != nil {
			return err
		}
	}
	return p.emit(keep, ']')
}

// names reads a list of names and writes a [names] in its place.
func (p *pruner) names() error {
	p.at++
	c := collector{seen: make(map[string]bool)}
	for n := 0; !p.take(']'); n++ {
		if n > 0 && !p.take(',') {
			return p.bad()
		}
		first, ok := p.first()
		if !ok {
			return p.bad()
		}
		var quoted []byte
		var err error
		if first == '"' {
			quoted, err = p.string(true)
		} else if quoted, err = p.literal(); err == nil && string(quoted) != "null" {
			err = errForm
		}
		if err != nil {
			return err
		}
		name, err := unquote(quoted)
		if err != nil {
			return err
		}
		c.add(name)
	}
	text, err := json.Marshal(c.names)
	if err != nil {
		return err
	}
	return p.emit(shape{kind: nameList}, text...)
}

// unquote is json.Unmarshal into a string, faster for what has no escapes.
func unquote(quoted []byte) (name string, err error) {
	if quoted[0] == '"' && bytes.IndexByte(quoted, '\\') < 0 {
		return strings.ToValidUTF8(string(quoted[1:len(quoted)-1]), "\ufffd"), nil
	}
	if json.Unmarshal(quoted, &name) != nil {
		return "", errForm
	}
	return name, nil
}

// literal reads a number, true, false or null.
func (p *pruner) literal() ([]byte, error) {
	p.text = p.text[:0]
	start := p.passed + int64(p.at)
	for p.more() && strings.IndexByte(" \t\r\n,:]}[{\"", p.buffer[p.at]) < 0 {
		if len(p.text) == maxLiteral {
			return nil, badAt(start)
		}
		p.text = append(p.text, p.buffer[p.at])
		p.at++
	}
	if p.failed != nil && !errors.Is(p.failed, io.EOF) {
		return nil, p.failed
	}
	if !json.Valid(p.text) {
		return nil, badAt(start)
	}
	return p.text, nil
}

// string reads a string and returns it as it is written, quotes included; only the
// quotes unless it is to be kept. It is valid until the next one is read.
func (p *pruner) string(keep bool) ([]byte, error) {
	p.at++
	p.text = append(p.text[:0], '"')
	for p.more() {
		// The run up to the next byte that means something.
		run := p.buffer[p.at:p.end]
		n := 0
		for n < len(run) && run[n] != '"' && run[n] != '\\' && run[n] >= ' ' {
			n++
		}
		if keep {
			p.text = append(p.text, run[:min(n, max(0, maxEscaped-len(p.text)))]...)
		}
		if p.at += n; p.at == p.end {
			continue
		}
		switch p.buffer[p.at] {
		case '"':
			p.at++
			return append(p.text, '"'), nil
		case '\\':
			if err := p.escape(keep); err != nil {
				return nil, err
			}
		default:
			return nil, p.bad()
		}
	}
	return nil, p.bad()
}

// escape reads \n or \u003c. Half of one is never kept.
func (p *pruner) escape(keep bool) error {
	var unit [6]byte
	unit[0] = '\\'
	p.at++
	if !p.more() || strings.IndexByte(`"\/bfnrtu`, p.buffer[p.at]) < 0 {
		return p.bad()
	}
	unit[1] = p.buffer[p.at]
	p.at++
	length := 2
	if unit[1] == 'u' {
		for ; length < 6; length++ {
			if !p.more() || strings.IndexByte("0123456789abcdefABCDEF", p.buffer[p.at]) < 0 {
				return p.bad()
			}
			unit[length] = p.buffer[p.at]
			p.at++
		}
	}
	if keep && len(p.text) < maxEscaped {
		p.text = append(p.text, unit[:length]...)
	}
	return nil
}
