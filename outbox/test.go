package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// ErrNoURL means that an endpoint has no address to which anything could be sent.
var ErrNoURL = errors.New("the endpoint has no URL: it reads its events")

// SendTest sends an endpoint a signed event of the type pzbridge.test, past everything that waits for it, and tells how that attempt ended. The event
// is not kept and not tried again. It fails with ErrNoEndpoint, ErrNoURL or ctx's error.
func (o *Outbox) SendTest(ctx context.Context, endpoint string) (eventID string, made Attempt, err error) {
	i := slices.IndexFunc(o.lanes, func(l *lane) bool { return l.endpoint.Name == endpoint })
	switch {
	case i < 0:
		return "", Attempt{}, fmt.Errorf("%w: %q", ErrNoEndpoint, endpoint)
	case o.lanes[i].endpoint.URL == "":
		return "", Attempt{}, fmt.Errorf("%w: %q", ErrNoURL, endpoint)
	}
	l := o.lanes[i]
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
	result, err := l.questions.attempt(ctx, job{eventID: eventID, stored: stored{body: b.buf}})
	if err != nil {
		return "", Attempt{}, err
	}
	made = Attempt{At: began, Took: time.Since(began), Status: result.status, Response: result.response, Error: result.errText()}
	l.logger.Info("test sent", "event_id", eventID, "status", made.Status, "err", made.Error, "took", made.Took.Round(time.Microsecond).String())
	return eventID, made, nil
}
