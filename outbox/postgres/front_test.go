package postgres

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
)

// TestALookSeesWhatCameDueBehindIt checks, while no look begins at the first delivery, that one
// sees each delivery that may be tried again, or at last, though later ones were claimed before.
func TestALookSeesWhatCameDueBehindIt(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	never := func(o *Options) { o.Poll, o.Beat = time.Hour, time.Hour }
	s, other := mustOpen(t, url, never), mustOpen(t, url, never)
	list := newEvents(t, "1", "1", "2", "3", "3", "4")
	if _, err := s.Append(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	l, err := s.Lane(t.Context(), "crm", false)
	if err != nil {
		t.Fatal(err)
	}
	jobs := map[uint64]store.Job{}
	claim := func(why string, busy map[string]bool, want ...uint64) {
		t.Helper()
		c, err := l.Claim(t.Context(), time.Now(), 10, busy)
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		for _, j := range c.Jobs {
			got, jobs[j.Number] = append(got, j.Number), j
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: claimed are %v, want %v", why, got, want)
		}
	}
	record := func(r store.Result) {
		t.Helper()
		if err := l.Record(t.Context(), []store.Result{r}); err != nil {
			t.Fatal(err)
		}
	}
	redeliver := func(n int) {
		t.Helper()
		if err := s.Redeliver(t.Context(), list[n-1].ID.String(), "crm", time.Now()); err != nil {
			t.Fatal(err)
		}
	}

	claim("call 2 is busy", map[string]bool{"2": true}, 1, 4, 6)
	claim("nothing is busy", nil, 3)
	claim("all are claimed", nil)
	record(deliveredNow(jobs[1]))
	claim("the first of a call is delivered", nil, 2)
	l.Release([]uint64{4})
	claim("a claim was given back", nil, 4)
	unchanged := jobs[3].Delivery
	record(store.Result{Job: jobs[3], Now: unchanged})
	claim("a delivery stays as it was", nil, 3)
	redeliver(1)
	claim("one is to be delivered again", nil, 1)
	if err := other.record(t.Context(), 1, pointers([]store.Result{deliveredNow(jobs[4])}), true); err != nil {
		t.Fatal(err)
	}
	s.followOthers()
	claim("another process has delivered the first of a call", nil, 5)
	redeliver(6)
	failed := jobs[6].Delivery
	failed.Attempts, failed.Due = 1, time.Now().Add(time.Hour).UnixNano()
	record(store.Result{Job: jobs[6], Now: failed, Attempt: &store.Attempt{At: time.Now()}})
	claim("one was to be delivered again during an attempt that failed", nil, 6)
}

// TestALookBeginsAtTheFirstNowAndThen checks that a look sees all once a time has passed, whatever
// was noted.
func TestALookBeginsAtTheFirstNowAndThen(t *testing.T) {
	f := front{whole: time.Now(), number: 7}
	f.opened.Store(9)
	f.open(10)
	if from := f.begin(time.Hour); from != 7 {
		t.Errorf("what lies beyond lowers it to %d", from)
	}
	f.open(5)
	f.open(6)
	if from := f.begin(time.Hour); from != 4 {
		t.Errorf("it begins behind %d, want 4", from)
	}
	if from := f.begin(0); from != 0 {
		t.Errorf("it begins behind %d, want 0", from)
	}
}

// TestALateSuccessOfAnotherProcessIsNoted checks that the rest of a call is delivered when a
// process that counts as dead records that the CRM has got the first of it: the one that has the
// queue has looked past the rest, and its own success of the first changes nothing any more.
func TestALateSuccessOfAnotherProcessIsNoted(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	dead, s := mustOpen(t, url), mustOpen(t, url)
	mustStore(t, s, "1", "1", "2")
	claim := func(l store.Lane, want ...uint64) []store.Job {
		t.Helper()
		c, err := l.Claim(t.Context(), time.Now(), 10, nil)
		var got []uint64
		for _, j := range c.Jobs {
			got = append(got, j.Number)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("claimed are %v, want %v: %v", got, want, err)
		}
		return c.Jobs
	}
	before := laneOf(dead, "crm")
	jobs := claim(before, 1, 3)
	pgtest.SQL(t, url, `DELETE FROM pzbridge.process WHERE id = '`+dead.id.String()+`'`)
	l, err := s.Lane(t.Context(), "crm", false)
	if err != nil {
		t.Fatal(err)
	}
	mine := claim(l, 1, 3)
	if _, err := s.lookAtHead(t.Context()); err != nil { // it is known
		t.Fatal(err)
	}
	if err := before.Record(t.Context(), []store.Result{deliveredNow(jobs[0])}); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), []store.Result{deliveredNow(mine[0])}); err != nil {
		t.Fatal(err)
	}
	look, err := s.lookAtHead(t.Context())
	if err != nil || !look.isNew {
		t.Errorf("nothing makes the queue be looked at: %v", err)
	}
	s.followOthers()
	claim(l, 2)
}

// TestALookThatBeganLateIsFollowedByAWholeOne checks that a queue is looked at once more after a
// look that did not begin at the first delivery, and then no more.
func TestALookThatBeganLateIsFollowedByAWholeOne(t *testing.T) {
	s := mustOpen(t, pgtest.Shared(t).Database(t), func(o *Options) { o.Poll = 100 * time.Millisecond })
	mustStore(t, s, "1")
	l, err := s.Lane(t.Context(), "crm", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.lookAtHead(t.Context()); err != nil { // so that nothing is new
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		if _, err := l.Claim(t.Context(), time.Now(), 10, nil); err != nil {
			t.Fatal(err)
		}
	}
	look()
	look() // behind the first delivery
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer stop()
	changed := s.Changed()
	following.Go(func() { s.follow(ctx) })
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing makes the queue be looked at again")
	}
	look()
	select {
	case <-s.Changed():
		t.Error("the queue is looked at again and again")
	case <-time.After(time.Second):
	}
}
