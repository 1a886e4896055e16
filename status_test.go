package main

import (
	"net/http"
	"strings"
	"testing"

	"pzbridge/internal/pztest"
)

// The command status says what the first page of the dashboard does, and fails if that is red.
func TestStatusSaysHowTheBridgeStands(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	const token = "operators-token-0123456789abcdef"
	vars := variables(t, server, newReceiver(t, nil), "API_TOKEN="+token)
	start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	status := func() (code int, says string) {
		p := start(t, vars, "status")
		return p.exitCode(), p.log.String()
	}
	const well = "✓ All is well: the phone system is connected, and every CRM gets its events.\n"
	eventually(t, "all is well", func() bool {
		code, says := status()
		return code == 0 && says == well
	})
	r, err := http.NewRequest(http.MethodPut, "http://"+vars["LISTEN_ADDR"]+"/v1/connection",
		strings.NewReader(`{"enabled":false}`))
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
	const paused = "✗ The connection to the phone system is paused: live calls are lost meanwhile. Resume it.\n" +
		"pzbridge: something is wrong: see the lines that begin with ✗\n"
	if code, says := status(); code != 1 || says != paused {
		t.Errorf("of a pause: exit code %d: %s", code, says)
	}
}
