// Package fake is a container runtime for tests: it answers CRI v1, and where it
// poses as containerd its own API too, over a real gRPC socket, with what its
// [Node] holds. It can hang, refuse, die, answer another version and lie.
//
//	node, err := fake.Load("testdata/captures/containerd-2.4.2")
//	server := fake.Serve(t, node)
//	client, err := cri.Connect(ctx, cri.Options{Endpoint: server.Endpoint})
package fake

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/api/services/containers/v1"
	events "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Node is what the runtime says. Once served it may be changed by
// [Server.Update] alone.
type Node struct {
	Name       string // runtime_name: containerd, cri-o, docker
	Version    string
	APIVersion string // v1 when empty; with v1alpha2, CRI v1 is not served at all
	Containers []*Container
	Sandboxes  []*Sandbox
	Config     string             // in a verbose Status; empty: none is given
	Tasks      map[string][]*Task // by containerd namespace; nil: containerd's API is not served
	PodEvents  bool               // GetContainerEvents tells events, as CRI-O with enable_pod_events does
	MaxSend    int                // bytes of an answer as it is sent, 16 MiB on containerd; 0: any
	NoGzip     bool               // it cannot unpack a question in gzip
	Batch      int                // items in one message of a streamed list; 0: lists are not streamed

	// Before is called, when set, before each call is answered, with the method's
	// short name ("ContainerStatus"). Its error is the answer.
	Before func(ctx context.Context, method string) error
}

// Container is one container of a pod.
type Container struct {
	SandboxID string
	Status    *runtimeapi.ContainerStatus
	Info      string // the verbose status; empty: none is given
	Listed    string // its image in lists, where that is another than in its status: CRI-O lists a bare id
}

// Sandbox is one pod.
type Sandbox struct {
	RuntimeHandler string
	Status         *runtimeapi.PodSandboxStatus
	Info           string
}

// Task is a container as containerd's own API shows it.
type Task struct {
	ID      string
	PID     uint32
	Status  task.Status
	Image   string
	Runtime string
	Labels  map[string]string
	Spec    string // the OCI spec as JSON; empty: none is stored
	// Metadata is what the CRI's plugin keeps with it, as JSON; empty: nothing.
	Metadata string
	Binary   string // the OCI runtime among the shim's options; empty: there are none
}

// Hang makes the named calls wait until the caller gives up.
func Hang(methods ...string) func(context.Context, string) error {
	return func(ctx context.Context, method string) error {
		if !slices.Contains(methods, method) {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

// Fail makes the named calls fail.
func Fail(code codes.Code, text string, methods ...string) func(context.Context, string) error {
	return func(_ context.Context, method string) error {
		if !slices.Contains(methods, method) {
			return nil
		}
		return status.Error(code, text)
	}
}

// Server is a running fake.
type Server struct {
	Endpoint string // unix:///…
	Path     string // of its socket
	grpc     *grpc.Server
	done     chan struct{}

	mu        sync.Mutex
	node      *Node
	calls     []string
	listeners map[*listener]bool
}

// Serve starts a fake on a socket of its own, until the test ends.
func Serve(tb testing.TB, node *Node) *Server {
	tb.Helper()
	server, err := Start(node, filepath.Join(socketDir(tb), "cri.sock"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(server.Stop)
	return server
}

// Start starts a fake on the given socket, making its directory; end it with
// [Server.Stop].
func Start(node *Node, socket string) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := &Server{Endpoint: "unix://" + socket, Path: socket, node: node, done: make(chan struct{})}
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(s.intercept),
		grpc.UnknownServiceHandler(s.unknown),
		grpc.MaxSendMsgSize(cmp.Or(node.MaxSend, math.MaxInt32)),
		grpc.StatsHandler(packing{}),
	)
	if node.APIVersion != "v1alpha2" {
		runtimeapi.RegisterRuntimeServiceServer(s.grpc, criService{fake: s})
	}
	if node.Tasks != nil {
		namespaces.RegisterNamespacesServer(s.grpc, namespaceService{fake: s})
		tasks.RegisterTasksServer(s.grpc, taskService{fake: s})
		containers.RegisterContainersServer(s.grpc, containerService{fake: s})
		events.RegisterEventsServer(s.grpc, eventService{fake: s})
	}
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(listener) // ends with the server
	}()
	return s, nil
}

// Stop ends the server at once, also in the middle of a call and from within
// one. The socket goes with it.
func (s *Server) Stop() {
	s.grpc.Stop()
	<-s.done
}

// Update changes what the runtime says.
func (s *Server) Update(change func(*Node)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.node)
}

// Calls lists the methods called so far, short ("ListContainers", "tasks.List").
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Count tells how often a method was called.
func (s *Server) Count(method string) int {
	n := 0
	for _, called := range s.Calls() {
		if called == method {
			n++
		}
	}
	return n
}

// Refusing returns the endpoint of a socket where nobody listens any more.
func Refusing(tb testing.TB) string {
	tb.Helper()
	listener := listen(tb)
	listener.SetUnlinkOnClose(false)
	_ = listener.Close()
	return "unix://" + listener.Addr().String()
}

// Silent returns the endpoint of a socket that takes connections and never says
// anything.
func Silent(tb testing.TB) string {
	tb.Helper()
	listener := listen(tb)
	tb.Cleanup(func() { _ = listener.Close() })
	return "unix://" + listener.Addr().String()
}

func listen(tb testing.TB) *net.UnixListener {
	tb.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(socketDir(tb), "cri.sock")})
	if err != nil {
		tb.Fatal(err)
	}
	return listener
}

// socketDir is short: a socket's path has 107 bytes at most (unix(7)), and the
// directories of tests are named after the test.
func socketDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// short turns "/runtime.v1.RuntimeService/Version" into "Version" and
// "/containerd.services.tasks.v1.Tasks/List" into "tasks.List".
func short(full string) string {
	service, method := path.Split(full)
	for prefix, name := range map[string]string{"namespaces": "namespaces.", "tasks": "tasks.", "containers": "containers.", "events": "events."} {
		if ok, _ := path.Match("/containerd.services."+prefix+".v1.*/", service); ok {
			return name + method
		}
	}
	return method
}

func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	s.mu.Lock()
	noGzip := s.node.NoGzip
	s.mu.Unlock()
	if how, _ := ctx.Value(packing{}).(*string); noGzip && how != nil && *how == gzip.Name {
		return nil, status.Error(codes.Unimplemented, `grpc: Decompressor is not installed for grpc-encoding "gzip"`)
	}
	if err := s.note(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

// packing keeps with each call how its question was packed.
type packing struct{}

func (packing) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, packing{}, new(string))
}

func (packing) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if header, ok := s.(*stats.InHeader); ok {
		if how, ok := ctx.Value(packing{}).(*string); ok {
			*how = header.Compression
		}
	}
}

func (packing) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (packing) HandleConn(context.Context, stats.ConnStats)                       {}

func (s *Server) unknown(_ any, stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	if err := s.note(stream.Context(), full); err != nil {
		return err
	}
	return status.Errorf(codes.Unimplemented, "unknown service %s", path.Dir(full)[1:])
}

func (s *Server) note(ctx context.Context, full string) error {
	s.mu.Lock()
	s.calls = append(s.calls, short(full))
	before := s.node.Before
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, short(full))
}

type criService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	fake *Server
}

func (s criService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	api := s.fake.node.APIVersion
	if api == "" {
		api = "v1"
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: s.fake.node.Name, RuntimeVersion: s.fake.node.Version, RuntimeApiVersion: api}, nil
}

func (s criService) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	answer := &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{}}
	if s.fake.node.Config != "" {
		answer.Info = map[string]string{"config": s.fake.node.Config}
	}
	return answer, nil
}

func (s criService) ListContainers(_ context.Context, request *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.containers(request.GetFilter())}, nil
}

func (s criService) StreamContainers(request *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	return streamed(s.fake, stream, "StreamContainers", s.containers(request.GetFilter()), func(batch []*runtimeapi.Container) *runtimeapi.StreamContainersResponse {
		return &runtimeapi.StreamContainersResponse{Containers: batch}
	})
}

// streamed sends a list in batches.
func streamed[Item, Answer any](fake *Server, stream grpc.ServerStreamingServer[Answer], method string, items []Item, answer func([]Item) *Answer) error {
	if err := fake.note(stream.Context(), "/runtime.v1.RuntimeService/"+method); err != nil {
		return err
	}
	fake.mu.Lock()
	batch := fake.node.Batch
	fake.mu.Unlock()
	if batch == 0 {
		return status.Errorf(codes.Unimplemented, "method %s not implemented", method)
	}
	for some := range slices.Chunk(items, batch) {
		if err := stream.Send(answer(some)); err != nil {
			return err
		}
	}
	return nil
}

func (s criService) containers(filter *runtimeapi.ContainerFilter) (all []*runtimeapi.Container) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	for _, c := range s.fake.node.Containers {
		if wanted := filter.GetState(); wanted != nil && wanted.GetState() != c.Status.GetState() {
			continue
		}
		if sandbox := filter.GetPodSandboxId(); sandbox != "" && sandbox != c.SandboxID {
			continue
		}
		status := proto.CloneOf(c.Status)
		if c.Listed != "" {
			status.Image, status.ImageRef = &runtimeapi.ImageSpec{Image: c.Listed}, c.Listed
		}
		all = append(all, &runtimeapi.Container{
			Id: status.GetId(), PodSandboxId: c.SandboxID, Metadata: status.GetMetadata(), Image: status.GetImage(), ImageRef: status.GetImageRef(),
			State: status.GetState(), CreatedAt: status.GetCreatedAt(), Labels: status.GetLabels(), Annotations: status.GetAnnotations(), ImageId: status.GetImageId(),
		})
	}
	return all
}

func (s criService) ListPodSandbox(_ context.Context, request *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.sandboxes(request.GetFilter())}, nil
}

func (s criService) StreamPodSandboxes(request *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return streamed(s.fake, stream, "StreamPodSandboxes", s.sandboxes(request.GetFilter()), func(batch []*runtimeapi.PodSandbox) *runtimeapi.StreamPodSandboxesResponse {
		return &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: batch}
	})
}

func (s criService) sandboxes(filter *runtimeapi.PodSandboxFilter) (all []*runtimeapi.PodSandbox) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	for _, p := range s.fake.node.Sandboxes {
		if wanted := filter.GetState(); wanted != nil && wanted.GetState() != p.Status.GetState() {
			continue
		}
		if id := filter.GetId(); id != "" && id != p.Status.GetId() {
			continue
		}
		status := proto.CloneOf(p.Status)
		all = append(all, &runtimeapi.PodSandbox{
			Id: status.GetId(), Metadata: status.GetMetadata(), State: status.GetState(), CreatedAt: status.GetCreatedAt(),
			Labels: status.GetLabels(), Annotations: status.GetAnnotations(), RuntimeHandler: p.RuntimeHandler,
		})
	}
	return all
}

func (s criService) ContainerStatus(_ context.Context, request *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	for _, c := range s.fake.node.Containers {
		if c.Status.GetId() == request.GetContainerId() {
			return &runtimeapi.ContainerStatusResponse{Status: proto.CloneOf(c.Status), Info: infoMap(request.GetVerbose(), c.Info)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "an error occurred when try to find container %q: not found", request.GetContainerId())
}

func (s criService) PodSandboxStatus(_ context.Context, request *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	for _, p := range s.fake.node.Sandboxes {
		if p.Status.GetId() == request.GetPodSandboxId() {
			return &runtimeapi.PodSandboxStatusResponse{Status: proto.CloneOf(p.Status), Info: infoMap(request.GetVerbose(), p.Info)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "an error occurred when try to find sandbox %q: not found", request.GetPodSandboxId())
}

func infoMap(verbose bool, info string) map[string]string {
	if !verbose || info == "" {
		return nil
	}
	return map[string]string{"info": info}
}

type namespaceService struct {
	namespaces.UnimplementedNamespacesServer
	fake *Server
}

func (s namespaceService) List(context.Context, *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	answer := &namespaces.ListNamespacesResponse{}
	for name := range s.fake.node.Tasks {
		answer.Namespaces = append(answer.Namespaces, &namespaces.Namespace{Name: name})
	}
	return answer, nil
}

type taskService struct {
	tasks.UnimplementedTasksServer
	fake *Server
}

func (s taskService) List(ctx context.Context, _ *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	namespace, err := namespaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	answer := &tasks.ListTasksResponse{}
	for _, t := range s.fake.node.Tasks[namespace] {
		answer.Tasks = append(answer.Tasks, &task.Process{ID: t.ID, Pid: t.PID, Status: t.Status})
	}
	return answer, nil
}

func (s taskService) Get(ctx context.Context, request *tasks.GetRequest) (*tasks.GetResponse, error) {
	namespace, err := namespaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	for _, t := range s.fake.node.Tasks[namespace] {
		if t.ID == request.GetContainerID() {
			return &tasks.GetResponse{Process: &task.Process{ID: t.ID, Pid: t.PID, Status: t.Status}}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no running task found: task %s not found", request.GetContainerID())
}

type containerService struct {
	containers.UnimplementedContainersServer
	fake *Server
}

func (s containerService) Get(ctx context.Context, request *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	namespace, err := namespaceOf(ctx)
	if err != nil {
		return nil, err
	}
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	for _, t := range s.fake.node.Tasks[namespace] {
		if t.ID != request.GetID() {
			continue
		}
		container := &containers.Container{ID: t.ID, Labels: t.Labels, Image: t.Image, Runtime: &containers.Container_Runtime{Name: t.Runtime}}
		if t.Spec != "" {
			container.Spec = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(t.Spec)}
		}
		if t.Metadata != "" {
			container.Extensions = map[string]*anypb.Any{"io.cri-containerd.container.metadata": {
				TypeUrl: "github.com/containerd/cri/pkg/store/container/Metadata", Value: []byte(t.Metadata),
			}}
		}
		if t.Binary != "" {
			packed, err := proto.Marshal(&options.Options{BinaryName: t.Binary})
			if err != nil {
				return nil, err
			}
			container.Runtime.Options = &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: packed}
		}
		return &containers.GetContainerResponse{Container: container}, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q in namespace %q: not found", request.GetID(), namespace)
}

// namespaceOf is strict, as containerd is.
func namespaceOf(ctx context.Context) (string, error) {
	fromCaller, _ := metadata.FromIncomingContext(ctx)
	if names := fromCaller.Get("containerd-namespace"); len(names) == 1 && names[0] != "" {
		return names[0], nil
	}
	return "", status.Error(codes.FailedPrecondition, fmt.Sprintf("namespace is required: %v given", len(fromCaller.Get("containerd-namespace"))))
}
