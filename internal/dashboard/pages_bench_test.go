package dashboard

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
)

// BenchmarkPages takes the time of pages of an outbox with a hundred deliveries and, in turns with
// them, of one with 100,000.
func BenchmarkPages(b *testing.B) {
	small, large := newStage(b, nil), newStage(b, nil)
	small.fill(b, 100)
	large.fill(b, 100_000)
	for _, path := range []string{
		"/", "/calls", "/calls?number=73430000033", "/deliveries", "/deliveries?endpoint=crm&state=delivered",
		"/charts",
	} {
		b.Run(path[1:], func(b *testing.B) {
			few, many := small.client(b), large.client(b)
			var took [2][]time.Duration
			for range b.N {
				for range 10 {
					took[0] = append(took[0], small.take(b, few, path))
					took[1] = append(took[1], large.take(b, many, path))
				}
			}
			slices.Sort(took[0])
			slices.Sort(took[1])
			p50, p50Many := took[0][len(took[0])/2], took[1][len(took[1])/2]
			b.ReportMetric(p50.Seconds()*1000, "few-ms")
			b.ReportMetric(p50Many.Seconds()*1000, "many-ms")
			b.ReportMetric(p50Many.Seconds()/p50.Seconds(), "many-of-few")
		})
	}
}

// take is how long a page takes.
func (s *stage) take(b *testing.B, c *http.Client, path string) time.Duration {
	b.Helper()
	began := time.Now()
	resp, err := c.Get(s.URL + path)
	if text(b, resp, err); resp.StatusCode != http.StatusOK {
		b.Fatalf("%s: %d", path, resp.StatusCode)
	}
	return time.Since(began)
}

// fill stores finished calls, one delivery each, and waits until they are delivered.
func (s *stage) fill(b *testing.B, calls int) {
	b.Helper()
	for n := 0; n < calls; {
		var batch []telephony.Event
		for range min(1000, calls) {
			n++
			batch = append(batch, telephony.Event{
				ID:     uuid.Must(uuid.NewV7()).String(),
				Type:   telephony.EventCompleted,
				Time:   time.Now(),
				CallID: fmt.Sprint("call", n),
				From:   fmt.Sprintf("7343%07d", n),
				To:     "101",
			})
		}
		if err := s.box.Append(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	for {
		list, err := s.box.Outbox.Endpoints(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if int(list[0].Delivered) >= calls { // those of the stage are few more
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
