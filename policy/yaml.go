package policy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The bounds of a file of rules or exceptions.
const (
	maxFile  = 1 << 20 // bytes
	maxItems = 1000    // rules, exceptions, names in a list
	maxWords = 8192    // bytes of a text
	// maxConditions bounds what compiling takes: a second at worst.
	maxConditions = 128 << 10 // bytes of all expressions of a file
)

// LoadError is what is wrong with a file of rules or exceptions, and where.
type LoadError struct {
	File    string
	Line    int // from 1
	Column  int // from 1, in characters
	Message string
	Err     error // a [*FilterError], where an expression is wrong
}

func (e *LoadError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

func (e *LoadError) Unwrap() error { return e.Err }

// reader reads one YAML document, and keeps the first error. It is strict: fields
// that nobody knows or that are there twice, aliases (a few lines of which may mean
// gigabytes) and values of another type are errors.
type reader struct {
	file  string
	lines []string
	// conditions counts the bytes of the expressions that were read.
	conditions int
	err        *LoadError
}

func (r *reader) fail(at *yaml.Node, format string, args ...any) {
	r.failAt(at.Line, at.Column, fmt.Sprintf(format, args...), nil)
}

func (r *reader) failAt(line, column int, message string, err error) {
	if r.err == nil {
		r.err = &LoadError{File: r.file, Line: max(line, 1), Column: max(column, 1), Message: oneLine(message), Err: err}
		if err != nil {
			r.err.Message = message // which shows the place in lines of its own
		}
	}
}

// yamlLine is where the parser puts the place of what it cannot read; it tells no
// column.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// readDocument parses a text of one document and hands its root to take.
func readDocument(file string, text []byte, take func(r *reader, root *yaml.Node)) error {
	r := &reader{file: file}
	switch {
	case len(text) > maxFile:
		r.failAt(1, 1, fmt.Sprintf("it has %d bytes, at most %d are allowed", len(text), maxFile), nil)
		return r.err
	case !utf8.Valid(text):
		r.failAt(1, 1, "it is not UTF-8", nil)
		return r.err
	}
	r.lines = strings.Split(string(text), "\n")
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	var root, more yaml.Node
	if err := decoder.Decode(&root); err != nil {
		message, line := err.Error(), 1
		if match := yamlLine.FindStringSubmatch(message); match != nil {
			if at, err := strconv.Atoi(match[1]); err == nil {
				line = at
			}
			message = strings.TrimPrefix(message, match[0])
		}
		if len(strings.TrimSpace(string(text))) == 0 {
			message = "it is empty"
		}
		r.failAt(line, 1, message, nil)
		return r.err
	}
	if decoder.Decode(&more) == nil {
		r.fail(&more, "a file holds one document")
		return r.err
	}
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		take(r, root.Content[0])
	}
	if r.err != nil {
		return r.err
	}
	return nil
}

// mapping calls for each of its fields what is to be done with its value. what
// names the mapping for people.
func (r *reader) mapping(n *yaml.Node, what string, fields map[string]func(*yaml.Node), required ...string) {
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s is %s, want fields (%s)", what, kindOf(n), strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content) && r.err == nil; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		take, known := fields[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !known:
			r.fail(key, "%s has no field %.40q%s", what, key.Value, didYouMean(key.Value, slices.Sorted(maps.Keys(fields))))
		case seen[key.Value]:
			r.fail(key, "the field %s is there twice", key.Value)
		default:
			seen[key.Value] = true
			take(value)
		}
	}
	for _, field := range required {
		if !seen[field] {
			r.fail(n, "%s has no %s", what, field)
		}
	}
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if n.Tag == "!!null" {
		return "empty"
	}
	return "a single value"
}

// text is a value that is not empty.
func (r *reader) text(n *yaml.Node, what string) string {
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
		r.fail(n, "%s is %s, want a text", what, kindOf(n))
	case n.Tag != "!!str":
		r.fail(n, `%s is no text: write it in quotes, "%.40s"`, what, n.Value)
	case strings.TrimSpace(n.Value) == "":
		r.fail(n, "%s is empty", what)
	case len(n.Value) > maxWords:
		r.fail(n, "%s has %d bytes, at most %d are allowed", what, len(n.Value), maxWords)
	default:
		return strings.TrimSpace(n.Value)
	}
	return ""
}

// put is text for a field of a struct.
func (r *reader) put(to *string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) { *to = r.text(n, what) }
}

// each calls for every element of a list that is not empty.
func (r *reader) truth(to *bool, what string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(to) != nil {
			r.fail(n, "%s is %s, want true or false", what, kindOf(n))
		}
	}
}

func (r *reader) each(n *yaml.Node, what string, take func(*yaml.Node)) {
	switch {
	case n.Kind != yaml.SequenceNode:
		r.fail(n, "%s is %s, want a list", what, kindOf(n))
	case len(n.Content) == 0:
		r.fail(n, "%s is empty", what)
	case len(n.Content) > maxItems:
		r.fail(n, "%s has %d elements, at most %d are allowed", what, len(n.Content), maxItems)
	}
	for i := 0; r.err == nil && i < len(n.Content); i++ {
		take(n.Content[i])
	}
}

func (r *reader) texts(to *[]string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		r.each(n, what, func(n *yaml.Node) { *to = append(*to, r.text(n, "an element of "+what)) })
	}
}

var identifier = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// id is a name of lower-case letters, digits and hyphens.
func (r *reader) id(to *string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		*to = r.text(n, what)
		if r.err == nil && (!identifier.MatchString(*to) || len(*to) > 64) {
			r.fail(n, "%s %.64q: want lower-case letters, digits and single hyphens, at most 64", what, *to)
		}
	}
}

// condition compiles an expression. An error is placed in the file as exactly as
// its scalar's style tells.
func (r *reader) condition(n *yaml.Node, what string) *Filter {
	text := r.text(n, what)
	if r.err != nil {
		return nil
	}
	if r.conditions += len(text); r.conditions > maxConditions {
		r.fail(n, "%s: the file's expressions have more than %d bytes together", what, maxConditions)
		return nil
	}
	f, err := CompileFilter(text)
	if err == nil {
		return f
	}
	line, column, message := n.Line, n.Column, err.Error()
	var wrong *FilterError
	if errors.As(err, &wrong) {
		line, column = r.place(n, text, wrong)
		_, message, _ = strings.Cut(message, ": ") // the place in the expression alone
	}
	r.failAt(line, column, what+": "+message, err)
	return nil
}

// failIn is an error about a whole condition.
func (r *reader) failIn(n *yaml.Node, what, message string) { r.fail(n, "%s: %s", what, message) }

// place finds the line of an expression in the file: in a block it is indented, on
// one line it begins anywhere. Where it is not there as it is, because it is folded
// or has escapes, the scalar's own place has to do.
func (r *reader) place(n *yaml.Node, text string, wrong *FilterError) (line, column int) {
	written := strings.Split(text, "\n")
	if wrong.Line > len(written) {
		return n.Line, n.Column
	}
	at := n.Line + wrong.Line - 1
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		at++
	}
	if at > len(r.lines) {
		return n.Line, n.Column
	}
	raw := r.lines[at-1]
	from := 0
	if wrong.Line == 1 && at == n.Line {
		from = len(string([]rune(raw)[:min(n.Column-1, len([]rune(raw)))]))
	}
	start := strings.Index(raw[from:], strings.TrimRight(written[wrong.Line-1], " \t\r"))
	if start < 0 {
		return n.Line, n.Column
	}
	return at, utf8.RuneCountInString(raw[:from+start]) + wrong.Column
}

// expiry reads when something ends: at a time with its zone, or at the end of a day
// in UTC. What it returns is the first moment that is too late.
func (r *reader) expiry(n *yaml.Node, what string) time.Time {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" && n.Tag != "!!timestamp" {
		r.fail(n, "%s is %s, want a date such as 2027-03-31, or a time such as 2027-03-31T18:00:00+01:00", what, kindOf(n))
		return time.Time{}
	}
	if day, err := time.Parse(time.DateOnly, n.Value); err == nil {
		return day.AddDate(0, 0, 1)
	}
	end, err := time.Parse(time.RFC3339, n.Value)
	if err != nil {
		r.fail(n, "%s %.40q: want a date such as 2027-03-31, or a time such as 2027-03-31T18:00:00+01:00", what, n.Value)
	}
	return end
}
