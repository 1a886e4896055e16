package postgres

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
)

// A lease is what one process has at a time: the queue of an endpoint, the slot of a listener, the
// removal of old events. It is free if nobody owns it, or its owner does not live: see presence.go.
// It is taken and released by compare and set on its epoch, so a statement that comes late does
// nothing. Queues are shared out: a process takes no more than its share of free ones at once, and
// one that has more than another gives that one queue after queue, each between two attempts.

const (
	lanePrefix = "lane:"
	leasePrune = "prune"
	// leftOver is after how many beats a process takes a free queue beyond its share: whoever has
	// less would have taken it by then.
	leftOver = 2
)

// isLane reports whether a lease is that of a queue.
func isLane(name string) bool { return strings.HasPrefix(name, lanePrefix) }

// Lease is a lease in the hands of this process.
type Lease struct {
	Name   string
	wanted chan struct{} // closed when another process is to have it
	to     uuid.UUID     // that process
}

// Wanted returns a channel that is closed when the lease is to be released for another process.
func (l *Lease) Wanted() <-chan struct{} { return l.wanted }

// wish is a call of Take that waits.
type wish struct {
	names   []string
	granted chan *Lease
}

// release is a call of Release that waits.
type release struct {
	lease *Lease
	done  chan struct{}
}

// leases are those that this process has or waits for. Only run changes the database, look by look.
type leases struct {
	mu       sync.Mutex
	wishes   []*wish
	releases []*release
	held     map[string]*Lease

	// The fields below are used by run alone.
	free     map[string]time.Time // since when this process has seen leases free
	stray    map[string]bool      // owned and wished by nobody here: they are being given up
	handing  *Lease               // to be released for another process; nil if there is none
	handedAt time.Time            // when that was decided
}

// Take takes the first of some leases that is free, and waits, until ctx ends, while other
// processes have all of them.
func (s *Engine) Take(ctx context.Context, names ...string) (*Lease, error) {
	w := &wish{names: names, granted: make(chan *Lease, 1)}
	l := &s.presence.leases
	l.mu.Lock()
	l.wishes = append(l.wishes, w)
	l.mu.Unlock()
	s.presence.lookNow()
	select {
	case lease := <-w.granted:
		return lease, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	l.wishes = slices.DeleteFunc(l.wishes, func(other *wish) bool { return other == w })
	l.mu.Unlock()
	select {
	case lease := <-w.granted: // meanwhile
		return lease, nil
	default:
		return nil, ctx.Err()
	}
}

// Release gives a lease up, so that the process for which it is wanted has it, or else any other.
// While the database is away it waits for some beats, and the lease is given up once it is back.
func (s *Engine) Release(ctx context.Context, lease *Lease) error {
	r := &release{lease: lease, done: make(chan struct{})}
	l := &s.presence.leases
	l.mu.Lock()
	l.releases = append(l.releases, r)
	l.mu.Unlock()
	s.presence.lookNow()
	ctx, cancel := context.WithTimeout(ctx, patienceBeats*s.beat)
	defer cancel()
	defer context.AfterFunc(s.ending, cancel)()
	select {
	case <-r.done:
		return nil
	case <-s.presence.lost:
		return ErrLost
	case <-ctx.Done():
		return ErrUnavailable
	}
}

// has reports whether this process has a lease.
func (l *leases) has(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[name] != nil
}

// wanted returns the names of the leases that this process has or waits for.
func (l *leases) wanted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	names := map[string]bool{}
	for _, w := range l.wishes {
		for _, name := range w.names {
			names[name] = true
		}
	}
	for name := range l.held {
		names[name] = true
	}
	return append([]string{}, sortedKeys(names)...) // not nil, which would be NULL
}

// update gives up what was released, takes what is free and decides what to hand over, by what a
// look has seen. It fails with ErrLost if a lease is not this process's any more.
func (l *leases) update(ctx context.Context, db keeper, v *view, beat time.Duration) error {
	if l.isLost(v) {
		return errLeaseGone
	}
	if err := l.giveUp(ctx, db, v); err != nil {
		return err
	}
	l.noteFree(v)
	names := l.toTake(v, beat)
	if err := v.take(ctx, db, names); err != nil {
		return err
	}
	l.grant(v)
	if err := v.release(ctx, db, sortedKeys(l.stray), uuid.Nil); err != nil {
		return err
	}
	clear(l.stray)
	l.handOver(v, beat)
	return nil
}

// errLeaseGone is ErrLost after a fail-over to a server that lacks the last commits.
var errLeaseGone = &telephony.Fault{
	Code: ErrLost.Code,
	Text: "the database gives this bridge's work to nobody or to another one, " +
		"as after a fail-over that lost what was stored last",
}

// isLost reports whether the database says that this process does not have what it holds, but for
// what it is giving up: that may have been carried out without its learning of it.
func (l *leases) isLost(v *view) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, lease := range l.held {
		isReleased := slices.ContainsFunc(l.releases, func(r *release) bool { return r.lease == lease })
		if owner, _ := v.owner(name); owner != v.me && !isReleased {
			return true
		}
	}
	return false
}

// giveUp carries releases out.
func (l *leases) giveUp(ctx context.Context, db keeper, v *view) error {
	l.mu.Lock()
	releases := slices.Clone(l.releases)
	l.mu.Unlock()
	for _, r := range releases {
		if err := v.release(ctx, db, []string{r.lease.Name}, r.lease.to); err != nil {
			return err
		}
		l.mu.Lock()
		delete(l.held, r.lease.Name)
		l.releases = l.releases[1:]
		l.mu.Unlock()
		if l.handing == r.lease {
			l.handing = nil
		}
		close(r.done)
	}
	return nil
}

// noteFree notes since when leases have been free.
func (l *leases) noteFree(v *view) {
	names := l.wanted() // also those that nobody has ever had, and which have no row
	for name := range v.leases {
		names = append(names, name)
	}
	for _, name := range names {
		if _, isOwned := v.owner(name); isOwned {
			delete(l.free, name)
		} else if l.free[name].IsZero() {
			l.free[name] = v.now
		}
	}
}

// toTake returns the free leases to take now.
func (l *leases) toTake(v *view, beat time.Duration) (names []string) {
	left := v.share(l.wanted()) - v.lanes()[v.me]
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wishes {
		for _, name := range w.names {
			if _, isOwned := v.owner(name); isOwned || slices.Contains(names, name) {
				continue
			}
			if isLane(name) {
				since, known := l.free[name]
				if left <= 0 && (!known || v.now.Sub(since) < leftOver*beat) {
					continue
				}
				left--
			}
			names = append(names, name)
			break
		}
	}
	slices.Sort(names)
	return names
}

// grant grants the wishes for leases that this process owns. It notes the owned ones that nobody
// here wishes: another process has handed them over too late. These are granted only once they were
// given up and taken again, since the statement that gives them up may come late.
func (l *leases) grant(v *view) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range v.leases {
		if owner, _ := v.owner(name); owner != v.me || l.held[name] != nil {
			continue
		}
		i := slices.IndexFunc(l.wishes, func(w *wish) bool { return slices.Contains(w.names, name) })
		if i < 0 || l.stray[name] {
			l.stray[name] = true
			continue
		}
		lease := &Lease{Name: name, wanted: make(chan struct{})}
		l.held[name] = lease
		l.wishes[i].granted <- lease
		l.wishes = slices.Delete(l.wishes, i, i+1)
	}
}

// handOver decides which queue another process is to have, if it has at least two less than this
// one: one in each beat.
func (l *leases) handOver(v *view, beat time.Duration) {
	if l.handing != nil || v.now.Sub(l.handedAt) < beat {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lanes := v.lanes()
	var to uuid.UUID
	for name, lease := range l.held {
		for id, p := range v.processes {
			isBest := to == uuid.Nil || lanes[id] < lanes[to]
			if isLane(name) && slices.Contains(p.wants, name) && lanes[id]+2 <= lanes[v.me] && isBest {
				l.handing, to = lease, id
			}
		}
	}
	if l.handing != nil {
		l.handing.to, l.handedAt = to, v.now
		close(l.handing.wanted)
	}
}

// view is what a look has seen of all processes and leases, and what it has changed since.
type view struct {
	me        uuid.UUID
	processes map[uuid.UUID]*sighting
	leases    map[string]leaseRow
	now       time.Time
}

// leaseRow is a row of table lease.
type leaseRow struct {
	owner *uuid.UUID
	epoch int64
}

// owner returns the living process that has a lease; false if it is free.
func (v *view) owner(name string) (id uuid.UUID, isOwned bool) {
	row := v.leases[name]
	if row.owner == nil || v.processes[*row.owner] == nil {
		return uuid.Nil, false
	}
	return *row.owner, true
}

// lanes counts the queues that each process has.
func (v *view) lanes() map[uuid.UUID]int {
	number := map[uuid.UUID]int{}
	for name := range v.leases {
		if id, isOwned := v.owner(name); isOwned && isLane(name) {
			number[id]++
		}
	}
	return number
}

// share returns how many queues this process has, of those that it wants, if all who want some have
// equally many.
func (v *view) share(wanted []string) int {
	queues, sharers := 0, 1
	for _, name := range wanted {
		if isLane(name) {
			queues++
		}
	}
	for id, p := range v.processes {
		if id != v.me && slices.ContainsFunc(p.wants, isLane) {
			sharers++
		}
	}
	return (queues + sharers - 1) / sharers
}

// epochs returns those at which the look has seen leases.
func (v *view) epochs(names []string) []int64 {
	epochs := make([]int64, len(names))
	for i, name := range names {
		epochs[i] = v.leases[name].epoch
	}
	return epochs
}

// take takes free leases for this process, but for those that another one has taken since the look.
func (v *view) take(ctx context.Context, db keeper, names []string) error {
	if len(names) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	b.Queue(`INSERT INTO lease (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING`, names)
	each(b.Queue(`UPDATE lease SET owner = $1, epoch = lease.epoch + 1
		FROM unnest($2::text[], $3::bigint[]) AS seen(name, epoch)
		WHERE lease.name = seen.name AND lease.epoch = seen.epoch RETURNING lease.name, lease.epoch`,
		v.me, names, v.epochs(names)), func(rows pgx.Rows) error {
		var name string
		row := leaseRow{owner: &v.me}
		err := rows.Scan(&name, &row.epoch)
		v.leases[name] = row
		return err
	})
	return db.send(ctx, b)
}

// release gives leases of this process to another one, or to nobody if that does not live. A
// statement that comes late, on a connection that was given up, does nothing to a lease that this
// process has got again since.
func (v *view) release(ctx context.Context, db keeper, names []string, to uuid.UUID) error {
	if len(names) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	released := map[string]leaseRow{}
	each(b.Queue(`UPDATE lease
		SET epoch = lease.epoch + 1, owner = (SELECT id FROM process WHERE id = $4)
		FROM unnest($1::text[], $2::bigint[]) AS seen(name, epoch)
		WHERE lease.name = seen.name AND lease.epoch = seen.epoch AND owner = $3
		RETURNING lease.name, lease.owner, lease.epoch`,
		names, v.epochs(names), v.me, to), func(rows pgx.Rows) error {
		var name string
		var row leaseRow
		err := rows.Scan(&name, &row.owner, &row.epoch)
		released[name] = row
		return err
	})
	err := db.send(ctx, b)
	for _, name := range names {
		if row, isReleased := released[name]; isReleased && err == nil {
			v.leases[name] = row
		} else {
			delete(v.leases, name) // it was released before, and who has it now the next look says
		}
	}
	return err
}
