package bitrix24

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
)

// listen has the portal tell of clicks, until the function that it returns is called.
func (a *app) listen() (stop func()) {
	ctx, cancel := context.WithCancel(a.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = a.hook.Run(ctx) })
	time.Sleep(lookEvery + pollEvery)
	return func() {
		cancel()
		running.Wait()
	}
}

func (a *app) clickInApp(o bitrix24test.ClickOptions) (callID string, status int) {
	a.t.Helper()
	callID, status, err := a.portal.ClickInApp(a.t.Context(), a.client(), 16, known, o)
	if err != nil {
		a.t.Fatal(err)
	}
	time.Sleep(2 * pollEvery)
	synctest.Wait()
	return callID, status
}

// A portal that does not reach the bridge is asked for clicks.
func TestPortalIsAskedForClicks(t *testing.T) {
	for name, o := range map[string]bitrix24test.ClickOptions{"once": {}, "twice": {Twice: true}} {
		t.Run(name, func(t *testing.T) {
			inApp(t, func(a *app) {
				a.install(bitrix24test.InstallOptions{})
				stop := a.listen()
				callID, _ := a.clickInApp(o)
				stop()
				want := []telephony.Command{{Kind: telephony.CommandCall, From: "102", To: known}}
				if !slices.Equal(a.gate.commands(), want) {
					t.Errorf("the commands are %+v", a.gate.commands())
				}
				a.says(telephony.EventOutgoing, "7", "102", client)
				a.says(telephony.EventCompleted, "7", "102", client, time.Minute)
				if c := a.one(); c.CallID != callID || !c.Finished || c.Duration != time.Minute {
					t.Errorf("the call is %+v", c)
				}
				last, err := a.sender.LastClick(a.t.Context())
				if err != nil || last.At.IsZero() || last.Failure != "" {
					t.Errorf("the last click is %+v (%v)", last, err)
				}
				if !strings.Contains(a.log.String(), "the portal tells of clicks") {
					t.Errorf("the log is %s", a.log.String())
				}
			})
		})
	}
}

// A click for which nobody waits any more makes no call, and its card goes.
func TestOldClickMakesNoCall(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		defer a.listen()()
		a.clickInApp(bitrix24test.ClickOptions{Age: time.Hour})
		if c := a.one(); len(a.gate.commands()) > 0 || !c.Finished || c.StatusCode != "480" {
			t.Errorf("the commands are %+v, the call %+v", a.gate.commands(), c)
		}
	})
}

// While calls cannot be made, no click is taken from the portal.
func TestPortalIsNotAskedWhileTheExchangeIsAway(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.gate.isAway.Store(true)
		defer a.listen()()
		a.clickInApp(bitrix24test.ClickOptions{})
		if waiting, _ := a.portal.Offline(); waiting != 1 || len(a.gate.commands()) > 0 {
			t.Errorf("%d clicks wait, the commands are %+v", waiting, a.gate.commands())
		}
		a.gate.isAway.Store(false)
		time.Sleep(2 * pollEvery)
		synctest.Wait()
		if len(a.gate.commands()) != 1 {
			t.Errorf("the commands are %+v", a.gate.commands())
		}
	})
}

// A portal that reaches the bridge sends its clicks there, with the token that it has named when
// the application was installed. The handler is bound once, and again after an update.
func TestPortalSendsClicks(t *testing.T) {
	inApp(t, func(a *app) {
		a.hookURL = "https://bridge.example/hooks/bitrix24/crm"
		a.close()
		a.bench.open()
		a.openHook()
		a.install(bitrix24test.InstallOptions{})
		defer a.listen()()
		if _, status := a.clickInApp(bitrix24test.ClickOptions{Twice: true}); status != http.StatusOK ||
			len(a.gate.commands()) != 1 {
			t.Errorf("HTTP %d, the commands are %+v", status, a.gate.commands())
		}
		if _, status := a.clickInApp(bitrix24test.ClickOptions{WrongToken: true}); status != http.StatusForbidden {
			t.Errorf("a wrong token: HTTP %d", status)
		}
		time.Sleep(2*bindEvery + bindEvery/2)
		bound, asked := 0, 0
		for _, method := range a.made() {
			switch method {
			case "bind":
				bound++
			case "get":
				asked++
			}
		}
		if bound != 1 || asked < 3 {
			t.Errorf("the handler was bound %d times, and looked for %d times", bound, asked)
		}
		a.portal.Install(bitrix24test.App{
			ClientID: clientID, ClientSecret: clientSecret, Scopes: []string{"crm", "telephony", "user"},
		})
		a.install(bitrix24test.InstallOptions{})
		time.Sleep(2 * lookEvery)
		_, status := a.clickInApp(bitrix24test.ClickOptions{})
		if status != http.StatusOK || len(a.gate.commands()) != 2 {
			t.Errorf("after an update: HTTP %d, the commands are %+v", status, a.gate.commands())
		}
		before, _, _ := a.sender.app.read(a.t.Context())
		a.open(a.portal.RedirectQuery(a.portal.AuthorizeCode(), "").Encode())
		if kept, _, _ := a.sender.app.read(a.t.Context()); kept.Event != before.Event || kept.Access == before.Access {
			t.Errorf("a code, which comes without the token of events, leaves %+v", kept)
		}
	})
}

// That no clicks come is said once, and that they come again.
func TestListenerSaysWhatIsWrong(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		defer a.listen()()
		a.portal.Fail(3)
		time.Sleep(10 * pollRetry)
		synctest.Wait()
		log := a.log.String()
		if strings.Count(log, "the portal tells of no clicks") != 1 ||
			strings.Count(log, `msg="the portal tells of clicks"`) != 2 {
			t.Errorf("the log is %s", log)
		}
	})
}

// An answer that is not what is documented is neither a click of now nor the end of all clicks.
func TestOddEventsOfAPortal(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		var asked atomic.Int64
		events := make(chan string, 1)
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "event.get.json"):
				_, _ = io.WriteString(w, `{"result":{"0":{"event":"ONEXTERNALCALLSTART","offline":true}}}`)
			case strings.HasSuffix(r.URL.Path, "event.bind.json"):
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"error":"ERROR_CORE","error_description":"Unable to set event handler: `+
					`Handler already binded"}`)
			case strings.HasSuffix(r.URL.Path, "event.offline.get.json"):
				asked.Add(1)
				list := `[]`
				select {
				case list = <-events:
				default:
				}
				_, _ = io.WriteString(w, `{"result":{"events":`+list+`}}`)
			default:
				a.portal.ServeHTTP(w, r)
			}
		}
		defer a.listen()()
		for _, at := range []string{"1999-12-30 10:00:00", "", "yesterday", "1999-12-30T10:00:00+03:00"} {
			events <- `[{"EVENT_NAME":"ONEXTERNALCALLSTART","TIMESTAMP_X":"` + at + `","EVENT_DATA":` +
				`{"USER_ID":16,"PHONE_NUMBER":"` + known + `","CALL_ID":"externalCall.1"}}]`
			time.Sleep(2 * pollEvery)
		}
		synctest.Wait()
		if asked.Load() < 5 || len(a.gate.commands()) > 0 {
			t.Errorf("it asked %d times, the commands are %+v", asked.Load(), a.gate.commands())
		}
		at := time.Now().UTC().Format(time.DateTime)
		events <- `[{"EVENT_NAME":"ONEXTERNALCALLSTART","TIMESTAMP_X":"` + at + `","EVENT_DATA":` +
			`{"USER_ID":16,"PHONE_NUMBER":"` + known + `","CALL_ID":"externalCall.2"}},7,"x",null]`
		time.Sleep(2 * pollEvery)
		synctest.Wait()
		if len(a.gate.commands()) != 1 {
			t.Errorf("without a zone: the commands are %+v", a.gate.commands())
		}
	})
}

// A hook without applications runs until it is to end, as each part of a bridge: if one ends, all
// do.
func TestHookRunsUntilItIsToEnd(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		var log logtest.Buffer
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		if err := b.hook(&gate{}, &log).Run(ctx); err != nil || time.Since(began) != time.Hour {
			t.Errorf("it ended after %s (%v)", time.Since(began), err)
		}
	})
}
