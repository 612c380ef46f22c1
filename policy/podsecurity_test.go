package policy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// answering says by which rule of each pack we answer a check of Kubernetes' evaluator;
// the rule's id begins with the pack's name. In the restricted pack a rule stands for
// the baseline's check too, which applies in the versions that have no other.
var answering = map[admission.CheckID]string{
	"hostNamespaces":             "host-namespaces",
	"hostPathVolumes":            "host-path",
	"hostPorts":                  "host-ports",
	"hostProbesAndHostLifecycle": "host-probes",
	"privileged":                 "privileged",
	"procMount":                  "proc-mount",
	"procMount_restricted":       "proc-mount",
	"seLinuxOptions":             "selinux",
	"sysctls":                    "sysctls",
	"appArmorProfile":            "apparmor",
	"windowsHostProcess":         "windows-host-process",
	"capabilities_baseline":      "capabilities",
	"capabilities_restricted":    "capabilities",
	"seccompProfile_baseline":    "seccomp",
	"seccompProfile_restricted":  "seccomp",
	"restrictedVolumes":          "volumes",
	"allowPrivilegeEscalation":   "privilege-escalation",
	"runAsNonRoot":               "run-as-non-root",
	"runAsUser":                  "run-as-user",
}

// TestAgreesWithKubernetes holds the two packs against the evaluator that the API
// server uses: every check and every level, in each version in which something
// changes, the one before it and one to come, on random pods.
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
	checks := admission.DefaultChecks()
	if len(checks) != len(answering) {
		t.Fatalf("Kubernetes has %d checks, we answer %d", len(checks), len(answering))
	}
	evaluator, err := admission.NewEvaluator(checks, nil)
	if err != nil {
		t.Fatal(err)
	}
	versions := versionsOf(t, checks)
	t.Logf("%d pods in %v, CAPDRIFT_POLICY_SEED=%d", pods, versions, seed)
	var lock sync.Mutex
	both := make(map[answer]int) // how often each check said yes, and no
	t.Run("pods", func(t *testing.T) {
		const shards = 8
		for shard := range shards {
			t.Run(strconv.Itoa(shard), func(t *testing.T) {
				t.Parallel()
				g, mine := generator{Rand: rand.New(rand.NewPCG(seed, uint64(shard)))}, make(map[answer]int)
				for range pods / shards {
					agrees(t, g.pod(), versions, checks, evaluator, mine)
				}
				lock.Lock()
				defer lock.Unlock()
				for what, n := range mine {
					both[what] += n
				}
			})
		}
	})
	// A generator that only ever makes bad pods would show nothing.
	asked := []string{string(api.LevelBaseline), string(api.LevelRestricted)}
	for _, check := range checks {
		for _, version := range check.Versions {
			asked = append(asked, named(check.ID, version))
		}
	}
	for _, what := range asked {
		for _, allowed := range []bool{true, false} {
			if n := both[answer{what, allowed}]; n < pods/50 {
				t.Errorf("%s said %v of only %d pods", what, allowed, n)
			}
		}
	}
}

// answer is what a check or a level said.
type answer struct {
	who     string
	allowed bool
}

func named(id admission.CheckID, check admission.VersionedCheck) string {
	return fmt.Sprintf("%s since %s", id, check.MinimumVersion.String())
}

// agrees holds the packs against the evaluator on one pod, in each version.
func agrees(t *testing.T, pod *corev1.Pod, versions []policy.Version, checks []admission.Check, evaluator admission.Evaluator, said map[answer]int) {
	t.Helper()
	report := reportOf(t, pod)
	for _, version := range versions {
		rules, levels := judged(t, report, version)
		for _, level := range []api.Level{api.LevelBaseline, api.LevelRestricted} {
			for _, check := range active(checks, level, version) {
				result := check.CheckPod(&pod.ObjectMeta, &pod.Spec)
				said[answer{named(check.id, check.VersionedCheck), result.Allowed}]++
				rule := fmt.Sprintf("pss-%s-%s", level, answering[check.id])
				ours, known := rules[level][rule]
				if !known || ours != result.Allowed {
					t.Fatalf("%s: Kubernetes' %s allows it: %v (%s); our %s: %v\n%s",
						version, check.id, result.Allowed, result.ForbiddenDetail, rule, ours, manifest(t, pod))
				}
				delete(rules[level], rule)
			}
			for rule, allowed := range rules[level] {
				if !allowed {
					t.Fatalf("%s: %s fails, and Kubernetes has no such check\n%s", version, rule, manifest(t, pod))
				}
			}
			all := admission.AggregateCheckResults(evaluator.EvaluatePod(
				api.LevelVersion{Level: level, Version: api.MajorMinorVersion(1, int(version))}, &pod.ObjectMeta, &pod.Spec))
			said[answer{string(level), all.Allowed}]++
			if levels[level] != all.Allowed {
				t.Fatalf("%s: Kubernetes' %s allows it: %v (%s); our pack: %v\n%s", version, level, all.Allowed, all.ForbiddenDetail(), levels[level], manifest(t, pod))
			}
		}
	}
}

// versionsOf are those in which a check begins or changes, the one before each, and one
// that no check knows yet.
func versionsOf(t *testing.T, checks []admission.Check) []policy.Version {
	t.Helper()
	found := map[policy.Version]bool{policy.LatestVersion + 1: true}
	for _, check := range checks {
		for _, version := range check.Versions {
			minor := policy.Version(version.MinimumVersion.Minor())
			if minor > policy.LatestVersion {
				t.Errorf("%s changes in %s, later than the latest version that we know", check.ID, minor)
			}
			found[minor], found[max(minor-1, 0)] = true, true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// activeCheck is a check as it applies in one version.
type activeCheck struct {
	id admission.CheckID
	admission.VersionedCheck
}

// active are the checks of a level in a version, as the evaluator chooses them: the
// restricted level has those of the baseline that it does not override.
func active(checks []admission.Check, level api.Level, version policy.Version) (list []activeCheck) {
	overridden := make(map[admission.CheckID]bool)
	for _, check := range checks {
		if check.Level != api.LevelBaseline && level == api.LevelBaseline {
			continue
		}
		at := -1
		for i, one := range check.Versions {
			if one.MinimumVersion.Minor() <= int(version) {
				at = i
			}
		}
		if at >= 0 {
			list = append(list, activeCheck{check.ID, check.Versions[at]})
			for _, id := range check.Versions[at].OverrideCheckIDs {
				overridden[id] = true
			}
		}
	}
	return slices.DeleteFunc(list, func(c activeCheck) bool { return overridden[c.id] })
}

// standards are the two packs, ready to judge.
var standards = func() *policy.Policy {
	packs, err := policy.Choose(nil, "pss-baseline", "pss-restricted")
	if err != nil {
		panic(err) // they are built in
	}
	p, err := policy.Compile(packs, nil)
	if err != nil {
		panic(err) // they are built in
	}
	return p
}()

// reportOf is the pod as capdrift reads manifests.
func reportOf(t *testing.T, pod *corev1.Pod) drift.Report {
	t.Helper()
	manifests, err := kube.ReadManifests(strings.NewReader(manifest(t, pod)), "pod.json")
	if err != nil {
		t.Fatalf("%v\n%s", err, manifest(t, pod))
	}
	var report drift.Report
	for _, c := range slices.Concat(manifests.Objects, manifests.Windows)[0].Pod.Containers {
		report.Containers = append(report.Containers, drift.Container{Name: c.Name, Declared: drift.Declared{Pod: &c.Security}})
	}
	spec := &pod.Spec
	if want := len(spec.InitContainers) + len(spec.Containers) + len(spec.EphemeralContainers); len(report.Containers) != want {
		t.Fatalf("%d containers were read, want %d", len(report.Containers), want)
	}
	return report
}

// judged tells which rules of each level, and which levels, allow the pod on paper.
func judged(t *testing.T, report drift.Report, version policy.Version) (rules map[api.Level]map[string]bool, levels map[api.Level]bool) {
	t.Helper()
	rules = map[api.Level]map[string]bool{api.LevelBaseline: {}, api.LevelRestricted: {}}
	levels = map[api.Level]bool{api.LevelBaseline: true, api.LevelRestricted: true}
	for _, r := range standards.At(version).Judge(report, time.Time{}).Results {
		allows := map[policy.Verdict]bool{policy.Pass: true, policy.Fail: false}
		allowed, certain := allows[r.Declared.Verdict]
		if !certain || r.Actual.Verdict == policy.Pass || r.Actual.Verdict == policy.Fail {
			t.Fatalf("%s says %s (%s) and %s of a manifest", r.Rule.ID, r.Declared.Verdict, r.Declared.Reason, r.Actual.Verdict)
		}
		level := api.Level(strings.TrimPrefix(r.Rule.Pack, "pss-"))
		before, seen := rules[level][r.Rule.ID]
		rules[level][r.Rule.ID] = allowed && (before || !seen)
		levels[level] = levels[level] && allowed
	}
	return rules, levels
}

func manifest(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// generator makes pods of which about as many are allowed as not: each has a mood, in
// which it does what a profile wants but for a slip now and then, or anything.
type generator struct {
	*rand.Rand
	mood mood
}

type mood int

const (
	anything mood = iota
	likeBaseline
	likeRestricted
)

// slips tells whether a field is chosen that the pod's profile may forbid.
func (g generator) slips() bool {
	if g.mood == anything {
		return g.IntN(2) == 0
	}
	return g.IntN(60) == 0
}

func (g generator) pod() *corev1.Pod {
	g.mood = mood(g.IntN(3))
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{HostUsers: oneOf(g, nil, nil, nil, new(true), new(false))},
	}
	spec := &pod.Spec
	if g.slips() {
		spec.HostNetwork, spec.HostPID, spec.HostIPC = g.IntN(3) == 0, g.IntN(3) == 0, g.IntN(3) == 0
	}
	if g.IntN(5) == 0 {
		spec.OS = &corev1.PodOS{Name: oneOf[corev1.OSName](g, "windows", "windows", "linux", "Windows", "")}
	}
	for range g.IntN(4) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: fmt.Sprintf("v%d", len(spec.Volumes)), VolumeSource: g.volume()})
	}
	spec.SecurityContext = g.podContext()
	for i := range 1 + g.IntN(2) {
		c := g.container(fmt.Sprintf("app-%d", i))
		spec.Containers = append(spec.Containers, c)
	}
	for i := range g.IntN(2) {
		c := g.container(fmt.Sprintf("init-%d", i))
		c.RestartPolicy = oneOf(g, nil, new(corev1.ContainerRestartPolicyAlways))
		spec.InitContainers = append(spec.InitContainers, c)
	}
	for range g.IntN(5) / 4 {
		spec.EphemeralContainers = append(spec.EphemeralContainers, corev1.EphemeralContainer{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon(g.container("debugger")),
		})
	}
	pod.Annotations = g.annotations()
	return pod
}

func (g generator) annotations() map[string]string {
	list := map[string]string{"kubernetes.io/config.seen": "unconfined"}
	if g.slips() || g.IntN(4) == 0 {
		values := []string{"runtime/default", "localhost/x", "localhost/"}
		if g.slips() {
			values = append(values, "unconfined", "docker/default", "", "localhost", "RuntimeDefault")
		}
		for range 1 + g.IntN(2) {
			name := oneOf(g, "app-0", "app-1", "init-0", "debugger", "nobody", "")
			list[oneOf(g, "container.apparmor.security.beta.kubernetes.io/"+name, "container.seccomp.security.alpha.kubernetes.io/"+name,
				"seccomp.security.alpha.kubernetes.io/pod", "seccomp.security.alpha.kubernetes.io/pods", "container.apparmor.security.beta.kubernetes.io")] = oneOf(g, values...)
		}
	}
	return list
}

func (g generator) volume() (v corev1.VolumeSource) {
	for range 1 + g.IntN(12)/10 {
		if !g.slips() {
			oneOf(g,
				func() { v.ConfigMap = &corev1.ConfigMapVolumeSource{} }, func() { v.CSI = &corev1.CSIVolumeSource{} }, func() { v.DownwardAPI = &corev1.DownwardAPIVolumeSource{} },
				func() { v.EmptyDir = &corev1.EmptyDirVolumeSource{} }, func() { v.Ephemeral = &corev1.EphemeralVolumeSource{} }, func() { v.Image = &corev1.ImageVolumeSource{} },
				func() { v.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{} }, func() { v.Projected = &corev1.ProjectedVolumeSource{} },
				func() { v.Secret = &corev1.SecretVolumeSource{} })()
			continue
		}
		oneOf(g,
			func() {}, func() { v.HostPath = &corev1.HostPathVolumeSource{} }, func() { v.HostPath = &corev1.HostPathVolumeSource{} },
			func() { v.GCEPersistentDisk = &corev1.GCEPersistentDiskVolumeSource{} }, func() { v.AWSElasticBlockStore = &corev1.AWSElasticBlockStoreVolumeSource{} },
			func() { v.GitRepo = &corev1.GitRepoVolumeSource{} }, func() { v.NFS = &corev1.NFSVolumeSource{} }, func() { v.ISCSI = &corev1.ISCSIVolumeSource{} },
			func() { v.Glusterfs = &corev1.GlusterfsVolumeSource{} }, func() { v.RBD = &corev1.RBDVolumeSource{} }, func() { v.FlexVolume = &corev1.FlexVolumeSource{} },
			func() { v.Cinder = &corev1.CinderVolumeSource{} }, func() { v.CephFS = &corev1.CephFSVolumeSource{} }, func() { v.Flocker = &corev1.FlockerVolumeSource{} },
			func() { v.FC = &corev1.FCVolumeSource{} }, func() { v.AzureFile = &corev1.AzureFileVolumeSource{} }, func() { v.VsphereVolume = &corev1.VsphereVirtualDiskVolumeSource{} },
			func() { v.Quobyte = &corev1.QuobyteVolumeSource{} }, func() { v.AzureDisk = &corev1.AzureDiskVolumeSource{} },
			func() { v.PhotonPersistentDisk = &corev1.PhotonPersistentDiskVolumeSource{} }, func() { v.PortworxVolume = &corev1.PortworxVolumeSource{} },
			func() { v.ScaleIO = &corev1.ScaleIOVolumeSource{} }, func() { v.StorageOS = &corev1.StorageOSVolumeSource{} })()
	}
	return v
}

func (g generator) podContext() *corev1.PodSecurityContext {
	if g.IntN(4) == 0 && g.mood != likeRestricted {
		return nil
	}
	s := &corev1.PodSecurityContext{AppArmorProfile: g.appArmor(), SELinuxOptions: g.seLinux(), WindowsOptions: g.windows(), SeccompProfile: g.seccomp()}
	for range g.IntN(3) {
		name := oneOf(g, "kernel.shm_rmid_forced", "net.ipv4.tcp_syncookies")
		if g.slips() || g.IntN(6) == 0 {
			name = oneOf(g, "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
				"net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", "net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat")
		}
		if g.slips() {
			name = oneOf(g, "kernel.msgmax", "net.ipv4.tcp_syncookies ", "")
		}
		s.Sysctls = append(s.Sysctls, corev1.Sysctl{Name: name, Value: "1"})
	}
	s.RunAsUser = oneOf(g, nil, nil, new(int64(1000)))
	if g.mood == likeRestricted {
		s.RunAsNonRoot, s.SeccompProfile = new(true), &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	if g.slips() {
		s.RunAsUser, s.RunAsNonRoot = oneOf(g, nil, new(int64(0)), new(int64(1000))), oneOf(g, nil, new(true), new(false))
	}
	return s
}

func (g generator) container(name string) corev1.Container {
	c := corev1.Container{Name: name, SecurityContext: g.context()}
	for range g.IntN(3) {
		port := corev1.ContainerPort{ContainerPort: 80}
		if g.slips() {
			port.HostPort = oneOf[int32](g, 0, 80, 8080)
		}
		c.Ports = append(c.Ports, port)
	}
	c.LivenessProbe, c.ReadinessProbe, c.StartupProbe = g.probe(), g.probe(), g.probe()
	if g.IntN(3) == 0 {
		c.Lifecycle = &corev1.Lifecycle{PostStart: g.lifecycle(), PreStop: g.lifecycle()}
	}
	return c
}

func (g generator) host() string {
	if g.slips() {
		return oneOf(g, "", "127.0.0.1", "node.example")
	}
	return ""
}

func (g generator) probe() *corev1.Probe {
	return oneOf(g, nil, nil, &corev1.Probe{}, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: g.host()}}},
		&corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: g.host()}, Exec: &corev1.ExecAction{}}})
}

func (g generator) lifecycle() *corev1.LifecycleHandler {
	return oneOf(g, nil, &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{}}, &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Host: g.host()}},
		&corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Host: g.host()}})
}

func (g generator) context() *corev1.SecurityContext {
	s := &corev1.SecurityContext{AppArmorProfile: g.appArmor(), SELinuxOptions: g.seLinux(), WindowsOptions: g.windows()}
	s.SeccompProfile = g.seccomp()
	switch g.mood {
	case likeRestricted:
		s.AllowPrivilegeEscalation, s.RunAsNonRoot, s.RunAsUser = new(false), oneOf(g, nil, new(true)), oneOf(g, nil, new(int64(1)))
		s.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: oneOf(g, nil, []corev1.Capability{"NET_BIND_SERVICE"})}
	case likeBaseline:
		if g.IntN(3) == 0 {
			return nil
		}
		s.Capabilities = &corev1.Capabilities{Add: oneOf(g, nil, []corev1.Capability{"CHOWN", "SETPCAP"})}
	}
	if g.slips() {
		s.Privileged = oneOf(g, nil, new(true), new(false))
	}
	if g.slips() {
		s.ProcMount = oneOf(g, new(corev1.UnmaskedProcMount), new(corev1.DefaultProcMount), new(corev1.ProcMountType("")), new(corev1.ProcMountType("default")))
	}
	if g.slips() {
		s.AllowPrivilegeEscalation, s.RunAsNonRoot = oneOf(g, nil, new(true), new(false)), oneOf(g, nil, new(true), new(false))
	}
	if g.slips() {
		s.RunAsUser = oneOf(g, nil, new(int64(0)), new(int64(1000)), new(int64(-1)))
	}
	if g.slips() {
		s.Capabilities = oneOf(g, nil, &corev1.Capabilities{Add: g.names(), Drop: g.names()})
	}
	return s
}

func (g generator) seccomp() *corev1.SeccompProfile {
	if g.slips() {
		return oneOf(g, &corev1.SeccompProfile{Type: "Unconfined"}, &corev1.SeccompProfile{}, &corev1.SeccompProfile{Type: "runtime/default"})
	}
	return oneOf(g, nil, nil, &corev1.SeccompProfile{Type: "RuntimeDefault"}, &corev1.SeccompProfile{Type: "Localhost", LocalhostProfile: new("audit.json")})
}

func (g generator) appArmor() *corev1.AppArmorProfile {
	if g.slips() {
		return oneOf(g, nil, &corev1.AppArmorProfile{Type: "Unconfined"}, &corev1.AppArmorProfile{}, &corev1.AppArmorProfile{Type: "runtime/default"})
	}
	return oneOf(g, nil, nil, &corev1.AppArmorProfile{Type: "RuntimeDefault"}, &corev1.AppArmorProfile{Type: "Localhost", LocalhostProfile: new("x")})
}

func (g generator) seLinux() *corev1.SELinuxOptions {
	if g.slips() {
		return oneOf(g, nil, &corev1.SELinuxOptions{Type: "spc_t"}, &corev1.SELinuxOptions{User: "u"}, &corev1.SELinuxOptions{Role: "r", Type: "container_t"})
	}
	return oneOf(g, nil, nil, nil, nil, &corev1.SELinuxOptions{Level: "s0"}, &corev1.SELinuxOptions{Type: oneOf(g, "container_t", "container_init_t", "container_kvm_t", "container_engine_t")})
}

func (g generator) windows() *corev1.WindowsSecurityContextOptions {
	if g.slips() {
		return &corev1.WindowsSecurityContextOptions{HostProcess: oneOf(g, nil, new(true), new(false))}
	}
	return oneOf(g, nil, nil, &corev1.WindowsSecurityContextOptions{})
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
