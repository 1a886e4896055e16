// Package bolttest opens outboxes on a file for the tests of other packages.
package bolttest

import (
	"path/filepath"
	"testing"

	"pzbridge/outbox/bolt"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// Harness opens engines on files. See storetest.Harness.
type Harness struct{}

// Place gives the path of a file that does not exist yet.
func (Harness) Place(t testing.TB) string { return filepath.Join(t.TempDir(), "outbox.db") }

// Open opens the file at a path.
func (Harness) Open(o storetest.EngineOptions) (store.Engine, error) {
	e, err := bolt.Open(bolt.Options{
		Path:      o.Place,
		MaxBytes:  o.MaxBytes,
		Rules:     o.Rules,
		Logger:    o.Logger,
		Clock:     o.Clock,
		Committed: o.Committed,
	})
	if err != nil {
		return nil, err // not a nil *bolt.Engine in an interface
	}
	return e, nil
}

// Check does nothing: what a file holds is checked by the tests of package bolt.
func (Harness) Check(testing.TB, store.Engine) {}

// Open opens an outbox on a file, and closes it when the test ends.
func Open(t testing.TB, o storetest.Options) *storetest.Box {
	t.Helper()
	return storetest.OpenBox(t, Harness{}, o)
}
