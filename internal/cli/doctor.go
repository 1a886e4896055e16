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

	"pzbridge/internal/advice"
	"pzbridge/internal/config"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
	"pzbridge/relay"
)

// checkTimeout bounds one check.
const checkTimeout = 15 * time.Second

func (p Program) doctor(ctx context.Context, args []string) error {
	fs := p.flags("doctor", "Check, with the bridge's configuration, whether the Prostie Zvonki server, "+
		"the database of OUTBOX_URL and each CRM can be used,\nand say in a line each what is wrong and what to do. "+
		"Each CRM gets a signed pzbridge.test event, and one with a preset a question. "+
		"The exit code is 1 if something is wrong. "+
		"The bridge may be running.")
	twice := fs.Bool("listen-twice", false, "also try whether LISTENERS=2 will work: listen to the server on two "+
		"connections, and compare what comes;\nthat takes two more of its licences meanwhile")
	try := fs.String("try", "", "enter a missed call of this number, such as +73430112233, in each CRM with a preset, "+
		"to be seen there")
	click := fs.Bool("click", false, "also wait a minute, for each CRM with a preset, until somebody clicks there on "+
		"a number to call it,\nand say what came of that; the bridge must be running")
	period := fs.Duration("listen-for", listenTwiceFor, "how long -listen-twice compares")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *period <= 0 {
		return usageError("-listen-for must be longer than nothing, such as 1m")
	}
	cfg, err := load()
	if err != nil {
		return err
	}
	if *try != "" && (cfg.Phone.Client(*try) == "" || cfg.Phone.IsInternal(*try)) {
		return usageError("-try needs the number of a client, such as +73430112233")
	}
	d := &checker{p: p, cfg: cfg, try: *try}
	d.server(ctx)
	if *twice && d.failures == 0 {
		d.listenTwice(ctx, *period)
	}
	d.database(ctx)
	if len(cfg.CRMs) > 0 || cfg.Recordings.On {
		d.recent = readRecent(ctx)
	}
	d.recordings(ctx)
	for _, e := range cfg.Endpoints {
		d.endpoint(ctx, e)
	}
	if *click {
		d.clicks(ctx)
	}
	if cert := cfg.APICertificate(); cert != nil && !time.Now().After(cert.NotAfter) {
		d.pass("the API's certificate", "%s", validity(cert))
	}
	for _, fault := range cfg.CertificateFaults() {
		d.fail("certificates", "%s", fault)
	}
	if d.failures > 0 {
		return errChecksFailed
	}
	return nil
}

// validity describes the certificate of the API: whose it is, and until when it is valid.
func validity(cert *x509.Certificate) string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	whose := cmp.Or(strings.Join(names, ", "), cert.Subject.String(), "nobody")
	return fmt.Sprintf("for %s, valid until %s", printable(whose), cert.NotAfter.Local().Format("2006-01-02 15:04 MST"))
}

// errChecksFailed means that a check has failed. Its line is printed already.
var errChecksFailed = errors.New("something is wrong: see the lines that begin with ✗")

// checker runs the checks of doctor and prints one line for each.
type checker struct {
	p        Program
	cfg      config.Config
	try      string // the number of -try
	recent   recent // of the running bridge
	failures int    // failed checks
}

// pass prints the line of a check that succeeded.
func (d *checker) pass(what, format string, args ...any) {
	fmt.Fprintf(d.p.Out, "✓ %s: %s\n", what, printable(fmt.Sprintf(format, args...)))
}

// fail prints the line of a check that failed.
func (d *checker) fail(what, format string, args ...any) {
	d.failures++
	fmt.Fprintf(d.p.Out, "✗ %s: %s\n", what, printable(fmt.Sprintf(format, args...)))
}

// warn prints the line of a risk, which is no failure.
func (d *checker) warn(what, format string, args ...any) {
	fmt.Fprintf(d.p.Out, "! %s: %s\n", what, printable(fmt.Sprintf(format, args...)))
}

// database checks whether a bridge can use the database of the outbox, if it has one.
func (d *checker) database(ctx context.Context) {
	if d.cfg.OutboxURL == "" {
		return
	}
	say := map[postgres.Severity]func(what, format string, args ...any){
		postgres.Fine:    d.pass,
		postgres.Warning: d.warn,
		postgres.Broken:  d.fail,
	}
	for _, f := range postgres.Diagnose(ctx, d.cfg.OutboxURL, d.cfg.OutboxSchema) {
		say[f.Severity]("database", "%s", f.Text)
	}
}

// server checks the connection to the Prostie Zvonki server step by step. It stops at the first
// step that fails, since the later ones depend on it.
func (d *checker) server(ctx context.Context) {
	u := d.cfg.URL
	if !d.reach(ctx, "server", u, "PZ_URL") {
		return
	}
	if u.Scheme == "wss" && !d.certificate(ctx, u) {
		return
	}
	if u.Scheme == "ws" && d.acceptsTLS(ctx, u) {
		d.fail("server", "it speaks TLS: use wss:// in PZ_URL")
		return
	}
	d.password(ctx)
}

// acceptsTLS reports whether a server completes a TLS handshake, with any certificate.
func (d *checker) acceptsTLS(ctx context.Context, u *url.URL) bool {
	// The wait is short, since a server without TLS may wait for more data.
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: anyCertificate()}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// anyCertificate returns a TLS configuration that accepts any certificate and old TLS versions, to
// inspect a server before its certificate is verified.
func anyCertificate() *tls.Config {
	cfg := relay.TLS(nil, []byte{}, true)
	cfg.VerifyConnection = nil
	return cfg
}

// reach checks that the host of u resolves and that its port accepts a connection. variable is the
// setting to correct.
func (d *checker) reach(ctx context.Context, what string, u *url.URL, variable string) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		d.fail(what, "the name %s cannot be resolved (%v): check %s and the machine's DNS", shownHost(u), err, variable)
		return false
	}
	d.pass(what, "%s is %s", shownHost(u), strings.Join(addresses, ", "))
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		d.fail(what, "port %s does not answer (%v): check the port in %s, that the server runs, "+
			"and the firewall between%s", port, err, variable, loopbackHint(addresses))
		return false
	}
	_ = conn.Close()
	d.pass(what, "port %s answers", port)
	return true
}

// shownHost returns the host of an address for messages: in Unicode, and in the ASCII form of DNS
// if that differs.
func shownHost(u *url.URL) string {
	host := u.Hostname()
	if name, err := idna.Display.ToUnicode(host); err == nil && name != host {
		return name + " (" + host + ")"
	}
	return host
}

// loopbackHint returns a hint about containers if an address is a loopback address.
func loopbackHint(addresses []string) string {
	if slices.ContainsFunc(addresses, func(a string) bool { return net.ParseIP(a).IsLoopback() }) {
		return "; in Docker that address is the container itself: name this machine by its own"
	}
	return ""
}

// certificate checks that the server uses TLS and that the configuration trusts its certificate,
// and prints the fingerprint.
func (d *checker) certificate(ctx context.Context, u *url.URL) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	dialer := tls.Dialer{Config: anyCertificate()}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		d.fail("server", "it does not answer the TLS handshake: it may not speak TLS "+
			"(then use ws:// in PZ_URL, or switch TLS on at the server), or hang (then restart it)")
		return false
	case err != nil:
		d.fail("server", "it does not speak TLS (%v): use ws:// in PZ_URL, or switch TLS on at the server", err)
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
		d.fail("server", "its certificate is not trusted (%v): "+
			"if it is really that server's, set PZ_TLS_FINGERPRINT=%x%s", err, sum, old)
		return false
	}
	_ = conn.Close()
	d.pass("server", "%s, certificate trusted, fingerprint %x", tls.VersionName(state.Version), sum)
	return true
}

// password checks that the server accepts the client. It connects with a new client GUID, so that
// the server neither disconnects the running bridge nor takes events from it.
func (d *checker) password(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	identity := d.cfg.Identity
	identity.GUID, identity.EventsMask, identity.PhoneNumber = uuid.NewString(), 0, ""
	session, err := relay.New(relay.Options{
		URL:      d.cfg.URL,
		TLS:      relay.TLS(d.cfg.TLSRoots, d.cfg.TLSFingerprint, d.cfg.TLSLegacy),
		Identity: identity,
		Grace:    time.Second,
		Sink:     discard{},
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		d.fail("server", "%v", err)
		return
	}
	running, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop()
	parts.Go(func() { _ = session.Run(running) })
	failed := make(chan string, 1)
	go func() { failed <- firstFailure(running, session) }()
	connected := make(chan error, 1)
	go func() { connected <- session.WaitConnected(running) }()
	select {
	case reason := <-failed:
		d.fail("server", "%s", cmp.Or(reason, "it does not answer: is it a Prostie Zvonki server?"))
	case err := <-connected:
		if err != nil {
			d.fail("server", "it does not answer: is it a Prostie Zvonki server?")
			return
		}
		c := session.Connection()
		version := cmp.Or(printable(telephony.Brief(c.ServerVersion)), "of an unknown version")
		d.pass("server", "it lets the bridge in; it is %s, and speaks %s", version, codecName(c))
	}
}

// codecName describes how the server encodes its messages, and what an unexpected encoding means.
func codecName(c telephony.Connection) string {
	names := map[string]string{"base64": "base64", "xml": "plain XML"}
	if c.Form == c.FormOfAddress {
		return names[c.Form]
	}
	return names[c.Form] + " where " + names[c.FormOfAddress] + " is usual, " +
		"so a proxy before it adds or removes TLS: that works"
}

// firstFailure waits until a connection attempt has failed, and describes why. It returns "" when
// ctx ends.
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
				if c.EndedByClose {
					return fmt.Sprintf("it closed the connection with code %d: %s", c.CloseCode,
						advice.EnglishText(c.CloseMeaning, c.CloseCause))
				}
				return advice.EnglishText(c.LastError, c.LastCause)
			}
		}
	}
}

// discard is a sink that drops all events. No event is lost, because the server keeps events for
// each client, and doctor is a client of its own.
type discard struct{}

// Append drops the events.
func (discard) Append(context.Context, []telephony.Event) error { return nil }

// endpoint checks the connection to a CRM, and sends it a test event.
func (d *checker) endpoint(ctx context.Context, e store.Endpoint) {
	if e.URL == "" {
		d.pass(e.Name, "it reads its events with GET /v1/events")
		return
	}
	u, err := url.Parse(e.URL)
	if err != nil {
		return
	}
	hint := ""
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy != nil {
		// The proxy resolves the name and connects, so this machine may be unable to do either.
		d.pass(e.Name, "it is reached through the proxy %s", proxy.Host)
	} else if !d.reach(ctx, e.Name, u, "its URL") {
		return
	} else if u.Scheme == "https" {
		var ok bool
		if hint, ok = d.handshake(ctx, e, u); !ok {
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, e.Timeout+checkTimeout)
	defer cancel()
	if with, hasPreset := d.cfg.CRMs[e.Name]; hasPreset {
		d.preset(ctx, e, with, hint)
		return
	}
	sender := webhook.New(e, webhook.Options{UserAgent: "pzbridge/" + d.p.Version})
	defer sender.Close()
	_, made, err := sender.Test(ctx)
	switch {
	case err != nil:
		d.fail(e.Name, "%v", err)
	case made.Error != "":
		d.fail(e.Name, "no answer to a webhook (%s): check its URL, its certificate and the proxy between%s",
			made.Error, hint)
	case made.Status < 200 || made.Status > 299:
		said := ""
		if made.Response != "" {
			said = fmt.Sprintf("; it said %q", made.Response)
		}
		d.fail(e.Name, "it answers webhooks with %s%s%s", advice.English(made.Failure()), said, hint)
	default:
		d.pass(e.Name, "it took a webhook with HTTP %d, in %d ms", made.Status, made.Took.Milliseconds())
	}
}

// handshake performs the TLS handshake with a CRM as webhooks do, and explains a failure of either
// side's certificate. It returns a hint for failures after the handshake, since with TLS 1.3 a
// server refuses a client's certificate only then.
func (d *checker) handshake(ctx context.Context, e store.Endpoint, u *url.URL) (hint string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cfg := e.TLS.Clone()
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(cfg.Certificates) == 0 {
			hint = "; it asks for a certificate: set its CERT_FILE and KEY_FILE"
			return &tls.Certificate{}, nil
		}
		if err := request.SupportsCertificate(&cfg.Certificates[0]); err != nil {
			hint = "; it asks for a certificate, but for one of another authority than that in its CERT_FILE"
			return &tls.Certificate{}, nil
		}
		hint = "; it asks for a certificate, and may not take the one in its CERT_FILE"
		return &cfg.Certificates[0], nil
	}
	dialer := tls.Dialer{Config: cfg}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		d.fail(e.Name, "%s%s", explainTLSError(err, cfg.RootCAs != nil), hint)
		return "", false
	}
	state := conn.(*tls.Conn).ConnectionState()
	_ = conn.Close()
	d.pass(e.Name, "%s, certificate trusted", tls.VersionName(state.Version))
	return hint, true
}

// explainTLSError describes why a TLS handshake with a CRM has failed, and what to do. ownCA is set
// if the endpoint has a CA_FILE.
func explainTLSError(err error, ownCA bool) string {
	var unknown x509.UnknownAuthorityError
	var otherName x509.HostnameError
	var invalid x509.CertificateInvalidError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown) && ownCA:
		return fmt.Sprintf("its certificate is not trusted (%v): "+
			"none of the authorities in its CA_FILE has signed it", err)
	case errors.As(err, &unknown):
		return fmt.Sprintf("its certificate is not trusted (%v): if it is really that CRM's, name the file with the "+
			"certificate of the authority that has signed it in its CA_FILE", err)
	case errors.As(err, &otherName):
		return fmt.Sprintf("its certificate is for another name (%v): "+
			"use that name in its URL, or replace the certificate", err)
	case errors.As(err, &invalid):
		return fmt.Sprintf("its certificate is of no use (%v): "+
			"it has to be renewed; look at this machine's clock too", err)
	case errors.As(err, &noTLS):
		return "it does not speak TLS: use http:// in its URL, or another port"
	}
	return fmt.Sprintf("TLS with it fails (%v): check its URL and its certificate", err)
}
