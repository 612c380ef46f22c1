package drift

import (
	"cmp"
	"slices"
	"strings"
)

// GapCode names a kind of thing that a report did not see. The names are stable: files of
// exceptions hold them.
type GapCode string

// The codes of gaps. What each means is in docs/exit-status.md.
const (
	GapGuest         GapCode = "guest"                // containers whose processes the host's /proc does not show
	GapPartial       GapCode = "container_partial"    // a container of which not all was seen
	GapUnreadable    GapCode = "container_unreadable" // a container of which nothing was seen
	GapProcesses     GapCode = "processes_unreadable" // processes that could not be read
	GapThreads       GapCode = "threads_skipped"      // threads beside their leaders
	GapHidden        GapCode = "processes_hidden"     // by hidepid, or another reader than root
	GapUnplaced      GapCode = "processes_unplaced"   // whether they are in a container is not known
	GapOverdue       GapCode = "processes_overdue"    // there was no processor time to read them
	GapCgroups       GapCode = "cgroups"              // which processes are in which container
	GapNamespaces    GapCode = "user_namespaces"      // which user namespace is the node's own
	GapOldKernel     GapCode = "old_kernel"           // it does not show what is declared, as no_new_privs before 4.10
	GapBetween       GapCode = "between_sweeps"       // what starts and ends between two sweeps
	GapPodSpecs      GapCode = "pod_specs"            // what pod specs ask for
	GapOtherRuntime  GapCode = "other_runtime"        // another runtime's containers, or another namespace's
	GapNoAgent       GapCode = "no_agent"             // a node of a cluster without an agent
	GapWindowsNode   GapCode = "windows_node"         // a node of a cluster that runs Windows
	GapVirtualNode   GapCode = "virtual_node"         // a node of a cluster whose containers run elsewhere
	GapStarting      GapCode = "starting"             // what an OCI runtime is starting
	GapMissed        GapCode = "processes_missed"     // they ended before anybody could read them
	GapUnconfirmed   GapCode = "unconfirmed"          // a suspicion that no second look confirmed
	GapRuntimeSilent GapCode = "runtime_silent"       // the runtime did not answer
	GapStale         GapCode = "stale"                // looking at the node fails
	GapPolicy        GapCode = "policy"               // an agent judges by another policy than it should
	GapOther         GapCode = "other"                // it has no name of its own
)

// AcceptableGaps are the codes of what may be so for long. The others pass by themselves, or
// leave nothing that is known of a node, and nobody can accept them by name.
func AcceptableGaps() []GapCode {
	return []GapCode{
		GapGuest, GapPartial, GapUnreadable, GapProcesses, GapThreads, GapHidden, GapUnplaced, GapOverdue, GapCgroups,
		GapNamespaces, GapOldKernel, GapBetween, GapPodSpecs, GapOtherRuntime, GapNoAgent, GapWindowsNode, GapVirtualNode,
	}
}

// WholeNode is the object of a gap that is about no part of a node.
const WholeNode = "node"

// Gap is one thing that a report did not see, by names that stay the same from look to look.
type Gap struct {
	Code   GapCode `json:"code"`
	Node   string  `json:"node"`
	Object string  `json:"object"` // "handler/NAME", "container/NAMESPACE/POD/NAME", or [WholeNode]
	Why    string  `json:"why"`
}

// Gaps lists what keeps the report from being complete: it is empty for a complete report, and
// never for another one of which all containers are asked for. Those of containers that of
// does not ask for are left out; nil asks for all.
func (r *Report) Gaps(of func(*Container) bool) []Gap {
	if r.Coverage.Complete {
		return nil
	}
	g := gaps{report: r, of: of}
	for i := range r.Containers {
		g.container(&r.Containers[i])
	}
	for _, limit := range r.Coverage.Limits {
		if limit.Blind {
			g.add(cmp.Or(limit.Code, GapOther), cmp.Or(limit.Object, WholeNode), limit.What+": "+limit.Why)
		}
	}
	g.untold()
	return g.list
}

// gaps gathers those of one report.
type gaps struct {
	report                  *Report
	of                      func(*Container) bool
	list                    []Gap
	unasked                 bool // some were left out
	unseen, unseenSandboxes int  // that were not wholly observed
	starting                int  // processes
	partial                 bool // a container was seen in part, which explains processes that were not read
}

func (g *gaps) add(code GapCode, object, why string) {
	if !slices.ContainsFunc(g.list, func(o Gap) bool { return o.Code == code && o.Object == object }) {
		g.list = append(g.list, Gap{Code: code, Node: g.report.Node.Name, Object: object, Why: why})
	}
}

func (g *gaps) container(c *Container) {
	code, object, why := gapOf(c)
	counts := !c.Ended
	switch {
	case code == "" || !counts:
	case c.Sandbox:
		g.unseenSandboxes++
	default:
		g.unseen++
	}
	starting := 0
	for _, p := range c.Processes {
		if p.Observation == Starting {
			starting++
		}
	}
	g.starting += starting
	g.partial = g.partial || c.Observation == Partial
	asked := g.of == nil || g.of(c)
	g.unasked = g.unasked || !asked && (code != "" || starting > 0)
	if !asked {
		return
	}
	// Nobody is missed in an ended container but the processes that are there.
	if code != "" && (counts || code == GapPartial && g.report.Coverage.Processes.Unreadable > 0) {
		g.add(code, object, why)
	}
	if starting > 0 {
		g.add(GapStarting, GapObject(c.Label()), "an OCI runtime is starting a process in it")
	}
}

// Disagrees reports whether the coverage counts more than the containers show, as where the two
// were asked for one after the other and something changed between. Another answer may agree.
func (r *Report) Disagrees() bool {
	if r.Coverage.Complete {
		return false
	}
	g := gaps{report: r}
	for i := range r.Containers {
		g.container(&r.Containers[i])
	}
	return g.starts() || g.unread() || g.miscounts()
}

func (g *gaps) starts() bool { return g.report.Coverage.Processes.Starting > g.starting }
func (g *gaps) unread() bool { return g.report.Coverage.Processes.Unreadable > 0 && !g.partial }
func (g *gaps) miscounts() bool {
	cover := g.report.Coverage
	return cover.Containers.Running-cover.Containers.Observed > g.unseen || cover.Sandboxes.Running-cover.Sandboxes.Observed > g.unseenSandboxes
}

// untold adds what the counts tell of and the lists do not, as where a report's containers
// were not all handed on.
func (g *gaps) untold() {
	if g.starts() {
		g.add(GapStarting, WholeNode, "an OCI runtime is starting processes")
	}
	if g.unread() {
		g.add(GapProcesses, WholeNode, "some processes of containers could not be read")
	}
	if g.report.Coverage.Threads.Skipped > 0 {
		g.add(GapThreads, WholeNode, "not all threads were read")
	}
	if g.miscounts() || len(g.list) == 0 && !g.unasked {
		g.add(GapOther, WholeNode, "the coverage is incomplete, and does not say by what")
	}
}

// GapOf returns what is not seen of a container, and false where all is.
func GapOf(c *Container, node string) (Gap, bool) {
	code, object, why := gapOf(c)
	return Gap{Code: code, Node: node, Object: object, Why: why}, code != ""
}

func gapOf(c *Container) (code GapCode, object, why string) {
	switch c.Observation {
	case Observed:
		return "", "", ""
	case UnsupportedRuntime:
		return GapGuest, "handler/" + cmp.Or(c.RuntimeHandler, "default"), c.Reason
	case Unreadable:
		return GapUnreadable, GapObject(c.Label()), c.Reason
	}
	return GapPartial, GapObject(c.Label()), c.Reason
}

// GapObject is what a gap calls a container that people call by this label.
func GapObject(label string) string { return "container/" + strings.TrimPrefix(label, "container ") }
