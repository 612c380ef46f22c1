package rpc

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	errEnding = status.Error(codes.Unavailable, "the agent ends; connect again")
	errSlow   = detailed(codes.ResourceExhausted, "messages are not taken in time; connect again with the newest resume token, and take them faster",
		&errdetails.ErrorInfo{Reason: "WATCHER_TOO_SLOW", Domain: domain})
)

// outbox sends the messages of one stream, each within a time.
//
// A send waits as long as the client's flow control says, which may be for ever,
// and cannot be called off but by ending the stream's handler. So it waits in a
// goroutine of its own, which ends with the stream.
type outbox[T any] struct {
	ctx      context.Context
	patience time.Duration
	messages chan *T
	results  chan error
}

func newOutbox[T any](stream grpc.ServerStreamingServer[T], patience time.Duration) *outbox[T] {
	o := &outbox[T]{ctx: stream.Context(), patience: patience, messages: make(chan *T), results: make(chan error, 1)}
	go func() {
		for message := range o.messages {
			o.results <- stream.Send(message)
		}
	}()
	return o
}

// send returns errSlow when the client did not take the message in time. The
// handler must then return, and send nothing more.
func (o *outbox[T]) send(message *T) error {
	patience := time.NewTimer(o.patience)
	defer patience.Stop()
	o.messages <- message
	select {
	case err := <-o.results:
		return err
	case <-patience.C:
		return errSlow
	case <-o.ctx.Done():
		return status.FromContextError(o.ctx.Err()).Err()
	}
}

func (o *outbox[T]) close() { close(o.messages) }
