package transferapi

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// threeBridges are bridges on one database. The second has an endpoint configured in another way
// than the first, and one more; the third has died.
type threeBridges struct{ now time.Time }

func (l threeBridges) Bridges(context.Context) ([]store.Bridge, error) {
	return []store.Bridge{
		{
			Name:      "bridge1",
			Version:   "1",
			Started:   l.now.Add(-time.Hour),
			Seen:      l.now,
			Connected: true,
			Lanes:     []string{"crm", "sheet"},
			Endpoints: map[string]string{"crm": "a", "sheet": "b"},
		},
		{
			Name:      "bridge2",
			Version:   "1",
			Started:   l.now.Add(-time.Hour),
			Seen:      l.now,
			Endpoints: map[string]string{"crm": "x", "sheet": "b", "new": "c"},
		},
		{
			Name:      "bridge3",
			Version:   "1",
			Started:   l.now.Add(-time.Hour),
			Seen:      l.now.Add(-time.Minute),
			Connected: true,
			Endpoints: map[string]string{"old": "d"},
		},
	}, nil
}

// A bridge that has died is neither connected nor compared with the others.
func TestBridgesAreListedWithWhatDiffers(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	a := newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{})
	a.opts.Bridges = threeBridges{now}
	w := get(a, "/v1/bridges", operatorToken)
	started, seen, died := now.Add(-time.Hour).Format(time.RFC3339), now.Format(time.RFC3339),
		now.Add(-time.Minute).Format(time.RFC3339)
	want := fmt.Sprintf(`{"bridges":[{"name":"bridge1","version":"1","started_at":"%[1]s","seen_at":"%[2]s",`+
		`"connected":true,"lanes":["crm","sheet"],"endpoints":["crm","sheet"],`+
		`"lacking":["new"],"differing":["crm"]},`+
		`{"name":"bridge2","version":"1","started_at":"%[1]s","seen_at":"%[2]s",`+
		`"connected":false,"lanes":[],"endpoints":["crm","new","sheet"],"differing":["crm"]},`+
		`{"name":"bridge3","version":"1","started_at":"%[1]s","seen_at":"%[3]s",`+
		`"connected":false,"lanes":[],"endpoints":["old"]}]}`, started, seen, died)
	if got := strings.TrimSpace(w.Body.String()); got != want {
		t.Errorf("%d %s\nwant %s", w.Code, got, want)
	}
	if w := get(a, "/v1/bridges", crmToken); w.Code != 403 {
		t.Errorf("a CRM gets %d", w.Code)
	}
}

// Where several bridges share the outbox, each endpoint has the name of the one that delivers to
// it.
func TestEndpointsNameTheBridgeThatDelivers(t *testing.T) {
	o := newBox(t)
	o.endpoints = []outbox.EndpointStatus{
		{Name: "crm", State: "ok", DeliveredBy: "bridge2"},
		{Name: "new", State: "ok"},
	}
	w := get(newAPI(t, &exchange{}, o, &bytes.Buffer{}), "/v1/endpoints", operatorToken)
	const counts = `"deliveries":{"pending":0,"delivered":0,"expired":0,"dead":0}}`
	const want = `{"endpoints":[{"name":"crm","state":"ok","delivered_by":"bridge2",` + counts +
		`,{"name":"new","state":"ok",` + counts + `]}`
	if got := strings.TrimSpace(w.Body.String()); got != want {
		t.Errorf("%d %s\nwant %s", w.Code, got, want)
	}
}
