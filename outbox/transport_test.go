package outbox

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/pztest"
)

// An answer that cannot be read is an answer: the endpoint has got the event, and gets it again only by
// the schedule. A connection that breaks before anything has come is redialled at once.
func TestUnreadableAnswerIsOneRequest(t *testing.T) {
	for answer, want := range map[string]int{
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx": 1,
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n":                                1,
		"SSH-2.0-OpenSSH_9.2\r\n":                                            1,
		"HTTP/1.1 2":                                                         1,
		"":                                                                   1 + redials,
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
			o := openOutbox(t, Options{DialContext: l.Dial, RetrySchedule: []time.Duration{time.Hour}, Logger: slog.New(slog.DiscardHandler)})
			stop := run(t, o)
			mustAppend(t, o, event("call.completed", "5"))
			time.Sleep(time.Minute)
			stop()
			_ = l.Close()
			serving.Wait()
			if requests != want {
				t.Errorf("%q: %d requests in one attempt, want %d", answer, requests, want)
			}
		})
	}
}

// mute is a connection on which at some moment nothing comes and goes any more, and no end either.
type mute struct {
	net.Conn
	dead *atomic.Bool
}

func (m *mute) Write(p []byte) (int, error) {
	if m.dead.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

// Over HTTP/2 a connection that has died silently is given up within seconds, for events and for
// questions.
func TestConnectionThatDiesSilently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := pipenet.Listen()
		serverTLS := pztest.ModernTLS()
		serverTLS.NextProtos = []string{"h2"}
		cert, err := x509.ParseCertificate(serverTLS.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(cert)
		var got atomic.Int64
		server := &http.Server{TLSConfig: serverTLS, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 2 {
				t.Errorf("it is asked over %s", r.Proto)
			}
			got.Add(1)
			_, _ = io.WriteString(w, `{"transfer_to":""}`)
		})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.ServeTLS(l, "", "") })
		dead := &atomic.Bool{}
		crm := answersLater()
		crm.URL, crm.TLS, crm.Timeout = "https://localhost/hook", &tls.Config{RootCAs: roots}, 10*time.Second
		o := openOutbox(t, Options{
			Endpoints: []Endpoint{crm}, RetrySchedule: []time.Duration{10 * time.Second, 10 * time.Second, 10 * time.Second}, RoutingTimeout: time.Minute,
			Logger: slog.New(slog.DiscardHandler),
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := l.Dial(ctx, network, address)
				return &mute{c, dead}, err
			},
		})
		stop := run(t, o)
		mustAppend(t, o, event("call.completed", "1"), event("call.transfer_requested", "2"))
		time.Sleep(time.Second)
		if got.Load() != 2 {
			t.Fatalf("%d arrived at first", got.Load())
		}
		dead.Store(true) // of the connections that there are
		dead = &atomic.Bool{}
		began := time.Now()
		mustAppend(t, o, event("call.completed", "3"), event("call.transfer_requested", "4"))
		for got.Load() < 4 && time.Since(began) < time.Hour {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("what came then arrived after %s", took)
		}
		stop()
		_ = server.Close()
		serving.Wait()
		time.Sleep(time.Hour)
	})
}

// A name that has moved to another machine is followed within minutes, however much traffic there is
// to the old one, which still says 200.
func TestNameThatHasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machines := [2]*pipenet.Listener{pipenet.Listen(), pipenet.Listen()}
		var got [2]atomic.Int64
		var serving sync.WaitGroup
		var servers []*http.Server
		for i, l := range machines {
			server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { got[i].Add(1) })}
			servers = append(servers, server)
			serving.Go(func() { _ = server.Serve(l) })
		}
		var moved atomic.Bool
		crm := endpoint("crm")
		crm.Concurrency = 4
		o := openOutbox(t, Options{
			Endpoints: []Endpoint{crm}, Logger: slog.New(slog.DiscardHandler),
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if moved.Load() {
					return machines[1].Dial(ctx, network, address)
				}
				return machines[0].Dial(ctx, network, address)
			},
		})
		stop := run(t, o)
		traffic := func(seconds int) {
			for i := range seconds {
				mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
				time.Sleep(time.Second)
			}
		}
		traffic(60)
		moved.Store(true)
		traffic(int(connectionLife/time.Second) + 10)
		old := got[0].Load()
		traffic(60)
		if got[0].Load() != old || got[1].Load() < 60 {
			t.Errorf("the old machine has got %d, %d of them late; the new one %d", got[0].Load(), got[0].Load()-old, got[1].Load())
		}
		stop()
		for _, server := range servers {
			if err := server.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "closed") {
				t.Error(err)
			}
		}
		serving.Wait()
	})
}
