package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

var (
	node     = &drift.Node{Name: "node-a", BootID: "1111", Kernel: "6.18.44", CapLastCap: 40, CgroupMode: "v2"}
	defaults = set("CHOWN", "DAC_OVERRIDE", "NET_RAW", "NET_BIND_SERVICE", "SETUID")
)

func set(names ...string) capdecode.Set {
	s, err := capdecode.ParseSet(strings.Join(names, ","), 40)
	if err != nil {
		panic(err)
	}
	return s
}

func all(s capdecode.Set) capdecode.Sets {
	return capdecode.Sets{Permitted: s, Effective: s, Bounding: s}
}

// web is an ordinary container, all of which was seen and told.
func web() *drift.Container {
	return &drift.Container{
		ID: "0123456789abcdef", Name: "nginx", Image: "docker.io/library/nginx:1.29", Managed: new(true), Observation: drift.Observed,
		Pod: &drift.Pod{Namespace: "shop", Name: "web-0", UID: "u1"}, Labels: []string{"app=web", "team=shop"},
		Declared: drift.Declared{
			Pod:    &drift.PodSecurity{Role: drift.RoleContainer, Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}, RunAsUser: new(int64(1000))},
			CRI:    &drift.CRI{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}, NoNewPrivileges: true},
			OCI:    &drift.OCI{Sets: all(defaults), NoNewPrivileges: true, UID: 1000},
			Bundle: &drift.OCI{Sets: all(defaults)},
		},
		Processes: []drift.Process{
			{
				PID: 100, Name: "nginx", UID: 0, ContainerUID: new(uint32(0)), NoNewPrivileges: new(true), Seccomp: new(2), Caps: all(defaults), Observation: drift.Observed,
				UserNamespace: drift.UserNamespace{Relation: drift.RelationSame, Inode: 4026531837}, ThreadCount: 2,
				Threads: []drift.Thread{{TID: 101, Name: "worker", Caps: all(defaults | set("SYS_PTRACE"))}},
			},
			{PID: 200, Name: "sh", UID: 1000, Caps: all(set("SYS_ADMIN")), Observation: drift.Observed, UserNamespace: drift.UserNamespace{Relation: drift.RelationChild}},
		},
	}
}

// bare is a container of which nothing was told, and nothing was seen.
func bare() *drift.Container {
	return &drift.Container{ID: "fedcba9876543210", Managed: new(false), Observation: drift.Unreadable, Reason: "permission denied"}
}

func partial() *drift.Container {
	c := web()
	c.Observation = drift.Partial
	return c
}

func starting() *drift.Container {
	c := web()
	c.Processes[1].Observation = drift.Starting
	return c
}

func privileged() *drift.Container {
	c := web()
	c.Processes = []drift.Process{{PID: 300, Name: "agent", Caps: all(capdecode.Full(40)), Observation: drift.Observed}}
	return c
}

func finding() *drift.Finding {
	return &drift.Finding{
		ID: "00000000000000aa", Kind: drift.BoundingExcess, Severity: drift.Critical, From: drift.LayerOCI, Layer: drift.LayerKernel,
		ContainerID: "0123456789abcdef", Container: "nginx", Pod: &drift.Pod{Namespace: "shop", Name: "web-0"}, PID: 200, Set: "bounding",
		Capabilities: set("SYS_ADMIN"), Message: "more than declared",
	}
}

func match(t *testing.T, expression string, s Subject) (bool, error) {
	t.Helper()
	f, err := CompileFilter(expression)
	if err != nil {
		t.Fatalf("%s\n%v", expression, err)
	}
	return f.Match(s)
}

// TestMatch: what, of a container or finding, each expression says.
func TestMatch(t *testing.T) {
	const yes, no, unknown = "yes", "no", "unknown"
	c, p := web(), privileged()
	w := Subject{Container: c, Node: node}
	nothing := Subject{Container: bare(), Node: node}
	half := Subject{Container: partial(), Node: node}
	start := Subject{Container: starting(), Node: node}
	whole := Subject{Container: p, Node: node}
	whose := Subject{Finding: finding(), Node: node}
	both := Subject{Container: c, Process: &c.Processes[1], Finding: finding(), Node: node}
	for _, row := range []struct {
		expression string
		subject    Subject
		want       string
	}{
		// Names and pods.
		{`name == "nginx" && image.startsWith("docker.io/") && id.contains("9abc")`, w, yes},
		{`pod.namespace != "kube-system"`, w, yes},
		{`pod.namespace in ["shop", "bank"]`, w, yes},
		{`pod.namespace == "shop"`, nothing, unknown},
		{`known(pod) && pod.namespace == "shop"`, nothing, no},
		{`!known(pod)`, nothing, yes},
		{`image.matches("^docker\\.io/.*:1\\.2[0-9]$")`, w, yes},
		{`image == ""`, nothing, unknown},
		{`runtimeHandler == ""`, w, yes},
		{`runtimeHandler == ""`, nothing, unknown},
		{`managed && !sandbox && observation == "observed" && reason == "" && origin == ""`, w, yes},
		{`managed`, Subject{Container: &drift.Container{}}, unknown},
		{`node.capLastCap >= 40 && node.name == "node-a" && node.kernel.startsWith("6.") && node.cgroupMode == "v2" && node.bootId != ""`, w, yes},
		{`node.name == "node-a"`, Subject{Container: c}, unknown},
		{`"app=web" in labels && labels.exists(l, l.startsWith("team=")) && !("team=bank" in labels) && labels.size() == 2`, w, yes},
		{`"app=web" in labels || labels == []`, nothing, unknown},
		{`known(labels)`, nothing, no},
		{`runtime.name == "cri-o" && runtime.version.startsWith("1.")`, Subject{Runtime: &drift.Runtime{Name: "cri-o", Version: "1.37.0"}}, yes},
		{`runtime.name == "cri-o"`, w, unknown}, // none answered

		// Capability sets, in any spelling.
		{`caps.effective.hasAny(["SYS_ADMIN", "NET_RAW"]) && pod.namespace != "kube-system"`, w, yes},
		{`caps.effective.hasAny(["cap_sys_admin"]) && caps.effective.hasAny(["Sys_Admin"])`, w, yes},
		{`caps.effective.hasAny(["21", "CAP_21"])`, w, yes},
		{`caps.effective.hasAny(["SYS_PTRACE"])`, w, yes}, // a thread's
		{`caps.effective.hasAny(["SYS_MODULE"])`, w, no},
		{`caps.effective.hasAny([])`, w, no},
		{`caps.effective.hasAll(["SYS_ADMIN", "NET_RAW"])`, w, yes},
		{`caps.effective.hasAll(["SYS_ADMIN", "SYS_MODULE"])`, w, no},
		{`caps.ambient.hasNone(["ALL"]) && caps.inheritable.hasNone(["ALL"])`, w, yes},
		{`caps.effective.hasNone(["ALL"])`, w, no},
		{`caps.effective.hasAll(["ALL"])`, w, no},
		{`caps.effective.hasAll(["all"]) && caps.effective.hasExactly(["ALL"])`, whole, yes},
		{`processes.all(p, p.caps.effective.hasAll(["ALL"]))`, whole, yes},
		{`caps.effective.hasAll(["ALL"])`, Subject{Container: p}, unknown}, // of which kernel?
		{`caps.effective.hasAny(["ALL"])`, Subject{Container: p}, yes},
		{`declared.oci.effective.hasExactly(["CHOWN", "DAC_OVERRIDE", "NET_RAW", "NET_BIND_SERVICE", "SETUID"])`, w, yes},
		{`declared.oci.effective.hasExactly(["CHOWN"])`, w, no},
		{`caps.effective.contains("SYS_ADMIN") && !caps.effective.contains("sys_module")`, w, yes},
		{`caps.effective.size() == 7 && size(caps.ambient) == 0`, w, yes},
		{`declared.oci.effective.isSubsetOf(caps.effective) && !caps.effective.isSubsetOf(declared.oci.effective)`, w, yes},
		{`declared.oci.effective.isSubsetOf(["ALL"])`, w, yes},
		{`declared.oci.effective == declared.bundle.effective && caps.effective != declared.oci.effective`, w, yes},
		{`caps.ambient == capabilities([])`, w, yes},
		{`caps.effective.hasAny(declared.pod.add)`, w, no},
		{`capabilities(declared.cri.drop).contains("NET_RAW")`, w, yes},
		{`capabilities(declared.cri.drop).contains("NET_RAW")`, Subject{Container: c}, unknown}, // of which kernel?
		{`declared.pod.add.exists(c, caps.effective.hasNone([c]))`, w, yes},

		// Layers that are not known, and fields that are not set.
		{`declared.pod.privileged || declared.cri.privileged`, w, no},
		{`declared.cri.noNewPrivileges && declared.pod.runAsUser == 1000 && declared.pod.role == "container"`, w, yes},
		{`"NET_ADMIN" in declared.pod.add && declared.pod.drop == ["ALL"]`, w, yes},
		{`declared.cri.privileged`, nothing, unknown},
		{`declared.privileged`, Subject{Container: &drift.Container{Declared: drift.Declared{Privileged: new(true)}}}, yes}, // CRI-O tells no more
		{`!declared.privileged && !known(declared.add) && !known(declared.cri)`, Subject{Container: &drift.Container{Declared: drift.Declared{Privileged: new(false)}}}, yes},
		{`declared.privileged`, nothing, unknown},
		{`!declared.cri.privileged`, nothing, unknown},
		{`has(declared.cri)`, nothing, no},
		{`known(declared.cri) || known(declared.oci.uid)`, nothing, no},
		{`has(declared.cri) && declared.cri.privileged`, nothing, no},
		{`!has(declared.cri) || declared.cri.privileged`, nothing, yes},
		{`has(declared.pod.allowPrivilegeEscalation) || has(declared.cri.runAsUser)`, w, no},
		{`declared.pod.allowPrivilegeEscalation == false`, w, unknown},
		{`has(declared.cri.runAsUser)`, nothing, unknown},
		{`declared.cri.privileged || id.startsWith("fed")`, nothing, yes},
		{`declared.cri.privileged && id.startsWith("012")`, nothing, no},

		// Processes.
		{`processes.exists(p, p.name == "sh" && p.uid == 1000 && p.userNamespace.relation == "child")`, w, yes},
		{`processes.all(p, p.pid > 100)`, w, no},
		{`processes.exists_one(p, p.caps.effective.contains("SYS_ADMIN"))`, w, yes},
		{`processes.filter(p, p.uid == 0).size() == 1 && size(processes) == 2 && processes[0].pid == 100`, w, yes},
		{`processes.exists(p, p.noNewPrivileges)`, w, yes},
		{`processes.all(p, p.noNewPrivileges)`, w, unknown}, // the shell's is not known
		{`processes.exists(p, has(p.seccomp) && p.seccomp == 2 && p.containerUid == 0 && p.userNamespace.inode > 0)`, w, yes},
		{`processes[1].userNamespace.inode == 0`, w, unknown},
		{`processes.exists(p, p.threads.exists(t, t.tid == 101 && t.caps.effective.contains("SYS_PTRACE")))`, w, yes},

		// What was seen only in part proves presence, and never absence.
		{`caps.effective.contains("SYS_ADMIN")`, half, yes},
		{`caps.effective.contains("SYS_MODULE")`, half, unknown},
		{`caps.effective.hasNone(["SYS_ADMIN"])`, half, no},
		{`caps.effective.hasNone(["SYS_MODULE"])`, half, unknown},
		{`caps.effective.hasExactly(["CHOWN"])`, half, no},
		{`caps.effective.isSubsetOf(["ALL"])`, half, unknown},
		{`caps.effective == declared.oci.effective`, half, no},
		{`caps.effective != caps.effective`, half, unknown},
		{`size(caps.effective) == 7`, half, unknown},
		{`known(caps) && known(processes) && !known(caps.effective)`, half, no},
		{`processes.exists(p, p.name == "sh")`, half, yes},
		{`processes.exists(p, p.name == "bash")`, half, unknown},
		{`processes.all(p, p.name == "sh")`, half, no},
		{`processes.all(p, p.pid > 0)`, half, unknown},
		{`size(processes) > 0`, half, unknown},
		{`processes.exists(p, p.pid > 0)`, nothing, unknown},
		{`caps.effective.hasAny(["SYS_ADMIN"])`, nothing, unknown},
		{`caps.effective.contains("NET_RAW")`, start, yes},
		{`caps.effective.contains("SYS_ADMIN")`, start, unknown}, // a runtime's own stage holds it

		// Findings.
		{`finding.severity >= severity("high") && finding.kind == "bounding_excess" && finding.layer == "kernel" && finding.from == "oci"`, whose, yes},
		{`finding.severity < severity("critical") || finding.severity == severity("low")`, whose, no},
		{`finding.capabilities.contains("SYS_ADMIN") && finding.set == "bounding" && finding.pid == 200 && finding.message != ""`, whose, yes},
		{`finding.cause == "spelling" || has(finding.cause) || has(finding.tid)`, whose, no},
		{`finding.tid == 0`, whose, unknown},
		{`pod.namespace == "shop" && name == "nginx" && id.startsWith("0123")`, whose, yes},
		{`caps.effective.contains("SYS_ADMIN")`, whose, unknown}, // its container is not there
		{`finding.pid == process.pid && process.caps.effective.hasExactly(["SYS_ADMIN"])`, both, yes},
		{`finding.severity > severity("info")`, w, unknown},
		{`process.pid == 1`, w, unknown},
	} {
		got, err := match(t, row.expression, row.subject)
		said := map[bool]string{true: yes, false: no}[got]
		var missing *UnknownError
		switch {
		case errors.As(err, &missing):
			said = unknown
		case err != nil:
			said = err.Error()
		}
		if said != row.want {
			t.Errorf("%s\n\tsays %s (%v), want %s", row.expression, said, err, row.want)
		}
	}
}

// TestRefused: what is no filter, where it is wrong, and what is said about it.
func TestRefused(t *testing.T) {
	long := strings.Repeat("x", maxLength)
	for _, row := range []struct {
		expression string
		column     int
		says       string
	}{
		{" \n", 1, "is empty"},
		{`"SYS_ADMIN" in caps.effective`, 13, "contains"},
		{`name == "abc`, 9, "cannot be read"},
		{`name = "x"`, 6, "write =="},
		{`name == "a=b" & sandbox`, 15, "write &&"},
		{`sandbox | managed`, 9, "write ||"},
		{`sandbox and managed`, 9, "&& for and"},
		{`name`, 1, "is a string"},
		{`caps.efective.hasAny(["NET_RAW"])`, 6, "did you mean effective?"},
		{`nam == "x"`, 1, "did you mean name"},
		{`and(sandbox)`, 4, "&&"},
		{`caps.effective.hasAny(["NET_RAW", "SYS_ADMN"])`, 35, "did you mean SYS_ADMIN?"},
		{`caps.effective.contains("NET_BOGUS")`, 25, "is no capability"},
		{`capabilities(["CAP_64"]) == caps.effective`, 15, "is no capability"},
		{`caps.effective == ["NET_RAW"]`, 16, "hasExactly"},
		{`caps.effective.hasAny("NET_RAW")`, 22, "a list of names"},
		{`name.hasAny(["NET_RAW"])`, 12, "does not fit"},
		{`finding.severity == "high"`, 18, `severity("high")`},
		{`finding.severity >= severity("hihg")`, 30, "critical, high"},
		{`pod == null`, 8, "known(pod)"},
		{`has(pod)`, 5, "known(pod)"},
		{`process == process`, 9, "cannot be compared"},
		{`processes[0] in processes`, 14, "cannot be compared"},
		{`processes == processes`, 11, "cannot be compared"},
		{`[[1]] == [[1]]`, 1, "lists of lists"},
		{`[1].map(x, [x]).size() > 0`, 8, "map() is not part"},
		{`{"a": 1}.size() > 0`, 1, "braces"},
		{`pod{name: "x"}.name == "x"`, 4, "braces"},
		{`processes.exists(p, (processes + processes).size() > 1)`, 32, "cannot be joined"},
		{`name + name == "x"`, 6, "does not fit"},
		{`dyn(1) == 1`, 4, "not known here"},
		{`string == string`, 1, ""},
		{`name.matches("(")`, 14, "missing closing )"},
		{`name.matches(image)`, 14, "literal pattern"},
		{`name.matches("((a{100}){10}){10}")`, 14, ""},
		{`@same(caps.effective, caps.ambient)`, 1, ""},
		{"sandbox &&\n  caps.efective.hasAny([])", 8, "line 2, column 8"},
		{long, 1, ""},
		{long + "x", 1, "at most 4096"},
		{"name == \"\xff\"", 1, "UTF-8"},
		{strings.Repeat("(", 2000), 1, ""},
		{`processes.all(a, processes.all(b, processes.all(c, a.pid + b.pid > c.pid)))`, 1, "too long"},
		{`[1].all(a, [1].all(b, [1].all(c, [1].all(d, d == a))))`, 1, "nested more than 3"},
	} {
		f, err := CompileFilter(row.expression)
		var wrong *FilterError
		switch {
		case f != nil || !errors.As(err, &wrong):
			t.Errorf("%.80s\n\tis accepted, or refused with another error: %v", row.expression, err)
		case !strings.Contains(err.Error(), row.says):
			t.Errorf("%.80s\n\tdoes not say %q:\n%v", row.expression, row.says, err)
		case row.says != "" && !strings.HasPrefix(row.says, "nested") && wrong.Column != row.column:
			t.Errorf("%.80s\n\tpoints at column %d, want %d:\n%v", row.expression, wrong.Column, row.column, err)
		case len(err.Error()) > 1000:
			t.Errorf("%.80s\n\tis refused with %d bytes", row.expression, len(err.Error()))
		}
	}
}

// TestErrorShowsThePlace: the caret is under the character that is meant.
func TestErrorShowsThePlace(t *testing.T) {
	_, err := CompileFilter(`name == "ä☃" && caps.efective.hasAny(["NET_RAW"])`)
	const want = `column 22: there is no field 'efective'
  name == "ä☃" && caps.efective.hasAny(["NET_RAW"])
                       ^
  did you mean effective?`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// TestErrorsWhileMatching: what shows only on a subject is told with its place.
func TestErrorsWhileMatching(t *testing.T) {
	for expression, want := range map[string]string{
		`processes[0].pid / processes[0].uid > 0`:        "column 18: division by zero",
		`processes[7].pid == 1`:                          "index out of bounds: 7",
		`capabilities([name]).size() == 1`:               `"nginx" is no capability`,
		`caps.effective.hasAny([name, "NET_RAW"])`:       `"nginx" is no capability`,
		`finding.severity == severity(name) || !sandbox`: "",
		`severity(name) == severity("high")`:             "want critical, high",
		`known(processes[0].pid / processes[0].uid)`:     "division by zero",
	} {
		_, err := match(t, expression, Subject{Container: web(), Node: node})
		var wrong *FilterError
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", expression, err)
		case want != "" && (!errors.As(err, &wrong) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s\n\tsays %v, want %s", expression, err, want)
		}
	}
}

// TestCostIsBounded: what passes the estimate still ends.
func TestCostIsBounded(t *testing.T) {
	many := web()
	many.Processes = make([]drift.Process, 10_000)
	for i := range many.Processes {
		many.Processes[i] = drift.Process{PID: i, Name: strings.Repeat("a", 15), Observation: drift.Observed}
	}
	subject := Subject{Container: many, Node: node}
	if _, err := match(t, `processes.exists(p, p.caps.effective.hasAny(["SYS_ADMIN"]) && p.name != "x" && p.uid == 0)`, subject); err != nil {
		t.Errorf("an ordinary filter on 10,000 processes: %v", err)
	}
	many.Image = strings.Repeat("é", 2000)
	many.Declared.CRI = &drift.CRI{Add: make([]string, 100_000), Drop: make([]string, 100_000)}
	numbers := "[" + strings.TrimSuffix(strings.Repeat("1,", 300), ",") + "]"
	for _, hostile := range []string{
		`processes.all(a, processes.all(b, a.pid + b.pid >= 0))`,
		`processes.all(a, ` + numbers + `.all(b, ` + numbers + `.all(c, true)))`,
		numbers + `.all(a, ` + numbers + `.all(b, ` + numbers + `.all(c, true)))`,
		numbers + `.filter(a, ` + numbers + `.exists(b, ` + numbers + `.exists(c, false))).size() == 0`,
		`processes.all(p, processes.filter(q, true).size() == 10000)`,
		`processes.all(p, !processes.exists(q, q.name.matches("(a|aa)+(a|aa)+(b|bb)$")))`,
		`processes.all(p, !image.matches("(.{0,20}){0,20}x"))`,
		`processes.all(p, !matches(image, "(.{0,20}){0,20}x"))`,
		numbers + `.all(p, !("x" in declared.cri.add))`,
		numbers + `.all(p, declared.cri.add == declared.cri.drop)`,
		numbers + `.all(p, declared.cri.add == (sandbox ? declared.cri.drop : declared.cri.add))`,
		`processes.all(p, image.size() > 1)`,
	} {
		f, err := CompileFilter(hostile)
		if err != nil {
			continue
		}
		if _, err := f.Match(subject); !errors.Is(err, ErrCost) {
			t.Errorf("%.80s… ends with %v, want %v", hostile, err, ErrCost)
		}
	}
}

// TestMatchWithin: what many subjects may take together, and that one which takes too
// much by itself leaves something for the others.
func TestMatchWithin(t *testing.T) {
	f, err := CompileFilter(`processes.all(a, processes.all(b, a.pid + b.pid >= 0))`)
	if err != nil {
		t.Fatal(err)
	}
	few, many := web(), web()
	many.Processes = make([]drift.Process, 10_000)
	steps := 4 * maxSteps
	if _, err := f.MatchWithin(Subject{Container: few}, &steps); err != nil || steps == 4*maxSteps {
		t.Errorf("a small one: %v, %d steps are left", err, steps)
	}
	for subjects := 0; ; subjects++ {
		_, err := f.MatchWithin(Subject{Container: many}, &steps)
		if !errors.Is(err, ErrCost) {
			t.Fatalf("a large one: %v", err)
		}
		if steps < 0 {
			if subjects != 3 {
				t.Errorf("%d large ones, and nothing is left", subjects)
			}
			break
		}
	}
	if _, err := f.MatchWithin(Subject{Container: few}, &steps); !errors.Is(err, ErrCost) {
		t.Errorf("when nothing is left: %v", err)
	}

	// Without any loop it costs something too.
	if f, err = CompileFilter(`name == "web"`); err != nil {
		t.Fatal(err)
	}
	steps = 100
	for i := 0; steps >= 0; i++ {
		if _, err := f.MatchWithin(Subject{Container: few}, &steps); i == 100 {
			t.Fatalf("100 matches leave %d steps of 100 (%v)", steps, err)
		}
	}
}

// TestReads: an expression's variables, and not those of its macros.
func TestReads(t *testing.T) {
	f, err := CompileFilter(`processes.exists(finding, finding.pid == 1) && finding.pid == 1`)
	if err != nil || !f.Reads("finding") || !f.Reads("processes") || f.Reads("process") {
		t.Errorf("reads %v, %v", f, err)
	}
	f, err = CompileFilter(`processes.exists(finding, finding.pid == 1)`)
	if err != nil || f.Reads("finding") {
		t.Errorf("a macro's variable is taken for the finding (%v)", err)
	}
}

// TestFilterIsShared: one filter, many goroutines.
func TestFilterIsShared(t *testing.T) {
	f, err := CompileFilter(`processes.exists(p, p.caps.effective.contains("SYS_ADMIN")) && caps.bounding.contains("NET_RAW")`)
	if err != nil {
		t.Fatal(err)
	}
	subject := Subject{Container: web(), Node: node}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 200 {
				if ok, err := f.Match(subject); !ok || err != nil {
					t.Errorf("%v, %v", ok, err)
					return
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := CompileFilter(`caps.effective.hasAny(["SYS_ADMIN", "NET_RAW"]) && pod.namespace != "kube-system"`); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEnvironment is what the first CompileFilter of a process costs more.
func BenchmarkEnvironment(b *testing.B) {
	for b.Loop() {
		if _, err := newEnvironment(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMatch is a node's 500 containers of 10 processes.
func BenchmarkMatch(b *testing.B) {
	containers := make([]*drift.Container, 500)
	for i := range containers {
		c := web()
		c.Processes = nil
		for p := range 10 {
			c.Processes = append(c.Processes, drift.Process{PID: 1000*i + p, Name: "worker", Caps: all(defaults), Observation: drift.Observed, NoNewPrivileges: new(true)})
		}
		containers[i] = c
	}
	for name, expression := range map[string]string{
		"union":     `caps.effective.hasAny(["SYS_ADMIN", "SYS_MODULE"]) && pod.namespace != "kube-system"`,
		"processes": `processes.exists(p, p.caps.effective.hasAny(["SYS_ADMIN"]) && p.uid == 0)`,
		"declared":  `has(declared.cri) && declared.cri.privileged`,
	} {
		b.Run(name, func(b *testing.B) {
			f, err := CompileFilter(expression)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				for _, c := range containers {
					if ok, err := f.Match(Subject{Container: c, Node: node}); ok || err != nil {
						b.Fatal(fmt.Sprint(ok, err))
					}
				}
			}
		})
	}
}
