package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The size of a chart, in units of its picture: the frame of the counts, and under it that of the
// response times.
const (
	chartLeft  = 74
	chartWidth = 640
	countsTop  = 8
	countsLow  = 128
	timesTop   = 150
	timesLow   = 210
	markRoom   = 24 // half the width of a mark
)

// chart is what an endpoint, or all of them, have done in a span.
type chart struct {
	ID, Name string // of the endpoint; empty for all
	Span     string
	Start    time.Time // of the counting, if that is later than the chart's beginning

	Bars   []bar
	Marks  []mark // on the axis of time
	Most   uint32 // the highest count of a point
	Events uint32 // totals, likewise Taken and Failed
	Taken  uint32
	Failed uint32

	P50, P99  string // points of the lines of response times
	Slowest   time.Duration
	HasTimes  bool
	HasEvents bool // events received are counted for all endpoints together
}

// bar is one point of a chart: the places and heights of its counts. Events stand at X, attempts
// beside them at X2.
type bar struct {
	X, X2, Width    float64
	EventsY, Events float64
	TakenY, Taken   float64
	FailY, Fail     float64
}

// mark is a time on an axis.
type mark struct {
	X    float64
	Text string
}

// newChart draws the points of a span.
func newChart(name string, of span, points []counts, began time.Time) chart {
	c := chart{
		ID:        "c-" + name,
		Name:      name,
		Span:      of.name,
		HasEvents: name == "",
		Most:      1,
	}
	var slowest time.Duration
	for i := range points {
		p := &points[i]
		c.Most = max(c.Most, p.Delivered+p.Failed)
		if c.HasEvents {
			c.Most = max(c.Most, p.Received)
		}
		c.Events += p.Received
		c.Taken += p.Delivered
		c.Failed += p.Failed
		slowest = max(slowest, p.quantile(0.99))
	}
	c.HasTimes, c.Slowest = slowest > 0, slowest
	step := float64(chartWidth-chartLeft) / float64(len(points))
	scale := func(n uint32) float64 {
		return float64(n) / float64(c.Most) * (countsLow - countsTop)
	}
	for i := range points {
		p := &points[i]
		b := bar{X: chartLeft + float64(i)*step, Width: step * 0.42, Taken: scale(p.Delivered), Fail: scale(p.Failed)}
		if b.X2 = b.X + b.Width; !c.HasEvents {
			b.X2, b.Width = b.X, 2*b.Width
		} else {
			b.Events = scale(p.Received)
		}
		b.EventsY, b.TakenY = countsLow-b.Events, countsLow-b.Taken
		b.FailY = b.TakenY - b.Fail
		if p.Received+p.Delivered+p.Failed > 0 {
			c.Bars = append(c.Bars, b)
		}
	}
	if c.HasTimes {
		c.P50, c.P99 = timeLine(points, 0.5, slowest, step), timeLine(points, 0.99, slowest, step)
	}
	c.Marks = timeMarks(of, began, step)
	return c
}

// timeLine returns the points of a line of response times. It is broken where there was no attempt,
// as a path is.
func timeLine(points []counts, part float64, slowest time.Duration, step float64) string {
	var b strings.Builder
	pen := "M"
	for i := range points {
		took := points[i].quantile(part)
		if took == 0 {
			pen = "M"
			continue
		}
		x := chartLeft + (float64(i)+0.5)*step
		y := timesLow - float64(took)/float64(slowest)*(timesLow-timesTop)
		fmt.Fprintf(&b, "%s%.1f %.1f", pen, x, y)
		if pen == "M" {
			fmt.Fprintf(&b, "h.1") // so that a single point shows
		}
		pen = "L"
	}
	return b.String()
}

// timeMarks returns about five round times within a span.
func timeMarks(of span, began time.Time, step float64) (list []mark) {
	every, format := 15*time.Minute, "15:04"
	switch of.name {
	case "day":
		every = 6 * time.Hour
	case "week":
		every, format = 24*time.Hour, "02.01"
	}
	began = began.Local()
	_, offset := began.Zone()
	shift := time.Duration(offset) * time.Second
	for at := began.Add(shift).Truncate(every).Add(-shift); ; at = at.Add(every) {
		i := float64(at.Sub(began)) / float64(of.step)
		x := chartLeft + i*step
		if x > chartWidth-markRoom {
			return list
		}
		if i >= 0 {
			list = append(list, mark{X: x, Text: at.Format(format)})
		}
	}
}

// chartOf draws the chart of an endpoint, or of all if name is empty.
func (d *Dashboard) chartOf(name string, of int, now time.Time) chart {
	points, began := d.opts.Stats.points(name, of, now)
	c := newChart(name, spans[of], points, began)
	if start := d.opts.Stats.start(now); of == 0 && !start.IsZero() {
		c.Start = start
	}
	return c
}

// Point is one point of a chart.
type Point struct {
	At                          time.Time // its beginning
	Received, Delivered, Failed uint32    // events; attempts
	P50, P99                    time.Duration
}

// Charts returns what the charts of a span show: the names of the endpoints, the empty one of all
// together first, and the points of each, with the time from one to the next.
func (d *Dashboard) Charts(
	ctx context.Context, spanName string,
) (step time.Duration, names []string, points map[string][]Point, err error) {
	of := spanOf(spanName)
	names, err = d.charted(ctx)
	now := time.Now()
	points = map[string][]Point{}
	for _, name := range names {
		list, began := d.opts.Stats.points(name, of, now)
		for i := range list {
			p := &list[i]
			points[name] = append(points[name], Point{
				At:       began.Add(time.Duration(i) * spans[of].step).UTC(),
				Received: p.Received, Delivered: p.Delivered, Failed: p.Failed,
				P50: p.quantile(0.5), P99: p.quantile(0.99),
			})
		}
	}
	return spans[of].step, names, points, err
}

// spanOf returns the number of a span, that of the first one for a name that is none.
func spanOf(name string) int {
	return max(0, slices.IndexFunc(spans, func(s span) bool { return s.name == name }))
}

// charted are the endpoints that have a chart, the empty name for all together first.
func (d *Dashboard) charted(ctx context.Context) ([]string, error) {
	list, err := d.opts.Outbox.Endpoints(ctx)
	names := []string{""}
	for _, e := range list {
		if e.State != "reads" {
			names = append(names, e.Name)
		}
	}
	return names, err
}

// charts serves the charts of all endpoints together and of each, over the span that is asked for.
func (d *Dashboard) charts(w http.ResponseWriter, r *http.Request) {
	of := spanOf(r.FormValue("span"))
	names, err := d.charted(r.Context())
	if err != nil {
		d.renderError(w, r, err)
		return
	}
	now := time.Now()
	data := struct {
		Span   string
		Spans  []string
		Charts []chart
	}{Span: spans[of].name}
	for _, s := range spans {
		data.Spans = append(data.Spans, s.name)
	}
	for _, name := range names {
		data.Charts = append(data.Charts, d.chartOf(name, of, now))
	}
	d.render(w, r, http.StatusOK, "charts", wordsFor(r)["Charts"], data)
}
