package relay

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
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
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
)

// upgradeAnswer accepts a handshake; %s is the place of the key's hash.
const upgradeAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: %s\r\n\r\n"

// accept returns an answer to a handshake with the hash of its key (RFC 6455, 4.2.2).
func accept(answer string, r *http.Request) string {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return strings.Replace(answer, "%s", base64.StdEncoding.EncodeToString(sum[:]), 1)
}

// rawServer sends a given answer to one handshake; after that the test writes the raw bytes.
type rawServer struct {
	answer      string // to the handshake; %s in it is the place of the key's hash
	deaf        bool   // it reads nothing after the handshake
	client, far net.Conn
}

func newRawServer(answer string) *rawServer {
	s := &rawServer{answer: answer}
	s.client, s.far = net.Pipe()
	return s
}

// dial is a DialContext that connects to the server.
func (s *rawServer) dial(context.Context, string, string) (net.Conn, error) {
	go func() {
		in := bufio.NewReader(s.far)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.WriteString(s.far, accept(s.answer, r))
		if !s.deaf {
			_, _ = io.Copy(io.Discard, in)
		}
	}()
	return s.client, nil
}

// dialRaw connects to a rawServer.
func dialRaw(t *testing.T, server *rawServer) (*Socket, error) {
	t.Helper()
	t.Cleanup(func() { _ = errors.Join(server.client.Close(), server.far.Close()) })
	return Dial(t.Context(), DialOptions{
		URL:         &url.URL{Scheme: "ws", Host: "pbx:10150"},
		Identity:    pz.Identity{ClientType: "crm", GUID: "g"},
		DialContext: server.dial,
	})
}

// frameOf returns an unmasked frame with a first byte and a payload.
func frameOf(first byte, payload string) string {
	switch n := len(payload); {
	case n < 126:
		return string([]byte{first, byte(n)}) + payload
	case n < 1<<16:
		return string([]byte{first, 126, byte(n >> 8), byte(n)}) + payload
	default:
		return string([]byte{first, 127, 0, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + payload
	}
}

// The code of a close frame counts, whatever follows it in the frame.
func TestCloseCodeCountsWhateverFollows(t *testing.T) {
	event := frameOf(0x81, `<Event type="1"/>`)
	for name, c := range map[string]struct {
		frame string
		code  int
	}{
		"nothing":  {frameOf(0x88, "\x0f\xa8"), 4008},
		"a reason": {frameOf(0x88, "\x0f\xa8Invalid password"), 4008},
		"a reason in Windows-1251": {
			frameOf(0x88, "\x0f\xa8\xcd\xe5\xe2\xe5\xf0\xed\xfb\xe9 \xef\xe0\xf0\xee\xeb\xfc"), 4008,
		},
		"a reason that is too long":    {frameOf(0x88, "\x0f\xa9"+strings.Repeat("x", 200)), 4009},
		"a part of a frame":            {frameOf(0x08, "\x0f\xa9"), 4009},
		"reserved bits":                {frameOf(0xc8, "\x0f\xa9"), 4009},
		"a code that RFC 6455 forbids": {frameOf(0x88, "\x03\xed"), 1005},
		"no code":                      {frameOf(0x88, ""), 1005},
		"half a code":                  {frameOf(0x88, "\x0f"), 1005},
		"a mask":                       {"\x88\x82\x01\x02\x03\x04" + "\x0e\xaa", 4008},
		"messages before it": {
			event + frameOf(0x89, "ping") + frameOf(0x81, strings.Repeat("x", 70_000)) + event +
				frameOf(0x88, "\x0f\xa8\xff"), 4008,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newRawServer(upgradeAnswer)
			socket, err := dialRaw(t, server)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for part := range strings.SplitSeq(c.frame, "") { // in single characters
					_, _ = io.WriteString(server.far, part)
				}
				_ = server.far.Close()
			}()
			got := socket.Read(func(Message) {}, func([]byte) {})
			var closed *websocket.CloseError
			if !errors.As(got, &closed) || closed.Code != c.code ||
				!strings.Contains(got.Error(), pz.CloseMeaning(c.code)) {
				t.Errorf("it ends with %v, not with %d", got, c.code)
			}
		})
	}
}

// An endless response to the handshake fails after 64 KiB.
func TestHandshakeResponseIsBounded(t *testing.T) {
	for name, answer := range map[string]string{
		"a header":      "HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", 1<<20),
		"many headers":  "HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("X: y\r\n", 1<<18),
		"a status line": strings.Repeat("x", 1<<20),
	} {
		_, err := dialRaw(t, newRawServer(answer))
		if !errors.Is(err, errLongHead) || telephony.CauseOf(err).Code != telephony.CodeNoServer {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A response that is just short enough is read, and so are the frames right behind it.
	padding := "\r\nX: " + strings.Repeat("x", 60<<10)
	long := strings.Replace(upgradeAnswer, "\r\n\r\n", padding+"\r\n\r\n", 1) + frameOf(0x88, "\x0f\xa8")
	socket, err := dialRaw(t, newRawServer(long))
	if err != nil {
		t.Fatal(err)
	}
	var closed *websocket.CloseError
	err = socket.Read(func(Message) {}, func([]byte) {})
	if !errors.As(err, &closed) || closed.Code != 4008 {
		t.Errorf("it ends with %v", err)
	}
}

// A message whose parts never end, with pings in between, ends the connection.
func TestEndlessMessageEndsTheConnection(t *testing.T) {
	for name, part := range map[string]string{
		"parts":               frameOf(0x00, "x"),
		"empty parts":         frameOf(0x00, ""),
		"no parts, and pings": frameOf(0x89, ""),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := newRawServer(upgradeAnswer)
				socket, err := dialRaw(t, server)
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_, err := io.WriteString(server.far, frameOf(0x81, `<Event type="1"/>`)+frameOf(0x01, "<Event"))
					for err == nil {
						time.Sleep(10 * time.Second)
						_, err = io.WriteString(server.far, part)
					}
				}()
				began, messages := time.Now(), 0
				err = socket.Read(func(Message) { messages++ }, func([]byte) {})
				took := time.Since(began)
				if !errors.Is(err, errEndlessMessage) || took > messageTimeout+time.Minute || messages != 1 {
					t.Errorf("after %s and %d messages: %v", took, messages, err)
				}
				socket.Close()
				<-ended
			})
		})
	}
}

// stopped is a connection of a process that can be stopped: meanwhile nothing is read, and a
// deadline that passes is the first thing that the reader sees afterwards.
type stopped struct {
	net.Conn
	mu      sync.Mutex
	resumes time.Time
	arrived []byte // read from the other end, as the kernel does
	more    chan struct{}
	expires time.Time
}

func newStopped(c net.Conn) *stopped {
	s := &stopped{Conn: c, more: make(chan struct{}, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			s.mu.Lock()
			s.arrived = append(s.arrived, buf[:n]...)
			s.mu.Unlock()
			select {
			case s.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *stopped) stop(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resumes = time.Now().Add(d)
}

// SetReadDeadline may only be called by the reader.
func (s *stopped) SetReadDeadline(t time.Time) error { s.expires = t; return nil }

func (s *stopped) Read(p []byte) (int, error) {
	alarm := time.NewTimer(time.Until(s.expires))
	if s.expires.IsZero() {
		alarm.Stop()
	}
	defer alarm.Stop()
	for {
		s.mu.Lock()
		wait := time.Until(s.resumes)
		n := 0
		if wait <= 0 {
			n = copy(p, s.arrived)
			s.arrived = s.arrived[n:]
		}
		s.mu.Unlock()
		if wait > 0 {
			time.Sleep(wait)
			if !s.expires.IsZero() && time.Now().After(s.expires) {
				return 0, os.ErrDeadlineExceeded
			}
			continue
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-s.more:
		case <-alarm.C:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// Events that arrived during a standstill are read after it, with a time just before its beginning;
// later events are new. A silent peer counts as dead only after the process has watched it for long
// enough.
func TestEventsOfAStandstillAreLate(t *testing.T) {
	for _, standstill := range []time.Duration{5 * time.Second, 70 * time.Second, time.Hour} {
		t.Run(standstill.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := newRawServer(upgradeAnswer)
				defer server.far.Close()
				defer server.client.Close()
				process := newStopped(server.client)
				got := &sink{}
				session := rawSession(t, got, func(ctx context.Context, network, address string) (net.Conn, error) {
					_, err := server.dial(ctx, network, address)
					return process, err
				})
				time.Sleep(100 * time.Millisecond)
				emit := func(call int) {
					frame := frameOf(0x81, fmt.Sprintf(`<Event type="1" callID="%d" from="7"/>`, call))
					_, _ = io.WriteString(server.far, frame)
				}
				emit(0)
				time.Sleep(700 * time.Millisecond)
				began := time.Now()
				process.stop(standstill)
				for call := 1; call <= 500; call++ {
					emit(call)
				}
				time.Sleep(standstill + 100*time.Millisecond)
				emit(501)
				time.Sleep(50 * time.Millisecond)
				synctest.Wait()
				events := got.appended()
				if len(events) != 502 {
					t.Fatalf("%d of 502 events were read; connection: %+v", len(events), session.Connection())
				}
				for _, e := range events[1:501] {
					if e.Time.After(began) || e.Time.Before(began.Add(-2*time.Second)) {
						t.Fatalf("call %s, which arrived during the standstill, has the time %s after its beginning",
							e.CallID, e.Time.Sub(began))
					}
				}
				if at := events[501].Time; at.Before(began.Add(standstill)) {
					t.Errorf("an event after the standstill has the time %s after its beginning", at.Sub(began))
				}
				last := time.Now()
				for session.Connection().State == telephony.Connected {
					time.Sleep(time.Second)
				}
				if took := time.Since(last); took < maxSilence-2*time.Second || took > maxSilence+2*time.Second {
					t.Errorf("the silent peer counts as dead after %s", took)
				}
			})
		})
	}
}

// A standstill that begins during the handshake loses nothing either, and what arrived meanwhile is
// late. It does not count as the server's time to answer.
func TestStandstillDuringTheHandshake(t *testing.T) {
	for _, standstill := range []time.Duration{5 * time.Second, dialTimeout + time.Second, time.Hour} {
		t.Run(standstill.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := newRawServer(upgradeAnswer)
				defer server.far.Close()
				defer server.client.Close()
				got := &sink{}
				began := time.Now()
				session := rawSession(t, got, func(ctx context.Context, network, address string) (net.Conn, error) {
					_, err := server.dial(ctx, network, address)
					process := newStopped(server.client)
					process.stop(standstill)
					return process, err
				})
				time.Sleep(standstill / 2)
				_, _ = io.WriteString(server.far, frameOf(0x81, `<Event type="1" callID="5" from="7"/>`))
				time.Sleep(standstill/2 + identifyTimeout + time.Second)
				events := got.appended()
				if len(events) != 1 || events[0].Time.After(began.Add(time.Second)) ||
					session.Connection().State != telephony.Connected {
					t.Errorf("after the standstill: %+v, %+v", events, session.Connection())
				}
			})
		})
	}
}

// A server that answers the handshake byte by byte has no more time for it than another one.
func TestHandshakeByteByByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		began := time.Now()
		go func() {
			for _, b := range []byte("HTTP/1.1 101 Switching Protocols" + strings.Repeat("\r\nX: y", 100)) {
				time.Sleep(700 * time.Millisecond)
				if _, err := far.Write([]byte{b}); err != nil {
					return
				}
			}
		}()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		_, err := Dial(t.Context(), DialOptions{
			URL:         &url.URL{Scheme: "ws", Host: "pbx:10150"},
			Identity:    pz.Identity{ClientType: "crm", GUID: "g"},
			DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil },
		})
		if took := time.Since(began); err == nil || took > dialTimeout {
			t.Errorf("after %s: %v", took, err)
		}
		_ = far.Close()
		time.Sleep(time.Second) // until the server notices
	})
}

// On a connection that is never quiet, events that are read long after a standstill are new.
func TestBusyConnectionCatchesUpAfterAStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newRawServer(upgradeAnswer)
		defer server.far.Close()
		process := newStopped(server.client)
		got := &sink{}
		rawSession(t, got, func(ctx context.Context, network, address string) (net.Conn, error) {
			_, err := server.dial(ctx, network, address)
			return process, err
		})
		time.Sleep(100 * time.Millisecond)
		resumes := time.Now().Add(time.Minute)
		process.stop(time.Minute)
		for time.Since(resumes) < time.Minute {
			_, _ = io.WriteString(server.far, frameOf(0x81, `<Event type="1" callID="5" from="7"/>`))
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		late := 0
		for _, e := range got.appended() {
			if e.Time.Before(resumes) {
				late++
			}
		}
		standstill, caughtUp := 6000, 6000+int(maxCatchUp/(10*time.Millisecond))
		if late < standstill || late > caughtUp+10 {
			t.Errorf("%d events count as late, of about %d that arrived during the standstill", late, standstill)
		}
	})
}

// rawSession returns a session over dial that runs until the test ends.
func rawSession(t *testing.T, got *sink, dial dialFunc) *Session {
	t.Helper()
	session, err := New(Options{
		URL: &url.URL{Scheme: "ws", Host: "pbx:10150"},
		Identity: pz.Identity{
			ClientType: "crm",
			GUID:       "g",
			EventsMask: 65535,
			Protocol:   2,
		},
		Grace:       time.Second,
		Sink:        got,
		Logger:      slog.New(slog.DiscardHandler),
		DialContext: dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = session.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return session
}

// Behind a proxy that adds or removes TLS the server uses the other form than its address suggests.
// The session detects this within seconds, and events and commands go through.
func TestFormIsDetectedBehindAProxy(t *testing.T) {
	for _, codec := range []pz.Codec{pz.Base64, pz.Plain} {
		inWorld(t, pztest.Options{Codec: codec}, nil, func(t *testing.T, w *world) {
			w.generate(t, "generate history 1 2 100 200 50 in")
			time.Sleep(fallbackAfter + time.Second)
			c := w.session.Connection()
			if c.State != telephony.Connected || c.Form != codec.String() || c.FormOfAddress != "base64" ||
				c.ServerVersion == "" {
				t.Fatalf("%s: %+v", codec, c)
			}
			w.generate(t, "generate incoming 7343")
			err := w.session.Do(t.Context(), telephony.Command{Kind: telephony.CommandCall, From: "101", To: "7343"})
			synctest.Wait()
			if events := w.sink.appended(); err != nil || len(events) != 2 || len(w.server.Requests()) != 1 {
				t.Errorf("%s: %d events, %d commands, %v", codec, len(events), len(w.server.Requests()), err)
			}
		})
	}
}

// Before a message was read the server's form is unknown: no command is written, and the connection
// does not count as made.
func TestSilentServerGetsNoCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newRawServer(upgradeAnswer)
		defer server.far.Close()
		session := rawSession(t, &sink{}, server.dial)
		time.Sleep(identifyTimeout + time.Second)
		c := session.Connection()
		if c.State != telephony.Connecting || c.LastCause.Code != telephony.CodeUnidentified {
			t.Errorf("after %s: %+v", identifyTimeout, c)
		}
		err := session.Do(t.Context(), telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"})
		if !errors.Is(err, telephony.ErrNotConnected) {
			t.Errorf("a command: %v", err)
		}
		_, _ = io.WriteString(server.far, frameOf(0x81, `<Event type="2" callID="5" from="7" to="1"/>`))
		synctest.Wait()
		if c := session.Connection(); c.State != telephony.Connected || c.Form != "xml" || c.LastError != "" {
			t.Errorf("after an event: %+v", c)
		}
	})
}

// An identity that a query cannot carry goes into the headers, with the password.
func TestIdentityOutsideAQueryGoesInHeaders(t *testing.T) {
	for _, clientType := range []string{"my crm", "моя&#%"} {
		setType := func(o *Options) { o.Identity.ClientType = clientType }
		inWorld(t, pztest.Options{Password: "a~?>b?~x"}, setType, func(t *testing.T, w *world) {
			synctest.Wait()
			if c := w.session.Connection(); c.State != telephony.Connected {
				t.Errorf("%s: %+v", clientType, c)
			}
		})
	}
}
