//go:build unix

package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"

	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

// Of two bridges, which one has written a line, delivers to a CRM and shows a page is said by its
// name; and the page, the API and the metrics of each say that one of them lacks a CRM.
func TestBridgesAreToldApart(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, url, "LOG_LEVEL=info", "API_TOKEN="+operatorToken, "API_RATE=1000")
	maps.Copy(list[1], map[string]string{
		"ENDPOINT_1_NAME":   "second",
		"ENDPOINT_1_URL":    crm.URL,
		"ENDPOINT_1_SECRET": secret,
	})
	processes := startBoth(t, list)
	ask := func(bridge int, path string) string {
		_, body := getFrom(t, list[bridge], path)
		return string(body)
	}
	eventually(t, "each delivers to one CRM, and one is connected", func() bool {
		all := ask(0, "/v1/bridges")
		return strings.Contains(all, `"lanes":["crm"]`) && strings.Contains(all, `"lanes":["second"]`) &&
			strings.Contains(all, `"connected":true`) && strings.Contains(all, `"lacking":["second"]`) &&
			!strings.Contains(all, `"differing"`)
	})
	for bridge, wants := range []map[string][]string{
		{
			"/v1/endpoints": {`"name":"crm","state":"ok","delivered_by":"bridge1"`},
			"/metrics": {
				"\npzbridge_bridge_info{bridge=\"bridge1\"} 1\n", "\npzbridge_lanes 1\n", "\npzbridge_connected 1\n",
			},
			"/": {
				`<span class="here">bridge1</span>`, "<dt>Bridge</dt><dd>bridge1</dd>",
				"<strong>bridge1</strong> has no CRM second", "</svg>connected</span>", "</svg>spare</span>",
			},
		},
		{
			"/v1/endpoints": {
				`"name":"crm","state":"ok","delivered_by":"bridge1"`,
				`"name":"second","state":"ok","delivered_by":"bridge2"`,
			},
			"/metrics": {
				"\npzbridge_bridge_info{bridge=\"bridge2\"} 1\n", "\npzbridge_lanes 1\n", "\npzbridge_connected 0\n",
			},
			"/": {
				`<span class="here">bridge2</span>`, "connected at bridge1</p>",
				"<dt>Bridge</dt><dd>bridge1</dd>", "<dt>Bridge</dt><dd>bridge2</dd>",
				"<strong>bridge1</strong> has no CRM second",
			},
		},
	} {
		page := firstPage(t, list[bridge])
		for path, parts := range wants {
			body := page
			if path != "/" {
				body = ask(bridge, path)
			}
			for _, want := range parts {
				if !strings.Contains(body, want) {
					t.Errorf("bridge%d, %s lacks %q:\n%s", bridge+1, path, want, body)
				}
			}
		}
		p := start(t, list[bridge], "status")
		if code := p.exitCode(); code != 0 || !strings.Contains(p.log.String(), "! bridge1 has no CRM second, ") ||
			!strings.Contains(p.log.String(), "✓ The phone system is connected.\n") {
			t.Errorf("bridge%d, status: exit code %d: %s", bridge+1, code, p.log)
		}
		for line := range strings.Lines(processes[bridge].log.String()) {
			var entry struct{ Bridge string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Bridge != list[bridge]["BRIDGE_NAME"] {
				t.Errorf("bridge%d has the line %s", bridge+1, line)
			}
		}
	}
}

// firstPage signs in on a bridge's dashboard, and gets its first page in English.
func firstPage(t *testing.T, vars map[string]string) string {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar}
	resp, err := client.PostForm("http://"+vars["LISTEN_ADDR"]+"/login", map[string][]string{"token": {operatorToken}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
