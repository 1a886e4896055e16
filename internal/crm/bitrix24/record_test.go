package bitrix24

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// kept are the recordings that the bridge has fetched, by the ID of their event.
type kept map[string]file

type file struct{ name, content string }

func (k kept) Open(eventID string) (f io.ReadCloser, name string, size int64, err error) {
	found, ok := k[eventID]
	if !ok {
		return nil, "", 0, fs.ErrNotExist
	}
	return io.NopCloser(strings.NewReader(found.content)), found.name, int64(len(found.content)), nil
}

func (k kept) LinkOf(string) string { return "" }

// recorded appends that the recording of a call is ready, and gives the portal time for it.
func (b *bench) recorded(call, name, content string) {
	b.t.Helper()
	e := event(telephony.EventRecordingReady, call, client, "101")
	e.Recording = &telephony.Recording{Size: int64(len(content)), Type: "audio/mpeg"}
	if name != "" {
		b.recordings[e.ID] = file{name, content}
	}
	storetest.MustAppend(b.t, b.box, e)
	time.Sleep(5 * time.Second)
}

// attempts returns all attempts at the portal.
func (b *bench) attempts() (list []store.Attempt) {
	b.t.Helper()
	page, err := b.box.Outbox.Deliveries(b.t.Context(), store.DeliveryQuery{Limit: 100})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, d := range page.Deliveries {
		_, attempts, err := b.box.Outbox.Delivery(b.t.Context(), d.ID)
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, attempts...)
	}
	return list
}

// A recording is attached to its call: a small one in a request, a large one as an upload.
func TestRecordingIsAttached(t *testing.T) {
	for name, size := range map[string]int{"small": 1000, "large": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			content := "ID3" + strings.Repeat("~", size-3)
			inBubble(t, settings(t), func(b *bench) {
				b.says(telephony.EventIncoming, "7", client, "101")
				b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
				b.recorded("7", "rec.mp3", content)
				b.delivered(3)
				if c := b.one(); c.RecordName != "rec.mp3" || string(c.Record) != content {
					t.Errorf("the call has %q of %d bytes", c.RecordName, len(c.Record))
				}
				b.recorded("7", "again.wav", "RIFF")
				if c := b.one(); c.RecordName != "again.wav" || string(c.Record) != "RIFF" {
					t.Errorf("the call has %q of %d bytes", c.RecordName, len(c.Record))
				}
			})
		})
	}
}

// A call that the portal had before, since the first answer was lost long ago, gets its recording
// too.
func TestRecordingOfACallOfTheStatistics(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		a := b.sender.do(b.t.Context(), "telephony.externalCall.register", map[string]any{
			"USER_ID": 15, "PHONE_NUMBER": known, "TYPE": 2, "EXTERNAL_CALL_ID": "7", "ADD_TO_CHAT": 0,
		}, false, nil)
		var made struct {
			ID string `json:"CALL_ID"`
		}
		if err := json.Unmarshal(a.result, &made); err != nil {
			t.Fatal(err)
		}
		b.sender.do(b.t.Context(), "telephony.externalCall.finish", map[string]any{
			"CALL_ID": made.ID, "USER_ID": 15, "DURATION": 60, "ADD_TO_CHAT": 0,
		}, false, nil)
		e := event(telephony.EventCompleted, "7", client, "101", time.Minute)
		e.StartedAt, e.EndedAt = e.StartedAt.Add(-time.Hour), e.EndedAt.Add(-time.Hour)
		storetest.MustAppend(t, b.box, e)
		time.Sleep(5 * time.Second)
		b.recorded("7", "rec.mp3", "ID3")
		if c := b.one(); string(c.Record) != "ID3" {
			t.Errorf("the call is %+v", c)
		}
	})
}

// What the portal cannot take, or the bridge has no longer, is left out and says why.
func TestRecordingThatIsLeftOut(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		b.recorded("7", "rec.ogg", "OggS")
		b.recorded("7", "", "")
		b.delivered(3)
		b.wantMade("register", "finish")
		whys := map[string]bool{}
		for _, a := range b.attempts() {
			whys[strings.TrimPrefix(a.Response, store.NothingToSend)] = true
		}
		for _, why := range []string{
			"the portal takes recordings in mp3 and wav alone", "the recording is kept no longer",
		} {
			if !whys[why] {
				t.Errorf("nothing was left out because %s: %v", why, whys)
			}
		}
	})
}

// A recording goes to the portal alone, whatever address that names, and the address, which holds a
// token, is shown nowhere.
func TestRecordingGoesToThePortalAlone(t *testing.T) {
	inBubble(t, settings(t), func(b *bench) {
		var named atomic.Pointer[string]
		b.proxy = func(w http.ResponseWriter, r *http.Request) {
			address := named.Load()
			if address == nil {
				b.portal.ServeHTTP(w, r)
				return
			}
			body, _ := io.ReadAll(r.Body)
			if bytes.Contains(body, []byte("~~~~")) {
				t.Errorf("the file was sent to %s", r.URL)
			}
			_, _ = fmt.Fprintf(w, `{"result":{"uploadUrl":%q,"fieldName":"file"}}`, *address)
		}
		b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
		for _, address := range []string{
			"http://evil.example/x?token=t0kent0ken", "", "http://firm.bitrix24.ru:81/t0kent0ken",
		} {
			named.Store(&address)
			b.recorded("7", "rec.mp3", "ID3"+strings.Repeat("~", 1<<20))
		}
		states := storetest.States(t, b.box, "crm")
		if states[store.Dead] != 3 {
			t.Errorf("%v", states)
		}
		if text := fmt.Sprint(b.attempts()); strings.Contains(text, "t0ken") {
			t.Errorf("the token is shown: %s", text)
		}
	})
}

// A portal that is away when a call ends gets its recording after the end, also if the hold is over
// meanwhile.
func TestRecordingWaitsForTheEndOfItsCall(t *testing.T) {
	for name, rang := range map[string]bool{"only its end": false, "it rang before": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				var isAway atomic.Bool
				b.proxy = func(w http.ResponseWriter, r *http.Request) {
					if isAway.Load() {
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					b.portal.ServeHTTP(w, r)
				}
				if rang {
					b.says(telephony.EventIncoming, "7", client, "101")
				}
				isAway.Store(true)
				b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
				b.recorded("7", "rec.mp3", "ID3")
				time.Sleep(10 * time.Minute)
				isAway.Store(false)
				time.Sleep(5 * time.Hour)
				if c := b.one(); string(c.Record) != "ID3" {
					t.Errorf("the call is finished: %v, and has the recording %q", c.Finished, c.Record)
				}
			})
		})
	}
}

// What goes wrong with an upload is of the upload alone: it is made again, the portal's cards go
// on, and nothing shows the token in its address.
func TestFailedUpload(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"a page that repeats the address": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = fmt.Fprintf(w, "not found: %s", r.URL)
		},
		"an expired address": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"expired_token","error_description":"x"}`)
		},
		"a limit": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":"QUERY_LIMIT_EXCEEDED","error_description":"x"}`)
		},
		"no answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			inBubble(t, settings(t), func(b *bench) {
				var isBroken atomic.Bool
				isBroken.Store(true)
				b.proxy = func(w http.ResponseWriter, r *http.Request) {
					switch {
					case isBroken.Load() && strings.Contains(r.URL.RawQuery, "t0ken"):
						_, _ = io.Copy(io.Discard, r.Body)
						answer(w, r)
					case isBroken.Load() && strings.Contains(r.URL.Path, "attachRecord"):
						_, _ = io.WriteString(w, `{"result":{"fieldName":"file",
							"uploadUrl":"http://firm.bitrix24.ru/upload/?token=t0kent0ken"}}`)
					default:
						b.portal.ServeHTTP(w, r)
					}
				}
				b.says(telephony.EventCompleted, "7", client, "101", time.Minute)
				b.recorded("7", "rec.mp3", "ID3"+strings.Repeat("~", 1<<20))
				b.says(telephony.EventIncoming, "8", client, "101")
				if n := len(b.portal.Calls()); n != 2 {
					t.Errorf("5 s after it rang the portal has %d calls", n)
				}
				if text := fmt.Sprint(b.attempts()); strings.Contains(text, "t0ken") {
					t.Errorf("the token is shown: %s", text)
				}
				isBroken.Store(false)
				time.Sleep(10 * time.Minute)
				if c := b.portal.Calls()[0]; len(c.Record) != 3+1<<20 {
					t.Errorf("the recording has %d bytes", len(c.Record))
				}
			})
		})
	}
}
