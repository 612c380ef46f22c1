package policy_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	admission "k8s.io/pod-security-admission/policy"

	"github.com/capdrift/capdrift/drift"
	"github.com/capdrift/capdrift/kube"
	"github.com/capdrift/capdrift/policy"
)

// shared are the checks of Kubernetes' evaluator that our packs answer, and by
// which rule.
var shared = map[admission.CheckID]string{
	"privileged":                "pss-baseline-privileged",
	"capabilities_baseline":     "pss-baseline-capabilities",
	"seccompProfile_baseline":   "pss-baseline-seccomp",
	"capabilities_restricted":   "pss-restricted-capabilities",
	"allowPrivilegeEscalation":  "pss-restricted-privilege-escalation",
	"runAsNonRoot":              "pss-restricted-run-as-non-root",
	"runAsUser":                 "pss-restricted-run-as-user",
	"seccompProfile_restricted": "pss-restricted-seccomp",
}

// TestAgreesWithKubernetes holds the two packs against the evaluator that the API
// server uses, check by check and profile by profile, on random pods for Linux.
// CAPDRIFT_POLICY_SEED=N repeats a run.
func TestAgreesWithKubernetes(t *testing.T) {
	const pods = 3000
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CAPDRIFT_POLICY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d pods, CAPDRIFT_POLICY_SEED=%d", pods, seed)
	g := generator{rand.New(rand.NewPCG(seed, 0))}

	var checks []admission.Check
	for _, check := range admission.DefaultChecks() {
		if _, ours := shared[check.ID]; ours {
			checks = append(checks, check)
		}
	}
	if len(checks) != len(shared) {
		t.Fatalf("Kubernetes has %d of our %d checks", len(checks), len(shared))
	}
	evaluator, err := admission.NewEvaluator(checks, nil)
	if err != nil {
		t.Fatal(err)
	}
	both := make(map[string]int) // how often each check said yes, and no
	for i := range pods {
		spec := g.pod()
		rules, profiles := judged(t, spec)
		for _, check := range checks {
			newest := check.Versions[len(check.Versions)-1]
			result := newest.CheckPod(&metav1.ObjectMeta{}, spec)
			both[fmt.Sprint(check.ID, result.Allowed)]++
			if ours := rules[shared[check.ID]]; ours != result.Allowed {
				t.Fatalf("pod %d: Kubernetes' %s allows it: %v (%s); our %s: %v\n%s",
					i, check.ID, result.Allowed, result.ForbiddenDetail, shared[check.ID], ours, manifest(t, spec))
			}
		}
		for _, level := range []api.Level{api.LevelBaseline, api.LevelRestricted} {
			all := admission.AggregateCheckResults(evaluator.EvaluatePod(api.LevelVersion{Level: level, Version: api.LatestVersion()}, &metav1.ObjectMeta{}, spec))
			both[fmt.Sprint(level, all.Allowed)]++
			if ours := profiles["pss-"+string(level)]; ours != all.Allowed {
				t.Fatalf("pod %d: Kubernetes' %s allows it: %v (%s); our pack: %v\n%s", i, level, all.Allowed, all.ForbiddenDetail(), ours, manifest(t, spec))
			}
		}
	}
	// A generator that only ever makes bad pods would show nothing.
	for _, what := range append(checkNames(checks), string(api.LevelBaseline), string(api.LevelRestricted)) {
		for _, allowed := range []bool{true, false} {
			if n := both[fmt.Sprint(what, allowed)]; n < pods/50 {
				t.Errorf("%s said %v of only %d pods", what, allowed, n)
			}
		}
	}
}

func checkNames(checks []admission.Check) (names []string) {
	for _, check := range checks {
		names = append(names, string(check.ID))
	}
	return names
}

var packs = slices.DeleteFunc(policy.Embedded(), func(p policy.Pack) bool { return p.Name != "pss-baseline" && p.Name != "pss-restricted" })

// judged tells which rules and which packs allow the pod on paper. It is read as
// capdrift reads manifests.
func judged(t *testing.T, spec *corev1.PodSpec) (rules, profiles map[string]bool) {
	t.Helper()
	manifests, err := kube.ReadManifests(strings.NewReader(manifest(t, spec)), "pod.json")
	if err != nil {
		t.Fatal(err)
	}
	var report drift.Report
	for _, c := range manifests.Objects[0].Pod.Containers {
		report.Containers = append(report.Containers, drift.Container{Name: c.Name, Declared: drift.Declared{Pod: &c.Security}})
	}
	if want := len(spec.InitContainers) + len(spec.Containers) + len(spec.EphemeralContainers); len(report.Containers) != want {
		t.Fatalf("%d containers were read, want %d", len(report.Containers), want)
	}
	p, err := policy.Compile(packs, nil)
	if err != nil {
		t.Fatal(err)
	}
	rules, profiles = make(map[string]bool), make(map[string]bool)
	for _, r := range p.Judge(report, time.Time{}).Results {
		allows := map[policy.Verdict]bool{policy.Pass: true, policy.Fail: false}
		allowed, certain := allows[r.Declared.Verdict]
		if !certain || r.Actual.Verdict == policy.Pass || r.Actual.Verdict == policy.Fail {
			t.Fatalf("%s says %s and %s of a manifest", r.Rule.ID, r.Declared.Verdict, r.Actual.Verdict)
		}
		note := func(to map[string]bool, key string) {
			before, seen := to[key]
			to[key] = allowed && (before || !seen)
		}
		note(rules, r.Rule.ID)
		note(profiles, r.Rule.Pack)
	}
	return rules, profiles
}

func manifest(t *testing.T, spec *corev1.PodSpec) string {
	t.Helper()
	text, err := json.Marshal(corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: *spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// generator makes pods of which about as many are allowed as not: each has a mood,
// in which it does what the profiles want, or anything.
type generator struct{ *rand.Rand }

func (g generator) pod() *corev1.PodSpec {
	mood := g.IntN(4) // 0: anything
	spec := &corev1.PodSpec{HostUsers: oneOf(g, nil, nil, nil, new(true), new(false))}
	if g.IntN(4) > 0 || mood == 3 {
		spec.SecurityContext = &corev1.PodSecurityContext{
			RunAsUser:      oneOf(g, nil, nil, nil, new(int64(0)), new(int64(1000))),
			RunAsNonRoot:   oneOf(g, nil, nil, nil, new(true), new(false)),
			SeccompProfile: g.seccomp(),
		}
		if mood == 3 {
			spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
		}
	}
	for i := range 1 + g.IntN(3) {
		spec.Containers = append(spec.Containers, corev1.Container{Name: fmt.Sprintf("app-%d", i), SecurityContext: g.context(mood)})
	}
	for i := range g.IntN(2) {
		spec.InitContainers = append(spec.InitContainers, corev1.Container{
			Name: fmt.Sprintf("init-%d", i), SecurityContext: g.context(mood), RestartPolicy: oneOf(g, nil, new(corev1.ContainerRestartPolicyAlways)),
		})
	}
	for range g.IntN(5) / 4 {
		spec.EphemeralContainers = append(spec.EphemeralContainers, corev1.EphemeralContainer{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger", SecurityContext: g.context(mood)},
		})
	}
	return spec
}

func (g generator) context(mood int) *corev1.SecurityContext {
	if mood == 3 && g.IntN(12) > 0 { // what Restricted wants
		return &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), RunAsNonRoot: oneOf(g, nil, new(true)), RunAsUser: oneOf(g, nil, new(int64(1))),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: oneOf(g, nil, []corev1.Capability{"NET_BIND_SERVICE"})},
		}
	}
	if mood > 0 && g.IntN(8) > 0 { // what Baseline allows
		if g.IntN(3) == 0 {
			return nil
		}
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: oneOf(g, nil, []corev1.Capability{"CHOWN", "SETPCAP"})}}
	}
	s := &corev1.SecurityContext{
		Privileged:               oneOf(g, nil, nil, new(true), new(false)),
		AllowPrivilegeEscalation: oneOf(g, nil, new(true), new(false)),
		RunAsUser:                oneOf(g, nil, nil, new(int64(0)), new(int64(1000))),
		RunAsNonRoot:             oneOf(g, nil, nil, new(true), new(false)),
		SeccompProfile:           g.seccomp(),
	}
	if g.IntN(4) > 0 {
		s.Capabilities = &corev1.Capabilities{Add: g.names(), Drop: g.names()}
	}
	return s
}

func (g generator) seccomp() *corev1.SeccompProfile {
	return oneOf(g, nil, nil, nil, &corev1.SeccompProfile{Type: "RuntimeDefault"}, &corev1.SeccompProfile{Type: "Localhost", LocalhostProfile: new("audit.json")},
		&corev1.SeccompProfile{Type: "Unconfined"}, &corev1.SeccompProfile{}, &corev1.SeccompProfile{Type: "runtime/default"})
}

// names are of every spelling that people use, and of none.
func (g generator) names() []corev1.Capability {
	var list []corev1.Capability
	for range g.IntN(4) {
		list = append(list, oneOf[corev1.Capability](g, "ALL", "ALL", "all", "CAP_ALL", "NET_BIND_SERVICE", "NET_BIND_SERVICE", "CAP_NET_BIND_SERVICE", "net_bind_service",
			"CHOWN", "AUDIT_WRITE", "SETPCAP", "CAP_CHOWN", "chown", "NET_RAW", "NET_ADMIN", "SYS_ADMIN", "BOGUS", "", " CHOWN", "FOWNER", "SETFCAP", "MKNOD"))
	}
	return list
}

func oneOf[T any](g generator, values ...T) T { return values[g.IntN(len(values))] }
