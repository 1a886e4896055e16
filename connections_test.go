//go:build unix

package main

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/pztest"
)

// Clients open more connections than the process may have files. The bridge still dials the server
// and the CRM, and answers requests.
func TestBridgeWorksWhileStrangersHoldConnections(t *testing.T) {
	const files, idle = 256, 600
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil || own.Cur < 2*idle {
		t.Skip("this test may have too few files open itself")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	vars := variables(t, server, crm, "API_TOKEN=operator-token-0123456789")
	bridge := prepare(t, vars)
	bridge.Cmd = exec.Command("sh", "-c", "ulimit -n 256 && exec "+os.Args[0])
	bridge.Dir, bridge.Stderr, bridge.Stdout, bridge.Env = t.TempDir(), bridge.log, bridge.log, prepare(t, vars).Env
	if err := bridge.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bridge.Process.Kill() })
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	for range idle {
		c, err := net.Dial("tcp", vars["LISTEN_ADDR"])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	eventually(t, "strangers are answered", func() bool {
		resp, err := (&http.Client{Timeout: 2 * time.Second}).Get("http://" + vars["LISTEN_ADDR"] + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	server.Disconnect(1001, "")
	event := ringing("5", "7343")
	eventually(t, "the bridge is connected again, and the CRM has an event", func() bool {
		if err := server.Generate(event); err != nil { // what is sent before it is connected again is gone
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		return len(crm.webhooks(t)) > 0
	})
	if log := bridge.log.String(); strings.Contains(log, "too many open files") {
		t.Errorf("the log of %d files: %s", files, log)
	}
}
