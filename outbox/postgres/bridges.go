package postgres

import (
	"context"
	"encoding/json"
	"errors"
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

// rises are when the counters of processes were last found to have risen: see presence. A row alone
// may be that of a process that has died with all others, and that nobody has removed.
type rises struct {
	mu sync.Mutex
	at map[uuid.UUID]time.Time
}

// note records a rise, and forgets those of processes of which nothing is stored any more.
func (r *rises) note(process uuid.UUID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at == nil {
		r.at = map[uuid.UUID]time.Time{}
	}
	r.at[process] = now
	maps.DeleteFunc(r.at, func(_ uuid.UUID, at time.Time) bool { return now.Sub(at) > store.BridgeKept })
}

// processes returns those whose counters have risen.
func (r *rises) processes() (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.at {
		ids = append(ids, id.String())
	}
	return ids
}

// date sets when a bridge was seen last, if its own word cannot be right, as the clocks of machines
// may differ by hours: then it is when its counter has risen. Its word is the more exact one
// otherwise. Without either nobody knows: the zero time.
func (r *rises) date(a *announcement, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rose, known := r.at[a.Process]
	ahead := a.Seen.Sub(now)
	switch {
	case !known && ahead > maxClockDifference:
		a.Seen = time.Time{}
	case known && rose.Sub(a.Seen).Abs() > maxClockDifference:
		a.Seen = rose
	case ahead > 0:
		a.Seen = now
	}
}

// Bridges returns the bridges that were seen since a time: see store.Shared. It also looks whether
// the clocks differ, which shows in nothing else.
func (s *Engine) Bridges(ctx context.Context, since time.Time) (list []store.Bridge, err error) {
	err = s.view(ctx, func(tx *txn) error {
		list = nil
		asked := time.Now()
		return tx.read(func(b *pgx.Batch) {
			each(b.Queue(`SELECT clock_timestamp()`), func(rows pgx.Rows) error {
				var theirs time.Time
				err := rows.Scan(&theirs)
				s.compareClock(theirs, asked, time.Now())
				return err
			})
			each(b.Queue(`SELECT value FROM bridge WHERE seen >= $1 OR value->>'Process' = ANY($2) ORDER BY name`,
				since.UnixMilli(), s.rises.processes()), func(rows pgx.Rows) error {
				var a announcement
				err := rows.Scan(&a)
				s.rises.date(&a, asked)
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
