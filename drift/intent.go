package drift

import (
	"strings"
	"sync"
	"unicode"

	"github.com/capdrift/capdrift/capdecode"
)

// intent is what a person means by an add and a drop list, whatever a runtime
// makes of it: every spelling counts, "CAP_ALL" too, and a capability that is
// added by its name is no part of a drop of ALL.
type intent struct {
	add, drop capdecode.Set // named or by ALL
	named     capdecode.Set // added by its name
	both      capdecode.Set // named in both
	allAdded  bool
	allDrop   bool
	unknown   []string      // names that no kernel knows
	misspelt  capdecode.Set // what unknown names among the drops are likely to mean
}

func intentOf(addList, dropList []string, last capdecode.Cap) intent {
	var in intent
	read := func(names []string) (set capdecode.Set, everything bool) {
		for _, name := range names {
			switch c, ok := capdecode.ParseName(strings.TrimSpace(name)); {
			case ok:
				set |= capdecode.Of(c)
			case meansAll(name):
				everything = true
			default:
				in.unknown = append(in.unknown, name)
			}
		}
		return set, everything
	}
	in.add, in.allAdded = read(addList)
	added := len(in.unknown)
	in.drop, in.allDrop = read(dropList)
	for _, name := range guessed(in.unknown[added:]) {
		meant := likely(name)
		in.misspelt |= meant.set
		if meant.all {
			in.misspelt |= capdecode.Full(last) &^ in.add
		}
	}
	in.named, in.both = in.add, in.add&in.drop
	known := capdecode.Full(last)
	if in.allDrop {
		in.drop |= known &^ in.add
	}
	if in.allAdded {
		in.add |= known &^ in.drop
	}
	return in
}

func meansAll(name string) bool {
	name = strings.TrimSpace(name)
	return strings.EqualFold(name, all) || strings.EqualFold(name, "CAP_"+all)
}

// guessed returns the names of which it is asked what they mean: a pod's author may write a
// thousand that mean nothing, and each takes its time.
func guessed(unknown []string) []string {
	const most = 32
	return unknown[:min(len(unknown), most)]
}

// guess is what a misspelt name is likely to mean; empty where that cannot be told.
type guess struct {
	set capdecode.Set // named
	all bool          // ALL
}

func (g guess) names() []string {
	if g.all {
		return []string{all}
	}
	return shorts(g.set)
}

// likely returns what a name that no kernel knows is likely to mean: "NETADMIN",
// "net-admin" and "SYS_ADM" one capability, "*" and a quoted "ALL" all of them, and
// "ALL,NET_RAW" what stands between the commas.
func likely(name string) guess {
	const longest = 256 // no longer one is a slip
	if len(name) > longest {
		return guess{}
	}
	if g, ok := likelyOne(name); ok {
		return g
	}
	parts := strings.FieldsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(",;|+", r) })
	var meant guess
	for _, part := range parts {
		one, ok := likelyOne(part)
		if !ok {
			return guess{}
		}
		meant.set, meant.all = meant.set|one.set, meant.all || one.all
	}
	return meant
}

// likelyOne is likely for a single name: the one that is spelled most alike.
func likelyOne(name string) (guess, bool) {
	text := squeeze(name)
	if text == "" { // PodSecurityPolicy took "*" for all
		return guess{all: true}, strings.Contains(name, "*") && !strings.Contains(strings.Trim(name, `"'`), " ")
	}
	if strings.Contains(name, "*") {
		return guess{}, false
	}
	if g, ok := squeezedNames()[text]; ok {
		return g, true
	}
	slips, nearest, alike := 1, guess{}, 0
	if len(text) > len("kill") {
		slips = 2
	}
	for known, g := range squeezedNames() {
		switch n := slipsBetween(text, known, slips); {
		case n > slips:
		case n < slips || alike == 0:
			slips, nearest, alike = n, g, 1
		default:
			alike++
		}
	}
	return nearest, alike == 1
}

// slipsBetween counts the letters that are too many, missing, wrong or swapped with their
// neighbour between two texts of ASCII; more than most where it is more than that
// (optimal string alignment).
func slipsBetween(a, b string, most int) int {
	if len(a)-len(b) > most || len(b)-len(a) > most {
		return most + 1
	}
	const longest = 24 // bounds what a pod's author makes it cost; no capability's name is so long
	if len(b) >= longest {
		return most + 1
	}
	var before, last, next [longest]int
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			wrong := 1
			if a[i] == b[j] {
				wrong = 0
			}
			next[j+1] = min(last[j+1]+1, next[j]+1, last[j]+wrong)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, last = last, next
	}
	return last[len(b)]
}

var squeezedNames = sync.OnceValue(func() map[string]guess {
	names := map[string]guess{"all": {all: true}}
	for c := range capdecode.Full(capdecode.MaxCap).All() {
		if c.Known() {
			names[squeeze(c.String())] = guess{set: capdecode.Of(c)}
		}
	}
	return names
})

// squeeze leaves of a name what one rarely gets wrong: its letters and digits, without
// their case.
func squeeze(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return unicode.ToLower(r)
		}
		return -1
	}, name)
	for strings.HasPrefix(name, "cap") {
		name = name[len("cap"):]
	}
	return name
}
