package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/capdecode"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/proc"
)

// explainOptions are the flags of `capdrift explain`.
type explainOptions struct {
	lookOptions
	packs packOptions

	namespace string
	format    string
	color     string
}

// page is what explain prints: one container, or one process of it.
type page struct {
	Schema       string          `json:"schema"`
	Node         drift.Node      `json:"node"`
	Runtime      *drift.Runtime  `json:"runtime"`
	TakenAt      time.Time       `json:"takenAt"` // when the node was looked at
	Container    drift.Container `json:"container"`
	PID          int             `json:"pid"` // the process that stands for the kernel; 0 for none
	Capabilities []drift.Account `json:"capabilities"`
	Lineage      *drift.Lineage  `json:"lineage"` // of the process, where it could be read
	Arrival      []string        `json:"arrival"` // the same in words
	Findings     []drift.Finding `json:"findings"`
	Coverage     drift.Coverage  `json:"coverage"`
	Policy       *policyView     `json:"policy,omitempty"` // of the packs that were asked for
}

const explainSchema = "capdrift.explain/v1"

func explainCommand() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain CONTAINER|POD/CONTAINER|PID [CAPABILITY…]",
		Short: "Say where each capability of a container or process came from or went, hop by hop",
		Long: `Say for one container, or one process of it, where each capability appeared or vanished on its
way from the pod spec over the CRI config and the OCI spec to the kernel, and why; and how the
process came to be in the container, as far as /proc tells.

The container is named by its name, by POD/CONTAINER or NAMESPACE/POD/CONTAINER, or by its id or
the start of it; a process by its pid. Capabilities are named in any spelling; without any, all
are explained that some layer names or holds. Where pod specs are not asked for (--kubeconfig,
--kubelet, --pods), the pod's column says "?".

With --pack it also says which of the pack's rules the container fails, on paper and in the kernel,
and shows one securityContext that satisfies them and keeps what the processes are seen to hold; what
nobody can see is marked as a guess.`,
		Example: `  capdrift explain web-7d4b9c6f5-x2kqp/nginx
  capdrift explain 15425 SYS_ADMIN
  capdrift explain nginx --pods pods.yaml -o json
  capdrift explain nginx --pack pss-restricted`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			asked, err := o.validate(args[1:])
			if err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0], asked) })(cmd, args)
		},
	}
	o.addFlags(cmd)
	o.packs.addFlags(cmd, "say what this pack's rules make of the container too: one that is built in, or a file")
	flags := cmd.Flags()
	flags.StringVarP(&o.namespace, "namespace", "n", "", "look for the container in this namespace only")
	flags.StringVarP(&o.format, "output", "o", "text", "output format: text, json, yaml")
	flags.StringVar(&o.color, "color", "auto", "color the text: auto (on a terminal, unless NO_COLOR is set), always, never")
	complete(cmd, "output", "text", "json", "yaml")
	complete(cmd, "color", "auto", "always", "never")
	return cmd
}

func (o *explainOptions) validate(names []string) (asked capdecode.Set, err error) {
	if err := o.lookOptions.validate(); err != nil {
		return 0, err
	}
	if !slices.Contains([]string{"text", "json", "yaml"}, o.format) {
		return 0, fmt.Errorf("--output=%s: want text, json or yaml", o.format)
	}
	if err := (&outputOptions{format: "table", color: o.color}).validate(); err != nil {
		return 0, err
	}
	return capdecode.ParseSet(strings.Join(names, ","), newestCap)
}

func (o *explainOptions) run(cmd *cobra.Command, target string, asked capdecode.Set) error {
	rules, err := o.packs.asked(cmd, o.pods.version())
	if err != nil {
		return printableError(err)
	}
	host := o.host()
	report, err := o.look(cmd.Context(), host)
	if err != nil {
		return err
	}
	c, p, err := o.find(report, target)
	if err != nil {
		return err
	}
	page := explained(report, c, p, asked, host)
	if rules != nil {
		page.Policy = viewOf(report, c, rules)
	}
	w := cmd.OutOrStdout()
	switch o.format {
	case "json":
		err = writeJSON(w, page)
	case "yaml":
		err = writeYAML(w, page)
	default:
		colors := outputOptions{color: o.color}
		err = page.write(w, table{colored: colors.colored(w)})
	}
	if err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	if report.Runtime == nil {
		return fmt.Errorf("what was declared is not known: %s", report.Coverage.Limits[0].Why)
	}
	return nil
}

// find returns the one container that the target names, and the process: the one
// named by its pid, else the container's first.
func (o *explainOptions) find(report drift.Report, target string) (drift.Container, *drift.Process, error) {
	var found []drift.Container
	var known []string
	pid, err := strconv.Atoi(target)
	byPID := err == nil && len(target) < 12 // longer ones are ids
	for _, c := range report.Containers {
		if o.namespace != "" && (c.Pod == nil || c.Pod.Namespace != o.namespace) {
			continue
		}
		at := slices.IndexFunc(c.Processes, func(p drift.Process) bool { return p.PID == pid })
		if byPID && at >= 0 {
			return c, &c.Processes[at], nil
		}
		known = append(known, namesFor(c)...)
		if !byPID && (!c.Sandbox || strings.HasPrefix(c.ID, target)) && isNamed(c, target) {
			found = append(found, c)
		}
	}
	switch {
	case byPID:
		return drift.Container{}, nil, fmt.Errorf("process %d is in no container of this node; capdrift decode --pid %d shows what it holds", pid, pid)
	case len(found) == 0:
		return drift.Container{}, nil, fmt.Errorf("no running container of this node is called %s; capdrift scan --wide lists them%s", printable(target), nearest(target, known))
	case len(found) > 1:
		names := make([]string, 0, len(found))
		for _, c := range found[:min(len(found), 8)] {
			names = append(names, fmt.Sprintf("%s/%s (%s)", podOf(c.Pod), printable(c.Name), shortID(c.ID)))
		}
		return drift.Container{}, nil, fmt.Errorf("%d containers are called %s: %s; name one by NAMESPACE/POD/CONTAINER or by its id", len(found), printable(target), strings.Join(names, ", "))
	}
	return found[0], firstOf(found[0]), nil
}

// firstOf is the container's first process, nil when it was not seen.
func firstOf(c drift.Container) *drift.Process {
	at := slices.IndexFunc(c.Processes, func(p drift.Process) bool { return p.PID == c.InitPID })
	if at < 0 {
		return nil
	}
	return &c.Processes[at]
}

func isNamed(c drift.Container, target string) bool {
	// A container of another namespace is also found by the id that its own tool shows.
	if target == c.Name || len(target) >= 4 && (strings.HasPrefix(c.ID, target) || strings.HasPrefix(c.RuntimeID, target)) {
		return true
	}
	return c.Pod != nil && slices.Contains(namesFor(c), target)
}

// namesFor are the names that a container is asked for by, but for its id.
func namesFor(c drift.Container) []string {
	if c.Pod == nil {
		return []string{c.Name}
	}
	return []string{c.Name, c.Pod.Name, c.Pod.Name + "/" + c.Name, c.Pod.Namespace + "/" + c.Pod.Name + "/" + c.Name}
}

// explained makes the page.
func explained(report drift.Report, c drift.Container, p *drift.Process, asked capdecode.Set, host *proc.FS) page {
	page := page{
		Schema: explainSchema, Node: report.Node, Runtime: report.Runtime, TakenAt: report.TakenAt, Container: c, Findings: []drift.Finding{},
		Capabilities: drift.Explain(report.Node, report.Expectations, c, p, asked), Arrival: []string{}, Coverage: report.Coverage,
	}
	if p != nil {
		page.PID = p.PID
		page.arrive(c, *p, host)
	}
	for _, finding := range report.Findings {
		ofHandler := finding.ContainerID == "" && finding.RuntimeHandler == c.RuntimeHandler && finding.Layer == drift.LayerOCI
		if ofHandler || finding.ContainerID == c.ID && (finding.PID == 0 || p != nil && finding.PID == p.PID) {
			page.Findings = append(page.Findings, finding)
		}
	}
	return page
}

// arrive reads how the process came to be where it is. A process that has ended
// since is explained by what was seen of it.
//
// Without a host it is not to be read from here.
func (p *page) arrive(c drift.Container, process drift.Process, host *proc.FS) {
	if host == nil {
		p.Arrival = append(p.Arrival, fmt.Sprintf("How it came to be here is told on its node only: capdrift explain %d.", process.PID))
		return
	}
	members := make(map[int]bool, len(c.Processes))
	for _, member := range c.Processes {
		members[member.PID] = true
	}
	own, err := host.Lineage(process.PID, members)
	if err != nil {
		p.Arrival = append(p.Arrival, "How it came to be here could not be read: "+err.Error()+".")
		return
	}
	var first drift.Lineage
	if c.InitPID != 0 && c.InitPID != process.PID {
		first, _ = host.Lineage(c.InitPID, members) // ended: then only what is known is compared
	}
	p.Lineage, p.Arrival = &own, drift.Arrival(c, process, own, first)
}

// write prints the page for a person.
func (p page) write(w io.Writer, t table) error {
	var out strings.Builder
	c := p.Container
	fmt.Fprintf(&out, "%s/%s · %s · image %s\n", podOf(c.Pod), printable(c.Name), shortID(c.ID), printable(c.Image))
	runtime := "no container runtime answered"
	if p.Runtime != nil {
		runtime = fmt.Sprintf("%s %s, runtime handler %s", printable(p.Runtime.Name), printable(p.Runtime.Version), orDefault(c.RuntimeHandler))
	}
	fmt.Fprintf(&out, "on %s · Linux %s · %s\n", printable(p.Node.Name), printable(p.Node.Kernel), runtime)
	if c.Reason != "" {
		fmt.Fprintf(&out, "%s: %s\n", c.Observation, printable(c.Reason))
	}
	p.user(&out)

	writer := t.newWriter(pretty.Row{"capability", "pod", "cri", "oci", "kernel", "why"})
	for _, account := range p.Capabilities {
		row := pretty.Row{account.Capability, account.Pod, account.CRI, account.OCI, account.Kernel, ""}
		for i, step := range account.Steps {
			if i > 0 {
				writer.AppendRow(row)
				row = pretty.Row{"", "", "", "", "", ""}
			}
			row[5] = printable(fmt.Sprintf("%s→%s: %s", step.From, step.To, step.Why))
		}
		writer.AppendRow(row)
	}
	fmt.Fprintf(&out, "\n%s\n\n", trimLines(writer.Render()))
	fmt.Fprintln(&out, "Letters are sets: e effective, p permitted, b bounding, i inheritable, a ambient; - none, ? not known.")

	if p.PID != 0 {
		fmt.Fprintf(&out, "\nHow process %d came to be in the container:\n", p.PID)
		for _, sentence := range p.Arrival {
			paragraph(&out, "  ", sentence)
		}
	}
	if len(p.Findings) > 0 {
		fmt.Fprintln(&out, "\nFindings:")
		for _, finding := range p.Findings {
			paragraph(&out, "  ", fmt.Sprintf("%s %s (%s): %s.", finding.Severity, finding.Kind, hop(finding), finding.Message))
			paragraph(&out, "    → ", finding.Remedy)
			pasted(&out, finding.Paste)
		}
		evidence(&out, "  ", p.Findings)
	}
	if p.Policy != nil {
		p.Policy.write(&out)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// user says as whom the container and its process run, and under which flags.
func (p page) user(out *strings.Builder) {
	if oci := p.Container.Declared.OCI; oci != nil {
		namespace := "the node's user namespace"
		if oci.UserNamespace {
			namespace = "a user namespace of its own"
		}
		fmt.Fprintf(out, "declared: user %d, no_new_privs %s, %s\n", oci.UID, yesNo(&oci.NoNewPrivileges), namespace)
	}
	for _, process := range p.Container.Processes {
		if process.PID == p.PID {
			fmt.Fprintf(out, "process %d %s: user %s, no_new_privs %s, user namespace %s\n", p.PID, printable(process.Name), uidsOf(process.ContainerUID, process.UIDs),
				yesNo(process.NoNewPrivileges), process.UserNamespace.Relation)
		}
	}
}

func orDefault(handler string) string {
	if handler == "" {
		return "(default)"
	}
	return printable(handler)
}
