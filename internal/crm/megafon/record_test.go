package megafon

import (
	"io"
	"io/fs"
	"log/slog"
	"testing"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store/storetest"
)

const ownLink = "https://bridge.example/v1/recordings/1.mp3?until=1&signature=x"

// recordings have a link for each call.
type recordings struct{}

func (recordings) Open(string) (f io.ReadCloser, name string, size int64, err error) {
	return nil, "", 0, fs.ErrNotExist
}

func (recordings) LinkOf(string) string { return ownLink }

// recorded appends that the recording of a call is ready.
func (b *bench) recorded(call, link string) {
	b.t.Helper()
	e := storetest.Event(telephony.EventRecordingReady, call)
	e.From, e.To, e.Direction, e.RecordingURL = client, "102", telephony.Incoming, link
	talk := int64(60)
	e.Duration, e.EndedAt, e.StartedAt = &talk, e.Time, e.Time.Add(-time.Minute)
	e.Recording = &telephony.Recording{Size: 1, Type: "audio/mpeg"}
	storetest.MustAppend(b.t, b.box, e)
	time.Sleep(2 * time.Second)
}

// With links of the bridge's own, a CRM has the call without one first, and then once more with the
// link; the list of calls has it too. The exchange's address, inside of the office, is not passed
// on.
func TestRecordingComesLater(t *testing.T) {
	webasyst, salesman := megafontest.NewWebasyst(crmKey), megafontest.NewSalesMan(crmKey)
	with := settings(t)
	inBubble(t, webasyst, with, func(b *bench) {
		b.servesRecordings = true
		b.close()
		b.open()
		b.rings("7")
		if calls := webasyst.Calls(); len(calls) != 1 || calls[0].Link != "" {
			t.Errorf("before the recording is there, Webasyst has %+v", calls)
		}
		b.recorded("7", ownLink)
		b.delivered(6)
		if calls := webasyst.Calls(); len(calls) != 1 || calls[0].Link != ownLink || calls[0].Duration != time.Minute {
			t.Errorf("Webasyst has %+v", calls)
		}
		if list := told(&webasyst.CRM); list[len(list)-1] != "history in Success 102" {
			t.Errorf("it was told %q", list)
		}
		pbx := NewPBX(PBXOptions{
			Gate: &gate{}, Events: events{b}, Notes: b.box.Engine, Settings: map[string]crm.Settings{"crm": with},
			Recordings: recordings{}, Logger: slog.New(slog.DiscardHandler),
		})
		list, err := webasyst.History(b.t.Context(), asking(pbx), bridge, token)
		if err != nil || len(list) != 1 || list[0].Record != ownLink {
			t.Errorf("the list of calls is %+v (%v)", list, err)
		}
		b.recorded("7", "")
		b.recorded("8", ownLink)
		b.delivered(8)
		if len(told(&webasyst.CRM)) != 9 {
			t.Errorf("without a link, or without the call, it was told %q", told(&webasyst.CRM))
		}
		wantNoFaults(t, &webasyst.CRM)
	})
	inBubble(t, salesman, with, func(b *bench) {
		b.rings("7")
		b.recorded("7", ownLink)
		if records := salesman.Records(); len(records) != 1 || records[0].Link != ownLink || records[0].Ext != "102" {
			t.Errorf("SalesMan has %+v", records)
		}
		wantNoFaults(t, &salesman.CRM)
	})
}
