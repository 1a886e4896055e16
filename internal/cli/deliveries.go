package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"pzbridge/internal/telephony"
)

// delivery holds the fields of the API's delivery that are printed.
type delivery struct {
	ID           string    `json:"id"`
	Endpoint     string    `json:"endpoint"`
	Type         string    `json:"type"`
	CallID       string    `json:"call_id"`
	Client       string    `json:"client_number"`
	Timestamp    time.Time `json:"timestamp"`
	State        string    `json:"state"`
	Attempts     int       `json:"attempts"`
	LastStatus   int       `json:"last_status"`
	LastError    string    `json:"last_error"`
	NextAttempt  time.Time `json:"next_attempt_at"`
	LastAttempts []struct {
		At       time.Time `json:"at"`
		Took     float64   `json:"duration_ms"`
		Status   int       `json:"status"`
		Response string    `json:"response"`
		Error    string    `json:"error"`
	} `json:"last_attempts"`
}

// call returns the ID of the call, shortened and safe for a terminal.
func (d delivery) call() string { return printable(telephony.Brief(d.CallID)) }

// outcome describes how the last attempt ended.
func (d delivery) outcome() string {
	switch {
	case d.LastStatus != 0:
		return "HTTP " + strconv.Itoa(d.LastStatus)
	case d.LastError != "":
		return printable(d.LastError)
	}
	return "-"
}

func (p Program) deliveries(ctx context.Context, args []string) error {
	fs := p.flags("deliveries [flags] [ID]", "List what became of events at the CRMs, the newest first; "+
		"with the ID of one, show its last attempts.\n"+apiHelp)
	state := fs.String("state", "", "only those that are `pending`, delivered, expired or dead")
	endpoint := fs.String("endpoint", "", "only those of the endpoint of that `name`")
	call := fs.String("call", "", "only those of the call of that `id`")
	types := fs.String("types", "", "only events of these `types`, separated by commas")
	since := fs.String("since", "", "only events from that `time` on, "+
		"such as 2026-11-23T06:25:53Z, or so long ago, such as 24h")
	until := fs.String("until", "", "only events before that `time`, or before so long ago")
	limit := fs.Int("limit", 30, "how many at most, to 500")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	if fs.NArg() == 1 && fs.NFlag() > 0 {
		return usageError("the flags choose among many deliveries: name one by its ID alone")
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	if fs.NArg() == 1 {
		return p.showDelivery(ctx, a, fs.Arg(0))
	}
	query, err := listQuery(map[string]string{
		"state":    *state,
		"endpoint": *endpoint,
		"call_id":  *call,
		"types":    *types,
	}, map[string]string{"since": *since, "until": *until})
	if err != nil {
		return err
	}
	list, more, err := a.deliveries(ctx, query, *limit)
	if err != nil {
		return err
	}
	if len(list) == 0 && *endpoint != "" {
		// The check comes last because an endpoint that is no longer configured may have
		// deliveries.
		if _, err := a.stateOf(ctx, *endpoint); err != nil {
			return err
		}
	}
	table := tabwriter.NewWriter(p.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tSTATE\tTYPE\tNUMBER\tCALL\tATTEMPTS\tLAST\tID")
	for _, d := range list {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", d.Timestamp.Local().Format(time.DateTime),
			d.State, d.Type, orDash(d.Client), d.call(), d.Attempts, d.outcome(), d.ID)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintln(p.Err, "There are more; -limit and the other flags choose.")
	}
	return nil
}

// listQuery makes the query of a list from the flags that were given: words, and times.
func listQuery(words, times map[string]string) (url.Values, error) {
	query := url.Values{}
	for name, value := range words {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, value := range times {
		at, err := parseTimeOrAge(value)
		if err != nil {
			return nil, usageError(fmt.Sprintf("-%s %v", name, err))
		}
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339))
		}
	}
	return query, nil
}

// deliveries lists up to limit deliveries, and reports whether there may be more. It reads pages
// until then, since a page may be short or even empty although more deliveries follow.
func (a api) deliveries(ctx context.Context, query url.Values, limit int) (list []delivery, more bool, err error) {
	for {
		query.Set("limit", strconv.Itoa(limit-len(list)))
		var page struct {
			Deliveries []delivery `json:"deliveries"`
			NextCursor string     `json:"next_cursor"`
		}
		if err := a.call(ctx, http.MethodGet, "/v1/deliveries?"+query.Encode(), nil, &page); err != nil {
			return nil, false, err
		}
		list = append(list, page.Deliveries...)
		if page.NextCursor == "" || len(list) >= limit {
			return list, page.NextCursor != "", nil
		}
		query.Set("cursor", page.NextCursor)
	}
}

// showDelivery prints one delivery with its last attempts.
func (p Program) showDelivery(ctx context.Context, a api, id string) error {
	path, err := pathSegment(id)
	if err != nil {
		return err
	}
	var d delivery
	if err := a.call(ctx, http.MethodGet, "/v1/deliveries/"+path, nil, &d); err != nil {
		return err
	}
	fmt.Fprintf(p.Out, "%s of call %s, read %s, is %s at %s after %d attempts.\n",
		d.Type, d.call(), d.Timestamp.Local().Format(time.DateTime), d.State, d.Endpoint, d.Attempts)
	if !d.NextAttempt.IsZero() {
		fmt.Fprintln(p.Out, "The next attempt is at", d.NextAttempt.Local().Format(time.DateTime))
	}
	for _, t := range d.LastAttempts {
		result := "HTTP " + strconv.Itoa(t.Status)
		if t.Status == 0 {
			result = printable(t.Error)
		}
		fmt.Fprintf(p.Out, "\n%s  %s, %.0f ms\n", t.At.Local().Format(time.DateTime), result, t.Took)
		if t.Response != "" {
			fmt.Fprintln(p.Out, printableLines(t.Response))
		}
	}
	return nil
}
