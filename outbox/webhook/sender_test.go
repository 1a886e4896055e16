package webhook

import (
	"context"
	"net"
	"net/http"
	"testing"

	"pzbridge/outbox/store"
	"pzbridge/outbox/store/sendertest"
)

func TestWebhooksAreASender(t *testing.T) {
	sendertest.Run(t, sendertest.Sender{
		New: func(e store.Endpoint, dial func(context.Context, string, string) (net.Conn, error)) store.Sender {
			return New(e, Options{UserAgent: "pzbridge/test", Questions: 4, DialContext: dial})
		},
		Job: store.Job{EventID: "01a22e15-c33e-7845-bf34-74493ad93b91", Event: store.Event{Body: []byte(`{"id":"1"}`)}},
		Verdict: func(status int) store.Verdict {
			switch {
			case status < 300:
				return store.Done
			case status == http.StatusGone:
				return store.Gone
			}
			return store.Again
		},
	})
}
