package bitrix24

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// HookPath is where a portal sends the clicks of its users: behind it stands the endpoint's name.
const HookPath = "/hooks/bitrix24/{name}"

// Hook takes the outgoing webhooks of portals: a user has clicked on a number. It is the
// http.Handler of HookPath.
type Hook struct {
	gate    crm.Gate
	senders map[string]*Sender
	logger  *slog.Logger
}

// NewHook returns the handler for some endpoints, by name.
func NewHook(gate crm.Gate, senders map[string]*Sender, logger *slog.Logger) *Hook {
	return &Hook{gate, senders, logger}
}

const (
	maxRequest = 64 << 10 // bytes
	// clickTimeout bounds a click: later nobody waits for the call.
	clickTimeout = 30 * time.Second
)

// ServeHTTP takes a click and answers at once: the portal does not wait for the call.
func (h *Hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the request cannot be read", http.StatusBadRequest)
		return
	}
	s := h.senders[r.PathValue("name")]
	name, wait, known := h.gate.Bearer(r, r.PostForm.Get("auth[application_token]"))
	switch {
	case known && s != nil && name == s.endpoint.Name && !s.isPortal(r.PostForm.Get("auth[domain]")):
		h.logger.Warn("a click in the CRM made no call: it comes from another portal", "endpoint", name)
		http.Error(w, "the portal is another", http.StatusForbidden)
		return
	case !known || s == nil || name != s.endpoint.Name:
		http.Error(w, "the token is another", http.StatusForbidden)
		return
	case wait > 0:
		http.Error(w, "too many requests: see API_RATE", http.StatusTooManyRequests)
		return
	}
	w.WriteHeader(http.StatusOK)
	if !strings.EqualFold(r.PostForm.Get("event"), "ONEXTERNALCALLSTART") {
		return
	}
	user, _ := strconv.Atoi(r.PostForm.Get("data[USER_ID]"))
	c := clicked{
		Sender: s,
		hook:   h,
		callID: r.PostForm.Get("data[CALL_ID]"),
		user:   user,
		number: r.PostForm.Get("data[PHONE_NUMBER]"),
	}
	go c.call(context.WithoutCancel(r.Context()))
}

// isPortal reports whether a domain is that of the endpoint's portal.
func (s *Sender) isPortal(domain string) bool {
	host, _ := parseWebhook(s.endpoint.URL)
	return domain != "" && strings.EqualFold(host, domain)
}

// clicked is a click.
type clicked struct {
	*Sender
	hook   *Hook
	callID string
	user   int
	number string
}

// call makes the call. Where that is not possible, the call is finished at the portal, so that its
// card goes. A click that comes twice makes one call.
func (c *clicked) call(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clickTimeout)
	defer cancel()
	logger := c.hook.logger.With("endpoint", c.endpoint.Name)
	to, err := telephony.CleanNumber(c.number)
	extension, a := c.extensionOf(ctx, c.user)
	switch {
	case err != nil || to == "" || c.callID == "":
		logger.Warn("a click in the CRM names no number")
		c.giveUp(ctx, logger)
		return
	case a.Verdict != store.Done:
		logger.Warn("a click in the CRM made no call: its users cannot be read", "err", failure(ctx, a))
		c.giveUp(ctx, logger)
		return
	case extension == "":
		logger.Warn("a click in the CRM made no call: its user has no extension", "user", c.user)
		c.giveUp(ctx, logger)
		return
	}
	client := strings.TrimPrefix(c.settings.People.Plan.Client(to), "+")
	counts, isNew, err := c.clicks.Begin(ctx, extension, client, c.callID)
	switch {
	case err != nil:
		logger.Error("a click cannot be kept", "err", err)
		c.giveUp(ctx, logger)
		return
	case !isNew && counts == c.callID:
		return // the portal has sent it twice
	case !isNew:
		c.giveUp(ctx, logger) // the user has clicked twice
		return
	}
	err = c.hook.gate.Command(ctx, c.endpoint.Name, telephony.Command{
		Kind: telephony.CommandCall, From: extension, To: to,
	})
	if err == nil || errors.Is(err, telephony.ErrNoAnswer) { // then it may ring
		return
	}
	if err := c.clicks.Drop(ctx, extension, client, c.callID); err != nil {
		logger.Error("a click cannot be kept", "err", err)
	}
	c.giveUp(ctx, logger)
}

// giveUp finishes the call at the portal, also if the time of the click is over.
func (c *clicked) giveUp(ctx context.Context, logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clickTimeout)
	defer cancel()
	a := c.do(ctx, "telephony.externalCall.finish", map[string]any{
		"CALL_ID": c.callID, "USER_ID": c.user, "DURATION": 0, "STATUS_CODE": "480", "ADD_TO_CHAT": 0,
	}, false, nil)
	if a.Verdict != store.Done {
		logger.Warn("the card of a click could not be closed", "err", failure(ctx, a))
	}
}
