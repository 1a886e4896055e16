package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

var _ store.Shared = (*Engine)(nil)

// announcement is what is stored of a bridge.
type announcement struct {
	store.Bridge
	Process uuid.UUID // that of the bridge
}

// isAnnouncerAlive is the condition that the process of an announcement in a schema lives.
const isAnnouncerAlive = `EXISTS (SELECT FROM %sprocess p WHERE p.id::text = bridge.value->>'Process')`

// Announce stores how a bridge stands: see store.Shared.
func (s *Engine) Announce(ctx context.Context, b store.Bridge) error {
	value, err := json.Marshal(announcement{b, s.id})
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

// announcers are when the processes of bridges were last found alive, by the clock of this one.
// Those of other machines may differ by hours.
type announcers struct {
	mu   sync.Mutex
	last map[uuid.UUID]time.Time
}

// date sets when a bridge was seen last. One whose process lives is seen now, whatever its own
// clock says; one that has lived was when it last did. Of any other one there is only its own word.
func (s *announcers) date(a *announcement, isAlive bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isAlive {
		s.last[a.Process] = now
	}
	if last, known := s.last[a.Process]; known {
		a.Seen = last
	}
	if a.Seen.After(now) {
		a.Seen = now
	}
}

// forget removes those of long ago.
func (s *announcers) forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.last, func(_ uuid.UUID, last time.Time) bool { return now.Sub(last) > time.Hour })
}

// Bridges returns the bridges that were seen since a time: see store.Shared.
func (s *Engine) Bridges(ctx context.Context, since time.Time) (list []store.Bridge, err error) {
	err = s.view(ctx, func(tx *txn) error {
		list = nil
		now := time.Now()
		s.announcers.forget(now)
		err := tx.query(func(rows pgx.Rows) error {
			var a announcement
			var isAlive bool
			if err := rows.Scan(&a, &isAlive); err != nil {
				return err
			}
			s.announcers.date(&a, isAlive, now)
			if !a.Seen.Before(since) {
				list = append(list, a.Bridge)
			}
			return nil
		}, `SELECT value, alive FROM (SELECT *, `+fmt.Sprintf(isAnnouncerAlive, "")+` AS alive FROM bridge) bridge
			WHERE seen >= $1 OR alive ORDER BY name`, since.UnixMilli())
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
