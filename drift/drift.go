// Package drift holds the nouns of Capdrift and the pure comparison of what was
// declared with what the kernel holds.
//
// Read it in this order: [Report] and its parts are what one look at one node
// yields (and, as JSON, what is published as capdrift.node/v1); [Compare] holds
// the processes of one container against its OCI spec; [Confirm] keeps what two
// looks agree on.
//
// # Promises
//
// Nothing here reads a file, a socket or a clock: the same input gives the same
// output. A layer that is not known is nil, never an empty value. Capability
// bitmaps are never compared across user namespaces.
package drift

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/capdrift/capdrift/capdecode"
)

// Schema names the published form of a [Report].
const Schema = "capdrift.node/v1"

// Layer is one hop of a declaration's way from the pod spec to the kernel.
type Layer string

// The four layers.
const (
	LayerPod    Layer = "pod"
	LayerCRI    Layer = "cri"
	LayerOCI    Layer = "oci"
	LayerKernel Layer = "kernel"
)

// Severity orders findings; a higher one is worse.
type Severity int

// The severities, from harmless to worst.
const (
	Info Severity = iota + 1
	Low
	Medium
	High
	Critical
)

var severityNames = [...]string{"", "info", "low", "medium", "high", "critical"}

// Severities lists all of them, worst first.
func Severities() []Severity { return []Severity{Critical, High, Medium, Low, Info} }

func (s Severity) String() string { return severityNames[s] }

// MarshalText writes the lower-case name.
func (s Severity) MarshalText() ([]byte, error) {
	if s < Info || s > Critical {
		return nil, fmt.Errorf("severity %d has no name", int(s))
	}
	return []byte(s.String()), nil
}

// UnmarshalText reads the lower-case name.
func (s *Severity) UnmarshalText(text []byte) error {
	for _, known := range Severities() {
		if string(text) == known.String() {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("severity %.20q: want critical, high, medium, low or info", text)
}

// Observation says how much of a thing was seen.
type Observation string

// The outcomes of looking at a container or a process.
const (
	Observed           Observation = "observed"
	Partial            Observation = "partial"             // some of it was seen
	Vanished           Observation = "vanished"            // it ended while we looked
	Unreadable         Observation = "unreadable"          // it is there, we may not read it
	Starting           Observation = "starting"            // a runtime's own stage, not yet the container's program
	Helper             Observation = "runtime_helper"      // a runtime's own program in the container's cgroup
	UnsupportedRuntime Observation = "unsupported_runtime" // gVisor, Kata: the host's /proc does not show it
)

// Report is what one look at one node yields.
type Report struct {
	Schema     string      `json:"schema"`
	Node       Node        `json:"node"`
	Runtime    *Runtime    `json:"runtime"` // nil when no runtime answered
	TakenAt    time.Time   `json:"takenAt"`
	DurationMs int64       `json:"durationMs"`
	Coverage   Coverage    `json:"coverage"`
	Containers []Container `json:"containers"`
	Findings   []Finding   `json:"findings"`

	Expectations Expectations `json:"-"` // by which the hops before the kernel were judged
}

// Node is the machine and the kernel whose /proc was read.
type Node struct {
	Name       string        `json:"name"`
	BootID     string        `json:"bootId"` // /proc/sys/kernel/random/boot_id
	Kernel     string        `json:"kernel"` // uname release
	CapLastCap capdecode.Cap `json:"capLastCap"`
	CgroupMode string        `json:"cgroupMode"` // v1, hybrid, v2
	// BootTime is when it was booted, by its clock of now and in whole seconds; the line
	// btime of proc_stat(5). Zero where that is not told.
	BootTime time.Time `json:"bootTime,omitzero"`

	// UserNamespace is that of pid 1 of this /proc: where containers live that
	// have no user namespace of their own.
	UserNamespace UserNamespace `json:"-"`
	// Mount is the id of the mount at pid 1's root, proc_pid_mountinfo(5): who has the
	// same is in the node's own mount namespace. 0 where it is not known.
	Mount int `json:"-"`
}

// Runtime is the container runtime that answered.
type Runtime struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Endpoint string `json:"endpoint"`

	PID int `json:"-"` // of the daemon, in the reader's pid namespace; 0 when it cannot be told
	// Handlers is the runtime's configuration of each runtime handler, where it
	// tells; DefaultHandler is the one of pods that name none.
	Handlers       map[string]Handler `json:"-"`
	DefaultHandler string             `json:"-"`
	// Told are the settings that the runtime tells of itself; nil what it does not.
	Told Given `json:"-"`
}

// Handler is how a runtime is configured to run the pods of a runtime class. A field
// is empty where the runtime does not tell.
type Handler struct {
	BaseSpec string // containerd's base_runtime_spec, a path on the node
	Binary   string // the OCI runtime that is called, a path on the node or a name
	// Type is containerd's shim ("io.containerd.runc.v2"), or CRI-O's runtime_type:
	// "oci", "vm" or "pod", crio.conf(5).
	Type string
	// Monitor is the program that CRI-O runs beside each container and each exec, a
	// path on the node. MonitorInContainer is true where that of an exec runs in the
	// container's own cgroup (monitor_exec_cgroup = "container", crio.conf(5)).
	Monitor            string
	MonitorInContainer bool
}

// Container is one container: what was declared for it at each hop and the
// processes found in its cgroup.
type Container struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Image string `json:"image"`
	Pod   *Pod   `json:"pod"` // nil when no pod is known
	// Labels are its pod's when the pod started, each "key=value", sorted: text of the
	// pod's author. nil where the runtime tells of none, or of more than are kept.
	Labels         []string    `json:"labels"`
	RuntimeHandler string      `json:"runtimeHandler"`
	Sandbox        bool        `json:"sandbox,omitempty"` // a pod's pause container
	Managed        *bool       `json:"managed"`           // a pod of the CRI explains it; nil when no runtime could be asked
	Origin         string      `json:"origin,omitempty"`  // where an unmanaged one was found
	Observation    Observation `json:"observation"`
	Reason         string      `json:"reason,omitempty"` // why the observation is not "observed"
	Declared       Declared    `json:"declared"`
	Processes      []Process   `json:"processes"`

	// Unexplained says why no pod spec explains a container of a pod, where pod
	// specs were asked for.
	Unexplained string `json:"-"`
	// ByName is true when the pod spec's layer is from a manifest that names no
	// uid: it may be another version than what runs.
	ByName bool `json:"-"`

	// MayHaveJoined are the labels of the containers one of whose pid namespaces a process
	// has joined that is found here, where no more is known of it than that it joined one.
	MayHaveJoined []string `json:"-"`
	// Undeclared is true when no source could be read that tells what was declared for it,
	// for a reason of its own (a runtime that hangs is none): Declared.OCI is nil, and
	// Reason says why.
	Undeclared bool `json:"-"`
	// Ended is true when the runtime says that it runs no more, and processes are left
	// in its cgroup all the same.
	Ended bool `json:"ended,omitempty"`

	// RuntimeID is the id by which the runtime knows it, and its cgroup is named, where
	// that is not ID: ids of the runtime are unique within a namespace of its own alone.
	RuntimeID string `json:"-"`
	// Overdue is nil where a look had the time to read all its processes.
	Overdue *Overdue `json:"-"`
	// Afresh has a sweep read all processes that the container is given with, also those
	// of which it is known that they did not run since they were read.
	Afresh bool `json:"-"`

	InitPID    int       `json:"-"` // as the runtime says; 0 when it does not
	Created    time.Time `json:"-"` // of its pod's sandbox; zero when not told
	Made       time.Time `json:"-"` // when it was made itself; zero when not told
	Runtime    string    `json:"-"` // the name of the container runtime, where it told of the container
	CgroupPath string    `json:"-"` // OCI linux.cgroupsPath, in either driver's form
	Binary     string    `json:"-"` // the OCI runtime that was called, where another than usual is configured
}

// Pod names the Kubernetes pod of a container.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// Declared holds what each hop asked for; a hop that is not known is nil.
type Declared struct {
	Pod *PodSecurity `json:"pod"`
	CRI *CRI         `json:"cri"`
	OCI *OCI         `json:"oci"`
	// Bundle is the config.json that the OCI runtime read. It is the OCI layer
	// again, unless a wrapper of the OCI runtime or a hook edited it.
	Bundle *OCI `json:"bundle"`
	// Privileged is what a runtime says of it that hides the rest of its CRI config
	// (CRI-O); nil where the CRI config tells, or nobody does.
	Privileged *bool `json:"privileged"`
}

// CRI is the part of the CRI ContainerConfig that decides privileges, as
// written (k8s.io/cri-api, LinuxContainerSecurityContext).
type CRI struct {
	Add             []string `json:"add"`
	Drop            []string `json:"drop"`
	AddAmbient      []string `json:"addAmbient"` // no kubelet sets it, and no runtime reads it
	Privileged      bool     `json:"privileged"`
	NoNewPrivileges bool     `json:"noNewPrivileges"`
	RunAsUser       *int64   `json:"runAsUser"` // nil where a user's name, or nothing, is given
	UserNamespace   bool     `json:"userNamespace"`
	// What follows decides no capability, and is not held against the pod spec.
	SeccompProfile         *string `json:"seccompProfile"` // RuntimeDefault, Localhost, Unconfined; nil where none is given
	ReadOnlyRootFilesystem bool    `json:"readOnlyRootFilesystem"`
}

// OCI is the part of the OCI runtime spec that decides capabilities.
type OCI struct {
	capdecode.Sets
	NoNewPrivileges bool      `json:"noNewPrivileges"`
	UID             uint32    `json:"uid"`          // process.user.uid, as seen in the container
	UnknownNames    []string  `json:"unknownNames"` // names in the five lists that mean no capability
	UserNamespace   bool      `json:"userNamespace"`
	UIDMap          []IDRange `json:"-"` // linux.uidMappings, nil without a user namespace
}

// Process is one process as /proc told of it. Its identity is the node's boot
// id, the pid and the start time together.
type Process struct {
	PID             int            `json:"pid"`
	StartTime       uint64         `json:"startTime"` // clock ticks since boot, stat field 22
	ParentPID       int            `json:"parentPid"`
	Name            string         `json:"name"` // comm: hostile text, raw; may be invalid UTF-8 before output
	State           string         `json:"state"`
	UID             uint32         `json:"uid"`             // effective, in the reader's user namespace
	UIDs            UIDs           `json:"uids"`            // all four, in the reader's user namespace
	ContainerUID    *uint32        `json:"containerUid"`    // effective, in the container's; nil when unmapped
	NoNewPrivileges *bool          `json:"noNewPrivileges"` // nil before Linux 4.10
	Seccomp         *int           `json:"seccomp"`         // 0 off, 1 strict, 2 filter; nil when not told
	UserNamespace   UserNamespace  `json:"userNamespace"`
	Caps            capdecode.Sets `json:"caps"`
	Observation     Observation    `json:"observation"` // observed, starting or runtime_helper
	ThreadCount     int            `json:"threadCount"`
	Threads         []Thread       `json:"threads,omitempty"` // only those whose credentials differ from the leader's

	// Forked is true until it executes a program: it runs the code of the process that
	// forked it (PF_FORKNOEXEC in include/linux/sched.h, field 9 of stat).
	Forked bool `json:"-"`
	// Lineage is where it came from. It is read of those alone that need an explanation;
	// nil for all others.
	Lineage *Lineage `json:"-"`
	// Entered is true of a process that was put into the container from outside, when it
	// was seen first, and of what it started.
	Entered bool `json:"-"`
	// Elsewhere is the cgroup of a process that is the container's by where it came from,
	// and is not in the container's cgroup; "" for all others.
	Elsewhere string `json:"-"`
	// ThreadsRead is true when all threads were read, and Threads are all that differ.
	ThreadsRead bool `json:"-"`
	// AmbientUnshown: the kernel shows no ambient set, because it has none (before Linux 4.3).
	AmbientUnshown bool `json:"-"`

	NamespacePIDs []int         `json:"-"` // NSpid: the pid in each pid namespace, outermost first
	Age           time.Duration `json:"-"` // since its start, by the node's uptime
}

// UIDs are the four user ids of a thread, credentials(7), as status tells them in
// its line Uid.
type UIDs struct {
	Real       uint32 `json:"real"`
	Effective  uint32 `json:"effective"`
	Saved      uint32 `json:"saved"`
	FileSystem uint32 `json:"filesystem"`

	// Untold is true where they are not known: an older agent tells the effective one
	// only. Zeros are root's.
	Untold bool `json:"-"`
}

// MarshalJSON writes null for ids that are not known.
func (u UIDs) MarshalJSON() ([]byte, error) {
	if u.Untold {
		return []byte("null"), nil
	}
	type plain UIDs
	return json.Marshal(plain(u))
}

// Thread is a thread whose credentials are not its leader's; capabilities(7),
// seccomp(2): each thread has its own sets and filters.
type Thread struct {
	TID             int            `json:"tid"`
	Name            string         `json:"name"`
	UID             uint32         `json:"uid"`
	UIDs            UIDs           `json:"uids"`
	NoNewPrivileges *bool          `json:"noNewPrivileges"`
	Seccomp         *int           `json:"seccomp"` // as a process's
	Caps            capdecode.Sets `json:"caps"`
}

// Finding is one thing that is not as declared, or that a person should know.
type Finding struct {
	ID       string   `json:"id"` // stable: the same cause on the same container keeps it
	Kind     Kind     `json:"kind"`
	Severity Severity `json:"severity"`
	From     Layer    `json:"from,omitempty"`  // the last layer that was as declared
	Layer    Layer    `json:"layer,omitempty"` // the one after it, where reality is another
	Cause    Cause    `json:"cause,omitempty"` // where it is known
	// RuntimeHandler is in a finding about all containers of a handler; it then
	// has no container.
	RuntimeHandler string `json:"runtimeHandler,omitempty"`
	ContainerID    string `json:"containerId"`
	Container      string `json:"container"`
	Pod            *Pod   `json:"pod"`
	// PID and StartTime are the process that shows it, TID its thread where that is not
	// the leader. Where several do, it is the first of Processes many.
	PID          int           `json:"pid,omitempty"`
	StartTime    uint64        `json:"startTime,omitempty"` // of the process, in clock ticks since boot
	TID          int           `json:"tid,omitempty"`
	Processes    int           `json:"processes,omitempty"`
	Set          string        `json:"set,omitempty"` // which of the five sets
	Capabilities capdecode.Set `json:"capabilities"`  // as names: ["CAP_SYS_ADMIN"]
	Message      string        `json:"message"`
	Remedy       string        `json:"remedy"`
	Paste        string        `json:"paste,omitempty"` // YAML that carries the remedy out
	// Rule is the one that a policy violation is of, and the verdicts are what it says on
	// paper and in the kernel: "pass", "fail", "unknown", "not_applicable". Empty for drift.
	Rule     string `json:"rule,omitempty"`
	Declared string `json:"declared,omitempty"`
	Actual   string `json:"actual,omitempty"`
	// Exception is the id of the one that accepts it; empty where none does.
	Exception string `json:"exception,omitempty"`
	// Incident is shared by the findings of one container that have one cause, such as
	// all that is found about one process. Empty where a finding stands alone.
	Incident string `json:"incident,omitempty"`
	// Evidence is of the process that shows it, where that was read.
	Evidence *Evidence `json:"evidence,omitempty"`
	// OpenedAt is when an agent opened it, and UpdatedAt when it told last what has become of
	// it; nil where no agent did, or where that was not written down.
	OpenedAt  *time.Time `json:"openedAt,omitempty"`
	UpdatedAt *time.Time `json:"updatedAt,omitempty"`
}

// MarshalJSON writes the capabilities as a list of names.
func (f Finding) MarshalJSON() ([]byte, error) {
	type plain Finding
	return json.Marshal(struct {
		plain
		Capabilities []string `json:"capabilities"`
	}{plain(f), f.Capabilities.Names()})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (f *Finding) UnmarshalJSON(text []byte) error {
	type plain Finding
	form := struct {
		*plain
		Capabilities []string `json:"capabilities"`
	}{plain: (*plain)(f)}
	if err := json.Unmarshal(text, &form); err != nil {
		return err
	}
	f.Capabilities = 0
	for _, name := range form.Capabilities {
		c, ok := capdecode.ParseCap(name)
		if !ok {
			return fmt.Errorf("finding: %.40q is no capability", name)
		}
		f.Capabilities |= capdecode.Of(c)
	}
	return nil
}

// Coverage says how much of the node a report saw.
type Coverage struct {
	Containers ContainerCoverage `json:"containers"`
	// Sandboxes are those of pods that have a process of their own: their cgroups would else be
	// places to hide in.
	Sandboxes ContainerCoverage `json:"sandboxes"`
	Processes ProcessCoverage   `json:"processes"`
	Threads   ThreadCoverage    `json:"threads"`
	Complete  bool              `json:"complete"`
	Limits    []Limit           `json:"limits"` // what was not seen, and why
}

// ContainerCoverage counts running containers by how much of each was seen.
type ContainerCoverage struct {
	Running     int `json:"running"`
	Observed    int `json:"observed"`
	Partial     int `json:"partial"`
	Unreadable  int `json:"unreadable"`
	Unsupported int `json:"unsupported"`
}

// ProcessCoverage counts the processes of containers.
type ProcessCoverage struct {
	Observed   int `json:"observed"`
	Starting   int `json:"starting"`
	Vanished   int `json:"vanished"`
	Unreadable int `json:"unreadable"`
}

// ThreadCoverage counts threads beside their leaders.
type ThreadCoverage struct {
	Observed int `json:"observed"`
	Skipped  int `json:"skipped"`
}

// Limit is one thing that a look could not see or do.
type Limit struct {
	What string `json:"what"`
	Why  string `json:"why"`
	// Blind is true when something that exists was not looked at, false when it
	// was seen by a weaker means than the best.
	Blind bool `json:"blind"`
	// Code names what is blind, and Object the part of the node, by names that are stable.
	// Empty where it has none.
	Code   GapCode `json:"code,omitempty"`
	Object string  `json:"object,omitempty"`
}

// Inventory is what a container runtime tells: the running containers, with
// everything declared about them and no processes yet.
type Inventory struct {
	Runtime    Runtime
	Containers []Container
	Starting   []string // ids of containers that are made and do not run yet
	// Ended are containers that run no more, with all that was declared for them: what
	// is left in their cgroups is held against it.
	Ended  []Container
	Limits []Limit
}

// MembershipChange is what changed in one container's cgroup between two looks.
type MembershipChange struct {
	ContainerID string
	Appeared    []int // pids that were not there before
	Gone        []int
	Missed      int // that appeared and ended before anybody could read them
}

// RuntimeEvent is a hint of a runtime that something changed: it says when to
// look, and is never believed itself.
type RuntimeEvent struct {
	Kind        RuntimeEventKind
	ContainerID string
	PID         int    // of what an exec started; 0 otherwise
	Why         string // of blind and silent
}

// RuntimeEventKind says what a runtime told of.
type RuntimeEventKind string

// What runtimes tell of.
const (
	EventCreated     RuntimeEventKind = "created"
	EventStarted     RuntimeEventKind = "started"
	EventExecStarted RuntimeEventKind = "exec_started"
	EventExited      RuntimeEventKind = "exited"
	EventDeleted     RuntimeEventKind = "deleted"
	EventMissed      RuntimeEventKind = "missed" // some were not told: look at everything
	EventHeard       RuntimeEventKind = "heard"  // from now on all are told, and those before may not have been
	EventBlind       RuntimeEventKind = "blind"  // none is told until the next that is heard
	EventSilent      RuntimeEventKind = "silent" // none is told, as the runtime is configured
)

// Sweep is what /proc tells: the given containers with their processes, after
// them the containers that were found on the node without having been given.
type Sweep struct {
	Containers []Container
	Processes  ProcessCoverage
	Threads    ThreadCoverage
	Limits     []Limit
}

// Cover counts the report's containers and processes by how much of each was
// seen and says whether the report is complete: nothing that runs was left
// unseen. What is not in the report, vanished and unreadable processes, must
// have been counted before.
func (r *Report) Cover() {
	cover := &r.Coverage
	cover.Containers, cover.Sandboxes, cover.Processes.Observed, cover.Processes.Starting = ContainerCoverage{}, ContainerCoverage{}, 0, 0
	for _, c := range r.Containers {
		for _, p := range c.Processes {
			if p.Observation == Starting {
				cover.Processes.Starting++
			} else {
				cover.Processes.Observed++
			}
		}
		if c.Ended {
			continue // no container that runs, whatever is left in its cgroup
		}
		count := &cover.Containers
		if c.Sandbox {
			count = &cover.Sandboxes
		}
		count.Running++
		switch c.Observation {
		case Observed:
			count.Observed++
		case UnsupportedRuntime:
			count.Unsupported++
		case Unreadable:
			count.Unreadable++
		default:
			count.Partial++
		}
	}
	cover.Complete = cover.Containers.Observed == cover.Containers.Running && cover.Sandboxes.Observed == cover.Sandboxes.Running &&
		cover.Processes.Unreadable == 0 && cover.Processes.Starting == 0 && cover.Threads.Skipped == 0 &&
		!slices.ContainsFunc(cover.Limits, func(l Limit) bool { return l.Blind })
}
