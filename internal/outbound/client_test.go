package outbound

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/telephony"
)

// post sends one small request.
func post(t *testing.T, c *Client) (Answer, error) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://crm.example/hook", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Do(t.Context(), Request{HTTP: r, Body: []byte("{}")})
}

// The codes are those that the package telephony declares, and the words of net/http are pinned.
func TestErrorsHaveTheirCodes(t *testing.T) {
	for answer, want := range map[string]telephony.Cause{
		"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n": {Code: telephony.CodeBadRedirect},
		"HTTP/1.1 099 x\r\nContent-Length: 0\r\n\r\n": {
			Code: telephony.CodeBadStatus,
			Args: []string{"099"},
		},
		"HTTP/1.1 200 OK": {Code: telephony.CodeNoResponse, Args: []string{"15s"}}, // and no more
	} {
		synctest.Test(t, func(t *testing.T) {
			c := New(Options{
				Connections: 1,
				Timeout:     15 * time.Second,
				Redact:      NewRedactor("http://crm.example/hook", nil),
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					near, far := net.Pipe()
					go func() {
						_, _ = far.Read(make([]byte, 4096))
						_, _ = io.WriteString(far, answer)
					}()
					return near, nil
				},
			})
			defer c.Close()
			if _, err := post(t, c); !reflect.DeepEqual(telephony.CauseOf(err), want) {
				t.Errorf("%q: %v, %+v", answer, err, telephony.CauseOf(err))
			}
		})
	}
}

// An answer that cannot be read is an answer: the endpoint has got the request, and gets it again
// only when the caller wants it to. A connection that breaks before anything has come is redialled
// at once.
func TestUnreadableAnswerIsOneRequest(t *testing.T) {
	for answer, want := range map[string]int{
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx": 1,
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n":                                1,
		"SSH-2.0-OpenSSH_9.2\r\n":                                            1,
		"HTTP/1.1 2":                                                         1,
		"":                                                                   1 + maxRedials,
	} {
		synctest.Test(t, func(t *testing.T) {
			l := pipenet.Listen()
			requests := 0
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					requests++
					buf := make([]byte, 64<<10)
					_, _ = c.Read(buf)
					go func() { _, _ = io.Copy(io.Discard, c) }()
					_, _ = io.WriteString(c, answer)
					_ = c.Close()
				}
			})
			c := New(Options{
				Connections: 1,
				Timeout:     15 * time.Second,
				DialContext: l.Dial,
				Redact:      NewRedactor("http://crm.example/hook", nil),
			})
			if answer, err := post(t, c); err == nil {
				t.Errorf("it is taken as %+v", answer)
			}
			time.Sleep(time.Minute)
			c.Close()
			_ = l.Close()
			serving.Wait()
			if requests != want {
				t.Errorf("%q: %d requests in one attempt, want %d", answer, requests, want)
			}
		})
	}
}

// A name that has moved to another machine is followed within minutes, however much traffic there
// is to the old one, which still answers 200.
func TestNameThatHasMovedIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machines := [2]*pipenet.Listener{pipenet.Listen(), pipenet.Listen()}
		var got [2]atomic.Int64
		var serving sync.WaitGroup
		var servers []*http.Server
		for i, l := range machines {
			count := func(http.ResponseWriter, *http.Request) { got[i].Add(1) }
			server := &http.Server{Handler: http.HandlerFunc(count)}
			servers = append(servers, server)
			serving.Go(func() { _ = server.Serve(l) })
		}
		var moved atomic.Bool
		c := New(Options{
			Connections: 4,
			Timeout:     15 * time.Second,
			Redact:      NewRedactor("http://crm.example/hook", nil),
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if moved.Load() {
					return machines[1].Dial(ctx, network, address)
				}
				return machines[0].Dial(ctx, network, address)
			},
		})
		traffic := func(seconds int) {
			for range seconds {
				if answer, err := post(t, c); err != nil || answer.Status != http.StatusOK {
					t.Errorf("%+v, %v", answer, err)
				}
				time.Sleep(time.Second)
			}
		}
		traffic(60)
		moved.Store(true)
		traffic(int(connectionLife/time.Second) + 10)
		old := got[0].Load()
		traffic(60)
		if got[0].Load() != old || got[1].Load() < 60 {
			t.Errorf("the old machine has got %d, %d of them late; the new one %d",
				got[0].Load(), got[0].Load()-old, got[1].Load())
		}
		c.Close()
		for _, server := range servers {
			err := server.Close()
			if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "closed") {
				t.Error(err)
			}
		}
		serving.Wait()
	})
}
