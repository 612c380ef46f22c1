package rpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
)

// HTTP/2 as RFC 9113 and RFC 7541 have it, without a library that would keep us from
// breaking it.
const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	typeData, typeHeaders, typeReset, typeSettings, typePing, typeGoAway, typeContinuation = 0, 1, 3, 4, 6, 7, 9

	flagEnd, flagAck, flagEndHeaders = 1, 1, 4

	frameSizeError, refusedStream, enhanceYourCalm = 6, 7, 11
)

func frame(kind, flags byte, stream uint32, payload string) string {
	header := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	return string(binary.BigEndian.AppendUint32(append(header, flags), stream)) + payload
}

// field is a header field that goes into no table.
func field(name, value string) string {
	return "\x00" + string(rune(len(name))) + name + string(rune(len(value))) + value
}

func call(method string) string {
	return field(":method", "POST") + field(":scheme", "http") + field(":path", method) + field(":authority", "a") +
		field("content-type", "application/grpc") + field("te", "trailers")
}

var greeting = preface + frame(typeSettings, 0, 0, "")

// peer is a client by hand.
type peer struct {
	net.Conn
	t *testing.T
}

func dial(t *testing.T, path string) peer {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	return peer{conn, t}
}

// say writes; that the other side does not listen any more is told by what it said.
func (p peer) say(text string) { _, _ = io.WriteString(p, text) }

type received struct {
	kind, flags byte
	stream      uint32
	payload     string
}

// code is that of a reset or a farewell.
func (r received) code() uint32 { return binary.BigEndian.Uint32([]byte(r.payload[len(r.payload)-4:])) }

// hear reads until a frame that the condition holds for, or the connection's end,
// which is a frame of its own. It answers what a well-behaved client does.
func (p peer) hear(until func(received) bool) (last received, ended bool) {
	p.t.Helper()
	for {
		var header [9]byte
		if _, err := io.ReadFull(p, header[:]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Error("the connection stays open")
			}
			return received{}, true
		}
		payload := make([]byte, binary.BigEndian.Uint32(header[:4])>>8)
		if _, err := io.ReadFull(p, payload); err != nil {
			return received{}, true
		}
		got := received{header[3], header[4], binary.BigEndian.Uint32(header[5:]), string(payload)}
		switch {
		case until(got):
			return got, false
		case got.kind == typeSettings && got.flags&flagAck == 0:
			p.say(frame(typeSettings, flagAck, 0, ""))
		case got.kind == typePing && got.flags&flagAck == 0:
			p.say(frame(typePing, flagAck, 0, got.payload))
		}
	}
}

func never(received) bool { return false }

// streamEnds is the end of a stream: its last headers, or a reset.
func streamEnds(id uint32) func(received) bool {
	return func(r received) bool {
		return r.stream == id && (r.kind == typeReset || r.kind == typeHeaders && r.flags&flagEnd != 0)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, again := soon(t), time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("%s: it does not come to it", what)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// beside asks and watches all the time, as a client does to whom nothing may
// happen. What attacks is to leave nothing behind once the test has closed its ends.
func beside(t *testing.T, target string, attack func()) {
	t.Helper()
	client := v1.NewAgentServiceClient(connect(t, target))
	ctx, cancel := context.WithCancel(soon(t))
	defer cancel()
	watch, err := client.Watch(ctx, &v1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	messages(t, watch, isStatus)
	goroutines, files := runtime.NumGoroutine(), descriptors(t)

	var asked atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			if _, err := client.GetNode(ctx, &v1.GetNodeRequest{}); err != nil {
				t.Errorf("who asks beside it: %v", err)
				return
			}
			if asked.Add(1); ctx.Err() != nil {
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	before := asked.Load()
	attack()
	until(t, "who asks beside it is answered", func() bool { return asked.Load() > before+1 || ctx.Err() != nil })
	close(stop)
	<-stopped
	messages(t, watch, func(m *v1.WatchResponse) bool { return m.GetHeartbeat() != nil })
	until(t, "nothing is left of it", func() bool { return runtime.NumGoroutine() <= goroutines && descriptors(t) <= files })
}

// impatient has all times short: what waits for the client ends while a test waits.
// They hold for the well-behaved too, on a machine that has other things to do.
func impatient() rpc.Limits {
	return rpc.Limits{Arrival: 2 * time.Second, Silence: time.Second, Heartbeat: 5 * time.Millisecond}
}

func attacked(t *testing.T, limits rpc.Limits) (path, target string) {
	t.Helper()
	f, options := served()
	options.Limits = limits
	listener, target := unixListener(t)
	serve(t, f, options, listener)
	return strings.TrimPrefix(target, "unix://"), target
}

// TestSlowClientsAreCutOff: whoever stops in the middle, or goes on byte by byte,
// loses the connection, or the call where the connection is alive.
func TestSlowClientsAreCutOff(t *testing.T) {
	d := rpc.DefaultLimits()
	if d.Silence != 30*time.Second || d.Arrival != 10*time.Second {
		t.Errorf("a client may be silent for %v, a request take %v", d.Silence, d.Arrival)
	}
	path, target := attacked(t, impatient())
	const getNode, watch = v1.AgentService_GetNode_FullMethodName, v1.AgentService_Watch_FullMethodName
	began := func(method string) string {
		return greeting + frame(typeHeaders, flagEndHeaders, 1, call(method))
	}
	rows := map[string]struct {
		says, drips string
		lives       bool // it answers what it is asked, and only its call ends
	}{
		"nothing after the greeting":                 {says: greeting},
		"headers that do not end":                    {says: greeting + frame(typeHeaders, 0, 1, call(getNode))},
		"headers that go on without end":             {says: greeting + frame(typeHeaders, 0, 1, call(getNode)), drips: frame(typeContinuation, 0, 1, "")},
		"half of a frame's header":                   {says: greeting + "\x00\x00"},
		"a frame that comes byte by byte":            {says: began(getNode) + "\x00\x10\x00\x00\x00\x00\x00\x00\x01", drips: "\x00"},
		"a message of which one byte comes":          {says: began(getNode) + frame(typeData, 0, 1, "\x00")},
		"a call without its message":                 {says: began(getNode), lives: true},
		"a call with one byte of its message":        {says: began(getNode) + frame(typeData, 0, 1, "\x00"), lives: true},
		"a call with half of its message":            {says: began(getNode) + frame(typeData, 0, 1, "\x00\x00\x00\x00\x02\x0a"), lives: true},
		"a call whose message comes in empty frames": {says: began(getNode), drips: frame(typeData, 0, 1, ""), lives: true},
		"a watch without its message":                {says: began(watch), lives: true},
		"a watch with half of its message":           {says: began(watch) + frame(typeData, 0, 1, "\x00\x00\x00\x00\x02\x0a"), lives: true},
	}
	beside(t, target, func() {
		var attackers sync.WaitGroup
		for name, row := range rows {
			p := dial(t, path)
			p.say(row.says)
			gone := make(chan bool)
			attackers.Go(func() {
				defer close(gone)
				if !row.lives {
					if _, err := io.Copy(io.Discard, p); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%s: the connection stays open", name)
					}
				} else if _, ended := p.hear(streamEnds(1)); ended {
					t.Errorf("%s: the connection ended", name)
				}
			})
			attackers.Go(func() {
				drop := time.NewTicker(10 * time.Millisecond)
				defer drop.Stop()
				for {
					select {
					case <-drop.C:
						p.say(row.drips)
					case <-gone:
						_ = p.Close()
						return
					}
				}
			})
		}
		attackers.Wait()
	})
}

// waiting is a feed whose view comes when it is released.
type waiting struct {
	*feed
	release chan struct{}
}

func (w waiting) View() (agent.View, bool) {
	<-w.release
	return w.feed.View()
}

// TestARequestThatCameMayTakeItsTime: what bounds the arrival of requests ends none
// that has arrived.
func TestARequestThatCameMayTakeItsTime(t *testing.T) {
	f, options := served()
	options.Limits = impatient()
	looked, finish := make(chan struct{}), make(chan struct{})
	options.Scanner = scanner(func(ctx context.Context) (agent.View, error) {
		close(looked)
		select {
		case <-finish:
			return agent.View{}, nil
		case <-ctx.Done():
			return agent.View{}, ctx.Err()
		}
	})
	listener, target := unixListener(t)
	serve(t, waiting{f, finish}, options, listener)
	client := v1.NewAgentServiceClient(connect(t, target))
	scan, err := client.Scan(soon(t), &v1.ScanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error)
	go func() {
		_, err := client.ListContainers(soon(t), &v1.ListContainersRequest{})
		asked <- err
	}()
	<-looked

	// A later one does not come, and its time is over.
	late := dial(t, strings.TrimPrefix(target, "unix://"))
	late.say(greeting + frame(typeHeaders, flagEndHeaders, 1, call(v1.AgentService_GetNode_FullMethodName)))
	if _, ended := late.hear(streamEnds(1)); ended {
		t.Error("the connection ended")
	}
	close(finish)
	if err := <-asked; err != nil {
		t.Errorf("a call: %v", err)
	}
	if _, err := scan.Recv(); err != nil {
		t.Errorf("a stream: %v", err)
	}
}

// TestBrokenFramesHarmNobodyElse: the connection ends, or the stream alone.
func TestBrokenFramesHarmNobodyElse(t *testing.T) {
	path, target := attacked(t, rpc.Limits{Heartbeat: 5 * time.Millisecond}) // long times: they are not what ends these
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	noise := func(n int) string {
		random, bytes := rand.New(rand.NewPCG(seed, 0)), make([]byte, n)
		for i := range bytes {
			bytes[i] = byte(random.Uint32())
		}
		return string(bytes)
	}
	headers := call(v1.AgentService_GetNode_FullMethodName)
	// One large field goes into the table of 4 KiB, and each further byte is it again.
	bomb := headers + "\x40\x01x" + "\x7f\x81\x1e" + strings.Repeat("y", 4000) + strings.Repeat("\xbe", 12_000)
	large := field("x", strings.Repeat("y", 100))
	for name, row := range map[string]struct {
		says   string
		stream uint32 // that alone ends; 0 for the connection
		code   uint32 // of its reset, where nothing else may be the reason
	}{
		"random bytes":                     {noise(4096), 0, 0},
		"random bytes after the greeting":  {greeting + "\xff" + noise(4096), 0, 0},
		"a hello of TLS":                   {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise(512), 0, 0},
		"HTTP/1":                           {"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n", 0, 0},
		"another version's preface":        {"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", 0, 0},
		"a preface without settings":       {preface + frame(typePing, 0, 0, "12345678"), 0, 0},
		"data on no stream":                {greeting + frame(typeData, 0, 0, "x"), 0, 0},
		"headers on no stream":             {greeting + frame(typeHeaders, flagEndHeaders, 0, headers), 0, 0},
		"headers on a server's stream":     {greeting + frame(typeHeaders, flagEndHeaders, 2, headers), 0, 0},
		"a stream that was there already":  {greeting + frame(typeHeaders, flagEndHeaders, 3, headers) + frame(typeHeaders, flagEndHeaders, 1, headers), 0, 0},
		"a continuation of nothing":        {greeting + frame(typeContinuation, 0, 1, headers), 0, 0},
		"another frame within headers":     {greeting + frame(typeHeaders, 0, 1, headers) + frame(typePing, 0, 0, "12345678"), 0, 0},
		"a ping of another size":           {greeting + frame(typePing, 0, 0, "1234567"), 0, 0},
		"settings of another size":         {greeting + frame(typeSettings, 0, 0, "12345"), 0, 0},
		"a window of more than there is":   {greeting + frame(typeSettings, 0, 0, "\x00\x04\xff\xff\xff\xff"), 0, 0},
		"a frame of 16 MiB":                {greeting + "\xff\xff\xff\x00\x00\x00\x00\x00\x01", 0, 0},
		"headers of a table that is empty": {greeting + frame(typeHeaders, flagEndHeaders, 1, "\xbe"), 0, 0},
		"headers that break off":           {greeting + frame(typeHeaders, flagEndHeaders, 1, "\x00\x7f"), 0, 0},
		"headers without end":              {greeting + frame(typeHeaders, 0, 1, headers) + strings.Repeat(frame(typeContinuation, 0, 1, strings.Repeat(large, 150)), 64), 0, 0},
		"headers that grow when unpacked":  {greeting + frame(typeHeaders, flagEndHeaders, 1, bomb), 1, frameSizeError},
		"headers of more than 16 KiB":      {greeting + frame(typeHeaders, 0, 1, headers+strings.Repeat(large, 100)) + frame(typeContinuation, flagEndHeaders, 1, strings.Repeat(large, 100)), 1, frameSizeError},
		"headers of another protocol":      {greeting + frame(typeHeaders, flagEndHeaders, 1, field(":method", "GET")+field(":path", "/")+field(":authority", "a")), 1, 0},
		"a message of 4 GiB":               {greeting + frame(typeHeaders, flagEndHeaders, 1, headers) + frame(typeData, 0, 1, "\x00\xff\xff\xff\xff"), 1, 0},
		"a message that is compressed":     {greeting + frame(typeHeaders, flagEndHeaders, 1, headers+field("grpc-encoding", "gzip")) + frame(typeData, flagEnd, 1, "\x01\x00\x00\x00\x01x"), 1, 0},
		"a message that breaks off":        {greeting + frame(typeHeaders, flagEndHeaders, 1, headers) + frame(typeData, flagEnd, 1, "\x00\x00\x00\x00\x09x"), 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			beside(t, target, func() {
				p := dial(t, path)
				p.say(row.says)
				if row.stream == 0 {
					p.hear(never)
				} else if end, ended := p.hear(streamEnds(row.stream)); ended {
					t.Error("the connection ended")
				} else if row.code != 0 && (end.kind != typeReset || end.code() != row.code) {
					t.Errorf("%+v", end)
				}
				_ = p.Close()
			})
		})
	}
}

// TestTooManyPings: who asks all the time whether we are there is told to calm down.
func TestTooManyPings(t *testing.T) {
	path, target := attacked(t, rpc.Limits{Heartbeat: 5 * time.Millisecond})
	beside(t, target, func() {
		p := dial(t, path)
		p.say(greeting + strings.Repeat(frame(typePing, 0, 0, "12345678"), 5))
		farewell, ended := p.hear(func(r received) bool { return r.kind == typeGoAway })
		if ended || binary.BigEndian.Uint32([]byte(farewell.payload[4:])) != enhanceYourCalm || !strings.Contains(farewell.payload, "too_many_pings") {
			t.Errorf("%+v", farewell)
		}
		p.hear(never)
		_ = p.Close()
	})
}

// TestSoManyStreamsAndNoMore: a connection that has all its streams gets no other,
// and is the only one to notice.
func TestSoManyStreamsAndNoMore(t *testing.T) {
	limits := rpc.Limits{Streams: 3, Heartbeat: 5 * time.Millisecond}
	path, target := attacked(t, limits)
	beside(t, target, func() {
		p := dial(t, path)
		p.say(greeting)
		for id := uint32(1); id <= 7; id += 2 {
			p.say(frame(typeHeaders, flagEndHeaders, id, call(v1.AgentService_Watch_FullMethodName)))
		}
		if refused, ended := p.hear(func(r received) bool { return r.kind == typeReset }); ended || refused.stream != 7 || refused.code() != refusedStream {
			t.Errorf("%+v", refused)
		}
		p.say(frame(typeReset, 0, 1, "\x00\x00\x00\x08"))
		p.say(frame(typeHeaders, flagEndHeaders, 9, call(v1.AgentService_GetNode_FullMethodName)) + frame(typeData, flagEnd, 9, "\x00\x00\x00\x00\x00"))
		if answer, ended := p.hear(streamEnds(9)); ended || answer.kind != typeHeaders {
			t.Errorf("in the place of one that ended: %+v", answer)
		}
		_ = p.Close()
	})
}

// TestManyIdleConnections: those above the limit are closed, and cost no descriptor.
func TestManyIdleConnections(t *testing.T) {
	limits := rpc.Limits{Connections: 10, Heartbeat: 5 * time.Millisecond}
	path, target := attacked(t, limits)
	beside(t, target, func() {
		before, open := descriptors(t), []peer{}
		for range 100 {
			p := dial(t, path)
			p.say(greeting)
			open = append(open, p)
		}
		until(t, "no more than ten are open", func() bool { return descriptors(t) <= before+len(open)+limits.Connections-1 })
		for _, p := range open {
			_ = p.Close()
		}
	})
}

func TestRequestsAreBounded(t *testing.T) {
	f, options := served()
	options.Limits.Request = 1000
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	for size, want := range map[int]codes.Code{900: codes.InvalidArgument, 1001: codes.ResourceExhausted} {
		if _, err := client.ListContainers(soon(t), &v1.ListContainersRequest{Filter: strings.Repeat("a", size)}); status.Code(err) != want {
			t.Errorf("a filter of %d bytes: %v", size, err)
		}
	}
}

// TestConnectionsEndWithTheirAge: a watch over TCP is cut off and goes on over
// another connection, where its client is looked at again; one on the socket stays.
func TestConnectionsEndWithTheirAge(t *testing.T) {
	old, fresh := newAuthority(t, "old"), newAuthority(t, "new")
	limits := rpc.Limits{Age: 300 * time.Millisecond, Heartbeat: 5 * time.Millisecond}
	_, local := attacked(t, limits)
	stays := watching(t, v1.NewAgentServiceClient(connect(t, local)), &v1.WatchRequest{})
	messages(t, stays, isStatus)

	address, mount, _, clock := onTLS(t, old, rpc.Options{Limits: limits})
	conn := connect(t, address, over(&tls.Config{RootCAs: old.pool(), Certificates: []tls.Certificate{old.client(t, time.Now().Add(time.Hour))}}))
	client, token := v1.NewAgentServiceClient(conn), ""
	cut := func() {
		t.Helper()
		stream, err := client.Watch(soon(t), &v1.WatchRequest{After: token})
		for message := (*v1.WatchResponse)(nil); err == nil; {
			if message, err = stream.Recv(); err == nil {
				token = message.ResumeToken
			}
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("it ends with %v", err)
		}
	}
	cut()
	resumed := watching(t, client, &v1.WatchRequest{After: token})
	if got := kinds(messages(t, resumed, isStatus)); got != "status" {
		t.Errorf("it goes on with %s", got)
	}

	certificate, key := old.issue(t, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth)
	mount.swap(t, certificate, key, fresh.pem())
	clock.Add(1)
	for _, err := resumed.Recv(); err == nil; _, err = resumed.Recv() {
	}
	if _, err := client.GetNode(soon(t), &v1.GetNodeRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a client of the CA that was replaced: %v", err)
	}
	now := time.Now()
	messages(t, stays, func(m *v1.WatchResponse) bool { return m.Time.AsTime().After(now) })
}

// TestCostlyFiltersAreEnded: what a filter takes is bounded for all that a call looks at
// together, and in a watch for the changes of each container.
func TestCostlyFiltersAreEnded(t *testing.T) {
	f, options := served()
	options.Limits.Filter = 10_000
	options.Limits.Heartbeat = time.Hour // nothing more is given meanwhile
	g := steady()
	report := g.report(0, 0)
	for i := range 2000 {
		c := g.container(fmt.Sprintf("%04d", i), 4)
		c.Observation = "observed"
		finding := g.finding(c.ID)
		finding.ContainerID, finding.PID = c.ID, 1
		report.Containers, report.Findings = append(report.Containers, c), append(report.Findings, finding)
	}
	f.publish(report)
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	const loops = `processes.exists(a, processes.exists(b, a.pid + b.pid < 0))`
	watch := func(request *v1.WatchRequest) error {
		stream, err := client.Watch(soon(t), request)
		for err == nil {
			var m *v1.WatchResponse
			if m, err = stream.Recv(); err == nil && isStatus(m) {
				return nil
			}
		}
		return err
	}
	containers := []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_CONTAINERS}
	findings := []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_FINDINGS}
	for name, ask := range map[string]func(filter string) error{
		"containers": func(filter string) error {
			_, err := client.ListContainers(soon(t), &v1.ListContainersRequest{Filter: filter})
			return err
		},
		"findings": func(filter string) error {
			_, err := client.ListFindings(soon(t), &v1.ListFindingsRequest{Filter: filter})
			return err
		},
		"container_filter": func(filter string) error {
			return watch(&v1.WatchRequest{ContainerFilter: filter, Topics: containers})
		},
		"finding_filter": func(filter string) error {
			return watch(&v1.WatchRequest{FindingFilter: filter, Topics: findings})
		},
	} {
		if err := ask(loops); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "takes too long") {
			t.Errorf("%s: %v", name, err)
		}
		if err := ask(`sandbox && !sandbox`); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s, each of which costs little: %v", name, err) // 2000 of them cost much
		}
		if err := ask(``); err != nil {
			t.Errorf("%s without a filter: %v", name, err)
		}
	}

	// On few it costs little, and then the changes come.
	report.Containers = report.Containers[:2]
	f.publish(report)
	stream := watching(t, client, &v1.WatchRequest{ContainerFilter: loops, Topics: containers})
	messages(t, stream, isStatus)
	var changes []agent.Change
	for range 500 {
		changes = append(changes, of(agent.ContainerChanged, report.Containers[0]))
	}
	f.publish(report, append(changes, of(agent.ContainerChanged, report.Containers[1]), of(agent.ContainerRemoved, report.Containers[0]))...)
	undecided := 0
	for ended := false; !ended; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("a container that changes often ends the watch: %v", err)
		}
		change := m.GetContainer()
		ended = change.GetKind() == v1.ContainerChange_KIND_REMOVED
		if change.GetContainer().GetId() == report.Containers[1].ID {
			t.Errorf("another one was told, although the filter leaves it out: %q", change.Container.Undecided)
		}
		if change.GetContainer().GetUndecided() != "" {
			undecided++
		}
	}
	if undecided == 0 {
		t.Error("the container that changes often was decided for ever")
	}
}

// TestWatchersAreGivenAnew: what a watch's filter takes is counted from heartbeat to
// heartbeat.
func TestWatchersAreGivenAnew(t *testing.T) {
	f, options := served()
	options.Limits.Filter = 200
	options.Limits.Heartbeat = 5 * time.Millisecond
	client := v1.NewAgentServiceClient(onSocket(t, f, options))
	g := steady()
	report := g.report(0, 0)
	f.publish(report)
	stream := watching(t, client, &v1.WatchRequest{ContainerFilter: `id == "end" || sandbox && !sandbox`, Topics: []v1.WatchTopic{v1.WatchTopic_WATCH_TOPIC_CONTAINERS}})
	messages(t, stream, isStatus)
	for range 40 {
		f.publish(report, of(agent.ContainerChanged, g.container("c", 0)))
		// The next one may come before the heartbeat that gives anew was told.
		beats := 0
		messages(t, stream, func(m *v1.WatchResponse) bool {
			if m.GetHeartbeat() != nil {
				beats++
			}
			return beats == 2
		})
	}
	f.publish(report, of(agent.ContainerAdded, g.container("end", 0)))
	if list := messages(t, stream, isContainer("end")); slices.ContainsFunc(list, func(m *v1.WatchResponse) bool { return m.GetContainer() != nil && m.GetContainer().Container.Id == "c" }) {
		t.Error("what the filter leaves out was told")
	}
}
