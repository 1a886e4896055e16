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

// Check is that of a crm.Checker.
func (s *Sender) Check(ctx context.Context) (list []crm.Finding) {
	_, a := s.search(ctx, testClient, true, nil)
	if a.Verdict != store.Done {
		return []crm.Finding{{Err: failure(ctx, a)}}
	}
	list = append(list, crm.Finding{
		Text: "the portal knows the " + s.login() + ", and answers whom a number belongs to",
	})
	list = append(list, s.checkScopes(ctx)...)
	list = append(list, s.checkRegister(ctx))
	list = append(list, s.checkUsers(ctx)...)
	list = append(list, s.checkStatistics(ctx))
	if s.app == nil && len(s.endpoint.Tokens) == 0 {
		list = append(list, crm.Warning("nobody can call from this CRM: make an outgoing webhook for the event "+
			"ONEXTERNALCALLSTART to the address of this bridge's API and /hooks/bitrix24/"+s.endpoint.Name+
			", and set the endpoint's TOKEN to that webhook's"))
	}
	return list
}

// login is what the portal knows the bridge by.
func (s *Sender) login() string {
	if s.app != nil {
		return "application"
	}
	return "webhook"
}

func failure(ctx context.Context, a answer) error {
	if a.Verdict == store.CutOff {
		return ctx.Err()
	}
	return a.Failure()
}

// checkScopes compares the rights of the bridge with those that are needed.
func (s *Sender) checkScopes(ctx context.Context) []crm.Finding {
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
		return []crm.Finding{{Err: fault(telephony.CodePortalScope, "the "+s.login()+" lacks the rights "+
			strings.Join(missing, ", "), "")}}
	}
	return []crm.Finding{{Text: "the " + s.login() + " has all rights that are needed"}}
}

// checkRegister finds out whether webhooks may register calls: without any field the portal says
// which is missing, but only after it has looked at who asks.
func (s *Sender) checkRegister(ctx context.Context) crm.Finding {
	a := s.do(ctx, "telephony.externalCall.register", map[string]any{}, true, nil)
	if a.Verdict == store.Refused {
		return crm.Finding{Text: "calls may be registered"}
	}
	return crm.Finding{Err: failure(ctx, a)}
}

// checkUsers tells whose extension is not known, and whose is not clear.
func (s *Sender) checkUsers(ctx context.Context) (list []crm.Finding) {
	users, a := s.readUsers(ctx)
	if a.Verdict != store.Done {
		return []crm.Finding{{Err: failure(ctx, a)}}
	}
	byExtension := map[string][]string{}
	known := 0
	for _, u := range users {
		if u.Extension != "" {
			known++
			byExtension[u.Extension] = append(byExtension[u.Extension], u.Name)
		}
	}
	f := crm.Finding{Text: fmt.Sprintf("%d of %d employees have an extension in the portal", known, len(users))}
	if known == 0 && len(s.settings.People.Users) == 0 {
		f.IsWarning = true
		f.Text += ": fill it in for each, or set USERS, or all calls belong to the default user"
	}
	list = append(list, f)
	for extension, names := range byExtension {
		if len(names) > 1 {
			list = append(list, crm.Warning(fmt.Sprintf("extension %s belongs to several: %s; "+
				"its calls go to the first", extension, strings.Join(names, ", "))))
		}
	}
	return list
}

// checkStatistics tells whether calls are found that are over.
func (s *Sender) checkStatistics(ctx context.Context) crm.Finding {
	a := s.do(ctx, "voximplant.statistic.get",
		map[string]any{"FILTER": map[string]any{"EXTERNAL_CALL_ID": "0"}}, true, nil)
	if a.Verdict == store.Done {
		return crm.Finding{Text: "the statistics of calls can be read"}
	}
	return crm.Warning("the statistics of calls cannot be read: a call that is told late may be there twice; " +
		"give the user of the " + s.login() + " the right to view them")
}

// Forget makes it a store.Forgetter: it removes the clicks on a number.
func (s *Sender) Forget(ctx context.Context, key string) error { return s.clicks.Forget(ctx, key) }

// LastClick is that of a crm.Checker.
func (s *Sender) LastClick(ctx context.Context) (crm.LastClick, error) { return s.clicks.Last(ctx) }

// Try is that of a crm.Checker.
func (s *Sender) Try(ctx context.Context, number string) (callID string, err error) {
	client, err := s.settings.People.ClientToTry(number)
	if err != nil {
		return "", err
	}
	t := &telling{Sender: s, ctx: ctx, job: store.Job{Event: store.Event{At: time.Now()}}, isDry: true}
	t.event = &crm.Event{
		Type:      telephony.EventCompleted,
		CallID:    "try-" + uuid.NewString(),
		Client:    client,
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
