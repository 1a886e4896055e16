// Package demo holds the two parts of `pzbridge demo` beside the bridge: a small CRM that verifies
// and prints its webhooks, and a script of calls and commands (Stage.Play).
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

// manager is the extension to which the demo CRM routes every call.
const manager = "101"

// CRM receives webhooks as a real CRM should: it verifies the signature with the public Standard
// Webhooks library, prints a line, and replies to a routing question at once. It is an
// http.Handler.
type CRM struct {
	verifiers []*standardwebhooks.Webhook // one per active secret
	printLine func(string)

	mu       sync.Mutex
	verified []Webhook
	arrived  chan struct{} // closed and replaced when a webhook arrives
}

// Webhook holds the fields of a webhook that the CRM prints.
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

// NewCRM makes a CRM that accepts webhooks signed with any of the secrets (decoded, at least one)
// and passes its output to printLine, which may be called by several goroutines at once. The lines
// contain text from callers unescaped.
func NewCRM(secrets [][]byte, printLine func(string)) (*CRM, error) {
	if len(secrets) == 0 {
		return nil, errors.New("the demo CRM needs a secret with which its webhooks are signed: set ENDPOINT_0_SECRET")
	}
	c := &CRM{printLine: printLine, arrived: make(chan struct{})}
	for _, secret := range secrets {
		verifier, err := standardwebhooks.NewWebhookRaw(secret)
		if err != nil {
			return nil, fmt.Errorf("the demo CRM cannot use its secret: %w", err)
		}
		c.verifiers = append(c.verifiers, verifier)
	}
	return c, nil
}

// verify returns nil if a webhook is signed with one of the secrets.
func (c *CRM) verify(body []byte, header http.Header) (err error) {
	for _, verifier := range c.verifiers {
		if err = verifier.Verify(body, header); err == nil {
			return nil
		}
	}
	return err
}

// ServeHTTP receives one webhook.
func (c *CRM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2<<20))
	if err != nil {
		http.Error(w, "the body could not be read", http.StatusBadRequest)
		return
	}
	if err := c.verify(body, r.Header); err != nil {
		c.printLine("CRM      ✗ a webhook whose signature is wrong: " + err.Error())
		http.Error(w, "the signature is wrong", http.StatusUnauthorized)
		return
	}
	var hook Webhook
	if err := json.Unmarshal(body, &hook); err != nil {
		http.Error(w, "the body is no JSON", http.StatusBadRequest)
		return
	}
	c.printLine("CRM      ✓ " + hook.line())
	c.mu.Lock()
	c.verified = append(c.verified, hook)
	close(c.arrived)
	c.arrived = make(chan struct{})
	c.mu.Unlock()
	if hook.Type != "call.transfer_requested" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	c.printLine("CRM      → answers: the call goes to " + manager)
	_, _ = io.WriteString(w, `{"transfer_to":"`+manager+`"}`)
}

// Verified returns the webhooks with a valid signature, in order of arrival, and a channel that
// closes when the next one arrives.
func (c *CRM) Verified() ([]Webhook, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.verified[:len(c.verified):len(c.verified)], c.arrived
}

// line describes a webhook in one line of output.
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
