package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// Where two listeners read the same events, each stores only what the other one has not: see
// package pairing. The head has the number of the last event of each, so that one which does not
// know of the other's last is told so, and stores nothing.

// AppendHeard stores what one of two listeners has read: see store.Shared.
func (s *Engine) AppendHeard(
	ctx context.Context, slot int, followed uint64, events []store.NewEvent,
) (store.Appended, error) {
	return s.appendWithOthers(ctx, &appending{events: events, slot: slot, followed: followed})
}

// isBehind reports whether the other listener has stored something that this one does not know of.
// A repeated append is not behind: what it has stored is stored.
func (tx *txn) isBehind(a *appending) (bool, error) {
	if a.slot == 0 || tx.heard[2-a.slot] <= a.followed {
		return false, nil
	}
	isRepeated, err := tx.isRepeated(a)
	return !isRepeated, err
}

// isRepeated reports whether an append was done already. Then some of its events are stored: all or
// none were, but for those that nobody wants.
func (tx *txn) isRepeated(a *appending) (bool, error) {
	in := tx.incoming
	if !in.isLooked {
		if err := tx.read(func(b *pgx.Batch) { tx.queueKnown(b, in.ids) }); err != nil {
			return false, err
		}
		in.isLooked = true
	}
	return slices.ContainsFunc(a.events, func(e store.NewEvent) bool { return in.known[e.ID] != 0 }), nil
}

// HeardByOthers gives what other listeners have stored after a number: see store.Shared.
func (s *Engine) HeardByOthers(
	ctx context.Context, slot int, after uint64,
) (list []store.Heard, followed uint64, err error) {
	const page = 1000
	err = s.look(ctx, func(tx *txn) error {
		list = nil
		if _, err := tx.queryRow([]any{&followed}, `SELECT last FROM head`); err != nil || followed <= after {
			return err
		}
		rows := 0
		return tx.query(func(r pgx.Rows) error {
			var n uint64
			var by int
			var print uuid.UUID
			err := r.Scan(&n, &by, &print)
			if by != 0 && by != slot && by != -slot {
				list = append(list, store.Heard{Print: print, Replayed: by < 0})
			}
			if rows++; rows == page {
				followed = n
			}
			return err
		}, heardAfter, int64(after), page)
	})
	return list, max(followed, after), err
}

const heardAfter = `SELECT n, slot, print FROM event WHERE n > $1
	UNION ALL SELECT n, slot, print FROM removed WHERE n > $1 ORDER BY n LIMIT $2`

// removedLife is for how long after an event was read its print is kept if the event is removed:
// far longer than a listener stands still and then stores what it has read.
const removedLife = time.Hour

// noteRemoved keeps the prints of events that are about to be removed, for the other listener.
func (tx *txn) noteRemoved(list []*storedEvent) {
	isRecent := func(e *storedEvent) bool { return tx.engine.clock.Age(e.At) < removedLife }
	if slices.ContainsFunc(list, isRecent) {
		tx.write(`INSERT INTO removed SELECT n, at, slot, print FROM event WHERE n = ANY($1) AND slot <> 0
			ON CONFLICT DO NOTHING`, signed(numbersOf(list)))
	}
}

// pruneRemoved removes the prints that nobody needs any more.
func (s *Engine) pruneRemoved(ctx context.Context) error {
	return s.change(ctx, func(tx *txn) error {
		before := time.Now().Add(-removedLife).UnixMilli()
		// A transaction that changes nothing must not count as one that could.
		hasOld, err := tx.queryRow(nil, `SELECT FROM removed WHERE at < $1 LIMIT 1`, before)
		if hasOld {
			tx.write(`DELETE FROM removed WHERE at < $1`, before)
		}
		return err
	})
}
