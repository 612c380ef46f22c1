//go:build linux

// Package conformance proves `capdrift predict` by the real thing: security contexts, some picked
// by hand and many made at random, are given to capdrift and to each containerd, and what was
// predicted must be what the container's OCI spec says and what its first process holds.
//
// It needs root, as package live does, and knows the same variables; CAPDRIFT_E2E_CONTAINERD17
// names the folder of the older containerd's programs. CAPDRIFT_CONFORMANCE=full makes many more
// contexts from a random seed, which it prints. CAPDRIFT_CONFORMANCE_SEED and
// CAPDRIFT_CONFORMANCE_COUNT choose another seed and number.
//
// # When it fails
//
// A context whose prediction is wrong is made as small as it gets while it still fails, and
// written to testdata/fixtures, where every later run finds it first. Commit it with the repair.
package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/capdrift/capdrift/e2e/node"
	"github.com/capdrift/capdrift/e2e/provision"
)

func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" { // containerd calls: see startRuntime
		if err := node.NoNetwork(os.Stdout); err != nil {
			panic(err)
		}
		return
	}
	m.Run()
}

// size is what is tried on each runtime: count contexts of the seed, of which every fifth is also
// started, which costs ten times as much.
type size struct {
	seed  uint64
	count int
}

func (s size) started() int { return s.count / 5 }

func sizeFromEnv() (s size, err error) {
	s = size{seed: 1, count: 150}
	switch full := os.Getenv("CAPDRIFT_CONFORMANCE"); full {
	case "":
	case "full":
		s = size{seed: rand.Uint64(), count: 1200}
	default:
		return size{}, fmt.Errorf("CAPDRIFT_CONFORMANCE=%s: want full, or nothing", full)
	}
	if seed := os.Getenv("CAPDRIFT_CONFORMANCE_SEED"); seed != "" {
		if s.seed, err = strconv.ParseUint(seed, 10, 64); err != nil {
			return size{}, fmt.Errorf("CAPDRIFT_CONFORMANCE_SEED: %w", err)
		}
	}
	if count := os.Getenv("CAPDRIFT_CONFORMANCE_COUNT"); count != "" {
		if s.count, err = strconv.Atoi(count); err != nil {
			return size{}, fmt.Errorf("CAPDRIFT_CONFORMANCE_COUNT: %w", err)
		}
	}
	return s, nil
}

func needsRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") != "":
		t.Fatal("CI must run this as root")
	default:
		t.Skip("needs root, for container runtimes of its own; run: sudo make test")
	}
}

func TestPredictions(t *testing.T) {
	needsRoot(t)
	size, err := sizeFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	// After an interrupt all that is done with the context fails, and the nodes are closed.
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	slow := 1.0
	if text := os.Getenv("CAPDRIFT_E2E_SLOW"); text != "" {
		if slow, err = strconv.ParseFloat(text, 64); err != nil {
			t.Fatalf("CAPDRIFT_E2E_SLOW: %v", err)
		}
	}
	for _, row := range []struct {
		version  string
		programs func(context.Context, io.Writer) (string, error)
	}{
		{provision.ContainerdVersion, provision.FromEnv},
		{provision.Containerd17Version, provision.Containerd17FromEnv},
	} {
		t.Run("containerd "+row.version, func(t *testing.T) {
			programs, err := row.programs(ctx, os.Stderr)
			if err != nil {
				t.Fatal(err)
			}
			isVersion(t, filepath.Join(programs, "containerd"), row.version)
			r, err := startRuntime(ctx, programs, slow)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := r.node.Close(); err != nil {
					t.Error(err)
				}
			})
			t.Run("fixtures", func(t *testing.T) { tryFixtures(ctx, t, r) })
			t.Run("generated", func(t *testing.T) { tryGenerated(ctx, t, r, size) })
		})
	}
}

// isVersion keeps a folder that a variable names from standing in for another.
func isVersion(t *testing.T, program, version string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), version) {
		t.Fatalf("%s is %q, want %s", program, out, version)
	}
}

// A fixture is a request that was or might be predicted wrongly.
type fixture struct {
	Why     string  `json:"why"`
	Request request `json:"request"`
}

//go:embed testdata/fixtures/*.json
var embedded embed.FS

func fixtures() (names []string, all []fixture, err error) {
	files, err := fs.Glob(embedded, "testdata/fixtures/*.json")
	if err != nil {
		return nil, nil, err
	}
	for _, file := range files {
		text, err := embedded.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		var f fixture
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&f); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		names, all = append(names, strings.TrimSuffix(filepath.Base(file), ".json")), append(all, f)
	}
	return names, all, nil
}

func tryFixtures(ctx context.Context, t *testing.T, r *runtime) {
	names, all, err := fixtures()
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]request, len(all))
	for i, f := range all {
		requests[i] = f.Request
	}
	differences, _, err := r.try(ctx, requests, len(requests))
	if err != nil {
		t.Fatal(err)
	}
	for i, list := range differences {
		if len(list) > 0 {
			t.Errorf("%s (%s):\n%s\nrequest %v", names[i], all[i].Why, strings.Join(list, "\n"), requests[i])
		}
	}
}

func tryGenerated(ctx context.Context, t *testing.T, r *runtime, size size) {
	t.Logf("seed %d, %d contexts, %d of them started", size.seed, size.count, size.started())
	requests := make([]request, size.count)
	for i := range requests {
		requests[i] = generate(size.seed, i)
	}
	differences, failed, err := r.try(ctx, requests, size.started())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d starts failed, as predicted", failed)
	const told, small = 20, 3 // at most
	wrong := 0
	for i, list := range differences {
		if len(list) == 0 {
			continue
		}
		if wrong++; wrong <= told {
			t.Errorf("seed %d, number %d:\n%s\nrequest %v", size.seed, i, strings.Join(list, "\n"), requests[i])
		}
		if wrong <= small {
			reportSmall(ctx, t, r, requests[i], i < size.started())
		}
	}
	if wrong > told {
		t.Errorf("%d predictions are wrong in all", wrong)
	}
}

// try compares predictions and outcomes; it returns the differences of each request, and how
// many starts failed as they were predicted to.
func (r *runtime) try(ctx context.Context, requests []request, started int) (differences [][]string, failed int, err error) {
	predictions, err := r.predict(ctx, requests)
	if err != nil {
		return nil, 0, err
	}
	outcomes, err := r.outcomes(ctx, requests, started)
	if err != nil {
		return nil, 0, err
	}
	differences = make([][]string, len(requests))
	for i := range requests {
		differences[i] = judge(predictions[i], outcomes[i], r.held)
		if p := outcomes[i].Process; p != nil && p.Failed != "" && len(differences[i]) == 0 {
			failed++
		}
	}
	return differences, failed, nil
}

// reportSmall makes a failing request small and writes it down.
func reportSmall(ctx context.Context, t *testing.T, r *runtime, q request, start bool) {
	t.Helper()
	why := ""
	fails := func(q request) bool {
		started := 0
		if start {
			started = 1
		}
		differences, _, err := r.try(ctx, []request{q}, started)
		if err != nil {
			t.Fatal(err)
		}
		if len(differences[0]) == 0 {
			return false
		}
		why = strings.Join(differences[0], "; ")
		return true
	}
	if !fails(q) {
		t.Error("alone it is as predicted: its neighbours made the difference")
		return
	}
	small := shrink(q, fails)
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(fixture{Why: why, Request: small}); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("testdata/fixtures/found-%x.json", sha256.Sum256([]byte(small.String())))[:len("testdata/fixtures/found-")+8] + ".json"
	t.Errorf("made small, for %s:\n%s", name, text.Bytes())
	// Where the sources are not around, the log is all there is.
	if _, err := os.Stat("testdata/fixtures"); err == nil {
		if err := os.WriteFile(name, text.Bytes(), 0o644); err != nil {
			t.Error(err)
		}
	}
}

func TestFixturesAreRead(t *testing.T) {
	names, all, err := fixtures()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for i, f := range all {
		if f.Why == "" {
			t.Errorf("%s does not say why", names[i])
		}
		text := f.Request.String()
		if other := seen[text]; other != "" {
			t.Errorf("%s and %s are the same", names[i], other)
		}
		seen[text] = names[i]
		var again request
		if err := json.Unmarshal([]byte(text), &again); err != nil || fmt.Sprint(again) != text {
			t.Errorf("%s: written %s, read %v, %v", names[i], text, again, err)
		}
	}
	if len(all) < 15 {
		t.Errorf("only %d fixtures", len(all))
	}
}
