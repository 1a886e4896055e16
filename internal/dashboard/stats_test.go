package dashboard

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// A point's counts stay for the whole span, whatever the pauses. Setting the clock back loses none.
func TestCountsAreKeptForTheirSpan(t *testing.T) {
	s := newSeries(spans[0])
	at := time.Unix(1_800_000_000, 0)
	sum := func(now time.Time) (n uint32) {
		list, _ := s.list(now)
		for _, c := range list {
			n += c.Received
		}
		return n
	}
	s.at(at).Received++
	s.at(at.Add(time.Minute)).Received += 2
	list, began := s.list(at.Add(time.Minute))
	if list[59].Received != 2 || list[58].Received != 1 || len(list) != 60 || !began.Equal(at.Add(-58*time.Minute)) {
		t.Errorf("from %s: %v", began, list)
	}
	s.at(at.Add(-time.Hour)).Received++
	if list, _ := s.list(at.Add(time.Minute)); list[59].Received != 3 {
		t.Errorf("set back: %v", list)
	}
	if n := sum(at.Add(59 * time.Minute)); n != 4 {
		t.Errorf("just before the hour is over: %d", n)
	}
	if n := sum(at.Add(60 * time.Minute)); n != 3 {
		t.Errorf("an hour later: %d", n)
	}
	if n := sum(at.Add(1000 * time.Hour)); n != 0 {
		t.Errorf("long after: %d", n)
	}
}

// A clock that was wrong by more than the span, and was stored so, does not end the counting.
func TestCountsGoOnAfterAClockThatWasFarAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := NewStats()
		time.Sleep(365 * 24 * time.Hour)
		before.EventReceived("call.incoming")
		ahead := before.String()
		time.Sleep(time.Hour)
		now := time.Now().Add(-300 * 24 * time.Hour)
		s := NewStats()
		if err := s.add(ahead); err != nil {
			t.Fatal(err)
		}
		for of, span := range spans {
			list, began := s.points("", of, now)
			end := began.Add(time.Duration(span.points) * span.step)
			if end.Before(now) || end.After(now.Add(span.step)) {
				t.Errorf("%s: the chart of %s ends at %s", span.name, now, end)
			}
			for _, c := range list {
				if !c.isZero() {
					t.Errorf("%s: what was counted in the future: %+v", span.name, c)
				}
			}
		}
	})
}

// A quantile is right to a fifth, over the whole range.
func TestQuantilesAreNearlyRight(t *testing.T) {
	for _, took := range []time.Duration{
		time.Millisecond, 7 * time.Millisecond, 100 * time.Millisecond, 3 * time.Second, 5 * time.Minute,
	} {
		var c counts
		for range 99 {
			c.Took[bucketOf(took)]++
		}
		c.Took[bucketOf(6*time.Minute)]++
		got := c.quantile(0.5)
		if got < took*8/10 || got > took*12/10 {
			t.Errorf("%s gives %s", took, got)
		}
		if c.quantile(0.999) < 4*time.Minute {
			t.Errorf("the slowest of a hundred takes %s", c.quantile(0.999))
		}
	}
	if (&counts{}).quantile(0.5) != 0 {
		t.Error("of no attempts there is a median")
	}
}

// keeper keeps counts in memory.
type keeper struct {
	text   string
	others []string
}

func (k *keeper) ChartCounts(context.Context) (string, error) { return k.text, nil }

func (k *keeper) OthersChartCounts(context.Context) ([]string, error) { return k.others, nil }

func (k *keeper) SetChartCounts(_ context.Context, text string) error {
	k.text = text
	return nil
}

// The counts outlive a restart, and what is counted before they are read is not lost.
func TestCountsOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept keeper
		run := func(s *Stats) (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				_ = s.Run(ctx, &kept, slog.New(slog.NewTextHandler(t.Output(), nil)))
				close(done)
			}()
			synctest.Wait()
			return func() {
				cancel()
				<-done
			}
		}
		first := NewStats()
		stop := run(first)
		first.EventReceived("call.incoming")
		first.AttemptEnded("crm", outbox.OutcomeDelivered, 100*time.Millisecond, 0)
		time.Sleep(10 * time.Minute)
		first.AttemptEnded("crm", outbox.OutcomeFailed, time.Second, 0)
		stop()
		second := NewStats()
		second.EventReceived("call.incoming")
		defer run(second)()
		for i := range spans {
			var sum counts
			list, _ := second.points("", i, time.Now())
			for j := range list {
				sum.add(&list[j])
			}
			if sum.Received != 2 || sum.Delivered != 1 || sum.Failed != 1 {
				t.Errorf("%s: %+v", spans[i].name, sum)
			}
		}
		if p50, p99, ok := second.quantiles("crm"); !ok || p50 > 120*time.Millisecond || p99 < 800*time.Millisecond {
			t.Errorf("the response times are %s and %s, %v", p50, p99, ok)
		}
		if !second.start(time.Now()).IsZero() {
			t.Error("the chart says that it begins with the start")
		}
		kept.text = "damaged"
		third := NewStats()
		run(third)()
		if list, _ := third.points("", 0, time.Now()); len(list) != 60 {
			t.Errorf("after damage: %d points", len(list))
		}
	})
}

// Whatever stands in the store, reading it neither fails the program nor takes much memory.
func FuzzCounts(f *testing.F) {
	s := NewStats()
	s.AttemptEnded("crm", outbox.OutcomeDelivered, 100*time.Millisecond, 0)
	f.Add(s.String())
	f.Add("")
	f.Add("\x01\xff\xff\xff")
	f.Fuzz(func(t *testing.T, text string) {
		s := NewStats()
		if s.add(text) != nil {
			return
		}
		again := NewStats()
		if err := again.add(s.String()); err != nil || again.String() != s.String() {
			t.Errorf("what was read is not written again: %v", err)
		}
	})
}

func TestTimelinePointsDoNotOverlap(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	for name, offsets := range map[string][]int{
		"alone": {0}, "together": {0, 0, 0, 0}, "spread": {0, 1, 50, 100}, "at the end": {0, 99, 100, 100, 100},
	} {
		var steps []step
		for _, o := range offsets {
			steps = append(steps, step{At: at.Add(time.Duration(o) * time.Second)})
		}
		placeSteps(steps)
		for i := range steps {
			if steps[i].X < 0 || steps[i].X > 600 || i > 0 && steps[i].X < steps[i-1].X+10 {
				t.Errorf("%s: %+v", name, steps)
			}
		}
	}
}

// A chart draws what was counted within its frame, with round times on its axis.
func TestChartsStayInTheirFrame(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 34, 56, 0, time.Local)
	for _, sp := range spans {
		for _, name := range []string{"", "crm"} {
			s := newSeries(sp)
			for i := range sp.points {
				c := s.at(now.Add(-time.Duration(sp.points-1-i) * sp.step))
				c.Received, c.Delivered, c.Failed = uint32(i%7), uint32(i%5), uint32(i%3)
				c.Took[bucketOf(time.Duration(i+1)*time.Millisecond)] += c.Delivered + c.Failed
			}
			points, began := s.list(now)
			c := newChart(name, sp, points, began)
			for _, b := range c.Bars {
				if b.X < chartLeft || b.X2+b.Width > chartWidth || min(b.EventsY, b.TakenY, b.FailY) < countsTop-0.01 {
					t.Fatalf("%s of %q: %+v", sp.name, name, b)
				}
			}
			if len(c.Marks) < 3 || len(c.Marks) > 8 || c.P50 == "" || c.P99 == "" || c.Slowest == 0 {
				t.Errorf("%s of %q: marks %v, slowest %s", sp.name, name, c.Marks, c.Slowest)
			}
			for _, m := range c.Marks {
				isRound := strings.HasSuffix(m.Text, ":00") || strings.HasSuffix(m.Text, ":15") ||
					strings.HasSuffix(m.Text, ":30") || strings.HasSuffix(m.Text, ":45") || sp.name == "week"
				if !isRound || m.X < chartLeft || m.X > chartWidth {
					t.Errorf("%s: the mark %+v", sp.name, m)
				}
			}
		}
	}
	if c := newChart("", spans[0], make([]counts, 60), now); len(c.Bars) != 0 || c.HasTimes || c.Most != 1 {
		t.Errorf("of nothing: %+v", c)
	}
}

// A chart shows what all bridges have counted that share the outbox.
func TestChartsShowWhatOtherBridgesHaveCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other, own := NewStats(), NewStats()
		own.EventReceived("call.incoming")
		time.Sleep(2 * time.Minute)
		other.EventReceived("call.incoming")
		other.AttemptEnded("crm", outbox.OutcomeDelivered, time.Second, 0)
		own.readOthers(t.Context(), &keeper{others: []string{other.String(), "", "damaged"}},
			slog.New(slog.DiscardHandler))
		received, delivered := uint32(0), uint32(0)
		for _, name := range []string{"", "crm"} {
			list, _ := own.points(name, 0, time.Now())
			for _, c := range list {
				received, delivered = received+c.Received, delivered+c.Delivered
			}
		}
		if received != 2 || delivered != 2 {
			t.Errorf("%d events and %d attempts, want 2 and 2 of one in two charts", received, delivered)
		}
	})
}

// TestChartsAsNumbers checks that what the API says of the charts is what was counted.
func TestChartsAsNumbers(t *testing.T) {
	s := newStage(t, nil)
	for range 3 {
		s.stats.EventReceived(telephony.EventCompleted)
	}
	step, names, points, err := s.dashboard.Charts(t.Context(), "week")
	if err != nil || step != time.Hour || !slices.Equal(names, []string{"", "crm"}) {
		t.Fatalf("%s %q %v", step, names, err)
	}
	for _, name := range names {
		if list := points[name]; len(list) != 168 || list[167].At.Sub(list[0].At) != 167*time.Hour {
			t.Errorf("%q has %d points", name, len(list))
		}
	}
	if last := points[""][167]; last.Received < 3 || time.Since(last.At) > time.Hour || time.Since(last.At) < 0 {
		t.Errorf("the last point is %+v", last)
	}
	if step, _, _, _ := s.dashboard.Charts(t.Context(), "hour"); step != time.Minute {
		t.Errorf("an hour is charted in steps of %s", step)
	}
}
