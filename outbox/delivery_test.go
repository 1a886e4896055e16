package outbox

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// Every status there is, and what it means. 0 is a transport error or a timeout.
func TestClassifyEveryStatus(t *testing.T) {
	for status := 0; status <= 999; status++ {
		want := retry
		switch {
		case status >= 200 && status <= 299:
			want = success
		case status == 410:
			want = hopeless
		}
		if got := classify(status); got != want {
			t.Errorf("%d %s: got %v", status, http.StatusText(status), got)
		}
	}
}

func TestNext(t *testing.T) {
	schedule := []time.Duration{10 * time.Second, time.Minute}
	now := time.Unix(1e9, 0)
	const lowest, middle, highest = 0, 0.5, 1
	for _, c := range []struct {
		name     string
		attempts int
		o        outcome
		random   float64
		state    state
		wait     time.Duration
	}{
		{"200", 0, outcome{status: 200}, middle, delivered, 0},
		{"299 at the last try", 2, outcome{status: 299}, middle, delivered, 0},
		{"410", 0, outcome{status: 410}, middle, dead, 0},
		{"500, first wait", 0, outcome{status: 500}, middle, pending, 10 * time.Second},
		{"500, a fifth earlier", 0, outcome{status: 500}, lowest, pending, 8 * time.Second},
		{"500, a fifth later", 0, outcome{status: 500}, highest, pending, 12 * time.Second},
		{"404, second wait", 1, outcome{status: 404}, middle, pending, time.Minute},
		{"302", 0, outcome{status: 302}, middle, pending, 10 * time.Second},
		{"no answer", 0, outcome{err: fmt.Errorf("refused")}, middle, pending, 10 * time.Second},
		{"500, schedule used up", 2, outcome{status: 500}, middle, dead, 0},
		{"429 that asks for longer", 0, outcome{status: 429, retryAfter: 20 * time.Second}, middle, pending, 20 * time.Second},
		{"503 that asks for less", 0, outcome{status: 503, retryAfter: time.Second}, middle, pending, 10 * time.Second},
		{"404 that asks for longer", 0, outcome{status: 404, retryAfter: time.Minute}, middle, pending, time.Minute},
		{"503 that asks for a year", 0, outcome{status: 503, retryAfter: 365 * 24 * time.Hour}, middle, pending, time.Hour},
		{"503 that asks to come back when it is over", 2, outcome{status: 503, retryAfter: time.Second}, middle, dead, 0},
	} {
		got := delivery{attempts: c.attempts, step: c.attempts}.tried(c.o, schedule, now, c.random)
		want := delivery{state: c.state, attempts: c.attempts + 1, step: c.attempts, due: now.Add(c.wait).UnixNano()}
		if c.state == pending {
			want.step++
		}
		if classify(c.o.status) == retry {
			want.failedAt = now.UnixNano()
		}
		if c.o.status == http.StatusTooManyRequests { // its call is held for that much longer
			want.failedAt = now.Add(c.o.retryAfter).UnixNano()
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, want)
		}
	}
}

// What waits gets the time that it should have once the clock has been set back.
func TestSetBack(t *testing.T) {
	now := time.Unix(1e9, 0)
	const hold, longest = time.Minute, 24 * time.Hour
	in := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	for name, c := range map[string]struct {
		due, failed, tried time.Duration // from now on
		untried            bool
		wantDue, wantFail  time.Duration
	}{
		"tried before now":             {due: time.Hour, failed: -time.Hour, tried: -time.Minute, wantDue: time.Hour, wantFail: -time.Hour},
		"tried after now":              {due: time.Hour, failed: time.Minute, tried: time.Minute},
		"tried before and after now":   {due: time.Hour, failed: -time.Hour, tried: time.Minute, wantFail: -time.Hour},
		"further ahead than any wait":  {due: 25 * time.Hour, failed: -time.Hour, tried: -time.Minute, wantFail: -time.Hour},
		"held for a part of the hold":  {due: time.Second, untried: true, wantDue: time.Second},
		"held for longer than it may":  {due: time.Hour, untried: true, wantDue: hold},
		"asked for again, and is held": {due: time.Second, tried: time.Hour, untried: true, wantDue: time.Second},
	} {
		d := delivery{attempts: 3, step: 2, next: 7, due: in(c.due)}
		want := d
		want.due = in(c.wantDue)
		if !c.untried {
			d.failedAt, want.failedAt = in(c.failed), in(c.wantFail)
		}
		got := d.setBack(now.Add(c.tried), now, hold, longest)
		if got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
		if again := got.setBack(now.Add(c.tried), now, hold, longest); again != got {
			t.Errorf("%s: done twice, it is %+v, once %+v", name, again, got)
		}
	}
	if d := (delivery{failedAt: in(time.Hour)}).tried(outcome{status: 500}, []time.Duration{time.Minute}, now, 0); d.failedAt != in(0) {
		t.Errorf("one that failed in the future fails again, and holds its call from %s on", time.Unix(0, d.failedAt))
	}
}

// When an event goes, by how the one before it in its call stands.
func TestOrder(t *testing.T) {
	const hold, failed = time.Minute, int64(1e18)
	untried, tried := delivery{due: held}, delivery{attempts: 2, due: 77, failedAt: 5}
	for _, c := range []struct {
		name   string
		before *delivery
		fresh  int64 // due time of one that is appended, and of one that was held
	}{
		{"the first of its call", nil, 0},
		{"the one before is delivered", &delivery{state: delivered, attempts: 1}, 0},
		{"the one before is dead", &delivery{state: dead, attempts: 9, failedAt: failed}, 0},
		{"the one before was not tried yet", &delivery{}, held},
		{"the one before is held itself", &delivery{due: held}, held},
		{"the one before has failed", &delivery{attempts: 3, failedAt: failed}, failed + int64(hold)},
	} {
		if got := behind(c.before, hold); got != (delivery{due: c.fresh}) {
			t.Errorf("%s: appended, it is %+v", c.name, got)
		}
		now := time.Unix(1e9, 0)
		again := delivery{attempts: 7, due: c.fresh, redelivered: 1}
		if c.fresh == 0 {
			again.due = now.UnixNano() // behind what has not been tried
		}
		if got := (delivery{state: dead, attempts: 7, step: 6, failedAt: 5}).again(c.before, now, hold); got != again {
			t.Errorf("%s: asked for again, it is %+v", c.name, got)
		}
		if c.before == nil {
			continue
		}
		if got := untried.after(*c.before, hold); got.due != c.fresh {
			t.Errorf("%s: held until then, it is %+v", c.name, got)
		}
		if c.fresh == 0 {
			ends := *c.before
			ends.due = 4711 // when it ended
			if got := (delivery{due: held, redelivered: 1}).after(ends, hold); got.due != ends.due {
				t.Errorf("%s: asked for again and held until then, it is %+v", c.name, got)
			}
		}
		if got := (delivery{due: asking}).after(*c.before, hold); got.due != asking {
			t.Errorf("%s: a question that is being asked, it is %+v", c.name, got)
		}
		if got := tried.after(*c.before, hold); got != tried {
			t.Errorf("%s: tried before, it is %+v", c.name, got)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, "-5": 0, "1.5": 0, "soon": 0, "31536000": time.Hour, "99999999999": time.Hour,
		"Mon, 23 Nov 2026 06:00:30 GMT": 30 * time.Second, "Mon, 23 Nov 2026 05:00:00 GMT": 0,
	} {
		if got := parseRetryAfter(header, now); got != want {
			t.Errorf("%q: got %s, want %s", header, got, want)
		}
	}
}

func TestFilter(t *testing.T) {
	f, err := ParseFilter("call.completed, sms.*")
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]bool{
		"call.completed": true, "call.incoming": false, "sms.sent": true, "sms.status": true, "pz.event": false, "sms": false,
	} {
		if got := f.Match(typeOf(kind)); got != want {
			t.Errorf("%s: got %v", kind, got)
		}
	}
	if _, err := ParseFilter("call.completed,call"); err == nil {
		t.Error("half a type is taken for one")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encodeDelivery(delivery{attempts: 3, step: 2, due: 5, next: 7}, nil))
	f.Add(addAttempt(nil, addAttempt(nil, nil, Attempt{Status: 503, Response: "busy"}), Attempt{Error: "refused"}))
	f.Add(encodeEvent(&record{kind: "call.incoming", call: "5", body: []byte("{}"), gap: 1}, 1))
	f.Fuzz(func(_ *testing.T, v []byte) {
		_, _ = decodeDelivery(v)
		_, _ = decodeEvent(v)
		_ = decodeAttempts(v)
	})
}
