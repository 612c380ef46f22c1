//go:build linux

package live

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/capability"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
	"github.com/capdrift/capdrift/e2e/workload"
)

var update = flag.Bool("update", false, "write the table of docs/policy.md anew")

// The table stands between these lines of docs/policy.md.
const (
	tableBegins = "<!-- what TestPolicyTable saw begins here -->\n"
	tableEnds   = "<!-- and ends here -->\n"
)

// column is a container of the table.
type column struct{ name, pod, about, id string }

// TestPolicyTable holds every rule of every pack against the demo's containers on a real
// node, and what it saw against the table in docs/policy.md. -update writes that anew.
func TestPolicyTable(t *testing.T) {
	onNode(t)
	gives(t)
	columns, manifests := demo(t)
	a := judgeNode(t, manifests)
	a.asDeclared(t)

	path := policyPage(t)
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(page), tableBegins)
	table, after, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		t.Fatalf("%s has no table between %q and %q", path, tableBegins, tableEnds)
	}
	saw := a.table(t, columns)
	switch {
	case saw == table:
	case *update:
		if err := os.WriteFile(path, []byte(before+tableBegins+saw+tableEnds+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table of docs/policy.md is not what this node shows (- the page, + the node); -update writes it anew:\n%s", difference(table, saw))
	}
	a.explained(t, columns, after)
}

// demo starts the containers of the demo, and returns their pod specs' file too.
func demo(t *testing.T) (columns []column, manifests string) {
	t.Helper()
	n, workloads := onNode(t), workload.Demo()
	started := make([]*node.Container, len(workloads)+1)
	removeAfter(t, started)
	inParallel(t, started, func(i int, _ *node.Container) (err error) {
		if i == len(workloads) {
			started[i], err = workload.RunMiner(t.Context(), n)
		} else {
			started[i], err = workloads[i].Run(t.Context(), n)
		}
		return err
	})
	for i, w := range workloads {
		columns = append(columns, column{w.Container, w.Namespace + "/" + w.Name, w.About, started[i].ID})
	}
	columns = append(columns, column{workload.Miner, "", workload.AboutMiner, started[len(workloads)].ID})
	return columns, manifestsOf(t, workloads...)
}

// gives asserts that the machine has what the table is about to give, and takes nothing from
// the node's processes that containers do not lose by themselves.
func gives(t *testing.T) {
	t.Helper()
	const sysResource = 1 << 24 // build machines lack it, and no rule asks for it
	all := uint64(1)<<len(capability.ListKnown()) - 1
	mustHave(t, held()|sysResource == all, "all capabilities but SYS_RESOURCE to give to a container")
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	free := strings.Contains(string(status), "\nNoNewPrivs:\t0\n") && strings.Contains(string(status), "\nSeccomp:\t0\n")
	mustHave(t, free, "processes without seccomp and no_new_privs of its own")
}

func policyPage(t *testing.T) string {
	t.Helper()
	repo, err := provision.Repo()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(repo, "docs", "policy.md")
}

// signs of the verdicts.
var signs = map[string]string{"pass": "✓", "fail": "✗", "unknown": "?", "not_applicable": "–"}

func sign(t *testing.T, r result) string {
	t.Helper()
	declared, actual := signs[r.Declared.Verdict], signs[r.Actual.Verdict]
	switch {
	case declared == "" || actual == "":
		t.Fatalf("the verdicts %q and %q have no sign", r.Declared.Verdict, r.Actual.Verdict)
	case declared == actual:
		return declared
	case r.Disagrees:
		return "**" + declared + actual + "**"
	}
	return declared + actual
}

// table says who the columns are, and has a table for each pack. Nothing in it differs from
// one run to the next.
func (a audit) table(t *testing.T, columns []column) string {
	t.Helper()
	var out strings.Builder
	who := [][]string{{"container", "pod", "what it is"}}
	for _, c := range columns {
		who = append(who, []string{c.name, c.pod, c.about})
	}
	writeTable(&out, who)
	for _, pack := range a.Packs {
		fmt.Fprintf(&out, "\n**`%s`**\n\n", pack.Name)
		var rules []rule
		for _, r := range a.Rules {
			if r.Pack == pack.Name {
				rules = append(rules, r)
			}
		}
		document, numbers := controls(rules)
		rows := [][]string{{"rule", document}}
		for _, c := range columns {
			rows[0] = append(rows[0], c.name)
		}
		for i, r := range rules {
			row := []string{"`" + r.ID + "`", numbers[i]}
			for _, c := range columns {
				row = append(row, sign(t, a.of(t, r.ID, c.id)))
			}
			rows = append(rows, row)
		}
		writeTable(&out, rows)
	}
	return out.String()
}

// controls are the numbers that rules have in the first document that each answers, with all
// that its versions give to the same; and that document, where it is one.
func controls(rules []rule) (document string, numbers []string) {
	var documents []string
	for _, r := range rules {
		name, ids := "", []string(nil)
		for _, c := range r.Controls {
			if name = cmp.Or(name, c.Benchmark); c.Benchmark == name && c.Edition == r.Controls[0].Edition && !slices.Contains(ids, c.ID) {
				ids = append(ids, c.ID)
			}
		}
		documents, numbers = append(documents, name), append(numbers, strings.Join(ids, ", "))
	}
	if slices.Equal(documents, slices.Repeat(documents[:1], len(documents))) {
		return cmp.Or(documents[0], "control"), numbers
	}
	for i, name := range documents {
		numbers[i] = strings.TrimSpace(name + " " + numbers[i])
	}
	return "control", numbers
}

// writeTable writes rows, of which the first is the head, with the columns below each other.
func writeTable(out *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for i, row := range rows {
		for column, cell := range row {
			fmt.Fprintf(out, "| %s%s ", cell, strings.Repeat(" ", width[column]-len([]rune(cell))))
		}
		out.WriteString("|\n")
		if i == 0 {
			for _, w := range width {
				fmt.Fprintf(out, "|%s", strings.Repeat("-", w+2))
			}
			out.WriteString("|\n")
		}
	}
}

// difference shows the lines that only one of two texts has.
func difference(old, now string) string {
	var out strings.Builder
	only := func(sign, text, other string) {
		others := strings.Split(other, "\n")
		for line := range strings.SplitSeq(text, "\n") {
			if !slices.Contains(others, line) {
				fmt.Fprintln(&out, sign, line)
			}
		}
	}
	only("-", old, now)
	only("+", now, old)
	return out.String()
}

// explanation is a paragraph of the page about a disagreement: the container and the rule.
var explanation = regexp.MustCompile("(?m)^\\* `([a-z-]+)`, `([a-z-]+)`:")

// explained asserts that what the page explains below the table are disagreements, and that
// they are five at least.
func (a audit) explained(t *testing.T, columns []column, prose string) {
	t.Helper()
	told := explanation.FindAllStringSubmatch(prose, -1)
	if len(told) < 5 {
		t.Errorf("docs/policy.md explains %d disagreements, want five", len(told))
	}
	for _, words := range told {
		at := slices.IndexFunc(columns, func(c column) bool { return c.name == words[1] })
		if at < 0 {
			t.Errorf("docs/policy.md explains %q, which is no container of the table", words[1])
			continue
		}
		if r := a.of(t, words[2], columns[at].id); !r.Disagrees {
			t.Errorf("docs/policy.md explains why %s and %s disagree: they say %s and %s", words[1], words[2], r.Declared.Verdict, r.Actual.Verdict)
		}
	}
}
