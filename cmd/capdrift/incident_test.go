package main

import (
	"strings"
	"testing"

	"github.com/capdrift/capdrift/drift"
)

// TestWhatWasNotComparedIsNotNormal: only what was held against a declaration counts as
// normal.
func TestWhatWasNotComparedIsNotNormal(t *testing.T) {
	known := drift.Declared{OCI: &drift.OCI{}}
	process := func(observation drift.Observation, relation drift.Relation) drift.Process {
		return drift.Process{Observation: observation, UserNamespace: drift.UserNamespace{Relation: relation}}
	}
	fine, starting, unplaced := process(drift.Observed, drift.RelationSame), process(drift.Starting, drift.RelationSame), process(drift.Observed, drift.RelationUnknown)
	of := func(observation drift.Observation, declared drift.Declared, processes ...drift.Process) drift.Container {
		return drift.Container{ID: "c", Observation: observation, Declared: declared, Processes: processes}
	}
	ended := of(drift.Observed, known, fine)
	ended.Ended = true
	sandbox := of(drift.Observed, known, fine, starting)
	sandbox.Sandbox = true
	const none = "Normal: 0 containers with 0 processes hold no more than declared."
	for _, test := range []struct {
		name string
		c    drift.Container
		want string
	}{
		{"what was compared is normal", of(drift.Observed, known, fine, fine), "Normal: 1 container with 2 processes hold no more than declared."},
		{"a starting process may be anything", of(drift.Observed, known, fine, starting), "Normal: 1 container with 1 process hold no more than declared.\nNot compared: 1 process still starting."},
		{"a container of which all is starting is not normal", of(drift.Observed, known, starting, starting), none + "\nNot compared: 2 processes still starting."},
		{"what is not compared for any other reason is named", of(drift.Observed, known, fine, process("some_reason", drift.RelationSame)), "Normal: 1 container with 1 process hold no more than declared.\nNot compared: 1 process that no look compares (some_reason)."},
		{"nor is a process whose user namespace nobody can tell", of(drift.Observed, known, unplaced), none + "\nNot compared: 1 process whose user namespace could not be told."},
		{"nor a container that nobody declared", of(drift.Observed, drift.Declared{}, fine), none + "\nNot compared: 1 container whose declaration is not known."},
		{"nor one that was seen in part", of(drift.Partial, known, fine), none + "\nNot compared: 1 container seen in part."},
		{"nor one that could not be read", of(drift.Unreadable, known), none + "\nNot compared: 1 container that could not be read."},
		{"nor one in a sandbox", of(drift.UnsupportedRuntime, known), none + "\nNot compared: 1 container in a sandbox that hides its processes."},
		{"what is left of a container that ended was compared", ended, "Normal: 1 container with 1 process hold no more than declared."},
		{"pod sandboxes are not counted, but what starts in them is told", sandbox, none + "\nNot compared: 1 process still starting."},
	} {
		t.Run(test.name, func(t *testing.T) {
			report := drift.Report{Runtime: &drift.Runtime{}, Containers: []drift.Container{test.c}}
			if got := normal(report, nil); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestUIDsOf(t *testing.T) {
	root := uint32(0)
	for _, test := range []struct {
		name string
		in   *uint32
		ids  drift.UIDs
		want string
	}{
		{"one uid is one number", &root, drift.UIDs{Real: 100000, Effective: 100000, Saved: 100000, FileSystem: 100000}, "0"},
		{"a saved uid of root is shown", nil, drift.UIDs{Real: 1000, Effective: 1000, FileSystem: 1000}, "? (1000/1000/0/1000)"},
		{"what was not told is not root", &root, drift.UIDs{Untold: true}, "0"},
	} {
		if got := uidsOf(test.in, test.ids); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	leader := drift.Process{UIDs: drift.UIDs{Real: 1, Effective: 1, Saved: 1, FileSystem: 1}}
	if got := threadUIDs(leader, drift.Thread{}); got != "(0/0/0/0)" {
		t.Errorf("a thread that stayed root: %q", got)
	}
}

// TestEvidenceIsQuoted: everything in it is somebody's to choose.
func TestEvidenceIsQuoted(t *testing.T) {
	evil := "\x1b[2J\u202e;\n\xff"
	text := strings.Join(evidenceLines(drift.Evidence{
		PID: 1, Cgroup: evil, Executable: evil, ExecutableUnreadable: evil, Arguments: []string{evil}, Parent: &drift.EvidenceParent{Name: evil},
	}), "; ")
	if strings.ContainsAny(text, "\x1b\u202e\n") || strings.Contains(text, "\xff") || !strings.Contains(text, `"\x1b[2J\u202e;\n\xff", not hashed`) {
		t.Errorf("%s", text)
	}
}
