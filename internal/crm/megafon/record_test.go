package megafon

import (
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"sync/atomic"
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
func (b *bench) recorded(call, link string, seconds ...int64) {
	b.t.Helper()
	e := storetest.Event(telephony.EventRecordingReady, call)
	e.From, e.To, e.Direction, e.RecordingURL = client, "102", telephony.Incoming, link
	talk := append(seconds, 60)[0]
	e.Duration = &talk // and the exchange tells no times
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
		b.recorded("7", ownLink, 20) // of another part of the call
		b.delivered(8)
		if len(told(&webasyst.CRM)) != 9 {
			t.Errorf("without a link, or of another part, it was told %q", told(&webasyst.CRM))
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

// A CRM that is away when a call ends gets the recording after the end, and all else as it was.
func TestRecordingWaitsForTheEndOfItsCall(t *testing.T) {
	webasyst := megafontest.NewWebasyst(crmKey)
	var isAway atomic.Bool
	gate := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isAway.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		webasyst.ServeHTTP(w, r)
	})
	inBubble(t, gate, settings(t), func(b *bench) {
		b.servesRecordings = true
		b.close()
		b.open()
		b.says(telephony.EventIncoming, "7", client, "102")
		isAway.Store(true)
		b.says(telephony.EventCompleted, "7", client, "102", time.Minute)
		b.recorded("7", ownLink)
		time.Sleep(10 * time.Minute)
		isAway.Store(false)
		time.Sleep(6 * time.Hour)
		if calls := webasyst.Calls(); len(calls) != 1 || calls[0].Link != ownLink {
			t.Errorf("Webasyst has %+v", calls)
		}
		starts := map[string]bool{}
		requests, _ := webasyst.Requests()
		for _, r := range requests {
			if r.Form.Get("cmd") == "history" {
				starts[r.Form.Get("start")] = true
			}
		}
		if len(starts) != 1 {
			t.Errorf("the call has begun at %v", starts)
		}
	})
}
