package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/connlimit"
	"pzbridge/internal/logtest"
	"pzbridge/internal/pztest"
)

// withHTTPS is a configuration with a certificate that has signed itself, and is for the address
// named.
func withHTTPS(t *testing.T, server *pztest.Server, address string) map[string]string {
	t.Helper()
	_, cert, key := authority(t, address, 90*24*time.Hour)
	return variables(t, server, newReceiver(t, nil), "API_TOKEN=operator-token-0123456789",
		"API_TLS_CERT_FILE="+cert, "API_TLS_KEY_FILE="+key)
}

// The API speaks HTTPS, and the commands on the same machine find it, though the certificate is for
// another name and no authority has signed it. From elsewhere its file makes it trusted.
func TestCommandsAskTheBridgeByHTTPS(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	vars := withHTTPS(t, server, "192.0.2.7")
	bridge := start(t, vars)
	eventually(t, "it is alive", func() bool { return start(t, vars, "healthcheck").exitCode() == 0 })
	run := func(change map[string]string, args ...string) (out string, code int) {
		t.Helper()
		all := map[string]string{}
		for _, m := range []map[string]string{vars, change} {
			for k, v := range m {
				all[k] = v
			}
		}
		p := start(t, all, args...)
		code = p.exitCode()
		return p.log.String(), code
	}
	if out, code := run(nil, "deliveries"); code != 0 {
		t.Errorf("on this machine: exit code %d, %s", code, out)
	}
	url := "https://" + vars["LISTEN_ADDR"]
	_, otherCert, _ := authority(t, "127.0.0.1", time.Hour)
	for name, c := range map[string]struct {
		cert string
		code int
	}{
		"with a copy of the certificate": {vars["API_TLS_CERT_FILE"], 0},
		"without it":                     {"", 1},
		"with another one":               {otherCert, 1},
	} {
		out, code := run(map[string]string{"PZBRIDGE_URL": url, "API_TLS_CERT_FILE": c.cert}, "deliveries")
		if code != c.code || code != 0 && !strings.Contains(out, "API_TLS_CERT_FILE") {
			t.Errorf("%s: exit code %d, %s", name, code, out)
		}
	}
	const says = "certificate: for 192.0.2.7, valid until 20"
	if out, code := run(nil, "check"); code != 0 || !strings.Contains(out, says) {
		t.Errorf("check: exit code %d, %s", code, out)
	}
	if out, code := run(nil, "doctor"); code != 0 || !strings.Contains(out, "✓ the API's "+says) {
		t.Errorf("doctor: exit code %d, %s", code, out)
	}
	client := http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.PostForm(url+"/login", map[string][]string{"token": {"operator-token-0123456789"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if cookies := resp.Cookies(); len(cookies) != 1 || !cookies[0].Secure {
		t.Errorf("the dashboard's cookie: %v (%s)", cookies, resp.Status)
	}
	if strings.Contains(bridge.log.String(), "operator-token") {
		t.Error("the token is in the log")
	}
}

// A renewed certificate is shown to new clients while the bridge runs.
func TestRenewedCertificateNeedsNoRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for seconds")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	vars := withHTTPS(t, server, "127.0.0.1")
	start(t, vars)
	shown := func() string {
		c, err := tls.Dial("tcp", vars["LISTEN_ADDR"], &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return ""
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].IPAddresses[0].String()
	}
	eventually(t, "it shows its certificate", func() bool { return shown() == "127.0.0.1" })
	_, cert, key := authority(t, "192.0.2.8", time.Hour)
	for from, to := range map[string]string{cert: vars["API_TLS_CERT_FILE"], key: vars["API_TLS_KEY_FILE"]} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it shows the new one", func() bool { return shown() == "192.0.2.8" })
}

// A connection counts during its TLS handshake: clients that begin one and go no further make room
// for others, and requests count as on a connection without TLS.
func TestStalledHandshakesAreDisplaced(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, _, _ := authority(t, "127.0.0.1", time.Hour)
	limit := connlimit.New(20)
	release := make(chan struct{})
	handler := limit.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			<-release
		}
	}), func(r *http.Request) bool { return r.URL.Path == "/wait" })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var log logtest.Buffer
	secure := tls.NewListener(limit.Listener(inner), &tls.Config{Certificates: []tls.Certificate{cert}})
	go func() { ended <- serve(secure, handler, time.Second, slog.New(slog.NewTextHandler(&log, nil)))(ctx) }()
	defer func() { close(release); stop(); <-ended }()

	stalled := make([]net.Conn, 60)
	for i := range stalled {
		if stalled[i], err = net.Dial("tcp", inner.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer stalled[i].Close()
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Get("https://" + inner.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	_ = stalled[0].SetReadDeadline(time.Now().Add(3 * time.Second)) // less than a handshake may take
	if _, err := stalled[0].Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the first of them still has its connection: %v", err)
	}
	// Four requests with a token may be under way: 16 connections are spared for others.
	statuses := map[int]int{}
	for range 6 {
		resp, err := client.Get("https://" + inner.Addr().String() + "/wait")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		statuses[resp.StatusCode]++
	}
	if statuses[http.StatusOK] != 4 || statuses[http.StatusServiceUnavailable] != 2 {
		t.Errorf("the answers: %v", statuses)
	}
}

// Strangers can cause any number of failed handshakes, and with them at most a line every 30 s.
func TestFailedHandshakesDoNotFillTheLog(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	vars := withHTTPS(t, server, "127.0.0.1")
	bridge := start(t, vars)
	eventually(t, "it listens", func() bool { return start(t, vars, "healthcheck").exitCode() == 0 })
	for range 50 {
		_, err := tls.Dial("tcp", vars["LISTEN_ADDR"], &tls.Config{}) // which does not trust the certificate
		if err == nil {
			t.Fatal("the certificate is trusted")
		}
	}
	const line = "clients cannot agree on HTTPS with the API"
	eventually(t, "it is in the log", func() bool { return strings.Contains(bridge.log.String(), line) })
	if n := strings.Count(bridge.log.String(), line); n > 1 {
		t.Errorf("there are %d lines", n)
	}
}
