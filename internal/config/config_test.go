package config

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	token  = "0123456789abcdef"
)

// minimal is the least that a bridge needs, changed by "NAME=value" and, to unset, "NAME".
func minimal(changes ...string) map[string]string {
	vars := map[string]string{
		"PZ_URL": "pbx", "ENDPOINT_0_NAME": "crm", "ENDPOINT_0_URL": "https://crm.example/hook?token=t0psecret", "ENDPOINT_0_SECRET": secret,
	}
	for _, c := range changes {
		name, value, set := strings.Cut(c, "=")
		if vars[name] = value; !set {
			delete(vars, name)
		}
	}
	return vars
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
		c.ShutdownGrace != 20*time.Second || c.LogLevel != slog.LevelInfo || c.LogFormat != "json" {
		t.Errorf("got %+v", c)
	}
	e := c.Endpoints[0]
	if c.OutboxMaxBytes != 1<<30 || e.Rate != 0 {
		t.Errorf("%d bytes, rate %v", c.OutboxMaxBytes, e.Rate)
	}
	if e.Timeout != 15*time.Second || len(e.Secrets) != 1 || len(e.Secrets[0]) != 24 || len(e.Events) != 3 || e.Token != "" {
		t.Errorf("endpoint: %+v", e)
	}
}

func TestSizesAndRates(t *testing.T) {
	c, err := Load(minimal("OUTBOX_MAX_BYTES=500 MB", "ENDPOINT_0_RATE=0.5"))
	if err != nil {
		t.Fatal(err)
	}
	if c.OutboxMaxBytes != 500_000_000 || c.Endpoints[0].Rate != 0.5 {
		t.Errorf("%d bytes, rate %v", c.OutboxMaxBytes, c.Endpoints[0].Rate)
	}
}

// What a process of 32 bits could not map is refused before the file has grown so large; the
// default is not.
func TestLargestOutbox(t *testing.T) {
	for size, fits := range map[string]bool{"1GiB": true, "1073741825": strconv.IntSize == 64, "2GiB": strconv.IntSize == 64, "1EiB": false} {
		_, err := Load(minimal("OUTBOX_MAX_BYTES=" + size))
		if (err == nil) != fits || err != nil && !strings.Contains(err.Error(), "OUTBOX_MAX_BYTES: must be at most") {
			t.Errorf("%s: %v", size, err)
		}
	}
}

func TestServerAddress(t *testing.T) {
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

// Each case is one mistake; the sentence must begin with the variable and say what is right, and show no secret.
func TestMistakes(t *testing.T) {
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
		{"PZ_TLS_LEGACY=true", "PZ_TLS_LEGACY", "PZ_TLS_FINGERPRINT"},
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
		{"CALL_FROM=internal;+7*", "CALL_FROM", "can match no number"},
		{"CALL_TO=+7*,,internal", "CALL_TO", "without an empty part"},
		{"LISTEN_ADDR=8080", "LISTEN_ADDR", "host:port"},
		{"LISTEN_ADDR=:http", "LISTEN_ADDR", "host:port"},
		{"API_TOKEN=hunter2", "API_TOKEN", "16 characters"},
		{"API_TOKEN=hunter2 hunter2 hunter2", "API_TOKEN", "without spaces"},
		{"API_TOKEN_FILE=" + empty, "API_TOKEN_FILE", "empty"},
		{"API_TOKEN_FILE=" + dir + "/none", "API_TOKEN_FILE", "no such file"},
		{"LOG_LEVEL=loud", "LOG_LEVEL", "debug, info, warn or error"},
		{"LOG_FORMAT=xml", "LOG_FORMAT", "json or text"},
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

func TestAllMistakesBehindAGap(t *testing.T) {
	_, err := Load(minimal("ENDPOINT_2_NAME=crm", "ENDPOINT_2_URL=ftp://x", "ENDPOINT_2_TOKEN=short", "ENDPOINT_4_NAME=another"))
	for _, want := range []string{
		"ENDPOINT_1_NAME: is missing", "ENDPOINT_2_NAME: is the same as ENDPOINT_0_NAME", "ENDPOINT_2_URL: must be", "ENDPOINT_2_SECRET: ",
		"ENDPOINT_2_TOKEN: ", "ENDPOINT_4_URL: ",
	} {
		if err == nil || strings.Count(err.Error(), "\n  "+want) != 1 {
			t.Errorf("%q is not once in: %v", want, err)
		}
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	vars := minimal("PZ_URL", "LOG_LEVEL=loud", "API_TOKEN="+token, "ENDPOINT_0_SECRET=nothing",
		"ENDPOINT_1_NAME=crm", "ENDPOINT_1_URL=nothing", "ENDPOINT_1_SECRET="+secret, "ENDPOINT_1_TOKEN="+token, "ENDPOINT_1_TYPO=x")
	_, err := Load(vars)
	for _, want := range []string{
		"PZ_URL: ", "LOG_LEVEL: ", "ENDPOINT_0_SECRET: ", "ENDPOINT_1_NAME: is the same as ENDPOINT_0_NAME", "ENDPOINT_1_URL: ",
		"ENDPOINT_1_TOKEN: is the same as API_TOKEN", "ENDPOINT_1_TYPO: ",
	} {
		if err == nil || !strings.Contains(err.Error(), "\n  "+want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestTLSIsForWSS(t *testing.T) {
	sum := strings.Repeat("AB:", 31) + "AB"
	if _, err := Load(minimal("PZ_TLS_FINGERPRINT=" + sum)); err == nil || !strings.Contains(err.Error(), "PZ_TLS_FINGERPRINT: has a meaning only") {
		t.Errorf("ws: %v", err)
	}
	c, err := Load(minimal("PZ_URL=wss://pbx", "PZ_TLS_LEGACY=1", "PZ_TLS_FINGERPRINT="+sum))
	if err != nil || !c.TLSLegacy || len(c.TLSFingerprint) != 32 || c.TLSFingerprint[0] != 0xab {
		t.Errorf("wss: %+v, %v", c, err)
	}
}

func TestSecretsFromFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for content, want := range map[string]string{"sesame\n": "sesame", "sesame\r\n": "sesame", "sesame": "sesame", " sesame \n\n": " sesame \n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(minimal("PZ_PASSWORD_FILE=" + file))
		if err != nil || c.Identity.Password != want {
			t.Errorf("%q: got %q, %v", content, c.Identity.Password, err)
		}
	}
	if _, err := Load(minimal("PZ_PASSWORD_FILE="+file, "PZ_PASSWORD=sesame")); err == nil || !strings.Contains(err.Error(), "only one of the two") {
		t.Errorf("both: %v", err)
	}
}

func TestSecretsWhileRotating(t *testing.T) {
	c, err := Load(minimal("ENDPOINT_0_SECRET=" + secret + ", " + strings.Replace(secret, "MfKQ", "AfKQ", 1)))
	if err != nil || len(c.Endpoints[0].Secrets) != 2 {
		t.Errorf("got %v, %v", c.Endpoints, err)
	}
}

func TestHeaders(t *testing.T) {
	c, err := Load(minimal("ENDPOINT_0_HEADERS=Authorization=Basic abc==; X-Two = 2 ;"))
	if err != nil {
		t.Fatal(err)
	}
	if h := c.Endpoints[0].Headers; h.Get("Authorization") != "Basic abc==" || h.Get("X-Two") != "2" {
		t.Errorf("got %v", h)
	}
}

func TestDescribeHidesSecrets(t *testing.T) {
	c, err := Load(minimal("PZ_PASSWORD=hunter2", "API_TOKEN=hunter2-hunter2-hunter2", "ENDPOINT_0_TOKEN=hunter2hunter2hunter2",
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

// What cannot be computed with, or dialled, is refused.
func TestBounds(t *testing.T) {
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

// .env.example has every variable with its default and a line that explains it, and nothing else; as it stands it is a configuration that works.
func TestEnvExample(t *testing.T) {
	content, err := os.ReadFile("../../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for name := range names(text{}) {
		want[name] = ""
	}
	for name := range names(endpointText{}) {
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
	if warnings := strings.Join(c.Warnings(), "\n"); !strings.Contains(warnings, "ENDPOINT_0_SECRET") {
		t.Errorf("nobody is warned of the example's secret: %q", warnings)
	}
}

func TestDotEnv(t *testing.T) {
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
	if _, err := Environment(); err == nil || !strings.Contains(err.Error(), "line 3") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a broken file: %v", err)
	}
}

// The time zone of .env is the process's, as that of the environment is.
func TestZone(t *testing.T) {
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
