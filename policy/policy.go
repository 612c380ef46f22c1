package policy

import (
	"embed"
	"fmt"
	"slices"
	"sync"
)

// Policy is packs and exceptions, ready to judge.
type Policy struct {
	packs      []Pack
	rules      []*Rule
	asked      []firstAsked // of each rule
	controls   []answered
	exceptions []*Exception
	version    Version
}

// answered is a control, and which of the policy's rules answer it.
type answered struct {
	Control
	rules []int
}

// firstAsked is which rules ask the same as a rule does, and come first: its own index
// where none does.
type firstAsked struct{ declared, actual int }

// Packs returns the policy's packs.
func (p *Policy) Packs() []Pack { return p.packs }

// Rules returns the rules of all its packs.
func (p *Policy) Rules() []*Rule { return p.rules }

//go:embed packs/*.yaml
var packFiles embed.FS

var embedded = sync.OnceValue(loadEmbedded)

func loadEmbedded() []Pack {
	entries, err := packFiles.ReadDir("packs")
	if err != nil {
		panic(err) // what is built in is there
	}
	var packs []Pack
	for _, entry := range entries {
		text, err := packFiles.ReadFile("packs/" + entry.Name())
		if err != nil {
			panic(err)
		}
		pack, err := LoadPack(entry.Name(), text)
		if err != nil {
			panic(err) // and a test has loaded it
		}
		packs = append(packs, pack)
	}
	return packs
}

// Embedded returns the packs that are built in, by name.
func Embedded() []Pack { return slices.Clone(embedded()) }

// Choose returns the packs of these names, of all where names is empty: those given
// and, where they do not take its name, the one that is built in.
func Choose(given []Pack, names ...string) ([]Pack, error) {
	all := slices.Clone(given)
	for _, pack := range embedded() {
		if !slices.ContainsFunc(given, func(own Pack) bool { return own.Name == pack.Name }) {
			all = append(all, pack)
		}
	}
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, pack := range all {
		known = append(known, pack.Name)
	}
	var chosen []Pack
	for _, name := range names {
		at := slices.Index(known, name)
		if at < 0 {
			return nil, fmt.Errorf("there is no pack %.64q%s", name, didYouMean(name, known))
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}

// Compile makes a policy. Two packs, rules or exceptions of the same name are an
// error, as is an exception from a rule that is in none of the packs, given or built
// in.
func Compile(packs []Pack, exceptions []Exception) (*Policy, error) {
	p := &Policy{packs: slices.Clone(packs), version: LatestVersion}
	from := make(map[string]Pack)
	for i, pack := range packs {
		for _, other := range packs[:i] {
			if other.Name == pack.Name {
				return nil, fmt.Errorf("two packs are named %s: %s and %s", pack.Name, other.File, pack.File)
			}
		}
		for _, rule := range pack.Rules {
			if other, twice := from[rule.ID]; twice {
				return nil, &LoadError{File: pack.File, Line: rule.Line, Column: 1, Message: fmt.Sprintf("there is another rule %s in %s", rule.ID, other.File)}
			}
			from[rule.ID] = pack
			p.rules = append(p.rules, rule)
		}
	}
	p.answer()
	p.compare()
	return p, p.accept(exceptions, from)
}

// compare finds the rules that ask the same. One that is not meant for every container
// answers for no other.
func (p *Policy) compare() {
	p.asked = make([]firstAsked, len(p.rules))
	declared, actual := make(map[string]int), make(map[string]int)
	for i, rule := range p.rules {
		find := func(f *Filter, first map[string]int) int {
			if f == nil {
				return i
			}
			if earlier, ok := first[f.String()]; ok {
				return earlier
			}
			if rule.Applies == nil {
				first[f.String()] = i
			}
			return i
		}
		p.asked[i] = firstAsked{find(rule.Declared, declared), find(rule.Actual, actual)}
	}
}

// answer finds the controls, in the order in which rules name them.
func (p *Policy) answer() {
	at := make(map[Control]int)
	for i, rule := range p.rules {
		for _, control := range rule.Controls {
			known, ok := at[control]
			if !ok {
				known = len(p.controls)
				at[control] = known
				p.controls = append(p.controls, answered{Control: control})
			}
			if one := &p.controls[known]; !slices.Contains(one.rules, i) {
				one.rules = append(one.rules, i)
			}
		}
	}
}
