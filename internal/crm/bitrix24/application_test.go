package bitrix24

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

const (
	clientID     = "local.0123456789"
	clientSecret = "s3cret-of-the-application"
	eventToken   = "t0ken-of-the-applications-events"
	installURL   = "https://bridge.example/hooks/bitrix24/crm/install"
)

// app is a portal that admits applications alone, with one, and a hook of the bridge.
type app struct {
	*bench
	gate *gate
	log  logtest.Buffer
	hook *Hook
	mux  *http.ServeMux
}

// inApp runs f with an application that is installed, unless with is changed by f before.
func inApp(t *testing.T, f func(a *app)) {
	t.Helper()
	with := settings(t)
	with.Application = crm.Application{
		ID: clientID, Secret: clientSecret, OAuthURL: "http://oauth.bitrix.info/oauth/token/",
	}
	inBubble(t, with, func(b *bench) {
		b.portal.AppOnly(true)
		b.portal.Install(bitrix24test.App{
			ClientID: clientID, ClientSecret: clientSecret, Token: eventToken,
			Scopes: []string{"crm", "telephony", "user"},
		})
		a := &app{bench: b, gate: &gate{}}
		a.openHook()
		f(a)
		requests, _ := b.portal.Requests()
		if text := a.log.String() + fmt.Sprint(b.attempts()); len(requests) > 0 {
			access, refresh := b.portal.Tokens()
			for _, secret := range []string{access, refresh, clientSecret, eventToken} {
				if secret != "" && strings.Contains(text, secret) {
					b.t.Errorf("a secret is shown: %s", text)
				}
			}
		}
	})
}

func (a *app) openHook() {
	a.hook = a.bench.hook(a.gate, &a.log)
	a.mux = http.NewServeMux()
	a.mux.Handle(HookPath, a.hook)
	a.mux.HandleFunc(InstallPath, a.hook.Install)
}

// client makes requests of the portal, and of browsers, to the bridge.
func (a *app) client() *http.Client {
	return &http.Client{
		Transport:     transport{a.mux},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// install has the portal tell that the application is installed.
func (a *app) install(o bitrix24test.InstallOptions) (status int) {
	a.t.Helper()
	status, err := a.portal.PostInstall(a.t.Context(), a.client(), installURL, o)
	if err != nil {
		a.t.Fatal(err)
	}
	time.Sleep(2 * installPause)
	return status
}

// exchanges are the grants that were exchanged.
func (a *app) exchanges() (list []string) {
	requests, _ := a.portal.TokenRequests()
	for _, r := range requests {
		list = append(list, r.Grant)
	}
	return list
}

// state is how the endpoint stands, in words.
func (a *app) state() string {
	a.t.Helper()
	list, err := a.box.Outbox.Endpoints(a.t.Context())
	if err != nil || len(list) != 1 {
		a.t.Fatalf("the endpoints are %+v (%v)", list, err)
	}
	return list[0].State + " " + list[0].LastError
}

// The portal is told of calls with the tokens of the application. One that is too old is renewed,
// once for all requests.
func TestApplicationTellsOfCalls(t *testing.T) {
	inApp(t, func(a *app) {
		if status := a.install(bitrix24test.InstallOptions{}); status != http.StatusOK {
			t.Fatalf("HTTP %d", status)
		}
		a.says(telephony.EventIncoming, "7", client, "101")
		time.Sleep(90 * time.Minute)
		storetest.MustAppend(t, a.box,
			event(telephony.EventCompleted, "7", client, "101", time.Minute),
			event(telephony.EventCompleted, "8", client, "102", time.Minute),
			event(telephony.EventCompleted, "9", client, "103", time.Minute))
		time.Sleep(time.Minute)
		a.delivered(4)
		if got := a.exchanges(); !slices.Equal(got, []string{"refresh_token", "refresh_token"}) {
			t.Errorf("it exchanged %q", got)
		}
		for _, c := range a.portal.Calls() {
			if c.App != clientID || !c.Finished {
				t.Errorf("a call is %+v", c)
			}
		}
	})
}

// What is wrong with the tokens is said with what to do, nothing is lost, and once it is mended all
// is delivered.
func TestWhatIsWrongWithTheTokensIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		breaks, mends func(a *app)
		want          string
	}{
		"a plan without": {
			func(a *app) { a.portal.RequirePayment(true) }, func(a *app) { a.portal.RequirePayment(false) },
			"failing the portal denies the request: it says «PAYMENT_REQUIRED»",
		},
		"another key": {
			func(a *app) { a.portal.WrongClient(true) }, func(a *app) { a.portal.WrongClient(false) },
			"failing Bitrix24 does not know the application: it says «wrong_client»",
		},
		"a server that fails": {
			func(a *app) { a.portal.FailToken(1) }, func(*app) {}, "the server of Bitrix24 has renewed no tokens",
		},
		"a lost answer": {
			func(a *app) { a.portal.LoseToken(1) }, func(a *app) { a.install(bitrix24test.InstallOptions{}) },
			"failing the application is to be installed anew: it says «invalid_grant»",
		},
		"it is gone": {
			func(a *app) { a.portal.Uninstall() },
			func(a *app) {
				a.portal.Install(bitrix24test.App{
					ClientID: clientID, ClientSecret: clientSecret, Scopes: []string{"crm", "telephony", "user"},
				})
				a.install(bitrix24test.InstallOptions{})
			},
			"failing the application is to be installed anew: it says «invalid_grant»",
		},
	} {
		t.Run(name, func(t *testing.T) {
			inApp(t, func(a *app) {
				a.install(bitrix24test.InstallOptions{})
				a.portal.ExpireTokens()
				c.breaks(a)
				a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
				time.Sleep(2 * time.Minute)
				said := a.state() + fmt.Sprint(a.attempts())
				if !strings.Contains(said, c.want) {
					t.Errorf("it says %s, want %s", said, c.want)
				}
				c.mends(a)
				time.Sleep(10 * time.Minute)
				a.delivered(1)
				if got := a.one(); !got.Finished {
					t.Errorf("the call is %+v", got)
				}
			})
		})
	}
}

// A question is answered in time also when its token is too old; when the server of Bitrix24 hangs,
// it is declined in time.
func TestQuestionRenewsTheTokenInTime(t *testing.T) {
	question := func(a *app) (o store.Outcome, took time.Duration) {
		began := time.Now()
		body := `{"data":{"client_number":"` + known + `","direction":"incoming"}}`
		o = a.sender.Send(a.t.Context(), store.Job{
			Event: store.Event{Type: telephony.EventTransferRequested, Call: "7", Body: []byte(body)}, IsQuestion: true,
		})
		return o, time.Since(began)
	}
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.portal.Assign(known, "CONTACT", 5, 16, "")
		a.portal.ExpireTokens()
		if o, took := question(a); o.Reply == nil || o.Reply.To != "102" || took > searchTimeout {
			t.Errorf("after %v: %+v", took, o)
		}
		a.portal.ExpireTokens()
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/oauth/") {
				<-r.Context().Done()
				return
			}
			a.portal.ServeHTTP(w, r)
		}
		o, took := question(a)
		if o.Reply == nil || o.Reply.To != "" || took != searchTimeout || o.Verdict != store.Again {
			t.Errorf("after %v: %+v", took, o)
		}
		time.Sleep(time.Minute)
	})
}

// New tokens are stored also if the one who has asked for them is cut off meanwhile.
func TestRenewalOutlivesItsRequest(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.portal.ExpireTokens()
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/oauth/") {
				time.Sleep(5 * time.Second)
				a.portal.OAuth().ServeHTTP(w, r)
				return
			}
			a.portal.ServeHTTP(w, r)
		}
		ctx, cancel := context.WithTimeout(a.t.Context(), time.Second)
		defer cancel()
		if found := a.sender.Check(ctx); len(found) != 1 || found[0].Err == nil {
			t.Errorf("the check found %+v", found)
		}
		a.sender.Close() // as at the end of the process
		access, refresh := a.portal.Tokens()
		if kept, _, o := a.sender.app.read(a.t.Context()); o.Verdict != store.Done || kept.Access != access ||
			kept.Refresh != refresh {
			t.Errorf("the tokens are %+v, want %s and %s", kept, access, refresh)
		}
	})
}

// Two bridges on one outbox renew the tokens once.
func TestTwoBridgesRenewOnce(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		second := New(a.opts.Endpoints[0], Options{
			Settings: a.with, Notes: a.box.Engine, Portals: NewPortals(), Questions: 4, DialContext: a.dial,
		})
		defer second.Close()
		for range 5 {
			a.portal.ExpireTokens()
			var both sync.WaitGroup
			for _, s := range []*Sender{a.sender, second} {
				both.Go(func() {
					if _, o := s.search(a.t.Context(), known, false, nil); o.Verdict != store.Done {
						t.Errorf("it fails: %+v", o)
					}
				})
			}
			both.Wait()
			time.Sleep(time.Minute)
		}
		if got := a.exchanges(); len(got) != 6 {
			t.Errorf("it exchanged %d times", len(got))
		}
	})
}

// A bridge that is killed while it renews tokens keeps the others waiting for a while only.
func TestKilledRenewalIsTakenOver(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		kept, version, _ := a.sender.app.read(a.t.Context())
		kept.Claim, kept.ClaimedUntil = "of a bridge that is gone", time.Now().Add(claimTime)
		if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
			t.Fatal(err)
		}
		a.portal.ExpireTokens()
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(2 * claimTime)
		a.delivered(1)
	})
}

// failingNotes fail to store the tokens some times, after they were claimed.
type failingNotes struct {
	store.Notes
	fails atomic.Int64
}

func (f *failingNotes) SetNote(
	ctx context.Context, endpoint, name string, version uint64, value []byte, until time.Time,
) error {
	if name == tokensNote && !strings.Contains(string(value), `"claim"`) && f.fails.Add(-1) >= 0 {
		return errors.New("the database is restarting")
	}
	return f.Notes.SetNote(ctx, endpoint, name, version, value, until)
}

// New tokens are stored also if the outbox fails for a while just then: there are no others.
func TestTokensAreStoredOnceTheOutboxCan(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		failing := &failingNotes{Notes: a.sender.app.notes}
		failing.fails.Store(50)
		a.sender.app.notes = failing
		a.portal.ExpireTokens()
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		time.Sleep(time.Minute)
		a.delivered(1)
	})
}

// A bridge whose claim was taken over, as by one with another clock, stores what it got all the
// same: the other was refused with the tokens that were spent.
func TestTokensOfATakenClaimCount(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		second := New(a.opts.Endpoints[0], Options{
			Settings: a.with, Notes: a.box.Engine, Portals: NewPortals(), Questions: 4, DialContext: a.dial,
		})
		defer second.Close()
		a.ignoresFaults = true // the tokens are spent twice
		a.portal.ExpireTokens()
		var first atomic.Bool
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/oauth/") {
				a.portal.ServeHTTP(w, r)
				return
			}
			isFirst := first.CompareAndSwap(false, true)
			a.portal.OAuth().ServeHTTP(w, r)
			if isFirst {
				time.Sleep(2 * time.Second)
			}
		}
		var both sync.WaitGroup
		both.Go(func() { a.sender.search(a.t.Context(), known, false, nil) })
		time.Sleep(time.Second)
		claimed, version, _ := second.app.read(a.t.Context())
		claimed.ClaimedUntil = time.Now() // for one whose clock is ahead
		if err := second.app.write(a.t.Context(), claimed, version); err != nil {
			t.Fatal(err)
		}
		both.Go(func() {
			if _, o := second.search(a.t.Context(), known, false, nil); o.Verdict != store.Done {
				t.Errorf("the second ends with %+v", o.Outcome)
			}
		})
		both.Wait()
		access, _ := a.portal.Tokens()
		if kept, _, _ := a.sender.app.read(a.t.Context()); kept.Access != access {
			t.Errorf("the tokens are %+v, want %s", kept, access)
		}
	})
}

// A claim that is longer than any is of a wrong clock, and holds nobody up. One that is not given
// up is no end of the process: the delivery is tried later.
func TestClaimsHoldNobodyUp(t *testing.T) {
	inApp(t, func(a *app) {
		var hangs atomic.Bool
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case !strings.HasPrefix(r.URL.Path, "/oauth/"):
				a.portal.ServeHTTP(w, r)
			case hangs.Load():
				<-r.Context().Done()
			default:
				a.portal.OAuth().ServeHTTP(w, r)
			}
		}
		a.install(bitrix24test.InstallOptions{})
		claim := func(until time.Duration) {
			kept, version, _ := a.sender.app.read(a.t.Context())
			kept.Claim, kept.ClaimedUntil = "of a bridge that is gone", time.Now().Add(until)
			if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
				t.Fatal(err)
			}
			a.portal.ExpireTokens()
		}
		claim(24 * time.Hour)
		a.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		a.delivered(1)

		claim(claimTime)
		hangs.Store(true)
		a.says(telephony.EventCompleted, "8", client, "101", time.Minute)
		time.Sleep(2 * claimTime)
		if said := fmt.Sprint(a.attempts()); !strings.Contains(said, "no answer within 15s") {
			t.Errorf("the attempts are %s", said)
		}
		hangs.Store(false)
		time.Sleep(time.Hour)
		a.delivered(2)
	})
}

// A claim of this process whose request was cut off before its exchange holds up no later request.
func TestOwnClaimIsGoneOnWith(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		kept, version, _ := a.sender.app.read(a.t.Context())
		kept.Claim, kept.ClaimedUntil = a.sender.app.own, time.Now().Add(claimTime)
		if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
			t.Fatal(err)
		}
		a.portal.ExpireTokens()
		began := time.Now()
		_, o := a.sender.search(a.t.Context(), known, false, nil)
		if took := time.Since(began); o.Verdict != store.Done || took > 0 {
			t.Errorf("after %s: %+v", took, o.Outcome)
		}
	})
}

// What a server or a proxy repeats of a request is shown nowhere.
func TestRepeatedRequestIsNotShown(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		access, refresh := a.portal.Tokens()
		var answers atomic.Bool
		a.proxy = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasPrefix(r.URL.Path, "/oauth/"):
				w.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(w).Encode(map[string]string{"error": "bad request " + r.URL.RawQuery})
				return
			case answers.Load():
				a.portal.ServeHTTP(w, r)
				return
			}
			body, _ := io.ReadAll(r.Body)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.Write(body) // which is no response
			_ = conn.Close()
		}
		said := a.open("code=the-code-of-a-browser").Body.String()
		_, o := a.sender.search(a.t.Context(), known, false, nil)
		said += o.Err.Error()
		answers.Store(true)
		a.portal.ExpireTokens()
		_, o = a.sender.search(a.t.Context(), known, false, nil)
		said += o.Err.Error() + a.log.String()
		for _, secret := range []string{access, refresh, clientSecret, "the-code-of-a-browser"} {
			if strings.Contains(said, secret) {
				t.Errorf("%s is shown: %s", secret, said)
			}
		}
	})
}

// Once the process ends no exchange begins, whose tokens nobody could store; and what other bridges
// do is not waited for.
func TestNoExchangeBeginsAtTheEnd(t *testing.T) {
	inApp(t, func(a *app) {
		a.install(bitrix24test.InstallOptions{})
		a.portal.ExpireTokens()
		a.sender.Close()
		if _, o := a.sender.search(a.t.Context(), known, false, nil); !errors.Is(o.Err, errEnding) {
			t.Errorf("it ends with %+v", o)
		}
		if got := a.exchanges(); len(got) != 1 {
			t.Errorf("it exchanged %q", got)
		}
		kept, version, _ := a.sender.app.read(a.t.Context())
		kept.Claim, kept.ClaimedUntil = "of another bridge", time.Now().Add(claimTime)
		if err := a.sender.app.write(a.t.Context(), kept, version); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(a.t.Context(), time.Second)
		defer cancel()
		a.sender.search(ctx, known, false, nil)
		began := time.Now()
		if a.sender.Close(); time.Since(began) > 0 {
			t.Errorf("closing took %s", time.Since(began))
		}
	})
}
