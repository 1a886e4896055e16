package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/outbox/store"
)

// keyLife is how long an idempotency key is known, if its bearer does not bring too many.
const keyLife = 24 * time.Hour

// A claim's record begins with its version. Version 0 begins with the time, whose first byte is 0
// for some thousand years to come.
const (
	claimVersion = 1
	claimHead0   = 8 + 32 + 2
	claimHead1   = 1 + 8 + 16 + 32 + 2
)

// encodeClaim: version (1 byte), time in Unix milliseconds (8), ID (16), request (32), status (2),
// answer. Version 0 had neither version nor ID.
func encodeClaim(c store.KeyClaim) []byte {
	v := append(make([]byte, 0, claimHead1+len(c.Answer)), claimVersion)
	v = binary.BigEndian.AppendUint64(v, uint64(c.At.UnixMilli()))
	v = append(append(v, c.ID[:]...), c.Request[:]...)
	v = binary.BigEndian.AppendUint16(v, uint16(c.Status))
	return append(v, c.Answer...)
}

func decodeClaim(v []byte) (c store.KeyClaim, err error) {
	switch {
	case len(v) >= claimHead1 && v[0] == claimVersion:
		c.ID = [16]byte(v[9:25])
		v = append(bytes.Clone(v[1:9]), v[25:]...)
	case len(v) < claimHead0 || v[0] != 0:
		return store.KeyClaim{}, store.ErrBadRecord
	}
	c.At = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
	c.Request, c.Status, c.Answer = [32]byte(v[8:40]), int(binary.BigEndian.Uint16(v[40:])), bytes.Clone(v[42:])
	return c, nil
}

// claimedAt is when a claim's record was written, in Unix milliseconds; 0 for one that is damaged.
func claimedAt(record []byte) uint64 {
	if len(record) >= 9 && record[0] == claimVersion {
		record = record[1:]
	}
	if len(record) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(record)
}

// ClaimKey takes a bearer's idempotency key for a request: see store.Keys.
func (s *Engine) ClaimKey(
	_ context.Context, bearer string, key [32]byte, c store.KeyClaim,
) (taken *store.KeyClaim, err error) {
	err = s.commit(func(tx *txn) error {
		taken = nil
		if known, err := decodeClaim(tx.keys.Get(key[:])); err == nil && s.clock.Age(known.At) < keyLife {
			if known.ID != c.ID {
				taken = &known
			}
			return nil
		}
		return s.putKey(tx, bearer, key, encodeClaim(c))
	})
	return taken, err
}

// SettleKey stores what the request with a key was answered, or forgets the key: see store.Keys.
func (s *Engine) SettleKey(_ context.Context, bearer string, key [32]byte, c store.KeyClaim) error {
	return s.commit(func(tx *txn) error {
		known, err := decodeClaim(tx.keys.Get(key[:]))
		if err == nil && known.ID != c.ID {
			return nil
		}
		if c.Status == 0 {
			return tx.forgetKey(key[:])
		}
		return s.putKey(tx, bearer, key, encodeClaim(c))
	})
}

// The keys of each bearer stand by their age in a bucket of its own: a time in unix milliseconds
// and the key's hash -> the bytes that the key is reckoned to take. The bucket's sequence is their
// sum, and that of the bucket around them is the sum of all. So the oldest is found without a
// search, and the room that keys take without counting them. One index over all bearers would let
// one of them push out the keys of another.

// keyRoom is how many bytes of the file the keys of one bearer may take: beside a gigabyte of
// events those of a day of calls.
func (s *Engine) keyRoom() uint64 {
	return uint64(min(max(s.maxBytes/64, 1<<20), 16<<20))
}

// reckoned is how many bytes a key takes with its place by age: hashes come in no order, which
// leaves pages half empty.
func reckoned(record []byte) uint64 { return uint64(112+len(record)) * 2 }

// ageKey is where a key stands by its age; one whose record is damaged is of 1970.
func ageKey(record, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(key)), claimedAt(record)), key...)
}

// agesOf gives the bucket of a bearer's keys by age.
func (tx *txn) agesOf(bearer string) (*bolt.Bucket, error) {
	ages, err := tx.ages.CreateBucketIfNotExists([]byte(" " + bearer)) // a name may be empty, that of a bucket not
	if ages != nil {
		fill(ages)
	}
	return ages, err
}

// putKey stores a key, and forgets the bearer's oldest until there is room.
func (s *Engine) putKey(tx *txn, bearer string, key [32]byte, record []byte) error {
	ages, err := tx.agesOf(bearer)
	if err != nil {
		return err
	}
	if err := tx.forgetKey(key[:]); err != nil {
		return err
	}
	if err := tx.keys.Put(key[:], record); err != nil {
		return err
	}
	return s.addAge(tx, ages, ageKey(record, key[:]), reckoned(record))
}

// addAge notes the age of a key, and forgets the oldest others until there is room.
func (s *Engine) addAge(tx *txn, ages *bolt.Bucket, age []byte, size uint64) error {
	if err := ages.Put(age, number(size)); err != nil {
		return err
	}
	if err := tx.reckon(ages, ages.Sequence()+size, tx.ages.Sequence()+size); err != nil {
		return err
	}
	for ages.Sequence() > s.keyRoom() {
		oldest, _ := ages.Cursor().First()
		if oldest == nil || bytes.Equal(oldest, age) {
			return nil
		}
		if err := tx.forgetAge(ages, bytes.Clone(oldest)); err != nil {
			return err
		}
	}
	return nil
}

func (tx *txn) reckon(ages *bolt.Bucket, bearer, all uint64) error {
	if err := ages.SetSequence(bearer); err != nil {
		return err
	}
	return tx.ages.SetSequence(all)
}

// forgetKey forgets a key, whosever it is.
func (tx *txn) forgetKey(key []byte) error {
	record := tx.keys.Get(key)
	if record == nil {
		return nil
	}
	age := ageKey(record, key)
	for _, ages := range tx.bearers() {
		if ages.Get(age) != nil {
			return tx.forgetAge(ages, age)
		}
	}
	return tx.keys.Delete(key)
}

// forgetAge forgets a bearer's key by its age.
func (tx *txn) forgetAge(ages *bolt.Bucket, age []byte) error {
	size := decodeNumber(ages.Get(age))
	own, all := ages.Sequence(), tx.ages.Sequence()
	if err := tx.reckon(ages, own-min(size, own), all-min(size, all)); err != nil {
		return err
	}
	return errors.Join(ages.Delete(age), tx.keys.Delete(age[8:]))
}

// keyBytes is how many bytes of the file are reckoned to keys: they are none of the events that
// OUTBOX_MAX_BYTES bounds.
func keyBytes(tx *bolt.Tx) int64 {
	ages := tx.Bucket(bucketKeyAges)
	if ages == nil {
		return 0
	}
	return int64(ages.Sequence())
}

// isOldAge says whether a key may be forgotten, by its age.
func (s *Engine) isOldAge(age []byte) bool {
	return s.clock.Age(time.UnixMilli(int64(binary.BigEndian.Uint64(age)))) >= keyLife
}

// pruneKeys forgets the keys that are too old, some in each transaction.
func (s *Engine) pruneKeys() error {
	for more := true; more; {
		more = false
		err := s.view(func(tx *txn) error {
			for _, ages := range tx.bearers() {
				oldest, _ := ages.Cursor().First()
				more = more || oldest != nil && s.isOldAge(oldest)
			}
			return nil
		})
		if err != nil || !more {
			return err
		}
		err = s.commit(func(tx *txn) error {
			for _, ages := range tx.bearers() {
				if err := s.pruneSome(tx, ages); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pruneSome forgets some of a bearer's keys that are too old.
func (s *Engine) pruneSome(tx *txn, ages *bolt.Bucket) error {
	var old [][]byte
	c := ages.Cursor()
	for k, _ := c.First(); k != nil && len(old) < pruneBatch && s.isOldAge(k); k, _ = c.Next() {
		old = append(old, bytes.Clone(k))
	}
	for _, age := range old {
		if err := tx.forgetAge(ages, age); err != nil {
			return err
		}
	}
	return nil
}

// adoptKeys notes the ages of keys that have none, as those of a bearer without a name: an older
// version has stored them, which knew no bearers.
func (s *Engine) adoptKeys() error {
	for from := []byte{}; from != nil; {
		var without [][]byte
		err := s.view(func(tx *txn) error {
			c := tx.keys.Cursor()
			k, v := c.Seek(from)
			for ; k != nil && len(without) < redeliverBatch; k, v = c.Next() {
				if !tx.hasAge(ageKey(v, k)) {
					without = append(without, bytes.Clone(k))
				}
			}
			from = bytes.Clone(k)
			return nil
		})
		if err != nil {
			return err
		}
		if len(without) == 0 {
			continue
		}
		err = s.commit(func(tx *txn) error {
			ages, err := tx.agesOf("")
			if err != nil {
				return err
			}
			for _, k := range without {
				record := tx.keys.Get(k)
				if err := s.addAge(tx, ages, ageKey(record, k), reckoned(record)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hasAge says whether the age of a key is noted, whosever it is.
func (tx *txn) hasAge(age []byte) bool {
	return slices.ContainsFunc(tx.bearers(), func(ages *bolt.Bucket) bool { return ages.Get(age) != nil })
}

// bearers gives the buckets of all bearers' keys by age.
func (tx *txn) bearers() (list []*bolt.Bucket) {
	_ = tx.ages.ForEachBucket(func(name []byte) error {
		list = append(list, tx.ages.Bucket(name))
		return nil
	})
	return list
}
