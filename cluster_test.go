//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

// bridges gives the configurations of two bridges on one database. With -short it skips the test.
func bridges(
	t *testing.T, server *pztest.Server, crm *receiver, url string, more ...string,
) (list []map[string]string) {
	t.Helper()
	if testing.Short() {
		t.Skip("leases last for seconds")
	}
	for i := range 2 {
		vars := variables(t, server, crm, append(more, "OUTBOX_URL="+url, fmt.Sprint("BRIDGE_NAME=bridge", i+1))...)
		delete(vars, "OUTBOX_PATH")
		list = append(list, vars)
	}
	return list
}

// ready is the status of a bridge's /readyz; 0 if it does not answer.
func ready(vars map[string]string) int {
	r, err := http.Get("http://" + vars["LISTEN_ADDR"] + "/readyz")
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	return r.StatusCode
}

// startBoth starts two bridges, of which the first is at work and the second its spare.
func startBoth(t *testing.T, list []map[string]string) []*process {
	t.Helper()
	first := start(t, list[0])
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(first.log)
		}
	})
	eventually(t, "the first bridge is ready", func() bool { return ready(list[0]) == http.StatusOK })
	second := start(t, list[1])
	eventually(t, "the second waits", func() bool { return ready(list[1]) == http.StatusServiceUnavailable })
	return []*process{first, second}
}

// bothListen waits until both of two bridges are connected to the server.
func bothListen(t *testing.T, list []map[string]string) {
	t.Helper()
	eventually(t, "both listen", func() bool {
		return ready(list[0]) == http.StatusOK && ready(list[1]) == http.StatusOK
	})
}

// lanesOf is how many CRMs each bridge delivers to.
func lanesOf(t *testing.T, vars map[string]string) (number []int) {
	t.Helper()
	shown := struct {
		Bridges []struct {
			Lanes []string `json:"lanes"`
		} `json:"bridges"`
	}{}
	if status, body := getFrom(t, vars, "/v1/bridges"); status == http.StatusOK {
		if err := json.Unmarshal(body, &shown); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
	}
	for _, b := range shown.Bridges {
		number = append(number, len(b.Lanes))
	}
	return number
}

// finished is the event with which a call ends, which the server keeps for a client that is away.
func finished(call string) pz.Attrs {
	return history(call, "73430112233", "101", "0", "5")
}

// Two bridges share a database. The one at work is killed; the other takes over within seconds, and
// each finished call arrives with one ID, also those of the time in which nobody was connected.
// What the server has written to a socket and nobody has stored is lost with the process, as with
// one bridge: so nothing is on its way at the kill.
func TestSpareTakesOverFromAKilledBridge(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, url, "LOG_LEVEL=info", "REPLAY_MAX_AGE=0")
	processes := startBoth(t, list)
	calls := 0
	callsEnd := func(n int) {
		for range n {
			calls++
			if err := server.Generate(finished(fmt.Sprint(calls))); err != nil {
				t.Fatal(err)
			}
		}
	}
	arrived := map[string]string{}
	allArrive := func() {
		eventually(t, fmt.Sprintf("all %d calls have arrived", calls), func() bool {
			for _, h := range crm.webhooks(t) {
				if first, ok := arrived[h.Data.CallID]; ok && first != h.ID {
					t.Fatalf("call %s arrived with the IDs %s and %s", h.Data.CallID, first, h.ID)
				}
				arrived[h.Data.CallID] = h.ID
			}
			return len(arrived) == calls
		})
	}
	for round := range 2 {
		active, spare := round%2, (round+1)%2
		callsEnd(500)
		allArrive()
		if err := processes[active].Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = processes[active].Wait()
		began := time.Now()
		eventually(t, "the server has noticed", func() bool { return server.Connected() == 0 })
		callsEnd(500) // the server keeps them
		eventually(t, "the spare is at work", func() bool { return ready(list[spare]) == http.StatusOK })
		t.Logf("the spare was at work after %v", time.Since(began).Round(time.Millisecond))
		allArrive()
		processes[active] = start(t, list[active])
		eventually(t, "the killed one waits", func() bool {
			return ready(list[active]) == http.StatusServiceUnavailable
		})
	}
	for _, p := range processes {
		if strings.Contains(p.log.String(), "t0psecret") {
			t.Error("the log tells what stands in the endpoint's address")
		}
	}
}

// A bridge that stands still for longer than the others wait has lost its work when it goes on: it
// ends with an error, and sends nothing twice.
func TestBridgeThatStoodStillGivesItsWorkUp(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, url, "LOG_LEVEL=info", "REPLAY_MAX_AGE=0")
	first := startBoth(t, list)[0]
	if err := first.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		if err := server.Generate(finished(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the second is at work", func() bool { return ready(list[1]) == http.StatusOK })
	if err := first.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code := first.exitCode(); code == 0 {
		t.Errorf("the first ends well: %s", first.log)
	}
	if !strings.Contains(first.log.String(), "may have taken its work over") {
		t.Errorf("it does not say why it ends: %s", first.log)
	}
	// What the first had read before it ended it has stored, and the second delivers it.
	eventually(t, "all calls have arrived", func() bool { return len(crm.webhooks(t)) >= 100 })
	seen := map[string]bool{}
	for _, h := range crm.webhooks(t) {
		if seen[h.Data.CallID] {
			t.Errorf("call %s arrived twice", h.Data.CallID)
		}
		seen[h.Data.CallID] = true
	}
}

// A planned stop hands the work over at once.
func TestStoppedBridgeHandsTheWorkOver(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	list := bridges(t, server, newReceiver(t, nil), url)
	first := startBoth(t, list)[0]
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	first.endsWell(t)
	began := time.Now()
	eventually(t, "the second is at work", func() bool { return ready(list[1]) == http.StatusOK })
	t.Logf("the second was at work %v after the first had ended", time.Since(began).Round(time.Millisecond))
}

// The database is away for longer than a lease lasts. The bridge says so, keeps what comes in, goes
// on by itself and sends each event, and is still the same process.
func TestDatabaseIsAwayForAWhile(t *testing.T) {
	database := pgtest.New(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, database.Database(t), "LOG_LEVEL=info")
	startBoth(t, list)
	ring := func(from, to int) {
		for n := from; n < to; n++ {
			if err := server.Generate(ringing(fmt.Sprint(n), "73430112233")); err != nil {
				t.Fatal(err)
			}
		}
	}
	ring(0, 100)
	eventually(t, "all have arrived", func() bool { return len(crm.webhooks(t)) == 100 })
	database.Stop(t)
	ring(100, 200)
	eventually(t, "the bridge is not ready", func() bool { return ready(list[0]) == http.StatusServiceUnavailable })
	time.Sleep(5 * time.Second)
	database.Start(t)
	eventually(t, "the bridge is ready again", func() bool { return ready(list[0]) == http.StatusOK })
	ring(200, 300)
	eventually(t, "all have arrived", func() bool { return len(crm.webhooks(t)) >= 300 })
	ids := map[string]bool{}
	for _, h := range crm.webhooks(t) {
		ids[h.ID] = true
	}
	if len(ids) != 300 {
		t.Errorf("%d events have arrived, want 300", len(ids))
	}
}

// A bridge is stopped while the database stands still. Nothing can be stored, and it ends all the
// same when SHUTDOWN_GRACE is over.
func TestBridgeEndsThoughTheDatabaseStandsStill(t *testing.T) {
	const grace, margin = 6 * time.Second, 4 * time.Second
	database := pgtest.New(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, database.Database(t), "LISTENERS=2", "SHUTDOWN_GRACE="+grace.String())
	p := start(t, list[0])
	eventually(t, "it is ready", func() bool { return ready(list[0]) == http.StatusOK })
	database.Freeze(t)
	defer database.Thaw(t)
	for n := range 20 {
		if err := server.Generate(finished(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code := p.exitCode()
	if took := time.Since(began); code == 0 || took > grace+margin {
		t.Errorf("with events that it could not store it has ended with %d after %s: %s", code, took, p.log)
	}
}

// A bridge is stopped while the database stands still, and nothing waits in it. It hangs up before
// anything of it waits for the database, so the server keeps the calls that end meanwhile.
func TestStoppedBridgeHangsUpBeforeItWaitsForTheDatabase(t *testing.T) {
	database := pgtest.New(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, database.Database(t), "SHUTDOWN_GRACE=6s", "REPLAY_MAX_AGE=0")
	p := start(t, list[0])
	eventually(t, "it is ready", func() bool { return ready(list[0]) == http.StatusOK })
	database.Freeze(t)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it hangs up", func() bool { return server.Connected() == 0 })
	if log := p.log.String(); strings.Contains(log, "the other bridges do not learn that this one ends") {
		t.Errorf("it has waited for the database: %s", log)
	}
	const calls = 10
	for n := range calls {
		if err := server.Generate(finished(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	p.exitCode()
	database.Thaw(t)
	start(t, list[0])
	eventually(t, "the calls arrive after the next start", func() bool { return len(crm.webhooks(t)) == calls })
}

// A bridge is stopped while it waits for a database that says nothing. It has nothing to store, and
// ends well.
func TestBridgeThatWaitsForTheDatabaseEndsWell(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	url := "postgres://pzbridge:secret@" + silent.Addr().String() + "/pzbridge?sslmode=disable"
	vars := variables(t, server, newReceiver(t, nil), "OUTBOX_URL="+url)
	delete(vars, "OUTBOX_PATH")
	p := start(t, vars)
	if _, err := silent.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.endsWell(t)
}

// forward passes connections on to an address until it is cut off.
func forward(t *testing.T, to string) (from string, cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var passing sync.WaitGroup
	pass := func(a, b net.Conn) {
		_, _ = io.Copy(a, b)
		_ = a.Close()
	}
	passing.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			passing.Go(func() { pass(near, far) })
			passing.Go(func() { pass(far, near) })
		}
	})
	cut = func() {
		cancel()
		_ = l.Close()
		passing.Wait()
	}
	t.Cleanup(cut)
	return l.Addr().String(), cut
}

// The bridge that is connected is cut off from the server and not from the database. It leaves the
// connection to the other one, and takes it back when that one stops.
func TestBridgeThatCannotReachTheServerLeavesTheConnection(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, pgtest.Shared(t).Database(t), "LOG_LEVEL=info")
	scheme, address, _ := strings.Cut(list[0]["PZ_URL"], "://")
	from, cut := forward(t, address)
	list[0]["PZ_URL"] = scheme + "://" + from
	processes := startBoth(t, list)
	cut()
	eventually(t, "the second bridge is connected", func() bool { return ready(list[1]) == http.StatusOK })
	if err := server.Generate(finished("5")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its call arrives", func() bool { return len(crm.webhooks(t)) == 1 })
	if log := processes[0].log.String(); !strings.Contains(log, "leaves the connection to another one") {
		t.Errorf("the first bridge does not say why: %s", log)
	}
	if err := processes[1].Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	processes[1].endsWell(t)
	eventually(t, "the first bridge has the slot again", func() bool {
		return strings.Count(processes[0].log.String(), "this bridge listens to the server from now on") == 2
	})
}

// Two bridges listen to one server, and each of them is killed in turn while some hundred events a
// second come in. Every event is stored and delivered once: none is lost while either lives, and
// none is stored by both.
func TestTwoListenersLoseNothing(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, url, "LOG_LEVEL=warn", "LISTENERS=2")
	processes := []*process{start(t, list[0]), start(t, list[1])}
	bothListen(t, list)
	calls := 0
	ring := func(n int) {
		for range n {
			calls++
			if err := server.Generate(ringing(fmt.Sprint(calls), "73430112233")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	ids := map[string]string{}
	allArrive := func() {
		eventually(t, fmt.Sprintf("all %d events have arrived", calls), func() bool {
			for _, h := range crm.webhooks(t) {
				if first, known := ids[h.Data.CallID]; known && first != h.ID {
					t.Fatalf("call %s arrived with the IDs %s and %s", h.Data.CallID, first, h.ID)
				}
				ids[h.Data.CallID] = h.ID
			}
			return len(ids) == calls
		})
	}
	for killed := range processes {
		ring(1000)
		if err := processes[killed].Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = processes[killed].Wait()
		ring(1000)
		processes[killed] = start(t, list[killed])
		bothListen(t, list)
		allArrive()
	}
}

// Twelve endpoints are shared out between the bridges, and all are delivered while the shares
// change: the second bridge gets half of them, one after the other, and the first has all again
// once the second has stopped.
func TestEndpointsAreSharedOut(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	var more []string
	for n := 1; n < 12; n++ {
		more = append(more, fmt.Sprintf("ENDPOINT_%d_URL=%s", n, crm.URL), fmt.Sprintf("ENDPOINT_%d_NAME=crm%d", n, n),
			fmt.Sprintf("ENDPOINT_%d_SECRET=%s", n, secret))
	}
	list := bridges(t, server, crm, url, append(more, "LOG_LEVEL=info", "API_TOKEN="+operatorToken,
		"API_RATE=1000", "REPLAY_MAX_AGE=0")...)
	lanes := func() []int { return lanesOf(t, list[0]) }
	first := start(t, list[0])
	eventually(t, "the first has all", func() bool { return slices.Equal(lanes(), []int{12}) })
	second := start(t, list[1])
	rings := 0
	ring := func() {
		rings++
		if err := server.Generate(finished(fmt.Sprint(rings))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	eventually(t, "each has half", func() bool { ring(); return slices.Equal(lanes(), []int{6, 6}) })
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	second.endsWell(t)
	eventually(t, "the first has all again", func() bool { ring(); return slices.Equal(lanes(), []int{12, 0}) })
	eventually(t, "all have arrived", func() bool { return len(crm.webhooks(t)) >= 12*rings })
	// Unless a busy machine has kept a bridge from showing that it lives.
	wasCutOff := strings.Contains(first.log.String()+second.log.String(), "attempt cut off")
	if n := len(crm.webhooks(t)); n != 12*rings && !wasCutOff {
		t.Errorf("%d webhooks have arrived, want %d", n, 12*rings)
	}
}

// A CRM answers at the bridge that is not connected. The call is decided there, the connected
// bridge transfers it, and the CRM learns that it was done. A call from the CRM is refused there,
// as nothing would be sent.
func TestTransferAtABridgeThatIsNotConnected(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	const token = "crm-token-0123456789"
	list := bridges(t, server, newReceiver(t, nil), url, "ENDPOINT_0_TOKEN="+token)
	startBoth(t, list)
	if err := server.Generate(asking("5", "73430112233")); err != nil {
		t.Fatal(err)
	}
	post := func(path, body string) (status int, answer string) {
		r, err := http.NewRequest(http.MethodPost, "http://"+list[1]["LISTEN_ADDR"]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	eventually(t, "the call, which has asked just before, is transferred", func() bool {
		began := time.Now()
		status, answer := post("/v1/transfers", `{"call_id":"5","to":"101"}`)
		if status != http.StatusOK && status != http.StatusNotFound {
			t.Fatalf("%d: %s", status, answer)
		}
		t.Logf("%d after %v", status, time.Since(began).Round(time.Millisecond))
		return status == http.StatusOK
	})
	if n := len(server.Requests()); n != 1 {
		t.Errorf("the server has got %d requests, want one Transfer", n)
	}
	if status, answer := post("/v1/calls", `{"from":"101","to":"102"}`); status != http.StatusServiceUnavailable {
		t.Errorf("a call there: %d: %s", status, answer)
	}
}

// put makes a PUT of an operator.
func put(t *testing.T, vars map[string]string, path, body string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPut, "http://"+vars["LISTEN_ADDR"]+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+operatorToken)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("PUT %s: %v, %v", path, resp, err)
	}
	_ = resp.Body.Close()
}

// An operator pauses the connection at one bridge and resumes it at the other at once, or the other
// way round: what was asked for last holds for both.
func TestTheLastSwitchOfAllBridgesCounts(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	list := bridges(t, server, newReceiver(t, nil), pgtest.Shared(t).Database(t), "API_TOKEN="+operatorToken)
	startBoth(t, list)
	put(t, list[0], "/v1/connection", `{"enabled":false}`)
	put(t, list[1], "/v1/connection", `{"enabled":true}`)
	eventually(t, "one is connected", func() bool { return server.Connected() == 1 })
	eventually(t, "none is switched off", func() bool {
		for i := range list {
			if _, body := getFrom(t, list[i], "/v1/connection"); strings.Contains(string(body), "disabled") {
				return false
			}
		}
		return true
	})
	put(t, list[0], "/v1/connection", `{"enabled":true}`)
	put(t, list[1], "/v1/connection", `{"enabled":false}`)
	eventually(t, "none is connected", func() bool { return server.Connected() == 0 })
}

// Who signs out at one bridge is signed out at all, and who signs in at one is signed in at all.
func TestSignOutCountsAtAllBridges(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	list := bridges(t, server, newReceiver(t, nil), pgtest.Shared(t).Database(t), "API_TOKEN="+operatorToken)
	startBoth(t, list)
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	do := func(bridge int, method, path, body string, cookie *http.Cookie) (status int, given *http.Cookie) {
		t.Helper()
		r, err := http.NewRequest(method, "http://"+list[bridge]["LISTEN_ADDR"]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if cookie != nil {
			r.AddCookie(cookie)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		for _, c := range resp.Cookies() {
			given = c
		}
		return resp.StatusCode, given
	}
	opens := func(what string, cookie *http.Cookie, want int) {
		t.Helper()
		for bridge := range list {
			eventually(t, fmt.Sprintf("%s: HTTP %d at bridge %d", what, want, bridge+1), func() bool {
				status, _ := do(bridge, "GET", "/", "", cookie)
				return status == want
			})
		}
	}
	_, first := do(0, "POST", "/login", "token="+operatorToken, nil)
	opens("signed in", first, http.StatusOK)
	do(0, "POST", "/logout", "", first)
	opens("signed out", first, http.StatusSeeOther)
	_, second := do(1, "POST", "/login", "token="+operatorToken, nil)
	opens("signed in again", second, http.StatusOK)
}

// With two listeners and one bridge, a planned stop stores at once what was read: nothing waits for
// the other.
func TestTheOnlyOfTwoListenersStopsAtOnce(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	list := bridges(t, server, newReceiver(t, nil), pgtest.Shared(t).Database(t), "LISTENERS=2", "SHUTDOWN_GRACE=6s")
	p := start(t, list[0])
	eventually(t, "it is ready", func() bool { return ready(list[0]) == http.StatusOK })
	var ringing sync.WaitGroup
	stopped := make(chan struct{})
	ringing.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stopped:
				return
			case <-time.After(time.Millisecond):
				_ = server.Generate(finished(fmt.Sprint(n))) // it fails once nobody listens
			}
		}
	})
	time.Sleep(500 * time.Millisecond)
	_ = p.Process.Signal(syscall.SIGTERM)
	p.endsWell(t)
	close(stopped)
	ringing.Wait()
}

// A queue passes on to another bridge while its CRM is down: nobody is told that it is up again.
func TestAQueueThatPassesOnIsNoRecovery(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	down := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer down.Close()
	admin := newReceiver(t, nil)
	list := bridges(t, server, admin, pgtest.Shared(t).Database(t), "API_TOKEN="+operatorToken,
		"ENDPOINT_0_EVENTS=alert.endpoint_failing", "RETRY_SCHEDULE=100ms,100ms,100ms,1s,5m,10m,30m",
		"ENDPOINT_1_NAME=down", "ENDPOINT_1_URL="+down.URL, "ENDPOINT_1_SECRET="+secret)
	processes := startBoth(t, list)
	for n := range 8 {
		if err := server.Generate(finished(fmt.Sprint(n + 1))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it is told that the CRM is down", func() bool { return len(admin.webhooks(t)) == 1 })
	_ = processes[0].Process.Signal(syscall.SIGTERM)
	processes[0].endsWell(t)
	eventually(t, "the other delivers to it", func() bool {
		_, body := getFrom(t, list[1], "/v1/endpoints")
		return strings.Count(string(body), `"delivered_by":"bridge2"`) == 2
	})
	_, body := getFrom(t, list[1], "/v1/bridges")
	if n := strings.Count(string(body), `"connected":true`); n > 1 {
		t.Errorf("the one that has stopped is shown as connected: %s", body)
	}
	time.Sleep(12 * time.Second) // two looks of the watch
	if told := admin.webhooks(t); len(told) != 1 {
		t.Errorf("it is told %+v", told)
	}
}
