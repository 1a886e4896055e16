package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// No line of the log at info or above shows a telephone number, whatever happens: calls, answers to
// questions, refused and failed commands, frames that cannot be read, dead deliveries.
func TestLogShowsNoNumbers(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := &receiver{Server: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case strings.Contains(string(body), "transfer_requested"):
			_, _ = w.Write([]byte(`{"transfer_to":"+79990112233"}`)) // CALL_TO forbids it
		case strings.Contains(string(body), "completed"):
			http.Error(w, "no client 83430112233", http.StatusGone)
		}
	}))}
	defer crm.Close()
	const token = "operators-token-0123456789abcdef"
	vars := variables(t, server, crm, "LOG_LEVEL=info", "API_TOKEN="+token, "CALL_TO=+7343*,internal",
		"CALL_FROM=internal", "COMMAND_TIMEOUT=1s", "ENDPOINT_0_TOKEN=crm-token-0123456789abcdef0123")
	p := start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	ask := func(method, path, body string) {
		r, err := http.NewRequest(method, "http://"+vars["LISTEN_ADDR"]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	generate := func(fields pz.Attrs) {
		if err := server.Generate(fields); err != nil {
			t.Fatal(err)
		}
	}
	generate(asking("1", "83430112233"))
	generate(ringing("1", "+7 (343) 011-22-33"))
	generate(pz.Attrs{
		{Name: "Event", Value: "4"},
		{Name: "CallID", Value: "1"},
		{Name: "From", Value: "83430112233"},
		{Name: "To", Value: "101"},
		{Name: "Start", Value: "1385035625"},
		{Name: "End", Value: "1385035685"},
		{Name: "Duration", Value: "5"},
		{Name: "Direction", Value: "0"},
		{Name: "Record", Value: ""},
	})
	server.EmitRaw([]byte(`<Event type="2" from="83430112233`))
	for _, body := range []string{
		`{"from":"101","to":"+79990112233"}`,
		`{"from":"+73430112233","to":"101"}`,
		`{"from":"101","to":"+73430112233"}`,
	} {
		ask(http.MethodPost, "/v1/calls", body)
	}
	ask(http.MethodPost, "/v1/transfers", `{"call_id":"1","to":"+73430112233"}`)
	eventually(t, "the call is over", func() bool { return strings.Contains(p.log.String(), "410") })
	ask(http.MethodDelete, "/v1/numbers/83430112233", "")
	eventually(t, "all of that is in the log", func() bool {
		log := p.log.String()
		return strings.Contains(log, "command refused") && strings.Contains(log, "a frame could not be read") &&
			strings.Contains(log, "a number was forgotten")
	})
	for line := range strings.Lines(p.log.String()) {
		digits := strings.Map(func(r rune) rune {
			if strings.ContainsRune(" ()-", r) {
				return -1
			}
			return r
		}, line)
		if strings.Contains(digits, "0112233") {
			t.Errorf("a line shows a number: %s", line)
		}
	}
}
