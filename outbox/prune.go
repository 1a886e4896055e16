package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	// pruneEvery is how often the outbox looks for what is too old.
	pruneEvery = time.Minute
	// pruneBatch is how many events one transaction looks at: few enough to stall no delivery.
	pruneBatch = 256
)

// prune removes, until ctx ends, events that are older than the retention and that no endpoint waits for any more. bbolt uses the freed
// pages again, so under a steady load the file stops growing.
func (o *Outbox) prune(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		removed, err := o.pruneOnce(ctx)
		switch {
		case err != nil:
			o.pruning.Failed("old events cannot be removed from the outbox", err)
		case removed > 0:
			o.pruning.Recovered("old events are removed again")
			o.opts.Logger.Log(ctx, slog.LevelDebug, "old events removed from the outbox", "events", removed)
		}
	}
}

// pruneOnce goes once through the events that are old enough.
func (o *Outbox) pruneOnce(ctx context.Context) (removed int, err error) {
	now := time.Now()
	for from := uint64(0); from != pruneDone && ctx.Err() == nil; {
		var old [][]byte
		old, from, err = o.store.oldEvents(from, now, o.opts.Retention)
		if err != nil || len(old) == 0 {
			return removed, err
		}
		gone := 0
		err = o.store.commit(func(tx *bolt.Tx) error {
			gone, err = o.store.pruneEvents(tx, old)
			return err
		})
		if err != nil {
			return removed, err
		}
		removed += gone
	}
	return removed, nil
}

// pruneDone stands for the event after the last one that is old enough.
const pruneDone = uint64(math.MaxUint64)

// oldEvents gives the keys of the next events, from a number on, that are older than the retention, and the number to go on from.
func (s *store) oldEvents(from uint64, now time.Time, retention time.Duration) (old [][]byte, next uint64, err error) {
	next = pruneDone
	err = s.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketEvents).Cursor()
		for k, v := c.Seek(number(from)); k != nil; k, v = c.Next() {
			j, err := decodeEvent(v)
			if err != nil || j.at.After(now) {
				continue // what is damaged stays for somebody to look at; what is of the future, until the clock is there again
			}
			if !j.at.Before(now.Add(-retention)) {
				return nil // and so are all that came later
			}
			if len(old) == pruneBatch {
				next = binary.BigEndian.Uint64(k)
				return nil
			}
			old = append(old, bytes.Clone(k))
		}
		return nil
	})
	return old, next, err
}

// pruneEvents removes what it may of some events, and says how many that were.
func (s *store) pruneEvents(tx *bolt.Tx, old [][]byte) (removed int, err error) {
	for _, k := range old {
		gone, err := s.pruneEvent(tx, k)
		if err != nil {
			return removed, err
		}
		if gone {
			removed++
		}
	}
	return removed, nil
}

// pruneEvent removes one event with all that points to it, unless an endpoint of the configuration still waits for it. What waits for
// an endpoint that is configured no longer has waited long enough.
func (s *store) pruneEvent(tx *bolt.Tx, k []byte) (bool, error) {
	endpoints := tx.Bucket(bucketEndpoints)
	n := binary.BigEndian.Uint64(k)
	for _, e := range s.endpoints {
		record := endpoints.Bucket([]byte(e.Name)).Bucket(bucketDeliveries).Get(k)
		if record == nil {
			continue
		}
		if d, err := decodeDelivery(record); err != nil || d.state == pending {
			return false, err
		}
	}
	err := endpoints.ForEachBucket(func(name []byte) error {
		b := endpoints.Bucket(name)
		record := b.Bucket(bucketDeliveries).Get(k)
		if record == nil {
			return nil
		}
		d, err := decodeDelivery(record)
		return errors.Join(err, b.Bucket(bucketDue).Delete(dueKey(d.due, n)), b.Bucket(bucketDeliveries).Delete(k))
	})
	if err != nil {
		return false, err
	}
	j, err := decodeEvent(tx.Bucket(bucketEvents).Get(k))
	return err == nil, errors.Join(
		err,
		tx.Bucket(bucketCalls).Delete(append(callKey(j.call), number(j.sequence)...)),
		tx.Bucket(bucketIDs).Delete(j.id[:]),
		tx.Bucket(bucketEvents).Delete(k),
	)
}
