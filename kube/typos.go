package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// shape says which fields an object may have, as far as capabilities depend on
// it. Kubernetes drops a field that it does not know, and kubectl's validation,
// which would refuse it, is not in the way of Helm and of static pods: a misspelt
// securityContext takes effect as none at all.
type shape struct {
	all    []string // the only fields; nil where Kubernetes adds fields too often to list them
	decide []string // where all is nil: a field nearly of this name is a misspelt one
	alien  []string // nor may a field be of this name, or nearly: it belongs elsewhere
	inside map[string]shape
}

// ofSecurity is alien to all but a container's securityContext.
var ofSecurity = []string{"capabilities", "privileged", "allowPrivilegeEscalation"}

var capabilitiesShape = shape{all: []string{"add", "drop"}}

// Source: k8s.io/api core/v1 types.go, which a test holds these lists against.
var containerShape = shape{
	decide: []string{"securityContext", "restartPolicy"},
	alien:  []string{"runAsUser", "runAsNonRoot"},
	inside: map[string]shape{"securityContext": {
		all: []string{
			"allowPrivilegeEscalation", "appArmorProfile", "capabilities", "privileged", "procMount", "readOnlyRootFilesystem",
			"runAsGroup", "runAsNonRoot", "runAsUser", "seLinuxOptions", "seccompProfile", "windowsOptions",
		},
		inside: map[string]shape{"capabilities": capabilitiesShape},
	}},
}

var templateShape = shape{
	decide: []string{"spec"},
	inside: map[string]shape{"spec": {
		decide: []string{"containers", "initContainers", "ephemeralContainers", "securityContext", "hostUsers", "runtimeClassName"},
		inside: map[string]shape{
			"containers": containerShape, "initContainers": containerShape, "ephemeralContainers": containerShape,
			"securityContext": {all: []string{
				"appArmorProfile", "fsGroup", "fsGroupChangePolicy", "runAsGroup", "runAsNonRoot", "runAsUser", "seLinuxChangePolicy",
				"seLinuxOptions", "seccompProfile", "supplementalGroups", "supplementalGroupsPolicy", "sysctls", "windowsOptions",
			}},
		},
	}},
}

// unknown yields the fields below an object that Kubernetes would drop and that
// were meant to decide capabilities.
func (s shape) unknown(at path, raw json.RawMessage, yield func(at path, err error)) {
	if strings.HasPrefix(string(raw), "[") {
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil {
			for i, item := range list {
				s.unknown(at.with(i), item, yield)
			}
		}
		return
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return // null, or what decoding refuses
	}
	for _, field := range slices.Sorted(maps.Keys(object)) {
		at := at.with(field)
		if inner, deeper := s.inside[field]; deeper {
			inner.unknown(at, object[field], yield)
			continue
		}
		if slices.Contains(s.all, field) || slices.Contains(s.decide, field) {
			continue
		}
		hint := ""
		if near := nearest(field, slices.Concat(s.all, s.decide)); near != "" {
			hint = fmt.Sprintf("did you mean %s?", near)
		} else if near := nearest(field, slices.Concat(s.alien, ofSecurity)); near != "" {
			hint = near + " belongs into a container's securityContext"
		} else if s.all != nil {
			hint = "it knows " + strings.Join(s.all, ", ")
		}
		if hint != "" {
			yield(at, fmt.Errorf("there is no such field here, and Kubernetes would drop it; %s", hint))
		}
	}
}

func nearest(field string, names []string) string {
	for _, name := range names {
		if alike(field, name) {
			return name
		}
	}
	return ""
}

// alike says that one text is the other but for its case and a slip or two.
func alike(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	slips := min(2, len(b)/4)
	if len(a) > len(b)+slips || len(b) > len(a)+slips {
		return false
	}
	// Levenshtein's distance, a row at a time.
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)] <= slips
}
