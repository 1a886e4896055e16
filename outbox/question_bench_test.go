package outbox

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"pzbridge/internal/pz"
)

// BenchmarkQuestion lets 50 calls a second ask where to go and takes the time from the server's socket to where the endpoint has the head of the POST:
// with an outbox that holds nothing else, while a million deliveries wait for that endpoint, and while they are delivered to it at full speed.
func BenchmarkQuestion(b *testing.B) {
	const many = 1_000_000
	for _, c := range []struct {
		name    string
		pending int
		rate    float64
	}{{"pending=0", 0, 0}, {"pending=1000000", many, 1}, {"pending=1000000/draining", many, 0}} {
		b.Run(c.name, func(b *testing.B) {
			const gap = 20 * time.Millisecond
			arrived := make(chan time.Time, 1)
			receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				now := time.Now()
				if body, _ := io.ReadAll(r.Body); bytes.Contains(body, []byte(`"call.transfer_requested"`)) {
					arrived <- now
				}
			}))
			defer receiver.Close()
			e := endpoint("crm")
			e.URL, e.Rate, e.Concurrency, e.RingingTTL = receiver.URL, c.rate, 32, 24*time.Hour
			opts := benchOptions(b, e)
			opts.RoutingTimeout = 10 * time.Second
			fillOutbox(b, opts, c.pending)
			bridge := startBridge(b, opts)
			ticks := time.NewTicker(gap)
			defer ticks.Stop()
			var took []time.Duration
			b.ResetTimer()
			for i := range b.N {
				<-ticks.C
				began := time.Now()
				err := bridge.server.Generate(pz.Attrs{{Name: "Event", Value: "1"}, {Name: "CallID", Value: fmt.Sprint(2_000_000 + i)}, {Name: "From", Value: "7343"}})
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, (<-arrived).Sub(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
