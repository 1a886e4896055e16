package main

import (
	"context"
	"time"

	"pzbridge/internal/callpolicy"
	"pzbridge/internal/dashboard"
	"pzbridge/internal/metrics"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// sink stores the events that the session reads, and passes the questions among them to the
// dispatcher.
type sink struct {
	box       *outbox.Outbox
	questions *routing.Dispatcher
}

// Append stores events: see relay.Sink.
func (s *sink) Append(ctx context.Context, events []telephony.Event) error {
	questions, err := s.box.Append(ctx, events)
	s.questions.Ask(questions)
	return err
}

// Ask asks questions that were just stored.
func (s *sink) Ask(questions []uint64) { s.questions.Ask(questions) }

// observers passes what it observes to both the metrics and the dashboard.
type observers struct {
	*metrics.Metrics
	stats *dashboard.Stats
}

// refusalObservers passes refused commands to both.
type refusalObservers [2]callpolicy.Observer

func (o refusalObservers) CommandRefused(by string, kind telephony.CommandKind, reason string) {
	for _, to := range o {
		to.CommandRefused(by, kind, reason)
	}
}

func (o observers) EventReceived(kind telephony.EventType) {
	o.Metrics.EventReceived(kind)
	o.stats.EventReceived(kind)
}

func (o observers) AttemptEnded(endpoint, outcome string, took, age time.Duration) {
	o.Metrics.AttemptEnded(endpoint, outcome, took, age)
	o.stats.AttemptEnded(endpoint, outcome, took, age)
}
