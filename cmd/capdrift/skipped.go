package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/kube"
)

// skipped counts the objects of one kind that were not looked into.
type skipped struct {
	Kind    string `json:"kind"`
	Custom  bool   `json:"custom"`  // a custom resource, which may run pods all the same
	Windows bool   `json:"windows"` // its pods are for Windows, and no rule about Linux was asked of them
	Count   int    `json:"count"`
}

// notJudged is a part of a manifest that was not understood, or a document that was
// not read.
type notJudged struct {
	File      string `json:"file"`
	Document  int    `json:"document"`
	Line      int    `json:"line"`
	Kind      string `json:"kind"` // "" for a document that was not read
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Path      string `json:"path"` // of the part; "" for the whole
	Reason    string `json:"reason"`

	unread  bool // it is a document that was not read, which is an error of its own
	refused bool // by the API server
}

// leftOut is what of manifests was not judged.
type leftOut struct {
	Skipped  []skipped   // by kind
	Unjudged []notJudged // in the order in which they were read

	refused int // objects that the API server refuses
}

// maxRefusedNamed bounds the refusals that are named.
const maxRefusedNamed = 1_000

// refuse adds what the API server refuses.
func (l *leftOut) refuse(m kube.Manifest) {
	if len(m.Refused) == 0 {
		return
	}
	l.refused++
	if l.refused > maxRefusedNamed {
		return
	}
	for _, refusal := range m.Refused {
		l.Unjudged = append(l.Unjudged, notJudged{
			File: m.File, Document: m.Document, Line: refusal.Line, Kind: m.Kind, Namespace: m.Namespace, Name: m.Name, Path: refusal.Path,
			Reason: "refused by the API server: " + refusal.Rule, refused: true,
		})
	}
}

// leftOutOf gathers what was not judged of manifests, and what could not be read.
func leftOutOf(all kube.Manifests, unread error) leftOut {
	out := leftOut{Skipped: []skipped{}, Unjudged: []notJudged{}}
	for _, s := range all.Skipped {
		at := slices.IndexFunc(out.Skipped, func(other skipped) bool {
			return other.Kind == s.Kind && other.Custom == s.Custom && other.Windows == s.Windows
		})
		if at < 0 {
			at = len(out.Skipped)
			out.Skipped = append(out.Skipped, skipped{s.Kind, s.Custom, s.Windows, 0})
		}
		out.Skipped[at].Count += s.Count
	}
	slices.SortFunc(out.Skipped, func(a, b skipped) int { return cmp.Compare(a.Kind, b.Kind) })
	for _, u := range all.Unjudged {
		out.Unjudged = append(out.Unjudged, notJudged{
			File: u.File, Document: u.Document, Line: u.Line, Kind: u.Kind, Namespace: u.Namespace, Name: u.Name, Path: u.Path, Reason: u.Why,
		})
	}
	for _, m := range slices.Concat(all.Objects, all.Windows) {
		out.refuse(m)
	}
	if more := out.refused - maxRefusedNamed; more > 0 {
		out.Unjudged = append(out.Unjudged, notJudged{Reason: fmt.Sprintf("%d more objects that the API server refuses, which are not named", more), refused: true})
	}
	if all.MoreUnjudged > 0 {
		out.Unjudged = append(out.Unjudged, notJudged{Reason: fmt.Sprintf("%d more parts of custom resources, which are not named", all.MoreUnjudged)})
	}
	for _, err := range eachError(unread) {
		one := notJudged{Reason: err.Error(), unread: true}
		var at *kube.ManifestError
		if errors.As(err, &at) {
			one = notJudged{File: at.File, Document: at.Document, Line: at.Line, Reason: at.Err.Error(), unread: true}
		}
		out.Unjudged = append(out.Unjudged, one)
	}
	return out
}

// eachError takes joined errors apart.
func eachError(err error) (list []error) {
	joined, several := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !several:
		return []error{err}
	}
	for _, err := range joined.Unwrap() {
		list = append(list, eachError(err)...)
	}
	return list
}

// String is one line for people.
func (u notJudged) String() string {
	text := u.Reason
	if u.Path != "" {
		text = u.Path + ": " + text
	}
	if u.Kind != "" {
		text = u.Kind + " " + strings.TrimPrefix(u.Namespace+"/"+cmp.Or(u.Name, "(no name)"), "/") + ": " + text
	}
	if u.File != "" {
		text = fmt.Sprintf("%s, document %d, line %d: %s", u.File, u.Document, u.Line, text)
	}
	return text
}

// unknown says why nobody can tell that nothing more is wrong; "" where all was
// judged that makes pods. What was not read is an error of its own.
func (l leftOut) unknown() string {
	parts, windows := len(l.parts()), 0
	for _, s := range l.Skipped {
		if s.Windows {
			windows += s.Count
		}
	}
	var texts []string
	if parts > 0 {
		texts = append(texts, many(parts, "part")+" of custom resources")
	}
	if windows > 0 {
		texts = append(texts, many(windows, "object")+" for Windows")
	}
	if l.refused > 0 {
		texts = append(texts, many(l.refused, "object")+" that the API server refuses")
	}
	return strings.Join(texts, " and ")
}

// parts are those of custom resources.
func (l leftOut) parts() []notJudged {
	return slices.DeleteFunc(l.named(), func(u notJudged) bool { return u.refused })
}

// named are those that are no error of their own.
func (l leftOut) named() []notJudged {
	return slices.DeleteFunc(slices.Clone(l.Unjudged), func(u notJudged) bool { return u.unread })
}

// counts are the kinds that were skipped: custom resources, or the others.
func (l leftOut) counts(custom bool) string {
	var kinds []string
	for _, s := range l.Skipped {
		if s.Custom == custom {
			kinds = append(kinds, fmt.Sprintf("%d %s", s.Count, printable(s.Kind)))
		}
	}
	return strings.Join(kinds, ", ")
}

// nothing is an error for manifests without any container, and says what they have.
func (l leftOut) nothing(todo string, names []string) error {
	text := fmt.Sprintf("nothing to %s: there is no container in %s", todo, strings.Join(names, ", "))
	if l.refused > 0 {
		text = fmt.Sprintf("nothing to %s: there is no container in %s but of %s", todo, strings.Join(names, ", "), many(l.refused, "object")+" that the API server refuses")
	}
	if len(l.Skipped) > 0 {
		text += fmt.Sprintf(" (skipped: %s)", strings.Trim(l.counts(false)+", "+l.counts(true), ", "))
	}
	errs := []error{errors.New(text)}
	for _, u := range l.named() {
		errs = append(errs, errors.New("not judged: "+u.String()))
	}
	return printableError(errors.Join(errs...))
}

// paragraphs say for people what was not judged, but for documents that were not
// read: those are errors.
func (l leftOut) paragraphs(out *strings.Builder) {
	if text := l.counts(false); text != "" {
		paragraph(out, "", "Skipped, since they run no container of Linux: "+text+".")
	}
	if text := l.counts(true); text != "" {
		paragraph(out, "", "Not looked into, though they may have pods made: "+text+".")
	}
	for _, u := range l.named() {
		paragraph(out, "", "Not judged: "+u.String()+".")
	}
}
