package relay

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// Every way in which the question where a call goes can stand.
func TestVerdict(t *testing.T) {
	asked := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	by := asked.Add(10 * time.Second)
	number := func(who, to string, after time.Duration) telephony.Reply {
		return telephony.Reply{By: who, To: to, Kind: telephony.ReplyNumber, At: asked.Add(after)}
	}
	declined := func(who string, after time.Duration) telephony.Reply {
		return telephony.Reply{By: who, Kind: telephony.ReplyDeclined, At: asked.Add(after)}
	}
	out := func(who string) telephony.Reply {
		return telephony.Reply{By: who, Kind: telephony.ReplyOut, At: asked}
	}
	for name, c := range map[string]struct {
		asked   []string
		replies []telephony.Reply
		after   time.Duration
		stands  telephony.RouteOutcome // empty: open
		want    telephony.RouteOutcome
		winner  string
	}{
		"nobody is asked":                     {nil, nil, 0, "", telephony.RouteClosed, ""},
		"nobody has answered yet":             {[]string{"a", "b"}, nil, 9 * time.Second, "", telephony.RouteOpen, ""},
		"the time is up":                      {[]string{"a", "b"}, nil, 10 * time.Second, "", telephony.RouteClosed, ""},
		"one of two declines":                 {[]string{"a", "b"}, []telephony.Reply{declined("a", 1)}, time.Second, "", telephony.RouteOpen, ""},
		"one declines twice":                  {[]string{"a", "b"}, []telephony.Reply{declined("a", 1), declined("a", 2)}, time.Second, "", telephony.RouteOpen, ""},
		"both decline":                        {[]string{"a", "b"}, []telephony.Reply{declined("a", 1), declined("b", 1)}, time.Second, "", telephony.RouteClosed, ""},
		"one declines, one is out":            {[]string{"a", "b"}, []telephony.Reply{out("b"), declined("a", 1)}, time.Second, "", telephony.RouteClosed, ""},
		"somebody who was not asked declines": {[]string{"a"}, []telephony.Reply{declined("operator", 1)}, time.Second, "", telephony.RouteOpen, ""},
		"one answers":                         {[]string{"a", "b"}, []telephony.Reply{number("b", "1", 1)}, time.Second, "", telephony.RouteWon, "b"},
		"two answer":                          {[]string{"a", "b"}, []telephony.Reply{number("b", "1", 1), number("a", "2", 1)}, time.Second, "", telephony.RouteWon, "b"},
		"one answers after it declined":       {[]string{"a", "b"}, []telephony.Reply{declined("a", 1), number("a", "1", 2)}, time.Second, "", telephony.RouteWon, "a"},
		"one answers after it was out":        {[]string{"a", "b"}, []telephony.Reply{out("a"), number("a", "1", 2)}, time.Second, "", telephony.RouteWon, "a"},
		"one answers, not asked":              {[]string{"a"}, []telephony.Reply{number("operator", "1", 1)}, time.Second, "", telephony.RouteWon, "operator"},
		"an answer at the last moment":        {[]string{"a"}, []telephony.Reply{number("a", "1", 10*time.Second-1)}, 11 * time.Second, "", telephony.RouteWon, "a"},
		"an answer just too late":             {[]string{"a"}, []telephony.Reply{number("a", "1", 10*time.Second)}, 11 * time.Second, "", telephony.RouteClosed, ""},
		"an answer after it was won":          {[]string{"a"}, []telephony.Reply{number("a", "1", 1)}, time.Second, telephony.RouteWon, telephony.RouteWon, ""},
		"an answer after it was closed":       {[]string{"a"}, []telephony.Reply{number("a", "1", 1)}, time.Second, telephony.RouteClosed, telephony.RouteClosed, ""},
		"an answer after the call was over":   {[]string{"a"}, []telephony.Reply{number("a", "1", 1)}, time.Second, telephony.RouteOver, telephony.RouteOver, ""},
	} {
		route := telephony.Route{AskedAt: asked, AnswerBy: by, Asked: c.asked, Replies: c.replies, Outcome: telephony.RouteOpen}
		if c.stands != "" {
			route.Outcome = c.stands
		}
		got, reply := verdict(route, asked.Add(c.after))
		if got != c.want || reply.By != c.winner {
			t.Errorf("%s: %s by %q, want %s by %q", name, got, reply.By, c.want, c.winner)
		}
	}
}

// oneRoute is a ledger of one call.
type oneRoute struct {
	mu sync.Mutex
	telephony.Route
}

func (l *oneRoute) ChangeRoute(_ string, change func(*telephony.Route)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.Route)
	return nil
}

// answering is an exchange that answers every command alike.
type answering struct {
	err   error
	asked int
}

func (a *answering) Do(context.Context, telephony.Command) error {
	a.asked++
	return a.err
}

func (a *answering) WaitConnected(context.Context) error { return a.err }

// The winner that says its number again hears how the Transfer has ended. It is not written again, but if it surely was not written.
func TestWinnerSaysItAgain(t *testing.T) {
	for _, c := range []struct {
		err   error
		asked int // commands, of two answers
	}{
		{nil, 1},
		{&telephony.RefusedError{Code: "2", Details: "no such extension"}, 1},
		{telephony.ErrNoAnswer, 1},
		{telephony.ErrNotSent, 2},
		{telephony.ErrNotConnected, 2},
		{telephony.ErrOutboxFull, 2},
	} {
		pbx := &answering{err: c.err}
		ledger := &oneRoute{Route: telephony.Route{CallID: "5", EventID: "e", AskedAt: time.Now(), AnswerBy: time.Now().Add(time.Minute), Asked: []string{"a"}, Outcome: telephony.RouteOpen}}
		r, err := NewRouter(RouterOptions{Exchange: pbx, Ledger: ledger, Timeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		first, second := r.Answer(t.Context(), "5", "", "a", "101"), r.Answer(t.Context(), "5", "", "a", "101")
		if !reflect.DeepEqual(first, c.err) || !reflect.DeepEqual(second, c.err) || pbx.asked != c.asked {
			t.Errorf("%v: first %v, then %v, by %d commands", c.err, first, second, pbx.asked)
		}
	}
}

// kept is a ledger of one route.
type kept struct{ route telephony.Route }

func (k *kept) ChangeRoute(_ string, change func(*telephony.Route)) error {
	change(&k.route)
	return nil
}

// The winner that says its number again hears how the Transfer has ended, also if it ended between what it has read and that it asks.
func TestTransferEndsMeanwhile(t *testing.T) {
	for state, want := range map[telephony.TransferState]error{
		telephony.TransferDone: nil, telephony.TransferNotSent: telephony.ErrNotSent, telephony.TransferWriting: telephony.ErrNoAnswer,
	} {
		read := telephony.Route{CallID: "5", Outcome: telephony.RouteWon, Winner: "a", To: "101", Transfer: telephony.TransferWriting}
		ledger := &kept{read}
		ledger.route.Transfer = state
		r := &Router{opts: RouterOptions{Ledger: ledger}, writing: map[string]chan struct{}{}}
		if err := r.ended(t.Context(), read); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", state, err, want)
		}
	}
}

// slowly carries out commands, each in its own time.
type slowly map[string]time.Duration // by where the call goes

func (s slowly) Do(_ context.Context, cmd telephony.Command) error {
	time.Sleep(s[cmd.To])
	return nil
}

func (s slowly) WaitConnected(context.Context) error { return nil }

// The winner that says its number again hears how its own Transfer ended, also when the call's decline of before ends meanwhile.
func TestDeclineOfBeforeEndsMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := func(id string) telephony.Route {
			return telephony.Route{
				CallID: "5", EventID: id, AskedAt: time.Now(), AnswerBy: time.Now().Add(10 * time.Second), Asked: []string{"a"}, Outcome: telephony.RouteOpen,
			}
		}
		l := &oneRoute{Route: asked("first")}
		r, err := NewRouter(RouterOptions{
			Exchange: slowly{"": 2 * time.Second, "101": 5 * time.Second}, Ledger: l, DeclineOnSilence: true, Timeout: time.Minute, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		var answers sync.WaitGroup
		answer := func(to string) {
			answers.Go(func() {
				if err := r.Answer(t.Context(), "5", "", "a", to); err != nil {
					t.Errorf("the answer %q: %v", to, err)
				}
			})
			time.Sleep(time.Second)
		}
		answer("")
		if err := l.ChangeRoute("5", func(route *telephony.Route) { *route = asked("second") }); err != nil {
			t.Fatal(err)
		}
		answer("101")
		time.Sleep(time.Second)
		answer("101")
		answers.Wait()
	})
}

// Nor does the first try to send it, which has failed, end for the second, which is under way.
func TestTransferIsTriedAgainMeanwhile(t *testing.T) {
	r, err := NewRouter(RouterOptions{Exchange: slowly{}, Ledger: &oneRoute{}, Timeout: time.Minute, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	first := r.begins("e")
	second := r.begins("e")
	r.ends("e", first)
	select {
	case <-second:
		t.Error("the second has ended")
	default:
	}
	if r.writing["e"] != second {
		t.Error("nobody can wait for the second")
	}
	r.ends("e", second)
	<-second
}

// obeying is an exchange that carries out nothing once its context has ended.
type obeying struct{ asked int }

func (o *obeying) Do(ctx context.Context, _ telephony.Command) error {
	o.asked++
	return ctx.Err()
}

func (o *obeying) WaitConnected(context.Context) error { return nil }

// What is decided is told to the exchange also if whoever has answered has gone away. The winner's other number tells it nothing new, nor does anything once the
// call is over, and another who names the winner's number has not won.
func TestDecidedWhileTheAnswererLeaves(t *testing.T) {
	pbx := &obeying{}
	ledger := &oneRoute{Route: telephony.Route{CallID: "5", EventID: "e", AskedAt: time.Now(), AnswerBy: time.Now().Add(time.Minute), Asked: []string{"a", "b"}, Outcome: telephony.RouteOpen}}
	r, err := NewRouter(RouterOptions{Exchange: pbx, Ledger: ledger, Timeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Answer(ctx, "5", "", "a", "101"); err != nil || ledger.Transfer != telephony.TransferDone {
		t.Errorf("the answer: %v, the Transfer is %s", err, ledger.Transfer)
	}
	var decided *telephony.DecidedError
	if err := r.Answer(t.Context(), "5", "", "b", "101"); !errors.As(err, &decided) || decided.Winner != "a" {
		t.Errorf("another with that number: %v", err)
	}
	ledger.Transfer = telephony.TransferNotSent
	if err := r.Answer(t.Context(), "5", "", "a", "102"); !errors.As(err, &decided) {
		t.Errorf("the winner's other number: %v", err)
	}
	ledger.OverAt, ledger.Transfer = time.Now(), telephony.TransferNotSent
	_ = r.Answer(t.Context(), "5", "", "a", "101")
	if pbx.asked != 1 {
		t.Errorf("%d commands", pbx.asked)
	}
}

// That the time is up counts whatever the clock says, and closes no question before; what comes of an older question changes nothing in a newer one.
func TestSettleWhatIsOpen(t *testing.T) {
	route := func(by time.Duration, asked ...string) *oneRoute {
		return &oneRoute{Route: telephony.Route{CallID: "5", EventID: "new", AskedAt: time.Now(), AnswerBy: time.Now().Add(by), Asked: asked, Outcome: telephony.RouteOpen}}
	}
	for name, c := range map[string]struct {
		ledger *oneRoute
		do     func(*Router)
		want   telephony.RouteOutcome
	}{
		"the time is up, by another clock": {route(time.Hour, "a"), func(r *Router) { r.Settle(t.Context(), "5", "new", true, nil) }, telephony.RouteClosed},
		"it is not up":                     {route(time.Hour, "a"), func(r *Router) { r.Settle(t.Context(), "5", "new", false, nil) }, telephony.RouteOpen},
		"that of the question before is":   {route(time.Hour, "a"), func(r *Router) { r.Settle(t.Context(), "5", "old", true, nil) }, telephony.RouteOpen},
		"nobody else is asked":             {route(time.Hour, "a"), func(r *Router) { r.Out(t.Context(), "5", "new", "a", "HTTP 410") }, telephony.RouteClosed},
		"of the question before":           {route(time.Hour, "a"), func(r *Router) { r.Out(t.Context(), "5", "old", "a", "HTTP 410") }, telephony.RouteOpen},
	} {
		r, err := NewRouter(RouterOptions{Exchange: &answering{}, Ledger: c.ledger, DeclineOnSilence: true, Timeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.do(r)
		if c.ledger.Outcome != c.want {
			t.Errorf("%s: the question is %s", name, c.ledger.Outcome)
		}
		if len(c.ledger.Replies) > 0 && strings.Contains(name, "before") {
			t.Errorf("%s: replies %v", name, c.ledger.Replies)
		}
	}
}

// forbidding allows nothing but one number.
type forbidding struct{ allowed string }

func (f forbidding) Allow(_ string, cmd telephony.Command) error {
	if cmd.To == f.allowed || cmd.To == "" {
		return nil
	}
	return &telephony.NotAllowedError{Reason: "to", Text: "not allowed"}
}

// An answer that is not allowed is as if it had not come: whoever gave it may give another, and
// another endpoint may win.
func TestAnswerThatIsNotAllowed(t *testing.T) {
	pbx := &answering{}
	ledger := &oneRoute{Route: telephony.Route{
		CallID: "5", EventID: "e", AskedAt: time.Now(), AnswerBy: time.Now().Add(time.Minute), Asked: []string{"a"}, Outcome: telephony.RouteOpen,
	}}
	r, err := NewRouter(RouterOptions{
		Exchange: pbx, Ledger: ledger, Timeout: time.Second, Policy: forbidding{"101"}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	var notAllowed *telephony.NotAllowedError
	if err := r.Answer(t.Context(), "5", "", "a", "+44 20"); !errors.As(err, &notAllowed) || pbx.asked != 0 || ledger.Outcome != telephony.RouteOpen || len(ledger.Replies) != 0 {
		t.Fatalf("%v, %d commands, %+v", err, pbx.asked, ledger.Route)
	}
	if err := r.Answer(t.Context(), "5", "", "a", "101"); err != nil || pbx.asked != 1 || ledger.Outcome != telephony.RouteWon {
		t.Errorf("another one after that: %v, %d commands, %+v", err, pbx.asked, ledger.Route)
	}
}
