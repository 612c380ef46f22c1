//go:build linux

// Command nameserver tells the addresses of a cluster's services, as far as clients within the
// cluster need it (https://github.com/kubernetes/dns/blob/master/docs/specification.md): for
// SERVICE.NAMESPACE.svc.cluster.local the service's address, or without one those of its ready
// pods. It knows no other name, and asks the API for each question.
//
//	nameserver LISTEN KUBECONFIG
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: nameserver LISTEN KUBECONFIG")
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "nameserver:", serve(os.Args[1], os.Args[2]))
	os.Exit(1)
}

// serve answers until it cannot, and says why.
func serve(listen, kubeconfig string) error {
	api, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	conn, err := net.ListenPacket("udp", listen)
	if err != nil {
		return err
	}
	for {
		question := make([]byte, 4096)
		n, from, err := conn.ReadFrom(question)
		if err != nil {
			return err
		}
		go func() {
			answer, err := api.answer(question[:n])
			if err == nil {
				_, err = conn.WriteTo(answer, from)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "nameserver: asked by %s: %v\n", from, err)
			}
		}()
	}
}

// domain is what all names end with that are known here.
const domain = ".svc.cluster.local."

// answer answers a message's first question, which is the only one that anybody asks.
func (a *api) answer(message []byte) ([]byte, error) {
	var asked dnsmessage.Message
	if err := asked.Unpack(message); err != nil {
		return nil, err
	}
	if len(asked.Questions) == 0 {
		return nil, errors.New("a message without a question")
	}
	q := asked.Questions[0]
	told := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: asked.ID, Response: true, Authoritative: true, RecursionDesired: asked.RecursionDesired},
		Questions: asked.Questions[:1],
	}
	addresses, found, err := a.lookUp(strings.ToLower(q.Name.String()))
	switch {
	case err != nil:
		fmt.Fprintf(os.Stderr, "nameserver: %s: %v\n", q.Name, err)
		told.RCode = dnsmessage.RCodeServerFailure
	case !found:
		told.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		for _, address := range addresses {
			told.Answers = append(told.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: address.As4()},
			})
		}
	}
	return told.Pack()
}

// api is the API server.
type api struct {
	server string
	client *http.Client
}

// connect reads a kubeconfig as package cluster writes it.
func connect(kubeconfig string) (*api, error) {
	b, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	if len(config.Clusters) != 1 || len(config.Users) != 1 {
		return nil, fmt.Errorf("%s: want one cluster and one user", kubeconfig)
	}
	own, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	return &api{config.Clusters[0].Cluster.Server, &http.Client{
		Timeout:   5 * time.Second, // when who asked has given up
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}},
	}}, nil
}

// lookUp finds a service's addresses; false when there is no such service.
func (a *api) lookUp(name string) (addresses []netip.Addr, found bool, err error) {
	name, ours := strings.CutSuffix(name, domain)
	service, namespace, named := strings.Cut(name, ".")
	if !ours || !named || strings.Contains(namespace, ".") {
		return nil, false, nil
	}
	var s struct{ Spec struct{ ClusterIP string } }
	found, err = a.get("/api/v1/namespaces/"+url.PathEscape(namespace)+"/services/"+url.PathEscape(service), &s)
	if err != nil || !found {
		return nil, false, err
	}
	if address, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil {
		return []netip.Addr{address}, true, nil
	}
	addresses, err = a.readyPods(namespace, service)
	return addresses, true, err
}

func (a *api) readyPods(namespace, service string) (addresses []netip.Addr, err error) {
	var slices struct {
		Items []struct {
			AddressType string
			Endpoints   []struct {
				Addresses  []string
				Conditions struct{ Ready *bool }
			}
		}
	}
	selector := url.QueryEscape("kubernetes.io/service-name=" + service)
	_, err = a.get("/apis/discovery.k8s.io/v1/namespaces/"+url.PathEscape(namespace)+"/endpointslices?labelSelector="+selector, &slices)
	if err != nil {
		return nil, err
	}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if slice.AddressType != "IPv4" || endpoint.Conditions.Ready != nil && !*endpoint.Conditions.Ready {
				continue
			}
			for _, text := range endpoint.Addresses {
				address, err := netip.ParseAddr(text)
				if err != nil {
					return nil, err
				}
				addresses = append(addresses, address)
			}
		}
	}
	return addresses, nil
}

// get asks for an object; false when there is none.
func (a *api) get(path string, into any) (bool, error) {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, a.server+path, nil)
	if err != nil {
		return false, err
	}
	answer, err := a.client.Do(r)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		return true, json.NewDecoder(answer.Body).Decode(into)
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("GET %s: %s", path, answer.Status)
}
