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

// server answers "/" at once, and "/wait" when it is told to. Somebody known asks with a header.
type server struct {
	address string
	limit   *Limit
	waiting chan struct{} // one for each request that has begun to wait
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
	h := &http.Server{ConnContext: Context, Handler: s.limit.Handler(handler, func(r *http.Request) bool { return r.Header.Get("Known") != "" })}
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

// ask sends a request and gives the status of its answer, 0 if the connection was closed.
func (c client) ask(path string, headers ...string) int {
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

const isKnown = "Known: yes\r\n"

// A new connection is always answered. The one that was quiet for longest makes room for it: strangers first, and never one with a request of somebody known.
func TestWhoMakesRoom(t *testing.T) {
	const most = spare + 4
	s := newServer(t, most)
	busy := s.dial(t)
	busy.send("/wait", isKnown)
	<-s.waiting
	known := s.dial(t)
	if got := known.ask("/", isKnown); got != 200 {
		t.Fatalf("somebody known: %d", got)
	}
	var strangers []client
	for range 3 * most {
		c := s.dial(t)
		strangers = append(strangers, c)
		if got := c.ask("/"); got != 200 {
			t.Fatalf("the stranger %d: %d", len(strangers), got)
		}
	}
	if first, last := strangers[0].ask("/"), strangers[len(strangers)-1].ask("/"); first != 0 || last != 200 {
		t.Errorf("the first stranger is answered %d, the last %d", first, last)
	}
	if oldest := strangers[len(strangers)-(most-2)]; oldest.ask("/") != 200 { // and is not the one that was quiet for longest any more
		t.Error("more were closed than had to be")
	} else if s.dial(t).ask("/"); oldest.ask("/") != 200 {
		t.Error("one that has just asked was closed")
	}
	if got := known.ask("/", isKnown); got != 200 {
		t.Errorf("somebody known was closed before strangers: %d", got)
	}
	s.goOn <- struct{}{}
	resp, err := http.ReadResponse(busy.answers, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("the request that was under way: %v, %v", resp, err)
	}
}

// Connections that send nothing, or a request that never ends, make room as others do.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	s := newServer(t, spare+4)
	for i := range 100 {
		c := s.dial(t)
		if i%2 == 0 {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHos")
		}
	}
	if got := s.dial(t).ask("/"); got != 200 {
		t.Errorf("beside them a request is answered %d", got)
	}
	s.limit.mu.Lock()
	defer s.limit.mu.Unlock()
	if n := s.limit.quiet[stranger].Len(); n > spare+4 {
		t.Errorf("there are %d connections", n)
	}
}

// However many requests of somebody known are under way, a stranger's finds a place; one known request too many is told so.
func TestPlacesForStrangers(t *testing.T) {
	const busy = 4
	s := newServer(t, spare+busy)
	for range busy {
		s.dial(t).send("/wait", isKnown)
		<-s.waiting
	}
	c := s.dial(t)
	if got := c.ask("/", isKnown); got != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", got)
	}
	if got := c.ask("/"); got != 200 {
		t.Errorf("a stranger: %d", got)
	}
	s.goOn <- struct{}{}
	for deadline := time.Now().Add(20 * time.Second); c.ask("/", isKnown) != 200; {
		if time.Now().After(deadline) {
			t.Fatal("there is no place again after one has ended")
		}
	}
}

// What is bounded is what the rest of the program leaves.
func TestBudget(t *testing.T) {
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

// A connection that has to make room is closed from the moment on at which it was chosen: a request that
// begins on it then takes no place.
func TestChosenConnectionBeginsNothing(t *testing.T) {
	l := New(spare + 1)
	for {
		near, far := net.Pipe()
		defer far.Close()
		c := &conn{Conn: near, limit: l}
		longest := l.add(c)
		if longest == nil {
			continue
		}
		if !longest.use(true) || l.busy != 0 || !longest.closed {
			t.Errorf("a request begins on it: %+v", longest)
		}
		_ = longest.Close()
		return
	}
}
