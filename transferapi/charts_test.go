package transferapi

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// someCharts are the charts of one endpoint.
func someCharts(_ context.Context, span string) (Charts, error) {
	at, received := time.Unix(60, 0).UTC(), uint32(3)
	return Charts{Span: span, Step: 60, Charts: []Chart{
		{Points: []ChartPoint{{At: at, Received: &received, Delivered: 2, Failed: 1, P50: 1.4, P99: 5.6}}},
		{Endpoint: "crm", Points: []ChartPoint{{At: at}}},
	}}, nil
}

func TestCharts(t *testing.T) {
	a := newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{})
	const points = `"step_seconds":60,"charts":[` +
		`{"points":[{"at":"1970-01-01T00:01:00Z","received":3,"delivered":2,"failed":1,"p50_ms":1.4,"p99_ms":5.6}]},` +
		`{"endpoint":"crm","points":[{"at":"1970-01-01T00:01:00Z","delivered":0,"failed":0}]}]}`
	for query, want := range map[string]string{
		"":           `{"span":"hour",` + points,
		"?span=week": `{"span":"week",` + points,
	} {
		if w := get(a, "/v1/charts"+query, operatorToken); w.Code != 200 || strings.TrimSpace(w.Body.String()) != want {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	for query, want := range map[string]string{"?span=year": `"field":"span"`, "?from=1": `"field":"from"`} {
		if w := get(a, "/v1/charts"+query, operatorToken); w.Code != 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if w := get(a, "/v1/charts", crmToken); w.Code != 403 {
		t.Errorf("a CRM gets %d", w.Code)
	}
	a.opts.Charts = func(context.Context, string) (Charts, error) { return Charts{}, store.ErrDamaged }
	if w := get(a, "/v1/charts", operatorToken); w.Code != 500 || !strings.Contains(w.Body.String(), "damaged") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
