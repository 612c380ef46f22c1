package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/capdrift/capdrift/drift"
)

// outputOptions are the flags that every command with a report has.
type outputOptions struct {
	format    string
	color     string
	wide      bool
	noHeaders bool
}

// reportFormats is the registry of `-o`: adding a format is one function and
// one line here.
var reportFormats = map[string]func(io.Writer, drift.Report) error{
	"json":  writeJSON[drift.Report],
	"jsonl": writeJSONLines,
	"yaml":  writeYAML[drift.Report],
	"csv":   writeCSV,
}

func outputNames() []string {
	return append([]string{"table"}, slices.Sorted(maps.Keys(reportFormats))...)
}

func (o *outputOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.format, "output", "o", "table", "output format: "+strings.Join(outputNames(), ", "))
	flags.StringVar(&o.color, "color", "auto", "color the table: auto (on a terminal, unless NO_COLOR is set), always, never")
	flags.BoolVar(&o.wide, "wide", false, "show every finding of an incident, the evidence of its process, and every process with its five sets")
	flags.BoolVar(&o.noHeaders, "no-headers", false, "leave out the heading lines of tables and of CSV")
}

func (o *outputOptions) validate() error {
	if !slices.Contains(outputNames(), o.format) {
		return fmt.Errorf("--output=%s: want one of %s", o.format, strings.Join(outputNames(), ", "))
	}
	if !slices.Contains([]string{"auto", "always", "never"}, o.color) {
		return fmt.Errorf("--color=%s: want auto, always or never", o.color)
	}
	return nil
}

// write prints the report; detailed asks the table for every process.
func (o *outputOptions) write(w io.Writer, report drift.Report, detailed bool) error {
	if o.format == "csv" && o.noHeaders {
		return writeCSVRows(csv.NewWriter(w), report)
	}
	if format, ok := reportFormats[o.format]; ok {
		return format(w, report)
	}
	return table{colored: o.colored(w), wide: o.wide || detailed, noHeaders: o.noHeaders}.write(w, report)
}

func (o *outputOptions) colored(w io.Writer) bool {
	if o.color != "auto" {
		return o.color == "always"
	}
	return os.Getenv("NO_COLOR") == "" && isTerminal(w)
}

// isTerminal tells whether it is one that understands escape sequences.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// writeJSON writes whatever a command has to say, indented.
func writeJSON[T any](w io.Writer, said T) error {
	encoder := json.NewEncoder(escapingWriter{w})
	encoder.SetIndent("", "  ")
	return encoder.Encode(said)
}

// writeJSONLines writes one object a line, each with the schema and a type: the
// node with its coverage, then the containers, then the findings.
func writeJSONLines(w io.Writer, report drift.Report) error {
	type line struct {
		Schema string `json:"schema"`
		Type   string `json:"type"`
	}
	encoder := json.NewEncoder(escapingWriter{w})
	err := encoder.Encode(struct {
		line
		Node       drift.Node     `json:"node"`
		Runtime    *drift.Runtime `json:"runtime"`
		TakenAt    any            `json:"takenAt"`
		DurationMs int64          `json:"durationMs"`
		Coverage   drift.Coverage `json:"coverage"`
	}{line{report.Schema, "node"}, report.Node, report.Runtime, report.TakenAt, report.DurationMs, report.Coverage})
	for i := 0; err == nil && i < len(report.Containers); i++ {
		err = encoder.Encode(struct {
			line
			Container drift.Container `json:"container"`
		}{line{report.Schema, "container"}, report.Containers[i]})
	}
	for i := 0; err == nil && i < len(report.Findings); i++ {
		err = encoder.Encode(struct {
			line
			Finding drift.Finding `json:"finding"`
		}{line{report.Schema, "finding"}, report.Findings[i]})
	}
	return err
}

// writeYAML goes by way of JSON, whose field names it has.
func writeYAML[T any](w io.Writer, said T) error {
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	converted, err := toYAML(text)
	if err != nil {
		return err
	}
	_, err = w.Write(converted)
	return err
}

// csvColumns head the inventory: one row a process, and one for each container
// of which no process was seen.
var csvColumns = []string{
	"node", "bootId", "takenAt", "namespace", "pod", "podUid", "container", "containerId", "image", "managed", "sandbox",
	"observation", "pid", "startTime", "process", "uid", "containerUid", "noNewPrivileges", "seccomp", "userNamespace",
	"inheritable", "permitted", "effective", "bounding", "ambient",
	"declaredBounding", "declaredPermitted", "declaredInheritable", "severity", "findings", "incidents",
	"realUid", "effectiveUid", "savedUid", "filesystemUid",
}

func writeCSV(w io.Writer, report drift.Report) error {
	writer := csv.NewWriter(w)
	if err := writer.Write(csvColumns); err != nil {
		return err
	}
	return writeCSVRows(writer, report)
}

func writeCSVRows(writer *csv.Writer, report drift.Report) error {
	findings := make(map[string][]drift.Finding) // by container
	for _, finding := range report.Findings {
		findings[finding.ContainerID] = append(findings[finding.ContainerID], finding)
	}
	for _, c := range report.Containers {
		processes := c.Processes
		if len(processes) == 0 {
			processes = []drift.Process{{}}
		}
		for i, p := range processes {
			row := csvRow(report, findings[c.ID], c, p, i == 0)
			for column, text := range row {
				row[column] = cell(text)
			}
			if err := writer.Write(row); err != nil {
				return err
			}
		}
	}
	writer.Flush()
	return writer.Error()
}

// csvRow is one process of one container, or the container alone where the
// process has no pid. Findings about the container as a whole stand in its first row.
func csvRow(report drift.Report, findings []drift.Finding, c drift.Container, p drift.Process, first bool) []string {
	var pod drift.Pod
	if c.Pod != nil {
		pod = *c.Pod
	}
	row := []string{
		report.Node.Name, report.Node.BootID, report.TakenAt.Format("2006-01-02T15:04:05Z07:00"), pod.Namespace, pod.Name, pod.UID,
		c.Name, c.ID, c.Image, optional(c.Managed), strconv.FormatBool(c.Sandbox), string(c.Observation),
	}
	if p.PID == 0 {
		row = append(row, make([]string, 13)...)
	} else {
		row = append(row, strconv.Itoa(p.PID), strconv.FormatUint(p.StartTime, 10), p.Name, strconv.FormatUint(uint64(p.UID), 10),
			optional(p.ContainerUID), optional(p.NoNewPrivileges), optional(p.Seccomp), string(p.UserNamespace.Relation),
			p.Caps.Inheritable.Hex(), p.Caps.Permitted.Hex(), p.Caps.Effective.Hex(), p.Caps.Bounding.Hex(), p.Caps.Ambient.Hex())
	}
	if oci := c.Declared.OCI; oci != nil {
		row = append(row, oci.Bounding.Hex(), oci.Permitted.Hex(), oci.Inheritable.Hex())
	} else {
		row = append(row, "", "", "")
	}
	var worst drift.Severity
	var kinds, incidents []string
	for _, finding := range findings {
		if finding.PID == p.PID && p.PID != 0 || first && !ofProcess(c, finding) {
			worst = max(worst, finding.Severity)
			kind := string(finding.Kind)
			if finding.Rule != "" {
				kind += ":" + finding.Rule
			}
			kinds = append(kinds, kind)
			if finding.Incident != "" && !slices.Contains(incidents, finding.Incident) {
				incidents = append(incidents, finding.Incident)
			}
		}
	}
	uids := []string{"", "", "", ""}
	if p.PID != 0 && !p.UIDs.Untold {
		for i, uid := range []uint32{p.UIDs.Real, p.UIDs.Effective, p.UIDs.Saved, p.UIDs.FileSystem} {
			uids[i] = strconv.FormatUint(uint64(uid), 10)
		}
	}
	return append(append(row, worst.String(), strings.Join(kinds, " "), strings.Join(incidents, " ")), uids...)
}

// ofProcess tells whether the finding is about a process that the container lists.
func ofProcess(c drift.Container, finding drift.Finding) bool {
	return slices.ContainsFunc(c.Processes, func(p drift.Process) bool { return p.PID == finding.PID })
}

// optional writes a value that may be unknown: "" where it is.
func optional[T any](value *T) string {
	if value == nil {
		return ""
	}
	return fmt.Sprint(*value)
}
