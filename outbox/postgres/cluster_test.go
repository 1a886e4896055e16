package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/pairing"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// quick makes a process be counted as dead after a second: less, and a busy machine would do it.
func quick(o *Options) { o.Beat = 350 * time.Millisecond }

// die makes a process stop as one that was killed: others see no more of it.
func die(s *Engine) {
	s.presence.stop()
	s.presence.loop.Wait()
}

// TestWorkOfADeadProcessIsTaken checks that each lease of a process that died is taken by another
// one, and none of a process that lives.
func TestWorkOfADeadProcessIsTaken(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	a, b := mustOpen(t, url, quick), mustOpen(t, url, quick)
	for _, name := range []string{"slot:1", lanePrefix + "crm"} {
		if _, err := a.Take(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := b.Take(short, "slot:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a lease of a living process was taken: %v", err)
	}
	die(a)
	for _, name := range []string{"slot:1", lanePrefix + "crm"} {
		if _, err := b.Take(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Held().Err(); err == nil {
		t.Error("the dead process could still work while another one has its leases")
	}
}

// TestLanesAreSharedOut checks that three processes have equally many of five queues in the end,
// one after the other, whoever comes first; and that those of one that stops go to the others.
func TestLanesAreSharedOut(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	var list []*Engine
	var ends []context.CancelFunc
	var mu sync.Mutex
	has := map[*Engine]int{}
	var working sync.WaitGroup
	defer working.Wait()
	join := func() {
		s := mustOpen(t, url, quick)
		ctx, end := context.WithCancel(t.Context())
		list, ends = append(list, s), append(ends, end)
		for lane := range 5 {
			working.Go(func() {
				for ctx.Err() == nil {
					lease, err := s.Take(ctx, fmt.Sprint(lanePrefix, lane))
					if err != nil {
						return
					}
					mu.Lock()
					has[s]++
					mu.Unlock()
					select {
					case <-lease.Wanted():
					case <-ctx.Done():
					}
					mu.Lock()
					has[s]--
					mu.Unlock()
					_ = s.Release(context.WithoutCancel(ctx), lease)
				}
			})
		}
	}
	shares := func() (numbers []int) {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range list {
			numbers = append(numbers, has[s])
		}
		slices.Sort(numbers)
		return numbers
	}
	for _, want := range [][]int{{5}, {2, 3}, {1, 2, 2}} {
		join()
		await(t, fmt.Sprint("the shares are ", want), func() bool { return slices.Equal(shares(), want) })
	}
	ends[0]()
	await(t, "the two others have all", func() bool { return slices.Equal(shares(), []int{0, 2, 3}) })
	for _, end := range ends {
		end()
	}
}

// TestOfADeadProcessOnlySuccessesCount checks what a process records that counts as dead already:
// the CRM has got the event, but another process may have made an attempt that failed later.
func TestOfADeadProcessOnlySuccessesCount(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url, quick)
	mustStore(t, s, "1", "2")
	l, jobs := mustClaim(t, s, 2)
	pgtest.SQL(t, url, `DELETE FROM pzbridge.process`)
	failed := jobs[1].Delivery
	failed.Attempts, failed.Due = 1, time.Now().Add(time.Hour).UnixNano()
	results := []store.Result{
		deliveredNow(jobs[0]),
		{Job: jobs[1], Now: failed, Attempt: &store.Attempt{At: time.Now(), Error: "refused"}},
	}
	if err := l.Record(t.Context(), results); err != nil || results[0].Overruled || !results[1].Overruled {
		t.Errorf("%v, overruled: %v, %v", err, results[0].Overruled, results[1].Overruled)
	}
	left := pgtest.SQL(t, url, `SELECT string_agg(n || ' ' || attempts, ',') FROM pzbridge.pending WHERE endpoint = 1`)
	if want := fmt.Sprint(jobs[1].Number, " 0"); left != want {
		t.Errorf("%q is left, want %q", left, want)
	}
	if err := s.Run(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("Run ends with %v", err)
	}
}

// asking is an event with which a call asks where to go.
func asking(t *testing.T, call string) store.NewEvent {
	t.Helper()
	e := storetest.Event("call.transfer_requested", call)
	e.Time = time.Now()
	n, err := store.Encode(&e, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAQuestionIsAskedByOneProcess checks that questions belong to the process that has stored
// them, that those of a dead one are taken, each by one other, and that the dead one can then not
// end them.
func TestAQuestionIsAskedByOneProcess(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	var events []store.NewEvent
	a, b, c := mustOpen(t, url, quick), mustOpen(t, url, quick), mustOpen(t, url, quick)
	for i := range 50 {
		events = append(events, asking(t, fmt.Sprint(i)))
	}
	stored, err := a.Append(t.Context(), events)
	if err != nil || len(stored.Questions) != len(events) {
		t.Fatalf("%d questions, %v", len(stored.Questions), err)
	}
	if list, err := b.TakeQuestions(t.Context()); len(list) != 0 || err != nil {
		t.Fatalf("those of a living process were taken: %v, %v", list, err)
	}
	die(a)
	taken := map[uint64]*Engine{}
	var mu sync.Mutex
	await(t, "all are taken", func() bool {
		var taking sync.WaitGroup
		for _, s := range []*Engine{b, c} {
			taking.Go(func() {
				list, err := s.TakeQuestions(t.Context())
				mu.Lock()
				defer mu.Unlock()
				for _, n := range list {
					if err != nil || taken[n] != nil && taken[n] != s {
						t.Errorf("question %d is taken twice: %v", n, err)
					}
					taken[n] = s
				}
			})
		}
		taking.Wait()
		return len(taken) == len(events)
	})
	if ended, err := a.EndQuestion(t.Context(), stored.Questions[0], nil, time.Now()); len(ended) != 0 || err != nil {
		t.Errorf("the dead process has ended %d deliveries: %v", len(ended), err)
	}
	owner := taken[stored.Questions[0]]
	ended, err := owner.EndQuestion(t.Context(), stored.Questions[0], nil, time.Now())
	if len(ended) != 2 || err != nil {
		t.Errorf("its owner has ended %d deliveries: %v", len(ended), err)
	}
}

// TestATransferIsLeftToAConnectedBridge checks that a decision made without a connection is found
// by those that have one, until somebody writes it or its time is over.
func TestATransferIsLeftToAConnectedBridge(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	waits := func(o *Options) {
		box := storetest.Options{Endpoints: []store.Endpoint{storetest.Endpoint("crm")}, RoutingTimeout: time.Minute}
		o.Rules = box.Rules()
	}
	a, b := mustOpen(t, url, waits), mustOpen(t, url, waits)
	if _, err := a.Append(t.Context(), []store.NewEvent{asking(t, "5")}); err != nil {
		t.Fatal(err)
	}
	now, number := time.Now(), 0
	change := func(s *Engine, c telephony.RouteChange) telephony.RouteResult {
		t.Helper()
		number++
		c.ID, c.Now = fmt.Sprint(number), now
		r, err := s.ChangeRoute(t.Context(), "5", c)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	left := func(at time.Time) (calls []string) {
		t.Helper()
		list, err := b.UnwrittenTransfers(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			calls = append(calls, r.CallID)
		}
		return calls
	}
	answer := []telephony.Reply{{By: "crm", Kind: telephony.ReplyNumber, To: "101"}}
	r := change(a, telephony.RouteChange{Kind: telephony.RouteAnswer, Replies: answer, LeaveTransfer: true})
	if r.Write || r.After.Outcome != telephony.RouteWon || !slices.Equal(left(now), []string{"5"}) {
		t.Fatalf("%+v; %v are left", r, left(now))
	}
	if late := left(now.Add(time.Hour)); len(late) != 0 {
		t.Errorf("after an hour %v are still left", late)
	}
	settle := telephony.RouteChange{Kind: telephony.RouteSettle, EventID: r.After.EventID}
	if r := change(b, settle); !r.Write || len(left(now)) != 0 {
		t.Errorf("%+v; %v are left", r, left(now))
	}
	settle.Replies = answer // another change
	if r := change(a, settle); r.Write {
		t.Error("the Transfer is written twice")
	}
}

// TestAListenerIsToldThatAnotherWasFaster checks the compare and set with which two listeners store
// what both have read.
func TestAListenerIsToldThatAnotherWasFaster(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	a, b := mustOpen(t, url), mustOpen(t, url)
	event := func(print byte) []store.NewEvent {
		list := newEvents(t, "5")
		list[0].Fingerprint = [16]byte{print}
		return list
	}
	followed, err := b.LastNumber(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := event(1)
	for range 2 { // also as a repeated append, whatever b has stored meanwhile
		if _, err := a.AppendHeard(t.Context(), 1, followed, first); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Append(t.Context(), event(9)); err != nil { // of the bridge itself
		t.Fatal(err)
	}
	own := event(2)
	if _, err := b.AppendHeard(t.Context(), 2, followed, own); !errors.Is(err, store.ErrBehind) {
		t.Fatalf("stored although the other one was faster: %v", err)
	}
	heard, followed, err := b.HeardByOthers(t.Context(), 2, followed)
	if err != nil || len(heard) != 1 || heard[0] != (store.Heard{Print: first[0].Fingerprint}) {
		t.Fatalf("%v, %v", heard, err)
	}
	if again, at, err := b.HeardByOthers(t.Context(), 2, followed); len(again) != 0 || at != followed || err != nil {
		t.Errorf("%v once more, up to %d, %v", again, at, err)
	}
	if _, err := b.AppendHeard(t.Context(), 2, followed, own); err != nil {
		t.Error(err)
	}
	if _, err := a.AppendHeard(t.Context(), 1, 0, first); err != nil {
		t.Errorf("a repeated append fails: %v", err)
	}
	if n := pgtest.SQL(t, url, `SELECT count(*) FROM pzbridge.event`); n != "3" {
		t.Errorf("%s events are stored, want 3", n)
	}
}

// with makes an engine that of a bridge with some endpoints.
func with(name string, endpoints ...store.Endpoint) func(*Options) {
	return func(o *Options) {
		o.Name = name
		box := storetest.Options{Endpoints: endpoints}
		o.Rules = box.Rules()
		for i := range endpoints {
			o.Subscriptions = append(o.Subscriptions, endpoints[i].Subscription())
		}
		o.Extend = func(others []store.Subscription) store.Rules {
			box := storetest.Options{Endpoints: store.WithSubscriptions(endpoints, others)}
			return box.Rules()
		}
	}
}

// TestEventsAreStoredForTheEndpointsOfAllBridges checks that nothing is missing for an endpoint
// that another bridge has been given, or that gets more there, from the moment at which that has
// started.
func TestEventsAreStoredForTheEndpointsOfAllBridges(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	narrow, wide, added := storetest.Endpoint("crm"), storetest.Endpoint("crm"), storetest.Endpoint("new")
	narrow.Events, wide.Events = store.Filter{"call.*"}, store.Filter{"pz.event"}
	a := mustOpen(t, url, with("a", narrow))
	pending := func() string {
		return pgtest.SQL(t, url, `SELECT coalesce(string_agg(name, ',' ORDER BY name), '') FROM pzbridge.pending p
			JOIN pzbridge.endpoint e ON e.id = p.endpoint WHERE n = (SELECT last FROM pzbridge.head)`)
	}
	mustStore(t, a, "1")
	if got := pending(); got != "" {
		t.Fatalf("an event is stored for %s, which does not want it", got)
	}
	b := mustOpen(t, url, with("b", wide, added))
	mustStore(t, a, "2")
	if got := pending(); got != "crm,new" {
		t.Errorf("the next event is stored for %q, want crm,new", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, url, with("b", wide)) // it has started again without the new one
	mustStore(t, a, "3")
	if got := pending(); got != "crm" {
		t.Errorf("the event after that is stored for %q, want crm", got)
	}
	pgtest.SQL(t, url, `UPDATE pzbridge.subscription SET bridge = 'gone' WHERE bridge = 'b'`)
	if err := a.endSubscriptions(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustStore(t, a, "4")
	if got := pending(); got != "" {
		t.Errorf("with no other bridge left an event is stored for %q", got)
	}
}

// TestOthersAreNotified checks that a process is told what another one has stored. Nothing else
// looks.
func TestOthersAreNotified(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	often := func(o *Options) { o.Poll, o.Beat = 50*time.Millisecond, 350*time.Millisecond }
	a, b := mustOpen(t, url, often), mustOpen(t, url, often)
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	running.Go(func() { b.listen(ctx) }) // alone: nothing else looks
	defer running.Wait()
	defer stop()
	await(t, "it listens, and the other one knows of it", func() bool {
		if !a.presence.hasOthers.Load() {
			return false
		}
		return pgtest.SQL(t, url, `SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'`) == "1"
	})
	for _, call := range []string{"1", "2", "3"} {
		changed := b.Changed()
		mustStore(t, a, call)
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatal("the other process does not learn of an event")
		}
	}
	changed := b.Changed()
	id := pgtest.SQL(t, url, `SELECT min(id::text) FROM pzbridge.event`)
	if err := a.Redeliver(t.Context(), id, "crm", time.Now()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Error("the other process does not learn of a redelivery")
	}
}

// TestAQueueThatNobodyElseWantsIsTaken checks that a process takes queues beyond its share which it
// alone wants, also those that nobody has had before.
func TestAQueueThatNobodyElseWantsIsTaken(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	b := mustOpen(t, url, quick)
	if _, err := b.Take(t.Context(), lanePrefix+"1"); err != nil {
		t.Fatal(err)
	}
	a := mustOpen(t, url, quick)
	taken := make(chan string, 4)
	ctx, end := context.WithTimeout(t.Context(), 20*time.Second)
	defer end()
	for n := 2; n <= 5; n++ {
		go func() {
			if l, err := a.Take(ctx, fmt.Sprint(lanePrefix, n)); err == nil {
				taken <- l.Name
			}
		}()
	}
	for range 4 {
		select {
		case <-taken:
		case <-ctx.Done():
			t.Fatal("not all of the queues that it alone wants are taken")
		}
	}
}

// TestWhatWritesNothingSaysNothingOfWriting checks that a database which takes no changes counts so
// although transactions succeed that have nothing to change.
func TestWhatWritesNothingSaysNothingOfWriting(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url)
	for _, table := range []string{"head", "bridge"} {
		pgtest.SQL(t, url, `ALTER TABLE pzbridge.`+table+` ADD CONSTRAINT x CHECK (false) NOT VALID`)
	}
	if err := s.Announce(t.Context(), store.Bridge{Name: "x", Seen: time.Now()}); err == nil {
		t.Fatal("something was stored")
	}
	if _, err := s.TakeQuestions(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Writable(t.Context()); err == nil {
		t.Error("nothing can be stored, and all is well")
	}
}

// doubtful is an outbox for a listener whose next append is done, but reported as unknown; after
// that the database is away.
type doubtful struct {
	*Engine
	isInDoubt, isAway bool
}

func (d *doubtful) AppendHeard(
	ctx context.Context, slot int, followed uint64, events []telephony.Event,
) (questions []uint64, err error) {
	if d.isAway {
		return nil, ErrUnavailable
	}
	var list []store.NewEvent
	for i := range events {
		n, err := store.Encode(&events[i], time.Second)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	_, err = d.Engine.AppendHeard(ctx, slot, followed, list)
	if d.isInDoubt {
		d.isInDoubt, d.isAway = false, true
		err = ErrUnavailable
	}
	return nil, err
}

// Ask asks nothing.
func (*doubtful) Ask([]uint64) {}

// listeners gives two listeners of one exchange, the first of which stores at once.
func listeners(t *testing.T) (url string, boxes []*doubtful, list []*pairing.Listener) {
	t.Helper()
	url = pgtest.Shared(t).Database(t)
	for slot := 1; slot <= 2; slot++ {
		box := &doubtful{Engine: mustOpen(t, url)}
		l := pairing.New(box, box, func() bool { return slot == 1 })
		if err := l.Begin(t.Context(), slot); err != nil {
			t.Fatal(err)
		}
		boxes, list = append(boxes, box), append(list, l)
	}
	return url, boxes, list
}

// TestAnAppendInDoubtIsNotPairedAgain checks an append of unknown outcome with an event of the
// bridge itself, which nobody wants and which is never stored: what it has stored must not be
// paired with the next event of that content.
func TestAnAppendInDoubtIsNotPairedAgain(t *testing.T) {
	url, boxes, list := listeners(t)
	read := func(l *pairing.Listener) telephony.Event {
		e := storetest.Event("pz.event", "1")
		e.Fingerprint[0] = 7
		l.Heard(&e)
		return e
	}
	mustAppend := func(l *pairing.Listener, events ...telephony.Event) {
		t.Helper()
		if err := l.Append(t.Context(), events); err != nil {
			t.Fatal(err)
		}
	}
	batch := []telephony.Event{read(list[0]), storetest.Event(telephony.EventConnected, "")}
	boxes[0].isInDoubt = true
	if err := list[0].Append(t.Context(), batch); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	mustAppend(list[1], read(list[1]))                 // its twin
	second, secondTwin := read(list[0]), read(list[1]) // the same content once more
	mustAppend(list[1], secondTwin)                    // stored in the end
	boxes[0].isAway = false                            // and only now the first one goes on
	mustAppend(list[0], batch...)                      // which was stored
	mustAppend(list[0], second)                        // whose twin is
	if n := pgtest.SQL(t, url, `SELECT count(*) FROM pzbridge.event`); n != "2" {
		t.Errorf("two events are stored as %s", n)
	}
}

// TestAReplayAndTheLiveEventAreOne checks an event that one listener has read live, while the other
// one was not connected, gets it as a replay and is faster.
func TestAReplayAndTheLiveEventAreOne(t *testing.T) {
	url, _, list := listeners(t)
	live, replay := storetest.Event("call.completed", "1"), storetest.Event("call.completed", "1")
	live.Fingerprint[0], replay.Fingerprint[0], replay.Replayed = 7, 7, true
	list[1].Heard(&live)
	list[0].Heard(&replay)
	for i, e := range []telephony.Event{replay, live} {
		if err := list[i].Append(t.Context(), []telephony.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	if n := pgtest.SQL(t, url, `SELECT count(*) FROM pzbridge.event`); n != "1" {
		t.Errorf("one event is stored %s times", n)
	}
}

// TestWhatIsForgottenIsNotStoredByTheOtherListener checks that a person whose calls are removed
// right after one listener has stored them does not come back with the copies of the other one.
func TestWhatIsForgottenIsNotStoredByTheOtherListener(t *testing.T) {
	url, boxes, list := listeners(t)
	var events []telephony.Event
	for range list {
		e := storetest.Event("call.completed", "1")
		e.Fingerprint[0] = 7
		events = append(events, e)
	}
	list[0].Heard(&events[0])
	if err := list[0].Append(t.Context(), events[:1]); err != nil {
		t.Fatal(err)
	}
	list[1].Heard(&events[1])
	number := pgtest.SQL(t, url, `UPDATE pzbridge.event SET from_key = '73430112233' RETURNING from_key`)
	f, err := boxes[0].Forget(t.Context(), number, false)
	if err != nil || f.Events != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	if err := list[1].Append(t.Context(), events[1:]); err != nil {
		t.Fatal(err)
	}
	if n := pgtest.SQL(t, url, `SELECT count(*) FROM pzbridge.event`); n != "0" {
		t.Errorf("%s events of a forgotten person are stored", n)
	}
	pgtest.SQL(t, url, `UPDATE pzbridge.removed SET at = at - 3600000`)
	if _, err := boxes[0].Prune(t.Context(), store.Retention{}); err != nil {
		t.Fatal(err)
	}
	if n := pgtest.SQL(t, url, `SELECT count(*) FROM pzbridge.removed`); n != "0" {
		t.Errorf("%s prints are kept for ever", n)
	}
}

// TestTwoBridgesHaveNotOneName checks that a bridge does not start beside one with its name, whose
// endpoints it would take for its own of before, and that it does once that one is dead.
func TestTwoBridgesHaveNotOneName(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	named := func(o *Options) { o.Name = "bridge1" }
	first := mustOpen(t, url, quick, named)
	_, err := openAt(t, url, quick, named)
	if cause := telephony.CauseOf(err); cause.Code != telephony.CodeSameName {
		t.Errorf("a second one with the name starts: %v", err)
	}
	die(first)
	mustOpen(t, url, quick, named)
}

// TestASpareKeepsWhatAnotherBridgeBrings checks that a bridge that stores nothing, and removes old
// events for all, learns of an endpoint that another one brings: what waits for that must stay.
func TestASpareKeepsWhatAnotherBridgeBrings(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t).Database(t)
	crm, added := storetest.Endpoint("crm"), storetest.Endpoint("new")
	spare := mustOpen(t, url, with("spare", crm))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = spare.Run(ctx)
	}()
	defer func() {
		stop()
		<-ended
	}()
	if _, err := spare.Prune(t.Context(), store.Retention{MaxAge: time.Hour}); err != nil { // which is its from now on
		t.Fatal(err)
	}
	other := mustOpen(t, url, with("other", crm, added))
	mustStore(t, other, "1")
	pgtest.SQL(t, url, `DELETE FROM pzbridge.pending p USING pzbridge.endpoint e
		WHERE e.id = p.endpoint AND e.name = 'crm'`)
	await(t, "the spare knows the new endpoint", func() bool { return len(spare.shared.now.Load().Endpoints) == 2 })
	p, err := spare.Prune(t.Context(), store.Retention{MaxAge: time.Millisecond, AbandonedAge: time.Hour})
	if err != nil || p.Events != 0 {
		t.Errorf("%d events are removed: %v", p.Events, err)
	}
}

// TestABridgeIsListedWhateverACRMSays checks an error of a CRM with bytes that no text of the
// database can have.
func TestABridgeIsListedWhateverACRMSays(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, pgtest.Shared(t).Database(t))
	const said = "zero \x00 byte, \\u0000, \\\x00, bad \xff byte"
	err := s.Announce(t.Context(), store.Bridge{
		Name: "one", Seen: time.Now(), Status: map[string]store.LaneStatus{"crm": {LastError: said}},
	})
	list, errList := s.Bridges(t.Context(), time.Now().Add(-time.Hour))
	if err != nil || errList != nil || len(list) != 1 {
		t.Fatalf("the bridges are %+v (%v, %v)", list, err, errList)
	}
	const want = "zero \uFFFD byte, \\u0000, \\\uFFFD, bad \uFFFD byte"
	if got := list[0].Status["crm"].LastError; got != want {
		t.Errorf("the error is %q, want %q", got, want)
	}
}

// TestABridgeLivesWhateverItsClockSays checks that a bridge whose clock is wrong counts as seen now
// while its process lives, and as seen when it last did from then on.
func TestABridgeLivesWhateverItsClockSays(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]time.Duration{"behind": -3 * time.Hour, "ahead": 3 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Shared(t).Database(t)
			here, other := mustOpen(t, url, quick), mustOpen(t, url, quick)
			announce := func(name string, by *Engine, seen time.Time) {
				if err := by.Announce(t.Context(), store.Bridge{Name: name, Seen: seen}); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			announce("here", here, began)
			announce("other", other, began.Add(wrong))
			listed := func(since time.Time) map[string]time.Time {
				list, err := here.Bridges(t.Context(), since)
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]time.Time{}
				for _, b := range list {
					seen[b.Name] = b.Seen
				}
				return seen
			}
			await(t, "it is seen now", func() bool {
				at := listed(began)["other"]
				return !at.Before(began) && !at.After(time.Now())
			})
			die(other)
			ended := time.Now()
			await(t, "its process is removed", func() bool {
				return pgtest.SQL(t, url, "SELECT count(*) FROM pzbridge.process") == "1"
			})
			at := listed(began)["other"]
			if at.Before(began) || at.After(ended.Add(time.Second)) {
				t.Errorf("it lived from %s to %s, and was seen at %s", began, ended, at)
			}
			if seen, isSeen := listed(at.Add(time.Nanosecond))["other"]; isSeen {
				t.Errorf("after %s it is seen at %s", at, seen)
			}
		})
	}
}

// TestWhenABridgeWasSeen checks whose word counts, in seconds before now: that of the bridge, if it
// can be right, or that of who has found its counter to rise.
func TestWhenABridgeWasSeen(t *testing.T) {
	now := time.Now()
	const never, nobodyKnows = -1, -1
	for name, c := range map[string]struct{ said, rose, want time.Duration }{
		"alive":                          {1, 0, 1},
		"alive, its clock is behind":     {60, 0, 0},
		"alive, its clock is ahead":      {-60, 0, 0},
		"a little ahead":                 {-1, 0, 0},
		"just dead":                      {3, 1, 3},
		"dead, its clock was behind":     {9000, 30, 30},
		"dead, its clock was ahead":      {-9000, 7200, 7200},
		"dead before the start":          {1800, never, 1800},
		"before the start, it was ahead": {-90, never, nobodyKnows},
	} {
		var known rises
		a := announcement{store.Bridge{Seen: now.Add(-c.said * time.Second)}, uuid.New()}
		if c.rose != never {
			known.note(a.Process, now.Add(-c.rose*time.Second))
		}
		known.date(&a, now)
		want := now.Add(-c.want * time.Second)
		if c.want == nobodyKnows {
			want = time.Time{}
		}
		if !a.Seen.Equal(want) {
			t.Errorf("%s: it was seen at %s, want %s", name, a.Seen, want)
		}
	}
}

// TestABridgeThatDiedWithAllOthersIsGone checks that the row of a process that nobody has removed
// is no sign of life.
func TestABridgeThatDiedWithAllOthersIsGone(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t).Database(t)
	dead := mustOpen(t, url, quick)
	died := time.Now().Add(-30 * time.Minute)
	if err := dead.Announce(t.Context(), store.Bridge{Name: "dead", Seen: died, Connected: true}); err != nil {
		t.Fatal(err)
	}
	die(dead)
	next := mustOpen(t, url, quick)
	for begun := time.Now(); pgtest.SQL(t, url, "SELECT count(*) FROM pzbridge.process") != "1"; {
		list, err := next.Bridges(t.Context(), time.Now().Add(-time.Hour))
		if err != nil || len(list) != 1 || !list[0].Seen.Equal(died) {
			t.Fatalf("it died at %s, and there are %+v, %v", died, list, err)
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatal("its process is not removed")
		}
	}
}

// TestDifferingClocksAreTold checks from when on a clock counts as wrong, given that a slow answer
// of the database proves less, and what is logged of it.
func TestDifferingClocksAreTold(t *testing.T) {
	t.Parallel()
	asked := time.Now()
	var log bytes.Buffer
	s := mustOpen(t, pgtest.Shared(t).Database(t))
	s.clocks = repeat.New(slog.New(slog.NewTextHandler(&log, nil)))
	for _, c := range []struct{ theirs, took, want time.Duration }{
		{0, 0, 0},
		{5 * time.Second, 0, 0},
		{-5 * time.Second, 0, 0},
		{time.Minute, 0, time.Minute},
		{-time.Minute, 0, -time.Minute},
		{8 * time.Second, 4 * time.Second, 0},
		{12 * time.Second, 4 * time.Second, 10 * time.Second},
	} {
		if got := clockAhead(asked.Add(c.theirs), asked, asked.Add(c.took)); got != c.want {
			t.Errorf("of %s after %s: %s, want %s", c.theirs, c.took, got, c.want)
		}
		s.compareClock(asked.Add(c.theirs), asked, asked.Add(c.took))
	}
	if _, err := s.Bridges(t.Context(), asked); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	for i, want := range []string{
		`"the clock of this machine is behind that of the database" failures=1 by=1m0s`,
		`"the clock of this machine is ahead of that of the database" failures=2 by=1m0s`,
		"the clocks agree again",
		`"the clock of this machine is behind that of the database" failures=1 by=10s`,
		"the clocks agree again",
	} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d is not %s:\n%s", i, want, &log)
		}
	}
}

// TestChartsGoBackToBridgesThatAreGone checks the charts after a bridge has got another name, as
// one in a container may with each upgrade.
func TestChartsGoBackToBridgesThatAreGone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	place := h.Place(t)
	for name, ago := range map[string]time.Duration{"gone": 6 * 24 * time.Hour, "long gone": 15 * 12 * time.Hour} {
		b := storetest.OpenBox(t, h, storetest.Options{Place: place, Bridge: name})
		gone := mustOpen(t, place, func(o *Options) { o.Schema = h.schema })
		err := errors.Join(
			b.Outbox.SetChartCounts(t.Context(), "of what is "+name),
			gone.Announce(t.Context(), store.Bridge{Name: name, Seen: time.Now().Add(-ago)}),
			gone.Close())
		if err != nil {
			t.Fatal(err)
		}
	}
	b := storetest.OpenBox(t, h, storetest.Options{Place: place, Bridge: "here"})
	errOwn := errors.Join(
		b.Outbox.SetChartCounts(t.Context(), "of what is here"),
		b.Engine.(*Engine).Announce(t.Context(), store.Bridge{Name: "here", Seen: time.Now()}))
	list, err := b.Outbox.OthersChartCounts(t.Context())
	if err != nil || errOwn != nil || !slices.Equal(list, []string{"of what is gone"}) {
		t.Errorf("others have counted %q (%v, %v)", list, err, errOwn)
	}
	left, err := b.Engine.Setting(t.Context(), "chartslong gone", "")
	if err != nil || left != "" {
		t.Errorf("what no chart shows is kept: %q (%v)", left, err)
	}
}
