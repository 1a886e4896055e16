package webhook

import (
	"net/http"
	"testing"

	"pzbridge/outbox/store"
)

// TestClassifyEveryStatus checks what each status means.
func TestClassifyEveryStatus(t *testing.T) {
	for status := 0; status <= 999; status++ {
		want := store.Again
		switch {
		case status >= 200 && status <= 299:
			want = store.Done
		case status == 410:
			want = store.Gone
		}
		if got := classify(status); got != want {
			t.Errorf("%d %s: got %v", status, http.StatusText(status), got)
		}
	}
}
