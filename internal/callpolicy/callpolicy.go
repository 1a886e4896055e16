// Package callpolicy bounds what the bearer of a token may have the exchange do. Whoever gets hold
// of a token could have a PBX ring expensive numbers all night, which is the classic loss of
// telephony: toll fraud.
//
// It is a room of its own since commands come by two ways that do not know each other, the API and
// the answers to webhooks, and one rule holds for both.
package callpolicy

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pzbridge/internal/telephony"
)

const (
	// maxRefusals in refusalWindow close a bearer's commands for closedFor: what tries numbers one
	// after the other is not let go on until it finds one.
	maxRefusals   = 10
	refusalWindow = time.Minute
	closedFor     = 10 * time.Minute
)

// Why a command is refused, as metrics name it.
const (
	ReasonFrom   = "from"   // it begins at a number that is not allowed
	ReasonTo     = "to"     // it goes to one
	ReasonRate   = "rate"   // too many
	ReasonClosed = "closed" // too many were refused before
)

// Reasons lists them.
var Reasons = []string{ReasonFrom, ReasonTo, ReasonRate, ReasonClosed}

// Observer is told of refusals.
type Observer interface {
	CommandRefused(by string, kind telephony.CommandKind, reason string)
}

// Options says what is allowed.
type Options struct {
	Rate float64 // calls a minute of each bearer, and as many SMS
	// From holds the numbers at which calls and SMS may begin, To those to which they and transfers
	// may go.
	From, To Numbers
	Logger   *slog.Logger
	Observer Observer
}

// Policy judges commands. Its methods may be called at once.
type Policy struct {
	opts Options

	mu      sync.Mutex
	bearers map[string]*bearer
}

// bearer is what is known of one, in memory alone: a restart opens what was closed.
type bearer struct {
	calls, sms  *rate.Limiter
	refused     []time.Time // the latest, at most maxRefusals
	closedUntil time.Time
	slowed      time.Time // when it was last logged that its rate is too high
}

// New checks the options.
func New(opts Options) (*Policy, error) {
	if opts.Rate <= 0 || len(opts.From.list) == 0 || len(opts.To.list) == 0 ||
		opts.Logger == nil || opts.Observer == nil {
		return nil, errors.New("callpolicy: Options.Rate, From, To, Logger and Observer must be set")
	}
	return &Policy{opts: opts, bearers: map[string]*bearer{}}, nil
}

// Allow is nil if a bearer may have a command carried out now, and counts it; else it is a
// *telephony.NotAllowedError. Whoever declines a call always may: that rings no telephone.
// Transfers have no rate, since there is at most one for each call that comes in.
func (p *Policy) Allow(by string, cmd telephony.Command) error {
	if cmd.Kind == telephony.CommandTransfer && cmd.To == "" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	b := p.bearers[by]
	if b == nil {
		limiter := func() *rate.Limiter { return rate.NewLimiter(rate.Limit(p.opts.Rate/60), max(1, int(p.opts.Rate))) }
		b = &bearer{calls: limiter(), sms: limiter()}
		p.bearers[by] = b
	}
	refusal := p.judge(b, cmd, now)
	if refusal == nil {
		return nil
	}
	p.opts.Observer.CommandRefused(by, cmd.Kind, refusal.Reason)
	closes := refusal.RetryAfter == 0 && b.refuse(now)
	p.log(b, by, cmd, refusal, now)
	if closes {
		p.opts.Logger.Error("the commands of a token are closed, since too many were refused", "by", by,
			"refusals", maxRefusals, "within", refusalWindow.String(), "until", b.closedUntil.Format(time.RFC3339))
	}
	return refusal
}

func (p *Policy) judge(b *bearer, cmd telephony.Command, now time.Time) *telephony.NotAllowedError {
	if wait := b.closedUntil.Sub(now); wait > 0 {
		return &telephony.NotAllowedError{
			Reason:     ReasonClosed,
			Text:       "too many commands with this token were refused, so it can give none for ten minutes",
			RetryAfter: wait,
		}
	}
	if cmd.Kind != telephony.CommandTransfer && !p.opts.From.match(cmd.From) {
		return &telephony.NotAllowedError{
			Reason: ReasonFrom,
			Text:   "the operator has not allowed commands to begin at this number (CALL_FROM)",
			Field:  "from",
			Number: cmd.From,
		}
	}
	if !p.opts.To.match(cmd.To) {
		return &telephony.NotAllowedError{
			Reason: ReasonTo,
			Text:   "the operator has not allowed commands to go to this number (CALL_TO)",
			Field:  "to",
			Number: cmd.To,
		}
	}
	if wait := b.wait(cmd.Kind, now); wait > 0 {
		return &telephony.NotAllowedError{
			Reason: ReasonRate,
			Text: "too many commands with this token: " +
				"CALL_RATE is how many calls a minute it may start, and how many SMS it may send",
			RetryAfter: wait,
		}
	}
	return nil
}

// wait takes the right to one command, or says how long it takes to get it.
func (b *bearer) wait(kind telephony.CommandKind, now time.Time) time.Duration {
	limiter := b.calls
	switch kind {
	case telephony.CommandTransfer:
		return 0
	case telephony.CommandSMS:
		limiter = b.sms
	}
	r := limiter.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// refuse counts a refusal, and says whether it closes the bearer's commands.
func (b *bearer) refuse(now time.Time) (closes bool) {
	b.refused = append(b.refused, now)
	if len(b.refused) < maxRefusals {
		return false
	}
	if closes = now.Sub(b.refused[0]) < refusalWindow; closes {
		b.closedUntil, b.refused = now.Add(closedFor), nil
		return true
	}
	b.refused = b.refused[1:]
	return false
}

// log writes one line for each number that is refused. Of what comes too fast, or while the
// commands are closed, there may be many a second: of the first kind one a minute is logged, of the
// second none.
func (p *Policy) log(b *bearer, by string, cmd telephony.Command, refusal *telephony.NotAllowedError, now time.Time) {
	switch {
	case refusal.Reason == ReasonClosed, refusal.Reason == ReasonRate && now.Sub(b.slowed) < time.Minute:
		return
	case refusal.Reason == ReasonRate:
		b.slowed = now
	}
	args := []any{"by", by, "kind", string(cmd.Kind), "err", refusal.Error()}
	if refusal.Number != "" {
		args = append(args, "number", refusal.Number)
	}
	if cmd.CallID != "" {
		args = append(args, "call_id", cmd.CallID)
	}
	p.opts.Logger.Warn("command refused", args...)
}
