package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// arrows says what each room may import of this module, and why not more.
var arrows = map[string]struct {
	may []string
	why string
}{
	"capdecode":       {nil, "a bitmap means the same to everybody"},
	"drift":           {[]string{"capdecode"}, "the comparison is pure: kernel, socket and clock stay outside"},
	"proc":            {[]string{"drift", "capdecode"}, "reading /proc knows no runtime"},
	"cri":             {[]string{"drift", "capdecode"}, "asking a runtime knows no /proc"},
	"kube":            {[]string{"drift", "capdecode"}, "where pod specs come from knows neither the runtime nor /proc"},
	"kube/fake":       {[]string{}, "what tests ask is an API server, not our reading of one"},
	"cri/fake":        {[]string{}, "what tests replay is the wire, not our reading of it"},
	"journal":         {nil, "it keeps bytes in order and knows nothing of what they mean"},
	"agent":           {[]string{"drift", "capdecode"}, "the order of things knows neither the CRI nor /proc, only the interfaces it declares"},
	"agent/rpc":       {[]string{"agent", "api/capdrift/v1", "capdecode", "drift", "policy"}, "who asks the agent changes nothing on the node, and touches neither /proc nor a runtime"},
	"api/capdrift/v1": {nil, "the wire is what other programs are built on"},
	"agent/metrics":   {[]string{"agent", "drift"}, "numbers are made of views, and of nothing else"},
	"policy":          {[]string{"drift", "capdecode"}, "what is judged is handed in, whoever read it"},
	"deploy":          {nil, "what is deployed is tested as its users meet it"},
	"cmd/capdrift":    {[]string{"agent", "agent/metrics", "agent/rpc", "api/capdrift/v1", "capdecode", "cri", "drift", "journal", "kube", "policy", "proc"}, "the one place that sees everything"},
}

// pure rooms may not touch the world at all.
var pure = map[string][]string{
	"capdecode": {"os", "net", "syscall", "golang.org/x/sys/unix"},
	"drift":     {"os", "net", "syscall", "golang.org/x/sys/unix", "log/slog"},
}

func TestArrows(t *testing.T) {
	const module = "github.com/capdrift/capdrift/"
	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		room := strings.TrimPrefix(pkg.ImportPath, module)
		rule, ok := arrows[room]
		if !ok {
			t.Errorf("%s is in no rule: say what it may import, and why", room)
			continue
		}
		seen++
		for _, imported := range pkg.Imports {
			inner, ours := strings.CutPrefix(imported, module)
			if ours && !slices.Contains(rule.may, inner) {
				t.Errorf("%s imports %s: %s", room, inner, rule.why)
			}
			if slices.Contains(pure[room], imported) {
				t.Errorf("%s imports %s: %s", room, imported, rule.why)
			}
		}
	}
	if seen != len(arrows) {
		t.Errorf("%d rooms were found, the rules name %d", seen, len(arrows))
	}
}
