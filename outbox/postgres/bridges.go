package postgres

import (
	"context"
	"encoding/json"
	"errors"
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

// date sets when a bridge was seen last, if its own word cannot be right: one whose process lives
// is seen now, and one that has lived was when it last did. Its word is the more exact one, since a
// process that died is found alive for some seconds more.
func (s *announcers) date(a *announcement, isAlive bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isAlive {
		s.last[a.Process] = now
	}
	last, known := s.last[a.Process]
	if known && last.Sub(a.Seen).Abs() > maxClockDifference {
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

// Bridges returns the bridges that were seen since a time: see store.Shared. It also looks whether
// the clocks differ, which shows in nothing else.
func (s *Engine) Bridges(ctx context.Context, since time.Time) (list []store.Bridge, err error) {
	err = s.view(ctx, func(tx *txn) error {
		list = nil
		asked := time.Now()
		s.announcers.forget(asked)
		return tx.read(func(b *pgx.Batch) {
			each(b.Queue(`SELECT clock_timestamp()`), func(rows pgx.Rows) error {
				var theirs time.Time
				err := rows.Scan(&theirs)
				s.compareClock(theirs, asked, time.Now())
				return err
			})
			each(b.Queue(`SELECT value, alive FROM
				(SELECT *, `+fmt.Sprintf(isAnnouncerAlive, "")+` AS alive FROM bridge) bridge
				WHERE seen >= $1 OR alive ORDER BY name`, since.UnixMilli()), func(rows pgx.Rows) error {
				var a announcement
				var isAlive bool
				err := rows.Scan(&a, &isAlive)
				s.announcers.date(&a, isAlive, asked)
				if !a.Seen.Before(since) {
					list = append(list, a.Bridge)
				}
				return err
			})
			each(b.Queue(`SELECT substr(l.name, $1), p.bridge FROM lease l JOIN process p ON p.id = l.owner
				WHERE l.name LIKE $2 ORDER BY l.name`, len(lanePrefix)+1, lanePrefix+"%"), func(rows pgx.Rows) error {
				var endpoint, bridge string
				err := rows.Scan(&endpoint, &bridge)
				for i := range list {
					if list[i].Name == bridge {
						list[i].Lanes = append(list[i].Lanes, endpoint)
					}
				}
				return err
			})
		})
	})
	return list, err
}

// maxClockDifference is how far the clock of the database may be from that of this machine.
const maxClockDifference = 5 * time.Second

// clockAhead returns how far the clock of the database, which said theirs between two moments, is
// ahead of that of this machine; 0 if the difference is small, or may be.
func clockAhead(theirs, asked, answered time.Time) time.Duration {
	took := answered.Sub(asked)
	ahead := theirs.Sub(asked.Add(took / 2))
	if ahead.Abs() <= maxClockDifference+took {
		return 0
	}
	return ahead.Round(time.Second)
}

// compareClock warns of a clock that differs from that of the database. With it an event of another
// bridge seems old, or waits for as long as the clocks differ.
func (s *Engine) compareClock(theirs, asked, answered time.Time) {
	if s.quiet {
		return // the time is not the real one
	}
	ahead := clockAhead(theirs, asked, answered)
	switch {
	case ahead > 0:
		s.clocks.Failed("the clocks differ", errClockBehind, "by", ahead.String())
	case ahead < 0:
		s.clocks.Failed("the clocks differ", errClockAhead, "by", (-ahead).String())
	default:
		s.clocks.Recovered("the clocks agree again")
	}
}

var (
	errClockAhead  = errors.New("the clock of this machine is ahead of that of the database")
	errClockBehind = errors.New("the clock of this machine is behind that of the database")
)
