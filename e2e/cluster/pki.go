//go:build linux

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// pki is what the parts of the cluster know each other by: one authority, whose certificates
// everybody has, and a token besides, for clients that send one.
type pki struct {
	authority  *x509.Certificate
	key        *ecdsa.PrivateKey
	adminToken string
}

// credentials are a certificate and its key, as PEM.
type credentials struct{ certificate, key string }

func newPKI() (*pki, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &pki{key: key, adminToken: newToken()}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "capdrift test authority"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := p.sign(template, template, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	p.authority, err = x509.ParseCertificate(der)
	return p, err
}

// ca is the authority's certificate, as PEM.
func (p *pki) ca() string { return encode("CERTIFICATE", p.authority.Raw) }

// own is the authority's certificate with its key.
func (p *pki) own() (credentials, error) {
	key, err := encodeKey(p.key)
	return credentials{p.ca(), key}, err
}

// server issues a certificate for whoever serves at these names and addresses.
func (p *pki) server(addresses []netip.Addr, names ...string) (credentials, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    names,
	}
	for _, a := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(a.AsSlice()))
	}
	return p.issue(template)
}

// user issues a certificate for a client, whom Kubernetes knows by these names.
func (p *pki) user(name string, groups ...string) (credentials, error) {
	return p.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (p *pki) issue(template *x509.Certificate) (credentials, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return credentials{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := p.sign(template, p.authority, &key.PublicKey)
	if err != nil {
		return credentials{}, fmt.Errorf("issue the certificate of %s: %w", template.Subject, err)
	}
	text, err := encodeKey(key)
	return credentials{encode("CERTIFICATE", der), text}, err
}

func (p *pki) sign(template, parent *x509.Certificate, public *ecdsa.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// From yesterday: clocks of virtual machines may lag.
	template.NotBefore, template.NotAfter = time.Now().AddDate(0, 0, -1), time.Now().AddDate(0, 0, 1)
	return x509.CreateCertificate(rand.Reader, template, parent, public, p.key)
}

// encodeKey writes SEC 1, of which the API server also takes the public key; of PKCS #8 it does not.
func encodeKey(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return encode("EC PRIVATE KEY", der), err
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// client trusts the authority and no other.
func (p *pki) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(p.authority)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
}

func newToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// newUUID has the form of a boot's id.
func newUUID() string {
	t := newToken()
	return t[:8] + "-" + t[8:12] + "-" + t[12:16] + "-" + t[16:20] + "-" + t[20:]
}
