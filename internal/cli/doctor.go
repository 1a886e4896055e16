package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/net/idna"

	"pzbridge/internal/config"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/relay"
)

// patience is how long one check may take.
const patience = 15 * time.Second

func (p Program) doctor(ctx context.Context, args []string) error {
	fs := p.flags("doctor", "Check, with the bridge's configuration, whether the Prostie Zvonki server and each CRM can be reached, and say in a line each what is\n"+
		"wrong and what to do. Each CRM gets a signed pzbridge.test event. The exit code is 1 if something is wrong. The bridge may be running.")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := load()
	if err != nil {
		return err
	}
	d := &examination{p: p, cfg: cfg}
	d.server(ctx)
	for _, e := range cfg.Endpoints {
		d.endpoint(ctx, e)
	}
	for _, fault := range cfg.CertificateFaults() {
		d.ill("certificates", "%s", fault)
	}
	if d.wrong > 0 {
		return errWrong
	}
	return nil
}

// errWrong means that doctor has found something and has said what.
var errWrong = errors.New("something is wrong: see the lines that begin with ✗")

// examination is what doctor does, a line for each check.
type examination struct {
	p     Program
	cfg   config.Config
	wrong int
}

func (d *examination) well(what, format string, args ...any) {
	fmt.Fprintf(d.p.Out, "✓ %s: %s\n", what, printable(fmt.Sprintf(format, args...)))
}

func (d *examination) ill(what, format string, args ...any) {
	d.wrong++
	fmt.Fprintf(d.p.Out, "✗ %s: %s\n", what, printable(fmt.Sprintf(format, args...)))
}

// server looks at the way to the Prostie Zvonki server, step by step: what comes after a step that fails cannot be told.
func (d *examination) server(ctx context.Context) {
	u := d.cfg.URL
	if !d.reach(ctx, "server", u, "PZ_URL") {
		return
	}
	if u.Scheme == "wss" && !d.certificate(ctx, u) {
		return
	}
	if u.Scheme == "ws" && d.speaksTLS(ctx, u) {
		d.ill("server", "it speaks TLS: use wss:// in PZ_URL")
		return
	}
	d.password(ctx)
}

// speaksTLS says whether a server answers a TLS handshake, with whatever certificate.
func (d *examination) speaksTLS(ctx context.Context, u *url.URL) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second) // one without TLS may wait for more
	defer cancel()
	conn, err := (&tls.Dialer{Config: anyCertificate()}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// anyCertificate is for looking at what a server has; whether it is trusted is asked after that.
func anyCertificate() *tls.Config {
	look := relay.TLS(nil, []byte{}, true)
	look.VerifyConnection = nil
	return look
}

// reach resolves a name and dials it.
func (d *examination) reach(ctx context.Context, what string, u *url.URL, variable string) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		d.ill(what, "the name %s cannot be resolved (%v): check %s and the machine's DNS", shownHost(u), err, variable)
		return false
	}
	d.well(what, "%s is %s", shownHost(u), strings.Join(addresses, ", "))
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		d.ill(what, "port %s does not answer (%v): check the port in %s, that the server runs, and the firewall between%s", port, err, variable, loopbackHint(addresses))
		return false
	}
	_ = conn.Close()
	d.well(what, "port %s answers", port)
	return true
}

// shownHost is the host of an address for people: as they wrote it, and as DNS knows it.
func shownHost(u *url.URL) string {
	host := u.Hostname()
	if name, err := idna.Display.ToUnicode(host); err == nil && name != host {
		return name + " (" + host + ")"
	}
	return host
}

// loopbackHint says what is easily forgotten of an address of the machine itself.
func loopbackHint(addresses []string) string {
	if slices.ContainsFunc(addresses, func(a string) bool { return net.ParseIP(a).IsLoopback() }) {
		return "; in Docker that address is the container itself: name this machine by its own"
	}
	return ""
}

// certificate shows the server's certificate, and whether the configuration trusts it.
func (d *examination) certificate(ctx context.Context, u *url.URL) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dialer := tls.Dialer{Config: anyCertificate()}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		d.ill("server", "it says nothing when TLS is to begin: it may not speak TLS (then use ws:// in PZ_URL, or switch TLS on at the server), or hang (then restart it)")
		return false
	case err != nil:
		d.ill("server", "it does not speak TLS (%v): use ws:// in PZ_URL, or switch TLS on at the server", err)
		return false
	}
	state := conn.(*tls.Conn).ConnectionState()
	_ = conn.Close()
	sum := sha256.Sum256(state.PeerCertificates[0].Raw)
	dialer = tls.Dialer{Config: relay.TLS(d.cfg.TLSRoots, d.cfg.TLSFingerprint, d.cfg.TLSLegacy)}
	conn, err = dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		old := ""
		if state.Version < tls.VersionTLS12 {
			old = " and PZ_TLS_LEGACY=true"
		}
		if d.cfg.TLSRoots != nil {
			old += " in place of PZ_TLS_CA_FILE"
		}
		d.ill("server", "its certificate is not trusted (%v): if it is really that server's, set PZ_TLS_FINGERPRINT=%x%s", err, sum, old)
		return false
	}
	_ = conn.Close()
	d.well("server", "%s, certificate trusted, fingerprint %x", tls.VersionName(state.Version), sum)
	return true
}

// password connects as a client that nobody knows, so that the bridge that runs is not thrown out and misses nothing.
func (d *examination) password(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	identity := d.cfg.Identity
	identity.GUID, identity.EventsMask, identity.PhoneNumber = uuid.NewString(), 0, ""
	session, err := relay.New(relay.Options{
		URL: d.cfg.URL, TLS: relay.TLS(d.cfg.TLSRoots, d.cfg.TLSFingerprint, d.cfg.TLSLegacy), Identity: identity,
		Grace: time.Second, Sink: nowhere{}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		d.ill("server", "%v", err)
		return
	}
	running, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop()
	parts.Go(func() { _ = session.Run(running) }) // nothing of what it reads is kept
	failed := make(chan string, 1)
	go func() { failed <- firstFailure(running, session) }()
	connected := make(chan error, 1)
	go func() { connected <- session.WaitConnected(running) }()
	select {
	case reason := <-failed:
		d.ill("server", "%s", cmp.Or(reason, "it does not answer: is it a Prostie Zvonki server?"))
	case err := <-connected:
		if err != nil {
			d.ill("server", "it does not answer: is it a Prostie Zvonki server?")
			return
		}
		c := session.Connection()
		version := cmp.Or(printable(telephony.Brief(c.ServerVersion)), "of a version that it does not tell")
		d.well("server", "it lets the bridge in; it is %s, and speaks %s", version, formOf(c))
	}
}

// formOf names the form in which a server packs its messages, and what an unexpected one means.
func formOf(c telephony.Connection) string {
	names := map[string]string{"base64": "base64", "xml": "plain XML"}
	if c.Form == c.FormOfAddress {
		return names[c.Form]
	}
	return names[c.Form] + " where " + names[c.FormOfAddress] + " is usual, so a proxy before it adds or removes TLS: that works"
}

// firstFailure waits until a connection has failed, and says why.
func firstFailure(ctx context.Context, session *relay.Session) string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ""
		case <-tick.C:
			c := session.Connection()
			if c.State == telephony.Disconnected && c.LastError != "" {
				if c.CloseCode != 0 {
					return fmt.Sprintf("it closed the connection with code %d: %s", c.CloseCode, c.CloseMeaning)
				}
				return c.LastError
			}
		}
	}
}

// nowhere takes events that are not wanted: doctor is a client of its own, of which the server keeps nothing that the bridge would miss.
type nowhere struct{}

// Append drops them.
func (nowhere) Append(context.Context, []telephony.Event) error { return nil }

func (d *examination) endpoint(ctx context.Context, e config.Endpoint) {
	if e.URL == "" {
		d.well(e.Name, "it reads its events with GET /v1/events")
		return
	}
	u, err := url.Parse(e.URL)
	if err != nil {
		return
	}
	hint := ""
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy != nil { // then this machine need not know its name
		d.well(e.Name, "it is reached through the proxy %s", proxy.Host)
	} else if !d.reach(ctx, e.Name, u, "its URL") {
		return
	} else if u.Scheme == "https" {
		var ok bool
		if hint, ok = d.shakeHands(ctx, e, u); !ok {
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, e.Timeout+patience)
	defer cancel()
	made, err := outbox.TestEndpoint(ctx, outbox.Endpoint{
		Name: e.Name, URL: e.URL, Secrets: e.Secrets, Headers: e.Headers, Format: e.Format, Timeout: e.Timeout, Concurrency: 1,
		Tokens: e.Tokens, TLS: e.TLS,
	}, "pzbridge/"+d.p.Version)
	switch {
	case err != nil:
		d.ill(e.Name, "%v", err)
	case made.Error != "":
		d.ill(e.Name, "no answer to a webhook (%s): check its URL, its certificate and the proxy between%s", made.Error, hint)
	case made.Status == 401 || made.Status == 403:
		d.ill(e.Name, "it refuses webhooks with HTTP %d: compare the secret in the CRM with its SECRET, and both clocks%s",
			made.Status, hint)
	case made.Status == 404 || made.Status == 405:
		d.ill(e.Name, "HTTP %d: the path in its URL is not the one that takes webhooks", made.Status)
	case made.Status >= 300 && made.Status <= 399:
		d.ill(e.Name, "it redirects with HTTP %d, which is not followed: set its URL to the final address", made.Status)
	case made.Status == 410:
		d.ill(e.Name, "HTTP 410: it says that it wants no webhooks any more, and every delivery that is answered so is dead: set the address anew in its URL")
	case made.Status == 429:
		d.ill(e.Name, "HTTP 429: it has had too many requests: try again later, and set its RATE")
	case made.Status < 200 || made.Status > 299:
		d.ill(e.Name, "it answers webhooks with HTTP %d: its own log says why; it said %q%s",
			made.Status, made.Response, hint)
	default:
		d.well(e.Name, "it took a webhook with HTTP %d, in %d ms", made.Status, made.Took.Milliseconds())
	}
}

// shakeHands begins TLS with a CRM as its webhooks do, and says in words what is wrong with the
// certificate of either side. The hint is for what comes after it: a server may refuse a client's
// certificate only then.
func (d *examination) shakeHands(ctx context.Context, e config.Endpoint, u *url.URL) (hint string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cfg := e.TLS.Clone()
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(cfg.Certificates) == 0 {
			hint = "; it asks for a certificate: set its CERT_FILE and KEY_FILE"
			return &tls.Certificate{}, nil
		}
		if err := asked.SupportsCertificate(&cfg.Certificates[0]); err != nil {
			hint = "; it asks for a certificate, but for one of another authority than that in its CERT_FILE"
			return &tls.Certificate{}, nil
		}
		hint = "; it asks for a certificate, and may not take the one in its CERT_FILE"
		return &cfg.Certificates[0], nil
	}
	dialer := tls.Dialer{Config: cfg}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		d.ill(e.Name, "%s%s", untrusted(err, cfg.RootCAs != nil), hint)
		return "", false
	}
	state := conn.(*tls.Conn).ConnectionState()
	_ = conn.Close()
	d.well(e.Name, "%s, certificate trusted", tls.VersionName(state.Version))
	return hint, true
}

// untrusted says why TLS with a CRM has failed, and what to do.
func untrusted(err error, ownCA bool) string {
	var unknown x509.UnknownAuthorityError
	var otherName x509.HostnameError
	var invalid x509.CertificateInvalidError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown) && ownCA:
		return fmt.Sprintf("its certificate is not trusted (%v): none of the authorities in its CA_FILE has signed it", err)
	case errors.As(err, &unknown):
		return fmt.Sprintf("its certificate is not trusted (%v): if it is really that CRM's, name the file with the "+
			"certificate of the authority that has signed it in its CA_FILE", err)
	case errors.As(err, &otherName):
		return fmt.Sprintf("its certificate is for another name (%v): use that name in its URL, or mend the certificate", err)
	case errors.As(err, &invalid):
		return fmt.Sprintf("its certificate is of no use (%v): it has to be renewed; look at this machine's clock too", err)
	case errors.As(err, &noTLS):
		return "it does not speak TLS: use http:// in its URL, or another port"
	}
	return fmt.Sprintf("TLS with it fails (%v): check its URL and its certificate", err)
}
