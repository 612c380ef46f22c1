package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
)

// What an author chooses of a custom resource, and we bound.
const (
	maxCustom      = 4 << 20 // bytes; Kubernetes stores 1.5 MiB of an object
	maxCustomDepth = 40      // fields and lists in each other
	maxShapes      = 100     // pod specs of one object
	// maxLooked bounds, for one stream, the bytes of all objects and lists that are
	// looked into, each counted once for every one that it is in.
	maxLooked = 64 << 20
	perLook   = 128 // about what one costs beside its bytes
)

// shapes are the fields in which kinds keep containers, and the list of a pod spec
// that they are in. Those of Argo (container, script, sidecars) and of Tekton
// (steps, sidecars) stand where the others have a pod spec.
var shapes = []struct {
	field, of string
	single    bool // one container, not a list
}{
	{"initContainers", "initContainers", false},
	{"containers", "containers", false},
	{"container", "containers", true},
	{"script", "containers", true},
	{"steps", "containers", false},
	{"sidecars", "containers", false},
	{"ephemeralContainers", "ephemeralContainers", false},
}

// ofContainer are fields that only a container has.
var ofContainer = []string{
	"image", "command", "args", "securityContext", "env", "envFrom", "volumeMounts", "lifecycle", "livenessProbe", "readinessProbe", "imagePullPolicy",
}

// deciding are fields of a pod spec by which a pod may do more.
var deciding = []string{"hostNetwork", "hostPID", "hostIPC", "privileged", "allowPrivilegeEscalation", "podSpecPatch"}

// ofPod are the fields of a pod that others may state for it: a Workflow's for its
// templates, a TaskRun's podTemplate for its steps.
var ofPod = []string{"securityContext", "hostNetwork", "hostPID", "hostIPC", "hostUsers", "runtimeClassName", "volumes"}

// ofPodOnly are fields of a securityContext that no container's has; ofContainerOnly
// those that no pod's has.
var (
	ofPodOnly       = []string{"fsGroup", "fsGroupChangePolicy", "supplementalGroups", "supplementalGroupsPolicy", "sysctls"}
	ofContainerOnly = []string{"allowPrivilegeEscalation", "capabilities", "privileged", "procMount", "readOnlyRootFilesystem"}
)

// manifestText is a manifest in a text: Argo's resource templates, a chart's values.
var manifestText = regexp.MustCompile(`(?m)^[\s{\["-]*(containers|initContainers|securityContext)"?\s*:|"(containers|initContainers|securityContext)"\s*:`)

type members map[string]json.RawMessage

// custom looks into a custom resource by the shape of what is in it.
func (in *reader) custom(at path, raw json.RawMessage, kind, group string) {
	m, meta, ok := in.begin(at, raw, kind+"."+group)
	if !ok {
		return
	}
	m.Template = true
	f := finder{in: in, base: at, group: group, meta: meta, m: m}
	switch {
	case slices.Contains(patterns, group):
	case len(raw) > maxCustom:
		f.leave(at, fmt.Sprintf("larger than %d MiB, which Kubernetes does not store", maxCustom>>20))
	default:
		f.object(at, raw, nil)
	}
	if f.found == 0 {
		in.skip(Skipped{Kind: m.Kind, Custom: true})
	}
}

// finder looks for pods in one custom resource.
type finder struct {
	in    *reader
	base  path // of the resource
	group string
	meta  metadata
	m     Manifest // what is the same of all pods
	// metadata is that of the template whose spec is looked into; nil where there is none.
	metadata json.RawMessage
	found    int
	ended    bool // at a bound
}

func (f *finder) leave(at path, why string) {
	f.in.leave(Unjudged{Kind: clip(f.m.Kind), Namespace: f.m.Namespace, Name: f.m.Name, Why: why}, at)
}

// end stops at a bound.
func (f *finder) end(at path, why string) {
	f.leave(at, why)
	f.ended = true
}

// value looks into whatever stands somewhere. The inherited members are those that
// an object above states for all pods below it.
func (f *finder) value(at path, raw json.RawMessage, inherited members) {
	if f.ended || len(raw) == 0 {
		return
	}
	if f.in.looked += len(raw) + perLook; f.in.looked > maxLooked {
		f.end(at[:len(f.base)+1], "there is too much in the custom resources of this stream to look into it; give fewer at once")
		return
	}
	if len(at)-len(f.base) > maxCustomDepth {
		f.end(at[:len(f.base)+1], fmt.Sprintf("deeper than %d fields, and not looked into", maxCustomDepth))
		return
	}
	switch raw[0] {
	case '{':
		f.object(at, raw, inherited)
	case '[':
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil {
			for i, item := range list {
				f.value(at.with(i), item, inherited)
			}
		}
	case '"':
		var text string
		if json.Unmarshal(raw, &text) == nil && manifestText.MatchString(text) {
			f.leave(at, "a text that has the shape of a manifest with containers, which is not looked into")
		}
	}
}

func (f *finder) object(at path, raw json.RawMessage, inherited members) {
	var o members
	if !f.in.decode(at, raw, &o) {
		f.ended = true // it is an error already
		return
	}
	taken := make(map[string]bool) // fields that were judged, or are none of a pod
	for _, none := range []string{"annotations", "managedFields"} {
		taken[none] = true
	}
	if len(at) == len(f.base) {
		taken["metadata"], taken["status"] = true, true
	}
	if parts := f.containers(at, o, taken); len(parts) > 0 {
		f.pod(at, o, inherited, parts, taken)
	} else {
		inherited = f.states(o, inherited, taken)
		f.alone(at, o, taken)
		for _, field := range deciding {
			if value := string(o[field]); !taken[field] && value != "" && value != "false" && value != "null" && value != `""` {
				f.leave(at.with(field), "it decides what pods may do, and stands in no pod spec that is known")
				taken[field] = true
			}
		}
	}
	above := f.metadata
	for _, field := range slices.Sorted(maps.Keys(o)) {
		if taken[field] {
			continue
		}
		if f.metadata = nil; field == "spec" {
			f.metadata = o["metadata"]
		}
		f.value(at.with(field), o[field], inherited)
	}
	f.metadata = above
}

// shaped is a container that was found.
type shaped struct {
	at   path
	raw  json.RawMessage
	of   string // the list of a pod spec
	name string // where it has none
}

// containers are those that stand in an object as in a pod spec.
func (f *finder) containers(at path, o members, taken map[string]bool) (found []shaped) {
	holds := isContainer
	if n := len(at); n > 0 && (at[n-1] == "spec" || at[n-1] == "podSpec" || at[n-1] == "template") {
		holds = hasName // a container may say nothing else in a pod's own spec
	}
	for _, shape := range shapes {
		raw := o[shape.field]
		if len(raw) == 0 {
			continue
		}
		if shape.single {
			if !isContainer(raw) {
				continue
			}
			name := shape.field
			if f.group == "argoproj.io" {
				name = "main"
			}
			found = append(found, shaped{at.with(shape.field), raw, shape.of, name})
			taken[shape.field] = true
			continue
		}
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			continue
		}
		podField := shape.field == shape.of
		if !slices.ContainsFunc(list, isContainer) && (!podField || !slices.ContainsFunc(list, holds)) {
			continue
		}
		for i, item := range list {
			found = append(found, shaped{at.with(shape.field, i), item, shape.of, fmt.Sprintf("%s-%d", strings.ToLower(shape.field), i)})
		}
		taken[shape.field] = true
	}
	return found
}

// isContainer reports whether a value has the shape of a container.
func isContainer(raw json.RawMessage) bool {
	var o members
	return json.Unmarshal(raw, &o) == nil && slices.ContainsFunc(ofContainer, func(field string) bool { return o[field] != nil })
}

func hasName(raw json.RawMessage) bool {
	var o members
	return json.Unmarshal(raw, &o) == nil && o["name"] != nil
}

// states returns what an object states for all pods below it, where its kind is
// known to do so. Elsewhere a pod is not believed to be what something above says.
func (f *finder) states(o, inherited members, taken map[string]bool) members {
	from := o
	switch {
	case f.group == "argoproj.io":
	case f.group == "tekton.dev" && o["podTemplate"] != nil:
		from = nil
		if json.Unmarshal(o["podTemplate"], &from) != nil {
			return inherited
		}
		taken["podTemplate"] = true
	default:
		return inherited
	}
	mine := maps.Clone(inherited)
	for _, field := range ofPod {
		if value := from[field]; value != nil {
			if mine == nil {
				mine = make(members)
			}
			mine[field] = value
			if f.group == "argoproj.io" {
				taken[field] = true
			}
		}
	}
	return mine
}

// pod judges containers that stand in one object as one pod.
func (f *finder) pod(at path, o, inherited members, parts []shaped, taken map[string]bool) {
	if f.found == maxShapes {
		f.end(at, fmt.Sprintf("the object has more than %d pod specs", maxShapes))
		return
	}
	f.found++
	var spec podSpec
	whole := maps.Clone(inherited)
	if whole == nil {
		whole = make(members)
	}
	maps.Copy(whole, o)
	for field, raw := range whole {
		if taken[field] || strings.HasSuffix(field, "ontainers") {
			continue
		}
		one, err := json.Marshal(members{field: raw})
		if err != nil {
			continue // it was decoded
		}
		if field == "securityContext" {
			taken[field] = true
			if !f.in.decode(at, one, &spec) {
				return
			}
			continue
		}
		// A field of a pod spec, or one of this kind's own under the same name.
		trial := spec
		if kjson.UnmarshalCaseSensitivePreserveInts(one, &trial) == nil {
			spec = trial
		} else if slices.Contains([]string{"hostNetwork", "hostPID", "hostIPC", "volumes"}, field) {
			f.leave(at.with(field), "it is not of the form that a pod spec has it in")
			taken[field] = true
		}
	}
	sound := f.spelt(at, o, parts)
	m := f.m
	if m.windows = spec.windows(); m.windows {
		f.in.skip(Skipped{Kind: m.Kind + " for Windows", Windows: true})
	}
	if patch := string(o["podSpecPatch"]); patch != "" && patch != "null" && patch != `""` {
		f.leave(at.with("podSpecPatch"), "a patch of the pod spec, which is not applied")
		taken["podSpecPatch"] = true
	}
	base := stepBase(o, taken)
	lists := map[string]*[]container{"containers": &spec.Containers, "initContainers": &spec.InitContainers, "ephemeralContainers": &spec.EphemeralContainers}
	seen := make(map[string]bool)
	var places []path
	for _, list := range []string{"initContainers", "containers", "ephemeralContainers"} {
		for _, one := range parts {
			if one.of != list {
				continue
			}
			var c container
			if !f.in.decode(one.at, f.fitting(one.at, merged(base, one.raw)), &c) {
				return
			}
			if c.Name == "" || !nameable(c.Name) { // such as a parameter, {{inputs.parameters.name}}
				c.Name = one.name
			}
			for n, name := 2, c.Name; seen[c.Name]; n++ {
				c.Name = name + "-" + strconv.Itoa(n)
			}
			seen[c.Name] = true
			*lists[list] = append(*lists[list], c)
			places = append(places, one.at)
		}
	}
	var marks struct {
		Annotations annotations `json:"annotations"`
	}
	if f.metadata != nil && !f.in.decode(at, f.metadata, &marks) {
		return
	}
	m.Path = clip(at[len(f.base):].String())
	if f.in.tell(at, f.meta, &spec, marks.Annotations, &m) && sound {
		f.in.add(m, f.base, places, spec.refusals(f.meta, at, places))
	}
}

// fitting is a container without the fields that a kind has under the name of a
// container's, in another form.
func (f *finder) fitting(at path, raw json.RawMessage) json.RawMessage {
	var o members
	if json.Unmarshal(raw, &o) != nil {
		return raw
	}
	left := false
	for _, field := range []string{"ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"} {
		one, err := json.Marshal(members{field: o[field]})
		if o[field] == nil || err != nil {
			continue
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(one, new(container)) != nil {
			f.leave(at.with(field), "it is not of the form that a container has it in")
			delete(o, field)
			left = true
		}
	}
	if !left {
		return raw
	}
	kept, err := json.Marshal(o)
	if err != nil {
		return raw
	}
	return kept
}

// spelt reports whether no field is misspelt that decides capabilities: a custom
// resource's fields are dropped as silently as a pod's.
func (f *finder) spelt(at path, o members, parts []shaped) bool {
	sound := true
	wrong := func(at path, err error) {
		sound = false
		f.in.failAt(at, fmt.Errorf("%s: %w", at, err))
	}
	if f.meta.UID != "" {
		return true
	}
	for _, one := range parts {
		containerShape.unknown(one.at, one.raw, wrong)
	}
	if raw := o["securityContext"]; raw != nil {
		templateShape.inside["spec"].inside["securityContext"].unknown(at.with("securityContext"), raw, wrong)
	}
	return sound
}

// stepBase is the securityContext that Tekton's stepTemplate states for all steps
// beside it.
func stepBase(o members, taken map[string]bool) members {
	var template struct {
		SecurityContext members `json:"securityContext"`
	}
	if o["steps"] == nil || json.Unmarshal(o["stepTemplate"], &template) != nil || template.SecurityContext == nil {
		return nil
	}
	taken["stepTemplate"] = true
	return template.SecurityContext
}

// merged is a container with the fields of a securityContext that it does not
// have of its own.
func merged(base members, raw json.RawMessage) json.RawMessage {
	var c struct {
		SecurityContext members `json:"securityContext"`
	}
	var o members
	if base == nil || json.Unmarshal(raw, &o) != nil || json.Unmarshal(raw, &c) != nil {
		return raw
	}
	both := maps.Clone(base)
	maps.Copy(both, c.SecurityContext)
	security, err := json.Marshal(both)
	if err != nil {
		return raw
	}
	o["securityContext"] = security
	whole, err := json.Marshal(o)
	if err != nil {
		return raw
	}
	return whole
}

// alone judges an object that is a container by itself, such as a KServe
// predictor's model; what else has a securityContext is left.
func (f *finder) alone(at path, o members, taken map[string]bool) {
	for _, field := range slices.Sorted(maps.Keys(o)) {
		var security members
		if taken[field] || !strings.HasSuffix(field, "ecurityContext") || json.Unmarshal(o[field], &security) != nil || len(security) == 0 {
			continue
		}
		taken[field] = true
		has := func(list []string) bool {
			return slices.ContainsFunc(list, func(name string) bool { return security[name] != nil })
		}
		if field != "securityContext" || has(ofPodOnly) || !has(ofContainerOnly) && o["image"] == nil {
			f.leave(at.with(field), "it decides what containers may do, and stands beside none that is known")
			continue
		}
		name := "container"
		if len(at) > 0 {
			if last, ok := at[len(at)-1].(string); ok && nameable(strings.ToLower(last)) {
				name = strings.ToLower(last)
			}
		}
		raw, err := json.Marshal(members{"name": o["name"], "securityContext": o[field]})
		if err != nil {
			continue // it was decoded
		}
		f.pod(at, members{}, nil, []shaped{{at, raw, "containers", name}}, taken)
	}
}
