package drift_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// The bitmaps of the measured tables: containerd's 14 defaults and the whole of
// a kernel that ends at CAP_CHECKPOINT_RESTORE.
const (
	defaults capdecode.Set = 0xa80425fb
	all      capdecode.Set = 0x1ffffffffff
	chown    capdecode.Set = 1 << 0
	setuid   capdecode.Set = 1 << 7
	bind     capdecode.Set = 1 << 10
	netRaw   capdecode.Set = 1 << 13
	sysAdmin capdecode.Set = 1 << 21
)

var whole = []drift.IDRange{{Inside: 0, Outside: 0, Length: 1<<32 - 1}}

func node() drift.Node {
	return drift.Node{BootID: "boot", CapLastCap: 40, UserNamespace: drift.UserNamespace{
		Inode: drift.InitialUserNamespace, UIDMap: whole, GIDMap: whole, ProjectIDMap: whole,
	}}
}

// spec is an OCI spec as containerd writes it: bounding, effective and permitted
// alike.
func spec(set capdecode.Set) drift.OCI {
	return drift.OCI{Sets: capdecode.Sets{Bounding: set, Effective: set, Permitted: set}}
}

func with(o drift.OCI, change func(*drift.OCI)) drift.OCI {
	change(&o)
	return o
}

// process is one in the node's user namespace that holds the same permitted and
// effective set.
func process(pid int, uid uint32, permitted, bounding capdecode.Set) drift.Process {
	no := false
	return drift.Process{
		PID: pid, StartTime: 1000 + uint64(pid), ParentPID: 1, Name: "app", State: "S", UID: uid, NoNewPrivileges: &no, Age: time.Hour,
		Caps:          capdecode.Sets{Permitted: permitted, Effective: permitted, Bounding: bounding},
		UserNamespace: node().UserNamespace, ThreadCount: 1,
	}
}

func tweak(p drift.Process, change func(*drift.Process)) drift.Process {
	change(&p)
	return p
}

func nnp(p *drift.Process) { yes := true; p.NoNewPrivileges = &yes }

// in puts the process into a user namespace of its own.
func in(inode uint64, ids ...drift.IDRange) func(*drift.Process) {
	return func(p *drift.Process) {
		p.UserNamespace = drift.UserNamespace{Inode: inode, UIDMap: ids, GIDMap: ids, ProjectIDMap: []drift.IDRange{}}
	}
}

func container(oci drift.OCI, processes ...drift.Process) drift.Container {
	managed := true
	return drift.Container{
		ID: "c1", Name: "app", Pod: &drift.Pod{Namespace: "shop", Name: "web"}, Managed: &managed, Observation: drift.Observed,
		Declared: drift.Declared{OCI: &oci}, Processes: processes, InitPID: 10,
	}
}

// told compares a container and writes each finding as "severity kind pid caps".
func told(c drift.Container) []string {
	drift.Settle(node(), nil, &c)
	list := []string{}
	for _, f := range drift.Compare(node(), c) {
		who := fmt.Sprint(f.PID)
		if f.TID != 0 {
			who += fmt.Sprintf("/%d", f.TID)
		}
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", f.Severity, f.Kind, who, strings.Join(f.Capabilities.Names(), " "))))
	}
	slices.Sort(list)
	return list
}

func TestCompare(t *testing.T) {
	restricted := with(spec(bind), func(o *drift.OCI) { o.UID, o.NoNewPrivileges = 1000, true })
	nonroot := with(spec(defaults), func(o *drift.OCI) { o.UID = 1000 })
	podUserns := drift.IDRange{Inside: 0, Outside: 100000, Length: 65536}
	userns := with(spec(defaults), func(o *drift.OCI) { o.UserNamespace, o.UIDMap = true, []drift.IDRange{podUserns} })
	inPod := in(4026532001, podUserns)
	blind := func(p *drift.Process) { p.UserNamespace.Inode = 0 }

	for name, row := range map[string]struct {
		c    drift.Container
		want []string
	}{
		// What is normal, semantics of the kernel as measured on runc and crun.
		"root with the defaults":                            {container(spec(defaults), process(10, 0, defaults, defaults)), nil},
		"root gets bounding whatever permitted says":        {container(with(spec(defaults), func(o *drift.OCI) { o.Permitted = chown }), process(10, 0, defaults, defaults)), nil},
		"under no_new_privs root keeps to permitted":        {container(with(spec(defaults), func(o *drift.OCI) { o.Permitted, o.NoNewPrivileges = chown, true }), tweak(process(10, 0, chown, defaults), nnp)), nil},
		"non-root holds nothing although the spec lists 14": {container(nonroot, process(10, 1000, 0, defaults)), nil},
		"restricted":                                   {container(restricted, tweak(process(10, 1000, 0, bind), nnp)), nil},
		"a spec without capabilities":                  {container(spec(0), process(10, 0, 0, 0)), nil},
		"privileged non-root on CRI-O":                 {container(drift.OCI{UID: 1000, Sets: capdecode.Sets{Bounding: all, Permitted: all, Effective: all, Inheritable: all, Ambient: all}}, tweak(process(10, 1000, all, all), func(p *drift.Process) { p.Caps.Ambient, p.Caps.Inheritable = all, all })), nil},
		"ambient without inheritable is void":          {container(with(nonroot, func(o *drift.OCI) { o.Ambient = netRaw }), process(10, 1000, 0, defaults)), nil},
		"ambient with inheritable is held":             {container(with(nonroot, func(o *drift.OCI) { o.Ambient, o.Inheritable = bind, bind }), tweak(process(10, 1000, bind, defaults), func(p *drift.Process) { p.Caps.Ambient, p.Caps.Inheritable = bind, bind })), nil},
		"inheritable within the ceiling":               {container(nonroot, tweak(process(10, 1000, 0, defaults), func(p *drift.Process) { p.Caps.Inheritable = defaults })), nil},
		"a daemon that did seteuid":                    {container(spec(defaults), tweak(process(10, 1000, defaults, defaults), func(p *drift.Process) { p.Caps.Effective = 0 })), nil},
		"a worker of root that gave all up":            {container(spec(defaults), process(10, 0, defaults, defaults), process(11, 33, 0, defaults)), nil},
		"the spec names what the kernel does not know": {container(spec(defaults|1<<41), process(10, 0, defaults, defaults)), nil},
		"a user namespace of its own":                  {container(userns, tweak(process(10, 100000, defaults, defaults), inPod)), nil},
		"the same, its inode not permitted":            {container(userns, tweak(tweak(process(10, 100000, defaults, defaults), inPod), blind)), nil},
		"its own user namespace, non-root":             {container(with(userns, func(o *drift.OCI) { o.UID = 1000 }), tweak(process(10, 101000, 0, defaults), inPod)), nil},
		"a map that the kernel shows in another order": {container(with(spec(defaults), func(o *drift.OCI) {
			o.UserNamespace, o.UIDMap = true, []drift.IDRange{{Inside: 1, Outside: 200000, Length: 10}, {Inside: 0, Outside: 1000, Length: 1}}
		}), tweak(process(10, 1000, defaults, defaults), in(0, drift.IDRange{Inside: 0, Outside: 1000, Length: 1}, drift.IDRange{Inside: 1, Outside: 200000, Length: 10}))), nil},
		"a thread that gave more up than its leader": {container(spec(defaults), tweak(process(10, 0, defaults, defaults), func(p *drift.Process) { p.Threads = []drift.Thread{{TID: 12}} })), nil},
		"a thread that kept what its leader dropped, within the ceiling": {container(spec(defaults), process(10, 0, defaults, defaults), tweak(process(11, 0, 0, defaults), func(p *drift.Process) {
			p.Threads = []drift.Thread{{TID: 12, Caps: capdecode.Sets{Permitted: defaults, Effective: defaults, Bounding: defaults}}}
		})), nil},
		"a kernel that tells no NoNewPrivs": {container(restricted, tweak(process(10, 1000, 0, bind), func(p *drift.Process) { p.NoNewPrivileges = nil })), nil},

		// What is explained.
		"root that dropped capabilities":                       {container(spec(defaults), process(10, 0, bind, defaults)), []string{"info dropped 10 " + names(defaults&^bind)}},
		"a file capability":                                    {container(nonroot, process(10, 1000, netRaw, defaults)), []string{"info gained_within_ceiling 10 CAP_NET_RAW"}},
		"a setuid-root program":                                {container(nonroot, process(10, 1000, 0, defaults), process(11, 0, defaults, defaults)), []string{"info gained_within_ceiling 11 " + names(defaults), "medium became_root 11 " + names(defaults)}},
		"unshare -U in a drop-ALL pod":                         {container(with(spec(0), func(o *drift.OCI) { o.UID, o.NoNewPrivileges = 1000, true }), tweak(process(10, 1000, 0, 0), nnp), tweak(tweak(process(11, 1000, all, all), in(4026532777, drift.IDRange{Inside: 0, Outside: 1000, Length: 1})), nnp)), []string{"info nested_userns 11 " + names(all)}},
		"a nested one that no_new_privs did not follow":        {container(with(spec(0), func(o *drift.OCI) { o.UID, o.NoNewPrivileges = 1000, true }), tweak(process(10, 1000, 0, 0), nnp), tweak(process(11, 1000, all, all), in(4026532777, drift.IDRange{Inside: 0, Outside: 1000, Length: 1}))), []string{"high nnp_missing 11", "info nested_userns 11 " + names(all)}},
		"the same, its inode not readable":                     {container(spec(0), process(10, 0, 0, 0), tweak(tweak(process(11, 1000, all, all), in(0, drift.IDRange{Inside: 0, Outside: 1000, Length: 1})), blind)), []string{"info nested_userns 11 " + names(all)}},
		"an unmapped user namespace":                           {container(spec(0), process(10, 0, 0, 0), tweak(process(11, 65534, all, all), in(0, []drift.IDRange{}...))), []string{"info nested_userns 11 " + names(all)}},
		"nested below a pod's own":                             {container(userns, tweak(process(10, 100000, defaults, defaults), inPod), tweak(process(11, 101000, all, all), in(4026532999, drift.IDRange{Inside: 0, Outside: 101000, Length: 1}))), []string{"info nested_userns 11 " + names(all)}},
		"the first process nests itself":                       {container(spec(defaults), tweak(process(10, 0, all, all), in(4026532777, drift.IDRange{Inside: 0, Outside: 0, Length: 1})), process(11, 0, defaults, defaults)), []string{"info nested_userns 10 " + names(all)}},
		"the first process of a pod with its own nests itself": {container(userns, tweak(process(10, 100000, all, all), in(0, drift.IDRange{Inside: 0, Outside: 100000, Length: 1})), tweak(tweak(process(11, 100000, defaults, defaults), inPod), blind)), []string{"info nested_userns 10 " + names(all)}},
		"the same where the spec repeats no map": {container(with(userns, func(o *drift.OCI) { o.UIDMap = nil }), tweak(process(10, 100000, all, all), in(0, drift.IDRange{Inside: 0, Outside: 100000, Length: 1})), tweak(tweak(process(11, 100000, defaults, defaults), inPod), blind)), []string{
			"info unreadable 10"}},
		"an identity map, told by its inode": {container(spec(0), process(10, 0, 0, 0), tweak(process(11, 0, all, all), func(p *drift.Process) { p.UserNamespace.Inode = 4026532777 })), []string{
			"info nested_userns 11 " + names(all)}},
		"an identity map, told by the project ids": {container(spec(0), process(10, 0, 0, 0), tweak(process(11, 0, all, all), in(0, whole...))), []string{"info nested_userns 11 " + names(all)}},

		// What is drift.
		"runc exec --cap CAP_SYS_ADMIN": {container(restricted, tweak(process(10, 1000, 0, bind), nnp), tweak(process(11, 1000, sysAdmin|bind, sysAdmin|bind), nnp)), []string{
			"critical bounding_excess 11 CAP_SYS_ADMIN", "critical permitted_excess 11 CAP_SYS_ADMIN", "info gained_within_ceiling 11 CAP_NET_BIND_SERVICE"}},
		"the same where only maps are readable": {container(spec(bind), process(10, 0, bind, bind), tweak(process(11, 0, bind|sysAdmin, bind|sysAdmin), blind)), []string{
			"critical bounding_excess 11 CAP_SYS_ADMIN", "critical permitted_excess 11 CAP_SYS_ADMIN"}},
		"a bit above the kernel's last one": {container(spec(bind), process(10, 0, bind, bind|1<<41)), nil},
		"bounding alone, held by nobody yet": {container(nonroot, process(10, 1000, 0, defaults|sysAdmin)), []string{
			"critical bounding_excess 10 CAP_SYS_ADMIN"}},
		"inheritable above the ceiling": {container(nonroot, tweak(process(10, 1000, 0, defaults), func(p *drift.Process) { p.Caps.Inheritable = sysAdmin })), []string{
			"high inheritable_excess 10 CAP_SYS_ADMIN"}},
		"a thread above the ceiling": {container(spec(bind), tweak(process(10, 0, bind, bind), func(p *drift.Process) {
			p.Threads = []drift.Thread{{TID: 12, Caps: capdecode.Sets{Permitted: bind | sysAdmin, Effective: bind | sysAdmin, Bounding: bind}}}
		})), []string{"critical thread_excess 10/12 CAP_SYS_ADMIN"}},
		"no_new_privs declared and missing": {container(restricted, process(10, 1000, 0, bind)), []string{"high nnp_missing 10"}},
		"missing in one thread": {container(restricted, tweak(tweak(process(10, 1000, 0, bind), nnp), func(p *drift.Process) {
			no := false
			p.Threads = []drift.Thread{{TID: 12, UID: 1000, NoNewPrivileges: &no}}
		})), []string{"high nnp_missing 10/12"}},
		"a host process in a pod with its own user namespace": {container(userns, tweak(process(10, 100000, defaults, defaults), inPod), process(11, 0, defaults, defaults)), []string{
			"critical userns_escape 11 " + names(defaults)}},
		"the same where only maps are readable, with less than allowed": {container(userns, tweak(tweak(process(10, 100000, defaults, defaults), inPod), blind), tweak(process(11, 0, chown, chown), blind)), []string{
			"critical userns_escape 11 CAP_CHOWN"}},
		"the pod's user namespace was never made": {container(userns, process(10, 0, defaults, defaults)), []string{"critical userns_escape 10 " + names(defaults)}},
		"root under no_new_privs": {container(restricted, tweak(process(10, 1000, 0, bind), nnp), tweak(process(11, 0, 0, bind), nnp)), []string{
			"high became_root 11"}},
		"a user namespace that could not be read": {container(spec(bind), process(10, 0, bind, bind), tweak(process(11, 0, all, all), func(p *drift.Process) { p.UserNamespace = drift.UserNamespace{} })), []string{
			"info unreadable 11"}},
	} {
		t.Run(name, func(t *testing.T) {
			want := slices.Sorted(slices.Values(row.want))
			if got := told(row.c); !slices.Equal(got, want) {
				t.Errorf("told %q\nwant %q", got, want)
			}
		})
	}
}

func names(s capdecode.Set) string { return strings.Join(s.Names(), " ") }

func TestContainersWithoutComparison(t *testing.T) {
	no := false
	stranger := drift.Container{ID: "rogue", Managed: &no, Origin: "cgroup /rogue", Observation: drift.Observed, Processes: []drift.Process{process(10, 0, all, all)}}
	unknown := stranger
	unknown.Managed = nil
	kata := container(spec(bind), process(10, 0, all, all))
	kata.Observation, kata.Reason = drift.UnsupportedRuntime, "io.containerd.kata.v2"
	hidden := container(spec(bind))
	hidden.Observation, hidden.Reason = drift.Unreadable, "permission denied"

	for name, row := range map[string]struct {
		c    drift.Container
		want []string
	}{
		"a container that no pod explains":       {stranger, []string{"medium unmanaged_container 10 " + names(all)}},
		"nobody could say whether a pod does":    {unknown, []string{}},
		"Kata is neither fine nor drift":         {kata, []string{"info unsupported_runtime 0"}},
		"an unreadable container is not an okay": {hidden, []string{"info unreadable 0"}},
	} {
		if got := told(row.c); !slices.Equal(got, row.want) {
			t.Errorf("%s: told %q, want %q", name, got, row.want)
		}
	}
}

func TestConfirmNeedsTheSameExcessByWhomever(t *testing.T) {
	look := func(p drift.Process) []drift.Finding {
		c := container(spec(bind), p)
		drift.Settle(node(), nil, &c)
		return drift.Compare(node(), c)
	}
	excess := process(10, 0, bind, bind|sysAdmin)
	for name, row := range map[string]struct {
		second drift.Process
		want   bool
	}{
		"the same twice":                        {excess, true},
		"its successor, by another pid":         {process(11, 0, bind, bind|sysAdmin), true},
		"its successor, by the same pid":        {tweak(excess, func(p *drift.Process) { p.StartTime++ }), true},
		"with more than before":                 {process(11, 0, bind, bind|sysAdmin|netRaw), true},
		"with another excess and no part of it": {process(10, 0, bind, bind|netRaw), false},
		"what is gone":                          {process(10, 0, bind, bind), false},
	} {
		got := drift.Confirm(look(excess), look(row.second))
		if confirmed := len(got) == 1 && got[0].Kind == drift.BoundingExcess; confirmed != row.want {
			t.Errorf("%s: confirmed %v, want %v: %v", name, confirmed, row.want, got)
		}
	}
}

// TestFindingIDsAreStableAndDistinct: an id is the same whoever shows it, and what one
// cause shows in several ways is one incident.
func TestFindingIDsAreStableAndDistinct(t *testing.T) {
	look := func(pids ...int) []drift.Finding {
		c := container(with(spec(bind), func(o *drift.OCI) { o.NoNewPrivileges = true }))
		for _, pid := range pids {
			c.Processes = append(c.Processes, process(pid, 0, all, all))
		}
		drift.Settle(node(), nil, &c)
		return drift.Compare(node(), c)
	}
	first, second := look(20, 21), look(31)
	ids := make(map[string]bool)
	for i := range first {
		if first[i].ID != second[i].ID || first[i].Processes != 2 || first[i].PID != 20 || first[i].StartTime != 1020 {
			t.Errorf("%+v\nbecame %+v", first[i], second[i])
		}
		if first[i].Incident == "" || first[i].Incident != first[0].Incident {
			t.Errorf("%s is of incident %q, and %s of %q", first[i].Kind, first[i].Incident, first[0].Kind, first[0].Incident)
		}
		ids[first[i].ID] = true
	}
	if len(ids) != len(first) || len(first) != 3 {
		t.Errorf("%d findings have %d ids", len(first), len(ids))
	}
}

func TestFindingIsSafeToRead(t *testing.T) {
	hostile := tweak(process(10, 0, all, all), func(p *drift.Process) { p.Name = "\x1b[2J\nCapEff:\tffff\xff" })
	c := container(spec(bind), hostile)
	drift.Settle(node(), nil, &c)
	for _, f := range drift.Compare(node(), c) {
		if strings.ContainsAny(f.Message, "\x1b\n") || !utf8.ValidString(f.Message) {
			t.Errorf("message carries raw bytes of the process name: %q", f.Message)
		}
		text, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var form struct{ Capabilities []string }
		if err := json.Unmarshal(text, &form); err != nil || len(form.Capabilities) != 40 {
			t.Errorf("JSON %s: %v", text, err)
		}
	}
}

// FuzzCompare holds what must be true of any container whatever its processes
// hold: nothing within the ceiling is ever above info, and something above the
// bounding set in the same user namespace is never missed.
func FuzzCompare(f *testing.F) {
	f.Add(uint64(defaults), uint64(defaults), uint64(0), uint32(0), uint32(0), false, uint64(defaults), uint64(defaults))
	f.Add(uint64(bind), uint64(bind), uint64(0), uint32(1000), uint32(1000), true, uint64(all), uint64(all))
	f.Fuzz(func(t *testing.T, bounding, permitted, inheritable uint64, specUID, uid uint32, noNewPrivs bool, heldPermitted, heldBounding uint64) {
		oci := drift.OCI{UID: specUID, NoNewPrivileges: noNewPrivs, Sets: capdecode.Sets{
			Bounding: capdecode.Set(bounding), Permitted: capdecode.Set(permitted), Effective: capdecode.Set(permitted), Inheritable: capdecode.Set(inheritable)}}
		p := tweak(process(10, uid, capdecode.Set(heldPermitted), capdecode.Set(heldBounding)), func(p *drift.Process) { p.NoNewPrivileges = &noNewPrivs })
		c := container(oci, p)
		drift.Settle(node(), nil, &c)
		known := capdecode.Full(40)
		wantBounding := !capdecode.Set(heldBounding).Within(oci.Bounding & known)
		wantPermitted := !capdecode.Set(heldPermitted).Within(oci.Ceiling() & known)
		var gotBounding, gotPermitted bool
		for _, finding := range drift.Compare(node(), c) {
			switch finding.Kind {
			case drift.BoundingExcess:
				gotBounding = true
			case drift.PermittedExcess:
				gotPermitted = true
			case drift.BecameRoot:
				if specUID == 0 || uid != 0 {
					t.Errorf("became_root with declared uid %d and uid %d", specUID, uid)
				}
			default:
				if finding.Severity != drift.Info {
					t.Errorf("%s %s", finding.Severity, finding.Kind)
				}
			}
		}
		if gotBounding != wantBounding || gotPermitted != wantPermitted {
			t.Errorf("bounding excess %v, want %v; permitted excess %v, want %v", gotBounding, wantBounding, gotPermitted, wantPermitted)
		}
	})
}

// TestFindingsAreReadBack: an agent finds in its journal what it wrote.
func TestFindingsAreReadBack(t *testing.T) {
	want := drift.Finding{
		ID: "1", Kind: drift.BoundingExcess, Severity: drift.Critical, From: drift.LayerOCI, Layer: drift.LayerKernel, Cause: drift.CauseWrapper,
		ContainerID: "c", Container: "app", Pod: &drift.Pod{Name: "p"}, PID: 7, TID: 8, Set: "bounding", Capabilities: 1<<41 | chown, Message: "m", Remedy: "r", Paste: "p",
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := drift.Finding{Capabilities: sysAdmin}
	if err := json.Unmarshal(text, &got); err != nil || *got.Pod != *want.Pod {
		t.Fatalf("%v: %+v", err, got)
	}
	if got.Pod = want.Pod; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := json.Unmarshal([]byte(`{"capabilities":["BOGUS"]}`), &got); err == nil {
		t.Error("a name that is no capability was read")
	}
}
