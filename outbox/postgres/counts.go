package postgres

import "context"

// maxTally is how many rows table tally may have before they are added up. All of them are read
// whenever deliveries are counted.
const maxTally = 256

// addUp adds up the counts.
func (s *Engine) addUp(ctx context.Context) error {
	return s.change(ctx, func(tx *txn) error {
		tx.write(addUpTally)
		return nil
	})
}

// addUpTally replaces rows of table tally by their sums. Each row is locked by one process alone,
// while others pass over it, and so is counted once; one that was removed meanwhile is passed over
// as well. Rows that others add are not touched, and nothing waits.
const addUpTally = `WITH added AS (
	DELETE FROM tally WHERE ctid = ANY (ARRAY(SELECT ctid FROM tally LIMIT 65536 FOR UPDATE SKIP LOCKED))
	RETURNING endpoint, state, number
) INSERT INTO tally SELECT endpoint, state, sum(number) FROM added GROUP BY endpoint, state HAVING sum(number) <> 0`
