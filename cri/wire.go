package cri

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// answer is what is decoded while an answer is read, without a copy of it. An error of
// its own says that the answer is not what it should be.
type answer interface{ read(r io.Reader) error }

// codec is gRPC's usual one with the answers read by themselves.
type codec struct{ failed *error }

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	text, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(text)}, err
}

// Unmarshal keeps the error of an answer, of which gRPC would make a text.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r := data.Reader()
	*c.failed = v.(answer).read(r)
	return r.Close()
}

const (
	// usualInfo is larger than nearly all. A status call takes no more in the
	// ordinary course, so that many at once stay small.
	usualInfo = 4 << 20
	// largeInfo bounds the answer about a container that has more, when it is unpacked. It
	// is what a pod's author can make of it by writing: an object of 1.5 MiB (etcd's
	// limit), every byte of it written \u003c, once in config and once in runtimeSpec.
	// The kubelet's expansion of $(NAME) in arguments makes more of it, up to what the
	// runtime takes in one call. That is not held in memory here: see [Client.bundle].
	largeInfo = 19 << 20
)

// errLater is a question that was not asked because others of its kind took all the
// time of this inventory.
var errLater = errors.New("not asked yet, because other large answers took the time of this inventory")

// ask makes a call whose answer is of the usual size and, where it is larger, makes it
// again: those are asked for one at a time, since a few of them at once would fill the
// memory of a small agent.
//
// A runtime that sends 16 MiB at most (containerd, defaults/defaults.go) measures what
// it sends after it was packed (sendResponse in grpc-go's server.go). So large answers
// are asked for in gzip: text that escapes to many bytes packs to few, and what a pod's
// author can write packs to about what he wrote.
func ask[Answer answer](ctx context.Context, c *Client, method string, request proto.Message, blank func() Answer) (Answer, error) {
	try := func(options ...grpc.CallOption) (Answer, error) {
		var failed error
		options = append(options, grpc.ForceCodecV2(codec{&failed}))
		got, err := call(ctx, c, func(ctx context.Context, request proto.Message, options ...grpc.CallOption) (Answer, error) {
			got := blank()
			return got, c.conn.Invoke(ctx, method, request, got, options...)
		}, request, options...)
		if err == nil {
			err = failed
		}
		return got, err
	}
	got, err := try(grpc.MaxCallRecvMsgSize(usualInfo))
	if !errors.Is(err, errTooLarge) {
		return got, err
	}
	if err := c.large.enter(ctx); err != nil {
		return got, fmt.Errorf("%s: %w", c.path, err)
	}
	defer c.large.leave()
	got, err = try(grpc.MaxCallRecvMsgSize(largeInfo), grpc.UseCompressor(gzip.Name))
	if errors.Is(err, errUnimplemented) { // it cannot unpack gzip
		got, err = try(grpc.MaxCallRecvMsgSize(largeInfo))
	}
	return got, err
}

// turns lets one large answer after the other be asked for, until the time of the
// inventory that is under way is over.
type turns struct {
	one  chan struct{}
	over context.Context // of the inventory; it has a deadline
}

func (t *turns) enter(ctx context.Context) error {
	select {
	case t.one <- struct{}{}:
	case <-t.over.Done():
		return errLater
	case <-ctx.Done():
		return ctx.Err()
	}
	// A busy machine is late to say that the time is over.
	if deadline, _ := t.over.Deadline(); !time.Now().Before(deadline) {
		t.leave()
		return errLater
	}
	return nil
}

func (t *turns) leave() { <-t.one }

// verbose is a verbose status of a container or a sandbox: the two have the fields
// that matter under the same numbers, but for the image, which only a container's has.
type verbose struct {
	state uint64 // ContainerState or PodSandboxState
	image image
	told  bool // there is an info
	info  info
}

var errWire = errors.New("the answer is not in the form of protobuf")

func (v *verbose) read(r io.Reader) error {
	return fields(r, func(number, _ uint64, body io.Reader) error {
		switch {
		case number == 1 && body != nil: // status
			return fields(body, func(number, value uint64, body io.Reader) error {
				switch {
				case number == 3 && body == nil:
					v.state = value
				case number == 8 && body != nil:
					return fields(body, func(number, _ uint64, body io.Reader) error {
						switch {
						case number == 1 && body != nil:
							return into(&v.image.name, body)
						case number == 18 && body != nil:
							return into(&v.image.asked, body)
						}
						return nil
					})
				case number == 9 && body != nil:
					return into(&v.image.ref, body)
				}
				return nil
			})
		case number == 2 && body != nil: // an entry of info
			return entry(body, func(key string, value io.Reader) error {
				if key != "info" {
					return nil
				}
				in, err := decode[info](value)
				if errors.Is(err, errEmpty) {
					return nil
				}
				if err != nil {
					return fmt.Errorf("the verbose status %w", err)
				}
				v.told, v.info = true, in
				return nil
			})
		}
		return nil
	})
}

// entry reads an entry of a protobuf map from text to text or to a message. Its key
// comes first, as all who write one have it.
func entry(r io.Reader, value func(key string, body io.Reader) error) error {
	key := ""
	return fields(r, func(number, _ uint64, body io.Reader) error {
		switch {
		case number == 1 && body != nil:
			text, err := io.ReadAll(io.LimitReader(body, maxPath))
			key = string(text)
			return err
		case number == 2 && body != nil:
			return value(key, body)
		}
		return nil
	})
}

// fields reads a protobuf message, and hands on the number and the value of each field:
// a varint or, for texts, bytes and messages, a body, which need not be read.
// Source: protobuf.dev/programming-guides/encoding.
func fields(r io.Reader, each func(number, value uint64, body io.Reader) error) error {
	in := byteReader{r}
	for {
		tag, err := binary.ReadUvarint(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errWire
		}
		var value uint64
		var body *io.LimitedReader
		switch tag & 7 {
		case 0:
			value, err = binary.ReadUvarint(in)
		case 1:
			_, err = io.CopyN(io.Discard, r, 8)
		case 2:
			value, err = binary.ReadUvarint(in)
			body = &io.LimitedReader{R: r, N: int64(min(value, largeInfo))}
		case 5:
			_, err = io.CopyN(io.Discard, r, 4)
		default:
			return errWire
		}
		switch {
		case err != nil:
			return errWire
		case body == nil:
			err = each(tag>>3, value, nil)
		default:
			if err = each(tag>>3, 0, body); err == nil {
				_, err = io.Copy(io.Discard, body)
			}
			if err == nil && body.N > 0 {
				err = errWire // it ends early
			}
		}
		if err != nil {
			return err
		}
	}
}

// byteReader reads the few bytes that are no body.
type byteReader struct{ io.Reader }

func (r byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(r.Reader, one[:])
	return one[0], err
}

// The calls whose answers are read so.
const (
	containerStatus  = runtimeapi.RuntimeService_ContainerStatus_FullMethodName
	podSandboxStatus = runtimeapi.RuntimeService_PodSandboxStatus_FullMethodName
)

func (c *Client) verbose(ctx context.Context, method string, request proto.Message) (*verbose, error) {
	return ask(ctx, c, method, request, func() *verbose { return &verbose{} })
}
