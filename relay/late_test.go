package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
)

// A keep-alive word that happens to be valid base64 does not decide the server's form.
func TestKeepAliveWordDoesNotDecideTheForm(t *testing.T) {
	for _, word := range []string{"PING", "null", "ping", "true"} {
		inWorld(t, pztest.Options{Codec: pz.Plain}, nil, func(t *testing.T, w *world) {
			time.Sleep(fallbackAfter + time.Second)
			w.server.EmitRaw([]byte(word))
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "101", To: "7343"})
			if err != nil {
				t.Errorf("after %q: %v", word, err)
			}
		})
	}
}

// An event that waited in the bridge's own buffer during a standstill counts as late, too.
func TestEventsThatWaitForSpaceAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newRawServer(upgradeAnswer)
		defer server.far.Close()
		defer server.client.Close()
		process := newStopped(server.client)
		got := &sink{}
		rawSession(t, got, func(ctx context.Context, network, address string) (net.Conn, error) {
			_, err := server.dial(ctx, network, address)
			return process, err
		})
		time.Sleep(100 * time.Millisecond)
		got.set(errors.New("no space left on device"))
		began := time.Now()
		for i := 0; i < intakeSize+200; i += 10 { // ten in one segment
			var b strings.Builder
			for j := range 10 {
				b.WriteString(frameOf(0x81, fmt.Sprintf(`<Event type="1" callID="%d" from="7"/>`, i+j)))
			}
			_, _ = io.WriteString(server.far, b.String())
		}
		time.Sleep(time.Minute)
		got.set(nil)
		time.Sleep(5 * time.Second)
		n, wrong := len(got.appended()), 0
		for _, e := range got.appended() {
			if e.Time.Sub(began) > 10*time.Second {
				wrong++
			}
		}
		if wrong > 0 || n < intakeSize+200 {
			t.Errorf("of %d events that arrived at once and waited for a minute, %d count as new", n, wrong)
		}
	})
}

// After a standstill of a busy machine a read may be slow, or run out of time with data at hand.
// Data counts as new again after two reads that found nothing.
func TestSlowReadsDoNotProveThatAllIsRead(t *testing.T) {
	nothing, something := script{err: os.ErrDeadlineExceeded}, script{data: "x", takes: time.Second}
	standstill := script{err: os.ErrDeadlineExceeded, takes: stallAfter + time.Second/2}
	for name, c := range map[string]struct {
		reads []script
		late  bool
	}{
		"slow reads":                 {[]script{something, something}, true},
		"a read without its data":    {[]script{something, nothing, something}, true},
		"again and again":            {[]script{nothing, something, nothing, something}, true},
		"a standstill among them":    {[]script{something, nothing, standstill, nothing, something}, true},
		"two reads without anything": {[]script{something, nothing, nothing, something}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := newTCP(&scripted{reads: c.reads}, 0)
				conn.watch()
				time.Sleep(time.Minute)
				for conn.Conn.(*scripted).isLeft() {
					if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
						t.Fatal(n, err)
					}
				}
				if _, late := conn.delayedSince(); late != c.late {
					t.Errorf("the last byte is late: %t", late)
				}
			})
		})
	}
}

// Whatever the kernel takes for the round trip, a poll is no longer than usual: longer ones would
// look like standstills, and the connection like a silent one.
func TestLateReadsAreNotLong(t *testing.T) {
	for roundTrip, want := range map[time.Duration]time.Duration{
		0:                      minQuiet,
		time.Millisecond:       minQuiet,
		100 * time.Millisecond: 300 * time.Millisecond,
		400 * time.Millisecond: pollPeriod,
		8 * time.Second:        pollPeriod,
	} {
		if got := quietFor(roundTrip); got != want {
			t.Errorf("with a round trip of %s it is %s, want %s", roundTrip, got, want)
		}
	}
}

// script is how one read ends. One without data takes until its deadline, and longer.
type script struct {
	data  string
	err   error
	takes time.Duration
}

// scripted is a connection whose reads are given.
type scripted struct {
	net.Conn
	reads   []script
	expires time.Time
}

func (s *scripted) isLeft() bool { return len(s.reads) > 0 }

func (s *scripted) SetReadDeadline(t time.Time) error { s.expires = t; return nil }

func (s *scripted) Read(p []byte) (int, error) {
	r := s.reads[0]
	s.reads = s.reads[1:]
	if r.err != nil {
		time.Sleep(time.Until(s.expires) + r.takes)
		return 0, r.err
	}
	time.Sleep(r.takes)
	return copy(p, r.data), nil
}

// A ping that arrived during a standstill is answered soon after it, not with the next message.
func TestPingDuringAStandstillIsAnsweredSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newRawServer(upgradeAnswer)
		server.deaf = true
		defer server.far.Close()
		defer server.client.Close()
		process := newStopped(server.client)
		var pongs atomic.Int64
		rawSession(t, &sink{}, func(context.Context, string, string) (net.Conn, error) {
			go func() {
				in := bufio.NewReader(server.far)
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				_, _ = io.WriteString(server.far, accept(server.answer, r))
				for {
					h := make([]byte, 2)
					if _, err := io.ReadFull(in, h); err != nil {
						return
					}
					n := int(h[1] & 0x7f)
					if n == 126 {
						x := make([]byte, 2)
						_, _ = io.ReadFull(in, x)
						n = int(x[0])<<8 | int(x[1])
					}
					_, _ = io.ReadFull(in, make([]byte, n+4))
					if h[0] == 0x8a {
						pongs.Add(1)
					}
				}
			}()
			return process, nil
		})
		time.Sleep(100 * time.Millisecond)
		_, _ = io.WriteString(server.far, frameOf(0x81, `<Event type="1" callID="1" from="7"/>`))
		time.Sleep(900 * time.Millisecond)
		process.stop(5 * time.Second)
		_, _ = io.WriteString(server.far, frameOf(0x89, "server ping string"))
		time.Sleep(8 * time.Second)
		if pongs.Load() != 1 {
			t.Errorf("three seconds after the standstill there are %d pongs", pongs.Load())
		}
	})
}

// jam is a connection whose writes block once it is jammed.
type jam struct {
	net.Conn
	mu     sync.Mutex
	jammed bool
	until  time.Time
	closed chan struct{}
	once   sync.Once
}

func (j *jam) SetWriteDeadline(t time.Time) error {
	j.mu.Lock()
	j.until = t
	j.mu.Unlock()
	return j.Conn.SetWriteDeadline(t)
}

func (j *jam) Close() error { j.once.Do(func() { close(j.closed) }); return j.Conn.Close() }

func (j *jam) Write(p []byte) (int, error) {
	j.mu.Lock()
	jammed, until := j.jammed, j.until
	j.mu.Unlock()
	if !jammed {
		return j.Conn.Write(p)
	}
	var c <-chan time.Time
	if !until.IsZero() {
		c = time.After(time.Until(until))
	}
	select {
	case <-c:
		return 0, os.ErrDeadlineExceeded
	case <-j.closed:
		return 0, io.ErrClosedPipe
	}
}

// A stop ends within its grace even if the server reads nothing, where a closing message of TLS
// would block.
func TestStopAtAServerThatReadsNothing(t *testing.T) {
	for _, secure := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := pztest.Options{}
			u := &url.URL{Scheme: "ws", Host: "pbx:10150"}
			if secure {
				o.TLS = pztest.ModernTLS()
				u.Scheme = "wss"
			}
			server := pztest.New(o)
			l := pipenet.Listen()
			server.Start(l)
			var j *jam
			tlscfg := TLS(nil, []byte{}, false)
			tlscfg.VerifyConnection = nil
			session, err := New(Options{
				URL: u,
				TLS: tlscfg,
				Identity: pz.Identity{
					ClientType: "crm",
					GUID:       "g",
					EventsMask: 65535,
					Protocol:   2,
				},
				Grace:  time.Second,
				Sink:   &sink{},
				Logger: slog.New(slog.DiscardHandler),
				DialContext: func(ctx context.Context, n, a string) (net.Conn, error) {
					c, err := l.Dial(ctx, n, a)
					j = &jam{Conn: c, closed: make(chan struct{})}
					return j, err
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- session.Run(ctx) }()
			time.Sleep(time.Second)
			if c := session.Connection(); c.State != telephony.Connected {
				t.Fatalf("%+v", c)
			}
			j.mu.Lock()
			j.jammed = true
			j.mu.Unlock()
			began := time.Now()
			cancel()
			<-ended
			took := time.Since(began)
			if took > 1500*time.Millisecond {
				t.Errorf("tls=%v: Run ended after %s, with a grace of 1 s", secure, took)
			}
			server.Close()
		})
	}
}
