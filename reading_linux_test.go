package main

import (
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/demo"
)

// A question goes on after the file could not be read for a moment: it is asked again, and
// answered.
func TestReadErrorEndsNoQuestion(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		asked := 0
		o.answers["b"] = func(w http.ResponseWriter, _ demo.Webhook) {
			if asked++; asked == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write([]byte(`{"transfer_to":"202"}`))
		}
		o.asks("5")
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		restore := cutOff(t, o.outbox.Place)
		time.Sleep(700 * time.Millisecond) // b was to be asked again
		restore()
		time.Sleep(5 * time.Second)
		o.wants("5=202")
	})
}

// cutOff takes all but the first pages from a file, whose mapping can then not be read. Nothing may
// be written to it until what it gives is called.
func cutOff(t *testing.T, path string) (restore func()) {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 8<<10); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
