package webhook

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// The headers of Standard Webhooks, as net/http writes them.
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

// signer signs with each active secret of an endpoint, so that a receiver that has either the old
// or the new secret accepts the signature while they are being changed.
type signer []*standardwebhooks.Webhook

func newSigner(secrets [][]byte) signer {
	s := make(signer, len(secrets))
	for i, secret := range secrets {
		s[i], _ = standardwebhooks.NewWebhookRaw(secret) // it cannot fail
	}
	return s
}

// sign sets the three headers of Standard Webhooks v1. The signature covers the ID, the time of
// this attempt in Unix seconds and exactly the bytes that are sent. Source:
// github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
func (s signer) sign(h http.Header, id string, at time.Time, body []byte) {
	signatures := make([]string, len(s))
	for i, webhook := range s {
		signatures[i], _ = webhook.Sign(id, at, body) // it cannot fail either
	}
	h[headerID] = []string{id}
	h[headerTimestamp] = []string{strconv.FormatInt(at.Unix(), 10)}
	h[headerSignature] = []string{strings.Join(signatures, " ")}
}
