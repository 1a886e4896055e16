package bitrix24

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Finding is the result of one check of a portal.
type Finding struct {
	Text      string // what is well, or what is a risk
	IsWarning bool
	Err       error // what is wrong; nil if nothing is
}

// Diagnose checks what a bridge needs of the portal, and changes nothing there. It ends with the
// first thing without which the rest cannot be checked.
func (s *Sender) Diagnose(ctx context.Context) (list []Finding) {
	_, a := s.search(ctx, testClient, true, nil)
	if a.Verdict != store.Done {
		return []Finding{{Err: failure(ctx, a)}}
	}
	list = append(list, Finding{Text: "the portal knows the webhook, and answers whom a number belongs to"})
	list = append(list, s.checkScopes(ctx)...)
	list = append(list, s.checkRegister(ctx))
	list = append(list, s.checkUsers(ctx)...)
	return append(list, s.checkStatistics(ctx))
}

func failure(ctx context.Context, a answer) error {
	if a.Verdict == store.CutOff {
		return ctx.Err()
	}
	return a.Failure()
}

// checkScopes compares the rights of the webhook with those that are needed.
func (s *Sender) checkScopes(ctx context.Context) []Finding {
	a := s.do(ctx, "scope", map[string]any{}, true, nil)
	var scopes []string
	if a.Verdict != store.Done || json.Unmarshal(a.result, &scopes) != nil {
		return nil // the methods tell what is missing
	}
	var missing []string
	for _, scope := range []string{"telephony", "crm"} {
		if !slices.Contains(scopes, scope) {
			missing = append(missing, scope)
		}
	}
	if !slices.Contains(scopes, "user") {
		missing = append(missing, "user")
	}
	if len(missing) > 0 {
		return []Finding{{Err: fault(telephony.CodePortalScope, "the webhook lacks the rights "+
			strings.Join(missing, ", "), "")}}
	}
	return []Finding{{Text: "the webhook has all rights that are needed"}}
}

// checkRegister finds out whether webhooks may register calls: without any field the portal says
// which is missing, but only after it has looked at who asks.
func (s *Sender) checkRegister(ctx context.Context) Finding {
	a := s.do(ctx, "telephony.externalCall.register", map[string]any{}, true, nil)
	if a.Verdict == store.Refused {
		return Finding{Text: "calls may be registered"}
	}
	return Finding{Err: failure(ctx, a)}
}

// checkUsers tells whose extension is not known, and whose is not clear.
func (s *Sender) checkUsers(ctx context.Context) (list []Finding) {
	users, a := s.readUsers(ctx)
	if a.Verdict != store.Done {
		return []Finding{{Err: failure(ctx, a)}}
	}
	byExtension := map[string][]string{}
	known := 0
	for _, u := range users {
		if u.Extension != "" {
			known++
			byExtension[u.Extension] = append(byExtension[u.Extension], u.Name)
		}
	}
	f := Finding{Text: fmt.Sprintf("%d of %d employees have an extension in the portal", known, len(users))}
	if known == 0 && len(s.settings.People.Users) == 0 {
		f.IsWarning = true
		f.Text += ": fill it in for each, or set USERS, or all calls belong to the default user"
	}
	list = append(list, f)
	for extension, names := range byExtension {
		if len(names) > 1 {
			list = append(list, Finding{IsWarning: true, Text: fmt.Sprintf("extension %s belongs to several: %s; "+
				"its calls go to the first", extension, strings.Join(names, ", "))})
		}
	}
	return list
}

// checkStatistics tells whether calls are found that are over.
func (s *Sender) checkStatistics(ctx context.Context) Finding {
	a := s.do(ctx, "voximplant.statistic.get",
		map[string]any{"FILTER": map[string]any{"EXTERNAL_CALL_ID": "0"}}, true, nil)
	if a.Verdict == store.Done {
		return Finding{Text: "the statistics of calls can be read"}
	}
	return Finding{IsWarning: true, Text: "the statistics of calls cannot be read: a call that is told late may be " +
		"there twice; give the webhook's user the right to view them"}
}

// Try enters a missed call of a number, and returns its ID at the portal. It fails with what the
// portal says, or the error of ctx.
func (s *Sender) Try(ctx context.Context, number string) (callID string, err error) {
	t := &telling{Sender: s, ctx: ctx, job: store.Job{Event: store.Event{At: time.Now()}}, isDry: true}
	t.event = &crm.Event{
		Type:      telephony.EventCompleted,
		CallID:    "try-" + uuid.NewString(),
		Client:    s.settings.People.Plan.Client(number),
		Direction: telephony.Incoming,
	}
	t.call.Owner = new(int)
	var a answer
	if t.user, a = s.defaultUser(ctx, ""); a.Verdict != store.Done {
		return "", failure(ctx, a)
	}
	for _, step := range []func() store.Outcome{func() store.Outcome { return t.register(false) }, t.finish} {
		if o := step(); o.Verdict != store.Done && o.Verdict != store.More {
			return "", failure(ctx, answer{Outcome: o})
		}
	}
	return t.call.ID, nil
}
