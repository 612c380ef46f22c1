package rpc

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/capdrift/capdrift/agent"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// FromProtoReport puts a report together again. What an agent must tell and did
// not is an error, never an empty value; parts of containers are joined.
func FromProtoReport(look *v1.Look, containers []*v1.Container, findings []*v1.Finding) (drift.Report, error) {
	if look.GetNode() == nil || look.GetCoverage() == nil || !look.GetTakenAt().IsValid() {
		return drift.Report{}, errors.New("the agent's report names no node, time or coverage")
	}
	if look.Node.CapLastCap > uint32(capdecode.MaxCap) {
		return drift.Report{}, fmt.Errorf("the agent's last capability is %d, no set has more than %d", look.Node.CapLastCap, capdecode.MaxCap)
	}
	report := drift.Report{
		Schema: drift.Schema,
		Node: drift.Node{
			Name: look.Node.Name, BootID: look.Node.BootId, Kernel: look.Node.Kernel,
			CapLastCap: capdecode.Cap(look.Node.CapLastCap), CgroupMode: look.Node.CgroupMode, BootTime: when(look.Node.BootTime),
		},
		TakenAt:    when(look.TakenAt),
		DurationMs: look.Duration.AsDuration().Milliseconds(),
		Coverage:   FromProtoCoverage(look.Coverage),
		Containers: []drift.Container{},
		Findings:   []drift.Finding{},
	}
	if r := look.Runtime; r != nil {
		report.Runtime = &drift.Runtime{Name: r.Name, Version: r.Version, Endpoint: r.Endpoint}
	}
	whole, err := JoinParts(containers)
	if err != nil {
		return drift.Report{}, err
	}
	for _, message := range whole {
		container, err := FromProtoContainer(message)
		if err != nil {
			return drift.Report{}, err
		}
		report.Containers = append(report.Containers, container)
	}
	for _, message := range findings {
		finding, err := FromProtoFinding(message)
		if err != nil {
			return drift.Report{}, err
		}
		report.Findings = append(report.Findings, finding)
	}
	return report, nil
}

func fromContainerCoverage(m *v1.ContainerCoverage) drift.ContainerCoverage {
	return drift.ContainerCoverage{
		Running: int(m.GetRunning()), Observed: int(m.GetObserved()), Partial: int(m.GetPartial()),
		Unreadable: int(m.GetUnreadable()), Unsupported: int(m.GetUnsupported()),
	}
}

// FromProtoCoverage is the coverage of a message; what it does not tell is zero,
// and so not complete.
func FromProtoCoverage(m *v1.Coverage) drift.Coverage {
	limits := make([]drift.Limit, 0, len(m.GetLimits()))
	for _, limit := range m.GetLimits() {
		limits = append(limits, drift.Limit{What: limit.GetWhat(), Why: limit.GetWhy(), Blind: limit.GetBlind(), Code: drift.GapCode(limit.GetCode()), Object: limit.GetObject()})
	}
	processes, threads := m.GetProcesses(), m.GetThreads()
	return drift.Coverage{
		Containers: fromContainerCoverage(m.GetContainers()),
		Sandboxes:  fromContainerCoverage(m.GetSandboxes()),
		Processes: drift.ProcessCoverage{
			Observed: int(processes.GetObserved()), Starting: int(processes.GetStarting()),
			Vanished: int(processes.GetVanished()), Unreadable: int(processes.GetUnreadable()),
		},
		Threads:  drift.ThreadCoverage{Observed: int(threads.GetObserved()), Skipped: int(threads.GetSkipped())},
		Complete: m.GetComplete(),
		Limits:   limits,
	}
}

// JoinParts puts together what [v1.Container.More] and [v1.Process.More] took
// apart. The messages are written to.
func JoinParts(parts []*v1.Container) ([]*v1.Container, error) {
	var whole []*v1.Container
	for _, part := range parts {
		if len(whole) == 0 || !whole[len(whole)-1].GetMore() {
			whole = append(whole, part)
			continue
		}
		last := whole[len(whole)-1]
		if last.Id != part.GetId() {
			return nil, fmt.Errorf("container %.64q: more of its processes were announced, and %.64q came", last.Id, part.GetId())
		}
		more := part.GetProcesses()
		if n := len(last.Processes); n > 0 && last.Processes[n-1].GetMore() {
			process := last.Processes[n-1]
			process.More = false
			if len(more) > 0 && more[0].GetPid() == process.Pid { // else it has ended
				process.Threads, process.More = append(process.Threads, more[0].Threads...), more[0].More
				more = more[1:]
			}
		}
		last.Processes, last.More = append(last.Processes, more...), part.GetMore()
	}
	if n := len(whole); n > 0 && whole[n-1].GetMore() {
		return nil, fmt.Errorf("container %.64q: more of its processes were announced, and did not come", whole[n-1].Id)
	}
	return whole, nil
}

// FromProtoContainer is the container of a message that is whole.
func FromProtoContainer(m *v1.Container) (drift.Container, error) {
	fail := func(why error) (drift.Container, error) {
		return drift.Container{}, fmt.Errorf("container %.64q: %w", m.GetId(), why)
	}
	observation, err := fromObservation(m.GetObservation())
	if err != nil {
		return fail(err)
	}
	if m.Declared == nil {
		return fail(errors.New("the agent does not say what was declared for it"))
	}
	container := drift.Container{
		ID: m.Id, Name: m.Name, Image: m.Image, Pod: fromPod(m.Pod), RuntimeHandler: m.RuntimeHandler, Sandbox: m.Sandbox,
		Managed: m.Managed, Origin: m.Origin, Observation: observation, Reason: m.Reason, Processes: []drift.Process{},
		InitPID: int(m.GetInitPid()), Created: when(m.CreatedAt), Ended: m.Ended,
	}
	container.Declared.Privileged = m.Declared.Privileged
	if m.Labels != nil {
		container.Labels = list(m.Labels.Labels)
	}
	if pod := m.Declared.Pod; pod != nil {
		container.Declared.Pod = &drift.PodSecurity{
			Role: drift.Role(pod.Role), Add: list(pod.Add), Drop: list(pod.Drop), Privileged: pod.Privileged,
			AllowPrivilegeEscalation: pod.AllowPrivilegeEscalation, RunAsUser: pod.RunAsUser, RunAsNonRoot: pod.RunAsNonRoot,
			HostUsers: pod.HostUsers, RuntimeClass: pod.RuntimeClass, Source: pod.Source,
			SeccompProfile: pod.SeccompProfile, ReadOnlyRootFilesystem: pod.ReadOnlyRootFilesystem, PodFields: fromFields(pod.Fields),
		}
		if level := pod.PodLevel; level != nil {
			container.Declared.Pod.PodLevel = drift.PodLevel{
				RunAsUser: level.RunAsUser, RunAsNonRoot: level.RunAsNonRoot, SeccompProfile: level.SeccompProfile,
			}
		}
	}
	if cri := m.Declared.Cri; cri != nil {
		container.Declared.CRI = &drift.CRI{
			Add: list(cri.Add), Drop: list(cri.Drop), AddAmbient: list(cri.AddAmbient), Privileged: cri.Privileged,
			NoNewPrivileges: cri.NoNewPrivileges, RunAsUser: cri.RunAsUser, UserNamespace: cri.UserNamespace,
			SeccompProfile: cri.SeccompProfile, ReadOnlyRootFilesystem: cri.ReadOnlyRootFilesystem,
		}
	}
	if container.Declared.OCI, err = fromOCI(m.Declared.Oci); err != nil {
		return fail(err)
	}
	if container.Declared.Bundle, err = fromOCI(m.Declared.Bundle); err != nil {
		return fail(err)
	}
	for _, message := range m.Processes {
		process, err := fromProcess(message)
		if err != nil {
			return fail(fmt.Errorf("process %d: %w", message.GetPid(), err))
		}
		container.Processes = append(container.Processes, process)
	}
	return container, nil
}

func fromFields(m *v1.PodFields) *drift.PodFields {
	if m == nil {
		return nil
	}
	return &drift.PodFields{
		HostNetwork: m.HostNetwork, HostPID: m.HostPid, HostIPC: m.HostIpc, OS: m.Os, VolumeTypes: list(m.VolumeTypes), Sysctls: list(m.Sysctls),
		HostPorts: append([]int64{}, m.HostPorts...), ProbeHosts: list(m.ProbeHosts), ProcMount: m.ProcMount, WindowsHostProcess: m.WindowsHostProcess,
		AppArmorProfiles: list(m.AppArmorProfiles), AppArmorAnnotations: list(m.AppArmorAnnotations), SeccompAnnotations: list(m.SeccompAnnotations),
		SELinuxTypes: list(m.SeLinuxTypes), SELinuxUsers: list(m.SeLinuxUsers), SELinuxRoles: list(m.SeLinuxRoles),
	}
}

func fromOCI(m *v1.OciSecurity) (*drift.OCI, error) {
	if m == nil {
		return nil, nil
	}
	sets, err := fromSets(m.Capabilities)
	if err != nil {
		return nil, err
	}
	return &drift.OCI{
		Sets: sets, NoNewPrivileges: m.NoNewPrivileges, UID: m.Uid, UnknownNames: list(m.UnknownNames), UserNamespace: m.UserNamespace,
	}, nil
}

func fromProcess(m *v1.Process) (drift.Process, error) {
	sets, err := fromSets(m.GetCapabilities())
	if err != nil {
		return drift.Process{}, err
	}
	observation, err := fromObservation(m.Observation)
	if err != nil {
		return drift.Process{}, err
	}
	process := drift.Process{
		PID: int(m.Pid), StartTime: m.StartTime, ParentPID: int(m.ParentPid), Name: name(m.Name, m.RawName), State: m.State,
		UID: m.Uid, UIDs: fromUIDs(m.Uids), ContainerUID: m.ContainerUid, NoNewPrivileges: m.NoNewPrivileges,
		UserNamespace: drift.UserNamespace{Relation: fromRelation(m.UserNamespace.GetRelation()), Inode: m.UserNamespace.GetInode()},
		Caps:          sets, Observation: observation, ThreadCount: int(m.ThreadCount), Seccomp: fromMode(m.Seccomp),
	}
	for _, t := range m.Threads {
		sets, err := fromSets(t.GetCapabilities())
		if err != nil {
			return drift.Process{}, fmt.Errorf("thread %d: %w", t.GetTid(), err)
		}
		process.Threads = append(process.Threads, drift.Thread{
			TID: int(t.Tid), Name: name(t.Name, t.RawName), UID: t.Uid, UIDs: fromUIDs(t.Uids),
			NoNewPrivileges: t.NoNewPrivileges, Seccomp: fromMode(t.Seccomp), Caps: sets,
		})
	}
	return process, nil
}

func fromUIDs(m *v1.UserIds) drift.UIDs {
	if m == nil {
		return drift.UIDs{Untold: true}
	}
	return drift.UIDs{Real: m.Real, Effective: m.Effective, Saved: m.Saved, FileSystem: m.Filesystem}
}

func fromMode(seccomp *int32) *int {
	if seccomp == nil {
		return nil
	}
	return new(int(*seccomp))
}

// FromProtoFinding is the finding of a message.
func FromProtoFinding(m *v1.Finding) (drift.Finding, error) {
	severity, ok := inverse(severities, m.GetSeverity())
	if !ok {
		return drift.Finding{}, fmt.Errorf("finding %.64q: severity %v is not known to this version", m.GetId(), m.GetSeverity())
	}
	if m.Capabilities == nil {
		return drift.Finding{}, fmt.Errorf("finding %.64q: the agent does not say about which capabilities it is", m.Id)
	}
	return drift.Finding{
		ID: m.Id, Kind: drift.Kind(m.Kind), Severity: severity, From: fromLayer(m.From), Layer: fromLayer(m.Layer), Cause: drift.Cause(m.Cause),
		RuntimeHandler: m.RuntimeHandler, ContainerID: m.ContainerId, Container: m.Container, Pod: fromPod(m.Pod),
		PID: int(m.GetPid()), TID: int(m.GetTid()), Set: m.Set, Capabilities: capdecode.Set(m.Capabilities.Bits),
		Message: m.Message, Remedy: m.Remedy, Paste: m.Paste,
		Rule: m.Rule, Declared: m.Declared, Actual: m.Actual, Exception: m.Exception,
		Incident: m.Incident, StartTime: m.GetStartTime(), Processes: int(m.Processes), Evidence: fromEvidence(m.Evidence),
	}, nil
}

func fromEvidence(m *v1.Evidence) *drift.Evidence {
	if m == nil {
		return nil
	}
	e := &drift.Evidence{
		StartedAt: maybeWhen(m.StartedAt), PID: int(m.Pid), ContainerPID: int(m.GetContainerPid()), Cgroup: m.Cgroup,
		Executable: m.Executable, ExecutableSHA256: m.ExecutableSha256, ExecutableUnreadable: m.ExecutableUnreadable,
	}
	if p := m.Parent; p != nil {
		e.Parent = &drift.EvidenceParent{PID: int(p.Pid), Name: p.Name, StartedAt: maybeWhen(p.StartedAt), ContainerID: p.ContainerId, Outside: p.Outside}
	}
	return e
}

// FromProtoPolicy is the policy of a message; nil for none.
func FromProtoPolicy(m *v1.Policy) *agent.PolicyStatus {
	if m == nil {
		return nil
	}
	p := &agent.PolicyStatus{
		Packs: list(m.Packs), Rules: int(m.Rules), Since: when(m.LoadedAt), Pending: int(m.Pending), Unknown: int(m.Unknown),
	}
	for _, e := range m.Exceptions {
		p.Exceptions = append(p.Exceptions, agent.ExceptionStatus{
			Exception: agent.Exception{ID: e.GetId(), Expires: when(e.GetExpires())}, State: agent.ExceptionState(e.GetState()), Findings: int(e.GetFindings()),
		})
	}
	return p
}

func fromPod(m *v1.Pod) *drift.Pod {
	if m == nil {
		return nil
	}
	return &drift.Pod{Namespace: m.Namespace, Name: m.Name, UID: m.Uid}
}

func fromSets(m *v1.CapabilitySets) (capdecode.Sets, error) {
	if m.GetInheritable() == nil || m.GetPermitted() == nil || m.GetEffective() == nil || m.GetBounding() == nil || m.GetAmbient() == nil {
		return capdecode.Sets{}, errors.New("the agent does not tell all five capability sets")
	}
	return capdecode.Sets{
		Inheritable: capdecode.Set(m.Inheritable.Bits), Permitted: capdecode.Set(m.Permitted.Bits), Effective: capdecode.Set(m.Effective.Bits),
		Bounding: capdecode.Set(m.Bounding.Bits), Ambient: capdecode.Set(m.Ambient.Bits),
	}, nil
}

// fromObservation keeps one that a newer agent knows as its number: it is then
// none of those that mean that all is seen.
func fromObservation(m v1.Observation) (drift.Observation, error) {
	if m == v1.Observation_OBSERVATION_UNSPECIFIED {
		return "", errors.New("the agent does not say how much of it was seen")
	}
	if observation, ok := inverse(observations, m); ok {
		return observation, nil
	}
	return drift.Observation(strings.ToLower(m.String())), nil
}

func fromLayer(m v1.Layer) drift.Layer {
	if layer, ok := inverse(layers, m); ok {
		return layer
	}
	return drift.Layer(strings.ToLower(m.String()))
}

func fromRelation(m v1.UserNamespace_Relation) drift.Relation {
	if relation, ok := inverse(relations, m); ok {
		return relation
	}
	return drift.RelationUnknown
}

func inverse[K, V comparable](table map[K]V, value V) (K, bool) {
	for k, v := range table {
		if v == value {
			return k, true
		}
	}
	var none K
	return none, false
}

func name(text string, raw []byte) string {
	if raw != nil {
		return string(raw)
	}
	return text
}

// list is never nil, so that its JSON is [].
func list(of []string) []string { return append([]string{}, of...) }

// when is the zero time for an absent moment, and for one that no calendar has.
func when(m *timestamppb.Timestamp) time.Time {
	if !m.IsValid() {
		return time.Time{}
	}
	return m.AsTime()
}

func maybeWhen(m *timestamppb.Timestamp) *time.Time {
	if t := when(m); !t.IsZero() {
		return &t
	}
	return nil
}
