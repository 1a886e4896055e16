package dashboard

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// callRow is a call in a list, and the head of its page.
type callRow struct {
	ID        string
	Kind      string // incoming, outgoing, internal, sms, or call if its direction is not known
	Number    string // the client's, or else what the exchange has sent
	Extension string
	Line      string
	Began     time.Time
	Talk      string // how long people talked, such as 2:05; empty if that is not known
	Outcome   string // answered, missed, no_answer, going_on; empty if it is not known
	Recording string // an address for a link, or empty
	Standing  []standing
	Nowhere   bool // no CRM gets any event of it
}

// standing says how a call stands at a CRM. State is that of a delivery, "unread" for a CRM that
// has not read it, or "none" if the CRM gets none of its events.
type standing struct {
	Endpoint string
	State    string
	Dead     int // deliveries that are dead although State is another
}

func newCallRow(h *store.CallHead, endpoints []outbox.EndpointStatus) callRow {
	row := callRow{
		ID:        h.CallID,
		Kind:      cmp.Or(string(h.Direction), "call"),
		Number:    telephony.Brief(numberOf(h)),
		Extension: telephony.Brief(h.Extension),
		Line:      telephony.Brief(h.Line),
		Began:     h.Began,
		Outcome:   string(h.Outcome),
		Recording: webAddress(h.RecordingURL),
		Nowhere:   len(h.Deliveries) == 0,
	}
	switch {
	case h.IsSMS:
		row.Kind, row.Outcome = "sms", ""
	case h.Internal:
		row.Kind, row.Extension = "internal", "" // both numbers are extensions
	}
	if !h.IsSMS && !h.Completed {
		row.Outcome = "going_on"
	}
	if h.Duration != nil && *h.Duration > 0 {
		row.Talk = minutes(*h.Duration)
	}
	if !row.Nowhere {
		row.Standing = standings(h.Deliveries, endpoints)
	}
	return row
}

// numberOf returns the number by which people know a call.
func numberOf(h *store.CallHead) string {
	switch {
	case h.Client != "" && !h.Internal:
		return h.Client
	case h.From != "" && h.To != "":
		return telephony.Brief(h.From) + " → " + telephony.Brief(h.To)
	}
	return cmp.Or(h.From, h.To)
}

// minutes formats a number of seconds as minutes and seconds, with hours if there are any.
func minutes(seconds int64) string {
	if seconds < 3600 {
		return fmt.Sprintf("%d:%02d", seconds/60, seconds%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
}

// webAddress returns an address if a link may lead to it, otherwise "".
func webAddress(s string) string {
	if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return s
}

// standings returns how a call stands at each CRM: at those that are configured, and then at those
// that are so no longer.
func standings(deliveries []store.CallStanding, endpoints []outbox.EndpointStatus) (list []standing) {
	left := slices.Clone(deliveries)
	for _, e := range endpoints {
		i := slices.IndexFunc(left, func(d store.CallStanding) bool { return d.Endpoint == e.Name })
		if i < 0 && !e.TakesCalls {
			continue
		}
		if i < 0 {
			list = append(list, standing{Endpoint: e.Name, State: "none"})
			continue
		}
		s := newStanding(&left[i])
		if s.State == "pending" && e.State == "reads" {
			s.State = "unread"
		}
		list = append(list, s)
		left = slices.Delete(left, i, i+1)
	}
	for i := range left {
		list = append(list, newStanding(&left[i]))
	}
	return list
}

func newStanding(d *store.CallStanding) standing {
	s := standing{Endpoint: d.Endpoint, State: d.State().String()}
	if s.State != "dead" {
		s.Dead = d.Dead
	}
	return s
}

// title names a call: its kind, its number and how it ended.
func (t words) title(row *callRow) string {
	parts := []string{t["kind."+row.Kind]}
	if row.Number != "" {
		parts = append(parts, row.Number)
	}
	if row.Outcome != "" {
		parts = append(parts, t["outcome."+row.Outcome])
	}
	return strings.Join(parts, " · ")
}

// findRows finds calls, and returns them as rows.
func (d *Dashboard) findRows(
	ctx context.Context, f outbox.CallFilter, endpoints []outbox.EndpointStatus,
) ([]callRow, outbox.FoundCalls, error) {
	found, err := d.opts.Outbox.FindCalls(ctx, f)
	rows := make([]callRow, 0, len(found.Calls))
	for i := range found.Calls {
		rows = append(rows, newCallRow(&found.Calls[i], endpoints))
	}
	return rows, found, err
}
