package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube"
)

const (
	manifests = "../../testdata/manifests"
	goldens   = "../../testdata/golden"
)

// absolute is for tests that go where the manifests are, to name them as people do.
func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPredictTables holds what people read of each manifest against its golden
// file: for each runtime, and for all of them.
func TestPredictTables(t *testing.T) {
	golds := absolute(t, goldens)
	t.Chdir(manifests)
	names, err := filepath.Glob("*")
	if err != nil || len(names) < 32 {
		t.Fatalf("%d manifests, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			for _, runtime := range predictRuntimes() {
				stdout, stderr, status := capture(t, "predict", "-f", name, "--runtime", runtime)
				fmt.Fprintf(&text, "$ capdrift predict -f %s --runtime %s  # status %d\n%s%s\n", name, runtime, status, stdout, stderr)
			}
			golden(t, filepath.Join(golds, "predict", name+".txt"), text.String())
		})
	}
}

// TestPredictPublishedForm holds the JSON of all manifests against the published
// schema and against a golden file.
func TestPredictPublishedForm(t *testing.T) {
	path := filepath.Join(absolute(t, goldens), "predict.json")
	schema, err := jsonschema.NewCompiler().Compile("../../docs/capdrift.predict.v1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(manifests)
	text, stderr, status := capture(t, "predict", "-f", ".", "--runtime", "all", "-o", "json")
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
	// A set's names follow from its bits: the golden file has the bits alone.
	set := regexp.MustCompile(`\{\s*"hex": "[0-9a-f]{16}",\s*"names": \[[^\]]*\]\s*\}`)
	golden(t, path, set.ReplaceAllStringFunc(text, func(text string) string {
		var given struct {
			Hex   string
			Names []string
		}
		if err := json.Unmarshal([]byte(text), &given); err != nil {
			t.Fatal(err)
		}
		bits, err := capdecode.ParseHex(given.Hex)
		if err != nil || !slices.Equal(bits.Names(), given.Names) {
			t.Errorf("%s has the names %v", given.Hex, given.Names)
		}
		return `"` + given.Hex + `"`
	}))

	text, _, _ = capture(t, "predict", "-f", ".", "--runtime", "all", "-o", "yaml")
	back, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	other, err := jsonschema.UnmarshalJSON(bytes.NewReader(back))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(other); err != nil {
		t.Errorf("the YAML: %v", err)
	}
	if fmt.Sprint(other) != fmt.Sprint(value) {
		t.Error("the YAML does not say what the JSON says")
	}
}

// prediction is what a program reads of the JSON.
type prediction struct {
	Containers []struct {
		Container   string
		Document    int
		Declared    declaration
		Predictions []struct {
			Refused string
			OCI     *drift.Spec
			AtStart []drift.Start
		}
	}
}

// predicted runs the command and reads its JSON.
func predicted(t *testing.T, args ...string) prediction {
	t.Helper()
	text, stderr, status := capture(t, append([]string{"predict", "-o", "json"}, args...)...)
	if status != 0 || stderr != "" {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var f prediction
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPredictAgreesWithTheKernel feeds the recorded CRI configs to the command and
// holds what it says against the first process of each as the kernel had it.
func TestPredictAgreesWithTheKernel(t *testing.T) {
	t.Parallel()
	infos, err := filepath.Glob(filepath.Join(captures, "containerd-2.4.2", "*", "info.json"))
	if err != nil {
		t.Fatal(err)
	}
	var stream strings.Builder
	var cases []string
	for _, path := range infos {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var info struct{ Config json.RawMessage }
		if err := json.Unmarshal(text, &info); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&stream, "%s\n---\n", info.Config)
		cases = append(cases, filepath.Base(filepath.Dir(path)))
	}
	file := filepath.Join(t.TempDir(), "configs.yaml")
	if err := os.WriteFile(file, []byte(stream.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^(Cap...|NoNewPrivs):\t([0-9a-f]+)$`)
	for runtime, recorded := range map[string]string{drift.Containerd: "containerd-2.4.2", drift.CRIO: "cri-o-1.37.0"} {
		args := []string{"-f", file, "--runtime", runtime, "--assume", "image-user=0"}
		if runtime == drift.Containerd {
			args = append(args, "--assume", fmt.Sprintf("held-caps=%016x", held))
		}
		f := predicted(t, args...)
		if len(f.Containers) != len(cases) || len(cases) != 20 {
			t.Fatalf("%d predictions of %d cases", len(f.Containers), len(cases))
		}
		compared := 0
		for i, c := range f.Containers {
			p := c.Predictions[0]
			status, err := os.ReadFile(filepath.Join(captures, recorded, cases[i], "proc", "status"))
			if err != nil {
				continue // it never ran; TestPredictionsAgreeWithCaptures says why
			}
			compared++
			if len(p.AtStart) != 1 {
				t.Errorf("%s %s: predicted for %d users (%s)", runtime, cases[i], len(p.AtStart), p.Refused)
				continue
			}
			caps := p.AtStart[0].Caps
			nnp := "0"
			if p.OCI.NoNewPrivileges {
				nnp = "1"
			}
			want := map[string]string{
				"CapInh": caps.Inheritable.Hex(), "CapPrm": caps.Permitted.Hex(), "CapEff": caps.Effective.Hex(),
				"CapBnd": caps.Bounding.Hex(), "CapAmb": caps.Ambient.Hex(), "NoNewPrivs": nnp,
			}
			for _, found := range line.FindAllStringSubmatch(string(status), -1) {
				if want[found[1]] != found[2] {
					t.Errorf("%s %s: predicted %s %s, the kernel had %s", runtime, cases[i], found[1], want[found[1]], found[2])
				}
			}
		}
		if compared < 15 {
			t.Errorf("%s: only %d cases ran", runtime, compared)
		}
	}
}

// TestPredictManyConfigs: a thousand CRI configs in one stream, each told by its name.
func TestPredictManyConfigs(t *testing.T) {
	t.Parallel()
	const many = 1000
	var stream strings.Builder
	for i := range many {
		fmt.Fprintf(&stream, "---\nmetadata: {name: c%d}\nimage: {image: x}\nlinux: {security_context: {run_as_user: {value: %d}}}\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "configs.yaml")
	if err := os.WriteFile(file, []byte(stream.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	f := predicted(t, "-f", file)
	if len(f.Containers) != many {
		t.Fatalf("%d containers", len(f.Containers))
	}
	for i, c := range f.Containers {
		if c.Container != fmt.Sprintf("c%d", i) || c.Document != i+1 || c.Declared.Pod != nil || c.Declared.CRI.RunAsUser == nil || *c.Declared.CRI.RunAsUser != int64(i) {
			t.Fatalf("container %d is %+v", i, c)
		}
	}
}

// TestPredictShowsNoSecrets: neither values nor environments get out.
func TestPredictShowsNoSecrets(t *testing.T) {
	t.Parallel()
	const secret = "not-to-be-printed"
	good := filepath.Join(manifests, "crictl-container.json")
	text, err := os.ReadFile(good)
	if err != nil || !bytes.Contains(text, []byte(secret)) {
		t.Fatalf("nothing is planted: %v", err)
	}
	files := []string{good}
	for i, broken := range []string{
		strings.Replace(string(text), `"net-debug"`, `{"x": "`+secret+`"}`, 1),
		strings.Replace(string(text), `["NET_ADMIN"]`, `"`+secret+`"`, 1),
		strings.Replace(string(text), `"linux":`, `"linux" `+secret, 1),
	} {
		if broken == string(text) {
			t.Fatal("nothing is broken")
		}
		file := filepath.Join(t.TempDir(), fmt.Sprint(i)+".json")
		if err := os.WriteFile(file, []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	for _, file := range files {
		for _, format := range predictOutputs() {
			stdout, stderr, status := capture(t, "predict", "-f", file, "-o", format)
			if strings.Contains(stdout+stderr, secret) {
				t.Errorf("-o %s shows the secret of %s", format, file)
			}
			if (file != good) != (status == exitFailed) {
				t.Errorf("%s: status %d: %s", file, status, stderr)
			}
		}
	}
}

func TestPredictRefusesTooLarge(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(file, bytes.Repeat([]byte("# nothing but a comment\n"), 50<<20/24), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, status := capture(t, "predict", "-f", file)
	if status != exitFailed || !strings.Contains(stderr, file+" is too large") {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func TestParseAssumptions(t *testing.T) {
	t.Parallel()
	all := []string{"default-caps", "held-caps", "image-user", "inheritable", "last-cap"}
	for name, row := range map[string]struct {
		values  []string
		allowed []string
		show    string // the assumptions, as they print
		refused string // or part of the error
	}{
		"nothing":                       {nil, all, "", ""},
		"names":                         {[]string{"default-caps=NET_RAW,cap_chown"}, all, "default 0000000000002001", ""},
		"bits":                          {[]string{"default-caps=00000000a80425fb"}, all, "default 00000000a80425fb", ""},
		"none by default":               {[]string{"default-caps="}, all, "default 0000000000000000", ""},
		"all is up to the last":         {[]string{"held-caps=ALL", "last-cap=37"}, all, "held 0000003fffffffff last CAP_AUDIT_READ", ""},
		"the last by its name":          {[]string{"last-cap=cap_audit_read"}, all, "last CAP_AUDIT_READ", ""},
		"a last one to come":            {[]string{"last-cap=41"}, all, "last CAP_41", ""},
		"inheritable":                   {[]string{"inheritable=true"}, all, "inheritable true", ""},
		"root":                          {[]string{"image-user=0"}, all, "user 0", ""},
		"a value is trimmed":            {[]string{"image-user= 1000 "}, all, "user 1000", ""},
		"no value":                      {[]string{"image-user"}, all, "", "want KEY=VALUE with one of default-caps, held-caps"},
		"an unknown key":                {[]string{"image=1"}, all, "", "want KEY=VALUE with one of default-caps, held-caps"},
		"a key that is not allowed":     {[]string{"image-user=0"}, []string{"held-caps"}, "", "with one of held-caps"},
		"a key given twice":             {[]string{"image-user=0", "image-user=1"}, all, "", "image-user is given twice"},
		"no capability":                 {[]string{"held-caps=NET_BOGUS"}, all, "", `--assume=held-caps=NET_BOGUS: "NET_BOGUS" is no capability`},
		"no uid":                        {[]string{"image-user=www-data"}, all, "", "want a uid"},
		"the uid that is none":          {[]string{"image-user=4294967295"}, all, "", "want a uid"},
		"no truth value":                {[]string{"inheritable=yes"}, all, "", "want true or false"},
		"a last one that cannot be":     {[]string{"last-cap=64"}, all, "", "from 0 to 63"},
		"hostile text is not obeyed":    {[]string{"x\x1b[2J=1"}, all, "", `x\x1b[2J`},
		"hostile values are not either": {[]string{"image-user=\x1b[2J"}, all, "", `\x1b[2J`},
	} {
		got, err := parseAssumptions(row.values, row.allowed...)
		if row.refused != "" {
			if err == nil || !strings.Contains(err.Error(), row.refused) {
				t.Errorf("%s: error %v, want %q", name, err, row.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var parts []string
		if got.Given.Default != nil {
			parts = append(parts, "default "+got.Given.Default.Hex())
		}
		if got.Given.Held != nil {
			parts = append(parts, "held "+got.Given.Held.Hex())
		}
		if got.Given.Inheritable != nil {
			parts = append(parts, fmt.Sprint("inheritable ", *got.Given.Inheritable))
		}
		if got.ImageUser != nil {
			parts = append(parts, fmt.Sprint("user ", *got.ImageUser))
		}
		if got.LastCap != nil {
			parts = append(parts, fmt.Sprint("last ", *got.LastCap))
		}
		if show := strings.Join(parts, " "); show != row.show {
			t.Errorf("%s: %q, want %q", name, show, row.show)
		}
	}
}

// TestInWords: a set is told in words only where they say it whole.
func TestInWords(t *testing.T) {
	const stock = 0xa80425fb
	for set, want := range map[capdecode.Set]string{
		0:                       "none",
		stock:                   "default 14",
		0x1ffffffffff:           "all 41",
		0x400:                   "NET_BIND_SERVICE",
		0x3000:                  "NET_ADMIN NET_RAW",
		stock | 0x1000:          "default 14 +NET_ADMIN",
		stock &^ 0x2000:         "default 14 -NET_RAW",
		stock | 0x2001000:       "16 (0xaa0435fb)",
		0x1fffffffffe:           "all 41 -CHOWN",
		0x1fffeffffff:           "all 41 -SYS_RESOURCE",
		0x1c000000000:           "3 (0x1c000000000)",
		1 << 41:                 "41",
		0x1ffffffffff | 1<<41:   "all 41 +41",
		stock | 0x1000 | 1<<41:  "default 14 +NET_ADMIN +41",
		stock&^0x2000 | 0x1000:  "14 (0xa80415fb)",
		stock&^0x20 | 0x1000000: "14 (0xa90425db)",
	} {
		if got := inWords(set, stock, 40); got != want {
			t.Errorf("%s is told as %q, want %q", set.Hex(), got, want)
		}
	}
	if got := inWords(0x5fb, 0, 40); got != "9 (0x5fb)" {
		t.Errorf("beside an empty default: %q", got)
	}
}

// FuzzPredict: whatever a manifest says, what is shown of it can be read again
// and holds nothing that a terminal obeys.
func FuzzPredict(f *testing.F) {
	files, err := filepath.Glob(manifests + "/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		read, _ := kube.ReadManifests(strings.NewReader(text), "fuzz.yaml")
		o := predictOptions{files: []string{stdin}, runtime: allRuntimes, output: outputOptions{format: "table", color: "never"}}
		if err := o.validate(); err != nil {
			t.Fatal(err)
		}
		cast := o.forecast()
		for _, m := range read.Objects {
			containers, err := cast.foresee(m, o.runtimes(), nil)
			if err == nil && len(containers) == 0 {
				t.Fatalf("%s %s has no container and no error", m.Kind, m.Name)
			}
			cast.Containers = append(cast.Containers, containers...)
		}
		var out bytes.Buffer
		if err := o.write(&out, cast); err != nil {
			t.Fatal(err)
		}
		for _, r := range out.String() {
			if r != '\n' && (r < ' ' || r == 0x7f || (0x80 <= r && r < 0xa0) || (0x202a <= r && r <= 0x202e)) {
				t.Fatalf("the table keeps %U", r)
			}
		}
		var back prediction
		out.Reset()
		if err := writeJSON(&out, cast); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back.Containers) != len(cast.Containers) {
			t.Fatalf("%d containers came back as %d, %v", len(cast.Containers), len(back.Containers), err)
		}
		out.Reset()
		if err := writeYAML(&out, cast); err != nil {
			t.Fatal(err)
		}
	})
}
