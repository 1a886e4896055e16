package bolt

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// model is what the file should hold for one endpoint, kept in the plainest way: a list, searched
// from end to end. It has its own words for all that it knows, and shares no code with what it
// judges.
type model struct {
	hold, longestWait, life time.Duration
	list                    []modelled
}

// modelled is a delivery as the model sees it.
type modelled struct {
	id, call   string
	state      string    // pending, delivered, expired, dead
	waits      bool      // for an earlier one of its call, without a time
	due        time.Time // zero is at once; of what has ended it is when it did
	failed     time.Time // first; zero if it never has
	expires    time.Time // zero is never
	tried      time.Time // last
	attempts   int
	step       int
	again      int // how often it was asked for again
	isFollowed bool
	follower   int // index of the one that may wait for it
}

// nearest gives the nearest delivery of the same call, before i or after it as step says; only a
// pending one if that is wanted. It is -1 if there is none.
func (m *model) nearest(i, step int, onlyPending bool) int {
	for j := i + step; j >= 0 && j < len(m.list); j += step {
		if m.list[j].call == m.list[i].call && (!onlyPending || m.list[j].state == "pending") {
			return j
		}
	}
	return -1
}

// stand places i behind j in their call: it waits without a time while j is pending and never
// failed, and until the hold after j's first failure is over. It reports whether j holds it at all.
func (m *model) stand(i, j int) (isHeld bool) {
	d := &m.list[i]
	d.waits, d.due = false, time.Time{}
	if j < 0 || m.list[j].state != "pending" {
		return false
	}
	if m.list[j].failed.IsZero() {
		d.waits = true
	} else {
		d.due = m.list[j].failed.Add(m.hold)
	}
	return true
}

// follow notes that i comes after j, if j is pending.
func (m *model) follow(j, i int) {
	if j >= 0 && m.list[j].state == "pending" {
		m.list[j].isFollowed, m.list[j].follower = true, i
	}
}

// settle lets what comes after i in its call follow from how i stands now. What has failed itself
// has a time of its own.
func (m *model) settle(i int, hold time.Duration) {
	d := &m.list[i]
	if !d.isFollowed {
		return
	}
	next := &m.list[d.follower]
	if next.state != "pending" || !next.failed.IsZero() {
		return
	}
	switch {
	case d.state == "pending" && d.failed.IsZero():
		next.waits, next.due = true, time.Time{}
	case d.state == "pending":
		next.waits, next.due = false, d.failed.Add(hold)
	case next.again > 0: // behind what has not been tried yet, so with a time
		next.waits, next.due = false, d.due
	default:
		next.waits, next.due = false, time.Time{}
	}
}

func (m *model) append(e telephony.Event) {
	d := modelled{id: e.ID, call: e.CallID, state: "pending"}
	if e.Type != telephony.EventCompleted { // that a call is over is always of use
		d.expires = e.Time.Truncate(time.Millisecond).Add(m.life)
	}
	m.list = append(m.list, d)
	i := len(m.list) - 1
	j := m.nearest(i, -1, false)
	m.follow(j, i)
	m.stand(i, j)
}

// record notes how an attempt, or the end of its time, has left a delivery.
func (m *model) record(i int, change func(d *modelled)) {
	change(&m.list[i])
	m.settle(i, m.hold)
}

// lineUp makes all that waits for its time due at once, in the order of events: as if nothing had
// been tried. A wait that is cut short does not count.
func (m *model) lineUp(now time.Time) {
	for i := range m.list {
		d := &m.list[i]
		if d.state != "pending" || d.waits || d.due.IsZero() {
			continue
		}
		if !d.failed.IsZero() && d.due.After(now) && d.step > 0 {
			d.step--
		}
		j := m.nearest(i, -1, true)
		d.failed, d.due, d.waits = time.Time{}, time.Time{}, j >= 0
		m.follow(j, i)
		m.settle(i, 0)
	}
}

// redeliver makes a delivery pending from the beginning of the schedule, behind what is pending
// before it in its call.
func (m *model) redeliver(i int, now time.Time) {
	d, j := &m.list[i], m.nearest(i, -1, true)
	d.state, d.step, d.failed, d.expires = "pending", 0, time.Time{}, time.Time{}
	d.again++
	if !m.stand(i, j) {
		d.due = now
	}
	next := m.nearest(i, 1, true)
	d.isFollowed, d.follower = next >= 0, next
	m.follow(j, i)
	m.settle(i, 0)
}

// setBack gives what waits for its time the one that it should have, since the clock was set back
// to now.
func (m *model) setBack(now time.Time) {
	for i := range m.list {
		d := &m.list[i]
		if d.state != "pending" || d.waits || !d.due.After(now) {
			continue
		}
		ahead := d.due.Sub(now)
		if d.failed.IsZero() && ahead > m.hold {
			d.due = now.Add(m.hold)
		}
		if !d.failed.IsZero() && (ahead > m.longestWait || d.tried.After(now)) {
			d.due = now
			if d.failed.After(now) {
				d.failed = now
			}
		}
	}
}

// expire ends what is of no use any more and could be tried, and then what this has released.
func (m *model) expire(now time.Time) {
	for found := true; found; {
		found = false
		for i := range m.list {
			d := &m.list[i]
			if d.state == "pending" && !d.waits && !d.expires.IsZero() && !d.expires.After(now) {
				found = true
				m.record(i, func(d *modelled) { d.state, d.due = "expired", now })
			}
		}
	}
}

// due gives the numbers of what is due, in no order.
func (m *model) due(now time.Time) (list []uint64) {
	for i, d := range m.list {
		if d.state == "pending" && !d.waits && !d.due.After(now) {
			list = append(list, uint64(i+1))
		}
	}
	return list
}

// Whatever happens in whatever order, clocks that jump either way, restarts and upgrades among it,
// the file holds what the model says.
func TestFileHoldsWhatTheModelSays(t *testing.T) {
	t.Parallel()
	const once = 17055720127494412875 // a delivery asked for again was held by one that had failed
	follow := func(name string, seed uint64, extra *rand.Rand) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newModelRun(t, rand.New(rand.NewPCG(seed, 0)), extra).run() })
		})
	}
	follow("once", once, nil)
	runs := 5
	if testing.Short() {
		runs = 1
	}
	for range runs {
		seed := rand.Uint64()
		follow(fmt.Sprint(seed), seed, rand.New(rand.NewPCG(seed, 1)))
	}
}

// modelRun does the same to a file and to the model.
type modelRun struct {
	t      *testing.T
	random *rand.Rand
	// extra decides on what was added to the test after a seed had found something: events that
	// expire, upgrades, and results that are recorded twice. Nil is without these.
	extra    *rand.Rand
	schedule []time.Duration
	opts     storetest.Options
	box      *storetest.Box
	model    *model
}

func newModelRun(t *testing.T, random, extra *rand.Rand) *modelRun {
	r := &modelRun{t: t, random: random, extra: extra, schedule: []time.Duration{time.Minute, time.Hour, 5 * time.Hour}}
	hold := time.Duration(random.IntN(3)) * time.Minute
	crm := storetest.Endpoint("crm")
	crm.RingingTTL = time.Duration(1+r.drawExtra(5)) * time.Hour
	r.opts = quietly(t, storetest.Options{
		Endpoints:      []store.Endpoint{crm},
		RetrySchedule:  r.schedule,
		Retention:      1000 * time.Hour,
		RoutingTimeout: time.Hour,
	})
	r.opts.OrderHold = hold              // may be none
	longest := 6*time.Hour + time.Minute // the last wait of the schedule, a fifth longer, and a minute
	r.model = &model{hold: hold, longestWait: longest, life: crm.RingingTTL}
	r.open()
	return r
}

// drawExtra draws a number below n; it is 0 in a run without extras.
func (r *modelRun) drawExtra(n int) int {
	if r.extra == nil {
		return 0
	}
	return r.extra.IntN(n)
}

func (r *modelRun) open() {
	var err error
	r.box, err = storetest.Open(harness{}, r.opts)
	r.check(err)
}

func (r *modelRun) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *modelRun) run() {
	for step := range 300 {
		time.Sleep(time.Duration(r.random.IntN(100)) * time.Second)
		what := r.random.IntN(21)
		r.step(what)
		r.compare(step, what)
		if r.drawExtra(4) == 1 {
			r.fillAndExpire()
			r.compare(step, 21)
		}
		if r.t.Failed() {
			break
		}
	}
	checkFile(r.t, engineOf(r.box))
	r.check(r.box.Close())
}

func (r *modelRun) step(what int) {
	t, m, s := r.t, r.model, engineOf(r.box)
	switch {
	case what < 7:
		r.append()
	case what < 17:
		r.attempt()
	case what == 17:
		r.check(laneOf(t, s, "crm").LineUp(t.Context(), time.Now()))
		m.lineUp(time.Now())
	case what == 18 && len(m.list) > 0:
		i := r.random.IntN(len(m.list))
		_, err := r.box.Redeliver(m.list[i].id + ".crm")
		r.check(err)
		m.redeliver(i, time.Now())
	case what == 19:
		r.check(laneOf(t, s, "crm").setBack(t.Context(), time.Now()))
		m.setBack(time.Now())
	case what == 20: // a restart, maybe an upgrade
		r.check(r.box.Close())
		if r.drawExtra(3) == 1 {
			toLayout3(t, r.opts.Place)
		}
		r.open()
	}
}

// fillAndExpire fills the index by expiry for a step, or to its end; from then on what is too late
// is found by it.
func (r *modelRun) fillAndExpire() {
	s := engineOf(r.box)
	done, err := s.fillSome("crm")
	r.check(err)
	if r.drawExtra(3) == 1 {
		return
	}
	for !done {
		done, err = s.fillSome("crm")
		r.check(err)
	}
	for done = false; !done; {
		done, err = s.fillNumbers()
		r.check(err)
	}
	for l := laneOf(r.t, s, "crm"); ; {
		expired, _, err := l.Expire(r.t.Context(), time.Now(), 1+r.drawExtra(8))
		r.check(err)
		if len(expired) == 0 {
			break
		}
	}
	r.model.expire(time.Now())
}

// append appends some events, now and then one that is known.
func (r *modelRun) append() {
	var batch []telephony.Event
	for range 1 + r.random.IntN(3) {
		kind := []telephony.EventType{"call.completed", "call.incoming"}[r.drawExtra(2)]
		e := storetest.Event(kind, fmt.Sprint(r.random.IntN(6)))
		e.From, e.To = fmt.Sprint("+7343011223", r.drawExtra(3)), fmt.Sprint(101+r.drawExtra(3))
		batch = append(batch, e)
		r.model.append(e)
	}
	if len(r.model.list) > 5 && r.random.IntN(3) == 0 {
		known := storetest.Event("call.completed", "other")
		known.ID = r.model.list[r.random.IntN(5)].id
		batch = append(batch, known)
	}
	r.check(r.box.Append(r.t.Context(), batch))
}

// attempt makes attempts, by a clock that may be wrong by hours, and records them, now and then
// twice.
func (r *modelRun) attempt() {
	jobs := dueNow(r.t, engineOf(r.box), 4).jobs
	now := time.Now().Add(time.Duration(r.random.IntN(5)-2) * time.Duration(r.random.IntN(20)) * time.Hour)
	var results []store.Result
	for _, j := range jobs {
		status := []int{200, 200, 503, 503, 500, 410, 0}[r.random.IntN(7)]
		random, how := r.random.Float64(), r.random.IntN(6)
		i := int(j.Number) - 1
		r.model.record(i, func(d *modelled) { r.tried(d, status, random, how, now) })
		made := &store.Attempt{At: now, Status: status}
		results = append(results, store.Result{Job: j, Now: r.model.list[i].stored(), Attempt: made})
	}
	for range 1 + r.drawExtra(2) {
		r.check(engineOf(r.box).record("crm", slices.Clone(results)))
	}
}

// tried changes a delivery as an attempt leaves it: random spreads the wait, how is 0 for a probe
// and 1 for what came too late.
func (r *modelRun) tried(d *modelled, status int, random float64, how int, now time.Time) {
	d.tried = now.Truncate(time.Millisecond)
	if how == 1 {
		d.state, d.due = "expired", now
		return
	}
	d.attempts++
	switch {
	case status == 200:
		d.state, d.due = "delivered", now
		return
	case how == 0:
		return
	case status == 410:
		d.state, d.due = "dead", now
		return
	}
	if d.failed.IsZero() || d.failed.After(now) {
		d.failed = now
	}
	if d.step == len(r.schedule) {
		d.state, d.due = "dead", now
		return
	}
	d.due = now.Add(time.Duration(float64(r.schedule[d.step]) * (0.8 + 0.4*random)))
	d.step++
}

// stored gives a delivery as it should be stored.
func (d *modelled) stored() store.Delivery {
	nano := func(at time.Time) int64 {
		if at.IsZero() {
			return 0
		}
		return at.UnixNano()
	}
	s := store.Delivery{
		State:       map[string]store.State{"pending": 0, "delivered": 1, "expired": 2, "dead": 3}[d.state],
		Attempts:    d.attempts,
		Step:        d.step,
		Due:         nano(d.due),
		FailedAt:    nano(d.failed),
		Redelivered: uint8(d.again),
		Expires:     nano(d.expires),
	}
	if d.waits {
		s.Due = -1
	}
	return s
}

func (r *modelRun) compare(step, what int) {
	t, m := r.t, r.model
	t.Helper()
	err := engineOf(r.box).view(func(tx *txn) error {
		for i := range m.list {
			got, _, ok := tx.queue("crm").get(uint64(i + 1))
			if !ok {
				t.Fatalf("step %d (%d): delivery %d is not there", step, what, i+1)
			}
			want := m.list[i].stored()
			got.Next = 0
			if got.State != store.Pending { // then it says nothing
				got.Expires, want.Expires = 0, 0
			}
			if got != want {
				t.Errorf("step %d (%d): delivery %d of call %s is %+v, want %+v",
					step, what, i+1, m.list[i].call, got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var due []uint64
	for _, j := range dueNow(t, engineOf(r.box), len(m.list)+1).jobs {
		due = append(due, j.Number)
	}
	slices.Sort(due)
	if want := m.due(time.Now()); !slices.Equal(due, want) {
		t.Errorf("step %d (%d): due are %v, want %v", step, what, due, want)
	}
}
