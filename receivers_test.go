package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// The receivers of the developers' guide store an event once, refuse wrong signatures and answer
// questions. A language that is not installed is skipped.
func TestReceiversTakeWebhooks(t *testing.T) {
	for language, command := range map[string]func(t *testing.T, address string) []string{
		"go": func(t *testing.T, _ string) []string {
			program := filepath.Join(t.TempDir(), "receiver")
			build := exec.Command("go", "build", "-o", program, "docs/receivers/receiver.go")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return []string{program}
		},
		"node": func(*testing.T, string) []string {
			return []string{"node", "docs/receivers/receiver.js"}
		},
		"python3": func(*testing.T, string) []string {
			return []string{"python3", "docs/receivers/receiver.py"}
		},
		"php": func(_ *testing.T, address string) []string {
			return []string{"php", "-S", address, "docs/receivers/receiver.php"}
		},
	} {
		t.Run(language, func(t *testing.T) {
			if _, err := exec.LookPath(language); err != nil {
				t.Skipf("there is no %s on this machine", language)
			}
			address := freePort(t)
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			args := command(t, address)
			inbox := filepath.Join(t.TempDir(), "inbox")
			process := exec.Command(args[0], args[1:]...)
			process.Env = append(os.Environ(),
				"WEBHOOK_SECRET="+secret, "INBOX="+inbox, "ADDRESS="+address, "PORT="+port)
			var said strings.Builder
			process.Stderr = &said
			if err := process.Start(); err != nil {
				t.Fatal(err)
			}
			stop := func() { _ = process.Process.Kill(); _ = process.Wait() }
			defer stop()
			eventually(t, "the receiver listens", func() bool {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					return false
				}
				return conn.Close() == nil
			})
			const event = `{"id":"event-1","type":"call.completed","data":{"client_number":"+73430112233"}}`
			const question = `{"id":"event-2","type":"call.transfer_requested","data":{"client_number":"+73430112233"}}`
			const other = `{"id":"event-3","type":"call.transfer_requested","data":{}}`
			for _, c := range []struct {
				body, signed string
				status       int
				answer       string
			}{
				{event, event, 204, ""},
				{event, event, 204, ""},
				{event, other, 401, ""},
				{question, question, 200, `{"transfer_to":"101"}`},
				{other, other, 200, `{"transfer_to":""}`},
			} {
				status, answer := postSigned(t, "http://"+address, c.body, c.signed)
				if status != c.status || c.answer != "" && strings.Join(strings.Fields(answer), "") != c.answer {
					t.Errorf("%s is answered with %d %q, want %d %s", c.body, status, answer, c.status, c.answer)
				}
			}
			stop()
			files, err := os.ReadDir(inbox)
			if err != nil || len(files) != 1 {
				t.Fatalf("the inbox has %v, %v; %s", files, err, said.String())
			}
			if stored, err := os.ReadFile(filepath.Join(inbox, "event-1.json")); err != nil || string(stored) != event {
				t.Errorf("%q is stored, %v", stored, err)
			}
		})
	}
}

// postSigned posts a body with the signature of another one, or of itself.
func postSigned(t *testing.T, url, body, signed string) (status int, answer string) {
	t.Helper()
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signature, err := webhook.Sign("msg_1", now, []byte(signed))
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("webhook-id", "msg_1")
	request.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	request.Header.Set("webhook-signature", signature)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}
