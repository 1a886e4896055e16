package crm

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// What a sender reads is what the store has written.
func TestEventIsReadAsItWasStored(t *testing.T) {
	seconds := int64(61)
	began := time.Date(2026, 11, 23, 6, 25, 5, 0, time.UTC)
	e := telephony.Event{
		ID: uuid.NewString(), Type: telephony.EventCompleted, Time: began.Add(time.Hour), CallID: "7",
		From: "SIP/101", To: "83430112233", Line: "73432000000", Direction: telephony.Outgoing,
		Client: "+73430112233", Extension: "101", StartedAt: began, EndedAt: began.Add(70 * time.Second),
		Duration: &seconds, RecordingURL: "ftp://office/7.wav", Replayed: true,
	}
	stored, err := store.Encode(&e, 0)
	if err != nil {
		t.Fatal(err)
	}
	stored.Body = stored.AppendBody(nil, 3, telephony.OutcomeAnswered)
	got, err := Read(stored.Event)
	if err != nil {
		t.Fatal(err)
	}
	want := Event{
		Type: telephony.EventCompleted, CallID: "7", Client: "+73430112233", Extension: "101", Line: "73432000000",
		Direction: telephony.Outgoing, StartedAt: began, EndedAt: began.Add(70 * time.Second),
		Duration: 61 * time.Second, Outcome: telephony.OutcomeAnswered, Recording: "ftp://office/7.wav", Replayed: true,
	}
	if got != want {
		t.Errorf("read\n%+v\nwant\n%+v", got, want)
	}
	if _, err := Read(store.Event{Body: []byte("{")}); err == nil {
		t.Error("a body that is cut off is read")
	}
}

func TestCallsBeganWhenItIsKnown(t *testing.T) {
	read := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	ended := read.Add(-time.Hour)
	for want, e := range map[time.Time]Event{
		ended.Add(-time.Minute): {EndedAt: ended, Duration: time.Minute},
		ended.Add(-time.Hour):   {StartedAt: ended.Add(-time.Hour), EndedAt: ended, Duration: time.Minute},
		read.Add(-time.Minute):  {Duration: time.Minute},
		read:                    {},
	} {
		if got := e.Began(read); !got.Equal(want) {
			t.Errorf("%+v began at %s, want %s", e, got, want)
		}
	}
}
