package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
)

// Text from a caller can neither start a line nor control a terminal.
func TestPrintableReplacesControlCharacters(t *testing.T) {
	for s, want := range map[string]string{
		"Иван 7343":              "Иван 7343",
		"a\n10:00:00 delivered":  "a 10:00:00 delivered",
		"a\x1b[31mred\x07\u009b": "a [31mred  ",
		"abc\u202ecba\u2069":     "abc cba ",
		"a\u2028b":               "a b",
	} {
		if got := printable(s); got != want {
			t.Errorf("%q is printed as %q", s, got)
		}
	}
	if got := printableLines("a\nb\x1b\n"); got != "a\nb \n" {
		t.Errorf("lines are printed as %q", got)
	}
}

// While the bridge restarts, a proxy in front of it may respond with an error, or the bridge may
// accept a connection without a response. tail keeps trying in both cases.
func TestTailRetriesWhileTheBridgeIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		polls := 0
		a := newTestAPI(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/events" {
				polls++
			}
			switch polls {
			case 2:
				w.WriteHeader(http.StatusBadGateway)
			case 4, 6:
				<-r.Context().Done()
			}
			_, _ = io.WriteString(w, "{}")
		})
		var out, stderr bytes.Buffer
		tail := tailer{p: Program{Out: &out, Err: &stderr}, api: a}
		began := time.Now()
		time.AfterFunc(time.Minute, stop) // during its sixth poll
		if err := tail.run(ctx); err != nil || time.Since(began) != time.Minute {
			t.Errorf("after %s it ends: %v", time.Since(began), err)
		}
		const want = `Looking at http://bridge; Ctrl-C ends it.
the bridge does not answer: 502 Bad Gateway; trying again.
It answers again.
the bridge does not answer: Get "http://bridge/v1/events?limit=500&after=": context deadline exceeded; trying again.
It answers again.
`
		if got := stderr.String(); got != want {
			t.Errorf("it prints %s", got)
		}
	})
}

// newTestAPI returns a client whose requests answer handles, in memory.
func newTestAPI(t *testing.T, answer http.HandlerFunc) api {
	t.Helper()
	l := pipenet.Listen()
	server := &http.Server{Handler: answer}
	go func() { _ = server.Serve(l) }()
	client := &http.Client{Transport: &http.Transport{DialContext: l.Dial}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		_ = server.Close()
	})
	return api{"http://bridge", "operator", client}
}

// fakeBridge serves the deliveries of a bridge as its API does.
type fakeBridge struct {
	mu   sync.Mutex
	list []deliveryState // the oldest first; the index is the ID
	read int             // pages of deliveries
}

func (h *fakeBridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.URL.Path != "/v1/deliveries" {
		_, _ = io.WriteString(w, "{}")
		return
	}
	h.read++
	type shown struct {
		ID       string `json:"id"`
		State    string `json:"state"`
		Attempts int    `json:"attempts"`
	}
	var answer struct {
		Deliveries []shown `json:"deliveries"`
		NextCursor string  `json:"next_cursor"`
	}
	from, err := strconv.Atoi(cmp.Or(r.URL.Query().Get("cursor"), strconv.Itoa(len(h.list))))
	limit, errLimit := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || errLimit != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for i := from - 1; i >= max(0, from-limit); i-- {
		answer.Deliveries = append(answer.Deliveries, shown{strconv.Itoa(i), h.list[i].state, h.list[i].attempts})
	}
	if from > limit {
		answer.NextCursor = strconv.Itoa(from - limit)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// change changes the deliveries, waits, and returns the IDs of the deliveries that tail prints.
func (h *fakeBridge) change(change func(), out *bytes.Buffer, wait time.Duration) (ids []int) {
	h.mu.Lock()
	change()
	h.mu.Unlock()
	time.Sleep(wait)
	synctest.Wait()
	for line := range bytes.Lines(out.Bytes()) {
		var printed struct {
			Delivery struct {
				ID int `json:"id,string"`
			} `json:"delivery"`
		}
		if err := json.Unmarshal(line, &printed); err == nil {
			ids = append(ids, printed.Delivery.ID)
		}
	}
	out.Reset()
	return ids
}

// A page may be short or empty although more follow. The commands read on until they have as many
// as requested, or until the last page.
func TestEmptyPagesDoNotEndAListing(t *testing.T) {
	pages := map[string]string{
		"":  `{"deliveries":[],"next_cursor":"a"}`,
		"a": `{"deliveries":[{"id":"1"},{"id":"2"}],"next_cursor":"b"}`,
		"b": `{"deliveries":[],"next_cursor":"c"}`,
		"c": `{"deliveries":[{"id":"3"}]}`,
	}
	events := map[string]string{
		"1": `{"events":[],"next_cursor":"2","more":true}`,
		"2": `{"events":[{"type":"call.incoming","data":{"call_id":"5"}}],"next_cursor":"3","more":true}`,
		"3": `{"events":[],"next_cursor":"4","more":false}`,
	}
	var limits []string
	a := newTestAPI(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path == "/v1/events" {
			_, _ = io.WriteString(w, events[q.Get("after")])
			return
		}
		limits = append(limits, q.Get("limit"))
		_, _ = io.WriteString(w, pages[q.Get("cursor")])
	})
	list, more, err := a.deliveries(t.Context(), url.Values{"state": {"dead"}}, 10)
	if err != nil || len(list) != 3 || more || !slices.Equal(limits, []string{"10", "10", "8", "8"}) {
		t.Errorf("%d deliveries, %v, %v, asked for %v", len(list), more, err, limits)
	}
	if list, more, err = a.deliveries(t.Context(), url.Values{}, 2); err != nil || len(list) != 2 || !more {
		t.Errorf("the first two: %d deliveries, %v, %v", len(list), more, err)
	}
	var out, stderr bytes.Buffer
	tail := tailer{
		p:      Program{Out: &out, Err: &stderr},
		api:    a,
		cursor: "1",
		pretty: true,
	}
	if err := tail.poll(t.Context()); err != nil || strings.Count(out.String(), "call 5") != 1 || tail.cursor != "4" {
		t.Errorf("tail: %v, %s, at %s", err, out.String(), tail.cursor)
	}
	if len(tail.known) != 3 {
		t.Errorf("tail knows %d deliveries", len(tail.known))
	}
}

// On a terminal that shows no colours tail prints text all the same.
func TestTailPrintsTextWithoutColours(t *testing.T) {
	for colours, want := range map[bool]string{false: " a call\n", true: " \x1b[34ma call\x1b[0m\n"} {
		var out bytes.Buffer
		tail := tailer{p: Program{Out: &out}, pretty: true, colours: colours}
		err := tail.print(time.Now(), blue, "a call", map[string]any{"event": "a call"})
		if err != nil || !strings.HasSuffix(out.String(), want) {
			t.Errorf("with colours %v it prints %q, %v", colours, out.String(), err)
		}
	}
}

// tail prints every delivery that changes between two polls, however many there are, and also old
// ones that were pending or are redelivered.
func TestTailPrintsEveryChangedDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		h := &fakeBridge{list: slices.Repeat([]deliveryState{{"delivered", 1}}, 6000)}
		h.list[3000] = untried
		var out, stderr bytes.Buffer
		tail := tailer{p: Program{Out: &out, Err: &stderr}, api: newTestAPI(t, h.ServeHTTP)}
		ended := make(chan error, 1)
		go func() { ended <- tail.run(ctx) }()
		if got := h.change(func() {}, &out, time.Second); len(got) > 0 {
			t.Errorf("of what was there before it prints %v", got)
		}
		got := h.change(func() { h.list[3000] = deliveryState{"dead", 2} }, &out, time.Second)
		if !slices.Equal(got, []int{3000}) {
			t.Errorf("of one that waited for long it prints %v", got)
		}
		add := func(n int) func() {
			return func() { h.list = append(h.list, slices.Repeat([]deliveryState{{"delivered", 1}}, n)...) }
		}
		got = h.change(add(1200), &out, time.Second)
		if len(got) != 1200 || got[0] != 6000 || !slices.IsSorted(got) {
			t.Errorf("of 1200 new ones it prints %d", len(got))
		}
		got = h.change(func() { h.list[2500] = deliveryState{"delivered", 2} }, &out, tailFullInterval+time.Second)
		if !slices.Equal(got, []int{2500}) {
			t.Errorf("of an old one that is made again it prints %v", got)
		}
		if stderr.String() != "Looking at http://bridge; Ctrl-C ends it.\n" {
			t.Errorf("it reports %q", stderr.String())
		}
		h.change(func() { h.list[7199] = deliveryState{"pending", 2} }, &out, time.Second)
		h.read = 0
		h.change(func() {}, &out, 2*tailFullInterval)
		if maxPages := 2*9 + int(2*tailFullInterval/tailInterval); h.read > maxPages {
			t.Errorf("while nothing happens it reads %d pages, more than %d", h.read, maxPages)
		}
		got = h.change(add(7000), &out, time.Second)
		if len(got) != 5000 || !strings.Contains(stderr.String(), "Deliveries are missing here") {
			t.Errorf("of 7000 new ones it prints %d, and reports %q", len(got), stderr.String())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A redelivery may take minutes, so the command waits for ten; Ctrl-C ends the wait.
func TestRedeliverEndsAtASilentBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAPI(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		p := Program{Out: io.Discard, Err: io.Discard}
		began := time.Now()
		err := p.redeliverOne(t.Context(), a, "x.crm")
		if !errors.Is(err, errNoAnswer) || time.Since(began) != 10*time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, stop)
		err = p.redeliverOne(ctx, a, "x.crm")
		if err == nil || err.Error() != "interrupted before the bridge has answered" {
			t.Errorf("interrupted: %v", err)
		}
	})
}

// A command fails if its output cannot be written, and tail ends then.
func TestFailedOutputIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("only Linux has a device that is full: ", err)
	}
	defer full.Close()
	for _, command := range []string{"secret", "version", "help"} {
		var stderr bytes.Buffer
		p := Program{Out: full, Err: &stderr}
		code := p.Main(t.Context(), []string{command})
		if code != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("%s: exit code %d: %s", command, code, stderr.String())
		}
	}
	synctest.Test(t, func(t *testing.T) {
		h := &fakeBridge{}
		tail := tailer{p: Program{Out: full, Err: io.Discard}, api: newTestAPI(t, h.ServeHTTP)}
		ended := make(chan error, 1)
		go func() { ended <- tail.run(t.Context()) }()
		h.change(func() {}, &bytes.Buffer{}, time.Second)
		h.change(func() { h.list = []deliveryState{{"delivered", 1}} }, &bytes.Buffer{}, time.Second)
		if err := <-ended; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("tail ends with %v", err)
		}
	})
}
