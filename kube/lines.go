package kube

import (
	"bytes"
	"encoding/json"
	"slices"

	yamlv3 "go.yaml.in/yaml/v3"
)

// spot is a field whose line is looked for, and the fields below it. The paths of
// all that is looked for in a document are one tree, so that the document is gone
// through once, however many objects and containers it has.
type spot struct {
	line  int // 0 where there is no such field
	below map[any]*spot
	told  []func(line int)
}

// want adds a path. told is called by settle with its line.
func (s *spot) want(at path, told func(line int)) {
	for _, step := range at {
		next := s.below[step]
		if next == nil {
			next = &spot{}
			if s.below == nil {
				s.below = make(map[any]*spot)
			}
			s.below[step] = next
		}
		s = next
	}
	s.told = append(s.told, told)
}

// settle tells each line. A field that is not there has the line of the last one
// on its path that is.
func (s *spot) settle(line int) {
	if s.line > 0 {
		line = s.line
	}
	for _, told := range s.told {
		told(line)
	}
	for _, next := range s.below {
		next.settle(line)
	}
}

// find looks for the lines of a document's fields, and tells them.
func (d *document) find(root *spot) {
	switch {
	case d.isJSON:
		(&scanner{text: d.text, line: d.line}).value(root.visit)
	default:
		if tree, err := d.tree(); err == nil && len(tree.Content) > 0 {
			root.visitYAML(tree.Content[0], d.start)
		}
	}
	root.settle(d.line)
}

// lineOf finds the line of a field, or of the last one on its path that is there.
func (d *document) lineOf(at path) (found int) {
	var root spot
	root.want(at, func(line int) { found = line })
	d.find(&root)
	return found
}

// visitYAML goes along the paths of s. They end, and so does this, even where an
// alias stands for what it is in.
func (s *spot) visitYAML(n *yamlv3.Node, start int) {
	if n.Kind == yamlv3.AliasNode {
		n = n.Alias
	}
	if len(s.below) == 0 {
		return
	}
	switch n.Kind {
	case yamlv3.SequenceNode:
		for i, item := range n.Content {
			if next := s.below[i]; next != nil {
				next.line = start + item.Line - 1
				next.visitYAML(item, start)
			}
		}
	case yamlv3.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if next := s.below[n.Content[i].Value]; next != nil {
				next.line = start + n.Content[i].Line - 1
				next.visitYAML(n.Content[i+1], start)
			}
		}
	}
}

// visit is a visitor of JSON.
func (s *spot) visit(step any, line int) visitor {
	next := s.below[step]
	if next == nil {
		return nil
	}
	next.line = line
	if len(next.below) == 0 {
		return nil
	}
	return next.visit
}

// visitor is called with each member of an object, by its name, and each item of
// a list, by its place. It returns the visitor of that value, nil to pass it over.
type visitor func(step any, line int) visitor

// scanner goes once through JSON that a decoder has accepted, and counts lines.
type scanner struct {
	text []byte
	at   int
	line int
}

// next passes over what stands between two tokens, and returns the next one's
// first byte; 0 at the end.
func (s *scanner) next() byte {
	for ; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\n':
			s.line++
		case ' ', '\t', '\r', ',', ':':
		default:
			return s.text[s.at]
		}
	}
	return 0
}

// value passes over a value.
func (s *scanner) value(visit visitor) {
	switch open := s.next(); open {
	case '{', '[':
		s.at++
		for i := 0; ; i++ {
			end := s.next()
			if end == 0 {
				return
			}
			if end == '}' || end == ']' {
				s.at++
				return
			}
			line := s.line
			var step any = i
			if open == '{' {
				from := s.at
				if end := s.quoted(); visit != nil {
					step = unquoted(s.text[from:end])
				}
			}
			var inner visitor
			if visit != nil {
				inner = visit(step, line)
			}
			s.value(inner)
		}
	case '"':
		s.quoted()
	default:
		for s.at < len(s.text) && !bytes.ContainsRune([]byte(" \t\r\n,]}"), rune(s.text[s.at])) {
			s.at++
		}
	}
}

// quoted passes over a string, and returns where it ends. It stands before one.
func (s *scanner) quoted() (end int) {
	for s.at++; s.at < len(s.text) && s.text[s.at] != '"'; s.at++ {
		if s.text[s.at] == '\\' {
			s.at++
		}
	}
	s.at = min(s.at+1, len(s.text))
	return s.at
}

func unquoted(text []byte) string {
	var name string
	if json.Unmarshal(text, &name) != nil {
		return "" // the decoder has accepted it
	}
	return name
}

// repeated is a key that stands twice in one mapping.
type repeated struct {
	key         string
	first, last int // lines
}

// repeatedKey finds the first key that stands twice in one mapping; nil for none.
func (d *document) repeatedKey() *repeated {
	if d.isJSON {
		return d.repeatedInJSON()
	}
	tree, err := d.tree()
	if err != nil {
		return nil
	}
	for n := range walk(tree) {
		if n.Kind != yamlv3.MappingNode {
			continue
		}
		seen := make(map[string]int)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yamlv3.ScalarNode || key.Tag == "!!merge" {
				continue
			}
			line := d.start + key.Line - 1
			if first, twice := seen[key.Value]; twice {
				return &repeated{key.Value, first, line}
			}
			seen[key.Value] = line
		}
	}
	return nil
}

func (d *document) repeatedInJSON() (found *repeated) {
	var inside func() visitor
	inside = func() visitor {
		var seen map[string]int
		return func(step any, line int) visitor {
			if found != nil {
				return nil
			}
			if key, named := step.(string); named {
				if first, twice := seen[key]; twice {
					found = &repeated{key, first, line}
				}
				if seen == nil {
					seen = make(map[string]int)
				}
				seen[key] = line
			}
			return inside()
		}
	}
	(&scanner{text: d.text, line: d.line}).value(inside())
	return found
}

// byteOrderMark is what some editors begin a file with.
var byteOrderMark = []byte("\xef\xbb\xbf")

// withoutMarks takes out the byte order marks at the beginnings of lines, where
// YAML takes them for none of the text (1.2.2, 5.2), and returns their lines.
func withoutMarks(stream []byte) (text []byte, lines []int) {
	stream = bytes.TrimPrefix(stream, byteOrderMark)
	if !bytes.Contains(stream, append([]byte("\n"), byteOrderMark...)) {
		return stream, nil
	}
	text = make([]byte, 0, len(stream))
	n := 0
	for line := range bytes.Lines(stream) {
		n++
		if rest, marked := bytes.CutPrefix(line, byteOrderMark); marked {
			lines, line = append(lines, n), rest
		}
		text = append(text, line...)
	}
	return text, lines
}

// markWithin returns the line of a byte order mark that is in a document, behind
// its beginning; 0 for none. That is where files were put together without a line
// of --- between them.
func (d *document) markWithin(marks []int) int {
	last := d.start + bytes.Count(d.text, []byte("\n"))
	at := slices.IndexFunc(marks, func(line int) bool { return line > d.line && line <= last })
	if at < 0 {
		return 0
	}
	return marks[at]
}
