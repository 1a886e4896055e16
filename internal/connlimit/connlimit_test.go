package connlimit

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// server answers "/" at once, and "/wait" when the test lets it. A header marks an authenticated
// request.
type server struct {
	address string
	limit   *Limit
	waiting chan struct{} // receives once for each request that has begun to wait
	goOn    chan struct{}
}

func newServer(t *testing.T, connections int) *server {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{inner.Addr().String(), New(connections), make(chan struct{}), make(chan struct{})}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			s.waiting <- struct{}{}
			<-s.goOn
		}
		_, _ = io.WriteString(w, "ok")
	})
	isAuthenticated := func(r *http.Request) bool { return r.Header.Get("Authorization") != "" }
	h := &http.Server{ConnContext: Context, Handler: s.limit.Handler(handler, isAuthenticated)}
	go func() { _ = h.Serve(s.limit.Listener(inner)) }()
	t.Cleanup(func() { close(s.goOn); _ = h.Close() })
	return s
}

type client struct {
	net.Conn
	answers *bufio.Reader
}

func (s *server) dial(t *testing.T) client {
	t.Helper()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return client{c, bufio.NewReader(c)}
}

// get sends a request and returns the status of its response, 0 if the connection was closed.
func (c client) get(path string, headers ...string) int {
	c.send(path, headers...)
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func (c client) send(path string, headers ...string) {
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, strings.Join(headers, ""))
}

const token = "Authorization: yes\r\n"

// A new connection is always served. The one that was idle for longest makes room for it:
// unauthenticated clients first, and never one with an authenticated request under way.
func TestLongestIdleConnectionMakesRoom(t *testing.T) {
	const limit = spare + 4
	s := newServer(t, limit)
	busy := s.dial(t)
	busy.send("/wait", token)
	<-s.waiting
	authenticated := s.dial(t)
	if got := authenticated.get("/", token); got != 200 {
		t.Fatalf("an authenticated client: %d", got)
	}
	var clients []client
	for range 3 * limit {
		c := s.dial(t)
		clients = append(clients, c)
		if got := c.get("/"); got != 200 {
			t.Fatalf("the anonymous client %d: %d", len(clients), got)
		}
	}
	if first, last := clients[0].get("/"), clients[len(clients)-1].get("/"); first != 0 || last != 200 {
		t.Errorf("the first anonymous client got %d, the last %d", first, last)
	}
	if oldest := clients[len(clients)-(limit-2)]; oldest.get("/") != 200 { // the request makes it the last one used
		t.Error("more connections were closed than necessary")
	} else if s.dial(t).get("/"); oldest.get("/") != 200 {
		t.Error("a connection that was just used was closed")
	}
	if got := authenticated.get("/", token); got != 200 {
		t.Errorf("an authenticated client was closed before others: %d", got)
	}
	s.goOn <- struct{}{}
	resp, err := http.ReadResponse(busy.answers, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("the request that was under way: %v, %v", resp, err)
	}
}

// Connections that send nothing, or an incomplete request, make room as others do.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	s := newServer(t, spare+4)
	for i := range 100 {
		c := s.dial(t)
		if i%2 == 0 {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHos")
		}
	}
	if got := s.dial(t).get("/"); got != 200 {
		t.Errorf("beside them a request got %d", got)
	}
	s.limit.mu.Lock()
	defer s.limit.mu.Unlock()
	if n := s.limit.idle[anonymous].Len(); n > spare+4 {
		t.Errorf("there are %d connections", n)
	}
}

// Unauthenticated requests are served however many authenticated ones are under way; an
// authenticated request beyond the limit gets 503.
func TestSpareConnectionsServeAnonymousClients(t *testing.T) {
	const busy = 4
	s := newServer(t, spare+busy)
	for range busy {
		s.dial(t).send("/wait", token)
		<-s.waiting
	}
	c := s.dial(t)
	if got := c.get("/", token); got != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", got)
	}
	if got := c.get("/"); got != 200 {
		t.Errorf("an anonymous client: %d", got)
	}
	s.goOn <- struct{}{}
	for deadline := time.Now().Add(20 * time.Second); c.get("/", token) != 200; {
		if time.Now().After(deadline) {
			t.Fatal("no connection is free after a request has ended")
		}
	}
}

// The budget is what the rest of the program leaves.
func TestBudgetIsWhatOthersLeave(t *testing.T) {
	for _, c := range []struct {
		files, others, want int
		enough              bool
	}{
		{1 << 20, 200, 512, true},
		{1024, 200, 512, true},
		{1024, 600, 392, true},
		{256, 60, 128, true},
		{256, 150, 74, true},
		{256, 220, minConnections, false},
		{64, 10, minConnections, false},
	} {
		if got, enough := budget(c.files, c.others); got != c.want || enough != c.enough {
			t.Errorf("of %d files, %d for others: %d, %v", c.files, c.others, got, enough)
		}
	}
	if got, enough := Budget(60); got < minConnections || !enough {
		t.Errorf("of this process: %d, %v", got, enough)
	}
}

// A displaced connection counts as closed from the moment of its choice: a request that begins on
// it then is not counted as busy.
func TestDisplacedConnectionBeginsNoRequest(t *testing.T) {
	l := New(spare + 1)
	for {
		near, far := net.Pipe()
		defer far.Close()
		c := &conn{Conn: near, limit: l}
		displaced := l.add(c)
		if displaced == nil {
			continue
		}
		if !displaced.begin(true) || l.busy != 0 || !displaced.closed {
			t.Errorf("a request begins on it: %+v", displaced)
		}
		_ = displaced.Close()
		return
	}
}
