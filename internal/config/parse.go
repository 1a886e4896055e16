package config

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"math"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"pzbridge/internal/callpolicy"
	"pzbridge/internal/phone"
	"pzbridge/internal/pz"
	"pzbridge/outbox/store"
)

const (
	minToken  = 16 // characters
	minSecret = 24 // bytes; Standard Webhooks requires 24 to 64
	maxSecret = 64

	maxBackups     = 1000
	maxConcurrency = 1000
	maxRate        = 10_000  // a second
	minOutbox      = 1 << 20 // bytes: room for a few hundred events
)

// parse parses and checks all variables except those of endpoints.
func (t text) parse(p *problems) Config {
	c := Config{
		URL: parseServer(t.URL, p),
		Identity: pz.Identity{
			Password:       t.Password,
			ClientType:     t.ClientType,
			GUID:           t.ClientGUID,
			PhoneNumber:    t.PhoneNumber,
			BroadcastGroup: t.BroadcastGroup,
			Protocol:       2,
		},
		ReplayMaxAge:    parseDuration("REPLAY_MAX_AGE", t.ReplayMaxAge, 0, p),
		OrderHold:       parseDuration("ORDER_HOLD", t.OrderHold, 0, p),
		OutboxRetention: parseDuration("OUTBOX_RETENTION", t.OutboxRetention, time.Minute, p),
		OutboxMaxBytes:  parseBytes("OUTBOX_MAX_BYTES", t.OutboxMaxBytes, minOutbox, t.largestMaxBytes(), p),
		RoutingTimeout:  parseDuration("ROUTING_TIMEOUT", t.RoutingTimeout, time.Millisecond, p),
		OutboxPath:      t.OutboxPath,
		BackupDir:       t.BackupDir,
		APITokens:       parseTokens("API_TOKEN", t.APIToken, p),
		LogFormat:       t.LogFormat,
		AlertLanguage:   t.AlertLanguage,
		CommandTimeout:  parseDurationUpTo("COMMAND_TIMEOUT", t.CommandTimeout, time.Millisecond, time.Minute, p),
		APIRate:         parseRate("API_RATE", "requests", t.APIRate, p),
		ShutdownGrace:   parseDuration("SHUTDOWN_GRACE", t.ShutdownGrace, time.Millisecond, p),
	}
	c.checkRehearsal(p)
	t.parseDatabase(&c, p)
	t.parseRecordings(&c, p)
	c.CallRate = parseRatePer("CALL_RATE", "calls", "minute", t.CallRate, p)
	c.Phone = parsePlan(t.PhoneRegion, t.InternalDigits, p)
	c.CallFrom = parseNumbers("CALL_FROM", t.CallFrom, c.Phone, p)
	c.CallTo = parseNumbers("CALL_TO", t.CallTo, c.Phone, p)
	if c.BackupKeep, _ = strconv.Atoi(t.BackupKeep); c.BackupKeep < 1 || c.BackupKeep > maxBackups {
		p.add("BACKUP_KEEP", "must be a number of copies from 1 to %d; it is %q", maxBackups, t.BackupKeep)
	}
	c.MetricsPublic = parseChoice("METRICS_PUBLIC", t.MetricsPublic, "true", "false", p)
	c.BehindProxy = parseChoice("API_BEHIND_PROXY", t.BehindProxy, "true", "false", p)
	c.DeclineOnSilence = parseChoice("ROUTING_ON_SILENCE", t.OnSilence, "decline", "nothing", p)
	c.QuietWithoutWinner = parseChoice("RINGING_WITHOUT_WINNER", t.WithoutWinner, "none", "all", p)
	if utf8.RuneCountInString(t.Password) > pz.MaxPassword {
		p.add("PZ_PASSWORD", "is longer than %d characters: "+
			"no Prostie Zvonki server has such a password", pz.MaxPassword)
	}
	for _, v := range []struct{ name, text string }{
		{"PZ_CLIENT_TYPE", t.ClientType},
		{"PZ_CLIENT_GUID", t.ClientGUID},
		{"PZ_PHONE_NUMBER", t.PhoneNumber},
		{"PZ_BROADCAST_GROUP", t.BroadcastGroup},
	} {
		if err := pz.CheckIdentityText(v.text); err != nil {
			p.add(v.name, "%v", err)
		}
	}
	mask, err := strconv.ParseUint(t.EventsMask, 10, 32)
	if err != nil {
		p.add("PZ_EVENTS_MASK", "must be a number that fits 32 bits, such as 65535 for all events; "+
			"it is %q", t.EventsMask)
	}
	c.Identity.EventsMask = uint32(mask)
	t.parseTLS(&c, p)
	t.parseAPITLS(&c, p)
	for wait := range strings.SplitSeq(t.RetrySchedule, ",") {
		d := parseDuration("RETRY_SCHEDULE", strings.TrimSpace(wait), time.Millisecond, p)
		c.RetrySchedule = append(c.RetrySchedule, d)
	}
	host, port, err := net.SplitHostPort(t.ListenAddr)
	ascii, noName := asciiName(host)
	if err != nil || noName != nil || !isPort(port, 0) || strings.Contains(host, "/") {
		p.add("LISTEN_ADDR", "must be host:port or :port, such as :8080; it is %q", t.ListenAddr)
	}
	c.ListenAddr = net.JoinHostPort(ascii, port)
	if err := c.LogLevel.UnmarshalText([]byte(t.LogLevel)); err != nil {
		p.add("LOG_LEVEL", "must be debug, info, warn or error; it is %q", t.LogLevel)
	}
	if t.AlertLanguage != "en" && t.AlertLanguage != "ru" {
		p.add("ALERT_LANGUAGE", "must be en or ru; it is %q", t.AlertLanguage)
	}
	if !slices.Contains([]string{formatAuto, formatJSON, formatText}, t.LogFormat) {
		p.add("LOG_FORMAT", "must be auto, json or text; it is %q", t.LogFormat)
	}
	return c
}

// parseServer parses PZ_URL. Problems never quote it, since users put passwords into addresses.
func parseServer(s string, p *problems) *url.URL {
	const right = "must be host, host:port, ws://host:port or wss://host:port of the Prostie Zvonki server"
	if s == "" {
		p.add("PZ_URL", "is missing: it %s", right)
		return nil
	}
	s = strings.TrimSpace(s)
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
	case ASCIIHost(u) != nil:
		p.add("PZ_URL", "has a name of the host that there cannot be: it %s", right)
	default:
		return &url.URL{Scheme: u.Scheme, Host: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), pz.DefaultPort))}
	}
	return nil
}

func isPort(s string, minPort uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= minPort
}

// parseTLS parses the PZ_TLS_… variables into c, whose URL is set already.
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
			p.add("PZ_TLS_FINGERPRINT", "must be the SHA-256 of the server's certificate: "+
				"64 hexadecimal digits, colons allowed; \"pzbridge doctor\" prints the right one "+
				"while PZ_TLS_FINGERPRINT and PZ_TLS_LEGACY are not set")
		}
		c.TLSFingerprint = sum
	} else if legacy {
		p.add("PZ_TLS_LEGACY", "needs PZ_TLS_FINGERPRINT: TLS of that age proves nothing by itself, "+
			"only the one certificate that you name can be trusted")
	}
	if t.TLSCAFile != "" {
		c.TLSRoots = x509.NewCertPool()
		for _, cert := range readCertificates("PZ_TLS_CA_FILE", t.TLSCAFile, p) {
			c.TLSRoots.AddCert(cert)
		}
		if t.TLSFingerprint != "" {
			p.add("PZ_TLS_CA_FILE", "is set, and so is PZ_TLS_FINGERPRINT: set only one of the two")
		}
	}
	for _, s := range []setting{{"PZ_TLS_CA_FILE", t.TLSCAFile}, {"PZ_TLS_FINGERPRINT", t.TLSFingerprint}} {
		if plain && s.value != "" {
			p.add(s.name, "has a meaning only where PZ_URL begins with wss://")
		}
	}
}

// parseDuration parses a duration between minValue and maxDuration.
func parseDuration(variable, s string, minValue time.Duration, p *problems) time.Duration {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		p.add(variable, "%q is no duration: write a number and its unit, such as 500ms, 15s, 5m or 24h", s)
	case d < minValue && minValue == 0:
		p.add(variable, "must not be negative; it is %s", s)
	case d < minValue:
		p.add(variable, "must be at least %s; it is %s", minValue, s)
	case d > maxDuration:
		p.add(variable, "must be at most %s, ten years; it is %s", maxDuration, s)
	}
	return d
}

// maxDuration is the maximum of every duration. It keeps sums of several durations from
// overflowing.
const maxDuration = 87600 * time.Hour

// parseDurationUpTo parses a duration between minValue and maxValue.
func parseDurationUpTo(variable, s string, minValue, maxValue time.Duration, p *problems) time.Duration {
	d := parseDuration(variable, s, minValue, p)
	if d > maxValue {
		p.add(variable, "must be at most %s; it is %s", maxValue, s)
	}
	return d
}

// parseChoice reports whether a value equals yes; otherwise it must equal no.
func parseChoice(variable, s, yes, no string, p *problems) bool {
	if s != yes && s != no {
		p.add(variable, "must be %s or %s; it is %q", yes, no, s)
	}
	return s == yes
}

// parseBytes parses a size between minValue and maxValue bytes, such as 1GiB, 500MB or a plain
// number of bytes.
func parseBytes(variable, s string, minValue, maxValue int64, p *problems) int64 {
	n, err := humanize.ParseBytes(s)
	switch {
	case err != nil || n > math.MaxInt64:
		p.add(variable, "%q is no size: write a number and its unit, such as 512MiB or 2GiB", s)
	case int64(n) < minValue:
		p.add(variable, "must be at least %s; it is %s", humanize.IBytes(uint64(minValue)), s)
	case int64(n) > maxValue:
		p.add(variable, "must be at most %s: this program, of %d bits, cannot map a larger file; it is %s",
			humanize.IBytes(uint64(maxValue)), strconv.IntSize, s)
	}
	return int64(n)
}

// parseRate parses a number of events (what) a second. Empty means no limit, and gives 0.
func parseRate(variable, what, s string, p *problems) float64 {
	return parseRatePer(variable, what, "second", s, p)
}

// parseRatePer parses a number of events (what) per unit of time. Empty means no limit, and gives
// 0.
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

// parsePlan parses PHONE_REGION and INTERNAL_DIGITS. It returns nil if one of them is wrong.
func parsePlan(region, internalDigits string, p *problems) *phone.Plan {
	digits, err := strconv.Atoi(internalDigits)
	if err != nil || digits < 0 || digits > phone.MaxInternalDigits {
		p.add("INTERNAL_DIGITS", "must be a number from 0 to %d; it is %q", phone.MaxInternalDigits, internalDigits)
		digits = 0
	}
	plan, err := phone.New(phone.Options{Region: region, InternalDigits: digits})
	if err != nil {
		p.add("PHONE_REGION", "%v", err)
	}
	return plan
}

// parseNumbers parses the list of the numbers that commands may use. The plan may be nil if the
// result is not used.
func parseNumbers(variable, s string, plan *phone.Plan, p *problems) callpolicy.Numbers {
	n, err := callpolicy.ParseNumbers(s, plan)
	if err != nil {
		p.add(variable, "%v", err)
	}
	return n
}

// parseTokens parses a comma-separated list of tokens. Each must fit into a header and be long
// enough not to be guessed.
func parseTokens(variable, list string, p *problems) (tokens []string) {
	if list == "" {
		return nil
	}
	for token := range strings.SplitSeq(list, ",") {
		token = strings.TrimSpace(token)
		switch {
		case len(token) < minToken:
			p.add(variable, "must have at least %d characters (several tokens are separated by commas); "+
				"make one with: openssl rand -hex 24", minToken)
			return nil
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
			p.add(variable, "may hold printable ASCII characters without spaces only")
			return nil
		case slices.Contains(tokens, token):
			p.add(variable, "holds the same token twice")
			return nil
		}
		tokens = append(tokens, token)
	}
	return tokens
}

var nameShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// parse parses and checks the variables of one endpoint, and adds the certificates of its TLS.
func (t endpointText) parse(prefix string, certificates *[]certificate, p *problems) store.Endpoint {
	e := store.Endpoint{
		Name:    t.Name,
		Tokens:  parseTokens(prefix+"TOKEN", t.Token, p),
		Format:  store.Format(t.Format),
		Headers: parseHeaders(prefix+"HEADERS", t.Headers, p),
		Timeout: parseDuration(prefix+"TIMEOUT", t.Timeout, time.Millisecond, p),
	}
	switch {
	case t.Name == "":
		p.add(prefix+"NAME", "is missing: give the CRM a short name, such as crm")
	case !nameShape.MatchString(t.Name):
		p.add(prefix+"NAME", "may hold letters, digits and . _ - only, at most 64, "+
			"and begins with a letter or a digit; it is %q", t.Name)
	case t.Name == "operator":
		p.add(prefix+"NAME", "must not be operator: that name stands for the holder of API_TOKEN")
	}
	switch {
	case t.URL != "":
		e.URL = parseEndpointURL(prefix+"URL", t.URL, p)
	case t.hasPreset():
		p.add(prefix+"URL", "is missing: it is the address that the CRM's settings of the virtual PBX show, "+
			"or that of an inbound webhook of Bitrix24")
	case t.Token == "" || t.Secret != "":
		p.add(prefix+"URL", "is missing: it is the http or https address that takes the webhooks. "+
			"A CRM that reads its events with GET /v1/events has a TOKEN, no URL and no SECRET")
	}
	switch {
	case t.hasPreset():
		e.Secrets = t.parseKey(prefix, p)
	case t.URL != "" || t.Secret != "":
		e.Secrets = parseSecrets(prefix+"SECRET", t.Secret, p)
	}
	if !slices.Contains(store.Formats, e.Format) {
		p.add(prefix+"FORMAT", "must be standard, flat, form, pz or text; it is %q", t.Format)
	}
	e.RingingTTL = parseDuration(prefix+"RINGING_TTL", t.RingingTTL, time.Millisecond, p)
	concurrency, err := strconv.Atoi(t.Concurrency)
	if err != nil || concurrency < 1 || concurrency > maxConcurrency {
		p.add(prefix+"CONCURRENCY", "must be a number from 1 to %d; it is %q", maxConcurrency, t.Concurrency)
	}
	e.Concurrency = concurrency
	e.Rate = parseRate(prefix+"RATE", "attempts", t.Rate, p)
	if t.hasPreset() {
		e.Events = t.parsePresetEvents(prefix+"EVENTS", p)
	} else if e.Events, err = store.ParseFilter(t.Events); err != nil {
		p.add(prefix+"EVENTS", "%v", err)
	}
	e.TLS = t.parseTLS(prefix, e.URL, certificates, p)
	return e
}

// parseSecrets parses a comma-separated list of Standard Webhooks secrets and decodes them.
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
				p.add(variable, "must begin with whsec_ (several are separated by commas); "+
					"make one with \"pzbridge secret\"")
			}
			continue
		}
		key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
		if err != nil || len(key) < minSecret || len(key) > maxSecret {
			p.add(variable, "must be whsec_ and the base64 of %d to %d bytes; "+
				"make one with \"pzbridge secret\"", minSecret, maxSecret)
			continue
		}
		secrets = append(secrets, key)
	}
	return secrets
}

// checkEndpoints checks that no two endpoints share a name or an application, and that no token is
// used twice.
func (c Config) checkEndpoints(numbers []int, p *problems) {
	names, tokens, applications := map[string]string{}, map[string]string{}, map[string]string{}
	for _, token := range c.APITokens {
		tokens[token] = "API_TOKEN"
	}
	for i, e := range c.Endpoints {
		name, token := endpointPrefix(numbers[i])+"NAME", endpointPrefix(numbers[i])+"TOKEN"
		if first, ok := names[e.Name]; ok && e.Name != "" {
			p.add(name, "is the same as %s: each endpoint needs a name of its own", first)
		}
		names[e.Name] = name
		id := c.CRMs[e.Name].Application.ID
		if first := applications[id]; id != "" && first != "" {
			p.add(endpointPrefix(numbers[i])+"CLIENT_ID", "is the same as %s: each endpoint needs an application of "+
				"its own, since each new key ends the one before", first)
		}
		applications[id] = endpointPrefix(numbers[i]) + "CLIENT_ID"
		if i := slices.IndexFunc(e.Tokens, func(t string) bool { return tokens[t] != "" }); i >= 0 {
			p.add(token, "is the same as %s: each token must identify one caller", tokens[e.Tokens[i]])
		}
		for _, t := range e.Tokens {
			tokens[t] = token
		}
	}
}

// Warnings lists settings that work but are insecure or about to fail, one line each: certificates
// out of their time, secrets copied from pzbridge's repository, and addresses without TLS.
func (c Config) Warnings() []string {
	list := c.CertificateFaults()
	if soon := c.expiresSoon(time.Now()); soon != "" {
		list = append(list, soon)
	}
	warnOfSample := func(variable, doInstead string) {
		list = append(list, variable+" is a sample of pzbridge's own repository, which everybody can read: "+doInstead)
	}
	const newToken = "make your own, such as with: openssl rand -hex 24"
	if samples[c.Identity.Password] {
		warnOfSample("PZ_PASSWORD", "set the one of your server")
	}
	if slices.ContainsFunc(c.APITokens, isSample) {
		warnOfSample("API_TOKEN", newToken)
	}
	for i, e := range c.Endpoints {
		if slices.ContainsFunc(e.Secrets, isSampleSecret) {
			warnOfSample(endpointPrefix(i)+"SECRET", "make your own with \"pzbridge secret\"")
		}
		if slices.ContainsFunc(e.Tokens, isSample) {
			warnOfSample(endpointPrefix(i)+"TOKEN", newToken)
		}
		if u, err := url.Parse(e.URL); err == nil && u.Scheme == "http" && e.URL != "" && !isPrivate(u.Hostname()) {
			list = append(list, endpointPrefix(i)+"URL begins with http:// and is not in your own network: "+
				"anybody on the way can read the calls")
		}
		oauth, err := url.Parse(c.CRMs[e.Name].Application.OAuthURL)
		if err == nil && oauth.Scheme == "http" && !isPrivate(oauth.Hostname()) {
			list = append(list, endpointPrefix(i)+"OAUTH_URL begins with http:// and is not in your own network: "+
				"anybody on the way can read the application's keys")
		}
	}
	if c.database != nil && c.database.warning() != "" {
		list = append(list, c.database.warning())
	}
	return list
}

// isPrivate reports whether a host is certainly local: a name without dots, or an address of a
// private network or of the machine itself.
func isPrivate(host string) bool {
	ip := net.ParseIP(host)
	return ip == nil && !strings.Contains(host, ".") || ip != nil && (ip.IsPrivate() || ip.IsLoopback())
}
