package dashboard

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	// liveInterval is the interval at which a live page is rendered.
	liveInterval = time.Second
	// maxWatchers bounds the live pages, since each is rendered every second.
	maxWatchers = 16
)

// liveView returns the data of the live part of a page. It fails if there is nothing to show any
// more.
type liveView func(r *http.Request) (any, error)

// live serves the live part of a page, the template part, as Server-Sent Events: when it has
// changed, and every 20 s to keep the connection alive. A browser that is not signed in gets no
// redirect, which its script could not follow.
func (d *Dashboard) live(part string, view liveView) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.Knows(r) {
			http.Error(w, wordsFor(r)["Sign in again."], http.StatusUnauthorized)
			return
		}
		select {
		case d.watchers <- struct{}{}:
			defer func() { <-d.watchers }()
		default:
			w.Header().Set("Retry-After", "5")
			http.Error(w, "Too many pages are watched at a time.", http.StatusTooManyRequests)
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the response lasts as long as the page is open
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Accel-Buffering", "no") // keeps a proxy from buffering
		tick := time.NewTicker(liveInterval)
		defer tick.Stop()
		var last []byte
		for quiet := 0; d.Knows(r); quiet++ { // ends with the session
			html, err := d.renderPart(r, part, view)
			if err != nil {
				return
			}
			const keepAlive = 20 // ticks
			if !bytes.Equal(html, last) || quiet == keepAlive {
				last, quiet = html, 0
				if err := sendEvent(w, html); err != nil {
					return
				}
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			case <-d.running.Done():
				return
			}
		}
	})
}

// renderPart renders the live part of a page.
func (d *Dashboard) renderPart(r *http.Request, part string, view liveView) ([]byte, error) {
	v, err := view(r)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := d.pages[wordsFor(r)["lang"]].ExecuteTemplate(&b, part, v); err != nil {
		d.opts.Logger.Error("a page cannot be shown", "page", part, "err", err)
		return nil, err
	}
	return d.underPrefix(r, b.Bytes()), nil
}

// sendEvent sends HTML as one Server-Sent Event, in JSON, which has no line breaks.
func sendEvent(w http.ResponseWriter, html []byte) error {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
	text, _ := json.Marshal(string(html)) // a string can always be encoded
	if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil {
		return err
	}
	return control.Flush()
}

// detach returns the context of a request without the end that follows when the browser goes away.
// It ends when the dashboard is drained.
func (d *Dashboard) detach(r *http.Request) (ctx context.Context, cancel func()) {
	ctx, cancelCtx := context.WithCancel(context.WithoutCancel(r.Context()))
	stop := context.AfterFunc(d.running, cancelCtx)
	return ctx, func() { stop(); cancelCtx() }
}
