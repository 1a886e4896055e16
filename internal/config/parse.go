package config

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"pzbridge/internal/callpolicy"
	"pzbridge/internal/pz"
	"pzbridge/outbox"
)

const (
	minToken  = 16 // characters
	minSecret = 24 // bytes; Standard Webhooks asks for 24 to 64
	maxSecret = 64

	maxConcurrency = 1000
	maxRate        = 10_000  // a second
	minOutbox      = 1 << 20 // bytes: what a few hundred events take
)

func (t text) parse(p *problems) Config {
	c := Config{
		URL: parseServer(t.URL, p),
		Identity: pz.Identity{
			Password: t.Password, ClientType: t.ClientType, GUID: t.ClientGUID,
			PhoneNumber: t.PhoneNumber, BroadcastGroup: t.BroadcastGroup, Protocol: 2,
		},
		ReplayMaxAge:    duration("REPLAY_MAX_AGE", t.ReplayMaxAge, 0, p),
		OrderHold:       duration("ORDER_HOLD", t.OrderHold, 0, p),
		OutboxRetention: duration("OUTBOX_RETENTION", t.OutboxRetention, time.Minute, p),
		OutboxMaxBytes:  parseBytes("OUTBOX_MAX_BYTES", t.OutboxMaxBytes, minOutbox, outbox.LargestMaxBytes, p),
		RoutingTimeout:  duration("ROUTING_TIMEOUT", t.RoutingTimeout, time.Millisecond, p),
		OutboxPath:      t.OutboxPath, ListenAddr: t.ListenAddr, APIToken: t.APIToken, LogFormat: t.LogFormat,
		CommandTimeout: durationUpTo("COMMAND_TIMEOUT", t.CommandTimeout, time.Millisecond, time.Minute, p),
		APIRate:        parseRate("API_RATE", "requests", t.APIRate, p),
		ShutdownGrace:  duration("SHUTDOWN_GRACE", t.ShutdownGrace, time.Millisecond, p),
	}
	c.CallRate = parseRatePer("CALL_RATE", "calls", "minute", t.CallRate, p)
	c.CallFrom = parseNumbers("CALL_FROM", t.CallFrom, p)
	c.CallTo = parseNumbers("CALL_TO", t.CallTo, p)
	c.MetricsPublic = choice("METRICS_PUBLIC", t.MetricsPublic, "true", "false", p)
	c.BehindProxy = choice("API_BEHIND_PROXY", t.BehindProxy, "true", "false", p)
	c.DeclineOnSilence = choice("ROUTING_ON_SILENCE", t.OnSilence, "decline", "nothing", p)
	c.QuietWithoutWinner = choice("RINGING_WITHOUT_WINNER", t.WithoutWinner, "none", "all", p)
	if utf8.RuneCountInString(t.Password) > pz.MaxPassword {
		p.add("PZ_PASSWORD", "is longer than %d characters: no Prostie Zvonki server has such a password", pz.MaxPassword)
	}
	mask, err := strconv.ParseUint(t.EventsMask, 10, 32)
	if err != nil {
		p.add("PZ_EVENTS_MASK", "must be a number that fits 32 bits, such as 65535 for all events; it is %q", t.EventsMask)
	}
	c.Identity.EventsMask = uint32(mask)
	t.parseTLS(&c, p)
	for wait := range strings.SplitSeq(t.RetrySchedule, ",") {
		c.RetrySchedule = append(c.RetrySchedule, duration("RETRY_SCHEDULE", strings.TrimSpace(wait), time.Millisecond, p))
	}
	if host, port, err := net.SplitHostPort(t.ListenAddr); err != nil || !isPort(port, 0) || strings.Contains(host, "/") {
		p.add("LISTEN_ADDR", "must be host:port or :port, such as :8080; it is %q", t.ListenAddr)
	}
	checkToken("API_TOKEN", t.APIToken, p)
	if err := c.LogLevel.UnmarshalText([]byte(t.LogLevel)); err != nil {
		p.add("LOG_LEVEL", "must be debug, info, warn or error; it is %q", t.LogLevel)
	}
	if t.LogFormat != "json" && t.LogFormat != "text" {
		p.add("LOG_FORMAT", "must be json or text; it is %q", t.LogFormat)
	}
	return c
}

// parseServer reads PZ_URL. It never quotes it: people put passwords into addresses.
func parseServer(s string, p *problems) *url.URL {
	const right = "must be host, host:port, ws://host:port or wss://host:port of the Prostie Zvonki server"
	if s == "" {
		p.add("PZ_URL", "is missing: it %s", right)
		return nil
	}
	if !strings.Contains(s, "://") {
		s = "ws://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "" || strings.Count(u.Host, ":") > 1 && u.Host[0] != '[':
		p.add("PZ_URL", "cannot be read: it %s; an IPv6 address stands in brackets", right)
	case u.Scheme != "ws" && u.Scheme != "wss":
		p.add("PZ_URL", "%s", right)
	case u.User != nil:
		p.add("PZ_URL", "must hold no user and no password: the password goes into PZ_PASSWORD")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		p.add("PZ_URL", "must end after the port: it %s", right)
	case u.Port() != "" && !isPort(u.Port(), 1):
		p.add("PZ_URL", "must have a port between 1 and 65535")
	default:
		return &url.URL{Scheme: u.Scheme, Host: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), pz.DefaultPort))}
	}
	return nil
}

func isPort(s string, least uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= least
}

func (t text) parseTLS(c *Config, p *problems) {
	legacy, err := strconv.ParseBool(t.TLSLegacy)
	if err != nil {
		p.add("PZ_TLS_LEGACY", "must be true or false; it is %q", t.TLSLegacy)
	}
	c.TLSLegacy = legacy
	plain := c.URL != nil && c.URL.Scheme == "ws"
	if t.TLSFingerprint != "" {
		sum, err := hex.DecodeString(strings.ReplaceAll(t.TLSFingerprint, ":", ""))
		if err != nil || len(sum) != 32 {
			p.add("PZ_TLS_FINGERPRINT", "must be the SHA-256 of the server's certificate: 64 hexadecimal digits, colons allowed")
		}
		c.TLSFingerprint = sum
	} else if legacy {
		p.add("PZ_TLS_LEGACY", "needs PZ_TLS_FINGERPRINT: TLS of that age proves nothing by itself, only the one certificate that you name can be trusted")
	}
	if t.TLSCAFile != "" {
		pem, err := os.ReadFile(t.TLSCAFile)
		c.TLSRoots = x509.NewCertPool()
		switch {
		case err != nil:
			p.add("PZ_TLS_CA_FILE", "%v", err)
		case !c.TLSRoots.AppendCertsFromPEM(pem):
			p.add("PZ_TLS_CA_FILE", "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
		case t.TLSFingerprint != "":
			p.add("PZ_TLS_CA_FILE", "is set, and so is PZ_TLS_FINGERPRINT: set only one of the two")
		}
	}
	for _, s := range []setting{{"PZ_TLS_CA_FILE", t.TLSCAFile}, {"PZ_TLS_FINGERPRINT", t.TLSFingerprint}} {
		if plain && s.value != "" {
			p.add(s.name, "has a meaning only where PZ_URL begins with wss://")
		}
	}
}

func duration(variable, s string, least time.Duration, p *problems) time.Duration {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		p.add(variable, "%q is no duration: write a number and its unit, such as 500ms, 15s, 5m or 24h", s)
	case d < least && least == 0:
		p.add(variable, "must not be negative; it is %s", s)
	case d < least:
		p.add(variable, "must be at least %s; it is %s", least, s)
	case d > longest:
		p.add(variable, "must be at most %s, ten years; it is %s", longest, s)
	}
	return d
}

// longest is how long any time may be: sums of some of them are computed with.
const longest = 87600 * time.Hour

// durationUpTo is duration with an upper bound.
func durationUpTo(variable, s string, least, most time.Duration, p *problems) time.Duration {
	d := duration(variable, s, least, p)
	if d > most {
		p.add(variable, "must be at most %s; it is %s", most, s)
	}
	return d
}

// choice says whether a value is yes; it must be that or no.
func choice(variable, s, yes, no string, p *problems) bool {
	if s != yes && s != no {
		p.add(variable, "must be %s or %s; it is %q", yes, no, s)
	}
	return s == yes
}

// parseBytes reads a size, such as 1GiB, 500MB or a plain number of bytes.
func parseBytes(variable, s string, least, most int64, p *problems) int64 {
	n, err := humanize.ParseBytes(s)
	switch {
	case err != nil || n > math.MaxInt64:
		p.add(variable, "%q is no size: write a number and its unit, such as 512MiB or 2GiB", s)
	case int64(n) < least:
		p.add(variable, "must be at least %s; it is %s", humanize.IBytes(uint64(least)), s)
	case int64(n) > most:
		p.add(variable, "must be at most %s: this program, of %d bits, cannot map a larger file; it is %s",
			humanize.IBytes(uint64(most)), strconv.IntSize, s)
	}
	return int64(n)
}

// parseRate reads how many of something may be in a second. Empty is no limit.
func parseRate(variable, what, s string, p *problems) float64 {
	return parseRatePer(variable, what, "second", s, p)
}

func parseRatePer(variable, what, unit, s string, p *problems) float64 {
	if s == "" {
		return 0
	}
	rate, err := strconv.ParseFloat(s, 64)
	if err != nil || !(rate > 0 && rate <= maxRate) {
		p.add(variable, "must be a number of %s a %s, above 0 and up to %d, such as 5 or 0.5; it is %q",
			what, unit, maxRate, s)
	}
	return rate
}

// parseNumbers reads a list of the numbers that commands may use.
func parseNumbers(variable, s string, p *problems) callpolicy.Numbers {
	n, err := callpolicy.ParseNumbers(s)
	if err != nil {
		p.add(variable, "%v", err)
	}
	return n
}

// checkToken holds a token to what fits into a header and cannot be guessed. Empty is none.
func checkToken(variable, token string, p *problems) {
	switch {
	case token == "":
	case len(token) < minToken:
		p.add(variable, "must have at least %d characters; make one with: openssl rand -hex 24", minToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		p.add(variable, "may hold printable ASCII characters without spaces only")
	}
}

var nameShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (t endpointText) parse(prefix string, p *problems) Endpoint {
	e := Endpoint{
		Name: t.Name, URL: t.URL, Token: t.Token, Format: outbox.Format(t.Format),
		Headers: parseHeaders(prefix+"HEADERS", t.Headers, p),
		Timeout: duration(prefix+"TIMEOUT", t.Timeout, time.Millisecond, p),
	}
	switch {
	case t.Name == "":
		p.add(prefix+"NAME", "is missing: give the CRM a short name, such as crm")
	case !nameShape.MatchString(t.Name):
		p.add(prefix+"NAME", "may hold letters, digits and . _ - only, at most 64, and begins with a letter or a digit; it is %q", t.Name)
	case t.Name == "operator":
		p.add(prefix+"NAME", "must not be operator: that is who holds API_TOKEN")
	}
	switch u, err := url.Parse(t.URL); {
	case t.URL == "" && (t.Token == "" || t.Secret != ""):
		p.add(prefix+"URL", "is missing: it is the http or https address that takes the webhooks. A CRM that reads its events "+
			"with GET /v1/events has a TOKEN, no URL and no SECRET")
	case t.URL == "":
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		p.add(prefix+"URL", "must be an address that begins with https:// or http://")
	case u.Port() != "" && !isPort(u.Port(), 1):
		p.add(prefix+"URL", "has the port %s: a port is a number from 1 to 65535", u.Port())
	}
	if t.URL != "" || t.Secret != "" {
		e.Secrets = parseSecrets(prefix+"SECRET", t.Secret, p)
	}
	if !slices.Contains(outbox.Formats, e.Format) {
		p.add(prefix+"FORMAT", "must be standard, flat, form or pz; it is %q", t.Format)
	}
	e.RingingTTL = duration(prefix+"RINGING_TTL", t.RingingTTL, time.Millisecond, p)
	concurrency, err := strconv.Atoi(t.Concurrency)
	if err != nil || concurrency < 1 || concurrency > maxConcurrency {
		p.add(prefix+"CONCURRENCY", "must be a number from 1 to %d; it is %q", maxConcurrency, t.Concurrency)
	}
	e.Concurrency = concurrency
	e.Rate = parseRate(prefix+"RATE", "attempts", t.Rate, p)
	filter, err := outbox.ParseFilter(t.Events)
	if err != nil {
		p.add(prefix+"EVENTS", "%v", err)
	}
	e.Events = filter
	checkToken(prefix+"TOKEN", t.Token, p)
	return e
}

func parseSecrets(variable, list string, p *problems) [][]byte {
	if list == "" {
		p.add(variable, "is missing: make one with \"pzbridge secret\" and give it to the CRM too")
		return nil
	}
	var secrets [][]byte
	for secret := range strings.SplitSeq(list, ",") {
		secret = strings.TrimSpace(secret)
		encoded, ok := strings.CutPrefix(secret, "whsec_")
		if !ok {
			if secret == "v1" || secret == "v1a" {
				p.add(variable, "remove %q: a secret begins with whsec_", secret+",")
			} else {
				p.add(variable, "must begin with whsec_ (several are separated by commas); make one with \"pzbridge secret\"")
			}
			continue
		}
		key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
		if err != nil || len(key) < minSecret || len(key) > maxSecret {
			p.add(variable, "must be whsec_ and the base64 of %d to %d bytes; make one with \"pzbridge secret\"", minSecret, maxSecret)
			continue
		}
		secrets = append(secrets, key)
	}
	return secrets
}

var (
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	// reservedHeaders are the bridge's own, and those of the connection.
	reservedHeaders = regexp.MustCompile(`^(?i)(webhook-.*|content-type|content-length|content-encoding|user-agent|host|connection|transfer-encoding|te|trailer|upgrade)$`)
)

// parseHeaders reads Name=value;Name=value. Values are not quoted in what it says: many are tokens.
func parseHeaders(variable, list string, p *problems) http.Header {
	h := http.Header{}
	for i, pair := range strings.Split(list, ";") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok || !headerName.MatchString(name):
			p.add(variable, "must be Name=value;Name=value; part %d is not", i+1)
		case reservedHeaders.MatchString(name):
			p.add(variable, "must not set %s: the bridge does", name)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			p.add(variable, "the value of %s holds a control character", name)
		default:
			h.Add(name, value)
		}
	}
	return h
}

// checkEndpoints looks for what two endpoints must not share.
func (c Config) checkEndpoints(numbers []int, p *problems) {
	names, tokens := map[string]string{}, map[string]string{}
	if c.APIToken != "" {
		tokens[c.APIToken] = "API_TOKEN"
	}
	for i, e := range c.Endpoints {
		name, token := endpointPrefix(numbers[i])+"NAME", endpointPrefix(numbers[i])+"TOKEN"
		if first, ok := names[e.Name]; ok && e.Name != "" {
			p.add(name, "is the same as %s: each endpoint needs a name of its own", first)
		}
		names[e.Name] = name
		if first, ok := tokens[e.Token]; ok && e.Token != "" {
			p.add(token, "is the same as %s: nobody could tell who calls", first)
		}
		tokens[e.Token] = token
	}
}

// exampleSecret is the key that .env.example gives for trying things out.
var exampleSecret = []byte("pzbridge-example-secret!")

// Warnings lists what works and is still a bad idea.
func (c Config) Warnings() []string {
	var list []string
	for i, e := range c.Endpoints {
		for _, secret := range e.Secrets {
			if bytes.Equal(secret, exampleSecret) {
				list = append(list, endpointPrefix(i)+"SECRET is the one of .env.example, which everybody can read: make your own with \"pzbridge secret\"")
			}
		}
		if u, err := url.Parse(e.URL); err == nil && u.Scheme == "http" && e.URL != "" && !isPrivate(u.Hostname()) {
			list = append(list, endpointPrefix(i)+"URL begins with http:// and is not in your own network: anybody on the way can read the calls")
		}
	}
	return list
}

// isPrivate says whether a host is surely near: a name without dots, or an address of a private network.
func isPrivate(host string) bool {
	ip := net.ParseIP(host)
	return ip == nil && !strings.Contains(host, ".") || ip != nil && (ip.IsPrivate() || ip.IsLoopback())
}

// Logger makes a logger that writes to out as the program's log is to be written.
func (c Config) Logger(out io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(out, opts))
	}
	return slog.New(slog.NewJSONHandler(out, opts))
}
