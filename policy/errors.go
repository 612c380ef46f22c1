package policy

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/types"
)

// FilterError is an expression that is wrong, or that went wrong on a subject.
type FilterError struct {
	Expression string
	Line       int // from 1
	Column     int // from 1, in characters
	Message    string
	Hint       string // what was probably meant; may be empty
}

// Error shows the place under the expression:
//
//	column 6: there is no field 'efective'
//	  caps.efective.hasAny(["NET_RAW"])
//	       ^
//	  did you mean effective?
func (e *FilterError) Error() string {
	place := fmt.Sprintf("column %d", e.Column)
	lines := strings.Split(e.Expression, "\n")
	if len(lines) > 1 {
		place = fmt.Sprintf("line %d, column %d", e.Line, e.Column)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", place, e.Message)
	if e.Expression != "" && e.Line >= 1 && e.Line <= len(lines) {
		shown, at := excerpt(lines[e.Line-1], e.Column-1)
		fmt.Fprintf(&text, "\n  %s\n  %s^", shown, strings.Repeat(" ", at))
	}
	if e.Hint != "" {
		fmt.Fprintf(&text, "\n  %s", e.Hint)
	}
	return text.String()
}

// excerpt is what fits a terminal's line around the column, one cell a character,
// and the column in it. What a terminal would obey becomes a space.
func excerpt(line string, column int) (string, int) {
	const before, width = 60, 110
	runes := []rune(line)
	column = min(max(column, 0), len(runes))
	start := max(0, column-before)
	shown := runes[start:min(len(runes), start+width)]
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, string(shown))
	return text, column - start
}

// UnknownError says that an expression could not be judged on a subject, because
// something it needs is not known, or not set.
type UnknownError struct {
	What string // "declared.cri", "process.noNewPrivileges"
	Why  string // "not known", "not set"
}

func (e *UnknownError) Error() string { return e.What + ": " + e.Why }

// ErrCost is returned when an expression would take too long on a subject.
var ErrCost = errors.New("the expression takes too long")

// failure tells what kind of error an evaluation ended in: an unknown, or one of
// the expression with its node.
func failure(err error) (unknown *UnknownError, node int64) {
	if errors.As(err, &unknown) {
		return unknown, 0
	}
	var wrong *types.Err
	if errors.As(err, &wrong) {
		return nil, wrong.NodeID()
	}
	return nil, 0
}

// undefinedField is placed at the dot before the field.
var undefinedField = regexp.MustCompile(`^undefined field '([^']*)'`)

// mistakes are CEL's messages that have a plainer word, or a likely cause.
var mistakes = []struct {
	message *regexp.Regexp
	plain   string // with $1 …; empty keeps the message
	hint    func(e *environment, match []string) string
}{
	{regexp.MustCompile(`^undeclared reference to '([^']*)'.*`), "'$1' is not known here", func(e *environment, m []string) string {
		switch m[1] {
		case "and", "or", "not":
			return wordHint
		case "map":
			return "map() is not part of the language; exists(), all() and filter() are"
		}
		return sentence(didYouMean(m[1], e.words))
	}},
	{undefinedField, "there is no field '$1'", func(e *environment, m []string) string {
		return sentence(didYouMean(m[1], e.words))
	}},
	{regexp.MustCompile(`^found no matching overload for '_==_' applied to '\((capabilities, list\(string\)|list\(string\), capabilities)\)'`), "a capability set is not a list of names",
		func(*environment, []string) string { return `write caps.effective.hasExactly(["NET_RAW"])` }},
	{regexp.MustCompile(`^found no matching overload for '_([=!<>]+)_' applied to '\((severity, string|string, severity)\)'`), "a severity is not a text",
		func(_ *environment, m []string) string {
			return `write finding.severity ` + m[1] + ` severity("high")`
		}},
	{regexp.MustCompile(`^found no matching overload for '(hasAny|hasAll|hasExactly|hasNone|isSubsetOf)' applied to '(.*)'`), "$1 does not fit $2",
		func(_ *environment, m []string) string {
			return "it asks a capability set about a list of names: caps.effective." + m[1] + `(["NET_RAW"])`
		}},
	{regexp.MustCompile(`^found no matching overload for '@in' applied to '(\(string, capabilities\))'`), "in does not fit $1",
		func(*environment, []string) string { return `write caps.effective.contains("NET_RAW")` }},
	{regexp.MustCompile(`^found no matching overload for '[_@]?([^'_]+)_?' applied to '(.*)'`), "$1 does not fit $2", nil},
	{regexp.MustCompile(`^invalid argument to has\(\) macro`), "", func(*environment, []string) string {
		return "has() takes a field, as in has(declared.cri); of a name alone write known(pod)"
	}},
	{regexp.MustCompile(`(?s)^Syntax error: token recognition error at: (.*)$`), "$1 cannot be read", nil},
	{regexp.MustCompile(`(?s)^Syntax error: (.*?)(?: expecting .*)?$`), "$1", nil},
}

// singleSign is an = that is no comparison, or a & or | that stands alone.
var singleSign = regexp.MustCompile(`(^|[^=!<>])(=)([^=]|$)|(^|[^&])(&)([^&]|$)|(^|[^|])(\|)([^|]|$)`)

// filterError makes a FilterError of what CEL says.
func (e *environment) filterError(expression string, location common.Location, message string) *FilterError {
	wrong := &FilterError{Expression: expression, Line: max(location.Line(), 1), Column: max(location.Column(), 0) + 1, Message: oneLine(message)}
	if strings.HasPrefix(message, "Syntax error") {
		bare := withoutTexts(expression)
		if at := lonelySign(expression, bare); at != nil {
			return at
		}
		if wordOperator.MatchString(bare) {
			wrong.Hint = wordHint
		}
	}
	for _, mistake := range mistakes {
		match := mistake.message.FindStringSubmatch(message)
		if match == nil {
			continue
		}
		if mistake.message == undefinedField {
			wrong.Column++
		}
		if mistake.plain != "" {
			wrong.Message = oneLine(mistake.message.ReplaceAllString(message, mistake.plain))
		}
		if mistake.hint != nil {
			wrong.Hint = mistake.hint(e, match)
		}
		break
	}
	return wrong
}

var (
	quoted       = regexp.MustCompile(`"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'`)
	wordOperator = regexp.MustCompile(`\b(and|or|not)\b`)
)

const wordHint = "write && for and, || for or, ! for not"

// withoutTexts is the expression with each text's characters replaced.
func withoutTexts(expression string) string {
	return quoted.ReplaceAllStringFunc(expression, func(text string) string { return strings.Repeat("x", len(text)) })
}

// lonelySign finds the =, & or | that should have been two.
func lonelySign(expression, bare string) *FilterError {
	match := singleSign.FindStringSubmatchIndex(bare)
	for group := 2; match != nil && group <= 8; group += 3 {
		start := match[2*group]
		if start < 0 {
			continue
		}
		sign, before := bare[start:start+1], expression[:start]
		line := strings.Count(before, "\n")
		column := len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
		return &FilterError{Expression: expression, Line: line + 1, Column: column + 1, Message: "a single " + sign, Hint: "write " + sign + sign}
	}
	return nil
}

// oneLine is a message of bounded length that a terminal can show.
func oneLine(message string) string {
	text := strings.Join(strings.FieldsFunc(message, func(r rune) bool { return !unicode.IsPrint(r) }), " ")
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "…"
	}
	return text
}

func sentence(suggestion string) string { return strings.TrimPrefix(suggestion, "; ") }

// DidYouMean names the words nearest to one that nobody knows, as the end of a sentence:
// "; did you mean a or b?", or nothing where none is near.
func DidYouMean(written string, words []string) string { return didYouMean(written, words) }

// didYouMean names the nearest words, as the end of a sentence, or nothing.
func didYouMean(written string, words []string) string {
	if len(written) > 60 {
		return ""
	}
	type near struct {
		word     string
		distance int
	}
	var nearest []near
	for _, word := range words {
		if d := distance(strings.ToLower(written), strings.ToLower(word)); d <= max(1, len(word)/3) {
			nearest = append(nearest, near{word, d})
		}
	}
	slices.SortStableFunc(nearest, func(a, b near) int { return cmp.Compare(a.distance, b.distance) })
	var names []string
	for _, n := range nearest[:min(len(nearest), 3)] {
		if n.distance <= nearest[0].distance+1 {
			names = append(names, n.word)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(names, " or ") + "?"
}

// distance is how many letters must be changed, added, removed, or swapped with the next one
// (Levenshtein's, with transpositions: the optimal string alignment).
func distance(a, b string) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, above, row = above, row, before
		row[0] = i + 1
		for j := range len(b) {
			change := above[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, above[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
