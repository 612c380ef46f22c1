package drift

import (
	"fmt"
	"slices"
	"time"
)

// Overdue says which processes of a container a look did not read because reading
// them takes too much processor time. A process decides that itself: reading one costs
// a thousand times what another costs where it has 65,536 groups; setgroups(2).
type Overdue struct {
	PIDs   []int // in order: what is told of them is what an earlier look read
	Unread int   // of those, that no look has read yet: nothing is told of them
	Read   int   // other processes, that were read
	Took   time.Duration
	Oldest time.Duration // since the one of PIDs that was read the longest ago was read, or came
	For    time.Duration // since when every look left some unread
}

// String says how much was read and what was not, for a [Limit].
func (o *Overdue) String() string {
	text := fmt.Sprintf("reading %d of its %d processes took %v of processor time, which is its part of one look",
		o.Read, o.Read+len(o.PIDs), o.Took.Round(time.Millisecond))
	if known := len(o.PIDs) - o.Unread; known > 0 {
		text += fmt.Sprintf("; %d others were read up to %v ago", known, o.Oldest.Round(time.Second))
	}
	if o.Unread > 0 {
		text += fmt.Sprintf("; %d were never read", o.Unread)
	}
	return text
}

// overdueLimit is for how long processes may be overdue before that is a finding.
const overdueLimit = 10 * time.Minute

// costlyRead is what reading a whole container takes at least where its own processes
// are why it is overdue. A container that costs less is overdue because of others, which
// have their own findings: 5,000 ordinary processes take half of it.
const costlyRead = 500 * time.Millisecond

// whole returns what reading all processes would take.
func (o *Overdue) whole() time.Duration {
	if o.Read == 0 {
		return o.Took
	}
	return o.Took / time.Duration(o.Read) * time.Duration(o.Read+len(o.PIDs))
}

// Stale reports whether what is known of a process was read by an earlier look than
// that which told of the container.
func (c *Container) Stale(pid int) bool {
	if c.Overdue == nil {
		return false
	}
	_, late := slices.BinarySearch(c.Overdue.PIDs, pid)
	return late
}

// overdue makes a finding of a container whose processes cannot be read in time for
// long. The message has no numbers, which change with every look; the report's limits do.
func (b *book) overdue() {
	o := b.container.Overdue
	if o == nil || o.whole() < costlyRead || max(o.Oldest, o.For) <= overdueLimit {
		return
	}
	b.add(Finding{
		Kind: CostlyToRead, Severity: High, Layer: LayerKernel,
		Message: fmt.Sprintf("the processes of %s cost so much processor time to read that for more than ten minutes no look could read all of them: what they hold may have changed meanwhile", b.container.Label()),
		Remedy:  "Look at the line Groups in /proc/PID/status of its processes, and count them: a process with tens of thousands of supplementary groups serves no purpose but this. Isolate the pod and find out what it runs; drop SETGID and set a limit of pids to rule it out.",
	})
}
