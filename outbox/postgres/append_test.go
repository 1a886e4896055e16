package postgres

import (
	"crypto/rand"
	"strings"
	"testing"

	"pzbridge/outbox/store/storetest"
)

// A call's ID that PostgreSQL cannot hold keeps no event from being stored, and the call is found
// by it.
func TestAnyIDOfACallIsStored(t *testing.T) {
	b := storetest.OpenBox(t, newHarness(t), storetest.Options{})
	random := make([]byte, 6400)
	_, _ = rand.Read(random)
	for _, id := range []string{
		"5", strings.Repeat("9", longestCall), strings.Repeat("9", 10_000), string(random), "a\x00b", "\xff\xfe",
		rand.Text() + "…",
	} {
		storetest.MustAppend(t, b, storetest.Event("call.incoming", id), storetest.Event("call.completed", id))
		page, err := engineOf(b).Call(t.Context(), id, 0)
		if err != nil || len(page.Events) != 2 {
			t.Errorf("of a call whose ID has %d bytes %d events are found, %v", len(id), len(page.Events), err)
		}
	}
}
