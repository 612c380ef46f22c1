package drift

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/capdecode"
)

// Hops holds what one container was declared to get at each hop against what the
// next hop made of it: pod spec → CRI → OCI. Where the runtime hides the CRI
// config, the pod spec is held against the OCI spec. What it needs of the
// container's processes is only whether any holds what an add allows.
func Hops(node Node, e Expectations, c Container) []Finding {
	b := book{node: node, container: c}
	if c.Unexplained != "" {
		b.unexplained()
	}
	if c.Declared.Pod != nil && c.Declared.CRI != nil {
		b.criMismatch(*c.Declared.Pod, *c.Declared.CRI)
	}
	if c.Undeclared {
		b.undeclared(e)
	}
	o, ok := e.order(&c, node.CapLastCap)
	if !ok || e.runtime == "" {
		return b.findings
	}
	b.judge(e.runtime, e.of(c.RuntimeHandler), o)
	return b.findings
}

// judge compares the OCI spec with the orders, and the orders with what a person
// means by them.
func (b *book) judge(runtime string, h handler, o order) {
	b.ociMismatch(runtime, h, o)
	in := intentOf(o.Add, o.Drop, h.LastCap)
	b.unknownNames(in, o)
	b.dropIgnored(runtime, in, o)
	b.addIgnored(runtime, in, o, h.Settings)
	b.ineffective(in, o)
}

func (b *book) unexplained() {
	c := &b.container
	held := capdecode.Set(0)
	for _, p := range c.Processes {
		held |= p.Caps.Permitted
	}
	b.add(Finding{
		Kind: UnmanagedContainer, Severity: Medium, From: LayerPod, Layer: LayerCRI, Cause: CauseDirectClient, Capabilities: held,
		Message: fmt.Sprintf("%s was not made by the kubelet: %s. Somebody made it at the runtime's socket; its processes hold %s", c.Label(), c.Unexplained, list(held)),
		Remedy:  "Find who may open the runtime's socket (crictl, a pod that mounts it). A pod that was deleted by force may look like this until its containers have ended.",
	})
}

// undeclared judges a container of which no source tells what was declared, by what its
// pod spec makes of it, or by the default of its runtime handler: a container that its
// author made unreadable must not hide what runs in it.
func (b *book) undeclared(e Expectations) {
	c := &b.container
	ceiling, by := e.ordinary(c)
	above := capdecode.Set(0)
	pid, start := 0, uint64(0)
	for i := range c.Processes {
		p := &c.Processes[i]
		if p.Observation != Observed || p.UserNamespace.Relation != RelationSame {
			continue
		}
		if more := excessOf(OCI{Sets: level(ceiling)}, p.Caps); !more.Within(above) {
			above |= more
			pid, start = p.PID, p.StartTime
		}
	}
	f := Finding{
		Kind: Undeclared, Severity: High, Layer: LayerKernel, PID: pid, StartTime: start, Capabilities: above,
		Message: fmt.Sprintf("%s: what was declared for it could not be read from the runtime or from its bundle (%s)", c.Label(), clip(c.Reason)),
		Remedy:  "Look at why: a container whose arguments, environment or annotations are very large cannot be told by its runtime. Make its pod spec smaller, or judge it by hand: crictl inspect, and config.json in its bundle.",
	}
	if above.Empty() {
		f.Message += "; it holds no more than " + by
	} else {
		f.Message += fmt.Sprintf("; process %d holds %s, which is more than %s", pid, list(above), by)
		f.Remedy = keepEvidence + f.Remedy
	}
	b.add(f)
}

func (b *book) criMismatch(pod PodSecurity, got CRI) {
	want := Kubelet(pod)
	fields := got.differences(want)
	if len(fields) == 0 {
		return
	}
	wanted, given := intentOf(want.Add, want.Drop, b.node.CapLastCap), intentOf(got.Add, got.Drop, b.node.CapLastCap)
	f := Finding{
		Kind: CRIMismatch, Severity: High, From: LayerPod, Layer: LayerCRI, Cause: CauseDirectClient,
		Capabilities: (wanted.add ^ given.add) | (wanted.drop ^ given.drop),
		Message: fmt.Sprintf("%s: what the runtime was told is not what the kubelet makes of the pod spec (%s): %s differ",
			b.container.Label(), clip(pod.Source), strings.Join(fields, ", ")),
		Remedy: keepEvidence + "The kubelet copies these fields as they are: look for another client of the runtime's socket, or a proxy between the two.",
	}
	if b.container.ByName {
		f.Severity, f.Cause = Medium, CauseFile
		f.Remedy = "The manifest names no uid, so it may be another version than what runs, or one that an admission webhook changed: compare it with kubectl get pod -o yaml. If they are the same, look for another client of the runtime's socket."
	}
	f.ID = findingID(b.container.ID, string(CRIMismatch), strings.Join(fields, ","))
	b.add(f)
}

// hop writes from where to where the finding's hop goes.
func (o order) hop(f Finding) Finding {
	f.From, f.Layer = o.from, LayerOCI
	return f
}

func (b *book) ociMismatch(runtime string, h handler, o order) {
	s := h.Settings
	label := b.container.Label()
	want, err := PredictOCI(runtime, o.CRI, s)
	if err != nil {
		b.add(o.hop(Finding{
			Kind: OCIMismatch, Severity: Info,
			Message: fmt.Sprintf("%s runs, although by its orders %s", label, err),
			Remedy:  "The runtime may be newer than this capdrift. Its other declarations were not compared.",
		}))
		return
	}
	want, got := want.upTo(s.LastCap), o.got
	var parts []string
	severity, differ := Low, capdecode.Set(0)
	for _, set := range []struct {
		name      string
		want, got capdecode.Set
	}{
		{"bounding", want.Bounding, got.Bounding}, {"permitted", want.Permitted, got.Permitted}, {"effective", want.Effective, got.Effective},
		{"inheritable", want.Inheritable, got.Inheritable}, {"ambient", want.Ambient, got.Ambient},
	} {
		more, less := set.got&^set.want, set.want&^set.got
		if !more.Empty() {
			parts, severity = append(parts, fmt.Sprintf("its %s set has %s too much", set.name, list(more))), High
		}
		if !less.Empty() {
			parts = append(parts, fmt.Sprintf("its %s set lacks %s", set.name, list(less)))
		}
		differ |= more | less
	}
	var cause Cause
	why := ""
	if len(parts) > 0 {
		// Under settings that were the runtime's before it may be just right.
		at := slices.IndexFunc(h.earlier, func(was earlier) bool {
			other, err := PredictOCI(runtime, o.CRI, was.Settings)
			return err == nil && other.upTo(s.LastCap).Sets == got.Sets
		})
		if at >= 0 {
			cause, why = CauseEarlierConfig, ": it was made under another configuration of the runtime"
			severity = cmp.Or(h.earlier[at].severity, severity)
		}
	}
	if want.NoNewPrivileges != got.NoNewPrivileges {
		parts, severity = append(parts, fmt.Sprintf("noNewPrivileges is %t", got.NoNewPrivileges)), max(severity, Low)
		if want.NoNewPrivileges {
			severity = High
		}
	}
	if o.RunAsUser != nil && want.UID != got.UID {
		parts, severity = append(parts, fmt.Sprintf("its user is %d and not %d", got.UID, want.UID)), High
	}
	if want.UserNamespace && !got.UserNamespace {
		parts, severity = append(parts, "it has no user namespace of its own"), High
	}
	if len(parts) == 0 {
		return
	}
	remedy := "Look for what changes specs between the two: " + whatIsSet + " at the time it was made, a patched runtime, for the user namespace an NRI plugin. Create the pod anew to see whether it lasts."
	if severity == Info {
		remedy = "Create the pod anew to have it made under " + whatIsSet + " of now."
	}
	f := o.hop(Finding{
		Kind: OCIMismatch, Severity: severity, Cause: cause, Capabilities: differ,
		Message: fmt.Sprintf("%s: the OCI spec is not what %s makes of its %s: %s%s", label, runtime, o.orders(), strings.Join(parts, "; "), why),
		Remedy:  remedy,
	})
	f.ID = findingID(b.container.ID, string(OCIMismatch), strings.Join(parts, ";"))
	b.add(f)
}

// orders names what the runtime was told, for a sentence.
func (o order) orders() string {
	if o.from == LayerPod {
		return "pod spec (the runtime hides its CRI config)"
	}
	return "CRI config"
}

func (b *book) unknownNames(in intent, o order) {
	if len(in.unknown) == 0 {
		return
	}
	var quoted []string
	var meant []string
	for _, name := range in.unknown[:min(len(in.unknown), 8)] {
		quoted = append(quoted, fmt.Sprintf("%q", clip(name)))
		for _, name := range likely(name).names() {
			if len(meant) < 8 && !slices.Contains(meant, name) {
				meant = append(meant, name)
			}
		}
	}
	hint := ""
	if len(meant) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(meant, ", "))
	}
	yaml := ""
	if len(plain(o.Add))+len(plain(o.Drop)) > 0 {
		yaml = securityContext(o.Add, o.Drop)
	}
	f := o.hop(Finding{
		Kind: UnknownName, Severity: Medium, Cause: CauseSpelling,
		Message: fmt.Sprintf("%s: %s in its capability lists %s nothing to any kernel%s", b.container.Label(), strings.Join(quoted, ", "), plural(len(quoted), "means", "mean"), hint),
		Remedy:  "Write names as capabilities(7) has them, without CAP_; remove what is none.",
		Paste:   yaml,
	})
	if kept := in.misspelt & everything(o.got.Sets); !kept.Empty() {
		f.Severity, f.Capabilities = High, kept
		f.Message += ", and it keeps " + list(kept) + ", which is likely meant to be dropped"
	}
	f.ID = findingID(append([]string{b.container.ID, string(UnknownName)}, in.unknown...)...)
	b.add(f)
}

func plural(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

func (b *book) dropIgnored(runtime string, in intent, o order) {
	kept := in.drop & everything(o.got.Sets) &^ in.both
	if o.Privileged {
		kept = in.drop & everything(o.got.Sets)
		if in.allDrop {
			kept = everything(o.got.Sets)
		}
	}
	label := b.container.Label()
	if !kept.Empty() {
		f := o.hop(Finding{
			Kind: DropIgnored, Severity: High, Capabilities: kept,
			Message: fmt.Sprintf("%s keeps %s, which %s tells it to drop", label, list(kept), b.declarer(o)),
			Remedy:  "Write it so, and create the pod anew:",
			Paste:   securityContext(o.Add, o.Drop),
		})
		prefixed := spelled(o.Drop, in.drop&kept)
		switch {
		case in.allAdded && in.allDrop:
			f.Cause, f.Paste = CauseBoth, paste(nil, []string{all})
			f.Message += ", and to add: here adding ALL wins"
		case o.Privileged:
			f.Severity, f.Cause = Low, CausePrivileged
			f.Message += ": privileged gives everything the runtime has, and the lists are not looked at"
			f.Remedy = "Remove privileged: true, or the lists, which only mislead."
			f.Paste = ""
		case runtime == Containerd && (prefixed || prefixedAll(o.Drop)):
			f.Cause = CausePrefix
			f.Message += ": containerd puts CAP_ before every name, so one that already has it means nothing to it (CRI-O and Docker take both spellings)"
		case padded(o.Drop, in.drop&kept):
			f.Cause = CauseSpelling
			f.Message += ": a name with a space around it means nothing to " + runtime
		}
		b.add(f)
	}
	if both := in.both & everything(o.got.Sets); !both.Empty() && !o.Privileged {
		f := o.hop(Finding{
			Kind: DropIgnored, Severity: Low, Cause: CauseBoth, Capabilities: both,
			Message: fmt.Sprintf("%s keeps %s, which is both added and dropped: here the add wins, on other runtimes the drop", label, list(both)),
			Remedy:  "Name it in one of the two lists:",
			Paste:   paste(plain(o.Add), without(plain(o.Drop), both)),
		})
		f.ID = findingID(b.container.ID, string(DropIgnored), string(CauseBoth))
		b.add(f)
	}
}

func (b *book) addIgnored(runtime string, in intent, o order, s Settings) {
	if o.Privileged {
		return
	}
	label := b.container.Label()
	if in.allAdded && in.allDrop && o.got.Bounding.Within(in.named) {
		f := o.hop(Finding{
			Kind: AddIgnored, Severity: Low, Cause: CauseBoth, Capabilities: s.Held &^ o.got.Bounding,
			Message: label + " is given ALL and denied ALL: here the drop wins, with Docker the add",
			Remedy:  "Name ALL in one of the two lists:",
			Paste:   paste(nil, []string{all}),
		})
		f.ID = findingID(b.container.ID, string(AddIgnored), string(CauseBoth), all)
		b.add(f)
	}
	lost := in.add &^ o.got.Bounding &^ in.both
	newer := lost &^ capdecode.Full(s.LastCap)
	if in.allAdded { // what the runtime does not hold it cannot give
		lost &= s.Held | in.named
	}
	lost &^= newer
	if !newer.Empty() {
		f := o.hop(Finding{
			Kind: AddIgnored, Severity: Info, Cause: CauseKernel, Capabilities: newer,
			Message: fmt.Sprintf("%s is declared to get %s, which this kernel does not know", label, list(newer)),
			Remedy:  "Use a newer kernel, or the older capability that covers the need (CAP_SYS_ADMIN for CAP_BPF, CAP_PERFMON and CAP_CHECKPOINT_RESTORE).",
		})
		f.Layer, f.From = LayerKernel, LayerOCI
		f.ID = findingID(b.container.ID, string(AddIgnored), string(CauseKernel))
		b.add(f)
	}
	if !lost.Empty() {
		f := o.hop(Finding{
			Kind: AddIgnored, Severity: Medium, Capabilities: lost,
			Message: fmt.Sprintf("%s does not get %s, which %s adds", label, list(lost), b.declarer(o)),
			Remedy:  "Write it so, and create the pod anew; or remove the add if it is not missed:",
			Paste:   securityContext(o.Add, o.Drop),
		})
		if runtime == Containerd && (spelled(o.Add, lost) || prefixedAll(o.Add)) {
			f.Cause = CausePrefix
			f.Message += ": containerd puts CAP_ before every name, so one that already has it becomes a name that no kernel knows (CRI-O and Docker take both spellings)"
		} else if padded(o.Add, lost) {
			f.Cause = CauseSpelling
			f.Message += ": a name with a space around it means nothing to " + runtime
		}
		b.add(f)
	}
	if both := in.both &^ o.got.Bounding; !both.Empty() {
		f := o.hop(Finding{
			Kind: AddIgnored, Severity: Low, Cause: CauseBoth, Capabilities: both,
			Message: fmt.Sprintf("%s does not get %s, which is both added and dropped: here the drop wins, with Docker the add", label, list(both)),
			Remedy:  "Name it in one of the two lists:",
			Paste:   paste(without(plain(o.Add), both), plain(o.Drop)),
		})
		f.ID = findingID(b.container.ID, string(AddIgnored), string(CauseBoth))
		b.add(f)
	}
}

// declaredBy names the list's owner for a sentence.
func (b *book) declarer(o order) string {
	if o.from == LayerPod || b.container.Declared.Pod != nil {
		return "its pod spec"
	}
	return "its CRI config"
}

// spelled tells whether one of the capabilities is written with its prefix.
func spelled(names []string, of capdecode.Set) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		c, ok := capdecode.ParseName(strings.TrimSpace(name))
		return ok && of.Has(c) && hasPrefix(name)
	})
}

// padded tells whether one of the capabilities is written with space around it.
func padded(names []string, of capdecode.Set) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		c, ok := capdecode.ParseName(strings.TrimSpace(name))
		return (ok && of.Has(c) || meansAll(name)) && strings.TrimSpace(name) != name
	})
}

func prefixedAll(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return meansAll(name) && hasPrefix(name) })
}

func hasPrefix(name string) bool {
	return strings.HasPrefix(strings.ToUpper(strings.TrimSpace(name)), "CAP_")
}

// without leaves out the names of the set's capabilities.
func without(names []string, set capdecode.Set) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		c, ok := capdecode.ParseName(name)
		return ok && set.Has(c)
	})
}

// ineffective tells of an add that the spec allows and that nobody can use: a
// user other than root keeps only ambient capabilities over execve(2), and
// Kubernetes has none to give (KEP-2763).
func (b *book) ineffective(in intent, o order) {
	if o.got.UID == 0 {
		return
	}
	wanted := in.add
	if o.Privileged {
		wanted = o.got.Bounding
	}
	idle := wanted & o.got.Bounding &^ o.got.AtStart().Permitted
	for _, p := range b.container.Processes {
		// In a namespace below everybody holds everything, and a stage of the runtime
		// holds what the runtime does.
		if p.UserNamespace.Relation == RelationChild || p.Observation == Starting || p.Observation == Helper {
			continue
		}
		idle &^= p.Caps.Permitted // file capabilities make it work
		for _, t := range p.Threads {
			idle &^= t.Caps.Permitted
		}
	}
	if idle.Empty() {
		return
	}
	f := Finding{
		Kind: IneffectiveAdd, Severity: Info, From: LayerOCI, Layer: LayerKernel, Cause: CauseNonRoot, Capabilities: idle,
	}
	what := "which is added for it"
	if o.Privileged {
		what = "although it is privileged"
	}
	who := fmt.Sprintf("user %d", o.got.UID)
	if o.got.UID == anyNonRoot {
		who = "a user other than root"
	}
	if pod := b.container.Declared.Pod; pod != nil && pod.RunAsUser == nil {
		f.Cause, who = CauseImageUser, who+", whom the image names,"
	}
	f.Message = fmt.Sprintf("%s runs as %s and holds none of %s, %s: only root, or a program with file capabilities, gets it at its start", b.container.Label(), who, list(idle), what)
	f.Remedy, f.Paste = b.effective(idle, o)
	b.add(f)
}

// effective returns what makes an idle add work.
func (b *book) effective(idle capdecode.Set, o order) (remedy, yaml string) {
	const netBindService = 10 // CAP_NET_BIND_SERVICE, capabilities(7)
	asRoot := "securityContext:\n  runAsUser: 0\n"
	if pod := b.container.Declared.Pod; pod != nil && pod.RunAsNonRoot {
		asRoot += "  runAsNonRoot: false\n" // else the kubelet refuses it
	}
	switch {
	case o.Privileged:
		return "Remove privileged: true if it is not missed; else run as root:", asRoot
	case idle == capdecode.Of(netBindService):
		return "To bind ports below 1024 without any capability, say so in the pod's securityContext (a safe sysctl since Kubernetes 1.22):",
			"securityContext: # the pod's\n  sysctls:\n    - name: net.ipv4.ip_unprivileged_port_start\n      value: \"0\"\n"
	}
	return fmt.Sprintf("Give the program in the image file capabilities (setcap %s+ep FILE) and leave allowPrivilegeEscalation unset; or run as root with nothing else; or remove the add if it is not missed:", idle),
		asRoot + "  capabilities:\n    add: [" + strings.Join(shorts(idle), ", ") + "]\n    drop: [ALL]\n"
}
