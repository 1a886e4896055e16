package transferapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/pb33f/libopenapi"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	"github.com/pb33f/libopenapi/datamodel/high/base"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

func descriptionModel(t *testing.T) *v3.Document {
	t.Helper()
	document, err := libopenapi.NewDocument(description)
	if err != nil {
		t.Fatal(err)
	}
	model, err := document.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	return &model.Model
}

// schemaOf returns the schema of an event's type, by the discriminator's mapping, as a program
// would.
func schemaOf(t *testing.T, d *v3.Document, kind string) *base.Schema {
	t.Helper()
	ref, _ := d.Components.Schemas.GetOrZero("Event").Schema().Discriminator.Mapping.Get(kind)
	proxy := d.Components.Schemas.GetOrZero(strings.TrimPrefix(ref, "#/components/schemas/"))
	if proxy == nil {
		t.Fatalf("there is no schema of %s", kind)
	}
	return proxy.Schema()
}

// fits reports whether a body matches a schema, and if not, why.
func fits(schema *base.Schema, body string) (bool, string) {
	ok, errs := schema_validation.NewSchemaValidator().ValidateSchemaString(schema, body)
	var why strings.Builder
	for _, err := range errs {
		why.WriteString(err.Error())
		for _, reason := range err.SchemaValidationErrors {
			why.WriteString("; " + reason.Error())
		}
	}
	return ok, why.String()
}

// golden returns the lines of a golden file. It replaces the ellipses, which stand for IDs and
// times, with valid values.
func golden(t *testing.T, path string) (lines []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, at := regexp.MustCompile(`"id":"…"`), regexp.MustCompile(`"(timestamp|answer_by)":"…"`)
	for scan := bufio.NewScanner(f); scan.Scan(); {
		line := id.ReplaceAllString(scan.Text(), `"id":"019376aa-0000-7000-8000-000000000001"`)
		lines = append(lines, at.ReplaceAllString(line, `"$1":"2026-11-24T06:25:53.718Z"`))
	}
	return lines
}

func kindOf(t *testing.T, body string) string {
	t.Helper()
	var e struct{ Type string }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return e.Type
}

// The golden webhooks match the description, and together with the operational ones they cover
// every type.
func TestGoldenWebhooksMatchDescription(t *testing.T) {
	d := descriptionModel(t)
	bodies := slices.Concat(
		golden(t, "../internal/pztest/testdata/webhooks-ws.jsonl"),
		golden(t, "../internal/pztest/testdata/webhooks-wss.jsonl"),
		golden(t, "../outbox/webhook/testdata/format-standard.txt"), operational(t), []string{testEvent(t)})
	question := d.Webhooks.GetOrZero("question").Post.RequestBody.Content.GetOrZero("application/json").Schema.Schema()
	event := d.Webhooks.GetOrZero("event").Post.RequestBody.Content.GetOrZero("application/json").Schema.Schema()
	seen := map[string]bool{}
	for _, body := range bodies {
		kind := kindOf(t, body)
		seen[kind] = true
		for _, schema := range []*base.Schema{schemaOf(t, d, kind), event} {
			if ok, why := fits(schema, body); !ok {
				t.Errorf("%s is not what the description says: %s", body, why)
			}
		}
		if ok, _ := fits(question, body); ok != (kind == "call.transfer_requested") {
			t.Errorf("%s: that it is a question is %v", body, ok)
		}
	}
	for _, kind := range slices.Concat(
		telephony.EventTypes, telephony.OperationalTypes, []telephony.EventType{"pzbridge.test"},
	) {
		if !seen[string(kind)] {
			t.Errorf("there is no golden webhook of %s", kind)
		}
	}
	for name, file := range map[string]string{"FlatEvent": "flat", "VendorEvent": "pz", "TextEvent": "text"} {
		for _, body := range golden(t, "../outbox/webhook/testdata/format-"+file+".txt") {
			if ok, why := fits(d.Components.Schemas.GetOrZero(name).Schema(), body); !ok {
				t.Errorf("%s is no %s: %s", body, name, why)
			}
		}
	}
}

// readingBox opens an outbox whose endpoint "crm" has no URL and reads its events.
func readingBox(t *testing.T, filter store.Filter) *box {
	t.Helper()
	return openBox(t, storetest.Options{Endpoints: []store.Endpoint{{
		Name:        "crm",
		Events:      filter,
		Timeout:     time.Second,
		Concurrency: 1,
		RingingTTL:  time.Second,
	}}})
}

// operational returns the webhooks of the operational events, as the outbox stores them.
func operational(t *testing.T) (bodies []string) {
	t.Helper()
	b := readingBox(t, store.Filter{"bridge.*", "endpoint.*", "delivery.dead", "alert.*"})
	for _, e := range []telephony.Event{
		{Type: telephony.EventConnected},
		{Type: telephony.EventDisconnected, Reason: "connection refused"},
		{Type: telephony.EventEndpointFailing, Endpoint: "crm", Reason: "HTTP 500"},
		{Type: telephony.EventEndpointRecovered, Endpoint: "crm"},
		{
			Type:       telephony.EventDeliveryDead,
			Endpoint:   "crm",
			DeliveryID: "019376aa-0000-7000-8000-000000000001.crm",
			Reason:     "HTTP 410",
		},
		{Type: telephony.EventAlertDisconnected, Text: "There is no connection."},
		{Type: telephony.EventAlertEndpointFailing, Endpoint: "crm", Text: "crm takes nothing."},
		{Type: telephony.EventAlertDeliveryDead, Endpoint: "crm", Text: "crm has not got 3 events."},
		{Type: telephony.EventAlertOutboxFull, Text: "There is room again.", Recovered: true},
		{Type: telephony.EventAlertCommandsRefused, Text: "3 calls were refused."},
	} {
		e.ID, e.Time = uuid.Must(uuid.NewV7()).String(), time.Now()
		if _, err := b.Append(t.Context(), []telephony.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	var page struct{ Events []json.RawMessage }
	w := get(newAPI(t, &exchange{}, b, &bytes.Buffer{}), "/v1/events", crmToken)
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
		t.Fatal(err)
	}
	for _, body := range page.Events {
		bodies = append(bodies, string(body))
	}
	return bodies
}

// testEvent returns the body of the test event that a CRM receives.
func testEvent(t *testing.T) (body string) {
	t.Helper()
	crm := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		sent, _ := io.ReadAll(r.Body)
		body = string(sent)
	}))
	defer crm.Close()
	if _, _, err := newBoxAt(t, crm.URL).SendTest(t.Context(), "crm"); err != nil {
		t.Fatal(err)
	}
	return body
}

// The validation of webhooks can fail: a body with an extra, a missing or a wrong member does not
// match.
func TestWebhookSchemasAreStrict(t *testing.T) {
	d := descriptionModel(t)
	const right = `{"id":"019376aa-0000-7000-8000-000000000001","type":"call.incoming",` +
		`"timestamp":"2026-11-24T06:25:53.718Z",` +
		`"data":{"call_id":"5","sequence":1,"from":"1","direction":"incoming","replayed":false,"pz":{"type":"2"}}}`
	for _, c := range []struct{ from, to string }{
		{`"replayed":false,`, ``},
		{`"replayed":false`, `"replayed":"no"`},
		{`"from":"1"`, `"from":1`},
		{`"from":"1"`, `"form":"1"`},
		{`"direction":"incoming"`, `"direction":"outgoing"`},
		{`"sequence":1,`, ``},
		{`"sequence":1`, `"sequence":"1"`},
		{`call.incoming`, `call.ringing`},
		{`"type":"2"`, `"type":2`},
		{`"data"`, `"date"`},
		{`"id":`, `"more":1,"id":`},
	} {
		wrong := strings.Replace(right, c.from, c.to, 1)
		if ok, _ := fits(schemaOf(t, d, "call.incoming"), wrong); ok || wrong == right {
			t.Errorf("it is one: %s", wrong)
		}
		if ok, _ := fits(d.Components.Schemas.GetOrZero("Webhook").Schema(), wrong); ok {
			t.Errorf("it is some webhook: %s", wrong)
		}
	}
	if ok, why := fits(schemaOf(t, d, "call.incoming"), right); !ok {
		t.Errorf("the right one is none: %s", why)
	}
}
