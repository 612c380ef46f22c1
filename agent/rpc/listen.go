package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Listener is where a [Server] is reached, and how it knows its clients.
type Listener struct {
	net.Listener
	credentials credentials.TransportCredentials
	local       bool // whoever reaches it is root on this node already
	probes      bool // whoever reaches it is told whether the agent is well, and nothing else
}

// ListenUnix listens on a unix socket that only its owner, root, may open (mode
// 0600). Its directory must exist and belong to root or to us, and nobody else may
// write to it. A socket that is there already is replaced if nobody listens on it.
// Closing the listener removes the socket.
func ListenUnix(path string) (*Listener, error) {
	if err := ours(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// unix_bind_bsd in net/unix/af_unix.c makes the file with the mode that the
	// socket has before bind(2): there is no moment at which others could connect.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return failed
	}}
	listener, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on unix://%s: %w", path, err)
	}
	made, err := os.Lstat(path)
	if err == nil && made.Mode() != fs.ModeSocket|0o600 {
		err = fmt.Errorf("its mode is %v", made.Mode())
	}
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("listening on unix://%s: %w", path, err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it would remove whatever is there by then
	return &Listener{Listener: &unixListener{Listener: listener, path: path, made: made}, credentials: insecure.NewCredentials(), local: true}, nil
}

// ours checks a directory that a socket is to be made in.
func ours(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the socket's directory %s does not exist; make it with mode 0700, or name another socket with --socket", dir)
	case err != nil:
		return fmt.Errorf("the socket's directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("the socket's directory %s is none", dir)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && int(owner) != os.Geteuid() {
		return fmt.Errorf("the socket's directory %s belongs to user %d, who could put another socket in the place of ours; give it to root", dir, owner)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the socket's directory %s may be written to by others (mode %04o), who could put another socket in the place of ours; chmod 0755 it", dir, info.Mode().Perm())
	}
	return nil
}

// removeStale removes a socket on which nobody listens, and nothing else.
func removeStale(path string) error {
	if answered, err := asks(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	} else if answered {
		return fmt.Errorf("another program listens on unix://%s; end it, or name another socket with --socket", path)
	}
	// Another agent may have replaced it meanwhile: so what is removed is asked
	// again once it has a name that nobody else uses.
	aside := fmt.Sprintf("%s.stale-%d", path, os.Getpid())
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("the socket that nobody listens on any more: %w", err)
	}
	if answered, err := asks(aside); err != nil || answered {
		return errors.Join(fmt.Errorf("another program just began to listen on unix://%s", path), err, os.Rename(aside, path))
	}
	if err := os.Remove(aside); err != nil {
		return fmt.Errorf("the socket that nobody listens on any more: %w", err)
	}
	return nil
}

// asks tells whether somebody listens on a socket; it is an error if it is none.
func asks(path string) (answered bool, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("%s is there and is no socket; remove it, or name another one with --socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close()
		return true, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return false, nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded): // its queue is full
		return true, nil
	}
	return false, fmt.Errorf("whether anybody listens on it: %w", err)
}

// unixListener removes its socket when it is closed, if it is still its own.
type unixListener struct {
	net.Listener
	path   string
	made   fs.FileInfo
	closed atomic.Bool
}

func (l *unixListener) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	if there, err := os.Lstat(l.path); err == nil && os.SameFile(there, l.made) {
		_ = os.Remove(l.path)
	}
	return l.Listener.Close()
}

// ListenTLS listens on a TCP address for clients that show a certificate of the
// files' CA, over TLS 1.3.
func ListenTLS(address string, files *Certificates) (*Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: listener, credentials: files.credentials()}, nil
}

// ListenPlaintext listens on a TCP address of this machine's loopback, where every
// user of the machine may ask everything. It refuses every other address.
func ListenPlaintext(address string) (*Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s: without TLS only a loopback address is allowed; give certificates, or use 127.0.0.1, ::1 or a unix socket", address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	if at, ok := listener.Addr().(*net.TCPAddr); !ok || !at.IP.IsLoopback() { // a localhost that is elsewhere
		return nil, errors.Join(fmt.Errorf("%s is %s, which is not this machine's loopback", address, listener.Addr()), listener.Close())
	}
	return &Listener{Listener: listener, credentials: insecure.NewCredentials()}, nil
}

// ListenProbes listens on a TCP address for a kubelet's probes, which speak neither TLS
// nor over a unix socket. Only the health service answers there, and only about the agent
// as a whole.
func ListenProbes(address string) (*Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: listener, credentials: insecure.NewCredentials(), probes: true}, nil
}

// limited closes what is accepted above a number of open connections, so that
// those that are open stay served.
type limited struct {
	net.Listener
	places chan struct{}
}

func limit(listener net.Listener, connections int) net.Listener {
	return &limited{Listener: listener, places: make(chan struct{}, connections)}
}

// Accept implements [net.Listener].
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.places <- struct{}{}:
			return &placed{Conn: conn, free: sync.OnceFunc(func() { <-l.places })}, nil
		default:
			_ = conn.Close()
		}
	}
}

// placed gives its place back when it is closed.
type placed struct {
	net.Conn
	free func()
}

// Close implements [net.Conn].
func (p *placed) Close() error {
	defer p.free()
	return p.Conn.Close()
}
