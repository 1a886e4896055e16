package bitrix24

import (
	"context"
	"crypto/subtle"
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

// HookOptions configures a Hook.
type HookOptions struct {
	Senders map[string]*Sender // by the name of the endpoint
	// Connected reports whether calls can be made. While they cannot, no portal is asked for
	// clicks.
	Connected func() bool
	// English and Russian describe an error to the person who installs an application.
	English, Russian func(error) string
	Logger           *slog.Logger
}

// Hook takes the clicks of users on a number: from the outgoing webhooks of portals, and from the
// events of applications, which it also installs. It is the http.Handler of HookPath, and Install
// that of InstallPath.
type Hook struct {
	HookOptions
	// Gate is set before the first request.
	Gate       crm.Gate
	installing installGate
}

// NewHook returns a hook without a gate.
func NewHook(opts HookOptions) *Hook {
	return &Hook{HookOptions: opts, installing: installGate{
		underWay: make(chan struct{}, maxInstalling),
		last:     map[string]time.Time{},
	}}
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
	s := h.Senders[r.PathValue("name")]
	token := r.PostForm.Get("auth[application_token]")
	if !s.sendsEvents(r.Context(), token) {
		name, wait, known := h.Gate.Bearer(r, token)
		switch {
		case !known || s == nil || name != s.endpoint.Name:
			http.Error(w, "the token is another", http.StatusForbidden)
			return
		case wait > 0:
			http.Error(w, "too many requests: see API_RATE", http.StatusTooManyRequests)
			return
		}
	}
	if !s.isPortal(r.PostForm.Get("auth[domain]")) {
		h.Logger.Warn("a click in the CRM made no call: it comes from another portal", "endpoint", s.endpoint.Name)
		http.Error(w, "the portal is another", http.StatusForbidden)
		return
	}
	w.WriteHeader(http.StatusOK)
	h.take(context.WithoutCancel(r.Context()), s, r.PostForm.Get("event"), false, func(name string) string {
		return r.PostForm.Get("data[" + name + "]")
	})
}

// take carries out an event of a portal, which is a click, and returns at once. For one that is old
// nobody waits any more.
func (h *Hook) take(ctx context.Context, s *Sender, event string, isOld bool, data func(name string) string) {
	if !strings.EqualFold(event, clickEvent) {
		return
	}
	user, _ := strconv.Atoi(data("USER_ID"))
	c := clicked{Sender: s, hook: h, callID: data("CALL_ID"), user: user, number: data("PHONE_NUMBER")}
	select {
	case s.clicking <- struct{}{}:
	default: // more than anybody clicks
		h.Logger.Warn("a click in the CRM made no call: too many are under way", "endpoint", s.endpoint.Name)
		return
	}
	if isOld {
		logger := h.Logger.With("endpoint", s.endpoint.Name)
		logger.Warn("a click in the CRM made no call: it was made too long ago", "user", user)
		go func() {
			defer func() { <-s.clicking }()
			c.giveUp(ctx, logger)
		}()
		return
	}
	go func() {
		defer func() { <-s.clicking }()
		c.call(ctx)
	}()
}

// clickEvent is the event of a click.
const clickEvent = "OnExternalCallStart"

// sendsEvents reports whether a token is that with which the portal sends the events of the
// endpoint's application.
func (s *Sender) sendsEvents(ctx context.Context, token string) bool {
	if s == nil || s.app == nil || token == "" {
		return false
	}
	t, _, o := s.app.read(ctx)
	return o.Verdict == store.Done && t.Event != "" && subtle.ConstantTimeCompare([]byte(t.Event), []byte(token)) == 1
}

// isPortal reports whether a domain is that of the endpoint's portal.
func (s *Sender) isPortal(domain string) bool {
	return domain != "" && strings.EqualFold(s.base.Host, domain)
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
// card goes.
func (c *clicked) call(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clickTimeout)
	defer cancel()
	logger := c.hook.Logger.With("endpoint", c.endpoint.Name)
	failure := c.make(ctx, logger)
	if errors.Is(failure, errAgain) {
		failure = nil
	} else if err := c.clicks.Clicked(ctx, failure); err != nil {
		logger.Error("a click cannot be kept", "err", err)
	}
	if failure != nil {
		c.giveUp(ctx, logger)
	}
}

var (
	errNoNumber    = errors.New("the click names no number")
	errNoUsers     = errors.New("the portal's users cannot be read")
	errNoExtension = errors.New("the user has no extension")
	errTwice       = errors.New("the user has clicked twice, and the first click counts")
	// errAgain means that the portal has sent the same click twice.
	errAgain = errors.New("the portal has sent it already")
)

// make makes the call, and fails with why it is not made. A click that comes twice makes one call.
func (c *clicked) make(ctx context.Context, logger *slog.Logger) error {
	to, err := telephony.CleanNumber(c.number)
	extension, a := c.extensionOf(ctx, c.user)
	switch {
	case err != nil || to == "" || c.callID == "":
		logger.Warn("a click in the CRM names no number")
		return errNoNumber
	case a.Verdict != store.Done:
		logger.Warn("a click in the CRM made no call: its users cannot be read", "err", failure(ctx, a))
		return errNoUsers
	case extension == "":
		logger.Warn("a click in the CRM made no call: its user has no extension", "user", c.user)
		return errNoExtension
	}
	client := strings.TrimPrefix(c.settings.People.Plan.Client(to), "+")
	counts, isNew, err := c.clicks.Begin(ctx, extension, client, c.callID)
	switch {
	case err != nil:
		logger.Error("a click cannot be kept", "err", err)
		return err
	case !isNew && counts == c.callID:
		return errAgain
	case !isNew:
		return errTwice
	}
	err = c.hook.Gate.Command(ctx, c.endpoint.Name, telephony.Command{
		Kind: telephony.CommandCall, From: extension, To: to,
	})
	if err == nil || errors.Is(err, telephony.ErrNoAnswer) { // then it may ring
		return nil
	}
	if err := c.clicks.Drop(ctx, client, c.callID); err != nil {
		logger.Error("a click cannot be kept", "err", err)
	}
	return err
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
