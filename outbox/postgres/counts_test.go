package postgres

import (
	"fmt"
	"testing"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// TestCountsAreAddedUpWhileTheyChange checks that nothing is lost or counted twice if several
// bridges add up the counts at once, and that few rows are left.
func TestCountsAreAddedUpWhileTheyChange(t *testing.T) {
	const many = 2 * maxTally
	list := bridges(t, 3)
	done := make(chan struct{})
	atOnce(list, func(b *storetest.Box) {
		if b == list[0] {
			defer close(done)
			for i := range many {
				storetest.MustAppend(t, b, storetest.Event("call.completed", fmt.Sprint(i)))
			}
			return
		}
		for isDone := false; !isDone; {
			select {
			case <-done:
				isDone = true
			default:
			}
			if err := engineOf(b).addUp(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	if n := storetest.States(t, list[0], "crm")[store.Pending]; n != many {
		t.Errorf("%d deliveries are pending, want %d", n, many)
	}
	rows := 0
	err := engineOf(list[0]).view(t.Context(), func(tx *txn) error {
		_, err := tx.queryRow([]any{&rows}, `SELECT count(*) FROM tally`)
		return err
	})
	if err != nil || rows > maxTally {
		t.Errorf("%d rows are left, %v", rows, err)
	}
}
