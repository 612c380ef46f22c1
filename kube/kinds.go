package kube

import (
	"slices"
	"strings"
)

// templates says where the objects of a kind keep their pod's template: metadata
// and spec. Whatever the version of their group, it stood there; a pod is its
// own template.
var templates = map[string]string{
	"Pod":                   "",
	"PodTemplate":           "template",
	"ReplicationController": "spec.template",

	"apps/DaemonSet":   "spec.template",
	"apps/Deployment":  "spec.template",
	"apps/ReplicaSet":  "spec.template",
	"apps/StatefulSet": "spec.template",
	"batch/CronJob":    "spec.jobTemplate.spec.template",
	"batch/Job":        "spec.template",

	// Where they were before Kubernetes 1.16, and charts still are.
	"extensions/DaemonSet":  "spec.template",
	"extensions/Deployment": "spec.template",
	"extensions/Job":        "spec.template",
	"extensions/ReplicaSet": "spec.template",

	// Custom resources.
	"argoproj.io/Rollout":                "spec.template",
	"apps.kruise.io/CloneSet":            "spec.template",
	"apps.openshift.io/DeploymentConfig": "spec.template",
	"serving.knative.dev/Configuration":  "spec.template",
	"serving.knative.dev/Service":        "spec.template",
}

// knative leaves the names of containers out.
const knative = "serving.knative.dev"

// kustomizeGroup is that of kustomizations and their components.
const kustomizeGroup = "kustomize.config.k8s.io"

// legacy are the kinds of OpenShift 3 that were in v1, which oc process still
// takes, with the groups that they are in since.
var legacy = map[string]string{
	"Build": "build.openshift.io", "BuildConfig": "build.openshift.io", "DeploymentConfig": "apps.openshift.io",
	"Image": "image.openshift.io", "ImageStream": "image.openshift.io", "ImageStreamTag": "image.openshift.io",
	"OAuthClient": "oauth.openshift.io", "Project": "project.openshift.io", "ProjectRequest": "project.openshift.io",
	"Route": "route.openshift.io", "SecurityContextConstraints": "security.openshift.io", "Template": "template.openshift.io",
	"Group": "user.openshift.io", "Identity": "user.openshift.io", "User": "user.openshift.io",
}

// patterns are the groups of policies: what has the shape of a pod spec there is a
// pattern of one, and makes no pod.
var patterns = []string{
	"kyverno.io", "policies.kyverno.io", "constraints.gatekeeper.sh", "templates.gatekeeper.sh", "mutations.gatekeeper.sh", "expansion.gatekeeper.sh",
}

// podless are the other kinds of Kubernetes' own groups, by group, so that a
// misspelt kind is told from one that has no pods; kinds that are gone with those
// that are. Source: k8s.io/api, kube-aggregator, apiextensions-apiserver.
var podless = map[string]string{
	"": "APIGroup APIResourceList APIVersions Binding ComponentStatus ConfigMap DeleteOptions Endpoints Event LimitRange " +
		"Namespace Node PersistentVolume PersistentVolumeClaim PodProxyOptions PodStatusResult RangeAllocation " +
		"ResourceQuota Secret SerializedReference Service ServiceAccount Status",
	"admission.k8s.io": "AdmissionReview",
	"admissionregistration.k8s.io": "MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration " +
		"ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration",
	"apiextensions.k8s.io":         "ConversionReview CustomResourceDefinition",
	"apiregistration.k8s.io":       "APIService",
	"apps":                         "ControllerRevision DeploymentRollback Scale",
	"authentication.k8s.io":        "SelfSubjectReview TokenRequest TokenReview",
	"authorization.k8s.io":         "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview",
	"autoscaling":                  "HorizontalPodAutoscaler Scale",
	"batch":                        "JobTemplate",
	"certificates.k8s.io":          "CertificateSigningRequest ClusterTrustBundle PodCertificateRequest",
	"coordination.k8s.io":          "Lease LeaseCandidate",
	"discovery.k8s.io":             "EndpointSlice",
	"events.k8s.io":                "Event",
	"extensions":                   "DeploymentRollback Ingress NetworkPolicy PodSecurityPolicy Scale",
	"flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
	"imagepolicy.k8s.io":           "ImageReview",
	"internal.apiserver.k8s.io":    "StorageVersion",
	"lifecycle.k8s.io":             "Eviction EvictionRequest",
	"networking.k8s.io":            "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
	"node.k8s.io":                  "RuntimeClass",
	"policy":                       "Eviction PodDisruptionBudget PodSecurityPolicy",
	"rbac.authorization.k8s.io":    "ClusterRole ClusterRoleBinding Role RoleBinding",
	"resource.k8s.io": "DeviceClass DeviceTaintRule PodSchedulingContext ResourceClaim ResourceClaimParameters " +
		"ResourceClaimTemplate ResourceClass ResourceClassParameters ResourcePoolStatusRequest ResourceSlice",
	"scheduling.k8s.io":       "CompositePodGroup PodGroup PriorityClass Workload",
	"storage.k8s.io":          "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass",
	"storagemigration.k8s.io": "StorageVersionMigration",
}

// groupOf is an apiVersion without its version; the core group has no name.
func groupOf(apiVersion string) string {
	group, _, named := strings.Cut(apiVersion, "/")
	if !named {
		return ""
	}
	return group
}

// standing says what a kind is here.
type standing int

const (
	hasPods standing = iota // it is in templates
	noPods                  // Kubernetes' own, without pods
	custom                  // a custom resource that is not looked into
	noSuch                  // Kubernetes has no such kind
)

func standingOf(group, kind string) (standing, string) {
	if path, ok := templates[strings.TrimPrefix(group+"/"+kind, "/")]; ok {
		return hasPods, path
	}
	kinds, own := podless[group]
	switch {
	case own && slices.Contains(strings.Fields(kinds), kind):
		return noPods, ""
	case own, !strings.Contains(group, "."): // a custom resource's group has a dot: CRD validation asks for it
		return noSuch, ""
	}
	return custom, ""
}

// meant is the kind of Kubernetes' own that a misspelt one is likely to be, as
// "Deployment in apps"; empty when none is near.
func meant(group, kind string) string {
	var near []string
	for known := range templates {
		in, name := "", known
		if at := strings.LastIndexByte(known, '/'); at >= 0 {
			in, name = known[:at], known[at+1:]
		}
		if strings.Contains(in, ".") || in == "extensions" || !alike(kind, name) {
			continue
		}
		if in == "" {
			in = "v1"
		}
		near = append(near, name+" in "+in)
	}
	for _, name := range strings.Fields(podless[group]) {
		if alike(kind, name) {
			near = append(near, name)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return slices.Min(near)
}
