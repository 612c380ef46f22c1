package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube"
	"github.com/capdrift/capdrift/policy"
)

// explainFleetOptions are the flags of `kubectl capdrift explain`.
type explainFleetOptions struct {
	fleet *fleetOptions
	packs packOptions

	namespace string
	container string
	format    string
	color     string
}

func explainFleetCommand(fleet *fleetOptions) *cobra.Command {
	o := explainFleetOptions{fleet: fleet}
	cmd := &cobra.Command{
		Use:   "explain KIND/NAME|POD [CAPABILITY…]",
		Short: "Say where each capability of a pod's or workload's containers came from or went, hop by hop",
		Long: `Say for each container of a pod, or of all pods of a workload, where each capability appeared or
vanished on its way from the pod spec over the CRI config and the OCI spec to the kernel, and why.
The agents of the pods' nodes look now; the pod specs are asked of the API server.

The kinds are ` + strings.Join(kube.Kinds(), ", ") + ` and their longer names; a name alone is a pod's. As with
kubectl the namespace is the kubeconfig's unless -n is given. Capabilities are named in any
spelling; without any, all are explained that some layer names or holds.

With --pack it also says which of the pack's rules the container fails, on paper and in the kernel,
and shows one securityContext that satisfies them.

Exit status: 0 done, 1 could not do it, or a pod's node did not answer, 2 wrong usage.`,
		Example: `  kubectl capdrift explain deploy/web
  kubectl capdrift explain web-7d4b9c6f5-x2kqp -c nginx SYS_ADMIN -n shop
  kubectl capdrift explain sts/db --pack pss-restricted
  kubectl capdrift explain job/import -o json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			asked, err := o.validate(args)
			if err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0], asked) })(cmd, args)
		},
	}
	fleet.addFlags(cmd, time.Minute, 5*time.Minute)
	o.packs.addFlags(cmd, "say what this pack's rules make of the container too: one that is built in, or a file")
	flags := cmd.Flags()
	flags.StringVarP(&o.namespace, "namespace", "n", "", "the namespace of what is explained (default: the kubeconfig's)")
	flags.StringVarP(&o.container, "container", "c", "", "only the container of this name")
	flags.StringVarP(&o.format, "output", "o", "text", "output format: text, json, yaml")
	flags.StringVar(&o.color, "color", "auto", "color the text: auto (on a terminal, unless NO_COLOR is set), always, never")
	complete(cmd, "output", "text", "json", "yaml")
	complete(cmd, "color", "auto", "always", "never")
	cmd.ValidArgsFunction = completeKinds
	return cmd
}

// completeKinds offers the kinds; whose they are, kubectl itself completes better.
func completeKinds(_ *cobra.Command, args []string, _ string) (kinds []string, _ cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, kind := range kube.Kinds() {
		kinds = append(kinds, kind+"/")
	}
	return kinds, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// target reads KIND/NAME, or the NAME of a pod.
func target(text string) (kind, name string) {
	kind, name, both := strings.Cut(text, "/")
	if !both {
		return "pod", kind
	}
	return strings.ToLower(kind), name
}

func (o *explainFleetOptions) validate(args []string) (asked capdecode.Set, err error) {
	kind, name := target(args[0])
	switch {
	case !kube.IsKind(kind):
		return 0, fmt.Errorf("%s: want KIND/NAME with one of %s, or a pod's name", printable(args[0]), strings.Join(kube.Kinds(), ", "))
	case name == "" || strings.Contains(name, "/"):
		return 0, fmt.Errorf("%s: want KIND/NAME or a pod's name; the container is named with -c, the namespace with -n", printable(args[0]))
	case !slices.Contains([]string{"text", "json", "yaml"}, o.format):
		return 0, fmt.Errorf("--output=%s: want text, json or yaml", printable(o.format))
	}
	if err := (&outputOptions{format: "table", color: o.color}).validate(); err != nil {
		return 0, err
	}
	if err := o.fleet.validate(); err != nil {
		return 0, err
	}
	return capdecode.ParseSet(strings.Join(args[1:], ","), newestCap)
}

func (o *explainFleetOptions) run(cmd *cobra.Command, named string, asked capdecode.Set) error {
	rules, err := o.packs.asked(cmd, o.fleet.version)
	if err != nil {
		return printableError(err)
	}
	limits, errs := o.fleet.client(), cmd.ErrOrStderr()
	ctx, cancel := limits.within(cmd.Context())
	defer cancel()
	pods, err := o.pods(ctx, named)
	if err != nil {
		return err
	}
	var nodes []string
	for _, pod := range pods {
		nodes = append(nodes, pod.Node)
	}
	f, err := o.fleet.openOn(ctx, nodes, false)
	if err != nil {
		return err
	}
	defer f.close()
	reports, err := f.look(ctx, errs, "", false)
	if err != nil {
		return err
	}
	answers := make([]answered[[]page], len(reports))
	explained := 0
	which := "running container"
	if o.container != "" {
		which += " " + printable(o.container)
	}
	var unseen []string
	for i, r := range reports {
		answers[i] = answered[[]page]{node: r.node, told: r.told, why: r.why, said: []page{}}
		if r.why != nil {
			continue
		}
		for _, pod := range pods {
			if pod.Node != r.node {
				continue // whatever this agent says of it
			}
			its := o.pages(r.said, pod, asked, rules)
			if answers[i].said = append(answers[i].said, its...); len(its) == 0 {
				unseen = append(unseen, fmt.Sprintf("the agent of %s sees no %s of %s", printable(r.node), which, printable(pod.Namespace+"/"+pod.Name)))
			}
			explained += len(its)
		}
	}
	if err := o.write(cmd, f, answers); err != nil {
		return err
	}
	otherVersions(errs, answers)
	if err := f.finish(errs, silent(answers), &gateOptions{}); err != nil {
		return err
	}
	const most = 8
	if more := len(unseen) - most; more > 0 {
		unseen = append(unseen[:most], many(more, "more pod")+" likewise")
	}
	if explained == 0 {
		return errors.New(strings.Join(unseen, "; "))
	}
	for _, pod := range unseen {
		fmt.Fprintln(errs, "capdrift: warning:", pod)
	}
	return nil
}

// pods are those of what is named, each on its node.
func (o *explainFleetOptions) pods(ctx context.Context, named string) ([]kube.PodRef, error) {
	loader := o.fleet.kube.loader()
	cluster, err := kube.NewCluster(loader)
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	namespace := o.namespace
	if namespace == "" {
		if namespace, _, err = loader.Namespace(); err != nil {
			return nil, errors.New("the kubeconfig says no namespace: give one with -n")
		}
	}
	kind, name := target(named)
	pods, err := cluster.PodsOf(ctx, namespace, kind, name)
	if err != nil {
		return nil, err
	}
	nodes := o.fleet.nodes
	if o.fleet.selects() {
		chosen, err := o.fleet.selected(ctx, cluster)
		if err != nil {
			return nil, err
		}
		for _, node := range chosen {
			nodes = append(nodes, node.Name)
		}
	}
	if len(nodes) > 0 {
		pods = slices.DeleteFunc(pods, func(pod kube.PodRef) bool { return !slices.Contains(nodes, pod.Node) })
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%s/%s in namespace %s has no running pod on any node that is asked", printable(kind), printable(name), printable(namespace))
	}
	return pods, nil
}

// pages explains the containers of a pod.
func (o *explainFleetOptions) pages(report drift.Report, pod kube.PodRef, asked capdecode.Set, rules *policy.Policy) (pages []page) {
	for _, c := range report.Containers {
		its := !c.Sandbox && c.Pod != nil && (o.container == "" || c.Name == o.container) && pod.Namespace == c.Pod.Namespace && pod.Name == c.Pod.Name
		if !its {
			continue
		}
		one := explained(report, c, firstOf(c), asked, nil)
		if rules != nil {
			one.Policy = viewOf(report, c, rules)
		}
		pages = append(pages, one)
	}
	slices.SortFunc(pages, func(a, b page) int { return strings.Compare(a.Container.Name, b.Container.Name) })
	return pages
}

func (o *explainFleetOptions) write(cmd *cobra.Command, f *fleet, answers []answered[[]page]) error {
	w := cmd.OutOrStdout()
	if o.format != "text" {
		form := formOf(f, answers, func(a answered[[]page]) any { return a.said })
		if o.format == "json" {
			return writeJSON(w, form)
		}
		return writeYAML(w, form)
	}
	colors := outputOptions{color: o.color}
	t := table{colored: colors.colored(w)}
	for i, a := range answers {
		for j, one := range a.said {
			if i+j > 0 {
				fmt.Fprintln(w)
			}
			if err := one.write(w, t); err != nil {
				return fmt.Errorf("writing the page: %w", err)
			}
		}
	}
	return writeSilence(w, t, true, silent(answers))
}
