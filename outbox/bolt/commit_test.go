package bolt

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// gate is an observer that stops the goroutine that has committed, while it is closed.
type gate struct {
	isClosed atomic.Bool
	release  chan struct{}
}

// Committed waits while the gate is closed.
func (g *gate) Committed(time.Duration) {
	if g.isClosed.Load() {
		<-g.release
	}
}

// AttemptEnded does nothing.
func (*gate) AttemptEnded(string, string, time.Duration, time.Duration) {}

// Expired does nothing.
func (*gate) Expired(string) {}

// GivenUp does nothing.
func (*gate) GivenUp(string, int) {}

// TestWaitingChangesAreCommittedTogether checks that changes that come before a commit begins go
// with it, and that those that come while it runs go into the next one together.
func TestWaitingChangesAreCommittedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		committed := &gate{release: make(chan struct{})}
		o := storetest.OpenBox(t, harness{}, storetest.Options{Observer: committed})
		s := o.Engine.(*Engine)
		const many = 200
		var changes sync.WaitGroup
		appendMany := func() {
			for i := range many {
				changes.Go(func() {
					e := storetest.Event("call.incoming", fmt.Sprint(i))
					if err := o.Append(t.Context(), []telephony.Event{e}); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
		}
		applying := make(chan struct{})
		before := lastTx(t, s)
		changes.Go(func() {
			if err := s.commit(func(*txn) error { <-applying; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		appendMany()
		committed.isClosed.Store(true)
		close(applying)
		synctest.Wait() // it is on the disk, and no writer goes on yet
		appendMany()
		committed.isClosed.Store(false)
		close(committed.release)
		changes.Wait()
		if commits := lastTx(t, s) - before; commits != 2 {
			t.Errorf("%d commits for twice %d changes", commits, many)
		}
		if got := storetest.States(t, o, "crm"); got[store.Pending] != 2*many {
			t.Errorf("states: %v", got)
		}
	})
}

// lastTx is the number of the last transaction that was committed.
func lastTx(t *testing.T, s *Engine) (id int) {
	t.Helper()
	if err := s.db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return id
}
