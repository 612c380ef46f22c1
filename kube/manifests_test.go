package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/capdrift/capdrift/drift"
)

// secret is in nothing that is returned or said.
const secret = "hunter2"

// aPod is a pod's manifest with one container, and lines after its name.
func aPod(lines ...string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: app\n" + strings.Join(append(lines, ""), "\n")
}

// read is what a stream gives: each container as its object, name, role and what
// its capabilities hang on.
func read(t *testing.T, stream string) (lines []string, all Manifests, err error) {
	t.Helper()
	all, err = ReadManifests(strings.NewReader(stream), "in.yaml")
	for _, m := range all.Objects {
		if m.Raw != nil {
			lines = append(lines, fmt.Sprintf("%d: CRI config of %d bytes", m.Document, len(m.Raw)))
		}
		for _, c := range m.Pod.Containers {
			lines = append(lines, fmt.Sprintf("%d: %s %s/%s %s %s +%v -%v", m.Document, m.Kind, m.Namespace, m.Name,
				c.Security.Role, c.Name, c.Security.Add, c.Security.Drop))
		}
	}
	return lines, all, err
}

func TestManifestsThatAreRead(t *testing.T) {
	template := "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: app, securityContext: {capabilities: {add: [NET_ADMIN], drop: [ALL]}}}]}}"
	workload := func(apiVersion, kind, spec string) string {
		return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: web, namespace: shop}\n%s\n", apiVersion, kind, spec)
	}
	of := func(kind string) []string {
		return []string{"1: " + kind + " shop/web container app +[NET_ADMIN] -[ALL]"}
	}
	for _, test := range []struct {
		what, stream string
		want         []string
	}{
		{"nothing", "", nil},
		{"comments", "# nothing\n---\n# here\n--- # nor here\n", nil},
		{"null", "null\n---\n~\n", nil},
		{"a pod", aPod("    securityContext: {capabilities: {add: [SYS_TIME]}}"), []string{"1: Pod /web container app +[SYS_TIME] -[]"}},
		{"with a byte order mark", "\ufeff" + aPod(), []string{"1: Pod /web container app +[] -[]"}},
		{"with lines that end as on Windows", strings.ReplaceAll(aPod()+"---\n"+aPod(), "\n", "\r\n"),
			[]string{"1: Pod /web container app +[] -[]", "2: Pod /web container app +[] -[]"}},
		{"in JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"app"}]}}`,
			[]string{"1: Pod /web container app +[] -[]"}},
		{"JSON after JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"app"}]}}
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"spec":{"containers":[{"name":"app"}]}}`,
			[]string{"1: Pod /a container app +[] -[]", "2: Pod /b container app +[] -[]"}},
		{"JSON among YAML", "---\n" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"app"}]}}` + "\n---\n" + aPod(),
			[]string{"1: Pod /a container app +[] -[]", "2: Pod /web container app +[] -[]"}},
		{"YAML in flow style", "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: app}]}}",
			[]string{"1: Pod /web container app +[] -[]"}},
		{"on the marker's line", "--- {apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: app}]}}",
			[]string{"1: Pod /web container app +[] -[]"}},
		{"after the end of a document", aPod() + "...\n" + aPod(),
			[]string{"1: Pod /web container app +[] -[]", "2: Pod /web container app +[] -[]"}},
		{"with a directive", "%YAML 1.1\n---\n" + aPod(), []string{"1: Pod /web container app +[] -[]"}},
		{"Helm's output", "---\n# Source: web/templates/sa.yaml\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: web\n---\n" +
			"# Source: web/templates/empty.yaml\n---\n# Source: web/templates/pod.yaml\n" + aPod(),
			[]string{"2: Pod /web container app +[] -[]"}},
		{"a pod template", workload("v1", "PodTemplate", template), of("PodTemplate")},
		{"a replication controller", workload("v1", "ReplicationController", "spec: {"+template+"}"), of("ReplicationController")},
		{"a deployment", workload("apps/v1", "Deployment", "spec: {"+template+"}"), of("Deployment")},
		{"a deployment of old", workload("extensions/v1beta1", "Deployment", "spec: {"+template+"}"), of("Deployment")},
		{"a replica set", workload("apps/v1", "ReplicaSet", "spec: {"+template+"}"), of("ReplicaSet")},
		{"a stateful set", workload("apps/v1beta2", "StatefulSet", "spec: {"+template+"}"), of("StatefulSet")},
		{"a daemon set", workload("apps/v1", "DaemonSet", "spec: {"+template+"}"), of("DaemonSet")},
		{"a job", workload("batch/v1", "Job", "spec: {"+template+"}"), of("Job")},
		{"a cron job", workload("batch/v1beta1", "CronJob", "spec: {jobTemplate: {spec: {"+template+"}}}"), of("CronJob")},
		{"a rollout", workload("argoproj.io/v1alpha1", "Rollout", "spec: {"+template+"}"), of("Rollout")},
		{"a rollout of a deployment", workload("argoproj.io/v1alpha1", "Rollout", "spec: {workloadRef: {kind: Deployment, name: web}}"), nil},
		{"a list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: app}]}}\n" +
			"- {apiVersion: v1, kind: Service, metadata: {name: b}}\n" +
			"- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: c}, spec: {containers: [{name: app}]}}]}\n",
			[]string{"1: Pod /a container app +[] -[]", "1: Pod /c container app +[] -[]"}},
		{"a pod list, whose items say no kind", "apiVersion: v1\nkind: PodList\nitems:\n- {metadata: {name: a}, spec: {containers: [{name: app}]}}\n",
			[]string{"1: Pod /a container app +[] -[]"}},
		{"an empty list", "apiVersion: v1\nkind: List\nitems: []\n---\napiVersion: apps/v1\nkind: DeploymentList\nitems:\n", nil},
		{"for Windows", aPod() + "  os: {name: windows}\n", nil},
		{"all roles, in the order in which they run", aPod() + "  initContainers: [{name: i}, {name: s, restartPolicy: Always}]\n  ephemeralContainers: [{name: e}]\n",
			[]string{"1: Pod /web init i +[] -[]", "1: Pod /web sidecar s +[] -[]", "1: Pod /web container app +[] -[]", "1: Pod /web ephemeral e +[] -[]"}},
		{"an alias", aPod("    securityContext: &s {capabilities: {add: [SYS_TIME]}}", "  - name: two", "    securityContext: *s"),
			[]string{"1: Pod /web container app +[SYS_TIME] -[]", "1: Pod /web container two +[SYS_TIME] -[]"}},
		{"a key that overrides a merged one", aPod("    x: &x {add: [KILL], drop: [ALL]}", "    securityContext: {capabilities: {<<: *x, add: [SYS_TIME]}}"),
			[]string{"1: Pod /web container app +[SYS_TIME] -[ALL]"}},
		{"three dashes in a text, and before one", aPod("    command: [\"--- a\", ---b]", "    args:", "    - |", "      ---", "      x"),
			[]string{"1: Pod /web container app +[] -[]"}},
		{"fields of newer Kubernetes from a cluster", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, uid: u}\nspec: {containers: [{name: app, securityContext: {newField: 1}}]}\n",
			[]string{"1: Pod /web container app +[] -[]"}},
		{"names as they are written", aPod(`    securityContext: {capabilities: {add: [net_admin, CAP_SYS_TIME, " x", ""]}}`),
			[]string{"1: Pod /web container app +[net_admin CAP_SYS_TIME  x ] -[]"}},
		{"a CRI container config", `{"metadata":{"name":"app"},"image":{"image":"x"},"linux":{"security_context":{}}}`, []string{"1: CRI config of 81 bytes"}},
		{"a CRI container config in YAML", "metadata: {name: app}\nlinux: {}\n", []string{"1: CRI config of 38 bytes"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			got, _, err := read(t, test.stream)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestManifestsThatAreRefused(t *testing.T) {
	for _, test := range []struct {
		what, stream string
		line         int
		want         string
	}{
		{"a truth value that is text", aPod("    securityContext:", "      privileged: \"hunter2\""), 9,
			"spec.containers[0].securityContext.privileged is a string, want true or false"},
		{"a user that is text", aPod("  - name: two", "    securityContext: {runAsUser: \"31337\"}"), 9,
			"spec.containers[1].securityContext.runAsUser is a string, want a whole number"},
		{"a user that is a fraction", aPod("    securityContext:", "      runAsUser: 1.5"), 9,
			"spec.containers[0].securityContext.runAsUser is a number, want a whole number"},
		{"one capability instead of a list", aPod("    securityContext:", "      capabilities:", "        add: hunter2"), 10,
			"spec.containers[0].securityContext.capabilities.add is a string, want a list"},
		{"a capability that is a truth value", aPod("    securityContext:", "      capabilities:", "        drop:", "        - ALL", "        - no"), 12,
			"spec.containers[0].securityContext.capabilities.drop[1] is true or false, want a string"},
		{"a list of capabilities without add or drop", aPod("    securityContext:", "      capabilities: [hunter2]"), 9,
			"spec.containers[0].securityContext.capabilities is a list, want an object"},
		{"a misspelt drop", aPod("    securityContext:", "      capabilities:", "        drops: [ALL]"), 10,
			"spec.containers[0].securityContext.capabilities.drops: there is no such field here, and Kubernetes would drop it; did you mean drop?"},
		{"a misspelt privileged", aPod("    securityContext:", "      privilege: true"), 9, "did you mean privileged?"},
		{"another case", aPod("    securitycontext: {privileged: true}"), 8, "did you mean securityContext?"},
		{"another case within", aPod("    securityContext:", "      Privileged: true"), 9, "did you mean privileged?"},
		{"privileged beside the securityContext", aPod("    privileged: true"), 8, "belongs into a container's securityContext"},
		{"capabilities of the pod", aPod() + "  securityContext:\n    capabilities: {add: [ALL]}\n", 9, "belongs into a container's securityContext"},
		{"misspelt init containers", aPod() + "  initContainer: [{name: x}]\n", 8, "did you mean initContainers?"},
		{"a container without a name", aPod("  - image: x"), 8, "spec.containers[1].name: a container needs a name of its own"},
		{"two of one name", aPod("  - name: app"), 8, "spec.containers[1].name: a container needs a name of its own"},
		{"a name that could draw on a terminal", strings.Replace(aPod(), "web", `"\e[31mweb"`, 1), 4, "metadata.name is no name that Kubernetes takes"},
		{"no containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {volumes: []}\n", 4, "spec.containers: Pod web has no containers"},
		{"no template", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {}\n", 4, "Deployment web has no spec.template"},
		{"a key that is there twice", aPod("    securityContext: {privileged: true}", "    image: x", "    securityContext: {}"), 10, `the key "securityContext" is there twice`},
		{"a key that is there twice in JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a","securityContext":{},"securityContext":{"privileged":true}}]}}`, 1,
			`the field "spec.containers[0].securityContext" is there twice`},
		{"a kind that is misspelt", "# a comment\napiVersion: apps/v1\nkind: Deploymnt\n", 3, `there is no kind "Deploymnt" in Kubernetes' "apps/v1"; did you mean Deployment in apps?`},
		{"a kind in the wrong group", "apiVersion: v1\nkind: Deployment\n", 2, `did you mean Deployment in apps?`},
		{"a pod in the wrong group", "apiVersion: apps/v1\nkind: Pod\n", 2, `did you mean Pod in v1?`},
		{"a group that is misspelt", "apiVersion: app/v1\nkind: Deployment\n", 2, `did you mean Deployment in apps?`},
		{"a kind of nothing like", "apiVersion: rbac.authorization.k8s.io/v1\nkind: Hunter\n", 2, `there is no kind "Hunter" in Kubernetes' "rbac.authorization.k8s.io/v1"`},
		{"no kind", "\n\nfoo: hunter2\n", 3, "it has no kind"},
		{"no apiVersion", "kind: Pod\n", 1, `"Pod" has no apiVersion`},
		{"a text", "hunter2\n", 1, "the document is a string, want an object"},
		{"a list of objects", "- kind: Pod\n", 1, "the document is a list, want an object"},
		{"no YAML", "a: 1\nb: [hunter2\nc: d\n", 0, "this is no YAML that Kubernetes reads"},
		{"a tab", "a:\n\tb: hunter2\n", 2, "this is no YAML that Kubernetes reads: found character that cannot start any token"},
		{"a tag that does not fit", "a: !!int hunter2\n", 1, "this is no YAML that Kubernetes reads"},
		{"a key that is null", "~: hunter2\n", 1, "this is no YAML that Kubernetes reads"},
		{"a template that was not rendered", "kind: {{ .Values.hunter2 }}\n", 1, "render it first"},
		{"JSON that ends early", "{\"kind\": \"Pod\",\n\"a\": \"hunter2", 0, "this is no YAML that Kubernetes reads"},
		{"an item of a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: {containers: [{name: a, securityContext: {privileged: 1}}]}\n", 9,
			"items[1].spec.containers[0].securityContext.privileged is a number, want true or false"},
		{"lists within lists", strings.Repeat("{apiVersion: v1, kind: List, items: [", 9) + strings.Repeat("]}", 9), 1, "lists within lists"},
		{"a time that is none", "apiVersion: v1\nkind: Pod\nmetadata: {creationTimestamp: hunter2}\n", 1, "not of the form that Kubernetes takes"},
		{"as deep as YAML gets in JSON", strings.Repeat(`{"a":`, 100_000), 1, "exceeded max depth"},
		{"deep YAML", strings.Repeat("[", 100_000), 1, "exceeded max depth"},
		{"too many capabilities", aPod("    securityContext: {capabilities: {add: [" + strings.Repeat("A,", 1025) + "]}}"), 1, "only 1024 names"},
		{"aliases of aliases", bomb(), 0, "alias"},
		{"a long text behind many aliases", "a: &a " + strings.Repeat("x", 1<<20) + "\nb: [" + strings.Repeat("*a,", 1000) + "]\n", 2, "excessive aliasing"},
		{"an alias of itself", "a: &a [*a]\n", 1, "excessive aliasing"},
	} {
		t.Run(test.what, func(t *testing.T) {
			got, _, err := read(t, test.stream)
			var at *ManifestError
			if !errors.As(err, &at) {
				t.Fatalf("got %q, %v, want an error", got, err)
			}
			if !strings.Contains(err.Error(), test.want) || test.line > 0 && at.Line != test.line || at.Document != 1 || at.File != "in.yaml" {
				t.Errorf("%v, want line %d: %s", err, test.line, test.want)
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "31337") || len(err.Error()) > 500 {
				t.Errorf("the error quotes its input: %v", err)
			}
			if len(got) > 0 {
				t.Errorf("got %q beside an error", got)
			}
		})
	}
}

// bomb is a billion laughs.
func bomb() string {
	text := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d,", i), 9))
	}
	return text
}

func TestABadDocumentHidesNoOther(t *testing.T) {
	stream := aPod() + "---\nkind: [\n---\n" + aPod("    securityContext: {privileged: 1}") + "---\n" + aPod() + "---\napiVersion: strimzi.io/v1\nkind: Kafka\n---\napiVersion: v1\nkind: Secret\nstringData: {a: hunter2}\n"
	got, all, err := read(t, stream)
	if want := []string{"1: Pod /web container app +[] -[]", "4: Pod /web container app +[] -[]"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if errs := each(err); len(errs) != 2 {
		t.Errorf("got %v, want two errors", err)
	}
	if want := []Skipped{{Kind: "Kafka.strimzi.io", Custom: true, Count: 1}, {Kind: "Secret", Count: 1}}; !slices.Equal(all.Skipped, want) {
		t.Errorf("skipped %v, want %v", all.Skipped, want)
	}
	if m := all.Objects[1]; m.Line != 20 || m.Pod.Source != "in.yaml, document 4 (Pod web)" || m.Template {
		t.Errorf("the fourth document is %+v", m)
	}
	if text := fmt.Sprintf("%+v %v", all, err); strings.Contains(text, secret) {
		t.Error("the secret got out")
	}
}

func TestErrorsAreBounded(t *testing.T) {
	_, all, err := read(t, strings.Repeat("kind: Pod\n---\n", 5_000)+aPod())
	if errs := each(err); len(errs) != maxErrors+1 || !strings.Contains(errs[maxErrors].Error(), "4980 more errors") {
		t.Errorf("got %d errors, the last %v", len(errs), errs[len(errs)-1])
	}
	if len(all.Objects) != 1 {
		t.Errorf("got %d objects, want the good one", len(all.Objects))
	}
}

func TestStreamsAreBounded(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, test := range []struct{ what, stream, want string }{
		{"50 MiB", strings.Repeat("# hunter2\n", 5<<20), "--field-selector spec.nodeName"},
		{"many documents", strings.Repeat("{}\n---\n", maxDocuments+1), "more than 10000 documents"},
		{"many values", "x:\n" + strings.Repeat("- a\n", 2<<20+1), "kubectl get -o json"},
		{"many values in one line", "x: [" + strings.Repeat("a,", 2<<20+1) + "]", "kubectl get -o json"},
	} {
		_, err := ReadManifests(strings.NewReader(test.stream), "in.yaml")
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.what, err, test.want)
		}
	}
	runtime.ReadMemStats(&after)
	if spent := (after.TotalAlloc - before.TotalAlloc) >> 20; spent > 1024 {
		t.Errorf("it took %d MiB to refuse", spent)
	}
	if _, err := ReadManifests(strings.NewReader("\xff\xfea\x00"), "in.yaml"); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("UTF-16: %v", err)
	}
	huge := `{"apiVersion":"v1","kind":"List","items":[` + strings.TrimSuffix(strings.Repeat(`{"apiVersion":"v1","kind":"Service"},`, 10_000), ",") + "]}"
	if all, err := ReadManifests(strings.NewReader(huge), "in.yaml"); err != nil || all.Skipped[0].Count != 10_000 {
		t.Errorf("a huge list: %v, %v", all, err)
	}
}

func TestWhatDecidesComesFromContainerThenPod(t *testing.T) {
	_, all, err := read(t, `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-1, creationTimestamp: "2026-01-02T03:04:05Z", annotations: {kubernetes.io/config.mirror: abc}}
spec:
  hostUsers: off
  runtimeClassName: kata
  securityContext: {runAsUser: 1000, runAsNonRoot: yes, fsGroup: 1, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: own
    env: [{name: A, value: hunter2}]
    securityContext: {runAsUser: 0, runAsNonRoot: no, privileged: on, allowPrivilegeEscalation: true, readOnlyRootFilesystem: true, seccompProfile: {type: Unconfined}}
  - name: inherits
    securityContext: {allowPrivilegeEscalation: false}
`)
	if err != nil {
		t.Fatal(err)
	}
	pod := all.Objects[0].Pod
	if pod.Pod != (drift.Pod{Namespace: "shop", Name: "web", UID: "u-1"}) || pod.CRIUID != "abc" || pod.Created.Year() != 2026 {
		t.Errorf("the pod is %+v", pod)
	}
	got, err := json.Marshal([]drift.PodSecurity{pod.Containers[0].Security, pod.Containers[1].Security})
	if err != nil {
		t.Fatal(err)
	}
	const tail = `"podLevel":{"runAsUser":1000,"runAsNonRoot":true,"seccompProfile":"RuntimeDefault"},"runtimeClass":"kata","source":"in.yaml, document 1 (Pod shop/web)",` +
		`"hostNetwork":false,"hostPID":false,"hostIPC":false,"os":"","volumeTypes":[],"sysctls":[],"hostPorts":[],"probeHosts":[],"procMount":null,` +
		`"windowsHostProcess":false,"appArmorProfiles":[],"appArmorAnnotations":[],"seccompAnnotations":[],"seLinuxTypes":[],"seLinuxUsers":[],"seLinuxRoles":[]}`
	want := `[{"role":"container","add":[],"drop":[],"privileged":true,"allowPrivilegeEscalation":true,"runAsUser":0,"runAsNonRoot":false,` +
		`"hostUsers":false,"seccompProfile":"Unconfined","readOnlyRootFilesystem":true,` + tail +
		`,{"role":"container","add":[],"drop":[],"privileged":false,"allowPrivilegeEscalation":false,"runAsUser":1000,"runAsNonRoot":true,` +
		`"hostUsers":false,"seccompProfile":"RuntimeDefault","readOnlyRootFilesystem":null,` + tail + `]`
	if string(got) != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// TestShapesAreKubernetes holds our lists of fields against Kubernetes' own types.
func TestShapesAreKubernetes(t *testing.T) {
	fieldsOf := func(of any) (names []string) {
		for kind, i := reflect.TypeOf(of), 0; i < kind.NumField(); i++ {
			name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
			if name == "" {
				for embedded, j := kind.Field(i).Type, 0; j < embedded.NumField(); j++ {
					name, _, _ := strings.Cut(embedded.Field(j).Tag.Get("json"), ",")
					names = append(names, name)
				}
				continue
			}
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	spec := templateShape.inside["spec"]
	for _, test := range []struct {
		kind  any
		shape shape
	}{
		{corev1.SecurityContext{}, containerShape.inside["securityContext"]},
		{corev1.PodSecurityContext{}, spec.inside["securityContext"]},
		{corev1.Capabilities{}, capabilitiesShape},
	} {
		if want := fieldsOf(test.kind); !slices.Equal(test.shape.all, want) {
			t.Errorf("%T has the fields %q, we know %q", test.kind, want, test.shape.all)
		}
	}
	for _, test := range []struct {
		kind  any
		shape shape
	}{
		{corev1.PodTemplateSpec{}, templateShape}, {corev1.Pod{}, templateShape}, {corev1.PodSpec{}, spec},
		{corev1.Container{}, containerShape}, {corev1.EphemeralContainer{}, containerShape},
	} {
		for _, field := range fieldsOf(test.kind) {
			test.shape.unknown(nil, json.RawMessage(fmt.Sprintf(`{%q:null}`, field)), func(at path, err error) {
				t.Errorf("%T has the field %s: %v", test.kind, at, err)
			})
		}
	}
}

func FuzzReadManifests(f *testing.F) {
	f.Add(aPod("    securityContext: {capabilities: {add: [SYS_TIME], drop: [ALL]}}"))
	f.Add(aPod() + "---\n" + `{"apiVersion":"v1","kind":"List","items":[{"kind":"Service","apiVersion":"v1"}]}{"kind":1}`)
	f.Add("apiVersion: batch/v1\nkind: CronJob\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{name: a}]}}}}}\n")
	f.Add("a: &a [*a]\n--- # x\n<<: {a: 1}\n...\nmetadata: {}\nimage: x\n")
	f.Add(aPod("    securityContext: {runAsUser: x}"))
	f.Add(aPod("    securityContext: {runAsUser: -1, procMount: Unmasked}", "  os: {name: windows}", "  volumes: [{name: a, hostPath: {}, emptyDir: {}}]"))
	f.Add("\ufeffapiVersion: argoproj.io/v1\nkind: Workflow\nspec: {podSpecPatch: x, templates: [{container: {image: i}}, {sidecars: [{env: []}]}]}\n\ufeff---\nresources: []\n")
	f.Add(`{"apiVersion":"template.openshift.io/v1","kind":"Template","parameters":[{"name":"A","value":"1"}],"objects":[{"apiVersion":"a.b/v1","kind":"C","spec":{"model":{"securityContext":{"privileged":"${{A}}"}}}}]}`)
	f.Fuzz(func(t *testing.T, stream string) {
		all, err := ReadManifests(strings.NewReader(stream), "fuzz")
		for _, err := range each(err) {
			var at *ManifestError
			if errors.As(err, &at) && (at.Document < 1 || at.Line < 1 || at.Line > strings.Count(stream, "\n")+1) {
				t.Errorf("an error nowhere: %v", err)
			}
			if text := err.Error(); len(text) > 2_000 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
				t.Errorf("an error as no person reads it: %q", text)
			}
		}
		for _, m := range slices.Concat(all.Objects, all.Windows) {
			for _, refusal := range m.Refused {
				if refusal.Path == "" || refusal.Line < 1 || refusal.Line > strings.Count(stream, "\n")+1 {
					t.Errorf("a refusal nowhere: %+v", refusal)
				}
			}
			if m.Document < 1 || m.Line < 1 || (m.Kind == "") != (m.Raw != nil) {
				t.Errorf("an object nowhere, or of no kind: %+v", m)
			}
			if last := strings.Count(stream, "\n") + 1; len(m.Lines) != len(m.Pod.Containers) || slices.ContainsFunc(m.Lines, func(line int) bool { return line < 1 || line > last }) {
				t.Errorf("a container nowhere: %v of %+v", m.Lines, m)
			}
			if m.Raw == nil && len(m.Pod.Containers) == 0 || m.Raw != nil && !json.Valid(m.Raw) {
				t.Errorf("an object of nothing: %+v", m)
			}
			for _, c := range m.Pod.Containers {
				if c.Name == "" || c.Security.Add == nil || c.Security.Drop == nil || c.Security.Role == "" {
					t.Errorf("a container with less than it must have: %+v", c)
				}
			}
		}
	})
}
