package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// What is rendered from the chart for those who do not use Helm.
const generated = "# Rendered from deploy/chart; make manifests does it anew.\n"

// TestManifests: install.yaml and the files of kustomize are what the chart makes of its defaults.
func TestManifests(t *testing.T) {
	plain := render(t, set("namespace.create=true")...)
	monitored := render(t, set("monitoring.podMonitor.enabled=true", "monitoring.rules.enabled=true", "monitoring.dashboard.enabled=true")...)
	want := map[string]string{"install.yaml": generated + plain}
	split(t, plain, "kustomize/base", want)
	parts := make(map[string]string)
	split(t, monitored, "kustomize/monitoring", parts)
	for _, name := range []string{"podmonitor.yaml", "prometheusrule.yaml", "dashboard.yaml"} {
		name = filepath.Join("kustomize/monitoring", name)
		if want[name] = parts[name]; want[name] == "" {
			t.Fatalf("the chart renders no %s", name)
		}
	}
	for name, text := range want {
		if *update {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if there, err := os.ReadFile(name); err != nil || string(there) != text {
			t.Errorf("%s is not what the chart renders (%v); run: make manifests", name, err)
		}
	}
	there, err := filepath.Glob("kustomize/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range there {
		if _, ok := want[name]; !ok && filepath.Base(name) != "kustomization.yaml" {
			t.Errorf("%s is rendered no more; remove it", name)
		}
	}
}

var source = regexp.MustCompile(`(?m)^# Source: capdrift/templates/(\S+)\n`)

// split puts what each template rendered into a file of its name.
func split(t *testing.T, manifest, dir string, into map[string]string) {
	t.Helper()
	for _, text := range strings.Split("\n"+manifest, "\n---\n") {
		if name := source.FindStringSubmatch(text); name != nil {
			into[filepath.Join(dir, name[1])] = generated + strings.TrimSpace(source.ReplaceAllString(text, "")) + "\n"
		}
	}
}

// TestKustomize: what kustomize builds is what the chart renders.
func TestKustomize(t *testing.T) {
	kustomize := tool(t, kustomizeProgram)
	monitoring := set("monitoring.podMonitor.enabled=true", "monitoring.rules.enabled=true", "monitoring.dashboard.enabled=true")
	for _, row := range []struct {
		name       string
		components []string
		values     []string
	}{
		{"base", nil, nil},
		{"monitoring", []string{"../monitoring"}, monitoring},
		{"deep_inspection", []string{"../deep-inspection"}, set("agent.deepInspection=true")},
		{"all", []string{"../monitoring", "../deep-inspection"}, append(set("agent.deepInspection=true"), monitoring...)},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("kustomize", ".test-") // kustomize takes no absolute paths
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			overlay := "resources: [../base]\ncomponents: [" + strings.Join(row.components, ", ") + "]\n"
			if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o644); err != nil {
				t.Fatal(err)
			}
			built, stderr, status := run(t, "", kustomize, "build", dir)
			if status != 0 {
				t.Fatal(stderr)
			}
			got, want := canonical(t, built), canonical(t, render(t, append(row.values, set("namespace.create=true")...)...))
			if !slices.Equal(got, want) {
				t.Errorf("kustomize builds\n%s\nthe chart renders\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// canonical is each object in one form, in one order.
func canonical(t *testing.T, manifest string) (list []string) {
	t.Helper()
	for _, o := range objects(t, manifest) {
		var value any
		if err := yaml.Unmarshal([]byte(o.text), &value); err != nil {
			t.Fatal(err)
		}
		text, err := yaml.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, string(text))
	}
	slices.Sort(list)
	return list
}
