package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
)

// getOptions are the flags of `capdrift get`.
type getOptions struct {
	client clientOptions
	fleet  *fleetOptions // whose agents are asked; nil for the one of client

	format    string
	color     string
	filter    string
	namespace string
	sortBy    string
	noHeaders bool
	watch     bool
	excepted  exceptedOptions
	gate      gateOptions // of the list of findings
}

// resources is what `get` and `watch` know, by every name they go by.
var resources = map[string]string{
	"node": "node", "nodes": "node", "no": "node",
	"container": "container", "containers": "container", "co": "container", "c": "container",
	"finding": "finding", "findings": "finding", "fi": "finding", "f": "finding",
}

func resourceNames() []string { return []string{"node", "containers", "findings"} }

func getFormats() []string { return []string{"table", "wide", "json", "jsonl", "yaml", "name"} }

func getCommand(fleet *fleetOptions) *cobra.Command {
	o := getOptions{fleet: fleet}
	cmd := &cobra.Command{
		Use:   "get node|containers|findings [NAME]",
		Short: "Ask the agent what it knows: the node, its containers, the open findings",
		Long: `Ask this node's agent, or another one, what it knows now: the node with what is seen of it and
what is not, the containers, or the findings that are open.

A container is named by its id or the start of it, by POD/CONTAINER or NAMESPACE/POD/CONTAINER, or
by its name; a finding by its id or the start of it. Names of things may be singular, plural or
short (no, co, fi), and joined as in container/ID.

Findings that an exception of the agent's policy accepts are counted and left out, unless
--show-excepted asks for them; one that is named is shown.

--filter is judged by the agent. What it cannot judge, because what it asks about was not seen, is
listed too, and said on standard error. So is whatever the agent does not see of its node.

With --fail-on the list of findings is a gate. It passes only where the agent sees all that is asked
for: what is being started is asked for again for some seconds, and what is not seen is named, with
status 1. Gaps that stay can be accepted by name in --exceptions, or all with --allow-incomplete
(docs/exit-status.md).

Exit status: 0 done, 1 could not do it (a name that matches nothing too), or --fail-on could not be
told, 2 wrong usage (a wrong filter too), 3 findings at or above --fail-on, or by --fail-on-expired.`,
		Example: `  capdrift get node
  capdrift get findings -n shop
  capdrift get findings -n shop --fail-on high
  capdrift get containers --filter 'caps.effective.hasAny(["SYS_ADMIN","NET_RAW"])' -o wide
  capdrift get container web-7d4b9c6f5-x2kqp/nginx -o yaml
  capdrift get findings -o jsonl --agent 10.0.0.7:9443 --tls-cert me.crt --tls-key me.key --tls-ca ca.crt
  capdrift get findings --watch`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return resourceNames(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			resource, name, err := o.validate(args)
			if err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd, resource, name) })(cmd, args)
		},
	}
	if fleet == nil {
		o.client.addFlags(cmd, agentSocket, 30*time.Second)
	} else {
		fleet.addFlags(cmd, 15*time.Second, 2*time.Minute)
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.format, "output", "o", "table", "output format: "+strings.Join(getFormats(), ", "))
	flags.StringVar(&o.color, "color", "auto", "color the table: auto (on a terminal, unless NO_COLOR is set), always, never")
	flags.StringVar(&o.filter, "filter", "", "only those of which this expression is true (docs/filter.md)")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "only those of pods in this namespace")
	flags.StringVar(&o.sortBy, "sort-by", "", "order: "+strings.Join(slices.Sorted(maps.Keys(orders)), ", ")+" (default: containers by pod, findings by severity; jsonl as the agent lists them)")
	flags.BoolVar(&o.noHeaders, "no-headers", false, "leave out the heading lines of tables")
	o.excepted.addFlags(cmd)
	o.gate.addFlags(cmd, failOn, "exit with status 3 when a finding that is listed is at or above this severity", onlyGaps)
	flags.BoolVarP(&o.watch, "watch", "w", false, "go on with what changes, as capdrift watch does")
	complete(cmd, "output", getFormats()...)
	complete(cmd, "color", "auto", "always", "never")
	complete(cmd, "sort-by", slices.Sorted(maps.Keys(orders))...)
	return cmd
}

func (o *getOptions) validate(args []string) (resource, name string, err error) {
	if err := whom(&o.client, o.fleet).validate(); err != nil {
		return "", "", err
	}
	word := args[0]
	switch before, after, joined := strings.Cut(word, "/"); {
	case len(args) == 2:
		name = args[1]
	case joined:
		word, name = before, after
	}
	resource, ok := resources[word]
	one := name != "" || resource == "node"
	known, sorts := orders[o.sortBy]
	switch {
	case !ok:
		return "", "", fmt.Errorf("%s is nothing that can be got: want one of %s", printable(args[0]), strings.Join(resourceNames(), ", "))
	case name == "" && (len(args) == 2 || word != args[0]):
		return "", "", fmt.Errorf("the name of the %s is empty", resource)
	case !slices.Contains(getFormats(), o.format):
		return "", "", fmt.Errorf("--output=%s: want one of %s", printable(o.format), strings.Join(getFormats(), ", "))
	case resource == "node" && name != "" && o.fleet == nil:
		return "", "", errors.New("an agent knows one node only: want no name after it")
	case one && o.filter != "" || one && o.sortBy != "":
		return "", "", errors.New("--filter and --sort-by are of lists, not of one thing that is named")
	case resource == "node" && o.namespace != "":
		return "", "", errors.New("a node is in no namespace")
	case one && o.watch:
		return "", "", errors.New("--watch is of the lists of containers and findings")
	case o.watch && !slices.Contains([]string{"table", "wide", "jsonl"}, o.format), o.watch && o.sortBy != "":
		return "", "", errors.New("--watch prints a line for each change: want -o table, wide or jsonl, and no --sort-by")
	case o.excepted.show && (one || resource != "finding"):
		return "", "", errors.New("--show-excepted is of the list of findings")
	case o.gate.asked() && (one || resource != "finding"):
		return "", "", errors.New("--fail-on is of the list of findings")
	case o.gate.asked() && o.watch:
		return "", "", errors.New("--fail-on is of a list that ends; a watch has --until-finding: capdrift watch findings")
	case o.sortBy != "" && (!sorts || known.only != "" && known.only != resource):
		return "", "", fmt.Errorf("--sort-by=%s: want one of %s", printable(o.sortBy), strings.Join(ordersOf(resource), ", "))
	}
	if err := o.gate.validate(); err != nil {
		return "", "", err
	}
	return resource, name, (&outputOptions{format: "table", color: o.color}).validate()
}

func (o *getOptions) run(cmd *cobra.Command, resource, name string) error {
	if err := o.gate.open(); err != nil {
		return err
	}
	if o.watch {
		w := watchOptions{client: o.client, fleet: o.fleet, discover: discoverEvery, format: o.format, color: o.color, filter: o.filter, namespace: o.namespace, noHeaders: o.noHeaders, excepted: o.excepted}
		if !cmd.Flags().Changed("timeout") {
			w.client.timeout = 0
			if o.fleet != nil {
				o.fleet.timeout = 0
			}
		}
		return w.run(cmd, resource)
	}
	colors := outputOptions{color: o.color}
	out := getWriter{
		Writer: cmd.OutOrStdout(), format: o.format, now: time.Now(), nodes: o.fleet != nil,
		table: table{colored: colors.colored(cmd.OutOrStdout()), wide: o.format == "wide", noHeaders: o.noHeaders},
	}
	if o.fleet != nil {
		return o.overFleet(cmd, out, resource, name)
	}
	ctx, cancel := o.client.within(cmd.Context())
	defer cancel()
	c, err := o.client.open(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	question := question{client: c, filter: o.filter, namespace: o.namespace, view: viewFor(o.format)}
	node, err := c.GetNode(ctx, &v1.GetNodeRequest{})
	if err != nil {
		return c.explained(ctx, err)
	}
	told, err := nodeOf(node)
	if err != nil {
		return err
	}
	out.takenAt = told.TakenAt
	if resource == "node" {
		if err := out.node(told); err != nil {
			return err
		}
	}
	k := known{what: "there are findings of severity %s"}
	if resource != "node" {
		if k, err = o.list(ctx, question, out, cmd.ErrOrStderr(), resource, name); err != nil {
			return err
		}
	}
	tellAge(cmd.ErrOrStderr(), "", orZero(told.TakenAt), out.now)
	for _, blind := range blindness(node, "capdrift get node") {
		if resource != "node" {
			fmt.Fprintln(cmd.ErrOrStderr(), "capdrift: warning:", blind)
		}
	}
	return o.gate.decide(cmd.ErrOrStderr(), k)
}

// viewFor asks for processes only where they are shown.
func viewFor(format string) v1.ContainerView {
	if slices.Contains([]string{"json", "jsonl", "yaml"}, format) {
		return v1.ContainerView_CONTAINER_VIEW_FULL
	}
	return v1.ContainerView_CONTAINER_VIEW_BASIC
}

// blindness is what the agent does not see, a line each.
func blindness(node *v1.GetNodeResponse, command string) (lines []string) {
	for _, component := range node.Components {
		if !component.Ok {
			lines = append(lines, fmt.Sprintf("the agent's %s is not well: %s", printable(component.Name), said(component.Why)))
		}
	}
	if node.Look != nil && !node.Look.Coverage.GetComplete() {
		lines = append(lines, fmt.Sprintf("the agent does not see all of its node; %s says what is missing", command))
	}
	return lines
}

// list prints what the agent lists, and returns what a gate has to know of it.
func (o *getOptions) list(ctx context.Context, q question, out getWriter, errs io.Writer, resource, name string) (k known, err error) {
	if name != "" {
		one, err := q.one(ctx, resource, name)
		if err != nil {
			return k, err
		}
		return k, out.one(one)
	}
	var undecided unjudged
	accepted, inNamespace := 0, false
	k.what = "there are findings of severity %s"
	listed := func(tell func(subject) error) func(subject) error {
		return func(item subject) error {
			inNamespace = inNamespace || item.pod() != nil
			if item.isAccepted() {
				if accepted++; !o.excepted.show {
					return nil
				}
			} else if item.finding != nil {
				k.worst = max(k.worst, item.finding.Severity)
			}
			undecided.add(item)
			return tell(item)
		}
	}
	if o.format == "jsonl" && o.sortBy == "" { // nothing is kept
		if _, err = q.each(ctx, resource, listed(out.line)); err != nil {
			return k, err
		}
		undecided.warn(errs)
		o.excepted.count(errs, accepted)
		return o.outlook(ctx, q.client, k, inNamespace, undecided)
	}
	var items []subject
	position, err := q.each(ctx, resource, listed(func(item subject) error {
		items = append(items, item)
		return nil
	}))
	if err != nil {
		return k, err
	}
	o.sort(resource, items)
	if len(items) == 0 && (o.format == "table" || o.format == "wide") {
		fmt.Fprintf(errs, "No %ss found.\n", resource)
	} else if err := out.list(resource, items, accepted, position); err != nil {
		return k, err
	}
	undecided.warn(errs)
	o.excepted.count(errs, accepted)
	return o.outlook(ctx, q.client, k, inNamespace, undecided)
}

// outlook adds what the agent does not see, and fails where nothing is in the namespace that is
// asked for. inNamespace tells that something listed is.
func (o *getOptions) outlook(ctx context.Context, c *client, k known, inNamespace bool, undecided unjudged) (known, error) {
	if undecided.count > 0 {
		k.unknown = untold(undecided.first)
	}
	if !o.gate.asked() && (o.namespace == "" || inNamespace) {
		return k, nil
	}
	seen, err := c.outlook(ctx, o.gate.asked(), o.namespace)
	if err != nil {
		return k, err
	}
	k.gaps = seen.gaps
	if !inNamespace {
		k.broken = noNamespace(o.namespace, seen.namespaces, "on this agent's node")
	}
	return k, nil
}

func (o *getOptions) sort(resource string, items []subject) {
	by := o.sortBy
	if by == "" {
		by = map[string]string{"container": "pod", "finding": "severity"}[resource]
	}
	slices.SortStableFunc(items, orders[by].compare)
}

// subject is one container or one finding of an agent.
type subject struct {
	node      string           // the agent's, where several are asked
	container *drift.Container // this one
	finding   *drift.Finding   // or that one
	processes int              // of the container; its own list may have been left out
	undecided string           // why the filter could not judge it
}

// isAccepted tells whether it is a finding that an exception accepts.
func (s subject) isAccepted() bool { return s.finding != nil && s.finding.Exception != "" }

func (s subject) kind() string {
	if s.container != nil {
		return "container"
	}
	return "finding"
}

func (s subject) id() string {
	if s.container != nil {
		return s.container.ID
	}
	return s.finding.ID
}

func (s subject) pod() *drift.Pod {
	if s.container != nil {
		return s.container.Pod
	}
	return s.finding.Pod
}

// began is when the container was created, or the finding opened; zero where that is not known.
func (s subject) began() time.Time {
	if s.container != nil {
		return s.container.Created
	}
	return orZero(s.finding.OpenedAt)
}

// called is what people call the container, or the finding's one.
func (s subject) called() string {
	if s.finding != nil {
		return containerOf(*s.finding)
	}
	switch {
	case s.container.Name != "":
		return printable(s.container.Name)
	case s.container.Sandbox:
		return "(sandbox)"
	}
	return cellID(s.container.ID)
}

func fromContainer(m *v1.Container) (subject, error) {
	c, err := rpc.FromProtoContainer(m)
	if err != nil {
		return subject{}, err
	}
	return subject{container: &c, processes: max(int(m.ProcessCount), len(c.Processes)), undecided: m.Undecided}, nil
}

func fromFinding(m *v1.Finding) (subject, error) {
	f, err := rpc.FromProtoFinding(m)
	return subject{finding: &f, undecided: m.GetUndecided()}, err
}

// order is one way to sort.
type order struct {
	only    string // the resource that it is of; "" for both
	compare func(a, b subject) int
}

// orders is the registry of --sort-by.
var orders = map[string]order{
	"pod":       {"", byPod},
	"container": {"", func(a, b subject) int { return cmp.Or(cmp.Compare(a.called(), b.called()), byPod(a, b)) }},
	"id":        {"", func(a, b subject) int { return cmp.Compare(a.id(), b.id()) }},
	"processes": {"container", func(a, b subject) int { return cmp.Or(cmp.Compare(b.processes, a.processes), byPod(a, b)) }},
	"age":       {"", func(a, b subject) int { return cmp.Or(b.began().Compare(a.began()), byPod(a, b)) }},
	"severity": {"finding", func(a, b subject) int {
		return cmp.Or(cmp.Compare(b.finding.Severity, a.finding.Severity), byPod(a, b))
	}},
	"kind": {"finding", func(a, b subject) int { return cmp.Or(cmp.Compare(a.finding.Kind, b.finding.Kind), byPod(a, b)) }},
}

func byPod(a, b subject) int {
	return cmp.Or(cmp.Compare(podOf(a.pod()), podOf(b.pod())), cmp.Compare(a.called(), b.called()), cmp.Compare(a.id(), b.id()))
}

func ordersOf(resource string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(orders)) {
		if only := orders[name].only; only == "" || only == resource {
			names = append(names, name)
		}
	}
	return names
}

// question is what is asked of an agent's lists.
type question struct {
	*client
	filter    string
	namespace string
	view      v1.ContainerView
}

func (q question) takes(item subject) bool {
	ofHandler := item.finding != nil && item.finding.ContainerID == "" // perhaps theirs
	return q.namespace == "" || ofHandler || item.pod() != nil && item.pod().Namespace == q.namespace
}

// each calls tell for all that the agent lists, page by page; position is that of
// the last one.
func (q question) each(ctx context.Context, resource string, tell func(subject) error) (position *v1.Position, err error) {
	var joining joiner
	for token := ""; ; {
		var items []subject
		var next string
		if resource == "container" {
			page, err := q.ListContainers(ctx, &v1.ListContainersRequest{Filter: q.filter, View: q.view, PageToken: token})
			if err != nil {
				return nil, q.explained(ctx, err)
			}
			if items, err = joining.take(page.Containers); err != nil {
				return nil, err
			}
			next, position = page.NextPageToken, page.Position
		} else {
			page, err := q.ListFindings(ctx, &v1.ListFindingsRequest{Filter: q.filter, PageToken: token})
			if err != nil {
				return nil, q.explained(ctx, err)
			}
			for _, message := range page.Findings {
				item, err := fromFinding(message)
				if err != nil {
					return nil, err
				}
				items = append(items, item)
			}
			next, position = page.NextPageToken, page.Position
		}
		for _, item := range items {
			if !q.takes(item) {
				continue
			}
			if err := tell(item); err != nil {
				return nil, err
			}
		}
		if next == "" {
			return position, joining.end()
		}
		if next == token {
			return nil, errors.New("the agent's list does not get on: a page names itself as the next one")
		}
		token = next
	}
}

// joiner puts containers together that come in parts.
type joiner struct{ waiting []*v1.Container }

// take returns the containers that are whole now.
func (j *joiner) take(parts []*v1.Container) (whole []subject, err error) {
	j.waiting = append(j.waiting, parts...)
	end := len(j.waiting)
	for end > 0 && j.waiting[end-1].GetMore() {
		end--
	}
	joined, err := rpc.JoinParts(j.waiting[:end])
	if err != nil {
		return nil, err
	}
	j.waiting = slices.Clone(j.waiting[end:])
	for _, message := range joined {
		item, err := fromContainer(message)
		if err != nil {
			return nil, err
		}
		whole = append(whole, item)
	}
	return whole, nil
}

func (j *joiner) end() error {
	_, err := rpc.JoinParts(j.waiting)
	return err
}

// one finds the only one that the name means.
func (q question) one(ctx context.Context, resource, name string) (subject, error) {
	found, names, err := q.named(ctx, resource, name)
	if err != nil {
		return subject{}, err
	}
	where := "on this agent's node"
	if q.namespace != "" {
		where = "in namespace " + printable(q.namespace)
	}
	switch {
	case len(found) == 0:
		return subject{}, fmt.Errorf("there is no %s %s %s; capdrift get %ss lists them%s", resource, printable(name), where, resource, nearest(name, names))
	case len(found) > 1:
		var names []string
		for _, item := range found[:min(len(found), 8)] {
			names = append(names, fmt.Sprintf("%s/%s (%s)", podOf(item.pod()), item.called(), shortID(item.id())))
		}
		return subject{}, fmt.Errorf("%d %ss are called %s: %s; name one by its id", len(found), resource, printable(name), strings.Join(names, ", "))
	}
	return found[0], nil
}

// named finds what the name may mean. A single one comes with all that is known of it; without
// one, known are the names that there are.
func (q question) named(ctx context.Context, resource, name string) (found []subject, known []string, err error) {
	brief := q
	brief.view = v1.ContainerView_CONTAINER_VIEW_BASIC
	_, err = brief.each(ctx, resource, func(item subject) error {
		if item.id() == name { // no other can be meant
			found = append([]subject{item}, found...)
			return errFound
		}
		if item.finding != nil && len(name) >= 4 && strings.HasPrefix(item.id(), name) ||
			item.container != nil && (!item.container.Sandbox || strings.HasPrefix(item.id(), name)) && isNamed(*item.container, name) {
			found = append(found, item)
		}
		if item.container != nil {
			known = append(known, namesFor(*item.container)...)
		}
		return nil
	})
	switch {
	case errors.Is(err, errFound):
		found = found[:1]
	case err != nil:
		return nil, nil, err
	}
	if len(found) == 1 && resource == "container" && q.view == v1.ContainerView_CONTAINER_VIEW_FULL {
		found[0], err = q.whole(ctx, found[0].id())
	}
	return found, known, err
}

var errFound = errors.New("found")

// whole gets one container with its processes.
func (q question) whole(ctx context.Context, id string) (subject, error) {
	var joining joiner
	for token := ""; ; {
		part, err := q.GetContainer(ctx, &v1.GetContainerRequest{Id: id, PageToken: token})
		if err != nil {
			return subject{}, q.explained(ctx, err)
		}
		items, err := joining.take([]*v1.Container{part.GetContainer()})
		switch {
		case err != nil:
			return subject{}, err
		case len(items) == 1:
			return items[0], nil
		case part.NextPageToken == "" || part.NextPageToken == token:
			return subject{}, errors.New("the agent announced more of the container, and it did not come")
		}
		token = part.NextPageToken
	}
}

// unjudged counts what a filter could not judge.
type unjudged struct {
	count int
	first string
}

func (u *unjudged) add(item subject) {
	if item.undecided == "" {
		return
	}
	if u.count++; u.count == 1 {
		u.first = fmt.Sprintf("%s/%s: %s", podOf(item.pod()), item.called(), said(item.undecided))
	}
}

func (u *unjudged) warn(errs io.Writer) {
	if u.count > 0 {
		fmt.Fprintf(errs, "capdrift: warning: --filter could not judge %d of those listed, for what it asks about was not seen; the first: %s\n", u.count, u.first)
	}
}
