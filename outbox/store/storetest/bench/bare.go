package bench

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
)

// BareStore keeps the events of a bare way, and which of them were sent. Append and Record may be
// called at the same time.
type BareStore interface {
	// Append stores events, and returns them with their numbers.
	Append(events []telephony.Event) ([]store.Job, error)
	// Record stores that events were sent.
	Record(numbers []uint64) error
}

// Bare is the way from a simulated server to a receiver with nothing but the work that cannot be
// left out: each event is stored, sent and recorded, together with what waits just then. There is
// no order, no schedule, no state to ask for and no log.
type Bare struct {
	First store.Job // the first event that was stored

	b      *testing.B
	db     BareStore
	sender *webhook.Sender
	stored chan store.Job // to be sent
	sent   chan uint64    // to be recorded

	server   *pztest.Server
	recorded atomic.Uint64
}

// outcomesWait is how long outcomes wait for others, as the outbox lets them.
const outcomesWait = 2 * time.Millisecond

// StartBare starts a bare way that is connected and has recorded a first event. It ends with the
// benchmark, after which the store may be closed.
func StartBare(b *testing.B, db BareStore, e store.Endpoint, logger *slog.Logger) *Bare {
	b.Helper()
	const queued = 1024 // events: about as many as are stored together
	p := &Bare{
		b:      b,
		db:     db,
		sender: webhook.New(e, webhook.Options{}),
		stored: make(chan store.Job, queued),
		sent:   make(chan uint64, queued),
	}
	var sending, recording sync.WaitGroup
	for range e.Concurrency {
		sending.Go(p.send)
	}
	recording.Go(p.record)
	b.Cleanup(func() {
		close(p.stored)
		sending.Wait()
		close(p.sent)
		recording.Wait()
	})
	p.server = connect(b, p, logger)
	for n := 0; p.recorded.Load() == 0; n++ {
		p.Emit(n)
		<-time.After(10 * time.Millisecond)
	}
	return p
}

// Append stores events and has them sent.
func (p *Bare) Append(_ context.Context, events []telephony.Event) error {
	jobs, err := p.db.Append(events)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if p.First.EventID == "" {
			p.First = j
		}
		p.stored <- j
	}
	return nil
}

// send is one of the senders.
func (p *Bare) send() {
	for j := range p.stored {
		if o := p.sender.Send(context.Background(), j); o.Verdict != store.Done {
			p.b.Error(o.Text())
		}
		p.sent <- j.Number
	}
}

// record records what was sent.
func (p *Bare) record() {
	for n := range p.sent {
		time.Sleep(outcomesWait)
		numbers := []uint64{n}
		for range len(p.sent) {
			numbers = append(numbers, <-p.sent)
		}
		if err := p.db.Record(numbers); err != nil {
			p.b.Error(err)
		}
		p.recorded.Add(uint64(len(numbers)))
	}
}

// Emit sends the event of a call from the simulated server.
func (p *Bare) Emit(call int) { emit(p.b, p.server, call) }

// Take lets n events come and says how long it takes until all are recorded, and how much of the
// processor.
func (p *Bare) Take(first, n int) (took, used time.Duration) {
	before, began, usedBefore := p.recorded.Load(), time.Now(), ProcessorTime(p.b)
	for i := range n {
		p.Emit(first + i)
	}
	for p.recorded.Load() < before+uint64(n) {
		<-time.After(time.Millisecond)
	}
	return time.Since(began), ProcessorTime(p.b) - usedBefore
}
