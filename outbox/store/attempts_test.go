package store

import (
	"reflect"
	"testing"
	"time"

	"pzbridge/internal/telephony"
)

// TestAttemptsKeepTheirCause checks that attempts with and without a cause are read as they were
// written, side by side, and that one without takes no more bytes.
func TestAttemptsKeepTheirCause(t *testing.T) {
	steps := []Step{{What: "look", Status: 200, Response: "ok"}, {What: "add", Status: 500}}
	at := time.Unix(1, 0).UTC()
	list := []Attempt{
		{At: at, Status: 503, Response: "busy"},
		{At: at, Error: "refused", Cause: telephony.Cause{Code: telephony.CodeTimeout}},
		{At: at, Status: 500, Steps: steps},
		{At: at, Error: "no", Cause: telephony.Cause{Code: "c", Args: []string{"1", "", "3"}}, Steps: steps},
		{At: at, Error: "plain"},
	}
	var history []byte
	for _, a := range list {
		history = AppendAttempt(nil, history, a)
	}
	if got := Attempts(history); !reflect.DeepEqual(got, list) {
		t.Errorf("%+v\nis not\n%+v", got, list)
	}
	if n := len(AppendAttempt(nil, nil, Attempt{Error: "plain"})); n != attemptHead+2+2+len("plain")+1 {
		t.Errorf("an attempt without a cause takes %d bytes", n)
	}
	for n := range history { // what is cut off is left out
		if got := Attempts(history[:n]); len(got) >= len(list) {
			t.Errorf("%d attempts are read from %d of %d bytes", len(got), n, len(history))
		}
	}
}
