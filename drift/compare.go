package drift

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

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

// upTo cuts the sets to what the kernel knows: a spec may name capabilities
// that are newer than the kernel, and their absence is no drift.
func (o OCI) upTo(last capdecode.Cap) OCI {
	known := capdecode.Full(last)
	o.Bounding &= known
	o.Permitted &= known
	o.Effective &= known
	o.Inheritable &= known
	o.Ambient &= known
	return o
}

// stageLimit bounds for how long a process is taken at its word when it looks
// like a runtime's own stage. A real one lives milliseconds; on an overloaded
// machine it may be seconds. Its name is the process's own to choose, so a
// disguise must not last.
const stageLimit = 10 * time.Second

// stageNames are the names of runc's and crun's processes between joining the
// container's cgroup and executing its program (runc nsenter/nsexec.c).
var stageNames = []string{"runc:[0:PARENT]", "runc:[1:CHILD]", "runc:[2:INIT]", "runc", "crun", "youki:[1:INTER]", "youki:[2:INIT]"}

// Settle completes what the processes of a container tell only together: where
// each one's user namespace lies, its uid in the container, and whether it is
// still a stage of the runtime. It writes to c.Processes.
func Settle(node Node, c *Container) {
	members := make(map[int]bool, len(c.Processes))
	for i := range c.Processes {
		members[c.Processes[i].PID] = true
	}
	base := home(node, c.Declared.OCI, c.init())
	for i := range c.Processes {
		p := &c.Processes[i]
		p.UserNamespace.Relation = relate(node.UserNamespace, base, p.UserNamespace)
		p.ContainerUID = nil
		if uid, ok := inside(base.UIDMap, p.UID); ok {
			p.ContainerUID = &uid
		}
		p.Observation = Observed
		// A stage's parent is the runtime, outside; what runs inside has its
		// parent inside.
		if slices.Contains(stageNames, p.Name) && !members[p.ParentPID] && p.Age < stageLimit {
			p.Observation = Starting
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
		b.unmanaged()
	}
	b.overdue()
	if c.Declared.OCI == nil {
		return b.findings
	}
	b.processes(func(int) bool { return true })
	return b.findings
}

// CompareProcesses is [Compare] for some of a settled container's processes: those
// that are new, among all that are known.
func CompareProcesses(node Node, c Container, pids []int) []Finding {
	b := book{node: node, container: c}
	if c.Declared.OCI != nil && c.Observation != UnsupportedRuntime {
		b.processes(func(pid int) bool { return slices.Contains(pids, pid) })
	}
	return b.findings
}

func (b *book) processes(compared func(pid int) bool) {
	oci := b.container.Declared.OCI.upTo(b.node.CapLastCap)
	for i := range b.container.Processes {
		if p := &b.container.Processes[i]; p.Observation != Starting && compared(p.PID) {
			b.process(oci, p)
		}
	}
}

// Confirm keeps the findings that both looks agree on: the same process, the
// same kind and the same capabilities. Findings of severity [Info] need no
// second look and are taken from the second.
func Confirm(first, second []Finding) []Finding {
	seen := make(map[string]bool, len(first))
	for _, f := range first {
		seen[f.ID] = true
	}
	var kept []Finding
	for _, f := range second {
		if f.Severity == Info || seen[f.ID] {
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
	f.ContainerID, f.Container, f.Pod = b.container.ID, b.container.Name, b.container.Pod
	if f.ID == "" {
		f.ID = findingID(b.container.ID, string(f.Kind))
	}
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
	f.Remedy = "Compare config.json in the container's bundle with the spec that the runtime shows (crictl inspect). Correct or remove what edits it (BinaryName and hooks in the runtime's configuration), then create the pod anew."
	return f
}

// bundle is what the OCI runtime read, empty when that is not known.
func (b *book) bundle() OCI {
	if b.container.Declared.Bundle == nil {
		return OCI{}
	}
	return b.container.Declared.Bundle.upTo(b.node.CapLastCap)
}

// addProcess adds a finding about one process. Its id holds the process's whole
// identity and the capabilities, so two looks give the same id only to the same
// thing.
func (b *book) addProcess(p *Process, f Finding) {
	f.From, f.Layer, f.PID = LayerOCI, LayerKernel, p.PID
	f.ID = findingID(b.container.ID, string(f.Kind), b.node.BootID, strconv.Itoa(p.PID),
		strconv.FormatUint(p.StartTime, 10), strconv.Itoa(f.TID), f.Set, f.Capabilities.Hex())
	b.add(f)
}

func findingID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// who names a process in a message; its name is hostile and so quoted.
func (b *book) who(p *Process) string {
	return fmt.Sprintf("process %d %s of %s", p.PID, strconv.QuoteToASCII(clip(p.Name)), b.container.Label())
}

const outsideHelp = "Nothing inside the container can do this by itself. Look for a process started from the host (runc or crun exec --cap, docker exec --privileged, nsenter), a wrapper runtime or hook that rewrites config.json, or a kernel exploit. Keep the evidence (capdrift scan --pid PID -o json), then delete the pod."

func (b *book) process(oci OCI, p *Process) {
	switch p.UserNamespace.Relation {
	case RelationSame:
		b.sets(oci, p)
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
				Kind: UsernsEscape, Severity: Critical, Capabilities: p.Caps.Effective,
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

// sets compares the bitmaps of a process, and of its threads, with the ceilings.
func (b *book) sets(oci OCI, p *Process) {
	ceiling, bundle := oci.Ceiling(), b.bundle()
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
		if excess := check.held.Minus(check.allowed); !excess.Empty() {
			b.addProcess(p, b.edited(Finding{
				Kind: check.kind, Severity: check.severity, Set: check.set, Capabilities: excess,
				Message: fmt.Sprintf("%s holds %s in its %s set; the OCI spec allows %s", b.who(p), list(excess), check.set, list(check.allowed)),
				Remedy:  outsideHelp,
			}, excess.Within(check.edited)))
		}
	}
	for _, thread := range p.Threads {
		above := thread.Caps.Bounding.Minus(oci.Bounding) | (thread.Caps.Permitted | thread.Caps.Inheritable).Minus(ceiling)
		leader := p.Caps.Bounding.Minus(oci.Bounding) | (p.Caps.Permitted | p.Caps.Inheritable).Minus(ceiling)
		if excess := above.Minus(leader); !excess.Empty() {
			b.addProcess(p, b.edited(Finding{
				Kind: ThreadExcess, Severity: Critical, TID: thread.TID, Capabilities: excess,
				Message: fmt.Sprintf("thread %d of %s holds %s, which its leader does not show; the OCI spec allows %s", thread.TID, b.who(p), list(excess), list(ceiling)),
				Remedy:  outsideHelp,
			}, excess.Within(bundle.Ceiling())))
		}
	}
}

// privileges compares no_new_privs, the uid and what was gained or given up
// within the ceiling.
func (b *book) privileges(oci OCI, p *Process) {
	b.noNewPrivileges(oci, p)
	start := oci.AtStart()
	becameRoot := oci.UID != 0 && p.ContainerUID != nil && *p.ContainerUID == 0
	gained := p.Caps.Permitted & oci.Ceiling() &^ start.Permitted
	if becameRoot {
		severity, how := Medium, "by a setuid program, by setuid(2) with CAP_SETUID, or put there as root from the node"
		if oci.NoNewPrivileges && !b.everHeld(start, capSetuid) {
			severity, how = High, "although no_new_privs rules setuid programs out and its first process never held CAP_SETUID"
		}
		b.addProcess(p, b.edited(Finding{
			Kind: BecameRoot, Severity: severity, Capabilities: p.Caps.Permitted,
			Message: fmt.Sprintf("%s runs as root in a container declared to run as uid %d, %s", b.who(p), oci.UID, how),
			Remedy:  "Set allowPrivilegeEscalation: false and drop ALL; remove setuid programs from the image.",
		}, b.bundle().UID == 0))
	}
	if !gained.Empty() {
		means := "by file capabilities of its program"
		if becameRoot {
			means = "by becoming root"
		}
		b.addProcess(p, Finding{
			Kind: GainedWithinCeiling, Severity: Info, Set: "permitted", Capabilities: gained,
			Message: fmt.Sprintf("%s gained %s after its start, %s; the OCI spec allows it", b.who(p), list(gained), means),
			Remedy:  "To rule it out, set allowPrivilegeEscalation: false and drop what is not needed.",
		})
	}
	if dropped := start.Permitted.Minus(p.Caps.Permitted); p.PID == b.container.InitPID && !dropped.Empty() {
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

// noNewPrivileges looks for processes and threads without a flag that the kernel
// never clears.
func (b *book) noNewPrivileges(oci OCI, p *Process) {
	if !oci.NoNewPrivileges {
		return
	}
	if p.NoNewPrivileges != nil && !*p.NoNewPrivileges {
		b.withoutNoNewPrivileges(p, 0)
	}
	for _, thread := range p.Threads {
		if thread.NoNewPrivileges != nil && !*thread.NoNewPrivileges && (p.NoNewPrivileges == nil || *p.NoNewPrivileges) {
			b.withoutNoNewPrivileges(p, thread.TID)
		}
	}
}

func (b *book) withoutNoNewPrivileges(p *Process, tid int) {
	which := ""
	if tid != 0 {
		which = fmt.Sprintf("thread %d of ", tid)
	}
	b.addProcess(p, b.edited(Finding{
		Kind: NNPMissing, Severity: High, TID: tid,
		Message: fmt.Sprintf("%s%s runs without no_new_privs, which the OCI spec sets and the kernel never clears: it was not started from that spec", which, b.who(p)),
		Remedy:  outsideHelp,
	}, !b.bundle().NoNewPrivileges))
}

func (b *book) unmanaged() {
	var held capdecode.Set
	pid := 0
	for i, p := range b.container.Processes {
		held |= p.Caps.Permitted
		if i == 0 || p.PID < pid {
			pid = p.PID
		}
	}
	b.add(Finding{
		Kind: UnmanagedContainer, Severity: Medium, Layer: LayerKernel, PID: pid, Capabilities: held,
		Message: fmt.Sprintf("%s runs on this node and no pod of the CRI explains it (%s); its processes hold %s", b.container.Label(), b.container.Origin, list(held)),
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
