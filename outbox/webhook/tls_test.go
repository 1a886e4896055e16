package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/store"
)

// signedBySelf makes a certificate for the loopback address, and its key.
func signedBySelf(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
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

// trusting gives a pool of certificates.
func trusting(certs ...tls.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c.Leaf)
	}
	return pool
}

// A CRM whose certificate an authority of its own has signed, and that takes no connection without
// a client's certificate, gets its webhooks with Endpoint.TLS alone, by HTTP/2 as others do.
func TestEndpointWithItsOwnAuthority(t *testing.T) {
	crmCert, bridgeCert := signedBySelf(t, "crm"), signedBySelf(t, "bridge")
	var protocol string
	var shown []*x509.Certificate
	crm := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		protocol, shown = r.Proto, r.TLS.PeerCertificates
	}))
	crm.EnableHTTP2 = true
	crm.TLS = &tls.Config{
		Certificates: []tls.Certificate{crmCert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    trusting(bridgeCert),
	}
	crm.StartTLS()
	defer crm.Close()
	mine, theirs := []tls.Certificate{bridgeCert}, []tls.Certificate{crmCert}
	for name, c := range map[string]struct {
		trusts *x509.CertPool // nil is without a configuration
		shows  []tls.Certificate
		take   bool
	}{
		"the usual":               {nil, nil, false},
		"no certificate to show":  {trusting(crmCert), nil, false},
		"another authority":       {trusting(bridgeCert), mine, false},
		"both, as it should be":   {trusting(crmCert), mine, true},
		"both, and another one's": {trusting(crmCert), theirs, false},
	} {
		var config *tls.Config
		if c.trusts != nil {
			config = &tls.Config{RootCAs: c.trusts, Certificates: c.shows}
		}
		e := store.Endpoint{
			Name:        "crm",
			URL:         crm.URL,
			Secrets:     [][]byte{[]byte("aaaaaaaaaaaaaaaaaaaaaaaa")},
			Timeout:     10 * time.Second,
			Concurrency: 1,
			TLS:         config,
		}
		before := config.Clone()
		s := New(e, Options{UserAgent: "test"})
		_, made, err := s.Test(t.Context())
		s.Close()
		if err != nil || (made.Status == 200) != c.take || (made.Error == "") != c.take {
			t.Errorf("%s: %+v, %v", name, made, err)
		}
		if before != nil && len(config.NextProtos) != len(before.NextProtos) {
			t.Errorf("%s: the configuration was written into", name)
		}
	}
	if protocol != "HTTP/2.0" || len(shown) != 1 || !shown[0].Equal(bridgeCert.Leaf) {
		t.Errorf("it came by %s, with %d certificates", protocol, len(shown))
	}
}

// mute is a connection on which from some moment on nothing comes and goes, and no end either.
type mute struct {
	net.Conn
	dead *atomic.Bool
}

func (m *mute) Write(p []byte) (int, error) {
	if m.dead.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

// Over HTTP/2 a connection that has died silently is given up within seconds, for events and for
// questions.
func TestConnectionThatDiesSilentlyIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := pipenet.Listen()
		serverTLS := pztest.ModernTLS()
		serverTLS.NextProtos = []string{"h2"}
		cert, err := x509.ParseCertificate(serverTLS.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(cert)
		var got atomic.Int64
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 2 {
				t.Errorf("the request comes over %s", r.Proto)
			}
			got.Add(1)
			_, _ = io.WriteString(w, `{"transfer_to":""}`)
		})
		quiet := slog.NewLogLogger(slog.DiscardHandler, 0)
		server := &http.Server{TLSConfig: serverTLS, ErrorLog: quiet, Handler: handler}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.ServeTLS(l, "", "") })
		dead := &atomic.Bool{}
		s := New(store.Endpoint{
			Name:        "crm",
			URL:         "https://localhost/hook",
			Secrets:     [][]byte{[]byte("aaaaaaaaaaaaaaaaaaaaaaaa")},
			TLS:         &tls.Config{RootCAs: roots},
			Timeout:     10 * time.Second,
			Concurrency: 16,
		}, Options{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := l.Dial(ctx, network, address)
			return &mute{c, dead}, err
		}})
		// send sends an event and a question until each has an answer.
		send := func() {
			var sending sync.WaitGroup
			for _, isQuestion := range []bool{false, true} {
				sending.Go(func() {
					job := store.Job{Event: store.Event{Body: []byte("{}")}, IsQuestion: isQuestion}
					for range 4 {
						if s.Send(t.Context(), job).Verdict == store.Done {
							return
						}
						time.Sleep(10 * time.Second)
					}
				})
			}
			sending.Wait()
		}
		send()
		if got.Load() != 2 {
			t.Fatalf("%d arrived at first", got.Load())
		}
		dead.Store(true) // of the connections that there are
		dead = &atomic.Bool{}
		began := time.Now()
		send()
		if took := time.Since(began); got.Load() != 4 || took > 40*time.Second {
			t.Errorf("what came then arrived after %s, in all %d", took, got.Load())
		}
		s.Close()
		_ = server.Close()
		serving.Wait()
		time.Sleep(time.Hour)
	})
}
