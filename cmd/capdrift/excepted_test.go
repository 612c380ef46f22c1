package main

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/drift"
)

// ruled is the shop with what a policy says of it: a rule that fails, one whose failure is
// accepted, and drift that is.
func ruled() (*drift.Report, *agent.PolicyStatus) {
	report := shop()
	violation := report.Findings[0]
	violation.Incident, violation.Evidence, violation.StartTime, violation.Processes = "", nil, 0, 0
	violation.ID, violation.Kind, violation.PID, violation.Set, violation.From, violation.Layer = strings.Repeat("6", 16), drift.PolicyViolation, 0, "", "", ""
	violation.Severity, violation.Rule, violation.Declared, violation.Actual = drift.High, "our-rule", "pass", "fail"
	violation.Message, violation.Remedy = "shop/web-0/nginx fails our-rule", "mend it"
	accepted := violation
	accepted.ID, accepted.Rule, accepted.Declared, accepted.Exception = strings.Repeat("7", 16), "another-rule", "fail", "debugging"
	report.Findings[1].Exception = "debugging"
	report.Findings = append(report.Findings, violation, accepted)
	return report, &agent.PolicyStatus{
		Packs: []string{"cis", "shop"}, Rules: 9, Since: time.Now().Add(-time.Hour), Unknown: 3, Pending: 1,
		Exceptions: []agent.ExceptionStatus{
			{Exception: agent.Exception{ID: "debugging", Expires: time.Now().Add(time.Hour)}, State: agent.ExceptionUsed, Findings: 2},
			{Exception: agent.Exception{ID: "former", Expires: time.Now().Add(-48 * time.Hour)}, State: agent.ExceptionExpired, Findings: 1},
			{Exception: agent.Exception{ID: "idle", Expires: time.Now().Add(time.Hour)}, State: agent.ExceptionUnused},
		},
	}
}

func newRuled() *told {
	report, status := ruled()
	feed := newTold(nil)
	feed.policy = status
	feed.publish(*report, agent.Change{Kind: agent.StatusChanged, Component: &agent.Component{Name: "policy", Why: "/etc/shop.yaml:3:1: no\x1b[2J"}})
	return feed
}

// TestExceptedPrints holds what is printed of a policy against golden files.
func TestExceptedPrints(t *testing.T) {
	leakless(t)
	at := agentSocketOf(t, newRuled())
	moving := regexp.MustCompile(`("takenAt": )"[^"]*"`)
	for name, args := range map[string]string{
		"node":                   "get node",
		"findings":               "get findings",
		"findings-excepted":      "get findings --show-excepted -o wide",
		"findings.json":          "get findings -o json --filter finding.rule=='another-rule'",
		"findings-excepted.json": "get findings -o json --show-excepted --filter finding.exception=='debugging'",
		"findings.jsonl":         "get findings -o jsonl -n shop",
		"finding.json":           "get finding 7777 -o json",
		"scan":                   "scan",
		"scan-excepted":          "scan --show-excepted --filter has(finding.exception)",
	} {
		stdout, stderr, status := capture(t, append(strings.Fields(args), "--agent", at)...)
		if status != 0 {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
		if name == "scan" || name == "scan-excepted" { // its first line has the time
			_, stdout, _ = strings.Cut(stdout, "\n")
		}
		text := moving.ReplaceAllString(stdout, `$1""`) + "--- standard error\n" + stderr
		golden(t, filepath.Join("../../testdata/golden/excepted", name), text)
	}
}

// TestExceptedFailsNothing: what is accepted neither fails a gate nor ends a watch, and an
// audit judges by its own packs and exceptions. The agent's policy is broken, so that only who
// allows that learns that nothing else is open.
func TestExceptedFailsNothing(t *testing.T) {
	leakless(t)
	at := agentSocketOf(t, newRuled())
	for args, want := range map[string]int{
		"scan --fail-on high --filter has(finding.exception)":                                                          exitFailed,
		"scan --fail-on high --allow-incomplete --filter has(finding.exception)":                                       exitDone,
		"scan --fail-on high --allow-incomplete --filter has(finding.exception) --show-excepted":                       exitDone,
		"get findings --fail-on high --filter has(finding.exception)":                                                  exitFailed,
		"get findings --fail-on high --allow-incomplete --filter has(finding.exception)":                               exitDone,
		"get findings --fail-on high --filter finding.rule=='our-rule'":                                                exitFindings,
		"audit --pack hygiene --fail-on critical --filter pod.namespace=='none'":                                       exitDone,
		"scan --fail-on high --filter finding.rule=='our-rule'":                                                        exitFindings,
		"watch --until-finding low --timeout 300ms --filter has(finding.exception)":                                    exitFailed,
		"watch --until-finding low --allow-incomplete --timeout 300ms --filter has(finding.exception)":                 exitDone,
		"watch --until-finding low --allow-incomplete --timeout 300ms --filter has(finding.exception) --show-excepted": exitDone,
		"watch --until-finding low --timeout 20s --filter finding.rule=='our-rule'":                                    exitFindings,
		"get node --show-excepted":       exitUsage,
		"get containers --show-excepted": exitUsage,
		"watch c --show-excepted":        exitUsage,
	} {
		if _, stderr, status := capture(t, append(strings.Fields(args), "--agent", at)...); status != want {
			t.Errorf("%s: status %d, want %d: %s", args, status, want, stderr)
		}
	}
	if _, stderr, status := capture(t, "scan", "--show-excepted"); status != exitUsage || !strings.Contains(stderr, "--show-excepted is about an agent") {
		t.Errorf("status %d, %s", status, stderr)
	}
	stdout, stderr, status := capture(t, "audit", "--pack", "dangerous", "-o", "json", "--agent", at)
	var audit struct{ Findings []exceptedForm }
	if err := json.Unmarshal([]byte(stdout), &audit); err != nil || status != exitDone {
		t.Fatalf("status %d, %v, %s", status, err, stderr)
	}
	if len(audit.Findings) != 5 || slices.ContainsFunc(audit.Findings, func(f exceptedForm) bool {
		return f.Finding.Kind == drift.PolicyViolation || f.Finding.Exception != "" || f.Exception != nil
	}) {
		t.Errorf("the audit has %+v", audit.Findings)
	}
}

// TestWatchTellsWhatIsAccepted: a finding that was shown is said to be accepted, and shown
// again when it is not any more; one that never was is not spoken of.
func TestWatchTellsWhatIsAccepted(t *testing.T) {
	leakless(t)
	report, _ := ruled()
	feed := newRuled()
	at := agentSocketOf(t, feed)
	lines := startWatch(t, "watch", "--agent", at)
	objects := startWatch(t, "watch", "-o", "jsonl", "--agent", at)
	lines.prints("policy_violation our-rule CAP_NET_RAW CAP_SYS_ADMIN\n")
	lines.says("2 findings are accepted by exceptions and not shown; --show-excepted shows them")
	objects.prints(`"type":"snapshot_end",`)
	objects.prints(`"findings":7,"accepted":2}`)
	until(t, "both watch", func() bool {
		feed.mu.Lock()
		defer feed.mu.Unlock()
		return len(feed.watchers) == 2
	})
	one, never := report.Findings[5], report.Findings[6]
	publish := func(kind agent.ChangeKind, f drift.Finding, why string) {
		feed.publish(*report, agent.Change{Kind: kind, Finding: &f, Resolved: why})
	}
	publish(agent.FindingResolved, never, "ended")
	one.Exception = "cilium"
	publish(agent.FindingUpdated, one, "")
	lines.prints("accepted             high      shop/web-0/nginx                         -        policy_violation our-rule CAP_NET_RAW CAP_SYS_ADMIN (accepted by cilium)\n")
	objects.prints(`"change":"accepted","finding":{"id":"6666666666666666"`)
	publish(agent.FindingUpdated, one, "") // which nobody was told to be open
	one.Exception = ""
	publish(agent.FindingUpdated, one, "")
	lines.prints("updated              high      shop/web-0/nginx")
	publish(agent.FindingResolved, one, "explained")
	lines.prints("resolved (explained) high      shop/web-0/nginx")
	objects.prints(`"resolved":"explained"`)
	lines.interrupt()
	objects.interrupt()
	if text := lines.ends(exitDone); strings.Count(text, "accepted") != 2 || strings.Contains(text, "another-rule") {
		t.Errorf("it printed\n%s", text)
	}
	if text := objects.ends(exitDone); strings.Count(text, `"change":"accepted"`) != 1 || strings.Contains(text, "another-rule") {
		t.Errorf("it printed\n%s", text)
	}
}
