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

// A caller's name neither begins a line nor does anything else to a terminal.
func TestPrintable(t *testing.T) {
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

// A proxy before the bridge answers in its place while it restarts, or the bridge takes the connection and says nothing.
func TestTailWhileNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		looks := 0
		a := asked(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/events" {
				looks++
			}
			switch looks {
			case 2:
				w.WriteHeader(http.StatusBadGateway)
			case 4, 6:
				<-r.Context().Done()
			}
			_, _ = io.WriteString(w, "{}")
		})
		var out, says bytes.Buffer
		tail := tailer{p: Program{Out: &out, Err: &says}, api: a}
		began := time.Now()
		time.AfterFunc(time.Minute, stop) // in its sixth look
		if err := tail.run(ctx); err != nil || time.Since(began) != time.Minute {
			t.Errorf("after %s it ends: %v", time.Since(began), err)
		}
		const want = `Looking at http://bridge; Ctrl-C ends it.
the bridge does not answer: 502 Bad Gateway; trying again.
It answers again.
the bridge does not answer: Get "http://bridge/v1/events?limit=500&after=": context deadline exceeded; trying again.
It answers again.
`
		if got := says.String(); got != want {
			t.Errorf("it says %s", got)
		}
	})
}

// asked is where a bridge answers that the commands ask.
func asked(t *testing.T, answer http.HandlerFunc) api {
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

// history is the deliveries of a bridge, the oldest first, and answers as its API does.
type history struct {
	mu   sync.Mutex
	list []standing
	read int // pages
}

func (h *history) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

// change changes the history, which is longer than a page, and gives the IDs of the deliveries that tail prints because of it.
func (h *history) change(change func(), out *bytes.Buffer, within time.Duration) (ids []int) {
	h.mu.Lock()
	change()
	h.mu.Unlock()
	time.Sleep(within)
	synctest.Wait()
	for line := range bytes.Lines(out.Bytes()) {
		var said struct {
			Delivery struct {
				ID int `json:"id,string"`
			} `json:"delivery"`
		}
		if err := json.Unmarshal(line, &said); err == nil {
			ids = append(ids, said.Delivery.ID)
		}
	}
	out.Reset()
	return ids
}

// A page may be short, or empty, though more follows: the commands go on until they have what was asked for, or there is no more.
func TestGoingOnOverEmptyPages(t *testing.T) {
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
	a := asked(t, func(w http.ResponseWriter, r *http.Request) {
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
	var out, says bytes.Buffer
	tail := tailer{p: Program{Out: &out, Err: &says}, api: a, cursor: "1", pretty: true}
	if err := tail.look(t.Context()); err != nil || strings.Count(out.String(), "call 5") != 1 || tail.cursor != "4" {
		t.Errorf("tail: %v, %s, at %s", err, out.String(), tail.cursor)
	}
	if len(tail.seen) != 3 {
		t.Errorf("tail knows %d deliveries", len(tail.seen))
	}
}

// However many deliveries change between two looks, tail prints each, and those of long ago that wait or are made again.
func TestTailOfManyDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		h := &history{list: slices.Repeat([]standing{{"delivered", 1}}, 6000)}
		h.list[3000] = untried
		var out, says bytes.Buffer
		tail := tailer{p: Program{Out: &out, Err: &says}, api: asked(t, h.ServeHTTP)}
		ended := make(chan error, 1)
		go func() { ended <- tail.run(ctx) }()
		if got := h.change(func() {}, &out, time.Second); len(got) > 0 {
			t.Errorf("of what was there before it prints %v", got)
		}
		if got := h.change(func() { h.list[3000] = standing{"dead", 2} }, &out, time.Second); !slices.Equal(got, []int{3000}) {
			t.Errorf("of one that waited for long it prints %v", got)
		}
		got := h.change(func() { h.list = append(h.list, slices.Repeat([]standing{{"delivered", 1}}, 1200)...) }, &out, time.Second)
		if len(got) != 1200 || got[0] != 6000 || !slices.IsSorted(got) {
			t.Errorf("of 1200 new ones it prints %d", len(got))
		}
		if got := h.change(func() { h.list[2500] = standing{"delivered", 2} }, &out, tailAll+time.Second); !slices.Equal(got, []int{2500}) {
			t.Errorf("of an old one that is made again it prints %v", got)
		}
		if says.String() != "Looking at http://bridge; Ctrl-C ends it.\n" {
			t.Errorf("it says %q", says.String())
		}
		h.change(func() { h.list[7199] = standing{"pending", 2} }, &out, time.Second)
		h.read = 0
		h.change(func() {}, &out, 2*tailAll)
		if most := 2*9 + int(2*tailAll/tailEvery); h.read > most {
			t.Errorf("while nothing happens it reads %d pages, more than %d", h.read, most)
		}
		got = h.change(func() { h.list = append(h.list, slices.Repeat([]standing{{"delivered", 1}}, 7000)...) }, &out, time.Second)
		if len(got) != 5000 || !strings.Contains(says.String(), "Deliveries are missing here") {
			t.Errorf("of 7000 new ones it prints %d, and says %q", len(got), says.String())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// What the bridge is asked to do may take minutes, but a bridge that says nothing is not waited for for ever; and whoever does not want to wait says so.
func TestRedeliverAtASilentBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := asked(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		p := Program{Out: io.Discard, Err: io.Discard}
		began := time.Now()
		if err := p.redeliverOne(t.Context(), a, "x.crm"); !errors.Is(err, errNoAnswer) || time.Since(began) != 10*time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, stop)
		if err := p.redeliverOne(ctx, a, "x.crm"); err == nil || err.Error() != "interrupted before the bridge has answered" {
			t.Errorf("interrupted: %v", err)
		}
	})
}

// What cannot be written ends the following of what happens, and is no success of any command.
func TestOutputThatCannotBeWritten(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("only Linux has a device that is full: ", err)
	}
	defer full.Close()
	for _, command := range []string{"secret", "version", "help"} {
		var says bytes.Buffer
		p := Program{Out: full, Err: &says}
		if code := p.Main(t.Context(), []string{command}); code != exitFailed || !strings.Contains(says.String(), "no space left on device") {
			t.Errorf("%s: exit code %d: %s", command, code, says.String())
		}
	}
	synctest.Test(t, func(t *testing.T) {
		h := &history{}
		tail := tailer{p: Program{Out: full, Err: io.Discard}, api: asked(t, h.ServeHTTP)}
		ended := make(chan error, 1)
		go func() { ended <- tail.run(t.Context()) }()
		h.change(func() {}, &bytes.Buffer{}, time.Second)
		h.change(func() { h.list = []standing{{"delivered", 1}} }, &bytes.Buffer{}, time.Second)
		if err := <-ended; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("tail ends with %v", err)
		}
	})
}
