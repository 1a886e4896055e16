package outbox

import (
	"bytes"
	"encoding/binary"
	"time"
)

// keyLife is how long an idempotency key is known.
const keyLife = 24 * time.Hour

// Claim is what is known of an idempotency key.
type Claim struct {
	Request [32]byte // says which request it came with
	// Status and Answer are what that request was answered; Status is 0 while it is being carried out, and for ever if the process was ended in the middle of it.
	Status int
	Answer []byte
	At     time.Time // when it was answered, or came
}

// encodeClaim: time in unix milliseconds (8 bytes), request (32), status (2), answer.
func encodeClaim(at time.Time, c Claim) []byte {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 42+len(c.Answer)), uint64(at.UnixMilli()))
	v = append(v, c.Request[:]...)
	v = binary.BigEndian.AppendUint16(v, uint16(c.Status))
	return append(v, c.Answer...)
}

func decodeClaim(v []byte) (at time.Time, c Claim, err error) {
	if len(v) < 42 {
		return time.Time{}, Claim{}, errDamaged
	}
	at = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
	return at, Claim{Request: [32]byte(v[8:40]), Status: int(binary.BigEndian.Uint16(v[40:])), Answer: bytes.Clone(v[42:]), At: at}, nil
}

// ClaimKey takes an idempotency key for a request, and returns when that is on the disk. If the key is taken already, it gives what is known of it.
func (o *Outbox) ClaimKey(key, request [32]byte) (taken *Claim, err error) {
	err = o.store.commit(func(tx *txn) error {
		taken = nil
		now := time.Now()
		if v := tx.keys.Get(key[:]); v != nil {
			at, c, err := decodeClaim(v)
			if err == nil && now.Sub(at) < keyLife {
				taken = &c
				return nil
			}
		}
		return tx.keys.Put(key[:], encodeClaim(now, Claim{Request: request}))
	})
	return taken, err
}

// AnswerKey keeps what the request with a key was answered.
func (o *Outbox) AnswerKey(key, request [32]byte, status int, answer []byte) error {
	return o.store.commit(func(tx *txn) error {
		return tx.keys.Put(key[:], encodeClaim(time.Now(), Claim{Request: request, Status: status, Answer: answer}))
	})
}

// ReleaseKey forgets a key: its request was not carried out.
func (o *Outbox) ReleaseKey(key [32]byte) error {
	return o.store.commit(func(tx *txn) error { return tx.keys.Delete(key[:]) })
}

// isOldKey says whether a key may be forgotten, by its record.
func isOldKey(v []byte, now time.Time) bool {
	return len(v) < 8 || now.Sub(time.UnixMilli(int64(binary.BigEndian.Uint64(v)))) >= keyLife
}

// pruneKeys forgets the keys that are too old, some in each transaction.
func (s *store) pruneKeys(now time.Time) error {
	for {
		var old [][]byte
		err := s.view(func(tx *txn) error {
			c := tx.keys.Cursor()
			for k, v := c.First(); k != nil && len(old) < pruneBatch; k, v = c.Next() {
				if isOldKey(v, now) {
					old = append(old, bytes.Clone(k))
				}
			}
			return nil
		})
		if err != nil || len(old) == 0 {
			return err
		}
		err = s.commit(func(tx *txn) error {
			for _, k := range old {
				if !isOldKey(tx.keys.Get(k), now) { // it was taken anew meanwhile
					continue
				}
				if err := tx.keys.Delete(k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}
