// Package callpolicy limits the commands that the bearer of a token may give to the exchange: which
// numbers, and how many a minute. Without limits, a stolen token could make the PBX dial expensive
// numbers all night (toll fraud).
//
// It is a package of its own because commands arrive by two independent ways, the API and the
// replies to webhooks, and the same limits apply to both.
package callpolicy

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pzbridge/internal/ratelimit"
	"pzbridge/internal/telephony"
)

const (
	// maxRefusals within refusalWindow block all commands of a bearer for closedFor, so that a
	// client cannot try one number after the other until it finds an allowed one.
	maxRefusals   = 10
	refusalWindow = time.Minute
	closedFor     = 10 * time.Minute
)

// The reasons to refuse a command. They are label values of a metric.
const (
	ReasonFrom   = "from"   // the command starts at a number that is not allowed
	ReasonTo     = "to"     // the command goes to a number that is not allowed
	ReasonRate   = "rate"   // the bearer's rate is exceeded
	ReasonClosed = "closed" // the bearer is blocked after too many refusals
)

// Reasons lists every reason to refuse a command.
var Reasons = []string{ReasonFrom, ReasonTo, ReasonRate, ReasonClosed}

// Observer counts refusals. Policy calls it from several goroutines at once.
type Observer interface {
	CommandRefused(by string, kind telephony.CommandKind, reason string)
}

// Options are the limits of a Policy. All fields are required.
type Options struct {
	Rate float64 // calls a minute for each bearer, and as many SMS; above 0
	// From lists the numbers at which calls and SMS may start. To lists the numbers to which calls,
	// SMS and transfers may go.
	From, To Numbers
	Logger   *slog.Logger
	Observer Observer
}

// Policy allows or refuses commands. It is safe for concurrent use.
type Policy struct {
	opts Options

	mu      sync.Mutex
	bearers map[string]*bearer
}

// bearer is the state of one bearer. It is kept in memory only, so a restart ends a block.
type bearer struct {
	calls, sms   *rate.Limiter
	refusals     []time.Time // times of the latest refusals, at most maxRefusals
	closedUntil  time.Time   // end of the block; zero if there was none
	rateLoggedAt time.Time   // time of the last log line about ReasonRate
}

// New makes a Policy. It fails if a field of the options is not set.
func New(opts Options) (*Policy, error) {
	if opts.Rate <= 0 || len(opts.From.list) == 0 || len(opts.To.list) == 0 ||
		opts.Logger == nil || opts.Observer == nil {
		return nil, errors.New("callpolicy: Options.Rate, From, To, Logger and Observer must be set")
	}
	return &Policy{opts: opts, bearers: map[string]*bearer{}}, nil
}

// Allow returns nil if the bearer may give the command now, and then counts it against the bearer's
// rate; otherwise it returns a *telephony.NotAllowedError. Declining a call (a transfer without a
// number) is always allowed, since no telephone rings. Transfers have no rate: there is at most one
// for each incoming call.
func (p *Policy) Allow(by string, cmd telephony.Command) error {
	if cmd.Kind == telephony.CommandTransfer && cmd.To == "" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	b := p.bearers[by]
	if b == nil {
		newLimiter := func() *rate.Limiter {
			return rate.NewLimiter(rate.Limit(p.opts.Rate/60), max(1, int(p.opts.Rate)))
		}
		b = &bearer{calls: newLimiter(), sms: newLimiter()}
		p.bearers[by] = b
	}
	refusal := p.check(b, cmd, now)
	if refusal == nil {
		return nil
	}
	p.opts.Observer.CommandRefused(by, cmd.Kind, refusal.Reason)
	closes := refusal.RetryAfter == 0 && b.addRefusal(now)
	p.logRefusal(b, by, cmd, refusal, now)
	if closes {
		p.opts.Logger.Error("the commands of a token are closed, since too many were refused", "by", by,
			"refusals", maxRefusals, "within", refusalWindow.String(), "until", b.closedUntil.Format(time.RFC3339))
	}
	return refusal
}

// check applies the limits to a command, and returns nil if they allow it.
func (p *Policy) check(b *bearer, cmd telephony.Command, now time.Time) *telephony.NotAllowedError {
	if wait := b.closedUntil.Sub(now); wait > 0 {
		return &telephony.NotAllowedError{
			Reason:     ReasonClosed,
			Code:       telephony.CodeCommandsClosed,
			Text:       "too many commands with this token were refused, so it can give none for ten minutes",
			RetryAfter: wait,
		}
	}
	if cmd.Kind != telephony.CommandTransfer && !p.opts.From.match(cmd.From) {
		return &telephony.NotAllowedError{
			Reason: ReasonFrom,
			Code:   telephony.CodeFromNotAllowed,
			Text:   "the operator has not allowed commands to begin at this number",
			Field:  "from",
			Number: cmd.From,
		}
	}
	if !p.opts.To.match(cmd.To) {
		return &telephony.NotAllowedError{
			Reason: ReasonTo,
			Code:   telephony.CodeToNotAllowed,
			Text:   "the operator has not allowed commands to go to this number",
			Field:  "to",
			Number: cmd.To,
		}
	}
	if wait := b.wait(cmd.Kind, now); wait > 0 {
		return &telephony.NotAllowedError{
			Reason:     ReasonRate,
			Code:       telephony.CodeCommandRate,
			Text:       "too many commands with this token",
			RetryAfter: wait,
		}
	}
	return nil
}

// wait takes one command out of the bearer's rate and returns 0, or returns the time until one is
// available.
func (b *bearer) wait(kind telephony.CommandKind, now time.Time) time.Duration {
	limiter := b.calls
	switch kind {
	case telephony.CommandTransfer:
		return 0
	case telephony.CommandSMS:
		limiter = b.sms
	}
	return ratelimit.Take(limiter, now)
}

// addRefusal counts a refusal, and reports whether it blocks the bearer.
func (b *bearer) addRefusal(now time.Time) (closes bool) {
	b.refusals = append(b.refusals, now)
	if len(b.refusals) < maxRefusals {
		return false
	}
	if closes = now.Sub(b.refusals[0]) < refusalWindow; closes {
		b.closedUntil, b.refusals = now.Add(closedFor), nil
		return true
	}
	b.refusals = b.refusals[1:]
	return false
}

// logRefusal writes one line for each refused number. Refusals for the rate are logged once a
// minute and those of a blocked bearer never, since there may be many a second.
func (p *Policy) logRefusal(
	b *bearer, by string, cmd telephony.Command, refusal *telephony.NotAllowedError, now time.Time,
) {
	switch {
	case refusal.Reason == ReasonClosed, refusal.Reason == ReasonRate && now.Sub(b.rateLoggedAt) < time.Minute:
		return
	case refusal.Reason == ReasonRate:
		b.rateLoggedAt = now
	}
	args := []any{"by", by, "kind", string(cmd.Kind), "err", refusal}
	if refusal.Number != "" {
		args = append(args, "number", refusal.Number)
	}
	if cmd.CallID != "" {
		args = append(args, "call_id", cmd.CallID)
	}
	p.opts.Logger.Warn("command refused", args...)
}
