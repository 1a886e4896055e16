package bolt

import (
	"fmt"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
)

// BenchmarkSearch searches for calls, and lists deliveries, among a million events, and beside it
// among a thousand.
func BenchmarkSearch(b *testing.B) {
	small, large := searchBox(b, 1000), searchBox(b, 1_000_000)
	calls := func(f outbox.CallFilter) func(*storetest.Box) error {
		f.Limit = 20
		return func(o *storetest.Box) error {
			_, err := o.Outbox.FindCalls(b.Context(), f)
			return err
		}
	}
	deliveries := func(q store.DeliveryQuery) func(*storetest.Box) error {
		q.Limit = 50
		return func(o *storetest.Box) error {
			_, _, err := o.Deliveries(q)
			return err
		}
	}
	for _, c := range []struct {
		name string
		find func(*storetest.Box) error
	}{
		{"number", calls(outbox.CallFilter{Number: "+73430000123"})},
		{"last-digits", calls(outbox.CallFilter{Number: "0123"})},
		{"latest", calls(outbox.CallFilter{})},
		{"missed", calls(outbox.CallFilter{Outcome: telephony.OutcomeMissed})},
		{"dead", calls(outbox.CallFilter{State: "dead"})},
		{"middle", calls(outbox.CallFilter{Number: "999888777"})},
		{"deliveries", deliveries(store.DeliveryQuery{})},
		{"deliveries-dead", deliveries(store.DeliveryQuery{Endpoint: "crm", State: "dead"})},
	} {
		b.Run(c.name, func(b *testing.B) {
			var few, many time.Duration
			for b.Loop() {
				few += bench.Took(b, func() error { return c.find(small) })
				many += bench.Took(b, func() error { return c.find(large) })
			}
			b.ReportMetric(many.Seconds()/float64(b.N)*1000, "ms")
			b.ReportMetric(many.Seconds()/few.Seconds(), "times-a-thousand")
		})
	}
}

// searchBox returns an outbox with events of calls of four each, of which every tenth was missed.
func searchBox(b *testing.B, events int) *storetest.Box {
	b.Helper()
	o := benchOutbox(b)
	var batch []telephony.Event
	flush := func() {
		if err := o.Append(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		batch = batch[:0]
	}
	for i := range events / 4 {
		talk := int64(i % 10)
		for _, kind := range []telephony.EventType{
			"call.transfer_requested", "call.incoming", "call.incoming_answered", "call.completed",
		} {
			if talk == 0 && kind == "call.incoming_answered" {
				kind = telephony.EventIncoming
			}
			e := storetest.Event(kind, fmt.Sprint(i))
			e.From, e.To, e.Direction = fmt.Sprintf("8343%07d", i), fmt.Sprint(100+i%50), telephony.Incoming
			if kind == telephony.EventCompleted {
				e.Duration = &talk
			}
			batch = append(batch, e)
		}
		if len(batch) >= 4096 {
			flush()
		}
	}
	flush()
	return o
}
