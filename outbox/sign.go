package outbox

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// sign sets the three headers of Standard Webhooks v1 (github.com/standard-webhooks/standard-webhooks/blob/main/spec): the signature covers
// the ID, the time of this attempt in unix seconds and exactly the bytes sent. Each active secret signs, so that a receiver may know
// the old or the new one while they are being changed.
func sign(h http.Header, id string, at time.Time, body []byte, secrets [][]byte) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + timestamp + "."))
		mac.Write(body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", timestamp)
	h.Set("webhook-signature", strings.Join(signatures, " "))
}
