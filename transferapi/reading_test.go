package transferapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// With order=desc the pages run from the newest event to the oldest, for a CRM and the operator;
// types may be prefixes.
func TestEventsAreReadBackwards(t *testing.T) {
	b := newBox(t)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	for i := range 7 {
		// the filter is call.*
		add(t, b, []telephony.EventType{"call.incoming", "call.completed", "sms.sent"}[i%3], fmt.Sprint(i))
	}
	for query, want := range map[string]string{
		"order=desc&limit=2":                             "6 4 3 1 0",
		"order=desc&limit=500":                           "6 4 3 1 0",
		"order=desc&limit=1&types=call.completed":        "4 1",
		"order=desc&after=now":                           "6 4 3 1 0",
		"order=desc&after=4":                             "3 1 0",
		"order=asc&types=call.*,call.completed,sms.sent": "0 1 3 4 6",
		"types=call.*":                                   "0 1 3 4 6",
		"types=sms.*":                                    "",
		"types=sms.*,call.completed":                     "1 4",
	} {
		var all []string
		for cursor, pages := "", 0; ; pages++ {
			w := get(a, "/v1/events?"+query+cursor, crmToken)
			calls, next, more := readPage(t, w)
			all = append(all, calls...)
			if !more || pages == 9 {
				break
			}
			cursor = "&after=" + next
		}
		if got := strings.Join(all, " "); got != want {
			t.Errorf("%s: %s", query, got)
		}
	}
	calls, _, _ := readPage(t, get(a, "/v1/events?order=desc&limit=3", operatorToken))
	if !slices.Equal(calls, []string{"6", "5", "4"}) {
		t.Errorf("the operator's newest page: %v", calls)
	}
	for _, query := range []string{
		"order=down", "wait=5s&order=desc", "types=call.", "types=*", "types=call*", "types=fax.*",
	} {
		if w := get(a, "/v1/events?"+query, crmToken); w.Code != 400 ||
			asProblem(t, w).Field != strings.Split(query, "=")[0] {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}

// readPage decodes a page of events: the call IDs of the events, the cursor, which may be empty,
// and whether there may be more.
func readPage(t *testing.T, w *httptest.ResponseRecorder) (calls []string, cursor string, more bool) {
	t.Helper()
	var page struct {
		Events []struct {
			Data struct {
				CallID string `json:"call_id"`
			} `json:"data"`
		} `json:"events"`
		NextCursor string `json:"next_cursor"`
		More       bool   `json:"more"`
	}
	decode(t, w, &page)
	for _, e := range page.Events {
		calls = append(calls, e.Data.CallID)
	}
	return calls, page.NextCursor, page.More
}

func decode(t *testing.T, w *httptest.ResponseRecorder, into any) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %.300s %v", w.Code, w.Body, err)
	}
}

// A redelivery selects types by prefix too.
func TestRedeliverySelectsTypesByPrefix(t *testing.T) {
	o := &redeliveries{box: newBox(t)}
	a := newAPI(t, &exchange{}, o.box, &bytes.Buffer{})
	a.opts.Deliveries = o
	status := request(t, a, "POST", "/v1/redeliver", operatorToken,
		`{"endpoint":"crm","since":"2026-11-23T06:25:53Z","types":["sms.*","call.completed"]}`, &struct{}{})
	if want := []telephony.EventType{"sms.sent", "sms.status", "call.completed"}; status != 200 ||
		!slices.Equal(o.got.Types, want) {
		t.Errorf("%d, asked for %v", status, o.got.Types)
	}
}

// At most maxPolls requests of a bearer wait for events: the next one is refused at once, one of
// another bearer is not.
func TestWaitingPollsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
		var waiting sync.WaitGroup
		for range maxPolls {
			waiting.Go(func() {
				if w := get(a, "/v1/events?wait=30s", crmToken); w.Code != 200 {
					t.Errorf("one of those that may wait: %d %s", w.Code, w.Body)
				}
			})
		}
		synctest.Wait()
		began := time.Now()
		if w := get(a, "/v1/events?wait=30s", crmToken); w.Code != http.StatusTooManyRequests ||
			w.Header().Get("Retry-After") == "" || time.Since(began) != 0 {
			t.Errorf("one too many, after %s: %d %v %s", time.Since(began), w.Code, w.Header(), w.Body)
		}
		if w := get(a, "/v1/events", crmToken); w.Code != 200 {
			t.Errorf("one that does not wait: %d %s", w.Code, w.Body)
		}
		waiting.Go(func() {
			if calls, _ := read(t, get(a, "/v1/events?wait=30s", operatorToken)); !slices.Equal(calls, []string{"1"}) {
				t.Errorf("another bearer reads %v", calls)
			}
		})
		synctest.Wait()
		add(t, b, "call.incoming", "1")
		waiting.Wait() // each is answered with the event
		if time.Since(began) != 0 {
			t.Errorf("after %s", time.Since(began))
		}
		if w := get(a, "/v1/events?wait=1s&after=now", crmToken); w.Code != 200 {
			t.Errorf("once they are answered: %d %s", w.Code, w.Body)
		}
	})
}

// slowBox is a box whose reads take a while; it counts how many run at the same time.
type slowBox struct {
	*box
	takes               time.Duration
	mu                  sync.Mutex
	running, maxRunning int
}

func (b *slowBox) read() {
	b.mu.Lock()
	b.running++
	b.maxRunning = max(b.maxRunning, b.running)
	b.mu.Unlock()
	time.Sleep(b.takes)
	b.mu.Lock()
	b.running--
	b.mu.Unlock()
}

func (b *slowBox) Events(ctx context.Context, q store.EventQuery) (store.EventPage, error) {
	b.read()
	return b.box.Events(ctx, q)
}

func (b *slowBox) Deliveries(ctx context.Context, q store.DeliveryQuery) (store.DeliveryPage, error) {
	b.read()
	return b.box.Deliveries(ctx, q)
}

func (b *slowBox) Call(ctx context.Context, id string, after uint64) (store.CallPage, error) {
	b.read()
	return b.box.Call(ctx, id, after)
}

func (b *slowBox) RedeliverAll(context.Context, store.Redelivery) (uint32, int, error) {
	b.read()
	return 0, 0, nil
}

// A bearer scans the outbox once at a time. Its other requests wait for the slot, a second at most;
// those of other bearers go on.
func TestBearerScansOnceAtATime(t *testing.T) {
	for takes, refused := range map[time.Duration]int{
		100 * time.Millisecond: 0, 900 * time.Millisecond: 1, 3 * time.Second: 2,
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &slowBox{box: newBox(t), takes: takes}
			add(t, b.box, "call.incoming", "1")
			a := newAPI(t, &exchange{}, b.box, &bytes.Buffer{})
			a.opts.Events, a.opts.Deliveries = b, b
			var requests sync.WaitGroup
			answers := map[int]int{}
			for _, path := range []string{"/v1/events", "/v1/deliveries", "/v1/calls/1"} {
				requests.Go(func() {
					w := get(a, path, crmToken)
					b.mu.Lock()
					answers[w.Code]++
					b.mu.Unlock()
					if w.Code == http.StatusTooManyRequests && w.Header().Get("Retry-After") != "1" {
						t.Errorf("%s: %v", path, w.Header())
					}
				})
			}
			requests.Wait()
			if b.maxRunning != 1 || answers[200] != 3-refused || answers[429] != refused {
				t.Errorf("looks that take %s: %d at a time, answers %v", takes, b.maxRunning, answers)
			}
			requests.Go(func() { get(a, "/v1/events", crmToken) })
			requests.Go(func() { get(a, "/v1/events", operatorToken) })
			requests.Wait()
			if b.maxRunning != 2 {
				t.Errorf("of two bearers %d look at a time", b.maxRunning)
			}
		})
	}
}

// One redelivery scans the events at a time, be it a dry run, and the operator can read meanwhile.
func TestOneRedeliveryAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &slowBox{box: newBox(t), takes: time.Minute}
		a := newAPI(t, &exchange{}, b.box, &bytes.Buffer{})
		a.opts.Deliveries = b
		const body = `{"endpoint":"crm","since":"2026-11-23T06:25:53Z","dry_run":true}`
		var first sync.WaitGroup
		first.Go(func() {
			if w := send(a, "POST", "/v1/redeliver", operatorToken, body); w.Code != 200 {
				t.Errorf("the first: %d %s", w.Code, w.Body)
			}
		})
		synctest.Wait()
		if w := send(a, "POST", "/v1/redeliver", operatorToken, body); w.Code != http.StatusTooManyRequests ||
			w.Header().Get("Retry-After") == "" {
			t.Errorf("the second: %d %s", w.Code, w.Body)
		}
		if w := get(a, "/v1/events", operatorToken); w.Code != 200 {
			t.Errorf("reading meanwhile: %d %s", w.Code, w.Body)
		}
		first.Wait()
	})
}

// slowWriter is a caller that reads its answer slowly.
type slowWriter struct {
	*httptest.ResponseRecorder
	takes time.Duration
}

func (w slowWriter) Write(b []byte) (int, error) {
	time.Sleep(w.takes)
	return w.ResponseRecorder.Write(b)
}

// At most maxAnswers answers to a bearer are in memory: a caller that does not read them gets no
// more.
func TestAnswersUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t)
		add(t, b, "call.incoming", "1")
		a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
		var slow sync.WaitGroup
		for range maxAnswers {
			slow.Go(func() {
				r := httptest.NewRequest(http.MethodGet, "/v1/deliveries", nil)
				r.Header.Set("Authorization", "Bearer "+crmToken)
				a.ServeHTTP(slowWriter{httptest.NewRecorder(), time.Minute}, r)
			})
		}
		synctest.Wait()
		for _, path := range []string{"/v1/deliveries", "/v1/events", "/v1/calls/1", "/v1/deliveries/x.crm"} {
			if w := get(a, path, crmToken); w.Code != http.StatusTooManyRequests ||
				w.Header().Get("Retry-After") == "" {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		if w := get(a, "/v1/connection", crmToken); w.Code != 200 {
			t.Errorf("what is not in the outbox: %d", w.Code)
		}
		slow.Wait()
		if w := get(a, "/v1/deliveries", crmToken); w.Code != 200 {
			t.Errorf("once they are taken: %d", w.Code)
		}
	})
}

// The pages of a call are bounded in bytes, however large its events and its ID are.
func TestPagesOfACallAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("it reads a hundred megabytes")
	}
	b := newBox(t)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	long := strings.Repeat("7", 200<<10)
	const events = 60
	for range events {
		add(t, b, "call.incoming", "5")
		add(t, b, "call.incoming", long)
	}
	for _, id := range []string{"5", long} {
		for _, token := range []string{crmToken, operatorToken} {
			read := 0
			for cursor := ""; ; {
				w := get(a, "/v1/calls/"+id+cursor, token)
				var page call
				decode(t, w, &page)
				if len(page.Events) == 0 || page.CallID != id || w.Body.Len() > 2<<20 {
					t.Fatalf("a page of %d events and %d bytes", len(page.Events), w.Body.Len())
				}
				for _, e := range page.Events {
					if read++; e.Sequence != uint64(read) {
						t.Errorf("the event %d has the sequence %d", read, e.Sequence)
					}
				}
				if page.NextCursor == "" {
					break
				}
				cursor = "?cursor=" + page.NextCursor
			}
			if read != events {
				t.Errorf("%d events", read)
			}
		}
	}
	for query, want := range map[string]int{"?cursor=x": 400, "?after=1": 400, "?cursor=" + strconv.Itoa(events): 200} {
		if w := get(a, "/v1/calls/5"+query, crmToken); w.Code != want {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}
