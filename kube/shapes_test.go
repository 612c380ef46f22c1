package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// aResource is a custom resource with a spec in flow style.
func aResource(group, kind, spec string) string {
	return fmt.Sprintf("apiVersion: %s/v1\nkind: %s\nmetadata: {name: job, namespace: lab}\nspec: %s\n", group, kind, spec)
}

// shapedOf is what custom resources give: each container with its path and what decides
// its rights, then what was not judged, then what was skipped.
func shapedOf(t *testing.T, stream string) (lines []string, err error) {
	t.Helper()
	all, err := ReadManifests(strings.NewReader(stream), "in.yaml")
	for _, m := range all.Objects {
		for i, c := range m.Pod.Containers {
			line := fmt.Sprintf("%s %s: %s %s", m.Kind, m.Path, c.Security.Role, c.Name)
			if c.Security.Privileged {
				line += " privileged"
			}
			if user := c.Security.RunAsUser; user != nil {
				line += fmt.Sprintf(" user %d", *user)
			}
			if len(c.Security.Add)+len(c.Security.Drop) > 0 {
				line += fmt.Sprintf(" +%v -%v", c.Security.Add, c.Security.Drop)
			}
			if len(m.Lines) != len(m.Pod.Containers) || m.Lines[i] < 1 {
				t.Errorf("%s has the lines %v", line, m.Lines)
			}
			lines = append(lines, line)
		}
	}
	for _, u := range all.Unjudged {
		lines = append(lines, fmt.Sprintf("unjudged %s %s/%s %s", u.Kind, u.Namespace, u.Name, u.Path))
	}
	for _, s := range all.Skipped {
		lines = append(lines, fmt.Sprintf("skipped %d %s", s.Count, s.Kind))
	}
	return lines, err
}

func TestCustomResourcesAreReadByShape(t *testing.T) {
	const root = "{image: i, securityContext: {privileged: true}}"
	for _, test := range []struct {
		what, stream string
		want         []string
	}{
		{"a pod template where Kubernetes' kinds have it", aResource("apps.kruise.io", "DaemonSet", "{template: {spec: {containers: [{name: a, "+root[1:]+"]}}}"),
			[]string{"DaemonSet.apps.kruise.io spec.template.spec: container a privileged"}},
		{"containers that say nothing but their names", aResource("x.example", "Set", "{template: {spec: {containers: [{name: a}], initContainers: [{name: b}]}}}"),
			[]string{"Set.x.example spec.template.spec: init b", "Set.x.example spec.template.spec: container a"}},
		{"several templates of one object", aResource("batch.volcano.sh", "Job", "{tasks: [{template: {spec: {containers: [{name: a, image: i}]}}}, {template: {spec: {containers: [{name: a, "+root[1:]+"]}}}]}"),
			[]string{"Job.batch.volcano.sh spec.tasks[0].template.spec: container a", "Job.batch.volcano.sh spec.tasks[1].template.spec: container a privileged"}},
		{"templates by name", aResource("ray.io", "RayJob", "{rayClusterSpec: {workerGroupSpecs: [{template: {spec: {securityContext: {runAsUser: 7}, containers: [{name: w, image: i}]}}}]}}"),
			[]string{"RayJob.ray.io spec.rayClusterSpec.workerGroupSpecs[0].template.spec: container w user 7"}},
		{"a pod spec among other fields", aResource("serving.kserve.io", "InferenceService", "{predictor: {minReplicas: 1, securityContext: {runAsUser: 7}, containers: [{name: k, image: i}]}}"),
			[]string{"InferenceService.serving.kserve.io spec.predictor: container k user 7"}},
		{"a container by itself", aResource("serving.kserve.io", "InferenceService", "{predictor: {model: {modelFormat: {name: x}, securityContext: {capabilities: {add: [SYS_ADMIN]}}}}}"),
			[]string{"InferenceService.serving.kserve.io spec.predictor.model: container model +[SYS_ADMIN] -[]"}},
		{"a container by itself, by its image", aResource("x.example", "Tool", "{main: {image: i, securityContext: {runAsUser: 0}}}"),
			[]string{"Tool.x.example spec.main: container main user 0"}},
		{"Argo's templates", aResource("argoproj.io", "WorkflowTemplate", "{securityContext: {runAsUser: 7}, templates: [{name: a, steps: [[{name: s, template: b}]]}, "+
			"{name: b, container: "+root+", initContainers: [{name: i, image: i}], sidecars: [{name: s, image: i}]}, "+
			"{name: c, securityContext: {runAsUser: 0}, script: {image: i, source: x}}, {name: d, containerSet: {containers: [{name: m, image: i}]}}]}"),
			[]string{
				"WorkflowTemplate.argoproj.io spec.templates[1]: init i user 7",
				"WorkflowTemplate.argoproj.io spec.templates[1]: container main privileged user 7",
				"WorkflowTemplate.argoproj.io spec.templates[1]: container s user 7",
				"WorkflowTemplate.argoproj.io spec.templates[2]: container main user 0",
				"WorkflowTemplate.argoproj.io spec.templates[3].containerSet: container m user 7",
			}},
		{"a cron workflow", aResource("argoproj.io", "CronWorkflow", "{workflowSpec: {templates: [{container: "+root+"}]}}"),
			[]string{"CronWorkflow.argoproj.io spec.workflowSpec.templates[0]: container main privileged"}},
		{"Tekton's steps, which inherit field by field", aResource("tekton.dev", "TaskRun", "{podTemplate: {securityContext: {runAsUser: 7}}, taskSpec: {"+
			"stepTemplate: {securityContext: {privileged: true, capabilities: {drop: [ALL]}}}, steps: [{name: a, image: i}, {image: i, securityContext: {privileged: false}}], sidecars: [{name: s, image: i}]}}"),
			[]string{
				"TaskRun.tekton.dev spec.taskSpec: container a privileged user 7 +[] -[ALL]",
				"TaskRun.tekton.dev spec.taskSpec: container steps-1 user 7 +[] -[ALL]",
				"TaskRun.tekton.dev spec.taskSpec: container s privileged user 7 +[] -[ALL]",
			}},
		{"an object within", aResource("work.example", "ManifestWork", "{workload: {manifests: [{apiVersion: apps/v1, kind: Deployment, spec: {template: {spec: {containers: [{name: a, image: i}]}}}}]}}"),
			[]string{"ManifestWork.work.example spec.workload.manifests[0].spec.template.spec: container a"}},
		{"containers of one name, and of none that Kubernetes takes", aResource("x.example", "Set", `{containers: [{name: a, image: i}, {name: a, image: i}, {name: "{{p}}", image: i}]}`),
			[]string{"Set.x.example spec: container a", "Set.x.example spec: container a-2", "Set.x.example spec: container containers-2"}},
		{"a pod for Windows", aResource("x.example", "Set", "{template: {spec: {os: {name: windows}, containers: [{name: a, image: i}]}}}"), []string{"skipped 1 Set.x.example for Windows"}},
		{"a field of a pod's under another meaning", aResource("x.example", "Set", "{os: linux, hostUsers: many, containers: [{name: a, image: i}]}"), []string{"Set.x.example spec: container a"}},
		{"a rollout without a template that has an analysis", aResource("argoproj.io", "AnalysisTemplate", "{metrics: [{provider: {job: {spec: {template: {spec: {containers: [{name: a, image: i}]}}}}}}]}"),
			[]string{"AnalysisTemplate.argoproj.io spec.metrics[0].provider.job.spec.template.spec: container a"}},

		{"nothing that decides", aResource("x.example", "Queue", "{size: 3, image: i, containers: 2, steps: [a, b]}"), []string{"skipped 1 Queue.x.example"}},
		{"a securityContext without a container", aResource("x.example", "Kafka", "{template: {pod: {securityContext: {fsGroup: 1}}}}"),
			[]string{"unjudged Kafka.x.example lab/job spec.template.pod.securityContext", "skipped 1 Kafka.x.example"}},
		{"an empty securityContext", aResource("x.example", "Kafka", "{securityContext: {}}"), []string{"skipped 1 Kafka.x.example"}},
		{"one by another name", aResource("x.example", "Kafka", "{values: {podSecurityContext: {runAsUser: 1}, image: i}}"),
			[]string{"unjudged Kafka.x.example lab/job spec.values.podSecurityContext", "skipped 1 Kafka.x.example"}},
		{"a truth value that decides", aResource("x.example", "Agent", "{privileged: true, hostPID: false, hostNetwork: true}"),
			[]string{"unjudged Agent.x.example lab/job spec.hostNetwork", "unjudged Agent.x.example lab/job spec.privileged", "skipped 1 Agent.x.example"}},
		{"a manifest in a text", aResource("argoproj.io", "Workflow", `{templates: [{resource: {manifest: "kind: Pod\nspec:\n  containers:\n  - name: a\n"}}, {resource: {manifest: '{"spec": {"containers": []}}'}}]}`),
			[]string{"unjudged Workflow.argoproj.io lab/job spec.templates[0].resource.manifest", "unjudged Workflow.argoproj.io lab/job spec.templates[1].resource.manifest", "skipped 1 Workflow.argoproj.io"}},
		{"a text about containers", aResource("x.example", "Note", `{text: "It runs containers: many."}`), []string{"skipped 1 Note.x.example"}},
		{"a patch of the pod spec", aResource("argoproj.io", "Workflow", `{podSpecPatch: "hostPID: true", templates: [{container: {image: i}, podSpecPatch: "x"}]}`),
			[]string{"Workflow.argoproj.io spec.templates[0]: container main", "unjudged Workflow.argoproj.io lab/job spec.podSpecPatch", "unjudged Workflow.argoproj.io lab/job spec.templates[0].podSpecPatch"}},
		{"what stands above is not believed of an unknown kind", aResource("x.example", "Set", "{securityContext: {runAsUser: 7, fsGroup: 1}, a: {containers: [{name: a, image: i}]}}"),
			[]string{"Set.x.example spec.a: container a", "unjudged Set.x.example lab/job spec.securityContext"}},
		{"annotations and status", "apiVersion: x.example/v1\nkind: Set\nmetadata: {name: a, annotations: {last: '{\"containers\": []}'}}\nstatus: {containers: [{name: a, image: i}]}\n",
			[]string{"skipped 1 Set.x.example"}},
		{"a policy's pattern", aResource("kyverno.io", "ClusterPolicy", `{rules: [{validate: {pattern: {spec: {containers: [{name: "*", securityContext: {privileged: "false"}}]}}}}]}`),
			[]string{"skipped 1 ClusterPolicy.kyverno.io"}},

		{"deeper than is looked into", aResource("x.example", "Deep", strings.Repeat("{a: ", 60)+"1"+strings.Repeat("}", 60)), []string{"unjudged Deep.x.example lab/job spec", "skipped 1 Deep.x.example"}},
		{"larger than is stored", aResource("x.example", "Large", "{a: "+strings.Repeat("x", maxCustom)+"}"), []string{"unjudged Large.x.example lab/job ", "skipped 1 Large.x.example"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			got, err := shapedOf(t, test.stream)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got\n%s, %v, want\n%s", strings.Join(got, "\n"), err, strings.Join(test.want, "\n"))
			}
		})
	}
}

func TestCustomResourcesThatAreRefused(t *testing.T) {
	for _, test := range []struct{ what, spec, want string }{
		{"a misspelt field", "{template: {spec: {containers: [{name: a, image: i, securitycontext: {privileged: true}}]}}}", "spec.template.spec.containers[0].securitycontext: there is no such field"},
		{"a misspelt field of a pod", "{a: {containers: [{name: a, image: i}], securityContext: {runAsUsr: 1}}}", "spec.a.securityContext.runAsUsr: there is no such field"},
		{"a container's field of another type", "{a: {containers: [{name: a, image: i, securityContext: {privileged: \"yes\"}}]}}", "spec.a.containers[0].securityContext.privileged is a string, want true or false"},
		{"a pod's field of another type", "{a: {containers: [{name: a, image: i}], securityContext: {runAsUser: hunter2}}}", "securityContext.runAsUser is a string, want a whole number"},
		{"too many capabilities", "{a: {containers: [{name: a, image: i, securityContext: {capabilities: {add: [" + strings.Repeat("A,", 1025) + "]}}}]}}", "only 1024 names"},
	} {
		t.Run(test.what, func(t *testing.T) {
			got, err := shapedOf(t, aResource("x.example", "Set", test.spec))
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), secret) || slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, "Set") }) {
				t.Errorf("got %q, %v, want %s", got, err, test.want)
			}
		})
	}
}

func TestShapesAreBounded(t *testing.T) {
	many := "[" + strings.Repeat("{containers: [{name: a, image: i}]},", maxShapes+1) + "]"
	all, err := ReadManifests(strings.NewReader(aResource("x.example", "Set", many)), "in.yaml")
	if err != nil || len(all.Objects) != maxShapes || len(all.Unjudged) != 1 || !strings.Contains(all.Unjudged[0].Why, "more than 100 pod specs") {
		t.Errorf("got %d objects, %v, %v", len(all.Objects), all.Unjudged, err)
	}
	many = "[" + strings.Repeat("{privileged: true},", maxUnjudged+5) + "]"
	all, err = ReadManifests(strings.NewReader(aResource("x.example", "Set", many)), "in.yaml")
	if err != nil || len(all.Unjudged) != maxUnjudged || all.MoreUnjudged != 5 {
		t.Errorf("got %d unjudged and %d more, %v", len(all.Unjudged), all.MoreUnjudged, err)
	}
}

// TestLookingIsBounded: what an author can make of 32 MiB costs no more than a bound.
func TestLookingIsBounded(t *testing.T) {
	deep := `{"apiVersion":"x.example/v1","kind":"Set","spec":` + strings.Repeat(`{"a":`, 20) + `"` + strings.Repeat("x", 2<<20) + `"` + strings.Repeat("}", 20) + "}\n"
	all, err := ReadManifests(strings.NewReader(strings.Repeat(deep, 3)), "in.yaml")
	if err != nil || len(all.Unjudged) != 2 || !strings.Contains(all.Unjudged[0].Why, "too much in the custom resources") || all.Unjudged[0].Path != "spec" {
		t.Errorf("got %v, %v, want the second and the third unjudged", all.Unjudged, err)
	}
}

func TestKnativeNamesContainers(t *testing.T) {
	for _, test := range []struct {
		what, containers string
		want             []string
	}{
		{"one", "containers: [{image: i}]", []string{"container user-container"}},
		{"several", "containers: [{image: i}, {name: a, image: i}, {image: i}]", []string{"container user-container-0", "container a", "container user-container-1"}},
		{"one beside another of the default's name", "initContainers: [{name: user-container}], containers: [{image: i}]", []string{"init user-container", "container user-container-0"}},
		{"an init container", "initContainers: [{image: i}], containers: [{name: a, image: i}]", []string{"init init-container", "container a"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			got, _, err := read(t, aResource("serving.knative.dev", "Service", "{template: {spec: {"+test.containers+"}}}"))
			for i := range got {
				got[i] = strings.TrimSuffix(strings.TrimPrefix(got[i], "1: Service lab/job "), " +[] -[]")
			}
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestTemplatesOfOpenShift(t *testing.T) {
	const head = "apiVersion: template.openshift.io/v1\nkind: Template\nmetadata: {name: t}\n"
	pod := func(name, security string) string {
		return fmt.Sprintf("objects:\n- {apiVersion: v1, kind: Pod, metadata: {name: %q}, spec: {containers: [{name: a, securityContext: %s}]}}\n", name, security)
	}
	for _, test := range []struct {
		what, stream string
		want         []string
		err          string
	}{
		{"values that it states", head + "parameters: [{name: APP, value: web}, {name: P, value: \"true\"}, {name: C, value: SYS_TIME}]\n" + pod("${APP}-1", `{privileged: "${{P}}", capabilities: {add: ["${C}"]}}`),
			[]string{"1: Pod /web-1 container a +[SYS_TIME] -[]"}, ""},
		{"as OpenShift 3 wrote it", strings.Replace(head, "template.openshift.io/", "", 1) + pod("web", "{}"), []string{"1: Pod /web container a +[] -[]"}, ""},
		{"a deployment config and others of OpenShift 3", "apiVersion: v1\nkind: DeploymentConfig\nmetadata: {name: d}\nspec: {template: {spec: {containers: [{name: a}]}}}\n---\napiVersion: v1\nkind: Route\nmetadata: {name: r}\n",
			[]string{"1: DeploymentConfig /d container a +[] -[]"}, ""},
		{"a name without a value", head + "parameters: [{name: APP}]\n" + pod("${APP}", "{}"), nil, "oc process --local"},
		{"a truth value without a value", head + "parameters: [{name: P}]\n" + pod("web", `{privileged: "${{P}}"}`), nil, "oc process --local"},
		{"a capability without a value", head + "parameters: [{name: C}]\n" + pod("web", `{capabilities: {add: ["${C}"]}}`), nil, "oc process --local"},
		{"a custom resource", head + "objects: [{apiVersion: x.example/v1, kind: Set, metadata: {name: s}, spec: {containers: [{name: a, image: \"${I}\"}]}}]\n", []string{"1: Set.x.example /s container a +[] -[]"}, ""},
		{"templates in templates", strings.Repeat("{apiVersion: template.openshift.io/v1, kind: Template, metadata: {name: t}, objects: [", 9) + strings.Repeat("]}", 9), nil, "lists within lists"},
		{"too many parameters", head + "parameters: [" + strings.Repeat("{name: a},", maxParameters+1) + "]\n", nil, "more than 1000 parameters"},
	} {
		t.Run(test.what, func(t *testing.T) {
			got, _, err := read(t, test.stream)
			if !slices.Equal(got, test.want) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %q, %v, want %q and %s", got, err, test.want, test.err)
			}
		})
	}
}
