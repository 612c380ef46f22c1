package rpc

import (
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/capdrift/capdrift/agent"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

var observations = map[drift.Observation]v1.Observation{
	drift.Observed:           v1.Observation_OBSERVATION_OBSERVED,
	drift.Partial:            v1.Observation_OBSERVATION_PARTIAL,
	drift.Vanished:           v1.Observation_OBSERVATION_VANISHED,
	drift.Unreadable:         v1.Observation_OBSERVATION_UNREADABLE,
	drift.Starting:           v1.Observation_OBSERVATION_STARTING,
	drift.UnsupportedRuntime: v1.Observation_OBSERVATION_UNSUPPORTED_RUNTIME,
	drift.Helper:             v1.Observation_OBSERVATION_RUNTIME_HELPER,
}

var layers = map[drift.Layer]v1.Layer{
	"":                v1.Layer_LAYER_UNSPECIFIED,
	drift.LayerPod:    v1.Layer_LAYER_POD,
	drift.LayerCRI:    v1.Layer_LAYER_CRI,
	drift.LayerOCI:    v1.Layer_LAYER_OCI,
	drift.LayerKernel: v1.Layer_LAYER_KERNEL,
}

var severities = map[drift.Severity]v1.Severity{
	drift.Info:     v1.Severity_SEVERITY_INFO,
	drift.Low:      v1.Severity_SEVERITY_LOW,
	drift.Medium:   v1.Severity_SEVERITY_MEDIUM,
	drift.High:     v1.Severity_SEVERITY_HIGH,
	drift.Critical: v1.Severity_SEVERITY_CRITICAL,
}

var relations = map[drift.Relation]v1.UserNamespace_Relation{
	drift.RelationSame:    v1.UserNamespace_RELATION_SAME,
	drift.RelationChild:   v1.UserNamespace_RELATION_CHILD,
	drift.RelationInitial: v1.UserNamespace_RELATION_INITIAL,
	drift.RelationUnknown: v1.UserNamespace_RELATION_UNKNOWN,
}

// ToProtoLook is a report without its containers and findings.
func ToProtoLook(r drift.Report) *v1.Look {
	look := &v1.Look{
		Node: &v1.Node{
			Name: text(r.Node.Name), BootId: text(r.Node.BootID), Kernel: text(r.Node.Kernel),
			CapLastCap: uint32(r.Node.CapLastCap), CgroupMode: text(r.Node.CgroupMode), BootTime: moment(r.Node.BootTime),
		},
		TakenAt:  moment(r.TakenAt),
		Duration: durationpb.New(time.Duration(r.DurationMs) * time.Millisecond),
		Coverage: ToProtoCoverage(r.Coverage),
	}
	if r.Runtime != nil {
		look.Runtime = &v1.Runtime{Name: text(r.Runtime.Name), Version: text(r.Runtime.Version), Endpoint: text(r.Runtime.Endpoint)}
	}
	return look
}

func toContainerCoverage(c drift.ContainerCoverage) *v1.ContainerCoverage {
	return &v1.ContainerCoverage{
		Running: count(c.Running), Observed: count(c.Observed), Partial: count(c.Partial),
		Unreadable: count(c.Unreadable), Unsupported: count(c.Unsupported),
	}
}

// ToProtoCoverage is a coverage as a message.
func ToProtoCoverage(c drift.Coverage) *v1.Coverage {
	limits := make([]*v1.Limit, len(c.Limits))
	for i, limit := range c.Limits {
		limits[i] = &v1.Limit{What: text(limit.What), Why: text(limit.Why), Blind: limit.Blind, Code: text(string(limit.Code)), Object: text(limit.Object)}
	}
	return &v1.Coverage{
		Containers: toContainerCoverage(c.Containers),
		Sandboxes:  toContainerCoverage(c.Sandboxes),
		Processes: &v1.ProcessCoverage{
			Observed: count(c.Processes.Observed), Starting: count(c.Processes.Starting),
			Vanished: count(c.Processes.Vanished), Unreadable: count(c.Processes.Unreadable),
		},
		Threads:  &v1.ThreadCoverage{Observed: count(c.Threads.Observed), Skipped: count(c.Threads.Skipped)},
		Complete: c.Complete,
		Limits:   limits,
	}
}

// ToProtoContainer is a container in one message, however large it gets.
func ToProtoContainer(c drift.Container) *v1.Container {
	container := headOf(c)
	for _, p := range c.Processes {
		process := processHead(p)
		for _, t := range p.Threads {
			process.Threads = append(process.Threads, toThread(t))
		}
		container.Processes = append(container.Processes, process)
	}
	return container
}

// headOf is a container without its processes.
func headOf(c drift.Container) *v1.Container {
	container := &v1.Container{
		Id: text(c.ID), Name: text(c.Name), Image: text(c.Image), Pod: toPod(c.Pod), RuntimeHandler: text(c.RuntimeHandler),
		Sandbox: c.Sandbox, Managed: c.Managed, Origin: text(c.Origin),
		Observation: observations[c.Observation], Reason: text(c.Reason),
		Declared: &v1.Declared{Oci: toOCI(c.Declared.OCI), Bundle: toOCI(c.Declared.Bundle), Privileged: c.Declared.Privileged}, ProcessCount: count(len(c.Processes)),
		CreatedAt: moment(c.Created), InitPid: known(c.InitPID), Ended: c.Ended,
	}
	if c.Labels != nil {
		container.Labels = &v1.Labels{Labels: texts(c.Labels)}
	}
	if pod := c.Declared.Pod; pod != nil {
		container.Declared.Pod = &v1.PodSecurity{
			Role: text(string(pod.Role)), Add: texts(pod.Add), Drop: texts(pod.Drop), Privileged: pod.Privileged,
			AllowPrivilegeEscalation: pod.AllowPrivilegeEscalation, RunAsUser: pod.RunAsUser, RunAsNonRoot: pod.RunAsNonRoot,
			HostUsers: pod.HostUsers, RuntimeClass: text(pod.RuntimeClass), Source: text(pod.Source),
			SeccompProfile: maybeText(pod.SeccompProfile), ReadOnlyRootFilesystem: pod.ReadOnlyRootFilesystem,
			PodLevel: &v1.PodLevel{
				RunAsUser: pod.PodLevel.RunAsUser, RunAsNonRoot: pod.PodLevel.RunAsNonRoot, SeccompProfile: maybeText(pod.PodLevel.SeccompProfile),
			},
			Fields: toFields(pod.PodFields),
		}
	}
	if cri := c.Declared.CRI; cri != nil {
		container.Declared.Cri = &v1.CriSecurity{
			Add: texts(cri.Add), Drop: texts(cri.Drop), AddAmbient: texts(cri.AddAmbient), Privileged: cri.Privileged,
			NoNewPrivileges: cri.NoNewPrivileges, RunAsUser: cri.RunAsUser, UserNamespace: cri.UserNamespace,
			SeccompProfile: maybeText(cri.SeccompProfile), ReadOnlyRootFilesystem: cri.ReadOnlyRootFilesystem,
		}
	}
	return container
}

func toFields(f *drift.PodFields) *v1.PodFields {
	if f == nil {
		return nil
	}
	return &v1.PodFields{
		HostNetwork: f.HostNetwork, HostPid: f.HostPID, HostIpc: f.HostIPC, Os: text(f.OS), VolumeTypes: texts(f.VolumeTypes), Sysctls: texts(f.Sysctls),
		HostPorts: f.HostPorts, ProbeHosts: texts(f.ProbeHosts), ProcMount: maybeText(f.ProcMount), WindowsHostProcess: f.WindowsHostProcess,
		AppArmorProfiles: texts(f.AppArmorProfiles), AppArmorAnnotations: texts(f.AppArmorAnnotations), SeccompAnnotations: texts(f.SeccompAnnotations),
		SeLinuxTypes: texts(f.SELinuxTypes), SeLinuxUsers: texts(f.SELinuxUsers), SeLinuxRoles: texts(f.SELinuxRoles),
	}
}

func toOCI(oci *drift.OCI) *v1.OciSecurity {
	if oci == nil {
		return nil
	}
	return &v1.OciSecurity{
		Capabilities: toSets(oci.Sets), NoNewPrivileges: oci.NoNewPrivileges, Uid: oci.UID,
		UnknownNames: texts(oci.UnknownNames), UserNamespace: oci.UserNamespace,
	}
}

// processHead is a process without its threads.
func processHead(p drift.Process) *v1.Process {
	process := &v1.Process{
		Pid: number(p.PID), StartTime: p.StartTime, ParentPid: number(p.ParentPID), Name: text(p.Name), RawName: raw(p.Name),
		State: text(p.State), Uid: p.UID, ContainerUid: p.ContainerUID, NoNewPrivileges: p.NoNewPrivileges,
		UserNamespace: &v1.UserNamespace{Relation: relations[p.UserNamespace.Relation]},
		Capabilities:  toSets(p.Caps), Observation: observations[p.Observation], ThreadCount: count(p.ThreadCount),
		Seccomp: toMode(p.Seccomp), Uids: toUIDs(p.UIDs),
	}
	if inode := p.UserNamespace.Inode; inode != 0 {
		process.UserNamespace.Inode = &inode
	}
	return process
}

func toThread(t drift.Thread) *v1.Thread {
	return &v1.Thread{
		Tid: number(t.TID), Name: text(t.Name), RawName: raw(t.Name), Uid: t.UID, NoNewPrivileges: t.NoNewPrivileges, Capabilities: toSets(t.Caps),
		Seccomp: toMode(t.Seccomp), Uids: toUIDs(t.UIDs),
	}
}

func toUIDs(u drift.UIDs) *v1.UserIds {
	if u.Untold {
		return nil
	}
	return &v1.UserIds{Real: u.Real, Effective: u.Effective, Saved: u.Saved, Filesystem: u.FileSystem}
}

func toMode(seccomp *int) *int32 {
	if seccomp == nil {
		return nil
	}
	return new(number(*seccomp))
}

// ToProtoFinding is a finding as a message.
func ToProtoFinding(f drift.Finding) *v1.Finding {
	return &v1.Finding{
		Id: text(f.ID), Kind: text(string(f.Kind)), Severity: severities[f.Severity], From: layers[f.From], Layer: layers[f.Layer],
		Cause: text(string(f.Cause)), RuntimeHandler: text(f.RuntimeHandler), ContainerId: text(f.ContainerID), Container: text(f.Container),
		Pod: toPod(f.Pod), Pid: known(f.PID), Tid: known(f.TID), Set: text(f.Set), Capabilities: toSet(f.Capabilities),
		Message: text(f.Message), Remedy: text(f.Remedy), Paste: text(f.Paste),
		Rule: text(f.Rule), Declared: text(f.Declared), Actual: text(f.Actual), Exception: text(f.Exception),
		Incident: text(f.Incident), StartTime: knownTicks(f.StartTime), Processes: count(f.Processes), Evidence: toEvidence(f.Evidence),
	}
}

// toEvidence leaves out the arguments: they may hold secrets, and no agent tells them.
func toEvidence(e *drift.Evidence) *v1.Evidence {
	if e == nil {
		return nil
	}
	message := &v1.Evidence{
		StartedAt: maybeMoment(e.StartedAt), Pid: number(e.PID), ContainerPid: known(e.ContainerPID), Cgroup: text(e.Cgroup),
		Executable: text(e.Executable), ExecutableSha256: text(e.ExecutableSHA256), ExecutableUnreadable: text(e.ExecutableUnreadable),
	}
	if p := e.Parent; p != nil {
		message.Parent = &v1.EvidenceParent{
			Pid: number(p.PID), Name: text(p.Name), StartedAt: maybeMoment(p.StartedAt), ContainerId: text(p.ContainerID), Outside: p.Outside,
		}
	}
	return message
}

// ToProtoPolicy is a policy and its exceptions as a message; nil for none.
func ToProtoPolicy(p *agent.PolicyStatus) *v1.Policy {
	if p == nil {
		return nil
	}
	message := &v1.Policy{
		Packs: texts(p.Packs), Rules: count(p.Rules), LoadedAt: moment(p.Since), Pending: count(p.Pending), Unknown: count(p.Unknown),
	}
	for _, e := range p.Exceptions {
		message.Exceptions = append(message.Exceptions, &v1.ExceptionUse{
			Id: text(e.ID), State: text(string(e.State)), Expires: moment(e.Expires), Findings: count(e.Findings),
		})
	}
	return message
}

// ToProtoComponent is a component as a message.
func ToProtoComponent(c agent.Component) *v1.Component {
	return &v1.Component{Name: text(c.Name), Ok: c.OK, Why: text(c.Why), Since: moment(c.Since)}
}

// ToProtoPosition is a position as a message.
func ToProtoPosition(p agent.Position) *v1.Position {
	return &v1.Position{BootId: text(p.BootID), Epoch: text(p.Epoch), Sequence: p.Sequence}
}

func toPod(pod *drift.Pod) *v1.Pod {
	if pod == nil {
		return nil
	}
	return &v1.Pod{Namespace: text(pod.Namespace), Name: text(pod.Name), Uid: text(pod.UID)}
}

func toSets(s capdecode.Sets) *v1.CapabilitySets {
	return &v1.CapabilitySets{
		Inheritable: toSet(s.Inheritable), Permitted: toSet(s.Permitted), Effective: toSet(s.Effective),
		Bounding: toSet(s.Bounding), Ambient: toSet(s.Ambient),
	}
}

func toSet(s capdecode.Set) *v1.Set { return &v1.Set{Bits: uint64(s), Names: s.Names()} }

// text makes valid UTF-8, without which no message can be sent.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func maybeText(s *string) *string {
	if s == nil {
		return nil
	}
	return new(text(*s))
}

func texts(list []string) []string {
	valid := make([]string, len(list))
	for i, s := range list {
		valid[i] = text(s)
	}
	return valid
}

// raw keeps the bytes that text cannot.
func raw(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// moment is absent for the zero time.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func maybeMoment(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return moment(*t)
}

// count and number hold what the kernel counts in 32 bits, or less.
func count(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }

func number(n int) int32 { return int32(min(max(n, math.MinInt32), math.MaxInt32)) }

// known is absent where 0 means that it is not known.
func known(n int) *int32 {
	if n == 0 {
		return nil
	}
	v := number(n)
	return &v
}

func knownTicks(n uint64) *uint64 {
	if n == 0 {
		return nil
	}
	return &n
}
