package postgres

import (
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// TakeBack takes the copy with an ID of a file back, as long as nothing was delivered or stored
// since: from is the file, to be compared. The database is empty then, and no bridge starts on it.
// Fails with ErrDelivered, ErrOtherCopy or ErrBridge, and then leaves it as it was.
func (l *Loader) TakeBack(ctx context.Context, id uuid.UUID, file string, from store.Dumper) error {
	s := l.engine
	var before, c copyState
	var isCopy bool
	err := s.change(ctx, func(tx *txn) (err error) {
		if before, isCopy, err = tx.copyState(); err != nil {
			return err
		}
		if c, err = tx.checkCopy(id); errors.Is(err, ErrNotEmpty) {
			return ErrDelivered // it was emptied, and used without the copy
		} else if err != nil {
			return err
		}
		taking := c
		taking.File, taking.TakingBack = file, true
		return tx.putCopyState(taking)
	})
	if err != nil {
		return err
	}
	if err := s.refuseToTakeBack(ctx, c, from); err != nil {
		undone := s.change(context.WithoutCancel(ctx), func(tx *txn) error {
			if !isCopy {
				tx.write(`DELETE FROM setting WHERE name = $1`, settingCopy)
				return nil
			}
			before.TakingBack = false
			return tx.putCopyState(before)
		})
		return errors.Join(err, undone)
	}
	return s.empty(ctx, copyState{ID: id, File: file, Stage: copyTakenBack})
}

func (s *Engine) refuseToTakeBack(ctx context.Context, c copyState, from store.Dumper) error {
	if err := s.refuseLiving(ctx); err != nil || !c.hasFirstPart() {
		return err
	}
	if err := s.addEndpoints(ctx); err != nil {
		return err
	}
	return s.refuseChanged(ctx, from)
}

// refuseChanged fails with ErrDelivered if an attempt was made, or an event stored, since the copy.
func (s *Engine) refuseChanged(ctx context.Context, from store.Dumper) error {
	const batch = 512
	for after, isEnd := []byte(nil), false; !isEnd; {
		d, err := from.Dump(ctx, after, batch)
		if err != nil {
			return err
		}
		changed := false
		err = s.look(ctx, func(tx *txn) (err error) {
			changed, err = tx.differs(d.Records)
			return err
		})
		if err != nil {
			return err
		}
		if changed {
			return ErrDelivered
		}
		after, isEnd = d.Next, d.Next == nil
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// differs reports whether more has happened in the database than the records say.
func (tx *txn) differs(records []store.CopyRecord) (bool, error) {
	attempts := map[deliveryKey]int{}
	var numbers []uint64
	for _, r := range records {
		switch r := r.(type) {
		case store.NumbersRecord:
			var last uint64
			if _, err := tx.queryRow([]any{&last}, `SELECT last FROM head`); err != nil || last > r.Last {
				return true, err
			}
		case store.EventRecord:
			numbers = append(numbers, r.Number)
			for _, d := range r.Deliveries {
				id, _ := tx.engine.endpoints.id(d.Endpoint)
				attempts[deliveryKey{r.Number, id}] = d.Delivery.Attempts
			}
		}
	}
	if len(numbers) == 0 {
		return false, nil
	}
	err := tx.read(func(b *pgx.Batch) {
		each(b.Queue(pendingOf, signed(numbers)), tx.scanDelivery)
		each(b.Queue(endedOf, signed(numbers)), tx.scanDelivery)
	})
	for k, d := range tx.deliveries {
		if d.Attempts > attempts[k] {
			return true, err
		}
	}
	return false, err
}

// empty removes all that is stored but the version of the tables, and stores how the copy stands.
func (s *Engine) empty(ctx context.Context, c copyState) error {
	return s.change(ctx, func(tx *txn) error {
		var tables []string
		err := tx.query(func(rows pgx.Rows) error {
			var name string
			err := rows.Scan(&name)
			tables = append(tables, pgx.Identifier{s.schema, name}.Sanitize())
			return err
		}, `SELECT tablename::text FROM pg_tables WHERE schemaname = $1 AND tablename <> 'setting'`, s.schema)
		if err != nil {
			return err
		}
		tx.write(`TRUNCATE ` + strings.Join(tables, ", ") + ` RESTART IDENTITY`)
		tx.write(`INSERT INTO head DEFAULT VALUES`)
		tx.write(`DELETE FROM setting WHERE name <> $1`, settingVersion)
		return tx.putCopyState(c)
	})
}
