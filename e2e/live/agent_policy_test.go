//go:build linux

package live

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
)

// violation is a finding of a rule, as `capdrift get findings -o json` has it.
type violation struct {
	finding
	ID, Rule, Declared, Actual, Exception string
}

// judgement is what an agent says of a container by its policy.
type judgement struct {
	accepted int // of all that is open on the node
	rules    []violation
}

// judges asks for the open findings that a policy made or accepts.
func (a *anAgent) judges(id string, args ...string) (j judgement) {
	a.t.Helper()
	stdout, stderr, status, err := a.ask(append([]string{"get", "findings", "-o", "json"}, args...)...)
	if err != nil || status != 0 {
		a.t.Fatalf("get findings: status %d, %v: %s", status, err, stderr)
	}
	var list struct {
		Findings []violation
		Accepted int
	}
	if err := json.Unmarshal([]byte(stdout), &list); err != nil {
		a.t.Fatalf("%v in %s", err, stdout)
	}
	j.accepted = list.Accepted
	for _, f := range list.Findings {
		if f.ContainerID == id && f.Rule != "" {
			j.rules = append(j.rules, f)
		}
	}
	return j
}

// rule is the open finding of one.
func (j judgement) rule(id string) *violation {
	at := slices.IndexFunc(j.rules, func(v violation) bool { return v.Rule == id })
	if at < 0 {
		return nil
	}
	return &j.rules[at]
}

// policyOf is what `capdrift get node` says of the policy.
func (a *anAgent) policyOf() (ok bool, why string, states map[string]string) {
	a.t.Helper()
	stdout, stderr, status, err := a.ask("get", "node", "-o", "json")
	if err != nil || status != 0 {
		a.t.Fatalf("get node: status %d, %v: %s", status, err, stderr)
	}
	var told struct {
		Components []struct {
			Name, Why string
			OK        bool
		}
		Policy struct {
			Exceptions []struct{ ID, State string }
		}
	}
	if err := json.Unmarshal([]byte(stdout), &told); err != nil {
		a.t.Fatalf("%v in %s", err, stdout)
	}
	states = make(map[string]string)
	for _, e := range told.Policy.Exceptions {
		states[e.ID] = e.State
	}
	for _, c := range told.Components {
		if c.Name == "policy" {
			return c.OK, c.Why, states
		}
	}
	a.t.Fatalf("no component is the policy: %s", stdout)
	return false, "", nil
}

// TestAgentPolicy: what passes on paper and fails in the kernel is told without being asked for, is
// accepted and no more accepted as files on the disk say, and one of them that is broken changes nothing.
func TestAgentPolicy(t *testing.T) {
	onNode(t)
	dir := t.TempDir()
	exceptions := filepath.Join(dir, "exceptions.yaml")
	write := func(text string) { // as an editor does, and ConfigMaps: what is there is whole
		t.Helper()
		if err := os.WriteFile(exceptions+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(exceptions+".new", exceptions); err != nil {
			t.Fatal(err)
		}
	}
	write("exceptions: []\n")
	a := startAgent(t, fmt.Sprintf("policy: {packs: [securitycontext, dangerous], exceptions: [%q]}", exceptions))
	containers := run(t, node.Pod{Security: dropAll()}, node.Pod{Security: dropAll()})
	c, quiet := containers[0], containers[1]
	const rule = "dangerous-sys-admin"
	// Root is what nobody declared otherwise: this fails on both sides from the begin.
	a.await("both are judged", func() bool {
		return a.judges(c.ID).rule("securitycontext-run-as-non-root") != nil && a.judges(quiet.ID).rule("securitycontext-run-as-non-root") != nil
	})
	watched := make(chan string, 1)
	go func() {
		stdout, stderr, status, err := a.ask("watch", "--filter", fmt.Sprintf("has(finding.rule) && finding.rule == %q", rule), "--until-finding", "low", "-o", "jsonl", "--timeout", "60s")
		watched <- fmt.Sprintf("%d %v %s %s", status, err, stdout, stderr)
	}()
	pid, _ := exceed(t, c, "CAP_SYS_ADMIN")
	told := <-watched
	if !strings.HasPrefix(told, "3 ") || !strings.Contains(told, `"rule":"`+rule+`","declared":"pass","actual":"fail"`) {
		t.Fatalf("watch: %s", told)
	}
	found := a.judges(c.ID).rule(rule)
	if found == nil || found.Kind != "policy_violation" || found.Pid != 0 || !slices.Equal(found.Capabilities, []string{"CAP_SYS_ADMIN"}) ||
		!strings.Contains(found.Message, fmt.Sprintf("of process %d ", pid)) || !strings.Contains(found.Message, "passes on paper") || found.Remedy == "" {
		t.Fatalf("found %+v", found)
	}
	if other := a.judges(quiet.ID).rule(rule); other != nil {
		t.Errorf("of a container as declared it says %+v", other)
	}

	accepting := fmt.Sprintf(`exceptions:
- {id: debugging, containers: 'id == %q', rules: [%s], capabilities: [SYS_ADMIN], owner: a, reason: b, expires: 2199-12-31}
- {id: nobody, containers: 'name == "nobody"', kinds: [bounding_excess], capabilities: [ALL], owner: a, reason: b, expires: 2199-12-31}
- {id: former, containers: 'id == %q', rules: [%s], capabilities: [SYS_ADMIN], owner: a, reason: b, expires: 2020-01-01}
`, c.ID, rule, c.ID, rule)
	write(accepting)
	a.await("it is accepted", func() bool { return a.judges(c.ID).rule(rule) == nil })
	whole := a.judges(c.ID, "--show-excepted")
	if v := whole.rule(rule); v == nil || v.Exception != "debugging" || v.ID != found.ID || whole.accepted != 1 {
		t.Errorf("accepted %d: %+v", whole.accepted, v)
	}
	_, _, states := a.policyOf()
	if want := map[string]string{"debugging": "used", "nobody": "unused", "former": "expired"}; fmt.Sprint(states) != fmt.Sprint(want) {
		t.Errorf("the exceptions are %v, want %v", states, want)
	}

	write(strings.Replace(accepting, "reason: b", "raison: b", 1))
	a.await("it says that the policy is broken", func() bool {
		ok, why, _ := a.policyOf()
		return !ok && strings.Contains(why, exceptions+":2:")
	})
	table, _, _, _ := a.ask("get", "node")
	if !strings.Contains(table, "policy") || !strings.Contains(table, "Exception former has expired") {
		t.Errorf("get node:\n%s", table)
	}
	if j := a.judges(c.ID); j.rule(rule) != nil || j.accepted != 1 {
		t.Errorf("a broken file changed what is accepted: %+v", j)
	}
	write("exceptions: []\n")
	a.await("it is an ordinary finding again", func() bool {
		ok, _, _ := a.policyOf()
		v := a.judges(c.ID).rule(rule)
		return ok && v != nil && v.ID == found.ID && v.Exception == ""
	})

	a.end(syscall.SIGKILL)
	a.start()
	if v := a.judges(c.ID).rule(rule); v == nil || v.ID != found.ID {
		t.Errorf("after it was killed: %+v", v)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.await("it is over", func() bool { return a.judges(c.ID).rule(rule) == nil })
}
