package rpc

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
)

// Server holds a service behind any number of listeners.
type Server struct {
	service *Service
	log     *slog.Logger
}

// NewServer makes a server of a service.
func NewServer(service *Service, log *slog.Logger) *Server {
	return &Server{service: service, log: log}
}

// Serve serves on all listeners until the context ends, or one of them fails. It
// closes them, lets calls end for a while ([Limits.Stop]), and returns nil when
// the context ended. A server serves once.
func (s *Server) Serve(ctx context.Context, listeners ...*Listener) error {
	servers := make([]*grpc.Server, len(listeners))
	for i, listener := range listeners {
		servers[i] = s.server(listener)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var serving sync.WaitGroup
	for i, server := range servers {
		serving.Go(func() {
			limited := limit(listeners[i].Listener, s.service.options.Limits.Connections)
			if err := server.Serve(limited); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				fail(&listenerError{address: listeners[i].Addr().String(), err: err})
			}
		})
	}
	<-ctx.Done()

	close(s.service.ending)
	deadline := time.AfterFunc(s.service.options.Limits.Stop, func() {
		for _, server := range servers {
			server.Stop()
		}
	})
	defer deadline.Stop()
	var stopping sync.WaitGroup
	for _, server := range servers {
		stopping.Go(server.GracefulStop)
	}
	stopping.Wait()
	serving.Wait()
	var failed *listenerError
	if errors.As(context.Cause(ctx), &failed) {
		return failed
	}
	return nil
}

type listenerError struct {
	address string
	err     error
}

func (e *listenerError) Error() string { return "serving on " + e.address + ": " + e.err.Error() }

func (e *listenerError) Unwrap() error { return e.err }

// server makes the gRPC server of one listener.
func (s *Server) server(listener *Listener) *grpc.Server {
	limits := s.service.options.Limits
	age := keepalive.ServerParameters{Time: limits.Silence, Timeout: limits.Silence / 3}
	if !listener.local {
		age.MaxConnectionIdle, age.MaxConnectionAge, age.MaxConnectionAgeGrace = limits.Age/12, limits.Age, limits.Age/60
	}
	if listener.probes { // each probe dials anew, and nobody else may take the places
		age.MaxConnectionIdle, age.MaxConnectionAge, age.MaxConnectionAgeGrace = limits.Handshake, limits.Handshake, limits.Handshake
	}
	server := grpc.NewServer(
		grpc.Creds(listener.credentials),
		grpc.ConnectionTimeout(limits.Handshake),
		grpc.MaxRecvMsgSize(limits.Request),
		grpc.MaxConcurrentStreams(uint32(limits.Streams)),
		grpc.MaxHeaderListSize(16<<10),
		grpc.KeepaliveParams(age),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.InTapHandle(s.arriving),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
	)
	if listener.probes {
		grpc_health_v1.RegisterHealthServer(server, &probes{health: &health{service: s.service}})
		return server
	}
	v1.RegisterAgentServiceServer(server, s.service)
	grpc_health_v1.RegisterHealthServer(server, &health{service: s.service})
	if listener.local {
		reflection.Register(server)
	}
	return server
}

// late is the context's key of the timer that ends a call whose request does not come.
type late struct{}

// arriving bounds the time from a call's headers to its request. gRPC waits for that
// before it asks any interceptor, for as long as the connection lives.
func (s *Server) arriving(ctx context.Context, _ *tap.Info) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	return context.WithValue(ctx, late{}, time.AfterFunc(s.service.options.Limits.Arrival, cancel)), nil
}

func arrived(ctx context.Context) {
	if timer, ok := ctx.Value(late{}).(*time.Timer); ok {
		timer.Stop()
	}
}

// arrivingStream is a stream whose first message is its request.
type arrivingStream struct{ grpc.ServerStream }

// RecvMsg implements [grpc.ServerStream].
func (s arrivingStream) RecvMsg(message any) error {
	defer arrived(s.Context())
	return s.ServerStream.RecvMsg(message)
}

// unary and stream make of a panic an answer: one call must not end the agent.
func (s *Server) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	defer s.recovered(info.FullMethod, &err)
	arrived(ctx)
	return handle(ctx, request)
}

func (s *Server) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.recovered(info.FullMethod, &err)
	return handle(service, arrivingStream{stream})
}

func (s *Server) recovered(method string, err *error) {
	if cause := recover(); cause != nil {
		s.log.Error("a call panicked", "method", method, "cause", cause, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the agent made a mistake; its log tells more")
	}
}
