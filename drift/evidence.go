package drift

import (
	"math"
	"time"
)

// Evidence is what tells a process apart after it has ended. Arguments are there only
// where somebody asked for them; the environment never is.
type Evidence struct {
	// StartedAt is when it started, by the node's clock: [Node.BootTime] plus its start
	// time. nil where the boot time is not known.
	StartedAt *time.Time `json:"startedAt,omitempty"`
	PID       int        `json:"pid"`
	// ContainerPID is its pid in its own pid namespace; 0 where that is not told.
	ContainerPID int    `json:"containerPid,omitempty"`
	Cgroup       string `json:"cgroup,omitempty"` // a path as in proc_pid_cgroup(5); its author's text
	// Parent is nil where it is not visible: it lives in another pid namespace, or the
	// lineage was not read.
	Parent *EvidenceParent `json:"parent,omitempty"`
	// Executable is the path of its program as the kernel tells it, in the mount
	// namespace of the process: raw text, and " (deleted)" at its end where it is.
	Executable       string `json:"executable,omitempty"`
	ExecutableSHA256 string `json:"executableSha256,omitempty"` // in hex
	// ExecutableUnreadable says why the path or the hash is missing.
	ExecutableUnreadable string `json:"executableUnreadable,omitempty"`
	// Arguments are its command line, which may hold secrets.
	Arguments []string `json:"arguments,omitempty"`
}

// EvidenceParent is the parent of a process. A parent that ended before somebody
// looked is not known: the kernel names who adopted its children instead.
type EvidenceParent struct {
	PID       int        `json:"pid"`
	Name      string     `json:"name"` // hostile text, raw
	StartedAt *time.Time `json:"startedAt,omitempty"`
	// ContainerID is the process's own container, where its parent is in it too.
	ContainerID string `json:"containerId,omitempty"`
	// Outside is true where the parent is known to be in no container. Where neither is
	// told, it is in another container, or nobody knows where it is.
	Outside bool `json:"outside,omitempty"`
}

// evidenceOf collects what is known of a process of the container.
func evidenceOf(node Node, c Container, p Process) *Evidence {
	e := &Evidence{StartedAt: node.wallClock(p.StartTime), PID: p.PID}
	if n := len(p.NamespacePIDs); n > 0 {
		e.ContainerPID = p.NamespacePIDs[n-1]
	}
	if p.Lineage == nil {
		return e
	}
	e.Cgroup, e.Arguments = p.Lineage.Cgroup, p.Lineage.Arguments
	e.Executable, e.ExecutableSHA256, e.ExecutableUnreadable = p.Lineage.Executable, p.Lineage.ExecutableSHA256, p.Lineage.ExecutableUnreadable
	if len(p.Lineage.Ancestors) > 0 {
		parent := p.Lineage.Ancestors[0]
		e.Parent = &EvidenceParent{PID: parent.PID, Name: clip(parent.Name), StartedAt: node.wallClock(parent.StartTime), Outside: parent.Outside}
		if parent.Container {
			e.Parent.ContainerID = c.ID
		}
	}
	return e
}

// wallClock returns the time of a start time, in clock ticks since the boot. It is nil
// where the boot time or the start time is not known, or no process can have started
// then.
func (n Node) wallClock(ticks uint64) *time.Time {
	if n.BootTime.IsZero() || ticks == 0 || ticks > math.MaxInt64/uint64(clockTick) {
		return nil
	}
	return new(n.BootTime.Add(time.Duration(ticks) * clockTick))
}
