package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/capdrift/capdrift/drift"
)

// sourceOptions are the flags of every command that takes its report from a look
// of this program or of an agent.
type sourceOptions struct {
	lookOptions
	client  clientOptions // of --agent; unused without it
	looking []string      // the flags of lookOptions
}

func (o *sourceOptions) addFlags(cmd *cobra.Command) {
	o.lookOptions.addFlags(cmd)
	cmd.Flags().VisitAll(func(flag *pflag.Flag) { o.looking = append(o.looking, flag.Name) })
	o.client.addFlags(cmd, "", 2*time.Minute)
}

// validate is about the source alone: the agents of a fleet or, without one, this
// node as it is looked at here or by an agent. more are flags of the command that are
// about agents too.
func (o *sourceOptions) validate(cmd *cobra.Command, fleet *fleetOptions, more ...string) error {
	if fleet != nil {
		return fleet.validate()
	}
	if err := o.oneOrOther(cmd, more...); err != nil {
		return err
	}
	return o.lookOptions.validate()
}

// oneOrOther tells the flags of the two ways to look apart.
func (o *sourceOptions) oneOrOther(cmd *cobra.Command, more ...string) error {
	if cmd.Flags().Changed("agent") {
		for _, flag := range o.looking {
			if cmd.Flags().Changed(flag) {
				return fmt.Errorf("--%s says how this program looks at the node; with --agent the agent looks, as it is configured", flag)
			}
		}
		return o.client.validate()
	}
	for _, flag := range slices.Concat(clientFlags, more) {
		if cmd.Flags().Changed(flag) {
			return fmt.Errorf("--%s is about an agent: name it with --agent", flag)
		}
	}
	return nil
}

// report is of a look that is taken now, here or by the agent. For a gate an agent is asked again
// where it could not read something yet; this program always looks again.
func (o *sourceOptions) report(ctx context.Context, gate bool) (drift.Report, error) {
	if o.client.agent != "" {
		return o.client.scan(ctx, gate)
	}
	return o.look(ctx, o.host())
}
