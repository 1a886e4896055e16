package postgres

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/repeat"
)

// A lease is a row with an owner and a counter, which its owner raises each beat. No clock but the
// monotonic one of each process counts: a process takes a lease only if it has itself seen the
// counter unchanged for as long as the patience, without a look that failed, and only if it is
// unchanged still. The owner, for its part, suspends its work that long after it has sent the last
// renewal that succeeded, less a margin. So two never work at once, however slow the network or a
// process is. If the database was away for both, the owner renews the lease in time once it is
// back, and goes on.

const (
	// patienceBeats is how many beats a counter is unchanged before the lease may be taken.
	patienceBeats = 3
	// marginBeats is how much earlier its owner gives it up.
	marginBeats = 0.5
)

// Lease is a lease in the hands of this process.
type Lease struct {
	engine *Engine
	name   string
	epoch  int64 // it is one more each time that the lease is taken

	running  context.Context // of renew
	stop     context.CancelFunc
	renewing sync.WaitGroup
	lost     chan struct{} // closed once another process has the lease

	mu       sync.Mutex
	held     context.Context // ends when the work is to be suspended
	suspend  context.CancelFunc
	until    time.Time
	deadline *time.Timer // ends held at that time
}

// Take takes a lease and waits, until ctx ends, while another process has it.
func (s *Engine) Take(ctx context.Context, name string) (*Lease, error) {
	look := leaseLook{engine: s, name: name, failures: repeat.New(s.logger)}
	for {
		l, err := look.try(ctx)
		if l != nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			look.since = time.Time{} // what was seen before it says nothing of the time since
			look.failures.Failed("the lease of the work cannot be looked at", err)
		} else {
			look.failures.Recovered("the lease of the work is looked at again")
		}
		if !sleep(ctx, s.beat/2) {
			return nil, ctx.Err()
		}
	}
}

// leaseLook is what a process that waits for a lease has seen of it.
type leaseLook struct {
	engine         *Engine
	name           string
	epoch, counter int64
	since          time.Time // when this was seen first, by the monotonic clock
	failures       *repeat.Log
}

// try takes the lease, if it may be taken.
func (f *leaseLook) try(ctx context.Context) (*Lease, error) {
	s := f.engine
	ctx, cancel := context.WithTimeout(ctx, s.beat)
	defer cancel()
	var owner *uuid.UUID
	var epoch, counter int64
	row := s.keeper.QueryRow(ctx, `SELECT owner, epoch, counter FROM lease WHERE name = $1`, f.name)
	err := row.Scan(&owner, &epoch, &counter)
	if errors.Is(err, pgx.ErrNoRows) {
		_, err = s.keeper.Exec(ctx, `INSERT INTO lease (name) VALUES ($1) ON CONFLICT DO NOTHING`, f.name)
		owner = nil
	}
	if err != nil {
		return nil, classify(err)
	}
	if f.since.IsZero() || epoch != f.epoch || counter != f.counter {
		f.epoch, f.counter, f.since = epoch, counter, time.Now()
	}
	if owner != nil && time.Since(f.since) < patienceBeats*s.beat {
		return nil, nil
	}
	sent := time.Now()
	row = s.keeper.QueryRow(ctx, `UPDATE lease SET owner = $1, epoch = epoch + 1, counter = counter + 1
		WHERE name = $2 AND epoch = $3 AND counter = $4 RETURNING epoch`, s.id, f.name, epoch, counter)
	if err := row.Scan(&epoch); errors.Is(err, pgx.ErrNoRows) {
		return nil, nil // another process was faster
	} else if err != nil {
		return nil, classify(err)
	}
	return s.hold(f.name, epoch, sent), nil
}

// hold renews a lease from now on that was taken by a statement sent at a time.
func (s *Engine) hold(name string, epoch int64, sent time.Time) *Lease {
	l := &Lease{engine: s, name: name, epoch: epoch, lost: make(chan struct{})}
	l.running, l.stop = context.WithCancel(context.Background())
	l.prolong(sent)
	l.renewing.Go(l.renew)
	return l
}

// prolong lets the work go on until the end of a lease that was renewed by a statement sent at a
// time.
func (l *Lease) prolong(sent time.Time) {
	until := l.engine.leaseEnd(sent)
	left := time.Until(until)
	if left <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = until
	if l.deadline != nil && l.deadline.Stop() && l.held.Err() == nil {
		l.deadline.Reset(left)
		return
	}
	l.held, l.suspend = context.WithCancel(context.Background())
	l.deadline = time.AfterFunc(left, l.suspend)
}

// leaseEnd is until when a lease counts that was renewed by a statement sent at a time.
func (s *Engine) leaseEnd(sent time.Time) time.Time {
	return sent.Add(time.Duration((patienceBeats - marginBeats) * float64(s.beat)))
}

func (l *Lease) renew() {
	failures := repeat.New(l.engine.logger)
	for sleep(l.running, l.engine.beat) {
		sent := time.Now()
		ctx, cancel := context.WithTimeout(l.running, patienceBeats*l.engine.beat)
		tag, err := l.engine.keeper.Exec(ctx, `UPDATE lease SET counter = counter + 1
			WHERE name = $1 AND owner = $2 AND epoch = $3`, l.name, l.engine.id, l.epoch)
		cancel()
		switch {
		case l.running.Err() != nil:
		case err != nil:
			failures.Failed("the lease of the work cannot be renewed", classify(err))
		case tag.RowsAffected() == 0:
			l.endHeld()
			close(l.lost)
			return
		default:
			failures.Recovered("the lease of the work is renewed again")
			l.prolong(sent)
		}
	}
}

// endHeld suspends the work.
func (l *Lease) endHeld() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline.Stop()
	l.suspend()
}

// Held returns a context that ends when the work is to be suspended: what its owner does under it
// is over before another process can have the lease. If nobody has taken it meanwhile, Held later
// returns another context.
func (l *Lease) Held() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !time.Now().Before(l.until) { // a process that has stood still is not to go on before its timers do
		l.suspend()
	}
	return l.held
}

// Lost returns a channel that is closed once another process has the lease.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Release gives the lease up, so that another process has it at once.
func (l *Lease) Release(ctx context.Context) error {
	l.stop()
	l.renewing.Wait()
	l.endHeld()
	ctx, cancel := context.WithTimeout(ctx, patienceBeats*l.engine.beat)
	defer cancel()
	_, err := l.engine.keeper.Exec(ctx, `UPDATE lease SET owner = NULL, counter = counter + 1
		WHERE name = $1 AND owner = $2 AND epoch = $3`, l.name, l.engine.id, l.epoch)
	return classify(err)
}
