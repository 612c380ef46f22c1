package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"sigs.k8s.io/yaml"

	"github.com/capdrift/capdrift/kube/fake"
)

// reader is what deploy/rbac-reader.yaml allows.
type reader []struct {
	Kind     string
	Metadata struct{ Namespace string }
	Rules    []struct{ APIGroups, Resources, Verbs []string }
}

func readReader(t *testing.T) (all reader) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/rbac-reader.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		one := make(reader, 1)
		if err := yaml.Unmarshal([]byte(document), &one[0]); err != nil {
			t.Fatal(err)
		}
		all = append(all, one[0])
	}
	return all
}

func (r reader) allows(a fake.Access) bool {
	for _, role := range r {
		if role.Kind != "ClusterRole" && (role.Kind != "Role" || role.Metadata.Namespace != a.Namespace) {
			continue
		}
		for _, rule := range role.Rules {
			if slices.Contains(rule.APIGroups, a.Group) && slices.Contains(rule.Resources, a.Resource) && slices.Contains(rule.Verbs, a.Verb) {
				return true
			}
		}
	}
	return false
}

// TestReaderMayAskAll: the role that is shipped allows what every command asks for,
// and nothing that none does.
func TestReaderMayAskAll(t *testing.T) {
	// SPDY waits a second for somebody to ask how a connection ended.
	leakless(t, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
	asked := make(map[fake.Access]bool)
	for _, old := range []bool{false, true} {
		c := fleetOfThree(t)
		c.OnlySPDY = old
		for _, kind := range []string{"deploy", "sts", "ds", "rs", "job", "cronjob", "pod"} {
			for _, resource := range []string{"statefulsets", "daemonsets", "jobs", "cronjobs"} {
				c.Put(resource, fake.Object{"metadata": fake.Object{"namespace": "shop", "name": "x", "uid": "x"}})
			}
			capture(t, c.args("explain", kind+"/"+map[string]string{"deploy": "web", "rs": "web-1", "pod": "web-0"}[kind]+map[bool]string{true: "x"}[!slices.Contains([]string{"deploy", "rs", "pod"}, kind)])...)
		}
		for _, command := range []string{"get nodes", "get containers -o json", "scan", "audit"} {
			capture(t, c.args(strings.Fields(command)...)...)
		}
		for access := range c.Asked() {
			asked[access] = true
		}
	}
	rules := readReader(t)
	for access := range asked {
		if !rules.allows(access) {
			t.Errorf("it does not allow %+v", access)
		}
	}
	for _, role := range rules {
		for _, rule := range role.Rules {
			for _, verb := range rule.Verbs {
				used := slices.ContainsFunc(rule.Resources, func(resource string) bool {
					for access := range asked {
						if access.Verb == verb && access.Resource == resource && access.Group == rule.APIGroups[0] {
							return true
						}
					}
					return false
				})
				if !used {
					t.Errorf("nobody needs %s on %v", verb, rule.Resources)
				}
			}
		}
	}
}

// TestKrewManifest: what krew asks of a plugin's manifest.
func TestKrewManifest(t *testing.T) {
	text, err := os.ReadFile("../../deploy/krew/capdrift.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct {
		APIVersion, Kind string
		Metadata         struct{ Name string }
		Spec             struct {
			Version, Homepage, ShortDescription, Description, Caveats string
			Platforms                                                 []struct {
				Selector         struct{ MatchLabels struct{ OS, Arch string } }
				URI, SHA256, Bin string
			}
		}
	}
	if err := yaml.UnmarshalStrict(text, &plugin); err != nil {
		t.Fatal(err)
	}
	if plugin.Kind != "Plugin" || plugin.Metadata.Name != strings.TrimPrefix(pluginFile, "kubectl-") || len(plugin.Spec.ShortDescription) > 50 || len(plugin.Spec.Platforms) == 0 {
		t.Errorf("%+v", plugin)
	}
	sum := regexp.MustCompile("^[0-9a-f]{64}$")
	for _, p := range plugin.Spec.Platforms {
		name := pluginFile + "_" + p.Selector.MatchLabels.OS + "_" + p.Selector.MatchLabels.Arch + ".tar.gz"
		if p.Bin != pluginFile || !sum.MatchString(p.SHA256) || !strings.HasSuffix(p.URI, "/"+plugin.Spec.Version+"/"+name) {
			t.Errorf("%+v", p)
		}
	}
}
