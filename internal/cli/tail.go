package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"pzbridge/internal/telephony"
)

const (
	tailEvery = 500 * time.Millisecond // how often deliveries are looked at,
	tailAll   = 10 * time.Second       // and how often at all that are in reach
	tailPage  = 500                    // events, or deliveries
	tailReach = 5000                   // deliveries, the newest
)

func (p Program) tail(ctx context.Context, args []string) error {
	fs := p.flags("tail", "Print events and what becomes of them at the CRMs as it happens, until Ctrl-C: in colour on a terminal, one JSON object a line\n"+
		"in a pipe. Of deliveries it knows the newest 5,000. "+apiHelp)
	if err := parse(fs, args); err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	t := tailer{p: p, api: a, pretty: isTerminal(p.Out)}
	err = t.run(ctx)
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	return err
}

func isTerminal(w io.Writer) bool {
	if o, ok := w.(*output); ok {
		w = o.Writer
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
}

// tailer prints what is new since it last looked.
type tailer struct {
	p      Program
	api    api
	cursor string
	seen   map[string]standing // how each delivery stood, by its ID; nil before the first look
	all    time.Time           // when all in reach were looked at
	pretty bool
}

// standing is how a delivery stands.
type standing struct {
	state    string
	attempts int
}

// untried is how each begins.
var untried = standing{state: "pending"}

func (s standing) waits() bool { return s.state == untried.state }

func (t *tailer) run(ctx context.Context) error {
	t.cursor = "now"
	away := false
	for {
		first, began := t.seen == nil, time.Now()
		err := t.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && first:
			fmt.Fprintln(t.p.Err, "Looking at", t.api.shown()+"; Ctrl-C ends it.")
		case err == nil && away:
			fmt.Fprintln(t.p.Err, "It answers again.")
		case err != nil && (first || !errors.Is(err, errNoAnswer)):
			return err
		case err != nil && !away: // it may be restarting
			fmt.Fprintf(t.p.Err, "%v; trying again.\n", err)
		}
		away = err != nil
		pause := tailEvery
		if !away {
			pause = max(pause, 4*time.Since(began)) // a bridge that has much to tell has other work too
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// look prints what is new; the first look finds out where to begin.
func (t *tailer) look(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = t.events(ctx); err != nil {
			return err
		}
	}
	return t.deliveries(ctx)
}

// events prints the next ones, and says whether there may be more.
func (t *tailer) events(ctx context.Context) (more bool, err error) {
	var page struct {
		Events     []json.RawMessage `json:"events"`
		NextCursor string            `json:"next_cursor"`
		More       bool              `json:"more"`
	}
	err = t.api.call(ctx, http.MethodGet, fmt.Sprintf("/v1/events?limit=%d&after=%s", tailPage, url.QueryEscape(t.cursor)), nil, &page)
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
		text := fmt.Sprintf("event     %-24s call %s  %s", e.Type, telephony.Brief(e.Data.CallID), telephony.Brief(e.Data.From))
		if e.Data.To != "" {
			text += " → " + telephony.Brief(e.Data.To)
		}
		if err := t.print(e.Timestamp, blue, text, map[string]any{"event": raw}); err != nil {
			return false, err
		}
	}
	return page.More, nil
}

// change is a delivery that has changed: what of it is for people, and the whole.
type change struct {
	delivery
	raw json.RawMessage
}

// deliveries prints those that have changed, the oldest first.
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

// changes gives the deliveries that have changed, the newest first; the first look only remembers them. It reads on until it knows some of a page and has met
// each that waited, and now and then all in reach: any can be delivered again.
func (t *tailer) changes(ctx context.Context) (changed []change, err error) {
	first, all := t.seen == nil, time.Since(t.all) >= tailAll
	unmet := 0
	for _, s := range t.seen {
		if s.waits() {
			unmet++
		}
	}
	now := map[string]standing{}
	for read, cursor := 0, ""; ; {
		list, next, err := t.page(ctx, cursor)
		if err != nil {
			return nil, err
		}
		read += len(list)
		met := 0
		for _, c := range list {
			before, known := t.seen[c.ID]
			if known {
				met++
			}
			if before.waits() {
				unmet--
			}
			stands := standing{c.State, c.Attempts}
			now[c.ID] = stands
			if !first && stands != before && (known || stands != untried) {
				changed = append(changed, c)
			}
		}
		if next == "" || read >= tailReach {
			if next != "" && met == 0 && !first {
				fmt.Fprintln(t.p.Err, "Deliveries are missing here: only the newest 5,000 are looked at; \"pzbridge deliveries\" lists all.")
			}
			t.seen, t.all = now, time.Now() // what was not met has gone, or is out of reach
			return changed, nil
		}
		if met > 0 && unmet == 0 && !all {
			maps.Copy(t.seen, now)
			return changed, nil
		}
		cursor = next
	}
}

// page reads a page of deliveries, and the cursor of the next one.
func (t *tailer) page(ctx context.Context, cursor string) (list []change, next string, err error) {
	var answer struct {
		Deliveries []json.RawMessage `json:"deliveries"`
		NextCursor string            `json:"next_cursor"`
	}
	if err := t.api.call(ctx, http.MethodGet, fmt.Sprintf("/v1/deliveries?limit=%d&cursor=%s", tailPage, url.QueryEscape(cursor)), nil, &answer); err != nil {
		return nil, "", err
	}
	list = make([]change, len(answer.Deliveries))
	for i, raw := range answer.Deliveries {
		list[i].raw = raw
		if err := json.Unmarshal(raw, &list[i].delivery); err != nil {
			return nil, "", err
		}
	}
	return list, answer.NextCursor, nil
}

func (t *tailer) printChange(c change) error {
	colour := map[string]string{"delivered": green, "dead": red, "expired": red}[c.State]
	if colour == "" {
		colour = yellow
	}
	text := fmt.Sprintf("%-9s %-24s call %s  %s, attempt %d: %s", c.State, c.Type, c.call(), c.Endpoint, c.Attempts, c.outcome())
	return t.print(time.Now(), colour, text, map[string]any{"delivery": c.raw})
}

// The colours of a terminal.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	blue   = "\x1b[34m"
	plain  = "\x1b[0m"
)

func (t *tailer) print(at time.Time, colour, text string, whole map[string]any) error {
	if t.pretty {
		_, err := fmt.Fprintln(t.p.Out, at.Local().Format("15:04:05.000"), colour+printable(text)+plain)
		return err
	}
	enc := json.NewEncoder(t.p.Out)
	enc.SetEscapeHTML(false)
	return enc.Encode(whole)
}

// printable takes out what would do more to a terminal than stand there: a caller can send anything, a line that looks like one of ours too.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

// printableLines is printable for a text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}
