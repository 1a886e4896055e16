package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
)

// ErrNoURL means that an endpoint has no address to which anything could be sent.
var ErrNoURL = errors.New("the endpoint has no URL: it reads its events")

// SendTest sends an endpoint a signed event of the type pzbridge.test, past everything that waits for it, and tells how that attempt ended. The event
// is not kept and not tried again. It fails with ErrNoEndpoint, ErrNoURL or ctx's error.
func (o *Outbox) SendTest(ctx context.Context, endpoint string) (eventID string, made Attempt, err error) {
	if err := o.store.takesWebhooks(endpoint); err != nil {
		return "", Attempt{}, err
	}
	l := o.lanes[slices.IndexFunc(o.lanes, func(l *lane) bool { return l.endpoint.Name == endpoint })]
	eventID, made, err = sendTest(ctx, l.questions)
	if err == nil {
		how := slog.Int("status", made.Status)
		if made.Error != "" {
			how = slog.String("err", made.Error)
		}
		l.logger.LogAttrs(ctx, slog.LevelInfo, "test sent", slog.String("event_id", eventID), how, slog.String("took", made.Took.Round(time.Microsecond).String()))
	}
	return eventID, made, err
}

// TestEndpoint does the same for an endpoint without an outbox. It fails with ErrNoURL or ctx's error.
func TestEndpoint(ctx context.Context, e Endpoint, userAgent string) (made Attempt, err error) {
	if e.URL == "" {
		return Attempt{}, fmt.Errorf("%w: %q", ErrNoURL, e.Name)
	}
	s := newSender(e, 1, Options{UserAgent: userAgent})
	defer s.client.HTTPClient.CloseIdleConnections()
	_, made, err = sendTest(ctx, s)
	return made, err
}

func sendTest(ctx context.Context, s *sender) (eventID string, made Attempt, err error) {
	began := time.Now()
	eventID = uuid.Must(uuid.NewV7()).String()
	b := body{}
	b.open()
	b.text("id", eventID)
	b.text("type", "pzbridge.test")
	b.timestamp("timestamp", began)
	b.name("data")
	b.open()
	b.text("text", "A test of the webhook. No call has happened.")
	b.name("pz")
	b.open()
	b.text("type", "test")
	b.buf = append(b.buf, "}}}"...)
	o, err := s.attempt(ctx, job{eventID: eventID, stored: stored{body: b.buf}})
	if err != nil {
		return "", Attempt{}, err
	}
	return eventID, Attempt{At: began, Took: time.Since(began), Status: o.status, Response: o.response, Error: o.errText()}, nil
}
