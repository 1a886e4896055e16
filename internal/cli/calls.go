package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"pzbridge/internal/telephony"
)

// callHead holds the fields of the API's call that are printed.
type callHead struct {
	CallID    string    `json:"call_id"`
	Kind      string    `json:"kind"`
	Direction string    `json:"direction"`
	Internal  bool      `json:"internal"`
	Client    string    `json:"client_number"`
	Extension string    `json:"extension"`
	From      string    `json:"from"`
	To        string    `json:"to"`
	BeganAt   time.Time `json:"began_at"`
	Completed bool      `json:"completed"`
	Outcome   string    `json:"outcome"`
	Duration  *int64    `json:"duration_seconds"`
	Recording string    `json:"recording_url"`
	Endpoints []struct {
		Endpoint string `json:"endpoint"`
		State    string `json:"state"`
	} `json:"endpoints"`
}

func (p Program) calls(ctx context.Context, args []string) error {
	fs := p.flags("calls [flags]", "Find calls, the latest first, and show whether each CRM has got them.\n"+apiHelp)
	number := fs.String("number", "", "only those of a `number`: whole in any form, its last four digits or more, "+
		"or an extension")
	since := fs.String("since", "", "only those from that `time` on, "+
		"such as 2026-11-23T06:25:53Z, or so long ago, such as 24h")
	until := fs.String("until", "", "only those before that `time`, or before so long ago")
	direction := fs.String("direction", "", "only those that are `incoming` or outgoing")
	outcome := fs.String("outcome", "", "only those that were `answered`, missed (incoming) or no_answer (outgoing)")
	state := fs.String("state", "", "only those that are `pending`, delivered, expired or dead at some CRM")
	limit := fs.Int("limit", 30, "how many at most, to 500")
	if err := parse(fs, args); err != nil {
		return err
	}
	query, err := listQuery(map[string]string{
		"number":    *number,
		"direction": *direction,
		"outcome":   *outcome,
		"state":     *state,
	}, map[string]string{"since": *since, "until": *until})
	if err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	return p.printCalls(ctx, a, query, *limit)
}

// printCalls prints the calls that a query finds, limit at most.
func (p Program) printCalls(ctx context.Context, a api, query url.Values, limit int) error {
	var page struct {
		Calls      []callHead `json:"calls"`
		NextCursor string     `json:"next_cursor"`
		Searched   int        `json:"searched"`
		AnyDigits  bool       `json:"any_digits"`
		Incomplete bool       `json:"incomplete"`
	}
	query.Set("limit", strconv.Itoa(limit))
	if err := a.call(ctx, http.MethodGet, "/v1/calls?"+query.Encode(), nil, &page); err != nil {
		return err
	}
	if len(page.Calls) == 0 {
		fmt.Fprintln(p.Err, "No calls were found.")
	}
	if err := p.printCallTable(page.Calls); err != nil {
		return err
	}
	switch {
	case page.Searched > 0:
		fmt.Fprintf(p.Err, "The newest %d calls were looked at; -until goes further back.\n", page.Searched)
	case page.NextCursor != "":
		fmt.Fprintln(p.Err, "There are more; -limit and the other flags choose.")
	}
	if page.AnyDigits && len(page.Calls) > 0 {
		fmt.Fprintln(p.Err, "No number ends with these digits: the calls have them somewhere in a number.")
	}
	if page.Incomplete {
		fmt.Fprintln(p.Err, "Calls of before the upgrade are still being indexed; try again in a minute.")
	}
	return nil
}

// printCallTable prints a line for each call, and nothing for none.
func (p Program) printCallTable(calls []callHead) error {
	if len(calls) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(p.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tCALL\tCLIENT\tEXTENSION\tOUTCOME\tTALK\tCRM\tID")
	for i := range calls {
		h := &calls[i]
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", h.BeganAt.Local().Format(time.DateTime),
			h.what(), h.client(), orDash(h.Extension), h.ended(), h.talk(), h.standing(),
			printable(telephony.Brief(h.CallID)))
	}
	return table.Flush()
}

func (h *callHead) what() string {
	switch {
	case h.Kind == "sms":
		return "SMS"
	case h.Internal:
		return "internal"
	}
	return orDash(h.Direction)
}

// client is the client's number, or else both numbers as they came.
func (h *callHead) client() string {
	if h.Client != "" {
		return printable(telephony.Brief(h.Client))
	}
	return orDash(strings.TrimSpace(h.From + " " + h.To))
}

func (h *callHead) ended() string {
	switch {
	case h.Kind == "sms":
		return "-"
	case !h.Completed:
		return "going on"
	}
	return orDash(strings.ReplaceAll(h.Outcome, "_", " "))
}

func (h *callHead) talk() string {
	if h.Duration == nil {
		return "-"
	}
	return (time.Duration(*h.Duration) * time.Second).String()
}

// standing says how the call stands at each CRM, "nowhere" if no CRM gets any of its events.
func (h *callHead) standing() string {
	var list []string
	for _, e := range h.Endpoints {
		list = append(list, e.Endpoint+" "+e.State)
	}
	if list == nil {
		return "nowhere"
	}
	return strings.Join(list, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(telephony.Brief(s))
}
