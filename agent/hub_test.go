package agent

import (
	"fmt"
	"testing"

	"github.com/capdrift/capdrift/drift"
)

// told publishes a view after each of the changes, of which it sets the position.
func told(h *hub, from uint64, changes ...Change) uint64 {
	for _, change := range changes {
		from++
		change.Position = Position{BootID: "boot", Epoch: "e1", Sequence: from}
		h.publish(View{Position: change.Position}, []Change{change})
	}
	return from
}

// TestOneContainerMakesTheHubForgetNoOther: who comes back is told what has become of what
// changed often, and all that was opened, resolved, added and removed.
func TestOneContainerMakesTheHubForgetNoOther(t *testing.T) {
	h := newHub(View{})
	position := func(n uint64) Position { return Position{BootID: "boot", Epoch: "e1", Sequence: n} }
	at := told(h, 0, Change{Kind: FindingOpened, Finding: &drift.Finding{ID: "before"}})
	came := at
	at = told(h, at, Change{Kind: FindingOpened, Finding: &drift.Finding{ID: "f1", ContainerID: "quiet"}})
	for i := range 3 * keptChanges {
		at = told(h, at, Change{Kind: ContainerChanged, Container: &drift.Container{ID: "noisy", Name: fmt.Sprint(i)}},
			Change{Kind: FindingUpdated, Finding: &drift.Finding{ID: "f2", Processes: i}},
			Change{Kind: StatusChanged, Component: &Component{Name: "read", Why: fmt.Sprint(i)}})
	}
	at = told(h, at, Change{Kind: FindingResolved, Finding: &drift.Finding{ID: "f1", ContainerID: "quiet"}})
	missed, all := h.since(position(came), h.view.Load())
	if all || len(missed) > keptChanges {
		t.Fatalf("%d changes, all %v", len(missed), all)
	}
	first, last := missed[0], missed[len(missed)-1]
	if first.Kind != FindingOpened || first.Finding.ID != "f1" || last.Kind != FindingResolved {
		t.Errorf("the first is %+v, the last %+v", first, last)
	}
	newest := ""
	for _, change := range missed {
		if change.Container != nil {
			newest = change.Container.Name
		}
	}
	if want := fmt.Sprint(3*keptChanges - 1); newest != want {
		t.Errorf("the container is as in change %s, want %s", newest, want)
	}

	// What no other change replaces is bounded all the same.
	for i := range keptChanges + 1 {
		at = told(h, at, Change{Kind: FindingOpened, Finding: &drift.Finding{ID: fmt.Sprint(i)}})
	}
	if _, all := h.since(position(came), h.view.Load()); !all || len(h.kept) > keptChanges {
		t.Errorf("all %v of %d kept", all, len(h.kept))
	}
	if missed, all := h.since(position(at-5), h.view.Load()); all || len(missed) != 5 {
		t.Errorf("the last five: %d, all %v", len(missed), all)
	}
	if missed, all := h.since(position(at), h.view.Load()); all || len(missed) != 0 {
		t.Errorf("none: %d, all %v", len(missed), all)
	}
}
