package store

import (
	"testing"
	"time"
)

// TestWhenAnEventGoes checks the due time of an event by how the one before it in its call stands:
// of one that is appended, of one that was held until then, and of one that is asked for again.
func TestWhenAnEventGoes(t *testing.T) {
	const hold, failed = time.Minute, int64(1e18)
	untried, tried := Delivery{Due: Held}, Delivery{Attempts: 2, Due: 77, FailedAt: 5}
	for _, c := range []struct {
		name   string
		before *Delivery
		fresh  int64 // due time of one that is appended, and of one that was held
	}{
		{"the first of its call", nil, 0},
		{"the one before is delivered", &Delivery{State: Delivered, Attempts: 1}, 0},
		{"the one before is dead", &Delivery{State: Dead, Attempts: 9, FailedAt: failed}, 0},
		{"the one before was not tried yet", &Delivery{}, Held},
		{"the one before is held itself", &Delivery{Due: Held}, Held},
		{"the one before has failed", &Delivery{Attempts: 3, FailedAt: failed}, failed + int64(hold)},
	} {
		if got := behind(c.before, hold); got != (Delivery{Due: c.fresh}) {
			t.Errorf("%s: appended, it is %+v", c.name, got)
		}
		now := time.Unix(1e9, 0)
		again := Delivery{Attempts: 7, Due: c.fresh, Redelivered: 1}
		if c.fresh == 0 {
			again.Due = now.UnixNano() // behind what has not been tried
		}
		dead := Delivery{State: Dead, Attempts: 7, Step: 6, FailedAt: 5}
		if got := dead.asRedelivered(c.before, now, hold, 0); got != again {
			t.Errorf("%s: asked for again, it is %+v", c.name, got)
		}
		if c.before == nil {
			continue
		}
		if got := untried.dueAfter(*c.before, hold); got.Due != c.fresh {
			t.Errorf("%s: held until then, it is %+v", c.name, got)
		}
		if c.fresh == 0 {
			ends := *c.before
			ends.Due = 4711 // when it ended
			if got := (Delivery{Due: Held, Redelivered: 1}).dueAfter(ends, hold); got.Due != ends.Due {
				t.Errorf("%s: asked for again and held until then, it is %+v", c.name, got)
			}
		}
		if got := (Delivery{Due: Asking}).dueAfter(*c.before, hold); got.Due != Asking {
			t.Errorf("%s: a question that is being asked, it is %+v", c.name, got)
		}
		putOff := Delivery{Attempts: 1, Due: 77, PutOff: true}
		want := putOff
		if c.fresh == Held {
			want.Due, want.PutOff = Held, false
		}
		if got := putOff.dueAfter(*c.before, hold); got != want {
			t.Errorf("%s: put off by its sender, it is %+v", c.name, got)
		}
		if got := tried.dueAfter(*c.before, hold); got != tried {
			t.Errorf("%s: tried before, it is %+v", c.name, got)
		}
	}
}
