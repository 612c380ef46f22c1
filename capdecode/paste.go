package capdecode

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Pasted is what one line of a text says of capability sets.
type Pasted struct {
	Line string // as it was given, without its ends
	// Named are the sets of a line that says whose, or which, they are.
	Named []NamedSet
	// Set is the set of a line that is a set and nothing else; nil where Named is not.
	Set *Set
}

// NamedSet is one set: "effective", "permitted", "inheritable", "bounding" or "ambient".
type NamedSet struct {
	Name string `json:"name"`
	Set  Set    `json:"set"`
}

const (
	maxPasted      = 1 << 20
	maxPastedLines = 10_000
)

var (
	// Of /proc/PID/status, proc_pid_status(5).
	statusSet   = regexp.MustCompile(`^Cap(Inh|Prm|Eff|Bnd|Amb):\s*([0-9a-fA-F]{16})$`)
	statusField = regexp.MustCompile(`^[A-Z][A-Za-z_0-9]*:(\t.*)?$`)

	// Of capsh --print and --decode; "Bounding set =" and "Ambient set =" have no clauses.
	capshSet   = regexp.MustCompile(`^(Bounding|Ambient) set =\s*(.*)$`)
	capshState = regexp.MustCompile(`^Current:\s*(.*)$`)
	capshOther = regexp.MustCompile(`^(Current IAB:|Securebits:| ?secure-[a-z-]+:|uid=|gid=|groups=|Guessed mode:)`)
	decodedSet = regexp.MustCompile(`^0x([0-9a-f]{16})=(.*)$`)

	// Of getpcaps, of today and before libcap 2.30; and of getcap, a path that may
	// have spaces before the text.
	getpcaps = regexp.MustCompile("^(?:[0-9]+:|Capabilities for `[0-9]+':)\\s*(.*)$")
	rootID   = regexp.MustCompile(`\s*\[rootid=[0-9]+\]$`)

	// Of the audit system's records: cap_pp=, old_pp=, pp=.
	auditField = regexp.MustCompile(`^(?:cap_|old_|new_)?([fp])([piea])=([0-9a-fA-F]{16})$`)
	anyField   = regexp.MustCompile(`^[a-zA-Z_]+=\S*$`)
)

var letters = map[string]string{"p": "permitted", "i": "inheritable", "e": "effective", "a": "ambient"}

var statusNames = map[string]string{"Inh": "inheritable", "Prm": "permitted", "Eff": "effective", "Bnd": "bounding", "Amb": "ambient"}

// ParsePasted reads what people copy from a terminal, line by line: what [ParseSet]
// and [ParseText] read, with the words that programs print around it. Those are
// lines of /proc/PID/status, of capsh, getpcaps and getcap, fields of the audit
// system's records, and a JSON list of names as OCI specs have it. Lines of a whole
// output that say nothing of capability sets are passed over, where others do.
func ParsePasted(text string, last Cap) ([]Pasted, error) {
	if len(text) > maxPasted {
		return nil, fmt.Errorf("a text of more than %d MiB", maxPasted>>20)
	}
	if trimmed := strings.TrimSpace(text); strings.HasPrefix(trimmed, "[") {
		set, err := parseList(trimmed, last)
		return []Pasted{{Line: trimmed, Set: &set}}, err
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) > maxPastedLines {
		return nil, fmt.Errorf("a text of more than %d lines", maxPastedLines)
	}
	var list []Pasted
	for _, line := range lines {
		line = strings.TrimRight(line, " \t\r")
		if line == "" && len(lines) > 1 || len(lines) > 1 && isOther(line) {
			continue
		}
		one, err := parseLine(strings.TrimSpace(line), last)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no line of it is about capability sets")
	}
	return list, nil
}

// isOther reports whether a line of a whole output is about something else.
func isOther(line string) bool {
	return capshOther.MatchString(line) || statusField.MatchString(line) && !strings.HasPrefix(line, "Cap") && !strings.HasPrefix(line, "Current:")
}

func parseLine(line string, last Cap) (Pasted, error) {
	one := Pasted{Line: line}
	if found := statusSet.FindStringSubmatch(line); found != nil {
		set, err := ParseHex(found[2])
		one.Named = []NamedSet{{statusNames[found[1]], set}}
		return one, err
	}
	if found := capshSet.FindStringSubmatch(line); found != nil {
		set, err := parseNames(found[2])
		one.Named = []NamedSet{{strings.ToLower(found[1]), set}}
		return one, err
	}
	if found := decodedSet.FindStringSubmatch(line); found != nil {
		set, err := parseDecoded(found[1], found[2])
		one.Set = &set
		return one, err
	}
	if named, ok := parseAudit(line); ok {
		one.Named = named
		return one, nil
	}
	text := line
	switch {
	case capshState.MatchString(line):
		text = capshState.FindStringSubmatch(line)[1]
	case getpcaps.MatchString(line):
		text = getpcaps.FindStringSubmatch(line)[1]
	case strings.Contains(strings.SplitN(line, " ", 2)[0], "/"):
		text = behindPath(rootID.ReplaceAllString(line, ""), last)
	case !strings.ContainsAny(line, "=+-"):
		set, err := ParseSet(line, last)
		one.Set = &set
		return one, err
	}
	sets, err := ParseText(text, last)
	one.Named = []NamedSet{{"effective", sets.Effective}, {"permitted", sets.Permitted}, {"inheritable", sets.Inheritable}}
	return one, err
}

// behindPath is the text behind a file's path in getcap's line. The path may have
// spaces: the text is all that can be read as one, so that none of it is left out.
func behindPath(line string, last Cap) string {
	for at := strings.IndexByte(line, ' '); at >= 0; {
		if _, err := ParseText(line[at:], last); err == nil {
			return line[at:]
		}
		next := strings.IndexByte(line[at+1:], ' ')
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return line
}

// parseNames reads names as libcap prints them, parted by commas.
func parseNames(text string) (set Set, err error) {
	if text == "" {
		return 0, nil
	}
	for name := range strings.SplitSeq(text, ",") {
		c, ok := textCap(name)
		if !ok {
			return 0, fmt.Errorf("%q is no name that libcap prints", clip(name))
		}
		set |= Of(c)
	}
	return set, nil
}

// parseDecoded reads a line of capsh --decode, which has everything twice.
func parseDecoded(hex, names string) (Set, error) {
	set, err := ParseHex(hex)
	if err != nil {
		return 0, err
	}
	named, err := parseNames(names)
	if err == nil && named != set {
		err = fmt.Errorf("the names are not those of 0x%s, which is %s", hex, clip(set.String()))
	}
	return set, err
}

// parseAudit reads the fields of an audit record that are capability sets.
func parseAudit(line string) (named []NamedSet, ok bool) {
	for _, word := range strings.Fields(line) {
		found := auditField.FindStringSubmatch(word)
		if found == nil {
			if !anyField.MatchString(word) && !strings.HasPrefix(word, "msg=audit(") {
				return nil, false
			}
			continue
		}
		set, err := ParseHex(found[3])
		if err != nil {
			return nil, false
		}
		name := letters[found[2]]
		if found[1] == "f" {
			name = "file's " + name
		}
		if strings.HasPrefix(word, "old_") {
			name = "old " + name
		}
		named = append(named, NamedSet{name, set})
	}
	return named, len(named) > 0
}

// parseList reads a JSON list of names.
func parseList(text string, last Cap) (Set, error) {
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return 0, fmt.Errorf("%q is no JSON list of names", clip(text))
	}
	var set Set
	for _, name := range names {
		if isAll(name) {
			set |= Full(last)
			continue
		}
		c, ok := ParseCap(name)
		if !ok {
			return 0, fmt.Errorf("%q is no capability", clip(name))
		}
		set |= Of(c)
	}
	return set, nil
}
