package bolt

import (
	"bytes"
	"context"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/clock"
)

// keySessions is the setting that Restore renews, so that sessions which have ended since the
// backup are not good again.
var keySessions = []byte("sessions")

// Setting gives what is stored under a name: see store.Upkeep.
func (s *Engine) Setting(_ context.Context, name, initial string) (value string, err error) {
	err = s.view(func(tx *txn) error {
		value = string(tx.meta.Get([]byte(name)))
		return nil
	})
	if err != nil || value != "" || initial == "" {
		return value, err
	}
	err = s.commit(func(tx *txn) error {
		if v := tx.meta.Get([]byte(name)); v != nil {
			value = string(v)
			return nil
		}
		value = initial
		return tx.meta.Put([]byte(name), []byte(initial))
	})
	return value, err
}

// SetSetting stores a value under a name; an empty one removes it.
func (s *Engine) SetSetting(_ context.Context, name, value string) error {
	return s.commit(func(tx *txn) error {
		if value == "" {
			return tx.meta.Delete([]byte(name))
		}
		return tx.meta.Put([]byte(name), []byte(value))
	})
}

// endSessions makes the generation of good sessions the time, or one more than it was: none comes
// again after a backup was restored.
func endSessions(meta *bolt.Bucket, now time.Time) error {
	return meta.Put(keySessions, number(max(decodeNumber(meta.Get(keySessions))+1, uint64(now.UnixMicro()))))
}

// keyDoubt holds the step of the clock that is not believed yet: see clock.Doubt.
var keyDoubt = []byte("clock")

// keepDoubt keeps what the clock doubts, as far as the file does not have it: a restart would
// believe it.
func (s *Engine) keepDoubt() error {
	d := s.clock.Doubt()
	v := slices.Concat(number(uint64(d.By)), number(uint64(d.From.UnixNano())), number(uint64(d.Left)))
	var kept []byte
	err := s.view(func(tx *txn) error {
		kept = bytes.Clone(tx.meta.Get(keyDoubt))
		return nil
	})
	if err != nil || d.By == 0 && kept == nil {
		return err
	}
	return s.commit(func(tx *txn) error {
		if d.By == 0 {
			return tx.meta.Delete(keyDoubt)
		}
		return tx.meta.Put(keyDoubt, v)
	})
}

// resumeClock gives the clock what it doubted, and when the bridge stored something last.
func (s *Engine) resumeClock() error {
	return s.view(func(tx *txn) error {
		if v := tx.meta.Get(keyDoubt); len(v) == 24 {
			s.clock.Resume(clock.Doubt{
				By:   time.Duration(decodeNumber(v[:8])),
				From: time.Unix(0, int64(decodeNumber(v[8:16]))),
				Left: time.Duration(decodeNumber(v[16:])),
			})
		}
		if _, v := tx.events.Cursor().Last(); v != nil {
			if e, _, err := decodeEventHead(v); err == nil {
				s.clock.RanAt(e.At)
			}
		}
		return nil
	})
}
