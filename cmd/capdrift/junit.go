package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// JUnit's XML as continuous integration reads it: a suite for each rule with a case
// for each container, one with a case for each drift finding, and one for what was not
// looked at. What is unknown is an error, so that nobody takes it for a pass.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name      string      `xml:"name,attr"`
		Hostname  string      `xml:"hostname,attr,omitempty"`
		Timestamp string      `xml:"timestamp,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Errors    int         `xml:"errors,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Cases     []junitCase `xml:"testcase"`
	}
	junitCase struct {
		ClassName string        `xml:"classname,attr"`
		Name      string        `xml:"name,attr"`
		File      string        `xml:"file,attr,omitempty"`
		Line      int           `xml:"line,attr,omitempty"`
		Failure   *junitOutcome `xml:"failure"`
		Error     *junitOutcome `xml:"error"`
		Skipped   *junitOutcome `xml:"skipped"`
	}
	junitOutcome struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr,omitempty"`
		Text    string `xml:",chardata"`
	}
)

func writeJUnit(w io.Writer, a audit) error { return a.junit().write(w) }

func (a audit) junit() junitSuites {
	suites := junitSuites{Name: "capdrift audit"}
	for _, rule := range a.rules.Rules() {
		suite := a.suite(rule.ID + ": " + rule.Title)
		for _, r := range a.Results {
			if r.Rule == rule {
				suite.add(a.junitOfResult(r))
			}
		}
		suites.add(suite)
	}
	found, processes := a.suite("drift"), processNames(a.report)
	for _, f := range a.Findings {
		if f.Severity != drift.Info { // which is normal, and explained elsewhere
			found.add(junitOfFinding(f, processes))
		}
	}
	if !a.onPaper() {
		suites.add(found)
	}
	unseen := a.suite("not seen")
	for _, line := range a.unseen() {
		unseen.add(junitCase{ClassName: "unseen", Name: printable(line), Error: &junitOutcome{"not looked at: " + printable(line), "unknown", ""}})
	}
	for _, s := range a.left.Skipped {
		text := printable(fmt.Sprintf("%d %s", s.Count, s.Kind))
		unseen.add(junitCase{ClassName: "skipped", Name: text, Skipped: &junitOutcome{Message: "not looked into: " + text}})
	}
	if unseen.Tests > 0 {
		suites.add(unseen)
	}
	beyond := a.suite("not judged")
	for _, pack := range a.rules.Packs() {
		for _, text := range pack.NotJudged {
			beyond.add(junitCase{ClassName: "notJudged." + printable(pack.Name), Name: printable(text), Skipped: &junitOutcome{Message: "not judged by " + printable(pack.Name)}})
		}
	}
	if beyond.Tests > 0 {
		suites.add(beyond)
	}
	return suites
}

func (s junitSuites) write(w io.Writer) error {
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	encoder := xml.NewEncoder(w)
	encoder.Indent("", "  ")
	if err := encoder.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (a audit) suite(name string) junitSuite {
	return junitSuite{Name: printable(name), Hostname: printable(a.report.Node.Name), Timestamp: a.report.TakenAt.UTC().Format(time.RFC3339)}
}

func (s *junitSuites) add(suite junitSuite) {
	s.Suites = append(s.Suites, suite)
	s.Tests, s.Failures, s.Errors, s.Skipped = s.Tests+suite.Tests, s.Failures+suite.Failures, s.Errors+suite.Errors, s.Skipped+suite.Skipped
}

func (s *junitSuite) add(c junitCase) {
	s.Cases = append(s.Cases, c)
	s.Tests++
	switch {
	case c.Failure != nil:
		s.Failures++
	case c.Error != nil:
		s.Errors++
	case c.Skipped != nil:
		s.Skipped++
	}
}

func (a audit) junitOfResult(r policy.Result) junitCase {
	c := junitCase{ClassName: r.Rule.Pack + "." + r.Rule.ID, Name: a.called(r.Container)}
	if at, ok := a.places[r.Container.ID]; ok {
		c.File, c.Line = printable(at.File), at.Line
	}
	verdicts := "on paper: " + verdictText(r.Declared)
	if !a.onPaper() {
		verdicts += "; in the kernel: " + verdictText(r.Actual)
	}
	switch verdicts = printable(verdicts); {
	case r.Fails() && a.undecided(r):
		c.Error = &junitOutcome{"not all was judged beside what " + printable(r.Excepted.ID) + " accepts; " + verdicts, "unknown", ""}
	case r.Fails() && r.Excepted != nil:
		c.Skipped = &junitOutcome{Message: printable("accepted by "+r.Excepted.ID+" ("+r.Excepted.Owner+"): "+r.Excepted.Reason) + "; " + verdicts}
	case r.Fails():
		c.Failure = &junitOutcome{verdicts, r.Rule.Severity.String(), printable(strings.TrimSpace(r.Rule.Rationale)) + "\n→ " + printable(strings.TrimSpace(r.Rule.Remedy))}
	case a.undecided(r):
		c.Error = &junitOutcome{verdicts, "unknown", ""}
	case r.Declared.Verdict != policy.Pass && r.Actual.Verdict != policy.Pass:
		c.Skipped = &junitOutcome{Message: verdicts}
	}
	return c
}

func junitOfFinding(f policy.Finding, processes map[processKey]string) junitCase {
	container := containerOf(f.Finding)
	if f.Pod != nil {
		container = podOf(f.Pod) + "/" + container
	}
	if f.PID != 0 {
		container += fmt.Sprintf(" %d %s", f.PID, processes[processKey{f.ContainerID, f.PID}])
	}
	c := junitCase{ClassName: "drift." + printable(string(f.Kind)), Name: container}
	if f.Excepted != nil {
		c.Skipped = &junitOutcome{Message: printable("accepted by " + f.Excepted.ID + " (" + f.Excepted.Owner + "): " + f.Excepted.Reason + "; " + f.Message)}
	} else {
		text := "→ " + printable(f.Remedy)
		if f.Incident != "" {
			text += "\nincident: " + printable(f.Incident)
		}
		c.Failure = &junitOutcome{printable(f.Message), f.Severity.String(), text}
	}
	return c
}
