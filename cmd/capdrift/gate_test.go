package main

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// TestGate: what every gate makes of what a command knows.
func TestGate(t *testing.T) {
	high := gateOptions{flag: failOn, severity: "high"}
	with := func(change func(*gateOptions)) gateOptions {
		o := high
		change(&o)
		return o
	}
	allowed := with(func(o *gateOptions) { o.allowIncomplete = true })
	expiring := with(func(o *gateOptions) { o.failExpired = true })
	accepting := func(until time.Duration) gateOptions {
		return with(func(o *gateOptions) {
			o.accepted = []policy.AcceptedGap{{ID: "guests", Codes: []drift.GapCode{drift.GapGuest}, Node: "*", Object: "*", Owner: "us", Expires: time.Now().Add(until)}}
		})
	}
	guest := []drift.Gap{{Code: drift.GapGuest, Node: "a", Object: "handler/runsc"}}
	both := append(guest, drift.Gap{Code: drift.GapHidden, Node: "a", Object: drift.WholeNode})
	broken := errors.New("it broke")
	for name, row := range map[string]struct {
		gate   gateOptions
		knows  known
		status int
		says   string
	}{
		"nothing is known to be wrong":               {high, known{}, exitDone, ""},
		"what is found is less":                      {high, known{worst: drift.Medium}, exitDone, ""},
		"what is found is as high":                   {high, known{worst: drift.High, what: "a %s one"}, exitFindings, "a high one, at or above --fail-on=high"},
		"what is found is more":                      {high, known{worst: drift.Critical, what: "a %s one"}, exitFindings, "a critical one"},
		"no gate":                                    {gateOptions{}, known{worst: drift.Critical, gaps: guest, unknown: []string{"x"}}, exitDone, ""},
		"no gate, and it broke":                      {gateOptions{}, known{broken: broken}, exitFailed, "it broke"},
		"a gap":                                      {high, known{gaps: guest}, exitFailed, "not everything was seen (1 gap)"},
		"something that could not be judged":         {high, known{unknown: []string{"one was not judged"}}, exitFailed, "one was not judged"},
		"a gap and something not judged":             {high, known{gaps: both, unknown: []string{"one was not judged"}}, exitFailed, "(2 gaps), and one was not judged, and what is unknown is not passed (--allow-incomplete passes it)"},
		"a gap that is allowed":                      {allowed, known{gaps: guest, unknown: []string{"x"}}, exitDone, ""},
		"what is found beside a gap":                 {high, known{worst: drift.High, gaps: guest}, exitFindings, ""},
		"what is found beside what broke":            {high, known{worst: drift.High, broken: broken}, exitFindings, ""},
		"what broke is not allowed":                  {allowed, known{broken: broken}, exitFailed, "it broke"},
		"what broke beside a gap":                    {high, known{gaps: guest, broken: broken}, exitFailed, "it broke"},
		"a gap that is accepted":                     {accepting(time.Hour), known{gaps: guest}, exitDone, ""},
		"another beside one that is accepted":        {accepting(time.Hour), known{gaps: both}, exitFailed, "(1 gap)"},
		"a gap that was accepted":                    {accepting(-time.Hour), known{gaps: guest}, exitFailed, "(1 gap)"},
		"what expired is not asked about":            {high, known{expired: []string{"x"}}, exitDone, ""},
		"what expired is":                            {expiring, known{expired: []string{"x (us)"}}, exitFindings, "1 exception expired: x (us)"},
		"what expired, without another gate":         {gateOptions{failExpired: true}, known{expired: []string{"x"}}, exitFindings, ""},
		"what expired beside what broke":             {expiring, known{expired: []string{"x"}, broken: broken}, exitFindings, ""},
		"what is found is said before what expired":  {expiring, known{worst: drift.High, what: "a %s one", expired: []string{"x"}}, exitFindings, "a high one"},
		"an owner's name cannot reach the terminal":  {expiring, known{expired: []string{"x (\x1b[2J)"}}, exitFindings, `\x1b[2J`},
		"a severity that is unknown is not the gate": {gateOptions{flag: failOn, severity: "info"}, known{}, exitDone, ""},
	} {
		err := row.gate.decide(io.Discard, row.knows)
		var found findingsError
		status := exitDone
		switch {
		case errors.As(err, &found):
			status = exitFindings
		case err != nil:
			status = exitFailed
		}
		if status != row.status || err != nil && (!strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%s: status %d, want %d: %v, want %q", name, status, row.status, err, row.says)
		}
	}
}

// TestGateSays: what was not seen is said in the words that a file of exceptions takes, with what
// allows it and what accepts it no more.
func TestGateSays(t *testing.T) {
	var errs strings.Builder
	gate := gateOptions{flag: failOn, severity: "high", allowIncomplete: true, accepted: []policy.AcceptedGap{{
		ID: "old", Codes: []drift.GapCode{drift.GapGuest}, Node: "*", Object: "*", Owner: "us\x1b", Expires: time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC), File: "x.yaml", Line: 3,
	}}}
	var gaps []drift.Gap
	for range 18 {
		gaps = append(gaps, drift.Gap{Code: drift.GapPartial, Node: "a", Object: "container/shop/\x1b[2J/x", Why: "cut"})
	}
	if err := gate.decide(&errs, known{gaps: gaps}); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"capdrift: warning: old (us\\x1b) accepts no gap any more: it expired at 2021-01-01 00:00 UTC (x.yaml:3)\n",
		"capdrift: not seen: container_partial on a: container/shop/\\x1b[2J/x: cut\n",
		"capdrift: not seen: 2 more\n",
		"capdrift: warning: not everything was seen (18 gaps), so --fail-on judged only what was (--allow-incomplete)\n",
	} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("it does not say %q, but %s", want, errs.String())
		}
	}
	if strings.Contains(errs.String(), "\x1b") {
		t.Errorf("an escape sequence: %q", errs.String())
	}
}

// TestSeveralFilesOfExceptions: each has its say, and what is wrong in one, or said in two, is told
// with the file.
func TestSeveralFilesOfExceptions(t *testing.T) {
	gap := func(id, code, until string) string {
		return "- {id: " + id + ", gaps: [" + code + "], node: '*', object: '*', owner: us, reason: r, expires: " + until + "}\n"
	}
	exception := "- {id: web, containers: 'true', rules: [cis-privileged], capabilities: [ALL], owner: us, reason: r, expires: 2199-01-01}\n"
	guests := written(t, "guests.yaml", "coverage:\n"+gap("guests", "guest", "2199-01-01"))
	hidden := written(t, "hidden.yaml", "coverage:\n"+gap("hidden", "processes_hidden", "2199-01-01")+"exceptions:\n"+exception)
	former := written(t, "former.yaml", "coverage:\n"+gap("former", "guest", "2021-01-01"))
	namesake := written(t, "namesake.yaml", "coverage:\n"+gap("web", "guest", "2199-01-01"))
	broken := written(t, "broken.yaml", "coverage: [\n")
	seen := []drift.Gap{{Code: drift.GapGuest, Node: "a", Object: "handler/runsc"}, {Code: drift.GapHidden, Node: "a", Object: drift.WholeNode}}
	for name, row := range map[string]struct {
		files []string
		says  string // of the error; "" for none
	}{
		"both accept theirs":                 {[]string{guests, hidden}, ""},
		"one does not accept the other's":    {[]string{guests}, "(1 gap)"},
		"the second has expired":             {[]string{guests, hidden, former}, "1 exception expired: former (us): renew or remove them in " + guests + ", " + hidden + ", " + former},
		"the second is wrong":                {[]string{guests, broken}, broken + ":"},
		"the same file twice":                {[]string{guests, guests}, guests + ":2:1: there is another exception guests in " + guests},
		"an exception and a gap have one id": {[]string{hidden, guests, namesake}, namesake + ":2:1: there is another exception web in " + hidden},
		"the second is not there":            {[]string{guests, "/none.yaml"}, "/none.yaml"},
	} {
		o := gateOptions{flag: failOn, severity: "high", failExpired: true, exceptions: row.files}
		err := o.open()
		if err == nil {
			err = o.decide(io.Discard, known{gaps: seen})
		}
		if (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v, want %q", name, err, row.says)
		}
	}
}

// TestAuditTakesSeveralFilesOfExceptions: an exception of the second file accepts what fails.
func TestAuditTakesSeveralFilesOfExceptions(t *testing.T) {
	manifest := written(t, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: i, securityContext: {privileged: true}}]}\n")
	own := written(t, "own.yaml", "exceptions:\n- {id: own, containers: 'false', rules: [cis-privileged], capabilities: [ALL], owner: us, reason: r, expires: 2199-01-01}\n")
	shared := written(t, "shared.yaml", "exceptions:\n- {id: shared, containers: 'true', rules: [cis-privileged], capabilities: [ALL], owner: us, reason: r, expires: 2199-01-01}\n")
	for _, files := range [][]string{{own}, {own, shared}} {
		args := []string{"audit", "--manifests", manifest, "--pack", "cis", "-o", "json"}
		for _, file := range files {
			args = append(args, "--exceptions", file)
		}
		stdout, stderr, status := capture(t, args...)
		if got := strings.Contains(stdout, `"exception": "shared"`); status != exitDone || got != (len(files) == 2) {
			t.Errorf("%d files: status %d, accepted %v, %s", len(files), status, got, stderr)
		}
	}
}
