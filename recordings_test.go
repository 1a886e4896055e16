package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
)

// readyLinks takes webhooks, and keeps the links of the events that a recording is ready, by
// call.
type readyLinks struct {
	mu    sync.Mutex
	links map[string]map[string]bool // by call
	ids   map[string]bool
}

func (r *readyLinks) ServeHTTP(_ http.ResponseWriter, request *http.Request) {
	var e struct {
		ID, Type string
		Data     struct {
			Call string `json:"call_id"`
			Link string `json:"recording_url"`
		}
	}
	if err := json.NewDecoder(request.Body).Decode(&e); err != nil || e.Type != "call.recording_ready" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links[e.Data.Call] == nil {
		r.links[e.Data.Call] = map[string]bool{}
	}
	r.links[e.Data.Call][e.Data.Link] = true
	r.ids[e.ID] = true
}

// linksOf returns the links of a call.
func (r *readyLinks) linksOf(call string) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for link := range r.links[call] {
		list = append(list, link)
	}
	return list
}

// withRecordings gives the variables of a bridge that fetches recordings from a server, and a
// receiver of its webhooks.
func withRecordings(
	t *testing.T, server *pztest.Server, source string, more ...string,
) (vars map[string]string, got *readyLinks) {
	t.Helper()
	got = &readyLinks{links: map[string]map[string]bool{}, ids: map[string]bool{}}
	crm := httptest.NewServer(got)
	t.Cleanup(crm.Close)
	vars = variables(t, server, &receiver{Server: crm}, append([]string{
		"RECORDINGS=on", "RECORDINGS_FROM=" + source, "API_TOKEN=operator-token-0123456789",
		"RECORDINGS_DIR=" + filepath.Join(t.TempDir(), "kept"),
	}, more...)...)
	vars["PUBLIC_URL"] = "http://" + vars["LISTEN_ADDR"] + "/"
	return vars, got
}

// recorded is a call that is over and has a recording.
func recorded(call, from, address string) pz.Attrs {
	return pz.Attrs{
		{Name: "Event", Value: pz.TypeCompleted},
		{Name: "CallID", Value: call},
		{Name: "From", Value: from},
		{Name: "To", Value: "101"},
		{Name: "Start", Value: fmt.Sprint(time.Now().Unix() - 70)},
		{Name: "End", Value: fmt.Sprint(time.Now().Unix())},
		{Name: "Duration", Value: "63"},
		{Name: "Direction", Value: "0"},
		{Name: "Record", Value: address},
	}
}

// fetch returns the status and the body of a link.
func fetch(t *testing.T, link string) (status int, body string) {
	t.Helper()
	response, err := http.Get(link)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// A recording that the exchange keeps inside of the office reaches the CRM as a link that anybody
// can open who has it; forgetting the client ends that. No list has the lane that fetches it.
func TestRecordingReachesTheCRM(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for seconds")
	}
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		folder := t.TempDir()
		const content = "ID3 a recording"
		if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		vars, got := withRecordings(t, server, folder, append(more, "ORDER_HOLD=1s")...)
		start(t, vars)
		eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
		// Of the last call the first part has no file, which must not hold up the other part.
		for _, c := range [][2]string{
			{"5", "1.mp3"}, {"6", "late.mp3"}, {"7", "../1.mp3"}, {"8", "late.mp3"}, {"8", "1.mp3"},
		} {
			if err := server.Generate(recorded(c[0], "73430112233", "file://"+folder+"/"+c[1])); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the CRM has the link", func() bool { return len(got.linksOf("5")) == 1 })
		link := got.linksOf("5")[0]
		if status, body := fetch(t, link); status != http.StatusOK || body != content {
			t.Errorf("%d %q", status, body)
		}
		eventually(t, "the CRM has the link of a call's second part", func() bool { return len(got.linksOf("8")) == 1 })
		if len(got.links) != 2 {
			t.Errorf("%v", got.links)
		}
		eventually(t, "the recording of a place that is not allowed is refused", func() bool {
			return strings.Contains(deskPage(t, vars, "/calls/7"), "may not be fetched")
		})
		if text := deskPage(t, vars, "/calls/6"); !strings.Contains(text, "no such file") {
			t.Errorf("the page does not say why the recording is not there:\n%s", text)
		}
		operator := func(method, path string) string {
			r, err := http.NewRequest(method, "http://"+vars["LISTEN_ADDR"]+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+vars["API_TOKEN"])
			response, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = response.Body.Close() }()
			answer, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			return string(answer)
		}
		for _, path := range []string{
			"/v1/endpoints", "/v1/deliveries?limit=100", "/v1/calls", "/v1/calls/5", "/metrics", "/v1/bridges",
			"/v1/deliveries?state=dead", "/v1/calls?state=dead",
		} {
			if answer := operator(http.MethodGet, path); strings.Contains(answer, "~recordings") {
				t.Errorf("%s shows the lane: %s", path, answer)
			}
		}
		gone := operator(http.MethodDelete, "/v1/numbers/"+url.PathEscape("+7 343 011-22-33"))
		if !strings.Contains(gone, `"recordings":2`) {
			t.Error(gone)
		}
		if status, _ := fetch(t, link); status != http.StatusGone {
			t.Errorf("after it was forgotten: %d", status)
		}
	})
}

// A bridge that is killed again and again while it fetches tells of each recording once.
func TestKilledBridgeFetchesEachRecording(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for files, and starts the bridge again and again")
	}
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		var mu sync.Mutex
		requests := 0
		source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			requests++
			mu.Unlock()
			_, _ = io.WriteString(w, "ID3 "+r.URL.Path)
		}))
		defer source.Close()
		asked := func() int {
			mu.Lock()
			defer mu.Unlock()
			return requests
		}
		vars, got := withRecordings(t, server, source.URL, append(more, "REPLAY_MAX_AGE=0")...)
		const rounds, perRound = 3, 5
		for round := range rounds {
			bridge := start(t, vars)
			eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
			for i := range perRound {
				call := fmt.Sprint(round*perRound + i)
				e := recorded(call, "7343011100"+call, source.URL+"/"+call+".mp3")
				if err := server.Generate(e); err != nil {
					t.Fatal(err)
				}
			}
			allStored(t, vars, (round+1)*perRound)
			before := asked()
			eventually(t, "some are fetched", func() bool { return asked() > before+perRound+round })
			if err := bridge.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			bridge.exitCode()
			eventually(t, "the server has noticed", func() bool { return server.Connected() == 0 })
		}
		start(t, vars)
		eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
		for i := range rounds * perRound {
			call := fmt.Sprint(i)
			eventually(t, "the CRM has the link of call "+call, func() bool { return len(got.linksOf(call)) > 0 })
			links := got.linksOf(call)
			if len(links) != 1 {
				t.Errorf("call %s has %d links", call, len(links))
			}
			if status, body := fetch(t, links[0]); status != http.StatusOK || body != "ID3 /"+call+".mp3" {
				t.Errorf("call %s: %d %q", call, status, body)
			}
		}
		if len(got.ids) != rounds*perRound {
			t.Errorf("%d events, want %d", len(got.ids), rounds*perRound)
		}
	})
}

// doctor looks at the calls of the running bridge: it fetches the newest recording's size, and
// lists the extensions that nobody in a CRM has. The bridge tells of each of those once.
func TestDoctorLooksAtRecentCalls(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for seconds")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte("ID3 a recording"), 0o600); err != nil {
		t.Fatal(err)
	}
	crm := megafontest.NewWebasyst(crmKey)
	vars := withPreset(t, server, crm, "RECORDINGS=on", "RECORDINGS_FROM="+folder,
		`RECORDINGS_MAP=C:\Rec\=`+folder, "RECORDINGS_DIR="+filepath.Join(t.TempDir(), "kept"))
	vars["PUBLIC_URL"] = "http://" + vars["LISTEN_ADDR"]
	bridge := start(t, vars)
	eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
	for call, extension := range map[string]string{"5": "101", "6": "199", "7": "199"} {
		e := recorded(call, "73430112233", `C:\Rec\1.mp3`)
		for i := range e {
			if e[i].Name == "To" {
				e[i].Value = extension
			}
		}
		if err := server.Generate(e); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the CRM has the recordings", func() bool {
		calls := crm.Calls()
		return len(calls) == 3 && !slices.ContainsFunc(calls, func(c megafontest.Call) bool {
			return !strings.HasPrefix(c.Link, vars["PUBLIC_URL"]+"/v1/recordings/")
		})
	})
	if n := strings.Count(bridge.log.String(), "an extension has no user in the CRM"); n != 1 {
		t.Errorf("%d lines tell of the extension: %s", n, bridge.log)
	}
	doctor := start(t, vars, "doctor")
	code, out := doctor.exitCode(), doctor.log.String()
	for _, want := range []string{
		"✓ recordings: the newest one is at " + folder + ", and has 15 bytes",
		"✓ recordings: PUBLIC_URL leads to the bridge",
		"! crm: calls were made with extensions that nobody in this CRM has: 199; name them",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
	vars["RECORDINGS_FROM"], vars["RECORDINGS_MAP"] = "ftp://pbx", ""
	doctor = start(t, vars, "doctor")
	if code, out := doctor.exitCode(), doctor.log.String(); code != 1 ||
		!strings.Contains(out, "✗ recordings: the newest one, at ") || !strings.Contains(out, "RECORDINGS_FROM") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
