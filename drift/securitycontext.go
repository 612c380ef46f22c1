package drift

import (
	"slices"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
)

// securityContext writes the container's securityContext that says what the two
// lists mean in the spelling that every runtime understands. Only names of
// capabilities get into it, never another's text.
func securityContext(add, drop []string) string {
	return paste(plain(add), plain(drop))
}

func paste(add, drop []string) string {
	var text strings.Builder
	text.WriteString("securityContext:\n  capabilities:\n")
	if len(add) == 0 && len(drop) == 0 {
		return "securityContext:\n  capabilities: {}\n"
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"add", add}, {"drop", drop}} {
		if len(list.names) > 0 {
			text.WriteString("    " + list.key + ": [" + strings.Join(list.names, ", ") + "]\n")
		}
	}
	return text.String()
}

// plain rewrites a list of names as Kubernetes documents them: capitals, no
// prefix, each once and in the order given. A name that means nothing is replaced
// by what it is likely to mean, or left out.
func plain(names []string) []string {
	var list, unknown []string
	for _, name := range names {
		var written []string
		if c, ok := capdecode.ParseName(strings.TrimSpace(name)); ok {
			written = []string{short(c)}
		} else if meansAll(name) {
			written = []string{all}
		} else if unknown = append(unknown, name); len(guessed(unknown)) == len(unknown) {
			written = likely(name).names()
		}
		for _, name := range written {
			if !slices.Contains(list, name) {
				list = append(list, name)
			}
		}
	}
	return list
}

// short is a capability's name without its prefix, as a securityContext takes it.
func short(c capdecode.Cap) string { return strings.TrimPrefix(c.String(), "CAP_") }

// shorts are those of a set, in bit order.
func shorts(set capdecode.Set) []string {
	var list []string
	for c := range set.All() {
		list = append(list, short(c))
	}
	return list
}
