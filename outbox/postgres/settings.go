package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/clock"
)

// A value that was removed is stored as an empty one, so that each change of a setting writes: a
// repeated one must not be reported as done before the first one is safe, and a transaction that
// writes nothing waits for no standby.
const (
	putSetting = `INSERT INTO setting (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	// initSetting stores a value unless there is one, and returns what is stored then. Of several
	// processes that do so at once, the others wait for the first and get its value.
	initSetting = `INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE
		SET value = CASE setting.value WHEN '' THEN excluded.value ELSE setting.value END RETURNING value`
	getSetting = `SELECT value FROM setting WHERE name = $1`
)

// Setting gives what is stored under a name: see store.Upkeep.
func (s *Engine) Setting(ctx context.Context, name, initial string) (string, error) {
	transaction, sql, args := s.view, getSetting, []any{name}
	if initial != "" {
		transaction, sql, args = s.change, initSetting, append(args, []byte(initial))
	}
	var value []byte
	err := transaction(ctx, func(tx *txn) error {
		value = nil
		_, err := tx.queryRow([]any{&value}, sql, args...)
		return err
	})
	return string(value), err
}

// SetSetting stores a value under a name; an empty one removes it.
func (s *Engine) SetSetting(ctx context.Context, name, value string) error {
	return s.change(ctx, func(tx *txn) error {
		tx.write(putSetting, name, []byte(value))
		return nil
	})
}

// settingDoubt is the name of the setting that has the step of the clock that is not believed yet:
// see clock.Doubt. It is one for all processes, since one that starts anywhere may be the successor
// of the one that doubts. At worst a process takes over the doubt of another machine, and removes
// nothing too early.
const settingDoubt = "clock"

// encodeDoubt encodes a doubt as three numbers of nanoseconds; none is empty. What is left is
// rounded up, so that it is stored once a minute.
func encodeDoubt(d clock.Doubt) string {
	if d.By == 0 {
		return ""
	}
	left := (d.Left + time.Minute - 1).Truncate(time.Minute)
	return fmt.Sprintf("%d %d %d", d.By, d.From.UnixNano(), left)
}

func decodeDoubt(value string) (d clock.Doubt, ok bool) {
	var from int64
	_, err := fmt.Sscanf(value, "%d %d %d", &d.By, &from, &d.Left)
	d.From = time.Unix(0, from)
	return d, err == nil
}

// keepDoubt stores what the clock doubts, unless this process has stored or read just that: a
// restart would believe it.
func (s *Engine) keepDoubt(ctx context.Context) error {
	value := encodeDoubt(s.clock.Doubt())
	if value == s.doubt {
		return nil
	}
	err := s.SetSetting(ctx, settingDoubt, value)
	if err == nil {
		s.doubt = value
	}
	return err
}

// resumeClock gives the clock what it doubted, and when an event was stored last.
func (s *Engine) resumeClock(ctx context.Context) error {
	return s.view(ctx, func(tx *txn) error {
		var value []byte
		var last int64
		err := tx.read(func(b *pgx.Batch) {
			each(b.Queue(getSetting, settingDoubt), func(rows pgx.Rows) error { return rows.Scan(&value) })
			each(b.Queue(`SELECT at FROM event ORDER BY n DESC LIMIT 1`), func(rows pgx.Rows) error {
				return rows.Scan(&last)
			})
		})
		if err != nil {
			return err
		}
		s.doubt = string(value)
		if d, ok := decodeDoubt(s.doubt); ok {
			s.clock.Resume(d)
		}
		if last != 0 {
			s.clock.RanAt(milliTime(last))
		}
		return nil
	})
}
