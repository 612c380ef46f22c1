package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Where the schemas are read: modules, so that nothing is asked but Go's proxy.
const (
	kubernetesModule = "k8s.io/kubernetes@v1.36.3"
	operatorModule   = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
)

// module returns the folder of a module's sources.
func module(t *testing.T, name string) string {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", name).Output()
	var told struct{ Dir string }
	if err != nil || json.Unmarshal(text, &told) != nil {
		t.Fatalf("go mod download %s: %v: %s", name, err, text)
	}
	return told.Dir
}

// writeSchemas makes a folder of JSON Schemas in which no object takes unknown fields, one for
// each kind of Kubernetes' own API and of the Prometheus operator's.
func writeSchemas(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(group, version, kind string, schema any) {
		if group == "" {
			group = "v1" // as kubeconform calls the group that has no name
		}
		text, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s-%s-%s.json", group, version, strings.ToLower(kind))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var swagger struct{ Definitions map[string]map[string]any }
	read(t, filepath.Join(module(t, kubernetesModule), "api", "openapi-spec", "swagger.json"), &swagger)
	for _, definition := range swagger.Definitions {
		kinds, _ := definition["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) != 1 {
			continue // what every group has, such as DeleteOptions
		}
		kind := kinds[0].(map[string]any)
		group := kind["group"].(string)
		switch kind["kind"] {
		case "Namespace", "ServiceAccount", "ConfigMap", "ResourceQuota", "DaemonSet", "NetworkPolicy":
			write(group, kind["version"].(string), kind["kind"].(string), strict(swagger.Definitions, definition))
		}
	}
	for _, plural := range []string{"podmonitors", "prometheusrules"} {
		var definition struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema map[string]any `json:"openAPIV3Schema"`
					}
				}
			}
		}
		read(t, filepath.Join(module(t, operatorModule), "example", "prometheus-operator-crd", "monitoring.coreos.com_"+plural+".yaml"), &definition)
		for _, version := range definition.Spec.Versions {
			schema := strict(nil, version.Schema.OpenAPIV3Schema).(map[string]any)
			schema["properties"].(map[string]any)["metadata"] = strict(swagger.Definitions, swagger.Definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"])
			write(definition.Spec.Group, version.Name, definition.Spec.Names.Kind, schema)
		}
	}
	var constraints any // OpenShift publishes no module
	read(t, "testdata/securitycontextconstraints.yaml", &constraints)
	write("security.openshift.io", "v1", "SecurityContextConstraints", constraints)
	return dir
}

// strict puts what a schema refers to in its place, closes objects whose fields are known, and
// says in JSON Schema what OpenAPI says in formats of its own.
func strict(definitions map[string]map[string]any, schema any) any {
	switch schema := schema.(type) {
	case []any:
		list := make([]any, len(schema))
		for i, inner := range schema {
			list[i] = strict(definitions, inner)
		}
		return list
	case map[string]any:
		if ref, ok := schema["$ref"].(string); ok {
			return strict(definitions, definitions[strings.TrimPrefix(ref, "#/definitions/")])
		}
		if schema["format"] == "int-or-string" || schema["x-kubernetes-int-or-string"] == true {
			return map[string]any{"type": []any{"integer", "string"}}
		}
		closed := make(map[string]any, len(schema)+1)
		for key, value := range schema {
			switch inner, isMap := value.(map[string]any); {
			case key == "properties" && isMap:
				fields := make(map[string]any, len(inner))
				for name, field := range inner {
					fields[name] = strict(definitions, field)
				}
				closed[key] = fields
			case key != "format": // int64 and its like, which JSON Schema does not know
				closed[key] = strict(definitions, value)
			}
		}
		_, fields := closed["properties"]
		if _, said := closed["additionalProperties"]; fields && !said {
			closed["additionalProperties"] = false
		}
		return closed
	}
	return schema
}

func read(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
