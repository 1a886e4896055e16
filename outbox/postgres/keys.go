package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// The row of a bearer is locked while one of its keys is changed, and has the bytes that its keys
// take: which of them have to go is found without a sum over all of them.

// ClaimKey claims a bearer's idempotency key for a request: see store.Keys.
func (s *Engine) ClaimKey(
	ctx context.Context, bearer string, key [32]byte, c store.KeyClaim,
) (taken *store.KeyClaim, err error) {
	err = s.change(ctx, func(tx *txn) error {
		taken = nil
		k, err := tx.lockKey(bearer, key[:])
		if err != nil {
			return err
		}
		if k.isStored && s.clock.Age(k.stored.At) < store.KeyLife {
			if k.stored.ID != c.ID {
				taken = &k.stored
			}
			return nil
		}
		return tx.putKey(k, &c)
	})
	return taken, err
}

// SettleKey stores the answer to the request with a key, or removes the key: see store.Keys.
func (s *Engine) SettleKey(ctx context.Context, bearer string, key [32]byte, c store.KeyClaim) error {
	return s.change(ctx, func(tx *txn) error {
		k, err := tx.lockKey(bearer, key[:])
		switch {
		case err != nil:
			return err
		case k.isStored && k.stored.ID != c.ID:
			return nil
		case c.Status == 0:
			tx.removeKey(k)
			return nil
		}
		return tx.putKey(k, &c)
	})
}

// lockedKey is a key that a bearer changes in a transaction.
type lockedKey struct {
	key    []byte
	bearer string
	used   int64 // bytes that the keys of the bearer take

	isStored bool
	stored   store.KeyClaim
	size     int64  // of the stored one
	owner    string // the bearer to which the bytes of the stored one are attributed
}

const (
	// lockBearer locks the row of a bearer, and inserts it with the first key. It changes the row
	// in any case: an answer about a claim that is stored already must not be given before that is
	// safe, and a transaction that writes nothing waits for no standby.
	lockBearer = `INSERT INTO bearer (name) VALUES ($1)
		ON CONFLICT (name) DO UPDATE SET size = bearer.size RETURNING size`
	// selectKey locks the key as well: another bearer may have brought the same one.
	selectKey = `SELECT id, request, status, answer, at, size, bearer FROM claim WHERE key = $1 FOR UPDATE`

	insertKey = `INSERT INTO claim (key, bearer, id, request, status, answer, at, size)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	updateKey = `UPDATE claim SET bearer = $2, id = $3, request = $4, status = $5, answer = $6, at = $7, size = $8
		WHERE key = $1`
	deleteKeys = `DELETE FROM claim WHERE key = ANY($1)`
	addUsed    = `UPDATE bearer SET size = greatest(size + $2, 0) WHERE name = $1`
)

// lockKey locks a bearer and a key of it, and reads both.
func (tx *txn) lockKey(bearer string, key []byte) (*lockedKey, error) {
	k := &lockedKey{bearer: bearer, key: key}
	err := tx.read(func(b *pgx.Batch) {
		each(b.Queue(lockBearer, bearer), func(rows pgx.Rows) error { return rows.Scan(&k.used) })
		each(b.Queue(selectKey, key), func(rows pgx.Rows) error {
			c := &k.stored
			var request []byte
			var at int64
			err := rows.Scan(&c.ID, &request, &c.Status, &c.Answer, &at, &k.size, &k.owner)
			copy(c.Request[:], request)
			c.At, k.isStored = milliTime(at), true
			return err
		})
	})
	return k, err
}

// keySize estimates the bytes that a key takes with its entries in the indexes.
func keySize(c *store.KeyClaim) int64 { return minKeySize + int64(len(c.Answer)) }

// minKeySize is the size of a key without an answer. The estimate allows for pages that are half
// empty, since hashes come in random order.
const minKeySize = 400

// putKey stores a key, and removes the oldest keys of the bearer until the rest fit.
func (tx *txn) putKey(k *lockedKey, c *store.KeyClaim) error {
	size, at, sql := keySize(c), c.At.UnixMilli(), insertKey
	added := size
	if k.isStored {
		sql = updateKey
		if k.owner == k.bearer {
			added -= k.size
		} else {
			tx.write(addUsed, k.owner, -k.size)
		}
	}
	answer := append([]byte{}, c.Answer...) // nil would be NULL
	tx.write(sql, k.key, k.bearer, c.ID, c.Request[:], c.Status, answer, at, size)
	if over := k.used + added - store.KeyRoom(tx.engine.maxBytes); over > 0 {
		freed, err := tx.removeOldest(k, at, over)
		if err != nil {
			return err
		}
		added -= freed
	}
	tx.write(addUsed, k.bearer, added)
	return nil
}

// removeOldest removes the oldest other keys of a bearer, no newer than a time, until so many bytes
// are free. The next key goes on with what is too much for one transaction.
func (tx *txn) removeOldest(k *lockedKey, at, over int64) (freed int64, err error) {
	var oldest [][]byte
	limit := min(over/minKeySize+1, maxOldest)
	err = tx.query(func(rows pgx.Rows) error {
		var key []byte
		var size int64
		if err := rows.Scan(&key, &size); err != nil || freed >= over {
			return err
		}
		oldest, freed = append(oldest, key), freed+size
		return nil
	}, `SELECT key, size FROM claim WHERE bearer = $1 AND at <= $2 AND key <> $3 ORDER BY at, key LIMIT $4`,
		k.bearer, at, k.key, limit)
	if len(oldest) > 0 {
		tx.write(deleteKeys, oldest)
	}
	return freed, err
}

// maxOldest is how many keys make room for another one at most.
const maxOldest = 4096

func (tx *txn) removeKey(k *lockedKey) {
	if k.isStored {
		tx.write(deleteKeys, [][]byte{k.key})
		tx.write(addUsed, k.owner, -k.size)
	}
}

// pruneKeys removes the keys that are too old, a batch in each transaction.
func (s *Engine) pruneKeys(ctx context.Context) error {
	bearers, err := s.bearersToPrune(ctx)
	if err != nil {
		return err
	}
	for _, bearer := range bearers {
		for more := true; more && ctx.Err() == nil; {
			if more, err = s.pruneSomeKeys(ctx, bearer); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Engine) isOldKey(at int64) bool { return s.clock.Age(milliTime(at)) >= store.KeyLife }

// bearersToPrune lists the bearers whose oldest key is too old.
func (s *Engine) bearersToPrune(ctx context.Context) (list []string, err error) {
	err = s.view(ctx, func(tx *txn) error {
		return tx.query(func(rows pgx.Rows) error {
			var name string
			var at int64
			err := rows.Scan(&name, &at)
			if err == nil && s.isOldKey(at) {
				list = append(list, name)
			}
			return err
		}, `SELECT b.name, c.at FROM bearer b CROSS JOIN LATERAL (
			SELECT at FROM claim WHERE claim.bearer = b.name ORDER BY at LIMIT 1) c`)
	})
	return list, err
}

// pruneSomeKeys removes a batch of a bearer's keys that are too old. More is true if there may be
// more of them.
func (s *Engine) pruneSomeKeys(ctx context.Context, bearer string) (more bool, err error) {
	const batch = 256
	err = s.change(ctx, func(tx *txn) error {
		var old [][]byte
		freed := int64(0)
		err := tx.read(func(b *pgx.Batch) {
			b.Queue(lockBearer, bearer)
			each(b.Queue(`SELECT key, at, size FROM claim WHERE bearer = $1 ORDER BY at LIMIT $2`, bearer, batch),
				func(rows pgx.Rows) error {
					var key []byte
					var at, size int64
					err := rows.Scan(&key, &at, &size)
					if err == nil && s.isOldKey(at) {
						old, freed = append(old, key), freed+size
					}
					return err
				})
		})
		if more = len(old) == batch; len(old) > 0 {
			tx.write(deleteKeys, old)
			tx.write(addUsed, bearer, -freed)
		}
		return err
	})
	return more, err
}
