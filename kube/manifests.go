package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"

	"github.com/capdrift/capdrift/drift"
)

const (
	maxDocuments = 10_000
	maxErrors    = 20      // said of one stream; after as many the rest is read all the same
	maxConfig    = 1 << 20 // of a CRI container config
	maxKinds     = 256     // told apart among the objects without pods
	maxNested    = 4       // lists in lists, templates among them
	maxUnjudged  = 1_000   // named of one stream; the rest is counted
)

// Manifest is one object of a stream that has, or is, a pod template; or a CRI
// container config.
type Manifest struct {
	File     string // as given to [ReadManifests]
	Document int    // from 1, in its file; those without content do not count
	Line     int    // of the object: its item in a list, else the document's first line with content

	Kind, Namespace, Name string // as written: no namespace where the manifest leaves it to kubectl
	// Path is where the pod spec stands in a custom resource that was looked into
	// by its shape, which may have several: spec.templates[1]. Kind then has its
	// group: Workflow.argoproj.io.
	Path string

	// Pod is what the object asks for. It has a name where the object is a Pod
	// that has one, and a uid where it was read from a cluster.
	Pod drift.PodSpec
	// Template says that the pods have names of their own.
	Template bool
	// Lines are those of the pod's containers, in their order.
	Lines []int
	// Refused are rules of the API server's validation that the pod breaks: it never runs.
	// They are up to twenty.
	Refused []Refusal

	// Raw is a CRI ContainerConfig as crictl takes it, in JSON and not looked
	// into: it may hold secrets. Kind is then empty.
	Raw json.RawMessage

	windows bool
}

// Skipped counts objects of one kind that were not looked into.
type Skipped struct {
	Kind   string // with its group where that is not Kubernetes' own, as kubectl writes it: Kafka.strimzi.io
	Custom bool   // a custom resource, which may have pods all the same
	// Windows says that its pods are for Windows: no rule about Linux is for them.
	Windows bool
	Count   int
}

// Unjudged is a part of a custom resource that decides what a pod may do, and that
// was not understood.
type Unjudged struct {
	File                  string
	Document, Line        int
	Kind, Namespace, Name string // the kind with its group
	Path                  string // of the part
	Why                   string
}

func (u Unjudged) String() string {
	return fmt.Sprintf("%s, document %d, line %d: %s %s: %s: %s",
		shown(u.File), u.Document, u.Line, shown(u.Kind), shown(strings.TrimPrefix(u.Namespace+"/"+u.Name, "/")), u.Path, u.Why)
}

// Manifests is what a stream of manifests holds.
type Manifests struct {
	Objects []Manifest
	// Windows are the objects whose pods are for Windows. They are counted in Skipped too:
	// of what the kernel of Linux holds there is nothing to say.
	Windows []Manifest
	Skipped []Skipped // by kind
	// Unjudged are up to a thousand. More says how many there are beyond them.
	Unjudged     []Unjudged
	MoreUnjudged int
}

// ManifestError says what is wrong with one document, and where.
type ManifestError struct {
	File     string
	Document int
	Line     int
	Err      error
}

func (e *ManifestError) Error() string {
	return fmt.Sprintf("%s, document %d, line %d: %v", shown(e.File), e.Document, e.Line, e.Err)
}

func (e *ManifestError) Unwrap() error { return e.Err }

// What [ReadManifests] can fail with as a whole.
var (
	ErrTooLarge = errors.New("too large")
	errEncoding = errors.New("this is UTF-16, as PowerShell writes it: save it as UTF-8")
)

// fault is an error on a line.
type fault struct {
	line int
	err  error
}

// shown is a text that somebody else chose, bounded and fit for an error.
func shown(text string) string {
	text = clip(text)
	if quoted := strconv.Quote(text); quoted != `"`+text+`"` {
		return quoted
	}
	return text
}

// ReadManifests reads a stream of manifests, YAML or JSON, as kubectl reads it;
// file is its name in what is told of it. One bad document does not hide the
// others: what is good is returned beside an error that joins up to twenty
// [ManifestError].
//
// An error is what Kubernetes would refuse, and what it would silently drop where
// it was meant to decide capabilities: a misspelt field of a securityContext, a
// kind that does not exist.
//
// Of a custom resource whose kind is not known every pod spec is read that it has
// by its shape. What else in it decides what a pod may do is in Unjudged.
func ReadManifests(r io.Reader, file string) (Manifests, error) {
	return readStream(r, file, true)
}

// readStream is [ReadManifests]; whoever does not need the lines of containers
// saves that YAML is parsed once more for them.
func readStream(r io.Reader, file string, lines bool) (Manifests, error) {
	stream, err := io.ReadAll(io.LimitReader(r, maxStream+1))
	if err != nil {
		return Manifests{}, fmt.Errorf("cannot read %s: %w", shown(file), err)
	}
	if len(stream) > maxStream {
		return Manifests{}, fmt.Errorf("%s is %w: more than %d MiB of manifests; give fewer at once, "+
			"for example kubectl get pods -A -o yaml --field-selector spec.nodeName=NODE", shown(file), ErrTooLarge, maxStream>>20)
	}
	if bytes.HasPrefix(stream, []byte{0xff, 0xfe}) || bytes.HasPrefix(stream, []byte{0xfe, 0xff}) {
		return Manifests{}, fmt.Errorf("%s: %w", shown(file), errEncoding)
	}
	in := reader{file: file, lines: lines, skipped: make(map[Skipped]int)}
	stream, in.marks = withoutMarks(stream)
	for d := range documents(stream) {
		if d.number > maxDocuments {
			in.errs = append(in.errs, fmt.Errorf("%s is %w: more than %d documents, the rest was not read", shown(file), ErrTooLarge, maxDocuments))
			break
		}
		in.document = d
		in.read()
	}
	return in.result()
}

// reader reads one stream.
type reader struct {
	file     string
	lines    bool      // of containers are wanted
	marks    []int     // lines with a byte order mark
	document *document // where it is
	spots    spot      // whose lines are looked for in the document
	template *template // whose objects are read; nil outside of one

	objects  []Manifest
	skipped  map[Skipped]int
	unjudged []Unjudged
	more     int // unjudged beyond maxUnjudged
	looked   int // bytes of custom resources, see maxLooked
	errs     []error
	unsaid   int // errors beyond maxErrors
}

func (in *reader) result() (Manifests, error) {
	all := Manifests{Skipped: counted(in.skipped), Unjudged: in.unjudged, MoreUnjudged: in.more}
	for _, m := range in.objects {
		if m.windows {
			all.Windows = append(all.Windows, m)
		} else {
			all.Objects = append(all.Objects, m)
		}
	}
	if in.unsaid > 0 {
		in.errs = append(in.errs, fmt.Errorf("%s: and %d more errors", shown(in.file), in.unsaid))
	}
	return all, errors.Join(in.errs...)
}

// counted lists the kinds in order, each with its count.
func counted(counts map[Skipped]int) []Skipped {
	list := make([]Skipped, 0, len(counts))
	for kind, count := range counts {
		kind.Count = count
		list = append(list, kind)
	}
	slices.SortFunc(list, func(a, b Skipped) int { return strings.Compare(a.Kind, b.Kind) })
	return list
}

// fail notes an error on a line. The line is found only for those that are said.
func (in *reader) fail(line func() int, err error) {
	if len(in.errs) >= maxErrors {
		in.unsaid++
		return
	}
	in.errs = append(in.errs, &ManifestError{File: in.file, Document: in.document.number, Line: line(), Err: err})
}

func (in *reader) failAt(at path, err error) {
	in.fail(func() int { return in.document.lineOf(at) }, err)
}

func (in *reader) skip(key Skipped) {
	key.Kind = clip(key.Kind)
	if _, known := in.skipped[key]; !known && len(in.skipped) >= maxKinds {
		key.Kind = "others"
	}
	in.skipped[key]++
}

func (in *reader) read() {
	if f := in.document.convert(); f != nil {
		if at := in.document.markWithin(in.marks); at > 0 {
			f.err = fmt.Errorf("%w; line %d begins with an invisible byte order mark: were two files put together without a line of --- between them?", f.err, at)
		}
		in.fail(func() int { return f.line }, f.err)
		return
	}
	if string(in.document.json) == "null" {
		return
	}
	in.spots = spot{}
	in.object(nil, in.document.json, "", "", 0)
	if in.spots.below != nil {
		in.document.find(&in.spots)
	}
}

// add keeps an object that stands at a place, its containers at theirs, and what of it
// the API server refuses.
func (in *reader) add(m Manifest, at path, containers []path, refused []broken) {
	n := len(in.objects)
	in.objects = append(in.objects, m)
	if !in.lines {
		return
	}
	if len(at) > 0 {
		in.spots.want(at, func(line int) { in.objects[n].Line = line })
	}
	in.objects[n].Lines = make([]int, len(containers))
	for i, at := range containers {
		in.spots.want(at, func(line int) { in.objects[n].Lines[i] = line })
	}
	for i, refusal := range refused {
		in.objects[n].Refused = append(in.objects[n].Refused, Refusal{Path: refusal.at.String(), Rule: refusal.rule})
		in.spots.want(refusal.at, func(line int) { in.objects[n].Refused[i].Line = line })
	}
}

// leave notes what is not understood.
func (in *reader) leave(u Unjudged, at path) {
	if len(in.unjudged) == maxUnjudged {
		in.more++
		return
	}
	u.File, u.Document, u.Line, u.Path = in.file, in.document.number, in.document.line, clip(at.String())
	in.unjudged = append(in.unjudged, u)
	n := len(in.unjudged) - 1
	if in.lines {
		in.spots.want(at, func(line int) { in.unjudged[n].Line = line })
	}
}

// object reads one object, or a list's. The apiVersion and kind are those of
// items whose list knows them.
func (in *reader) object(at path, raw json.RawMessage, apiVersion, kind string, nested int) {
	var o struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   json.RawMessage   `json:"metadata"`
		Items      []json.RawMessage `json:"items"`
		Objects    []json.RawMessage `json:"objects"`
		Linux      json.RawMessage   `json:"linux"`
		Image      json.RawMessage   `json:"image"`
	}
	if patches(raw) {
		in.failAt(at, fmt.Errorf("this is a JSON patch, not an object%s", in.kustomize()))
		return
	}
	if !in.decode(at, raw, &o) {
		return
	}
	if o.APIVersion == "" && o.Kind == "" {
		o.APIVersion, o.Kind = apiVersion, kind
	}
	switch {
	case o.APIVersion == "" && o.Kind == "" && len(o.Metadata) > 0 && (len(o.Linux) > 0 || len(o.Image) > 0) && nested == 0:
		in.config(raw)
		return
	case o.Kind == "":
		in.failAt(at, in.kindless(raw))
		return
	case o.APIVersion == "":
		in.failAt(at, fmt.Errorf("%.64q has no apiVersion", o.Kind))
		return
	}
	group := groupOf(o.APIVersion)
	if o.APIVersion == "v1" && legacy[o.Kind] != "" {
		group = legacy[o.Kind]
	}
	what, place := standingOf(group, o.Kind)
	of, isList := strings.CutSuffix(o.Kind, "List")
	if isList && (what == noSuch || what == custom) && o.Items != nil {
		if nested == maxNested {
			in.failAt(at, fmt.Errorf("lists within lists, deeper than %d", maxNested))
			return
		}
		apiVersion, kind = o.APIVersion, of
		if of == "" { // v1 List, of anything
			apiVersion, kind = "", ""
		}
		for i, item := range o.Items {
			in.object(at.with("items", i), item, apiVersion, kind, nested+1)
		}
		return
	}
	if isList && what == noSuch {
		// A list of nothing; a misspelt kind's too would be harmless.
		what, _ = standingOf(group, of)
		if of == "" {
			what = noPods
		} else if what == hasPods {
			what = noPods
		}
	}
	switch {
	case group == kustomizeGroup:
		in.failAt(at, fmt.Errorf("this is a %.64s of Kustomize, and what it makes of other manifests is not in it%s", shown(o.Kind), in.kustomize()))
		return
	case group == "template.openshift.io" && o.Kind == "Template":
		in.openTemplate(at, raw, o.Objects, nested)
		return
	}
	switch what {
	case noSuch:
		hint := ""
		if near := meant(group, o.Kind); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		in.failAt(at.with("kind"), fmt.Errorf("there is no kind %.64q in Kubernetes' %.64q%s", o.Kind, o.APIVersion, hint))
	case noPods:
		in.skip(Skipped{Kind: o.Kind})
	case custom:
		in.custom(at, raw, o.Kind, group)
	case hasPods:
		in.workload(at, raw, o.Kind, group, place)
	}
}

// config keeps a CRI container config as it is.
func (in *reader) config(raw json.RawMessage) {
	if len(raw) > maxConfig {
		in.failAt(nil, fmt.Errorf("a CRI container config of more than %d MiB", maxConfig>>20))
		return
	}
	in.objects = append(in.objects, Manifest{
		File: in.file, Document: in.document.number, Line: in.document.line, Raw: slices.Clone(raw),
	})
}

// begin reads what an object is called. It returns false where that is wrong.
func (in *reader) begin(at path, raw json.RawMessage, kind string) (m Manifest, meta metadata, ok bool) {
	var o struct {
		Metadata metadata `json:"metadata"`
	}
	if !in.decode(at, raw, &o) {
		return m, meta, false
	}
	m = Manifest{
		File: in.file, Document: in.document.number, Line: in.document.line,
		Kind: kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name,
	}
	for _, name := range []struct{ field, text string }{
		{"name", m.Name}, {"namespace", m.Namespace}, {"generateName", o.Metadata.GenerateName},
	} {
		if !nameable(name.text) {
			in.failAt(at.with("metadata", name.field), fmt.Errorf("metadata.%s is no name that Kubernetes takes%s", name.field, in.template.hint(name.text)))
			return m, meta, false
		}
	}
	return m, o.Metadata, true
}

// called is an object for people.
func (m *Manifest) called() string {
	return m.Kind + " " + strings.TrimPrefix(m.Namespace+"/"+m.Name, "/")
}

// workload reads an object whose kind has a pod template at place.
func (in *reader) workload(at path, raw json.RawMessage, kind, group, place string) {
	m, meta, ok := in.begin(at, raw, kind)
	if !ok {
		return
	}
	m.Template = place != "" || m.Name == ""
	object, whole := at, raw
	for _, step := range strings.FieldsFunc(place, func(r rune) bool { return r == '.' }) {
		var o map[string]json.RawMessage
		if !in.decode(at, raw, &o) {
			return
		}
		at, raw = at.with(step), o[step]
		if raw == nil || string(raw) == "null" {
			if strings.Contains(group, ".") { // a Rollout may name a Deployment instead
				in.custom(object, whole, kind, group)
				return
			}
			in.failAt(at, fmt.Errorf("%s has no %s%s", m.called(), place, in.patch()))
			return
		}
	}
	in.pod(object, at, raw, group, meta, m)
}

// pod reads a pod's template, or a pod, that stands at a place in an object.
func (in *reader) pod(object, at path, raw json.RawMessage, group string, meta metadata, m Manifest) {
	var t struct {
		Metadata struct {
			Annotations annotations `json:"annotations"`
		} `json:"metadata"`
		Spec podSpec `json:"spec"`
	}
	if !in.decode(at, raw, &t) {
		return
	}
	sound := true
	if meta.UID == "" { // what a cluster gave has passed its API server, which may know more fields than we do
		templateShape.unknown(at, raw, func(at path, err error) {
			sound = false
			in.failAt(at, fmt.Errorf("%s: %w", at, err))
		})
	}
	if m.windows = t.Spec.windows(); m.windows {
		in.skip(Skipped{Kind: m.Kind + " for Windows", Windows: true})
	}
	if group == knative {
		t.Spec.nameAsKnative()
	}
	seen := make(map[string]bool)
	var places []path
	for _, part := range t.Spec.parts() {
		for i, c := range part.containers {
			at := at.with("spec", part.field, i)
			if c.Name == "" || seen[c.Name] || !nameable(c.Name) {
				at := at.with("name")
				in.failAt(at, fmt.Errorf("%s: a container needs a name of its own, of lower-case letters, digits and -%s", at, in.template.hint(c.Name)))
				return
			}
			seen[c.Name] = true
			places = append(places, at)
		}
	}
	if len(t.Spec.Containers) == 0 {
		at := at.with("spec", "containers")
		in.failAt(at, fmt.Errorf("%s: %s has no containers%s", at, m.called(), in.patch()))
		return
	}
	if in.tell(at, meta, &t.Spec, t.Metadata.Annotations, &m) && sound {
		in.add(m, object, places, t.Spec.refusals(meta, at.with("spec"), places))
	}
}

// tell makes what is told of a pod. It returns false where it is too large.
func (in *reader) tell(at path, meta metadata, spec *podSpec, marks annotations, m *Manifest) bool {
	source := fmt.Sprintf("%s, document %d (%s)", m.File, m.Document, m.called())
	var lacks string
	m.Pod, lacks = meta.spec(spec, marks, source)
	if lacks != "" {
		in.failAt(at, fmt.Errorf("%s is too large: %s", m.called(), lacks))
		return false
	}
	for _, c := range m.Pod.Containers {
		for _, name := range slices.Concat(c.Security.Add, c.Security.Drop) {
			if hint := in.template.hint(name); hint != "" {
				in.failAt(at, fmt.Errorf("%s: a capability is not stated%s", m.called(), hint))
				return false
			}
		}
	}
	if m.Template {
		m.Pod.Name, m.Pod.UID, m.Pod.CRIUID = "", "", ""
	}
	return true
}

// nameable says that a text is made of what Kubernetes makes names of; the empty
// one is. Source: apimachinery util/validation IsDNS1123Subdomain.
func nameable(text string) bool {
	return len(text) <= 253 && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
	})
}

// decode is JSON as the API server decodes it, case-sensitive and each field
// once. It notes what is wrong, without quoting it.
func (in *reader) decode(at path, raw json.RawMessage, into any) bool {
	twice, err := kjson.UnmarshalStrict(raw, into, kjson.DisallowDuplicateFields)
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mistyped):
		at := at.with(pathAt(raw, mistyped.Offset)...)
		where := at.String()
		if where == "" {
			where = "the document"
		}
		is, _, _ := strings.Cut(mistyped.Value, " ") // "number 1.5"
		is = map[string]string{"array": "a list", "object": "an object", "bool": "true or false", "string": "a string", "number": "a number"}[is]
		hint := ""
		if in.template != nil && is == "a string" {
			hint = in.template.hint("${")
		}
		in.failAt(at, fmt.Errorf("%s is %s, want %s%s", where, is, wanted(mistyped.Type), hint))
	case err != nil:
		in.failAt(at, errors.New("a time or another value in it is not of the form that Kubernetes takes"))
	case len(twice) > 0:
		var field kjson.FieldError
		name := ""
		if errors.As(twice[0], &field) {
			name = field.FieldPath()
		}
		places, line := "", func() int { return in.document.lineOf(at) }
		if r := in.document.repeatedKey(); r != nil && strings.HasSuffix(name, r.key) {
			places, line = r.places(), func() int { return r.last }
		}
		in.fail(line, fmt.Errorf("the field %.128q is there twice%s", name, places))
	default:
		return true
	}
	return false
}

// wanted names a Go type for people.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int64:
		return "a whole number"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}
