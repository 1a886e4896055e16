package storetest

import (
	"context"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// The names of how an endpoint stands: see outbox.EndpointStatus.
const (
	stateOK      = "ok"
	stateFailing = "failing"
	statePaused  = "paused"
)

// failingAfter is after how many failed attempts in a row an endpoint counts as failing.
const failingAfter = 20

// questionAttempts is how many attempts are made at a question that an endpoint keeps failing.
const questionAttempts = 4

// unobserved is an observer that counts nothing, for tests that count one thing.
type unobserved struct{}

// AttemptEnded does nothing.
func (unobserved) AttemptEnded(string, string, time.Duration, time.Duration) {}

// Expired does nothing.
func (unobserved) Expired(string) {}

// GivenUp does nothing.
func (unobserved) GivenUp(string, int) {}

// openEngine opens an engine without an outbox and, when the test ends, checks what is stored and
// closes it.
func (s suite) openEngine(t *testing.T, o Options) store.Engine {
	t.Helper()
	o = WithDefaults(t, s.Harness, o)
	engine, err := s.Open(EngineOptions{
		Place:     o.Place,
		MaxBytes:  o.MaxBytes,
		Rules:     o.Rules(),
		Logger:    o.Logger,
		Clock:     o.Clock,
		Committed: func(time.Duration) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Check(t, engine)
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return engine
}

// appendTo appends events to an engine.
func appendTo(t *testing.T, engine store.Engine, events ...telephony.Event) {
	t.Helper()
	list := make([]store.NewEvent, len(events))
	for i := range events {
		var err error
		if list[i], err = store.Encode(&events[i], time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := engine.Append(t.Context(), list); err != nil {
		t.Fatal(err)
	}
}

// eventReader is what events can be read from.
type eventReader interface {
	Events(ctx context.Context, q store.EventQuery) (store.EventPage, error)
}

// storedEvents counts the events that are stored.
func storedEvents(t *testing.T, from eventReader) (n int) {
	t.Helper()
	for cursor := ""; ; {
		page, err := from.Events(context.Background(), store.EventQuery{After: cursor, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if n += len(page.Events); !page.More {
			return n
		}
		cursor = page.Cursor
	}
}
