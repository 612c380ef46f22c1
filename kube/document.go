package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// document is one document of a stream.
type document struct {
	number int    // from 1; those without content do not count
	start  int    // the line of the stream on which the text begins
	line   int    // the first line with content
	text   []byte // YAML, or JSON
	json   []byte // the same as JSON; nil until it was converted
	isJSON bool   // text is JSON

	nodes *yamlv3.Node // the text with its lines; parsed when first needed
}

// documents splits a stream as YAML does: at lines that begin with --- or ..., in
// whatever they stand. Whoever parses the stream as a whole loses all that comes
// after the first document that is no YAML.
func documents(stream []byte) iter.Seq[*document] {
	return func(yield func(*document) bool) {
		begin, start, number := 0, 1, 0
		content := 0 // the first line of the document that has content
		flush := func(end int) bool {
			if content == 0 {
				return true
			}
			for _, d := range values(stream[begin:end], start, content) {
				number++
				d.number = number
				if !yield(d) {
					return false
				}
			}
			return true
		}
		offset, line := 0, 0
		for text := range bytes.Lines(stream) {
			line++
			inner, first := marker(text, "---")
			last := false
			if !first {
				inner, last = marker(text, "...")
			}
			if first || last {
				if !flush(offset) {
					return
				}
				begin, start, content = offset, line, 0
			}
			inner = bytes.TrimSpace(inner)
			switch {
			case last, first && (len(inner) == 0 || inner[0] == '#'): // the document begins below
				begin, start = offset+len(text), line+1
			case content == 0 && len(inner) > 0 && inner[0] != '#' && text[0] != '%': // %YAML is a directive
				content = line
			}
			offset += len(text)
		}
		flush(offset)
	}
}

// marker says whether a line is a document's, and what stands after it.
func marker(line []byte, mark string) (rest []byte, found bool) {
	rest, found = bytes.CutPrefix(line, []byte(mark))
	if found && len(rest) > 0 && !bytes.ContainsAny(rest[:1], " \t\r\n") {
		return line, false
	}
	return rest, found
}

// values are the documents of one text: several where it is JSON values one
// after the other, which kubectl takes too.
func values(text []byte, start, line int) []*document {
	whole := []*document{{start: start, line: line, text: text}}
	if trimmed := bytes.TrimSpace(text); trimmed[0] != '{' {
		return whole
	}
	var list []*document
	decoder := json.NewDecoder(bytes.NewReader(text))
	for from := 0; ; {
		var value json.RawMessage
		err := decoder.Decode(&value)
		if errors.Is(err, io.EOF) {
			return list
		}
		gap := text[from:]
		gap = gap[:len(gap)-len(bytes.TrimLeft(gap, " \t\r\n"))]
		line := start + bytes.Count(text[:from+len(gap)], []byte("\n"))
		if err != nil { // flow style YAML, or neither
			return append(list, &document{start: line, line: line, text: text[from+len(gap):]})
		}
		list = append(list, &document{start: line, line: line, text: value, json: value, isJSON: true})
		from = int(decoder.InputOffset())
	}
}

var (
	inLine = regexp.MustCompile(`\bline (\d+)`)
	// The parser's own words. What it quotes of its input stands in other signs.
	harmless = regexp.MustCompile(`^yaml: (line \d+: )?([a-zA-Z0-9 ,.:'<>-]+)$`)
)

// maxMarks bounds how many values a YAML document can have, by the signs that
// stand before one: each costs its parser some hundred bytes and microseconds. It
// is twice what 32 MiB of pods have.
const maxMarks = 2 << 20

// convert turns YAML into JSON as kubectl does: yes and no are truth values, a
// number with a leading zero is octal.
func (d *document) convert() *fault {
	if d.json != nil {
		return nil
	}
	if marks := bytes.Count(d.text, []byte("\n")) + bytes.Count(d.text, []byte(",")) +
		bytes.Count(d.text, []byte("[")) + bytes.Count(d.text, []byte("{")); marks > maxMarks {
		return &fault{line: d.line, err: fmt.Errorf("%w: more than %d lines, list items and fields in one YAML document; "+
			"give fewer objects at once, or JSON (kubectl get -o json)", ErrTooLarge, maxMarks)}
	}
	if bytes.IndexByte(d.text, '&') >= 0 && bytes.IndexByte(d.text, '*') >= 0 {
		if f := d.unfolds(); f != nil {
			return f
		}
	}
	raw, strict := yaml.YAMLToJSONStrict(d.text)
	if strict != nil {
		// Two keys, or a key that overrides a merged one, which is lawful.
		var err error
		if raw, err = yaml.YAMLToJSON(d.text); err != nil {
			return d.syntax(err)
		}
		if f := d.twice(); f != nil {
			return f
		}
	}
	d.json = raw
	return nil
}

// syntax is what can be told of a parser's error without quoting its input.
func (d *document) syntax(err error) *fault {
	text := err.Error()
	line := d.line
	if found := inLine.FindStringSubmatch(text); found != nil {
		if n, err := strconv.Atoi(found[1]); err == nil && n > 0 {
			last := bytes.Count(bytes.TrimSpace(d.text), []byte("\n")) // the parser may point beyond it
			line = d.start + min(n-1, last)
		}
	}
	why := ""
	if own := harmless.FindStringSubmatch(strings.TrimPrefix(text, "error converting YAML to JSON: ")); own != nil && len(text) < 200 {
		why = ": " + own[2]
	}
	if bytes.Contains(d.text, []byte("{{")) {
		why += "; it looks like a template: render it first (helm template, kubectl kustomize)"
	}
	return &fault{line: line, err: fmt.Errorf("this is no YAML that Kubernetes reads%s", why)}
}

// maxUnfolded bounds what the aliases of a document stand for together. The
// parser counts nodes; a long text behind ten thousand aliases is as many copies.
const maxUnfolded = maxStream

// unfolds fails where aliases stand for too much.
func (d *document) unfolds() *fault {
	root, err := d.tree()
	if err != nil {
		return d.syntax(err)
	}
	const perNode = 64 // bytes, about
	sizes := make(map[*yamlv3.Node]int)
	var measure func(n *yamlv3.Node) int
	measure = func(n *yamlv3.Node) int {
		if size, known := sizes[n]; known {
			return size
		}
		sizes[n] = maxUnfolded // a node that holds itself
		size := perNode + len(n.Value)
		if n.Alias != nil {
			size += measure(n.Alias)
		}
		for _, child := range n.Content {
			size = min(size+measure(child), maxUnfolded)
		}
		sizes[n] = size
		return size
	}
	total, worst := 0, 0
	for n := range walk(root) {
		if n.Alias != nil {
			if total += measure(n.Alias); total >= maxUnfolded && worst == 0 {
				worst = n.Line
			}
		}
	}
	if worst > 0 {
		return &fault{line: d.start + worst - 1, err: errors.New("excessive aliasing: the aliases stand for too much, or for themselves")}
	}
	return nil
}

// twice finds a key that stands twice in one mapping.
func (d *document) twice() *fault {
	if _, err := d.tree(); err != nil {
		return d.syntax(err)
	}
	if r := d.repeatedKey(); r != nil {
		return &fault{line: r.last, err: fmt.Errorf("the key %.64q is there twice%s", r.key, r.places())}
	}
	return nil
}

// places says where the two are, and which of them counts: JSON objects are sent,
// and clients that do not check keep of two keys the last one.
func (r *repeated) places() string {
	return fmt.Sprintf(", on lines %d and %d; Helm, and other clients that do not check it, send the last one alone", r.first, r.last)
}

// walk visits every node once; aliases are not followed.
func walk(root *yamlv3.Node) iter.Seq[*yamlv3.Node] {
	return func(yield func(*yamlv3.Node) bool) {
		for stack := []*yamlv3.Node{root}; len(stack) > 0; {
			n := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if !yield(n) {
				return
			}
			for i := len(n.Content) - 1; i >= 0; i-- {
				stack = append(stack, n.Content[i])
			}
		}
	}
}

// tree parses the document once more, for its lines.
func (d *document) tree() (*yamlv3.Node, error) {
	if d.nodes == nil {
		var root yamlv3.Node
		if err := yamlv3.Unmarshal(d.text, &root); err != nil {
			return nil, err
		}
		d.nodes = &root
	}
	return d.nodes, nil
}

// path is where a field stands: names of fields and places in lists.
type path []any

func (p path) with(steps ...any) path { return append(p[:len(p):len(p)], steps...) }

func (p path) String() string {
	var text strings.Builder
	for _, step := range p {
		switch step := step.(type) {
		case int:
			fmt.Fprintf(&text, "[%d]", step)
		case string:
			if text.Len() > 0 {
				text.WriteByte('.')
			}
			text.WriteString(shown(step))
		}
	}
	return text.String()
}

// pathAt finds which value of a JSON text ends, or opens, at an offset.
func pathAt(text []byte, offset int64) path {
	type frame struct {
		list, key bool // key: a key comes next
	}
	var at path
	var open []frame
	done := func() { // a value is complete
		if len(open) == 0 {
			return
		}
		if top := &open[len(open)-1]; top.list {
			at[len(at)-1] = at[len(at)-1].(int) + 1
		} else {
			top.key = true
		}
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	for {
		token, err := decoder.Token()
		if err != nil {
			return nil
		}
		if len(open) > 0 && open[len(open)-1].key {
			if name, ok := token.(string); ok {
				at[len(at)-1], open[len(open)-1].key = name, false
				continue
			}
		}
		delim, _ := token.(json.Delim)
		if delim == '}' || delim == ']' {
			at, open = at[:len(at)-1], open[:len(open)-1]
			done()
			continue
		}
		if decoder.InputOffset() >= offset {
			return at
		}
		switch delim {
		case '{':
			at, open = append(at, ""), append(open, frame{key: true})
		case '[':
			at, open = append(at, 0), append(open, frame{list: true})
		default:
			done()
		}
	}
}
