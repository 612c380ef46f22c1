package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// What is not a manifest, and lies among them all the same: the sources that
// Kustomize and Helm render manifests of.

// ofKustomization are fields that a kustomization has, and others have not.
var ofKustomization = []string{
	"resources", "bases", "components", "patches", "patchesStrategicMerge", "patchesJson6902", "configMapGenerator", "secretGenerator",
	"helmCharts", "generators", "transformers", "namePrefix", "nameSuffix", "commonLabels",
}

// directory is where a file is, for commands that a person copies.
func (in *reader) directory() string {
	if !strings.ContainsRune(in.file, filepath.Separator) {
		return "."
	}
	return shown(filepath.Dir(in.file))
}

// kustomize says how to get at what Kustomize makes.
func (in *reader) kustomize() string {
	return fmt.Sprintf("; render it first and give what comes of it: kubectl kustomize %s", in.directory())
}

// patch is said of an object that may be one, without the containers that it changes.
func (in *reader) patch() string {
	return "; if it is a patch of Kustomize, render it first and give what comes of it: kubectl kustomize " + in.directory()
}

// kindless says what an object without a kind is likely to be.
func (in *reader) kindless(raw json.RawMessage) error {
	var o map[string]json.RawMessage
	if err := json.Unmarshal(raw, &o); err != nil {
		return errors.New("it has no kind")
	}
	has := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return o[name] == nil })
	}
	file := strings.ToLower(filepath.Base(in.file))
	ext := filepath.Ext(file)
	switch name := strings.TrimSuffix(file, ext); {
	case name == "kustomization", !has("apiVersion") && slices.ContainsFunc(slices.Collect(maps.Keys(o)), func(name string) bool { return slices.Contains(ofKustomization, name) }):
		return fmt.Errorf("this is a kustomization, and what it makes of other manifests is not in it%s", in.kustomize())
	case name == "chart", has("apiVersion", "name", "version"):
		return fmt.Errorf("this is the description of a Helm chart; render the chart first and give what comes of it: helm template %s", in.directory())
	case name == "values", strings.HasPrefix(name, "values-"), strings.HasPrefix(name, "values."), strings.HasSuffix(name, "-values"), strings.HasSuffix(name, ".values"):
		return fmt.Errorf("these are the values of a Helm chart; render the chart first and give what comes of it: helm template %s", in.directory())
	}
	return errors.New("it has no kind; want a Kubernetes object, or a CRI container config with metadata and linux; " +
		"what Helm or Kustomize makes manifests of has to be rendered first (helm template, kubectl kustomize)")
}

// patches reports whether a value is a JSON patch (RFC 6902): a list of operations.
func patches(raw json.RawMessage) bool {
	if len(raw) == 0 || raw[0] != '[' {
		return false
	}
	var list []struct {
		Op   string `json:"op"`
		Path string `json:"path"`
	}
	return json.Unmarshal(raw, &list) == nil && len(list) > 0 && list[0].Op != "" && list[0].Path != ""
}
