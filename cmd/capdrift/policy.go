package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// The published forms of packs and rules.
type (
	packForm struct {
		Name        string     `json:"name"`
		Title       string     `json:"title"`
		Description string     `json:"description,omitempty"`
		References  []string   `json:"references,omitempty"`
		NotJudged   []string   `json:"notJudged"`      // what of its subject no rule judges
		File        string     `json:"file,omitempty"` // "" where it is built in
		Rules       []ruleForm `json:"rules,omitempty"`
	}
	ruleForm struct {
		ID         string           `json:"id"`
		Pack       string           `json:"pack"`
		Title      string           `json:"title"`
		Severity   drift.Severity   `json:"severity"`
		Rationale  string           `json:"rationale"`
		Remedy     string           `json:"remedy"`
		References []string         `json:"references,omitempty"`
		Controls   []policy.Control `json:"controls"`
		Applies    string           `json:"applies,omitempty"` // "" for every container
		Declared   string           `json:"declared,omitempty"`
		Actual     string           `json:"actual,omitempty"`
	}
)

func formOfPack(pack policy.Pack) packForm {
	form := packForm{Name: pack.Name, Title: pack.Title, Description: pack.Description, References: pack.References, NotJudged: listed(pack.NotJudged)}
	if !isEmbedded(pack) {
		form.File = pack.File
	}
	return form
}

// isEmbedded tells a pack from one in a file that took its name.
func isEmbedded(pack policy.Pack) bool {
	return slices.ContainsFunc(policy.Embedded(), func(own policy.Pack) bool { return own.Name == pack.Name && slices.Equal(own.Rules, pack.Rules) })
}

func formOfRule(rule *policy.Rule) ruleForm {
	text := func(f *policy.Filter) string {
		if f == nil {
			return ""
		}
		return f.String()
	}
	controls := rule.Controls
	if controls == nil {
		controls = []policy.Control{}
	}
	return ruleForm{
		ID: rule.ID, Pack: rule.Pack, Title: rule.Title, Severity: rule.Severity, Rationale: rule.Rationale, Remedy: rule.Remedy,
		References: rule.References, Controls: controls,
		Applies: text(rule.Applies), Declared: text(rule.Declared), Actual: text(rule.Actual),
	}
}

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show the rules that capdrift audit judges by, and test rules of your own",
		Long: `Show the packs of rules that capdrift audit judges by, and test rules of your own
(docs/policy.md).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyListCommand(), policyShowCommand(), policyTestCommand())
	return cmd
}

// policyOutput are the flags of list and show.
type policyOutput struct {
	format    string
	human     string // what people read
	noHeaders bool
}

func (o *policyOutput) addFlags(cmd *cobra.Command, human string) {
	o.human = human
	cmd.Flags().StringVarP(&o.format, "output", "o", human, "output format: "+strings.Join(o.names(), ", "))
	complete(cmd, "output", o.names()...)
}

func (o *policyOutput) names() []string { return []string{o.human, "json", "yaml"} }

func (o *policyOutput) validate() error {
	if !slices.Contains(o.names(), o.format) {
		return usageError{fmt.Errorf("--output=%s: want one of %s", printable(o.format), strings.Join(o.names(), ", "))}
	}
	return nil
}

func policyListCommand() *cobra.Command {
	var o policyOutput
	cmd := &cobra.Command{
		Use:   "list [PACK|FILE…]",
		Short: "List the packs or, of those named, the rules",
		Example: `  capdrift policy list
  capdrift policy list pss-restricted
  capdrift policy list our.yaml -o json`,
		ValidArgsFunction: completePacks,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return does(func(cmd *cobra.Command, args []string) error {
				packs, err := (&packOptions{packs: args}).choose()
				if err != nil {
					return printableError(err)
				}
				return o.list(cmd.OutOrStdout(), packs, len(args) > 0)
			})(cmd, args)
		},
	}
	o.addFlags(cmd, "table")
	cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "leave out the heading line of the table")
	return cmd
}

// list writes the packs, or their rules.
func (o *policyOutput) list(w io.Writer, packs []policy.Pack, rules bool) error {
	if o.format != "table" {
		forms := []packForm{}
		for _, pack := range packs {
			forms = append(forms, formOfPack(pack))
			for _, rule := range pack.Rules {
				forms[len(forms)-1].Rules = append(forms[len(forms)-1].Rules, formOfRule(rule))
			}
		}
		if o.format == "yaml" {
			return writeYAML(w, forms)
		}
		return writeJSON(w, forms)
	}
	t := table{noHeaders: o.noHeaders}
	writer := t.newWriter(pretty.Row{"pack", "rules", "title"})
	if rules {
		writer = t.newWriter(pretty.Row{"rule", "severity", "paper", "kernel", "title"})
	}
	for _, pack := range packs {
		if !rules {
			writer.AppendRow(pretty.Row{pack.Name, len(pack.Rules), printable(pack.Title)})
			continue
		}
		for _, rule := range pack.Rules {
			writer.AppendRow(pretty.Row{pack.Name + "/" + rule.ID, rule.Severity.String(), asked(rule.Declared), asked(rule.Actual), printable(rule.Title)})
		}
	}
	_, err := fmt.Fprintln(w, trimLines(writer.Render()))
	return err
}

func asked(f *policy.Filter) string {
	if f == nil {
		return "-"
	}
	return "yes"
}

func policyShowCommand() *cobra.Command {
	var o policyOutput
	cmd := &cobra.Command{
		Use:   "show PACK[/RULE]|RULE|FILE",
		Short: "Say what a pack or a rule asks for and why, and which controls it answers",
		Long: `Say what a pack or a rule asks for and why, what to do where it fails, the conditions, and which
controls of other documents it answers, each with the source of its number.`,
		Example: `  capdrift policy show cis
  capdrift policy show cis/cis-net-raw
  capdrift policy show dangerous-sys-admin -o yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeRules,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return does(func(cmd *cobra.Command, args []string) error {
				pack, rules, err := findRules(args[0])
				if err != nil {
					return printableError(err)
				}
				return o.show(cmd.OutOrStdout(), pack, rules)
			})(cmd, args)
		},
	}
	o.addFlags(cmd, "text")
	return cmd
}

// completeRules offers packs and, after a slash, the rules of one.
func completeRules(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, pack := range policy.Embedded() {
		if strings.HasPrefix(begun, pack.Name+"/") {
			var names []string
			for _, rule := range pack.Rules {
				names = append(names, cobra.CompletionWithDesc(pack.Name+"/"+rule.ID, rule.Title))
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		}
	}
	return completePacks(cmd, args, begun)
}

// findRules finds a pack by its name or file, or one rule by its id, with its pack's
// name before it or not.
func findRules(name string) (policy.Pack, []*policy.Rule, error) {
	before, id, slash := strings.Cut(name, "/")
	for _, pack := range policy.Embedded() {
		if pack.Name == name {
			return pack, pack.Rules, nil
		}
		for _, rule := range pack.Rules {
			if rule.ID == name || slash && pack.Name == before && rule.ID == id {
				return pack, []*policy.Rule{rule}, nil
			}
		}
		if slash && pack.Name == before {
			return pack, nil, usageError{fmt.Errorf("the pack %s has no rule %s; capdrift policy list %s shows them", pack.Name, id, pack.Name)}
		}
	}
	pack, err := readPack(name)
	return pack, pack.Rules, err
}

func (o *policyOutput) show(w io.Writer, pack policy.Pack, rules []*policy.Rule) error {
	form := formOfPack(pack)
	for _, rule := range rules {
		form.Rules = append(form.Rules, formOfRule(rule))
	}
	switch o.format {
	case "json":
		return writeJSON(w, form)
	case "yaml":
		return writeYAML(w, form)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s: %s\n", form.Name, printable(form.Title))
	if form.File != "" {
		fmt.Fprintf(&out, "  from %s\n", printable(form.File))
	}
	for _, text := range append([]string{form.Description}, form.References...) {
		if text != "" && len(rules) == len(pack.Rules) {
			paragraph(&out, "  ", text)
		}
	}
	if len(form.NotJudged) > 0 {
		paragraph(&out, "  ", "Not judged: "+strings.Join(form.NotJudged, " "))
	}
	for _, rule := range form.Rules {
		rule.write(&out)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (r ruleForm) write(out *strings.Builder) {
	fmt.Fprintf(out, "\n%s (%s): %s\n", r.ID, r.Severity, printable(r.Title))
	paragraph(out, "  ", strings.TrimSpace(r.Rationale))
	paragraph(out, "  → ", strings.TrimSpace(r.Remedy))
	for _, condition := range []struct{ what, text string }{{"applies to", r.Applies}, {"on paper", r.Declared}, {"in the kernel", r.Actual}} {
		if condition.text != "" {
			paragraph(out, "  "+condition.what+": ", strings.Join(strings.Fields(condition.text), " "))
		}
	}
	for _, group := range groupControls(r.Controls) {
		source := "source: " + group.Source
		if group.Note != "" {
			source += "; " + group.Note
		}
		paragraph(out, "  answers ", group.String()+" ("+source+")")
	}
	for _, reference := range r.References {
		paragraph(out, "  see ", reference)
	}
}

// controlGroup is a control with every version in which it has the same number.
type controlGroup struct {
	policy.Control
	versions []string
}

func groupControls(controls []policy.Control) (groups []controlGroup) {
	for _, control := range controls {
		version := control.Version
		control.Version = ""
		at := slices.IndexFunc(groups, func(g controlGroup) bool { return g.Control == control })
		if at < 0 {
			at = len(groups)
			groups = append(groups, controlGroup{Control: control})
		}
		if version != "" {
			groups[at].versions = append(groups[at].versions, version)
		}
	}
	return groups
}

func (g controlGroup) String() string {
	words := []string{g.Benchmark, g.Edition, strings.Join(g.versions, ", "), g.ID}
	return strings.Join(slices.DeleteFunc(words, func(word string) bool { return word == "" }), " ")
}

func policyTestCommand() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "test FILE…",
		Short: "Run the tests that the rules of a pack bring with them",
		Long: `Run the tests that the rules of a pack bring with them: containers, and what the rule must say of
them (docs/policy.md). A pack that is built in may be named too.

Exit status: 0 all passed, 1 one did not or a file could not be read, 2 wrong usage.`,
		Example: `  capdrift policy test our.yaml`,
		Args:    cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: does(func(cmd *cobra.Command, args []string) error {
			return testPacks(cmd.OutOrStdout(), args, verbose)
		}),
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list the tests that passed too")
	return cmd
}

// testPacks tests each pack, and goes on after one that cannot be read.
func testPacks(w io.Writer, names []string, verbose bool) error {
	var failed []error
	for _, name := range names {
		pack, err := testedPack(name)
		if err != nil {
			failed = append(failed, printableError(err))
			continue
		}
		results := pack.Test()
		bad := 0
		for _, result := range results {
			place := fmt.Sprintf("%s:%d: %s: %s", printable(name), result.Line, result.Rule, printable(result.Test))
			switch {
			case result.Err != nil:
				bad++
				fmt.Fprintf(w, "%s: %s\n", place, printable(result.Err.Error()))
			case verbose:
				fmt.Fprintf(w, "%s: ok\n", place)
			}
		}
		fmt.Fprintf(w, "%s: %s, %s, %d failed", printable(name), many(len(pack.Rules), "rule"), many(len(results), "test"), bad)
		if untested := untested(pack, results); len(untested) > 0 {
			fmt.Fprintf(w, "; without a test: %s", strings.Join(untested, ", "))
		}
		fmt.Fprintln(w)
		if bad > 0 {
			failed = append(failed, fmt.Errorf("%s: %s failed", printable(name), many(bad, "test")))
		}
	}
	return errors.Join(failed...)
}

func testedPack(name string) (policy.Pack, error) {
	packs := policy.Embedded()
	if at := slices.IndexFunc(packs, func(pack policy.Pack) bool { return pack.Name == name }); at >= 0 {
		return packs[at], nil
	}
	return readPack(name)
}

// untested names the rules that bring no test.
func untested(pack policy.Pack, results []policy.TestResult) (ids []string) {
	for _, rule := range pack.Rules {
		if !slices.ContainsFunc(results, func(r policy.TestResult) bool { return r.Rule == rule.ID }) {
			ids = append(ids, rule.ID)
		}
	}
	return ids
}
