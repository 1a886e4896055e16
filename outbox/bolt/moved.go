package bolt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/uuid"
	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// A file whose contents are copied into a database is marked as moved before the first of them is
// copied. From then on no bridge opens it: what both would deliver would be delivered twice.

// keyMoved holds the mark, a Move.
var keyMoved = []byte("moved")

// movedLayout is the layout that a marked file claims to have, so that versions which do not know
// the mark do not open it either.
const movedLayout = 1 << 20

// Move says where the contents of a file are copied to.
type Move struct {
	ID       uuid.UUID // of the copy
	Database string    // for people, without user and password
	Layout   uint64    // that the file has
}

// refuseMoved fails if the file is marked.
func refuseMoved(tx *bolt.Tx) error {
	m, isMoved, err := readMove(tx)
	if err != nil || !isMoved {
		return err
	}
	return &telephony.Fault{
		Code: telephony.CodeMoved,
		Args: []string{m.Database},
		Text: "its contents were moved to the " + m.Database,
	}
}

func readMove(tx *bolt.Tx) (m Move, isMoved bool, err error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil || meta.Get(keyMoved) == nil {
		return Move{}, false, nil
	}
	if err := json.Unmarshal(meta.Get(keyMoved), &m); err != nil {
		return Move{}, true, damage{ErrNotOutbox, "the mark of its move cannot be read"}
	}
	return m, true, nil
}

// Source is a file that is copied into a database. No bridge can open it meanwhile.
type Source struct {
	engine *Engine
	move   Move
	moved  bool
}

var _ store.Dumper = (*Source)(nil)

// OpenSource opens a file to be copied, marked or not. It creates none. One that is not marked is
// brought to the present layout first, one that is marked is only read. Fails as Open does.
func OpenSource(opts Options) (*Source, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(opts.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the outbox %s: %w", opts.Path, withoutPath(err))
	}
	s, err := openSource(opts)
	return s, inCommand(err)
}

func openSource(opts Options) (s *Source, err error) {
	e, err := attach(opts)
	if err != nil {
		return nil, fmt.Errorf("open the outbox %s: %w", opts.Path, err)
	}
	s = &Source{engine: e}
	err = e.view(func(tx *txn) error {
		s.move, s.moved, err = readMove(tx.Tx)
		return err
	})
	switch {
	case err != nil:
	case s.moved:
		err = errors.Join(tooNew(s.move.Layout), guarded(e.resumeClock))
	default:
		err = e.begin(opts)
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return s, nil
}

// Moved returns the mark, and false if the file is not marked.
func (s *Source) Moved() (Move, bool) { return s.move, s.moved }

// Mark marks the file, which is not marked yet.
func (s *Source) Mark(id uuid.UUID, database string) error {
	m := Move{ID: id, Database: database, Layout: schema}
	v, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := s.change(func(tx *txn) error {
		return errors.Join(tx.meta.Put(keyMoved, v), tx.meta.Put(keySchema, number(movedLayout)))
	}); err != nil {
		return err
	}
	s.move, s.moved = m, true
	return nil
}

// Unmark takes the mark away, so that a bridge can open the file again.
func (s *Source) Unmark() error {
	if err := s.change(func(tx *txn) error {
		return errors.Join(tx.meta.Delete(keyMoved), tx.meta.Put(keySchema, number(s.move.Layout)))
	}); err != nil {
		return err
	}
	s.move, s.moved = Move{}, false
	return nil
}

func (s *Source) change(do func(*txn) error) error {
	if err := s.engine.commit(do); err != nil {
		return fmt.Errorf("mark the outbox %s: %w", s.engine.path, err)
	}
	return nil
}

// Setting returns a setting, empty if there is none.
func (s *Source) Setting(ctx context.Context, name string) (string, error) {
	return s.engine.Setting(ctx, name, "")
}

// Close closes the file.
func (s *Source) Close() error { return s.engine.Close() }
