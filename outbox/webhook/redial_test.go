package webhook

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"pzbridge/outbox/store"
)

// testEndpoint gives an endpoint at an address.
func testEndpoint(address string) store.Endpoint {
	return store.Endpoint{
		Name:        "crm",
		URL:         address,
		Secrets:     [][]byte{[]byte("aaaaaaaaaaaaaaaaaaaaaaaa")},
		Timeout:     15 * time.Second,
		Concurrency: 1,
	}
}

// testJob gives a delivery of an empty event.
func testJob() store.Job {
	return store.Job{EventID: uuid.NewString(), Event: store.Event{Body: []byte("{}")}}
}

// refused is a dial to an address at which nothing listens.
func refused() (net.Conn, error) { return nil, errors.New("connection refused") }

// redirectToNowhere is a dial to a server that redirects to an address that cannot be read.
func redirectToNowhere() (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		_, _ = server.Read(make([]byte, 4096))
		_, _ = io.WriteString(server, "HTTP/1.1 302 Found\r\nLocation: http://[t0psecret\r\nContent-Length: 0\r\n\r\n")
		_ = server.Close()
	}()
	return client, nil
}

// silentPeer is a dial to a server that takes everything and answers nothing.
func silentPeer() (net.Conn, error) {
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }()
	return near, nil
}

// TestQuickRedials checks that a timeout below the attempt's own (here of the TLS handshake) is not
// redialled, and that a refused connection is, twice, unless the job does not allow it.
func TestQuickRedials(t *testing.T) {
	for name, c := range map[string]struct {
		scheme    string
		dial      func() (net.Conn, error)
		mayRedial func() bool
		dials     int
	}{
		"a silent peer":                     {"https", silentPeer, nil, 1},
		"a redirect to nowhere":             {"http", redirectToNowhere, nil, 1},
		"nobody there":                      {"https", refused, nil, 3},
		"nobody there, during a shutdown":   {"https", refused, func() bool { return false }, 1},
		"nobody there, one more is to come": {"https", refused, rate.NewLimiter(rate.Every(time.Hour), 1).Allow, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dials := 0
				s := New(testEndpoint(c.scheme+"://crm.example"), Options{
					DialContext: func(context.Context, string, string) (net.Conn, error) {
						dials++
						return c.dial()
					},
				})
				j := testJob()
				j.MayRedial = c.mayRedial
				began := time.Now()
				o := s.Send(t.Context(), j)
				if o.Verdict != store.Again || o.Err == nil || dials != c.dials {
					t.Errorf("%d dials in %s: %+v", dials, time.Since(began), o)
				}
			})
		})
	}
}

// TestRedialIsSignedAfresh checks that each redial has a signature of its own time: a CRM refuses
// what was signed too long ago.
func TestRedialIsSignedAfresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stamps []string
		e := testEndpoint("http://crm.example")
		e.Timeout = time.Hour
		s := New(e, Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
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
		if o := s.Send(t.Context(), testJob()); o.Verdict != store.Again || o.Err == nil {
			t.Errorf("%+v", o)
		}
		if slices.Sort(stamps); len(stamps) != 3 || len(slices.Compact(stamps)) != 3 {
			t.Errorf("signed as %v", stamps)
		}
	})
}

// TestAnAnswerCountsThoughItsEndDoesNotCome checks that an attempt whose answer has a status counts
// as answered, also where the context ends before the rest of the answer has come.
func TestAnAnswerCountsThoughItsEndDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(testEndpoint("http://crm.example"), Options{
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go func() {
					_, _ = far.Read(make([]byte, 4096))
					_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
					_, _ = io.WriteString(far, `{"transfer_to":"101"}`)
					_, _ = io.Copy(io.Discard, far)
				}()
				return near, nil
			},
		})
		for _, isQuestion := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			j := testJob()
			j.IsQuestion = isQuestion
			o := s.Send(ctx, j)
			cancel()
			if o.Verdict != store.Done || isQuestion != (o.Reply != nil) {
				t.Errorf("a question: %t; %+v", isQuestion, o)
			}
		}
	})
}
