package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// The part of SARIF 2.1.0 that an audit needs.
// https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool        sarifTool         `json:"tool"`
		Invocations []sarifInvocation `json:"invocations"`
		Results     []sarifResult     `json:"results"`
		Properties  map[string]any    `json:"properties,omitempty"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version,omitempty"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID                   string         `json:"id"`
		Name                 string         `json:"name,omitempty"`
		ShortDescription     sarifText      `json:"shortDescription"`
		FullDescription      *sarifText     `json:"fullDescription,omitempty"`
		Help                 *sarifText     `json:"help,omitempty"`
		DefaultConfiguration sarifDefault   `json:"defaultConfiguration"`
		Properties           map[string]any `json:"properties"`
	}
	sarifDefault struct {
		Level string `json:"level"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifInvocation struct {
		ExecutionSuccessful bool                `json:"executionSuccessful"`
		Notifications       []sarifNotification `json:"toolExecutionNotifications,omitempty"`
	}
	sarifNotification struct {
		Level   string    `json:"level"`
		Message sarifText `json:"message"`
	}
	sarifResult struct {
		RuleID       string             `json:"ruleId"`
		RuleIndex    int                `json:"ruleIndex"`
		Kind         string             `json:"kind"`
		Level        string             `json:"level"`
		Message      sarifText          `json:"message"`
		Locations    []sarifLocation    `json:"locations,omitempty"`
		Fingerprints map[string]string  `json:"fingerprints"`
		Suppressions []sarifSuppression `json:"suppressions"` // none: not suppressed; it has to be said of all or none
		Properties   map[string]any     `json:"properties"`
	}
	sarifSuppression struct {
		Kind          string `json:"kind"`
		Status        string `json:"status"`
		Justification string `json:"justification"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   sarifRegion   `json:"region"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
	sarifLogical struct {
		Name               string `json:"name"`
		FullyQualifiedName string `json:"fullyQualifiedName"`
		Kind               string `json:"kind"`
	}
)

const (
	sarifSchema  = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
	sarifVersion = "2.1.0"
)

// levels are SARIF's; scores are the "security-severity" by which GitHub sorts.
var (
	sarifLevels = map[drift.Severity]string{drift.Critical: "error", drift.High: "error", drift.Medium: "warning", drift.Low: "note", drift.Info: "note"}
	sarifScores = map[drift.Severity]string{drift.Critical: "9.5", drift.High: "8.0", drift.Medium: "5.5", drift.Low: "3.0", drift.Info: "0.0"}
)

// sarif makes a log of what fails, of what could not be judged (kind "open") and of
// drift findings. What an exception accepts is there as suppressed.
func (a audit) sarif() sarifLog {
	driver := sarifDriver{Name: "capdrift", Version: versionText(), InformationURI: "https://github.com/capdrift/capdrift", Rules: []sarifRule{}}
	index := make(map[string]int)
	for _, rule := range a.rules.Rules() {
		index[rule.ID] = len(driver.Rules)
		driver.Rules = append(driver.Rules, sarifOfRule(rule))
	}
	run := sarifRun{Invocations: []sarifInvocation{{ExecutionSuccessful: a.onPaper() && a.unread == nil || a.report.Runtime != nil}}, Results: []sarifResult{}}
	run.Properties = map[string]any{"pssVersion": a.rules.Version().String()}
	if !a.onPaper() {
		run.Properties["node"], run.Properties["takenAt"], run.Properties["complete"] = a.report.Node, a.report.TakenAt, a.report.Coverage.Complete
	}
	for _, line := range a.unseen() {
		run.Invocations[0].Notifications = append(run.Invocations[0].Notifications, sarifNotification{"error", sarifMessage(line)})
	}
	for _, s := range a.left.Skipped {
		text := sarifMessage(fmt.Sprintf("not looked into: %d %s", s.Count, s.Kind))
		run.Invocations[0].Notifications = append(run.Invocations[0].Notifications, sarifNotification{"note", text})
	}
	for _, pack := range a.rules.Packs() {
		for _, text := range pack.NotJudged {
			run.Invocations[0].Notifications = append(run.Invocations[0].Notifications, sarifNotification{"note", sarifMessage("not judged by " + pack.Name + ": " + text)})
		}
	}
	for _, r := range a.Results {
		if r.Fails() || a.undecided(r) {
			run.Results = append(run.Results, a.sarifOfResult(r, index[r.Rule.ID]))
		}
	}
	containers := make(map[string]*drift.Container)
	for i := range a.report.Containers {
		containers[a.report.Containers[i].ID] = &a.report.Containers[i]
	}
	for _, f := range a.Findings {
		kind := string(f.Kind)
		at, known := index[kind]
		if !known {
			at = len(driver.Rules)
			index[kind] = at
			driver.Rules = append(driver.Rules, sarifRule{
				ID: kind, ShortDescription: described("Drift: " + strings.ReplaceAll(kind, "_", " ")), DefaultConfiguration: sarifDefault{sarifLevels[f.Severity]},
				Properties: map[string]any{"tags": []string{"security", "drift"}, "security-severity": sarifScores[f.Severity]},
			})
		}
		run.Results = append(run.Results, a.sarifOfFinding(f, at, containers[f.ContainerID]))
	}
	run.Tool.Driver = driver
	return sarifLog{sarifSchema, sarifVersion, []sarifRun{run}}
}

func sarifOfRule(rule *policy.Rule) sarifRule {
	tags := []string{"security", rule.Pack}
	for _, control := range rule.Controls { // without version and edition: GitHub takes 20 tags
		if tag := control.Benchmark + " " + control.ID; !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	full, help := described(rule.Rationale), described(rule.Remedy)
	return sarifRule{
		ID: rule.ID, Name: rule.ID, ShortDescription: described(rule.Title), FullDescription: &full, Help: &help,
		DefaultConfiguration: sarifDefault{sarifLevels[rule.Severity]},
		Properties:           map[string]any{"tags": tags, "security-severity": sarifScores[rule.Severity], "precision": "very-high", "controls": formOfRule(rule).Controls},
	}
}

func (a audit) sarifOfResult(r policy.Result, index int) sarifResult {
	result := sarifResult{
		RuleID: r.Rule.ID, RuleIndex: index, Kind: "fail", Level: sarifLevels[r.Rule.Severity],
		Fingerprints: map[string]string{"capdrift/v1": a.fingerprint(r.Rule.ID, r.Container)},
		Suppressions: suppressions(r.Excepted), Locations: a.sarifLocations(r.Container),
		Properties: map[string]any{
			"id": r.ID(), "severity": r.Rule.Severity.String(), "declared": r.Declared.Verdict.String(), "actual": r.Actual.Verdict.String(), "disagrees": r.Disagrees(),
		},
	}
	if !r.Fails() {
		result.Kind, result.Level = "open", "none" // SARIF 3.27.10: no other level than none
	}
	text := a.called(r.Container) + ": " + r.Rule.Title + ". On paper: " + verdictText(r.Declared) + "."
	if !a.onPaper() {
		text += " In the kernel: " + verdictText(r.Actual) + "."
	}
	result.Message = sarifMessage(text)
	return result
}

// verdictText is a verdict and why.
func verdictText(o policy.Outcome) string {
	text := strings.ReplaceAll(o.Verdict.String(), "_", " ")
	if why := because(o); why != "" {
		text += " (" + why + ")"
	}
	return text
}

func (a audit) sarifOfFinding(f policy.Finding, index int, about *drift.Container) sarifResult {
	result := sarifResult{
		RuleID: string(f.Kind), RuleIndex: index, Kind: "fail", Level: sarifLevels[f.Severity],
		Message: sarifMessage(f.Message + ". " + f.Remedy), Fingerprints: map[string]string{"capdrift/v1": f.ID},
		Suppressions: suppressions(f.Excepted), Properties: map[string]any{"id": f.ID, "severity": f.Severity.String()},
	}
	if f.Incident != "" {
		result.Properties["incident"] = f.Incident
	}
	if f.Severity == drift.Info {
		result.Kind, result.Level = "informational", "none"
	}
	if about != nil {
		result.Locations = a.sarifLocations(about)
	}
	return result
}

// suppressions are never null: a result that has none is one that is not suppressed.
func suppressions(e *policy.Exception) []sarifSuppression {
	if e == nil {
		return []sarifSuppression{}
	}
	text := printable(e.Reason) + " (" + printable(e.Owner) + ", until " + e.Expires.Format("2006-01-02 15:04 MST") + "; " + e.ID + ")"
	return []sarifSuppression{{"external", "accepted", text}}
}

// fingerprint outlives the container: one that is created anew under the same name is
// the same to whoever follows a result from run to run.
func (a audit) fingerprint(rule string, c *drift.Container) string {
	words := []string{rule, c.ID}
	if c.Pod != nil && !a.onPaper() {
		words = []string{rule, c.Pod.Namespace, c.Pod.Name, c.Name}
	}
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:16])
}

func (a audit) sarifLocations(c *drift.Container) []sarifLocation {
	location := sarifLocation{Logical: []sarifLogical{{printable(c.Name), a.called(c), "resource"}}}
	if at, ok := a.places[c.ID]; ok {
		location.Physical = &sarifPhysical{sarifArtifact{fileURI(at.File)}, sarifRegion{max(at.Line, 1)}}
	}
	return []sarifLocation{location}
}

// described is text about a rule, to which no message brings arguments.
func described(text string) sarifText { return sarifText{printable(strings.TrimSpace(text))} }

// sarifMessage makes text a plain message: braces are placeholders there, and
// [text](place) is a link (SARIF 3.11.5, 3.11.6).
func sarifMessage(text string) sarifText {
	text = strings.NewReplacer("{", "{{", "}", "}}").Replace(printable(text))
	if strings.Contains(text, "](") {
		text = strings.NewReplacer("[", `\[`, "]", `\]`).Replace(text)
	}
	return sarifText{text}
}

// fileURI is a path as a URI reference; one that is relative stays so.
func fileURI(path string) string {
	path = filepath.ToSlash(path)
	reference := url.URL{Path: path}
	if strings.HasPrefix(path, "/") {
		reference.Scheme = "file"
	}
	return reference.String()
}
