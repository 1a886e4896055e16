package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"
	"time"

	"pzbridge/outbox/store"
	"pzbridge/outbox/webhook"
)

// receives is set for a process that is a receiver.
const receives = "RECEIVE"

// BeReceiver makes a receiver of a process that StartReceiver has started, until it is killed; in
// any other process it does nothing. TestMain calls it first.
func BeReceiver() {
	if os.Getenv(receives) == "" {
		return
	}
	fmt.Fprintln(os.Stderr, receive())
	os.Exit(1)
}

// receive takes everything and says its address.
func receive() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
}

// StartReceiver starts a receiver in a process of its own, which is the test's binary once more:
// see BeReceiver. It ends with the benchmark.
func StartReceiver(b *testing.B) (url string) {
	b.Helper()
	p := exec.Command(os.Args[0])
	p.Env = []string{receives + "=1"}
	out, err := p.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return "http://" + address[:len(address)-1]
}

// Arrivals are the times at which a receiver had the head of each POST.
type Arrivals chan time.Time

// StartArrivals starts a receiver in this process, which ends with the benchmark.
func StartArrivals(b *testing.B) (url string, arrived Arrivals) {
	b.Helper()
	const most = 1000 // that are not waited for
	arrived = make(Arrivals, most)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- time.Now()
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	b.Cleanup(receiver.Close)
	return receiver.URL, arrived
}

// Forget drops the arrivals of the events by which a way was found to be connected. The last of
// them may still be on their way.
func (a Arrivals) Forget() {
	<-time.After(time.Second)
	for len(a) > 0 {
		<-a
	}
}

// Of sends an event, and returns how long it takes to arrive.
func (a Arrivals) Of(send func()) time.Duration {
	began := time.Now()
	send()
	return (<-a).Sub(began)
}

// PostDirectly is how long it takes to POST one event n times, so many at once, and nothing else.
func PostDirectly(b *testing.B, s *webhook.Sender, id string, body []byte, n int) time.Duration {
	b.Helper()
	return InParallel(b, Concurrency, n, func(int) error {
		if o := s.Send(b.Context(), store.Job{EventID: id, Event: store.Event{Body: body}}); o.Verdict != store.Done {
			return errors.New(o.Text())
		}
		return nil
	})
}
