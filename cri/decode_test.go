package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/capdrift/capdrift/cri/fake"
	"github.com/capdrift/capdrift/drift"
)

// The secrets of a container: a text, and a number for where encoding/json
// quotes those that do not fit.
const (
	secret       = "hunter2-hunter2"
	secretNumber = "31337313373133731337"
)

// leaks tells where a secret is in a value, whatever it points to and whether or
// not the field is exported.
func leaks(value any) string {
	var at string
	seen := map[uintptr]bool{}
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			if strings.Contains(v.String(), "hunter2") || strings.Contains(v.String(), "31337") {
				at = path
			}
		case reflect.Pointer:
			if !v.IsNil() && !seen[v.Pointer()] {
				seen[v.Pointer()] = true
				walk(path, v.Elem())
			}
		case reflect.Interface:
			if !v.IsNil() {
				walk(path, v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i))
			}
		case reflect.Map:
			for _, key := range v.MapKeys() {
				walk(path+" key", key)
				walk(path+" value", v.MapIndex(key))
			}
		}
	}
	walk(fmt.Sprintf("%T", value), reflect.ValueOf(value))
	return at
}

// withSecrets plants the secret wherever a captured info may hold one.
func withSecrets(tb testing.TB, capture string) map[string]any {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("..", "testdata", "captures", capture, "info.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		tb.Fatal(err)
	}
	entry := "TOKEN=" + secret
	secrets := map[string]any{"example.com/" + secret: secret}
	spec := tree["runtimeSpec"].(map[string]any)
	process := spec["process"].(map[string]any)
	process["env"], process["args"] = []string{entry, secret + "=x"}, []string{"run", secret, secretNumber}
	spec["annotations"], spec["hostname"] = secrets, secret
	if config, ok := tree["config"].(map[string]any); ok {
		config["envs"] = []any{map[string]any{"key": "TOKEN", "value": secret}}
		config["command"], config["args"], config["annotations"], config["labels"] = []string{secret}, []string{secret}, secrets, secrets
	}
	return tree
}

func marshal(tb testing.TB, value any) string {
	tb.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}

// variants are the ways in which an info with secrets can be broken: as it is,
// cut, and in every place the secret in a value of the wrong type. (Of the right
// type it would be a capability's name, which is shown.)
func variants(tb testing.TB, tree map[string]any) []string {
	tb.Helper()
	whole := marshal(tb, tree)
	texts := []string{whole}
	for cut := 0; cut < len(whole); cut += 7 {
		texts = append(texts, whole[:cut])
	}
	for at := strings.Index(whole, secret); at >= 0; {
		texts = append(texts, whole[:at+len(secret)/2], whole[at:], "{"+whole[at:], whole[:at]+`"`+whole[at:])
		next := strings.Index(whole[at+1:], secret)
		if next < 0 {
			break
		}
		at += 1 + next
	}
	var mistype func(node any, put func(any))
	mistype = func(node any, put func(any)) {
		for _, other := range []any{json.Number(secretNumber), [][]string{{secret}}, map[string]string{secret: secret}} {
			put(other)
			texts = append(texts, marshal(tb, tree))
		}
		put(node)
		switch node := node.(type) {
		case map[string]any:
			for key, child := range node {
				mistype(child, func(v any) { node[key] = v })
			}
		case []any:
			for i, child := range node[:min(len(node), 1)] {
				mistype(child, func(v any) { node[i] = v })
			}
		}
	}
	for key, child := range tree {
		mistype(child, func(v any) { tree[key] = v })
	}
	return texts
}

// told reads an info as it comes over the wire.
func told(answer map[string]string) (*verbose, error) {
	var message []byte
	for key, value := range answer {
		entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
		entry = protowire.AppendString(protowire.AppendTag(entry, 2, protowire.BytesType), value)
		message = protowire.AppendBytes(protowire.AppendTag(message, 2, protowire.BytesType), entry)
	}
	v := &verbose{}
	return v, v.read(bytes.NewReader(message))
}

func decodeInfo(answer map[string]string) (facts, error) {
	v, err := told(answer)
	if err != nil {
		return facts{}, err
	}
	return v.facts()
}

func decodeSandbox(answer map[string]string) (facts, error) {
	v, err := told(answer)
	if err != nil {
		return facts{}, err
	}
	return v.sandbox()
}

// TestSecretsStayInside plants a secret in the environment, the arguments and
// the annotations, in good and in broken answers, and looks for it in all that
// comes out.
func TestSecretsStayInside(t *testing.T) {
	for _, capture := range []string{"containerd-2.4.2/default", "cri-o-1.37.0/userns"} {
		tree := withSecrets(t, capture)
		texts := variants(t, tree)
		if len(texts) < 500 {
			t.Fatalf("only %d variants", len(texts))
		}
		refused := 0
		for _, text := range texts {
			for _, decode := range []func(map[string]string) (facts, error){decodeInfo, decodeSandbox} {
				f, err := decode(map[string]string{"info": text, secret: secret})
				if err != nil {
					refused++
				}
				if at := leaks(f) + leaks(fmt.Sprint(err)) + leaks(fmt.Sprintf("%#v", err)); at != "" {
					t.Fatalf("%s: the secret is in %s, error %v, of %.300s", capture, at, err, text)
				}
			}
			if s, err := decodeSpec(strings.NewReader(text)); leaks(s)+leaks(fmt.Sprint(err)) != "" {
				t.Fatalf("%s: the secret is in the spec or in %v", capture, err)
			}
		}
		if refused < 300 {
			t.Errorf("%s: only %d refused, so the errors were hardly tried", capture, refused)
		}
	}
}

// TestSecretsStayInsideAnInventory is the same through the whole client.
func TestSecretsStayInsideAnInventory(t *testing.T) {
	node, err := fake.Load(filepath.Join("..", "testdata", "captures", "containerd-2.4.2"))
	if err != nil {
		t.Fatal(err)
	}
	good := withSecrets(t, "containerd-2.4.2/default")
	texts := variants(t, good)
	whole := marshal(t, good)
	node.Containers[0].Info = whole
	node.Sandboxes[0].Info = whole
	for i, c := range node.Containers[1:] {
		text := texts[(i+1)*len(texts)/len(node.Containers)]
		c.Info = text
		c.Status.Annotations = map[string]string{secret: secret}
		node.Sandboxes[i+1].Info = text
		node.Sandboxes[i+1].Status.Annotations = map[string]string{secret: secret}
	}
	spec := marshal(t, good["runtimeSpec"])
	node.Tasks["moby"] = []*fake.Task{
		{ID: "good", Status: task.Status_RUNNING, Spec: spec, Labels: map[string]string{"env": secret}},
		{ID: "cut", Status: task.Status_RUNNING, Spec: spec[:len(spec)/2]},
	}
	server := fake.Serve(t, node)
	client, err := Connect(t.Context(), Options{Endpoint: server.Endpoint, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	got, err := client.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	count := map[drift.Observation]int{}
	for _, c := range got.Containers {
		count[c.Observation]++
	}
	if count[drift.Observed] < 3 || count[drift.Unreadable] < 10 {
		t.Errorf("too little was tried: %v", count)
	}
	if at := leaks(got) + leaks(client.known) + leaks(marshal(t, got)) + leaks(fmt.Sprintf("%+v", got)); at != "" {
		t.Errorf("the secret is in %s", at)
	}
	server.Update(func(n *fake.Node) {
		n.Before = func(context.Context, string) error { return fmt.Errorf("boom") }
	})
	if _, err := client.Inventory(t.Context()); err == nil || leaks(err.Error()) != "" {
		t.Errorf("error %v", err)
	}
}

// errorForms are all the errors of the decoders: none has room for input.
var errorForms = regexp.MustCompile(`^(the (verbose status|OCI spec) (is not JSON \(at byte \d+\)|is not of the form expected|is empty)|the verbose status has a negative pid)$`)

// check holds what is true of any facts: nothing at all with an error, else
// sorted and bounded, and a reason where something is missing.
func check(t *testing.T, f facts, err error) {
	t.Helper()
	if err != nil {
		if !reflect.DeepEqual(f, facts{}) || !errorForms.MatchString(err.Error()) {
			t.Fatalf("error %q with %+v", err, f)
		}
		return
	}
	if f.oci == nil {
		if len(f.missing) == 0 {
			t.Fatalf("no OCI layer and no reason: %+v", f)
		}
		return
	}
	names := f.oci.UnknownNames
	if names == nil || len(names) > maxUnknown || !slices.IsSorted(names) && !slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, "…") }) {
		t.Fatalf("unknown names %q", names)
	}
	if f.oci.UIDMap != nil && !f.oci.UserNamespace || len(f.cgroupPath) > maxPath || f.pid < 0 {
		t.Fatalf("%+v", f)
	}
}

// The seeds of the fuzzers are short: the go command takes minutes to shrink
// what it finds in a long one.
const (
	seedSpec = `{"process":{"user":{"uid":1000},"env":["A=b"],"capabilities":{"bounding":["CAP_KILL","x"],"ambient":null},"noNewPrivileges":true},` +
		`"linux":{"cgroupsPath":"/a","namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1,"size":2}]}}`
	seedInfo = `{"pid":7,"runtimeType":"io.containerd.runc.v2","runtimeOptions":{"binary_name":"crun"},"runtimeSpec":` + seedSpec +
		`,"config":{"linux":{"security_context":{"capabilities":{"add_capabilities":["ALL"]},"privileged":true}}}}`
)

func FuzzDecodeInfo(f *testing.F) {
	for _, text := range []string{seedInfo, "", "null", "{}", "[]", `{"pid":1e3}`, `{"runtimeSpec":{"process":{"capabilities":{"bounding":["CAP_KILL","x",""]}}}}`, `{"runtimeOptions":3}`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		answer := map[string]string{"info": text}
		got, err := decodeInfo(answer)
		check(t, got, err)
		sandbox, err := decodeSandbox(answer)
		if sandbox.cri != nil || sandbox.spoofed && (err != nil || sandbox.pid != 0) {
			t.Fatalf("%+v, %v", sandbox, err)
		}
		if again, _ := decodeInfo(answer); !reflect.DeepEqual(got, again) {
			t.Fatalf("decoded twice: %+v and %+v", got, again)
		}
	})
}

func FuzzDecodeSpec(f *testing.F) {
	for _, text := range []string{seedSpec, "", "null", "{}", `{"process":null}`, `{"process":{"user":{"uid":-1}}}`, `{"linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"size":1}]}}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := decodeSpec(bytes.NewReader(text))
		if err != nil && s != nil {
			t.Fatalf("%+v with %v", s, err)
		}
		var got facts
		if err == nil {
			got.take(s)
		}
		check(t, got, err)
	})
}

// FuzzSecrets lets the environment, an argument and an annotation be anything,
// around a secret, and the answer cut anywhere.
func FuzzSecrets(f *testing.F) {
	for _, text := range []string{"TOKEN=", `"`, `","capabilities":{"bounding":["`, "\\", "\x00", "}}", "\u2028"} {
		f.Add(text, text, text, uint(1<<20))
		f.Add(text, "", text, uint(200))
	}
	var tree map[string]any
	if err := json.Unmarshal([]byte(seedInfo), &tree); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, env, argument, annotation string, cut uint) {
		spec := tree["runtimeSpec"].(map[string]any)
		process := spec["process"].(map[string]any)
		process["env"], process["args"] = []string{env + secret}, []string{argument + secret, secretNumber}
		spec["annotations"] = map[string]string{"example.com/" + annotation + secret: annotation + secret}
		text := marshal(t, tree)
		text = text[:min(uint(len(text)), cut)]
		got, err := decodeInfo(map[string]string{"info": text})
		check(t, got, err)
		if at := leaks(got) + leaks(fmt.Sprint(err)); at != "" {
			t.Fatalf("the secret is in %s, error %v", at, err)
		}
	})
}

// TestConfigBesideCapabilities: an absent type of seccomp profile is the first of
// its kinds, and an absent profile is none.
func TestConfigBesideCapabilities(t *testing.T) {
	for security, want := range map[string]string{
		`{}`:                                    "none false",
		`{"seccomp":{},"readonly_rootfs":true}`: "RuntimeDefault true",
		`{"seccomp":{"profile_type":1}}`:        "Unconfined false",
		`{"seccomp":{"profile_type":2,"localhost_ref":"/p/audit.json"}}`: "Localhost false",
		`{"seccomp":{"profile_type":3}}`:                                 "3 false",
	} {
		layer, err := DecodeContainerConfig([]byte(`{"linux":{"security_context":` + security + `}}`))
		profile := "none"
		if layer.SeccompProfile != nil {
			profile = *layer.SeccompProfile
		}
		if got := fmt.Sprint(profile, " ", layer.ReadOnlyRootFilesystem); err != nil || got != want {
			t.Errorf("%s is read as %s, %v; want %s", security, got, err, want)
		}
	}
}
