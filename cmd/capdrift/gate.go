package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/policy"
)

// gateOptions are the flags that make a command's exit status a gate. Each command gathers what
// it knows, and verdict alone makes a status of it (docs/exit-status.md).
type gateOptions struct {
	flag            string // by which it is asked: fail-on, or until-finding of watch
	severity        string // its value; "" where no gate is asked for
	allowIncomplete bool
	exceptions      []string // files
	failExpired     bool

	excepted []policy.Exception   // of the files; open reads them
	accepted []policy.AcceptedGap // the same
}

const (
	failOn       = "fail-on"
	untilFinding = "until-finding"
)

// onlyGaps is what the file of exceptions is for where a command judges by no rules.
const onlyGaps = "a file of exceptions; here it says which gaps of the coverage are accepted, by whom and until when (docs/exit-status.md)"

func (o *gateOptions) addFlags(cmd *cobra.Command, flag, what, exceptions string) {
	o.flag = flag
	flags := cmd.Flags()
	flags.StringVar(&o.severity, flag, "", what+": critical, high, medium, low, info")
	flags.BoolVar(&o.allowIncomplete, "allow-incomplete", false, "let --"+flag+" pass although not everything could be seen or judged")
	flags.StringArrayVar(&o.exceptions, "exceptions", nil, exceptions+"; may be repeated")
	flags.BoolVar(&o.failExpired, "fail-on-expired", false, "exit with status 3 when something in --exceptions has expired")
	if err := cmd.MarkFlagFilename("exceptions", "yaml", "yml"); err != nil {
		panic(err) // a flag of this name was just defined
	}
	complete(cmd, flag, severityNames()...)
}

func (o *gateOptions) validate() error {
	switch {
	case o.severity != "" && !slices.Contains(severityNames(), o.severity):
		return fmt.Errorf("--%s=%s: want one of %s", o.flag, printable(o.severity), strings.Join(severityNames(), ", "))
	case o.failExpired && len(o.exceptions) == 0:
		return errors.New("--fail-on-expired is about the exceptions of --exceptions, which is not given")
	case o.allowIncomplete && o.severity == "":
		return fmt.Errorf("--allow-incomplete is about --%s, which is not given", o.flag)
	}
	return nil
}

// asked reports whether the status is to say that nothing is at or above a severity.
func (o *gateOptions) asked() bool { return o.severity != "" }

// open reads the files of exceptions, before anything is looked at.
func (o *gateOptions) open() error {
	for _, name := range o.exceptions {
		text, err := readPolicyFile(name)
		if err != nil {
			return err
		}
		some, err := policy.LoadExceptions(name, text)
		if err != nil {
			return printableError(err)
		}
		gaps, err := policy.LoadGaps(name, text)
		if err != nil {
			return printableError(err)
		}
		o.excepted, o.accepted = append(o.excepted, some...), append(o.accepted, gaps...)
	}
	if err := policy.CheckIDs(o.excepted, o.accepted); err != nil {
		return printableError(err)
	}
	return nil
}

// accepts reports whether a gap is accepted now.
func (o *gateOptions) accepts(gap drift.Gap) bool {
	left, _ := policy.AcceptGaps(o.accepted, []drift.Gap{gap}, time.Now())
	return len(left) == 0
}

// known is what a command knows at its end.
type known struct {
	worst   drift.Severity // of what fails or was found and no exception accepts; 0 for nothing
	what    string         // that is, such as "there are findings of severity %s"
	expired []string       // exceptions, with their owners
	broken  error          // why it could not do what was asked; nil where it could
	gaps    []drift.Gap    // of the coverage
	unknown []string       // what else could not be judged, such as "2 results could not be judged"
}

// decide says on errs what was not seen, and returns the error that makes the exit status.
func (o *gateOptions) decide(errs io.Writer, k known) error {
	left, states := policy.AcceptGaps(o.accepted, k.gaps, time.Now())
	k.gaps = left
	for i, state := range states {
		if state == policy.ExceptionExpired {
			one := o.accepted[i]
			fmt.Fprintf(errs, "capdrift: warning: %s (%s) accepts no gap any more: it expired at %s (%s:%d)\n",
				one.ID, printable(one.Owner), one.Expires.UTC().Format("2006-01-02 15:04 MST"), printable(one.File), one.Line)
			k.expired = append(k.expired, fmt.Sprintf("%s (%s)", one.ID, one.Owner))
		}
	}
	if o.asked() {
		tellGaps(errs, left)
	}
	err := o.verdict(k)
	if err == nil && o.asked() && k.incomplete() != "" {
		fmt.Fprintf(errs, "capdrift: warning: %s, so --%s judged only what was (--allow-incomplete)\n", k.incomplete(), o.flag)
	}
	return err
}

// verdict is what all gates mean. What is found counts more than what is not known, and that
// more than nothing.
func (o *gateOptions) verdict(k known) error {
	switch {
	case o.asked() && k.worst >= severityOf(o.severity):
		return findingsError{fmt.Errorf("%s, at or above --%s=%s", strings.Replace(k.what, "%s", k.worst.String(), 1), o.flag, o.severity)}
	case o.failExpired && len(k.expired) > 0:
		return findingsError{fmt.Errorf("%s expired: %s: renew or remove them in %s", many(len(k.expired), "exception"), printable(strings.Join(k.expired, ", ")), printable(strings.Join(o.exceptions, ", ")))}
	case k.broken != nil:
		return k.broken
	case o.asked() && !o.allowIncomplete && k.incomplete() != "":
		return fmt.Errorf("nothing is known that is at or above --%s=%s, but %s, and what is unknown is not passed (--allow-incomplete passes it)", o.flag, o.severity, k.incomplete())
	}
	return nil
}

// incomplete says what nobody knows; "" where everything was seen and judged.
func (k known) incomplete() string {
	var parts []string
	if len(k.gaps) > 0 {
		parts = append(parts, fmt.Sprintf("not everything was seen (%s)", many(len(k.gaps), "gap")))
	}
	return strings.Join(append(parts, k.unknown...), ", and ")
}

// tellGaps names gaps in the words that a file of exceptions takes.
func tellGaps(errs io.Writer, gaps []drift.Gap) {
	const most = 16
	for _, gap := range gaps[:min(len(gaps), most)] {
		fmt.Fprintf(errs, "capdrift: not seen: %s on %s: %s: %s\n", gap.Code, printable(gap.Node), printable(gap.Object), said(gap.Why))
	}
	if len(gaps) > most {
		fmt.Fprintf(errs, "capdrift: not seen: %d more\n", len(gaps)-most)
	}
}

// scope reports of which containers the gaps count: those that are asked for by name, and by an
// expression about containers. One about findings says nothing of a container without any.
func (o *filterOptions) scope(asked func(drift.Container) bool, kept []drift.Container) func(*drift.Container) bool {
	shown := make(map[string]bool)
	for _, c := range kept {
		shown[c.ID] = true
	}
	all := o.compiled == nil || o.compiled.Reads("finding")
	return func(c *drift.Container) bool { return asked(*c) && (all || shown[c.ID]) }
}
