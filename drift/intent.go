package drift

import (
	"strings"
	"sync"

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
	for _, name := range in.unknown[added:] {
		if c, ok := likely(name); ok {
			in.misspelt |= capdecode.Of(c)
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

// likely returns the capability that a misspelt name is likely to mean, or false:
// "NETADMIN", "net-admin" and "CAP NET ADMIN" are NET_ADMIN.
func likely(name string) (capdecode.Cap, bool) {
	c, ok := squeezedNames()[squeeze(name)]
	return c, ok
}

var squeezedNames = sync.OnceValue(func() map[string]capdecode.Cap {
	names := make(map[string]capdecode.Cap)
	for c := range capdecode.Full(capdecode.MaxCap).All() {
		if c.Known() {
			names[squeeze(c.String())] = c
		}
	}
	return names
})

var separators = strings.NewReplacer("_", "", "-", "", " ", "", ".", "")

// squeeze leaves of a name what one rarely gets wrong.
func squeeze(name string) string {
	name = separators.Replace(strings.ToLower(name))
	for strings.HasPrefix(name, "cap") && len(name) > len("cap") {
		name = name[len("cap"):]
	}
	return name
}
