package bolt

import (
	"bytes"

	bolt "go.etcd.io/bbolt"
)

// bbolt removes pages that have become empty only at the commit. Until then its Prev returns nil at
// such a page, as it does at the beginning of a bucket, and its Last never returns in a bucket of
// several pages of which all are empty. Since changes are committed together, a look backwards may
// follow removals of other changes in the same transaction.

// prev moves a cursor to the key before from, where it stands, past pages that are empty.
func prev(c *bolt.Cursor, from []byte) (k, v []byte) {
	if k, v = c.Prev(); k != nil {
		return k, v
	}
	if first, _ := c.Bucket().Cursor().First(); first == nil || bytes.Compare(first, from) >= 0 {
		return nil, nil
	}
	for k == nil {
		k, v = c.Prev()
	}
	return k, v
}

// seekBefore moves a cursor to the last key before another, which need not be there.
func seekBefore(c *bolt.Cursor, key []byte) (k, v []byte) {
	if k, _ = c.Seek(key); k != nil {
		return prev(c, k)
	}
	if first, _ := c.First(); first == nil {
		return nil, nil
	}
	return c.Last()
}

// seekUpTo moves a cursor to a key, or to the last one before it.
func seekUpTo(c *bolt.Cursor, key []byte) (k, v []byte) {
	if k, v = c.Seek(key); bytes.Equal(k, key) {
		return k, v
	}
	return seekBefore(c, key)
}
