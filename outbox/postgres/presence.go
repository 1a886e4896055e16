package postgres

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/repeat"
	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
)

// A process shows that it lives by a counter in the database, which it raises twice in each beat.
// No clock but the monotonic one of each process counts: a process counts as dead for another one
// that has itself seen its counter unchanged for as long as the patience, without a look that
// failed, if it is unchanged still when its row is removed. The process, for its part, suspends its
// work that long after it has sent the last raise that succeeded, less a margin. So two never have
// the same work at once, however slow the network or a process is. If the database was away for
// all, each raises its counter in time once it is back, and goes on.

const (
	// patienceBeats is how many beats a counter is unchanged before its process counts as dead.
	patienceBeats = 3
	// marginBeats is how much earlier the process suspends its work.
	marginBeats = 0.5
	// looksPerBeat is how often in a beat a process raises its counter and looks at the others.
	looksPerBeat = 2
)

// ErrLost means that the other processes count this one as dead, so its work may be theirs. What it
// has in memory of that must not be carried on: it ends, and a new start takes part again.
var ErrLost = &telephony.Fault{
	Code: telephony.CodeWatchLost,
	Text: "this bridge could not show the others in time that it lives, so they may have taken its work over",
}

// presence is the row of this process, and what it sees of the others.
type presence struct {
	engine *Engine
	leases leases
	stop   context.CancelFunc
	loop   sync.WaitGroup
	wake   chan struct{} // look at once
	lost   chan struct{} // closed once the work of this process may be another one's
	lostBy error         // ErrLost with what has shown it, once lost is closed
	// hasOthers says that other processes live, by the last look.
	hasOthers atomic.Bool

	mu       sync.Mutex
	held     context.Context // ends when the work is to be suspended
	suspend  context.CancelFunc
	until    time.Time
	deadline *time.Timer // ends held at that time

	// The fields below are used by run alone.
	sightings map[uuid.UUID]*sighting
}

// sighting is what this process has seen of another one.
type sighting struct {
	counter int64
	since   time.Time // when this was seen first, by the monotonic clock
	wants   []string
}

// appear adds the row of this process, and keeps it until leave.
func (s *Engine) appear(ctx context.Context) error {
	p := &s.presence
	p.engine, p.sightings = s, map[uuid.UUID]*sighting{}
	p.wake, p.lost = make(chan struct{}, 1), make(chan struct{})
	p.held, p.suspend = context.WithCancel(context.Background())
	p.suspend() // until the row is there
	p.leases.held, p.leases.free = map[string]*Lease{}, map[string]time.Time{}
	p.leases.stray = map[string]bool{}
	sent := time.Now()
	err := s.change(ctx, func(tx *txn) error {
		tx.write(`INSERT INTO process (id, bridge) VALUES ($1, $2) ON CONFLICT DO NOTHING`, s.id, s.name)
		return nil
	})
	if err != nil {
		return err
	}
	p.prolong(sent)
	running, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.loop.Go(func() { p.run(running) })
	return nil
}

// errSameName means that another process has the name of this bridge, by which all know it.
var errSameName = &telephony.Fault{
	Code: telephony.CodeSameName,
	Text: "another bridge with the same name runs on this database",
}

// refuseSameName fails if another living process has the name of this bridge. That of a bridge that
// was killed and restarts is removed meanwhile. Engines without a name are those of tools.
func (s *Engine) refuseSameName(ctx context.Context) error {
	before, raised := map[uuid.UUID]int64{}, map[uuid.UUID]int{}
	for s.name != "" {
		others, hasRaised := 0, false
		err := s.look(ctx, func(tx *txn) error {
			others = 0
			return tx.query(func(rows pgx.Rows) error {
				var id uuid.UUID
				var counter int64
				err := rows.Scan(&id, &counter)
				if last, seen := before[id]; seen && counter != last {
					raised[id]++
				}
				before[id] = counter
				hasRaised = hasRaised || raised[id] > 1 // a single change may be the last one of a dead process
				others++
				return err
			}, `SELECT id, counter FROM process WHERE bridge = $1 AND id <> $2`, s.name, s.id)
		})
		switch {
		case err != nil || others == 0:
			return err
		case hasRaised:
			return errSameName.With(" ("+s.name+")", s.name)
		case !sleep.For(ctx, s.beat/looksPerBeat):
			return ctx.Err()
		}
	}
	return nil
}

// leave gives up all that this process owns, so that others have it at once.
func (p *presence) leave() error {
	if p.stop == nil {
		return nil // it has not appeared
	}
	p.stop()
	p.loop.Wait()
	p.endHeld()
	if p.engine.ending.Err() != nil {
		return nil // the others notice
	}
	ctx, cancel := context.WithTimeout(p.engine.ending, patienceBeats*p.engine.beat)
	defer cancel()
	_, err := p.engine.keeper.exec(ctx, `DELETE FROM process WHERE id = $1`, p.engine.id)
	if p.engine.ending.Err() != nil {
		return nil
	}
	return classify(err)
}

// run looks at the other processes and the leases until ctx ends, or this process counts as dead.
func (p *presence) run(ctx context.Context) {
	failures := repeat.New(p.engine.logger)
	for {
		err := p.look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrLost):
			p.endHeld()
			p.lostBy = err
			close(p.lost)
			return
		case err != nil:
			clear(p.sightings) // what was seen before it says nothing of the time since
			failures.Failed("this bridge cannot show the others that it lives", err)
		default:
			failures.Recovered("this bridge shows the others that it lives again")
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-time.After(p.engine.beat / looksPerBeat):
		}
	}
}

// look raises the counter of this process, removes the processes that are dead, and takes and gives
// up leases.
func (p *presence) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(p.engine.beat, time.Second))
	defer cancel()
	sent := time.Now()
	v, err := p.read(ctx)
	if err != nil {
		return classify(err)
	}
	v.now = time.Now() // what was seen has changed before, however long that took
	if v.processes[p.engine.id] == nil {
		return ErrLost
	}
	p.prolong(sent)
	if err := p.removeDead(ctx, v); err != nil {
		return classify(err)
	}
	p.hasOthers.Store(len(v.processes) > 1)
	return classify(p.leases.update(ctx, p.engine.keeper, v, p.engine.beat))
}

// read raises the counter and returns what is there.
func (p *presence) read(ctx context.Context) (v *view, err error) {
	me := p.engine.id
	v = &view{me: me, processes: map[uuid.UUID]*sighting{}, leases: map[string]leaseRow{}}
	b := &pgx.Batch{}
	b.Queue(`UPDATE process SET counter = counter + 1, wants = $2 WHERE id = $1`, me, p.leases.wanted())
	// The leases first: one that a new process takes meanwhile has another epoch then, while it
	// would count as that of a dead one if the processes had been read before.
	each(b.Queue(`SELECT name, owner, epoch FROM lease`), func(rows pgx.Rows) error {
		var name string
		var row leaseRow
		err := rows.Scan(&name, &row.owner, &row.epoch)
		v.leases[name] = row
		return err
	})
	each(b.Queue(`SELECT id, counter, wants FROM process`), func(rows pgx.Rows) error {
		var id uuid.UUID
		var seen sighting
		err := rows.Scan(&id, &seen.counter, &seen.wants)
		v.processes[id] = &seen
		return err
	})
	return v, p.engine.keeper.send(ctx, b)
}

// removeDead notes the processes that live, and removes those that have not raised their counters
// for as long as the patience.
func (p *presence) removeDead(ctx context.Context, v *view) error {
	for id, seen := range v.processes {
		seen.since = v.now
		before := p.sightings[id]
		switch {
		case before == nil:
		case before.counter == seen.counter:
			seen.since = before.since
		default:
			p.engine.rises.note(id, v.now)
		}
	}
	p.sightings = v.processes
	for id, seen := range v.processes {
		if id == v.me || v.now.Sub(seen.since) < patienceBeats*p.engine.beat {
			continue
		}
		tag, err := p.engine.keeper.exec(ctx, `DELETE FROM process WHERE id = $1 AND counter = $2`, id, seen.counter)
		if err != nil {
			return err
		}
		if tag.RowsAffected() > 0 {
			delete(v.processes, id)
			p.engine.notifyReaders()
		}
	}
	return nil
}

// prolong lets the work go on for as long as others wait after a raise that was sent at a time.
func (p *presence) prolong(sent time.Time) {
	until := sent.Add(time.Duration((patienceBeats - marginBeats) * float64(p.engine.beat)))
	left := time.Until(until)
	if left <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = until
	if p.deadline != nil && p.deadline.Stop() && p.held.Err() == nil {
		p.deadline.Reset(left)
		return
	}
	p.held, p.suspend = context.WithCancel(context.Background())
	p.deadline = time.AfterFunc(left, p.suspend)
}

// endHeld suspends the work.
func (p *presence) endHeld() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadline != nil {
		p.deadline.Stop()
	}
	p.suspend()
}

// Held returns a context that ends when the work is to be suspended: what is done under it is over
// before another process can have the work. If none has taken it meanwhile, Held later returns
// another context.
func (s *Engine) Held() context.Context {
	p := &s.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	if !time.Now().Before(p.until) { // a process that has stood still is not to go on before its timers do
		p.suspend()
	}
	return p.held
}

// lookNow makes run look at once.
func (p *presence) lookNow() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
