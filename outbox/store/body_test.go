package store

import (
	"encoding/json"
	"testing"
	"time"

	"pzbridge/internal/telephony"
)

// TestBody checks the standard format of an event, byte by byte.
func TestBody(t *testing.T) {
	const id = "019376aa-0000-7000-8000-000000000001"
	zero := int64(0)
	at := time.Date(2026, 11, 23, 6, 25, 53, 718_400_000, time.UTC)
	for name, c := range map[string]struct {
		event telephony.Event
		want  string
	}{
		"everything": {
			telephony.Event{
				ID:           id,
				Type:         "call.completed",
				Time:         at,
				CallID:       "18446744073709551615",
				From:         "73430112233",
				To:           "101",
				Line:         "2",
				Direction:    "incoming",
				StartedAt:    time.Unix(1385035625, 0).UTC(),
				EndedAt:      time.Unix(1385035685, 0).UTC(),
				Duration:     &zero,
				RecordingURL: "ftp://somehost/1.mp3?a=1&b=2",
				Replayed:     true,
				Wire: []telephony.Attr{
					{Name: "type", Value: "4"},
					{Name: "callID", Value: "18446744073709551615"},
					{Name: "line", Value: " "},
				},
			},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"call.completed",` +
				`"timestamp":"2026-11-23T06:25:53.718Z","data":{"call_id":"18446744073709551615",` +
				`"sequence":7,"from":"73430112233","to":"101","line":"2",` +
				`"direction":"incoming","started_at":"2013-11-21T12:07:05Z","ended_at":"2013-11-21T12:08:05Z",` +
				`"duration_seconds":0,"recording_url":"ftp://somehost/1.mp3?a=1&b=2","replayed":true,` +
				`"pz":{"type":"4","callID":"18446744073709551615","line":" "}}}`,
		},
		"hardly anything": {
			telephony.Event{ID: id, Type: "pz.event", Time: at},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"pz.event","timestamp":"2026-11-23T06:25:53.718Z",` +
				`"data":{"replayed":false,"pz":{}}}`,
		},
		"a question": {
			telephony.Event{
				ID:     id,
				Type:   "call.transfer_requested",
				Time:   at,
				CallID: "7",
				From:   "1",
			},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"call.transfer_requested",` +
				`"timestamp":"2026-11-23T06:25:53.718Z","data":{"call_id":"7","sequence":7,"from":"1",` +
				`"answer_by":"2026-11-23T06:26:03.718Z","replayed":false,"pz":{}}}`,
		},
		"a question of long ago": {
			telephony.Event{
				ID:       id,
				Type:     "call.transfer_requested",
				Time:     at,
				CallID:   "7",
				Replayed: true,
			},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"call.transfer_requested",` +
				`"timestamp":"2026-11-23T06:25:53.718Z","data":{"call_id":"7","sequence":7,"replayed":true,"pz":{}}}`,
		},
		"an SMS of a hostile sender": {
			telephony.Event{
				ID:     id,
				Type:   "sms.status",
				Time:   at,
				CallID: "7",
				Text:   "</script>\"\n",
				Status: "failed",
			},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"sms.status",` +
				`"timestamp":"2026-11-23T06:25:53.718Z","data":{"call_id":"7","sequence":7,` +
				`"text":"</script>\"\n","status":"failed","replayed":false,"pz":{}}}`,
		},
	} {
		e, err := Encode(&c.event, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.AppendBody(nil, 7, ""); string(got) != c.want || !json.Valid(got) {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}
