package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// pluginName is how kubectl's users call this program.
const pluginName = "kubectl capdrift"

// The names under which kubectl looks for a plugin, and for its completion
// (https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/).
const (
	pluginFile     = "kubectl-capdrift"
	completionFile = "kubectl_complete-capdrift"
)

// arguments are those of the program under each of its names: as kubectl-capdrift
// it is capdrift kubectl.
func arguments(program []string) []string {
	switch strings.TrimSuffix(filepath.Base(program[0]), ".exe") {
	case pluginFile:
		return append([]string{"kubectl"}, program[1:]...)
	case completionFile:
		return append([]string{"kubectl", cobra.ShellCompRequestCmd}, program[1:]...)
	}
	return program[1:]
}

// kubectlCommand stands among the others for kubectlRoot.
func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Ask the agents of a cluster, with your own kubeconfig: kubectl capdrift",
		DisableFlagParsing: true,
		RunE:               func(*cobra.Command, []string) error { return fmt.Errorf("want %s COMMAND", pluginName) },
	}
}

// kubectlRoot is the plugin: what asks one agent asks all of a cluster there.
func kubectlRoot() *cobra.Command {
	root := &cobra.Command{
		Use:         pluginFile,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: pluginName},
		Short:       "Ask the agents of a cluster what its containers hold, beside what was declared",
		Long: `Ask the capdrift agents of a cluster's nodes what its containers hold, beside what was declared for
them, as one person with his own kubeconfig and rights.

Each agent is reached by a port that the API server forwards to its pod, so Kubernetes' access
control decides: it takes the right to create pods/portforward in the agents' namespace
(docs/kubectl.md has the roles). No port is opened on this machine. Pod specs are asked of the API
server too: the agents do not have them.

A node that does not answer is said in every output with the reason, and makes the exit status 1
unless --allow-missing is given. -n narrows what is shown to a namespace; without it all are shown,
and what is in none: a finding that is hidden by a default is a finding that is missed.`,
	}
	var kube kubeOptions
	kube.addFlags(root.PersistentFlags())
	fleet := func() *fleetOptions { return &fleetOptions{kube: &kube} }
	for _, one := range []struct {
		cmd           *cobra.Command
		long, example string
	}{
		{getCommand(fleet()), getFleetHelp, getFleetExample},
		{watchCommand(fleet()), watchFleetHelp, watchFleetExample},
		{scanCommand(fleet()), scanFleetHelp, scanFleetExample},
		{auditCommand(fleet()), auditFleetHelp, auditFleetExample},
	} {
		one.cmd.Long, one.cmd.Example = one.long, one.example
		addAllNamespaces(one.cmd)
		root.AddCommand(one.cmd)
	}
	root.AddCommand(explainFleetCommand(fleet()), policyCommand(), versionCommand())
	return root
}

// addAllNamespaces adds kubectl's -A. It is how things are without -n, and wins over it.
func addAllNamespaces(cmd *cobra.Command) {
	cmd.Flags().BoolP("all-namespaces", "A", false, "show all namespaces, whatever -n says; the default")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if all, err := cmd.Flags().GetBool("all-namespaces"); err != nil || !all {
			return err
		}
		return cmd.Flags().Set("namespace", "")
	}
}

const (
	getFleetHelp = `Ask the agents of all nodes, or of those that --node names, what they know now: the nodes with what
is seen of them and what is not, the containers, or the findings that are open.

A container is named by its id or the start of it, by POD/CONTAINER or NAMESPACE/POD/CONTAINER, or
by its name; a finding by its id or the start of it; a node by its name.

--filter is judged by the agents, which know no pod specs: declared.pod is unknown to them. In -o
json, jsonl and yaml containers have the pod spec's layer too. JSON and YAML hold for each node what
capdrift get prints on it (docs/kubectl.md).

With --fail-on the list of findings is a gate, which passes only where the agents see all that is
asked for. Gaps that stay, nodes without an agent too, can be accepted by name in --exceptions, or
all with --allow-incomplete (docs/exit-status.md).

Exit status: 0 done, 1 could not do it (a name that matches nothing too), a node did not answer, or
--fail-on could not be told, 2 wrong usage, 3 findings at or above --fail-on, or by --fail-on-expired.`
	getFleetExample = `  kubectl capdrift get nodes
  kubectl capdrift get findings -n shop
  kubectl capdrift get findings --filter 'finding.severity >= severity("high")' -o json
  kubectl capdrift get containers --node worker-3 -o wide
  kubectl capdrift get container web-7d4b9c6f5-x2kqp/nginx -o yaml
  kubectl capdrift get findings --watch`

	watchFleetHelp = `Print what the agents of all nodes, or of those that --node names, know now, a line each, and then
each change as they see it. A node whose agent cannot be reached is said to be lost, asked again
with pauses, and said to be back; the watch then goes on where it was. Nodes that join the cluster
are watched too.

--until-finding ends the watch when a finding of this severity, or a worse one, is open anywhere.

Exit status: 0 ended by a signal or --timeout, 1 could not do it (with --until-finding also when at
the end not every node was there, not all was seen, or changes were lost), 2 wrong usage, 3 a
finding at or above --until-finding is open, or by --fail-on-expired.`
	watchFleetExample = `  kubectl capdrift watch
  kubectl capdrift watch --node worker-3 -n shop
  kubectl capdrift watch containers -o jsonl
  kubectl capdrift watch --until-finding high --timeout 10m || echo 'something drifted, or nobody could tell'`

	scanFleetHelp = `Have the agents of all nodes, or of those that --node names, look now, and print their reports as one:
the findings of all nodes, the worst first, what they mean, and what was not seen. Pod specs are
asked of the API server and joined, so that all four layers are known, and what the runtime was told
is held against what the pod spec says.

--fail-on passes only where everything was seen. Gaps that stay, nodes without an agent too, can be
accepted by name in --exceptions, or all with --allow-incomplete (docs/exit-status.md).

Exit status: 0 done, 1 could not do it (a name that matches nothing too), a node did not answer, or
--fail-on could not be told, 2 wrong usage, 3 findings at or above --fail-on, or by --fail-on-expired.`
	scanFleetExample = `  kubectl capdrift scan
  kubectl capdrift scan -n shop --wide
  kubectl capdrift scan --node worker-3 -o json > worker-3.json
  kubectl capdrift scan --fail-on high`

	auditFleetHelp = `Judge the containers of all nodes, or of those that --node names, by hardening rules: on paper, by what
was declared for them, pod specs included, and in the kernel, by what their processes and threads
hold. The rules are put here, to what the agents see: packs and exceptions are files of yours, or
built in (kubectl capdrift policy list; docs/policy.md).

--fail-on counts what fails on paper or in the kernel, and drift findings, unless an exception
accepts them. What could not be seen or judged lets nothing pass: then the status is 1. Gaps that
stay, nodes without an agent too, can be accepted by name in --exceptions, or all with
--allow-incomplete (docs/exit-status.md).

Exit status: 0 done, 1 could not do it (a name that matches nothing too), a node did not answer, or
--fail-on could not be told, 2 wrong usage, 3 something fails at or above --fail-on, or by
--fail-on-expired.`
	auditFleetExample = `  kubectl capdrift audit --pack pss-restricted -n shop
  kubectl capdrift audit --pack cis --exceptions exceptions.yaml --fail-on high
  kubectl capdrift audit -o sarif > cluster.sarif`
)
