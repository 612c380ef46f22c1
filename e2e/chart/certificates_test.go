//go:build linux

package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/capdrift/capdrift/e2e/cluster"
)

// What the agents' certificates are kept in, and whom they are for.
const (
	tlsSecret     = "agent-tls"
	tlsName       = "capdrift-agent"
	authorityName = "ours"
	apiTCPPort    = "7444"
)

// client is a folder on the second node: its certificate, and the authority that it trusts.
type client struct{ folder string }

func newAuthority(t *testing.T, name string) *cluster.Authority {
	t.Helper()
	authority, err := cluster.NewAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// newClient has a certificate of one authority, and asks agents whose certificate is of another.
func (in *installation) newClient(t *testing.T, own, agents *cluster.Authority) client {
	t.Helper()
	credentials, err := own.User("jane")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(in.Nodes[1].Path("root"), "client-")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"tls.crt": credentials.Certificate, "tls.key": credentials.Key, "ca.crt": agents.Certificate()} {
		if err := os.WriteFile(path.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return client{path.Join("/root", path.Base(dir))}
}

// serverOf is what an authority gives agents.
func serverOf(t *testing.T, authority *cluster.Authority) cluster.Credentials {
	t.Helper()
	credentials, err := authority.Server(nil, tlsName)
	if err != nil {
		t.Fatal(err)
	}
	return credentials
}

// putSecret makes or replaces the agents' secret, in the form of cert-manager's.
func (in *installation) putSecret(t *testing.T, clients *cluster.Authority, own cluster.Credentials) {
	t.Helper()
	secret, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": map[string]string{"name": tlsSecret, "namespace": "capdrift"},
		"stringData": map[string]string{"tls.crt": own.Certificate, "tls.key": own.Key, "ca.crt": clients.Certificate()},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.kubectl(t, string(secret), "apply", "-f", "-")
}

// ask asks a node's agent over TCP.
func (in *installation) ask(t *testing.T, as client, on string, args ...string) (told, problems string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := in.Nodes[1].Command(ctx, "capdrift", append(args, "--agent", net.JoinHostPort(in.agents(t)[on].Address, apiTCPPort), "--tls-server-name", tlsName,
		"--tls-cert", as.folder+"/tls.crt", "--tls-key", as.folder+"/tls.key", "--tls-ca", as.folder+"/ca.crt")...)
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := command.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), command.ProcessState.ExitCode()
}

// mustRefuse: an agent says why it does not answer. Its connection may end before that is read.
func (in *installation) mustRefuse(t *testing.T, as client, on, why string) {
	t.Helper()
	await(t, on+" refuses: "+why, func() (bool, string) {
		told, problems, status := in.ask(t, as, on, "get", "node")
		if status == 0 {
			t.Fatalf("%s answers who is to be told %q: %s", on, why, told)
		}
		return strings.Contains(problems, why), problems
	})
}

// awaitCertificates waits until each agent says what is wrong with its certificates, "" for nothing.
func (in *installation) awaitCertificates(t *testing.T, why string) {
	t.Helper()
	for _, n := range in.Nodes {
		await(t, n.Name+" says of its certificates: "+why, func() (bool, string) {
			told, problems, status := in.ask(t, in.client, n.Name, "get", "node", "-o", "json")
			if status != 0 {
				t.Fatalf("%s does not answer: %s", n.Name, problems)
			}
			said := agentViewOf(t, told).component(t, "certificates")
			return said.OK == (why == "") && strings.Contains(said.Why, why), told
		})
	}
}

// Agents take the certificates of another authority while they run, and let nobody of the one before in.
func testCertificates(t *testing.T, in *installation) {
	// All have one name: a client shows its certificate, and is to be refused for its signature.
	before, old, fresh := in.agents(t), in.authority, newAuthority(t, authorityName)
	own := serverOf(t, fresh)
	in.putSecret(t, fresh, own)
	accepted, former, other := in.newClient(t, fresh, fresh), in.newClient(t, old, fresh), in.newClient(t, newAuthority(t, "theirs"), fresh)
	for _, n := range in.Nodes {
		await(t, n.Name+" answers a client of the new authority", func() (bool, string) {
			told, problems, status := in.ask(t, accepted, n.Name, "get", "node")
			return status == 0, told + problems
		})
		in.mustRefuse(t, former, n.Name, "unknown certificate authority")
		in.mustRefuse(t, other, n.Name, "certificate required") // crypto/tls shows none to those who do not name its authority
	}
	in.authority, in.client = fresh, accepted

	// With a key of another certificate those before stay in use.
	in.putSecret(t, fresh, cluster.Credentials{Certificate: own.Certificate, Key: serverOf(t, fresh).Key})
	in.awaitCertificates(t, "private key does not match public key")
	in.putSecret(t, fresh, own)
	in.awaitCertificates(t, "")
	if after := in.agents(t); after["worker-1"] != before["worker-1"] || after["worker-2"] != before["worker-2"] {
		t.Errorf("the agents were %v, and are %v", before, after)
	}
}
