package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
)

// exceptedOptions is the flag --show-excepted of every command that shows an agent's
// findings.
type exceptedOptions struct{ show bool }

const showExcepted = "show-excepted"

func (o *exceptedOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.show, showExcepted, false, "show findings too that an exception of the agent's policy accepts; they are always counted")
}

// count says how many findings are accepted, unless none is.
func (o *exceptedOptions) count(errs io.Writer, accepted int) {
	switch {
	case accepted == 0:
	case o.show:
		fmt.Fprintf(errs, "capdrift: among the findings shown, exceptions accept %d\n", accepted)
	default:
		fmt.Fprintf(errs, "capdrift: %s accepted by exceptions and not shown; --%s shows them\n", areOrIs(accepted), showExcepted)
	}
}

func areOrIs(findings int) string {
	if findings == 1 {
		return "1 finding is"
	}
	return fmt.Sprintf("%d findings are", findings)
}

// unaccepted are the findings that no exception accepts.
func unaccepted(findings []drift.Finding) []drift.Finding {
	rest := make([]drift.Finding, 0, len(findings))
	for _, finding := range findings {
		if finding.Exception == "" {
			rest = append(rest, finding)
		}
	}
	return rest
}
