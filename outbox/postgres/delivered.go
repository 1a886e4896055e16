package postgres

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// recordDelivered moves deliveries to what has ended that are as they were claimed, counts them as
// delivered (1) and no longer as pending (0), and returns their events' numbers.
const recordDelivered = `WITH made AS (DELETE FROM pending USING ` + written + `::smallint[])
		AS k(` + deliveryColumns + `, state) WHERE pending.n = k.n AND pending.endpoint = k.endpoint
		AND pending.attempts = 0 AND pending.next = 0 AND pending.redelivered = 0 AND pending.request = 0
		RETURNING k.*),
	stored AS (INSERT INTO ended (` + deliveryColumns + `, state) SELECT * FROM made RETURNING n, endpoint),
	counted AS (INSERT INTO tally (endpoint, state, number)
		SELECT endpoint, 0, -count(*) FROM stored GROUP BY endpoint
		UNION ALL SELECT endpoint, 1, count(*) FROM stored GROUP BY endpoint)
	SELECT n FROM stored`

// isPlain reports whether a result is what most are: an event was delivered at the first attempt,
// and none of its call waits behind it. For it store.Record has nothing to decide, unless somebody
// has changed the delivery since.
func isPlain(r *store.Result) bool {
	d := &r.Job.Delivery
	return r.Now.State == store.Delivered && r.Now.Attempts == 1 && r.Attempt != nil &&
		d.Attempts == 0 && d.Next == 0 && d.Redelivered == 0 && d.Request == 0 &&
		r.Keep == nil && r.Job.KeptVersion == 0 && len(r.Events) == 0
}

// recordPlain stores those of the results that are plain, in one round trip, and returns the
// others.
func (s *Engine) recordPlain(ctx context.Context, endpoint int16, results []*store.Result) ([]*store.Result, error) {
	// In order, since an index takes neighbours faster.
	plain := slices.SortedFunc(filter(results, isPlain), func(a, b *store.Result) int {
		return cmp.Compare(a.Job.Number, b.Job.Number)
	})
	if len(plain) == 0 {
		return results, nil
	}
	var calls []string
	var c columns
	for _, r := range plain {
		calls = append(calls, lockName(r.Job.Number, r.Job.Event.Call))
		history := store.AppendAttempt(nil, nil, *r.Attempt)
		c.add(deliveryKey{r.Job.Number, endpoint}, &record{Delivery: r.Now, history: history})
	}
	stored := map[uint64]bool{}
	err := s.change(ctx, func(tx *txn) error {
		clear(stored)
		queueLocks(&tx.writes, s.lockKeys(calls))
		tx.writeColumns(recordDelivered, &c, c.state)
		each(tx.writes.QueuedQueries[tx.writes.Len()-1], func(rows pgx.Rows) error {
			var n uint64
			err := rows.Scan(&n)
			stored[n] = true
			return err
		})
		return nil
	})
	return slices.Collect(filter(results, func(r *store.Result) bool { return !stored[r.Job.Number] })), err
}

// filter gives the results of which something is true.
func filter(results []*store.Result, is func(*store.Result) bool) iter.Seq[*store.Result] {
	return func(yield func(*store.Result) bool) {
		for _, r := range results {
			if is(r) && !yield(r) {
				return
			}
		}
	}
}
