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
	*Authority
	adminToken string
}

func newPKI() (*pki, error) {
	authority, err := NewAuthority("capdrift test authority")
	return &pki{authority, newToken()}, err
}

// Authority issues certificates to whoever trusts it.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Credentials are a certificate and its key, as PEM.
type Credentials struct{ Certificate, Key string }

// NewAuthority makes one. Of several with the same name only the key tells one from another.
func NewAuthority(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &Authority{key: key}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := a.sign(template, template, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	a.certificate, err = x509.ParseCertificate(der)
	return a, err
}

// Certificate is the authority's own, as PEM.
func (a *Authority) Certificate() string { return encode("CERTIFICATE", a.certificate.Raw) }

// own is the authority's certificate with its key.
func (a *Authority) own() (Credentials, error) {
	key, err := encodeKey(a.key)
	return Credentials{a.Certificate(), key}, err
}

// Server issues a certificate for whoever serves at these names and addresses.
func (a *Authority) Server(addresses []netip.Addr, names ...string) (Credentials, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    names,
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	return a.issue(template)
}

// User issues a certificate for a client, whom Kubernetes knows by these names.
func (a *Authority) User(name string, groups ...string) (Credentials, error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (a *Authority) issue(template *x509.Certificate) (Credentials, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Credentials{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := a.sign(template, a.certificate, &key.PublicKey)
	if err != nil {
		return Credentials{}, fmt.Errorf("issue the certificate of %s: %w", template.Subject, err)
	}
	text, err := encodeKey(key)
	return Credentials{encode("CERTIFICATE", der), text}, err
}

func (a *Authority) sign(template, parent *x509.Certificate, public *ecdsa.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// From yesterday: clocks of virtual machines may lag.
	template.NotBefore, template.NotAfter = time.Now().AddDate(0, 0, -1), time.Now().AddDate(0, 0, 1)
	return x509.CreateCertificate(rand.Reader, template, parent, public, a.key)
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
func (a *Authority) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
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
