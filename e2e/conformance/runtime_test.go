//go:build linux

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
)

// A runtime is a real one, and capdrift beside it.
type runtime struct {
	node     *node.Node
	capdrift string
	held     hexSet // by its own process
	lastCap  string
	adding   sync.Mutex // see create
}

func startRuntime(ctx context.Context, programs string, slow float64) (*runtime, error) {
	r := &runtime{capdrift: filepath.Join(programs, "capdrift")}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, err
	}
	r.lastCap = strings.TrimSpace(string(last))
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r.node, err = node.Start(ctx, node.Config{
		Programs: programs, Parent: os.Getenv("CAPDRIFT_E2E_ROOT"), Slow: slow, NetworkPlugin: self,
	})
	if err != nil {
		return nil, err
	}
	itself, err := readProcess(r.node.RuntimePid())
	if err != nil {
		return nil, errors.Join(err, r.node.Close())
	}
	r.held = itself.Effective
	return r, nil
}

// predict is one `capdrift predict` of all requests.
func (r *runtime) predict(ctx context.Context, requests []request) ([]prediction, error) {
	var in, out, errs bytes.Buffer
	for i, request := range requests {
		document, err := request.document(containerName(i))
		if err != nil {
			return nil, err
		}
		in.WriteString("---\n")
		in.Write(append(document, '\n'))
	}
	cmd := exec.CommandContext(ctx, r.capdrift, "predict", "-f", "-", "--runtime", "containerd", "-o", "json",
		"--assume", "held-caps="+r.held.String(), "--assume", "last-cap="+r.lastCap, "--assume", "image-user=0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("capdrift predict: %w\n%s", err, errs.Bytes())
	}
	return parsePredictions(out.Bytes(), len(requests))
}

func containerName(i int) string { return fmt.Sprintf("c%04d", i) }

// parsePredictions reads "capdrift.predict/v1". These structs are the reader's own: they pin the
// contract. What is absent is an error, for it is not zero.
func parsePredictions(text []byte, count int) ([]prediction, error) {
	var printed struct {
		Schema     string
		Containers []struct {
			Container   string
			Predictions []struct {
				Runtime, Refused string
				OCI              *struct {
					printedSets
					NoNewPrivileges, UserNamespace *bool
					UnknownNames                   *[]string
				}
				AtStart []struct {
					User string
					Caps printedSets
				}
			}
		}
	}
	if err := json.Unmarshal(text, &printed); err != nil {
		return nil, fmt.Errorf("capdrift predict did not print JSON: %w", err)
	}
	if printed.Schema != "capdrift.predict/v1" || len(printed.Containers) != count {
		return nil, fmt.Errorf("schema %q with %d containers; want capdrift.predict/v1 with %d", printed.Schema, len(printed.Containers), count)
	}
	predictions := make([]prediction, count)
	for i, c := range printed.Containers {
		if c.Container != containerName(i) || len(c.Predictions) != 1 || c.Predictions[0].Runtime != "containerd" {
			return nil, fmt.Errorf("container %d: got %q with %d predictions; want %s with one, of containerd", i, c.Container, len(c.Predictions), containerName(i))
		}
		from, p := c.Predictions[0], &predictions[i]
		if p.Refused = from.Refused; p.Refused != "" {
			continue
		}
		if from.OCI == nil || from.OCI.NoNewPrivileges == nil || from.OCI.UserNamespace == nil || from.OCI.UnknownNames == nil {
			return nil, fmt.Errorf("container %s: the prediction of the OCI spec is not complete", c.Container)
		}
		var err error
		if p.OCI.sets, err = from.OCI.sets(); err != nil {
			return nil, fmt.Errorf("container %s: the OCI spec: %w", c.Container, err)
		}
		p.OCI.NoNewPrivileges, p.OCI.UserNamespace, p.OCI.UnknownNames = *from.OCI.NoNewPrivileges, *from.OCI.UserNamespace, *from.OCI.UnknownNames
		for _, s := range from.AtStart {
			caps, err := s.Caps.sets()
			if err != nil {
				return nil, fmt.Errorf("container %s: at start: %w", c.Container, err)
			}
			p.AtStart = append(p.AtStart, atStart{s.User, caps})
		}
	}
	return predictions, nil
}

type printedSets struct {
	Bounding, Permitted, Effective, Inheritable, Ambient *struct{ Hex string }
}

func (p printedSets) sets() (s sets, err error) {
	for _, one := range []struct {
		name string
		from *struct{ Hex string }
		to   *hexSet
	}{
		{"bounding", p.Bounding, &s.Bounding},
		{"permitted", p.Permitted, &s.Permitted},
		{"effective", p.Effective, &s.Effective},
		{"inheritable", p.Inheritable, &s.Inheritable},
		{"ambient", p.Ambient, &s.Ambient},
	} {
		if one.from == nil {
			return sets{}, fmt.Errorf("no %s set", one.name)
		}
		if *one.to, err = parseHex(one.from.Hex); err != nil {
			return sets{}, fmt.Errorf("%s set: %w", one.name, err)
		}
	}
	return s, nil
}

func parseHex(text string) (hexSet, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	return hexSet(n), err
}

// atOnce is how many containers are made at the same time.
const atOnce = 8

// outcomes makes a container of each request, looks at it and removes it. The first of them, as
// many as started, are also started.
func (r *runtime) outcomes(ctx context.Context, requests []request, started int) ([]outcome, error) {
	all := make([]outcome, len(requests))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, request := range requests {
		g.Go(func() (err error) {
			if all[i], err = r.outcome(ctx, request, i < started); err != nil {
				err = fmt.Errorf("request %v: %w", request, err)
			}
			return err
		})
	}
	return all, g.Wait()
}

// outcome fails only when the machine does; what a runtime does not do is an outcome.
func (r *runtime) outcome(ctx context.Context, q request, start bool) (o outcome, err error) {
	c, err := r.create(ctx, q)
	if err != nil {
		o.Refused, _, _ = strings.Cut(err.Error(), "\n") // below is containerd's log
		return o, ctx.Err()
	}
	defer func() { err = errors.Join(err, r.node.Remove(ctx, c)) }()
	info, err := r.node.Info(ctx, c)
	if err != nil {
		return o, err
	}
	if err := o.readSpec(info); err != nil || !start {
		return o, err
	}
	if err := r.node.Start(ctx, c); err != nil {
		o.Process = &process{Failed: err.Error()}
		return o, ctx.Err()
	}
	p, err := readProcess(c.Pid)
	o.Process = &p
	return o, err
}

// create lets no two containers be made at once that add ALL and something else. containerd puts
// its own list of all that it holds into the spec, not a copy (WithCapabilities in
// internal/cri/opts/spec_opts.go and pkg/oci/spec_opts.go), and WithAddedCapabilities appends to
// it in place: two requests at the same time overwrite each other's names.
func (r *runtime) create(ctx context.Context, q request) (*node.Container, error) {
	if len(q.Add) > 1 && slices.ContainsFunc(q.Add, func(name string) bool { return strings.EqualFold(name, "ALL") }) {
		r.adding.Lock()
		defer r.adding.Unlock()
	}
	return r.node.Create(ctx, node.Pod{Security: q.security(), Shared: true})
}

func (o *outcome) readSpec(info []byte) error {
	var status struct{ RuntimeSpec *specs.Spec }
	if err := json.Unmarshal(info, &status); err != nil {
		return fmt.Errorf("verbose status: %w", err)
	}
	spec := status.RuntimeSpec
	if spec == nil || spec.Process == nil || spec.Linux == nil {
		return errors.New("the verbose status has no OCI spec of a Linux process")
	}
	if c := spec.Process.Capabilities; c != nil {
		o.Spec.Bounding = o.read(c.Bounding)
		o.Spec.Permitted = o.read(c.Permitted)
		o.Spec.Effective = o.read(c.Effective)
		o.Spec.Inheritable = o.read(c.Inheritable)
		o.Spec.Ambient = o.read(c.Ambient)
		slices.Sort(o.Spec.Unknown)
		o.Spec.Unknown = slices.Compact(o.Spec.Unknown)
	}
	o.Spec.NoNewPrivileges = spec.Process.NoNewPrivileges
	o.Spec.UID = spec.Process.User.UID
	o.Spec.UserNamespace = slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
	return nil
}

// read is runc's reading of names (libcontainer/capabilities, capSlice): exactly those that the
// kernel's have in capitals.
func (o *outcome) read(names []string) (set hexSet) {
	for _, name := range names {
		short, prefixed := strings.CutPrefix(name, "CAP_")
		if i := slices.Index(everyName, short); prefixed && i >= 0 {
			set |= 1 << i
		} else {
			o.Spec.Unknown = append(o.Spec.Unknown, name)
		}
	}
	return set
}

// readProcess reads proc_pid_status(5).
func readProcess(pid int) (p process, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return process{}, err
	}
	values := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		values[key] = strings.TrimSpace(value)
	}
	for key, set := range map[string]*hexSet{
		"CapBnd": &p.Bounding, "CapPrm": &p.Permitted, "CapEff": &p.Effective, "CapInh": &p.Inheritable, "CapAmb": &p.Ambient,
	} {
		if *set, err = parseHex(values[key]); err != nil {
			return process{}, fmt.Errorf("process %d: %s: %w", pid, key, err)
		}
	}
	p.NoNewPrivileges, err = strconv.ParseBool(values["NoNewPrivs"])
	return p, err
}

func TestParsePredictionsRejectsWhatIsNotThere(t *testing.T) {
	five := `"bounding":{"hex":"00000000000000f0"},"permitted":{"hex":"0000000000000070"},"effective":{"hex":"0000000000000030"},` +
		`"inheritable":{"hex":"0000000000000010"},"ambient":{"hex":"0000000000000001"}`
	whole := `{"schema":"capdrift.predict/v1","containers":[{"container":"c0000","predictions":[{"runtime":"containerd",` +
		`"oci":{` + five + `,"noNewPrivileges":true,"unknownNames":["CAP_BOGUS"],"userNamespace":true},` +
		`"atStart":[{"user":"1000","caps":{` + five + `}}]}]}]}`
	got, err := parsePredictions([]byte(whole), 1)
	if err != nil {
		t.Fatal(err)
	}
	var want prediction
	want.OCI.sets = sets{Bounding: 0xf0, Permitted: 0x70, Effective: 0x30, Inheritable: 0x10, Ambient: 0x01}
	want.OCI.NoNewPrivileges, want.OCI.UserNamespace, want.OCI.UnknownNames = true, true, []string{"CAP_BOGUS"}
	want.AtStart = []atStart{{"1000", want.OCI.sets}}
	if !reflect.DeepEqual(got, []prediction{want}) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, without := range []string{
		`"schema":"capdrift.predict/v1",`, `"container":"c0000",`, `"runtime":"containerd",`,
		`"bounding":{"hex":"00000000000000f0"},`, `"permitted":{"hex":"0000000000000070"},`, `"effective":{"hex":"0000000000000030"},`,
		`"inheritable":{"hex":"0000000000000010"},`, `,"ambient":{"hex":"0000000000000001"}`, `"hex":"00000000000000f0"`,
		`"noNewPrivileges":true,`, `"unknownNames":["CAP_BOGUS"],`, `,"userNamespace":true`,
	} {
		less := strings.Replace(whole, without, "", 1)
		if !json.Valid([]byte(less)) || less == whole {
			t.Fatalf("the test itself: without %s it is %s", without, less)
		}
		if _, err := parsePredictions([]byte(less), 1); err == nil {
			t.Errorf("no error without %s", without)
		}
	}
	if _, err := parsePredictions([]byte(whole), 2); err == nil {
		t.Error("no error though two were asked for")
	}
}
