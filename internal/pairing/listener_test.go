package pairing

import (
	"context"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// slowOutbox stands still in each append until it is let go.
type slowOutbox struct{ asked, goOn chan struct{} }

func (o slowOutbox) AppendHeard(context.Context, int, uint64, []telephony.Event) ([]uint64, error) {
	close(o.asked)
	<-o.goOn
	return nil, nil
}

func (slowOutbox) HeardByOthers(_ context.Context, _ int, after uint64) ([]store.Heard, uint64, error) {
	return nil, after, nil
}

func (slowOutbox) LastNumber(context.Context) (uint64, error) { return 0, nil }

type nobody struct{}

func (nobody) Ask([]uint64) {}

// TestADialDoesNotWaitForAnAppend checks that the session may connect while the database stands
// still with what was read before.
func TestADialDoesNotWaitForAnAppend(t *testing.T) {
	outbox := slowOutbox{make(chan struct{}), make(chan struct{})}
	l := New(outbox, nobody{}, func() bool { return true })
	if err := l.Begin(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	e := telephony.Event{ID: "1", Type: telephony.EventCompleted, CallID: "5"}
	l.Heard(&e)
	stored, joined := make(chan error, 1), make(chan struct{})
	go func() { stored <- l.Append(t.Context(), []telephony.Event{e}) }()
	<-outbox.asked
	go func() {
		defer close(joined)
		l.Joining(t.Context())
	}()
	select {
	case <-joined:
	case <-time.After(10 * time.Second):
		t.Error("the session still waits")
	}
	close(outbox.goOn)
	if err := <-stored; err != nil {
		t.Error(err)
	}
	<-joined
}
