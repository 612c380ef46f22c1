package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	rpcstatus "google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// watchOptions are the flags of `capdrift watch`.
type watchOptions struct {
	client clientOptions
	fleet  *fleetOptions // whose agents are watched; nil for the one of client

	discover time.Duration // of a fleet's nodes

	format    string
	color     string
	filter    string
	namespace string
	gate      gateOptions // asked by --until-finding
	noHeaders bool
	excepted  exceptedOptions
}

func watchCommand(fleet *fleetOptions) *cobra.Command {
	o := watchOptions{fleet: fleet}
	cmd := &cobra.Command{
		Use:   "watch [findings|containers]",
		Short: "Ask the agent what it knows, and go on with what changes",
		Long: `Print what the agent knows now, a line each, and then each change as it sees it: findings that
open, change and are resolved, or containers that come, change and go. Findings of one incident,
such as all of one process, are told by the worst of them; the others stand below it in short.

When the connection breaks it is made again, and the watch goes on where it was. Where the agent
cannot tell everything that happened meanwhile, that is said as "lost", and what is now is printed
again. How the agent itself fares is said too: on standard error, or with -o jsonl as records.

--until-finding ends the watch when a finding of this severity, or a worse one, is open: one that
opens, and one that is open at the begin; not one that an exception accepts.

Findings that an exception of the agent's policy accepts are counted and left out, unless
--show-excepted asks for them; one that was shown is said to be accepted.

Where --timeout ends it before, it passes only where the agent sees all that is asked for: gaps that
stay can be accepted by name in --exceptions, or all with --allow-incomplete (docs/exit-status.md).

Exit status: 0 ended by a signal or --timeout, 1 could not do it (a namespace that nothing is in,
too; with --until-finding also when a signal ended the watch, changes were lost, the agent was not
there at the end of --timeout, or not all was seen: then nobody knows), 2 wrong usage, 3 a finding
at or above --until-finding is open, or by --fail-on-expired.`,
		Example: `  capdrift watch
  capdrift watch findings -n shop -o jsonl
  capdrift watch containers --filter 'pod.namespace != "kube-system"'
  capdrift watch --until-finding high --timeout 10m || echo 'something drifted, or nobody could tell'`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"findings", "containers"}, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			resource, err := o.validate(args)
			if err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd, resource) })(cmd, args)
		},
	}
	if fleet == nil {
		o.client.addFlags(cmd, agentSocket, 0)
	} else {
		fleet.addFlags(cmd, 0, 0)
		cmd.Flags().DurationVar(&o.discover, "discover", discoverEvery, "how often to look for nodes that joined or left the cluster")
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.format, "output", "o", "table", "output format: table, wide (every finding a line, with its message and the evidence of its process), jsonl")
	flags.StringVar(&o.color, "color", "auto", "color the table: auto (on a terminal, unless NO_COLOR is set), always, never")
	flags.StringVar(&o.filter, "filter", "", "only those of which this expression is true (docs/filter.md)")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "only those of pods in this namespace")
	o.gate.addFlags(cmd, untilFinding, "end with status 3 when a finding at or above this severity is open", onlyGaps)
	flags.BoolVar(&o.noHeaders, "no-headers", false, "leave out the heading line of the table")
	o.excepted.addFlags(cmd)
	complete(cmd, "output", "table", "wide", "jsonl")
	complete(cmd, "color", "auto", "always", "never")
	return cmd
}

func (o *watchOptions) validate(args []string) (resource string, err error) {
	if err := whom(&o.client, o.fleet).validate(); err != nil {
		return "", err
	}
	resource = "finding"
	if len(args) > 0 {
		resource = resources[args[0]]
	}
	switch {
	case resource != "finding" && resource != "container":
		return "", fmt.Errorf("%s cannot be watched: want findings or containers", printable(args[0]))
	case !slices.Contains([]string{"table", "wide", "jsonl"}, o.format):
		return "", fmt.Errorf("--output=%s: want table, wide or jsonl", printable(o.format))
	case o.excepted.show && resource != "finding":
		return "", errors.New("--show-excepted is of watch findings")
	case o.discover <= 0 && o.fleet != nil:
		return "", fmt.Errorf("--discover=%s: want a time above zero", o.discover)
	case o.gate.asked() && resource != "finding":
		return "", errors.New("--until-finding is of watch findings")
	}
	if err := o.gate.validate(); err != nil {
		return "", err
	}
	return resource, (&outputOptions{format: "table", color: o.color}).validate()
}

func (o *watchOptions) run(cmd *cobra.Command, resource string) error {
	if err := o.gate.open(); err != nil {
		return err
	}
	colors := outputOptions{color: o.color}
	out := watchOutput{
		Writer: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), resource: resource, jsonl: o.format == "jsonl",
		table: table{colored: colors.colored(cmd.OutOrStdout()), wide: o.format == "wide", noHeaders: o.noHeaders},
		known: make(map[string]watchLine), leading: make(map[string]watchLine),
	}
	if o.fleet != nil {
		return o.overFleet(cmd, out)
	}
	ctx, cancel := o.client.within(cmd.Context())
	defer cancel()
	w := watcher{watchOptions: o, client: o.client, resource: resource, out: out, patience: 2 * time.Minute, shown: make(map[string]bool)}
	if err := o.present(ctx, w.client); err != nil {
		return err
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	k := known{}
	if o.gate.asked() { // --timeout has ended it
		seen, err := o.seen(cmd.Context(), w.client)
		if err != nil {
			return fmt.Errorf("what the agent sees at the end is not known: %w", err)
		}
		k.gaps = seen.gaps
	}
	return o.gate.decide(cmd.ErrOrStderr(), k)
}

// present fails where nothing is in the namespace that is asked for. An agent that does not
// answer, or has not looked yet, does not know: the watch then says so, or waits for it.
func (o *watchOptions) present(ctx context.Context, agent clientOptions) error {
	if o.namespace == "" || agent.wait {
		return nil
	}
	c, err := agent.dial()
	if err != nil {
		return nil // the watch says it
	}
	defer c.close()
	seen, err := c.outlook(ctx, false, "")
	if err != nil {
		return nil
	}
	return noNamespace(o.namespace, seen.namespaces, "on this agent's node")
}

// atTheEnd bounds how long an agent is asked for what it sees, once the watch is over.
const atTheEnd = 30 * time.Second

// seen is what the agent sees at the end of a watch.
func (o *watchOptions) seen(ctx context.Context, agent clientOptions) (outlook, error) {
	ctx, cancel := within(ctx, timeoutError{after: atTheEnd, flag: "--timeout"})
	defer cancel()
	c, err := agent.dial()
	if err != nil {
		return outlook{}, err
	}
	defer c.close()
	return c.outlook(ctx, true, o.namespace)
}

// watcher follows an agent over any number of connections.
type watcher struct {
	*watchOptions
	client   clientOptions
	stubborn bool // an agent that is not there at the begin may come
	resource string
	out      watchOutput
	patience time.Duration // without a message; the agent sends heartbeats far more often

	token   string // where to go on
	whole   bool   // a snapshot has come
	there   bool   // the agent tells us of changes now
	lossy   bool   // some were lost
	joining joiner
	counted int // of the snapshot

	shown    map[string]bool // findings, by id; of those alone it is said that they are accepted now
	before   map[string]bool // the same before a snapshot that is coming
	accepted int             // in the snapshot
}

var errSilent = errors.New("the agent has gone silent")

// run ends with the context's time, the finding that is waited for, or an error
// that connecting again does not help against.
func (w *watcher) run(ctx context.Context) error {
	c, err := w.client.open(ctx)
	if err != nil {
		return w.ended(ctx, err)
	}
	told := ""
	for pause := (backoff{}); ; {
		began := time.Now()
		err := w.follow(ctx, c)
		c.close()
		var found findingsError
		var broken outputError
		switch {
		case errors.As(err, &found), errors.As(err, &broken):
			return err
		case ctx.Err() != nil:
			return w.ended(ctx, c.explained(ctx, err))
		case !w.whole && (!w.stubborn || !c.mayPass(err)) || !w.mayGoOn(err):
			return c.explained(ctx, err)
		}
		if rpcstatus.Code(err) == codes.InvalidArgument { // an agent of another version does not know our place
			w.token, w.lossy = "", true
		}
		w.client.wait = true // from now on we do
		explained := c.explained(ctx, err)
		if w.there {
			told = ""
		}
		w.there = false
		if time.Since(began) > 2*longestPause {
			pause = backoff{}
		}
		if text := explained.Error(); text != told {
			told = text
			if err := w.out.disconnected(text); err != nil {
				return err
			}
		}
		for c = nil; c == nil; {
			if err := wait(ctx, pause.next()); err != nil {
				return w.ended(ctx, explained)
			}
			if c, err = w.client.dial(); err != nil && err.Error() != told { // certificates that are just exchanged
				told = err.Error()
				if err := w.out.disconnected(told); err != nil {
					return err
				}
			}
		}
	}
}

// ended is what a watch ends with whose time is over.
func (w *watcher) ended(ctx context.Context, err error) error {
	var late timeoutError
	switch timedOut := errors.As(context.Cause(ctx), &late); {
	case ctx.Err() == nil, timedOut && !w.whole:
		return err
	case !w.gate.asked():
		return nil
	case !timedOut:
		return fmt.Errorf("interrupted before a finding at or above --until-finding=%s was open", w.gate.severity)
	case !w.there:
		return errors.New("the agent was not there at the end of --timeout, so nobody knows what is open")
	case w.lossy:
		return errors.New("changes were lost meanwhile, so nobody knows what was open all the time")
	}
	return nil
}

// mayGoOn tells whether connecting again may help.
func (w *watcher) mayGoOn(err error) bool {
	switch rpcstatus.Code(err) {
	case codes.InvalidArgument:
		return w.token != "" // without our place it may be a good question
	case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return false
	case codes.ResourceExhausted:
		return !filterTooCostly(err)
	}
	var unreadable unreadableError
	return !errors.As(err, &unreadable)
}

// unreadableError is a message that this version cannot read; it would come again.
type unreadableError struct{ error }

func (e unreadableError) Unwrap() error { return e.error }

// outputError is a line that could not be written.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// follow takes the messages of one connection until it ends, or nothing comes.
func (w *watcher) follow(ctx context.Context, c *client) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(w.patience, func() { cancel(errSilent) })
	defer silence.Stop()
	err := w.receive(ctx, c, func() { silence.Reset(w.patience) })
	if errors.Is(context.Cause(ctx), errSilent) {
		return fmt.Errorf("%w for %s", errSilent, w.patience)
	}
	return err
}

func (w *watcher) receive(ctx context.Context, c *client, heard func()) error {
	request := &v1.WatchRequest{After: w.token}
	if w.resource == "container" {
		request.Topics, request.ContainerFilter = []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_CONTAINERS}, w.filter
		if request.View = v1.ContainerView_CONTAINER_VIEW_BASIC; w.out.jsonl {
			request.View = v1.ContainerView_CONTAINER_VIEW_FULL
		}
	} else {
		request.Topics, request.FindingFilter = []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_FINDINGS}, w.filter
	}
	w.joining = joiner{}
	stream, err := c.Watch(ctx, request)
	if err != nil {
		return err
	}
	for {
		message, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return rpcstatus.Error(codes.Unavailable, "the agent ended the watch")
		case err != nil:
			return err
		}
		heard()
		if err := w.take(message); err != nil {
			return err
		}
		if message.ResumeToken != "" {
			w.token = message.ResumeToken
		}
	}
}

// take prints one message.
func (w *watcher) take(m *v1.WatchResponse) error {
	at := momentOf(m.Time)
	switch event := m.Event.(type) {
	case *v1.WatchResponse_SnapshotBegin:
		w.counted, w.accepted = 0, 0
		if w.before == nil { // else another snapshot broke off
			w.before = w.shown
		}
		w.shown = make(map[string]bool)
		return w.out.begin(event.SnapshotBegin, at)
	case *v1.WatchResponse_Containers:
		return w.containers(event.Containers.GetContainers(), "present", at)
	case *v1.WatchResponse_Findings:
		for _, message := range event.Findings.GetFindings() {
			w.counted++
			if err := w.finding(message, "open", "", at); err != nil {
				return err
			}
		}
	case *v1.WatchResponse_SnapshotEnd:
		if err := w.arrived(); err != nil {
			return err
		}
		if told := int(event.SnapshotEnd.GetContainers() + event.SnapshotEnd.GetFindings()); told != w.counted {
			return rpcstatus.Errorf(codes.DataLoss, "the agent's snapshot is of %d, and %d came", told, w.counted)
		}
		w.whole = true
		if err := w.out.end(event.SnapshotEnd, w.accepted, at); err != nil {
			return err
		}
		w.before = nil
		w.excepted.count(w.out.errs, w.accepted)
	case *v1.WatchResponse_Container:
		change := strings.ToLower(strings.TrimPrefix(event.Container.GetKind().String(), "KIND_"))
		if event.Container.GetKind() == v1.ContainerChange_KIND_LEFT {
			return w.out.left(event.Container.GetContainer().GetId(), at)
		}
		return w.containers([]*v1.Container{event.Container.GetContainer()}, change, at)
	case *v1.WatchResponse_Finding:
		change := strings.ToLower(strings.TrimPrefix(event.Finding.GetKind().String(), "KIND_"))
		if event.Finding.GetKind() == v1.FindingChange_KIND_LEFT {
			delete(w.shown, event.Finding.GetFinding().GetId())
			return w.out.left(event.Finding.GetFinding().GetId(), at)
		}
		return w.finding(event.Finding.GetFinding(), change, event.Finding.GetResolved(), at)
	case *v1.WatchResponse_Lost:
		w.lossy = true
		return w.out.lost(event.Lost, at)
	case *v1.WatchResponse_NodeStatus:
		if err := w.arrived(); err != nil { // with this a watch that resumes begins
			return err
		}
		return w.out.status(event.NodeStatus, at)
	}
	return nil
}

// arrived notes that the agent tells us of changes from now on.
func (w *watcher) arrived() error {
	w.there = true
	return w.out.connected()
}

func (w *watcher) takes(item subject) bool {
	return question{namespace: w.namespace}.takes(item)
}

func (w *watcher) containers(parts []*v1.Container, change string, at *time.Time) error {
	items, err := w.joining.take(parts)
	if err != nil {
		return unreadableError{err}
	}
	for _, item := range items {
		if w.counted++; !w.takes(item) {
			continue
		}
		if err := w.out.item(item, change, "", at); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) finding(message *v1.Finding, change, resolved string, at *time.Time) error {
	item, err := fromFinding(message)
	switch {
	case err != nil:
		return unreadableError{err}
	case !w.takes(item):
		return nil
	}
	if item.isAccepted() {
		return w.acceptedOne(item, change, resolved, at)
	}
	if w.shown[item.id()] = true; change == "resolved" {
		delete(w.shown, item.id())
	}
	if err := w.out.item(item, change, resolved, at); err != nil {
		return err
	}
	if !w.gate.asked() || change == "resolved" || item.finding.Severity < severityOf(w.gate.severity) {
		return nil
	}
	if err := w.out.flush(at); err != nil {
		return err
	}
	return w.gate.verdict(known{worst: item.finding.Severity, what: "a finding of severity %s is open"})
}

// acceptedOne prints a finding that an exception accepts, if it is to be shown, or was
// before it was accepted.
func (w *watcher) acceptedOne(item subject, change, resolved string, at *time.Time) error {
	if change == "open" {
		w.accepted++
	}
	if !w.excepted.show {
		was := w.shown[item.id()] || w.before[item.id()]
		delete(w.shown, item.id())
		if !was {
			return nil
		}
		if change != "resolved" {
			change = "accepted"
		}
	}
	return w.out.item(item, change, resolved, at)
}

// scan is the report of a look that the agent takes now.
func (o *clientOptions) scan(ctx context.Context, gate bool) (drift.Report, error) {
	ctx, cancel := o.within(ctx)
	defer cancel()
	c, err := o.open(ctx)
	if err != nil {
		return drift.Report{}, err
	}
	defer c.close()
	return c.scanFor(ctx, gate)
}

func (c *client) scan(ctx context.Context) (drift.Report, error) {
	stream, err := c.Scan(ctx, &v1.ScanRequest{})
	if err != nil {
		return drift.Report{}, c.explained(ctx, err)
	}
	report, err := rpc.ReadScan(stream)
	if errors.Is(err, io.EOF) {
		return drift.Report{}, errors.New("the agent's report ended before its end; ask again")
	}
	return report, c.explained(ctx, err)
}
