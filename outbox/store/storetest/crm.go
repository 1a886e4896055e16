package storetest

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// The secrets of the tests' endpoints.
var (
	secretA = []byte("aaaaaaaaaaaaaaaaaaaaaaaa")
	secretB = []byte("bbbbbbbbbbbbbbbbbbbbbbbb")
)

// All is a filter that lets every event of the exchange through.
var All = store.Filter{"call.*", "sms.*", "pz.event"}

// Event gives an event of a call, read now.
func Event(kind telephony.EventType, call string) telephony.Event {
	return telephony.Event{ID: uuid.Must(uuid.NewV7()).String(), Type: kind, Time: time.Now(), CallID: call}
}

// Endpoint gives an endpoint that gets every event of the exchange.
func Endpoint(name string) store.Endpoint {
	return store.Endpoint{
		Name:        name,
		URL:         "http://crm.example/hook?token=t0psecret",
		Secrets:     [][]byte{secretA},
		Events:      All,
		Timeout:     15 * time.Second,
		Concurrency: 16,
		RingingTTL:  1000 * time.Hour,
	}
}

// SkipBulk skips a test that stores a file full of events, or a long backlog, where only short ones
// are wanted: on 32 bits the code is the same.
func SkipBulk(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it stores thousands of events")
	}
}

// Appender is what events can be appended to.
type Appender interface {
	Append(ctx context.Context, events []telephony.Event) error
}

// MustAppend appends events.
func MustAppend(t testing.TB, a Appender, events ...telephony.Event) {
	t.Helper()
	if err := a.Append(context.Background(), events); err != nil {
		t.Fatal(err)
	}
}

// States counts the deliveries of a configured endpoint by state.
func States(t testing.TB, b *Box, name string) map[store.State]int {
	t.Helper()
	list, err := b.Endpoints()
	if err != nil {
		t.Fatal(err)
	}
	e := list[slices.IndexFunc(list, func(e outbox.EndpointStatus) bool { return e.Name == name })]
	return map[store.State]int{
		store.Pending: int(e.Pending), store.Delivered: int(e.Delivered),
		store.Expired: int(e.Expired), store.Dead: int(e.Dead),
	}
}

// Received is a webhook as a CRM got it.
type Received struct {
	At     time.Time
	Path   string
	Header http.Header
	Body   []byte
}

// CRM is a receiver of webhooks.
type CRM struct {
	Net    *pipenet.Listener
	Answer func(n int, r Received, w http.ResponseWriter) // n counts from 1; nil is 200

	Forget bool // keep only how many came

	mu   sync.Mutex
	n    int
	hook []Received
}

// Count is how many webhooks have come.
func (c *CRM) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// ServeHTTP takes a webhook.
func (c *CRM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	got := Received{time.Now(), r.URL.RequestURI(), r.Header, body}
	c.mu.Lock()
	if !c.Forget {
		c.hook = append(c.hook, got)
	}
	c.n++
	n := c.n
	c.mu.Unlock()
	if c.Answer != nil {
		c.Answer(n, got, w)
	}
}

// Received gives the webhooks that have come.
func (c *CRM) Received() []Received {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.hook)
}

// Bubble runs f in fake time with a CRM; what run starts is stopped when f returns.
func Bubble(t *testing.T, c *CRM, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c.Net = pipenet.Listen()
		server := &http.Server{Handler: c}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(c.Net) })
		f(t)
		_ = server.Close()
		serving.Wait()
	})
}

// RunBox delivers until the function that it returns is called.
func RunBox(t testing.TB, b *Box) (stop func()) {
	t.Helper()
	return RunWith(t, b, Silence{})
}

// RunWith does the same with a router of the test's own.
func RunWith(t testing.TB, b *Box, d routing.Decider) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.Run(ctx, d); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); running.Wait() }
}
