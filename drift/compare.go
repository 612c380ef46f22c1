package drift

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
)

// Ceiling is the most that any process of the container can hold: the bounding
// set only shrinks, capset(2) cannot raise the permitted set, and execve(2)
// grants at most what is inheritable or bounding (security/commoncap.c,
// cap_bprm_creds_from_file). Inside one user namespace nothing gets above it.
func (o OCI) Ceiling() capdecode.Set { return o.Bounding | o.Inheritable | o.Permitted }

// AtStart returns the sets that the container's first program starts with when
// it is an ordinary file: neither setuid nor with file capabilities. Root gets
// bounding and inheritable, no_new_privs keeps it within the permitted set, and
// everybody else keeps the ambient set alone; capabilities(7) "Transformation of
// capabilities during execve()".
func (o OCI) AtStart() capdecode.Sets {
	// The kernel keeps ambient within permitted and inheritable; runc only
	// warns where the spec asks for more.
	ambient := o.Ambient & o.Permitted & o.Inheritable
	permitted := ambient
	if o.UID == 0 {
		permitted = o.Bounding | o.Inheritable
		if o.NoNewPrivileges {
			permitted &= o.Permitted
		}
		permitted |= ambient
	}
	return capdecode.Sets{
		Inheritable: o.Inheritable, Permitted: permitted, Effective: permitted,
		Bounding: o.Bounding, Ambient: ambient,
	}
}

// upTo cuts the sets to what has a name on both sides: a spec may name capabilities
// that are newer than the kernel, and a kernel may have some that are newer than every
// name known here. Neither is drift.
func (o OCI) upTo(last capdecode.Cap) OCI {
	known := comparable(last)
	o.Bounding &= known
	o.Permitted &= known
	o.Effective &= known
	o.Inheritable &= known
	o.Ambient &= known
	return o
}

// newestName is the last capability that has a name here.
var newestName = func() (newest capdecode.Cap) {
	for c := range capdecode.Full(capdecode.MaxCap).All() {
		if c.Known() {
			newest = c
		}
	}
	return newest
}()

// comparable returns the capabilities that a kernel whose last one is given and the
// specs can both speak of.
func comparable(last capdecode.Cap) capdecode.Set { return capdecode.Full(min(last, newestName)) }

// Settle completes what the processes of a container tell only together: where
// each one's user namespace lies, its uid in the container, whether it came from
// outside, and whether it is still a stage of the runtime. It writes to c.Processes.
// runtime is nil where none answered.
func Settle(node Node, runtime *Runtime, c *Container) {
	s := settling{node: node, c: c, byPID: make(map[int]*Process, len(c.Processes))}
	if runtime != nil {
		s.handler = runtime.Handlers[cmp.Or(c.RuntimeHandler, runtime.DefaultHandler)]
	}
	for i := range c.Processes {
		s.byPID[c.Processes[i].PID] = &c.Processes[i]
	}
	base := home(node, c)
	for i := range c.Processes {
		p := &c.Processes[i]
		p.UserNamespace.Relation = relate(node.UserNamespace, base, p.UserNamespace)
		p.ContainerUID = nil
		if uid, ok := inside(base.UIDMap, p.UID); ok {
			p.ContainerUID = &uid
		}
		p.Entered = p.Entered || s.cameFromOutside(p)
		switch p.Observation = Observed; {
		case s.isStage(p, 0):
			p.Observation = Starting
		case s.isHelper(p):
			p.Observation = Helper
		}
	}
}

// init returns the container's first process, nil when it was not seen.
func (c *Container) init() *Process {
	for i := range c.Processes {
		if c.Processes[i].PID == c.InitPID {
			return &c.Processes[i]
		}
	}
	return nil
}

// Compare holds one settled container (see [Settle]) against its declaration.
// What it returns above [Info] is a suspicion until [Confirm] has seen it twice.
func Compare(node Node, c Container) []Finding {
	b := book{node: node, container: c}
	switch c.Observation {
	case UnsupportedRuntime:
		b.add(Finding{
			Kind: Unsupported, Severity: Info,
			Message: fmt.Sprintf("%s: what its processes hold cannot be seen from the host: %s", c.Label(), c.Reason),
			Remedy:  "Judge this container by its declaration, or look inside its guest.",
		})
		return b.findings
	case Unreadable:
		b.add(Finding{
			Kind: NotReadable, Severity: Info,
			Message: fmt.Sprintf("%s runs and could not be read: %s", c.Label(), c.Reason),
			Remedy:  "Run as root and with the host's /proc and /sys/fs/cgroup in reach (--host-root).",
		})
	}
	if c.Managed != nil && !*c.Managed {
		if len(c.MayHaveJoined) > 0 {
			b.joined()
		} else {
			b.unmanaged()
		}
	}
	b.overdue()
	if c.Declared.OCI == nil {
		return b.findings
	}
	b.processes(func(int) bool { return true })
	b.droppedByAll()
	return b.merged()
}

// CompareProcesses is [Compare] for some of a settled container's processes: those
// that are new, among all that are known. That nobody knows where one came from it leaves
// to a look at the whole node: the container that it came from may be as new.
func CompareProcesses(node Node, c Container, pids []int) []Finding {
	b := book{node: node, container: c}
	if c.Declared.OCI != nil && c.Observation != UnsupportedRuntime {
		b.processes(func(pid int) bool { return slices.Contains(pids, pid) })
	}
	return slices.DeleteFunc(b.merged(), func(f Finding) bool { return f.Kind == UnknownOrigin })
}

func (b *book) processes(compared func(pid int) bool) {
	oci := b.container.Declared.OCI.upTo(b.node.CapLastCap)
	for _, elsewhere := range []bool{false, true} { // who is in the container's cgroup is named first
		for i := range b.container.Processes {
			p := &b.container.Processes[i]
			switch {
			case elsewhere != (p.Elsewhere != ""), !compared(p.PID):
			case p.Observation == Starting, p.Observation == Helper, b.isOfAnother(p):
			default:
				b.process(oci, p)
			}
		}
	}
}

// isOfAnother reports whether a process in the container's cgroup is another container's:
// a sweep puts it there, and it is held against what was declared for that one.
func (b *book) isOfAnother(p *Process) bool {
	return p.Elsewhere == "" && p.Lineage != nil && p.Lineage.Origin != "" && p.Lineage.Origin != b.container.ID
}

// merged returns one finding for what several processes show in the same way: a process
// can start others as often as it likes, and its number is no part of what is found. The
// worst comes first, and names the process.
func (b *book) merged() []Finding {
	at := make(map[string]int, len(b.findings))
	var list []Finding
	for _, f := range b.findings {
		i, known := at[f.ID]
		switch {
		case !known:
			at[f.ID] = len(list)
			list = append(list, f)
			continue
		case f.Severity > list[i].Severity:
			f.Processes += list[i].Processes
			f.Capabilities |= list[i].Capabilities
			list[i] = f
		case f.PID != list[i].PID: // and not a thread of the same
			list[i].Processes += f.Processes
			fallthrough
		default:
			list[i].Capabilities |= f.Capabilities
		}
	}
	return list
}

// Agree reports whether two findings are about the same: of one id, and where they are
// about capabilities, about one at least that is in both. What a process holds is its own
// to vary below what it could hold, so the sets need not be equal.
func Agree(a, b Finding) bool {
	return a.ID == b.ID && (a.Capabilities == b.Capabilities || a.Capabilities&b.Capabilities != 0)
}

// Confirm keeps the findings that both looks agree on (see [Agree]), whichever process
// shows them. Findings of severity [Info] need no second look and are taken from the
// second.
func Confirm(first, second []Finding) []Finding {
	seen := make(map[string]Finding, len(first))
	for _, f := range first {
		seen[f.ID] = f
	}
	var kept []Finding
	for _, f := range second {
		before, known := seen[f.ID]
		if f.Severity == Info || known && Agree(before, f) {
			kept = append(kept, f)
		}
	}
	return kept
}

// Sort puts the worst first, then by container, process and kind.
func Sort(findings []Finding) {
	slices.SortFunc(findings, func(a, b Finding) int {
		switch {
		case a.Severity != b.Severity:
			return int(b.Severity - a.Severity)
		case a.ContainerID != b.ContainerID:
			return strings.Compare(a.ContainerID, b.ContainerID)
		case a.PID != b.PID:
			return a.PID - b.PID
		case a.TID != b.TID:
			return a.TID - b.TID
		}
		return strings.Compare(string(a.Kind)+a.Set+a.ID, string(b.Kind)+b.Set+b.ID)
	})
}

// book collects the findings of one container.
type book struct {
	node      Node
	container Container
	findings  []Finding
}

func (b *book) add(f Finding) {
	if f.Kind != UnknownOrigin { // which is about the node
		f.ContainerID, f.Container, f.Pod = b.container.ID, b.container.Name, b.container.Pod
	}
	if f.ID == "" {
		f.ID = findingID(b.container.ID, string(f.Kind))
	}
	f.Remedy = inWordsOf(b.container.Runtime, f.Remedy)
	b.findings = append(b.findings, f)
}

// edited says of a finding that the config.json which the OCI runtime read allows
// just that, so that it was changed on its way there.
func (b *book) edited(f Finding, allowed bool) Finding {
	if b.container.Declared.Bundle == nil || !allowed {
		return f
	}
	by := "a wrapper of the OCI runtime or a hook"
	if b.container.Binary != "" {
		by = fmt.Sprintf("the OCI runtime's wrapper %q or a hook", clip(b.container.Binary))
	}
	f.Cause = CauseWrapper
	f.Message += ". The config.json that the OCI runtime read says just this: " + by + " changed what the container runtime had written"
	f.Remedy = keepEvidence + "Then compare config.json in the container's bundle with the spec that the runtime shows (crictl inspect). Correct or remove what edits it (" + whatEdits + "), then create the pod anew."
	return f
}

// bundle is what the OCI runtime read, empty when that is not known.
func (b *book) bundle() OCI {
	if b.container.Declared.Bundle == nil {
		return OCI{}
	}
	return b.container.Declared.Bundle.upTo(b.node.CapLastCap)
}

// addProcess adds a finding about one process. Its id holds neither the process nor the
// capabilities: whoever is found can change both as often as he likes.
func (b *book) addProcess(p *Process, f Finding) {
	f.From, f.Layer, f.PID, f.StartTime, f.Processes = LayerOCI, LayerKernel, p.PID, p.StartTime, 1
	if f.ID == "" {
		f.ID = findingID(b.container.ID, string(f.Kind), f.Set)
	}
	if f.Severity > Info {
		f.Message += b.place(p)
		f.Evidence = evidenceOf(b.node, b.container, *p)
	}
	b.add(f)
}

// place says where a process is that is not where it should be, for the end of a message.
func (b *book) place(p *Process) string {
	switch {
	case p.Elsewhere != "":
		return fmt.Sprintf(". It is not in the container's cgroup but in %s: it moved there, or joined the container from there", strconv.QuoteToASCII(clip(p.Elsewhere)))
	case b.container.Ended:
		return ". The container has ended, and the process lives on in its cgroup"
	}
	return ""
}

// incident is the id that findings of a container share which prove that something runs
// in it with more than it was given: one cause shows in several sets, threads and flags.
func (b *book) incident() string { return findingID(b.container.ID, "incident", "excess") }

func findingID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// who names a process in a message; its name is hostile and so quoted.
func (b *book) who(p *Process) string {
	return fmt.Sprintf("process %d %s of %s", p.PID, strconv.QuoteToASCII(clip(p.Name)), b.container.Label())
}

// keepEvidence is what comes before any other remedy where somebody broke in.
const keepEvidence = "First keep the evidence: deleting the pod ends its processes, and what is in their memory and open files is lost. Save the output of capdrift scan -o json, freeze the container (" + toFreeze + ", or 1 into cgroup.freeze of its cgroup), and cut the pod off by a NetworkPolicy. "

const outsideHelp = keepEvidence + "Then look for what started it from the node (runc or crun exec --cap, docker exec --privileged, nsenter), for a wrapper of the OCI runtime or a hook that rewrites config.json, and for a kernel exploit: a program that stays in the container's user namespace cannot get there by itself."

const undecidedHelp = keepEvidence + "Then tell the two apart: with CAP_SYS_PTRACE (the chart's agent.deepInspection) the identity of its user namespace can be read. Where nobody needs user namespaces, deny unshare(2) and clone(2) with CLONE_NEWUSER by seccomp."

func (b *book) process(oci OCI, p *Process) {
	switch p.UserNamespace.Relation {
	case RelationSame:
		b.sets(oci, p)
		b.moved(oci, p)
	case RelationChild:
		b.addProcess(p, Finding{
			Kind: NestedUserns, Severity: Info, Capabilities: p.Caps.Effective,
			Message: fmt.Sprintf("%s is in a user namespace of its own below the container's; what it holds counts only there", b.who(p)),
			Remedy:  "Expected of browsers, sandboxes and rootless builders. Where none should be, deny unshare(2) by seccomp.",
		})
		b.noNewPrivileges(oci, p) // which no user namespace clears
		return
	case RelationInitial, RelationUnknown:
		foreign := oci.UserNamespace && mapsComparable(b.node, oci) && p.UserNamespace.UIDMap != nil
		if foreign || p.UserNamespace.Relation == RelationInitial {
			b.addProcess(p, b.edited(Finding{
				Kind: UsernsEscape, Severity: Critical, Capabilities: p.Caps.Effective, Incident: b.incident(),
				Message: fmt.Sprintf("%s is not in the user namespace that the OCI spec gives the container: its effective set %s counts outside it", b.who(p), list(p.Caps.Effective)),
				Remedy:  outsideHelp,
			}, !b.bundle().UserNamespace))
			return
		}
		b.addProcess(p, Finding{
			Kind: NotReadable, Severity: Info,
			Message: fmt.Sprintf("%s: its user namespace could not be told, so its capabilities were not compared", b.who(p)),
			Remedy:  "Let the scan read /proc/PID/uid_map, or run it with CAP_SYS_PTRACE.",
		})
		return
	}
	b.privileges(oci, p)
}

// moved tells of a process that left its container's cgroup, where no container's own
// programs go: to hide, or to be taken for another's. Where it holds too much besides, that
// is found and says the same.
func (b *book) moved(oci OCI, p *Process) {
	if p.Elsewhere == "" || !excessOf(oci, p.Caps).Empty() {
		return
	}
	b.addProcess(p, Finding{
		Kind: Moved, Severity: High, Capabilities: p.Caps.Permitted,
		Message: fmt.Sprintf("%s is the container's by where it came from; it was moved out of the container's cgroup, or joined its namespaces", b.who(p)),
		Remedy:  keepEvidence + "Then take from the container what lets it write to cgroups of others: CAP_SYS_ADMIN, mounts of /sys/fs/cgroup, hostPID. If it joined from the node (nsenter), find who did.",
	})
}

// excessOf returns what sets hold above what a spec allows.
func excessOf(oci OCI, held capdecode.Sets) capdecode.Set {
	known := capdecode.Full(newestName)
	return (held.Bounding.Minus(oci.Bounding) | (held.Permitted | held.Inheritable).Minus(oci.Ceiling())) & known
}

// sets compares the bitmaps of a process, and of its threads, with the ceilings.
func (b *book) sets(oci OCI, p *Process) {
	ceiling, bundle, known := oci.Ceiling(), b.bundle(), comparable(b.node.CapLastCap)
	for _, check := range []struct {
		kind     Kind
		severity Severity
		set      string
		held     capdecode.Set
		allowed  capdecode.Set
		edited   capdecode.Set // what config.json allows
	}{
		{BoundingExcess, Critical, "bounding", p.Caps.Bounding, oci.Bounding, bundle.Bounding},
		{PermittedExcess, Critical, "permitted", p.Caps.Permitted, ceiling, bundle.Ceiling()},
		{InheritableExcess, High, "inheritable", p.Caps.Inheritable, ceiling, bundle.Ceiling()},
	} {
		if excess := check.held.Minus(check.allowed) & known; !excess.Empty() {
			b.addExcess(p, b.edited(Finding{
				Kind: check.kind, Severity: check.severity, Set: check.set, Capabilities: excess,
				Message: fmt.Sprintf("%s holds %s in its %s set; the OCI spec allows %s", b.who(p), list(excess), check.set, list(check.allowed)),
				Remedy:  outsideHelp,
			}, excess.Within(check.edited)))
		}
	}
	leader := excessOf(oci, p.Caps)
	for _, thread := range p.Threads {
		if excess := excessOf(oci, thread.Caps).Minus(leader) & known; !excess.Empty() {
			b.addExcess(p, b.edited(Finding{
				Kind: ThreadExcess, Severity: Critical, TID: thread.TID, Capabilities: excess,
				Message: fmt.Sprintf("thread %d of %s holds %s, which its leader does not show; the OCI spec allows %s", thread.TID, b.who(p), list(excess), list(ceiling)),
				Remedy:  outsideHelp,
			}, excess.Within(bundle.Ceiling())))
		}
	}
}

// addExcess adds what a process holds above what was declared. Where it may be that its
// user namespace is not the container's after all, the finding says so.
func (b *book) addExcess(p *Process, f Finding) {
	f.Incident = b.incident()
	switch {
	case f.Cause != "": // explained by config.json
	case b.isUndecided(p):
		f.Severity, f.Remedy = High, undecidedHelp
		f.Message += ". It was started inside the container, and the identity of its user namespace may not be read: it is in one of its own that looks like the container's, or it was put into the container and adopted there"
	case p.Lineage != nil && b.unknownOrigin(p):
		f.Message += ". Where it came from is not known: it is neither the container's by its ancestors nor by its mounts, so the container may be innocent of it"
		id := findingID(b.node.BootID, string(UnknownOrigin)) // one of the node, wherever it shows
		f.ID, f.Incident, f.Kind, f.Set = id, id, UnknownOrigin, ""
	}
	b.addProcess(p, f)
}

// isUndecided reports whether a process may be in a user namespace of its own whose maps
// are those of the container's: the identity of its namespace was asked for and refused, it
// was not seen to come from outside of the container, and its bounding set is full, as that
// of everybody is who enters such a namespace (kernel/user_namespace.c set_cred_user_ns).
func (b *book) isUndecided(p *Process) bool {
	l := p.Lineage
	return l != nil && comparable(b.node.CapLastCap).Within(p.Caps.Bounding) && len(l.Ancestors) > 0 && l.Ancestors[0].Container && p.UserNamespace.Inode == 0 && !p.Entered
}

// unknownOrigin reports whether nothing ties a process to the container in whose cgroup it
// is, nor to the node: it may have been moved there by another container. Of a container
// that has ended there is nothing left that could.
func (b *book) unknownOrigin(p *Process) bool {
	l := p.Lineage
	return l.Origin == "" && b.container.init() != nil && l.Mount != 0 && b.node.Mount != 0 && l.Mount != b.node.Mount && len(l.Ancestors) > 0 &&
		!slices.Contains(ociRuntimes, l.Ancestors[0].Name)
}

// privileges compares no_new_privs, the uid and what was gained within the ceiling.
func (b *book) privileges(oci OCI, p *Process) {
	b.noNewPrivileges(oci, p)
	start := oci.AtStart()
	root := rootOf(oci, home(b.node, &b.container), p)
	gained := p.Caps.Permitted & oci.Ceiling() &^ start.Permitted
	if root.found {
		b.becameRoot(oci, start, p, root)
	}
	if !gained.Empty() {
		means := "by file capabilities of a program, or by an exec that gave it more than the container's own process has"
		switch {
		case root.found:
			means = "by becoming root"
		case p.Caps.Ambient&gained != 0: // execve(2) of a program with file capabilities clears that set
			means = "through its ambient set, which an exec or its parent gave it"
		}
		b.addProcess(p, Finding{
			Kind: GainedWithinCeiling, Severity: Info, Set: "permitted", Capabilities: gained,
			Message: fmt.Sprintf("%s gained %s after its start, %s; the OCI spec allows it", b.who(p), list(gained), means),
			Remedy:  "To rule it out, " + b.lessPrivilege(oci) + ".",
		})
	}
}

// root is how a process is root where none should be.
type root struct {
	found bool
	tid   int    // of the thread; 0 for the leader
	which string // "" for the effective uid
	holds capdecode.Set
}

// rootOf looks for the container's root among the four uids of a process and of each of
// its threads: a thread, and a saved uid, give root back to the whole process.
func rootOf(oci OCI, home UserNamespace, p *Process) root {
	if oci.UID == 0 {
		return root{}
	}
	if which, ok := rootAmong(home, p.uids()); ok {
		return root{found: true, which: which, holds: p.Caps.Permitted}
	}
	for _, t := range p.Threads {
		if which, ok := rootAmong(home, t.uids()); ok {
			return root{found: true, tid: t.TID, which: which, holds: t.Caps.Permitted}
		}
	}
	return root{}
}

// uids returns all four, and the effective one for all where only that is told.
func (p *Process) uids() UIDs { return p.UIDs.orEffective(p.UID) }
func (t *Thread) uids() UIDs  { return t.UIDs.orEffective(t.UID) }

func (u UIDs) orEffective(effective uint32) UIDs {
	if u.Untold || u.Effective != effective {
		return UIDs{Real: effective, Effective: effective, Saved: effective, FileSystem: effective}
	}
	return u
}

func rootAmong(home UserNamespace, uids UIDs) (which string, found bool) {
	for _, each := range []struct {
		name string
		uid  uint32
	}{{"", uids.Effective}, {"real", uids.Real}, {"saved", uids.Saved}, {"filesystem", uids.FileSystem}} {
		if uid, ok := inside(home.UIDMap, each.uid); ok && uid == 0 {
			return each.name, true
		}
	}
	return "", false
}

func (b *book) becameRoot(oci OCI, start capdecode.Sets, p *Process, r root) {
	severity, how := Medium, "by a setuid program, by setuid(2) with CAP_SETUID, or put there as root from the node"
	if oci.NoNewPrivileges && !b.everHeld(start, capSetuid) {
		severity, how = High, "although no_new_privs rules setuid programs out and its first process never held CAP_SETUID"
	}
	who := b.who(p)
	if r.tid != 0 {
		who = fmt.Sprintf("thread %d of %s", r.tid, who)
	}
	what := "runs as root"
	if r.which != "" {
		what = "keeps root as its " + r.which + " uid, and can be root again at any time,"
	}
	f := Finding{
		Kind: BecameRoot, Severity: severity, TID: r.tid, Capabilities: r.holds,
		Message: fmt.Sprintf("%s %s in a container declared to run as uid %d, %s", who, what, oci.UID, how),
		Remedy:  "Look at what it is (capdrift explain). To rule setuid programs out, " + b.lessPrivilege(oci) + ", and remove setuid programs from the image.",
	}
	if !excessOf(oci, p.Caps).Empty() {
		f.Incident = b.incident()
	}
	b.addProcess(p, b.edited(f, b.bundle().UID == 0))
}

// lessPrivilege advises what the spec does not have yet.
func (b *book) lessPrivilege(oci OCI) string {
	var advice []string
	if !oci.NoNewPrivileges {
		advice = append(advice, "set allowPrivilegeEscalation: false")
	}
	if !oci.Bounding.Empty() {
		advice = append(advice, "drop the capabilities that are not needed (drop: [ALL], then add)")
	}
	if len(advice) == 0 {
		return "deny it by seccomp: the pod spec has no more to take away"
	}
	return strings.Join(advice, " and ")
}

// droppedByAll tells of capabilities that the container's first process was started with
// and no thread of it holds any more.
func (b *book) droppedByAll() {
	p := b.container.init()
	if p == nil || p.Observation != Observed || p.UserNamespace.Relation != RelationSame || p.ThreadCount > 1 && !p.ThreadsRead {
		return
	}
	held := p.Caps.Permitted
	for _, t := range p.Threads {
		held |= t.Caps.Permitted
	}
	start := b.container.Declared.OCI.upTo(b.node.CapLastCap).AtStart()
	if dropped := start.Permitted.Minus(held); !dropped.Empty() {
		b.addProcess(p, b.edited(Finding{
			Kind: Dropped, Severity: Info, Set: "permitted", Capabilities: dropped,
			Message: fmt.Sprintf("%s gave up %s, which it was started with", b.who(p), list(dropped)),
			Remedy:  "Good practice. The pod spec could drop them from the start.",
		}, dropped.Within(start.Permitted&^b.bundle().AtStart().Permitted)))
	}
}

// capSetuid is CAP_SETUID, capabilities(7).
const capSetuid capdecode.Cap = 7

func (b *book) everHeld(start capdecode.Sets, c capdecode.Cap) bool {
	if start.Permitted.Has(c) {
		return true
	}
	first := b.container.init()
	return first == nil || first.Caps.Permitted.Has(c)
}

// lacksNoNewPrivileges reports whether the leader or a thread of a process runs without
// a flag that the kernel never clears.
func lacksNoNewPrivileges(p *Process) bool {
	lacks := func(set *bool) bool { return set != nil && !*set }
	return lacks(p.NoNewPrivileges) || slices.ContainsFunc(p.Threads, func(t Thread) bool { return lacks(t.NoNewPrivileges) })
}

// noNewPrivileges looks for processes and threads without the flag.
func (b *book) noNewPrivileges(oci OCI, p *Process) {
	if !oci.NoNewPrivileges || !lacksNoNewPrivileges(p) {
		return
	}
	tid, which := 0, ""
	if p.NoNewPrivileges == nil || *p.NoNewPrivileges {
		at := slices.IndexFunc(p.Threads, func(t Thread) bool { return t.NoNewPrivileges != nil && !*t.NoNewPrivileges })
		tid = p.Threads[at].TID
		which = fmt.Sprintf("thread %d of ", tid)
	}
	b.addProcess(p, b.edited(Finding{
		Kind: NNPMissing, Severity: High, TID: tid, Incident: b.incident(),
		Message: fmt.Sprintf("%s%s runs without no_new_privs, which the OCI spec sets and the kernel never clears: it was not started from that spec", which, b.who(p)),
		Remedy:  outsideHelp,
	}, !b.bundle().NoNewPrivileges))
}

// joined tells of a process of the node that joined the pid namespace of one of the
// containers, of which it is not known.
func (b *book) joined() {
	const most = 5
	names := b.container.MayHaveJoined
	candidates := strings.Join(names[:min(len(names), most)], ", ")
	if len(names) > most {
		candidates += fmt.Sprintf(" and %d more", len(names)-most)
	}
	p := &b.container.Processes[0]
	id := findingID(b.node.BootID, string(UnknownOrigin), b.container.ID)
	b.addProcess(p, Finding{
		ID: id, Incident: id, Kind: UnknownOrigin, Severity: Critical, Capabilities: p.Caps.Permitted,
		Message: fmt.Sprintf("process %d %s in %s joined the pid namespace of a container from the node, with %s; which one may not be read, it is one of: %s",
			p.PID, strconv.QuoteToASCII(clip(p.Name)), strconv.QuoteToASCII(clip(b.container.ID)), list(p.Caps.Permitted), candidates),
		Remedy: keepEvidence + "Then find who started it (nsenter, or a debugger on the node). With CAP_SYS_PTRACE (the chart's agent.deepInspection) the container is named: compare /proc/PID/ns/pid.",
	})
}

func (b *book) unmanaged() {
	var held capdecode.Set
	var first Process // the oldest, which stays the same while others come and go
	where := " in a user namespace below the node's, where they count"
	for i, p := range b.container.Processes {
		held |= p.Caps.Permitted
		if !p.Caps.Permitted.Empty() && p.UserNamespace.Relation != RelationChild {
			where = ""
		}
		if i == 0 || p.StartTime < first.StartTime {
			first = p
		}
	}
	if held.Empty() {
		where = ""
	}
	b.add(Finding{
		Kind: UnmanagedContainer, Severity: Medium, Layer: LayerKernel, PID: first.PID, StartTime: first.StartTime,
		Processes: len(b.container.Processes), Capabilities: held,
		Message: fmt.Sprintf("%s runs on this node and no pod of the CRI explains it (%s); its processes hold %s%s", b.container.Label(), b.container.Origin, list(held), where),
		Remedy:  "Find who started it (docker, nerdctl, ctr, runc, podman on the host, or a container inside another). Workloads belong in pods.",
	})
}

// Label names a container for people, in a text of bounded length; names are hostile, and raw.
func (c *Container) Label() string {
	name := c.Name
	if name == "" {
		name = c.ID
		if len(name) == 64 {
			name = name[:12] // as people and their tools write an id
		}
	}
	name = clip(name)
	if c.Pod != nil {
		return fmt.Sprintf("%s/%s/%s", clip(c.Pod.Namespace), clip(c.Pod.Name), name)
	}
	return "container " + name
}

// list writes a set for a sentence.
func list(s capdecode.Set) string {
	switch n := s.Len(); {
	case n == 0:
		return "no capability"
	case n > 8:
		return fmt.Sprintf("%d capabilities (%s)", n, s.Hex())
	}
	return strings.Join(s.Names(), ", ")
}

// clip bounds a hostile name.
func clip(text string) string {
	const most = 128
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
