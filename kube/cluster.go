package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	streams "k8s.io/streaming/pkg/httpstream"
	kjson "sigs.k8s.io/json"

	"github.com/capdrift/capdrift/drift"
)

// Cluster asks an API server as a person does who has a kubeconfig: with that
// person's rights, once for each question. Nothing is watched and nothing kept.
type Cluster struct {
	client  *rest.RESTClient
	http    *http.Client
	config  *rest.Config
	timeout time.Duration
	source  string
}

// aPage is how many objects are asked for at once: some megabytes of pods. Where an
// answer is too large for its bound, because somebody made his as large as they can be,
// the next is of an eighth as many.
const aPage = 500

// NewCluster reads the configuration. It asks nothing yet.
func NewCluster(loader clientcmd.ClientConfig) (*Cluster, error) {
	quiet()
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, unusable(err)
	}
	c := &Cluster{timeout: config.Timeout} // --request-timeout
	if c.timeout <= 0 {
		c.timeout = 30 * time.Second
	}
	config.QPS, config.Burst = 50, 100 // one person's questions, of which a fleet makes many
	if c.client, c.http, err = connect(config); err != nil {
		return nil, err
	}
	c.config = config
	place := c.client.Get().URL()
	c.source = "API server " + place.Scheme + "://" + place.Host
	return c, nil
}

// Close ends the connections that nobody uses.
func (c *Cluster) Close() { utilnet.CloseIdleConnectionsFor(c.http.Transport) }

// ForbiddenError is a right that the user lacks.
type ForbiddenError struct {
	Verb, Resource string // as a rule of a role writes them: "list", "pods"
	Group          string // of the resource; "" for the core group
	Namespace      string // "" for all of the cluster
}

func (e *ForbiddenError) Error() string {
	where, kind := "the whole cluster", "ClusterRole"
	if e.Namespace != "" {
		where, kind = "namespace "+shown(e.Namespace), "Role"
	}
	return fmt.Sprintf("you may not %s %s in %s (403): ask for a %s with the rule {apiGroups: [%q], resources: [%s], verbs: [%s]}",
		e.Verb, e.Resource, where, kind, e.Group, e.Resource, e.Verb)
}

const portForward = "pods/portforward"

// question is what is asked of the API server, for its path and its errors.
type question struct {
	group, resource, namespace, name string
}

func (q question) path() string {
	path := "/api/v1"
	if q.group != "" {
		path = "/apis/" + q.group + "/v1"
	}
	if q.namespace != "" {
		path += "/namespaces/" + url.PathEscape(q.namespace)
	}
	path += "/" + q.resource
	if q.name != "" {
		path += "/" + url.PathEscape(q.name)
	}
	return path
}

// ErrNotFound is what an object is that is not there.
var ErrNotFound = errors.New("not found")

// ask decodes into the few fields that are read of an answer.
func (c *Cluster) ask(ctx context.Context, q question, o metav1.ListOptions, into any) error {
	timed, cancel := context.WithTimeout(klog.NewContext(ctx, klog.Logger{}), c.timeout)
	defer cancel()
	text, err := c.client.Get().AbsPath(q.path()).VersionedParams(&o, metav1.ParameterCodec).Do(timed).Raw()
	switch {
	case err == nil:
		if err := kjson.UnmarshalCaseSensitivePreserveInts(text, into); err != nil {
			return fmt.Errorf("%s: its answer about %s is not what Kubernetes answers", c.source, q.resource)
		}
		return nil
	case apierrors.IsForbidden(err):
		verb := "list"
		if q.name != "" {
			verb = "get"
		}
		return &ForbiddenError{verb, q.resource, q.group, q.namespace}
	case apierrors.IsNotFound(err) && q.name != "":
		return fmt.Errorf("there is no %s %s in namespace %s: %w", strings.TrimSuffix(q.resource, "s"), shown(q.name), shown(q.namespace), ErrNotFound)
	}
	return c.explain(ctx, err)
}

// explain says what to do about an error that is not about one right or one thing.
func (c *Cluster) explain(ctx context.Context, err error) error {
	var wrapped *url.Error
	var tooLong *http.MaxBytesError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &tooLong):
		err = fmt.Errorf("the answer is %w: more than %d MiB", ErrTooLarge, maxAnswer>>20)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no answer within %v; give it more time with --request-timeout", c.timeout)
	case apierrors.IsUnauthorized(err):
		err = errors.New("it does not accept who asks (401); the token or certificate may have expired: see whether kubectl get pods works")
	case errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w; is the cluster up, and this its address? kubectl config view --minify shows it", syscall.ECONNREFUSED)
	case errors.As(err, &wrapped):
		err = errors.New(shown(wrapped.Err.Error()))
	default:
		err = errors.New(shown(err.Error()))
	}
	return fmt.Errorf("%s: %w", c.source, err)
}

func isForbidden(err error) bool {
	var upgrade *streams.UpgradeFailureError
	if errors.As(err, &upgrade) {
		err = upgrade.Cause
	}
	return apierrors.IsForbidden(err)
}

// unforwarded says why a port is not forwarded.
func (c *Cluster) unforwarded(ctx context.Context, pod AgentPod, err error) error {
	var upgrade *streams.UpgradeFailureError
	if errors.As(err, &upgrade) {
		err = upgrade.Cause
	}
	switch {
	case apierrors.IsForbidden(err):
		return &ForbiddenError{"create", portForward, "", pod.Namespace}
	case apierrors.IsNotFound(err):
		return fmt.Errorf("the agent's pod %s/%s has just gone; ask again", shown(pod.Namespace), shown(pod.Name))
	}
	return c.explain(ctx, err)
}

// list calls take with every object, page by page.
func list[T any](ctx context.Context, c *Cluster, q question, o metav1.ListOptions, take func(T)) error {
	for o.Limit = aPage; ; {
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []T `json:"items"`
		}
		err := c.ask(ctx, q, o, &page)
		switch {
		case errors.Is(err, ErrTooLarge) && o.Limit > 1:
			o.Limit = max(o.Limit/8, 1)
			continue
		case err != nil:
			return err
		}
		for _, item := range page.Items {
			take(item)
		}
		switch page.Metadata.Continue {
		case "":
			return nil
		case o.Continue:
			return fmt.Errorf("%s: its list of %s does not get on: a page names itself as the next one", c.source, q.resource)
		}
		o.Continue = page.Metadata.Continue
	}
}

// condition is one of an object's status.
type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// unready says why an object is not Ready; "" when it is.
func unready(conditions []condition) string {
	at := slices.IndexFunc(conditions, func(c condition) bool { return c.Type == "Ready" })
	switch {
	case at < 0:
		return "not Ready"
	case conditions[at].Status == "True":
		return ""
	case conditions[at].Reason == "":
		return "not Ready"
	}
	return "not Ready (" + shown(conditions[at].Reason) + ")"
}

// Node is a node of the cluster.
type Node struct {
	Name    string
	Problem string // "" when it is Ready
	Windows bool   // no agent can be on it
	Virtual string // what shows that its containers run elsewhere; "" for a node that has its own
}

// node is what is read of a node.
type node struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		ProviderID string `json:"providerID"`
	} `json:"spec"`
	Status struct {
		Conditions []condition `json:"conditions"`
		NodeInfo   struct {
			OperatingSystem string `json:"operatingSystem"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

// virtual says by what a node is known to stand for machines that Kubernetes does not show: each
// pod of EKS on Fargate has one, which takes no DaemonSet's pods
// (https://docs.aws.amazon.com/eks/latest/userguide/fargate.html), and a virtual-kubelet one is an
// API of a cloud (node-cli's label, https://virtual-kubelet.io/docs/architecture). It returns "" for
// every other node.
func (n node) virtual() string {
	const fargate, kubelet = "eks.amazonaws.com/compute-type", "type"
	id := n.Spec.ProviderID
	switch {
	case n.Metadata.Labels[fargate] == "fargate":
		return "it is of EKS on Fargate (label " + fargate + "=fargate)"
	case strings.HasPrefix(id, "aws://") && strings.HasPrefix(id[strings.LastIndex(id, "/")+1:], "fargate-"):
		return "it is of EKS on Fargate (provider id " + shown(id) + ")"
	case n.Metadata.Labels[kubelet] == "virtual-kubelet":
		return "it is a virtual-kubelet (label " + kubelet + "=virtual-kubelet)"
	}
	return ""
}

// NodeSelector chooses nodes as kubectl does; the zero value takes all.
type NodeSelector struct{ Labels, Fields string }

// Nodes lists the nodes of the cluster that are selected.
func (c *Cluster) Nodes(ctx context.Context, selector NodeSelector) ([]Node, error) {
	var nodes []Node
	o := metav1.ListOptions{LabelSelector: selector.Labels, FieldSelector: selector.Fields}
	err := list(ctx, c, question{resource: "nodes"}, o, func(item node) {
		one := Node{Name: clip(item.Metadata.Name), Windows: item.Status.NodeInfo.OperatingSystem == "windows", Virtual: item.virtual()}
		if why := unready(item.Status.Conditions); why != "" {
			one.Problem = "the node is " + why
		}
		nodes = append(nodes, one)
	})
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, err
}

// Pods lists what the pods of a namespace, or of all with "", ask for; node limits
// them to those of one node. It is what containers of that namespace, on that node,
// can be joined with.
func (c *Cluster) Pods(ctx context.Context, namespace, node string) (drift.Pods, error) {
	var o metav1.ListOptions
	if node != "" {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	}
	var pods []pod
	err := list(ctx, c, question{resource: "pods", namespace: namespace}, o, func(item pod) { pods = append(pods, item) })
	return tell(pods, c.source), err
}

// connect makes the clients of a configuration. They follow no redirect, which
// would take the credentials elsewhere, and bound what they read.
func connect(config *rest.Config) (*rest.RESTClient, *http.Client, error) {
	config.GroupVersion = &schema.GroupVersion{Version: "v1"}
	config.APIPath = "/api"
	config.ContentType, config.AcceptContentTypes = "application/json", "application/json"
	config.NegotiatedSerializer = codecs()
	config.UserAgent = "capdrift"
	config.WarningHandler = rest.NoWarnings{}
	config.Timeout = 0 // it would end a watch
	plain := rest.CopyConfig(config)
	plain.Wrap(func(inner http.RoundTripper) http.RoundTripper { return bounded{inner, maxAnswer} })
	client, err := rest.HTTPClientFor(plain)
	if err != nil {
		return nil, nil, unusable(err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	restClient, err := rest.RESTClientForConfigAndClient(plain, client)
	if err != nil {
		return nil, nil, unusable(err)
	}
	return restClient, client, nil
}
