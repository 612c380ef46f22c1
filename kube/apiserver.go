package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/capdrift/capdrift/drift"
)

// InCluster as a kubeconfig means the pod's own service account.
const InCluster = "in-cluster"

// doubted is how soon after an answer a caller asks again only because it doubts
// the answer: a scan looks twice, a second apart, before it believes.
const doubted = 5 * time.Second

// APIServerOptions say which API server to ask, and for which node.
type APIServerOptions struct {
	// Kubeconfig is a path or [InCluster]. Empty means the service account where
	// there is one, and otherwise the places where kubectl looks.
	Kubeconfig string
	Context    string        // of the kubeconfig; empty for its current one
	NodeName   string        // whose pods; needed
	Timeout    time.Duration // of each list; 10 s when zero
}

// APIServer asks the API server for the pods of one node.
//
// It watches them, and answers from what the watch told while the watch is up.
// Without one it asks anew, and fails where it gets no answer: the first time, so
// that a single scan begins no watch; while the watch is broken; and when it is
// asked again at once, by a caller that doubts the answer, because a watch can
// lag, and a dead connection takes most of a minute to be noticed.
type APIServer struct {
	client  *rest.RESTClient
	http    *http.Client
	node    string
	timeout time.Duration
	source  string
	now     func() time.Time

	store cache.Store
	stop  context.CancelFunc
	ended chan struct{} // closed when the watching has ended; nil before it begins

	mu     sync.Mutex
	ctx    context.Context // of the watching
	up     bool            // a watch is open, and the store holds what it told
	asked  time.Time       // when Pods answered last
	closed bool
}

// quiet keeps client-go's log off standard error: whatever matters comes as an
// error. klog has one logger for the whole program.
var quiet = sync.OnceFunc(func() { klog.SetLogger(klog.Logger{}) })

// NewAPIServer reads the configuration. It asks nothing yet.
func NewAPIServer(o APIServerOptions) (*APIServer, error) {
	quiet()
	if o.NodeName == "" {
		return nil, errors.New("which node's pods? give the node's name, as kubectl get nodes shows it, with --node-name")
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	config, err := configuration(o)
	if err != nil {
		return nil, err
	}
	restClient, client, err := connect(config)
	if err != nil {
		return nil, err
	}
	place := restClient.Get().URL()
	a := &APIServer{
		client: restClient, http: client, node: o.NodeName, timeout: o.Timeout, now: time.Now,
		source: "API server " + place.Scheme + "://" + place.Host,
		store:  cache.NewStore(cache.MetaNamespaceKeyFunc),
	}
	a.ctx, a.stop = context.WithCancel(klog.NewContext(context.Background(), klog.Logger{}))
	return a, nil
}

func configuration(o APIServerOptions) (*rest.Config, error) {
	if o.Kubeconfig == InCluster || o.Kubeconfig == "" && o.Context == "" {
		config, err := rest.InClusterConfig()
		switch {
		case err == nil:
			return config, nil
		case o.Kubeconfig == InCluster && errors.Is(err, rest.ErrNotInCluster):
			return nil, errors.New("not in a pod: KUBERNETES_SERVICE_HOST is not set; name a file with --kubeconfig")
		case !errors.Is(err, rest.ErrNotInCluster) && !errors.Is(err, fs.ErrNotExist):
			return nil, unreadable(err)
		case o.Kubeconfig == InCluster:
			return nil, errors.New("the pod has no service account's token; set automountServiceAccountToken, or name a file with --kubeconfig")
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	kubeconfig, err := rules.Load()
	if err != nil {
		return nil, unusable(err)
	}
	if o.Context != "" && kubeconfig.Contexts[o.Context] == nil {
		return nil, fmt.Errorf("the kubeconfig has no context %.100q; kubectl config get-contexts lists them", o.Context)
	}
	config, err := clientcmd.NewDefaultClientConfig(*kubeconfig, &clientcmd.ConfigOverrides{CurrentContext: o.Context}).ClientConfig()
	if err != nil {
		return nil, unusable(err)
	}
	return config, nil
}

// unusable is an error of a kubeconfig. Its parser quotes what it parses, tokens
// with it.
func unusable(err error) error {
	var at *fs.PathError
	switch {
	case errors.As(err, &at):
		return unreadable(err)
	case clientcmd.IsEmptyConfig(err):
		return errors.New("no kubeconfig was found; name one with --kubeconfig, or run in a pod with a service account")
	}
	return errors.New("the kubeconfig cannot be used; see whether kubectl can, with the same file and context")
}

// codecs decode Pods into the few fields that are read. The
// types of k8s.io/api would bring everything else of a pod, and its secrets.
func codecs() runtime.NegotiatedSerializer {
	v1 := schema.GroupVersion{Version: "v1"}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypeWithName(v1.WithKind("Pod"), &pod{})
	scheme.AddKnownTypeWithName(v1.WithKind("PodList"), &podList{})
	metav1.AddToGroupVersion(scheme, v1)
	return serializer.NewCodecFactory(scheme).WithoutConversion()
}

// bounded bounds every answer but that of a watch, which has no end.
type bounded struct {
	http.RoundTripper
	most int64
}

func (b bounded) RoundTrip(request *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(request)
	if err == nil && !request.URL.Query().Has("watch") {
		answer.Body = http.MaxBytesReader(nil, answer.Body, b.most)
	}
	return answer, err
}

// Close ends the watch and waits for its end.
func (a *APIServer) Close() error {
	a.mu.Lock()
	a.closed = true
	ended := a.ended
	a.mu.Unlock()
	a.stop()
	if ended != nil {
		<-ended
	}
	utilnet.CloseIdleConnectionsFor(a.http.Transport)
	return nil
}

// Pods tells of all pods that are on the node now.
func (a *APIServer) Pods(ctx context.Context) (drift.Pods, error) {
	fromWatch, err := a.begin()
	if err != nil {
		return drift.Pods{}, err
	}
	var list []pod
	if fromWatch {
		for _, known := range a.store.List() {
			list = append(list, *known.(*pod))
		}
	} else {
		answer, err := a.list(ctx, metav1.ListOptions{})
		if err != nil {
			return drift.Pods{}, a.explain(ctx, err)
		}
		list = answer.(*podList).Items
	}
	slices.SortFunc(list, func(a, b pod) int {
		return strings.Compare(a.Metadata.Namespace+"/"+a.Metadata.Name, b.Metadata.Namespace+"/"+b.Metadata.Name)
	})
	return tell(list, a.source), nil
}

// begin says whether the watch may answer, and starts it when there was a first
// answer without it.
func (a *APIServer) begin() (fromWatch bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false, fmt.Errorf("%s: %w", a.source, net.ErrClosed)
	}
	first, again := a.asked.IsZero(), a.now().Sub(a.asked) < doubted
	a.asked = a.now()
	if !first && a.ended == nil {
		a.ended = make(chan struct{})
		reflector := cache.NewReflectorWithOptions(listerWatcher{a}, &pod{}, a.store, cache.ReflectorOptions{Name: "pods"})
		go func() {
			defer close(a.ended)
			reflector.RunWithContext(a.ctx)
		}()
	}
	return a.up && !again, nil
}

func (a *APIServer) setUp(up bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.up = up
}

func (a *APIServer) request(o metav1.ListOptions) *rest.Request {
	o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", a.node).String()
	return a.client.Get().Resource("pods").VersionedParams(&o, metav1.ParameterCodec)
}

func (a *APIServer) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(klog.NewContext(ctx, klog.Logger{}), a.timeout)
	defer cancel()
	list := new(podList)
	return list, a.request(o).Do(ctx).Into(list)
}

// listerWatcher is what client-go's reflector asks. It notes whether a watch is up:
// one is begun only after the store holds the list from which it goes on, and is
// stopped, by the reflector, as soon as it told its last.
type listerWatcher struct{ a *APIServer }

func (w listerWatcher) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return w.a.list(ctx, o)
}

func (w listerWatcher) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	events, err := w.a.request(o).Watch(ctx)
	if err != nil {
		return nil, err
	}
	w.a.setUp(true)
	return noted{events, w.a}, nil
}

func (w listerWatcher) List(o metav1.ListOptions) (runtime.Object, error) {
	return w.ListWithContext(w.a.ctx, o)
}

func (w listerWatcher) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return w.WatchWithContext(w.a.ctx, o)
}

// IsWatchListSemanticsUnSupported asks for a list before the watch: one that comes
// as the watch's first events would be up before the store is whole.
func (listerWatcher) IsWatchListSemanticsUnSupported() bool { return true }

// noted is a watch whose end is noted.
type noted struct {
	watch.Interface
	a *APIServer
}

func (n noted) Stop() {
	n.a.setUp(false)
	n.Interface.Stop()
}

// explain says what to do about an error. The server's own words are bounded and
// quoted against terminal escapes.
func (a *APIServer) explain(ctx context.Context, err error) error {
	var wrapped *url.Error
	var tooLong *http.MaxBytesError
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no answer within %v: %w", a.timeout, context.DeadlineExceeded)
	case errors.As(err, &tooLong):
		err = fmt.Errorf("the answer is %w: more than %d MiB", ErrTooLarge, maxAnswer>>20)
	case apierrors.IsUnauthorized(err):
		err = errors.New("it does not accept who asks (401); the token or certificate may have expired")
	case apierrors.IsForbidden(err):
		err = errors.New("who asks may not list its pods (403); the ClusterRole needs the verbs list and watch on pods")
	case errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w; is the API server up, and this its address?", syscall.ECONNREFUSED)
	case errors.As(err, &wrapped):
		err = errors.New(shown(wrapped.Err.Error()))
	default:
		err = errors.New(shown(err.Error()))
	}
	return fmt.Errorf("%s: %w", a.source, err)
}

// What client-go asks of a type that it decodes and keeps.

// GetObjectMeta tells the names by which the watch knows a pod.
func (p *pod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{
		Name: p.Metadata.Name, Namespace: p.Metadata.Namespace,
		UID: types.UID(p.Metadata.UID), ResourceVersion: p.Metadata.ResourceVersion,
	}
}

// DeepCopyObject copies what may be changed: nothing below a decoded pod is.
func (p *pod) DeepCopyObject() runtime.Object {
	out := *p
	return &out
}

// DeepCopyObject copies the list, and the pods in it as theirs does.
func (l *podList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = slices.Clone(l.Items)
	return &out
}
