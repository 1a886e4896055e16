package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"pzbridge/internal/telephony"
)

const (
	tailInterval      = 500 * time.Millisecond // between two polls
	tailFullInterval  = 10 * time.Second       // between two reads of all maxTailDeliveries
	tailPageSize      = 500                    // events or deliveries
	maxTailDeliveries = 5000                   // the newest ones, which are watched for changes
)

func (p Program) tail(ctx context.Context, args []string) error {
	fs := p.flags("tail", "Print events and what becomes of them at the CRMs as it happens, until Ctrl-C: "+
		"in colour on a terminal, one JSON object a line\nin a pipe. Of deliveries it knows the newest 5,000. "+apiHelp)
	if err := parse(fs, args); err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	t := tailer{p: p, api: a, pretty: isTerminal(p.Out), colours: showsColours(p.Out)}
	err = t.run(ctx)
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	return err
}

// tailer polls the bridge, and prints new events and changed deliveries.
type tailer struct {
	p          Program
	api        api
	cursor     string
	known      map[string]deliveryState // by delivery ID; nil before the first poll
	fullReadAt time.Time                // when all maxTailDeliveries were read last
	pretty     bool                     // for a person
	colours    bool
}

// deliveryState is the part of a delivery whose change is printed.
type deliveryState struct {
	state    string
	attempts int
}

// untried is the initial state of every delivery.
var untried = deliveryState{state: "pending"}

func (s deliveryState) isPending() bool { return s.state == untried.state }

func (t *tailer) run(ctx context.Context) error {
	t.cursor = "now"
	unavailable := false
	for {
		first, began := t.known == nil, time.Now()
		err := t.poll(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && first:
			fmt.Fprintln(t.p.Err, "Looking at", t.api.redactedURL()+"; Ctrl-C ends it.")
		case err == nil && unavailable:
			fmt.Fprintln(t.p.Err, "It answers again.")
		case err != nil && (first || !errors.Is(err, errNoAnswer)):
			return err
		case err != nil && !unavailable: // it may be restarting
			fmt.Fprintf(t.p.Err, "%v; trying again.\n", err)
		}
		unavailable = err != nil
		pause := tailInterval
		if !unavailable {
			pause = max(pause, 4*time.Since(began)) // use at most a fifth of a slow bridge's time
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// poll prints what is new. The first poll prints nothing, and only finds where to begin.
func (t *tailer) poll(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = t.events(ctx); err != nil {
			return err
		}
	}
	return t.deliveries(ctx)
}

// events prints a page of events, and reports whether there may be more.
func (t *tailer) events(ctx context.Context) (more bool, err error) {
	var page struct {
		Events     []json.RawMessage `json:"events"`
		NextCursor string            `json:"next_cursor"`
		More       bool              `json:"more"`
	}
	path := fmt.Sprintf("/v1/events?limit=%d&after=%s", tailPageSize, url.QueryEscape(t.cursor))
	err = t.api.call(ctx, http.MethodGet, path, nil, &page)
	var gone *problem
	switch {
	case errors.As(err, &gone) && gone.Oldest != "":
		fmt.Fprintln(t.p.Err, "Events are missing here: the bridge has removed them, or a backup was restored.")
		t.cursor = gone.Oldest
		return false, nil
	case err != nil:
		return false, err
	}
	t.cursor = page.NextCursor
	for _, raw := range page.Events {
		var e struct {
			Type      string    `json:"type"`
			Timestamp time.Time `json:"timestamp"`
			Data      struct {
				CallID string `json:"call_id"`
				From   string `json:"from"`
				To     string `json:"to"`
			} `json:"data"`
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return false, err
		}
		text := fmt.Sprintf("event     %-24s call %s  %s",
			e.Type, telephony.Brief(e.Data.CallID), telephony.Brief(e.Data.From))
		if e.Data.To != "" {
			text += " → " + telephony.Brief(e.Data.To)
		}
		if err := t.print(e.Timestamp, blue, text, map[string]any{"event": raw}); err != nil {
			return false, err
		}
	}
	return page.More, nil
}

// changedDelivery is a delivery that has changed since the last poll.
type changedDelivery struct {
	delivery
	raw json.RawMessage // as the API returns it
}

// deliveries prints the changed deliveries, the oldest first.
func (t *tailer) deliveries(ctx context.Context) error {
	changed, err := t.changes(ctx)
	if err != nil {
		return err
	}
	for _, c := range slices.Backward(changed) {
		if err := t.printChange(c); err != nil {
			return err
		}
	}
	return nil
}

// changes returns the changed deliveries, the newest first; the first poll only records the states.
// It reads pages until a page contains a known delivery and every known pending one has been found.
// Every tailFullInterval it reads all maxTailDeliveries, since any delivery can be redelivered.
func (t *tailer) changes(ctx context.Context) (changed []changedDelivery, err error) {
	first, readAll := t.known == nil, time.Since(t.fullReadAt) >= tailFullInterval
	pendingLeft := 0
	for _, s := range t.known {
		if s.isPending() {
			pendingLeft++
		}
	}
	now := map[string]deliveryState{}
	for read, cursor := 0, ""; ; {
		list, next, err := t.page(ctx, cursor)
		if err != nil {
			return nil, err
		}
		read += len(list)
		knownFound := 0
		for _, c := range list {
			before, isKnown := t.known[c.ID]
			if isKnown {
				knownFound++
			}
			if before.isPending() {
				pendingLeft--
			}
			state := deliveryState{c.State, c.Attempts}
			now[c.ID] = state
			if !first && state != before && (isKnown || state != untried) {
				changed = append(changed, c)
			}
		}
		if next == "" || read >= maxTailDeliveries {
			if next != "" && knownFound == 0 && !first {
				fmt.Fprintln(t.p.Err, "Deliveries are missing here: only the newest 5,000 are looked at; "+
					"\"pzbridge deliveries\" lists all.")
			}
			// A known delivery that was not found is removed, or no longer among the newest.
			t.known, t.fullReadAt = now, time.Now()
			return changed, nil
		}
		if knownFound > 0 && pendingLeft == 0 && !readAll {
			maps.Copy(t.known, now)
			return changed, nil
		}
		cursor = next
	}
}

// page reads a page of deliveries, and returns the cursor of the next page, or "" after the last
// one.
func (t *tailer) page(ctx context.Context, cursor string) (list []changedDelivery, next string, err error) {
	var answer struct {
		Deliveries []json.RawMessage `json:"deliveries"`
		NextCursor string            `json:"next_cursor"`
	}
	path := fmt.Sprintf("/v1/deliveries?limit=%d&cursor=%s", tailPageSize, url.QueryEscape(cursor))
	if err := t.api.call(ctx, http.MethodGet, path, nil, &answer); err != nil {
		return nil, "", err
	}
	list = make([]changedDelivery, len(answer.Deliveries))
	for i, raw := range answer.Deliveries {
		list[i].raw = raw
		if err := json.Unmarshal(raw, &list[i].delivery); err != nil {
			return nil, "", err
		}
	}
	return list, answer.NextCursor, nil
}

func (t *tailer) printChange(c changedDelivery) error {
	colour := map[string]string{"delivered": green, "dead": red, "expired": red}[c.State]
	if colour == "" {
		colour = yellow
	}
	text := fmt.Sprintf("%-9s %-24s call %s  %s, attempt %d: %s",
		c.State, c.Type, c.call(), c.Endpoint, c.Attempts, c.outcome())
	return t.print(time.Now(), colour, text, map[string]any{"delivery": c.raw})
}

// The escape sequences for colours.
const (
	red         = "\x1b[31m"
	green       = "\x1b[32m"
	yellow      = "\x1b[33m"
	blue        = "\x1b[34m"
	resetColour = "\x1b[0m"
)

// print writes a line of text to a terminal, or object as JSON to a pipe.
func (t *tailer) print(at time.Time, colour, text string, object map[string]any) error {
	if t.pretty {
		text = printable(text)
		if t.colours {
			text = colour + text + resetColour
		}
		_, err := fmt.Fprintln(t.p.Out, at.Local().Format("15:04:05.000"), text)
		return err
	}
	enc := json.NewEncoder(t.p.Out)
	enc.SetEscapeHTML(false)
	return enc.Encode(object)
}

// printable replaces the characters that control a terminal by spaces, including line ends. The
// text may come from a caller, who could otherwise fake a line of our output.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

// printableLines is printable for a text of several lines, and keeps its line feeds.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}
