package outbox

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// The headers of Standard Webhooks, as net/http writes them.
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

// signer signs with the active secrets of an endpoint, one pool of keyed hashes for each: to key one takes as long as to hash a webhook.
type signer []*sync.Pool

func newSigner(secrets [][]byte) signer {
	s := make(signer, len(secrets))
	for i, secret := range secrets {
		s[i] = &sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}
	}
	return s
}

// sign sets the three headers of Standard Webhooks v1 (github.com/standard-webhooks/standard-webhooks/blob/main/spec): the signature covers
// the ID, the time of this attempt in unix seconds and exactly the bytes sent. Each active secret signs, so that a receiver may know
// the old or the new one while they are being changed.
func (s signer) sign(h http.Header, id string, at time.Time, body []byte) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signed := make([]byte, 0, 64)
	signed = append(append(append(append(signed, id...), '.'), timestamp...), '.')
	var signatures []byte
	for i, pool := range s {
		mac := pool.Get().(hash.Hash)
		mac.Reset()
		mac.Write(signed)
		mac.Write(body)
		if i > 0 {
			signatures = append(signatures, ' ')
		}
		var sum [sha256.Size]byte
		signatures = base64.StdEncoding.AppendEncode(append(signatures, "v1,"...), mac.Sum(sum[:0]))
		pool.Put(mac)
	}
	h[headerID], h[headerTimestamp], h[headerSignature] = []string{id}, []string{timestamp}, []string{string(signatures)}
}
