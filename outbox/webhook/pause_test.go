package webhook

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/pipenet"
	"pzbridge/outbox/store"
)

// TestOnly429WithATimePausesTheEndpoint checks it for other statuses, and for a 429 without a time.
func TestOnly429WithATimePausesTheEndpoint(t *testing.T) {
	for _, c := range []struct {
		status     int
		retryAfter string
		wait       time.Duration
		pause      bool
	}{
		{http.StatusTooManyRequests, "60", time.Minute, true},
		{http.StatusTooManyRequests, "", 0, false},
		{http.StatusServiceUnavailable, "60", time.Minute, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			listener := pipenet.Listen()
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.retryAfter != "" {
					w.Header().Set("Retry-After", c.retryAfter)
				}
				w.WriteHeader(c.status)
			})}
			var serving sync.WaitGroup
			serving.Go(func() { _ = server.Serve(listener) })
			defer serving.Wait()
			defer server.Close()
			s := New(store.Endpoint{
				Name:        "crm",
				URL:         "http://crm.example",
				Secrets:     [][]byte{[]byte("aaaaaaaaaaaaaaaaaaaaaaaa")},
				Timeout:     15 * time.Second,
				Concurrency: 1,
			}, Options{DialContext: listener.Dial})
			defer s.Close()
			o := s.Send(t.Context(), store.Job{EventID: uuid.NewString(), Event: store.Event{Body: []byte("{}")}})
			if o.Verdict != store.Again || o.Status != c.status || o.RetryAfter != c.wait || o.Throttled != c.pause {
				t.Errorf("%d with %q: %+v", c.status, c.retryAfter, o)
			}
		})
	}
}
