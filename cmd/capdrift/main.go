// Command capdrift says, for every container of a node, whether the kernel holds
// what was declared. It is the one binary: flags, signals, construction and
// output live here, and only here are all rooms seen together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit statuses that scripts rely on.
const (
	exitDone     = 0
	exitFailed   = 1 // could not do it
	exitUsage    = 2 // asked in a wrong way
	exitFindings = 3 // findings at or above --fail-on
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, arguments(os.Args), os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand
	if len(args) > 0 && args[0] == "kubectl" {
		root, args = kubectlRoot, args[1:]
	}
	return execute(ctx, root(), args, stdout, stderr)
}

// rootCommand is the program as it is called on a node.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "capdrift",
		Short: "Compare the Linux capabilities that containers hold with what was declared for them",
		Long: "Capdrift lists a node's containers through the CRI socket, reads the capability sets of every\n" +
			"process from /proc, and says where they are not what was declared.",
	}
	root.AddCommand(scanCommand(nil), auditCommand(nil), agentCommand(), getCommand(nil), watchCommand(nil), journalCommand(), explainCommand(), predictCommand(), decodeCommand(), policyCommand(), kubectlCommand(), versionCommand())
	return root
}

func execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SilenceUsage, root.SilenceErrors = true, true
	root.Args = cobra.NoArgs
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
	})

	err := root.ExecuteContext(ctx)
	var found findingsError
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &found):
		fmt.Fprintln(stderr, "capdrift:", err)
		return exitFindings
	case errors.As(err, &usage) || !begun(err):
		fmt.Fprintln(stderr, "capdrift:", err)
		return exitUsage
	}
	fmt.Fprintln(stderr, "capdrift:", err)
	return exitFailed
}

// usageError is a wrong flag or argument.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// findingsError ends a command that did its work and found too much.
type findingsError struct{ error }

// begunError marks every error of a command that had accepted its arguments.
// Cobra's own errors (unknown command, wrong number of arguments) come before
// that and have no type, so what is not marked is a usage error.
type begunError struct{ error }

func (e begunError) Unwrap() error { return e.error }

func begun(err error) bool {
	var mark begunError
	return errors.As(err, &mark)
}

// does wraps what a command does once its arguments are accepted.
func does(work func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := work(cmd, args); err != nil {
			return begunError{err}
		}
		return nil
	}
}
