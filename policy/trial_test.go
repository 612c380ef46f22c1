package policy

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// seeded is a source of chance; CAPDRIFT_POLICY_SEED=N repeats a run.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CAPDRIFT_POLICY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CAPDRIFT_POLICY_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// adds is a container that was only declared.
func adds(names ...string) *drift.Container {
	return &drift.Container{ID: "a", Name: "nginx", Declared: drift.Declared{Pod: &drift.PodSecurity{Add: names}}}
}

// holds is a container with a process for each set.
func holds(sets ...capdecode.Set) *drift.Container {
	c := &drift.Container{ID: "a", Name: "nginx", Observation: drift.Observed, Declared: drift.Declared{Pod: &drift.PodSecurity{}}}
	for i, s := range sets {
		c.Processes = append(c.Processes, drift.Process{PID: i + 1, UID: 1000, Caps: all(s), ThreadCount: 1, Observation: drift.Observed, UserNamespace: drift.UserNamespace{Relation: drift.RelationSame}})
	}
	return c
}

// TestExceptionsAcceptNoMore: an exception accepts nothing that it does not name, however
// the rule asks for it.
func TestExceptionsAcceptNoMore(t *testing.T) {
	const dangerous = `^(CAP_)?(ALL|NET_RAW|SYS_ADMIN|BPF|SYS_MODULE)$`
	paper := adds("SYS_ADMIN", "BPF", "SYS_MODULE")
	kernel := holds(set("CHOWN"), set("NET_RAW", "SYS_ADMIN"))
	asRoot := holds(set("SYS_ADMIN"))
	asRoot.Processes[0].UID = 0
	privileged := adds()
	privileged.Declared.Pod.Privileged = true
	notGiven := adds("SYS_ADMIN")
	notGiven.Declared.OCI = &drift.OCI{}
	mixed := holds(0, 0)
	mixed.Processes[0].UID, mixed.Declared.Pod.Add = 0, []string{"BPF", "CHOWN"}
	dropped := adds()
	dropped.Declared.Pod.Drop = []string{"NET_RAW"}
	for _, row := range []struct {
		what, rule   string
		container    *drift.Container
		capabilities string
		accepts      bool
	}{
		{"names that match a pattern", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, paper, "[NET_RAW]", false},
		{"some of them", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, paper, "[SYS_ADMIN, BPF]", false},
		{"all of them", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, paper, "[SYS_ADMIN, BPF, SYS_MODULE]", true},
		{"none", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, paper, "", false},
		{"those that match, beside one that does not", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, adds("BPF", "CHOWN"), "[BPF]", true},
		{"ALL that was added", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, adds("ALL"), "[NET_RAW, SYS_ADMIN, BPF, SYS_MODULE]", false},
		{"ALL by ALL", `declared: '!declared.add.exists(a, a.matches("` + dangerous + `"))'`, adds("ALL"), "[ALL]", true},
		{"a name that means nothing", `declared: '!declared.add.exists(a, a.startsWith("NET"))'`, adds("NET_ROW"), "[NET_RAW]", false},
		{"a name that is looked for", `declared: '!("SYS_ADMIN" in declared.add)'`, paper, "[NET_RAW]", false},
		{"the first of a list", `declared: declared.add.size() == 0 || declared.add[0] == "CHOWN"`, paper, "[SYS_ADMIN]", false},
		{"the size of a list", `declared: declared.add.size() < 3`, paper, "[SYS_ADMIN]", false},
		{"a list by another spelling", `declared: declared.add == ["CAP_BPF"]`, adds("BPF"), "", false},
		{"what is behind the first failure", `declared: declared.runAsNonRoot && !declared.add.exists(a, a.matches("` + dangerous + `"))`, paper, "[NET_RAW]", false},
		{"what is in the other branch", `declared: 'declared.runAsNonRoot ? !declared.add.exists(a, a == "BPF") : false'`, paper, "[NET_RAW]", false},
		{"two that fail together, and a third", `declared: '!(declared.add.exists(a, a == "SYS_ADMIN") && declared.add.exists(a, a in ["BPF", "SYS_MODULE"]))'`, paper, "[SYS_ADMIN, BPF]", false},
		{"two of at most one", `declared: declared.add.filter(a, a.matches("` + dangerous + `")).size() <= 1`, paper, "[SYS_ADMIN, BPF]", false},
		{"privileged", `declared: "!declared.privileged"`, privileged, "[NET_RAW]", false},
		{"privileged, without capabilities", `declared: "!declared.privileged"`, privileged, "", false},
		{"privileged beside a user", `declared: "!declared.privileged && declared.runAsNonRoot"`, privileged, "[NET_RAW]", false},
		{"privileged by ALL", `declared: "!declared.privileged && declared.runAsNonRoot"`, privileged, "[ALL]", true},
		{"a user", `declared: declared.runAsNonRoot`, paper, "", true},
		{"a user, by an exception for several rules", `declared: declared.runAsNonRoot`, paper, "[NET_RAW]", true},
		{"what is not dropped", `declared: '"ALL" in declared.drop'`, adds(), "[NET_RAW]", false},
		{"what is not dropped, beside a user", `declared: declared.runAsNonRoot && "ALL" in declared.drop`, adds(), "[NET_RAW]", false},
		{"one that is not dropped", `declared: declared.drop.exists(d, d in ["ALL", "NET_RAW"])`, adds(), "[NET_RAW]", true},
		{"another that is not dropped", `declared: declared.drop.exists(d, d in ["ALL", "SYS_ADMIN"])`, dropped, "[NET_RAW]", false},
		{"what was not given", `declared: declared.runAsNonRoot && declared.oci.bounding.hasAll(declared.add)`, notGiven, "[NET_RAW]", false},

		{"what fails once something is taken away", `actual: process.uid != 0 && !declared.add.exists(a, a == "BPF" && !declared.add.exists(b, b == "CHOWN"))`, mixed, "[CHOWN]", false},
		{"every process", `actual: processes.all(p, p.caps.bounding.hasNone(["NET_RAW", "SYS_ADMIN"]))`, kernel, "[NET_RAW]", false},
		{"every process, named", `actual: processes.all(p, p.caps.bounding.hasNone(["NET_RAW", "SYS_ADMIN"]))`, kernel, "[NET_RAW, SYS_ADMIN]", true},
		{"a process that exists", `actual: '!processes.exists(p, p.caps.bounding.contains("SYS_ADMIN"))'`, kernel, "[NET_RAW]", false},
		{"processes that are counted", `actual: processes.filter(p, p.caps.effective.hasAny(["NET_RAW", "SYS_ADMIN"])).size() == 0`, kernel, "[SYS_ADMIN]", false},
		{"processes beside a user", `actual: processes.all(p, p.uid != 0 && p.caps.bounding.hasNone(["SYS_ADMIN"]))`, asRoot, "[NET_RAW]", false},
		{"names in a set", `actual: process.uid != 0 && process.caps.bounding.hasNone(capabilities(["SYS_ADMIN"]))`, asRoot, "[NET_RAW]", false},
		{"names of a loop", `actual: process.uid != 0 && ["SYS_ADMIN"].all(n, process.caps.bounding.hasNone([n]))`, asRoot, "[NET_RAW]", false},
		{"a set that is one of two", `actual: '(process.uid == 0 ? process.caps.permitted : process.caps.bounding).hasNone(["SYS_ADMIN"])'`, asRoot, "[NET_RAW]", false},
		{"exactly this", `actual: '!process.caps.bounding.hasExactly(["NET_RAW", "SYS_ADMIN"])'`, kernel, "[NET_RAW]", false},
		{"two together", `actual: '!process.caps.bounding.hasAll(["NET_RAW", "SYS_ADMIN"])'`, kernel, "[NET_RAW]", false},
		{"one of several that is missing", `actual: process.caps.bounding.hasAny(["BPF"])`, kernel, "[NET_RAW]", true}, // nothing that is held offends
	} {
		capabilities := ""
		if row.capabilities != "" {
			capabilities = ", capabilities: " + row.capabilities
		}
		r := judge(t, aRule(t, row.rule), accepts(t, "rules: [one]"+capabilities), time.Time{}, nil, row.container).Results[0]
		if !r.Fails() || (r.Excepted != nil) != row.accepts {
			t.Errorf("%s: %s fails: %v; accepted with %q: %v, want %v", row.what, row.rule, r.Fails(), row.capabilities, r.Excepted != nil, row.accepts)
		}
		p, err := Compile([]Pack{aRule(t, row.rule)}, accepts(t, "rules: [one]"+capabilities))
		if err != nil {
			t.Fatal(err)
		}
		alone := p.JudgeContainer(node, nil, row.container, true)[0]
		if list := p.Accepting(node, nil, &alone); (len(list) > 0) != row.accepts {
			t.Errorf("%s: accepted by itself by %d, want %v", row.what, len(list), row.accepts)
		}
	}
}

// TestAcceptedHidesNoUnknown: what could not be judged beside a failure is told.
func TestAcceptedHidesNoUnknown(t *testing.T) {
	two := holds(set("SYS_ADMIN"), set())
	two.Processes[0].NoNewPrivileges = new(false)
	seen := holds(set("SYS_ADMIN"))
	half := holds(set("SYS_ADMIN"))
	half.Observation = drift.Partial
	guest := adds("SYS_ADMIN")
	guest.Observation = drift.UnsupportedRuntime
	for _, row := range []struct {
		what, rule, capabilities string
		container                *drift.Container
		unknown                  bool
	}{
		{"all was seen", `actual: process.caps.bounding.hasNone(["SYS_ADMIN"])`, "SYS_ADMIN", seen, false},
		{"not all was seen", `actual: process.caps.bounding.hasNone(["SYS_ADMIN"])`, "SYS_ADMIN", half, true},
		{"not all was seen, of the container", `actual: caps.bounding.hasNone(["SYS_ADMIN"])`, "SYS_ADMIN", half, true},
		{"another process cannot be told", `actual: process.noNewPrivileges`, "CHOWN", two, true},
		{"another process cannot be told, whatever is accepted", `actual: process.noNewPrivileges`, "ALL", two, true},
		{"the same process fails by more, or does not", `actual: process.caps.bounding.hasNone(["SYS_ADMIN"]) && process.noNewPrivileges`, "SYS_ADMIN", seen, true},
		{"on paper there is more, or there is not", `declared: '!("SYS_ADMIN" in declared.add) && !("BPF" in declared.cri.add)'`, "SYS_ADMIN", adds("SYS_ADMIN"), true},
		{"the other side", `{declared: '!("SYS_ADMIN" in declared.add)', actual: process.pid > 0}`, "SYS_ADMIN", guest, true},
	} {
		lines := []string{row.rule}
		if rule, both := strings.CutPrefix(row.rule, "{"); both {
			lines = strings.Split(strings.TrimSuffix(rule, "}"), ", ")
		}
		r := judge(t, aRule(t, lines...), accepts(t, "rules: [one], capabilities: ["+row.capabilities+"]"), time.Time{}, nil, row.container).Results[0]
		if r.Excepted == nil || r.Unknown() != row.unknown {
			t.Errorf("%s: accepted %v, unknown %v (%q, %q), want %v", row.what, r.Excepted != nil, r.Unknown(), r.Declared.Unjudged, r.Actual.Unjudged, row.unknown)
		}
	}
}

// acceptance is the only result of a container by one rule, with one exception.
func acceptance(t *testing.T, rule *Rule, everywhere *Filter, capabilities []string, c *drift.Container) Result {
	t.Helper()
	e := Exception{ID: "e", Containers: everywhere, Rules: []string{rule.ID}, Expires: time.Unix(1, 0)}
	names, err := parseNames(capabilities...)
	if err != nil {
		t.Fatal(err)
	}
	e.Capabilities, e.AllCapabilities = names.held, names.all
	p, err := Compile([]Pack{{Name: "one", Rules: []*Rule{rule}}}, []Exception{e})
	if err != nil {
		t.Fatal(err)
	}
	return p.Judge(drift.Report{Node: *node, Containers: []drift.Container{*c}}, time.Unix(0, 0)).Results[0]
}

func everywhere(t *testing.T) *Filter {
	t.Helper()
	f, err := CompileFilter("true")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var pool = []string{"NET_RAW", "SYS_ADMIN", "BPF", "CHOWN", "SYS_MODULE"}

func some(g *rand.Rand, names []string) (chosen []string) {
	for _, name := range names {
		if g.IntN(2) == 0 {
			chosen = append(chosen, name)
		}
	}
	return chosen
}

// atom is a condition of which it is known what offends.
type atom struct {
	text    string
	offends func(held capdecode.Set) capdecode.Set // empty where it holds
}

// atoms make conditions about some names. %[1]s is their list, %[2]s a pattern of them and
// %[3]s the list of what is asked, which is on paper a list and in the kernel a set.
type maker struct {
	text    string
	offends func(held, asked capdecode.Set) capdecode.Set
}

var (
	inBoth = func(held, asked capdecode.Set) capdecode.Set { return held & asked }
	other  = func(held, asked capdecode.Set) capdecode.Set { return held &^ asked }
	every  = func(held, _ capdecode.Set) capdecode.Set { return held }
	two    = func(held, asked capdecode.Set) capdecode.Set {
		if (held & asked).Len() < 2 {
			return 0
		}
		return held & asked
	}
	whole = func(held, asked capdecode.Set) capdecode.Set {
		if !asked.Within(held) {
			return 0
		}
		return asked
	}
	same = func(held, asked capdecode.Set) capdecode.Set {
		if held != asked {
			return 0
		}
		return held
	}
)

var onPaper = []maker{
	{`!declared.add.exists(a, a.matches("%[2]s"))`, inBoth},
	{`declared.add.all(a, !a.matches("%[2]s"))`, inBoth},
	{`declared.pod.add.filter(a, a.matches("%[2]s")).size() == 0`, inBoth},
	{`!declared.add.filter(a, a != "").exists(b, b.matches("%[2]s"))`, inBoth},
	{`!declared.add.exists(a, declared.pod.add.exists(b, a == b && b.matches("%[2]s")))`, inBoth},
	{`%[1]s.all(n, !(n in declared.add))`, inBoth},
	{`%[1]s.all(n, !declared.add.exists(a, a == n))`, inBoth},
	{`capabilities(declared.add).hasNone(%[1]s)`, inBoth},
	{`!capabilities(%[1]s).hasAny(declared.add)`, inBoth},
	{`!(name == "nginx" ? declared.add : declared.pod.add).exists(a, a.matches("%[2]s"))`, inBoth},
	{`declared.add.all(a, a in %[1]s)`, other},
	{`capabilities(declared.add).isSubsetOf(%[1]s)`, other},
	{`capabilities(%[1]s).hasAll(declared.add)`, other},
	{`declared.add == []`, every},
	{`!(declared.add.size() > 0)`, every},
	{`declared.add.filter(a, a.matches("%[2]s")).size() < 2`, two},
	{`!capabilities(declared.add).hasAll(%[1]s)`, whole},
	{`!capabilities(declared.add).hasExactly(%[1]s)`, same},
	{`capabilities(declared.add) != capabilities(%[1]s)`, same},
}

var inKernel = []maker{
	{`process.caps.bounding.hasNone(%[1]s)`, inBoth},
	{`process.caps.bounding.hasNone(capabilities(%[1]s))`, inBoth},
	{`!capabilities(%[1]s).hasAny(process.caps.bounding)`, inBoth},
	{`%[1]s.all(n, process.caps.bounding.hasNone([n]))`, inBoth},
	{`%[1]s.all(n, !process.caps.permitted.contains(n))`, inBoth},
	{`(process.uid == 0 ? process.caps.permitted : process.caps.bounding).hasNone(%[1]s)`, inBoth},
	{`processes.all(p, p.caps.bounding.hasNone(%[1]s))`, inBoth},
	{`!processes.exists(p, p.caps.bounding.hasAny(%[1]s))`, inBoth},
	{`processes.filter(p, !p.caps.effective.hasNone(%[1]s)).size() == 0`, inBoth},
	{`processes[0].caps.bounding.hasNone(%[1]s)`, inBoth},
	{`processes.all(p, p.threads.all(t, t.caps.permitted.hasNone(%[1]s)))`, inBoth},
	{`caps.bounding.hasNone(%[1]s)`, inBoth},
	{`process.caps.bounding.isSubsetOf(%[1]s)`, other},
	{`capabilities(%[1]s).hasAll(process.caps.bounding)`, other},
	{`processes.all(p, p.caps.permitted.isSubsetOf(%[1]s))`, other},
	{`process.caps.bounding.size() == 0`, every},
	{`processes.all(p, p.caps.effective.size() == 0)`, every},
	{`!process.caps.bounding.hasAll(%[1]s)`, whole},
	{`!processes.exists(p, p.caps.bounding.hasAll(%[1]s))`, whole},
	{`!process.caps.bounding.hasExactly(%[1]s)`, same},
	{`!processes.exists(p, p.caps.bounding == capabilities(%[1]s))`, same},
}

func (m maker) make(g *rand.Rand) atom {
	names := some(g, pool)
	if len(names) == 0 {
		names = pool[:1]
	}
	asked := set(names...)
	text := strings.ReplaceAll(strings.ReplaceAll(m.text, "%[1]s", `["`+strings.Join(names, `", "`)+`"]`), "%[2]s", `^(?i)(CAP_)?(`+strings.Join(names, "|")+`)$`)
	return atom{text, func(held capdecode.Set) capdecode.Set { return m.offends(held, asked) }}
}

// TestGeneratedRules: of rules that users may write it is known what offends, and no
// exception accepts a failure whose offending capabilities it does not name, also where
// something else fails beside them. Most of those that do name them accept it.
func TestGeneratedRules(t *testing.T) {
	g, anywhere := seeded(t), everywhere(t)
	named, accepted := 0, 0
	for range 400 {
		kernel := g.IntN(2) == 0
		makers, side, free := onPaper, "declared", "declared.runAsNonRoot"
		if kernel {
			makers, side, free = inKernel, "actual", oneOf(g, "process.uid != 0", "processes.all(p, p.uid != 0)")
		}
		var parts []atom
		for range 1 + g.IntN(3) {
			parts = append(parts, makers[g.IntN(len(makers))].make(g))
		}
		if g.IntN(2) == 0 {
			parts = slices.Insert(parts, g.IntN(len(parts)+1), atom{free, func(capdecode.Set) capdecode.Set { return 0 }})
		}
		condition := joined(g, parts)
		pack := aRule(t, side+": '"+condition+"'")

		held := some(g, pool)
		c := holds(set(held...))
		c.Processes[0].Threads = []drift.Thread{{TID: 9, UID: 1000, Caps: all(set(held...))}}
		if g.IntN(2) == 0 {
			c.Processes[0].UID, c.Processes[0].Threads[0].UID = 0, 0
		}
		c.Declared.Pod.Add = append(c.Declared.Pod.Add, held...)
		c.Declared.Pod.RunAsNonRoot = g.IntN(2) == 0
		var offends capdecode.Set
		for _, part := range parts {
			offends |= part.offends(set(held...))
		}

		candidates := [][]string{nil, {"ALL"}, offends.Names(), some(g, pool), some(g, pool), some(g, pool)}
		for _, capabilities := range candidates {
			r := acceptance(t, pack.Rules[0], anywhere, capabilities, c)
			if !r.Fails() {
				if r.Excepted != nil || offends != 0 {
					t.Fatalf("%s of %v: %s, %s; %s offends", condition, held, r.Declared.Verdict, r.Actual.Verdict, offends)
				}
				break
			}
			all := slices.Contains(capabilities, "ALL")
			if all && r.Excepted == nil {
				t.Fatalf("%s of %v: not accepted by ALL", condition, held)
			}
			if !all && r.Excepted != nil && !offends.Within(set(capabilities...)) {
				t.Fatalf("%s of %v: %s offends, and an exception for %v accepts it", condition, held, offends, capabilities)
			}
			if !all && offends != 0 && offends.Within(set(capabilities...)) {
				if named++; r.Excepted != nil {
					accepted++
				}
			}
		}
	}
	t.Logf("of %d exceptions that name what offends %d accept it", named, accepted)
	if named < 200 || accepted < named/2 {
		t.Error("an exception that names what offends is of little use")
	}
}

// joined makes a condition that holds where all parts do.
func joined(g *rand.Rand, parts []atom) string {
	text := "(" + parts[0].text + ")"
	for _, part := range parts[1:] {
		switch g.IntN(4) {
		case 0:
			text = "!(!" + text + " || !(" + part.text + "))"
		case 1:
			text = "(" + text + " ? (" + part.text + ") : false)"
		case 2:
			text = "(" + text + " && (" + part.text + " || name == \"other\"))"
		default:
			text = "(" + text + " && (" + part.text + "))"
		}
	}
	return text
}

func oneOf[T any](g *rand.Rand, values ...T) T { return values[g.IntN(len(values))] }

// TestEveryRuleThatIsBuiltIn: for random containers and exceptions, where an exception
// accepts a failure nothing is there that it does not name and on which the failure
// depends: not in the container as it is, nor with any of its capabilities away, nor if
// users, no_new_privs and seccomp were as they should be.
func TestEveryRuleThatIsBuiltIn(t *testing.T) {
	g, anywhere := seeded(t), everywhere(t)
	offending := append([]string{"SETPCAP", "SYS_PTRACE", "SYS_RAWIO", "SYS_BOOT", "MAC_ADMIN", "SYS_TIME", "DAC_READ_SEARCH", "NET_ADMIN"}, pool...)
	acceptedNamed := make(map[string]int)
	for _, pack := range Embedded() {
		for _, rule := range pack.Rules {
			for range 12 {
				held := some(g, offending)
				if g.IntN(3) == 0 {
					held = offending
				}
				c := randomContainer(g, held)
				verdicts := func(of *drift.Container) (Verdict, Verdict) {
					steps := maxJudgement
					r := newBench(Subject{Container: of, Node: node}, true, &steps).judge(rule)
					return r.Declared.Verdict, r.Actual.Verdict
				}
				for _, capabilities := range [][]string{nil, {"ALL"}, held, some(g, held), some(g, offending)} {
					r := acceptance(t, rule, anywhere, capabilities, c)
					all := slices.Contains(capabilities, "ALL")
					if r.Fails() && all && r.Excepted == nil {
						t.Fatalf("%s: not accepted by ALL", rule.ID)
					}
					if r.Excepted == nil || all {
						continue
					}
					if len(capabilities) > 0 {
						acceptedNamed[rule.ID]++
					}
					for _, ideal := range []bool{false, true} {
						for _, name := range held {
							if slices.Contains(capabilities, name) {
								continue
							}
							for i := range 6 {
								away := some(g, held)
								if i == 0 {
									away = nil
								}
								with, withActual := verdicts(reduced(c, slices.DeleteFunc(away, func(other string) bool { return other == name }), ideal))
								less, lessActual := verdicts(reduced(c, append(slices.Clone(away), name), ideal))
								if r.Declared.Verdict == Fail && with == Fail && less == Pass || r.Actual.Verdict == Fail && withActual == Fail && lessActual == Pass {
									t.Fatalf("%s of %v: an exception for %v accepts %s", rule.ID, held, capabilities, name)
								}
							}
						}
					}
				}
			}
		}
	}
	if len(acceptedNamed) < 30 {
		t.Errorf("only of %d rules exceptions that name capabilities accept anything", len(acceptedNamed))
	}
}

func randomContainer(g *rand.Rand, held []string) *drift.Container {
	c := holds(set(held...), set(some(g, held)...))
	c.Processes[0].Caps.Inheritable = set(some(g, held)...)
	c.Processes[1].Threads = []drift.Thread{{TID: 9, UID: uint32(g.IntN(2)), Caps: all(set(some(g, held)...)), NoNewPrivileges: new(true), Seccomp: new(2)}}
	for i := range c.Processes {
		p := &c.Processes[i]
		p.UID = uint32(g.IntN(2))
		p.ContainerUID, p.NoNewPrivileges, p.Seccomp = new(p.UID), new(g.IntN(2) == 0), new(g.IntN(2))
	}
	pod := c.Declared.Pod
	for _, name := range some(g, held) {
		pod.Add = append(pod.Add, oneOf(g, name, "CAP_"+name, strings.ToLower(name)))
	}
	pod.Drop = oneOf(g, nil, nil, []string{"ALL"}, []string{"NET_RAW"})
	pod.RunAsNonRoot = g.IntN(2) == 0
	pod.SeccompProfile = oneOf(g, nil, new("RuntimeDefault"))
	c.Declared.OCI = &drift.OCI{Sets: all(set(held...))}
	if g.IntN(4) == 0 {
		c.Declared.Pod, c.Declared.Privileged = nil, new(false)
	}
	return c
}

// reduced is the container with capabilities taken away, and if it is to be ideal without
// anything else that could fail.
func reduced(c *drift.Container, away []string, ideal bool) *drift.Container {
	r, gone := *c, set(away...)
	less := func(s capdecode.Sets) capdecode.Sets {
		for _, one := range []*capdecode.Set{&s.Inheritable, &s.Permitted, &s.Effective, &s.Bounding, &s.Ambient} {
			*one &^= gone
		}
		return s
	}
	r.Declared.OCI = &drift.OCI{Sets: less(c.Declared.OCI.Sets)}
	if c.Declared.Pod != nil {
		pod := *c.Declared.Pod
		pod.Add = nil
		for _, name := range c.Declared.Pod.Add {
			if !slices.Contains(away, strings.TrimPrefix(strings.ToUpper(name), "CAP_")) {
				pod.Add = append(pod.Add, name)
			}
		}
		pod.Drop = append(slices.Clone(pod.Drop), away...)
		pod.RunAsNonRoot = pod.RunAsNonRoot || ideal
		r.Declared.Pod = &pod
	}
	r.Processes = slices.Clone(c.Processes)
	for i := range r.Processes {
		p := &r.Processes[i]
		p.Caps, p.Threads = less(p.Caps), slices.Clone(p.Threads)
		for k := range p.Threads {
			p.Threads[k].Caps = less(p.Threads[k].Caps)
			if ideal {
				p.Threads[k].UID = 1000
			}
		}
		if ideal {
			p.UID, p.ContainerUID, p.NoNewPrivileges, p.Seccomp = 1000, new(uint32(1000)), new(true), new(2)
		}
	}
	return &r
}
