package outbox

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/time/rate"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/telephony"
)

func typeOf(s string) telephony.EventType { return telephony.EventType(s) }

var (
	secretA = []byte("aaaaaaaaaaaaaaaaaaaaaaaa")
	secretB = []byte("bbbbbbbbbbbbbbbbbbbbbbbb")
	all     = Filter{"call.*", "sms.*", "pz.event"}
)

func event(kind telephony.EventType, call string) telephony.Event {
	return telephony.Event{ID: uuid.Must(uuid.NewV7()).String(), Type: kind, Time: time.Now(), CallID: call}
}

func endpoint(name string) Endpoint {
	return Endpoint{Name: name, URL: "http://crm.example/hook?token=t0psecret", Secrets: [][]byte{secretA}, Events: all, Timeout: 15 * time.Second, Concurrency: 16, RingingTTL: 1000 * time.Hour}
}

// skipBulk skips a test that stores a file full of events, or a long backlog, where only short ones
// are wanted: on 32 bits the code is the same.
func skipBulk(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it stores thousands of events")
	}
}

// withDefaults fills in what a test does not care about.
func withDefaults(t *testing.T, opts Options) Options {
	t.Helper()
	if opts.Path == "" {
		opts.Path = filepath.Join(t.TempDir(), "outbox.db")
	}
	if opts.Endpoints == nil {
		opts.Endpoints = []Endpoint{endpoint("crm")}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if opts.RetrySchedule == nil {
		opts.RetrySchedule = []time.Duration{5 * time.Second, 5 * time.Minute}
	}
	opts.OrderHold = cmp.Or(opts.OrderHold, time.Minute)
	opts.Retention = cmp.Or(opts.Retention, 168*time.Hour)
	opts.RoutingTimeout = cmp.Or(opts.RoutingTimeout, 10*time.Second)
	opts.MaxBytes = cmp.Or(opts.MaxBytes, 1<<30)
	opts.Grace = cmp.Or(opts.Grace, 5*time.Second)
	opts.UserAgent = "pzbridge/test"
	return opts
}

// openOutbox opens an outbox and, when the test ends, closes it and checks its file.
func openOutbox(t *testing.T, opts Options) *Outbox {
	t.Helper()
	o, err := Open(withDefaults(t, opts))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkFile(t, o)
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// checkKeys holds that every idempotency key stands by its age, once, and that what they are reckoned to take is the sum.
func checkKeys(t *testing.T, tx *txn) {
	t.Helper()
	noted, all := 0, uint64(0)
	for _, ages := range tx.bearers() {
		sum := uint64(0)
		_ = ages.ForEach(func(age, size []byte) error {
			noted++
			sum += decodeNumber(size)
			if record := tx.keys.Get(age[8:]); !bytes.Equal(ageKey(record, age[8:]), age) || decodeNumber(size) != reckoned(record) {
				t.Errorf("the age %x of a key is not that of its record %x", age, record)
			}
			return nil
		})
		if sum != ages.Sequence() {
			t.Errorf("a bearer's keys are reckoned to %d bytes, their sum is %d", ages.Sequence(), sum)
		}
		all += sum
	}
	if n := tx.keys.Stats().KeyN; n != noted || all != tx.ages.Sequence() {
		t.Errorf("%d keys, %d ages; %d bytes, noted are %d", n, noted, all, tx.ages.Sequence())
	}
}

// checkFile holds that every pending delivery is in the due index, at its time, and nothing else is; and that an event has what points to it.
func checkFile(t *testing.T, o *Outbox) {
	t.Helper()
	err := o.store.db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		events := tx.Bucket(bucketEvents)
		if e, i, c := events.Stats().KeyN, tx.Bucket(bucketIDs).Stats().KeyN, tx.Bucket(bucketCalls).Stats().KeyN; e != i || e != c {
			t.Errorf("%d events, %d IDs, %d in calls", e, i, c)
		}
		checkKeys(t, newTxn(tx))
		return tx.Bucket(bucketEndpoints).ForEachBucket(func(name []byte) error {
			b := tx.Bucket(bucketEndpoints).Bucket(name)
			due := b.Bucket(bucketDue)
			waiting := 0
			var counted counts
			err := b.Bucket(bucketDeliveries).ForEach(func(k, v []byte) error {
				d, err := decodeDelivery(v)
				if err != nil {
					return err
				}
				if events.Get(k) == nil {
					t.Errorf("delivery %d of %s has no event", binary.BigEndian.Uint64(k), name)
				}
				counted[d.state]++
				if d.state == pending {
					checkLinks(t, newTxn(tx), string(name), k, d)
				}
				if d.state == pending && d.due == asking && tx.Bucket(bucketQuestions).Get(k) == nil {
					t.Errorf("delivery %d of %s is being asked about, and no question", binary.BigEndian.Uint64(k), name)
				}
				if d.isDue() {
					waiting++
					if due.Get(dueKey(d.due, binary.BigEndian.Uint64(k))) == nil {
						t.Errorf("pending delivery %d of %s is not in the due index", binary.BigEndian.Uint64(k), name)
					}
				}
				return nil
			})
			if n := due.Stats().KeyN; n != waiting {
				t.Errorf("%s: %d pending, %d in the due index", name, waiting, n)
			}
			if got := decodeCounts(b.Get(keyCounts)); got != counted {
				t.Errorf("%s: counts say %v, there are %v", name, got, counted)
			}
			return err
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// checkLinks holds that a delivery that is held has one before it to wait for, which has not failed yet; and that what a delivery waits for, or would wait
// for, knows of it.
func checkLinks(t *testing.T, tx *txn, endpoint string, k []byte, d delivery) {
	t.Helper()
	n := binary.BigEndian.Uint64(k)
	e, err := decodeEvent(tx.events.Get(k))
	if err != nil {
		t.Error(err)
		return
	}
	_, holds, _ := tx.neighbour(tx.queue(endpoint), e.call, e.sequence, (*bolt.Cursor).Prev, delivery.isPending)
	if d.due == held && (holds == nil || holds.failedAt != 0 || holds.next != n) {
		t.Errorf("delivery %d of %s is held by %+v", n, endpoint, holds)
	}
	_, before, _ := tx.neighbour(tx.queue(endpoint), e.call, e.sequence, (*bolt.Cursor).Prev, delivery.isAny)
	if before != nil && before.isPending() && before.next != n {
		t.Errorf("delivery %d of %s comes after one that says that %d does", n, endpoint, before.next)
	}
}

func mustAppend(t *testing.T, o engine, events ...telephony.Event) {
	t.Helper()
	if err := o.Append(t.Context(), events); err != nil {
		t.Fatal(err)
	}
}

// states counts the deliveries of a configured endpoint by state.
func states(t *testing.T, o engine, name string) map[state]int {
	t.Helper()
	list, err := o.Endpoints()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(s EndpointStatus) bool { return s.Name == name })
	s := list[i]
	return map[state]int{pending: int(s.Pending), delivered: int(s.Delivered), expired: int(s.Expired), dead: int(s.Dead)}
}

// received is a webhook as a CRM got it.
type received struct {
	at     time.Time
	path   string
	header http.Header
	body   []byte
}

// crm is a receiver that answers as it is told.
type crm struct {
	net    *pipenet.Listener
	answer func(n int, r received, w http.ResponseWriter) // n counts from 1

	forget bool // keep only how many came

	mu   sync.Mutex
	n    int
	hook []received
}

func (c *crm) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *crm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	got := received{time.Now(), r.URL.RequestURI(), r.Header, body}
	c.mu.Lock()
	if !c.forget {
		c.hook = append(c.hook, got)
	}
	c.n++
	n := c.n
	c.mu.Unlock()
	if c.answer != nil {
		c.answer(n, got, w)
	}
}

func (c *crm) received() []received {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]received(nil), c.hook...)
}

// bubble runs f in fake time with a CRM; what run starts is stopped when f returns.
func bubble(t *testing.T, c *crm, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c.net = pipenet.Listen()
		server := &http.Server{Handler: c}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(c.net) })
		f(t)
		_ = server.Close()
		serving.Wait()
	})
}

// nobody is a router to which no question matters.
type nobody struct{}

func (nobody) Settle(context.Context, string, string, bool, []telephony.Reply) {}
func (nobody) Answer(context.Context, string, string, string, string) error    { return nil }
func (nobody) Out(context.Context, string, string, string, string)             {}

// run delivers until the function that it returns is called.
func run(t *testing.T, o engine) (stop func()) {
	t.Helper()
	return runWith(t, o, nobody{})
}

// runWith does the same with a router of the test's own.
func runWith(t *testing.T, o engine, router Router) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := o.Run(ctx, router); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); running.Wait() }
}

// The signature is verified by the public library, with the old and the new secret, over the bytes that were sent.
func TestWebhookVerifies(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		// The library compares with the clock; the bubble's stands in the year 2000 and moves on its own.
		e := endpoint("crm")
		e.Secrets = [][]byte{secretA, secretB}
		e.Headers = http.Header{"X-Mine": {"7"}}
		o := openOutbox(t, Options{Endpoints: []Endpoint{e}, DialContext: c.net.Dial})
		defer run(t, o)()
		mustAppend(t, o, event("call.incoming", "5"))
		synctest.Wait()
		hooks := c.received()
		if len(hooks) != 1 {
			t.Fatalf("%d webhooks", len(hooks))
		}
		h := hooks[0].header
		if h.Get("Content-Type") != "application/json" || h.Get("User-Agent") != "pzbridge/test" || h.Get("X-Mine") != "7" {
			t.Errorf("headers: %v", h)
		}
		if n := len(strings.Fields(h.Get("webhook-signature"))); n != 2 {
			t.Errorf("%d signatures", n)
		}
		for _, secret := range e.Secrets {
			w, err := standardwebhooks.NewWebhookRaw(secret)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Verify(hooks[0].body, h); err != nil {
				t.Error(err)
			}
			if w.Verify(append(hooks[0].body, ' '), h) == nil {
				t.Error("other bytes verify too")
			}
		}
	})
}

func TestBody(t *testing.T) {
	zero := int64(0)
	at := time.Date(2026, 11, 23, 6, 25, 53, 718_400_000, time.UTC)
	for name, c := range map[string]struct {
		event telephony.Event
		want  string
	}{
		"everything": {
			telephony.Event{
				ID: "019376aa-0000-7000-8000-000000000001", Type: "call.completed", Time: at, CallID: "18446744073709551615",
				From: "73430112233", To: "101", Line: "2", Direction: "incoming",
				StartedAt: time.Unix(1385035625, 0).UTC(), EndedAt: time.Unix(1385035685, 0).UTC(), Duration: &zero,
				RecordingURL: "ftp://somehost/1.mp3?a=1&b=2", Replayed: true,
				Wire: []telephony.Attr{{Name: "type", Value: "4"}, {Name: "callID", Value: "18446744073709551615"}, {Name: "line", Value: " "}},
			},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"call.completed","timestamp":"2026-11-23T06:25:53.718Z","data":{` +
				`"call_id":"18446744073709551615","sequence":7,"from":"73430112233","to":"101","line":"2","direction":"incoming",` +
				`"started_at":"2013-11-21T12:07:05Z","ended_at":"2013-11-21T12:08:05Z","duration_seconds":0,` +
				`"recording_url":"ftp://somehost/1.mp3?a=1&b=2","replayed":true,` +
				`"pz":{"type":"4","callID":"18446744073709551615","line":" "}}}`,
		},
		"hardly anything": {
			telephony.Event{ID: "019376aa-0000-7000-8000-000000000001", Type: "pz.event", Time: at},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"pz.event","timestamp":"2026-11-23T06:25:53.718Z","data":{"replayed":false,"pz":{}}}`,
		},
		"a question": {
			telephony.Event{ID: "019376aa-0000-7000-8000-000000000001", Type: "call.transfer_requested", Time: at, CallID: "7", From: "1"},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"call.transfer_requested","timestamp":"2026-11-23T06:25:53.718Z","data":{` +
				`"call_id":"7","sequence":7,"from":"1","answer_by":"2026-11-23T06:26:03.718Z","replayed":false,"pz":{}}}`,
		},
		"a question of long ago": {
			telephony.Event{ID: "019376aa-0000-7000-8000-000000000001", Type: "call.transfer_requested", Time: at, CallID: "7", Replayed: true},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"call.transfer_requested","timestamp":"2026-11-23T06:25:53.718Z","data":{` +
				`"call_id":"7","sequence":7,"replayed":true,"pz":{}}}`,
		},
		"an SMS of a hostile sender": {
			telephony.Event{ID: "019376aa-0000-7000-8000-000000000001", Type: "sms.status", Time: at, CallID: "7", Text: "</script>\"\n", Status: "failed"},
			`{"id":"019376aa-0000-7000-8000-000000000001","type":"sms.status","timestamp":"2026-11-23T06:25:53.718Z","data":{` +
				`"call_id":"7","sequence":7,"text":"</script>\"\n","status":"failed","replayed":false,"pz":{}}}`,
		},
	} {
		r, err := newRecord(&c.event, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		e, err := decodeEvent(encodeEvent(&r, 7))
		if err != nil {
			t.Fatal(err)
		}
		got := e.body
		if string(got) != c.want || !json.Valid(got) {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// decode reads what a webhook says.
func decode(t *testing.T, r received) (id string, sequence int) {
	t.Helper()
	var body struct {
		ID   string
		Data struct{ Sequence int }
	}
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Fatal(err)
	}
	return body.ID, body.Data.Sequence
}

// No line of the log and no error tells what stands in an endpoint's address.
func TestNoSecretInTheLog(t *testing.T) {
	for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
		"refused":      func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") },
		"hangs":        func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
		"broken reply": func(context.Context, string, string) (net.Conn, error) { return brokenReply() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lockedBuffer
				o := openOutbox(t, Options{DialContext: dial, Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
				stop := run(t, o)
				mustAppend(t, o, event("call.incoming", "5"))
				time.Sleep(time.Hour)
				stop()
				if text := log.String(); strings.Contains(text, "t0psecret") || !strings.Contains(text, "attempt failed") {
					t.Errorf("the log:\n%s", text)
				}
			})
		})
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func brokenReply() (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		_, _ = server.Read(make([]byte, 4096))
		_, _ = io.WriteString(server, "HTTP/1.1 302 Found\r\nLocation: http://[t0psecret\r\nContent-Length: 0\r\n\r\n")
		_ = server.Close()
	}()
	return client, nil
}

// Deliveries that wait for their time do not wait longer because the clock is set back, be it while the bridge runs or while it does not.
func TestClockSetBack(t *testing.T) {
	const again, hold = 5 * time.Minute, time.Minute
	for name, c := range map[string]struct {
		running bool
		back    time.Duration
		ready   int           // deliveries
		next    time.Duration // until the next one is due
	}{
		"not, at a start":    {false, 0, 0, hold},
		"not, while it runs": {true, 0, 0, hold},
		"at a start":         {false, time.Hour, 1, hold},
		"while it runs":      {true, time.Hour, 1, hold},
	} {
		t.Run(name, func(t *testing.T) {
			receiver := &crm{answer: func(_ int, _ received, w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }}
			bubble(t, receiver, func(t *testing.T) {
				o := openOutbox(t, Options{DialContext: receiver.net.Dial, OrderHold: hold, RetrySchedule: []time.Duration{again, 24 * time.Hour}})
				stop := run(t, o)
				mustAppend(t, o, event("call.completed", "5"))
				synctest.Wait() // it has failed
				stop()
				mustAppend(t, o, event("call.completed", "5")) // held for a minute
				l := newLane(endpoint("crm"), o.store, o.opts, o.announce)
				if c.running {
					l.claim(time.Now(), false)
				}
				now := time.Now().Add(-c.back)
				l.stale = true
				l.claim(now, false)
				if len(l.ready) != c.ready || c.ready > 0 && l.ready[0].number != 1 {
					t.Errorf("%d are ready, want %d: %+v", len(l.ready), c.ready, l.ready)
				}
				l.ready, l.stale = nil, true // as if it were under way
				if at := l.claim(now, false); len(l.ready) > 0 || at.Sub(now) != c.next {
					t.Errorf("%d are ready, the next is in %s, want %s", len(l.ready), at.Sub(now), c.next)
				}
			})
		})
	}
}

// A record that is damaged holds up no other.
func TestDamagedRecord(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		o, err := Open(Options{
			Path: filepath.Join(t.TempDir(), "outbox.db"), Endpoints: []Endpoint{endpoint("crm")}, Grace: time.Second,
			Retention: time.Hour, RoutingTimeout: time.Hour, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), DialContext: c.net.Dial,
		})
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, o, event("call.incoming", "5"), event("call.incoming", "6"))
		err = o.store.commit(func(tx *txn) error { return tx.events.Put(number(1), []byte("x")) })
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, o)
		mustAppend(t, o, event("call.incoming", "7"))
		synctest.Wait()
		err = o.store.commit(func(tx *txn) error { return tx.queue("crm").deliveries.Put(number(3), []byte("x")) }) // now a delivery's
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, o, event("call.completed", "7"))
		synctest.Wait()
		stop()
		if n := len(c.received()); n != 3 {
			t.Errorf("%d of the 3 events that can be read arrived", n)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
}

// stops is an observer that stops whoever has committed, once it is told to.
type stops struct {
	unobserved
	at      atomic.Bool
	release chan struct{}
}

func (s *stops) Committed(time.Duration) {
	if s.at.Load() {
		<-s.release
	}
}

// Changes that come before a commit begins go with it, and those that come while it runs go into the next one together.
func TestWaitingChangesAreCommittedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		committed := &stops{release: make(chan struct{})}
		o := openOutbox(t, Options{Observer: committed})
		const many = 200
		var changes sync.WaitGroup
		appendMany := func() {
			for i := range many {
				changes.Go(func() {
					if err := o.Append(t.Context(), []telephony.Event{event("call.incoming", fmt.Sprint(i))}); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
		}
		applying := make(chan struct{})
		before := lastTx(t, o)
		changes.Go(func() {
			if err := o.store.commit(func(*txn) error { <-applying; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		appendMany()
		committed.at.Store(true)
		close(applying)
		synctest.Wait() // it is on the disk, and nobody has been told
		appendMany()
		committed.at.Store(false)
		close(committed.release)
		changes.Wait()
		if commits := lastTx(t, o) - before; commits != 2 {
			t.Errorf("%d commits for twice %d changes", commits, many)
		}
		if got := states(t, o, "crm"); got[pending] != 2*many {
			t.Errorf("states: %v", got)
		}
	})
}

// lastTx is the number of the last transaction that was committed.
func lastTx(t *testing.T, o *Outbox) (id int) {
	t.Helper()
	if err := o.store.db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestClientGUIDIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	var guids [2]string
	for i := range guids {
		o, err := Open(Options{Path: path, Retention: time.Hour, RoutingTimeout: time.Hour, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if guids[i], err = o.ClientGUID(); err != nil {
			t.Fatal(err)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if guids[0] == "" || guids[0] != guids[1] {
		t.Errorf("got %q", guids)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	o := openOutbox(t, Options{})
	if _, err := Open(o.opts); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one on the file: %v", err)
	}
	path := filepath.Join(t.TempDir(), "outbox.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("no outbox "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := o.opts
	opts.Path = path
	if _, err := Open(opts); !errors.Is(err, ErrNotOutbox) {
		t.Errorf("a file that is no outbox: %v", err)
	}
	for _, size := range []int64{5000, 9000} { // a copy that was cut off
		whole := filepath.Join(t.TempDir(), "outbox.db")
		cut, err := Open(Options{Path: whole, Retention: time.Hour, RoutingTimeout: time.Hour, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, cut, event("call.incoming", "5"))
		if err := cut.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(whole, size); err != nil {
			t.Fatal(err)
		}
		opts.Path = whole
		if _, err := Open(opts); !errors.Is(err, ErrNotOutbox) {
			t.Errorf("a file cut off at %d bytes: %v", size, err)
		}
	}
	opts.Path = filepath.Join(path, "outbox.db") // its folder is a file
	if _, err := Open(opts); err == nil || strings.Count(err.Error(), path) != 1 {
		t.Errorf("a folder that cannot be made: %v", err)
	}
}

func refused() (net.Conn, error) { return nil, errors.New("connection refused") }

// A timeout below the attempt's own (here of the TLS handshake) is not redialled; a refused connection is, twice, unless the bridge is stopping or the
// endpoint's rate forbids it.
func TestQuickRedials(t *testing.T) {
	for name, c := range map[string]struct {
		scheme string
		dial   func() (net.Conn, error)
		change func(*sender)
		dials  int
	}{
		"a silent peer": {"https", func() (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, far) }()
			return near, nil
		}, nil, 1},
		"a redirect to nowhere":             {"http", brokenReply, nil, 1},
		"nobody there":                      {"https", refused, nil, 3},
		"nobody there, during a shutdown":   {"https", refused, func(s *sender) { s.stopping.Store(true) }, 1},
		"nobody there, one more is to come": {"https", refused, func(s *sender) { s.limit = rate.NewLimiter(rate.Every(time.Hour), 1) }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dials := 0
				e := endpoint("crm")
				e.URL = c.scheme + "://crm.example"
				s := newSender(e, 1, Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
					dials++
					return c.dial()
				}})
				if c.change != nil {
					c.change(s)
				}
				began := time.Now()
				o, err := s.attempt(t.Context(), job{eventID: uuid.NewString(), stored: stored{body: []byte("{}")}})
				if err != nil || o.err == nil || dials != c.dials {
					t.Errorf("%d dials in %s: %v, %v", dials, time.Since(began), o.err, err)
				}
			})
		})
	}
}

// An answer that cannot be read and repeats the request brings no secret into an error.
func TestNoSecretInErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		dial := func(context.Context, string, string) (net.Conn, error) { // something that is no HTTP and repeats what it is sent
			client, server := net.Pipe()
			go func() {
				b := make([]byte, 4096)
				n, _ := server.Read(b)
				line, _, _ := strings.Cut(string(b[:n]), "\r\n")
				_, _ = io.WriteString(server, line+"\r\n")
				_ = server.Close()
			}()
			return client, nil
		}
		o := openOutbox(t, Options{DialContext: dial, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, o)
		e := event("call.completed", "5")
		mustAppend(t, o, e)
		time.Sleep(time.Second * 3)
		stop()
		_, attempts, _ := o.Delivery(e.ID + ".crm")
		if len(attempts) == 0 || strings.Contains(attempts[0].Error, "t0psecret") || strings.Contains(log.String(), "t0psecret") {
			t.Errorf("stored: %v\nlog: %s", attempts, log.String())
		}
	})
}

// Nor does one that repeats the header which net/http makes of an address's user and password.
func TestNoBasicAuthInAnswers(t *testing.T) {
	c := &crm{answer: func(_ int, r received, w http.ResponseWriter) {
		_, _ = io.WriteString(w, "authorization: "+r.header.Get("Authorization"))
	}}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.URL = "http://bridge:t0psecretpassword@crm.example/hook"
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		ev := event("call.completed", "5")
		mustAppend(t, o, ev)
		time.Sleep(time.Second)
		stop()
		_, attempts, _ := o.Delivery(ev.ID + ".crm")
		if strings.Contains(attempts[0].Response, "YnJpZGdl") {
			t.Errorf("stored and shown: %q (base64 of user:password)", attempts[0].Response)
		}
	})
}

// Nor one that writes the address as its language does.
func TestNoSecretHoweverItIsWritten(t *testing.T) {
	e := endpoint("crm")
	e.URL = "http://crm.example/in/p4th-s3cret?token=abc%2Fdef&SECRET=T%26A%22IL~ok<ay>"
	e.Tokens, e.Secrets = []string{"an-old-t0ken", "p4th-of-a-token"}, [][]byte{[]byte("p4th-of-the-secrets")}
	hide := hider(e)
	for name, answer := range map[string]string{
		"as it is":                  "/in/p4th-s3cret?token=abc%2Fdef&SECRET=T%26A%22IL~ok<ay>",
		"PHP's json_encode":         `{"uri":"\/in\/p4th-s3cret?token=abc%2Fdef&SECRET=T%26A%22IL~ok<ay>"}`,
		"small digits":              "token=abc%2fdef, T%26A%22IL~ok<ay>, t%26a",
		"decoded":                   `abc/def T&A"IL~ok<ay>`,
		"decoded, in JSON":          `{"token":"abc\/def","s":"T&A\"IL~ok<ay>"}`,
		"decoded, in HTML":          "<p>abc/def T&amp;A&#34;IL~ok&lt;ay&gt;</p>",
		"the token and the secret":  `{"token":"p4th-of-a-token","old":"an-old-t0ken","secret":"p4th-of-the-secrets"}`,
		"the secret in base64":      "whsec_cDR0aC1vZi10aGUtc2VjcmV0cw, whsec_cDR0aC1vZi10aGUtc2VjcmV0cw==",
		"decoded and encoded again": "abc%2Fdef T%26A%22IL~ok%3Cay%3E T%26A%22IL~ok%3cay%3e",
	} {
		got := hide.Replace(answer)
		for _, part := range []string{"abc", "def", "IL~ok", "p4th", "t0ken", "cDR0a"} {
			if strings.Contains(got, part) {
				t.Errorf("%s: %q is shown in %q", name, part, got)
			}
		}
	}
}

// An answer whose head does not end takes no more memory than one that is allowed, and counts as none. So does a status that is none.
func TestAnswersThatAreNone(t *testing.T) {
	for name, c := range map[string]struct{ begins, goesOn, want string }{
		"a head without end": {"HTTP/1.1 200 OK\r\nX: ", strings.Repeat("a", 1024), "headers exceeded"},
		"no status":          {"HTTP/1.1 000 What\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "", "the answer has the status 000"},
	} {
		t.Run(name, func(t *testing.T) {
			var most atomic.Int64
			crm := &crm{answer: func(_ int, _ received, w http.ResponseWriter) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				n, err := io.WriteString(conn, c.begins)
				for sent := int64(n); err == nil && c.goesOn != ""; sent += int64(n) {
					most.Store(max(most.Load(), sent))
					n, err = io.WriteString(conn, c.goesOn)
				}
			}}
			bubble(t, crm, func(t *testing.T) {
				o := openOutbox(t, Options{DialContext: crm.net.Dial})
				stop := run(t, o)
				e := event("call.completed", "5")
				mustAppend(t, o, e)
				time.Sleep(time.Second)
				stop()
				_, attempts, err := o.Delivery(e.ID + ".crm")
				if err != nil || len(attempts) != 1 || attempts[0].Status != 0 || !strings.Contains(attempts[0].Error, c.want) {
					t.Errorf("attempts: %+v, %v", attempts, err)
				}
				if n := most.Load(); n > 2*maxHead {
					t.Errorf("%d bytes of it were taken", n)
				}
			})
		})
	}
}

// Nor one that is so long that it is kept only in part.
func TestNoSecretAtTheCut(t *testing.T) {
	token := strings.Repeat("abcdefghij", 40)
	c := &crm{answer: func(_ int, _ received, w http.ResponseWriter) {
		_, _ = io.WriteString(w, strings.Repeat(token+" ", 20))
	}}
	bubble(t, c, func(t *testing.T) {
		e := endpoint("crm")
		e.URL = "http://crm.example/hook?token=" + token
		o := openOutbox(t, Options{DialContext: c.net.Dial, Endpoints: []Endpoint{e}})
		stop := run(t, o)
		ev := event("call.completed", "5")
		mustAppend(t, o, ev)
		synctest.Wait()
		stop()
		_, attempts, err := o.Delivery(ev.ID + ".crm")
		if err != nil || len(attempts) != 1 || attempts[0].Response == "" || strings.Contains(attempts[0].Response, "abcdefghij") {
			t.Errorf("kept: %v, %v", attempts, err)
		}
	})
}

// Each redial is signed anew: a CRM refuses what was signed too long ago.
func TestRedialIsSignedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stamps []string
		e := endpoint("crm")
		e.URL, e.Timeout = "http://crm.example", time.Hour
		s := newSender(e, 1, Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				r, err := http.ReadRequest(bufio.NewReader(far))
				if err != nil {
					return
				}
				stamps = append(stamps, r.Header.Get("webhook-timestamp")+r.Header.Get("webhook-signature"))
				time.Sleep(10 * time.Second) // then it breaks off
			}()
			return near, nil
		}})
		if o, err := s.attempt(t.Context(), job{eventID: uuid.NewString(), stored: stored{body: []byte("{}")}}); err != nil || o.err == nil {
			t.Errorf("%v, %v", o, err)
		}
		if slices.Sort(stamps); len(stamps) != 3 || len(slices.Compact(stamps)) != 3 {
			t.Errorf("signed as %v", stamps)
		}
	})
}
