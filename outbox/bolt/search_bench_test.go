package bolt

import (
	"fmt"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store/storetest"
)

// BenchmarkSearch searches for calls among a million events, and beside it among a thousand.
func BenchmarkSearch(b *testing.B) {
	small, large := searchBox(b, 1000), searchBox(b, 1_000_000)
	missed := telephony.OutcomeMissed
	for _, c := range []struct {
		name   string
		filter outbox.CallFilter
	}{
		{"number", outbox.CallFilter{Number: "+73430000123"}},
		{"last-digits", outbox.CallFilter{Number: "0123"}},
		{"latest", outbox.CallFilter{}},
		{"missed", outbox.CallFilter{Outcome: missed}},
		{"dead", outbox.CallFilter{State: "dead"}},
		{"middle", outbox.CallFilter{Number: "999888777"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.filter.Limit = 20
			find := func(o *storetest.Box) func() error {
				return func() error {
					_, err := o.Outbox.FindCalls(b.Context(), c.filter)
					return err
				}
			}
			var few, many time.Duration
			for b.Loop() {
				few += took(b, find(small))
				many += took(b, find(large))
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
