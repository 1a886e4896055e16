package outbox

import (
	"time"

	bolt "go.etcd.io/bbolt"
)

// Sessions is the generation of the operator's sessions that are good: 0 until EndSessions is called.
func (o *Outbox) Sessions() (generation uint64, err error) {
	err = o.store.view(func(tx *txn) error {
		generation = decodeNumber(tx.meta.Get(keySessions))
		return nil
	})
	return generation, err
}

// EndSessions begins another generation, and returns it when that is on the disk: all sessions that there are end, and stay ended after a restart.
func (o *Outbox) EndSessions() (generation uint64, err error) {
	err = o.store.commit(func(tx *txn) error {
		generation, err = endSessions(tx.meta, time.Now())
		return err
	})
	return generation, err
}

// endSessions makes the generation the time, so that none comes again after a backup was restored: that ends all sessions too.
func endSessions(meta *bolt.Bucket, now time.Time) (generation uint64, err error) {
	generation = max(decodeNumber(meta.Get(keySessions))+1, uint64(now.UnixMicro()))
	return generation, meta.Put(keySessions, number(generation))
}
