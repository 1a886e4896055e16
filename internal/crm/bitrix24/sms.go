package bitrix24

import (
	"context"
	"encoding/json"
	"strings"

	"pzbridge/internal/crm"
	"pzbridge/outbox/store"
)

// comment enters an SMS as a comment at the client whom the portal finds by number. The portal has
// no means to tell a comment that comes twice: if the answer is lost, it stands there twice.
func (s *Sender) comment(ctx context.Context, j store.Job, e *crm.Event) store.Outcome {
	if e.Client == "" {
		return crm.Nothing("no client takes part in the SMS")
	}
	list, a := s.search(ctx, e.Client, false, nil)
	if a.Verdict != store.Done {
		return a.Outcome
	}
	if len(list) == 0 {
		return crm.Nothing("nobody in the CRM has the number")
	}
	author, users := s.userOf(ctx, e.Extension)
	if users.Verdict != store.Done {
		return users.Outcome
	}
	fields := map[string]any{
		"ENTITY_TYPE": strings.ToLower(string(list[0].Kind)),
		"ENTITY_ID":   json.Number(list[0].ID),
		"COMMENT":     "SMS → " + e.Client + ": " + e.Text,
	}
	if author > 0 {
		fields["AUTHOR_ID"] = author
	}
	return s.do(ctx, "crm.timeline.comment.add", map[string]any{"fields": fields}, false, j.MayRedial).Outcome
}
