package config

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pzbridge/internal/telephony"
)

const (
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	token  = "0123456789abcdef"
)

// minimal returns the smallest valid configuration, changed by "NAME=value" and, to unset, "NAME".
func minimal(changes ...string) map[string]string {
	vars := map[string]string{
		"PZ_URL":            "pbx",
		"ENDPOINT_0_NAME":   "crm",
		"ENDPOINT_0_URL":    "https://crm.example/hook?token=t0psecret",
		"ENDPOINT_0_SECRET": secret,
	}
	for _, c := range changes {
		name, value, set := strings.Cut(c, "=")
		if vars[name] = value; !set {
			delete(vars, name)
		}
	}
	return vars
}

// Very long values are cut in the log; the other values of the line stay whole.
func TestLongLogValuesAreCut(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		logger := Config{LogFormat: format}.Logger(&out, LogOutput{})
		logger.Info("delivered", "call_id", strings.Repeat("ж", 130<<10), "endpoint", "crm", "attempts", 7)
		if line := out.String(); len(line) > 2<<10 || strings.Count(line, "ж") < 500 ||
			!strings.Contains(line, "ж…") || !strings.Contains(line, "crm") || !utf8.ValidString(line) {
			t.Errorf("%d bytes: %s", len(line), line)
		}
	}
}

// An error in the log says what to do about it, and is cut like any other long value.
func TestErrorsInTheLog(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		logger := Config{LogFormat: format}.Logger(&out, LogOutput{})
		logger.Warn("failed", "err", &telephony.Fault{Code: telephony.CodeToNotAllowed, Text: "not allowed"})
		if line := out.String(); !strings.Contains(line, `"not allowed (CALL_TO)"`) {
			t.Errorf("%s", line)
		}
		out.Reset()
		logger.Info("failed", "err", errors.New(strings.Repeat("ж", 130<<10)))
		if line := out.String(); len(line) > 2<<10 || !strings.Contains(line, "ж…") {
			t.Errorf("%d bytes", len(line))
		}
	}
}

// The log is text where a person sees it and JSON elsewhere, unless LOG_FORMAT says which. Both
// have every value of a line, and the advice.
func TestLogIsTextOnATerminal(t *testing.T) {
	const (
		inJSON   = `"level":"WARN","msg":"call done","id":"5","err":"not allowed (CALL_TO)","n":7}`
		plain    = ` WRN call done id=5 err="not allowed (CALL_TO)" n=7`
		coloured = " \x1b[93mWRN\x1b[0m call done \x1b[2mid=\x1b[0m5 " +
			"\x1b[2;91merr=\x1b[22m\"not allowed (CALL_TO)\"\x1b[0m \x1b[2mn=\x1b[0m7"
	)
	terminal, inColour := LogOutput{Terminal: true}, LogOutput{Terminal: true, Colour: true}
	for name, c := range map[string]struct {
		format string
		output LogOutput
		want   string
	}{
		"a pipe":             {"", LogOutput{}, inJSON},
		"a terminal":         {"", inColour, coloured},
		"without colours":    {"", terminal, plain},
		"auto":               {"LOG_FORMAT=auto", terminal, plain},
		"JSON on a terminal": {"LOG_FORMAT=json", inColour, inJSON},
		"text in a pipe":     {"LOG_FORMAT=text", LogOutput{}, plain},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := Load(minimal(c.format))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			cfg.Logger(&out, c.output).Warn("call done", "id", "5", "err",
				&telephony.Fault{Code: telephony.CodeToNotAllowed, Text: "not allowed"}, "n", 7)
			if line := out.String(); !strings.HasSuffix(line, c.want+"\n") {
				t.Errorf("it says %q", line)
			}
		})
	}
}

// What a caller sends neither controls the terminal nor hides the rest of the line.
func TestLogOnATerminalIsPrintable(t *testing.T) {
	for _, colour := range []bool{false, true} {
		var out bytes.Buffer
		logger := Config{LogFormat: "text"}.Logger(&out, LogOutput{Colour: colour})
		logger.Info("heard\x1b[2J", "from", "\x1b]0;title\a7343\u202e\xff\uFFFD0112", "err", errors.New("a\nb"),
			"list", []string{"x\x1b[1m"})
		line := strings.NewReplacer("\x1b[0m", "", "\x1b[2m", "", "\x1b[92m", "", "\x1b[2;91m", "", "\x1b[22m", "").
			Replace(out.String())
		const want = ` INF heard [2J from=" ]0;title 7343   0112" err="a b" list="[x [1m]"` + "\n"
		if !strings.HasSuffix(line, want) {
			t.Errorf("in colour %v: %q", colour, line)
		}
	}
}

func TestDefaults(t *testing.T) {
	vars := minimal("HOME=/root", "PZBRIDGE_URL=of another command", "PZ_PASSWORD=")
	c, err := Load(vars)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.URL.String(); got != "ws://pbx:10150" {
		t.Errorf("PZ_URL: %s", got)
	}
	id := c.Identity
	if id.ClientType != "pzbridge" || id.EventsMask != 65535 || id.Protocol != 2 || id.Password != "" || id.GUID != "" {
		t.Errorf("identity: %+v", id)
	}
	if c.ReplayMaxAge != 168*time.Hour || len(c.RetrySchedule) != 9 || c.RetrySchedule[8] != 24*time.Hour ||
		c.OutboxPath != "data/outbox.db" || c.ListenAddr != ":8080" || c.CommandTimeout != 10*time.Second ||
		c.ShutdownGrace != 20*time.Second || c.LogLevel != slog.LevelInfo || c.LogFormat != "auto" {
		t.Errorf("got %+v", c)
	}
	e := c.Endpoints[0]
	if c.OutboxMaxBytes != 1<<30 || e.Rate != 0 {
		t.Errorf("%d bytes, rate %v", c.OutboxMaxBytes, e.Rate)
	}
	if e.Timeout != 15*time.Second || len(e.Secrets) != 1 || len(e.Secrets[0]) != 24 ||
		len(e.Events) != 3 || len(e.Tokens) != 0 {
		t.Errorf("endpoint: %+v", e)
	}
}

func TestNumbersAreReadByRegionAndDigits(t *testing.T) {
	for _, c := range []struct {
		vars         []string
		number, e164 string
		internal     string // the longest extension
	}{
		{nil, "83430112233", "+73430112233", "123456"},
		{[]string{"PHONE_REGION=by", "INTERNAL_DIGITS=3"}, "8 029 123-45-67", "+375291234567", "123"},
		{[]string{"PHONE_REGION=UA", "INTERNAL_DIGITS=0"}, "050 1234567", "+380501234567", ""},
	} {
		cfg, err := Load(minimal(c.vars...))
		if err != nil {
			t.Fatal(err)
		}
		if e164, _ := cfg.Phone.E164(c.number); e164 != c.e164 {
			t.Errorf("%v: %s is %q", c.vars, c.number, e164)
		}
		if cfg.Phone.IsInternal(c.internal) != (c.internal != "") || cfg.Phone.IsInternal(c.internal+"1") {
			t.Errorf("%v: extensions have up to %d digits", c.vars, cfg.Phone.InternalDigits())
		}
	}
}

func TestSizesAndRatesAreParsed(t *testing.T) {
	c, err := Load(minimal("OUTBOX_MAX_BYTES=500 MB", "ENDPOINT_0_RATE=0.5"))
	if err != nil {
		t.Fatal(err)
	}
	if c.OutboxMaxBytes != 500_000_000 || c.Endpoints[0].Rate != 0.5 {
		t.Errorf("%d bytes, rate %v", c.OutboxMaxBytes, c.Endpoints[0].Rate)
	}
}

// A size that a 32-bit process cannot map is refused at the start, before the file has grown so
// large. The default size is accepted.
func TestOutboxLargerThanTheAddressSpaceIsRefused(t *testing.T) {
	is64Bit := strconv.IntSize == 64
	for size, fits := range map[string]bool{"1GiB": true, "1073741825": is64Bit, "2GiB": is64Bit, "1EiB": false} {
		_, err := Load(minimal("OUTBOX_MAX_BYTES=" + size))
		if (err == nil) != fits || err != nil && !strings.Contains(err.Error(), "OUTBOX_MAX_BYTES: must be at most") {
			t.Errorf("%s: %v", size, err)
		}
	}
}

func TestServerAddressGetsSchemeAndPort(t *testing.T) {
	for in, want := range map[string]string{
		"pbx":                    "ws://pbx:10150",
		"pbx:1":                  "ws://pbx:1",
		"10.0.0.5":               "ws://10.0.0.5:10150",
		"ws://pbx":               "ws://pbx:10150",
		"wss://pbx.example/":     "wss://pbx.example:10150",
		"wss://pbx.example:443":  "wss://pbx.example:443",
		"ws://[::1]":             "ws://[::1]:10150",
		"http://pbx":             "",
		"ws://user:hunter2@pbx":  "",
		"ws://pbx/?CID=aHVudGVy": "",
		"ws://pbx:99999":         "",
		"ws://":                  "",
		"атс.рф":                 "ws://xn--80a8ac.xn--p1ai:10150",
		"wss://АТС.рф:443/":      "wss://xn--80a8ac.xn--p1ai:443",
		" pbx ":                  "ws://pbx:10150",
		"атс_.рф":                "",
		"pbx,other":              "",
		"ws://[fe80::1%25eth0]":  "ws://[fe80::1%25eth0]:10150",
		"my_pbx":                 "ws://my_pbx:10150",
		"::1":                    "",
	} {
		c, err := Load(minimal("PZ_URL=" + in))
		if (err == nil) != (want != "") || err == nil && c.URL.String() != want {
			t.Errorf("%s: got %v, %v", in, c.URL, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: a password is shown: %v", in, err)
		}
	}
}

// Each case is one mistake. Its problem starts with the variable, contains the given text and shows
// no secret.
func TestEachMistakeNamesItsVariable(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ change, variable, says string }{
		{"PZ_URL", "PZ_URL", "is missing"},
		{"PZ_PASSWORD=hunter2" + strings.Repeat("x", 30), "PZ_PASSWORD", "longer than 32"},
		{"PZ_EVENTS_MASK=all", "PZ_EVENTS_MASK", "65535"},
		{"PZ_EVENTS_MASK=-1", "PZ_EVENTS_MASK", "32 bits"},
		{"PZ_PASWORD=hunter2", "PZ_PASWORD", "no such variable"},
		{"ENDPOINT_0_SECERT=hunter2", "ENDPOINT_0_SECERT", "no such variable"},
		{"ENDPOINT_NAME=x", "ENDPOINT_NAME", "no such variable"},
		{"ENDPOINT_00_NAME=x", "ENDPOINT_00_NAME", "no such variable"},
		{"LOG_LEVLE=debug", "LOG_LEVLE", "no such variable"},
		{"OUTBOX_PATH_FILE=x", "OUTBOX_PATH_FILE", "no such variable"},
		{"OUTBOX_SCHEMA=my.calls", "OUTBOX_SCHEMA", "letters, digits and _, at most 63"},
		{"BRIDGE_NAME=two words", "BRIDGE_NAME", "1 to 64 letters, digits and . _ -"},
		{"LISTENERS=3", "LISTENERS", "must be 1 or 2"},
		{"OUTBOX_URL=hunter2.example", "OUTBOX_URL", "must be postgres://user:password@host/database"},
		{"PZ_TLS_LEGACY=true", "PZ_TLS_LEGACY", "PZ_TLS_FINGERPRINT"},
		{"BACKUP_KEEP=0", "BACKUP_KEEP", "from 1 to 1000"},
		{"BACKUP_KEEP=many", "BACKUP_KEEP", "from 1 to 1000"},
		{"PZ_TLS_LEGACY=perhaps", "PZ_TLS_LEGACY", "true or false"},
		{"PZ_TLS_FINGERPRINT=abc", "PZ_TLS_FINGERPRINT", "64 hexadecimal digits"},
		{"PZ_TLS_CA_FILE=" + empty, "PZ_TLS_CA_FILE", "no certificate"},
		{"PZ_TLS_CA_FILE=" + dir + "/none", "PZ_TLS_CA_FILE", "no such file"},
		{"REPLAY_MAX_AGE=7d", "REPLAY_MAX_AGE", "no duration"},
		{"REPLAY_MAX_AGE=-1h", "REPLAY_MAX_AGE", "negative"},
		{"RETRY_SCHEDULE=5s,,5m", "RETRY_SCHEDULE", "no duration"},
		{"RETRY_SCHEDULE=0s", "RETRY_SCHEDULE", "at least"},
		{"OUTBOX_RETENTION=1s", "OUTBOX_RETENTION", "at least 1m"},
		{"ROUTING_TIMEOUT=0", "ROUTING_TIMEOUT", "at least"},
		{"API_BEHIND_PROXY=1", "API_BEHIND_PROXY", "must be true or false"},
		{"METRICS_PUBLIC=yes", "METRICS_PUBLIC", "must be true or false"},
		{"ROUTING_ON_SILENCE=hangup", "ROUTING_ON_SILENCE", "must be decline or nothing"},
		{"RINGING_WITHOUT_WINNER=some", "RINGING_WITHOUT_WINNER", "must be none or all"},
		{"ENDPOINT_0_RINGING_TTL=x", "ENDPOINT_0_RINGING_TTL", "no duration"},
		{"ORDER_HOLD=-1s", "ORDER_HOLD", "negative"},
		{"ENDPOINT_0_CONCURRENCY=0", "ENDPOINT_0_CONCURRENCY", "1 to 1000"},
		{"ENDPOINT_0_CONCURRENCY=many", "ENDPOINT_0_CONCURRENCY", "1 to 1000"},
		{"ENDPOINT_0_RATE=0", "ENDPOINT_0_RATE", "attempts a second"},
		{"ENDPOINT_0_RATE=NaN", "ENDPOINT_0_RATE", "attempts a second"},
		{"ENDPOINT_0_RATE=-1", "ENDPOINT_0_RATE", "attempts a second"},
		{"OUTBOX_MAX_BYTES=much", "OUTBOX_MAX_BYTES", "no size"},
		{"OUTBOX_MAX_BYTES=99999999999999999999", "OUTBOX_MAX_BYTES", "no size"},
		{"OUTBOX_MAX_BYTES=1000", "OUTBOX_MAX_BYTES", "at least 1.0 MiB"},
		{"COMMAND_TIMEOUT=0", "COMMAND_TIMEOUT", "at least"},
		{"COMMAND_TIMEOUT=61s", "COMMAND_TIMEOUT", "at most"},
		{"CALL_RATE=0", "CALL_RATE", "calls a minute"},
		{"PHONE_REGION=XX", "PHONE_REGION", `there is no region "XX": use the two letters`},
		{"PHONE_REGION=Russia", "PHONE_REGION", "such as RU"},
		{"INTERNAL_DIGITS=10", "INTERNAL_DIGITS", "from 0 to 9"},
		{"INTERNAL_DIGITS=-1", "INTERNAL_DIGITS", "from 0 to 9"},
		{"INTERNAL_DIGITS=four", "INTERNAL_DIGITS", "from 0 to 9"},
		{"CALL_FROM=internal;+7*", "CALL_FROM", "can match no number"},
		{"CALL_TO=+7*,,internal", "CALL_TO", "without an empty part"},
		{"LISTEN_ADDR=8080", "LISTEN_ADDR", "host:port"},
		{"LISTEN_ADDR=:http", "LISTEN_ADDR", "host:port"},
		{"API_TOKEN=hunter2", "API_TOKEN", "16 characters"},
		{"API_TOKEN=hunter2 hunter2 hunter2", "API_TOKEN", "without spaces"},
		{"API_TOKEN_FILE=" + empty, "API_TOKEN_FILE", "empty"},
		{"API_TOKEN_FILE=" + dir + "/none", "API_TOKEN_FILE", "no such file"},
		{"LOG_LEVEL=loud", "LOG_LEVEL", "debug, info, warn or error"},
		{"LOG_FORMAT=xml", "LOG_FORMAT", "auto, json or text"},
		{"ENDPOINT_0_NAME", "ENDPOINT_0_NAME", "is missing"},
		{"ENDPOINT_0_NAME=my crm", "ENDPOINT_0_NAME", "letters, digits"},
		{"ENDPOINT_0_NAME=operator", "ENDPOINT_0_NAME", "must not be operator"},
		{"ENDPOINT_0_URL", "ENDPOINT_0_URL", "is missing"},
		{"ENDPOINT_0_URL=ftp://hunter2.example", "ENDPOINT_0_URL", "https://"},
		{"ENDPOINT_0_URL=crm.example/hunter2", "ENDPOINT_0_URL", "https://"},
		{"ENDPOINT_0_SECRET", "ENDPOINT_0_SECRET", "is missing"},
		{"ENDPOINT_0_SECRET=hunter2", "ENDPOINT_0_SECRET", "whsec_"},
		{"ENDPOINT_0_SECRET=whsec_hunter2", "ENDPOINT_0_SECRET", "24 to 64 bytes"},
		{"ENDPOINT_0_SECRET=v1," + secret, "ENDPOINT_0_SECRET", `remove "v1,"`},
		{"ENDPOINT_0_EVENTS=call.finished", "ENDPOINT_0_EVENTS", "call.completed"},
		{"ENDPOINT_0_EVENTS=call.finished,sms.*,calls.*", "ENDPOINT_0_EVENTS", `"call.finished", "calls.*"`},
		{"ENDPOINT_0_HEADERS=X=1;;hunter2", "ENDPOINT_0_HEADERS", "part 3"},
		{"ENDPOINT_0_EVENTS=calls.*", "ENDPOINT_0_EVENTS", "call.completed"},
		{"ENDPOINT_0_EVENTS=.*", "ENDPOINT_0_EVENTS", "call.completed"},
		{"ENDPOINT_0_HEADERS=Authorization: hunter2", "ENDPOINT_0_HEADERS", "Name=value"},
		{"ENDPOINT_0_HEADERS=webhook-id=hunter2", "ENDPOINT_0_HEADERS", "the bridge does"},
		{"ENDPOINT_0_TIMEOUT=15", "ENDPOINT_0_TIMEOUT", "15s"},
		{"ENDPOINT_0_TOKEN=hunter2", "ENDPOINT_0_TOKEN", "16 characters"},
		{"API_TOKEN=operator-of-the-rehearsal", "API_TOKEN", "make your own with: openssl rand -hex 24"},
		{"API_TOKEN=operator-token-0123456789,operator-of-the-rehearsal", "API_TOKEN", "of the rehearsal"},
	} {
		vars := minimal(c.change)
		if strings.HasPrefix(c.change, "PZ_TLS_") {
			vars["PZ_URL"] = "wss://pbx"
		}
		_, err := Load(vars)
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
			t.Errorf("%s: got %v", c.change, err)
			continue
		}
		if line := wrong.Problems[0]; !strings.HasPrefix(line, c.variable+": ") || !strings.Contains(line, c.says) ||
			strings.Contains(line, "hunter2") || strings.Contains(line, secret) {
			t.Errorf("%s: %s", c.change, line)
		}
	}
}

// A misspelt name of a variable is a problem, since otherwise the setting would silently be
// missing.
func TestMisspeltVariablesAreRefused(t *testing.T) {
	for name, meant := range map[string]string{
		"LOG_LEVLE":             "LOG_LEVEL",
		"LGO_LEVEL":             "LOG_LEVEL",
		"LOG_LVL":               "LOG_LEVEL",
		"API_TOKN":              "API_TOKEN",
		"PAI_TOKEN":             "API_TOKEN",
		"API_TOKENFILE":         "API_TOKEN_FILE",
		"API_TOKEN_FIEL":        "API_TOKEN_FILE",
		"LISTEN_ADR":            "LISTEN_ADDR",
		"COMAND_TIMOUT":         "COMMAND_TIMEOUT",
		"ORDERHOLD":             "ORDER_HOLD",
		"PHONE_REGON":           "PHONE_REGION",
		"INTERNAL_DIGIT":        "INTERNAL_DIGITS",
		"SHUTDOWN_GRAC":         "SHUTDOWN_GRACE",
		"ENDPOINT_NAME":         "ENDPOINT_0_NAME",
		"ENDPIONT_12_SECRET":    "ENDPOINT_12_SECRET",
		"ENDPOINT1_URL":         "ENDPOINT_1_URL",
		"ENDPOINT_0_SECRETFILE": "ENDPOINT_0_SECRET_FILE",
		"PZ_PASWORD":            "PZ_PASSWORD",
		"PZ_SOMETHING":          "",
		"PZBRIDGE_ULR":          "PZBRIDGE_URL",
		"PZBRIDGE_NAME":         "BRIDGE_NAME",
		"OUTBOX_ULR":            "OUTBOX_URL",
		"OUTBOX_SCHEME":         "OUTBOX_SCHEMA",
		"OUTBOX_SOMETHING":      "",
		"OUTBOX_PATH_FILE":      "",
		"RETRY_COUNT":           "",
		"ROUTING_TIME":          "",
		"ENDPOINT_0_SOMETHING":  "",
		"ENDPOINT_00_NAME":      "",
		"PZ_PORT":               "",
		"PZ_NAME":               "",
		"PZ_SERVICES_HOST":      "",
	} {
		_, err := Load(minimal(name + "=x"))
		says := name + ": there is no such variable"
		if meant != "" {
			says += "; is " + meant + " meant?"
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Variables that a platform sets, and those of other programs on the machine, cause no problem.
func TestPlatformVariablesAreIgnored(t *testing.T) {
	vars := minimal()
	content, err := os.ReadFile("testdata/platforms.env")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok && !strings.HasPrefix(line, "#") {
			vars[name] = value
		}
	}
	if len(vars) < 300 {
		t.Fatalf("only %d variables", len(vars))
	}
	if _, err := Load(vars); err != nil {
		t.Error(err)
	}
}

func TestEndpointsAfterAGapAreChecked(t *testing.T) {
	_, err := Load(minimal("ENDPOINT_2_NAME=crm", "ENDPOINT_2_URL=ftp://x", "ENDPOINT_2_TOKEN=short",
		"ENDPOINT_4_NAME=another"))
	for _, want := range []string{
		"ENDPOINT_1_NAME: is missing", "ENDPOINT_2_NAME: is the same as ENDPOINT_0_NAME",
		"ENDPOINT_2_URL: must be", "ENDPOINT_2_SECRET: ", "ENDPOINT_2_TOKEN: ", "ENDPOINT_4_URL: ",
	} {
		if err == nil || strings.Count(err.Error(), "\n  "+want) != 1 {
			t.Errorf("%q is not once in: %v", want, err)
		}
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	vars := minimal("PZ_URL", "LOG_LEVEL=loud", "API_TOKEN="+token, "ENDPOINT_0_SECRET=nothing",
		"ENDPOINT_1_NAME=crm", "ENDPOINT_1_URL=nothing", "ENDPOINT_1_SECRET="+secret,
		"ENDPOINT_1_TOKEN="+token, "ENDPOINT_1_TYPO=x")
	_, err := Load(vars)
	for _, want := range []string{
		"PZ_URL: ", "LOG_LEVEL: ", "ENDPOINT_0_SECRET: ", "ENDPOINT_1_NAME: is the same as ENDPOINT_0_NAME",
		"ENDPOINT_1_URL: ", "ENDPOINT_1_TOKEN: is the same as API_TOKEN", "ENDPOINT_1_TYPO: ",
	} {
		if err == nil || !strings.Contains(err.Error(), "\n  "+want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestTLSSettingsNeedWSS(t *testing.T) {
	sum := strings.Repeat("AB:", 31) + "AB"
	_, err := Load(minimal("PZ_TLS_FINGERPRINT=" + sum))
	if err == nil || !strings.Contains(err.Error(), "PZ_TLS_FINGERPRINT: has a meaning only") {
		t.Errorf("ws: %v", err)
	}
	c, err := Load(minimal("PZ_URL=wss://pbx", "PZ_TLS_LEGACY=1", "PZ_TLS_FINGERPRINT="+sum))
	if err != nil || !c.TLSLegacy || len(c.TLSFingerprint) != 32 || c.TLSFingerprint[0] != 0xab {
		t.Errorf("wss: %+v, %v", c, err)
	}
}

func TestSecretsAreReadFromFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for content, want := range map[string]string{
		"sesame\n": "sesame", "sesame\r\n": "sesame", "sesame": "sesame", " sesame ": " sesame ",
		"\uFEFFsesame\r\n": "sesame",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(minimal("PZ_PASSWORD_FILE=" + file))
		if err != nil || c.Identity.Password != want {
			t.Errorf("%q: got %q, %v", content, c.Identity.Password, err)
		}
	}
	_, err := Load(minimal("PZ_PASSWORD_FILE="+file, "PZ_PASSWORD=sesame"))
	if err == nil || !strings.Contains(err.Error(), "only one of the two") {
		t.Errorf("both: %v", err)
	}
}

// Characters that Windows line ends, docker run --env-file or a word processor add to a value are a
// problem, which names the variable and does not show the value.
func TestStrayCharactersInValuesAreRefused(t *testing.T) {
	added := map[string]struct{ value, says string }{
		"a carriage return":      {"%s\r", "ends with a carriage return"},
		"a line feed":            {"%s\n", "ends with a line feed"},
		"a character within":     {"x\x07%s", "holds the control character U+0007"},
		"a tab":                  {"x\t%s", "holds the control character U+0009"},
		"an end of a C string":   {"%s\x00\x00", "holds the control character U+0000"},
		"an old control":         {"%s\u0085x", "holds the control character U+0085"},
		"a delete":               {"%s\x7f", "holds the control character U+007F"},
		"a byte order mark":      {"\uFEFF%s", "holds the invisible character U+FEFF"},
		"a zero width space":     {"x\u200B%s", "holds the invisible character U+200B"},
		"quotes":                 {`"%s"`, "stands between quotes"},
		"single quotes":          {"'%s'", "stands between quotes"},
		"typographic quotes":     {"“%s”", "stands between quotes"},
		"quotes before the line": {"\"%s\"\r", "ends with a carriage return"},
		"another encoding":       {"\xef\xf0\xee%s", "is not UTF-8"},
	}
	rights := map[string]string{
		"PZ_PASSWORD": "hunter2", "API_TOKEN": "hunter2-hunter2-hunter2",
		"ENDPOINT_0_TOKEN": "hunter2-hunter2-hunter2", "ENDPOINT_0_SECRET": secret, "ENDPOINT_0_NAME": "hunter2",
		"ENDPOINT_0_URL": "https://hunter2/", "PZ_URL": "hunter2", "PZ_CLIENT_TYPE": "hunter2",
		"PZ_CLIENT_GUID": "hunter2", "PZ_PHONE_NUMBER": "101", "PZ_BROADCAST_GROUP": "hunter2",
		"OUTBOX_URL":  "postgres://u:hunter2@127.0.0.1/db",
		"OUTBOX_PATH": "hunter2.db", "LOG_LEVEL": "info", "REPLAY_MAX_AGE": "24h",
	}
	file := filepath.Join(t.TempDir(), "file")
	for variable, right := range rights {
		if _, err := Load(minimal(variable + "=" + right)); err != nil {
			t.Fatal(err)
		}
		for what, a := range added {
			value := strings.Replace(a.value, "%s", right, 1)
			check := func(variable string, err error) {
				t.Helper()
				var wrong *Error
				if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
					t.Errorf("%s with %s: %q", variable, what, err)
					return
				}
				if line := wrong.Problems[0]; !strings.HasPrefix(line, variable+": "+a.says) ||
					strings.Contains(line, "hunter2") || strings.Contains(line, secret) {
					t.Errorf("%s with %s: %s", variable, what, line)
				}
			}
			vars := minimal()
			vars[variable] = value
			_, err := Load(vars)
			check(variable, err)
			if !secretNames.MatchString(variable) {
				continue
			}
			_, err = Secret(vars, variable)
			check(variable, err)
			if variable == "API_TOKEN" {
				_, err = OperatorToken(vars)
				check(variable, err)
			}
			if strings.HasSuffix(value, "\r") || what == "a byte order mark" { // allowed in a file
				continue
			}
			if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			vars[variable], vars[variable+"_FILE"] = "", file
			_, err = Load(vars)
			check(variable+"_FILE", err)
			_, err = Secret(vars, variable)
			check(variable+"_FILE", err)
		}
	}
}

func TestListsMaySpanLines(t *testing.T) {
	c, err := Load(minimal("ENDPOINT_0_HEADERS=X-One=1;\n X-Two=2\n", "ENDPOINT_0_EVENTS=call.*,\n sms.*\n",
		"RETRY_SCHEDULE=1s,\n2s\n"))
	if err != nil {
		t.Fatal(err)
	}
	if e := c.Endpoints[0]; len(e.Headers) != 2 || len(e.Events) != 2 || len(c.RetrySchedule) != 2 {
		t.Errorf("got %+v, %v", e, c.RetrySchedule)
	}
}

func TestEndpointMayHaveTwoSecrets(t *testing.T) {
	c, err := Load(minimal("ENDPOINT_0_SECRET=" + secret + ", " + strings.Replace(secret, "MfKQ", "AfKQ", 1)))
	if err != nil || len(c.Endpoints[0].Secrets) != 2 {
		t.Errorf("got %v, %v", c.Endpoints, err)
	}
}

func TestHeadersAreParsed(t *testing.T) {
	c, err := Load(minimal("ENDPOINT_0_HEADERS=Authorization=Basic abc==; X-Two = 2 ;"))
	if err != nil {
		t.Fatal(err)
	}
	if h := c.Endpoints[0].Headers; h.Get("Authorization") != "Basic abc==" || h.Get("X-Two") != "2" {
		t.Errorf("got %v", h)
	}
}

// A value with semicolons is written between double quotes.
func TestQuotedHeadersMayContainSemicolons(t *testing.T) {
	const list = `Cookie="a=1; theme=dark; q=\"x\\y\"" ; X-Two=2;Accept = "text/html; q=0.5"`
	c, err := Load(minimal("ENDPOINT_0_HEADERS=" + list))
	if err != nil {
		t.Fatal(err)
	}
	h := c.Endpoints[0].Headers
	if len(h) != 3 || h.Get("Cookie") != `a=1; theme=dark; q="x\y"` || h.Get("X-Two") != "2" ||
		h.Get("Accept") != "text/html; q=0.5" {
		t.Errorf("got %q", h)
	}
	var out bytes.Buffer
	if err := c.Describe(&out); err != nil {
		t.Fatal(err)
	}
	const want = "Cookie=(hidden);X-Two=(hidden);Accept=(hidden)\n"
	if shown := out.String(); !strings.Contains(shown, want) || strings.Contains(shown, "theme") {
		t.Errorf("it is shown as %s", shown)
	}
	for _, alone := range []string{
		"Cookie=a=1", "Cookie=a=1;", "X-One=1;Cookie=a=1; ", "Authorization=Basic YTpi==;X-Two=2", "X-Key=abc=;X-Two=2",
	} {
		if _, err := Load(minimal("ENDPOINT_0_HEADERS=" + alone)); err != nil {
			t.Errorf("%s: %v", alone, err)
		}
	}
}

// A list of headers that can be read in two ways is refused, so that no unintended header is sent.
func TestAmbiguousAndReservedHeadersAreRefused(t *testing.T) {
	for list, says := range map[string]string{
		"Cookie=a=1; theme=hunter2":              `the value of Cookie may go on after the semicolon`,
		"cookie=hunter2; theme=dark":             `Cookie="…; …"`,
		"X-One=1;Cookie=a=1;X-Two=hunter2":       "the value of Cookie may go on",
		"Accept=text/html; q=0.5":                "the value of Accept may go on",
		"Forwarded=for=10.0.0.1; proto=https":    "the value of Forwarded may go on",
		"X-Session=id=hunter2; path=/":           "the value of X-Session may go on",
		"Cookie=a=1; HttpOnly":                   "the value of Cookie may go on",
		`Cookie="a=1; theme=hunter2`:             "the value of Cookie has a double quote that does not end it",
		`Cookie="a=1"; theme="hunter2" x`:        "the value of Theme has a double quote that does not end it",
		"My Header=hunter2":                      "part 1 is not",
		"Х-Ключ=hunter2":                         "part 1 is not",
		"=hunter2":                               "part 1 is not",
		"X-One=1;hunter2":                        "part 2 is not",
		"X-One=hunter2\nX-Two=2":                 "the value of X-One holds a control character",
		"X-One=hunter2\r\nX-Two: 2":              "the value of X-One holds a control character",
		"Webhook-Signature=hunter2":              "must not set Webhook-Signature",
		"Accept-Encoding=gzip":                   "must not set Accept-Encoding",
		"Proxy-Authorization=hunter2":            "must not set Proxy-Authorization",
		"Expect=100-continue":                    "must not set Expect",
		"Keep-Alive=timeout=5":                   "must not set Keep-Alive",
		`Content-Length="5"`:                     "must not set Content-Length",
		"Authorization=hunter2;Host=crm.example": "must not set Host",
	} {
		_, err := Load(minimal("ENDPOINT_0_HEADERS=" + list))
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
			t.Errorf("%q: got %v", list, err)
			continue
		}
		if line := wrong.Problems[0]; !strings.HasPrefix(line, "ENDPOINT_0_HEADERS: ") ||
			!strings.Contains(line, says) || strings.Contains(line, "hunter2") {
			t.Errorf("%q: %s", list, line)
		}
	}
}

// Spaces and letters of other alphabets in an address are escaped; existing escapes stay as they
// are.
func TestEndpointAddressIsEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"https://crm.example/hook?name=Ivan Petrov": "https://crm.example/hook?name=Ivan%20Petrov",
		"https://crm.example/my hook/":              "https://crm.example/my%20hook/",
		" https://crm.example/hook?a=b  ":           "https://crm.example/hook?a=b",
		"https://crm.example/a%2Fb c?d=%2F e":       "https://crm.example/a%2Fb%20c?d=%2F%20e",
		"https://crm.example/крюк?имя=Иван": "https://crm.example/%D0%BA%D1%80%D1%8E%D0%BA?" +
			"%D0%B8%D0%BC%D1%8F=%D0%98%D0%B2%D0%B0%D0%BD",
		`https://crm.example/a?b={"c"}|<d>`:                "https://crm.example/a?b=%7B%22c%22%7D%7C%3Cd%3E",
		"https://crm.example/hook?a=1&b[]=2&c=x+y%20z;d=~": "https://crm.example/hook?a=1&b[]=2&c=x+y%20z;d=~",
		"https://u:p%20w@crm.example:8443?x":               "https://u:p%20w@crm.example:8443?x",
		"http://my_crm:8080/hook":                          "http://my_crm:8080/hook",
		"http://[::1]:9000/hook":                           "http://[::1]:9000/hook",
		"https://црм.рф/крюк":                              "https://xn--l1ahr.xn--p1ai/%D0%BA%D1%80%D1%8E%D0%BA",
		"https://ЦРМ.РФ:8443":                              "https://xn--l1ahr.xn--p1ai:8443",
		"https://bücher.example/":                          "https://xn--bcher-kva.example/",
	} {
		c, err := Load(minimal("ENDPOINT_0_URL=" + in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if got := c.Endpoints[0].URL; got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	for in, says := range map[string]string{
		"https://crm .example/hunter2":          `has " " in the name of the host`,
		"https://crm<1>.example/hunter2":        "has a name of the host that there cannot be",
		"https://us er:hunter2@crm.example/":    "has a character in the user or the password",
		"https://crm.example/%hunter2":          "has a % that no two hexadecimal digits follow",
		"https://u:%hunter2@crm.example/":       "has a % that no two hexadecimal digits follow",
		"https://crm.example/a?token=b#hunter2": "has a #",
		"https://crm.example/#/hunter2":         "has a #",
		"https://crm:80a/hunter2":               "must be an address that begins with https:// or http://",
		"https:/crm.example/hunter2":            "must be an address that begins with https:// or http://",
		"https://црм_.рф/hunter2":               "has a name of the host that there cannot be",
	} {
		_, err := Load(minimal("ENDPOINT_0_URL=" + in))
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
			t.Errorf("%s: got %v", in, err)
			continue
		}
		line := wrong.Problems[0]
		if !strings.HasPrefix(line, "ENDPOINT_0_URL: "+says) || strings.Contains(line, "hunter2") {
			t.Errorf("%s: %s", in, line)
		}
	}
}

func TestDescribeHidesSecrets(t *testing.T) {
	c, err := Load(minimal("PZ_PASSWORD=hunter2", "API_TOKEN=hunter2-hunter2-hunter2",
		"ENDPOINT_0_TOKEN=hunter2hunter2hunter2",
		"ENDPOINT_0_HEADERS=Authorization=hunter2", "ENDPOINT_0_URL=https://u:hunter2@crm.example/hunter2?t=hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Describe(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "hunter2") || strings.Contains(out.String(), secret[6:]) {
		t.Errorf("a secret is shown:\n%s", out.String())
	}
	for _, want := range []string{"PZ_URL", "https://crm.example/", "Authorization=(hidden)", "RETRY_SCHEDULE"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is not shown:\n%s", want, out.String())
		}
	}
}

// Durations that could overflow and ports that cannot be dialled are refused.
func TestValuesOutOfBoundsAreRefused(t *testing.T) {
	for setting, says := range map[string]string{
		"ENDPOINT_0_URL=http://crm:99999/": "ENDPOINT_0_URL: has the port 99999",
		"ENDPOINT_0_URL=http://crm:0/":     "ENDPOINT_0_URL: has the port 0",
		"ORDER_HOLD=2562047h":              "ORDER_HOLD: must be at most 87600h0m0s, ten years",
		"RETRY_SCHEDULE=1s,2562047h":       "RETRY_SCHEDULE: must be at most",
		"OUTBOX_RETENTION=1000000h":        "OUTBOX_RETENTION: must be at most",
	} {
		if _, err := Load(minimal(setting)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", setting, err)
		}
	}
	if _, err := Load(minimal("OUTBOX_RETENTION=87600h", "ENDPOINT_0_URL=http://crm:65535/")); err != nil {
		t.Error(err)
	}
}

// .env.example contains every variable with its default and a line of explanation, and no other
// variable. Unchanged, it is a valid configuration.
func TestEnvExampleMatchesTheCode(t *testing.T) {
	content, err := os.ReadFile("../../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for name := range variableNames(text{}) {
		want[name] = ""
	}
	for name := range variableNames(endpointText{}) {
		want["ENDPOINT_0_"+name] = ""
	}
	for _, f := range params(text{}) {
		want[f.Key] = f.DefaultValue
	}
	for _, f := range params(endpointText{}) {
		want["ENDPOINT_0_"+f.Key] = f.DefaultValue
	}
	variable := regexp.MustCompile(`^(#?)([A-Z][A-Z0-9_]*)=(.*)$`)
	set := map[string]string{}
	previous := ""
	for line := range strings.SplitSeq(string(content), "\n") {
		if m := variable.FindStringSubmatch(line); m != nil {
			def, known := want[m[2]]
			switch {
			case !known:
				t.Errorf("%s is in the file and not in the code, or twice in the file", m[2])
			case m[1] == "#" && m[3] != def:
				t.Errorf("%s: the file says %q, the code %q", m[2], m[3], def)
			case !strings.HasPrefix(previous, "# "):
				t.Errorf("%s has no line that explains it", m[2])
			}
			if m[1] == "" {
				set[m[2]] = m[3]
			}
			delete(want, m[2])
		}
		previous = line
	}
	for name := range maps.Keys(want) {
		t.Errorf("%s is in the code and not in the file", name)
	}
	c, err := Load(set)
	if err != nil {
		t.Fatal(err)
	}
	warnings := strings.Join(c.Warnings(), "\n")
	for _, name := range []string{"ENDPOINT_0_SECRET", "API_TOKEN"} {
		if !strings.Contains(warnings, name+" is a sample") {
			t.Errorf("nobody is warned of the example's %s: %q", name, warnings)
		}
	}
}

// Every secret, token and password that can be copied from this repository causes a warning.
func TestEverySampleSecretCausesAWarning(t *testing.T) {
	patterns := map[string]*regexp.Regexp{ // by the variable to which a match is assigned
		"ENDPOINT_0_SECRET": regexp.MustCompile(`whsec_[A-Za-z0-9+/]{32,}=*`),
		"API_TOKEN": regexp.MustCompile(`(?:API_TOKEN|ENDPOINT_[0-9]_TOKEN)(?:=|": ")` +
			`([!-~]{16,}?)(?:["'` + "`" + `;, ]|$)`),
		"ENDPOINT_0_TOKEN": regexp.MustCompile(`Bearer ([A-Za-z0-9-]{16,})`),
		"PZ_PASSWORD":      regexp.MustCompile(`^\s*#?PZ_PASSWORD=(\S+)$`),
	}
	found := map[string]int{}
	ownSecret := "whsec_" + strings.Repeat("AbCd", 8)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "data"):
			return filepath.SkipDir
		// The user's own configuration, and tests, from which users do not copy.
		case d.IsDir() || d.Name() == ".git" || d.Name() == ".env" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil || !utf8.Valid(content) {
			return err
		}
		for line := range strings.SplitSeq(string(content), "\n") {
			for variable, pattern := range patterns {
				for _, m := range pattern.FindAllStringSubmatch(line, -1) {
					value := m[len(m)-1]
					if strings.Contains(value, "$") { // a shell variable
						continue
					}
					found[variable]++
					c, err := Load(minimal("ENDPOINT_0_SECRET="+ownSecret, variable+"="+value))
					if err == nil && !strings.Contains(strings.Join(c.Warnings(), "\n"), variable+" is a sample") {
						t.Errorf("%s has %s for %s, and nobody is warned of it", path, value, variable)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found["ENDPOINT_0_SECRET"] < 2 || found["API_TOKEN"] < 4 || found["ENDPOINT_0_TOKEN"] < 1 ||
		found["PZ_PASSWORD"] < 2 {
		t.Errorf("it has found %v", found)
	}
	own := minimal("ENDPOINT_0_SECRET="+ownSecret, "API_TOKEN="+strings.Repeat("own", 8), "PZ_PASSWORD=own")
	if c, err := Load(own); err != nil || len(c.Warnings()) > 0 {
		t.Errorf("of what is nowhere else: %v, %v", err, c.Warnings())
	}
}

func TestDotEnvExtendsTheEnvironment(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("PZ_URL", "of-the-environment")
	write := func(content string) {
		if err := os.WriteFile(".env", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("PZ_URL=of-the-file\n# a comment\nPZ_PASSWORD='a b#c'\n")
	vars, err := Environment()
	if err != nil || vars["PZ_URL"] != "of-the-environment" || vars["PZ_PASSWORD"] != "a b#c" {
		t.Errorf("got %q, %q, %v", vars["PZ_URL"], vars["PZ_PASSWORD"], err)
	}
	write("\uFEFFPZ_PASSWORD=of Windows\r\n")
	if vars, err := Environment(); err != nil || vars["PZ_PASSWORD"] != "of Windows" {
		t.Errorf("got %q, %v", vars["PZ_PASSWORD"], err)
	}
	write("PZ_URL=pbx\n\nhunter2 is no variable\nLOG_LEVEL=debug\n")
	_, err = Environment()
	if err == nil || !strings.Contains(err.Error(), "line 3") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a broken file: %v", err)
	}
}

// TZ in .env sets the time zone of the process, as TZ in the environment does.
func TestTimeZoneIsReadFromDotEnv(t *testing.T) {
	before := time.Local
	t.Cleanup(func() { time.Local = before })
	t.Setenv("TZ", "")
	t.Chdir(t.TempDir())
	if err := os.Unsetenv("TZ"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(".env", []byte("TZ=Asia/Yekaterinburg\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Environment(); err != nil {
		t.Fatal(err)
	}
	if got := time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC).Local().Format("15:04"); got != "15:00" {
		t.Errorf("ten o'clock is %s", got)
	}
}
