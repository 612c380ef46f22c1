package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
)

// CertificateFiles name PEM files. They may be replaced at any time, by a rename
// or by Kubernetes' swap of the symlink that leads to them.
type CertificateFiles struct {
	Certificate string // the agent's, with its chain
	Key         string // the agent's
	ClientCA    string // of the clients that are let in
}

// Certificates are what the files hold now. The files are looked at when a client
// connects, once a second at most. While they are not valid, those that were stay.
type Certificates struct {
	files CertificateFiles
	every time.Duration
	now   func() time.Time
	log   *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	seen    [3]stamp
	config  *tls.Config
	problem error
}

// stamp tells whether a file is another one than it was.
type stamp struct {
	path       string // what the name leads to
	device     uint64
	inode      uint64
	size       int64
	mode       os.FileMode
	modifiedAt time.Time
}

// LoadCertificates reads the files; it is an error if they are not valid now.
func LoadCertificates(files CertificateFiles, now func() time.Time, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{files: files, every: time.Second, now: now, log: log, looked: now()}
	var err error
	if c.seen, err = c.stamps(); err != nil {
		return nil, err
	}
	if c.config, err = files.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// Problem is why the files that are there now are not used, or why no client takes what
// they hold; nil when all is well.
func (c *Certificates) Problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	if c.problem != nil {
		return c.problem
	}
	if ends := c.config.Certificates[0].Leaf.NotAfter; c.now().After(ends) {
		return fmt.Errorf("%s expired at %s: no client takes it until it is replaced", c.files.Certificate, ends.UTC().Format(time.RFC3339))
	}
	return nil
}

func (c *Certificates) credentials() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.refresh()
			return c.config, nil
		},
	})
}

// refresh loads the files if they changed. The stamps are taken before they are
// read: what changes meanwhile is seen the next time.
func (c *Certificates) refresh() {
	now := c.now()
	if elapsed := now.Sub(c.looked); elapsed >= 0 && elapsed < c.every {
		return
	}
	c.looked = now
	seen, err := c.stamps()
	if err == nil && seen == c.seen {
		return
	}
	var config *tls.Config
	if err == nil {
		config, err = c.files.load()
	}
	if err != nil {
		if c.problem == nil || c.problem.Error() != err.Error() {
			c.log.Warn("the certificates are not replaced", "reason", err)
		}
		c.problem = err
		return // and look again the next time: half of a change may be there
	}
	c.seen, c.config, c.problem = seen, config, nil
	c.log.Info("the certificates are replaced", "certificate", c.files.Certificate)
}

func (c *Certificates) stamps() (stamps [3]stamp, err error) {
	for i, name := range []string{c.files.Certificate, c.files.Key, c.files.ClientCA} {
		if stamps[i].path, err = filepath.EvalSymlinks(name); err != nil {
			return stamps, err
		}
		info, err := os.Stat(stamps[i].path)
		if err != nil {
			return stamps, err
		}
		sys := info.Sys().(*syscall.Stat_t)
		stamps[i].device, stamps[i].inode = sys.Dev, sys.Ino
		stamps[i].size, stamps[i].mode, stamps[i].modifiedAt = info.Size(), info.Mode(), info.ModTime()
	}
	return stamps, nil
}

func (f CertificateFiles) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.Certificate, f.Key, err)
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return nil, errors.New(f.ClientCA + " holds no certificate")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
		NextProtos:   []string{"h2"},
		// Each connection is verified anew, against the CA that is there then.
		SessionTicketsDisabled: true,
	}, nil
}
