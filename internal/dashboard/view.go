package dashboard

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// callsShown is how many of the latest calls the page lists.
const callsShown = 10

// functions are what the templates call. Words are looked up in the page's language.
var functions = template.FuncMap{
	"clock":    func(t time.Time) string { return t.Local().Format("15:04:05") },
	"datetime": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") },
	"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"zone":     func() string { return time.Now().Format("UTC-07:00") },
	"short":    func(t words, d time.Duration) string { return t.short(d) },
	"say":      func(t words, text string) string { return t.say(text) },
	"callPath": callPath,
	"brief":    telephony.Brief,
}

// callPath is the address of a call's page, empty if there is none: that of an ID which is a novel would be longer than a request may be.
func callPath(id string) string {
	const longest = 1 << 10
	if id == "" || len(id) > longest {
		return ""
	}
	return "/calls/" + url.PathEscape(id)
}

// page is what every template gets.
type page struct {
	T       words
	Title   string // beside the program's name; empty on the first page
	Version string
	In      bool // signed in
	Data    any
}

func (d *Dashboard) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	t := wordsFor(r)
	title := ""
	if v, ok := data.(callView); ok {
		title = t["Call"] + " " + telephony.Brief(v.ID)
	}
	if err := d.pages.ExecuteTemplate(&b, name, page{T: t, Title: title, Version: d.opts.Version, In: d.Knows(r), Data: data}); err != nil {
		d.opts.Logger.Error("a page cannot be shown", "page", name, "err", err.Error())
		http.Error(w, "The page cannot be shown; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Language", t["lang"])
	w.Header().Set("Vary", "Accept-Language")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// overview is the state of everything at one moment.
type overview struct {
	T          words
	Connection telephony.Connection
	Connected  bool
	Enabled    bool
	ShowClose  bool   // the last close code, where the last error does not say it
	Trouble    string // with storing events
	InDanger   bool   // events are stored all the same, and Trouble says what to do
	InUse      string
	Endpoints  []endpointView
	Plot       plot
	Start      time.Time // of the plot, if it holds less than an hour
	Calls      []callView
}

type endpointView struct {
	outbox.EndpointStatus
	Oldest     time.Duration
	HasOldest  bool
	P50, P99   time.Duration
	HasSamples bool
	Unread     string // how many events, if it reads them
}

func (d *Dashboard) overview(t words) (overview, error) {
	now := time.Now()
	o := overview{
		T:          t,
		Connection: d.opts.Exchange.Connection(),
		Plot:       newPlot(d.opts.Stats.hour(now)),
		Start:      d.opts.Stats.start(now),
	}
	o.Connected = o.Connection.State == telephony.Connected
	o.Enabled = o.Connection.State != telephony.Disabled
	o.ShowClose = o.Connection.CloseCode != 0 && !strings.Contains(o.Connection.LastError, o.Connection.CloseMeaning)
	o.InUse = fmt.Sprintf("%d / %d %s", d.opts.Outbox.InUse()>>20, d.opts.MaxBytes>>20, t["MiB"])
	if err := d.opts.Outbox.Writable(); err != nil {
		o.Trouble = err.Error()
		o.InDanger = errors.Is(err, outbox.ErrFileGone) || errors.Is(err, outbox.ErrDamaged) || errors.Is(err, outbox.ErrWrongClock)
	}
	list, err := d.opts.Outbox.Endpoints()
	if err != nil {
		return o, err
	}
	for _, e := range list {
		v := endpointView{EndpointStatus: e, Unread: strconv.FormatUint(e.Pending, 10)}
		if e.Pending >= outbox.MaxUnread {
			v.Unread += "+"
		}
		oldest, err := d.opts.Outbox.OldestPending(e.Name)
		if err != nil {
			return o, err
		}
		if v.HasOldest = !oldest.IsZero(); v.HasOldest {
			v.Oldest = max(0, now.Sub(oldest))
		}
		v.P50, v.P99, v.HasSamples = d.opts.Stats.quantiles(e.Name)
		o.Endpoints = append(o.Endpoints, v)
	}
	calls, err := d.opts.Outbox.LatestCalls(callsShown)
	if err != nil {
		return o, err
	}
	for _, id := range calls {
		if v, err := d.callView(t, id, 0); err == nil {
			o.Calls = append(o.Calls, v)
		}
	}
	return o, nil
}

// home is the first page.
func (d *Dashboard) home(w http.ResponseWriter, r *http.Request) {
	o, err := d.overview(wordsFor(r))
	if err != nil {
		d.failed(w, r, err)
		return
	}
	d.render(w, r, http.StatusOK, "home", o)
}

const (
	// liveEvery is how often a page that is watched is looked at anew.
	liveEvery = time.Second
	// maxWatchers is how many may be watched at a time.
	maxWatchers = 16
)

// live sends the overview's HTML whenever it has changed, as Server-Sent Events.
func (d *Dashboard) live(w http.ResponseWriter, r *http.Request) {
	select {
	case d.watchers <- struct{}{}:
		defer func() { <-d.watchers }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "Too many pages are watched at a time.", http.StatusTooManyRequests)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // it lasts as long as somebody looks
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // or a proxy would keep it back
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	var last []byte
	for quiet := 0; d.Knows(r); quiet++ { // until whoever looks has signed out, in whichever browser
		o, err := d.overview(wordsFor(r))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := d.pages.ExecuteTemplate(&b, "overview", o); err != nil {
			d.opts.Logger.Error("a page cannot be shown", "page", "overview", "err", err.Error())
			return
		}
		const keepAlive = 20 // ticks
		if !bytes.Equal(b.Bytes(), last) || quiet == keepAlive {
			last, quiet = b.Bytes(), 0
			_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
			text, _ := json.Marshal(b.String())
			if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil || control.Flush() != nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-d.draining:
			return
		}
	}
}

// plot is the last hour, drawn.
type plot struct {
	Bars   []bar
	Most   int
	Events int // in the hour
	Taken  int
	Failed int
}

// bar is one minute: the heights, of 60, of what was received, delivered and failed.
type bar struct{ X, Events, EventsY, Delivered, DeliveredY, Failed, FailedY int }

func newPlot(events, delivered, failed []int) plot {
	p := plot{Most: 1}
	for i := range events {
		p.Most = max(p.Most, events[i], delivered[i]+failed[i])
		p.Events += events[i]
		p.Taken += delivered[i]
		p.Failed += failed[i]
	}
	const height, step = 60, 10
	scale := func(n int) int {
		if n == 0 {
			return 0
		}
		return max(1, n*height/p.Most)
	}
	for i := range events {
		b := bar{X: i * step, Events: scale(events[i]), Delivered: scale(delivered[i]), Failed: scale(failed[i])}
		b.EventsY, b.DeliveredY = height-b.Events, height-b.Delivered
		b.FailedY = b.DeliveredY - b.Failed
		p.Bars = append(p.Bars, b)
	}
	return p
}

// callView is a call with its timeline.
type callView struct {
	T      words
	ID     string
	From   string
	To     string
	Began  time.Time
	Steps  []step
	Route  *telephony.Route
	Events []eventView
	After  uint64 // the sequence after which the page begins
	Next   uint64 // and that after which the next one does; 0 if there is none
	// AsOf is when it was read: the page of one call is not live, so that what somebody has opened
	// in it stays open.
	AsOf  time.Time
	Again *outbox.Delivery // what somebody has asked for again just now, and how it stands; nil if nobody has
	Waits bool             // no attempt at it has ended yet
}

// step is a point of the timeline. X is its place, of 600.
type step struct {
	X    int
	At   time.Time
	Kind string // asked, answered, transferred, rang, picked, over, other
	Text string
}

type eventView struct {
	outbox.CallEvent
	Name       string
	Deliveries []deliveryView
}

type deliveryView struct {
	outbox.Delivery
	Past        []outbox.Attempt
	ContentType string
	Request     string // the body that is sent, or the beginning of it
	Whole       bool   // all of it is shown
	HasURL      bool   // it can be sent again: its endpoint is configured and has an address
}

// callView reads a call after an event's sequence. The attempts are left out: see call.
func (d *Dashboard) callView(t words, id string, after uint64) (callView, error) {
	page, err := d.opts.Outbox.Call(id, after)
	if err != nil {
		return callView{}, err
	}
	v := callView{T: t, ID: id, Route: page.Route, After: after, Next: page.Next, AsOf: time.Now()}
	for _, e := range page.Events {
		if v.Began.IsZero() {
			v.Began = e.Time
		}
		v.From, v.To = cmp.Or(v.From, e.From), cmp.Or(e.To, v.To)
		kind := kinds[e.Type]
		v.Steps = append(v.Steps, step{At: e.Time, Kind: cmp.Or(kind, "other"), Text: t[string(e.Type)]})
		v.Events = append(v.Events, eventView{CallEvent: e, Name: t[string(e.Type)]})
	}
	v.Steps = append(v.Steps, routeSteps(t, page.Route)...)
	slices.SortStableFunc(v.Steps, func(a, b step) int { return a.At.Compare(b.At) })
	place(v.Steps)
	return v, nil
}

var kinds = map[telephony.EventType]string{
	telephony.EventTransferRequested: "asked",
	telephony.EventIncoming:          "rang", telephony.EventOutgoing: "rang",
	telephony.EventIncomingAnswered: "picked", telephony.EventOutgoingAnswered: "picked",
	telephony.EventCompleted: "over",
}

// routeSteps are the points of a call's question.
func routeSteps(t words, r *telephony.Route) (steps []step) {
	if r == nil {
		return nil
	}
	for _, p := range r.Replies {
		text := p.By + ": " + t["declined"]
		switch p.Kind {
		case telephony.ReplyNumber:
			text = p.By + " → " + p.To
		case telephony.ReplyOut:
			text = p.By + ": " + t["no answer"] + " (" + t.say(telephony.BriefText(p.Why)) + ")"
		}
		steps = append(steps, step{At: p.At, Kind: "answered", Text: text})
	}
	if r.Transfer != "" && !r.TransferAt.IsZero() {
		text := t["transferred"] + " → " + r.To
		if r.To == "" {
			text = t["not redirected"]
		}
		if r.TransferError != "" {
			text += ": " + t.say(telephony.BriefText(r.TransferError))
		}
		steps = append(steps, step{At: r.TransferAt, Kind: "transferred", Text: text})
	}
	return steps
}

// place puts the points on the line by their time, but so that none covers another.
func place(steps []step) {
	const width, gap, margin = 580, 16, 10
	if len(steps) == 0 {
		return
	}
	first, whole := steps[0].At, steps[len(steps)-1].At.Sub(steps[0].At)
	for i := range steps {
		x := margin
		if whole > 0 {
			x += int(float64(width) * float64(steps[i].At.Sub(first)) / float64(whole))
		}
		if i > 0 {
			x = max(x, steps[i-1].X+gap)
		}
		steps[i].X = x
	}
	// What was pushed over the end is pushed back.
	for i, end := len(steps)-1, width+margin; i >= 0; i-- {
		steps[i].X = max(margin/2, min(steps[i].X, end))
		end = steps[i].X - gap
	}
}

const (
	maxRequest  = 16 << 10 // bytes of a webhook's body that are shown
	maxRequests = 1 << 20  // bytes of bodies that are read for one page
)

// shown is a body as the page shows it, and whether that is all of it. Nothing of the rest is kept.
func shown(body []byte) (text string, whole bool) {
	var b bytes.Buffer
	if len(body) > maxRequest || json.Indent(&b, body, "", "  ") != nil {
		return strings.ToValidUTF8(string(body[:min(len(body), maxRequest)]), ""), len(body) <= maxRequest
	}
	return b.String(), true
}

// call is the page of one call, with every webhook's request, attempts and answers.
func (d *Dashboard) call(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64) // what is no number is the beginning
	v, err := d.callView(wordsFor(r), r.PathValue("id"), after)
	if err != nil {
		d.render(w, r, http.StatusNotFound, "failed", map[string]any{"Problem": wordsFor(r).say(err.Error())})
		return
	}
	endpoints, err := d.opts.Outbox.Endpoints()
	if err != nil {
		d.failed(w, r, err)
		return
	}
	hasURL := map[string]bool{}
	for _, e := range endpoints {
		hasURL[e.Name] = e.State != "reads"
	}
	room := maxRequests
	for i := range v.Events {
		for _, delivery := range v.Events[i].CallEvent.Deliveries {
			_, attempts, err := d.opts.Outbox.Delivery(delivery.ID)
			if err != nil {
				continue // pruned just now
			}
			for n := range attempts {
				attempts[n].Response = strings.ToValidUTF8(attempts[n].Response, "\uFFFD")
			}
			view := deliveryView{Delivery: delivery, Past: attempts, HasURL: hasURL[delivery.Endpoint]}
			if room > 0 {
				var body []byte
				view.ContentType, body, _ = d.opts.Outbox.Sent(delivery.Endpoint, delivery.EventID) // it may have been pruned just now
				room -= len(body)
				view.Request, view.Whole = shown(body)
			}
			if delivery.Redelivered && delivery.ID == r.FormValue("again") {
				v.Again, v.Waits = &delivery, delivery.State == "pending" && r.FormValue("waits") != ""
			}
			v.Events[i].Deliveries = append(v.Events[i].Deliveries, view)
		}
	}
	d.render(w, r, http.StatusOK, "call", v)
}
