package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/clientcmd"

	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube"
)

// kubeOptions are kubectl's own flags: which cluster, and who asks it.
type kubeOptions struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
}

func (o *kubeOptions) addFlags(flags *pflag.FlagSet) {
	o.rules = clientcmd.NewDefaultClientConfigLoadingRules()
	flags.StringVar(&o.rules.ExplicitPath, "kubeconfig", "", "Path to the kubeconfig file to use for CLI requests")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.ContextOverrideFlags.Namespace.LongName = "" // each command has its own, and says of what
	clientcmd.BindOverrideFlags(&o.overrides, flags, names)
}

func (o *kubeOptions) loader() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.rules, &o.overrides)
}

// fleetOptions are the flags of every command that asks the agents of a cluster.
type fleetOptions struct {
	kube         *kubeOptions
	agents       string // their namespace
	nodes        []string
	selector     kube.NodeSelector // in place of nodes
	parallel     int
	perNode      time.Duration
	timeout      time.Duration
	allowMissing bool
}

func (o *fleetOptions) addFlags(cmd *cobra.Command, perNode, timeout time.Duration) {
	flags := cmd.Flags()
	flags.StringVar(&o.agents, "agent-namespace", "capdrift", "the namespace of the agents' pods; who may make pods there is believed")
	flags.StringArrayVar(&o.nodes, "node", nil, "ask only the agent of this node; may be repeated (default: every node of the cluster)")
	flags.StringVar(&o.selector.Labels, "node-selector", "", "ask only the agents of nodes with these labels, as kubectl's --selector: pool=gpu,zone!=a")
	flags.StringVar(&o.selector.Fields, "node-field-selector", "", "ask only the agents of nodes with these fields, as kubectl's --field-selector: spec.unschedulable=false")
	flags.IntVar(&o.parallel, "parallel", 16, "how many agents are asked at the same time")
	if perNode > 0 { // else it is followed for as long as it is there
		flags.DurationVar(&o.perNode, "node-timeout", perNode, "how long one node may take; 0 for no limit")
	}
	flags.DurationVar(&o.timeout, "timeout", timeout, "how long all of it may take; 0 for no limit")
	flags.BoolVar(&o.allowMissing, "allow-missing", false, "do not fail because a node does not answer")
	if err := cmd.RegisterFlagCompletionFunc("node", o.completeNodes); err != nil {
		panic(err) // a flag of this name was just defined
	}
}

func (o *fleetOptions) validate() error {
	switch {
	case o.agents == "":
		return errors.New("--agent-namespace is empty: a pod of any namespace could then pose as an agent")
	case o.parallel < 1:
		return fmt.Errorf("--parallel=%d: want a number above zero", o.parallel)
	case o.perNode < 0 || o.timeout < 0:
		return errors.New("--node-timeout and --timeout: want a time, or 0 for no limit")
	case slices.Contains(o.nodes, ""):
		return errors.New("--node is empty")
	}
	if len(o.nodes) > 0 && o.selects() {
		return errNamedAndSelected
	}
	if _, err := labels.Parse(o.selector.Labels); err != nil {
		return fmt.Errorf("--node-selector=%s: %w; want such as pool=gpu", printable(o.selector.Labels), err)
	}
	if _, err := fields.ParseSelector(o.selector.Fields); err != nil {
		return fmt.Errorf("--node-field-selector=%s: %w; want such as spec.unschedulable=false", printable(o.selector.Fields), err)
	}
	return nil
}

var errNamedAndSelected = errors.New("nodes are named, and chosen by --node-selector or --node-field-selector: want one of the two")

// selects reports whether nodes are chosen by their labels or fields.
func (o *fleetOptions) selects() bool { return o.selector != kube.NodeSelector{} }

// selected lists the nodes that are chosen by labels and fields, or all. It is an error where
// nodes are chosen and none is there.
func (o *fleetOptions) selected(ctx context.Context, cluster *kube.Cluster) ([]kube.Node, error) {
	nodes, err := cluster.Nodes(ctx, o.selector)
	if err == nil && len(nodes) == 0 && o.selects() {
		err = fmt.Errorf("no node of the cluster has what --node-selector=%s and --node-field-selector=%s ask for; kubectl get nodes --show-labels shows what there is",
			printable(o.selector.Labels), printable(o.selector.Fields))
	}
	return nodes, err
}

// client is what the flags of a command that asks one agent are here.
func (o *fleetOptions) client() clientOptions { return clientOptions{timeout: o.timeout} }

// completeNodes offers the cluster's nodes, quickly or not at all.
func (o *fleetOptions) completeNodes(cmd *cobra.Command, _ []string, begun string) (names []string, _ cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
	defer cancel()
	cluster, err := kube.NewCluster(o.kube.loader())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cluster.Close()
	nodes, _ := cluster.Nodes(ctx, kube.NodeSelector{}) // a shell has no place for an error
	for _, node := range nodes {
		if !node.Windows && node.Virtual == "" && strings.HasPrefix(node.Name, begun) {
			names = append(names, node.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// fleet is the cluster whose agents are asked.
type fleet struct {
	*fleetOptions
	cluster *kube.Cluster
	members []member
	chosen  bool // some nodes are asked, and not all
	named   bool // by a person
	// unlisted says why it is not known whether these are all nodes, nil when it is.
	unlisted error
	apart    []drift.Gap // nodes on which no agent can be, and that nobody asked for by name
}

// member is one node.
type member struct {
	node  string
	agent clientOptions
	why   error // why it cannot be asked; nil when it can
}

// open finds the agents of the nodes that a person names, or of all. Only what keeps all of them
// from being asked is an error, and a name that no node has.
func (o *fleetOptions) open(ctx context.Context, named []string) (*fleet, error) {
	return o.openOn(ctx, named, true)
}

// openOn finds the agents of nodes, which exist where nobody named them.
func (o *fleetOptions) openOn(ctx context.Context, nodes []string, named bool) (*fleet, error) {
	if named && len(nodes) > 0 && o.selects() {
		return nil, usageError{errNamedAndSelected}
	}
	cluster, err := kube.NewCluster(o.kube.loader())
	if err != nil {
		return nil, err
	}
	f := &fleet{fleetOptions: o, cluster: cluster, chosen: len(nodes) > 0, named: named}
	if err := f.find(ctx, nodes); err != nil {
		cluster.Close()
		return nil, err
	}
	return f, nil
}

func (f *fleet) close() { f.cluster.Close() }

// version asks for the cluster's version.
func (o *fleetOptions) version(ctx context.Context) (int, error) {
	cluster, err := kube.NewCluster(o.kube.loader())
	if err != nil {
		return 0, err
	}
	defer cluster.Close()
	return cluster.Version(ctx)
}

// find fills the members: the nodes that are named, or all.
func (f *fleet) find(ctx context.Context, nodes []string) error {
	one := ""
	if len(nodes) == 1 {
		one = nodes[0]
	}
	agents, err := f.cluster.Agents(ctx, f.agents, one)
	if err != nil {
		return fmt.Errorf("the agents cannot be found: %w", err)
	}
	problems := make(map[string]string)
	f.apart = nil
	if f.named {
		if err := f.exist(ctx, nodes, agents); err != nil {
			return err
		}
	}
	if len(nodes) == 0 {
		all, err := f.selected(ctx, f.cluster)
		var forbidden *kube.ForbiddenError
		switch {
		case errors.As(err, &forbidden) && !f.selects():
			f.unlisted, nodes = err, slices.Collect(maps.Keys(agents))
		case err != nil:
			return err
		}
		for _, node := range all {
			if gap := unwatchable(node, agents[node.Name]); gap != nil {
				f.apart = append(f.apart, *gap)
				continue
			}
			nodes = append(nodes, node.Name)
			problems[node.Name] = node.Problem
		}
		if len(agents) == 0 {
			return fmt.Errorf("no agent runs in namespace %s: install it (helm upgrade --install capdrift deploy/chart --namespace %[1]s --create-namespace), or say where it is with --agent-namespace", printable(f.agents))
		}
	}
	slices.Sort(nodes)
	f.members = nil
	for _, node := range slices.Compact(nodes) {
		m := member{node: node, agent: f.client()}
		way := &forwarding{cluster: f.cluster, node: node, namespace: f.agents, problem: problems[node]}
		if m.why = way.take(agents); m.why != nil {
			m.why = way.unconnected(connecting, m.why)
		}
		m.agent.forward = way
		f.members = append(f.members, m)
	}
	return nil
}

// exist is an error for a node that is named and not in the cluster. One on which an agent runs
// is, so that others alone take the right to list nodes.
func (f *fleet) exist(ctx context.Context, named []string, agents map[string]kube.AgentPod) error {
	if !slices.ContainsFunc(named, func(node string) bool { return agents[node].Name == "" }) {
		return nil
	}
	all, err := f.cluster.Nodes(ctx, kube.NodeSelector{})
	var forbidden *kube.ForbiddenError
	if err != nil && !errors.As(err, &forbidden) {
		return err
	}
	names := slices.Collect(maps.Keys(agents))
	for _, node := range all {
		names = append(names, node.Name)
	}
	slices.Sort(names)
	for _, node := range named {
		switch {
		case slices.Contains(names, node):
		case forbidden != nil:
			return fmt.Errorf("no agent runs on a node %s, and whether there is one is not known%s: %w", printable(node), nearest(node, names), forbidden)
		default:
			return fmt.Errorf("there is no node %s in the cluster%s", printable(node), nearest(node, names))
		}
	}
	return nil
}

// noAgentError is a node on which no agent runs, however often it is asked.
type noAgentError struct{ error }

func (e noAgentError) Unwrap() error { return e.error }

// forwarding reaches the agent of one node by a port that the API server forwards.
type forwarding struct {
	cluster         *kube.Cluster
	node, namespace string
	problem         string // of the node; "" for none

	mu    sync.Mutex
	pod   kube.AgentPod
	fresh bool // the pod was just found
}

// dial connects. Whoever comes again looks for the pod again: it may be another.
func (f *forwarding) dial(ctx context.Context, trouble *trouble) (net.Conn, error) {
	pod, err := f.current(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := f.cluster.Dial(ctx, pod)
	if err != nil {
		return nil, err
	}
	return &refusable{Conn: conn, trouble: trouble}, nil
}

func (f *forwarding) current(ctx context.Context) (kube.AgentPod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fresh {
		f.fresh = false
		return f.pod, nil
	}
	pods, err := f.cluster.Agents(ctx, f.namespace, f.node)
	if err != nil {
		return kube.AgentPod{}, err
	}
	err = f.take(pods)
	f.fresh = false
	return f.pod, err
}

// take chooses the node's pod among the agents'.
func (f *forwarding) take(pods map[string]kube.AgentPod) error {
	pod, found := pods[f.node]
	switch {
	case !found:
		return noAgentError{fmt.Errorf("no agent's pod is on it in namespace %s: does the DaemonSet tolerate the node's taints?", printable(f.namespace))}
	case pod.Problem != "":
		return errors.New(pod.Problem)
	}
	f.pod, f.fresh = pod, true
	return nil
}

// unconnected says why there is no connection. What comes of the API server is
// explained already.
func (f *forwarding) unconnected(at step, cause error) error {
	err := cause
	if at != connecting {
		err = fmt.Errorf("the agent's port cannot be reached in its pod (%s): it must listen in plaintext on the pod's loopback (api.plaintextLoopback)", said(cause.Error()))
	}
	if f.problem != "" {
		err = fmt.Errorf("%s; %w", f.problem, err)
	}
	return err
}

// mostSaid bounds what is taken of one agent, for one command: the list of processes of
// a node of a hundred thousand is half of it.
const mostSaid = 64 << 20

// answered is what one node said, or why it said nothing.
type answered[T any] struct {
	node string
	told *v1.GetNodeResponse // what it is, and what it does not see
	said T
	why  error
}

// gather asks all agents, several at the same time, and returns their answers in
// the members' order. A question that is wrong is wrong for all: then it is an error.
func gather[T any](ctx context.Context, f *fleet, errs io.Writer, question func(ctx context.Context, c *client) (T, error)) ([]answered[T], error) {
	answers := make([]answered[T], len(f.members))
	seen := progress{to: errs, of: len(f.members)}
	seen.show()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(f.parallel)
	for i := range f.members {
		group.Go(func() error {
			answers[i] = one(ctx, f, &f.members[i], question)
			seen.done()
			var usage usageError
			if errors.As(answers[i].why, &usage) {
				return answers[i].why
			}
			return nil
		})
	}
	err := group.Wait()
	seen.clear()
	return answers, err
}

func one[T any](ctx context.Context, f *fleet, m *member, question func(ctx context.Context, c *client) (T, error)) (a answered[T]) {
	a.node = m.node
	if m.why != nil {
		a.why = m.why
		return a
	}
	ctx, cancel := within(ctx, timeoutError{f.perNode, "--node-timeout"})
	defer cancel()
	agent := m.agent
	agent.most = mostSaid
	c, err := agent.dial()
	if err != nil {
		a.why = err
		return a
	}
	defer c.close()
	if a.told, err = c.GetNode(ctx, &v1.GetNodeRequest{}); err != nil {
		a.why = c.explained(ctx, err)
		return a
	}
	whole, err := question(ctx, c)
	if err == nil {
		a.said = whole
		return a
	}
	a.why = err // half an answer is none
	if version := a.told.GetAgent().GetVersion(); version != versionText() {
		a.why = fmt.Errorf("%w (the agent is %s, this is %s)", a.why, said(version), versionText())
	}
	return a
}

// progress says on a terminal how many have answered.
type progress struct {
	to io.Writer
	of int

	mu sync.Mutex
	n  int
}

func (p *progress) show() {
	if p.of > 1 && isTerminal(p.to) {
		fmt.Fprintf(p.to, "\r%d of %d nodes asked\x1b[K", p.n, p.of)
	}
}

func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	p.show()
}

func (p *progress) clear() {
	if p.of > 1 && isTerminal(p.to) {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}

// silence is a node without an answer.
type silence struct {
	node string
	why  error
}

func silent[T any](answers []answered[T]) (list []silence) {
	for _, a := range answers {
		if a.why != nil {
			list = append(list, silence{a.node, a.why})
		}
	}
	return list
}

// fleetSchema names the form of what several nodes said.
const fleetSchema = "capdrift.fleet/v1"

// fleetForm is what the nodes of a cluster said, each in the form in which it is
// published for one.
type fleetForm struct {
	Schema   string       `json:"schema"`
	Complete bool         `json:"complete"` // every node of those asked for answered
	Nodes    []answerForm `json:"nodes"`
}

type answerForm struct {
	NodeName string `json:"nodeName"`
	Answer   any    `json:"answer"` // null where there is none
	Error    string `json:"error,omitempty"`
}

// silentLine is a node without an answer, among lines of JSON.
type silentLine struct {
	Schema   string `json:"schema"`
	Type     string `json:"type"` // no_answer
	NodeName string `json:"nodeName"`
	Error    string `json:"error"`
}

func formOf[T any](f *fleet, answers []answered[T], form func(answered[T]) any) fleetForm {
	all := fleetForm{Schema: fleetSchema, Complete: f.unlisted == nil, Nodes: []answerForm{}}
	for _, a := range answers {
		one := answerForm{NodeName: a.node}
		if a.why != nil {
			all.Complete, one.Error = false, a.why.Error()
		} else {
			one.Answer = form(a)
		}
		all.Nodes = append(all.Nodes, one)
	}
	return all
}

func writeSilentLines(w io.Writer, list []silence) error {
	for _, s := range list {
		if err := writeJSONLine(w, silentLine{fleetSchema, "no_answer", s.node, s.why.Error()}); err != nil {
			return err
		}
	}
	return nil
}

// writeSilence has a row for each node without an answer, below what others said.
func writeSilence(w io.Writer, t table, below bool, list []silence) error {
	if len(list) == 0 {
		return nil
	}
	if below && !t.noHeaders {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	writer := t.newWriter(pretty.Row{"node", "no answer"})
	for _, s := range list {
		writer.AppendRow(pretty.Row{printable(s.node), oneLine(s.why)})
	}
	_, err := fmt.Fprintln(w, trimLines(writer.Render()))
	return err
}

// oneLine is an error in a cell.
func oneLine(err error) string {
	return printable(strings.Join(strings.Fields(err.Error()), " "))
}

// finish says what is not known of the fleet, and makes an error of it unless that
// is allowed. A node without an agent may be accepted by name.
func (f *fleet) finish(errs io.Writer, list []silence, gate *gateOptions) error {
	list = slices.DeleteFunc(slices.Clone(list), func(s silence) bool {
		var without noAgentError
		return errors.As(s.why, &without) && gate.accepts(drift.Gap{Code: drift.GapNoAgent, Node: s.node, Object: drift.WholeNode})
	})
	if f.unlisted != nil {
		fmt.Fprintf(errs, "capdrift: warning: only nodes with an agent are known: %s\n", oneLine(f.unlisted))
	}
	for _, gap := range f.apart {
		if !gate.asked() { // which names it otherwise
			fmt.Fprintf(errs, "capdrift: not asked: %s: %s\n", printable(gap.Node), gap.Why)
		}
	}
	switch {
	case f.allowMissing:
	case len(list) > 0:
		return fmt.Errorf("%d of %s did not answer, so nothing is known of what runs there (--allow-missing accepts that)", len(list), many(len(f.members), "node"))
	case f.unlisted != nil:
		return errors.New("whether every node has an agent is not known (--allow-missing accepts that)")
	}
	return nil
}

// gaps are those of the cluster: nodes on which no agent can be.
func (f *fleet) gaps() []drift.Gap { return slices.Clone(f.apart) }

// unwatchable is the gap of a node on which no agent can be; nil for others. A virtual node is what
// its labels say, which its own kubelet may have written, so one whose agent is Ready is asked.
func unwatchable(node kube.Node, agent kube.AgentPod) *drift.Gap {
	gap := drift.Gap{Node: node.Name, Object: drift.WholeNode}
	switch {
	case node.Windows:
		gap.Code, gap.Why = drift.GapWindowsNode, "it runs Windows, where no agent can be"
	case node.Virtual != "" && (agent.Name == "" || agent.Problem != ""):
		gap.Code, gap.Why = drift.GapVirtualNode, node.Virtual+", where no agent can be"
	default:
		return nil
	}
	return &gap
}

// otherVersions says which agents are not of this program's version.
func otherVersions[T any](errs io.Writer, answers []answered[T]) {
	var nodes []string
	other := ""
	for _, a := range answers {
		if version := a.told.GetAgent().GetVersion(); a.why == nil && version != versionText() {
			nodes, other = append(nodes, printable(a.node)), version
		}
	}
	if len(nodes) > 0 {
		const most = 4
		more := ""
		if len(nodes) > most {
			more = fmt.Sprintf(" and %d more", len(nodes)-most)
		}
		fmt.Fprintf(errs, "capdrift: warning: another version than this (%s) runs on %s%s: %s; what the two do not both know is not shown\n",
			versionText(), strings.Join(nodes[:min(len(nodes), most)], ", "), more, said(other))
	}
}

// naming writes lines of JSON that each say of which node they are. Each Write must
// be one object, as a json.Encoder's are.
type naming struct {
	io.Writer
	node string
}

func (n naming) Write(line []byte) (int, error) {
	name := new(strings.Builder)
	if err := writeJSONLine(name, n.node); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(n.Writer, "{\"nodeName\":%s,%s", strings.TrimSpace(name.String()), line[1:]); err != nil {
		return 0, err
	}
	return len(line), nil
}

// whom are the options that say whom a command asks: the agents of a cluster or,
// without a fleet, one agent.
func whom(client *clientOptions, fleet *fleetOptions) interface{ validate() error } {
	if fleet != nil {
		return fleet
	}
	return client
}
