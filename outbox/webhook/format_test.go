package webhook

import (
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

var update = flag.Bool("update", false, "write the golden files again")

// formatted are the events of the golden files.
func formatted() []telephony.Event {
	talk := int64(60)
	at := time.Date(2026, 11, 24, 6, 25, 53, 718_000_000, time.UTC)
	return []telephony.Event{
		{
			ID:        "019376aa-0000-7000-8000-000000000001",
			Type:      "call.transfer_requested",
			Time:      at,
			CallID:    "18446744073709551615",
			From:      "+7 (343) & \"x\"",
			Line:      "2",
			Direction: "incoming",
			Wire: []telephony.Attr{
				{Name: "type", Value: "1"},
				{Name: "callID", Value: "18446744073709551615"},
				{Name: "from", Value: "+7 (343) & \"x\""},
				{Name: "line", Value: "2"},
			},
		},
		{
			ID:           "019376aa-0000-7000-8000-000000000002",
			Type:         "call.completed",
			Time:         at,
			CallID:       "5",
			From:         "73430112233",
			To:           "101",
			Direction:    "incoming",
			Client:       "+73430112233",
			Extension:    "101",
			StartedAt:    time.Unix(1385035625, 0).UTC(),
			EndedAt:      time.Unix(1385035685, 0).UTC(),
			Duration:     &talk,
			RecordingURL: "ftp://somehost/1.mp3?a=1&b=2",
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
			ID:     "019376aa-0000-7000-8000-000000000003",
			Type:   "sms.sent",
			Time:   at,
			CallID: "6",
			From:   "101",
			To:     "102",
			Text:   "Привет =&\n",
			Wire: []telephony.Attr{
				{Name: "type", Value: "128"},
				{Name: "callID", Value: "6"},
				{Name: "from", Value: "101"},
				{Name: "to", Value: "102"},
				{Name: "smstext", Value: "0J8="},
			},
		},
		{ID: "019376aa-0000-7000-8000-000000000004", Type: "pz.event", Time: at},
		{
			ID:           "019376aa-0000-5000-8000-000000000007",
			Type:         "call.recording_ready",
			Time:         at,
			CallID:       "5",
			From:         "73430112233",
			To:           "101",
			Direction:    "incoming",
			Client:       "+73430112233",
			Extension:    "101",
			StartedAt:    time.Unix(1385035625, 0).UTC(),
			EndedAt:      time.Unix(1385035685, 0).UTC(),
			Duration:     &talk,
			RecordingURL: "https://bridge.example/v1/recordings/1.mp3?until=1&signature=x",
			Recording:    &telephony.Recording{Size: 960_044, Type: "audio/mpeg"},
		},
		{
			ID:        "019376aa-0000-7000-8000-000000000005",
			Type:      "call.outgoing",
			Time:      at,
			CallID:    "7",
			From:      "101",
			To:        "102",
			Direction: "outgoing",
			Extension: "101",
			Internal:  true,
		},
		{
			ID:       "019376aa-0000-7000-8000-000000000006",
			Type:     "alert.endpoint_failing",
			Time:     at,
			Endpoint: "crm",
			Text:     `crm says "no".`,
		},
	}
}

// What an endpoint gets of some events in each format is what the golden file holds.
func TestFormatsAreThoseOfTheGoldenFiles(t *testing.T) {
	events := formatted()
	for _, f := range store.Formats {
		var got strings.Builder
		for i := range events {
			e, err := store.Encode(&events[i], 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			outcome := store.OutcomeOf(&e, func(func(store.Event) bool) {})
			_, sent := Formatter{}.Render(f, e.AppendBody(nil, 3, outcome))
			if f == store.FormatForm {
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
func TestEveryFormatIsSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := []byte("aaaaaaaaaaaaaaaaaaaaaaaa")
		verifier, err := standardwebhooks.NewWebhookRaw(secret)
		if err != nil {
			t.Fatal(err)
		}
		types := map[string]string{}
		l := pipenet.Listen()
		server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if err := verifier.Verify(body, r.Header); err != nil {
				t.Errorf("%s: %v", r.URL.Path, err)
			}
			types[r.URL.Path] = r.Header.Get("Content-Type")
		})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(l) })
		event := telephony.Event{ID: "019376aa-0000-7000-8000-000000000005", Type: "call.completed", CallID: "5"}
		encoded, err := store.Encode(&event, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		job := store.Job{EventID: event.ID, Event: encoded.Event}
		job.Event.Body = encoded.AppendBody(nil, 1, "")
		for _, f := range store.Formats {
			s := New(store.Endpoint{
				Name:        "crm",
				URL:         "http://crm.example/" + string(f),
				Secrets:     [][]byte{secret},
				Format:      f,
				Timeout:     15 * time.Second,
				Concurrency: 1,
			}, Options{DialContext: l.Dial})
			if o := s.Send(t.Context(), job); o.Verdict != store.Done {
				t.Errorf("%s: %+v", f, o)
			}
			s.Close()
		}
		_ = server.Close()
		serving.Wait()
		const form = "application/x-www-form-urlencoded"
		if len(types) != len(store.Formats) || types["/form"] != form || types["/flat"] != "application/json" {
			t.Errorf("content types: %v", types)
		}
	})
}
