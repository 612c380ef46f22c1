package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// agents is how the pods of agents are labelled.
const agents = "app.kubernetes.io/name=capdrift,app.kubernetes.io/component=agent"

// agentPort is what the port of an agent's pod is named, at which it answers on
// the pod's loopback.
const agentPort = "grpc"

// AgentPod is the pod of an agent on one node.
type AgentPod struct {
	Namespace, Name, Node string
	Port                  int
	Problem               string // why it cannot be asked; "" when it can
}

// Agents lists the agents' pods in a namespace, one for each node; node limits it
// to one of them. Whoever may make pods in that namespace is believed.
func (c *Cluster) Agents(ctx context.Context, namespace, node string) (map[string]AgentPod, error) {
	o := metav1.ListOptions{LabelSelector: agents}
	if node != "" {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	}
	found := make(map[string]AgentPod)
	err := list(ctx, c, question{resource: "pods", namespace: namespace}, o, func(item agentsPod) {
		one := item.agent()
		if before, two := found[one.Node]; one.Node != "" && (!two || before.Problem != "") { // an update makes the new one beside the old
			found[one.Node] = one
		}
	})
	return found, err
}

// agentsPod is what is read of an agent's pod.
type agentsPod struct {
	Metadata struct {
		Name              string  `json:"name"`
		Namespace         string  `json:"namespace"`
		DeletionTimestamp *string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName   string `json:"nodeName"`
		Containers []struct {
			Ports []struct {
				Name          string `json:"name"`
				ContainerPort int    `json:"containerPort"`
			} `json:"ports"`
		} `json:"containers"`
	} `json:"spec"`
	Status struct {
		Phase      string      `json:"phase"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

func (p agentsPod) agent() AgentPod {
	a := AgentPod{Namespace: clip(p.Metadata.Namespace), Name: clip(p.Metadata.Name), Node: clip(p.Spec.NodeName)}
	for _, container := range p.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == agentPort && port.ContainerPort > 0 && port.ContainerPort < 1<<16 {
				a.Port = port.ContainerPort
			}
		}
	}
	name := shown(a.Namespace + "/" + a.Name)
	switch why := unready(p.Status.Conditions); {
	case p.Metadata.DeletionTimestamp != nil:
		a.Problem = fmt.Sprintf("the agent's pod %s is being deleted; ask again", name)
	case p.Status.Phase != "Running":
		a.Problem = fmt.Sprintf("the agent's pod %s is %s: kubectl describe pod -n %s %s says why", name, shown(p.Status.Phase), shown(a.Namespace), shown(a.Name))
	case why != "":
		a.Problem = fmt.Sprintf("the agent's pod %s is %s: kubectl logs -n %s %s says why", name, why, shown(a.Namespace), shown(a.Name))
	case a.Port == 0:
		a.Problem = fmt.Sprintf("the agent's pod %s has no port named %s: it must listen on its pod's loopback (api.tcp in its configuration)", name, agentPort)
	}
	return a
}

// PodRef names a pod and its node.
type PodRef struct{ Namespace, Name, Node string }

// workloads are the kinds that own pods, by every name that kubectl knows them by,
// and what stands between the two.
var workloads = map[string]workload{
	"pod": {resource: "pods"}, "pods": {resource: "pods"}, "po": {resource: "pods"},
	"deployment": deployments, "deployments": deployments, "deploy": deployments,
	"statefulset": statefulSets, "statefulsets": statefulSets, "sts": statefulSets,
	"daemonset": daemonSets, "daemonsets": daemonSets, "ds": daemonSets,
	"replicaset": replicaSets, "replicasets": replicaSets, "rs": replicaSets,
	"job": jobs, "jobs": jobs,
	"cronjob": cronJobs, "cronjobs": cronJobs, "cj": cronJobs,
}

type workload struct{ group, resource, through string }

var (
	deployments  = workload{"apps", "deployments", "replicasets"}
	statefulSets = workload{group: "apps", resource: "statefulsets"}
	daemonSets   = workload{group: "apps", resource: "daemonsets"}
	replicaSets  = workload{group: "apps", resource: "replicasets"}
	jobs         = workload{group: "batch", resource: "jobs"}
	cronJobs     = workload{"batch", "cronjobs", "jobs"}
)

// Kinds lists the kinds that [Cluster.PodsOf] takes, by their short names.
func Kinds() []string { return []string{"pod", "deploy", "sts", "ds", "rs", "job", "cronjob"} }

// IsKind tells whether PodsOf takes the kind.
func IsKind(kind string) bool { return slices.Contains(slices.Collect(maps.Keys(workloads)), kind) }

// owned is what is read of an object that others own.
type owned struct {
	Metadata struct {
		Name            string `json:"name"`
		UID             string `json:"uid"`
		OwnerReferences []struct {
			UID string `json:"uid"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

func (o owned) by(owners map[string]bool) bool {
	for _, reference := range o.Metadata.OwnerReferences {
		if owners[reference.UID] {
			return true
		}
	}
	return false
}

// PodsOf finds the pods of a workload that are on a node and have not ended, by
// who owns whom.
func (c *Cluster) PodsOf(ctx context.Context, namespace, kind, name string) ([]PodRef, error) {
	w, known := workloads[strings.ToLower(kind)]
	if !known {
		return nil, fmt.Errorf("%s owns no pods: want one of %s", shown(kind), strings.Join(Kinds(), ", "))
	}
	var top owned
	if err := c.ask(ctx, question{w.group, w.resource, namespace, name}, metav1.ListOptions{}, &top); err != nil {
		return nil, err
	}
	var pods []PodRef
	running := func(o owned) {
		if o.Spec.NodeName != "" && o.Status.Phase != "Succeeded" && o.Status.Phase != "Failed" {
			pods = append(pods, PodRef{namespace, clip(o.Metadata.Name), clip(o.Spec.NodeName)})
		}
	}
	if w == workloads["pod"] {
		running(top)
		return pods, nil
	}
	owners := map[string]bool{top.Metadata.UID: true}
	if w.through != "" {
		between := make(map[string]bool)
		if err := list(ctx, c, question{group: w.group, resource: w.through, namespace: namespace}, metav1.ListOptions{}, func(o owned) {
			if o.by(owners) {
				between[o.Metadata.UID] = true
			}
		}); err != nil {
			return nil, err
		}
		owners = between
	}
	err := list(ctx, c, question{resource: "pods", namespace: namespace}, metav1.ListOptions{}, func(o owned) {
		if o.by(owners) {
			running(o)
		}
	})
	slices.SortFunc(pods, func(a, b PodRef) int { return strings.Compare(a.Name, b.Name) })
	return pods, err
}
