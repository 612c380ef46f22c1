//go:build linux

package live

import (
	"encoding/csv"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/capdrift/capdrift/e2e/node"
)

var formats = []string{"table", "json", "jsonl", "yaml", "csv"}

// The runtime tells the environment and the arguments of every container to who asks for
// its spec. No output may pass them on.
func TestSecretsStayInside(t *testing.T) {
	const secret = "s3cr3t-hunter2"
	// What follows "sleep" is never looked at.
	managed := node.Pod{Shared: true, Args: []string{"ready", "sleep", "--token=" + secret}, Env: map[string]string{"TOKEN": secret}}
	drifted := managed
	drifted.Security = dropAll()
	containers := run(t, managed, drifted)
	moby, err := theNode.RunMoby(t.Context(), managed.Args...)
	if err != nil {
		t.Fatal(err)
	}
	removeAfter(t, []*node.Container{moby})
	if _, err := theNode.RuncExec(t.Context(), containers[1], []string{"CAP_SYS_ADMIN"}, managed.Args...); err != nil {
		t.Fatal(err)
	}
	silent := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	inParallel(t, formats, func(_ int, format string) error {
		for _, endpoint := range []string{theNode.Endpoint(), silent} {
			stdout, stderr, _, err := capdrift("scan", "-o", format, "--wide", "--threads=always", "--cri-endpoint", endpoint)
			if err != nil {
				return err
			}
			if strings.Contains(stdout, secret) || strings.Contains(stderr, secret) {
				t.Errorf("-o %s gives the secret away", format)
			}
			if endpoint == theNode.Endpoint() && !strings.Contains(stdout, containers[1].ID[:12]) && !strings.Contains(stdout, containers[1].Pod.Name) {
				t.Errorf("-o %s does not show the container at all:\n%s", format, stdout)
			}
		}
		return nil
	})
}

// A process may call itself anything. It must not pass for another line of its status
// file, nor reach a terminal or a spreadsheet as more than text.
func TestHostileNames(t *testing.T) {
	hostile := []string{
		`CapEff:\tffffffffffffffff`,
		`a\nCapBnd:\t3fff`,
		`\x1b[31;1mred\x07`,
		`\xff\xfe\xc3(`,
		`=cmd|' /C calc'`,
		`@SUM(1+1)`,
		`runc:[2:INIT]\n`,
		`a) S 1 1 1`, // of /proc/PID/stat
		`\u202egnp.exe`,
	}
	c := run(t, pod(restricted()))[0]
	for _, name := range hostile {
		if _, err := theNode.RuncExec(t.Context(), c, nil, "name="+name, "ready", "sleep"); err != nil {
			t.Fatal(err)
		}
	}
	r := scan(t)
	noAlarms(t, r)
	seen := r.container(t, c.ID)
	if len(seen.Processes) != 1+len(hostile) {
		t.Errorf("%d processes, want %d", len(seen.Processes), 1+len(hostile))
	}
	for _, p := range seen.Processes {
		if p.Caps.Effective.Hex != "0000000000000000" || p.Caps.Bounding.Hex != "0000000000000400" {
			t.Errorf("process %q shows %+v", p.Name, p.Caps)
		}
	}
	inParallel(t, formats, func(_ int, format string) error {
		for _, extra := range [][]string{{"--wide"}, {"--container", c.ID}} {
			args := append([]string{"scan", "-o", format, "--color=never", "--cri-endpoint", theNode.Endpoint()}, extra...)
			stdout, stderr, status, err := capdrift(args...)
			if err != nil {
				return err
			}
			if status != 0 {
				t.Errorf("capdrift %q: exit status %d: %s", args, status, stderr)
			}
			printable(t, format, stdout)
			switch format {
			case "json":
				if !json.Valid([]byte(stdout)) {
					t.Errorf("not JSON:\n%s", stdout)
				}
			case "csv":
				harmlessCells(t, stdout)
			}
		}
		return nil
	})
}

// printable asserts that text moves no cursor, colors nothing, and where people read it
// does not change its direction either.
func printable(t *testing.T, format, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("%s is not UTF-8", format)
	}
	forPeople := format == "table" || format == "csv"
	for _, r := range text {
		if r != '\n' && r != '\r' && unicode.IsControl(r) || forPeople && unicode.Is(unicode.Bidi_Control, r) {
			t.Errorf("%s contains %U", format, r)
			return
		}
	}
}

// harmlessCells asserts that a spreadsheet takes no cell for a formula.
func harmlessCells(t *testing.T, text string) {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil {
		t.Errorf("not CSV: %v", err)
	}
	for _, row := range rows {
		for _, cell := range row {
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
				t.Errorf("cell %q begins a formula", cell)
			}
		}
	}
}
