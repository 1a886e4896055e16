package storetest

import (
	"testing"

	"github.com/google/uuid"
)

// TestClientGUIDIsMadeOnce checks that the identity at the exchange is stored, and stays the same
// whatever is generated at the next start.
func (s suite) TestClientGUIDIsMadeOnce(t *testing.T) {
	place := s.Place(t)
	var guids [2]string
	for i := range guids {
		o, closeBox := s.openAgain(t, Options{Place: place})
		var err error
		if guids[i], err = o.ClientGUID(uuid.NewString()); err != nil {
			t.Fatal(err)
		}
		closeBox()
	}
	if guids[0] == "" || guids[0] != guids[1] {
		t.Errorf("got %q", guids)
	}
}
