package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
)

// declaredContainer is a container with all that its declaration is made of.
func declaredContainer(id string) drift.Container {
	return drift.Container{
		ID: id, Name: "app", Pod: &drift.Pod{Namespace: "shop", Name: "web-1", UID: "u1"}, RuntimeHandler: "runc", Managed: new(true),
		Observation: drift.Observed, CgroupPath: "/kubepods/" + id, Binary: "/usr/bin/runc", Created: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC),
		Declared: drift.Declared{
			CRI: &drift.CRI{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}},
			OCI: &drift.OCI{
				Sets: capdecode.Sets{Bounding: 1 << 12, Permitted: 1 << 12}, NoNewPrivileges: true, UID: 1000, UserNamespace: true,
				UIDMap: []drift.IDRange{{Inside: 0, Outside: 65536, Length: 65536}},
			},
		},
	}
}

// finds records that a finding about a container opened or was resolved.
func (r *recording) finds(kind agent.ChangeKind, c drift.Container, severity drift.Severity, open ...drift.Finding) {
	r.t.Helper()
	r.at.Sequence++
	finding := drift.Finding{ID: "f" + c.ID, Kind: drift.BoundingExcess, Severity: severity, ContainerID: c.ID}
	if kind != agent.FindingResolved {
		open = append(open, finding)
	}
	change := agent.Change{Position: r.at, At: r.clock, Kind: kind, Finding: &finding}
	if kind != agent.FindingResolved && severity > drift.Info {
		c.Processes = []drift.Process{{PID: 7}}
		change.About = &c
	}
	r.must(nil, r.Record([]agent.Change{change}, open))
}

// TestDeclarationsAreKept: what was declared for a container is in the journal for as long
// as a finding above info is open about it, over restarts too.
func TestDeclarationsAreKept(t *testing.T) {
	dir := t.TempDir()
	first := newRecording(t, dir, "boot", "e1")
	if _, err := first.begin(); err != nil {
		t.Fatal(err)
	}
	c1, c2, huge := declaredContainer("c1"), declaredContainer("c2"), declaredContainer("c3")
	huge.Declared.CRI.Drop = []string{strings.Repeat("<", maxDeclared)}
	first.finds(agent.FindingOpened, c1, drift.Critical)
	open := drift.Finding{ID: "fc1", Kind: drift.BoundingExcess, Severity: drift.Critical, ContainerID: "c1"}
	first.finds(agent.FindingOpened, c2, drift.Info, open)
	first.finds(agent.FindingOpened, huge, drift.High, open)
	ids := func(list []drift.Container) (ids []string) {
		for _, c := range list {
			ids = append(ids, c.ID)
		}
		return ids
	}
	if _, before := first.written(); !slices.Equal(ids(before.containers), []string{"c1"}) || !reflect.DeepEqual(before.containers[0].Declared, c1.Declared) ||
		before.containers[0].CgroupPath != c1.CgroupPath || before.containers[0].Binary != c1.Binary || !before.containers[0].Created.Equal(c1.Created) ||
		len(before.containers[0].Processes) != 0 || *before.containers[0].Pod != *c1.Pod {
		t.Errorf("after the first run: %+v (%v)", before.containers, before.unreadable)
	}
	second := newRecording(t, dir, "boot", "e2")
	if _, err := second.begin(); err != nil {
		t.Fatal(err)
	}
	second.finds(agent.FindingOpened, c2, drift.Medium, open)
	if _, before := second.written(); !slices.Equal(ids(before.containers), []string{"c1", "c2"}) {
		t.Errorf("after the second run: %q", ids(before.containers))
	}
	third := newRecording(t, dir, "boot", "e3")
	if _, err := third.begin(); err != nil {
		t.Fatal(err)
	}
	third.behind = true // and so writes all of it anew
	third.finds(agent.FindingResolved, c1, drift.Critical, drift.Finding{ID: "fc2", Kind: drift.BoundingExcess, Severity: drift.Medium, ContainerID: "c2"})
	if _, before := third.written(); !slices.Equal(ids(before.containers), []string{"c2"}) {
		t.Errorf("after the third run: %q", ids(before.containers))
	}
	fourth := newRecording(t, dir, "another", "e4")
	if _, err := fourth.begin(); err != nil {
		t.Fatal(err)
	}
	fourth.finds(agent.FindingResolved, c2, drift.Medium)
	if _, before := fourth.written(); len(before.containers) != 0 {
		t.Errorf("after another boot: %q", ids(before.containers))
	}
}
