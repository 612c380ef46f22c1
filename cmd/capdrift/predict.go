package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capdrift/capdrift/cri"
	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube"
)

// predictSchema names the published form of a [forecast].
const predictSchema = "capdrift.predict/v1"

// allRuntimes is what --runtime takes beside the runtimes' names.
const allRuntimes = "all"

// stdin is the name under which -f takes standard input.
const stdin = "-"

// refusedAs is what a container that never runs counts as for --fail-on.
const refusedAs = drift.Medium

// forecast is what `capdrift predict` yields.
type forecast struct {
	Schema      string       `json:"schema"`
	Assumptions []assumption `json:"assumptions"`
	Skipped     []skipped    `json:"skipped"`
	Unjudged    []notJudged  `json:"unjudged"`
	Containers  []foreseen   `json:"containers"`

	settings map[string]drift.Settings // of each runtime
}

// assumption is one thing that no manifest says and the prediction rests on.
type assumption struct {
	Runtime string `json:"runtime"` // "" where it is the same for all
	What    string `json:"what"`    // a key of --assume
	Value   string `json:"value"`   // as --assume takes it; "" when not known
	Source  string `json:"source"`
}

// foreseen is one container of a manifest and what becomes of it.
type foreseen struct {
	Source      string             `json:"source"`
	Document    int                `json:"document"`
	Line        int                `json:"line"` // of the container
	Kind        string             `json:"kind"` // "" for a CRI ContainerConfig
	Path        string             `json:"path"` // of the pod spec in a custom resource that may have several; else ""
	Namespace   string             `json:"namespace"`
	Name        string             `json:"name"`
	Container   string             `json:"container"`
	Role        drift.Role         `json:"role"` // "" for a CRI ContainerConfig
	Declared    declaration        `json:"declared"`
	Predictions []drift.Prediction `json:"predictions"`

	objectLine int // of the object that the container is in
}

// declaration holds the layers that the manifest decides. The CRI layer of a pod
// is what the kubelet makes of it.
type declaration struct {
	Pod *drift.PodSecurity `json:"pod"`
	CRI drift.CRI          `json:"cri"`
}

// predictOptions are the flags of `capdrift predict`.
type predictOptions struct {
	files   []string // FILE, DIR or -
	runtime string
	assume  []string
	failOn  string
	output  outputOptions

	assumed assumptions
}

// predictFormats is the registry of `-o` beside the table.
var predictFormats = map[string]func(io.Writer, forecast) error{
	"json": writeJSON[forecast],
	"yaml": writeYAML[forecast],
}

func predictOutputs() []string {
	return append([]string{"table"}, slices.Sorted(maps.Keys(predictFormats))...)
}

func predictCommand() *cobra.Command {
	var o predictOptions
	keys := slices.Sorted(maps.Keys(assumable))
	cmd := &cobra.Command{
		Use:   "predict -f FILE|DIR|-",
		Short: "Say what the containers of manifests will get, before there are any",
		Long: `Say what the containers of manifests will get, before there are any: for every container the
capability sets that its first program starts with, and what of its declaration will not do
what it seems to. It asks no cluster and no node.

It reads pods, everything with a pod template (deployments, cron jobs …), lists of them, custom
resources by their shape (Argo, Knative, KServe, Ray, Tekton …), OpenShift Templates, and CRI
container configs as crictl takes them, in YAML or JSON. Of a directory it reads the .yaml, .yml
and .json files that are directly in it.

Where neither pod nor container sets runAsUser the image decides who runs, so both are shown.
What else no manifest tells is assumed, and said; --assume KEY=VALUE states it:

` + assumeHelp(keys...) + `
LIST is of names in any spelling (NET_ADMIN,cap_net_raw, ALL), HEX as in /proc/PID/status.

With --fail-on a container that the API server, the kubelet or the runtime refuses counts as
a finding of severity ` + refusedAs.String() + `: it never runs. What the API server refuses, and what of a
custom resource was not understood, lets nothing pass.

Exit status: 0 done, 1 could not do it (a document that cannot be read too; the others are
still predicted), or --fail-on could not be told, 2 wrong usage, 3 findings at or above --fail-on.`,
		Example: `  helm template . | capdrift predict -f -
  kustomize build overlays/prod | capdrift predict -f - --runtime all
  kubectl get pods -A -o yaml | capdrift predict -f - --runtime cri-o --fail-on high
  capdrift predict -f deploy/ --assume image-user=1000 --assume default-caps=00000000000005fb`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return usageError{err}
			}
			return does(func(cmd *cobra.Command, _ []string) error { return o.run(cmd) })(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&o.files, "filename", "f", nil, "a file of manifests, a directory of such files, or - for standard input; may be repeated")
	flags.StringVar(&o.runtime, "runtime", drift.Containerd, "the runtime of the nodes: "+strings.Join(predictRuntimes(), ", "))
	flags.StringArrayVar(&o.assume, "assume", nil, "state what no manifest tells, KEY=VALUE: "+strings.Join(keys, ", ")+"; may be repeated")
	flags.StringVar(&o.failOn, "fail-on", "", "exit with status 3 when a finding is at or above this severity: critical, high, medium, low, info")
	flags.StringVarP(&o.output.format, "output", "o", "table", "output format: "+strings.Join(predictOutputs(), ", "))
	flags.StringVar(&o.output.color, "color", "auto", "color the table: auto (on a terminal, unless NO_COLOR is set), always, never")
	flags.BoolVar(&o.output.noHeaders, "no-headers", false, "leave out the heading lines of the table")
	if err := cmd.MarkFlagFilename("filename", "yaml", "yml", "json"); err != nil {
		panic(err) // a flag of this name was just defined
	}
	complete(cmd, "runtime", predictRuntimes()...)
	complete(cmd, "fail-on", severityNames()...)
	complete(cmd, "output", predictOutputs()...)
	complete(cmd, "color", "auto", "always", "never")
	if err := cmd.RegisterFlagCompletionFunc("assume", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var list []string
		for _, key := range keys {
			list = append(list, key+"=")
		}
		return list, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}); err != nil {
		panic(err) // a flag of this name was just defined
	}
	return cmd
}

func predictRuntimes() []string { return append(drift.Runtimes(), allRuntimes) }

// runtimes are those asked for.
func (o *predictOptions) runtimes() []string {
	if o.runtime == allRuntimes {
		return drift.Runtimes()
	}
	return []string{o.runtime}
}

func (o *predictOptions) validate() error {
	switch {
	case len(o.files) == 0:
		return errors.New("name the manifests with -f FILE, -f DIR or -f - for standard input; see 'capdrift predict --help'")
	case len(slices.DeleteFunc(slices.Clone(o.files), func(name string) bool { return name != stdin })) > 1:
		return errors.New("--filename=-: standard input can be read only once")
	case !slices.Contains(predictRuntimes(), o.runtime):
		return fmt.Errorf("--runtime=%s: want one of %s", printable(o.runtime), strings.Join(predictRuntimes(), ", "))
	case o.failOn != "" && !slices.Contains(severityNames(), o.failOn):
		return fmt.Errorf("--fail-on=%s: want one of %s", printable(o.failOn), strings.Join(severityNames(), ", "))
	case !slices.Contains(predictOutputs(), o.output.format):
		return fmt.Errorf("--output=%s: want one of %s", printable(o.output.format), strings.Join(predictOutputs(), ", "))
	case !slices.Contains([]string{"auto", "always", "never"}, o.output.color):
		return fmt.Errorf("--color=%s: want auto, always or never", printable(o.output.color))
	}
	var err error
	o.assumed, err = parseAssumptions(o.assume, slices.Sorted(maps.Keys(assumable))...)
	switch runtimes := o.runtimes(); {
	case err != nil:
		return err
	case o.assumed.Given.Inheritable != nil && !slices.Contains(runtimes, drift.CRIO):
		return fmt.Errorf("--assume=%s: only %s has such a setting, and --runtime is %s", assumeInheritable, drift.CRIO, o.runtime)
	case o.assumed.Given.Held != nil && o.runtime == drift.CRIO:
		return fmt.Errorf("--assume=%s: ALL and privileged are what the kernel knows with %s; see %s", assumeHeldCaps, drift.CRIO, assumeLastCap)
	}
	return nil
}

func (o *predictOptions) run(cmd *cobra.Command) error {
	manifests, err := readManifests(cmd, o.files)
	f := o.forecast()
	for _, m := range manifests.Objects {
		containers, err2 := f.foresee(m, o.runtimes(), o.assumed.ImageUser)
		f.Containers = append(f.Containers, containers...)
		err = errors.Join(err, err2)
	}
	refused := len(slices.DeleteFunc(slices.Clone(manifests.Objects), func(m kube.Manifest) bool { return m.Refused == nil }))
	left := leftOutOf(manifests, err)
	f.Skipped, f.Unjudged = left.Skipped, left.Unjudged
	if len(f.Containers) > 0 || o.output.format != "table" {
		if err := o.write(cmd.OutOrStdout(), f); err != nil {
			return fmt.Errorf("writing the prediction: %w", err)
		}
	}
	worst := f.worst()
	switch {
	case err != nil:
		return printableError(err)
	case len(f.Containers) == 0:
		return left.nothing("predict", o.files)
	case o.failOn != "" && worst >= severityOf(o.failOn):
		return findingsError{fmt.Errorf("there are findings of severity %s, at or above --fail-on=%s", worst, o.failOn)}
	case o.failOn != "" && refused > 0:
		return fmt.Errorf("nothing is at or above --fail-on=%s, but the API server refuses %s, and what never runs is not passed", o.failOn, many(refused, "object"))
	case o.failOn != "" && left.unknown() != "":
		return fmt.Errorf("nothing is known to be at or above --fail-on=%s, but %s could not be judged, and what is unknown is not passed", o.failOn, left.unknown())
	}
	return nil
}

func severityOf(name string) drift.Severity {
	var severity drift.Severity
	if err := severity.UnmarshalText([]byte(name)); err != nil {
		panic(err) // validate has accepted it
	}
	return severity
}

// printableError shows each line of an error that may quote a file.
func printableError(err error) error {
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		lines = append(lines, printable(line))
	}
	shown := errors.New(strings.Join(lines, "\ncapdrift: "))
	var usage usageError
	if errors.As(err, &usage) {
		return usageError{shown}
	}
	return shown
}

// readManifests reads all that -f names and returns what was good beside a joined error.
func readManifests(cmd *cobra.Command, names []string) (all kube.Manifests, err error) {
	for _, name := range names {
		if name == stdin {
			err = errors.Join(err, readInto(&all, cmd.InOrStdin(), "stdin"))
			continue
		}
		files := []string{name}
		if info, err2 := os.Stat(name); err2 == nil && info.IsDir() {
			var below int
			files, below, err2 = manifestFiles(name)
			err = errors.Join(err, err2)
			if below > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "capdrift: note: %s in %s was not read; name it with -f too if it is meant\n", many(below, "directory"), printable(name))
			}
		}
		for _, name := range files {
			file, err2 := os.Open(name)
			if err2 != nil {
				err = errors.Join(err, err2)
				continue
			}
			err = errors.Join(err, readInto(&all, file, name))
			file.Close()
		}
	}
	return all, err
}

func readInto(all *kube.Manifests, from io.Reader, name string) error {
	m, err := kube.ReadManifests(from, name)
	all.Objects = append(all.Objects, m.Objects...)
	all.Windows = append(all.Windows, m.Windows...)
	all.Skipped = append(all.Skipped, m.Skipped...)
	all.Unjudged = append(all.Unjudged, m.Unjudged...)
	all.MoreUnjudged += m.MoreUnjudged
	return err
}

// manifestFiles lists the manifests directly in a directory, by name, and counts
// the directories below it.
func manifestFiles(dir string) (files []string, below int, err error) {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		switch {
		case entry.IsDir():
			below++
		case slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(entry.Name()))):
			files = append(files, filepath.Join(dir, entry.Name()))
		}
	}
	return files, below, err
}

// forecast starts one: the settings of the runtimes, and where they come from.
func (o *predictOptions) forecast() forecast {
	f := forecast{
		Schema: predictSchema, Assumptions: []assumption{}, Containers: []foreseen{},
		settings: make(map[string]drift.Settings),
	}
	const stated = "--assume"
	given := o.assumed.Given
	for _, runtime := range o.runtimes() {
		s := given.Apply(drift.Stock(runtime, o.assumed.last()))
		source := runtime + "'s own"
		if given.Default != nil {
			source = stated
		}
		f.Assumptions = append(f.Assumptions, assumption{runtime, assumeDefaultCaps, s.Default.Bounding.Hex(), source})
		if runtime == drift.CRIO {
			source = runtime + "'s own"
			if given.Inheritable != nil {
				source = stated
			}
			f.Assumptions = append(f.Assumptions, assumption{runtime, assumeInheritable, strconv.FormatBool(s.Inheritable), source})
		} else {
			source = "all that the kernel knows"
			if given.Held != nil {
				source = stated
			}
			f.Assumptions = append(f.Assumptions, assumption{runtime, assumeHeldCaps, s.Held.Hex(), source})
		}
		f.settings[runtime] = s
	}
	image := assumption{What: assumeImageUser, Source: "not known without the image"}
	if o.assumed.ImageUser != nil {
		image.Value, image.Source = strconv.FormatUint(uint64(*o.assumed.ImageUser), 10), stated
	}
	last := assumption{What: assumeLastCap, Value: o.assumed.last().String(), Source: "Linux 5.9 and later"}
	if o.assumed.LastCap != nil {
		last.Source = stated
	}
	f.Assumptions = append(f.Assumptions, image, last)
	return f
}

// foresee predicts the containers of one manifest.
func (f forecast) foresee(m kube.Manifest, runtimes []string, imageUser *uint32) ([]foreseen, error) {
	one := foreseen{Source: m.File, Document: m.Document, Line: m.Line, Kind: m.Kind, Path: m.Path, Namespace: m.Namespace, Name: m.Name, objectLine: m.Line}
	if m.Raw != nil {
		name, layer, err := decodeContainerConfig(m)
		if err != nil {
			return nil, err
		}
		one.Container = name
		f.predict(&one, nil, layer, "", runtimes, imageUser)
		return []foreseen{one}, nil
	}
	var containers []foreseen
	for i, c := range m.Pod.Containers {
		one, security := one, c.Security
		one.Line = m.Lines[i]
		security.PodFields = nil // they decide nothing that is predicted
		one.Container, one.Role = c.Name, security.Role
		f.predict(&one, &security, drift.Kubelet(security), refusedBy(m), runtimes, imageUser)
		containers = append(containers, one)
	}
	return containers, nil
}

// decodeContainerConfig reads a CRI container config, and its container's name.
func decodeContainerConfig(m kube.Manifest) (name string, layer drift.CRI, err error) {
	layer, err = cri.DecodeContainerConfig(m.Raw)
	if err != nil {
		return "", layer, &kube.ManifestError{File: m.File, Document: m.Document, Line: m.Line, Err: err}
	}
	var config struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(m.Raw, &config); err != nil {
		err = errors.New("metadata.name of the CRI container config is no string") // the decoder's own words quote it
		return "", layer, &kube.ManifestError{File: m.File, Document: m.Document, Line: m.Line, Err: err}
	}
	return config.Metadata.Name, layer, nil
}

// refusedBy says what of the pod the API server refuses; "" for nothing.
func refusedBy(m kube.Manifest) string {
	var rules []string
	for _, refusal := range m.Refused {
		rules = append(rules, refusal.String())
	}
	if rules == nil {
		return ""
	}
	return "the API server refuses it: " + strings.Join(rules, "; ")
}

func (f forecast) predict(one *foreseen, pod *drift.PodSecurity, layer drift.CRI, refused string, runtimes []string, imageUser *uint32) {
	for _, runtime := range runtimes {
		if refused != "" {
			one.Predictions = append(one.Predictions, drift.Prediction{Runtime: runtime, Refused: refused, AtStart: []drift.Start{}, Findings: []drift.Finding{}})
			continue
		}
		place := fmt.Sprintf("%s\x00%d\x00%s/%s/%s", one.Source, one.Document, one.Kind, one.Namespace, one.Name)
		if one.Path != "" {
			place += "\x00" + one.Path
		}
		one.Predictions = append(one.Predictions, drift.Predict(runtime, place+"\x00"+one.Container, one.Container, pod, layer, imageUser, f.settings[runtime]))
	}
	if pod != nil {
		pod.Add, pod.Drop = listed(pod.Add), listed(pod.Drop)
	}
	layer.Add, layer.Drop, layer.AddAmbient = listed(layer.Add), listed(layer.Drop), listed(layer.AddAmbient)
	one.Declared = declaration{pod, layer}
}

// listed makes an empty list of none: to programs they are the same.
func listed(names []string) []string {
	if names == nil {
		return []string{}
	}
	return names
}

// worst is the severity of the worst that is predicted, 0 for nothing.
func (f forecast) worst() drift.Severity {
	var worst drift.Severity
	for _, c := range f.Containers {
		for _, p := range c.Predictions {
			worst = max(worst, worstFinding(p.Findings))
			if p.Refused != "" {
				worst = max(worst, refusedAs)
			}
		}
	}
	return worst
}

func (o *predictOptions) write(w io.Writer, f forecast) error {
	if format, ok := predictFormats[o.output.format]; ok {
		return format(w, f)
	}
	return forecastTable{table{colored: o.output.colored(w), noHeaders: o.output.noHeaders}, o.runtimes()}.write(w, f)
}
