package postgres

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

var _ store.Shared = (*Engine)(nil)

// Announce stores how a bridge stands: see store.Shared.
func (s *Engine) Announce(ctx context.Context, b store.Bridge) error {
	value, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return s.change(ctx, func(tx *txn) error {
		tx.write(`INSERT INTO bridge (name, seen, value) VALUES ($1, $2, $3)
			ON CONFLICT (name) DO UPDATE SET seen = excluded.seen, value = excluded.value`,
			b.Name, b.Seen.UnixMilli(), withoutZeros.Replace(string(value)))
		tx.write(`DELETE FROM bridge WHERE seen < $1`, b.Seen.Add(-store.BridgeKept).UnixMilli())
		return nil
	})
}

// withoutZeros replaces zero bytes in JSON, which an error of a CRM may have and the database does
// not take. A backslash before such a byte is no escape of it.
var withoutZeros = strings.NewReplacer(`\\`, `\\`, `\u0000`, `\ufffd`)

// Bridges returns the bridges that were seen since a time: see store.Shared.
func (s *Engine) Bridges(ctx context.Context, since time.Time) (list []store.Bridge, err error) {
	err = s.view(ctx, func(tx *txn) error {
		list = nil
		err := tx.query(func(rows pgx.Rows) error {
			var value []byte
			if err := rows.Scan(&value); err != nil {
				return err
			}
			var b store.Bridge
			err := json.Unmarshal(value, &b)
			list = append(list, b)
			return err
		}, `SELECT value FROM bridge WHERE seen >= $1 ORDER BY name`, since.UnixMilli())
		if err != nil {
			return err
		}
		return tx.query(func(rows pgx.Rows) error {
			var endpoint, bridge string
			err := rows.Scan(&endpoint, &bridge)
			for i := range list {
				if list[i].Name == bridge {
					list[i].Lanes = append(list[i].Lanes, endpoint)
				}
			}
			return err
		}, `SELECT substr(l.name, $1), p.bridge FROM lease l JOIN process p ON p.id = l.owner
			WHERE l.name LIKE $2 ORDER BY l.name`, len(lanePrefix)+1, lanePrefix+"%")
	})
	return list, err
}
