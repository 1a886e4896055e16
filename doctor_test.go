package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

// doctor names each fault of the server and the CRM, in one line.
func TestDoctorNamesEachFault(t *testing.T) {
	t.Parallel() // most of it is waiting for processes
	open := pztest.NewServer(pztest.Options{})
	defer open.Close()
	locked := pztest.NewServer(pztest.Options{Password: "пароль"})
	defer locked.Close()
	old := pztest.NewServer(pztest.Options{TLS: pztest.LegacyTLS()})
	defer old.Close()
	unlicensed := pztest.NewServer(pztest.Options{Refuse: 4006})
	defer unlicensed.Close()
	var status atomic.Int64
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(status.Load()))
	}))
	defer crm.Close()
	for name, c := range map[string]struct {
		server *pztest.Server
		more   []string
		crm    int
		code   int
		says   []string
	}{
		"all is well": {
			open,
			nil,
			204,
			0,
			[]string{"✓ server: it lets the bridge in", "✓ crm: it took a webhook with HTTP 204"},
		},
		"a wrong password": {
			locked,
			[]string{"PZ_PASSWORD=wrong"},
			204,
			1,
			[]string{"✗ server: ", "4008", "✓ crm: it took"},
		},
		"the right password": {
			locked,
			[]string{"PZ_PASSWORD=пароль"},
			204,
			0,
			[]string{"✓ server: it lets the bridge in"},
		},
		"no licence": {unlicensed, nil, 204, 1, []string{"✗ server: it closed the connection with code 4006"}},
		"nobody listens": {
			open,
			[]string{"PZ_URL=127.0.0.1:1"},
			204,
			1,
			[]string{"✗ server: port 1 does not answer", "in Docker that address is the container itself"},
		},
		"no such name": {
			open,
			[]string{"PZ_URL=nowhere.invalid"},
			204,
			1,
			[]string{"✗ server: the name nowhere.invalid cannot be resolved"},
		},
		"a Cyrillic name": {
			open,
			[]string{"PZ_URL=атс.invalid", "ENDPOINT_0_URL=http://црм.invalid/"},
			204, 1,
			[]string{
				"✗ server: the name атс.invalid (xn--80a8ac.invalid) cannot be resolved",
				"✗ crm: the name црм.invalid (xn--l1ahr.invalid) cannot be resolved",
			},
		},
		"an unknown old TLS": {
			old,
			nil,
			204,
			1,
			[]string{
				"✗ server: its certificate is not trusted",
				"PZ_TLS_FINGERPRINT=" + old.Fingerprint() + " and PZ_TLS_LEGACY=true",
			},
		},
		"a known old TLS": {
			old,
			[]string{"PZ_TLS_LEGACY=true", "PZ_TLS_FINGERPRINT=" + old.Fingerprint()},
			204,
			0,
			[]string{"✓ server: TLS 1.0, certificate trusted", "lets the bridge in"},
		},
		"no TLS at all": {
			open,
			[]string{"PZ_URL=" + strings.Replace(open.URL, "ws://", "wss://", 1)},
			204,
			1,
			[]string{"✗ server: it does not speak TLS"},
		},
		"a wrong secret": {open, nil, 401, 1, []string{"✗ crm: it answers webhooks with HTTP 401: compare"}},
		"a wrong path":   {open, nil, 404, 1, []string{"✗ crm: it answers webhooks with HTTP 404"}},
		"TLS without saying so": {
			old,
			[]string{"PZ_URL=" + strings.Replace(old.URL, "wss://", "ws://", 1)},
			204,
			1,
			[]string{"✗ server: it speaks TLS: use wss:// in PZ_URL"},
		},
		"a redirect":         {open, nil, 301, 1, []string{"✗ crm: it answers webhooks with HTTP 301", "final"}},
		"a CRM that is gone": {open, nil, 410, 1, []string{"✗ crm: it answers webhooks with HTTP 410", "dead"}},
		"a CRM that is busy": {open, nil, 429, 1, []string{"✗ crm: it answers webhooks with HTTP 429", "RATE"}},
		"a CRM behind a proxy": {
			open,
			[]string{"HTTP_PROXY=" + crm.URL, "ENDPOINT_0_URL=http://crm.invalid/hook"},
			204, 0,
			[]string{
				"✓ crm: it is reached through the proxy " + strings.TrimPrefix(crm.URL, "http://"),
				"✓ crm: it took a webhook",
			},
		},
		"a CRM that is broken": {open, nil, 500, 1, []string{"✗ crm: it answers webhooks with HTTP 500"}},
	} {
		t.Run(name, func(t *testing.T) {
			status.Store(int64(c.crm))
			p := start(t, variables(t, c.server, &receiver{Server: crm}, c.more...), "doctor")
			code := p.exitCode()
			out := p.log.String()
			for _, want := range c.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if code != c.code || strings.Contains(out, "t0psecret") || strings.Contains(out, "wrong\n") ||
				c.code == 0 && strings.Contains(out, "✗") {
				t.Errorf("exit code %d:\n%s", code, out)
			}
		})
	}
}

// doctor says whether the database can be used. A risk is no failure.
func TestDoctorLooksAtTheDatabase(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	for _, c := range []struct {
		url  string
		code int
		says []string
	}{
		{
			url,
			0,
			[]string{"✓ database: ", " is the primary, PostgreSQL ", "! database: no standby is connected", "✓ crm: "},
		},
		{
			"postgres://bridge:t0psecret@127.0.0.1:1/calls?sslmode=disable",
			1,
			[]string{"✓ server: ", "✗ database: 127.0.0.1:1 refuses the connection", "✓ crm: "},
		},
	} {
		vars := variables(t, server, crm, "OUTBOX_URL="+c.url, "BRIDGE_NAME=bridge1")
		p := start(t, vars, "doctor")
		code := p.exitCode()
		out := p.log.String()
		for _, want := range c.says {
			if !strings.Contains(out, want) {
				t.Errorf("it does not say %q", want)
			}
		}
		if code != c.code || strings.Contains(out, "t0psecret") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	}
}

// doctor -listen-twice says whether two bridges would read the same of the server, and by what they
// would not. It leaves out what the server replays to a client that it does not know, and says
// before that it takes licences.
func TestDoctorListensTwice(t *testing.T) {
	crm := newReceiver(t, nil)
	// The client 0 is the one whose password doctor tries.
	isSecond := func(client int) bool { return client == 2 }
	for name, c := range map[string]struct {
		vary     func(client int, e pz.Event) (pz.Event, bool)
		licences int
		quiet    bool
		code     int
		says     string
	}{
		"the same": {
			code: 0,
			says: "✓ server: every event came to both connections in the same order (",
		},
		"nothing": {
			quiet: true,
			code:  0,
			says:  "! server: nothing came within 500ms, so the two connections cannot be compared: try again while",
		},
		"an attribute of the connection": {
			vary: func(client int, e pz.Event) (pz.Event, bool) {
				value := pz.Attr{Name: "session", Value: fmt.Sprint("s3cret", client)}
				return pz.Event{Attrs: append(slices.Clone(e.Attrs), value)}, true
			},
			code: 1,
			says: "events differ between the two connections, in the attributes session: use LISTENERS=1",
		},
		"one connection alone": {
			vary: func(client int, e pz.Event) (pz.Event, bool) { return e, !isSecond(client) },
			code: 1,
			says: "events came to one of two connections alone (call.incoming): use LISTENERS=1",
		},
		"no licence for the second": {
			licences: 1,
			quiet:    true,
			code:     1,
			says:     "✗ server: it does not let in connection 2 of two (connection closed with code 4007: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pztest.NewServer(pztest.Options{Vary: c.vary, Licences: c.licences})
			defer server.Close()
			// This one is kept for clients that are new.
			if err := server.Generate(history("7", "73430112233", "101", "0", "5")); err != nil {
				t.Fatal(err)
			}
			p := start(t, variables(t, server, crm), "doctor", "-listen-twice", "-listen-for", "500ms")
			ended := make(chan int, 1)
			go func() { ended <- p.exitCode() }()
			code, isRunning := 0, true
			for call := 0; isRunning; call++ {
				if !c.quiet {
					if err := server.Generate(ringing(fmt.Sprint(call), "73430112233")); err != nil {
						t.Fatal(err)
					}
				}
				select {
				case code = <-ended:
					isRunning = false
				case <-time.After(20 * time.Millisecond):
				}
			}
			out := p.log.String()
			for _, want := range []string{c.says, "for 500ms, which takes two of its licences", "✓ crm: "} {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if code != c.code || strings.Contains(out, "s3cret") {
				t.Errorf("exit code %d:\n%s", code, out)
			}
		})
	}
}

// authority makes a certificate that has signed itself, and files with it and with its key.
func authority(t *testing.T, address string, validFor time.Duration) (cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "of a test"},
		IPAddresses: []net.IP{net.ParseIP(address)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(validFor),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(kind string, content []byte) string {
		file := filepath.Join(t.TempDir(), "file.pem")
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return cert, write("CERTIFICATE", der), write("PRIVATE KEY", private)
}

// doctor names faults of a CRM's certificate and of the client certificate that the CRM demands.
func TestDoctorNamesCertificateFaults(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	const anHour = time.Hour
	own, ownFile, ownKey := authority(t, "127.0.0.1", anHour)
	_, otherFile, _ := authority(t, "127.0.0.1", anHour)
	elsewhere, elsewhereFile, _ := authority(t, "192.0.2.7", anHour)
	expired, expiredFile, _ := authority(t, "127.0.0.1", -anHour)
	strict := &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert}
	strictOld := strict.Clone()
	strictOld.MaxVersion = tls.VersionTLS12
	plain := func(cert tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} }
	for name, c := range map[string]struct {
		crm  *tls.Config // nil: without TLS
		more []string
		code int
		says []string
	}{
		"an unknown authority": {
			plain(own),
			nil,
			1,
			[]string{"✗ crm: its certificate is not trusted", "in its CA_FILE"},
		},
		"its own authority": {
			plain(own),
			[]string{"CA_FILE=" + ownFile},
			0,
			[]string{"✓ crm: TLS 1.3, certificate trusted", "✓ crm: it took a webhook with HTTP 200"},
		},
		"another authority": {
			plain(own),
			[]string{"CA_FILE=" + otherFile},
			1,
			[]string{"none of the authorities in its CA_FILE has signed it"},
		},
		"another name": {
			plain(elsewhere),
			[]string{"CA_FILE=" + elsewhereFile},
			1,
			[]string{"✗ crm: its certificate is for another name"},
		},
		"an old certificate": {
			plain(expired),
			[]string{"CA_FILE=" + expiredFile},
			1,
			[]string{
				"✗ crm: its certificate is of no use",
				"✗ certificates: ENDPOINT_0_CA_FILE holds a certificate that has expired on ",
			},
		},
		"no TLS": {nil, nil, 1, []string{"✗ crm: it does not speak TLS: use http:// in its URL"}},
		"no certificate to show": {
			strict,
			[]string{"CA_FILE=" + ownFile},
			1,
			[]string{"✗ crm: no answer to a webhook", "it asks for a certificate: set its CERT_FILE and KEY_FILE"},
		},
		"no certificate to show, at once": {
			strictOld,
			[]string{"CA_FILE=" + ownFile},
			1,
			[]string{"✗ crm: TLS with it fails", "it asks for a certificate: set its CERT_FILE and KEY_FILE"},
		},
		"a certificate to show": {
			strict,
			[]string{"CA_FILE=" + ownFile, "CERT_FILE=" + ownFile, "KEY_FILE=" + ownKey},
			0,
			[]string{"✓ crm: it took a webhook with HTTP 200"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			crm := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			crm.Config.ErrorLog = log.New(io.Discard, "", 0)
			crm.TLS = c.crm.Clone()
			if crm.TLS == nil {
				crm.Start()
			} else {
				crm.StartTLS()
			}
			defer crm.Close()
			address := filepath.Join(t.TempDir(), "address")
			err := os.WriteFile(address, []byte("https://"+crm.Listener.Addr().String()+"/?token=t0psecret\n"), 0o600)
			if err != nil {
				t.Fatal(err)
			}
			vars := variables(t, server, &receiver{Server: crm}, "ENDPOINT_0_URL=", "ENDPOINT_0_URL_FILE="+address)
			for _, m := range c.more {
				name, value, _ := strings.Cut(m, "=")
				vars["ENDPOINT_0_"+name] = value
			}
			p := start(t, vars, "doctor")
			code := p.exitCode()
			out := p.log.String()
			for _, want := range c.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if code != c.code || strings.Contains(out, "t0psecret") {
				t.Errorf("exit code %d:\n%s", code, out)
			}
		})
	}
}

// A bridge delivers to a CRM whose certificate is signed by a private authority, accepts both
// tokens of the CRM, and both of the operator.
func TestPrivateAuthorityAndTokenRotation(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	own, ownFile, ownKey := authority(t, "127.0.0.1", time.Hour)
	var taken atomic.Int64
	crm := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { taken.Add(1) }))
	crm.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert}
	crm.StartTLS()
	defer crm.Close()
	vars := variables(t, server, &receiver{Server: crm}, "ENDPOINT_0_CA_FILE="+ownFile, "ENDPOINT_0_CERT_FILE="+ownFile,
		"ENDPOINT_0_KEY_FILE="+ownKey, "API_TOKEN=operator-token-0123456789,operator-token-9876543210",
		"ENDPOINT_0_TOKEN=crm-token-0123456789, crm-token-9876543210")
	start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	err := server.Generate(ringing("5", "7343"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the CRM has the event", func() bool { return taken.Load() == 1 })
	for path, tokens := range map[string][]string{
		"/v1/connection": {"crm-token-0123456789", "crm-token-9876543210"},
		"/v1/endpoints":  {"operator-token-0123456789", "operator-token-9876543210"},
	} {
		for _, token := range tokens {
			r, _ := http.NewRequest("GET", "http://"+vars["LISTEN_ADDR"]+path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s with a token: %d", path, resp.StatusCode)
			}
		}
	}
	if p := start(t, vars, "deliveries"); p.exitCode() != 0 || !strings.Contains(p.log.String(), "delivered") {
		t.Errorf("a command: %s", p.log)
	}
}

// The commands deliveries, redeliver and tail, at a running bridge.
func TestDeliveryCommandsAtARunningBridge(t *testing.T) {
	t.Parallel() // most of it is waiting for processes
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	var refuses atomic.Bool
	refuses.Store(true)
	crm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if refuses.Load() {
			w.WriteHeader(http.StatusGone)
			_, _ = w.Write([]byte("gone \x1b[31mfishing"))
		}
	}))
	defer crm.Close()
	vars := variables(t, server, &receiver{Server: crm}, "API_TOKEN=operator-token-0123456789")
	start(t, vars)
	eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
	tail := start(t, vars, "tail")
	ask := func(args ...string) (string, int) {
		t.Helper()
		p := start(t, vars, args...)
		code := p.exitCode()
		return p.log.String(), code
	}
	generate := func(call string) {
		t.Helper()
		err := server.Generate(ringing(call, "7343"))
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "tail is looking", func() bool { return strings.Contains(tail.log.String(), "Looking at") })
	generate("5")
	eventually(t, "tail has seen the event and that it is dead", func() bool {
		out := tail.log.String()
		return strings.Contains(out, `{"event":{"id":`) && strings.Contains(out, `"state":"dead"`)
	})
	out, code := ask("deliveries", "-state", "dead", "-endpoint", "crm", "-call", "5")
	if code != 0 || !strings.Contains(out, "HTTP 410") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	fields := strings.Fields(out)
	id := fields[len(fields)-1]
	if out, code := ask("deliveries", id); code != 0 || !strings.Contains(out, "is dead at crm after 1 attempts") ||
		!strings.Contains(out, "gone  [31mfishing") {
		t.Errorf("exit code %d: %s", code, out)
	}
	refuses.Store(false)
	if out, code := ask("redeliver", id); code != 0 || !strings.Contains(out, "goes to crm again") {
		t.Errorf("exit code %d: %s", code, out)
	}
	eventually(t, "it has arrived", func() bool {
		out, code := ask("redeliver", "-endpoint", "crm", "-since", "1h", "-dry-run", "-states", "delivered")
		return code == 0 && !strings.HasPrefix(out, "0 ") && strings.Contains(out, "would be sent again")
	})
	out, code = ask("redeliver", "-endpoint", "crm", "-since", "1h", "-states", "delivered,dead")
	if code != 0 || !strings.Contains(out, "are sent again") {
		t.Errorf("exit code %d: %s", code, out)
	}
	refuses.Store(true)
	for _, states := range []string{"delivered", "delivered,dead"} {
		out, code := ask("redeliver", "-endpoint", "crm", "-since", "1h", "-states", states)
		if code != 1 || !strings.Contains(out, "deliveries have died meanwhile") {
			t.Errorf("of those that are %s and die again: exit code %d: %s", states, code, out)
		}
	}
	refuses.Store(false)
	if out, code := ask("redeliver", "-endpoint", "crm", "-since", "1h"); code != 0 || strings.HasPrefix(out, "0 ") {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, args := range [][]string{
		{"redeliver", ".."},
		{"deliveries", "."},
		{"deliveries", ""},
		{"send-test", ".."},
		{"redeliver"},
		{"redeliver", "x", "-endpoint", "crm"},
		{"redeliver", "-dry-run", id},
		{"redeliver", "-since", "1h", id},
		{"redeliver", "-endpoint", "crm", "-since", "7d"},
		{"redeliver", "-endpoint", "crm", "-since", "-1h"},
		{"redeliver", "-endpoint", "crm", "-since", "1h", "-states", ""},
		{"redeliver", "-endpoint", "crm"},
		{"redeliver", "-endpoint", "crm", "-dry-run"},
		{"deliveries", "a", "b"},
		{"deliveries", "-state", "dead", id},
		{"deliveries", id, "-state", "dead"},
		{"tail", "x"},
	} {
		if out, code := ask(args...); code != 2 {
			t.Errorf("%v: exit code %d: %s", args, code, out)
		}
	}
	if out, _ := ask("redeliver", "nosuch"); !strings.Contains(out, "no such delivery") {
		t.Errorf("of a delivery that there is not: %s", out)
	}
	broken := maps.Clone(vars)
	broken["API_TOKEN"] += "\n"
	p := start(t, broken, "deliveries")
	if code := p.exitCode(); code != 2 || !strings.Contains(p.log.String(), "API_TOKEN: ends with a line feed") ||
		strings.Contains(p.log.String(), "0123456789") {
		t.Errorf("with a line break in the token: %d %s", code, p.log)
	}
	wrong := maps.Clone(vars)
	wrong["API_TOKEN"] = "another-token-0123456789"
	p = start(t, wrong, "deliveries")
	if code := p.exitCode(); code != 1 ||
		!strings.Contains(p.log.String(), "API_TOKEN is not that of the bridge at http://") {
		t.Errorf("with a wrong token: %d %s", code, p.log)
	}
	elsewhere := maps.Clone(vars)
	elsewhere["PZBRIDGE_URL"] = "bridge"
	p = start(t, elsewhere, "deliveries")
	if code := p.exitCode(); code != 2 || !strings.Contains(p.log.String(), "PZBRIDGE_URL must be") {
		t.Errorf("of an address that is none: %d %s", code, p.log.String())
	}
	for _, args := range [][]string{
		{"redeliver", "x.crm"},
		{"redeliver", "-endpoint", "nobody", "-since", "1h"},
		{"deliveries", "-state", "lost"},
		{"deliveries", "-endpoint", "nobody"},
	} {
		if out, code := ask(args...); code != 1 {
			t.Errorf("%v: exit code %d: %s", args, code, out)
		}
	}
}

// The commands connect to the bridge directly, since a proxy of the environment would see
// API_TOKEN.
func TestCommandsIgnoreTheProxy(t *testing.T) {
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer proxy.Close()
	for _, args := range [][]string{
		{"deliveries"},
		{"redeliver", "x.crm"},
		{"redeliver", "-endpoint", "crm", "-since", "24h"},
		{"send-test", "crm"},
		{"tail"},
		{"healthcheck"},
	} {
		for _, address := range []string{"LISTEN_ADDR=bridge.invalid:8080", "PZBRIDGE_URL=https://bridge.invalid"} {
			vars := map[string]string{
				"HTTP_PROXY":  proxy.URL,
				"HTTPS_PROXY": proxy.URL,
				"ALL_PROXY":   proxy.URL,
				"API_TOKEN":   "operator-token-0123456789",
			}
			name, value, _ := strings.Cut(address, "=")
			vars[name] = value
			p := start(t, vars, args...)
			code := p.exitCode()
			if out := p.log.String(); code != 1 || !strings.Contains(out, "the bridge does not answer") {
				t.Errorf("%v, %s: exit code %d: %s", args, address, code, out)
			}
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

// tail goes on when a backup is restored meanwhile, and reports that events are missing.
func TestTailContinuesAfterARestore(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	vars := variables(t, server, crm, "API_TOKEN=operator-token-0123456789")
	bridge := start(t, vars)
	eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
	generate := func(call string) {
		t.Helper()
		err := server.Generate(ringing(call, "7343"))
		if err != nil {
			t.Fatal(err)
		}
	}
	stop := func() {
		t.Helper()
		if err := bridge.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		bridge.endsWell(t)
	}
	generate("1")
	eventually(t, "the event has arrived", func() bool { return len(crm.webhooks(t)) == 1 })
	stop()
	backup := filepath.Join(t.TempDir(), "backup.db")
	content, err := os.ReadFile(vars["OUTBOX_PATH"])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(backup, content, 0o600); err != nil {
		t.Fatal(err)
	}
	bridge = start(t, vars)
	eventually(t, "the bridge runs again", func() bool { return server.Connected() == 1 })
	tail := start(t, vars, "tail")
	eventually(t, "tail is looking", func() bool { return strings.Contains(tail.log.String(), "Looking at") })
	generate("2")
	eventually(t, "tail tells of the event", func() bool {
		return strings.Contains(tail.log.String(), `"call_id":"2"`)
	})
	stop()
	if p := start(t, vars, "restore", backup); p.exitCode() != 0 {
		t.Fatal(p.log)
	}
	start(t, vars)
	eventually(t, "the bridge runs on the backup", func() bool { return server.Connected() == 1 })
	generate("3")
	eventually(t, "tail tells of what comes after the restore", func() bool {
		return strings.Contains(tail.log.String(), `"call_id":"3"`)
	})
	if said := tail.log.String(); !strings.Contains(said, "Events are missing here") ||
		strings.Contains(said, `"call_id":"1"`) {
		t.Errorf("it says %s", said)
	}
}
