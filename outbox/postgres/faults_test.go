package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// openAt opens an engine that ends with the test, as one bridge of those at an address.
func openAt(t testing.TB, url string, change ...func(*Options)) (*Engine, error) {
	o := storetest.Options{Endpoints: []store.Endpoint{storetest.Endpoint("crm"), storetest.Endpoint("other")}}
	opts := Options{
		URL: url, MaxBytes: 1 << 30, Rules: o.Rules(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&opts)
	}
	s, err := Open(t.Context(), opts)
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// mustOpen is openAt for an address that can be opened.
func mustOpen(t testing.TB, url string, change ...func(*Options)) *Engine {
	t.Helper()
	s, err := openAt(t, url, change...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newEvents gives events of calls, one each.
func newEvents(t testing.TB, calls ...string) (list []store.NewEvent) {
	t.Helper()
	for _, call := range calls {
		e := storetest.Event("pz.event", call)
		n, err := store.Encode(&e, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// mustStore appends events of calls, one each.
func mustStore(t testing.TB, s *Engine, calls ...string) {
	t.Helper()
	if _, err := s.Append(t.Context(), newEvents(t, calls...)); err != nil {
		t.Fatal(err)
	}
}

// laneOf gives an endpoint's queue, whoever has its lease.
func laneOf(s *Engine, endpoint string) *lane {
	id, _ := s.endpoints.id(endpoint)
	return &lane{engine: s, endpoint: id, claimed: map[uint64]bool{}}
}

// mustClaim claims deliveries to endpoint crm, of which there are enough.
func mustClaim(t testing.TB, s *Engine, number int) (store.Lane, []store.Job) {
	t.Helper()
	l := laneOf(s, "crm")
	c, err := l.Claim(t.Context(), time.Now(), number, nil)
	if err != nil || len(c.Jobs) != number {
		t.Fatalf("%d deliveries are claimed, want %d: %v", len(c.Jobs), number, err)
	}
	return l, c.Jobs
}

// deliveredNow is the result of a delivery that has succeeded.
func deliveredNow(j store.Job, events ...store.NewEvent) store.Result {
	now := j.Delivery.Ended(store.Delivered, time.Now())
	now.Attempts++
	return store.Result{Job: j, Now: now, Attempt: &store.Attempt{At: time.Now()}, Events: events}
}

// await waits until a condition is true.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("after 20 s it is still not so that %s", what)
		}
	}
}

// awaitLockWait waits until a transaction of a database waits for another one.
func awaitLockWait(t testing.TB, url string) {
	t.Helper()
	await(t, "a transaction waits for a lock", func() bool {
		return pgtest.SQL(t, url, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`) != "0"
	})
}

// holding begins a transaction that has done something, and then waits. End lets it commit, and
// returns how often it was tried.
func holding(t testing.TB, s *Engine, do func(*txn) error) (end func() (tries int)) {
	t.Helper()
	held, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	tries, letGo := 0, sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo) // a test that fails must not leave it waiting
	go func() {
		done <- s.change(context.WithoutCancel(t.Context()), func(tx *txn) error {
			err := do(tx)
			if tries++; tries == 1 && err == nil {
				close(held)
				<-release
			}
			return err
		})
	}()
	select {
	case <-held:
	case err := <-done:
		t.Fatal(err)
	}
	return func() int {
		t.Helper()
		letGo()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return tries
	}
}

// roundTrips counts the round trips of transactions, and makes each take longer.
type roundTrips struct {
	number atomic.Int64
	delay  time.Duration
}

func (*roundTrips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (*roundTrips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (r *roundTrips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	r.number.Add(1)
	time.Sleep(r.delay)
	return ctx
}

func (*roundTrips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (*roundTrips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// TestWorkGoesOnAfterALateBeat checks that the work goes on once a process has shown again that it
// lives, after its time was up. Held may see that before the timer does, which then has still to
// fire: it must not be prolonged for work that is suspended already.
func TestWorkGoesOnAfterALateBeat(t *testing.T) {
	s := &Engine{beat: time.Minute}
	p := &s.presence
	p.engine = s
	p.prolong(time.Now())
	defer p.endHeld()
	p.mu.Lock()
	p.until = time.Now()
	p.mu.Unlock()
	if s.Held().Err() == nil {
		t.Fatal("the work goes on though the time is up")
	}
	for range 2 {
		p.prolong(time.Now())
		if err := s.Held().Err(); err != nil {
			t.Errorf("the process has shown that it lives, but the work is suspended: %v", err)
		}
	}
}

// TestNumbersAreRaisedBeforeRunEnds checks that the head is raised when Run ends since the database
// was set back. What ends Run also ends the context of the raise: if it is known before the commit,
// it takes the commit with it, and the next process gives numbers twice.
func TestNumbersAreRaisedBeforeRunEnds(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url, func(o *Options) {
		o.Poll, o.tracer = 20*time.Millisecond, &roundTrips{delay: 50 * time.Millisecond}
	})
	mustStore(t, s, "1", "2", "3", "4", "5")
	for _, table := range []string{"event", "pending"} {
		pgtest.SQL(t, url, `DELETE FROM pzbridge.`+table+` WHERE n > 2`)
	}
	pgtest.SQL(t, url, `UPDATE pzbridge.head SET last = 2`)
	if err := s.Run(t.Context()); !errors.Is(err, ErrSetBack) {
		t.Fatal(err)
	}
	if last, want := pgtest.SQL(t, url, `SELECT last FROM pzbridge.head`), fmt.Sprint(5+raisedBy); last != want {
		t.Errorf("the last number is %s, want %s", last, want)
	}
}

// TestAServerWithoutTLSIsFound checks that a server is connected to which offers no TLS, alone and
// beside one that is down. The library lists each server twice, with TLS and without: either may be
// the one that answers.
func TestAServerWithoutTLSIsFound(t *testing.T) {
	one, other := os.Getpid()/250%250, os.Getpid()%250+1 // not those of tests that run beside
	up, down := fmt.Sprintf("127.77.%d.%d", one, other), fmt.Sprintf("127.78.%d.%d", one, other)
	_ = pgtest.New(t, "listen_addresses="+up)
	for _, hosts := range []string{up, up + ":5432," + down + ":5432", down + ":5432," + up + ":5432"} {
		s, err := openAt(t, "postgres://pzbridge@"+hosts+"/postgres")
		if err != nil {
			t.Errorf("%s: %v", hosts, err)
			continue
		}
		_ = s.Close()
	}
}

// TestOnlyStandbysMeanUnavailable checks the error while a cluster has no primary, as during each
// fail-over: a caller tries again only after ErrUnavailable.
func TestOnlyStandbysMeanUnavailable(t *testing.T) {
	if err := classify(errNoPrimary); !errors.Is(err, ErrUnavailable) {
		t.Errorf("the error is %v", err)
	}
	primary := pgtest.New(t)
	b := primary.Standby(t, "b")
	c := primary.Standby(t, "c")
	if _, err := openAt(t, b.URL("postgres", c)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("the error is %v", err)
	}
}

// TestACommitThatNoStandbyHasIsNotReportedAsDone checks an append whose wait for the standby is
// broken off. The server then reports success with a mere warning, while the events may be lost
// with it.
func TestACommitThatNoStandbyHasIsNotReportedAsDone(t *testing.T) {
	server := pgtest.New(t)
	s := mustOpen(t, server.Database(t))
	server.SQL(t, "ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
	server.SQL(t, "SELECT pg_reload_conf()")
	done := make(chan error, 1)
	try := func() {
		_, err := s.Append(context.WithoutCancel(t.Context()), newEvents(t, "5"))
		done <- err
	}
	go try()
	const waits = `FROM pg_stat_activity WHERE wait_event = 'SyncRep'`
	await(t, "an append waits for the standby", func() bool {
		select {
		case err := <-done: // the setting has not come to all of the server's processes yet
			if err != nil {
				t.Fatal(err)
			}
			go try()
		default:
		}
		return server.SQL(t, "SELECT count(*) "+waits) != "0"
	})
	server.SQL(t, "SELECT pg_cancel_backend(pid) "+waits)
	if err := <-done; !errors.Is(err, ErrUnavailable) {
		t.Errorf("the error is %v", err)
	}
}

// TestAProcessThatIsGoneHoldsNobodyUp checks a process that was in the middle of an append when its
// machine lost its power, or stood still: the server does not see that, and its locks must not keep
// the others from storing events.
func TestAProcessThatIsGoneHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t).Database(t)
	gone, other := mustOpen(t, url), mustOpen(t, url)
	holding(t, gone, func(tx *txn) error {
		_, err := tx.prepareAppend(nil)
		return err
	})
	await(t, "the other stores events", func() bool {
		_, err := other.Append(t.Context(), newEvents(t, "5"))
		return err == nil
	})
}

// TestSettingsOfTheDatabaseChangeNothing checks settings that an administrator may have made for a
// database, or a role, and that statements and texts rely on.
func TestSettingsOfTheDatabaseChangeNothing(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t).Database(t)
	name := pgtest.SQL(t, url, "SELECT current_database()")
	var settings strings.Builder
	for _, setting := range []string{
		"client_encoding = 'WIN1251'", "default_transaction_isolation = 'serializable'",
		"statement_timeout = '1ms'", "idle_in_transaction_session_timeout = '1ms'",
	} {
		fmt.Fprintf(&settings, "ALTER DATABASE %s SET %s;", name, setting)
	}
	pgtest.SQL(t, url, settings.String()) // in one session, as each later one has a millisecond
	s := mustOpen(t, url)
	const call = "И1 – звонок"
	mustStore(t, s, call)
	page, err := s.Call(t.Context(), call, 0)
	if err != nil || len(page.Events) != 1 {
		t.Errorf("the call has %d events (%v)", len(page.Events), err)
	}
	var isolation string
	err = s.change(t.Context(), func(tx *txn) error {
		_, err := tx.queryRow([]any{&isolation}, "SHOW transaction_isolation")
		return err
	})
	if err != nil || isolation != "read committed" {
		t.Errorf("a change runs in the isolation %s (%v)", isolation, err)
	}
}

// TestADeliveryIsNotEndedTwice checks that deliveries which are ended since their endpoint reads
// now are read under the locks of their calls: one that another bridge is recording just then would
// be counted twice.
func TestADeliveryIsNotEndedTwice(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	a, b := mustOpen(t, url), mustOpen(t, url)
	mustStore(t, a, "")
	id, _ := a.endpoints.id("crm")
	_, jobs := mustClaim(t, a, 1)
	result := deliveredNow(jobs[0])
	end := holding(t, a, func(tx *txn) error {
		n := jobs[0].Number
		if err := errors.Join(tx.lockCalls(lockName(n, "")), tx.load(deliveryKey{n, id})); err != nil {
			return err
		}
		_, err := a.recordOne(tx, id, &result)
		return err
	})
	closed := make(chan error, 1)
	go func() {
		_, _, err := b.closeSome(context.WithoutCancel(t.Context()), id, 0, time.Now())
		closed <- err
	}()
	awaitLockWait(t, url)
	end()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	checkTables(t, a)
}

// TestACancelledAppendLeavesOthersAlone checks that an append which stores those behind it goes on
// when its own caller gives up.
func TestACancelledAppendLeavesOthersAlone(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url)
	end := holding(t, s, func(tx *txn) error {
		_, err := tx.queryRow(nil, `SELECT FROM head FOR UPDATE`)
		return err
	})
	ctx, cancel := context.WithCancel(t.Context())
	var results []chan error
	for i, ctx := range []context.Context{t.Context(), ctx, t.Context()} {
		result := make(chan error, 1)
		results = append(results, result)
		events := newEvents(t, "")
		go func() {
			_, err := s.Append(ctx, events)
			result <- err
		}()
		if i == 0 {
			awaitLockWait(t, url)
		}
		await(t, "it waits in line", func() bool {
			s.appends.mu.Lock()
			defer s.appends.mu.Unlock()
			return len(s.appends.waiting) == i
		})
	}
	cancel()
	end()
	for i, result := range results {
		if err := <-result; err != nil && i != 1 {
			t.Errorf("append %d fails: %v", i, err)
		}
	}
}

// TestReleaseDoesNotWaitForAFrozenServer checks that giving up a lease is bounded: a bridge that
// stops would wait for ever for a server that does not answer.
func TestReleaseDoesNotWaitForAFrozenServer(t *testing.T) {
	server := pgtest.New(t)
	s := mustOpen(t, server.Database(t), func(o *Options) { o.Beat = 300 * time.Millisecond })
	l, err := s.Take(t.Context(), "slot:1")
	if err != nil {
		t.Fatal(err)
	}
	server.Freeze(t)
	defer server.Kill(t)
	done := make(chan error, 1)
	go func() { done <- s.Release(context.WithoutCancel(t.Context()), l) }()
	select {
	case err := <-done:
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("the error is %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Release still waits after 20 s")
	}
}

// TestClaimTakesFewRoundTrips checks that a look passes over many claimed deliveries in large
// pages. Each small page would be a round trip, and a claim in a large backlog would take seconds.
func TestClaimTakesFewRoundTrips(t *testing.T) {
	const many, most = 1000, 12
	url := pgtest.Shared(t).Database(t)
	trips := &roundTrips{}
	s := mustOpen(t, url, func(o *Options) { o.tracer = trips })
	mustStore(t, s, make([]string, many)...)
	l, _ := mustClaim(t, s, 512)
	check := func(which string) {
		trips.number.Store(0)
		c, err := l.Claim(t.Context(), time.Now(), 4, nil)
		if n := trips.number.Load(); err != nil || len(c.Jobs) != 4 || n > most {
			t.Errorf("of %s deliveries %d are claimed in %d round trips, want 4 in %d at most: %v",
				which, len(c.Jobs), n, most, err)
		}
	}
	check("untried")
	pgtest.SQL(t, url, `UPDATE pzbridge.pending SET due = n, failed_at = 1`)
	check("timed")
}

// TestANumberOfAnyLengthIsStored checks an event with a number that is too long for an index and
// cannot be compressed: it must not keep the events that are stored with it from being stored.
func TestANumberOfAnyLengthIsStored(t *testing.T) {
	s := mustOpen(t, pgtest.Shared(t).Database(t))
	var digits strings.Builder
	for range 12_000 {
		fmt.Fprint(&digits, rand.IntN(10))
	}
	e := storetest.Event("pz.event", "5")
	e.From = digits.String()
	n, err := store.Encode(&e, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), append(newEvents(t, "5"), n)); err != nil {
		t.Error(err)
	}
	mustClaim(t, s, 1)
	checkTables(t, s)
}

// TestReadersLeaveConnectionsToEvents checks that an append gets a connection while more views are
// wanted than there are connections, and none of them ends.
func TestReadersLeaveConnectionsToEvents(t *testing.T) {
	s := mustOpen(t, pgtest.Shared(t).Database(t))
	ctx, stop := context.WithCancel(t.Context())
	var running atomic.Int64
	ended := make(chan error, 2*maxConnections)
	for range cap(ended) {
		go func() {
			ended <- s.view(ctx, func(tx *txn) error {
				_, err := tx.queryRow(nil, `SELECT`)
				running.Add(1)
				<-ctx.Done()
				return err
			})
		}()
	}
	await(t, "views take all that they may", func() bool { return running.Load() >= int64(cap(s.viewers)) })
	mustStore(t, s, "5")
	stop()
	for range cap(ended) {
		<-ended
	}
}

// redeliverFirst requests the delivery of the first event to endpoint crm once more, for a
// redelivery of many, whose number it returns.
func redeliverFirst(t *testing.T, s *Engine) (number uint32) {
	t.Helper()
	id, _ := s.endpoints.id("crm")
	red := store.Redelivery{Endpoint: "crm", Token: uuid.New()}
	number, err := s.AddRedelivery(t.Context(), red, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.change(t.Context(), func(tx *txn) error {
		list, err := tx.lockToRedeliver(id, []uint64{1})
		if err != nil {
			return err
		}
		return tx.redeliver(id, &list[0], time.Now(), number)
	}); err != nil {
		t.Fatal(err)
	}
	return number
}

// TestNothingIsWaitedForWhileTheHeadIsHeld checks a result that counts for a redelivery and brings
// an event, while another bridge has the redelivery and is about to change the head. Whoever held
// the head and then waited for the redelivery would hold up all appends, and be in a deadlock.
func TestNothingIsWaitedForWhileTheHeadIsHeld(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	a, b := mustOpen(t, url), mustOpen(t, url)
	mustStore(t, a, "1", "2")
	number := redeliverFirst(t, a)
	l, jobs := mustClaim(t, a, 2)
	at := slices.IndexFunc(jobs, func(j store.Job) bool { return j.Delivery.Request == number })
	if at < 0 {
		t.Fatal("nothing is claimed that was requested")
	}
	end := holding(t, b, func(tx *txn) error {
		tx.touch()
		state, err := tx.redelivery(number)
		if state != nil {
			state.Chosen++
		}
		return err
	})
	recorded := make(chan error, 1)
	result := deliveredNow(jobs[at], newEvents(t, "new")...)
	go func() { recorded <- l.Record(context.WithoutCancel(t.Context()), []store.Result{result}) }()
	awaitLockWait(t, url)
	if _, err := a.pool.Exec(t.Context(), `SELECT FROM head FOR UPDATE NOWAIT`); err != nil {
		t.Errorf("the head is held by one who waits: %v", err)
	}
	if tries := end(); tries != 1 {
		t.Errorf("the other transaction took %d tries", tries)
	}
	if err := <-recorded; err != nil {
		t.Error(err)
	}
	checkTables(t, a)
}

// TestALongCallIsLockedWithTheOthers checks that a result takes the lock of its sender's event, of
// a call whose ID is shortened, in one order with its own. If it locked the ID as it came, and the
// short one in a second step, two such results could wait for each other.
func TestALongCallIsLockedWithTheOthers(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	s := mustOpen(t, url)
	long, call := strings.Repeat("x", longestCall+1), ""
	key := func(call string) int64 { return s.lockKeys([]string{callName(call)})[0] }
	for i := 1; call == "" || key(call) < key(long); i++ {
		call = fmt.Sprint(i)
	}
	mustStore(t, s, call)
	l, jobs := mustClaim(t, s, 1)
	end := holding(t, s, func(tx *txn) error { return tx.lockCalls(callName(long)) })
	recorded := make(chan error, 1)
	result := deliveredNow(jobs[0], newEvents(t, long)...)
	go func() { recorded <- l.Record(context.WithoutCancel(t.Context()), []store.Result{result}) }()
	awaitLockWait(t, url)
	var isFree bool
	row := s.pool.QueryRow(t.Context(), `SELECT pg_try_advisory_xact_lock($1)`, key(call))
	if err := row.Scan(&isFree); err != nil || !isFree {
		t.Errorf("a call is locked before the one that comes first in the order, %v", err)
	}
	end()
	if err := <-recorded; err != nil {
		t.Error(err)
	}
}

// TestAnOldPrimaryAcknowledgesNothing checks that no append goes to a primary which stood still
// while its standby was promoted, and then goes on as if nothing had happened. The connections to
// it are good still: they must go once the beat, which has a pool of its own, has met the new one.
func TestAnOldPrimaryAcknowledgesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("a frozen server is given up after seconds")
	}
	old := pgtest.New(t)
	promoted := old.Standby(t, "b")
	old.SQL(t, "ALTER SYSTEM SET synchronous_standby_names = ''") // else it acknowledges nothing
	old.SQL(t, "SELECT pg_reload_conf()")
	s := mustOpen(t, old.URL("postgres", promoted), func(o *Options) { o.Beat = 500 * time.Millisecond })
	mustStore(t, s, "1")
	const events, renewals = `SELECT count(*) FROM pzbridge.event`, `SELECT counter FROM pzbridge.process`
	stored := old.SQL(t, `SELECT pg_current_wal_lsn()`)
	await(t, "the standby has the event", func() bool {
		return promoted.SQL(t, `SELECT pg_last_wal_replay_lsn() >= '`+stored+`'`) == "t"
	})
	old.Freeze(t)
	promoted.Promote(t)
	before := promoted.SQL(t, renewals)
	await(t, "the beat has given its connection up", func() bool {
		return s.keeper.pool.Stat().CanceledAcquireCount() > 0
	})
	old.Thaw(t)
	await(t, "the counter is raised at the new primary", func() bool { return promoted.SQL(t, renewals) != before })
	acknowledged := 0
	for i := range 20 {
		if _, err := s.Append(t.Context(), newEvents(t, fmt.Sprint(i+2))); err == nil {
			acknowledged++
		}
	}
	if n := old.SQL(t, events); n != "1" {
		t.Errorf("the old primary has %s events, want 1", n)
	}
	if n, want := promoted.SQL(t, events), fmt.Sprint(1+acknowledged); n != want || acknowledged == 0 {
		t.Errorf("the new primary has %s events, want %s", n, want)
	}
}
