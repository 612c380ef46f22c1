package drift

import (
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/capdrift/capdrift/capdecode"
)

// generous is a runtime handler whose OCI runtime gives root of its containers everything
// that the kernel knows, in a user namespace of each container's own, whatever their specs
// say. sysbox-runc is one: its containers are to be like machines.
type generous struct {
	gives      capdecode.Set
	containers []string // their ids
	binary     string   // the OCI runtime, where it is known
}

// givers are OCI runtimes that are known to be generous, by the last part of their paths.
var givers = []string{"sysbox-runc"}

// generosity finds the handlers that give everything. One container that holds too much
// from its first process on may have been broken into; all of several pods were made so.
// A first process can enter a user namespace of its own that looks like the container's, and
// holds everything there: several pods prove it only where the identity of the namespace is
// known.
func (e *Expectations) generosity(node Node, containers []Container) {
	e.generous = make(map[string]generous)
	full := comparable(node.CapLastCap)
	pods := make(map[string][]string)
	modest := make(map[string]bool)
	for i := range containers {
		c := &containers[i]
		if !isRootOfItsOwn(c) || slices.ContainsFunc(c.Processes, func(p Process) bool { return p.Elsewhere != "" }) {
			continue
		}
		first := c.init()
		if first == nil || first.Observation != Observed || first.UserNamespace.Relation != RelationSame {
			continue
		}
		excess := excessOf(c.Declared.OCI.upTo(node.CapLastCap), first.Caps)
		switch {
		case !excess.Empty() && full.Within(first.Caps.Permitted) && full.Within(first.Caps.Bounding):
			g := e.generous[c.RuntimeHandler]
			g.gives, g.containers = full, append(g.containers, c.ID)
			g.binary = e.configured(c.RuntimeHandler).Binary
			if c.Binary != "" {
				g.binary = c.Binary
			}
			e.generous[c.RuntimeHandler] = g
			if u := first.UserNamespace; u.Parent != 0 && u.Parent == node.UserNamespace.Inode {
				pods[c.RuntimeHandler] = append(pods[c.RuntimeHandler], podKey(c))
			}
		case !full.Within(c.Declared.OCI.Ceiling()):
			modest[c.RuntimeHandler] = true
		}
	}
	maps.DeleteFunc(e.generous, func(handler string, g generous) bool {
		several := slices.ContainsFunc(pods[handler], func(pod string) bool { return pod != pods[handler][0] })
		return modest[handler] || !several && !slices.Contains(givers, path.Base(g.binary))
	})
}

// isRootOfItsOwn reports whether a container runs as root of a user namespace of its own,
// by its spec.
func isRootOfItsOwn(c *Container) bool {
	oci := c.Declared.OCI
	return oci != nil && oci.UserNamespace && oci.UID == 0 && !c.Sandbox && !c.Ended
}

// gives returns what the OCI runtime of a container gives to it beyond its spec.
func (e Expectations) gives(c *Container) capdecode.Set {
	g := e.generous[c.RuntimeHandler]
	if !slices.Contains(g.containers, c.ID) {
		return 0
	}
	return g.gives
}

// Fold leaves out the findings about single containers that the one about their runtime
// handler tells (see [Expectations.Findings]): what they hold above their specs because
// their OCI runtime gives root everything, in a user namespace of its own.
func (e Expectations) Fold(findings []Finding) []Finding {
	told := make(map[string]bool)
	for _, g := range e.generous {
		for _, id := range g.containers {
			told[id] = true
		}
	}
	if len(told) == 0 {
		return findings
	}
	excess := []Kind{BoundingExcess, PermittedExcess, InheritableExcess, ThreadExcess}
	var kept []Finding
	for _, f := range findings {
		if !told[f.ContainerID] || !slices.Contains(excess, f.Kind) {
			kept = append(kept, f)
		}
	}
	return kept
}

// Excuses reports whether a container holds more than its spec and the finding about its
// runtime handler says so (see [Expectations.Fold]).
func (e Expectations) Excuses(c *Container) bool { return !e.gives(c).Empty() }

// giving is the finding about a generous handler.
func (e Expectations) giving(name string, g generous) Finding {
	label := "the default runtime handler"
	if name != "" {
		label = fmt.Sprintf("runtime handler %q", clip(name))
	}
	by := ""
	if g.binary != "" {
		by = fmt.Sprintf(" (%q)", clip(g.binary))
	}
	return Finding{
		ID:   findingID("handler", name, string(PermittedExcess)),
		Kind: PermittedExcess, Severity: Medium, From: LayerOCI, Layer: LayerKernel, Cause: CauseGenerous,
		RuntimeHandler: name, Set: "permitted", Capabilities: g.gives,
		Message: fmt.Sprintf("the OCI runtime%s of %s gives root of its containers everything that the kernel knows, whatever their specs say (%d of them hold it from their first process on). It counts in a user namespace of each container's own, and not on the node; a drop list takes nothing away there, and a process that was given more than its spec by somebody else cannot be told", by, label, len(g.containers)),
		Remedy:  "Expected of sysbox-runc. Where it is not, find what changes the specs of this handler. For less, run as another user than root, or without this runtime class.",
	}
}
