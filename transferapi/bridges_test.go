package transferapi

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// twoBridges are the bridges of a cluster, of which the second has an endpoint configured in
// another way, and one more.
type twoBridges struct{}

func (twoBridges) Bridges(context.Context) ([]store.Bridge, error) {
	at := time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)
	return []store.Bridge{
		{
			Name:      "bridge1",
			Version:   "1",
			Started:   at,
			Seen:      at.Add(time.Minute),
			Working:   true,
			Connected: true,
			Endpoints: map[string]string{"crm": "a", "sheet": "b"},
		},
		{
			Name:      "bridge2",
			Version:   "1",
			Started:   at,
			Seen:      at,
			Endpoints: map[string]string{"crm": "x", "sheet": "b", "new": "c"},
		},
	}, nil
}

func TestBridgesAreListedWithWhatDiffers(t *testing.T) {
	a := newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{})
	w := get(a, "/v1/bridges", operatorToken)
	for _, want := range []string{
		`"name":"bridge1","version":"1","started_at":"2026-12-01T10:00:00Z","seen_at":"2026-12-01T10:01:00Z",` +
			`"at_work":true,"connected":true,"endpoints":["crm","sheet"],"differing":["crm"]`,
		`"at_work":false,"connected":false,"endpoints":["crm","new","sheet"],"differing":["crm","new"]`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d %s\nlacks %s", w.Code, w.Body, want)
		}
	}
	if w := get(a, "/v1/bridges", crmToken); w.Code != 403 {
		t.Errorf("a CRM gets %d", w.Code)
	}
}
