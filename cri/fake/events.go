package fake

import (
	"fmt"
	"slices"

	events "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listener is one open stream of events.
type listener struct {
	filters []string // of containerd's service
	cri     bool
	events  chan proto.Message
	broken  chan struct{}
	why     error
}

// Emit tells an event of containerd's to all who subscribed to its topic, in order, and
// returns when the one before it is written to them: who does not read holds it up.
func (s *Server) Emit(namespace, topic string, event proto.Message) {
	value, err := proto.Marshal(event)
	if err != nil {
		panic(err) // a message of our own
	}
	s.emit(&types.Envelope{
		Namespace: namespace, Topic: topic,
		// The name alone, as containerd's typeurl writes it.
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: value},
	}, func(l *listener) bool { return slices.Contains(l.filters, fmt.Sprintf("topic==%q", topic)) })
}

// EmitPod tells an event of the CRI's.
func (s *Server) EmitPod(event *runtimeapi.ContainerEventResponse) {
	s.emit(event, func(l *listener) bool { return l.cri })
}

func (s *Server) emit(message proto.Message, to func(*listener) bool) {
	s.mu.Lock()
	var all []*listener
	for l := range s.listeners {
		if to(l) {
			all = append(all, l)
		}
	}
	s.mu.Unlock()
	for _, l := range all {
		select {
		case l.events <- message:
		case <-l.broken:
		}
	}
}

// Listeners tells how many streams of events are open.
func (s *Server) Listeners() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.listeners)
}

// Break ends all streams of events: with an error, or as if all were told when it is
// nil.
func (s *Server) Break(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		l.why = why
		close(l.broken)
	}
	clear(s.listeners)
}

// tell serves one listener until his stream is broken or he goes.
func (s *Server) tell(stream grpc.ServerStream, l *listener, send func(proto.Message) error) error {
	l.events, l.broken = make(chan proto.Message), make(chan struct{})
	s.mu.Lock()
	if s.listeners == nil {
		s.listeners = make(map[*listener]bool)
	}
	s.listeners[l] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.listeners[l] {
			delete(s.listeners, l)
			close(l.broken)
		}
	}()
	for {
		select {
		case message := <-l.events:
			if err := send(message); err != nil {
				return err
			}
		case <-l.broken:
			return l.why
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

type eventService struct {
	events.UnimplementedEventsServer
	fake *Server
}

func (s eventService) Subscribe(request *events.SubscribeRequest, stream events.Events_SubscribeServer) error {
	if err := s.fake.note(stream.Context(), "/containerd.services.events.v1.Events/Subscribe"); err != nil {
		return err
	}
	for _, filter := range request.GetFilters() {
		var topic string
		if _, err := fmt.Sscanf(filter, "topic==%q", &topic); err != nil {
			return status.Errorf(codes.InvalidArgument, "failed parsing subscription filter %q: %v", filter, err)
		}
	}
	return s.fake.tell(stream, &listener{filters: request.GetFilters()}, func(m proto.Message) error { return stream.SendMsg(m) })
}

func (s criService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	if err := s.fake.note(stream.Context(), "/runtime.v1.RuntimeService/GetContainerEvents"); err != nil {
		return err
	}
	s.fake.mu.Lock()
	tells := s.fake.node.PodEvents
	s.fake.mu.Unlock()
	if !tells {
		return nil
	}
	return s.fake.tell(stream, &listener{cri: true}, func(m proto.Message) error { return stream.SendMsg(m) })
}
