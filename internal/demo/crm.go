// Package demo is what `pzbridge demo` shows: a small CRM that verifies and prints its webhooks, and some calls for it to hear of.
package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// manager is the extension that the demo CRM sends every call to.
const manager = "101"

// CRM takes webhooks as a CRM should: it verifies the signature with the public Standard Webhooks library, prints a line, and answers at once where a
// call should go. It is an http.Handler.
type CRM struct {
	verifiers []*standardwebhooks.Webhook // one per active secret
	print     func(line string)

	mu       sync.Mutex
	verified []Webhook
	arrived  chan struct{} // closed and made anew with each webhook
}

// Webhook is what the CRM reads of one.
type Webhook struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Data struct {
		CallID    string `json:"call_id"`
		Sequence  int    `json:"sequence"`
		From      string `json:"from"`
		To        string `json:"to"`
		Direction string `json:"direction"`
		Duration  *int   `json:"duration_seconds"`
		Text      string `json:"text"`
		Status    string `json:"status"`
	} `json:"data"`
}

// NewCRM gives a CRM that knows the secrets, decoded, and prints its lines with print. What callers send stands in them as it came.
func NewCRM(secrets [][]byte, print func(line string)) (*CRM, error) {
	if len(secrets) == 0 {
		return nil, errors.New("the demo CRM needs a secret with which its webhooks are signed: set ENDPOINT_0_SECRET")
	}
	c := &CRM{print: print, arrived: make(chan struct{})}
	for _, secret := range secrets {
		verifier, err := standardwebhooks.NewWebhookRaw(secret)
		if err != nil {
			return nil, fmt.Errorf("the demo CRM cannot use its secret: %w", err)
		}
		c.verifiers = append(c.verifiers, verifier)
	}
	return c, nil
}

// verify says whether a webhook is signed with one of the secrets.
func (c *CRM) verify(body []byte, header http.Header) (err error) {
	for _, verifier := range c.verifiers {
		if err = verifier.Verify(body, header); err == nil {
			return nil
		}
	}
	return err
}

// ServeHTTP takes one webhook.
func (c *CRM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2<<20))
	if err != nil {
		http.Error(w, "the body could not be read", http.StatusBadRequest)
		return
	}
	if err := c.verify(body, r.Header); err != nil {
		c.print("CRM      ✗ a webhook whose signature is wrong: " + err.Error())
		http.Error(w, "the signature is wrong", http.StatusUnauthorized)
		return
	}
	var hook Webhook
	if err := json.Unmarshal(body, &hook); err != nil {
		http.Error(w, "the body is no JSON", http.StatusBadRequest)
		return
	}
	c.print("CRM      ✓ " + hook.line())
	c.mu.Lock()
	c.verified = append(c.verified, hook)
	close(c.arrived)
	c.arrived = make(chan struct{})
	c.mu.Unlock()
	if hook.Type != "call.transfer_requested" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	c.print("CRM      → answers: the call goes to " + manager)
	_, _ = io.WriteString(w, `{"transfer_to":"`+manager+`"}`)
}

// Verified gives the webhooks that arrived and were verified, and a channel that closes when there is another.
func (c *CRM) Verified() ([]Webhook, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verified[:len(c.verified):len(c.verified)], c.arrived
}

// line is a webhook for a person.
func (h Webhook) line() string {
	line := fmt.Sprintf("%-24s call %s #%d", h.Type, h.Data.CallID, h.Data.Sequence)
	line += "  " + h.Data.From
	if h.Data.To != "" {
		line += " → " + h.Data.To
	}
	if h.Data.Duration != nil {
		line += fmt.Sprintf(", %s of talk", time.Duration(*h.Data.Duration)*time.Second)
	}
	for _, s := range []string{h.Data.Direction, h.Data.Status, h.Data.Text} {
		if s != "" {
			line += ", " + s
		}
	}
	return line
}
