package kube

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// linesOf says where objects and containers are.
func linesOf(all Manifests) string {
	var text strings.Builder
	for _, m := range all.Objects {
		fmt.Fprintf(&text, "%s %d:", m.Name, m.Line)
		for i, c := range m.Pod.Containers {
			fmt.Fprintf(&text, " %s %d", c.Name, m.Lines[i])
		}
		text.WriteString("; ")
	}
	for _, u := range all.Unjudged {
		fmt.Fprintf(&text, "unjudged %d; ", u.Line)
	}
	return text.String()
}

func TestEachContainerHasItsLine(t *testing.T) {
	const list = `# exported
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: one}
  spec:
    containers:
    - name: a
    - image: x
      name: b
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {name: two}
  spec:
    template:
      spec:
        initContainers:
        -
          name: c
        containers: [{name: d},
          {name: e}]
`
	const listLines = "one 5: a 10 b 11; two 13: c 21 d 22 e 23; "
	const inJSON = `{"apiVersion": "v1", "kind": "List",
 "x": "a \"] { quoted\\", "items": [
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"},
   "spec": {"a": [1, -2.5e3, true, null, {}, [], ""],
    "containers": [
     {"name": "a"}, {"name": "b"},
     {"na\u006de": "c"}]}},
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "two"}, "spec": {"containers": [{"name": "a"}]}}
]}
`
	for _, test := range []struct{ what, stream, want string }{
		{"a list", list, listLines},
		{"a list with lines that end as on Windows", strings.ReplaceAll(list, "\n", "\r\n"), listLines},
		{"a list with a byte order mark", "\ufeff" + list, listLines},
		{"one object", aPod("  - name: two", "    image: x", "  - name: three"), "web 1: app 7 two 8 three 10; "},
		{"several documents", "# a\n---\n" + aPod() + "---\n# b\n\n" + aPod(), "web 3: app 9; web 13: app 19; "},
		{"after documents that have only a comment", "# chart\n---\n" + aPod() + "--- # empty\n# still\n---\n---\n...\n" + aPod() + "...\n", "web 3: app 9; web 15: app 21; "},
		{"files put together with a byte order mark before the second", "\ufeff---\n" + aPod() + "\ufeff---\n" + aPod(), "web 2: app 8; web 10: app 16; "},
		{"a byte order mark behind the marker", aPod() + "---\n\ufeff" + aPod(), "web 1: app 7; web 9: app 15; "},
		{"JSON with a byte order mark before each value", "\ufeff" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"x"}]}}` + "\n\ufeff" +
			`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},` + "\n" + `"spec":{"containers":[{"name":"x"}]}}`, "a 1: x 1; b 2: x 3; "},
		{"JSON", inJSON, "one 3: a 6 b 6 c 7; two 8: a 8; "},
		{"JSON below YAML", aPod() + "---\n" + inJSON, "web 1: app 7; one 11: a 14 b 14 c 15; two 16: a 16; "},
		{"an alias", "x:\n- &c {name: z}\napiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - *c\n", "web 1: z 8; "},
		{"a custom resource in a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: x.example/v1\n  kind: Set\n  metadata: {name: s}\n  spec:\n    securityContext:\n      fsGroup: 1\n    a:\n      containers:\n      - image: i\n",
			"s 4: containers-0 12; unjudged 8; "},
		{"a Template", "apiVersion: v1\nkind: Template\nparameters:\n- {name: A, value: x}\nobjects:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: '${A}'}\n  spec:\n    containers:\n    - name: a\n",
			"x 6: a 11; "},
	} {
		t.Run(test.what, func(t *testing.T) {
			all, err := ReadManifests(strings.NewReader(test.stream), "in.yaml")
			if got := linesOf(all); err != nil || got != test.want {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
		})
	}
}

func TestRepeatedKeysAreToldWithBothLines(t *testing.T) {
	for _, test := range []struct{ what, stream, want string }{
		{"in YAML", "---\n" + aPod("    securityContext: {privileged: true}", "    image: x", "    securityContext: {}"),
			`document 1, line 11: the key "securityContext" is there twice, on lines 9 and 11; Helm, and other clients that do not check it, send the last one alone`},
		{"in JSON", "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\n\"spec\":{\"containers\":[{\"name\":\"a\",\n\"securityContext\":{},\n\"securityContext\":null}]}}",
			`document 1, line 4: the field "spec.containers[0].securityContext" is there twice, on lines 3 and 4; Helm`},
		{"files put together without a marker", aPod() + "\ufeff" + aPod(), `line 8 begins with an invisible byte order mark: were two files put together without a line of --- between them?`},
	} {
		t.Run(test.what, func(t *testing.T) {
			all, err := ReadManifests(strings.NewReader(test.stream+"\n---\n"+aPod()), "in.yaml")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
			if len(all.Objects) != 1 {
				t.Errorf("the good document gave %d objects", len(all.Objects))
			}
		})
	}
}

func TestWhatHasToBeRendered(t *testing.T) {
	for _, test := range []struct{ file, text, want string }{
		{"deploy/kustomization.yaml", "namespace: x\n", "kubectl kustomize deploy"},
		{"-", "resources: [a.yaml]\n", "kubectl kustomize ."},
		{"k.yaml", "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n", "Kustomization of Kustomize"},
		{"k.yaml", "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n", "kubectl kustomize"},
		{"c/Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n", "helm template c"},
		{"c/x.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n", "description of a Helm chart"},
		{"c/values.yaml", "image: x\n", "values of a Helm chart; render the chart first and give what comes of it: helm template c"},
		{"c/values-prod.yml", "image: x\n", "values of a Helm chart"},
		{"p/patch.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3}\n", "if it is a patch of Kustomize, render it first and give what comes of it: kubectl kustomize p"},
		{"p/patch.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {hostNetwork: true}}}\n", "kubectl kustomize p"},
		{"p/patch.yaml", "- {op: replace, path: /spec/replicas, value: 3}\n", "this is a JSON patch, not an object; render it first"},
		{"x.yaml", "image: x\n", "helm template, kubectl kustomize"},
	} {
		t.Run(test.file+" "+test.want, func(t *testing.T) {
			if _, err := ReadManifests(strings.NewReader(test.text), test.file); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}

// FuzzScanner holds the scanner against the decoder: it visits the same names, and
// ends where the text does.
func FuzzScanner(f *testing.F) {
	for _, seed := range []string{`{"a": [1, "b\"", {"c\u0064": null}]}`, `"x"`, `[]`, `{"a":{},"b":[[-1e9]]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var value any
		if json.Unmarshal([]byte(text), &value) != nil {
			return
		}
		names, items := 0, 0
		var count visitor
		count = func(step any, _ int) visitor {
			if _, named := step.(string); named {
				names++
			} else {
				items++
			}
			return count
		}
		s := scanner{text: []byte(text), line: 1}
		s.value(count)
		if s.next() != 0 || s.line != 1+strings.Count(text, "\n") {
			t.Fatalf("it ends at %d of %d, on line %d", s.at, len(text), s.line)
		}
		wantNames, wantItems := 0, 0
		decoder := json.NewDecoder(strings.NewReader(text))
		var open []rune // { before a name, : before its value, [ in a list
		for {
			token, err := decoder.Token()
			if err != nil {
				break
			}
			delim, _ := token.(json.Delim)
			if delim == '}' || delim == ']' {
				open = open[:len(open)-1]
				continue
			}
			if n := len(open); n > 0 {
				switch open[n-1] {
				case '{':
					wantNames++
					open[n-1] = ':'
					continue
				case ':':
					open[n-1] = '{'
				case '[':
					wantItems++
				}
			}
			if delim != 0 {
				open = append(open, rune(delim))
			}
		}
		if names != wantNames || items != wantItems {
			t.Fatalf("%d names and %d items, want %d and %d", names, items, wantNames, wantItems)
		}
	})
}
