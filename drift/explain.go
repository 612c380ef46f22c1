package drift

import (
	"fmt"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
)

// Account is where one capability of one container appeared or vanished on its
// way from the pod spec to a process.
type Account struct {
	Capability string `json:"capability"`
	// Pod and CRI say how the lists name it: "add", "drop", "add+drop", "privileged",
	// "-" for not at all, and "?" where the layer is not known.
	Pod string `json:"pod"`
	CRI string `json:"cri"`
	// OCI and Kernel say in which sets it is, by their letters: e effective,
	// p permitted, b bounding, i inheritable, a ambient; "-" in none, "?" not known.
	OCI    string `json:"oci"`
	Kernel string `json:"kernel"`
	Steps  []Step `json:"steps"`
}

// Step is one hop that decided about the capability, and why.
type Step struct {
	From Layer  `json:"from"`
	To   Layer  `json:"to"`
	Why  string `json:"why"`
}

// Explain gives an account of each of the asked capabilities, or, where none is
// asked for, of all that any layer names or holds. p is the process that stands
// for the kernel, one of the container's; nil for none.
func Explain(node Node, e Expectations, c Container, p *Process, asked capdecode.Set) []Account {
	x := explanation{node: node, e: e, c: &c, p: p, known: capdecode.Full(node.CapLastCap), settings: e.declared}
	if e.runtime != "" {
		h := e.of(c.RuntimeHandler)
		x.settings, x.handler = h.Settings, h.config
	}
	x.o, x.judged = e.order(&c, node.CapLastCap)
	x.in = intentOf(x.o.Add, x.o.Drop, node.CapLastCap)
	if asked.Empty() {
		asked = x.mentioned()
	}
	accounts := []Account{}
	for one := range asked.All() {
		accounts = append(accounts, x.account(one))
	}
	return accounts
}

// explanation is what all accounts of one container share.
type explanation struct {
	node     Node
	e        Expectations
	c        *Container
	p        *Process
	known    capdecode.Set
	settings Settings
	handler  Handler
	o        order
	in       intent
	judged   bool // the runtime's orders are known
}

func (x *explanation) mentioned() capdecode.Set {
	set := x.in.named | x.in.drop&everything(x.settings.Default)
	if pod := x.c.Declared.Pod; pod != nil {
		set |= intentOf(pod.Add, nil, x.node.CapLastCap).named
	}
	if oci := x.c.Declared.OCI; oci != nil {
		set |= everything(oci.Sets) | oci.Ambient
	}
	if x.p != nil {
		set |= everything(x.p.Caps) | x.p.Caps.Ambient
	}
	return set
}

func (x *explanation) account(one capdecode.Cap) Account {
	a := Account{Capability: one.String(), Pod: "?", CRI: "?", OCI: "?", Kernel: "?", Steps: []Step{}}
	if pod := x.c.Declared.Pod; pod != nil {
		a.Pod = named(pod.Add, pod.Drop, pod.Privileged, one)
	}
	if orders := x.c.Declared.CRI; orders != nil {
		a.CRI = named(orders.Add, orders.Drop, orders.Privileged, one)
	}
	if a.Pod != "?" && a.CRI != "?" && a.Pod != a.CRI {
		a.Steps = append(a.Steps, Step{LayerPod, LayerCRI, "the runtime was not told what the pod spec says; the kubelet copies it as it is"})
	}
	oci := x.c.Declared.OCI
	if oci != nil {
		a.OCI = letters(oci.Sets, one)
		if x.judged {
			a.Steps = append(a.Steps, Step{x.o.from, LayerOCI, x.paper(one, everything(oci.Sets).Has(one))})
		}
	}
	if x.p != nil {
		a.Kernel = letters(x.p.Caps, one)
		if oci != nil {
			a.Steps = append(a.Steps, Step{LayerOCI, LayerKernel, x.kernel(one, oci.upTo(x.node.CapLastCap))})
		}
	}
	return a
}

// named tells how the lists name a capability, as a person means them.
func named(add, drop []string, privileged bool, one capdecode.Cap) string {
	mentions := func(names []string) (byName, byAll bool) {
		for _, name := range names {
			c, ok := capdecode.ParseName(strings.TrimSpace(name))
			byName, byAll = byName || ok && c == one, byAll || meansAll(name)
		}
		return byName, byAll
	}
	added, allAdded := mentions(add)
	dropped, allDropped := mentions(drop)
	var parts []string
	if privileged {
		parts = append(parts, "privileged")
	}
	// A name is an exception from the other list's ALL.
	if added || allAdded && !dropped {
		parts = append(parts, "add")
	}
	if dropped || allDropped && !added {
		parts = append(parts, "drop")
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, "+")
}

func letters(s capdecode.Sets, one capdecode.Cap) string {
	var text strings.Builder
	for _, set := range []struct {
		letter byte
		set    capdecode.Set
	}{{'e', s.Effective}, {'p', s.Permitted}, {'b', s.Bounding}, {'i', s.Inheritable}, {'a', s.Ambient}} {
		if set.set.Has(one) {
			text.WriteByte(set.letter)
		}
	}
	if text.Len() == 0 {
		return "-"
	}
	return text.String()
}

// paper says why the capability is, or is not, in the OCI spec.
func (x *explanation) paper(one capdecode.Cap, there bool) string {
	set := capdecode.Of(one)
	prefixed := x.e.runtime == Containerd && (spelled(x.o.Add, set) || spelled(x.o.Drop, set))
	switch {
	case x.o.Privileged && there:
		return "privileged: everything the runtime holds"
	case x.o.Privileged:
		return "privileged, and the runtime does not hold it itself"
	case there && x.in.both.Has(one):
		return "added and dropped: here the add wins"
	case x.in.both.Has(one):
		return "added and dropped: here the drop wins"
	case there && x.in.drop.Has(one) && prefixed:
		return fmt.Sprintf("kept: containerd reads the drop as CAP_%s, which is nothing", one)
	case there && x.in.drop.Has(one) && prefixedAll(x.o.Drop) && x.e.runtime == Containerd:
		return "kept: containerd reads the drop of CAP_ALL as CAP_CAP_ALL, which is nothing"
	case there && x.in.drop.Has(one):
		return "kept, although dropped: not what the runtime makes of it"
	case there && x.in.named.Has(one):
		return "added by its name"
	case there && x.in.add.Has(one):
		return "added by ALL"
	case there && x.settings.Default.Bounding.Has(one) && x.handler.BaseSpec != "":
		return fmt.Sprintf("a default of base_runtime_spec %q", clip(x.handler.BaseSpec))
	case there && everything(x.settings.Default).Has(one):
		return "a default of the runtime"
	case there:
		return "neither added nor a default: not what the runtime makes of it"
	case x.in.named.Has(one) && prefixed:
		return fmt.Sprintf("not added: containerd reads it as CAP_%s, which is nothing", one)
	case x.in.named.Has(one):
		return "not there, although added: not what the runtime makes of it"
	case x.in.add.Has(one):
		return "added by ALL, and the runtime does not hold it itself"
	case x.in.allDrop:
		return "dropped by ALL"
	case x.in.drop.Has(one):
		return "dropped by its name"
	}
	return "not a default of the runtime, and not added"
}

// kernel says why the process has, or has not, the capability.
func (x *explanation) kernel(one capdecode.Cap, oci OCI) string {
	held, start := x.p.Caps, oci.AtStart()
	switch {
	case !x.known.Has(one):
		return "this kernel does not know it"
	case x.p.UserNamespace.Relation == RelationChild:
		return "held in a user namespace of its own, where it counts only there"
	case x.p.UserNamespace.Relation != RelationSame:
		return "in another user namespace than the container's: not comparable"
	}
	var bundle OCI // what the OCI runtime read, empty when that is not known
	if x.c.Declared.Bundle != nil {
		bundle = *x.c.Declared.Bundle
	}
	excess := held.Bounding.Has(one) && !oci.Bounding.Has(one) || (held.Permitted|held.Inheritable).Has(one) && !oci.Ceiling().Has(one)
	switch {
	case excess && bundle.Ceiling().Has(one):
		return "not in the OCI spec and in the config.json that the OCI runtime read: a wrapper or hook added it"
	case excess && x.e.gives(x.c).Has(one):
		return "more than the OCI spec allows: the handler's OCI runtime gives root everything, in the container's own user namespace"
	case excess:
		return "more than the OCI spec allows: this did not come from the spec"
	case held.Permitted.Has(one) && !held.Effective.Has(one):
		return "held, and not in force now: the process lowered it, and may raise it again"
	case held.Permitted.Has(one) && !start.Permitted.Has(one):
		return "gained after the start, within what the spec allows: a setuid program or file capabilities"
	case held.Permitted.Has(one):
		return "held since the start"
	case !oci.Ceiling().Has(one):
		return "not in the OCI spec"
	case x.c.Declared.Bundle != nil && !bundle.Ceiling().Has(one):
		return "in the OCI spec and not in the config.json that the OCI runtime read: a wrapper or hook removed it"
	case !start.Permitted.Has(one) && oci.UID != 0:
		return fmt.Sprintf("user %d keeps only ambient capabilities over execve(2), and there are none; in reach of root and of file capabilities", oci.UID)
	case !start.Permitted.Has(one):
		return "no_new_privs kept it from root's set"
	case x.p.PID == x.c.InitPID:
		return "given up by the process"
	}
	return "the process, or one that it comes from, gave it up or runs as another user"
}
