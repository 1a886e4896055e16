package postgres

import (
	"context"
	"slices"

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
	var events []*store.NewEvent
	for i := range a.events {
		events = append(events, &a.events[i])
	}
	isRepeated, err := tx.areStored(events)
	return !isRepeated, err
}

// areStored reports whether all events are stored already.
func (tx *txn) areStored(events []*store.NewEvent) (bool, error) {
	in := tx.incoming
	if !in.isLooked {
		if err := tx.read(func(b *pgx.Batch) { tx.queueKnown(b, in.ids) }); err != nil {
			return false, err
		}
		in.isLooked = true
	}
	return !slices.ContainsFunc(events, func(e *store.NewEvent) bool { return in.known[e.ID] == 0 }), nil
}

// HeardByOthers gives the fingerprints of what other listeners have stored after a number: see
// store.Shared.
func (s *Engine) HeardByOthers(
	ctx context.Context, slot int, after uint64,
) (prints [][16]byte, followed uint64, err error) {
	const page = 1000
	err = s.look(ctx, func(tx *txn) error {
		prints = nil
		if _, err := tx.queryRow([]any{&followed}, `SELECT last FROM head`); err != nil || followed <= after {
			return err
		}
		rows := 0
		return tx.query(func(r pgx.Rows) error {
			var n uint64
			var by int
			var print uuid.UUID
			err := r.Scan(&n, &by, &print)
			if by != 0 && by != slot {
				prints = append(prints, print)
			}
			if rows++; rows == page {
				followed = n
			}
			return err
		}, `SELECT n, slot, print FROM event WHERE n > $1 ORDER BY n LIMIT $2`, int64(after), page)
	})
	return prints, max(followed, after), err
}
