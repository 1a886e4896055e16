// Package config reads the configuration from environment variables and checks it. It reports all
// problems at once; each one names the variable and the accepted values, and never shows a secret.
//
// It is a package of its own, not a part of main, because the bridge and several commands read the
// same configuration.
package config

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/joho/godotenv"

	"pzbridge/internal/callpolicy"
	"pzbridge/internal/crm"
	"pzbridge/internal/phone"
	"pzbridge/internal/pz"
	"pzbridge/outbox/store"
)

// DefaultListenAddr is the default of LISTEN_ADDR, the address of the API.
const DefaultListenAddr = ":8080"

// text holds the unparsed values of all variables except those of endpoints. The library fills in
// strings only, because its own parsers report errors with names of struct fields and with values.
type text struct {
	URL             string `env:"PZ_URL"`
	Password        string `env:"PZ_PASSWORD"`
	ClientType      string `env:"PZ_CLIENT_TYPE" envDefault:"pzbridge"`
	ClientGUID      string `env:"PZ_CLIENT_GUID"`
	PhoneNumber     string `env:"PZ_PHONE_NUMBER"`
	BroadcastGroup  string `env:"PZ_BROADCAST_GROUP"`
	EventsMask      string `env:"PZ_EVENTS_MASK" envDefault:"65535"`
	TLSCAFile       string `env:"PZ_TLS_CA_FILE"`
	TLSFingerprint  string `env:"PZ_TLS_FINGERPRINT"`
	TLSLegacy       string `env:"PZ_TLS_LEGACY" envDefault:"false"`
	ReplayMaxAge    string `env:"REPLAY_MAX_AGE" envDefault:"168h"`
	RetrySchedule   string `env:"RETRY_SCHEDULE" envDefault:"5s,5m,30m,2h,5h,10h,14h,20h,24h"`
	OrderHold       string `env:"ORDER_HOLD" envDefault:"1m"`
	OutboxPath      string `env:"OUTBOX_PATH" envDefault:"data/outbox.db"`
	OutboxURL       string `env:"OUTBOX_URL"`
	OutboxSchema    string `env:"OUTBOX_SCHEMA" envDefault:"pzbridge"`
	OutboxRetention string `env:"OUTBOX_RETENTION" envDefault:"168h"`
	OutboxMaxBytes  string `env:"OUTBOX_MAX_BYTES" envDefault:"1GiB"`
	BridgeName      string `env:"BRIDGE_NAME"`
	Listeners       string `env:"LISTENERS"         envDefault:"1"`
	BackupDir       string `env:"BACKUP_DIR"`
	BackupKeep      string `env:"BACKUP_KEEP" envDefault:"7"`
	RoutingTimeout  string `env:"ROUTING_TIMEOUT" envDefault:"10s"`
	OnSilence       string `env:"ROUTING_ON_SILENCE" envDefault:"decline"`
	WithoutWinner   string `env:"RINGING_WITHOUT_WINNER" envDefault:"all"`
	ListenAddr      string `env:"LISTEN_ADDR" envDefault:":8080"`
	APICertFile     string `env:"API_TLS_CERT_FILE"`
	APIKeyFile      string `env:"API_TLS_KEY_FILE"`
	APIToken        string `env:"API_TOKEN"`
	APIRate         string `env:"API_RATE" envDefault:"50"`
	PhoneRegion     string `env:"PHONE_REGION" envDefault:"RU"`
	InternalDigits  string `env:"INTERNAL_DIGITS" envDefault:"6"`
	CallRate        string `env:"CALL_RATE" envDefault:"30"`
	CallFrom        string `env:"CALL_FROM" envDefault:"internal"`
	CallTo          string `env:"CALL_TO" envDefault:"*"`
	MetricsPublic   string `env:"METRICS_PUBLIC" envDefault:"false"`
	BehindProxy     string `env:"API_BEHIND_PROXY" envDefault:"false"`
	CommandTimeout  string `env:"COMMAND_TIMEOUT" envDefault:"10s"`
	ShutdownGrace   string `env:"SHUTDOWN_GRACE" envDefault:"20s"`
	LogLevel        string `env:"LOG_LEVEL" envDefault:"info"`
	LogFormat       string `env:"LOG_FORMAT" envDefault:"auto"`
	AlertLanguage   string `env:"ALERT_LANGUAGE" envDefault:"en"`
	PublicURL       string `env:"PUBLIC_URL"`

	Recordings         string `env:"RECORDINGS" envDefault:"off"`
	RecordingsFrom     string `env:"RECORDINGS_FROM"`
	RecordingsMap      string `env:"RECORDINGS_MAP"`
	RecordingsDir      string `env:"RECORDINGS_DIR"`
	RecordingsKept     string `env:"RECORDINGS_RETENTION" envDefault:"720h"`
	RecordingsMaxBytes string `env:"RECORDINGS_MAX_BYTES" envDefault:"5GiB"`
}

// endpointText holds the unparsed values of one endpoint, without the prefix ENDPOINT_<n>_.
type endpointText struct {
	Name        string `env:"NAME"`
	URL         string `env:"URL"`
	Secret      string `env:"SECRET"`
	Format      string `env:"FORMAT" envDefault:"standard"`
	Events      string `env:"EVENTS" envDefault:"call.*,sms.*,pz.event"`
	Headers     string `env:"HEADERS"`
	Timeout     string `env:"TIMEOUT" envDefault:"15s"`
	RingingTTL  string `env:"RINGING_TTL" envDefault:"5m"`
	Concurrency string `env:"CONCURRENCY" envDefault:"16"`
	Rate        string `env:"RATE"`
	Token       string `env:"TOKEN"`
	CAFile      string `env:"CA_FILE"`
	CertFile    string `env:"CERT_FILE"`
	KeyFile     string `env:"KEY_FILE"`

	Preset            string `env:"PRESET"`
	Users             string `env:"USERS"`
	DefaultUser       string `env:"DEFAULT_USER"`
	DefaultUserByLine string `env:"DEFAULT_USER_BY_LINE"`
	Missed            string `env:"MISSED"`
	PBXDomain         string `env:"PBX_DOMAIN"`
	DefaultLine       string `env:"DEFAULT_LINE"`
	CRMCreate         string `env:"CRM_CREATE"`
	ClientID          string `env:"CLIENT_ID"`
	ClientSecret      string `env:"CLIENT_SECRET"`
	OAuthURL          string `env:"OAUTH_URL"`
}

// Config is a checked configuration. Its fields are documented in .env.example.
type Config struct {
	URL             *url.URL // of the Prostie Zvonki server: ws or wss, with a port
	Identity        pz.Identity
	TLSRoots        *x509.CertPool // nil: the system's authorities
	TLSFingerprint  []byte         // SHA-256 of the server's certificate; nil: not pinned
	TLSLegacy       bool
	ReplayMaxAge    time.Duration
	Endpoints       []store.Endpoint
	CRMs            map[string]crm.Settings // of the endpoints with a preset, by name
	RetrySchedule   []time.Duration
	OrderHold       time.Duration
	OutboxPath      string
	OutboxURL       string // of a PostgreSQL database, which takes the place of the file; holds a password
	OutboxSchema    string // of that database
	OutboxRetention time.Duration
	OutboxMaxBytes  int64
	BridgeName      string // tells bridges on one database apart; may be empty without OutboxURL
	Listeners       int    // how many of those are connected to the server at a time: 1 or 2
	BackupDir       string // for copies of the outbox; "": none are made
	BackupKeep      int    // copies
	RoutingTimeout  time.Duration
	// DeclineOnSilence makes the bridge decline a routing question that no CRM answers with a
	// number.
	DeclineOnSilence bool
	// QuietWithoutWinner withholds the ringing and answered events of a call from every CRM if the
	// call has asked a routing question and no CRM has won it, or none has yet.
	QuietWithoutWinner bool
	ListenAddr         string
	APICertFile        string // of the API's HTTPS; "": the API is served over HTTP
	APIKeyFile         string
	APITokens          []string    // of the operator; empty: the operator has no access
	APIRate            float64     // requests a second for each token
	Phone              *phone.Plan // PHONE_REGION and INTERNAL_DIGITS
	CallRate           float64     // calls a minute for each token, and as many SMS
	CallFrom, CallTo   callpolicy.Numbers
	MetricsPublic      bool // /metrics needs no token
	BehindProxy        bool // the X-Forwarded-Proto header of a proxy is trusted
	CommandTimeout     time.Duration
	ShutdownGrace      time.Duration
	LogLevel           slog.Level
	LogFormat          string // one of those that log.go lists
	AlertLanguage      string // "en" or "ru"
	PublicURL          string // of the API for CRMs outside, without a slash at its end; "": they cannot reach it
	Recordings         Recordings

	settings     []setting
	database     *database     // of OutboxURL; nil without one
	certificates []certificate // of the endpoints' TLS, of the API's and of the database's
}

// Error lists everything that is wrong with a configuration, one line for each problem.
type Error struct{ Problems []string }

func (e *Error) Error() string {
	return "the configuration is wrong:\n  " + strings.Join(e.Problems, "\n  ")
}

// problems collects the lines of an Error.
type problems struct {
	list  []string
	muted map[string]bool // variables whose further problems are dropped
}

func (p *problems) add(variable, format string, args ...any) {
	if !p.muted[variable] {
		p.list = append(p.list, variable+": "+fmt.Sprintf(format, args...))
	}
}

// mute drops the further problems of a variable, which only follow from the one already added.
func (p *problems) mute(variable string) {
	if p.muted == nil {
		p.muted = map[string]bool{}
	}
	p.muted[variable] = true
}

// Environment returns the variables of the process, extended by those of the file .env in the
// working directory; a variable of the process wins. It also sets time.Local from TZ. It fails with
// an *Error if .env cannot be read or TZ is unknown.
func Environment() (map[string]string, error) {
	if _, err := os.Stat(envFile); os.IsNotExist(err) {
		vars := env.ToMap(os.Environ())
		return vars, setTimeZone(vars["TZ"])
	}
	return EnvironmentWith(envFile)
}

// envFile is the file of variables in the working directory.
const envFile = ".env"

// EnvironmentWith is Environment with another file than .env, which must exist.
func EnvironmentWith(file string) (map[string]string, error) {
	vars := env.ToMap(os.Environ())
	if err := addFile(vars, file); err != nil {
		return nil, err
	}
	return vars, setTimeZone(vars["TZ"])
}

// setTimeZone sets the time zone of the process. Go does that itself with TZ of the environment,
// but not with TZ of .env, and silently uses UTC if the name is unknown.
func setTimeZone(name string) error {
	if name = strings.TrimPrefix(name, ":"); name == "" || filepath.IsAbs(name) {
		return nil
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return &Error{[]string{fmt.Sprintf(
			"TZ: there is no time zone %q: use a name such as Europe/Moscow or Asia/Yekaterinburg", name)}}
	}
	time.Local = zone
	return nil
}

// addFile adds the variables of a file.
func addFile(vars map[string]string, name string) error {
	content, err := os.ReadFile(name)
	if err != nil {
		return &Error{[]string{err.Error()}}
	}
	content = bytes.TrimPrefix(content, []byte("\uFEFF")) // byte order mark of Windows editors
	file, err := godotenv.UnmarshalBytes(content)
	if err != nil {
		// The library's error is dropped, because it quotes the line, which may hold a secret.
		return &Error{[]string{fmt.Sprintf("%s: line %d cannot be read: each line is NAME=value; "+
			"put a value with spaces, quotes or # between single quotes", name, brokenLine(string(content)))}}
	}
	for k, v := range file {
		if _, set := vars[k]; !set {
			vars[k] = v
		}
	}
	return nil
}

// brokenLine returns the number of the first line that cannot be parsed: the line after the longest
// prefix of the file that can.
func brokenLine(content string) int {
	lines := strings.SplitAfter(content, "\n")
	for n := len(lines) - 1; n > 0; n-- {
		if _, err := godotenv.Unmarshal(strings.Join(lines[:n], "")); err == nil {
			return n + 1
		}
	}
	return 1
}

// Load parses and checks the variables. It fails with an *Error that lists every problem. It does
// not change the map or keep it.
func Load(vars map[string]string) (Config, error) {
	var p problems
	vars, numbers := ownVariables(vars, &p)
	setDefaults(vars)
	var t text
	if err := env.ParseWithOptions(&t, env.Options{Environment: vars}); err != nil {
		return Config{}, fmt.Errorf("read the environment: %w", err)
	}
	c := t.parse(&p)
	c.settings = settings("", t)
	c.CRMs = map[string]crm.Settings{}
	if len(numbers) == 0 {
		p.add("ENDPOINT_0_URL", "is missing: configure at least one CRM "+
			"with ENDPOINT_0_NAME, ENDPOINT_0_URL and ENDPOINT_0_SECRET")
	}
	for i, n := range numbers {
		prefix := endpointPrefix(n)
		if i != n && (i == 0 || numbers[i-1] == i-1) { // the first gap
			p.add(endpointPrefix(i)+"NAME", "is missing: endpoints are numbered from 0 without a gap, "+
				"and %s… is set", prefix)
		}
		var t endpointText
		if err := env.ParseWithOptions(&t, env.Options{Environment: vars, Prefix: prefix}); err != nil {
			return Config{}, fmt.Errorf("read the environment: %w", err)
		}
		t.setPresetDefaults()
		preset := t.parsePreset(prefix, c.Phone, &p)
		e := t.parse(prefix, &c.certificates, &p)
		c.Endpoints = append(c.Endpoints, e)
		if preset.Preset != "" {
			c.CRMs[e.Name] = preset
		}
		c.settings = append(c.settings, settings(prefix, t)...)
	}
	c.checkEndpoints(numbers, &p)
	if len(p.list) > 0 {
		return Config{}, &Error{p.list}
	}
	return c, nil
}

func endpointPrefix(n int) string { return fmt.Sprintf("ENDPOINT_%d_", n) }

// endpointName splits the name of an endpoint's variable into the number and the rest.
var endpointName = regexp.MustCompile(`^ENDPOINT_(0|[1-9][0-9]{0,3})_(.+)$`)

// ownVariables selects the variables of this program that are not empty, with secrets read from
// their files, and returns the numbers of the endpoints in ascending order. A variable that is
// meant for this program but that nothing reads is a problem: it is probably a typo, and ignoring
// it would silently drop the setting.
func ownVariables(vars map[string]string, p *problems) (map[string]string, []int) {
	known, forEndpoint := variableNames(text{}), variableNames(endpointText{})
	ours := slices.Collect(maps.Keys(known))
	for name := range forEndpoint {
		ours = append(ours, endpointPrefix(0)+name)
	}
	slices.Sort(ours)
	out := map[string]string{}
	var numbers []int
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		value := vars[name]
		// A Docker link to a container named bridge sets BRIDGE_NAME.
		isKnown, number, isEndpoint := known[name] && !setByPlatform(name, value), 0, false
		if m := endpointName.FindStringSubmatch(name); m != nil && forEndpoint[m[2]] {
			isKnown, isEndpoint = true, true
			number, _ = strconv.Atoi(m[1])
		}
		if !isKnown {
			if meant, isOurs := misspelt(name, value, ours); meant != "" {
				p.add(name, "there is no such variable; is %s meant? Correct its name or unset it "+
					"(.env.example lists them all)", meant)
			} else if isOurs {
				p.add(name, "there is no such variable: correct its name or unset it (.env.example lists them all)")
			}
			continue
		}
		if value == "" {
			continue // same as unset
		}
		if isEndpoint && !slices.Contains(numbers, number) {
			numbers = append(numbers, number)
		}
		if fault := valueFault(name, value); fault != "" {
			p.add(name, "%s", fault)
			p.mute(name)
		}
		out[name] = value
	}
	for _, name := range slices.Sorted(maps.Keys(out)) {
		if secret, ok := strings.CutSuffix(name, "_FILE"); ok && secretNames.MatchString(secret) {
			readSecret(out, secret, out[name], p)
		}
	}
	slices.Sort(numbers)
	return out, numbers
}

// Secret returns the value of one variable that holds a secret, read from the file <name>_FILE if
// that is set, or "" if neither is set. It is for commands that need nothing else of the
// configuration. It fails with an *Error.
func Secret(vars map[string]string, name string) (string, error) {
	var p problems
	secret := map[string]string{name: vars[name]}
	if fault := valueFault(name, vars[name]); fault != "" {
		p.add(name, "%s", fault)
	}
	if file := vars[name+"_FILE"]; file != "" {
		readSecret(secret, name, file, &p)
	}
	if len(p.list) > 0 {
		return "", &Error{p.list}
	}
	return secret[name], nil
}

// OperatorToken returns the first token of API_TOKEN or API_TOKEN_FILE. It fails with an *Error
// also if there is none, or if a token is not valid.
func OperatorToken(vars map[string]string) (string, error) {
	list, err := Secret(vars, "API_TOKEN")
	if err != nil {
		return "", err
	}
	var p problems
	if list == "" {
		p.add("API_TOKEN", "is missing: it is the operator's token, and the bridge needs it too; "+
			"any %d characters or more, in .env; then restart the bridge", minToken)
	}
	tokens := parseTokens("API_TOKEN", list, &p)
	if len(p.list) > 0 {
		return "", &Error{p.list}
	}
	return tokens[0], nil
}

// secretNames matches the variables that hold a secret and can be read from a file by NAME_FILE.
// The address of a CRM is among them, because it often contains a token, and so may those of
// recordings.
var secretNames = regexp.MustCompile(
	`^(PZ_PASSWORD|API_TOKEN|OUTBOX_URL|RECORDINGS_MAP|ENDPOINT_[0-9]+_(SECRET|CLIENT_SECRET|TOKEN|URL))$`)

func readSecret(vars map[string]string, name, file string, p *problems) {
	if vars[name] != "" {
		p.add(name, "is set, and so is %s_FILE: set only one of the two", name)
		return
	}
	content, err := os.ReadFile(file)
	if err != nil {
		p.add(name+"_FILE", "%v", err)
		return
	}
	content = bytes.TrimPrefix(content, []byte("\uFEFF")) // byte order mark of Windows editors
	value := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if value == "" {
		p.add(name+"_FILE", "the file is empty")
		return
	}
	if fault := valueFault(name, value); fault != "" {
		p.add(name+"_FILE", "%s", fault)
		p.mute(name)
	}
	vars[name] = value
}

// variableNames lists the variables of v, a text or an endpointText, and the _FILE variable of each
// secret.
func variableNames(v any) map[string]bool {
	list := map[string]bool{}
	for _, f := range params(v) {
		list[f.Key] = true
		if secretNames.MatchString(f.Key) || secretNames.MatchString(endpointPrefix(0)+f.Key) {
			list[f.Key+"_FILE"] = true
		}
	}
	return list
}

// params describes the fields of v, a text or an endpointText.
func params(v any) []env.FieldParams {
	var list []env.FieldParams
	var err error
	switch v := v.(type) {
	case text:
		list, err = env.GetFieldParams(&v)
	case endpointText:
		list, err = env.GetFieldParams(&v)
	}
	if err != nil {
		panic(fmt.Sprintf("config: the tags of %T: %v", v, err))
	}
	return list
}
