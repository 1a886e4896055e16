package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/bolt"
)

// guides are the documents for people.
func guides(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("docs/*.md")
	if err != nil || len(list) < 10 {
		t.Fatalf("%v, %v", list, err)
	}
	return append(list, "README.md", "README.ru.md")
}

// snippet gives the first block of a language in a guide.
func snippet(t *testing.T, guide, language string) string {
	t.Helper()
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("%s has no %s", guide, language)
	}
	return string(block[1])
}

// The functions of the developers' guide accept a valid signature and refuse others. Each is run as
// the guide prints it; a language that is not installed is skipped.
func TestGuideVerifiesSignatures(t *testing.T) {
	const guide = "docs/developers.md"
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"id":"1","text":"Привет"}`
	signed := func(at time.Time) map[string]string {
		signature, err := verifier.Sign("msg_1", at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{
			"webhook-id":        "msg_1",
			"webhook-timestamp": strconv.FormatInt(at.Unix(), 10),
			"webhook-signature": "v1,AAAA " + signature,
		}
	}
	type request struct {
		Secret  string            `json:"secret"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
	}
	requests := []request{
		{secret, signed(time.Now()), body},
		{secret, signed(time.Now()), body + " "},
		{secret, signed(time.Now().Add(-time.Hour)), body},
		{secret, map[string]string{}, body},
		{"whsec_" + strings.Repeat("A", 32), signed(time.Now()), body},
	}
	const want = "true false false false false"
	input, err := json.Marshal(requests)
	if err != nil {
		t.Fatal(err)
	}
	for language, c := range map[string]struct {
		program, file, before, after string
		args                         []string
	}{
		"go": {"go", "main.go", `package main
import ("crypto/hmac"; "crypto/sha256"; "encoding/base64"; "encoding/json"; "fmt"; "net/http"; "os")
import ("strconv"; "strings"; "time")
`, `
func main() {
	var list []struct { Secret string; Headers map[string]string; Body string }
	_ = json.NewDecoder(os.Stdin).Decode(&list)
	for _, r := range list {
		h := http.Header{}
		for k, v := range r.Headers { h.Set(k, v) }
		fmt.Print(verify(r.Secret, h, []byte(r.Body)), " ")
	}
}`, []string{"run"}},
		"js": {"node", "main.js", "", `
let input = ""; process.stdin.on("data", (d) => input += d).on("end", () => {
  console.log(JSON.parse(input).map((r) => verify(r.secret, r.headers, Buffer.from(r.body))).join(" "));
});`, nil},
		"python": {"python3", "main.py", "", `
import json, sys
print(*(str(verify(r["secret"], r["headers"], r["body"].encode())).lower() for r in json.load(sys.stdin)))`, nil},
		"php": {"php", "main.php", "<?php\n", `
echo implode(' ', array_map(function ($r) {
    $_SERVER = [];
    foreach ($r['headers'] as $k => $v) $_SERVER['HTTP_' . strtoupper(str_replace('-', '_', $k))] = $v;
    return verify($r['secret'], $r['body']) ? 'true' : 'false';
}, json_decode(stream_get_contents(STDIN), true)));`, nil},
	} {
		t.Run(language, func(t *testing.T) {
			program, err := exec.LookPath(c.program)
			if err != nil {
				t.Skipf("there is no %s on this machine", c.program)
			}
			file := filepath.Join(t.TempDir(), c.file)
			if err := os.WriteFile(file, []byte(c.before+snippet(t, guide, language)+c.after), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, append(c.args, file)...)
			cmd.Stdin = bytes.NewReader(input)
			out, err := cmd.CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != want {
				t.Errorf("it says %q, want %q (%v)", got, want, err)
			}
		})
	}
}

// The code of the n8n recipe accepts a valid signature and refuses others, run as n8n runs it.
func TestN8nRecipeVerifiesSignatures(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("there is no node on this machine")
	}
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"type":"call.completed","text":"Привет"}`
	now := time.Now()
	signature, err := verifier.Sign("msg_1", now, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	program := `
const recipe = async function ($input, $env) {` + snippet(t, "docs/recipes.md", "js") + `};
const run = (body, sent) => recipe.call(
  { helpers: { getBinaryDataBuffer: async (item, name) => item === 0 && name === "data" ? Buffer.from(body) : null } },
  { first: () => ({ json: { headers: {
    "webhook-id": "msg_1", "webhook-timestamp": String(sent), "webhook-signature": process.env.SIGNATURE,
  } } }) },
  { PZBRIDGE_SECRET: process.env.SECRET },
).then((items) => items[0].json.type, (e) => e.message);
const { BODY, SENT } = process.env;
(async () => console.log(
  await run(BODY, SENT), "|", await run(BODY + " ", SENT), "|", await run(BODY, SENT - 3600),
))();`
	cmd := exec.Command(node, "-e", program)
	sent := strconv.FormatInt(now.Unix(), 10)
	cmd.Env = append(os.Environ(), "SECRET="+secret, "BODY="+body, "SIGNATURE="+signature, "SENT="+sent)
	out, err := cmd.CombinedOutput()
	const want = "call.completed | the signature is wrong | the signature is wrong"
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("it says %q (%v)", got, err)
	}
}

// The n8n workflow has the code of the recipe, its connections lead to nodes, and what it refuses
// is not answered with 2xx.
func TestN8nWorkflowIsThatOfTheRecipe(t *testing.T) {
	content, err := os.ReadFile("docs/n8n.json")
	if err != nil {
		t.Fatal(err)
	}
	var workflow struct {
		Nodes []struct {
			Name, Type, OnError string
			Parameters          struct {
				JSCode  string
				Options struct {
					RawBody      bool
					ResponseCode int
				}
			}
		}
		Connections map[string]struct {
			Main [][]struct{ Node string }
		}
	}
	if err = json.Unmarshal(content, &workflow); err != nil {
		t.Fatal(err)
	}
	codes := map[string]int{} // of the nodes that answer
	for _, node := range workflow.Nodes {
		codes[node.Name] = node.Parameters.Options.ResponseCode
		switch {
		case strings.HasSuffix(node.Type, ".webhook") && !node.Parameters.Options.RawBody:
			t.Error("the body is not raw, so that no signature can be right")
		case strings.HasSuffix(node.Type, ".code") &&
			(node.Parameters.JSCode != snippet(t, "docs/recipes.md", "js") || node.OnError != "continueErrorOutput"):
			t.Errorf("%s is not the code of the recipe, or its error has no output", node.Name)
		}
	}
	for from, outputs := range workflow.Connections {
		for _, output := range outputs.Main {
			for _, to := range output {
				if _, exists := codes[to.Node]; !exists {
					t.Errorf("%s leads to %q, which there is not", from, to.Node)
				}
			}
		}
	}
	refused := workflow.Connections["Verify the signature"].Main[1][0].Node
	if codes[refused] != 401 || codes["Taken"] != 204 {
		t.Errorf("the answers are %v", codes)
	}
}

// The operators' guide and its list of log messages have every warning and error that the log can
// hold, every code with which a server closes a connection, and the error messages of a failed
// start.
func TestOperatorsGuideHasEveryLogMessage(t *testing.T) {
	guide := ""
	for _, part := range []string{"docs/operators.md", "docs/log.md"} {
		text, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		guide += string(text)
	}
	wanted := []string{
		bolt.ErrInUse.Error(), bolt.ErrNotOutbox.Error(), "the file is of a newer version of pzbridge",
		"the API cannot listen on LISTEN_ADDR",
	}
	for code := pz.CloseLicenceUnchecked; code <= pz.CloseSameGUID; code++ {
		wanted = append(wanted, strconv.Itoa(code))
	}
	// These do not run in the bridge, nor does what ends in test.
	outside := []string{"internal/demo", "internal/cli"}
	split := regexp.MustCompile(`"\s*\+\s*"`) // in a text that is written on two lines
	line := regexp.MustCompile(`(?:\.(?:Warn|Error|Failed)\(|slog\.Level(?:Warn|Error), )"([^"]+)"`)
	found := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains(outside, path) || strings.HasSuffix(path, "test")):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		for _, m := range line.FindAllStringSubmatch(split.ReplaceAllString(string(source), ""), -1) {
			found++
			wanted = append(wanted, m[1])
		}
		return err
	})
	if err != nil || found < 25 {
		t.Fatalf("%d lines of the log were found, %v", found, err)
	}
	for _, want := range wanted {
		if !strings.Contains(guide, want) {
			t.Errorf("the guide does not say what to do about %q", want)
		}
	}
}

// The Go program of the guide to webhooks accepts a signed webhook and refuses others.
func TestWebhooksGuideVerifiesSignatures(t *testing.T) {
	// Within this module, whose test dependency the library is.
	folder, err := os.MkdirTemp(".", "readme-snippet-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	program := `package main
import ("fmt"; "io"; "net/http"; "net/http/httptest"; "os"; "strings"; "time"
standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go")
` + snippet(t, "docs/webhooks.md", "go") + `
func main() {
	webhook, _ := standardwebhooks.NewWebhook(os.Getenv("WEBHOOK_SECRET"))
	signature, _ := webhook.Sign("1", time.Now(), []byte("signed"))
	for _, body := range []string{"signed", "other"} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("webhook-id", "1")
		r.Header.Set("webhook-timestamp", fmt.Sprint(time.Now().Unix()))
		r.Header.Set("webhook-signature", signature)
		w := httptest.NewRecorder()
		takeWebhook(w, r)
		fmt.Println(w.Code)
	}
}`
	if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "run", "./"+folder)
	cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+secret)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "signed\n200\n401\n" {
		t.Errorf("%s (%v)", out, err)
	}
}

// A running bridge answers every curl command of the guides with 200.
func TestCurlCommandsOfTheGuidesWork(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl on this machine")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	vars := variables(t, server, newReceiver(t, nil),
		"API_TOKEN=operator-token-0123456789", "ENDPOINT_0_TOKEN=crm-token-0123456789")
	start(t, vars)
	eventually(t, "the bridge is connected", func() bool {
		out, err := exec.Command("curl", "-fsS", "http://"+vars["LISTEN_ADDR"]+"/readyz").Output()
		return err == nil && strings.Contains(string(out), "ready")
	})
	curl := regexp.MustCompile(`(?m)^    (curl (?:.*\\\n)*.*)$`)
	run := 0
	for _, guide := range guides(t) {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range curl.FindAllStringSubmatch(string(text), -1) {
			run++
			command := strings.ReplaceAll(line[1], "localhost:8080", vars["LISTEN_ADDR"])
			cmd := exec.Command("sh", "-c", command+" -sS -w ' %{http_code}'")
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "API_TOKEN=operator-token-0123456789", "TOKEN=crm-token-0123456789")
			if out, err := cmd.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), " 200") {
				t.Errorf("%s: %s\n%v\n%s", guide, line[1], err, out)
			}
		}
	}
	if run < 5 {
		t.Errorf("only %d were found", run)
	}
}

// The files, variables and commands that the guides name exist.
func TestGuidesNameExistingThings(t *testing.T) {
	example, err := os.ReadFile(".env.example")
	if err != nil {
		t.Fatal(err)
	}
	help := start(t, nil, "help")
	_ = help.exitCode()
	known := string(example) + " PZBRIDGE_DOMAIN PZBRIDGE_SECRET PZBRIDGE_TOKEN PZBRIDGE_URL"
	variable := regexp.MustCompile(`\b(?:PZ|API|OUTBOX|ENDPOINT_(?:<n>|0)|ROUTING|RINGING|METRICS|REPLAY|RETRY|ORDER|` +
		`LISTEN|COMMAND|SHUTDOWN|LOG|PHONE|INTERNAL|ALERT|BACKUP)_[A-Z_]+[A-Z]`)
	called := regexp.MustCompile("(?:`|bridge /)pzbridge ([a-z-]+)|--rm bridge ([a-z-]+)")
	for _, guide := range guides(t) {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range variable.FindAllString(string(text), -1) {
			if !strings.Contains(known, strings.Replace(name, "<n>", "0", 1)) {
				t.Errorf("%s names the variable %s, which there is not", guide, name)
			}
		}
		for _, command := range called.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(help.log.String(), "\n  "+command[1]+command[2]+" ") {
				t.Errorf("%s names the command %q", guide, command[0])
			}
		}
	}
}

// The guides to the settings list every variable with its default, and no other.
func TestSettingsListEveryVariable(t *testing.T) {
	example, err := os.ReadFile(".env.example")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"TZ": ""} // which is no variable of this program alone
	line := regexp.MustCompile(`(?m)^(#?)([A-Z][A-Z0-9_]+)=(.*)$`)
	for _, m := range line.FindAllStringSubmatch(string(example), -1) {
		name := strings.Replace(m[2], "ENDPOINT_0_", "ENDPOINT_<n>_", 1)
		want[name] = ""
		if m[1] == "#" { // others show a value for the rehearsal
			want[name] = m[3]
		}
	}
	row := regexp.MustCompile("(?m)^\\| `([A-Z_]+(?:<n>[A-Z_]+)?)` \\| (?:`([^`]*)`)? \\|")
	for _, guide := range []string{"docs/settings.md", "docs/settings.ru.md"} {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, m := range row.FindAllStringSubmatch(string(text), -1) {
			got[m[1]] = m[2]
		}
		for name, value := range want {
			if listed, there := got[name]; !there || listed != value {
				t.Errorf("%s: %s has the default %q, and should have %q", guide, name, listed, value)
			}
		}
		for name := range got {
			if _, there := want[name]; !there {
				t.Errorf("%s lists %s, which there is not", guide, name)
			}
		}
	}
}

// heading is a heading of a guide; those within blocks of code are none.
var heading = regexp.MustCompile(`(?m)^(#+) (.*)$`)

// Links lead to files that exist, and to headings in them.
func TestGuidesLinkToExistingPlaces(t *testing.T) {
	anchorless := regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	anchors := func(file string) (list []string) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range heading.FindAllStringSubmatch(string(text), -1) {
			anchor := anchorless.ReplaceAllString(strings.ToLower(h[2]), "")
			list = append(list, strings.ReplaceAll(anchor, " ", "-"))
		}
		return list
	}
	link := regexp.MustCompile(`\]\(([^):#]*)(?:#([^)]*))?\)`)
	for _, guide := range guides(t) {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range link.FindAllStringSubmatch(string(text), -1) {
			target := guide
			if l[1] != "" {
				target = filepath.Join(filepath.Dir(guide), l[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", guide, l[1], err)
			} else if l[2] != "" && !slices.Contains(anchors(target), l[2]) {
				t.Errorf("%s links to %s, which has no heading %q", guide, target, l[2])
			}
		}
	}
}

// A translation has the headings, the commands, the variables and the quoted texts of its original,
// in its order; comments of a command and what is written in Cyrillic may differ.
func TestTranslationsSayTheSame(t *testing.T) {
	heads := func(text string) (levels []string) {
		for _, h := range heading.FindAllStringSubmatch(text, -1) {
			levels = append(levels, h[1])
		}
		return levels
	}
	command := regexp.MustCompile(`(?m)^    ([^#\s].*)$`)
	quoted := regexp.MustCompile("`[^`\n]+`")
	foreign := regexp.MustCompile(`[^\x00-\x7F…]`)
	shared := func(pattern *regexp.Regexp, text string) (list []string) {
		for _, found := range pattern.FindAllString(text, -1) {
			if !foreign.MatchString(found) && !strings.Contains(found, "PZ_PASSWORD=") &&
				!strings.Contains(found, "<the machine>") {
				list = append(list, strings.TrimSpace(found))
			}
		}
		return list
	}
	translations := 0
	for _, russian := range guides(t) {
		original, translated := strings.CutSuffix(russian, ".ru.md")
		if !translated {
			continue
		}
		translations++
		en, err := os.ReadFile(original + ".md")
		if err != nil {
			t.Fatal(err)
		}
		ru, err := os.ReadFile(russian)
		if err != nil {
			t.Fatal(err)
		}
		if want, got := heads(string(en)), heads(string(ru)); !slices.Equal(want, got) {
			t.Errorf("%s has the headings %v, and its original %v", russian, got, want)
		}
		if want, got := shared(command, string(en)), shared(command, string(ru)); !slices.Equal(want, got) {
			t.Errorf("%s has the commands\n%s\nand its original\n%s", russian, strings.Join(got, "\n"),
				strings.Join(want, "\n"))
		}
		// The order of words differs.
		want, got := shared(quoted, string(en)), shared(quoted, string(ru))
		for _, q := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(want, got)))) {
			if slices.Contains(want, q) != slices.Contains(got, q) {
				t.Errorf("%s: %s is in one of the two only", russian, q)
			}
		}
	}
	if translations < 4 {
		t.Errorf("there are only %d", translations)
	}
}

// The guides name the token with which the rehearsal's dashboard is opened.
func TestGuidesNameTheTokenOfTheRehearsal(t *testing.T) {
	example, err := os.ReadFile(".env.example")
	if err != nil {
		t.Fatal(err)
	}
	token := regexp.MustCompile(`(?m)^API_TOKEN=(\S+)$`).FindSubmatch(example)
	if token == nil {
		t.Fatal("there is none in .env.example")
	}
	for _, guide := range []string{"README.md", "README.ru.md", "docs/first-steps.md", "docs/first-steps.ru.md"} {
		text, err := os.ReadFile(guide)
		if err != nil || !bytes.Contains(text, token[1]) {
			t.Errorf("%s does not name %s (%v)", guide, token[1], err)
		}
	}
}

// The README can be read in five minutes.
func TestReadmeIsShort(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if words := len(strings.Fields(string(text))); words > 900 {
		t.Errorf("it has %d words, and should have at most 900", words)
	}
	if pictures := strings.Count(string(text), "!["); pictures > 2 {
		t.Errorf("it has %d pictures", pictures)
	}
}

// Prometheus accepts the configuration of the operators' guide.
func TestPromtoolAcceptsTheScrapeSnippet(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool on this machine")
	}
	rules, err := os.ReadFile("docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	for file, content := range map[string]string{
		config:                           snippet(t, "docs/operators.md", "yaml"),
		filepath.Join(dir, "alerts.yml"): string(rules),
	} {
		if err = os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(promtool, "check", "config", config).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "rules found") {
		t.Errorf("%v: %s", err, out)
	}
}
