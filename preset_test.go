package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/demo"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

const (
	crmKey   = "k3y-of-the-crm"
	crmToken = "t0ken-with-which-the-crm-calls"
)

// withPreset gives the variables of a bridge that plays MegaFon's PBX for a CRM.
func withPreset(t *testing.T, server *pztest.Server, crm http.Handler, more ...string) map[string]string {
	t.Helper()
	address := httptest.NewServer(crm)
	t.Cleanup(address.Close)
	return variables(t, server, &receiver{Server: address}, append([]string{
		"ENDPOINT_0_PRESET=megafon", "ENDPOINT_0_SECRET=" + crmKey, "ENDPOINT_0_TOKEN=" + crmToken,
		"ENDPOINT_0_USERS=101=anna", "ENDPOINT_0_DEFAULT_USER=anna", "API_TOKEN=operator-token-0123456789",
	}, more...)...)
}

// onBoth runs a test with an outbox in a file, and with one in a database.
func onBoth(t *testing.T, f func(t *testing.T, more ...string)) {
	t.Helper()
	t.Run("file", func(t *testing.T) { f(t) })
	t.Run("database", func(t *testing.T) {
		f(t, "OUTBOX_URL="+pgtest.Shared(t).Database(t), "BRIDGE_NAME=bridge1")
	})
}

// A CRM that knows MegaFon's virtual PBX needs its address and its key: it is asked where a call
// goes, has each call once, and calls from the CRM are made at the exchange.
func TestCRMTakesTheBridgeForMegaFon(t *testing.T) {
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		crm := megafontest.NewWebasyst(crmKey)
		answering := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("cmd") == "contact" { // which Webasyst does not know
				_, _ = io.WriteString(w, `{"contact_name":"Client","responsible":"anna"}`)
				return
			}
			crm.ServeHTTP(w, r)
		})
		vars := withPreset(t, server, answering, more...)
		bridge := start(t, vars)
		eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })

		if err := server.Generate(asking("5", "73430112233")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the call is transferred", func() bool {
			for _, r := range server.Requests() {
				if r.Method == pz.MethodTransfer && r.Data.Get("To") == "101" {
					return true
				}
			}
			return false
		})
		for _, e := range []pz.Attrs{ringing("5", "73430112233"), history("5", "73430112233", "101", "0", "63")} {
			if err := server.Generate(e); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the CRM has the call", func() bool {
			calls := crm.Calls()
			return len(calls) == 1 && calls[0].State == megafontest.Completed && calls[0].Login == "anna"
		})

		page := ""
		eventually(t, "the dashboard shows what was sent", func() bool { // which is recorded once it is answered
			page = deskPage(t, vars, "/calls/5")
			return strings.Contains(page, "INCOMING anna") && strings.Contains(page, "history Success anna")
		})
		if strings.Contains(page, "webhook-signature") {
			t.Errorf("the dashboard shows %s", page)
		}

		click := func(token string) (string, error) {
			api := "http://" + vars["LISTEN_ADDR"]
			return crm.Click(t.Context(), http.DefaultClient, api, token, "anna", "83430112233")
		}
		id, err := click(crmToken)
		if err != nil || id == "" {
			t.Fatalf("a click is answered with %q (%v)", id, err)
		}
		out := pz.Attrs{
			{Name: "Event", Value: pz.TypeOutgoing},
			{Name: "CallID", Value: "6"},
			{Name: "From", Value: "101"},
			{Name: "To", Value: "83430112233"},
		}
		for _, e := range []pz.Attrs{out, history("6", "101", "83430112233", "1", "5")} {
			if err := server.Generate(e); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the CRM has the call of the click", func() bool {
			calls := crm.Calls()
			return len(calls) == 2 && calls[1].State == megafontest.Completed
		})
		if _, err := click(secret); err == nil || !strings.Contains(err.Error(), "Invalid token") {
			t.Errorf("a click with a wrong token: %v", err)
		}
		for _, fault := range crm.Faults() {
			t.Error(fault)
		}
		if out := bridge.log.String(); strings.Contains(out, crmKey) || strings.Contains(out, crmToken) {
			t.Errorf("a secret stands in the log: %s", out)
		}
	})
}

// deskPage reads a page of a bridge's dashboard.
func deskPage(t *testing.T, vars map[string]string, path string) string {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	address := "http://" + vars["LISTEN_ADDR"]
	r, err := browser.PostForm(address+"/login", url.Values{"token": {vars["API_TOKEN"]}})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r, err = browser.Get(address + path); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	page, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// The demo of a CRM with a preset ends well, and the CRM has seen no fault.
func TestDemoOfAPreset(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for seconds")
	}
	for _, preset := range []string{"bitrix24", "megafon"} {
		p := start(t, nil, "demo", "-once", "-crm", preset)
		if code := p.exitCode(); code != 0 || !strings.Contains(p.log.String(), "3 calls, as the CRM has them") {
			t.Errorf("%s: exit code %d: %s", preset, code, p.log)
		}
	}
}

// withPortal gives the variables of a bridge that tells a portal of Bitrix24.
func withPortal(t *testing.T, server *pztest.Server, portal *bitrix24test.Portal, more ...string) map[string]string {
	t.Helper()
	address := httptest.NewServer(portal)
	t.Cleanup(address.Close)
	portal.Domain = strings.TrimPrefix(address.URL, "http://")
	vars := variables(t, server, &receiver{Server: address}, append([]string{
		"ENDPOINT_0_PRESET=bitrix24", "ENDPOINT_0_URL=" + address.URL + portal.Path(), "ENDPOINT_0_TOKEN=" + crmToken,
		"API_TOKEN=operator-token-0123456789",
	}, more...)...)
	delete(vars, "ENDPOINT_0_SECRET")
	return vars
}

// A portal of Bitrix24 needs the address of an inbound webhook: it is asked where a call goes, has
// each call once, and calls from the portal are made at the exchange. A second CRM with a preset
// and one with webhooks, at the same bridge, get theirs.
func TestPortalIsTold(t *testing.T) {
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		portal := bitrix24test.New("s3cretcode")
		portal.Assign("+73430112233", "CONTACT", 797, 15, "OPENED")
		others, hooks := megafontest.NewSalesMan(crmKey), newReceiver(t, nil)
		second := httptest.NewServer(others)
		defer second.Close()
		vars := withPortal(t, server, portal, append(more,
			"ENDPOINT_1_NAME=salesman", "ENDPOINT_1_PRESET=megafon", "ENDPOINT_1_URL="+second.URL,
			"ENDPOINT_1_SECRET="+crmKey,
			"ENDPOINT_2_NAME=hooks", "ENDPOINT_2_URL="+hooks.URL, "ENDPOINT_2_SECRET="+secret)...)
		bridge := start(t, vars)
		eventually(t, "the bridge runs", func() bool { return server.Connected() == 1 })
		if err := server.Generate(asking("5", "73430112233")); err != nil {
			t.Fatal(err)
		}
		isDone := func(method string, names ...string) func() bool {
			return func() bool {
				return slices.ContainsFunc(server.Requests(), func(r pz.Request) bool {
					return r.Method == method && r.Data.Get(names[0]) == names[1]
				})
			}
		}
		eventually(t, "the call is transferred", isDone(pz.MethodTransfer, "To", "101"))
		for _, e := range []pz.Attrs{ringing("5", "73430112233"), history("5", "73430112233", "101", "0", "63")} {
			if err := server.Generate(e); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the portal has the call", func() bool {
			calls := portal.Calls()
			return len(calls) == 1 && calls[0].Finished && calls[0].FinishedBy == 15
		})
		// Not also the question: one that is decided already is not asked any more.
		isOver := func(h demo.Webhook) bool { return h.Type == "call.completed" }
		eventually(t, "the others have it too", func() bool {
			list := others.Records()
			return len(list) == 1 && list[0].Status == "Success" && slices.ContainsFunc(hooks.webhooks(t), isOver)
		})

		hook := "http://" + vars["LISTEN_ADDR"] + "/hooks/bitrix24/crm"
		callID, status, err := portal.Click(t.Context(), http.DefaultClient, hook, crmToken, 16, "+73430112233",
			bitrix24test.ClickOptions{})
		if err != nil || status != http.StatusOK {
			t.Fatalf("a click is answered with %d (%v)", status, err)
		}
		eventually(t, "the call is made", isDone(pz.MethodCall, "From", "102"))
		out := pz.Attrs{
			{Name: "Event", Value: pz.TypeOutgoing},
			{Name: "CallID", Value: "6"},
			{Name: "From", Value: "102"},
			{Name: "To", Value: "83430112233"},
		}
		for _, e := range []pz.Attrs{out, history("6", "102", "83430112233", "1", "5")} {
			if err := server.Generate(e); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the portal has the call of the click", func() bool {
			calls := portal.Calls()
			return len(calls) == 2 && calls[1].Finished && calls[1].CallID == callID && calls[1].Duration > 0
		})
		_, status, err = portal.Click(t.Context(), http.DefaultClient, hook, secret, 16, "+73430112233",
			bitrix24test.ClickOptions{})
		if status != http.StatusForbidden {
			t.Errorf("a click with a wrong token: %d (%v)", status, err)
		}
		for _, fault := range append(portal.Faults(), others.Faults()...) {
			t.Error(fault)
		}
		if out := bridge.log.String(); strings.Contains(out, "s3cretcode") || strings.Contains(out, crmToken) {
			t.Errorf("a secret stands in the log: %s", out)
		}
	})
}

// allStored waits until so many calls that are over are stored: what a killed bridge has not read
// from its connection, the server does not send again.
func allStored(t *testing.T, vars map[string]string, calls int) {
	t.Helper()
	eventually(t, fmt.Sprint(calls, " calls are stored"), func() bool {
		_, body := getFrom(t, vars, "/v1/events?types=call.completed&limit=500")
		return strings.Count(string(body), `"type":"call.completed"`) >= calls
	})
}

// killedRounds kills a bridge again and again while calls come, so many in each round, and waits
// until the CRM has them all in the end. Most ring and end; each third has ended two hours ago, and
// is told of now.
func killedRounds(
	t *testing.T, server *pztest.Server, vars map[string]string, rounds, perRound int, requests, finished func() int,
) {
	t.Helper()
	for round := range rounds {
		bridge := start(t, vars)
		eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
		before := requests()
		for i := range perRound {
			id, from := fmt.Sprint(round*perRound+i+1), fmt.Sprint("7343011", 1000+round*perRound+i)
			end, events := time.Now().Unix(), []pz.Attrs{ringing(id, from)}
			if i%3 == 2 {
				end, events = end-2*3600, nil
			}
			events = append(events, pz.Attrs{
				{Name: "Event", Value: pz.TypeCompleted},
				{Name: "CallID", Value: id},
				{Name: "From", Value: from},
				{Name: "To", Value: "101"},
				{Name: "Start", Value: fmt.Sprint(end - 70)},
				{Name: "End", Value: fmt.Sprint(end)},
				{Name: "Duration", Value: "63"},
				{Name: "Direction", Value: "0"},
			})
			for _, e := range events {
				if err := server.Generate(e); err != nil {
					t.Fatal(err)
				}
			}
		}
		allStored(t, vars, (round+1)*perRound)
		eventually(t, "some of it is sent", func() bool { return requests() > before+2+round })
		if err := bridge.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		bridge.exitCode()
		eventually(t, "the server has noticed", func() bool { return server.Connected() == 0 })
	}
	start(t, vars)
	eventually(t, "the CRM has all calls", func() bool { return finished() >= rounds*perRound })
}

// A bridge that is killed again and again while calls come makes no call twice at the portal, and
// loses none. A register that is made again meets the same call, as long as that has begun within
// half an hour.
func TestKilledBridgeMakesNoCallTwiceAtThePortal(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the bridge again and again")
	}
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		portal := bitrix24test.New("s3cretcode")
		vars := withPortal(t, server, portal, append(more,
			"RETRY_SCHEDULE=100ms", "REPLAY_MAX_AGE=0", "ENDPOINT_0_RATE=50")...)
		const rounds, perRound = 3, 3
		requests := func() int {
			list, _ := portal.Requests()
			return len(list)
		}
		killedRounds(t, server, vars, rounds, perRound, requests, func() int {
			return len(slices.DeleteFunc(portal.Calls(), func(c bitrix24test.Call) bool { return !c.Finished }))
		})
		if n := len(portal.Calls()); n != rounds*perRound {
			t.Errorf("the portal has %d calls, want %d", n, rounds*perRound)
		}
	})
}

// A bridge that is killed again and again while calls come makes no call twice at the CRM, and
// loses none.
func TestKilledBridgeMakesNoCallTwiceAtTheCRM(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the bridge again and again")
	}
	onBoth(t, func(t *testing.T, more ...string) {
		server := pztest.NewServer(pztest.Options{})
		defer server.Close()
		crm := megafontest.NewWebasyst(crmKey)
		vars := withPreset(t, server, crm, append(more, "RETRY_SCHEDULE=100ms", "REPLAY_MAX_AGE=0")...)
		const rounds, perRound = 5, 10
		requests := func() int {
			list, _ := crm.Requests()
			return len(list)
		}
		killedRounds(t, server, vars, rounds, perRound, requests, func() int {
			return len(slices.DeleteFunc(crm.Calls(), func(c megafontest.Call) bool {
				return c.State != megafontest.Completed
			}))
		})
		if n := len(crm.Calls()); n != rounds*perRound {
			t.Errorf("the CRM has %d calls, want %d", n, rounds*perRound)
		}
	})
}

func TestDoctorChecksAPreset(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := megafontest.NewStrict(crmKey)
	for name, c := range map[string]struct {
		more []string
		args []string
		code int
		says []string
	}{
		"all is well": {
			nil,
			nil,
			0,
			[]string{"✓ crm: it takes the key, and answers whom", "✓ crm: it may have employees call"},
		},
		"a wrong key": {
			[]string{"ENDPOINT_0_SECRET=an0ther-key"},
			nil,
			1,
			[]string{"✗ crm: it was asked", "compare the key"},
		},
		"no token":        {[]string{"ENDPOINT_0_TOKEN="}, nil, 0, []string{"! crm: nobody can call from this CRM"}},
		"no default user": {[]string{"ENDPOINT_0_DEFAULT_USER="}, nil, 0, []string{"! crm: calls that are nobody's"}},
		"a number is tried": {
			[]string{"ENDPOINT_0_DEFAULT_LINE=73432000000"},
			[]string{"-try", "8 343 011-22-33"},
			0,
			[]string{"✓ crm: a missed call of 8 343 011-22-33 is entered"},
		},
		"a refusal": {
			nil,
			[]string{"-try", "83430112233"},
			1,
			[]string{"✗ crm: a missed call of 83430112233 could not be entered", "Invalid parameters: [diversion]"},
		},
		"no number": {nil, []string{"-try", "Anna"}, 2, []string{"-try needs the number of a client"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, withPreset(t, server, crm, c.more...), append([]string{"doctor"}, c.args...)...)
			code, out := p.exitCode(), p.log.String()
			for _, want := range c.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if code != c.code || strings.Contains(out, crmKey) || strings.Contains(out, crmToken) {
				t.Errorf("exit code %d, want %d:\n%s", code, c.code, out)
			}
		})
	}
}
