//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"syscall"
	"testing"

	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

// Two bridges have one folder: when one of them is killed while recordings are fetched and told of,
// the other goes on, and serves what both have fetched.
func TestRecordingsOutliveABridge(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "ID3 "+r.URL.Path)
	}))
	defer source.Close()
	got := &readyLinks{links: map[string]map[string]bool{}, ids: map[string]bool{}}
	crm := httptest.NewServer(got)
	defer crm.Close()
	list := bridges(t, server, &receiver{Server: crm}, pgtest.Shared(t).Database(t),
		"RECORDINGS=on", "RECORDINGS_FROM="+source.URL, "API_TOKEN="+operatorToken,
		"RECORDINGS_DIR="+filepath.Join(t.TempDir(), "kept"))
	for _, vars := range list {
		vars["PUBLIC_URL"] = "http://" + list[1]["LISTEN_ADDR"]
	}
	both := startBoth(t, list)
	eventually(t, "one listens", func() bool { return server.Connected() == 1 })
	const calls = 8
	for i := range calls {
		call := fmt.Sprint(i)
		if err := server.Generate(recorded(call, "7343011100"+call, source.URL+"/"+call+".mp3")); err != nil {
			t.Fatal(err)
		}
	}
	allStored(t, list[0], calls)
	eventually(t, "some are fetched", func() bool { return len(got.all()) > 0 })
	if err := both[0].Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the CRM has the links of all", func() bool { return len(got.all()) == calls })
	for call, links := range got.all() {
		if len(links) != 1 {
			t.Errorf("call %s has the links %v", call, links)
		}
		if status, body := fetch(t, links[0]); status != http.StatusOK || body != "ID3 /"+call+".mp3" {
			t.Errorf("call %s: %d %q", call, status, body)
		}
	}
	if len(got.ids) != calls {
		t.Errorf("%d events, want %d", len(got.ids), calls)
	}
}

// all returns the links of all calls.
func (r *readyLinks) all() map[string][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := map[string][]string{}
	for call, links := range r.links {
		for link := range links {
			list[call] = append(list[call], link)
		}
	}
	return list
}
