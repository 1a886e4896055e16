package bolt

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// A search by the last digits finds the newest events of all numbers that end with them, also where
// one of those, as an extension, has most calls. Keys that are damaged are passed over.
func TestSearchByLastDigitsFindsTheNewestOfAllNumbers(t *testing.T) {
	const calls, limit = 20_000, 20
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
		if got := tx.numberEntries(q, math.MaxUint64, limit); !slices.Equal(got, want[:limit]) {
			t.Errorf("%v were found", got)
		}
		if got := tx.numberEntries(q, want[limit], limit); !slices.Equal(got, want[limit+1:2*limit+1]) {
			t.Errorf("below %d %v were found", want[limit], got)
		}
		return errUndo
	})
	if !errors.Is(err, errUndo) {
		t.Fatal(err)
	}
}
