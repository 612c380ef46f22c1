package policy

import (
	"fmt"
	"reflect"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// The types of the nouns, named as messages show them.
var (
	podType           = types.NewObjectType("pod")
	declaredType      = types.NewObjectType("declared")
	podSecurityType   = types.NewObjectType("podSecurity")
	criType           = types.NewObjectType("criConfig")
	ociType           = types.NewObjectType("ociSpec")
	processType       = types.NewObjectType("process")
	threadType        = types.NewObjectType("thread")
	userNamespaceType = types.NewObjectType("userNamespace")
	podLevelType      = types.NewObjectType("podLevel")
	setsType          = types.NewObjectType("caps")
	findingType       = types.NewObjectType("finding")
	nodeType          = types.NewObjectType("node")
	runtimeType       = types.NewObjectType("runtime")
	kubernetesType    = types.NewObjectType("kubernetes")
)

// absence is returned for a field that has no value, and says why.
type absence string

const (
	notKnown absence = "not known"
	notSet   absence = "not set"
)

// What a noun needs beside its own data: what ALL means on its node.
type (
	declaredView struct {
		declaration
		oci, bundle ociView
	}
	ociView struct {
		*drift.OCI
		full capdecode.Set
	}
	processView struct {
		*drift.Process
		caps    heldSets
		threads list[threadView] // once they were asked for
	}
	threadView struct {
		*drift.Thread
		caps heldSets
	}
	findingView struct {
		*drift.Finding
		full capdecode.Set
	}
	heldSets struct {
		sets    *capdecode.Sets
		full    capdecode.Set
		missing *UnknownError
	}
)

func (f findingView) id() string {
	if f.Finding == nil {
		return ""
	}
	return f.ContainerID
}

func (f findingView) container() string {
	if f.Finding == nil {
		return ""
	}
	return f.Container
}

func (h *heldSets) set(s capdecode.Set) any {
	return capSet{held: s, full: h.full, missing: h.missing}
}

// nouns are the fields of each noun, by the noun's type name. Fields are named as
// in the published JSON.
type nouns map[string]map[string]*types.FieldType

func newNouns() nouns {
	n := nouns{}
	pod := in[drift.Pod](n, podType)
	pod.text("namespace", func(p *drift.Pod) string { return p.Namespace })
	pod.text("name", func(p *drift.Pod) string { return p.Name })
	pod.text("uid", func(p *drift.Pod) string { return p.UID })

	declared := in[declaredView](n, declaredType)
	declared.add("pod", podSecurityType, func(d *declaredView) any { return layer(d.layers.Pod, d.layers.Pod) })
	declared.add("cri", criType, func(d *declaredView) any { return layer(d.layers.CRI, d.layers.CRI) })
	declared.add("oci", ociType, func(d *declaredView) any { return layer(d.layers.OCI, &d.oci) })
	declared.add("bundle", ociType, func(d *declaredView) any { return layer(d.layers.Bundle, &d.bundle) })

	declared.add("layer", cel.StringType, func(d *declaredView) any { return d.layer() })
	declared.add("add", cel.ListType(cel.StringType), func(d *declaredView) any { return d.add() })
	declared.add("drop", cel.ListType(cel.StringType), func(d *declaredView) any { return d.drop() })
	declared.add("privileged", cel.BoolType, func(d *declaredView) any { return d.privileged() })
	declared.add("allowPrivilegeEscalation", cel.BoolType, func(d *declaredView) any { return d.allowPrivilegeEscalation() })
	declared.add("runAsUser", cel.IntType, func(d *declaredView) any { return d.runAsUser() })
	declared.add("runAsNonRoot", cel.BoolType, func(d *declaredView) any { return d.runAsNonRoot() })
	declared.add("hostUsers", cel.BoolType, func(d *declaredView) any { return d.hostUsers() })
	declared.add("seccompProfile", cel.StringType, func(d *declaredView) any { return d.seccompProfile() })
	declared.add("readOnlyRootFilesystem", cel.BoolType, func(d *declaredView) any { return d.readOnlyRootFilesystem() })
	addPodFields(declared)

	security := in[drift.PodSecurity](n, podSecurityType)
	security.text("role", func(s *drift.PodSecurity) string { return string(s.Role) })
	security.texts("add", func(s *drift.PodSecurity) []string { return s.Add })
	security.texts("drop", func(s *drift.PodSecurity) []string { return s.Drop })
	security.truth("privileged", func(s *drift.PodSecurity) bool { return s.Privileged })
	security.add("allowPrivilegeEscalation", cel.BoolType, func(s *drift.PodSecurity) any { return maybeBool(s.AllowPrivilegeEscalation, notSet) })
	security.add("runAsUser", cel.IntType, func(s *drift.PodSecurity) any { return maybeInt(s.RunAsUser, notSet) })
	security.truth("runAsNonRoot", func(s *drift.PodSecurity) bool { return s.RunAsNonRoot })
	security.add("hostUsers", cel.BoolType, func(s *drift.PodSecurity) any { return maybeBool(s.HostUsers, notSet) })
	security.add("seccompProfile", cel.StringType, func(s *drift.PodSecurity) any { return maybeText(s.SeccompProfile, notSet) })
	security.add("readOnlyRootFilesystem", cel.BoolType, func(s *drift.PodSecurity) any { return maybeBool(s.ReadOnlyRootFilesystem, notSet) })
	security.add("podLevel", podLevelType, func(s *drift.PodSecurity) any { return &s.PodLevel })
	security.text("runtimeClass", func(s *drift.PodSecurity) string { return s.RuntimeClass })
	security.text("source", func(s *drift.PodSecurity) string { return s.Source })

	level := in[drift.PodLevel](n, podLevelType)
	level.add("runAsUser", cel.IntType, func(l *drift.PodLevel) any { return maybeInt(l.RunAsUser, notSet) })
	level.add("runAsNonRoot", cel.BoolType, func(l *drift.PodLevel) any { return maybeBool(l.RunAsNonRoot, notSet) })
	level.add("seccompProfile", cel.StringType, func(l *drift.PodLevel) any { return maybeText(l.SeccompProfile, notSet) })

	cri := in[drift.CRI](n, criType)
	cri.texts("add", func(c *drift.CRI) []string { return c.Add })
	cri.texts("drop", func(c *drift.CRI) []string { return c.Drop })
	cri.texts("addAmbient", func(c *drift.CRI) []string { return c.AddAmbient })
	cri.truth("privileged", func(c *drift.CRI) bool { return c.Privileged })
	cri.truth("noNewPrivileges", func(c *drift.CRI) bool { return c.NoNewPrivileges })
	cri.add("runAsUser", cel.IntType, func(c *drift.CRI) any { return maybeInt(c.RunAsUser, notSet) })
	cri.truth("userNamespace", func(c *drift.CRI) bool { return c.UserNamespace })
	cri.add("seccompProfile", cel.StringType, func(c *drift.CRI) any { return maybeText(c.SeccompProfile, notSet) })
	cri.truth("readOnlyRootFilesystem", func(c *drift.CRI) bool { return c.ReadOnlyRootFilesystem })

	oci := in[ociView](n, ociType)
	addSets(oci, func(o *ociView) heldSets { return heldSets{&o.Sets, o.full, nil} })
	oci.truth("noNewPrivileges", func(o *ociView) bool { return o.NoNewPrivileges })
	oci.number("uid", func(o *ociView) int64 { return int64(o.UID) })
	oci.texts("unknownNames", func(o *ociView) []string { return o.UnknownNames })
	oci.truth("userNamespace", func(o *ociView) bool { return o.UserNamespace })

	process := in[processView](n, processType)
	process.number("pid", func(p *processView) int64 { return int64(p.PID) })
	process.number("startTime", func(p *processView) int64 { return int64(p.StartTime) })
	process.number("parentPid", func(p *processView) int64 { return int64(p.ParentPID) })
	process.text("name", func(p *processView) string { return p.Name })
	process.text("state", func(p *processView) string { return p.State })
	process.number("uid", func(p *processView) int64 { return int64(p.UID) })
	process.add("containerUid", cel.IntType, func(p *processView) any { return maybeInt(p.ContainerUID, notKnown) })
	process.add("noNewPrivileges", cel.BoolType, func(p *processView) any { return maybeBool(p.NoNewPrivileges, notKnown) })
	process.add("seccomp", cel.IntType, func(p *processView) any { return maybeInt(p.Seccomp, notKnown) })
	process.add("userNamespace", userNamespaceType, func(p *processView) any { return &p.UserNamespace })
	process.add("caps", setsType, func(p *processView) any { return &p.caps })
	process.text("observation", func(p *processView) string { return string(p.Observation) })
	process.number("threadCount", func(p *processView) int64 { return int64(p.ThreadCount) })
	process.add("threads", cel.ListType(threadType), func(p *processView) any {
		if p.threads.of == nil {
			p.threads.of = make([]threadView, len(p.Threads))
			for i := range p.Threads {
				p.threads.of[i] = threadView{&p.Threads[i], heldSets{&p.Threads[i].Caps, p.caps.full, nil}}
			}
		}
		return &p.threads
	})

	thread := in[threadView](n, threadType)
	thread.number("tid", func(t *threadView) int64 { return int64(t.TID) })
	thread.text("name", func(t *threadView) string { return t.Name })
	thread.number("uid", func(t *threadView) int64 { return int64(t.UID) })
	thread.add("noNewPrivileges", cel.BoolType, func(t *threadView) any { return maybeBool(t.NoNewPrivileges, notKnown) })
	thread.add("seccomp", cel.IntType, func(t *threadView) any { return maybeInt(t.Seccomp, notKnown) })
	thread.add("caps", setsType, func(t *threadView) any { return &t.caps })

	namespace := in[drift.UserNamespace](n, userNamespaceType)
	namespace.text("relation", func(u *drift.UserNamespace) string { return string(u.Relation) })
	namespace.add("nested", cel.BoolType, func(u *drift.UserNamespace) any {
		switch u.Relation {
		case drift.RelationChild:
			return types.True
		case drift.RelationSame, drift.RelationInitial:
			return types.False
		}
		return notKnown
	})
	namespace.add("inode", cel.IntType, func(u *drift.UserNamespace) any {
		if u.Inode == 0 {
			return notKnown
		}
		return types.Int(u.Inode)
	})

	addSets(in[heldSets](n, setsType), func(h *heldSets) heldSets { return *h })

	finding := in[findingView](n, findingType)
	finding.text("id", func(f *findingView) string { return f.ID })
	finding.text("kind", func(f *findingView) string { return string(f.Kind) })
	finding.add("severity", severityType, func(f *findingView) any { return severity(f.Severity) })
	finding.textIfAny("from", func(f *findingView) string { return string(f.From) })
	finding.textIfAny("layer", func(f *findingView) string { return string(f.Layer) })
	finding.textIfAny("cause", func(f *findingView) string { return string(f.Cause) })
	finding.textIfAny("runtimeHandler", func(f *findingView) string { return f.RuntimeHandler })
	finding.textIfAny("set", func(f *findingView) string { return f.Set })
	finding.textIfAny("rule", func(f *findingView) string { return f.Rule })
	finding.textIfAny("declared", func(f *findingView) string { return f.Declared })
	finding.textIfAny("actual", func(f *findingView) string { return f.Actual })
	finding.textIfAny("exception", func(f *findingView) string { return f.Exception })
	finding.text("message", func(f *findingView) string { return f.Message })
	finding.add("capabilities", capSetType, func(f *findingView) any { return capSet{held: f.Capabilities, full: f.full} })
	finding.add("pid", cel.IntType, func(f *findingView) any { return unlessZero(f.PID) })
	finding.add("tid", cel.IntType, func(f *findingView) any { return unlessZero(f.TID) })

	node := in[drift.Node](n, nodeType)
	node.text("name", func(n *drift.Node) string { return n.Name })
	node.text("bootId", func(n *drift.Node) string { return n.BootID })
	node.text("kernel", func(n *drift.Node) string { return n.Kernel })
	node.number("capLastCap", func(n *drift.Node) int64 { return int64(n.CapLastCap) })
	node.text("cgroupMode", func(n *drift.Node) string { return n.CgroupMode })

	runtime := in[drift.Runtime](n, runtimeType)
	runtime.text("name", func(r *drift.Runtime) string { return r.Name })
	runtime.text("version", func(r *drift.Runtime) string { return r.Version })

	kubernetes := in[Version](n, kubernetesType)
	kubernetes.number("minor", func(v *Version) int64 { return int64(*v) })
	return n
}

// addPodFields adds what a pod spec alone tells.
func addPodFields(declared noun[declaredView]) {
	add := func(name string, typ *types.Type, get func(*drift.PodFields) any) {
		declared.add(name, typ, func(d *declaredView) any {
			if d.layers.Pod == nil || d.layers.Pod.PodFields == nil {
				return notKnown
			}
			return get(d.layers.Pod.PodFields)
		})
	}
	for name, get := range map[string]func(*drift.PodFields) bool{
		"hostNetwork":        func(f *drift.PodFields) bool { return f.HostNetwork },
		"hostPID":            func(f *drift.PodFields) bool { return f.HostPID },
		"hostIPC":            func(f *drift.PodFields) bool { return f.HostIPC },
		"windowsHostProcess": func(f *drift.PodFields) bool { return f.WindowsHostProcess },
	} {
		add(name, cel.BoolType, func(f *drift.PodFields) any { return types.Bool(get(f)) })
	}
	for name, get := range map[string]func(*drift.PodFields) []string{
		"volumeTypes":         func(f *drift.PodFields) []string { return f.VolumeTypes },
		"sysctls":             func(f *drift.PodFields) []string { return f.Sysctls },
		"probeHosts":          func(f *drift.PodFields) []string { return f.ProbeHosts },
		"appArmorProfiles":    func(f *drift.PodFields) []string { return f.AppArmorProfiles },
		"appArmorAnnotations": func(f *drift.PodFields) []string { return f.AppArmorAnnotations },
		"seccompAnnotations":  func(f *drift.PodFields) []string { return f.SeccompAnnotations },
		"seLinuxTypes":        func(f *drift.PodFields) []string { return f.SELinuxTypes },
		"seLinuxUsers":        func(f *drift.PodFields) []string { return f.SELinuxUsers },
		"seLinuxRoles":        func(f *drift.PodFields) []string { return f.SELinuxRoles },
	} {
		add(name, cel.ListType(cel.StringType), func(f *drift.PodFields) any { return get(f) })
	}
	add("os", cel.StringType, func(f *drift.PodFields) any { return types.String(f.OS) })
	add("hostPorts", cel.ListType(cel.IntType), func(f *drift.PodFields) any { return f.HostPorts })
	add("procMount", cel.StringType, func(f *drift.PodFields) any {
		if f.ProcMount == nil {
			return types.String("Default") // SetDefaults_SecurityContext, pkg/apis/core/v1/defaults.go
		}
		return types.String(*f.ProcMount)
	})
}

// setFields are the five sets by their fields' names.
var setFields = map[string]func(*capdecode.Sets) capdecode.Set{
	"inheritable": func(s *capdecode.Sets) capdecode.Set { return s.Inheritable },
	"permitted":   func(s *capdecode.Sets) capdecode.Set { return s.Permitted },
	"effective":   func(s *capdecode.Sets) capdecode.Set { return s.Effective },
	"bounding":    func(s *capdecode.Sets) capdecode.Set { return s.Bounding },
	"ambient":     func(s *capdecode.Sets) capdecode.Set { return s.Ambient },
}

func addSets[T any](n noun[T], get func(*T) heldSets) {
	for name, one := range setFields {
		n.add(name, capSetType, func(of *T) any {
			held := get(of)
			return held.set(one(held.sets))
		})
	}
}

// layer is the layer's view, where the layer is known.
func layer[T any](declared *T, view any) any {
	if declared == nil {
		return notKnown
	}
	return view
}

func maybeBool(value *bool, otherwise absence) any {
	if value == nil {
		return otherwise
	}
	return types.Bool(*value)
}

func maybeInt[T int | int64 | uint32](value *T, otherwise absence) any {
	if value == nil {
		return otherwise
	}
	return types.Int(*value)
}

func maybeText(value *string, otherwise absence) any {
	if value == nil {
		return otherwise
	}
	return types.String(*value)
}

func unlessZero(id int) any {
	if id == 0 {
		return notSet
	}
	return types.Int(id)
}

// noun collects the fields of one noun, whose values are *T.
type noun[T any] struct {
	name   string // as errors call it
	fields map[string]*types.FieldType
}

func in[T any](n nouns, typ *types.Type) noun[T] {
	fields := make(map[string]*types.FieldType)
	n[typ.TypeName()] = fields
	name, ok := map[*types.Type]string{podSecurityType: "declared.pod", podLevelType: "declared.pod.podLevel", criType: "declared.cri", ociType: "declared.oci"}[typ]
	if !ok {
		name = typ.TypeName()
	}
	return noun[T]{name, fields}
}

func (n noun[T]) add(name string, typ *types.Type, get func(*T) any) {
	missing := map[absence]error{
		notKnown: &UnknownError{What: n.name + "." + name, Why: string(notKnown)},
		notSet:   &UnknownError{What: n.name + "." + name, Why: string(notSet)},
	}
	n.fields[name] = &types.FieldType{
		Type: typ,
		IsSet: func(of any) bool {
			_, absent := get(of.(*T)).(absence)
			return !absent
		},
		GetFrom: func(of any) (any, error) {
			value := get(of.(*T))
			if why, absent := value.(absence); absent {
				return nil, missing[why]
			}
			return value, nil
		},
	}
}

func (n noun[T]) text(name string, get func(*T) string) {
	n.add(name, cel.StringType, func(of *T) any { return types.String(get(of)) })
}

// textIfAny is a text that is empty where there is nothing to say; has() tells.
func (n noun[T]) textIfAny(name string, get func(*T) string) {
	n.text(name, get)
	n.fields[name].IsSet = func(of any) bool { return get(of.(*T)) != "" }
}

func (n noun[T]) texts(name string, get func(*T) []string) {
	n.add(name, cel.ListType(cel.StringType), func(of *T) any { return get(of) })
}

func (n noun[T]) truth(name string, get func(*T) bool) {
	n.add(name, cel.BoolType, func(of *T) any { return types.Bool(get(of)) })
}

func (n noun[T]) number(name string, get func(*T) int64) {
	n.add(name, cel.IntType, func(of *T) any { return types.Int(get(of)) })
}

// provider tells CEL of the nouns' fields. It implements types.Provider.
type provider struct {
	types.Provider
	nouns nouns
}

func (p provider) FindStructType(name string) (*types.Type, bool) {
	if _, ok := p.nouns[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return nil, false
}

func (p provider) FindStructFieldNames(name string) ([]string, bool) {
	fields, ok := p.nouns[name]
	names := make([]string, 0, len(fields))
	for field := range fields {
		names = append(names, field)
	}
	return names, ok
}

func (p provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	found, ok := p.nouns[name][field]
	return found, ok
}

func (p provider) NewValue(name string, _ map[string]ref.Val) ref.Val {
	return types.NewErr("a %s cannot be made", name)
}

// adapter makes CEL values of pointers to nouns. It implements types.Adapter.
type adapter struct{ types.Adapter }

func (a adapter) NativeToValue(value any) ref.Val {
	switch v := value.(type) {
	case ref.Val:
		return v
	case *processView:
		return object[processView]{v}
	case *threadView:
		return object[threadView]{v}
	case *heldSets:
		return object[heldSets]{v}
	case *drift.Pod:
		return object[drift.Pod]{v}
	case *declaredView:
		return object[declaredView]{v}
	case *drift.PodSecurity:
		return object[drift.PodSecurity]{v}
	case *drift.PodLevel:
		return object[drift.PodLevel]{v}
	case *drift.CRI:
		return object[drift.CRI]{v}
	case *ociView:
		return object[ociView]{v}
	case *drift.UserNamespace:
		return object[drift.UserNamespace]{v}
	case *findingView:
		return object[findingView]{v}
	case *drift.Node:
		return object[drift.Node]{v}
	case *drift.Runtime:
		return object[drift.Runtime]{v}
	case *Version:
		return object[Version]{v}
	}
	return a.Adapter.NativeToValue(value)
}

// object is a noun as a CEL value. It implements ref.Val; its fields are read
// through the provider. Nouns are neither compared nor converted (vet.go), so the
// run-time type says no more than that. One pointer: an interface holds it as it is.
type object[T any] struct{ of *T }

var objectType = types.NewObjectType("noun")

func (o object[T]) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("a noun is no %s", to)
}
func (o object[T]) ConvertToType(ref.Type) ref.Val { return unfit() }
func (o object[T]) Equal(ref.Val) ref.Val          { return unfit() }
func (o object[T]) Type() ref.Type                 { return objectType }
func (o object[T]) Value() any                     { return o.of }
