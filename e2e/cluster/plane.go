//go:build linux

package cluster

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/capdrift/capdrift/e2e/node"
)

// Where programs find what they need, on their machine.
const (
	pkiFolder  = "/etc/kubernetes/pki/"
	kubeconfig = "/etc/kubernetes/kubeconfig"
	tokens     = "/etc/kubernetes/tokens.csv"
)

const (
	adminUser  = "capdrift-admin"
	adminGroup = "system:masters"
)

// startPlane boots the machine of the control plane, with nothing on it but the network.
func (c *Cluster) startPlane() error {
	names := []string{"kube-apiserver", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	server, err := c.pki.Server([]netip.Addr{c.plane.address, apiService}, names...)
	if err != nil {
		return err
	}
	admin, err := c.pki.User(adminUser, adminGroup)
	if err != nil {
		return err
	}
	own, err := c.pki.own()
	if err != nil {
		return err
	}
	forAdmin, err := c.kubeconfigFor(admin)
	if err != nil {
		return err
	}
	err = c.plane.write(map[string]string{
		pkiFolder + "ca.crt": own.Certificate, pkiFolder + "ca.key": own.Key,
		pkiFolder + "apiserver.crt": server.Certificate, pkiFolder + "apiserver.key": server.Key,
		pkiFolder + "admin.crt": admin.Certificate, pkiFolder + "admin.key": admin.Key,
		kubeconfig: forAdmin,
		tokens:     c.pki.adminToken + "," + adminUser + ",1," + adminGroup + "\n",
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.Kubeconfig(), []byte(forAdmin), 0o600); err != nil {
		return err
	}
	if err := c.plane.on(); err != nil {
		return err
	}
	return c.makeBridge()
}

// startServers starts the control plane and waits until a namespace can have pods.
func (c *Cluster) startServers(ctx context.Context) error {
	const store, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	etcd, err := c.plane.run(ctx, "etcd",
		"--data-dir", "/var/lib/etcd", "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return err
	}
	apiserver, err := c.plane.run(ctx, "kube-apiserver",
		"--etcd-servers", store,
		"--bind-address", "0.0.0.0", "--secure-port", apiPort, "--advertise-address", c.plane.address.String(),
		"--service-cluster-ip-range", serviceNetwork.String(),
		"--tls-cert-file", pkiFolder+"apiserver.crt", "--tls-private-key-file", pkiFolder+"apiserver.key",
		"--client-ca-file", pkiFolder+"ca.crt", "--token-auth-file", tokens,
		"--kubelet-client-certificate", pkiFolder+"admin.crt", "--kubelet-client-key", pkiFolder+"admin.key",
		"--kubelet-certificate-authority", pkiFolder+"ca.crt", "--kubelet-preferred-address-types", "InternalIP",
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", pkiFolder+"ca.key", "--service-account-signing-key-file", pkiFolder+"ca.key",
		"--allow-privileged",
	)
	if err != nil {
		return err
	}
	err = node.Until(ctx, "the API server is ready", func() (bool, error) {
		_, err := c.Request(ctx, http.MethodGet, "/readyz", nil)
		return err == nil, errors.Join(etcd.ended(), apiserver.ended())
	})
	if err != nil {
		return err
	}
	manager, err := c.plane.run(ctx, "kube-controller-manager",
		"--kubeconfig", kubeconfig, "--leader-elect=false",
		"--service-account-private-key-file", pkiFolder+"ca.key", "--root-ca-file", pkiFolder+"ca.crt",
		"--cluster-signing-cert-file", pkiFolder+"ca.crt", "--cluster-signing-key-file", pkiFolder+"ca.key",
		// A node that says nothing is told to be lost sooner than after a minute; kubelets report
		// each second.
		"--node-monitor-period", "1s", "--node-monitor-grace-period", "20s",
	)
	if err != nil {
		return err
	}
	scheduler, err := c.plane.run(ctx, "kube-scheduler", "--kubeconfig", kubeconfig, "--leader-elect=false")
	if err != nil {
		return err
	}
	names, err := c.plane.run(ctx, "nameserver", net.JoinHostPort(c.plane.address.String(), "53"), kubeconfig)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for what, path := range map[string]string{
		"pods may be made in the default namespace": "/api/v1/namespaces/default/serviceaccounts/default",
		"the kubelet's role in RBAC is made":        "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
	} {
		g.Go(func() error {
			return node.Until(ctx, what, func() (bool, error) {
				_, err := c.Request(ctx, http.MethodGet, path, nil)
				return err == nil, errors.Join(apiserver.ended(), manager.ended(), scheduler.ended(), names.ended())
			})
		})
	}
	return g.Wait()
}
