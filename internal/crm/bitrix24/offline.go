package bitrix24

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"pzbridge/internal/sleep"
	"pzbridge/outbox/store"
)

const (
	// pollEvery is how often a portal is asked for clicks that cannot send them: a quarter of the
	// requests that it takes.
	pollEvery = 2 * time.Second
	// pollRetry is the wait after an error, and pollBlocked after one that a person has to mend.
	pollRetry, pollBlocked = 10 * time.Second, time.Minute
	// lookEvery is how often it is looked whether an application was installed.
	lookEvery = 10 * time.Second
	// bindEvery is how often it is looked whether the portal still has the handler of clicks: one
	// that is updated loses it.
	bindEvery = time.Hour
	// maxPolled bounds the events of one answer.
	maxPolled = 50
)

// Run has the portals of applications tell of clicks, until ctx ends: they send them to HookURL,
// or, where they reach the bridge nowhere, are asked for them.
func (h *Hook) Run(ctx context.Context) error {
	var each sync.WaitGroup
	for _, s := range h.Senders {
		if s.app != nil {
			each.Go(func() { (&listener{Sender: s, hook: h}).run(ctx) })
		}
	}
	<-ctx.Done() // also where no portal has an application
	each.Wait()
	return nil
}

// listener has one portal tell of clicks.
type listener struct {
	*Sender
	hook *Hook
	// bound is the installation whose handler was looked after, at boundAt.
	bound   string
	boundAt time.Time
	said    store.Verdict // what the log has last; the zero value is nothing
}

func (l *listener) run(ctx context.Context) {
	logger := l.hook.Logger.With("endpoint", l.endpoint.Name)
	for wait := time.Duration(0); sleep.For(ctx, wait); {
		var o store.Outcome
		wait, o = l.turn(ctx)
		if ctx.Err() != nil || o.Verdict == l.said || errors.Is(o.Err, errNotInstalled) { // deliveries say that
			continue
		}
		switch {
		case o.Verdict == store.Done:
			logger.Info("the portal tells of clicks")
		case l.said == store.Done || l.said == store.CutOff:
			logger.Warn("the portal tells of no clicks", "err", o.Failure())
		}
		l.said = o.Verdict
	}
}

// isAsked reports whether the portal is asked for clicks, since it cannot send them with a proof.
func (l *listener) isAsked(t tokens) bool {
	return l.hookURL == "" || t.Event == "" && len(l.endpoint.Tokens) == 0
}

// turn looks after the handler and asks for clicks, and returns how long to wait for the next turn.
func (l *listener) turn(ctx context.Context) (wait time.Duration, o store.Outcome) {
	t, _, o := l.app.read(ctx)
	if o.Verdict != store.Done {
		l.bound = ""
		return lookEvery, o
	}
	isAsked := l.isAsked(t)
	if l.bound != t.Installed || time.Since(l.boundAt) > bindEvery {
		if o := l.bind(ctx, isAsked); o.Verdict != store.Done {
			return waitAfter(o), o
		}
		l.bound, l.boundAt = t.Installed, time.Now()
	}
	switch {
	case !isAsked:
		return lookEvery, o
	case !l.hook.Connected(): // the clicks would come to nothing
		return pollEvery, o
	}
	return l.poll(ctx)
}

func waitAfter(o store.Outcome) time.Duration {
	if o.Verdict == store.Misconfigured {
		return pollBlocked
	}
	return max(pollRetry, o.RetryAfter)
}

// bind makes the handler of clicks known to the portal, unless it knows it.
func (l *listener) bind(ctx context.Context, isAsked bool) store.Outcome {
	a := l.do(ctx, "event.get", map[string]any{}, false, nil)
	if a.Verdict != store.Done {
		return a.Outcome
	}
	for _, handler := range elements[struct {
		Event   text `json:"event"`
		Handler text `json:"handler"`
		Offline text `json:"offline"`
	}](a.result) {
		isOffline := handler.Offline != "" && handler.Offline != "0"
		if strings.EqualFold(string(handler.Event), clickEvent) && isOffline == isAsked &&
			(isAsked || string(handler.Handler) == l.hookURL) {
			return a.Outcome
		}
	}
	params := map[string]any{"event": clickEvent}
	if isAsked {
		params["event_type"] = "offline"
	} else {
		params["handler"] = l.hookURL
	}
	a = l.do(ctx, "event.bind", params, false, nil)
	if a.Verdict == store.Refused && strings.Contains(a.text, "already") { // as it says if it knows the handler
		a.Verdict, a.Err = store.Done, nil
	}
	return a.Outcome
}

// poll asks for the clicks since the last time. The portal forgets those that it answers with.
func (l *listener) poll(ctx context.Context) (wait time.Duration, o store.Outcome) {
	a := l.do(ctx, "event.offline.get", map[string]any{"limit": maxPolled}, false, func() bool { return false })
	if a.Verdict != store.Done {
		return waitAfter(a.Outcome), a.Outcome
	}
	var queue struct {
		Events json.RawMessage `json:"events"`
	}
	_ = json.Unmarshal(a.result, &queue) // what cannot be read has none
	list := elements[struct {
		Name text            `json:"EVENT_NAME"`
		At   text            `json:"TIMESTAMP_X"`
		Data json.RawMessage `json:"EVENT_DATA"`
	}](queue.Events)
	for _, e := range list {
		var data map[string]text
		_ = json.Unmarshal(e.Data, &data)
		at, err := time.Parse(time.RFC3339, string(e.At))
		if err != nil { // without a zone it is of the portal's own
			at, err = time.ParseInLocation(time.DateTime, string(e.At), a.at.Location())
		}
		isOld := err != nil || a.at.Sub(at) > clickTimeout // both by the portal's clock
		l.hook.take(context.WithoutCancel(ctx), l.Sender, string(e.Name), isOld, func(name string) string {
			return string(data[name])
		})
	}
	if len(list) >= maxPolled {
		return 0, a.Outcome
	}
	return pollEvery, a.Outcome
}
