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

// A claim's record begins with its version. Version 0 begins with the time instead, whose first
// byte is 0 for some thousand years to come.
const (
	claimVersion = 1
	claimHead0   = 8 + 32 + 2
	claimHead1   = 1 + 8 + 16 + 32 + 2
)

// encodeClaim encodes a claim as version (1 byte), time in Unix milliseconds (8), ID (16), request
// (32), status (2) and answer. Version 0 has neither version nor ID.
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

// claimedAt returns the time in a claim's record, in Unix milliseconds; 0 for a damaged one.
func claimedAt(record []byte) uint64 {
	if len(record) >= 9 && record[0] == claimVersion {
		record = record[1:]
	}
	if len(record) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(record)
}

// ClaimKey claims a bearer's idempotency key for a request: see store.Keys.
func (s *Engine) ClaimKey(
	_ context.Context, bearer string, key [32]byte, c store.KeyClaim,
) (taken *store.KeyClaim, err error) {
	err = s.commit(func(tx *txn) error {
		taken = nil
		if known, err := decodeClaim(tx.keys.Get(key[:])); err == nil && s.clock.Age(known.At) < store.KeyLife {
			if known.ID != c.ID {
				taken = &known
			}
			return nil
		}
		return s.putKey(tx, bearer, key, encodeClaim(c))
	})
	return taken, err
}

// SettleKey stores the answer to the request with a key, or removes the key: see store.Keys.
func (s *Engine) SettleKey(_ context.Context, bearer string, key [32]byte, c store.KeyClaim) error {
	return s.commit(func(tx *txn) error {
		known, err := decodeClaim(tx.keys.Get(key[:]))
		if err == nil && known.ID != c.ID {
			return nil
		}
		if c.Status == 0 {
			return tx.removeKey(key[:])
		}
		return s.putKey(tx, bearer, key, encodeClaim(c))
	})
}

// The keys of each bearer are indexed by age in a bucket of the bearer's own: time in Unix
// milliseconds and hash of the key -> the bytes attributed to the key. The sequence of that bucket
// holds the sum of the bytes, and the sequence of the bucket around it the sum for all bearers. The
// oldest key and the bytes in use are therefore found without a scan. With one index for all
// bearers, one of them could displace the keys of another.

// keyRoom returns how many bytes of the file the keys of one bearer may take.
func (s *Engine) keyRoom() uint64 { return uint64(store.KeyRoom(s.maxBytes)) }

// keySize estimates the bytes that a key and its entry in the index by age take. The estimate is
// doubled because hashes come in random order, which leaves pages half empty.
func keySize(record []byte) uint64 { return uint64(112+len(record)) * 2 }

// ageKey returns the entry of a key in the index by age; a damaged record counts as of 1970.
func ageKey(record, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(key)), claimedAt(record)), key...)
}

// agesOf returns the bucket that indexes the keys of a bearer by age, and creates it if necessary.
func (tx *txn) agesOf(bearer string) (*bolt.Bucket, error) {
	name := " " + bearer // a bearer's name may be empty, a bucket's may not
	ages, err := tx.ages.CreateBucketIfNotExists([]byte(name))
	if ages != nil {
		fill(ages)
	}
	return ages, err
}

// putKey stores a key, and removes the oldest keys of the bearer until the rest fit.
func (s *Engine) putKey(tx *txn, bearer string, key [32]byte, record []byte) error {
	ages, err := tx.agesOf(bearer)
	if err != nil {
		return err
	}
	if err := tx.removeKey(key[:]); err != nil {
		return err
	}
	if err := tx.keys.Put(key[:], record); err != nil {
		return err
	}
	return s.addAge(tx, ages, ageKey(record, key[:]), keySize(record))
}

// addAge adds a key to the index by age, and removes the oldest others until the rest fit.
func (s *Engine) addAge(tx *txn, ages *bolt.Bucket, age []byte, size uint64) error {
	if err := ages.Put(age, number(size)); err != nil {
		return err
	}
	if err := tx.setKeyBytes(ages, ages.Sequence()+size, tx.ages.Sequence()+size); err != nil {
		return err
	}
	for ages.Sequence() > s.keyRoom() {
		oldest, _ := ages.Cursor().First()
		if oldest == nil || bytes.Equal(oldest, age) {
			return nil
		}
		if err := tx.removeAge(ages, bytes.Clone(oldest)); err != nil {
			return err
		}
	}
	return nil
}

// setKeyBytes stores the bytes that the keys of one bearer and those of all bearers take.
func (tx *txn) setKeyBytes(ages *bolt.Bucket, ofBearer, ofAll uint64) error {
	if err := ages.SetSequence(ofBearer); err != nil {
		return err
	}
	return tx.ages.SetSequence(ofAll)
}

// removeKey removes a key of any bearer.
func (tx *txn) removeKey(key []byte) error {
	record := tx.keys.Get(key)
	if record == nil {
		return nil
	}
	age := ageKey(record, key)
	for _, ages := range tx.bearers() {
		if ages.Get(age) != nil {
			return tx.removeAge(ages, age)
		}
	}
	return tx.keys.Delete(key)
}

// removeAge removes a key by its entry in the bearer's index.
func (tx *txn) removeAge(ages *bolt.Bucket, age []byte) error {
	size := decodeNumber(ages.Get(age))
	ofBearer, ofAll := ages.Sequence(), tx.ages.Sequence()
	if err := tx.setKeyBytes(ages, ofBearer-min(size, ofBearer), ofAll-min(size, ofAll)); err != nil {
		return err
	}
	return errors.Join(ages.Delete(age), tx.keys.Delete(age[8:]))
}

// keyBytes returns how many bytes of the file are attributed to keys. They do not count among the
// events that OUTBOX_MAX_BYTES bounds.
func keyBytes(tx *bolt.Tx) int64 {
	ages := tx.Bucket(bucketKeyAges)
	if ages == nil {
		return 0
	}
	return int64(ages.Sequence())
}

// isOldAge reports whether a key may be removed, by its entry in the index by age.
func (s *Engine) isOldAge(age []byte) bool {
	return s.clock.Age(time.UnixMilli(int64(binary.BigEndian.Uint64(age)))) >= store.KeyLife
}

// pruneKeys removes the keys that are too old, a batch in each transaction.
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

// pruneSome removes a batch of a bearer's keys that are too old.
func (s *Engine) pruneSome(tx *txn, ages *bolt.Bucket) error {
	var old [][]byte
	c := ages.Cursor()
	for k, _ := c.First(); k != nil && len(old) < pruneBatch && s.isOldAge(k); k, _ = c.Next() {
		old = append(old, bytes.Clone(k))
	}
	for _, age := range old {
		if err := tx.removeAge(ages, age); err != nil {
			return err
		}
	}
	return nil
}

// adoptKeys adds the keys that stand in no index by age to that of the bearer without a name: an
// older version has stored them, which had no bearers.
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
				if err := s.addAge(tx, ages, ageKey(record, k), keySize(record)); err != nil {
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

// hasAge reports whether an entry stands in the index by age of any bearer.
func (tx *txn) hasAge(age []byte) bool {
	return slices.ContainsFunc(tx.bearers(), func(ages *bolt.Bucket) bool { return ages.Get(age) != nil })
}

// bearers returns the buckets that index keys by age, one for each bearer.
func (tx *txn) bearers() (list []*bolt.Bucket) {
	_ = tx.ages.ForEachBucket(func(name []byte) error {
		list = append(list, tx.ages.Bucket(name))
		return nil
	})
	return list
}
