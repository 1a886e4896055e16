package bench

import (
	"testing"
	"time"

	"pzbridge/outbox/webhook"
)

// BridgeOfBare lets a bridge, a bare way and the same POSTs with nothing stored take turns, so that
// all meet the same weather, and reports how fast the first is beside the others. Database is how
// much processor time the database's server has used so far; nil if there is none.
func BridgeOfBare(b *testing.B, bridge *Bridge, bare *Bare, direct *webhook.Sender, database func() time.Duration) {
	b.Helper()
	var ours, theirs, alone, used, usedByBare, served, servedToBare time.Duration
	take := func(take func(first, n int) (took, used time.Duration), first, n int, took, used, served *time.Duration) {
		before := time.Duration(0)
		if database != nil {
			before = database()
		}
		t, u := take(first, n)
		*took, *used = *took+t, *used+u
		if database != nil {
			*served += database() - before
		}
	}
	b.ResetTimer()
	for done := 0; done < b.N; done += InARow {
		first, n := 1_000_000+done, min(InARow, b.N-done)
		take(bridge.Take, first, n, &ours, &used, &served)
		b.StopTimer()
		take(bare.Take, first, n, &theirs, &usedByBare, &servedToBare)
		alone += PostDirectly(b, direct, bare.First.EventID, bare.First.Event.Body, n)
		b.StartTimer()
	}
	perEvent := func(t time.Duration) float64 { return t.Seconds() * 1e6 / float64(b.N) }
	b.ReportMetric(float64(b.N)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(b.N)/theirs.Seconds(), "bare/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-bare")
	b.ReportMetric(alone.Seconds()/ours.Seconds(), "of-direct")
	b.ReportMetric(alone.Seconds()/theirs.Seconds(), "bare-of-direct")
	b.ReportMetric(perEvent(used), "CPU-µs/event")
	b.ReportMetric(perEvent(usedByBare), "bare-CPU-µs/event")
	if database != nil {
		b.ReportMetric(perEvent(served), "database-CPU-µs/event")
		b.ReportMetric(perEvent(servedToBare), "bare-database-CPU-µs/event")
	}
}
