package outbox

import (
	"encoding/json"
	"flag"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pzbridge/internal/telephony"
)

var update = flag.Bool("update", false, "write the golden files anew")

// What an endpoint gets of some events in each format is what the golden file holds.
func TestFormats(t *testing.T) {
	talk := int64(60)
	at := time.Date(2026, 11, 24, 6, 25, 53, 718_000_000, time.UTC)
	events := []telephony.Event{
		{
			ID: "019376aa-0000-7000-8000-000000000001", Type: "call.transfer_requested", Time: at, CallID: "18446744073709551615", From: "+7 (343) & \"x\"", Line: "2",
			Direction: "incoming", Wire: []telephony.Attr{{Name: "type", Value: "1"}, {Name: "callID", Value: "18446744073709551615"}, {Name: "from", Value: "+7 (343) & \"x\""}, {Name: "line", Value: "2"}},
		},
		{
			ID: "019376aa-0000-7000-8000-000000000002", Type: "call.completed", Time: at, CallID: "5", From: "73430112233", To: "101", Direction: "incoming",
			StartedAt: time.Unix(1385035625, 0).UTC(), EndedAt: time.Unix(1385035685, 0).UTC(), Duration: &talk, RecordingURL: "ftp://somehost/1.mp3?a=1&b=2",
			Wire: []telephony.Attr{
				{Name: "type", Value: "4"},
				{Name: "callID", Value: "5"},
				{Name: "from", Value: "73430112233"},
				{Name: "to", Value: "101"},
				{Name: "start", Value: "1385035625"},
				{Name: "end", Value: "1385035685"},
				{Name: "duration", Value: "60"},
				{Name: "direction", Value: "0"},
				{Name: "record", Value: "ftp://somehost/1.mp3?a=1&b=2"},
			},
		},
		{
			ID: "019376aa-0000-7000-8000-000000000003", Type: "sms.sent", Time: at, CallID: "6", From: "101", To: "102", Text: "Привет =&\n",
			Wire: []telephony.Attr{{Name: "type", Value: "128"}, {Name: "callID", Value: "6"}, {Name: "from", Value: "101"}, {Name: "to", Value: "102"}, {Name: "smstext", Value: "0J8="}},
		},
		{ID: "019376aa-0000-7000-8000-000000000004", Type: "pz.event", Time: at},
	}
	for _, f := range Formats {
		var got strings.Builder
		for i := range events {
			r, err := newRecord(&events[i], 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			_, body, err := decodeEventHead(encodeEvent(&r, 3))
			if err != nil {
				t.Fatal(err)
			}
			sent := f.render(body)
			if f == FormatForm {
				if _, err := url.ParseQuery(string(sent)); err != nil {
					t.Errorf("%s: %v", sent, err)
				}
			} else if !json.Valid(sent) {
				t.Errorf("no JSON: %s", sent)
			}
			got.Write(sent)
			got.WriteByte('\n')
		}
		path := filepath.Join("testdata", "format-"+string(f)+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || got.String() != string(want) {
			t.Errorf("%s is not what %s holds (%v):\n%s", f, path, err, got.String())
		}
	}
}

// In every format the signature covers the bytes that are sent, and the header says what they are.
func TestFormatsAreSigned(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		var endpoints []Endpoint
		for _, f := range Formats {
			e := endpoint(string(f))
			e.Format, e.URL = f, "http://crm.example/"+string(f)
			endpoints = append(endpoints, e)
		}
		o := openOutbox(t, Options{Endpoints: endpoints, DialContext: c.net.Dial})
		defer run(t, o)()
		mustAppend(t, o, event("call.completed", "5"))
		synctest.Wait()
		verifier, err := standardwebhooks.NewWebhookRaw(secretA)
		if err != nil {
			t.Fatal(err)
		}
		types := map[string]string{}
		for _, h := range c.received() {
			if err := verifier.Verify(h.body, h.header); err != nil {
				t.Errorf("%s: %v", h.path, err)
			}
			types[h.path] = h.header.Get("Content-Type")
		}
		if len(types) != 4 || types["/form"] != "application/x-www-form-urlencoded" || types["/flat"] != "application/json" {
			t.Errorf("content types: %v", types)
		}
	})
}
