package postgres

import (
	"context"
	"flag"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
)

// harness opens engines for the tests of what every engine promises. A place is the address of a
// database.
type harness struct {
	server interface {
		Database(t testing.TB) (address string)
	}
	schema string
}

// newHarness returns the harness of the shared server, or of a pooler before it if the environment
// has THROUGH_PGBOUNCER.
func newHarness(t testing.TB) harness {
	t.Helper()
	server := pgtest.Shared(t)
	if os.Getenv("THROUGH_PGBOUNCER") != "" {
		return harness{server.Pooler(t), "outbox"} // which is not found without the parameters
	}
	return harness{server: server}
}

func (h harness) Place(t testing.TB) string { return h.server.Database(t) }

func (h harness) Open(o storetest.EngineOptions) (store.Engine, error) {
	return openStore(h.options(o))
}

func (h harness) options(o storetest.EngineOptions) Options {
	return Options{
		URL:       o.Place,
		Schema:    h.schema,
		MaxBytes:  o.MaxBytes,
		Rules:     o.Rules,
		Logger:    o.Logger,
		Clock:     o.Clock,
		Committed: o.Committed,
		// No other process does anything, and each look takes real time in a test of days. A step
		// of the clock that is doubted is stored as often.
		Poll: time.Minute, Beat: time.Hour, quiet: true,
	}
}

func openStore(o Options) (store.Engine, error) {
	e, err := Open(context.Background(), o)
	if err != nil {
		return nil, err // not a nil *Engine in an interface
	}
	return e, nil
}

func (harness) Check(t testing.TB, e store.Engine) { checkTables(t, e.(*Engine)) }

// TestMain lets more tests run at once than there are processors: they mostly wait for the server.
func TestMain(m *testing.M) {
	bench.BeReceiver()
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// A brief run tries a third of the promises, since each takes a second of a processor here and the
// engine on a file tries them all.
func TestPromises(t *testing.T) {
	if pgtest.IsBrief() {
		storetest.RunQuick(t, newHarness(t), 3)
		return
	}
	sent := &statements{args: map[string][]any{}}
	t.Run("kept", func(t *testing.T) { storetest.Run(t, tracing{newHarness(t), sent}) })
	t.Run("plans", sent.check)
}

// The same write once more changes nothing: after an error a caller cannot know whether it
// happened.
func TestPromisesWithEveryWriteRepeated(t *testing.T) {
	if testing.Short() {
		t.Skip("the same tests once more")
	}
	storetest.RunQuick(t, storetest.Twice(newHarness(t)), 1)
}

// contradictions are queries for what must not be stored: each gives a row of one text for
// everything that is wrong.
var contradictions = []string{
	`SELECT format('event %s has the number %s of its call %s', n, sequence, call) FROM event
		WHERE sequence < 1 OR call = '' AND sequence <> 1`,
	`SELECT format('event %s of call %s has the number %s, the one before it %s', n, call, sequence, before) FROM (
		SELECT n, call, sequence, lag(sequence) OVER (PARTITION BY call ORDER BY n) AS before
		FROM event WHERE call <> '') e WHERE before >= sequence`,
	`SELECT format('the last event is %s, the head says that it is %s', max(n), last) FROM head, event
		GROUP BY last HAVING max(n) > last`,
	`SELECT format('events up to %s are removed, the last is %s', pruned, last) FROM head WHERE pruned > last`,
	`SELECT format('the events take %s bytes, the head says that they take %s', sum, used) FROM head,
		(SELECT coalesce(sum(size), 0) AS sum FROM event) e WHERE sum <> used`,
	`SELECT 'the head has ' || count(*) || ' rows' FROM head HAVING count(*) <> 1`,

	`SELECT format('delivery %s to %s is pending and has ended', n, endpoint)
		FROM pending JOIN ended USING (n, endpoint)`,
	`SELECT format('delivery %s to %s has no event', n, endpoint) FROM ` + allDeliveries + ` d
		LEFT JOIN event USING (n) WHERE event.n IS NULL`,
	`SELECT format('delivery %s to %s is to an endpoint that is not known', n, endpoint) FROM ` + allDeliveries + ` d
		LEFT JOIN endpoint ON endpoint.id = d.endpoint WHERE endpoint.id IS NULL`,
	`SELECT format('delivery %s to %s has ended in state %s', n, endpoint, state)
		FROM ended WHERE state NOT IN (1, 2, 3)`,
	`SELECT format('%s deliveries to %s are in state %s, the tally says %s', coalesce(c.number, 0), endpoint, state,
			coalesce(t.number, 0))
		FROM (SELECT endpoint, state, count(*) AS number FROM ` + allDeliveries + ` d GROUP BY endpoint, state) c
		FULL JOIN (SELECT endpoint, state, sum(number) AS number FROM tally GROUP BY endpoint, state) t
		USING (endpoint, state) WHERE coalesce(c.number, 0) <> coalesce(t.number, 0)`,

	// What is held has a delivery before it in its call to wait for, which has not failed yet. What
	// a delivery waits for, or would wait for, points to it, or to one between them that had ended
	// and was removed: whatever has to wait again then looks for what it waits for.
	`SELECT format('delivery %s to %s is held by none', n, endpoint) FROM pending JOIN event USING (n)
		WHERE due = -1 AND call = ''`,
	`SELECT format('delivery %s to %s is held by %s, which failed at %s and points to %s',
			n, endpoint, before, failed_at, next)
		FROM (SELECT n, endpoint, due, lag(n) OVER w AS before, lag(failed_at) OVER w AS failed_at,
				lag(next) OVER w AS next
			FROM pending JOIN event USING (n) WHERE call <> '' WINDOW w AS (PARTITION BY endpoint, call ORDER BY n)) d
		WHERE due = -1 AND (before IS NULL OR failed_at <> 0 OR next <> n)`,
	`SELECT format('delivery %s to %s comes after %s, which points to %s', n, endpoint, before, next)
		FROM (SELECT n, endpoint, state, lag(n) OVER w AS before, lag(state) OVER w AS state_before,
				lag(next) OVER w AS next
			FROM ` + allDeliveries + ` d JOIN event USING (n)
			WHERE call <> '' WINDOW w AS (PARTITION BY endpoint, call ORDER BY n)) d
		WHERE state = 0 AND state_before = 0 AND next <> n
			AND (next = 0 OR EXISTS (
				SELECT FROM ` + allDeliveries + ` x WHERE x.n = d.next AND x.endpoint = d.endpoint))`,

	`SELECT format('question %s has no event', n) FROM question LEFT JOIN event USING (n) WHERE event.n IS NULL`,
	`SELECT format('delivery %s to %s is being asked about, and no question', n, endpoint)
		FROM pending LEFT JOIN question USING (n) WHERE due = -2 AND question.n IS NULL`,
	`SELECT format('bytes are kept for call %s, which has no event', call) FROM kept
		WHERE NOT EXISTS (SELECT FROM event WHERE event.call = kept.call AND event.call <> '')`,
}

// allDeliveries are the deliveries of both tables.
const allDeliveries = `(SELECT n, endpoint, next, 0 AS state FROM pending
	UNION ALL SELECT n, endpoint, next, state FROM ended)`

// checkTables checks that what is stored does not contradict itself.
func checkTables(t testing.TB, s *Engine) {
	t.Helper()
	options := pgx.TxOptions{BeginQuery: beginChange + s.pooled}
	if err := pgx.BeginTxFunc(context.Background(), s.pool, options, func(tx pgx.Tx) error {
		found, err := contradictionsIn(tx)
		for _, wrong := range found {
			t.Error(wrong)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func contradictionsIn(tx pgx.Tx) (found []string, err error) {
	batch := &pgx.Batch{}
	for _, option := range []string{"hashjoin", "mergejoin", "seqscan"} { // a check reads all there is
		batch.Queue("SET LOCAL enable_" + option + " = on")
	}
	for _, query := range contradictions {
		each(batch.Queue(query), func(rows pgx.Rows) error {
			var wrong string
			err := rows.Scan(&wrong)
			found = append(found, wrong)
			return err
		})
	}
	return found, tx.SendBatch(context.Background(), batch).Close()
}

// TestContradictionsAreFound checks that the check of what is stored finds each thing that can be
// wrong. The first event of a call has been delivered, the third is held by the second; the fourth
// belongs to no call.
func TestContradictionsAreFound(t *testing.T) {
	h, c := newHarness(t), &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		b := storetest.OpenBox(t, h, storetest.Options{DialContext: c.Net.Dial})
		stop := storetest.RunBox(t, b)
		storetest.MustAppend(t, b, storetest.Event("call.incoming", "5"))
		synctest.Wait()
		stop()
		storetest.MustAppend(t, b, storetest.Event("call.incoming_answered", "5"),
			storetest.Event("call.completed", "5"), storetest.Event("pz.event", ""))
		s := b.Engine.(*Engine)
		for _, change := range []string{
			`UPDATE event SET sequence = 7 WHERE n = 1`,
			`UPDATE event SET sequence = 0 WHERE n = 4`,
			`UPDATE head SET last = 3`,
			`UPDATE head SET pruned = 5`,
			`UPDATE head SET used = used + 1`,
			`DELETE FROM head`,
			`UPDATE ended SET state = 4`,
			`UPDATE pending SET due = -1 WHERE n = 2`,
			`UPDATE pending SET due = -1 WHERE n = 4`,
			`UPDATE pending SET due = 0, next = 0`,
			`UPDATE pending SET next = 4 WHERE n = 2`,
			`UPDATE pending SET failed_at = 1 WHERE n = 2`,
			`UPDATE pending SET due = -2 WHERE n = 4`,
			`DELETE FROM tally WHERE state = 1`,
			`INSERT INTO tally VALUES (1, 3, 1)`,
			`DELETE FROM pending WHERE n = 4`,
			`WITH e AS (DELETE FROM event WHERE n = 4 RETURNING size) UPDATE head SET used = used - size FROM e`,
			`WITH t AS (INSERT INTO tally VALUES (1, 0, 1)) UPDATE pending SET n = 1 WHERE n = 2`,
			`WITH t AS (UPDATE tally SET endpoint = 9 WHERE state = 1) UPDATE ended SET endpoint = 9`,
			`INSERT INTO question VALUES (9, gen_random_uuid())`,
			`INSERT INTO kept VALUES ('unknown', 1, 1, '')`,
		} {
			tx, err := s.pool.BeginTx(t.Context(), pgx.TxOptions{BeginQuery: beginChange + s.pooled})
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.Exec(t.Context(), change)
			var found []string
			if err == nil {
				found, err = contradictionsIn(tx)
			}
			if len(found) == 0 || err != nil {
				t.Errorf("%v, %v after %s", found, err, change)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
