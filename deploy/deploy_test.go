// Package deploy tests the chart and what is rendered from it, as those who install it would
// meet it: with Helm, Kubernetes' own schemas, and the program that it runs.
package deploy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "render install.yaml and kustomize anew, and the audit in the documentation")

// What the Makefile's chart-tools builds.
const (
	helmProgram        = "helm-v4.3.1"
	kubeconformProgram = "kubeconform-v0.8.0"
	kustomizeProgram   = "kustomize-v5.7.1"
)

// tool returns the path of a program that the tests need. A laptop may lack it.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", ".cache", "tools", name))
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat(path)
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("CI must have %s; run: make chart-tools", name)
	default:
		t.Skipf("needs %s; run: make chart", name)
	}
	return path
}

// run returns what a program wrote, and its exit status.
func run(t testing.TB, stdin string, program string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

var scratch string // a folder that lasts as long as the tests

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if scratch, err = os.MkdirTemp("", "capdrift-deploy-"); err != nil {
		panic(err)
	}
	status := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(status)
}

// capdrift is the program, built from the sources around.
var capdrift = sync.OnceValues(func() (string, error) {
	program := filepath.Join(scratch, "capdrift")
	if text, err := exec.Command("go", "build", "-o", program, "../cmd/capdrift").CombinedOutput(); err != nil {
		return "", errors.New(string(text))
	}
	return program, nil
})

func program(t testing.TB) string {
	t.Helper()
	path, err := capdrift()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// render is `helm template` as a user types it.
func render(t testing.TB, flags ...string) string {
	t.Helper()
	args := append([]string{"template", "capdrift", "chart", "--namespace", "capdrift"}, flags...)
	stdout, stderr, status := run(t, "", tool(t, helmProgram), args...)
	if status != 0 {
		t.Fatalf("helm %q: %s", args, stderr)
	}
	return stdout
}

// object is what every object has, and its text.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }

	text string
}

func objects(t testing.TB, manifest string) (list []object) {
	t.Helper()
	for _, text := range strings.Split("\n"+manifest, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if o.text = text; o.Kind != "" {
			list = append(list, o)
		}
	}
	return list
}

// one decodes the only object of a kind, strictly where the type is Kubernetes' own.
func one[T any](t testing.TB, manifest, kind string) (decoded T) {
	t.Helper()
	list := slices.DeleteFunc(objects(t, manifest), func(o object) bool { return o.Kind != kind })
	if len(list) != 1 {
		t.Fatalf("%d objects of kind %s", len(list), kind)
	}
	if err := yaml.UnmarshalStrict([]byte(list[0].text), &decoded); err != nil {
		t.Fatalf("%v in\n%s", err, list[0].text)
	}
	return decoded
}

// row is one set of values.
type row struct {
	name  string
	flags []string
}

func set(values ...string) (flags []string) {
	for _, value := range values {
		flags = append(flags, "--set", value)
	}
	return flags
}

var everything = append([]string{"--values", "testdata/everything.yaml", "--set-file", "agent.policy.packFiles.shop=testdata/pack.yaml"},
	"--set-file", "agent.policy.exceptionFiles.capdrift=exceptions.yaml")

// everythingOfBefore are values that somebody set when the chart was younger.
var everythingOfBefore = append([]string{"--values", "testdata/everything-form1.yaml"}, everything[2:]...)

// matrix is what is rendered and held against schemas and promises.
func matrix() []row {
	rows := []row{
		{"defaults", nil},
		{"everything", everything},
		{"nothing", []string{"--values", "testdata/nothing.yaml"}},
		{"deep_inspection", set("agent.deepInspection=true")},
		{"hostPID", set("agent.hostPID=true")},
		{"socket", set("agent.runtime.socket=/run/other/runtime.sock")},
		{"socket_beside_others", set("agent.runtime.socket=/run/cri-dockerd.sock")},
		{"mixed_runtimes", set("agent.runtime.sockets={/run/crio/crio.sock,/run/k3s/containerd/containerd.sock}")},
		{"journal_off", set("agent.journal.enabled=false")},
		{"on_delete", set("agent.updateStrategy.type=OnDelete")},
		{"fullname", set("fullnameOverride=on")},
		{"gitops", []string{"--values", "testdata/gitops.yaml"}},
		{"everything_of_before", everythingOfBefore},
		{"namespace", set("namespace.create=true")},
		{"digest", set("image.digest=sha256:" + strings.Repeat("a", 64))},
		{"name_like_a_number", set("agent.api.tcp.enabled=true", "agent.priorityClassName=1e3", "agent.podLabels.on=yes") /* strings all the same */},
	}
	rows[len(rows)-1].flags = append(rows[len(rows)-1].flags, "--set-string", "agent.api.tcp.secretName=1234", "--set-string", "image.tag=20261121")
	for _, preset := range []string{"containerd", "crio", "k3s", "rke2", "k0s", "microk8s", "talos", "bottlerocket", "openshift", "gke"} {
		rows = append(rows, row{"preset_" + preset, set("agent.runtime.preset=" + preset)})
	}
	return rows
}

func TestLint(t *testing.T) {
	for _, flags := range [][]string{nil, everything} {
		stdout, stderr, status := run(t, "", tool(t, helmProgram), append([]string{"lint", "--strict", "chart"}, flags...)...)
		if status != 0 || strings.Contains(stdout, "[WARNING]") {
			t.Errorf("helm lint %q: %s%s", flags, stdout, stderr)
		}
	}
}

// TestSchemas: Kubernetes takes all that is rendered, and knows every field of it.
func TestSchemas(t *testing.T) {
	kubeconform := tool(t, kubeconformProgram)
	schemas := writeSchemas(t)
	validate := func(manifest string) (string, int) {
		stdout, stderr, status := run(t, manifest, kubeconform, "-strict", "-summary", "-output", "json",
			"-schema-location", schemas+"/{{.Group}}-{{.ResourceAPIVersion}}-{{.ResourceKind}}.json")
		return stdout + stderr, status
	}
	for _, row := range matrix() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			manifest := render(t, row.flags...)
			text, status := validate(manifest)
			var told struct{ Summary struct{ Valid, Skipped int } }
			if err := json.Unmarshal([]byte(text), &told); err != nil || status != 0 || told.Summary.Valid != len(objects(t, manifest)) || told.Summary.Skipped != 0 {
				t.Errorf("status %d, %v: %s", status, err, text)
			}
		})
	}
	// The schemas refuse what is wrong: else that they accept would prove nothing.
	whole := render(t, append(set("agent.runtime.preset=openshift"), everything...)...)
	for what, change := range map[string][2]string{
		"an unknown field":                  {"readOnlyRootFilesystem: true", "readOnlyRootFileSystem: true"},
		"text for a number":                 {"terminationGracePeriodSeconds: 10", `terminationGracePeriodSeconds: "10"`},
		"no selector":                       {"  selector:\n", "  unselector:\n"},
		"an unknown field of a PodMonitor":  {"podMetricsEndpoints:", "podMetricEndpoints:"},
		"an unknown field of a rule":        {"- alert: CapdriftHigh", "- alarm: CapdriftHigh"},
		"an unknown field of a constraint":  {"allowHostIPC: false", "allowHostIpc: false"},
		"a policy for what is no direction": {"policyTypes: [Ingress, Egress]", "policyTypes: Ingress"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			wrong := strings.Replace(whole, change[0], change[1], 1)
			if wrong == whole {
				t.Fatalf("%q is not there", change[0])
			}
			if text, status := validate(wrong); status != 1 {
				t.Errorf("status %d: %s", status, text)
			}
		})
	}
}

// TestPod: whatever the values, the agent is no more than docs/kubernetes.md says.
func TestPod(t *testing.T) {
	for _, row := range matrix() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			manifest := render(t, row.flags...)
			pod := one[appsv1.DaemonSet](t, manifest, "DaemonSet").Spec.Template.Spec
			everything := strings.HasPrefix(row.name, "everything")
			checkContext(t, pod, everything || row.name == "deep_inspection")
			checkVolumes(t, pod)
			if pod.HostPID != (everything || row.name == "hostPID") {
				t.Errorf("hostPID %v", pod.HostPID)
			}
			if account := one[corev1.ServiceAccount](t, manifest, "ServiceAccount"); *account.AutomountServiceAccountToken || *pod.AutomountServiceAccountToken || account.Name != pod.ServiceAccountName {
				t.Errorf("service account %+v, pod's %q", account, pod.ServiceAccountName)
			}
			for _, o := range objects(t, manifest) {
				if strings.Contains(o.Kind, "Role") {
					t.Errorf("%s %s: the agent asks the API server for nothing", o.Kind, o.Metadata.Name)
				}
			}
		})
	}
}

func checkContext(t *testing.T, pod corev1.PodSpec, deep bool) {
	t.Helper()
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 || pod.HostNetwork || pod.HostIPC || pod.SecurityContext != nil {
		t.Errorf("pod %+v", pod)
	}
	c := pod.Containers[0]
	security := c.SecurityContext
	if *security.RunAsUser != 0 || *security.Privileged || *security.AllowPrivilegeEscalation || !*security.ReadOnlyRootFilesystem ||
		security.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || security.ProcMount != nil {
		t.Errorf("security context %+v", security)
	}
	var added []corev1.Capability
	if deep {
		added = []corev1.Capability{"SYS_PTRACE"}
	}
	if caps := security.Capabilities; !slices.Equal(caps.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(caps.Add, added) {
		t.Errorf("capabilities %+v, want %q added", caps, added)
	}
	if unconfined := security.AppArmorProfile != nil; unconfined != deep {
		t.Errorf("AppArmor profile %+v", security.AppArmorProfile)
	}
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
		if !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == "health" && p.ContainerPort == probe.GRPC.Port }) {
			t.Errorf("probe of port %d, ports %+v", probe.GRPC.Port, c.Ports)
		}
	}
	for _, port := range c.Ports {
		if port.HostPort != 0 {
			t.Errorf("port %+v of the node", port)
		}
	}
}

// checkVolumes: of the host it sees no more than it needs, and writes to its journal alone.
func checkVolumes(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	host := make(map[string]string)
	for _, v := range pod.Volumes {
		if v.HostPath == nil {
			continue
		}
		path := v.HostPath.Path
		host[v.Name] = path
		switch {
		case v.Name == "proc" && path == "/proc", v.Name == "cgroup" && path == "/sys/fs/cgroup", v.Name == "journal" && filepath.Base(path) == "capdrift":
		case strings.HasPrefix(v.Name, "runtime") && *v.HostPath.Type == corev1.HostPathSocket:
		case strings.HasPrefix(v.Name, "runtime") && strings.Count(path, "/") > 1: // else it is a folder of all
		default:
			t.Errorf("%s: host path %s", v.Name, path)
		}
	}
	for _, name := range []string{"proc", "cgroup", "runtime"} {
		if host[name] == "" {
			t.Errorf("host paths %q", host)
		}
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		if _, ofHost := host[m.Name]; ofHost && m.Name != "journal" && !m.ReadOnly || m.SubPath != "" || m.MountPropagation != nil {
			t.Errorf("mount %+v", m)
		}
	}
}

// TestConfig: the agent takes the configuration that the chart writes, and finds what is in it.
func TestConfig(t *testing.T) {
	for _, row := range matrix() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			manifest := render(t, row.flags...)
			dir := t.TempDir() // stands in for the folders that the pod has
			for name, content := range configOf(t, manifest) {
				content = strings.NewReplacer("/etc/capdrift/", dir+"/", "/etc/capdrift-tls/", dir+"/").Replace(content)
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, folder := range []string{"proc", "sys/fs/cgroup"} {
				if err := os.MkdirAll(filepath.Join(dir, "host", folder), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			writeCertificates(t, dir)
			file := filepath.Join(dir, "agent.yaml")
			stdout, stderr, status := run(t, "", program(t), "agent", "--config", file, "--check-config", "--host-root", filepath.Join(dir, "host"))
			if status != 0 {
				t.Fatal(stderr)
			}
			var in struct {
				Version int
				Runtime struct {
					Endpoint  string
					Endpoints []string
				}
				Journal struct{ Dir string }
				API     struct {
					Socket string
					TCP    struct{ CertFile string }
				}
			}
			if err := yaml.Unmarshal([]byte(stdout), &in); err != nil {
				t.Fatal(err)
			}
			pod := one[appsv1.DaemonSet](t, manifest, "DaemonSet").Spec.Template.Spec
			if in.Version != 1 || (in.Runtime.Endpoint == "") == (len(in.Runtime.Endpoints) == 0) {
				t.Errorf("version %d, endpoints %q %q", in.Version, in.Runtime.Endpoint, in.Runtime.Endpoints)
			}
			paths := []string{in.API.Socket, strings.Replace(in.API.TCP.CertFile, dir, "/etc/capdrift-tls", 1)}
			for _, endpoint := range append(in.Runtime.Endpoints, in.Runtime.Endpoint) {
				paths = append(paths, strings.TrimPrefix(endpoint, "unix://"))
			}
			if in.Journal.Dir != "" {
				paths = append(paths, in.Journal.Dir+"/journal")
			}
			for _, path := range paths {
				if path != "" && !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
					return m.MountPath == path || strings.HasPrefix(path, m.MountPath+"/")
				}) {
					t.Errorf("nothing is mounted for %s", path)
				}
			}
		})
	}
}

// configOf is what the ConfigMap of the agent has, by file.
func configOf(t testing.TB, manifest string) map[string]string {
	t.Helper()
	for _, o := range objects(t, manifest) {
		var config corev1.ConfigMap
		if o.Kind != "ConfigMap" {
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(o.text), &config); err != nil {
			t.Fatal(err)
		}
		if config.Data["agent.yaml"] != "" {
			return config.Data
		}
	}
	t.Fatal("no ConfigMap has an agent.yaml")
	return nil
}

// writeCertificates makes the files that a secret of cert-manager has; the certificate is its own CA.
func writeCertificates(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"capdrift"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: certificate}, "ca.crt": {Type: "CERTIFICATE", Bytes: certificate}, "tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNotes: who installed it is told what to do next, and what was not tried.
func TestNotes(t *testing.T) {
	notes := func(flags ...string) string {
		args := append([]string{"install", "capdrift", "chart", "--namespace", "security", "--dry-run=client", "--kubeconfig", os.DevNull}, flags...)
		stdout, stderr, status := run(t, "", tool(t, helmProgram), args...)
		_, text, found := strings.Cut(stdout, "NOTES:")
		if status != 0 || !found {
			t.Fatalf("status %d: %s", status, stderr)
		}
		return text
	}
	plain := notes()
	for _, want := range []string{"kubectl -n security rollout status daemonset/capdrift-agent", "/run/containerd is not on its node", "port 7702"} {
		if !strings.Contains(plain, want) {
			t.Errorf("no %q in %s", want, plain)
		}
	}
	for _, unwanted := range []string{"has not been tried", "CAP_SYS_PTRACE"} {
		if strings.Contains(plain, unwanted) {
			t.Errorf("%q in %s", unwanted, plain)
		}
	}
	mixed := notes(set("agent.runtime.sockets={/run/crio/crio.sock}", "agent.journal.enabled=false")...)
	for _, want := range []string{"the first of these that answers on its node: /run/containerd/containerd.sock, /run/crio/crio.sock", "The journal is off"} {
		if !strings.Contains(mixed, want) {
			t.Errorf("no %q in %s", want, mixed)
		}
	}
	other := notes(set("agent.runtime.preset=crio", "agent.deepInspection=true", "agent.metrics.enabled=false")...)
	for _, want := range []string{"preset crio was reasoned", "has not been tried", "CAP_SYS_PTRACE", "/run/crio is not on its node"} {
		if !strings.Contains(other, want) {
			t.Errorf("no %q in %s", want, other)
		}
	}
}

// TestPolicy: the packs and exceptions that the configuration names are beside it.
func TestPolicy(t *testing.T) {
	config := configOf(t, render(t, everything...))
	var told struct {
		Policy struct{ Packs, Exceptions []string }
	}
	if err := yaml.Unmarshal([]byte(config["agent.yaml"]), &told); err != nil {
		t.Fatal(err)
	}
	if want := []string{"pss-restricted", "cis", "/etc/capdrift/pack-shop.yaml"}; !slices.Equal(told.Policy.Packs, want) {
		t.Errorf("packs %q, want %q", told.Policy.Packs, want)
	}
	if want := []string{"/etc/capdrift/exceptions-capdrift.yaml"}; !slices.Equal(told.Policy.Exceptions, want) {
		t.Errorf("exceptions %q, want %q", told.Policy.Exceptions, want)
	}
	for key, source := range map[string]string{"pack-shop.yaml": "testdata/pack.yaml", "exceptions-capdrift.yaml": "exceptions.yaml"} {
		if text, err := os.ReadFile(source); err != nil || config[key] != string(text) {
			t.Errorf("%s is not %s (%v):\n%s", key, source, err, config[key])
		}
	}
}

// TestSchemaRefuses: a value that is wrong is refused by its name before anything is sent.
func TestSchemaRefuses(t *testing.T) {
	for value, says := range map[string]string{
		"agnet.hostPID=true":                            "agnet",
		"agent.deepInspect=true":                        "deepInspect",
		"agent.cadence.sweeps=1s":                       "sweeps",
		"agent.runtime.preset=docker":                   "/agent/runtime/preset",
		"agent.runtime.socket=containerd.sock":          "/agent/runtime/socket",
		"agent.runtime.socket=/containerd.sock":         "/agent/runtime/socket",
		"agent.hostPID=maybe":                           "/agent/hostPID",
		"agent.health.port=80":                          "/agent/health/port",
		"agent.metrics.port=off":                        "/agent/metrics/port",
		"agent.metrics.port=65536":                      "/agent/metrics/port",
		"agent.api.kubectl.port=0":                      "/agent/api/kubectl/port",
		"agent.api.tcp.port=-1":                         "/agent/api/tcp/port",
		"agent.health.port=7701.5":                      "/agent/health/port",
		"agent.runtime.sockets[0]=/crio.sock":           "/agent/runtime/sockets",
		"agent.journal.enabled=maybe":                   "/agent/journal/enabled",
		"agent.policy.pssVersion=2.0":                   "/agent/policy/pssVersion",
		"agent.updateStrategy.type=Recreate":            "/agent/updateStrategy/type",
		"agent.updateStrategy.rollingUpdate.maxSurge=1": "maxSurge",
		"agent.extraArgs[0]=agent":                      "/agent/extraArgs",
		"agent.extraEnv[0].value=x":                     "name",
		"agent.affinity.nodeAfinity=x":                  "nodeAfinity",
		"image.pullSecrets[0].nme=x":                    "/image/pullSecrets",
		"nameOverride=Watcher":                          "/nameOverride",
		"serviceAccount.labels.a=b":                     "labels",
		"monitoring.rules.nodes=prod-1":                 "/monitoring/rules/nodes",
		"agent.cadence.sweep=15":                        "/agent/cadence/sweep",
		"agent.log.level=loud":                          "/agent/log/level",
		"agent.journal.hostPath=capdrift":               "/agent/journal/hostPath",
		"agent.journal.maxBytes=5":                      "/agent/journal/maxBytes",
		"agent.resources.limits.memory=128M":            "/agent/resources/limits/memory",
		"agent.resources.limits.memory=null":            "/agent/resources/limits",
		"agent.updateStrategy.maxUnavailable=0":         "/agent/updateStrategy/maxUnavailable",
		"agent.updateStrategy.maxUnavailable=110%":      "/agent/updateStrategy/maxUnavailable",
		"agent.api.tcp.enabled=true":                    "/agent/api/tcp/secretName",
		"agent.policy.packs[0]=/etc/passwd":             "/agent/policy/packs",
		"agent.policy.packFiles.A/B=x":                  "A/B",
		"agent.tolerations[0].effect=NoScheduling":      "/agent/tolerations",
		"image.digest=abc":                              "/image/digest",
		"image.tag=a b":                                 "/image/tag",
		"image.pullPolicy=Sometimes":                    "/image/pullPolicy",
		"networkPolicy.metricsFrom[0].pods=x":           "pods",
		"monitoring.podMonitor.interval=30":             "/monitoring/podMonitor/interval",
	} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			_, stderr, status := run(t, "", tool(t, helmProgram), "template", "capdrift", "chart", "--set", value)
			if status == 0 || !strings.Contains(stderr, says) {
				t.Errorf("status %d: %s", status, stderr)
			}
		})
	}
}

// TestChartRefuses: what no schema can say is refused too, with the value and the way out.
func TestChartRefuses(t *testing.T) {
	for says, flags := range map[string][]string{
		"monitoring.podMonitor.enabled wants agent.metrics.enabled: there is nothing to scrape": set("monitoring.podMonitor.enabled=true", "agent.metrics.enabled=false"),

		"agent.podLabels: app.kubernetes.io/instance is a label of the chart's own, by which pods are selected: take another name": set(`agent.podLabels.app\.kubernetes\.io/instance=other`),
		"commonLabels: app.kubernetes.io/name is a label of the chart's own":                                                       set(`commonLabels.app\.kubernetes\.io/name=other`),
		"monitoring.rules.labels: app.kubernetes.io/component is a label of the chart's own":                                       set(`monitoring.rules.labels.app\.kubernetes\.io/component=x`),
		"agent.podAnnotations: checksum/config is an annotation of the chart's own":                                                set("agent.podAnnotations.checksum/config=x"),

		"agent.metrics.port: 7701 is the port of agent.health.port too, where only one can listen: give one of them another": set("agent.metrics.port=7701"),
		"agent.metrics.port: 7443 is the port of agent.api.kubectl.port too":                                                 set("agent.metrics.port=7443"),
		"agent.api.tcp.port: 7443 is the port of agent.api.kubectl.port too":                                                 set("agent.api.tcp.enabled=true", "agent.api.tcp.secretName=s", "agent.api.tcp.port=7443"),

		"agent.runtime.sockets: /run/cri-dockerd.sock is in /run, which is not mounted whole": set("agent.runtime.sockets[0]=/run/cri-dockerd.sock"),
		"is in /var/run, which is not mounted whole":                                          set("agent.runtime.sockets[0]=/var/run/crio.sock"),

		"agent.extraEnv: the chart sets NODE_NAME itself: take it out": set("agent.extraEnv[0].name=NODE_NAME"),
		"agent.extraVolumes: the chart has a volume runtime-1 itself":  set("agent.extraVolumes[0].name=runtime-1"),
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			_, stderr, status := run(t, "", tool(t, helmProgram), append([]string{"template", "capdrift", "chart"}, flags...)...)
			if status == 0 || !strings.Contains(stderr, says) {
				t.Errorf("status %d: %s", status, stderr)
			}
		})
	}
	// A port of what is off is nobody's.
	render(t, set("agent.metrics.enabled=false", "agent.metrics.port=7701")...)
}

// TestSockets: of the node no more is mounted than the sockets' own folders.
func TestSockets(t *testing.T) {
	for name, row := range map[string]struct {
		flags []string
		want  []string
	}{
		"a folder of its own":             {nil, []string{"/run/containerd Directory"}},
		"directly in /run":                {set("agent.runtime.socket=/run/cri-dockerd.sock"), []string{"/run/cri-dockerd.sock Socket"}},
		"directly in /var/run":            {set("agent.runtime.socket=/var/run/cri-dockerd.sock"), []string{"/var/run/cri-dockerd.sock Socket"}},
		"directly in /run by a detour":    {set("agent.runtime.socket=/run/crio/../cri-dockerd.sock"), []string{"/run/cri-dockerd.sock Socket"}},
		"different ones":                  {set("agent.runtime.sockets={/run/crio/crio.sock,/run/k0s/containerd.sock}"), []string{"/run/containerd DirectoryOrCreate", "/run/crio DirectoryOrCreate", "/run/k0s DirectoryOrCreate"}},
		"two in one folder":               {set("agent.runtime.sockets={/run/containerd/other.sock}"), []string{"/run/containerd DirectoryOrCreate"}},
		"the preset's once more":          {set("agent.runtime.sockets={/run/containerd/containerd.sock}"), []string{"/run/containerd Directory"}},
		"different ones without a preset": {set("agent.runtime.socket=/run/a/a.sock", "agent.runtime.sockets={/run/b/b.sock}"), []string{"/run/a DirectoryOrCreate", "/run/b DirectoryOrCreate"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := one[appsv1.DaemonSet](t, render(t, row.flags...), "DaemonSet").Spec.Template.Spec
			var got []string
			for _, v := range pod.Volumes {
				if strings.HasPrefix(v.Name, "runtime") {
					got = append(got, v.HostPath.Path+" "+string(*v.HostPath.Type))
				}
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}

// TestGitOps: what a repository of deployments adds is where Kubernetes looks for it, and selects nothing.
func TestGitOps(t *testing.T) {
	manifest := render(t, "--values", "testdata/gitops.yaml")
	for _, o := range objects(t, manifest) {
		var head struct {
			Metadata struct{ Labels, Annotations map[string]string }
		}
		if err := yaml.Unmarshal([]byte(o.text), &head); err != nil {
			t.Fatal(err)
		}
		if head.Metadata.Labels["team"] != "security" || head.Metadata.Labels["app.kubernetes.io/part-of"] != "platform" || head.Metadata.Annotations["argocd.argoproj.io/sync-wave"] != "1" {
			t.Errorf("%s %s: labels %v, annotations %v", o.Kind, o.Metadata.Name, head.Metadata.Labels, head.Metadata.Annotations)
		}
	}
	daemons := one[appsv1.DaemonSet](t, manifest, "DaemonSet")
	template := daemons.Spec.Template
	want := map[string]string{"app.kubernetes.io/name": "capdrift", "app.kubernetes.io/instance": "capdrift", "app.kubernetes.io/component": "agent"}
	if !maps.Equal(daemons.Spec.Selector.MatchLabels, want) || daemons.Name != "capdrift-watcher" || template.Spec.ServiceAccountName != "capdrift-watcher" {
		t.Errorf("%s selects %v", daemons.Name, daemons.Spec.Selector.MatchLabels)
	}
	if template.Labels["tier"] != "node" || template.Labels["team"] != "platform" || template.Labels["app.kubernetes.io/part-of"] != "platform" || template.Labels["app.kubernetes.io/component"] != "agent" {
		t.Errorf("the pods' labels %v", template.Labels)
	}
	if account := one[corev1.ServiceAccount](t, manifest, "ServiceAccount"); account.Annotations["eks.amazonaws.com/role-arn"] != "arn:aws:iam::1:role/capdrift" {
		t.Errorf("the account's annotations %v", account.Annotations)
	}
	if got := template.Spec.ImagePullSecrets; !slices.Equal(got, []corev1.LocalObjectReference{{Name: "registry"}, {Name: "mirror"}}) {
		t.Errorf("pull secrets %v", got)
	}
	if affinity := template.Spec.Affinity; affinity.PodAntiAffinity == nil || len(affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) != 1 {
		t.Errorf("affinity %+v", affinity)
	}
	if strategy := daemons.Spec.UpdateStrategy; strategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || strategy.RollingUpdate.MaxUnavailable.IntValue() != 2 {
		t.Errorf("update strategy %+v", strategy)
	}
	c := template.Spec.Containers[0]
	if len(c.Args) != 6 || c.Args[5] != "--socket=/run/capdrift/agent.sock" {
		t.Errorf("arguments %q", c.Args)
	}
	if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "GOGC" && e.Value == "75" }) {
		t.Errorf("environment %v", c.Env)
	}
	if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "ca" && m.MountPath == "/etc/ca" }) ||
		!slices.ContainsFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "ca" && v.ConfigMap != nil }) {
		t.Errorf("volumes %v, mounts %v", template.Spec.Volumes, c.VolumeMounts)
	}
	if slices.ContainsFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "journal" }) {
		t.Error("there is a volume for a journal that is off")
	}
	config := configOf(t, manifest)["agent.yaml"]
	for _, want := range []string{"version: 1\n", "  dir: \"\"\n", "  pssVersion: \"1.34\"\n", "  - unix:///host/run/containerd/containerd.sock\n  - unix:///host/run/crio/crio.sock\n"} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in %s", want, config)
		}
	}
	if !strings.Contains(manifest, `kube_node_info{node=~"prod-.*", os_image!~`) {
		t.Error("the alert is about all nodes")
	}
}

// TestValuesOfBefore: values of an older chart mean what they meant. Those of its values.yaml are what
// --reuse-values puts in the place of the new ones. The names and the selector, which nobody can change
// of a DaemonSet that is there, are as they were.
func TestValuesOfBefore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "chart")
	if err := os.CopyFS(dir, os.DirFS("chart")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/values-form1.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "values.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	reused, stderr, status := run(t, "", tool(t, helmProgram), "template", "capdrift", dir, "--namespace", "capdrift")
	if status != 0 {
		t.Fatal(stderr)
	}
	if want := render(t, set("agent.affinity=null")...); reused != want {
		t.Errorf("with the values of before\n%s\nwith those of today\n%s", reused, want)
	}
	before := one[appsv1.DaemonSet](t, render(t, everythingOfBefore...), "DaemonSet")
	want := map[string]string{"app.kubernetes.io/name": "capdrift", "app.kubernetes.io/instance": "capdrift", "app.kubernetes.io/component": "agent"}
	pod := before.Spec.Template.Spec
	if before.Name != "capdrift-agent" || !maps.Equal(before.Spec.Selector.MatchLabels, want) || pod.ImagePullSecrets[0].Name != "registry" ||
		before.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.IntValue() != 1 || pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchExpressions[0].Key != "type" {
		t.Errorf("%+v", before)
	}
}

// TestVirtualNodes: no pod is made for a node that has no containers to look at.
func TestVirtualNodes(t *testing.T) {
	terms := one[appsv1.DaemonSet](t, render(t), "DaemonSet").Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	left := make(map[string]string)
	for _, e := range terms[0].MatchExpressions {
		if e.Operator == corev1.NodeSelectorOpNotIn {
			left[e.Key] = strings.Join(e.Values, ",")
		}
	}
	if want := map[string]string{"eks.amazonaws.com/compute-type": "fargate", "type": "virtual-kubelet"}; len(terms) != 1 || !maps.Equal(left, want) {
		t.Errorf("left out are %v", left)
	}
}

// TestValues: the schema leaves no object open, and every value has its default in values.yaml.
func TestValues(t *testing.T) {
	var schema node
	read(t, "chart/values.schema.json", &schema)
	var values map[string]any
	read(t, "chart/values.yaml", &values)
	schema.closed(t, "values")
	delete(schema.Properties, "global") // Helm's own
	schema.matches(t, "values", values)
}

// node is a part of the schema.
type node struct {
	Type                 string
	Properties           map[string]node
	AdditionalProperties any
	Items                *node
}

func (n node) closed(t *testing.T, at string) {
	t.Helper()
	if n.Properties != nil && n.AdditionalProperties != false {
		t.Errorf("%s takes unknown keys", at)
	}
	for name, inner := range n.Properties {
		inner.closed(t, at+"."+name)
	}
	if n.Items != nil {
		n.Items.closed(t, at+"[]")
	}
}

// leftOut are values that are better left out of values.yaml.
var leftOut = []string{
	"values.agent.resources.limits.cpu", "values.agent.affinity.podAffinity", "values.agent.affinity.podAntiAffinity",
	"values.agent.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution",
}

func (n node) matches(t *testing.T, at string, values map[string]any) {
	t.Helper()
	for name, inner := range n.Properties {
		value, ok := values[name]
		if !ok {
			if !slices.Contains(leftOut, at+"."+name) {
				t.Errorf("values.yaml does not have %s.%s", at, name)
			}
			continue
		}
		// An empty object is the default of what is optional below it.
		if below, _ := value.(map[string]any); len(below) > 0 && inner.Properties != nil {
			inner.matches(t, at+"."+name, below)
		}
	}
}

// TestNoRestart: what the agent takes without a restart causes none, and what it does not causes one.
func TestNoRestart(t *testing.T) {
	checksum := func(flags ...string) string {
		return one[appsv1.DaemonSet](t, render(t, flags...), "DaemonSet").Spec.Template.Annotations["checksum/config"]
	}
	before := checksum()
	for value, restarts := range map[string]bool{
		"agent.cadence.sweep=30s": false, "agent.assume.defaultCaps=CHOWN": false, "agent.log.level=debug": false, "agent.policy.packs[0]=cis": false,
		"agent.log.format=text": true, "agent.journal.maxBytes=134217728": true, "agent.metrics.port=9999": true,
	} {
		if after := checksum(set(value)...); (after != before) != restarts {
			t.Errorf("%s: restarts %v, want %v", value, after != before, restarts)
		}
	}
}

// TestMemoryLimit: the runtime of Go stays below the limit.
func TestMemoryLimit(t *testing.T) {
	for limit, want := range map[string]string{"128Mi": "115MiB", "100Mi": "90MiB", "1Gi": "921MiB"} {
		pod := one[appsv1.DaemonSet](t, render(t, set("agent.resources.limits.memory="+limit)...), "DaemonSet").Spec.Template.Spec
		i := slices.IndexFunc(pod.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == "GOMEMLIMIT" })
		if got := pod.Containers[0].Env[i].Value; got != want {
			t.Errorf("%s: GOMEMLIMIT %s, want %s", limit, got, want)
		}
	}
}

// TestAudit: the agent passes its own audit, but for what exceptions.yaml accepts and says why; and with
// deepInspection it does not.
func TestAudit(t *testing.T) {
	audit := func(manifest string, flags ...string) (string, int) {
		args := append([]string{"audit", "--manifests", "-", "--fail-on", "info", "-o", "jsonl"}, flags...)
		for _, pack := range []string{"pss-baseline", "pss-restricted", "cis", "nsa-cisa", "securitycontext", "dangerous", "hygiene"} {
			args = append(args, "--pack", pack)
		}
		stdout, stderr, status := run(t, manifest, program(t), args...)
		return stdout + stderr, status
	}
	exceptions := []string{"--exceptions", "exceptions.yaml"}
	for _, row := range matrix() {
		if strings.HasPrefix(row.name, "everything") || row.name == "deep_inspection" {
			continue
		}
		if text, status := audit(render(t, row.flags...), exceptions...); status != 0 {
			t.Errorf("%s: status %d: %s", row.name, status, text)
		}
	}
	if text, status := audit(render(t)); status != 3 {
		t.Errorf("without exceptions: status %d: %s", status, text)
	}
	if text, status := audit(render(t, set("agent.deepInspection=true")...), exceptions...); status != 3 || !strings.Contains(text, "SYS_PTRACE") {
		t.Errorf("with deepInspection: status %d: %s", status, text)
	}
}

// TestAuditPage: the documentation has what all packs say of this release, as it came out;
// -update writes it anew.
func TestAuditPage(t *testing.T) {
	const page, begin, end = "../docs/kubernetes.md", "<!-- what TestAuditPage saw begins here -->\n", "<!-- and ends here -->"
	stdout, stderr, status := run(t, render(t), "sh", "-c", `cd .. && exec "$0" "$@"`, program(t), "audit", "--manifests", "-", "--exceptions", "deploy/exceptions.yaml")
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	was, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for it", page)
	}
	is := "```\n" + stdout + "```\n"
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+is+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if was != is {
		t.Errorf("%s has\n%s\nand it is\n%s\nif that is meant, run make manifests and read the difference", page, was, is)
	}
}

// TestHoldsNothing: no runtime gives the agent any capability.
func TestHoldsNothing(t *testing.T) {
	stdout, stderr, status := run(t, render(t), program(t), "predict", "-f", "-", "--runtime", "all", "--fail-on", "info", "-o", "json")
	sets := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if hex, ok := v["hex"].(string); ok {
				if sets++; strings.Trim(hex, "0") != "" {
					t.Errorf("it holds %s", hex)
				}
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	var told any
	if err := json.NewDecoder(strings.NewReader(stdout)).Decode(&told); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	walk(told)
	if status != 0 || sets < 15 { // five of each runtime
		t.Errorf("status %d, %d sets: %s%s", status, sets, stdout, stderr)
	}
}
