package relay

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/pz"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
)

// The bounds of the queue between the socket and the disk. While it is full, the socket is not
// read.
const (
	intakeSize  = 4096    // events
	intakeBytes = 4 << 20 // bytes, roughly
	batchSize   = 1024    // events in one Append

	// The wait before a failed Append is retried doubles from minAppendWait to maxAppendWait.
	minAppendWait = 100 * time.Millisecond
	maxAppendWait = time.Second
)

// intake is the queue between the reader and the sink. One Append takes everything that waits, up
// to batchSize events.
type intake struct {
	opts     Options
	queued   chan struct{} // the queue is not empty, or it is closed
	freed    chan struct{} // events were appended, so there may be space
	failures *repeat.Log
	skipped  int // replayed calls that were too old, since the last line about them

	mu       sync.Mutex
	queue    []telephony.Event
	recycled []telephony.Event // the array of the queue before, for the next queue
	events   int               // in memory: in the queue or with run
	bytes    int               // the size of these events
	paused   bool              // put waits: the socket is not read
	closed   bool              // no more events are accepted

	// giveUp ends the retries of Append, only during a shutdown.
	giveUp   context.Context
	cancel   context.CancelFunc
	done     chan struct{} // closed when run has ended
	unqueued int           // events that were lost before they were queued
	unstored int           // events that were lost from the queue
}

func newIntake(opts Options) *intake {
	in := &intake{
		opts:     opts,
		queued:   make(chan struct{}, 1),
		freed:    make(chan struct{}, 1),
		failures: repeat.New(opts.Logger),
		done:     make(chan struct{}),
	}
	in.giveUp, in.cancel = context.WithCancel(context.Background())
	return in
}

// put queues an event from the wire with its time of arrival. It blocks while the queue is full.
func (in *intake) put(wire pz.Event, at time.Time) {
	e := Translate(wire, at)
	in.opts.Observer.EventReceived(e.Type)
	switch {
	case in.tooOld(e):
		in.skipped++
	case in.opts.Twin != nil && !in.opts.Twin.Heard(&e):
	case !in.enqueue(&e):
		in.unqueued++
	}
	if final := wire.Attrs.Get(pz.AttrMissedFinal) == "1"; final && in.skipped > 0 {
		in.opts.Logger.Info("replayed calls that ended long ago are not sent on",
			"calls", in.skipped, "older_than", in.opts.ReplayMaxAge.String(), "setting", "REPLAY_MAX_AGE")
		in.skipped = 0
	}
}

// enqueueOperational queues an event about the connection itself. It does not wait, and drops the
// event if the queue is full: the exchange's events come first.
func (in *intake) enqueueOperational(e telephony.Event) {
	e.ID, e.Time = uuid.Must(uuid.NewV7()).String(), time.Now().UTC()
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.enqueueIfFits(&e)
	}
}

// enqueue waits until an event fits into the queue. It returns false only if a shutdown ran out of
// time.
func (in *intake) enqueue(e *telephony.Event) bool {
	for {
		in.mu.Lock()
		queued := in.enqueueIfFits(e)
		in.paused = !queued
		in.mu.Unlock()
		if queued {
			return true
		}
		select {
		case <-in.freed:
		case <-in.giveUp.Done():
			return false
		}
	}
}

// enqueueIfFits queues an event if it fits. The caller holds mu.
func (in *intake) enqueueIfFits(e *telephony.Event) bool {
	size := sizeOf(e)
	// An event beyond the limit fits an empty queue.
	if in.events == intakeSize || in.events > 0 && in.bytes+size > intakeBytes {
		return false
	}
	in.events++
	in.bytes += size
	in.queue = append(in.queue, *e)
	wake(in.queued)
	return true
}

// release frees the space of a batch that run is done with.
func (in *intake) release(batch []telephony.Event) {
	in.mu.Lock()
	in.events -= len(batch)
	for i := range batch {
		in.bytes -= sizeOf(&batch[i])
	}
	in.mu.Unlock()
	wake(in.freed)
}

// wake sends to a channel with a buffer of one, without blocking; a wake-up that is pending already
// is enough.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// isPaused reports whether the socket is not read because the queue is full.
func (in *intake) isPaused() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.paused
}

// sizeOf estimates an event's size in memory, in bytes.
func sizeOf(e *telephony.Event) int {
	const fixed, perAttr = 400, 32
	n := fixed + len(e.Text) + len(e.RecordingURL)
	for _, a := range e.Wire {
		n += perAttr + len(a.Name) + len(a.Value)
	}
	return n
}

// tooOld reports whether an event is a replay of a call that ended more than Options.ReplayMaxAge
// ago.
func (in *intake) tooOld(e telephony.Event) bool {
	at := e.EndedAt
	if at.IsZero() { // unknown to the exchange; no call lasts for days
		at = e.StartedAt
	}
	return in.opts.ReplayMaxAge > 0 && e.Replayed && !at.IsZero() && in.opts.Clock.Age(at) > in.opts.ReplayMaxAge
}

// run appends what is queued until finish was called and the queue is empty.
func (in *intake) run() {
	defer close(in.done)
	for {
		queue, closed := in.take()
		for len(queue) > 0 {
			batch := queue[:min(len(queue), batchSize)]
			if !in.append(batch) {
				for i := range batch {
					if !telephony.IsOperational(batch[i].Type) { // the bridge's own events are no loss
						in.unstored++
					}
				}
			}
			in.release(batch)
			clear(batch) // lets the garbage collector free the events
			queue = queue[len(batch):]
		}
		if closed {
			return
		}
		<-in.queued
	}
}

// take empties the queue and returns its events, which keep their space until release, and whether
// no more will follow. It reuses the array of the queue that it returned before.
func (in *intake) take() (queue []telephony.Event, closed bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	queue = in.queue
	in.queue, in.recycled = in.recycled, queue[:0]
	return queue, in.closed
}

// append retries until the sink has accepted the batch: the server sends an event only once, so it
// cannot be read again. It returns false only if a shutdown ran out of time.
func (in *intake) append(batch []telephony.Event) bool {
	for wait := minAppendWait; ; wait = min(2*wait, maxAppendWait) {
		// Not Run's context: what has been read is recorded even while shutting down.
		err := in.opts.Sink.Append(in.giveUp, batch)
		if err == nil {
			in.failures.Recovered("events are stored again")
			in.logStored(batch)
			return true
		}
		in.failures.Failed("events cannot be stored and wait in memory", err, "events", in.waiting())
		select {
		case <-in.giveUp.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// logStored logs each stored event, for the search for an event with LOG_LEVEL=debug.
func (in *intake) logStored(batch []telephony.Event) {
	if !in.opts.Logger.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	for i := range batch {
		if e := &batch[i]; !telephony.IsOperational(e.Type) { // an operational event is stored only for its subscribers
			in.opts.Logger.Debug("event stored", "event_id", e.ID, "type", string(e.Type), "call_id", e.CallID)
		}
	}
}

// waiting returns the number of events in memory.
func (in *intake) waiting() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.events
}

// beginShutdown limits the retries to Options.Grace from now on.
func (in *intake) beginShutdown() { time.AfterFunc(in.opts.Grace, in.cancel) }

// finish waits until the queue is empty, and returns an error with the number of events that could
// not be stored. The reader must have ended.
func (in *intake) finish() error {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	wake(in.queued)
	<-in.done
	in.cancel()
	if lost := in.unqueued + in.unstored; lost > 0 {
		return fmt.Errorf("%d events that the server had sent could not be stored within %s of the shutdown "+
			"and are lost", lost, in.opts.Grace)
	}
	return nil
}
