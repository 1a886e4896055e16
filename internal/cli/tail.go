package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"
)

// tailEvery is how often deliveries are looked at.
const tailEvery = 500 * time.Millisecond

func (p Program) tail(ctx context.Context, args []string) error {
	fs := p.flags("tail", "Print events and what becomes of them at the CRMs as it happens, until Ctrl-C: in colour on a terminal, one JSON object a line\n"+
		"in a pipe. "+apiHelp)
	if err := parse(fs, args); err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	t := tailer{p: p, api: a, seen: map[string]string{}, pretty: isTerminal(p.Out), began: time.Now()}
	err = t.run(ctx)
	if ctx.Err() != nil {
		return nil // Ctrl-C
	}
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
}

// tailer prints what is new since it last looked.
type tailer struct {
	p      Program
	api    api
	cursor string
	seen   map[string]string // how each delivery stood, by its ID
	pretty bool
	began  time.Time
}

func (t *tailer) run(ctx context.Context) error {
	t.cursor = "now"
	away := false
	for first := true; ; {
		err := t.look(ctx, first)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && first:
			fmt.Fprintln(t.p.Err, "Looking at", t.api.shown()+"; Ctrl-C ends it.")
			first = false
		case err == nil && away:
			fmt.Fprintln(t.p.Err, "It answers again.")
		case err != nil && (first || !errors.Is(err, errNoAnswer)):
			return err
		case err != nil && !away: // it may be restarting
			fmt.Fprintf(t.p.Err, "%v; trying again.\n", err)
		}
		away = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tailEvery):
		}
	}
}

// look prints what is new; the first look finds out where to begin.
func (t *tailer) look(ctx context.Context, first bool) error {
	if err := t.events(ctx); err != nil {
		return err
	}
	return t.deliveries(ctx, first)
}

func (t *tailer) events(ctx context.Context) error {
	var page struct {
		Events     []json.RawMessage `json:"events"`
		NextCursor string            `json:"next_cursor"`
	}
	if err := t.api.call(ctx, http.MethodGet, "/v1/events?limit=500&after="+url.QueryEscape(t.cursor), nil, &page); err != nil {
		return err
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
			return err
		}
		text := fmt.Sprintf("event     %-24s call %s  %s", e.Type, e.Data.CallID, e.Data.From)
		if e.Data.To != "" {
			text += " → " + e.Data.To
		}
		t.print(e.Timestamp, blue, text, map[string]any{"event": raw})
	}
	return nil
}

// deliveries prints those that have changed; the first look only remembers them.
func (t *tailer) deliveries(ctx context.Context, first bool) error {
	var list struct {
		Deliveries []json.RawMessage `json:"deliveries"`
	}
	if err := t.api.call(ctx, http.MethodGet, "/v1/deliveries?limit=500", nil, &list); err != nil {
		return err
	}
	now := map[string]string{}
	for i := range list.Deliveries { // the oldest first
		raw := list.Deliveries[len(list.Deliveries)-1-i]
		var d delivery
		if err := json.Unmarshal(raw, &d); err != nil {
			return err
		}
		stands := fmt.Sprint(d.State, d.Attempts)
		now[d.ID] = stands
		before, known := t.seen[d.ID]
		if first || stands == before || !known && d.Timestamp.Before(t.began) || !known && d.State == "pending" && d.Attempts == 0 {
			continue
		}
		colour := map[string]string{"delivered": green, "dead": red, "expired": red}[d.State]
		if colour == "" {
			colour = yellow
		}
		text := fmt.Sprintf("%-9s %-24s call %s  %s, attempt %d: %s", d.State, d.Type, d.CallID, d.Endpoint, d.Attempts, d.outcome())
		t.print(time.Now(), colour, text, map[string]any{"delivery": raw})
	}
	t.seen = now
	return nil
}

// The colours of a terminal.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	blue   = "\x1b[34m"
	plain  = "\x1b[0m"
)

func (t *tailer) print(at time.Time, colour, text string, whole map[string]any) {
	if t.pretty {
		fmt.Fprintln(t.p.Out, at.Local().Format("15:04:05.000"), colour+printable(text)+plain)
		return
	}
	enc := json.NewEncoder(t.p.Out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(whole) // a pipe that has gone ends the process
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
