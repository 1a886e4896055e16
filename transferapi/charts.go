package transferapi

import (
	"cmp"
	"net/http"
	"time"
)

// Charts are the counts of the dashboard's charts over a span.
type Charts struct {
	Span   string  `json:"span"`         // hour, day or week
	Step   int     `json:"step_seconds"` // from one point to the next
	Charts []Chart `json:"charts"`       // that of all endpoints together first
}

// Chart is the counts of one endpoint, or of all together.
type Chart struct {
	Endpoint string       `json:"endpoint,omitempty"` // absent: all
	Points   []ChartPoint `json:"points"`             // the oldest first
}

// ChartPoint is the counts of one step.
type ChartPoint struct {
	At        time.Time `json:"at"`                 // its beginning
	Received  *uint32   `json:"received,omitempty"` // events, of all endpoints together alone
	Delivered uint32    `json:"delivered"`          // attempts
	Failed    uint32    `json:"failed"`             // attempts
	P50       float64   `json:"p50_ms,omitempty"`   // response times of the attempts; absent if there was none
	P99       float64   `json:"p99_ms,omitempty"`
}

// getCharts gives the counts of the dashboard's charts.
func (a *API) getCharts(r *http.Request) answer {
	values, refusal := readQuery(r, "span")
	if refusal != nil {
		return problemAnswer(*refusal)
	}
	span, err := readChoice(values, "span", "hour", "day", "week")
	if err != nil {
		return problemAnswer(*badFields(err))
	}
	charts, err := a.opts.Charts(r.Context(), cmp.Or(span, "hour"))
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	return okAnswer(charts)
}
