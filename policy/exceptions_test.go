package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
)

func moment(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func accepts(t *testing.T, fields ...string) []Exception {
	t.Helper()
	var text strings.Builder
	text.WriteString("exceptions:\n")
	for i, one := range fields {
		fmt.Fprintf(&text, "- {id: e-%d, owner: net-team, reason: the CNI, %s", i, one)
		if !strings.Contains(one, "expires") {
			text.WriteString(", expires: 2099-12-31")
		}
		if !strings.Contains(one, "containers") {
			text.WriteString(`, containers: 'name == "nginx"'`)
		}
		text.WriteString("}\n")
	}
	list, err := LoadExceptions("exceptions.yaml", []byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestExpiry: a day ends in UTC, wherever the clock stands; a time is what it says.
func TestExpiry(t *testing.T) {
	pack := aRule(t, `actual: process.caps.bounding.hasNone(["NET_RAW", "SYS_ADMIN", "SYS_PTRACE"])`)
	for _, row := range []struct {
		expires, now string
		want         ExceptionState
	}{
		{"2027-03-31", "2027-03-31T00:00:00Z", ExceptionUsed},
		{"2027-03-31", "2027-03-31T23:59:59.999999999Z", ExceptionUsed},
		{"2027-03-31", "2027-04-01T00:00:00Z", ExceptionExpired},
		{"2027-03-31", "2027-04-01T01:59:59+02:00", ExceptionUsed},    // in Berlin it is April, in UTC not yet
		{"2027-03-31", "2027-03-31T20:00:00-04:00", ExceptionExpired}, // in New York it is March, in UTC not any more
		{"2028-02-29", "2028-02-29T12:00:00Z", ExceptionUsed},
		{"2027-12-31", "2028-01-01T00:00:00Z", ExceptionExpired},
		{"2027-03-31T18:00:00+02:00", "2027-03-31T15:59:59Z", ExceptionUsed},
		{"2027-03-31T18:00:00+02:00", "2027-03-31T16:00:00Z", ExceptionExpired},
		{"2027-03-31T18:00:00+02:00", "2027-03-31T17:59:59+02:00", ExceptionUsed},
	} {
		exceptions := accepts(t, "rules: [one], capabilities: [ALL], expires: "+row.expires)
		j := judge(t, pack, exceptions, moment(t, row.now), nil, web())
		use := j.Exceptions[0]
		if hidden := j.Results[0].Excepted != nil; use.State != row.want || hidden != (row.want == ExceptionUsed) || use.Results != 1 {
			t.Errorf("expires %s, at %s: %s, %d results, hidden %v; want %s", row.expires, row.now, use.State, use.Results, hidden, row.want)
		}
	}
}

// TestExceptionsHideWhatTheyName and nothing more.
func TestExceptionsHideWhatTheyName(t *testing.T) {
	// Of nginx one process holds NET_RAW, a thread SYS_PTRACE beside it, and another
	// process SYS_ADMIN.
	pack := aRule(t, `declared: declared.add.all(c, c in ["CHOWN"])`, // NET_ADMIN
		`actual: process.caps.bounding.hasNone(["NET_RAW", "SYS_PTRACE", "SYS_ADMIN"])`)
	for _, row := range []struct {
		what, fields string
		container    *drift.Container
		hides        bool
		state        ExceptionState
	}{
		{"all that offends", "rules: [one], capabilities: [NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_ADMIN]", web(), true, ExceptionUsed},
		{"in other spellings", "rules: [one], capabilities: [cap_net_admin, net_raw, 'CAP_19', SYS_ADMIN]", web(), true, ExceptionUsed},
		{"ALL", "rules: [one], capabilities: [ALL]", web(), true, ExceptionUsed},
		{"not what only a thread holds", "rules: [one], capabilities: [NET_ADMIN, NET_RAW, SYS_ADMIN]", web(), false, ExceptionUnused},
		{"not what offends on paper", "rules: [one], capabilities: [NET_RAW, SYS_PTRACE, SYS_ADMIN]", web(), false, ExceptionUnused},
		{"the rule, and no capability", "rules: [one]", web(), false, ExceptionUnused},
		{"another rule", "rules: [cis-net-raw], capabilities: [ALL]", web(), false, ExceptionUnused},
		{"a kind only", "kinds: [bounding_excess], capabilities: [ALL]", web(), false, ExceptionUnused},
		{"another container", `rules: [one], capabilities: [ALL], containers: 'name == "other"'`, web(), false, ExceptionUnused},
		{"a container of which it cannot be told", `rules: [one], capabilities: [ALL], containers: pod.namespace == "shop"`, func() *drift.Container {
			c := web()
			c.Pod = nil
			return c
		}(), false, ExceptionUnused},
	} {
		j := judge(t, pack, accepts(t, row.fields), time.Time{}, nil, row.container)
		if r, use := j.Results[0], j.Exceptions[0]; (r.Excepted != nil) != row.hides || use.State != row.state || !r.Fails() {
			t.Errorf("%s: hidden %v, %s", row.what, r.Excepted != nil, use.State)
		}
	}
	// A name that means no capability is in no set.
	c := web()
	c.Declared.Pod.Add = []string{"NET-ADMIN"}
	c.Processes = nil
	if j := judge(t, pack, accepts(t, "rules: [one], capabilities: [NET_ADMIN]"), time.Time{}, nil, c); j.Results[0].Excepted != nil {
		t.Error("an exception of NET_ADMIN hides NET-ADMIN")
	}
}

// TestExceptionsFromDrift: a finding is hidden where its kind and all of its
// capabilities are named, above all a critical one.
func TestExceptionsFromDrift(t *testing.T) {
	pack := aRule(t, `declared: "true"`)
	f := *finding() // critical: SYS_ADMIN in nginx
	quiet := drift.Finding{ID: "b", Kind: drift.NNPMissing, Severity: drift.High, ContainerID: f.ContainerID}
	handler := drift.Finding{ID: "c", Kind: drift.OCIMismatch, Severity: drift.High, RuntimeHandler: "runc"}
	for _, row := range []struct{ fields, hidden string }{
		{"kinds: [bounding_excess], capabilities: [SYS_ADMIN]", f.ID},
		{"kinds: [bounding_excess], capabilities: [ALL]", f.ID},
		{"kinds: [bounding_excess]", ""},
		{"kinds: [bounding_excess], capabilities: [NET_RAW]", ""},
		{"kinds: [permitted_excess, nnp_missing], capabilities: [SYS_ADMIN]", "b"},
		{"rules: [one], capabilities: [ALL]", ""},
		{"kinds: [nnp_missing]", "b"},
		{`kinds: [bounding_excess, nnp_missing, oci_mismatch], capabilities: [ALL], containers: "true"`, f.ID + " b"}, // no container, no exception
		{`kinds: [bounding_excess], capabilities: [ALL], containers: 'name != "nginx"'`, ""},
	} {
		j := judge(t, pack, accepts(t, row.fields), time.Time{}, []drift.Finding{f, quiet, handler}, web())
		var hidden []string
		for _, one := range j.Findings {
			if one.Excepted != nil {
				hidden = append(hidden, one.ID)
			}
		}
		if got := strings.Join(hidden, " "); got != row.hidden || len(j.Findings) != 3 || j.Exceptions[0].Findings != len(hidden) {
			t.Errorf("%s: hides %q of %d, counts %d; want %q", row.fields, got, len(j.Findings), j.Exceptions[0].Findings, row.hidden)
		}
	}
}

// TestOverlappingExceptions: the first that counts has its name on it, and every one
// that would have is used.
func TestOverlappingExceptions(t *testing.T) {
	pack := aRule(t, `actual: process.caps.bounding.hasNone(["SYS_ADMIN"])`)
	list := accepts(t,
		"rules: [one], capabilities: [SYS_ADMIN], expires: 2020-01-01",
		"rules: [one], capabilities: [SYS_ADMIN]",
		`rules: [one], capabilities: [ALL], containers: "true"`,
		"rules: [one], capabilities: [NET_RAW]")
	j := judge(t, pack, list, moment(t, "2026-01-01T00:00:00Z"), nil, web(), privileged(), bare())
	states := []ExceptionState{ExceptionExpired, ExceptionUsed, ExceptionUsed, ExceptionUnused}
	for i, use := range j.Exceptions {
		if use.State != states[i] {
			t.Errorf("%s is %s, want %s", use.ID, use.State, states[i])
		}
	}
	if by := j.Results[0].Excepted; by == nil || by.ID != "e-1" || by.Owner != "net-team" {
		t.Errorf("accepted by %v", by)
	}
	if got := []int{j.Exceptions[0].Results, j.Exceptions[2].Results}; !slices.Equal(got, []int{2, 2}) {
		t.Errorf("they accept %v", got)
	}
	if j.Results[2].Excepted != nil {
		t.Error("what could not be judged is accepted")
	}
}

// TestExceptionsAreCounted in their control, where the failures still are.
func TestExceptionsAreCounted(t *testing.T) {
	pack := aRule(t, `controls: [{benchmark: B, id: x, source: s}]`, `actual: process.caps.bounding.hasNone(["SYS_ADMIN"])`)
	j := judge(t, pack, accepts(t, "rules: [one], capabilities: [SYS_ADMIN]"), time.Time{}, nil, web())
	if c := j.Controls[0]; c.Actual.Fail != 1 || c.Excepted != 1 {
		t.Errorf("%+v", c)
	}
}
