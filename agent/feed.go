package agent

import (
	"time"

	"github.com/capdrift/capdrift/drift"
)

// View is what is known of the node at one moment. Once published it is never
// written to.
type View struct {
	Position Position
	Report   drift.Report // its findings are those that are open
	Status   []Component
	Policy   *PolicyStatus // nil where none is asked for
	// Sweep is how often the node is looked at as a whole; 0 where that is not known.
	Sweep time.Duration
	// Unconfirmed counts, since the agent started, what one look saw above [drift.Info] and
	// no second look confirmed.
	Unconfirmed map[drift.Kind]uint64
}

// Position is a place in the stream of changes. Sequences count from 1 without a
// gap within one epoch; an epoch begins with each start of the agent, and with
// each boot of the node.
type Position struct {
	BootID   string
	Epoch    string
	Sequence uint64
}

// Component is one part of the agent and how it fares.
type Component struct {
	Name  string // "runtime", "proc", "pods", "journal", "policy", "config"
	OK    bool
	Why   string // what is wrong; empty when all is well
	Since time.Time
}

// ChangeKind says what a [Change] is about.
type ChangeKind string

// The changes from one view to the next.
const (
	ContainerAdded   ChangeKind = "container_added"
	ContainerChanged ChangeKind = "container_changed" // its declared layers, observation or processes
	ContainerRemoved ChangeKind = "container_removed"
	FindingOpened    ChangeKind = "finding_opened"
	FindingUpdated   ChangeKind = "finding_updated"
	FindingResolved  ChangeKind = "finding_resolved"
	StatusChanged    ChangeKind = "status_changed" // of a component, or of the coverage
)

// Change is one step from a view to the next. Only the field that its kind is
// about is set.
type Change struct {
	Position  Position
	At        time.Time
	Kind      ChangeKind
	Container *drift.Container // added, changed; of a removed one the last that was known
	Finding   *drift.Finding
	Resolved  string // why a finding was resolved: "ended", "explained", "unknown", "boot", "policy"
	Component *Component
	Coverage  *drift.Coverage
	// About is the container of a finding above [drift.Info] that was opened or updated, for
	// the journal: what was declared for it outlives it. nil for all others.
	About *drift.Container
}

// Feed is the node's truth and how it changes, as servers need it.
type Feed interface {
	// View returns the newest view; false before there is one, when only its Sweep is set.
	View() (View, bool)
	// Watch returns a subscription that starts after the position. A position that is
	// not kept any more, or of another epoch, starts with a whole view.
	Watch(after Position) Subscription
}

// Subscription is one watcher's queue. It is bounded: a watcher that does not take
// its changes is cut off, and harms nobody.
type Subscription interface {
	// Snapshot hands over the view to start with, once; false when the changes follow
	// the position that was asked for.
	Snapshot() (View, bool)
	// Changes is closed when the subscription ends; Err then says why.
	Changes() <-chan Change
	// Err returns [ErrSlow] after the watcher was cut off, nil after Close.
	Err() error
	Close()
}

// ErrSlow ends a subscription whose watcher does not take its changes.
var ErrSlow = errSlow{}

type errSlow struct{}

func (errSlow) Error() string { return "the watcher is too slow: its queue is full" }
