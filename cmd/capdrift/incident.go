package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	pretty "github.com/jedib0t/go-pretty/v6/table"

	"github.com/capdrift/capdrift/drift"
)

// also names the findings of an incident beside its worst one: each kind once, and how
// many there are of it.
func also(others []drift.Finding) string {
	var names []string
	counts := make(map[string]int)
	for _, finding := range others {
		name := printable(what(finding))
		if counts[name] == 0 {
			names = append(names, name)
		}
		counts[name]++
	}
	for i, name := range names {
		if n := counts[name]; n > 1 {
			names[i] = fmt.Sprintf("%s (%d)", name, n)
		}
	}
	return strings.Join(names, ", ")
}

// incidentRows are the rows of an incident in a table that has the columns "finding" and
// after it "capabilities": its worst finding, and one that names the others. A wide table
// has a row for each. finding makes the row of one.
func (t table) incidentRows(i drift.Incident, column int, finding func(drift.Finding) pretty.Row) []pretty.Row {
	rows := []pretty.Row{finding(i.Worst())}
	if !t.wide {
		if len(i.Others()) > 0 {
			row := make(pretty.Row, len(rows[0]))
			for at := range row {
				row[at] = ""
			}
			row[column], row[column+1] = "  also", also(i.Others())
			rows = append(rows, row)
		}
		return rows
	}
	for _, other := range i.Others() {
		row := finding(other)
		row[column] = fmt.Sprint("  ", row[column])
		rows = append(rows, row)
	}
	return rows
}

// evidenceLines say in sentences what is known of the process of a finding. Its texts are
// quoted: who runs there has chosen them.
func evidenceLines(e drift.Evidence) []string {
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	who := fmt.Sprintf("process %d", e.PID)
	if e.ContainerPID != 0 && e.ContainerPID != e.PID {
		who += fmt.Sprintf(" (%d in its container)", e.ContainerPID)
	}
	say("%s started %s", who, clock(e.StartedAt))
	switch {
	case e.Executable == "" && e.ExecutableUnreadable == "":
	case e.Executable == "":
		say("its program is not known: %s", printable(e.ExecutableUnreadable))
	case e.ExecutableSHA256 == "":
		say("its program is %s, not hashed: %s", strconv.QuoteToASCII(e.Executable), printable(e.ExecutableUnreadable))
	default:
		say("its program is %s, sha256 %s", strconv.QuoteToASCII(e.Executable), printable(e.ExecutableSHA256))
	}
	if len(e.Arguments) > 0 {
		quoted := make([]string, len(e.Arguments))
		for i, argument := range e.Arguments {
			quoted[i] = strconv.QuoteToASCII(argument)
		}
		say("its arguments are %s", strings.Join(quoted, " "))
	}
	if p := e.Parent; p != nil {
		place := "in another place"
		switch {
		case p.Outside:
			place = "in no container"
		case p.ContainerID != "":
			place = "in the same container"
		}
		say("its parent is %d %s, %s, started %s", p.PID, strconv.QuoteToASCII(p.Name), place, clock(p.StartedAt))
	}
	if e.Cgroup != "" {
		say("its cgroup is %s", strconv.QuoteToASCII(e.Cgroup))
	}
	return lines
}

func clock(at *time.Time) string {
	if at == nil {
		return "at a time that is not known"
	}
	return at.UTC().Format(time.RFC3339)
}

// evidence writes what is known of the processes that findings are about, once for each.
func evidence(out *strings.Builder, mark string, findings []drift.Finding) {
	type process struct {
		container string
		pid       int
		start     uint64
	}
	told := make(map[process]bool)
	for _, finding := range findings {
		who := process{finding.ContainerID, finding.PID, finding.StartTime}
		if finding.Evidence == nil || told[who] {
			continue
		}
		told[who] = true
		paragraph(out, mark, "Evidence: "+strings.Join(evidenceLines(*finding.Evidence), "; ")+".")
	}
}

// uidsOf are the user ids of a thread: the effective one in its container, and where the
// four are not the same (setuid programs, seteuid(2)) all of them as the node knows them:
// real, effective, saved, filesystem.
func uidsOf(inContainer *uint32, ids drift.UIDs) string {
	uid := "?"
	if inContainer != nil {
		uid = strconv.FormatUint(uint64(*inContainer), 10)
	}
	if ids.Untold || ids == (drift.UIDs{Real: ids.Real, Effective: ids.Real, Saved: ids.Real, FileSystem: ids.Real}) {
		return uid
	}
	return uid + " " + allUIDs(ids)
}

// threadUIDs are all four of a thread where they are not its leader's.
func threadUIDs(leader drift.Process, thread drift.Thread) string {
	if thread.UIDs.Untold || thread.UIDs == leader.UIDs {
		return ""
	}
	return allUIDs(thread.UIDs)
}

func allUIDs(ids drift.UIDs) string {
	return fmt.Sprintf("(%d/%d/%d/%d)", ids.Real, ids.Effective, ids.Saved, ids.FileSystem)
}
