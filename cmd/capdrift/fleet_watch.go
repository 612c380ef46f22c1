package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/drift"
)

// fleetWatch follows the agents of many nodes at once: one watcher each, one output.
type fleetWatch struct {
	*watchOptions
	fleet *fleet
	out   watchOutput // of which each node has its own

	ended chan watchEnd
	on    map[string]context.CancelFunc // nodes that are watched
	left  map[string]bool               // and those of them that have left the cluster
}

// watchEnd is a node's watch that has come to its end.
type watchEnd struct {
	node  string
	heard bool // the agent told all that it knows, once
	err   error
}

func (o *watchOptions) overFleet(cmd *cobra.Command, out watchOutput) error {
	limits := o.fleet.client()
	ctx, cancel := limits.within(cmd.Context())
	defer cancel()
	f, err := o.fleet.open(ctx, o.fleet.nodes)
	if err != nil {
		return err
	}
	defer f.close()
	var lock sync.Mutex
	out.Writer, out.errs = &locked{lock: &lock, Writer: out.Writer}, &locked{lock: &lock, Writer: out.errs}
	out.heads, out.width = new(atomic.Bool), len("NODE")
	for _, m := range f.members {
		out.width = max(out.width, len(m.node))
	}
	if err := o.presentIn(ctx, f, out.errs); err != nil {
		return err
	}
	w := fleetWatch{watchOptions: o, fleet: f, out: out, ended: make(chan watchEnd), on: make(map[string]context.CancelFunc), left: make(map[string]bool)}
	return w.run(ctx, cmd.Context())
}

// presentIn fails where nothing on any node is in the namespace that is asked for. Where a node
// does not answer that is not known, and the watch begins.
func (o *watchOptions) presentIn(ctx context.Context, f *fleet, errs io.Writer) error {
	if o.namespace == "" {
		return nil
	}
	answers, err := o.outlooks(ctx, f, errs, false)
	var known []string
	for _, a := range answers {
		if a.why != nil || err != nil {
			return err
		}
		known = append(known, a.said.namespaces...)
	}
	return noNamespace(o.namespace, known, "on the nodes that are watched")
}

func (o *watchOptions) outlooks(ctx context.Context, f *fleet, errs io.Writer, gate bool) ([]answered[outlook], error) {
	return gather(ctx, f, errs, func(ctx context.Context, c *client) (outlook, error) {
		return c.outlook(ctx, gate, o.namespace)
	})
}

// discoverEvery is how often nodes that joined the cluster are looked for.
const discoverEvery = 30 * time.Second

// locked is a writer of several, each of whose Writes is a whole line.
type locked struct {
	lock *sync.Mutex
	io.Writer
}

func (l *locked) Write(text []byte) (int, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	return l.Writer.Write(text)
}

// run ends with the context's time, with a finding that is waited for, or when no
// node is left that could be watched. What is seen at the end is asked for within outer.
func (w *fleetWatch) run(ctx, outer context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, m := range w.fleet.members {
		w.begin(ctx, m)
	}
	looks := time.NewTicker(w.discover)
	defer looks.Stop()
	var decisive error
	var failed []watchEnd
	for len(w.on) > 0 {
		select {
		case end := <-w.ended:
			w.on[end.node]()
			delete(w.on, end.node)
			var found findingsError
			var broken outputError
			var usage usageError
			switch {
			case decisive != nil:
			case errors.As(end.err, &found):
				decisive = findingsError{fmt.Errorf("%s: %w", printable(end.node), found.error)}
				stop(decisive)
			case errors.As(end.err, &broken), errors.As(end.err, &usage):
				decisive = end.err
				stop(decisive)
			case w.left[end.node]:
				delete(w.left, end.node)
			case end.err != nil && ctx.Err() == nil:
				fmt.Fprintf(w.out.errs, "capdrift: %s: not watched any more: %s\n", printable(end.node), oneLine(end.err))
				failed = append(failed, end)
			case end.err != nil || !end.heard:
				failed = append(failed, end)
			}
		case <-looks.C:
			if ctx.Err() == nil && !w.fleet.chosen {
				w.discoverNodes(ctx)
			}
		}
	}
	if decisive != nil {
		return decisive
	}
	return w.verdict(outer, failed)
}

// verdict is of a watch that came to its end without a finding that was waited for.
func (w *fleetWatch) verdict(ctx context.Context, failed []watchEnd) error {
	failed = slices.DeleteFunc(failed, func(end watchEnd) bool {
		var without noAgentError
		return errors.As(end.err, &without) && w.gate.accepts(drift.Gap{Code: drift.GapNoAgent, Node: end.node, Object: drift.WholeNode})
	})
	if len(failed) == 0 || w.fleet.allowMissing {
		k := known{gaps: w.fleet.gaps(), broken: w.fleet.finish(w.out.errs, nil, &w.gate)}
		if w.gate.asked() && k.broken == nil {
			w.seenAtTheEnd(ctx, &k)
		}
		return w.gate.decide(w.out.errs, k)
	}
	slices.SortStableFunc(failed, func(a, b watchEnd) int { return strings.Compare(a.node, b.node) })
	failed = slices.CompactFunc(failed, func(a, b watchEnd) bool { return a.node == b.node }) // which was watched again, and failed again
	why := "its agent was never reached"
	if failed[0].err != nil {
		why = failed[0].err.Error()
	}
	more := ""
	if len(failed) > 1 {
		more = fmt.Sprintf(", and of %s more", many(len(failed)-1, "node"))
	}
	return w.gate.decide(w.out.errs, known{gaps: w.fleet.gaps(), broken: fmt.Errorf(
		"not everything is known of %s%s (--allow-missing accepts that): %s", printable(failed[0].node), more, why)})
}

// seenAtTheEnd asks all agents what they see, once the watch is over.
func (w *fleetWatch) seenAtTheEnd(ctx context.Context, k *known) {
	ctx, cancel := within(ctx, timeoutError{after: atTheEnd, flag: "--timeout"})
	defer cancel()
	answers, err := w.outlooks(ctx, w.fleet, w.out.errs, true)
	if err != nil {
		k.broken = fmt.Errorf("what the agents see at the end is not known: %w", err)
		return
	}
	k.broken = w.fleet.finish(w.out.errs, silent(answers), &w.gate)
	for _, a := range answers {
		for _, gap := range a.said.gaps {
			gap.Node = a.node // as Kubernetes calls it
			k.gaps = append(k.gaps, gap)
		}
	}
}

func (w *fleetWatch) begin(ctx context.Context, m member) {
	ctx, cancel := context.WithCancel(ctx)
	w.on[m.node] = cancel
	out := w.out
	out.node, out.known, out.leading = m.node, make(map[string]watchLine), make(map[string]watchLine)
	if out.jsonl {
		out.Writer = naming{out.Writer, m.node}
	}
	one := watcher{watchOptions: w.watchOptions, client: m.agent, stubborn: true, resource: out.resource, out: out, patience: 2 * time.Minute, shown: make(map[string]bool)}
	go func() {
		err := one.run(ctx)
		w.ended <- watchEnd{m.node, one.whole, err}
	}()
}

// discoverNodes watches nodes that have joined the cluster, and leaves those that
// are gone. While it cannot be told, things stay as they are.
func (w *fleetWatch) discoverNodes(ctx context.Context) {
	now := *w.fleet
	if err := now.find(ctx, nil); err != nil {
		return
	}
	for _, m := range now.members {
		if w.on[m.node] == nil {
			fmt.Fprintf(w.out.errs, "capdrift: %s: watched from now on\n", printable(m.node))
			w.begin(ctx, m)
		}
	}
	for node, leave := range w.on {
		if !w.left[node] && !slices.ContainsFunc(now.members, func(m member) bool { return m.node == node }) {
			fmt.Fprintf(w.out.errs, "capdrift: %s: has left the cluster\n", printable(node))
			w.left[node] = true
			leave()
		}
	}
}
