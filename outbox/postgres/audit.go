package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// AddAudit stores what an operator has done: see store.Audits.
func (s *Engine) AddAudit(ctx context.Context, e store.Audit) error {
	return s.change(ctx, func(tx *txn) error {
		tx.write(`INSERT INTO audit (id, value) VALUES ($1, $2)
			ON CONFLICT (id) DO UPDATE SET value = excluded.value`, e.ID, e)
		// Numbers may be left out, so those that stay are counted.
		tx.write(`DELETE FROM audit WHERE number < (SELECT min(number) FROM (
			SELECT number FROM audit ORDER BY number DESC LIMIT $1) newest)`, store.MaxAudits)
		return nil
	})
}

// Audits gives what operators have done, the latest first: see store.Audits.
func (s *Engine) Audits(ctx context.Context, limit int) (list []store.Audit, err error) {
	err = s.view(ctx, func(tx *txn) error {
		return tx.query(func(rows pgx.Rows) error {
			var e store.Audit
			err := rows.Scan(&e)
			list = append(list, e)
			return err
		}, `SELECT value FROM audit ORDER BY number DESC LIMIT $1`, min(limit, store.MaxAudits))
	})
	return list, err
}
