package bolt

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// A search by the last digits of a number takes as long with many calls of one number, as an
// extension has them, as with few. Keys that are damaged are passed over.
func TestSearchByLastDigitsPassesOverTheOlderCallsOfANumber(t *testing.T) {
	storetest.SkipBulk(t)
	const limit = 20
	search := func(calls int) (took time.Duration) {
		o := storetest.OpenBox(t, harness{}, storetest.Options{})
		errUndo := errors.New("undo")
		err := engineOf(o).commit(func(tx *txn) error {
			var want []uint64
			for n := range uint64(calls) {
				key := "1001"
				if n%100 == 0 {
					key = fmt.Sprint("1001", n) // a client's number that ends with the same digits
				}
				if err := tx.numbers.Put(numberKey([]byte(key), n+1), present); err != nil {
					return err
				}
				want = append(want, n+1)
			}
			for _, key := range []string{"1001", "1001\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
				if err := tx.numbers.Put([]byte(key), present); err != nil {
					return err
				}
			}
			slices.Reverse(want)
			q := store.CallQuery{Key: "1001", Match: store.KeyBegins}
			took = time.Hour
			for range 5 {
				began := time.Now()
				got := tx.numberEntries(q, math.MaxUint64, limit)
				took = min(took, time.Since(began))
				if !slices.Equal(got, want[:limit]) {
					t.Errorf("of %d calls %v were found", calls, got)
				}
			}
			return errUndo
		})
		if !errors.Is(err, errUndo) {
			t.Fatal(err)
		}
		return took
	}
	few, many := search(2000), search(100_000)
	if many > 500*time.Microsecond && many > 30*few {
		t.Errorf("%s among few calls, %s among many", few, many)
	}
}
