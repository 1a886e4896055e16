package outbox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// signedBySelf makes a certificate for the loopback address, and its key.
func signedBySelf(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func trusting(certs ...tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c.Leaf)
	}
	return pool
}

// A CRM whose certificate an authority of its own has signed, and that lets nobody in without a
// certificate, gets its webhooks with Endpoint.TLS alone, by HTTP/2 as others do.
func TestEndpointWithItsOwnAuthority(t *testing.T) {
	crmCert, bridgeCert := signedBySelf(t, "crm"), signedBySelf(t, "bridge")
	var protocol string
	var shown []*x509.Certificate
	crm := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		protocol, shown = r.Proto, r.TLS.PeerCertificates
	}))
	crm.EnableHTTP2 = true
	crm.TLS = &tls.Config{
		Certificates: []tls.Certificate{crmCert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusting(bridgeCert),
	}
	crm.StartTLS()
	defer crm.Close()
	for name, c := range map[string]struct {
		tls  *tls.Config
		take bool
	}{
		"the usual":               {nil, false},
		"no certificate to show":  {&tls.Config{RootCAs: trusting(crmCert)}, false},
		"another authority":       {&tls.Config{RootCAs: trusting(bridgeCert), Certificates: []tls.Certificate{bridgeCert}}, false},
		"both, as it should be":   {&tls.Config{RootCAs: trusting(crmCert), Certificates: []tls.Certificate{bridgeCert}}, true},
		"both, and another one's": {&tls.Config{RootCAs: trusting(crmCert), Certificates: []tls.Certificate{crmCert}}, false},
	} {
		e := endpoint("crm")
		e.URL, e.TLS, e.Timeout = crm.URL, c.tls, 10*time.Second
		before := c.tls.Clone()
		made, err := TestEndpoint(t.Context(), e, "test")
		if err != nil || (made.Status == 200) != c.take || (made.Error == "") != c.take {
			t.Errorf("%s: %+v, %v", name, made, err)
		}
		if before != nil && len(c.tls.NextProtos) != len(before.NextProtos) {
			t.Errorf("%s: the configuration was written into", name)
		}
	}
	if protocol != "HTTP/2.0" || len(shown) != 1 || !shown[0].Equal(bridgeCert.Leaf) {
		t.Errorf("it came by %s, with %d certificates", protocol, len(shown))
	}
}
