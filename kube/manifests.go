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
	maxNested    = 4       // lists in lists
)

// Manifest is one object of a stream that has, or is, a pod template; or a CRI
// container config.
type Manifest struct {
	File     string // as given to [ReadManifests]
	Document int    // from 1, in its file; those without content do not count
	Line     int    // of the document's first line with content

	Kind, Namespace, Name string // as written: no namespace where the manifest leaves it to kubectl

	// Pod is what the object asks for. It has a name where the object is a Pod
	// that has one, and a uid where it was read from a cluster.
	Pod drift.PodSpec
	// Template says that the pods have names of their own.
	Template bool

	// Raw is a CRI ContainerConfig as crictl takes it, in JSON and not looked
	// into: it may hold secrets. Kind is then empty.
	Raw json.RawMessage
}

// Skipped counts objects of one kind that were not looked into.
type Skipped struct {
	Kind   string // with its group where that is not Kubernetes' own, as kubectl writes it: Kafka.strimzi.io
	Custom bool   // a custom resource, which may have pods all the same
	Count  int
}

// Manifests is what a stream of manifests holds.
type Manifests struct {
	Objects []Manifest
	Skipped []Skipped // by kind
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
func ReadManifests(r io.Reader, file string) (Manifests, error) {
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
	in := reader{file: file, skipped: make(map[Skipped]int)}
	for d := range documents(bytes.TrimPrefix(stream, []byte("\xef\xbb\xbf"))) {
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
	document *document // where it is

	objects []Manifest
	skipped map[Skipped]int
	errs    []error
	unsaid  int // errors beyond maxErrors
}

func (in *reader) result() (Manifests, error) {
	all := Manifests{Objects: in.objects, Skipped: counted(in.skipped)}
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

func (in *reader) skip(kind string, custom bool) {
	key := Skipped{Kind: clip(kind), Custom: custom}
	if _, known := in.skipped[key]; !known && len(in.skipped) >= maxKinds {
		key.Kind = "others"
	}
	in.skipped[key]++
}

func (in *reader) read() {
	if f := in.document.convert(); f != nil {
		in.fail(func() int { return f.line }, f.err)
		return
	}
	if string(in.document.json) == "null" {
		return
	}
	in.object(nil, in.document.json, "", "", 0)
}

// object reads one object, or a list's. The apiVersion and kind are those of
// items whose list knows them.
func (in *reader) object(at path, raw json.RawMessage, apiVersion, kind string, nested int) {
	var o struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   json.RawMessage   `json:"metadata"`
		Items      []json.RawMessage `json:"items"`
		Linux      json.RawMessage   `json:"linux"`
		Image      json.RawMessage   `json:"image"`
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
		in.failAt(at, errors.New("it has no kind; want a Kubernetes object, or a CRI container config with metadata and linux"))
		return
	case o.APIVersion == "":
		in.failAt(at, fmt.Errorf("%.64q has no apiVersion", o.Kind))
		return
	}
	group := groupOf(o.APIVersion)
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
	switch what {
	case noSuch:
		hint := ""
		if near := meant(group, o.Kind); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		in.failAt(at.with("kind"), fmt.Errorf("there is no kind %.64q in Kubernetes' %.64q%s", o.Kind, o.APIVersion, hint))
	case noPods:
		in.skip(o.Kind, false)
	case custom:
		in.skip(o.Kind+"."+group, true)
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

// workload reads an object whose kind has a pod template at place.
func (in *reader) workload(at path, raw json.RawMessage, kind, group, place string) {
	var o struct {
		Metadata metadata `json:"metadata"`
	}
	if !in.decode(at, raw, &o) {
		return
	}
	m := Manifest{
		File: in.file, Document: in.document.number, Line: in.document.line,
		Kind: kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name,
		Template: place != "" || o.Metadata.Name == "",
	}
	for _, name := range []struct{ field, text string }{
		{"name", m.Name}, {"namespace", m.Namespace}, {"generateName", o.Metadata.GenerateName},
	} {
		if !nameable(name.text) {
			in.failAt(at.with("metadata", name.field), fmt.Errorf("metadata.%s is no name that Kubernetes takes", name.field))
			return
		}
	}
	in.template(at, raw, o.Metadata, group, place, m)
}

// template goes to the template and takes its containers.
func (in *reader) template(at path, raw json.RawMessage, meta metadata, group, place string, m Manifest) {
	what := m.Kind + " " + strings.TrimPrefix(m.Namespace+"/"+m.Name, "/")
	for _, step := range strings.FieldsFunc(place, func(r rune) bool { return r == '.' }) {
		var o map[string]json.RawMessage
		if !in.decode(at, raw, &o) {
			return
		}
		at, raw = at.with(step), o[step]
		if raw == nil || string(raw) == "null" {
			if strings.Contains(group, ".") { // a Rollout may name a Deployment instead
				in.skip(m.Kind+"."+group, true)
				return
			}
			in.failAt(at, fmt.Errorf("%s has no %s", what, place))
			return
		}
	}
	var t struct {
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
	if t.Spec.windows() {
		in.skip(m.Kind+" for Windows", false)
		return
	}
	seen := make(map[string]bool)
	for _, part := range []struct {
		field string
		list  []container
	}{
		{"containers", t.Spec.Containers}, {"initContainers", t.Spec.InitContainers}, {"ephemeralContainers", t.Spec.EphemeralContainers},
	} {
		for i, c := range part.list {
			if c.Name == "" || seen[c.Name] || !nameable(c.Name) {
				at := at.with("spec", part.field, i, "name")
				in.failAt(at, fmt.Errorf("%s: a container needs a name of its own, of lower-case letters, digits and -", at))
				return
			}
			seen[c.Name] = true
		}
	}
	if len(t.Spec.Containers) == 0 {
		at := at.with("spec", "containers")
		in.failAt(at, fmt.Errorf("%s: %s has no containers", at, what))
		return
	}
	source := fmt.Sprintf("%s, document %d (%s)", m.File, m.Document, what)
	var lacks string
	m.Pod, lacks = meta.spec(&t.Spec, source)
	if lacks != "" {
		in.failAt(at, fmt.Errorf("%s is too large: %s", what, lacks))
		return
	}
	if m.Template {
		m.Pod.Name, m.Pod.UID, m.Pod.CRIUID = "", "", ""
	}
	if sound {
		in.objects = append(in.objects, m)
	}
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
		in.failAt(at, fmt.Errorf("%s is %s, want %s", where, is, wanted(mistyped.Type)))
	case err != nil:
		in.failAt(at, errors.New("a time or another value in it is not of the form that Kubernetes takes"))
	case len(twice) > 0:
		var field kjson.FieldError
		name := ""
		if errors.As(twice[0], &field) {
			name = field.FieldPath()
		}
		in.failAt(at, fmt.Errorf("the field %.128q is there twice", name))
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
