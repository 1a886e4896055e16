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

// What stands between the socket and the disk. When it is full, the socket is not read.
const (
	intakeSize  = 4096    // events
	intakeBytes = 4 << 20 // bytes, roughly
	batchSize   = 1024    // events in one Append
	appendAgain = 100 * time.Millisecond
	appendMost  = time.Second
)

// intake takes events from the reader and appends them to the sink: whatever waits goes together.
type intake struct {
	opts    Options
	queued  chan struct{} // there is something in the queue, or it is closed
	room    chan struct{} // something was appended while put waited for it
	trouble *repeat.Log
	skipped int // replayed calls that were too old, since the last line about them

	mu     sync.Mutex
	queue  []telephony.Event
	spare  []telephony.Event // the room of what run has, which the queue after the next one will have
	events int               // that are in memory, in the queue or with run
	bytes  int               // that they take
	paused bool              // put waits: the socket is not read
	closed bool              // nothing is taken any more

	// giveUp ends, during a shutdown only, the trying again of what the sink does not take.
	giveUp context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended
	unread int           // events that were given up before they were queued
	unkept int           // events that were given up after that
}

func newIntake(opts Options) *intake {
	in := &intake{opts: opts, queued: make(chan struct{}, 1), room: make(chan struct{}, 1), trouble: repeat.New(opts.Logger), done: make(chan struct{})}
	in.giveUp, in.cancel = context.WithCancel(context.Background())
	return in
}

// put takes one event from the wire, which came at a time. It blocks while there is no room.
func (in *intake) put(wire pz.Event, at time.Time) {
	e := translate(wire, at)
	in.opts.Observer.EventReceived(e.Type)
	if in.tooOld(e) {
		in.skipped++
	} else if !in.enqueue(&e) {
		in.unread++
	}
	if final := wire.Attrs.Get(pz.AttrMissedFinal) == "1"; final && in.skipped > 0 {
		in.opts.Logger.Info("replayed calls that ended long ago are not sent on",
			"calls", in.skipped, "older_than", in.opts.ReplayMaxAge.String(), "setting", "REPLAY_MAX_AGE")
		in.skipped = 0
	}
}

// announce takes an event that tells of the connection itself. It does not wait: while there is no room, what the exchange sends comes first.
func (in *intake) announce(e telephony.Event) {
	e.ID, e.Time = uuid.Must(uuid.NewV7()).String(), time.Now().UTC()
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.enqueueIfRoom(&e)
	}
}

// enqueue waits until there is room for an event in the queue. It is false only when a shutdown did not leave the time.
func (in *intake) enqueue(e *telephony.Event) bool {
	for {
		in.mu.Lock()
		queued := in.enqueueIfRoom(e)
		in.paused = !queued
		in.mu.Unlock()
		if queued {
			return true
		}
		select {
		case <-in.room:
		case <-in.giveUp.Done():
			return false
		}
	}
}

// enqueueIfRoom puts an event into the queue, unless there is no room. The caller holds mu.
func (in *intake) enqueueIfRoom(e *telephony.Event) bool {
	size := sizeOf(e)
	// One that is larger than all the room there is goes alone.
	if in.events == intakeSize || in.events > 0 && in.bytes+size > intakeBytes {
		return false
	}
	in.events++
	in.bytes += size
	in.queue = append(in.queue, *e)
	signal(in.queued)
	return true
}

func (in *intake) giveRoom(batch []telephony.Event) {
	in.mu.Lock()
	in.events -= len(batch)
	for i := range batch {
		in.bytes -= sizeOf(&batch[i])
	}
	in.mu.Unlock()
	signal(in.room)
}

// signal wakes whoever waits on a channel with room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// isPaused says whether the socket is not read, since there is no room for what it brings.
func (in *intake) isPaused() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.paused
}

// sizeOf is about how many bytes an event takes in memory.
func sizeOf(e *telephony.Event) int {
	const fixed, perAttr = 400, 32
	n := fixed + len(e.Text) + len(e.RecordingURL)
	for _, a := range e.Wire {
		n += perAttr + len(a.Name) + len(a.Value)
	}
	return n
}

func (in *intake) tooOld(e telephony.Event) bool {
	at := e.EndedAt
	if at.IsZero() { // the exchange does not know, and no call lasts for days
		at = e.StartedAt
	}
	return in.opts.ReplayMaxAge > 0 && e.Replayed && !at.IsZero() && in.opts.Clock.Age(at) > in.opts.ReplayMaxAge
}

// run appends until finish has been called and the queue is empty.
func (in *intake) run() {
	defer close(in.done)
	for {
		queue, closed := in.take()
		for len(queue) > 0 {
			batch := queue[:min(len(queue), batchSize)]
			if !in.append(batch) {
				for i := range batch {
					if !telephony.IsOperational(batch[i].Type) { // the server has not sent it
						in.unkept++
					}
				}
			}
			in.giveRoom(batch)
			clear(batch) // so that they can be forgotten
			queue = queue[len(batch):]
		}
		if closed {
			return
		}
		<-in.queued
	}
}

// take gives the queue, whose events take their room until giveRoom, and says whether nothing will come after it. The queue before is done with.
func (in *intake) take() (queue []telephony.Event, closed bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	queue = in.queue
	in.queue, in.spare = in.spare, queue[:0]
	return queue, in.closed
}

// append tries until the sink has taken the batch: what is on this socket was sent once and is gone. It is false only when a shutdown did
// not leave the time.
func (in *intake) append(batch []telephony.Event) bool {
	for wait := appendAgain; ; wait = min(2*wait, appendMost) {
		// Not Run's context: what has been read is recorded even while shutting down.
		err := in.opts.Sink.Append(in.giveUp, batch)
		if err == nil {
			in.trouble.Recovered("events are stored again")
			in.logStored(batch)
			return true
		}
		in.trouble.Failed("events cannot be stored and wait in memory", err, "events", in.waiting())
		select {
		case <-in.giveUp.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// logStored is for who looks for an event with LOG_LEVEL=debug.
func (in *intake) logStored(batch []telephony.Event) {
	if !in.opts.Logger.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	for i := range batch {
		if e := &batch[i]; !telephony.IsOperational(e.Type) { // one that is operational is stored only where somebody wants it
			in.opts.Logger.Debug("event stored", "event_id", e.ID, "type", string(e.Type), "call_id", e.CallID)
		}
	}
}

// waiting is how many events are in memory.
func (in *intake) waiting() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.events
}

// stopping is called when a shutdown begins: from then on Options.Grace is left to store what has been read.
func (in *intake) stopping() { time.AfterFunc(in.opts.Grace, in.cancel) }

// finish lets the queue run empty and says what could not be stored. The reader must have ended.
func (in *intake) finish() error {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	signal(in.queued)
	<-in.done
	in.cancel()
	if lost := in.unread + in.unkept; lost > 0 {
		return fmt.Errorf("%d events that the server had sent could not be stored within %s of the shutdown and are lost", lost, in.opts.Grace)
	}
	return nil
}
