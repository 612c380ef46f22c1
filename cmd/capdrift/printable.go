package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"sigs.k8s.io/yaml"
)

// printable makes hostile text safe to show on a terminal in one line: control
// characters, terminal escapes, bidirectional overrides and invalid UTF-8 become
// \x1b, \u202e and the like; what can be printed stays as it is.
func printable(text string) string {
	safe := true
	for _, r := range text {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			safe = false
			break
		}
	}
	if safe {
		return text
	}
	var out strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, text[i])
		case unicode.IsPrint(r):
			out.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&out, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			fmt.Fprintf(&out, `\U%08x`, r)
		}
		i += size
	}
	return out.String()
}

// unseen reports whether a terminal would not show a character as it is: DEL, the control
// characters above it, line and paragraph separators, bidirectional controls and others without
// a shape. What is lower JSON and YAML escape.
func unseen(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) }

// escapingWriter makes JSON safe to look at: what a terminal would not show as it
// is, such as DEL, the control characters above it and bidirectional overrides, is
// written \u009b. Outside of strings JSON is ASCII, so it means the same.
// Each Write must hold whole characters, as a json.Encoder's do.
type escapingWriter struct{ io.Writer }

func (w escapingWriter) Write(text []byte) (int, error) {
	if bytes.IndexFunc(text, unseen) < 0 {
		return w.Writer.Write(text)
	}
	safe := make([]byte, 0, len(text)+64)
	for _, r := range string(text) {
		if !unseen(r) {
			safe = utf8.AppendRune(safe, r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			safe = fmt.Appendf(safe, `\u%04x`, unit)
		}
	}
	if _, err := w.Writer.Write(safe); err != nil {
		return 0, err
	}
	return len(text), nil
}

// toYAML makes YAML of JSON that is as safe to look at. YAML's writer takes most of what
// a terminal does not show for printable, and writes it as it is, in any style of scalar; only
// one in double quotes has escapes. So each such text is written as a token and put in
// afterwards, in double quotes.
func toYAML(text []byte) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	h := hidden{token: "escaped"}
	for bytes.Contains(text, []byte(h.token)) { // nobody's text shall be taken for one
		h.token += "x"
	}
	safe, err := json.Marshal(h.hide(value))
	if err != nil {
		return nil, err
	}
	converted, err := yaml.JSONToYAML(safe)
	if err != nil {
		return nil, err
	}
	return regexp.MustCompile(h.token+`(\d+)z`).ReplaceAllFunc(converted, func(token []byte) []byte {
		at, _ := strconv.Atoi(string(token[len(h.token) : len(token)-1]))
		return quotedYAML(h.texts[at])
	}), nil
}

// hidden are the texts in whose places tokens stand.
type hidden struct {
	token string
	texts []string
}

func (h *hidden) hide(value any) any {
	switch v := value.(type) {
	case string:
		if strings.IndexFunc(v, unseen) < 0 {
			return v
		}
		h.texts = append(h.texts, v)
		return fmt.Sprintf("%s%dz", h.token, len(h.texts)-1)
	case []any:
		for i := range v {
			v[i] = h.hide(v[i])
		}
	case map[string]any:
		for key := range v { // which are our own
			v[key] = h.hide(v[key])
		}
	}
	return value
}

// quotedYAML writes a text in double quotes (YAML 1.2, 5.7 and 7.3.1).
func quotedYAML(text string) []byte {
	quoted := []byte{'"'}
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			quoted = append(quoted, '\\', byte(r))
		case !unseen(r) && r >= ' ':
			quoted = utf8.AppendRune(quoted, r)
		case r <= 0xffff:
			quoted = fmt.Appendf(quoted, `\u%04x`, r)
		default:
			quoted = fmt.Appendf(quoted, `\U%08x`, r)
		}
	}
	return append(quoted, '"')
}

// cell makes text safe to open in a spreadsheet besides: a leading =, +, -, @,
// tab or carriage return starts a formula there, the first four also in the full width
// of East Asian text, so it gets an apostrophe.
func cell(text string) string {
	text = printable(text)
	if first, _ := utf8.DecodeRuneInString(text); text != "" && strings.ContainsRune("=+-@＝＋－＠", first) {
		return "'" + text
	}
	return text
}
