package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	yaml3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden holds text against a golden file, or writes it.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("it is not %s any more, but\n%s\nif that is meant, run go test ./cmd/capdrift -update and read the difference", path, text)
	}
}

// TestPublishedForm holds the JSON of both recorded nodes against the published
// schema and against golden files: what programs parse changes on purpose only.
func TestPublishedForm(t *testing.T) {
	t.Parallel()
	schema, err := jsonschema.NewCompiler().Compile("../../docs/capdrift.node.v1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	// What differs from run to run.
	moving := regexp.MustCompile(`("(?:takenAt|durationMs|endpoint)": ).*?(,?\n)`)
	for name, row := range map[string]struct {
		runtime string
		node    *fixture
	}{
		"containerd": {"containerd-2.4.2", capturedNode(t, "containerd-2.4.2", "hybrid")},
		"cri-o":      {"cri-o-1.37.0", capturedNode(t, "cri-o-1.37.0", "v2")},
		"drift":      {"containerd-2.4.2", driftNode(t)},
	} {
		t.Run(name, func(t *testing.T) {
			server := fake.Serve(t, load(t, row.runtime))
			text, stderr, status := capture(t, "scan", "-o", "json", "--host-root", row.node.root, "--cri-endpoint", server.Endpoint)
			if status != 0 || stderr != "" {
				t.Fatalf("status %d, %s", status, stderr)
			}
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(value); err != nil {
				t.Error(err)
			}
			golden(t, filepath.Join("../../testdata/golden", name+".json"), moving.ReplaceAllString(text, "${1}\"\"${2}"))
		})
	}
}

// TestSecretsStayInside plants a secret wherever a runtime's answer can carry
// one and looks for it in everything that the program prints.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	const secret = "hunter2-planted"
	node := capturedNode(t, "containerd-2.4.2", "hybrid")
	plant := regexp.MustCompile(`"(args|env|command)": \[`)
	for name, damage := range map[string]func(string) string{
		"whole":    func(info string) string { return info },
		"cut":      func(info string) string { return info[:len(info)/2] },
		"mistyped": func(info string) string { return strings.Replace(info, `"pid": 2`, `"pid": "`+secret+`", "x": 2`, 1) },
	} {
		recorded := load(t, "containerd-2.4.2")
		for _, c := range recorded.Containers {
			c.Info = damage(plant.ReplaceAllString(c.Info, `"$1": ["TOKEN=`+secret+`", `))
			c.Status.Annotations = map[string]string{"note": secret}
		}
		if !strings.Contains(recorded.Containers[0].Info, secret) {
			t.Fatal("nothing was planted")
		}
		server := fake.Serve(t, recorded)
		for _, format := range outputNames() {
			stdout, stderr, _ := capture(t, "scan", "--wide", "-o", format, "--host-root", node.root, "--cri-endpoint", server.Endpoint)
			if strings.Contains(stdout+stderr, secret) {
				t.Errorf("%s: the secret is in -o %s", name, format)
			}
			if stdout == "" {
				t.Errorf("%s: -o %s printed nothing: %s", name, format, stderr)
			}
		}
	}
}

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"nginx":            "nginx",
		"naïve ☃":          "naïve ☃",
		"\x1b[31mred":      `\x1b[31mred`,
		"two\nlines\r\t":   `two\x0alines\x0d\x09`,
		"\xff\xfebad":      `\xff\xfebad`,
		"\u202egnp.exe":    `\u202egnp.exe`,
		"\u200bzero\u00ad": `\u200bzero\u00ad`,
		"\U000e0001tag":    `\U000e0001tag`,
		"\ufffd":           `\ufffd`,
		"c1 \u009b31m":     `c1 \u009b31m`,
	} {
		if got := printable(text); got != want && text != "\ufffd" {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{"=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "＝1": "'＝1", "\t=1": `\x09=1`, "app": "app", "": ""} {
		if got := cell(text); got != want {
			t.Errorf("cell(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestStructuredTextIsSafeToLookAt: the name means the same, and no terminal obeys it.
func TestStructuredTextIsSafeToLookAt(t *testing.T) {
	const hostile = "c1 \u009b31m \u0085 \u202egnp \U000e0041 ☃ \x1b[2J\r\a\x7f"
	for name, format := range map[string]struct {
		write func(io.Writer, drift.Report) error
		read  func([]byte, any) error
		raw   []string
	}{
		"JSON": {writeJSON[drift.Report], json.Unmarshal, []string{"\u009b", "\u0085", "\u202e", "\U000e0041", "\x1b", "\r", "\a", "\x7f"}},
		"YAML": {writeYAML[drift.Report], func(text []byte, to any) error { return yaml.Unmarshal(text, to) }, []string{"\u009b", "\u0085", "\u202e", "\U000e0041", "\x1b", "\r", "\a", "\x7f"}},
	} {
		var out bytes.Buffer
		if err := format.write(&out, drift.Report{Node: drift.Node{Name: hostile}}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, raw := range format.raw {
			if strings.Contains(out.String(), raw) {
				t.Errorf("%q is in the %s as it is", raw, name)
			}
		}
		var back struct{ Node struct{ Name string } }
		if err := format.read(out.Bytes(), &back); err != nil || back.Node.Name != hostile {
			t.Errorf("the name comes back from %s as %q, %v", name, back.Node.Name, err)
		}
	}
}

// TestYAMLKeepsEveryText is a property: whatever a text is made of, YAML says the same as
// was written, to two readers, and holds nothing that a terminal would obey.
func TestYAMLKeepsEveryText(t *testing.T) {
	parts := []string{"a", " ", "\n", "\t", ":", "#", "-", "'", "\"", "\\", "{", "0", "on", "~", "escaped0z", "escapedx", "\x00", "\x1b", "\x7f", "\u0085", "\u009b", "\u00ad",
		"\u200e", "\u2028", "\u2029", "\u202a", "\u202d", "\u202e", "\u2066", "\u2069", "\ufeff", "\ufffe", "\U000e0041", "☃", "😀"}
	random := rand.New(rand.NewPCG(13, 10))
	for range 2000 {
		texts := make([]string, 3)
		for i := range texts {
			for range random.IntN(6) {
				texts[i] += parts[random.IntN(len(parts))]
			}
		}
		keepsInYAML(t, texts)
	}
}

func keepsInYAML(t *testing.T, texts []string) {
	t.Helper()
	var out bytes.Buffer
	if err := writeYAML(&out, map[string][]string{"texts": texts}); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if unseen(r) || r < ' ' && r != '\n' {
			t.Fatalf("%q: %U is in the YAML as it is: %q", texts, r, out.String())
		}
	}
	for name, read := range map[string]func([]byte, any) error{
		"sigs.k8s.io/yaml": func(text []byte, to any) error { return yaml.Unmarshal(text, to) }, "yaml.v3": yaml3.Unmarshal,
	} {
		var back struct {
			Texts []string `json:"texts" yaml:"texts"`
		}
		if err := read(out.Bytes(), &back); err != nil || !slices.Equal(back.Texts, texts) {
			t.Fatalf("%s reads %q for %q (%v): %q", name, back.Texts, texts, err, out.String())
		}
	}
}

func FuzzYAML(f *testing.F) {
	for _, seed := range []string{"nginx", "a\u202eb", "\u2028", "escaped0z\u0085", "\"\\\u2066"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) { keepsInYAML(t, []string{strings.ToValidUTF8(text, "\ufffd")}) })
}

func FuzzPrintable(f *testing.F) {
	for _, seed := range []string{"nginx", "\x1b[2J", "a\u202eb", "\xff", "=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range printable(text) {
			if r < ' ' || r == 0x7f || (0x80 <= r && r < 0xa0) || (0x202a <= r && r <= 0x202e) || (0x2066 <= r && r <= 0x2069) {
				t.Fatalf("printable(%q) keeps %U", text, r)
			}
		}
		var buffer bytes.Buffer
		writer := csv.NewWriter(&buffer)
		if err := writer.Write([]string{cell(text), "end"}); err != nil {
			t.Fatal(err)
		}
		writer.Flush()
		row, err := csv.NewReader(&buffer).Read()
		if err != nil || len(row) != 2 || row[0] != cell(text) {
			t.Fatalf("cell(%q) does not survive CSV: %q, %v", text, row, err)
		}
		if row[0] != "" && strings.ContainsAny(row[0][:1], "=+-@\t\r") {
			t.Fatalf("cell(%q) starts a formula: %q", text, row[0])
		}
	})
}

// TestJSONLinesAreWhole reads every line as an object of its own.
func TestJSONLinesAreWhole(t *testing.T) {
	t.Parallel()
	node := driftNode(t)
	server := fake.Serve(t, load(t, "containerd-2.4.2"))
	text, _, _ := capture(t, "scan", "-o", "jsonl", "--host-root", node.root, "--cri-endpoint", server.Endpoint)
	types := map[string]int{}
	for line := range strings.Lines(text) {
		var object struct{ Schema, Type string }
		if err := json.Unmarshal([]byte(line), &object); err != nil || object.Schema != "capdrift.node/v1" {
			t.Fatalf("%.80s: %v", line, err)
		}
		types[object.Type]++
	}
	if types["node"] != 1 || types["container"] != 20 || types["finding"] < 2 || len(types) != 3 {
		t.Errorf("lines by type: %v", types)
	}
}

// FuzzStructuredText holds JSON and YAML to the same: whatever a process calls
// itself, both can be read again and say one name.
func FuzzStructuredText(f *testing.F) {
	for _, seed := range []string{"nginx", "\u0085", "\U000e0041", "\x7f", "\xff", "yes", "0x10", "- a: b", "\u2028", "<&>", "\ufeff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		report := drift.Report{Containers: []drift.Container{{Processes: []drift.Process{{Name: name}}}}}
		var back [2]struct {
			Containers []struct{ Processes []struct{ Name string } }
		}
		var text bytes.Buffer
		if err := writeJSON(&text, report); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text.Bytes(), &back[0]); err != nil {
			t.Fatal(err)
		}
		text.Reset()
		if err := writeYAML(&text, report); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text.Bytes(), &back[1]); err != nil {
			t.Fatal(err)
		}
		fromJSON, fromYAML := back[0].Containers[0].Processes[0].Name, back[1].Containers[0].Processes[0].Name
		if want := string([]rune(name)); fromJSON != want || fromYAML != want {
			t.Fatalf("%q came back as %q from JSON and %q from YAML", name, fromJSON, fromYAML)
		}
	})
}
