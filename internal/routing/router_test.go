package routing

import (
	"cmp"
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

// TestOutcomeOfAQuestion holds every way in which the question where a call goes can stand.
func TestOutcomeOfAQuestion(t *testing.T) {
	asked := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	by := asked.Add(10 * time.Second)
	number := func(who, to string, after time.Duration) telephony.Reply {
		return telephony.Reply{By: who, To: to, Kind: telephony.ReplyNumber, At: asked.Add(after)}
	}
	declined := func(who string, after time.Duration) telephony.Reply {
		return telephony.Reply{By: who, Kind: telephony.ReplyDeclined, At: asked.Add(after)}
	}
	none := func(who string) telephony.Reply {
		return telephony.Reply{By: who, Kind: telephony.ReplyNone, At: asked}
	}
	a, ab := []string{"a"}, []string{"a", "b"}
	const soon, late = time.Second, 11 * time.Second
	type replies = []telephony.Reply
	const (
		open, closed = telephony.RouteOpen, telephony.RouteClosed
		won, over    = telephony.RouteWon, telephony.RouteOver
	)
	for name, c := range map[string]struct {
		asked   []string
		replies replies
		after   time.Duration
		stands  telephony.RouteOutcome // empty: open
		want    telephony.RouteOutcome
		winner  string
	}{
		"no endpoint is asked":             {nil, nil, 0, "", closed, ""},
		"none has answered yet":            {ab, nil, 9 * time.Second, "", open, ""},
		"the time is up":                   {ab, nil, 10 * time.Second, "", closed, ""},
		"one of two declines":              {ab, replies{declined("a", 1)}, soon, "", open, ""},
		"one declines twice":               {ab, replies{declined("a", 1), declined("a", 2)}, soon, "", open, ""},
		"both decline":                     {ab, replies{declined("a", 1), declined("b", 1)}, soon, "", closed, ""},
		"one declines, one gives none":     {ab, replies{none("b"), declined("a", 1)}, soon, "", closed, ""},
		"one that was not asked declines":  {a, replies{declined("operator", 1)}, soon, "", open, ""},
		"one answers":                      {ab, replies{number("b", "1", 1)}, soon, "", won, "b"},
		"two answer":                       {ab, replies{number("b", "1", 1), number("a", "2", 1)}, soon, "", won, "b"},
		"one answers after it declined":    {ab, replies{declined("a", 1), number("a", "1", 2)}, soon, "", won, "a"},
		"one answers after it gave none":   {ab, replies{none("a"), number("a", "1", 2)}, soon, "", won, "a"},
		"one that was not asked answers":   {a, replies{number("operator", "1", 1)}, soon, "", won, "operator"},
		"an answer at the last moment":     {a, replies{number("a", "1", 10*time.Second-1)}, late, "", won, "a"},
		"an answer just too late":          {a, replies{number("a", "1", 10*time.Second)}, late, "", closed, ""},
		"an answer after it was won":       {a, replies{number("a", "1", 1)}, soon, won, won, ""},
		"an answer after it was closed":    {a, replies{number("a", "1", 1)}, soon, closed, closed, ""},
		"an answer after the call is over": {a, replies{number("a", "1", 1)}, soon, over, over, ""},
	} {
		route := telephony.Route{
			AskedAt:  asked,
			AnswerBy: by,
			Asked:    c.asked,
			Replies:  c.replies,
			Outcome:  cmp.Or(c.stands, open),
		}
		got, reply := outcomeOf(&route, asked.Add(c.after))
		if got != c.want || reply.By != c.winner {
			t.Errorf("%s: %s by %q, want %s by %q", name, got, reply.By, c.want, c.winner)
		}
	}
}

// oneRoute is a store of one call's route.
type oneRoute struct {
	mu   sync.Mutex
	kept telephony.Route
}

func (o *oneRoute) Route(context.Context, string) (*telephony.Route, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.kept
	return &r, nil
}

func (o *oneRoute) ChangeRoute(
	_ context.Context, _ string, c telephony.RouteChange,
) (telephony.RouteResult, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Change(&o.kept, c), nil
}

func (o *oneRoute) set(r telephony.Route) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = r
}

// openRoute is a question that was asked now, at which endpoints, and may be answered for a time.
func openRoute(eventID string, answerWithin time.Duration, asked ...string) *oneRoute {
	return &oneRoute{kept: telephony.Route{
		CallID:   "5",
		EventID:  eventID,
		AskedAt:  time.Now(),
		AnswerBy: time.Now().Add(answerWithin),
		Asked:    asked,
		Outcome:  telephony.RouteOpen,
	}}
}

// newRouter gives a router whose Transfers may take a second.
func newRouter(t *testing.T, routes *oneRoute, opts RouterOptions) *Router {
	t.Helper()
	opts.Routes, opts.Logger = routes, slog.New(slog.DiscardHandler)
	if opts.Timeout == 0 {
		opts.Timeout = time.Second
	}
	r, err := NewRouter(opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answering is an exchange that answers every command alike.
type answering struct {
	err      error
	commands int
}

func (a *answering) Do(context.Context, telephony.Command) error {
	a.commands++
	return a.err
}

func (a *answering) WaitConnected(context.Context) error { return a.err }

// TestWinnerThatRepeatsItsNumberGetsTheResult checks that the winner gets how the Transfer has
// ended. It is not written again, except where it surely was not written.
func TestWinnerThatRepeatsItsNumberGetsTheResult(t *testing.T) {
	for _, c := range []struct {
		err      error
		commands int // of two answers
	}{
		{nil, 1},
		{&telephony.RefusedError{Code: "2", Details: "no such extension"}, 1},
		{telephony.ErrNoAnswer, 1},
		{telephony.ErrNotSent, 2},
		{telephony.ErrNotConnected, 2},
		{telephony.ErrOutboxFull, 2},
	} {
		pbx := &answering{err: c.err}
		route := openRoute("e", time.Minute, "a")
		r := newRouter(t, route, RouterOptions{Exchange: pbx})
		first, second := r.Answer(t.Context(), "5", "", "a", "101"), r.Answer(t.Context(), "5", "", "a", "101")
		if !reflect.DeepEqual(first, c.err) || !reflect.DeepEqual(second, c.err) || pbx.commands != c.commands {
			t.Errorf("%v: first %v, then %v, by %d commands", c.err, first, second, pbx.commands)
		}
		if got, want := route.kept.TransferCause, telephony.CauseOf(c.err); !reflect.DeepEqual(got, want) {
			t.Errorf("%v: stored is %+v, want %+v", c.err, got, want)
		}
	}
}

// TestRepeatedNumberGetsTheLatestResult checks that the winner that repeats its number gets how the
// Transfer has ended, also if it ended between what was read and the wait for its end.
func TestRepeatedNumberGetsTheLatestResult(t *testing.T) {
	for state, want := range map[telephony.TransferState]error{
		telephony.TransferDone:    nil,
		telephony.TransferNotSent: telephony.ErrNotSent,
		telephony.TransferWriting: telephony.ErrNoAnswer,
	} {
		read := telephony.Route{
			CallID:   "5",
			Outcome:  telephony.RouteWon,
			Winner:   "a",
			To:       "101",
			Transfer: telephony.TransferWriting,
		}
		routes := &oneRoute{kept: read}
		routes.kept.Transfer = state
		r := newRouter(t, routes, RouterOptions{Exchange: &answering{}})
		if err := r.transferEnded(t.Context(), read); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", state, err, want)
		}
	}
}

// slowly carries out commands, each in a time of its own.
type slowly map[string]time.Duration // by where the call goes

func (s slowly) Do(_ context.Context, cmd telephony.Command) error {
	time.Sleep(s[cmd.To])
	return nil
}

func (s slowly) WaitConnected(context.Context) error { return nil }

// TestRepeatedNumberWaitsForItsOwnTransfer checks that the winner that repeats its number gets how
// its own Transfer ended, also when the call's decline of before ends meanwhile.
func TestRepeatedNumberWaitsForItsOwnTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		routes := openRoute("first", 10*time.Second, "a")
		r := newRouter(t, routes, RouterOptions{
			Exchange:         slowly{"": 2 * time.Second, "101": 5 * time.Second},
			DeclineOnSilence: true,
			Timeout:          time.Minute,
		})
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
		routes.set(openRoute("second", 10*time.Second, "a").kept)
		answer("101")
		time.Sleep(time.Second)
		answer("101")
		answers.Wait()
	})
}

// TestTransferHasNotEndedWhileItIsTriedAgain checks that the end of a first try, which has failed,
// is none of a second one that is under way.
func TestTransferHasNotEndedWhileItIsTriedAgain(t *testing.T) {
	r := newRouter(t, &oneRoute{}, RouterOptions{Exchange: slowly{}})
	r.begin("5")
	r.begin("5")
	r.end("5")
	second := r.inProgress["5"]
	if second == nil {
		t.Fatal("nothing can wait for the second")
	}
	select {
	case <-second.done:
		t.Error("the second has ended")
	default:
	}
	r.end("5")
	<-second.done
}

// obeying is an exchange that carries out nothing once its context has ended.
type obeying struct{ commands int }

func (o *obeying) Do(ctx context.Context, _ telephony.Command) error {
	o.commands++
	return ctx.Err()
}

func (o *obeying) WaitConnected(context.Context) error { return nil }

// TestDecisionIsWrittenOnceAfterItsClientHasGone checks that the exchange gets what is decided also
// where the client that answered has gone away. The winner's other number gets it nothing new, nor
// does anything once the call is over, and another that brings the winner's number has not won.
func TestDecisionIsWrittenOnceAfterItsClientHasGone(t *testing.T) {
	pbx := &obeying{}
	routes := openRoute("e", time.Minute, "a", "b")
	r := newRouter(t, routes, RouterOptions{Exchange: pbx})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Answer(ctx, "5", "", "a", "101"); err != nil || routes.kept.Transfer != telephony.TransferDone {
		t.Errorf("the answer: %v, the Transfer is %s", err, routes.kept.Transfer)
	}
	var decided *telephony.DecidedError
	if err := r.Answer(t.Context(), "5", "", "b", "101"); !errors.As(err, &decided) || decided.Winner != "a" {
		t.Errorf("another with that number: %v", err)
	}
	routes.kept.Transfer = telephony.TransferNotSent
	if err := r.Answer(t.Context(), "5", "", "a", "102"); !errors.As(err, &decided) {
		t.Errorf("the winner's other number: %v", err)
	}
	routes.kept.OverAt, routes.kept.Transfer = time.Now(), telephony.TransferNotSent
	_ = r.Answer(t.Context(), "5", "", "a", "101")
	if pbx.commands != 1 {
		t.Errorf("%d commands", pbx.commands)
	}
}

// TestEndOfTimeClosesItsOwnQuestion checks that the end of the time counts whatever the clock says,
// and closes no question before; what comes of an older question changes nothing in a newer one.
func TestEndOfTimeClosesItsOwnQuestion(t *testing.T) {
	settle := func(eventID string, timeUp bool) func(context.Context, *Router) {
		return func(ctx context.Context, r *Router) { r.Settle(ctx, "5", eventID, timeUp, nil) }
	}
	noAnswer := func(eventID string) func(context.Context, *Router) {
		return func(ctx context.Context, r *Router) { r.NoAnswer(ctx, "5", eventID, "a", errors.New("HTTP 410")) }
	}
	for name, c := range map[string]struct {
		do   func(context.Context, *Router)
		want telephony.RouteOutcome
	}{
		"the time is up, by another clock": {settle("new", true), telephony.RouteClosed},
		"it is not up":                     {settle("new", false), telephony.RouteOpen},
		"that of the question before is":   {settle("old", true), telephony.RouteOpen},
		"no other endpoint is asked":       {noAnswer("new"), telephony.RouteClosed},
		"of the question before":           {noAnswer("old"), telephony.RouteOpen},
	} {
		routes := openRoute("new", time.Hour, "a")
		c.do(t.Context(), newRouter(t, routes, RouterOptions{Exchange: &answering{}, DeclineOnSilence: true}))
		if routes.kept.Outcome != c.want {
			t.Errorf("%s: the question is %s", name, routes.kept.Outcome)
		}
		if len(routes.kept.Replies) > 0 && strings.Contains(name, "before") {
			t.Errorf("%s: replies %v", name, routes.kept.Replies)
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

// TestAnswerThatIsNotAllowedChangesNothing checks that the endpoint that gave such an answer may
// give another one.
func TestAnswerThatIsNotAllowedChangesNothing(t *testing.T) {
	pbx := &answering{}
	routes := openRoute("e", time.Minute, "a")
	r := newRouter(t, routes, RouterOptions{Exchange: pbx, Policy: forbidding{"101"}})
	var notAllowed *telephony.NotAllowedError
	err := r.Answer(t.Context(), "5", "", "a", "+44 20")
	if !errors.As(err, &notAllowed) || pbx.commands != 0 ||
		routes.kept.Outcome != telephony.RouteOpen || len(routes.kept.Replies) != 0 {
		t.Fatalf("%v, %d commands, %+v", err, pbx.commands, routes.kept)
	}
	err = r.Answer(t.Context(), "5", "", "a", "101")
	if err != nil || pbx.commands != 1 || routes.kept.Outcome != telephony.RouteWon {
		t.Errorf("another one after that: %v, %d commands, %+v", err, pbx.commands, routes.kept)
	}
}

// TestTransferOfAnUnconnectedBridgeIsWrittenByAnother checks that an answer counts at a bridge
// which is not connected: it decides the call, the connected bridge writes the Transfer, once, and
// the one that took the answer returns what came of it.
func TestTransferOfAnUnconnectedBridgeIsWrittenByAnother(t *testing.T) {
	for _, want := range []error{nil, &telephony.RefusedError{Code: "500"}} {
		synctest.Test(t, func(t *testing.T) {
			pbx := &answering{err: want}
			routes := openRoute("e", time.Minute, "a")
			left := func(_ context.Context, now time.Time) (list []telephony.Route, err error) {
				if r, err := routes.Route(t.Context(), "5"); err == nil && r.Unsent(now) {
					list = append(list, *r)
				}
				return list, nil
			}
			bridge := func(isConnected bool) *Router {
				return newRouter(t, routes, RouterOptions{
					Exchange: pbx, Left: left, Connected: func() bool { return isConnected },
				})
			}
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			for range 2 {
				running.Go(func() { _ = bridge(true).Run(ctx) })
			}
			err := bridge(false).Answer(t.Context(), "5", "", "a", "101")
			if !reflect.DeepEqual(err, want) || pbx.commands != 1 || routes.kept.Outcome != telephony.RouteWon {
				t.Errorf("%v, %d commands, %+v", err, pbx.commands, routes.kept)
			}
			stop()
			running.Wait()
		})
	}
}

// TestTransferThatABridgeCouldNotWriteIsWrittenByAnother checks that a Transfer which a connected
// bridge could not write is left to another one, and that the one that took the answer returns what
// came of it there.
func TestTransferThatABridgeCouldNotWriteIsWrittenByAnother(t *testing.T) {
	for _, why := range []error{telephony.ErrNotConnected, telephony.ErrNotSent, telephony.ErrOutboxFull} {
		synctest.Test(t, func(t *testing.T) {
			open := openRoute("e", time.Minute, "a").kept
			routes := &manyRoutes{kept: map[string]*telephony.Route{"5": &open}}
			well := &answering{}
			_, stop := runShared(t, routes, well)
			defer stop()
			full, err := NewRouter(RouterOptions{
				Exchange: &answering{err: why}, Routes: routes, Timeout: 15 * time.Second, Left: routes.left,
				Connected: func() bool { return true }, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := full.Answer(t.Context(), "5", "", "a", "101"); err != nil || well.commands != 1 {
				t.Errorf("%v: the answer ends with %v, %d commands", why, err, well.commands)
			}
		})
	}
}

// TestTransferThatNobodyWrites checks that an answer at a bridge without a connection fails once
// its time is over, if no other bridge is connected.
func TestTransferThatNobodyWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pbx := &answering{}
		routes := openRoute("e", time.Minute, "a")
		r := newRouter(t, routes, RouterOptions{
			Exchange: pbx, Connected: func() bool { return false },
			Left: func(context.Context, time.Time) ([]telephony.Route, error) { return nil, nil },
		})
		err := r.Answer(t.Context(), "5", "", "a", "101")
		if !errors.Is(err, telephony.ErrNotSent) || pbx.commands != 0 {
			t.Errorf("%v, %d commands", err, pbx.commands)
		}
	})
}

// oneSlow is an exchange that does not answer the Transfer of one call.
type oneSlow struct{ call string }

func (o oneSlow) Do(ctx context.Context, cmd telephony.Command) error {
	if cmd.CallID != o.call {
		return nil
	}
	<-ctx.Done()
	return telephony.ErrNoAnswer
}

func (oneSlow) WaitConnected(context.Context) error { return nil }

// manyRoutes keeps the routes of several calls. Doubt is how many changes are stored and reported
// as unknown.
type manyRoutes struct {
	mu    sync.Mutex
	kept  map[string]*telephony.Route
	doubt int
}

func (m *manyRoutes) Route(_ context.Context, id string) (*telephony.Route, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := *m.kept[id]
	return &r, nil
}

func (m *manyRoutes) ChangeRoute(
	_ context.Context, id string, c telephony.RouteChange,
) (telephony.RouteResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Change(m.kept[id], c)
	if m.doubt > 0 {
		m.doubt--
		return telephony.RouteResult{}, errors.New("the database is not available")
	}
	return r, nil
}

func (m *manyRoutes) left(_ context.Context, now time.Time) (list []telephony.Route, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.kept {
		if r.Unsent(now) {
			list = append(list, *r)
		}
	}
	return list, nil
}

// runShared runs the router of a connected bridge.
func runShared(t *testing.T, routes *manyRoutes, pbx Exchange) (r *Router, stop func()) {
	t.Helper()
	r, err := NewRouter(RouterOptions{
		Exchange: pbx, Routes: routes, Timeout: 15 * time.Second, Left: routes.left,
		Connected: func() bool { return true }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = r.Run(ctx) })
	return r, func() {
		cancel()
		running.Wait()
	}
}

// TestATransferThatTakesLongHoldsUpNoOther checks that one Transfer which the exchange does not
// answer does not hold up those that are left to this bridge meanwhile.
func TestATransferThatTakesLongHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		won := func(id string) *telephony.Route {
			return &telephony.Route{
				CallID: id, EventID: id, AskedAt: now, AnswerBy: now.Add(10 * time.Second),
				Outcome: telephony.RouteWon, Winner: "crm", To: "101", Transfer: telephony.TransferNotSent,
			}
		}
		routes := &manyRoutes{kept: map[string]*telephony.Route{"slow": won("slow")}}
		_, stop := runShared(t, routes, oneSlow{"slow"})
		defer stop()
		time.Sleep(time.Second)
		routes.mu.Lock()
		routes.kept["other"] = won("other")
		routes.mu.Unlock()
		time.Sleep(time.Second)
		if r, _ := routes.Route(t.Context(), "other"); r.Transfer != telephony.TransferDone {
			t.Errorf("the other call's Transfer is %s", r.Transfer)
		}
	})
}

// TestADecisionInDoubtIsWritten checks that the Transfer of a decision is written whose commit was
// reported as unknown: it is marked as being written, so nobody else would write it.
func TestADecisionInDoubtIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		routes := &manyRoutes{doubt: 1, kept: map[string]*telephony.Route{"5": {
			CallID: "5", EventID: "e", AskedAt: now, AnswerBy: now.Add(10 * time.Second), Asked: []string{"crm"},
			Outcome: telephony.RouteOpen,
		}}}
		r, stop := runShared(t, routes, &answering{})
		defer stop()
		if err := r.Answer(t.Context(), "5", "e", "crm", "101"); err != nil {
			t.Error(err)
		}
		if kept, _ := routes.Route(t.Context(), "5"); kept.Transfer != telephony.TransferDone {
			t.Errorf("the Transfer is %s", kept.Transfer)
		}
	})
}
