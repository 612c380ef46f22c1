package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/drift"
)

// tree writes files below a directory of the test's.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func podNames(pods drift.Pods) (names []string) {
	for _, spec := range pods.Specs {
		names = append(names, spec.Namespace+"/"+spec.Name+"@"+spec.UID)
	}
	return names
}

func named(name string) string { return strings.Replace(aPod(), "web", name, 1) }

func TestFilesAreWalked(t *testing.T) {
	root := tree(t, map[string]string{
		"b.yml": named("b"), "a/z.yaml": named("z"), "a/c.json": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"},"spec":{"containers":[{"name":"app"}]}}`,
		"a/readme.md": "not this", "a/.hidden.yaml": named("hidden"), "..data/d.yaml": named("data"),
	})
	for link, to := range map[string]string{"a/loop": "..", "l.yaml": "b.yml", "dir.yaml": "a", "gone.yaml": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	pods, err := Files{Paths: []string{root}}.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"default/c@", "default/z@", "default/b@", "default/b@"}; !slices.Equal(podNames(pods), want) {
		t.Errorf("got %q, want %q", podNames(pods), want)
	}
	if pods.Whole || pods.Source != root {
		t.Errorf("the source is %+v", pods)
	}
	if len(pods.Limits) != 1 || !strings.Contains(pods.Limits[0].Why, "gone.yaml: no such file") || !pods.Limits[0].Blind {
		t.Errorf("the limits are %+v, want the link to nowhere", pods.Limits)
	}
}

func TestFilesGiveWhatAScanCanUse(t *testing.T) {
	root := tree(t, map[string]string{
		"pods.yaml":   "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: u-1}, spec: {containers: [{name: app}]}}\n",
		"static.yaml": strings.Replace(named("etcd"), "  name: etcd", "  name: etcd\n  namespace: kube-system", 1),
		"work.yaml":   "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{name: app}]}}}\n",
		"bad.yaml":    "kind: Pod\n---\n" + named("good"),
	})
	source := Files{Paths: []string{root}, NodeName: "Node-1"}
	pods, err := source.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"default/good@", "default/good-node-1@", "shop/web@u-1", "kube-system/etcd@", "kube-system/etcd-node-1@"}
	if got := podNames(pods); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	limits := fmt.Sprintf("%+v", pods.Limits)
	for _, want := range []string{"1 templates of workloads", "kubectl get pods -A -o yaml prints Blind:false", "bad.yaml, document 1, line 1", "Blind:true"} {
		if !strings.Contains(limits, want) {
			t.Errorf("the limits are %s, want %q", limits, want)
		}
	}
	// They are read anew.
	if err := os.Remove(filepath.Join(root, "pods.yaml")); err != nil {
		t.Fatal(err)
	}
	if pods, err := source.Pods(t.Context()); err != nil || slices.Contains(podNames(pods), "shop/web@u-1") {
		t.Errorf("after its file was removed: %v, %v", podNames(pods), err)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	root := tree(t, map[string]string{"empty/x.md": "", "bad/x.yaml": "kind: ["})
	for _, test := range []struct{ path, want string }{
		{filepath.Join(root, "nowhere"), "no such file or directory"},
		{filepath.Join(root, "empty"), "has no manifests: no *.yaml"},
		{filepath.Join(root, "bad"), "document 1, line 1"},
	} {
		if _, err := (Files{Paths: []string{test.path}}).Pods(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.path, err, test.want)
		}
	}
	if _, err := (Files{Paths: []string{filepath.Join(root, "nowhere")}}).Pods(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Files{Paths: []string{root}}).Pods(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	many := make(map[string]string)
	for i := range maxFiles + 1 {
		many[fmt.Sprintf("%d.yaml", i)] = ""
	}
	if _, err := (Files{Paths: []string{tree(t, many)}}).Pods(t.Context()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v, want too large", err)
	}
}
