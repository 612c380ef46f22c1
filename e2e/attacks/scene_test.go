//go:build linux

package attacks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/capdrift/capdrift/e2e/agentpod"
	"github.com/capdrift/capdrift/e2e/node"
)

// scene is a node under attack: an agent, what it tells from the begin of the test to its end,
// those who attack, and those who do nothing. At its end nobody who did nothing may have been
// accused of anything above info.
type scene struct {
	t      testing.TB
	dir    string // the agent's, on the host
	config []string
	agent  *node.Container
	told   *watch
	guilty map[string]string // of whom something above info may be said: why, by container id
}

// owners are the scenes by the ids of their containers, so that tests may run side by side.
var owners sync.Map

// begin starts the agent as the chart runs it. Settings are further lines of its configuration.
func begin(t testing.TB, settings ...string) *scene {
	t.Helper()
	onNode(t)
	s := &scene{t: t, dir: t.TempDir(), config: settings, guilty: map[string]string{}}
	s.startAgent()
	t.Cleanup(func() {
		if t.Failed() {
			s.showLog()
		}
		s.stopAgent()
	})
	s.told = s.watch()
	t.Cleanup(func() { // when all of its containers are removed
		s.look()
		s.spares()
	})
	return s
}

// startAgent starts it, with the journal of the one before.
func (s *scene) startAgent() {
	s.t.Helper()
	p, err := agentpod.Agent(agentpod.OwnPids(agentpod.Pod(theNode, binary, "/proc", 0)), s.dir, s.config...)
	if err != nil {
		s.t.Fatal(err)
	}
	p.Container = "agent-" + s.t.Name()
	// As in deploy/chart/values.yaml. It must do with it.
	p.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 20}
	p.Env = map[string]string{"GOMEMLIMIT": "115MiB"}
	if s.agent, err = theNode.Run(s.t.Context(), p); err != nil {
		s.t.Fatal(err)
	}
	owners.Store(s.agent.ID, s)
	owners.Store(s.agent.Sandbox, s)
	if _, stderr, status, err := s.ask("get", "findings", "-o", "json", "--wait", "--timeout", theNode.Patience(time.Minute).String()); err != nil || status != 0 {
		s.t.Fatalf("the agent has not looked at its node: %v: %s", err, stderr)
	}
}

func (s *scene) stopAgent() {
	if err := theNode.Remove(context.Background(), s.agent); err != nil {
		s.t.Error(err)
	}
}

// run starts a pod that lasts as long as the test, with steps of the actor.
func (s *scene) run(p node.Pod) *node.Container {
	s.t.Helper()
	c, err := theNode.Create(s.t.Context(), p)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := theNode.Remove(context.Background(), c); err != nil {
			s.t.Error(err)
		}
	})
	owners.Store(c.ID, s)
	owners.Store(c.Sandbox, s)
	if err := theNode.Start(s.t.Context(), c); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// innocent starts a pod of which nothing above info may be said.
func (s *scene) innocent(name string, security *cri.LinuxContainerSecurityContext, steps ...string) *node.Container {
	s.t.Helper()
	if steps == nil {
		steps = []string{"ready", "sleep"}
	}
	return s.run(node.Pod{Container: name, Security: security, Args: steps})
}

// attacked starts a pod in which something is done, of which the agent may say what it finds.
func (s *scene) attacked(name string, security *cri.LinuxContainerSecurityContext, steps ...string) *node.Container {
	s.t.Helper()
	c := s.innocent(name, security, steps...)
	s.guilty[c.ID] = name
	return c
}

// intrude starts a process above a container's ceiling by `runc exec --cap`.
func (s *scene) intrude(c *node.Container, steps ...string) (pid int) {
	s.t.Helper()
	pid, err := theNode.RuncExec(s.t.Context(), c, []string{"CAP_SYS_ADMIN"}, steps...)
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// ask runs a client of the agent.
func (s *scene) ask(args ...string) (stdout, stderr string, status int, err error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(binary, append(args, "--agent", "unix://"+s.socket())...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return "", "", 0, err
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode(), nil
}

func (s *scene) socket() string { return filepath.Join(s.dir, "agent.sock") }

// await asks for a condition often, for half a minute at most.
func (s *scene) await(what string, holds func() bool) {
	s.t.Helper()
	s.awaitFor(30*time.Second, what, holds)
}

// awaitFor is await with another deadline.
func (s *scene) awaitFor(d time.Duration, what string, holds func() bool) {
	s.t.Helper()
	ctx, cancel := theNode.Within(s.t.Context(), d)
	defer cancel()
	if err := node.Until(ctx, what, func() (bool, error) { return holds(), nil }); err != nil {
		s.t.Fatal(err)
	}
}

// look has the agent look twice now, as many times as a finding takes to open, and returns what it
// then knows.
func (s *scene) look() report {
	s.t.Helper()
	var r report
	for range 2 {
		stdout, stderr, _, err := s.ask("scan", "-o", "json")
		if err != nil || json.Unmarshal([]byte(stdout), &r) != nil {
			s.t.Errorf("the agent does not look: %v: %s", err, stderr)
		}
	}
	return r
}

// scan is a scan from a pod like the agent's, without an agent.
func (s *scene) scan() report {
	s.t.Helper()
	stdout, stderr, err := theNode.Exec(s.t.Context(), s.agent, agentpod.Program, "scan", "-o", "json", "--host-root", agentpod.HostRoot)
	var exit *node.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(stdout, &r); err != nil {
		s.t.Fatalf("scan: %v: %s", err, stderr)
	}
	s.fair("scan", r.Findings)
	return r
}

// wrong says why a finding is a false accusation; empty when it is none, or another test's.
func (s *scene) wrong(f finding) string {
	if rank(f.Severity) <= rank("info") || s.guilty[f.ContainerID] != "" {
		return ""
	}
	owner, ok := owners.Load(f.ContainerID)
	switch {
	case ok && owner != s:
		return ""
	case ok:
		return "an innocent container is accused"
	default:
		return "a container that no test started is accused"
	}
}

// spares asserts that the agent has accused no innocent since the test began.
func (s *scene) spares() {
	s.t.Helper()
	s.fair("the agent", s.told.everFound())
}

// fair asserts that nobody is accused wrongly, and tells of each kind once.
func (s *scene) fair(who string, findings []finding) {
	s.t.Helper()
	said := map[string]bool{}
	for _, f := range findings {
		why, key := s.wrong(f), fmt.Sprint(f.ContainerID, f.Kind, f.Severity)
		if why != "" && !said[key] {
			said[key] = true
			s.t.Errorf("%s: %s: %v", who, why, f)
		}
	}
}

// finds waits until the agent has an open finding about a container, of this severity or a worse
// one, and of one of the kinds if any are named.
func (s *scene) finds(c *node.Container, least string, kinds ...string) (found finding) {
	s.t.Helper()
	ok := false
	defer func() {
		if !ok {
			s.t.Logf("open is %v, the coverage %+v", s.told.open(), s.told.covers())
		}
	}()
	s.await(fmt.Sprintf("the agent finds something %s in %s, of %q", least, c.Pod.Container, kinds), func() bool {
		found, ok = about(s.told.open(), c.ID, least, kinds)
		return ok
	})
	return found
}

// keeps asserts that such a finding is still open when the agent has looked again.
func (s *scene) keeps(c *node.Container, least string, kinds ...string) {
	s.t.Helper()
	r := s.look()
	if _, ok := about(r.Findings, c.ID, least, kinds); !ok {
		s.t.Errorf("the agent does not find something %s of %q in %s any more, but %v", least, kinds, c.Pod.Container, r.about(c.ID))
	}
}

// scanFinds asserts that a scan has such a finding, and none about an innocent.
func (s *scene) scanFinds(c *node.Container, least string, kinds ...string) {
	s.t.Helper()
	r := s.scan()
	if _, ok := about(r.Findings, c.ID, least, kinds); !ok {
		s.t.Errorf("scan does not find something %s of %q in %s, but %v; coverage %+v", least, kinds, c.Pod.Container, r.about(c.ID), r.Coverage)
	}
}

// findsAll waits until the agent has something critical open about each of several containers, and
// asserts that a scan has too.
func (s *scene) findsAll(containers []*node.Container) {
	s.t.Helper()
	missing := func(findings []finding) (names []string) {
		for _, c := range containers {
			if _, ok := about(findings, c.ID, "critical", nil); !ok {
				names = append(names, c.Pod.Container)
			}
		}
		return names
	}
	var agent []string
	defer func() {
		if agent != nil {
			s.t.Logf("the agent finds nothing critical in %q; open is %v", agent, s.told.open())
		}
	}()
	s.await("the agent finds something critical in each", func() bool {
		agent = missing(s.told.open())
		return agent == nil
	})
	r := s.scan()
	if names := missing(r.Findings); names != nil {
		s.t.Errorf("scan finds nothing critical in %q; it finds %v, coverage %+v", names, r.Findings, r.Coverage)
	}
}

// mentions waits until the agent says anything about a container: a limit that names it, or a
// finding, be it information.
func (s *scene) mentions(c *node.Container) {
	s.t.Helper()
	s.await("the agent mentions "+c.Pod.Container, func() bool {
		return s.limited(c.Pod.Container) || s.told.informed(c.ID)
	})
}

// limited reports whether a limit of what the agent sees has the word.
func (s *scene) limited(word string) bool {
	stdout, _, _, err := s.ask("get", "node", "-o", "json")
	var told struct{ Coverage coverage }
	if err != nil || json.Unmarshal([]byte(stdout), &told) != nil {
		return false
	}
	for _, l := range told.Coverage.Limits {
		if strings.Contains(l.What+": "+l.Why, word) {
			return true
		}
	}
	return false
}

// limits waits until the agent names a container in a limit of what it sees.
func (s *scene) limits(c *node.Container) {
	s.t.Helper()
	s.await("a limit names "+c.Pod.Container, func() bool { return s.limited(c.Pod.Container) })
}

// log is what the scene's agents wrote.
func (s *scene) log() string {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(theNode.Root, "logs", "*", "agent-"+s.t.Name()+"-*.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	var all []byte
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, text...)
	}
	return string(all)
}

// showLog shows the end of it.
func (s *scene) showLog() {
	lines := strings.Split(strings.TrimSpace(s.log()), "\n")
	for _, line := range lines[max(0, len(lines)-15):] {
		s.t.Logf("the agent wrote %.240s", line)
	}
}
