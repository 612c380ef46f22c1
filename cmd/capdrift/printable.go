package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
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

// escapingWriter makes JSON safe to look at: what a terminal would not show as it
// is, such as DEL, the control characters above it and bidirectional overrides, is
// written \u009b. Outside of strings JSON is ASCII, so it means the same.
// Each Write must hold whole characters, as a json.Encoder's do.
type escapingWriter struct {
	io.Writer
	yaml bool // for YAML's reader, which knows \U000e0041 and no surrogate pairs
}

func (w escapingWriter) Write(text []byte) (int, error) {
	unsafe := func(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) } // what is lower, JSON escapes
	if bytes.IndexFunc(text, unsafe) < 0 {
		return w.Writer.Write(text)
	}
	safe := make([]byte, 0, len(text)+64)
	for _, r := range string(text) {
		switch {
		case !unsafe(r):
			safe = utf8.AppendRune(safe, r)
		case w.yaml:
			safe = fmt.Appendf(safe, `\U%08x`, r)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				safe = fmt.Appendf(safe, `\u%04x`, unit)
			}
		}
	}
	if _, err := w.Writer.Write(safe); err != nil {
		return 0, err
	}
	return len(text), nil
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
