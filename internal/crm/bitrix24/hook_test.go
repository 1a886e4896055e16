package bitrix24

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
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

const token = "t0ken-of-the-outgoing-webhook"

// gate is an API that knows one token, and an exchange that answers with err.
type gate struct {
	err    error
	isAway atomic.Bool   // the exchange
	hold   chan struct{} // a command waits until it is closed, unless it is nil

	mu    sync.Mutex
	given []telephony.Command
}

// commands are those that were given.
func (g *gate) commands() []telephony.Command {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.given)
}

func (g *gate) Bearer(_ *http.Request, given string) (string, time.Duration, bool) {
	return "crm", 0, given == token
}

func (g *gate) Command(_ context.Context, _ string, cmd telephony.Command) error {
	if g.hold != nil {
		<-g.hold
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.given = append(g.given, cmd)
	return g.err
}

// transport is a way for HTTP requests to a handler, without a network.
type transport struct{ http.Handler }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	t.ServeHTTP(w, r)
	return w.Result(), nil
}

// hook is one of the bench's sender.
func (b *bench) hook(g *gate, log *logtest.Buffer) *Hook {
	h := NewHook(HookOptions{
		Senders:   map[string]*Sender{"crm": b.sender},
		Connected: func() bool { return !g.isAway.Load() },
		English:   func(err error) string { return "<script>" + err.Error() },
		Russian:   func(error) string { return "по-русски" },
		Logger:    slog.New(slog.NewTextHandler(log, nil)),
	})
	h.Gate = g
	return h
}

// click has a user click at the portal, and gives what the bridge answers.
func (b *bench) click(g *gate, user int, o bitrix24test.ClickOptions) (callID string, status int) {
	b.t.Helper()
	mux := http.NewServeMux()
	var log logtest.Buffer
	mux.Handle(http.MethodPost+" "+HookPath, b.hook(g, &log))
	callID, status, err := b.portal.Click(b.t.Context(), &http.Client{Transport: transport{mux}},
		"https://bridge.example/hooks/bitrix24/crm", token, user, known, o)
	if err != nil {
		b.t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	synctest.Wait()
	if strings.Contains(log.String(), token) {
		b.t.Errorf("the token stands in the log: %s", log.String())
	}
	return callID, status
}

// A click rings the employee, and the call that follows is the one that the portal has registered.
func TestClickIsOneCall(t *testing.T) {
	for name, o := range map[string]bitrix24test.ClickOptions{
		"as today": {}, "as before November 2024": {Old: true}, "twice": {Twice: true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				g := &gate{}
				callID, status := b.click(g, 16, o)
				want := []telephony.Command{{Kind: telephony.CommandCall, From: "102", To: known}}
				if status != http.StatusOK || !slices.Equal(g.commands(), want) {
					t.Errorf("HTTP %d, the commands are %+v", status, g.commands())
				}
				b.says(telephony.EventOutgoing, "7", "102", client)
				b.says(telephony.EventOutgoingAnswered, "7", "102", client)
				b.says(telephony.EventCompleted, "7", "102", client, time.Minute)
				c := b.one()
				b.wantMade("finish")
				if c.CallID != callID || !c.Finished || c.Duration != time.Minute {
					t.Errorf("the call is %+v", c)
				}
			})
		})
	}
}

// A click that leads to no call closes its card.
func TestClickWithoutACallClosesItsCard(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		_, status := b.click(&gate{err: telephony.ErrNotConnected}, 16, bitrix24test.ClickOptions{})
		c := b.one()
		if status != http.StatusOK || !c.Finished || c.StatusCode != "480" {
			t.Errorf("HTTP %d, the call is %+v", status, c)
		}
	})
	inBubble(t, settings(t), func(b *bench) {
		g := &gate{}
		b.click(g, 1, bitrix24test.ClickOptions{}) // who has no extension
		if c := b.one(); !c.Finished || len(g.commands()) > 0 {
			t.Errorf("the call is %+v, the commands %+v", c, g.commands())
		}
	})
}

// Who wants to be forgotten is forgotten as the aim of a click too, and in what is kept of a call.
func TestForgetReachesClicksAndWhatIsKept(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		forget := func() {
			t.Helper()
			if _, err := b.box.Outbox.Forget(b.t.Context(), known, false); err != nil {
				t.Fatal(err)
			}
		}
		b.says(telephony.EventIncoming, "6", client, "101")
		forget()
		b.says(telephony.EventIncoming, "6", client, "101") // of what was kept nothing is known
		if calls := b.portal.Calls(); len(calls) != 1 || len(b.made()) != 2 {
			t.Errorf("the portal has %+v, it was asked %q", calls, b.made())
		}
		clicked, _ := b.click(&gate{}, 16, bitrix24test.ClickOptions{})
		forget()
		b.says(telephony.EventOutgoing, "7", "102", client)
		calls := b.portal.Calls()
		if len(calls) != 3 || calls[2].CallID == clicked || calls[2].ExternalCallID != "7" {
			t.Errorf("the calls are %+v", calls)
		}
	})
}

func TestStrangersCannotClick(t *testing.T) {
	for name, o := range map[string]bitrix24test.ClickOptions{
		"a wrong token": {WrongToken: true}, "another portal": {Domain: "other.bitrix24.ru"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				g := &gate{}
				if _, status := b.click(g, 16, o); status != http.StatusForbidden || len(g.commands()) > 0 {
					t.Errorf("HTTP %d, the commands are %+v", status, g.commands())
				}
			})
		})
	}
}

// The checks of a portal name what is wrong, and change nothing there.
func TestDiagnose(t *testing.T) {
	for name, c := range map[string]struct {
		breaks func(*bitrix24test.Portal)
		want   []string
	}{
		"all is well": {
			func(*bitrix24test.Portal) {},
			[]string{"knows the webhook", "all rights", "may be registered", "3 of 4 employees", "can be read"},
		},
		"a revoked webhook": {(*bitrix24test.Portal).Revoke, []string{"✗ the portal does not know the webhook"}},
		"too few rights": {
			func(p *bitrix24test.Portal) { p.WithoutScope("user") },
			[]string{"knows", "✗ the webhook lacks the rights user", "may be", "✗ it has too few rights", "can be"},
		},
		"applications alone": {
			func(p *bitrix24test.Portal) { p.AppOnly(true) },
			[]string{"knows", "all rights", "✗ the portal lets no webhook", "3 of 4", "can be"},
		},
		"no statistics": {
			func(p *bitrix24test.Portal) { p.ForbidStatistics(true) },
			[]string{"knows", "all rights", "may be", "3 of 4", "! the statistics of calls cannot be read"},
		},
		"an extension of two": {
			func(p *bitrix24test.Portal) {
				p.SetUsers([]bitrix24test.User{
					{ID: 15, Name: "Anna", Extension: "101"}, {ID: 16, Name: "Ivan", Extension: "101"},
				})
			},
			[]string{"knows", "all rights", "may be", "2 of 2", "! extension 101 belongs to several: Anna", "can be"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				c.breaks(b.portal)
				findings := b.sender.Check(b.t.Context())
				for i, f := range findings {
					text := f.Text
					switch {
					case f.Err != nil:
						text = "✗ " + f.Err.Error()
					case f.IsWarning:
						text = "! " + f.Text
					}
					if i >= len(c.want) || !strings.Contains(text, c.want[i]) {
						t.Errorf("finding %d is %q, want %q", i, text, c.want)
					}
				}
				if calls := len(b.portal.Calls()); len(findings) != len(c.want) || calls > 0 {
					t.Errorf("there are %d findings, want %d; %d calls", len(findings), len(c.want), calls)
				}
			})
		})
	}
}

func TestTryIsAMissedCall(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		id, err := b.sender.Try(b.t.Context(), client)
		c := b.one()
		if err != nil || c.CallID != id || !c.Finished || c.StatusCode != "304" || len(c.Cards)+c.Lead > 0 {
			t.Errorf("the call is %+v (%v)", c, err)
		}
		b.portal.AppOnly(true)
		_, err = b.sender.Try(b.t.Context(), client)
		if err == nil || !strings.Contains(err.Error(), "lets no webhook") {
			t.Errorf("it fails with %v", err)
		}
	})
}

// More clicks than anybody makes are answered, and make no calls: each waits for the exchange.
func TestClicksUnderWayAreBounded(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		g := &gate{hold: make(chan struct{})}
		var log logtest.Buffer
		mux := http.NewServeMux()
		mux.Handle(http.MethodPost+" "+HookPath, b.hook(g, &log))
		for n := range maxClicking + 2 {
			_, status, err := b.portal.Click(
				b.t.Context(), &http.Client{Transport: transport{mux}}, "https://bridge.example/hooks/bitrix24/crm",
				token, 16, fmt.Sprint("7912", 1000000+n), bitrix24test.ClickOptions{},
			)
			if err != nil || status != http.StatusOK {
				b.t.Fatalf("click %d: HTTP %d, %v", n, status, err)
			}
		}
		synctest.Wait()
		if got := strings.Count(log.String(), "too many are under way"); got != 2 {
			b.t.Errorf("%d are too many: %s", got, log.String())
		}
		close(g.hold)
		time.Sleep(time.Minute)
		if got := len(g.commands()); got != maxClicking {
			b.t.Errorf("%d calls are made", got)
		}
	})
}
