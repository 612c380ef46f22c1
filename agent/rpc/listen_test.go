package rpc_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/capdrift/capdrift/agent"
	"github.com/capdrift/capdrift/agent/rpc"
	v1 "github.com/capdrift/capdrift/api/capdrift/v1"
)

func TestUnixSocket(t *testing.T) {
	f, options := served()
	path := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := rpc.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	stop := serve(t, f, options, listener)
	if _, err := v1.NewAgentServiceClient(connect(t, "unix://"+path)).GetNode(soon(t), &v1.GetNodeRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := rpc.ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := v1.NewAgentServiceClient(connect(t, "unix://"+path)).GetNode(soon(t), &v1.GetNodeRequest{}); err != nil {
		t.Errorf("after it: %v", err)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = stale.Close()
	listener, err := rpc.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	// What somebody else put in its place is not ours to remove.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = listener.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
	if left, _ := filepath.Glob(path + ".stale*"); left != nil {
		t.Errorf("%v is left", left)
	}
}

func TestUnixSocketRefuses(t *testing.T) {
	dir := t.TempDir()
	open, link, file := filepath.Join(dir, "open"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	for _, err := range []error{
		os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Symlink("/nowhere/agent.sock", link), os.WriteFile(file, []byte("precious"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, row := range map[string]struct{ path, says string }{
		"a directory that anybody writes to": {filepath.Join(open, "s"), "written to by others"},
		"a directory that is not there":      {filepath.Join(dir, "none", "s"), "does not exist"},
		"a directory that is a file":         {filepath.Join(file, "s"), "not a directory"},
		"a file":                             {file, "no socket"},
		"a symlink":                          {link, "no socket"},
	} {
		listener, err := rpc.ListenUnix(row.path)
		if err == nil {
			_ = listener.Close()
		}
		if err == nil || !strings.Contains(err.Error(), row.says) && !strings.Contains(err.Error(), "is none") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, _ := os.ReadFile(file); string(text) != "precious" {
		t.Error("the file was overwritten")
	}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(dir, "foreign")
		if err := errors.Join(os.Mkdir(foreign, 0o755), os.Chown(foreign, 12345, 12345)); err != nil {
			t.Fatal(err)
		}
		if _, err := rpc.ListenUnix(filepath.Join(foreign, "s")); err == nil || !strings.Contains(err.Error(), "user 12345") {
			t.Errorf("a directory of another user: %v", err)
		}
	}
}

func TestPlaintextIsForLoopback(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.com:0", "127.0.0.1"} {
		if listener, err := rpc.ListenPlaintext(address); err == nil {
			t.Errorf("%s is listened on", listener.Addr())
			_ = listener.Close()
		}
	}
	f, options := served()
	listener, err := rpc.ListenPlaintext("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f, options, listener)
	contract(t, connect(t, listener.Addr().String()), false)
}

// authority is a CA of the test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate: certificate, key: key, serial: 1}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// issue makes a certificate for clients or, with addresses, for servers.
func (a *authority) issue(t *testing.T, until time.Time, usage x509.ExtKeyUsage) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: "one"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func (a *authority) client(t *testing.T, until time.Time) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(a.issue(t, until, x509.ExtKeyUsageClientAuth))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// mounted is a directory as Kubernetes mounts a secret: the names lead through
// ..data, which is swapped.
type mounted struct {
	dir     string
	version int
}

func (m *mounted) files() rpc.CertificateFiles {
	return rpc.CertificateFiles{
		Certificate: filepath.Join(m.dir, "tls.crt"), Key: filepath.Join(m.dir, "tls.key"), ClientCA: filepath.Join(m.dir, "ca.crt"),
	}
}

func (m *mounted) swap(t *testing.T, certificate, key, ca []byte) {
	t.Helper()
	m.version++
	inner := filepath.Join(m.dir, "..version"+string(rune('0'+m.version)))
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": certificate, "tls.key": key, "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(inner, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if m.version == 1 {
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	fresh := filepath.Join(m.dir, "..data_tmp")
	if err := errors.Join(os.Symlink(filepath.Base(inner), fresh), os.Rename(fresh, filepath.Join(m.dir, "..data"))); err != nil {
		t.Fatal(err)
	}
}

// onTLS serves with certificates of the authority, which are replaced when the
// clock is moved.
func onTLS(t *testing.T, a *authority, options rpc.Options) (address string, m *mounted, certificates *rpc.Certificates, clock *atomic.Int64) {
	t.Helper()
	f, with := served()
	with.Limits = options.Limits
	m, clock = &mounted{dir: t.TempDir()}, &atomic.Int64{}
	certificate, key := a.issue(t, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth)
	m.swap(t, certificate, key, a.pem())
	certificates, err := rpc.LoadCertificates(m.files(), func() time.Time { return time.Unix(clock.Load(), 0) }, quiet())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := rpc.ListenTLS("127.0.0.1:0", certificates)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f, with, listener)
	return listener.Addr().String(), m, certificates, clock
}

func over(config *tls.Config) grpc.DialOption {
	return grpc.WithTransportCredentials(credentials.NewTLS(config))
}

func TestContractOverMutualTLS(t *testing.T) {
	a := newAuthority(t, "ours")
	address, _, _, _ := onTLS(t, a, rpc.Options{})
	contract(t, connect(t, address, over(&tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{a.client(t, time.Now().Add(time.Hour))}})), false)
}

func TestWrongCertificatesAreRefused(t *testing.T) {
	a, foreign := newAuthority(t, "ours"), newAuthority(t, "ours") // of the same name
	address, _, _, _ := onTLS(t, a, rpc.Options{})
	later := time.Now().Add(time.Hour)
	valid := a.client(t, later)
	server, err := tls.X509KeyPair(a.issue(t, later, x509.ExtKeyUsageServerAuth))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(config *tls.Config) error {
		_, err := v1.NewAgentServiceClient(connect(t, address, over(config))).GetNode(soon(t), &v1.GetNodeRequest{})
		return err
	}
	for name, config := range map[string]*tls.Config{
		"none":                                  {RootCAs: a.pool()},
		"of another CA of the same name":        {RootCAs: a.pool(), Certificates: []tls.Certificate{foreign.client(t, later)}},
		"expired":                               {RootCAs: a.pool(), Certificates: []tls.Certificate{a.client(t, time.Now().Add(-time.Hour))}},
		"for servers":                           {RootCAs: a.pool(), Certificates: []tls.Certificate{server}},
		"valid, over TLS 1.2":                   {RootCAs: a.pool(), Certificates: []tls.Certificate{valid}, MaxVersion: tls.VersionTLS12},
		"valid, of a client that trusts others": {RootCAs: foreign.pool(), Certificates: []tls.Certificate{valid}},
	} {
		if err := ask(config); status.Code(err) != codes.Unavailable {
			t.Errorf("a certificate %s: %v", name, err)
		}
	}
	if err := ask(&tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{valid}}); err != nil {
		t.Errorf("a valid certificate: %v", err)
	}
	plain := v1.NewAgentServiceClient(connect(t, address))
	if _, err := plain.GetNode(soon(t), &v1.GetNodeRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without TLS: %v", err)
	}
}

func TestCertificatesAreReplaced(t *testing.T) {
	old, fresh := newAuthority(t, "old"), newAuthority(t, "new")
	address, mount, certificates, clock := onTLS(t, old, rpc.Options{})
	later := time.Now().Add(time.Hour)
	oldClient, newClient := old.client(t, later), fresh.client(t, later)
	ask := func(a *authority, certificate tls.Certificate) error {
		conn := connect(t, address, over(&tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{certificate}}))
		defer conn.Close()
		_, err := v1.NewAgentServiceClient(conn).GetNode(soon(t), &v1.GetNodeRequest{})
		return err
	}
	if err := ask(old, oldClient); err != nil {
		t.Fatal(err)
	}
	certificate, key := fresh.issue(t, later, x509.ExtKeyUsageServerAuth)
	_, otherKey := fresh.issue(t, later, x509.ExtKeyUsageServerAuth)

	mount.swap(t, certificate, otherKey, fresh.pem()) // half of a change: the key does not fit
	clock.Add(1)
	if err := ask(old, oldClient); err != nil {
		t.Errorf("while the files are wrong: %v", err)
	}
	if certificates.Problem() == nil {
		t.Error("nobody says that the files are wrong")
	}

	mount.swap(t, certificate, key, fresh.pem())
	if err := ask(old, oldClient); err != nil {
		t.Errorf("within a second: %v", err) // who connects all the time does not make us read files all the time
	}
	clock.Add(1)
	if err := ask(fresh, newClient); err != nil {
		t.Errorf("the new certificates: %v", err)
	}
	if err := ask(fresh, oldClient); err == nil {
		t.Error("a client of the CA that was replaced is let in")
	}
	if err := certificates.Problem(); err != nil {
		t.Error(err)
	}

	// Replaced by a rename, without any symlink.
	path := mount.files().ClientCA
	if err := errors.Join(os.WriteFile(path+".new", append(fresh.pem(), old.pem()...), 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	clock.Add(1)
	if err := ask(fresh, oldClient); err != nil {
		t.Errorf("the CA that came back: %v", err)
	}

	clock.Store(later.Add(time.Minute).Unix())
	if err := certificates.Problem(); err == nil || !strings.Contains(err.Error(), "tls.crt expired at ") {
		t.Errorf("the agent's certificate has expired, and the problem is %v", err)
	}
}

// TestNoConnectionIsResumed: one that was let in once is looked at again.
func TestNoConnectionIsResumed(t *testing.T) {
	a := newAuthority(t, "ours")
	address, _, _, _ := onTLS(t, a, rpc.Options{})
	config := &tls.Config{
		RootCAs: a.pool(), Certificates: []tls.Certificate{a.client(t, time.Now().Add(time.Hour))}, NextProtos: []string{"h2"},
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
	for range 2 {
		conn, err := tls.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil { // tickets come before the first of it
			t.Error(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the client's certificate was not asked for")
		}
		_ = conn.Close()
	}
}

func TestLoadCertificatesRefuses(t *testing.T) {
	a := newAuthority(t, "ours")
	certificate, key := a.issue(t, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth)
	_, other := a.issue(t, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth)
	for name, row := range map[string][3][]byte{
		"a key of another certificate": {certificate, other, a.pem()},
		"a CA file without any":        {certificate, key, []byte("# none yet\n")},
		"an empty certificate":         {nil, key, a.pem()},
	} {
		m := &mounted{dir: t.TempDir()}
		m.swap(t, row[0], row[1], row[2])
		if _, err := rpc.LoadCertificates(m.files(), time.Now, quiet()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := rpc.LoadCertificates(rpc.CertificateFiles{Certificate: "/nowhere"}, time.Now, quiet()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// closed waits until the other side closes the connection.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
}

// TestSlowHandshakesAreCutOff: neither a connection without a word, nor half of a
// TLS hello, nor half of HTTP/2's preface is kept.
func TestSlowHandshakesAreCutOff(t *testing.T) {
	if got := rpc.DefaultLimits().Handshake; got != 5*time.Second {
		t.Errorf("a handshake may take %v", got)
	}
	a := newAuthority(t, "ours")
	limits := rpc.Limits{Handshake: 100 * time.Millisecond}
	address, _, _, _ := onTLS(t, a, rpc.Options{Limits: limits})
	f, options := served()
	options.Limits = limits
	listener, target := unixListener(t)
	serve(t, f, options, listener)
	path := strings.TrimPrefix(target, "unix://")
	for name, row := range map[string]struct{ network, address, says string }{
		"nothing, over TLS":         {"tcp", address, ""},
		"half a hello":              {"tcp", address, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		"nothing, on the socket":    {"unix", path, ""},
		"half a preface":            {"unix", path, "PRI * HTTP/2.0\r\n"},
		"a preface and no settings": {"unix", path, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial(row.network, row.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(row.says)); err != nil {
				t.Fatal(err)
			}
			closed(t, conn)
		})
	}
}

func TestSoManyConnectionsAndNoMore(t *testing.T) {
	f, options := served()
	options.Limits.Connections = 2
	listener, target := unixListener(t)
	serve(t, f, options, listener)
	path := strings.TrimPrefix(target, "unix://")
	client := v1.NewAgentServiceClient(connect(t, target))
	if _, err := client.GetNode(soon(t), &v1.GetNodeRequest{}); err != nil {
		t.Fatal(err)
	}
	held, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	third, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	closed(t, third)
	if _, err := client.GetNode(soon(t), &v1.GetNodeRequest{}); err != nil {
		t.Errorf("the one that was there: %v", err)
	}
	_ = held.Close()
	again := v1.NewAgentServiceClient(connect(t, target))
	if _, err := again.GetNode(soon(t), &v1.GetNodeRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("in the place that was given back: %v", err)
	}
}

// garbage is a codec that sends bytes as they are.
type garbage struct{}

func (garbage) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (garbage) Unmarshal([]byte, any) error   { return nil }
func (garbage) Name() string                  { return "proto" }

// TestMalformedRequests: what is no message, or no HTTP/2, is answered or closed,
// and others are served on.
func TestMalformedRequests(t *testing.T) {
	f, options := served()
	listener, target := unixListener(t)
	serve(t, f, options, listener)
	conn := connect(t, target)
	var reply []byte
	err := conn.Invoke(soon(t), v1.AgentService_ListContainers_FullMethodName, bytes.Repeat([]byte{0xff}, 100), &reply, grpc.ForceCodec(garbage{}))
	if status.Code(err) != codes.Internal {
		t.Errorf("garbage: %v", err)
	}
	invalid := []byte{0x0a, 2, 0xff, 0xfe} // a filter that is not UTF-8
	if err := conn.Invoke(soon(t), v1.AgentService_ListContainers_FullMethodName, invalid, &reply, grpc.ForceCodec(garbage{})); err == nil {
		t.Error("a filter that is not UTF-8 was taken")
	}
	if err := conn.Invoke(context.Background(), "/capdrift.v1.AgentService/Format", &v1.GetNodeRequest{}, &v1.GetNodeResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method that is not there: %v", err)
	}
	for _, says := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\xff\xff\xff\x04\x00\x00\x00\x00\x00", // settings of 16 MiB
		strings.Repeat("A", 1<<16),
	} {
		raw, err := net.Dial("unix", strings.TrimPrefix(target, "unix://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Write([]byte(says)); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		closed(t, raw)
		_ = raw.Close()
	}
	if _, err := v1.NewAgentServiceClient(conn).GetNode(soon(t), &v1.GetNodeRequest{}); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// TestProbes: where a kubelet asks, anybody may, and is told whether the agent is well and
// nothing else.
func TestProbes(t *testing.T) {
	f, options := newFeed(), rpc.Options{}
	listener, err := rpc.ListenProbes("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f, options, listener)
	conn := connect(t, "passthrough:///"+listener.Addr().String())
	asked := grpc_health_v1.NewHealthClient(conn)
	said := func(name string) string {
		t.Helper()
		answer, err := asked.Check(soon(t), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil {
			return status.Code(err).String()
		}
		return answer.Status.String()
	}
	for name, want := range map[string]string{"": "SERVING", rpc.HealthLiveness: "SERVING", rpc.HealthReadiness: "NOT_SERVING"} {
		if got := said(name); got != want {
			t.Errorf("before the first look, %q: %s, want %s", name, got, want)
		}
	}
	f.publish(steady().report(7, 9))
	for name, want := range map[string]string{
		rpc.HealthReadiness: "SERVING", rpc.HealthComponents + "runtime": "NotFound", v1.AgentService_ServiceDesc.ServiceName: "NotFound",
	} {
		if got := said(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
	if _, err := asked.List(soon(t), &grpc_health_v1.HealthListRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a list of all health: %v", err)
	}
	watch, err := asked.Watch(soon(t), &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("a watch of health: %v", err)
	}
	if _, err := v1.NewAgentServiceClient(conn).GetNode(soon(t), &v1.GetNodeRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("the node: %v", err)
	}
	reflected, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(soon(t))
	if err == nil {
		_, err = reflected.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("reflection: %v", err)
	}
}

// TestLivenessFailsWhenNothingLooks: an agent that answers and has not looked at its node for ten
// sweeps is not alive, from its start on.
func TestLivenessFailsWhenNothingLooks(t *testing.T) {
	began := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	const sweep = 15 * time.Second
	for what, row := range map[string]struct {
		taken time.Time // the look; zero before the first one
		sweep time.Duration
		now   time.Duration // since the start
		want  string
	}{
		"it is just starting":                        {time.Time{}, sweep, 10*sweep - 1, "SERVING"},
		"it has never looked":                        {time.Time{}, sweep, 10 * sweep, "NOT_SERVING"},
		"it has looked within ten sweeps":            {began.Add(sweep), sweep, 11*sweep - 1, "SERVING"},
		"it has not looked for ten sweeps":           {began.Add(sweep), sweep, 11 * sweep, "NOT_SERVING"},
		"it looks less often":                        {began.Add(sweep), 2 * sweep, 11 * sweep, "SERVING"},
		"how often it looks is not known":            {began, 0, 1000 * sweep, "SERVING"},
		"it looked a moment after the clock stepped": {began.Add(time.Hour), sweep, 0, "SERVING"},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFeed()
			report := steady().report(1, 1)
			report.TakenAt = row.taken
			f.publish(report)
			f.view.Sweep = row.sweep
			options := rpc.Options{Identity: rpc.Identity{Started: began}, Now: func() time.Time { return began.Add(row.now) }}
			var asked feedOf = func() (agent.View, bool) { return *f.view, !row.taken.IsZero() }
			conn := onSocket(t, asked, options)
			health := grpc_health_v1.NewHealthClient(conn)
			for _, name := range []string{"", rpc.HealthLiveness} {
				answer, err := health.Check(soon(t), &grpc_health_v1.HealthCheckRequest{Service: name})
				if err != nil || answer.Status.String() != row.want {
					t.Errorf("%q: %v, %v, want %s", name, answer, err, row.want)
				}
			}
			all, err := health.List(soon(t), &grpc_health_v1.HealthListRequest{})
			if err != nil || all.Statuses[rpc.HealthLiveness].GetStatus().String() != row.want {
				t.Errorf("the list: %v, %v, want %s", all, err, row.want)
			}
		})
	}
}

// feedOf is a feed of views alone.
type feedOf func() (agent.View, bool)

func (f feedOf) View() (agent.View, bool)              { return f() }
func (feedOf) Watch(agent.Position) agent.Subscription { panic("nobody watches") }
