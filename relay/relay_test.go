package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/advice"
	"pzbridge/internal/clock"
	"pzbridge/internal/logtest"
	"pzbridge/internal/pipenet"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
)

// sink keeps the appended events, or fails with the error that the test sets.
type sink struct {
	mu     sync.Mutex
	events []telephony.Event
	fail   error
}

func (s *sink) Append(_ context.Context, events []telephony.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.events = append(s.events, events...)
	}
	return s.fail
}

func (s *sink) set(fail error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// appended returns the exchange's events.
func (s *sink) appended() []telephony.Event { return s.choose(false) }

// operational returns the events about the connection itself.
func (s *sink) operational() []telephony.Event { return s.choose(true) }

func (s *sink) choose(operational bool) (list []telephony.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if telephony.IsOperational(e.Type) == operational {
			list = append(list, e)
		}
	}
	return list
}

// log keeps the session's log lines.
type log struct{ logtest.Buffer }

func (l *log) lines(t *testing.T, message string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(l.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fields["msg"].(string), message) {
			found = append(found, fields)
		}
	}
	return found
}

// world is a simulated server, a session with it, and the session's sink and log. It lives in fake
// time.
type world struct {
	server  *pztest.Server
	net     atomic.Pointer[pipenet.Listener]
	session *Session
	sink    *sink
	log     *log
	opts    Options
	stop    func() error
}

// inWorld runs f with a running session and a server that listens.
func inWorld(t *testing.T, server pztest.Options, change func(*Options), f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{server: pztest.New(server), sink: &sink{}, log: &log{}}
		w.opts = Options{
			URL: &url.URL{Scheme: "ws", Host: "pbx:10150"},
			Identity: pz.Identity{
				Password:   server.Password,
				GUID:       "bridge",
				ClientType: "pzbridge",
				EventsMask: 65535,
				Protocol:   2,
			},
			Grace:       5 * time.Second,
			Sink:        w.sink,
			Logger:      slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			DialContext: w.dial,
		}
		if change != nil {
			change(&w.opts)
		}
		var err error
		if w.session, err = New(w.opts); err != nil {
			t.Fatal(err)
		}
		w.serve()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.session.Run(ctx) }()
		w.stop = sync.OnceValue(func() error { cancel(); return <-ended })
		f(t, w)
		if err := w.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		w.server.Close()
	})
}

func (w *world) serve() {
	l := pipenet.Listen()
	w.net.Store(l)
	w.server.Start(l)
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return w.net.Load().Dial(ctx, network, address)
}

// generate makes the server emit an event, by a command line of the vendor's Diagnostic program.
func (w *world) generate(t *testing.T, line string) {
	t.Helper()
	words, err := pz.SplitWords(line)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := pz.ParseGenerate(words)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.server.Generate(fields); err != nil {
		t.Fatal(err)
	}
}

func TestEventsReachTheSink(t *testing.T) {
	inWorld(t, pztest.Options{Password: "пароль"}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		if c := w.session.Connection(); c.State != telephony.Connected || c.ServerVersion != "Test Server v1.1.2" {
			t.Fatalf("connection: %+v", c)
		}
		w.generate(t, "generate incoming 7343 2")
		w.generate(t, "generate history 7343 101 1385035625 1385035685 0 in http://x/1.mp3 2 5")
		synctest.Wait()
		events := w.sink.appended()
		if len(events) != 2 {
			t.Fatalf("%d events", len(events))
		}
		e := events[1]
		if e.Type != telephony.EventCompleted || e.CallID != "5" || *e.Duration != 0 ||
			e.Direction != telephony.Incoming || e.StartedAt.Unix() != 1385035625 ||
			e.EndedAt.Unix() != 1385035685 || e.RecordingURL != "http://x/1.mp3" || e.Replayed {
			t.Errorf("got %+v", e)
		}
	})
}

func TestWireEventsAreTranslated(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		xml  string
		want string
	}{
		{`<Event type="1" callID="5" from="7" line=" "/>`, "call.transfer_requested 5 7> incoming"},
		{`<Event type="2" callID="5" from="7" to="8"/>`, "call.incoming 5 7>8 incoming"},
		{`<Event type="4" callID="5" from="7" to="8" direction="1"/>`, "call.completed 5 7>8 outgoing"},
		{
			`<Event type="4" callID="5" from="7" to="8" direction="up" start="never" end="0" duration="-1"/>`,
			"call.completed 5 7>8 ",
		},
		{`<Event type="8" callID="5" from="7" to="8"/>`, "call.outgoing 5 7>8 outgoing"},
		{`<Event type="16" callID="5" from="7" to="8"/>`, "call.outgoing_answered 5 7>8 outgoing"},
		{`<Event type="32" callID="5" from="7" to="8"/>`, "call.incoming_answered 5 7>8 incoming"},
		{`<Event type="64" callID="5" from="7" to="8"/>`, "pz.event 5 7>8 "},
		{`<Event type="4096" callID="5" colour="red"/>`, "pz.event 5 > "},
		{`<Event/>`, "pz.event  > "},
		{`<Event type="128" callID="5" from="7" to="8" smstext="0J/RgNC40LLQtdGC"/>`, "sms.sent 5 7>8 Привет"},
		{`<Event type="128" callID="5" from="7" to="8" smstext="!"/>`, "sms.sent 5 7>8 "},
		{`<Event type="256" callID="5" from="7" to="8" result="0"/>`, "sms.status 5 7>8 sending"},
		{`<Event type="256" callID="5" from="7" to="8" result="1"/>`, "sms.status 5 7>8 sent"},
		{`<Event type="256" callID="5" from="7" to="8" result="17"/>`, "sms.status 5 7>8 failed"},
		{`<Event type="256" callID="5" from="7" to="8" result=" "/>`, "sms.status 5 7>8 "},
	} {
		events, _, err := pz.ParseServerMessage([]byte(c.xml))
		if err != nil {
			t.Fatal(err)
		}
		e := Translate(events[0], now)
		got := fmt.Sprintf("%s %s %s>%s %s%s%s", e.Type, e.CallID, e.From, e.To, e.Direction, e.Text, e.Status)
		if got != c.want || len(e.Wire) != len(events[0].Attrs) || !e.StartedAt.IsZero() || e.Duration != nil {
			t.Errorf("%s: got %s, %+v", c.xml, got, e)
		}
	}
}

func TestFingerprintIgnoresOrderAndReplayMarks(t *testing.T) {
	hash := func(xml string) [16]byte {
		events, _, err := pz.ParseServerMessage([]byte(xml))
		if err != nil {
			t.Fatal(err)
		}
		return Translate(events[0], time.Now()).Fingerprint
	}
	live := hash(`<Event type="4" callID="5" from="7" line=" "/>`)
	for xml, same := range map[string]bool{
		`<Event from="7" callID="5" missed="1" missedFinal="1" type="4"/>`: true,
		`<Event type="4" callID="5" from="7" line="" record=" "/>`:         true,
		`<Event type="4" callID="5" from="8"/>`:                            false,
		`<Event type="4" callID="57" from=""/>`:                            false,
	} {
		if (hash(xml) == live) != same {
			t.Errorf("%s: same is %v", xml, !same)
		}
	}
	// Outboxes keep fingerprints: with another algorithm a new version would not recognise replays.
	want := "ccc5b1f0b03a9c4699b1345606135b47"
	if got := fmt.Sprintf("%x", hash(`<Event type="2" callID="5" from="Иван" line=""/>`)); got != want {
		t.Errorf("the fingerprint has become %s", got)
	}
}

// Unreadable and oversized frames cost a log line each and have no other effect.
func TestUnreadableFramesKeepTheConnection(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		long := strings.Repeat("ы", 300)
		for _, frame := range [][]byte{
			[]byte("<" + long), // not base64
			pz.Base64.Pack([]byte(`<Event type="1" from="x`)), pz.Base64.Pack([]byte("\xff\xfe")), []byte("A"),
			bytes.Repeat([]byte("QUJD"), pz.MaxMessage/4+1),
			pz.Base64.Pack([]byte("<Event type=\"1\" callID=\"5\" from=\"\xc8\xe2&#1;\"/>")),
			pz.Base64.Pack([]byte("<Response><Code>0</Code><RequestID>1</RequestID></Response>")),
		} {
			w.server.EmitRaw(frame)
		}
		w.generate(t, "generate incoming 7343")
		synctest.Wait()
		events := w.sink.appended()
		if len(events) != 2 || events[0].From != "Ив\uFFFD" || events[1].From != "7343" {
			t.Errorf("events: %+v", events)
		}
		bad := w.log.lines(t, "could not be read")
		if len(bad) != 4 {
			t.Errorf("%d lines about frames that cannot be read", len(bad))
		}
		if frame := bad[0]["frame"].(string); frame != "<"+strings.Repeat("ы", 199) {
			t.Errorf("the line shows %d bytes: %s", len(frame), frame)
		}
		// A server that sends many such frames does not fill the log.
		for range 2000 {
			w.server.EmitRaw([]byte("A"))
		}
		w.server.EmitRaw(pz.Base64.Pack([]byte(`<Event type="1" callID="7" from="1"/><Junk/>`)))
		synctest.Wait()
		if n := len(w.log.lines(t, "could not be read")); n > 10 {
			t.Errorf("of 2000 frames there are %d lines", n)
		}
		time.Sleep(30 * time.Second)
		w.server.EmitRaw(pz.Base64.Pack([]byte(`<Event type="1" callID="8" from="1"/><Junk/>`)))
		synctest.Wait()
		if events := w.sink.appended(); len(events) != 4 {
			t.Errorf("of what could be read in part there are %d events", len(events)-2)
		}
		if part := w.log.lines(t, "a part of a frame"); len(part) != 1 || part[0]["frames"].(float64) < 1990 {
			t.Errorf("of what could be read in part it says %v", part)
		}
		if n := len(w.log.lines(t, "over 1 MiB")); n != 1 {
			t.Errorf("%d lines about the message that is too long", n)
		}
		if n := len(w.log.lines(t, "not connected")); n != 0 {
			t.Error("the connection was lost")
		}
	})
}

func TestCommandsReachTheServer(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for _, cmd := range []telephony.Command{
			{Kind: telephony.CommandCall, From: "101", To: "+7 (343) 011 <&>"},
			{Kind: telephony.CommandTransfer, CallID: "5", To: ""},
			{
				Kind: telephony.CommandSMS,
				From: "101",
				To:   "102",
				Text: "Привет",
			},
		} {
			if err := w.session.Do(ctx, cmd); err != nil {
				t.Errorf("%s: %v", cmd.Kind, err)
			}
		}
		var got []string
		for _, r := range w.server.Requests() {
			got = append(got, fmt.Sprint(r.Method, r.Data))
		}
		want := []string{
			"Call[{From 101} {To +7 (343) 011 <&>}]",
			"Transfer[{CallID 5} {To }]",
			"Generate[{Event 128} {From 101} {To 102} {Smstext 0J/RgNC40LLQtdGC}]",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("the server got\n%s", strings.Join(got, "\n"))
		}
		var refused *telephony.RefusedError
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "", To: "5"})
		if !errors.As(err, &refused) || refused.Code != "2" {
			t.Errorf("a call without a caller: %v", err)
		}
		connectedAt := time.Now()
		time.Sleep(time.Hour)
		if since := w.session.Connection().Since; !since.Equal(connectedAt) {
			t.Errorf("connected since %s", since)
		}
		w.server.Close()
		down := time.Now()
		time.Sleep(10 * time.Minute)
		if c := w.session.Connection(); !c.Since.Equal(down) || c.State == telephony.Connected {
			t.Errorf("ten minutes after it ended: %+v", c)
		}
		err = w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "5"})
		if !errors.Is(err, telephony.ErrNotConnected) {
			t.Errorf("without a connection: %v", err)
		}
	})
}

// dialFunc is the type of Options.DialContext.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// dialWire puts a wire between the two ends that buffers data in flight, as TCP does, and drops all
// data once cut is closed.
func dialWire(dial dialFunc, cut chan struct{}) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		far, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		near, middle := net.Pipe()
		carry := func(to, from net.Conn) {
			underWay := make(chan []byte, 1<<17)
			go func() {
				defer to.Close()
				for b := range underWay {
					if _, err := to.Write(b); err != nil {
						break
					}
				}
				for range underWay { // discard the rest
				}
			}()
			defer close(underWay)
			buf := make([]byte, 4096)
			for {
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				select {
				case <-cut: // swallowed
				default:
					underWay <- bytes.Clone(buf[:n])
				}
			}
		}
		go carry(far, middle)
		go carry(middle, far)
		return near, nil
	}
}

// A peer that has disappeared is detected within a minute, and a command that waits for its
// response fails at its own deadline.
func TestDeadPeerIsDetectedWithinAMinute(t *testing.T) {
	cut := make(chan struct{})
	wire := func(o *Options) { o.DialContext = dialWire(o.DialContext, cut) }
	inWorld(t, pztest.Options{NoPings: true}, wire, func(t *testing.T, w *world) {
		synctest.Wait()
		time.Sleep(10 * time.Minute) // pings keep a quiet connection alive
		if c := w.session.Connection(); c.State != telephony.Connected {
			t.Fatalf("after ten quiet minutes: %+v", c)
		}
		close(cut)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"})
		if !errors.Is(err, telephony.ErrNoAnswer) {
			t.Errorf("a command to a dead peer: %v", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it failed after %s", took)
		}
		for w.session.Connection().State == telephony.Connected {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("noticed after %s", took)
		}
		if err := w.session.Connection().LastError; !strings.Contains(err, "silent") {
			t.Errorf("the reason: %s", err)
		}
		if n := len(w.log.lines(t, "not connected")); n != 1 {
			t.Errorf("the connection was lost %d times", n)
		}
	})
}

// The close code decides the wait before the next dial, and the state of the connection.
func TestCloseCodeDecidesTheRedial(t *testing.T) {
	for code := 4001; code <= 4010; code++ {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			inWorld(t, pztest.Options{Refuse: code}, nil, func(t *testing.T, w *world) {
				time.Sleep(4 * time.Minute)
				lines := w.log.lines(t, "not connected")
				hopeless := code != 4001 && code != 4007 && code != 4010
				if hopeless != (len(lines) == 1) {
					t.Errorf("%d lines after four minutes", len(lines))
				}
				if len(lines) > 10 {
					t.Errorf("%d lines in four minutes: the log is flooded", len(lines))
				}
				c := w.session.Connection()
				if c.State == telephony.Connected || c.CloseCode != code || c.CloseMeaning != pz.CloseMeaning(code) {
					t.Errorf("connection: %+v", c)
				}
				if len(w.log.lines(t, "connected to")) != len(lines) {
					t.Error("a connection that was refused is called one")
				}
			})
		})
	}
}

func TestRedialWaitDoublesUpToAMinute(t *testing.T) {
	broken := errors.New("connection refused")
	for attempt, want := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000} {
		want *= time.Millisecond
		low, high := redialWait(attempt, broken, 0), redialWait(attempt, broken, 0.999)
		if low < want/2 || low < minRedialWait || high > want || high < want*9/10 {
			t.Errorf("attempt %d: between %s and %s, want up to %s", attempt, low, high, want)
		}
	}
	if got := redialWait(1000, broken, 0.5); got > maxRedialWait {
		t.Errorf("after a thousand: %s", got)
	}
	if got := redialWait(0, closeError{&websocket.CloseError{Code: 4009}}, 0.5); got != 5*time.Minute {
		t.Errorf("after 4009: %s", got)
	}
}

// While no server answers, the waits stay short for some minutes, since it may be starting.
func TestRedialWaitStaysShortWhileNoServerAnswers(t *testing.T) {
	absent := fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")})
	var all time.Duration
	for attempt := range 100 {
		wait := redialWait(attempt, absent, 0.999)
		if wait > 3*time.Second {
			t.Fatalf("attempt %d: %s", attempt, wait)
		}
		all += wait
	}
	if later := redialWait(100, absent, 0.999); all < 4*time.Minute || later < 50*time.Second {
		t.Errorf("after %s it waits for %s", all, later)
	}
}

// A bridge that starts before its server is connected within seconds once the server is there, and
// until then there is one line in the log, which is no warning. Longer than half a minute, or once
// there was a connection, it is one.
func TestBridgeStartsBeforeItsServer(t *testing.T) {
	for name, c := range map[string]struct {
		after    time.Duration
		warnings int
	}{
		"soon":  {10 * time.Second, 0},
		"later": {3 * time.Minute, 6},
	} {
		t.Run(name, func(t *testing.T) {
			var up atomic.Bool
			inWorld(t, pztest.Options{}, func(o *Options) {
				dial := o.DialContext
				o.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
					if !up.Load() {
						return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
					}
					return dial(ctx, network, address)
				}
			}, func(t *testing.T, w *world) {
				time.Sleep(c.after)
				waiting := w.log.lines(t, "waiting for the Prostie Zvonki server")
				if len(waiting) != 1 || waiting[0]["level"] != "INFO" {
					t.Errorf("it says %v", waiting)
				}
				if n := len(w.log.lines(t, "not connected")); n > c.warnings || n < c.warnings-1 {
					t.Errorf("%d warnings", n)
				}
				up.Store(true)
				began := time.Now()
				if err := w.session.WaitConnected(t.Context()); err != nil || time.Since(began) > 3*time.Second {
					t.Errorf("connected after %s, %v", time.Since(began), err)
				}
				warnings := len(w.log.lines(t, "not connected"))
				time.Sleep(stableAfter + time.Second)
				w.server.Disconnect(1001, "")
				up.Store(false)
				time.Sleep(4 * time.Second)
				if n := len(w.log.lines(t, "not connected")); n != warnings+2 {
					t.Errorf("the loss of the connection is %d warnings", n-warnings)
				}
			})
		})
	}
}

func TestWrongPasswordIsReportedWithoutIt(t *testing.T) {
	wrong := func(o *Options) { o.Identity.Password = "hunter2" }
	inWorld(t, pztest.Options{Password: "sesame"}, wrong, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		c := w.session.Connection()
		if c.State != telephony.Disconnected || c.LastCause.Code != telephony.CodeWrongPassword ||
			c.CloseCause.Code != telephony.CodeWrongPassword || !c.EndedByClose {
			t.Errorf("connection: %+v", c)
		}
		if strings.Contains(w.log.String(), "hunter2") || strings.Contains(w.log.String(), "aHVudGVyMg") {
			t.Errorf("the password is in the log:\n%s", w.log.String())
		}
	})
}

// While the sink fails, events wait, the log stays short, and no event is lost.
func TestEventsSurviveAFailingSink(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		w.sink.set(errors.New("no space left on device"))
		const many = 3 * intakeSize
		for i := range many {
			w.generate(t, fmt.Sprintf("generate transfer 7343 101 1 * %d", i+1))
		}
		time.Sleep(time.Hour)
		if n := len(w.log.lines(t, "cannot be stored")); n < 2 || n > 400 {
			t.Errorf("%d lines in an hour of failure", n)
		}
		w.sink.set(nil)
		time.Sleep(10 * time.Minute)
		events := w.sink.appended()
		if len(events) < intakeSize {
			t.Errorf("%d events", len(events))
		}
		for i, e := range events {
			if e.CallID != fmt.Sprint(i+1) {
				t.Fatalf("event %d is of call %s", i, e.CallID)
			}
		}
		if n := len(w.log.lines(t, "stored again")); n != 1 {
			t.Errorf("%d lines about the recovery", n)
		}
	})
}

// While reading is paused because the queue is full, time does not count as silence of the peer.
func TestPausedReadingIsNotSilenceOfThePeer(t *testing.T) {
	wire := func(o *Options) { o.DialContext = dialWire(o.DialContext, make(chan struct{})) }
	inWorld(t, pztest.Options{}, wire, func(t *testing.T, w *world) {
		synctest.Wait()
		w.sink.set(errors.New("no space left on device"))
		const many = intakeSize + 2*batchSize
		for i := range many {
			w.generate(t, fmt.Sprintf("generate transfer 7343 101 1 * %d", i+1))
		}
		time.Sleep(10 * time.Minute)
		w.sink.set(nil)
		time.Sleep(time.Minute)
		if n := len(w.sink.appended()); n != many {
			t.Errorf("%d of %d events were stored", n, many)
		}
		if lines := w.log.lines(t, "not connected"); len(lines) != 0 {
			t.Errorf("the connection was lost: %v", lines)
		}
	})
}

// The queue is bounded in number and size. While it is full, the socket is not read, and a command
// is refused at once, since its response could not be read.
func TestFullIntakePausesReadingAndRefusesCommands(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for name, c := range map[string]struct {
		line     string
		many     int
		from, to int // events in memory
	}{
		"by number":   {"generate transfer 7343 101 1 * 5", intakeSize + 10, intakeSize, intakeSize},
		"by size":     {"generate transfer " + long + " 101 1 * 5", 100, 35, 42},
		"all at once": {"generate transfer " + strings.Repeat("x", 700_000) + " 101 1 * 5", 20, 5, 6},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
				synctest.Wait()
				call := func() error {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					return w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "101", To: "102"})
				}
				w.sink.set(errors.New("no space left on device"))
				for range c.many {
					w.generate(t, c.line)
				}
				synctest.Wait()
				in := w.session.intake
				in.mu.Lock()
				n := in.events
				in.mu.Unlock()
				if n < c.from || n > c.to {
					t.Errorf("%d events in memory", n)
				}
				began := time.Now()
				if err := call(); !errors.Is(err, telephony.ErrOutboxFull) || time.Since(began) > 0 {
					t.Errorf("a command meanwhile: %v after %s", err, time.Since(began))
				}
				w.sink.set(nil)
				time.Sleep(time.Minute)
				if err := call(); err != nil {
					t.Errorf("a command afterwards: %v", err)
				}
				if n := len(w.sink.appended()); n != c.many {
					t.Errorf("%d events were stored", n)
				}
				if in.mu.Lock(); in.events != 0 || in.bytes != 0 {
					t.Errorf("in the end %d events of %d bytes count as in memory", in.events, in.bytes)
				}
				in.mu.Unlock()
			})
		})
	}
}

// An event beyond the limit fits an empty queue.
func TestHugeEventFitsAnEmptyIntake(t *testing.T) {
	in := newIntake(Options{Logger: slog.New(slog.DiscardHandler)})
	huge, small := telephony.Event{Text: strings.Repeat("x", 2*intakeBytes)}, telephony.Event{}
	in.mu.Lock()
	defer in.mu.Unlock()
	if sizeOf(&huge) <= intakeBytes || !in.enqueueIfFits(&huge) || in.enqueueIfFits(&small) {
		t.Errorf("%d events of %d bytes", in.events, in.bytes)
	}
}

// A shutdown stores what has been read, and reports how many events it could not store.
func TestShutdownStoresWhatWasRead(t *testing.T) {
	for fails, want := range map[error]int{nil: 100, errors.New("no space left on device"): 0} {
		inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
			synctest.Wait()
			w.sink.set(fails)
			for range 100 {
				w.generate(t, "generate incoming 7343")
			}
			synctest.Wait()
			began := time.Now()
			err := w.stop()
			if got := len(w.sink.appended()); got != want || (err == nil) != (fails == nil) {
				t.Errorf("%d events stored, %v", got, err)
			}
			if took := time.Since(began); took > w.opts.Grace {
				t.Errorf("it took %s", took)
			}
			if err != nil && !strings.Contains(err.Error(), "100 events") {
				t.Error(err)
			}
			w.stop = func() error { return nil }
		})
	}
}

func TestOldReplaysAreDropped(t *testing.T) {
	for age, want := range map[time.Duration]int{0: 4, 168 * time.Hour: 2} {
		inWorld(t, pztest.Options{}, func(o *Options) { o.ReplayMaxAge = age }, func(t *testing.T, w *world) {
			synctest.Wait()
			w.server.Close()
			now := time.Now().Unix()
			w.generate(t, fmt.Sprintf("generate history 1 2 %d %d 1 in", now-9*86400-5, now-9*86400))
			w.generate(t, fmt.Sprintf("generate history 1 2 %d 0 1 in", now-9*86400)) // its end is unknown
			w.generate(t, fmt.Sprintf("generate history 1 2 %d %d 1 in", now-86400-5, now-86400))
			if err := w.server.Generate(pz.Attrs{
				{Name: "Event", Value: "256"},
				{Name: "From", Value: "1"},
				{Name: "To", Value: "2"},
				{Name: "Result", Value: "1"},
			}); err != nil {
				t.Fatal(err)
			}
			w.serve()
			time.Sleep(2 * time.Minute)
			if got := w.sink.appended(); len(got) != want || !got[0].Replayed {
				t.Errorf("REPLAY_MAX_AGE %s: %d events", age, len(got))
			}
			if n := len(w.log.lines(t, "ended long ago")); (n == 1) != (want == 2) {
				t.Errorf("%d lines about dropped calls", n)
			}
			// A live event is no replay, whatever the exchange's clock shows.
			w.generate(t, fmt.Sprintf("generate history 1 2 %d %d 1 in", now-9*86400-5, now-9*86400))
			synctest.Wait()
			if got := w.sink.appended(); len(got) != want+1 {
				t.Errorf("REPLAY_MAX_AGE %s: a call that has just ended is left out", age)
			}
		})
	}
}

// Over real TLS, a certificate is trusted by its CA or by its fingerprint, and an old server only
// with the explicit option.
func TestCertificateIsTrustedByCAOrFingerprint(t *testing.T) {
	// These servers are between modern and as old as the vendor's: with cipher suites that Go does
	// not offer by default, and with some that it does.
	with := func(version uint16, suites ...uint16) *pztest.Server {
		config := pztest.LegacyTLS()
		config.MinVersion, config.MaxVersion, config.CipherSuites = version, version, suites
		return pztest.NewServer(pztest.Options{TLS: config})
	}
	modern := pztest.NewServer(pztest.Options{TLS: pztest.ModernTLS()})
	legacy := pztest.NewServer(pztest.Options{TLS: pztest.LegacyTLS()})
	exchange := with(tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
	older := with(tls.VersionTLS10, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA)
	between := with(tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA)
	for _, s := range []*pztest.Server{modern, legacy, exchange, older, between} {
		defer s.Close()
	}
	sum := func(s *pztest.Server) []byte {
		b, err := hex.DecodeString(s.Fingerprint())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	roots := x509.NewCertPool()
	roots.AddCert(modern.Certificate())
	for _, c := range []struct {
		name        string
		server      *pztest.Server
		roots       *x509.CertPool
		fingerprint []byte
		legacy      bool
		wrong       string
	}{
		{"its CA", modern, roots, nil, false, ""},
		{"its fingerprint", modern, nil, sum(modern), false, ""},
		{"no reason to trust it", modern, nil, nil, false, "PZ_TLS_FINGERPRINT=" + modern.Fingerprint()},
		{"another's fingerprint", modern, nil, sum(legacy), false, modern.Fingerprint()},
		{"old, by choice", legacy, nil, sum(legacy), true, ""},
		{"old, by choice, another's fingerprint", legacy, nil, sum(modern), true, legacy.Fingerprint()},
		{"old, without the choice", legacy, nil, sum(legacy), false, "PZ_TLS_LEGACY=true"},
		{"RSA key exchange, without the choice", exchange, nil, sum(exchange), false, "PZ_TLS_LEGACY=true"},
		{"RSA key exchange, by choice", exchange, nil, sum(exchange), true, ""},
		{"TLS 1.0 with ECDHE, by choice", older, nil, sum(older), true, ""},
		{"ECDHE with CBC", between, nil, sum(between), false, ""},
		{"ECDHE with CBC, with the choice", between, nil, sum(between), true, ""},
		{"modern, with the choice for old ones", modern, nil, sum(modern), true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, err := url.Parse(c.server.URL)
			if err != nil {
				t.Fatal(err)
			}
			socket, err := Dial(t.Context(), DialOptions{
				URL:      address,
				TLS:      TLS(c.roots, c.fingerprint, c.legacy),
				Identity: pz.Identity{ClientType: "crm", GUID: c.name, Protocol: 2},
			})
			if err == nil {
				socket.Close()
			}
			if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(advice.English(err), c.wrong) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A command whose context has ended is not written, and does not harm the connection.
func TestExpiredCommandsAreNotWritten(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		expired, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		for range 50 {
			for _, ctx := range []context.Context{cancelled, expired} {
				err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"})
				if !errors.Is(err, telephony.ErrNotSent) {
					t.Fatalf("got %v", err)
				}
			}
		}
		synctest.Wait()
		if n := len(w.server.Requests()); n != 0 {
			t.Errorf("%d of them reached the server", n)
		}
		if c := w.session.Connection(); c.State != telephony.Connected || len(w.log.lines(t, "not connected")) != 0 {
			t.Errorf("connection: %+v", c)
		}
	})
}

// The server sends an event only once, so the session must keep what the server sends before it
// receives the close frame.
func TestStopKeepsEventsInFlight(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var got sink
	session := func(ready func() bool) {
		s, err := New(Options{
			URL:      address,
			Identity: pz.Identity{GUID: "bridge", EventsMask: 65535, Protocol: 2},
			Grace:    5 * time.Second,
			Sink:     &got,
			Logger:   slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		for s.Connection().State != telephony.Connected || !ready() {
			runtime.Gosched()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	const rounds, many = 5, 300
	for round := range rounds {
		session(func() bool {
			for i := range many {
				line := fmt.Sprintf("generate history 1 2 100 200 50 in r 3 %d", round*many+i)
				fields, err := pz.ParseGenerate(strings.Fields(line))
				if err != nil {
					t.Fatal(err)
				}
				if err := server.Generate(fields); err != nil {
					t.Fatal(err)
				}
			}
			return true
		})
	}
	session(func() bool { return true })
	calls := map[string]bool{}
	for _, e := range got.appended() {
		calls[e.CallID] = true
	}
	if len(calls) != rounds*many {
		t.Errorf("%d of %d finished calls were lost", rounds*many-len(calls), rounds*many)
	}
}

// A disabled session disconnects and stays so; the events that the server keeps meanwhile arrive
// once it is enabled again.
func TestEnableConnectsAndDisconnects(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		w.session.Enable(false)
		synctest.Wait()
		if n := w.server.Connected(); n != 0 {
			t.Errorf("%d are connected", n)
		}
		time.Sleep(time.Hour)
		w.generate(t, "generate history 7343 101 1385035625 1385035685 0 in http://x/1.mp3 2 5")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"})
		c := w.session.Connection()
		if c.State != telephony.Disabled || !errors.Is(err, telephony.ErrNotConnected) || len(w.sink.appended()) != 0 {
			t.Errorf("an hour later: %+v, %v", c, err)
		}
		waited := make(chan error, 1)
		go func() { waited <- w.session.WaitConnected(t.Context()) }()
		w.session.Enable(true)
		w.session.Enable(true)
		synctest.Wait()
		c = w.session.Connection()
		if c.State != telephony.Connected || len(w.sink.appended()) != 1 || <-waited != nil {
			t.Errorf("switched on: %+v, %d events", c, len(w.sink.appended()))
		}
	})
	inWorld(t, pztest.Options{}, func(o *Options) { o.Disabled = true }, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		if c := w.session.Connection(); c.State != telephony.Disabled || w.server.Connected() != 0 {
			t.Errorf("off from the start: %+v", c)
		}
		if news := w.sink.operational(); len(news) != 0 {
			t.Errorf("it announced %v", news)
		}
	})
	// While the server refuses connections, a disabled session does not dial it either.
	inWorld(t, pztest.Options{Refuse: 4008}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		w.session.Enable(false)
		synctest.Wait()
		dialled := len(w.log.lines(t, "not connected"))
		time.Sleep(time.Hour)
		if n := len(w.log.lines(t, "not connected")); n != dialled {
			t.Errorf("it was dialled %d times while switched off", n-dialled)
		}
		if c := w.session.Connection(); c.State != telephony.Disabled {
			t.Errorf("connection: %+v", c)
		}
	})
}

// Each change of the connection is announced once, with its reason, however many attempts fail in
// between.
func TestConnectionChangesAreAnnouncedOnce(t *testing.T) {
	explain := func(o *Options) { o.Explain = advice.English }
	inWorld(t, pztest.Options{}, explain, func(t *testing.T, w *world) {
		synctest.Wait()
		w.server.Disconnect(4008, "")
		time.Sleep(10 * time.Minute)
		w.session.Enable(false)
		synctest.Wait()
		w.session.Enable(true)
		synctest.Wait()
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		w.session.Enable(false) // after the end nothing is announced
		var got []string
		for _, e := range w.sink.operational() {
			if e.ID == "" || e.Time.IsZero() {
				t.Errorf("%+v", e)
			}
			got = append(got, string(e.Type)+" "+e.Reason)
		}
		want := []string{
			"bridge.connected ",
			"bridge.disconnected connection closed with code 4008: the password is wrong: " +
				"set PZ_PASSWORD to the server's",
			"bridge.connected ", "bridge.disconnected it was switched off",
			"bridge.connected ", "bridge.disconnected the bridge is shutting down",
		}
		if !slices.Equal(got, want) {
			t.Errorf("announced:\n%s", strings.Join(got, "\n"))
		}
	})
}

// Events that the server sends before it answers the session's close frame are kept, since the
// server counts them as sent. Neither a ping nor a command at that moment ends the connection
// early.
func TestEventsDuringTheClosingHandshakeAreKept(t *testing.T) {
	const many = 20
	for name, during := range map[string]func(*testing.T, *Session, *websocket.Conn){
		"nothing": func(*testing.T, *Session, *websocket.Conn) {},
		"a ping": func(_ *testing.T, _ *Session, ws *websocket.Conn) {
			_ = ws.WriteControl(websocket.PingMessage, []byte("server ping string"), time.Now().Add(time.Second))
		},
		"a command": func(t *testing.T, s *Session, _ *websocket.Conn) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := s.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"})
			if !errors.Is(err, telephony.ErrNotConnected) {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := pipenet.Listen()
				var s *Session
				leaving := make(chan struct{})
				server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
					if err != nil {
						return
					}
					defer ws.Close()
					ws.SetCloseHandler(func(int, string) error { return nil }) // it answers after its last event
					read := make(chan struct{})
					go func() {
						defer close(read)
						for err := error(nil); err == nil; {
							_, _, err = ws.ReadMessage()
						}
					}()
					revealsForm := pz.Base64.Pack([]byte(`<Response/>`))
					_ = ws.WriteMessage(websocket.TextMessage, revealsForm)
					<-leaving
					time.Sleep(20 * time.Millisecond) // the session's close frame has arrived by now
					during(t, s, ws)
					for i := range many {
						time.Sleep(20 * time.Millisecond)
						doc := pz.Base64.Pack(fmt.Appendf(nil, `<Event type="4" callID="%d" from="1" to="2"/>`, i))
						if ws.WriteMessage(websocket.TextMessage, doc) != nil {
							break
						}
					}
					closing := websocket.FormatCloseMessage(1000, "")
					_ = ws.WriteControl(websocket.CloseMessage, closing, time.Now().Add(time.Second))
					<-read
				})}
				var serving sync.WaitGroup
				serving.Go(func() { _ = server.Serve(l) })
				got := &sink{}
				s, err := New(Options{
					URL:         &url.URL{Scheme: "ws", Host: "pbx:10150"},
					Identity:    pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
					Grace:       5 * time.Second,
					Sink:        got,
					Logger:      slog.New(slog.DiscardHandler),
					DialContext: l.Dial,
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- s.Run(ctx) }()
				time.Sleep(10 * time.Second)
				if s.Connection().State != telephony.Connected {
					t.Error("not connected")
				}
				close(leaving)
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if n := len(got.appended()); n != many {
					t.Errorf("%d of the %d events that the server had on its way were kept", n, many)
				}
				_ = server.Close()
				serving.Wait()
				time.Sleep(time.Minute)
			})
		})
	}
}

// A peer that is no Prostie Zvonki server may echo the handshake, with the password in it: no error
// shows the password.
func TestNoPasswordInErrors(t *testing.T) {
	const password, packed = "t0psecret?", "dDBwc2VjcmV0P"
	for name, answer := range map[string]func(handshake string) string{
		"the handshake": func(handshake string) string { return handshake },
		"the password":  func(string) string { return "client " + password + " refused" },
		"the handshake in a header": func(handshake string) string {
			return "HTTP/1.1 101 Ok\r\nContent-Length: " + strings.Fields(handshake)[1] + "\r\n\r\n"
		},
		"the password in a header": func(string) string {
			return "HTTP/1.1 101 Ok\r\nContent-Length: " + password + "\r\n\r\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				echo := func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					go func() {
						b := make([]byte, 4096)
						n, _ := server.Read(b)
						_, _ = io.WriteString(server, answer(string(b[:n])))
						_ = server.Close()
					}()
					return client, nil
				}
				var b log
				s, err := New(Options{
					URL: &url.URL{Scheme: "ws", Host: "pbx:10150"},
					Identity: pz.Identity{
						Password:   password,
						GUID:       "g",
						EventsMask: 65535,
						Protocol:   2,
					},
					Grace:       5 * time.Second,
					Sink:        &sink{},
					Logger:      slog.New(slog.NewJSONHandler(&b, nil)),
					DialContext: echo,
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- s.Run(ctx) }()
				time.Sleep(2 * time.Second)
				text := s.Connection().LastError
				cancel()
				<-ended
				isHTTP := strings.Contains(name, "header")
				noHTTP, redacted := strings.Contains(text, "does not speak HTTP"), strings.Contains(text, "(hidden)")
				if noHTTP == isHTTP || redacted != isHTTP {
					t.Errorf("last error: %s", text)
				}
				if all := text + b.String(); strings.Contains(all, packed) || strings.Contains(all, password) {
					t.Errorf("last error: %s\nlog: %s", text, b.String())
				}
			})
		})
	}
}

// After a lasting connection breaks, the session dials again soon, however often that happens;
// after one that breaks at once it waits longer and longer.
func TestRedialIsQuickAfterALastingConnection(t *testing.T) {
	for name, c := range map[string]struct{ lasts, shortest, longest time.Duration }{
		"a while": {20 * time.Second, minRedialWait / 2, minRedialWait},
		"hardly":  {time.Second, 20 * time.Second, maxRedialWait},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
				var away time.Duration
				for range 12 {
					time.Sleep(c.lasts)
					w.server.Disconnect(1001, "")
					broke := time.Now()
					if err := w.session.WaitConnected(t.Context()); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if w.server.Connected() == 0 { // the session had not noticed the end yet
						time.Sleep(time.Millisecond)
						_ = w.session.WaitConnected(t.Context())
					}
					away = time.Since(broke)
				}
				if away < c.shortest || away > c.longest+time.Second {
					t.Errorf("the last time it was away for %s, want %s to %s", away, c.shortest, c.longest)
				}
			})
		})
	}
}

// Enable does not wait for the next scheduled dial.
func TestEnableDialsAtOnce(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		w.server.Disconnect(4009, "")
		time.Sleep(time.Minute)
		if c := w.session.Connection(); c.State != telephony.Disconnected {
			t.Fatalf("after 4009: %+v", c)
		}
		w.session.Enable(true)
		synctest.Wait()
		if c := w.session.Connection(); c.State != telephony.Connected {
			t.Errorf("switched on: %+v", c)
		}
		w.session.Enable(true) // no effect while connected
		synctest.Wait()
		lines := w.log.lines(t, "connected to the") // two of these begin with "not"
		if c := w.session.Connection(); c.State != telephony.Connected || len(lines) != 3 {
			t.Errorf("switched on again: %+v, %d lines", c, len(lines))
		}
	})
}

// Switching off and on again takes no longer than the closing handshake, however long an earlier
// outage was.
func TestSwitchingOffAndOnReconnectsAtOnce(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		for range 12 { // the waits grow with each failure
			_ = w.session.WaitConnected(t.Context())
			w.server.Disconnect(1001, "")
			synctest.Wait()
		}
		_ = w.session.WaitConnected(t.Context())
		time.Sleep(24 * time.Hour)
		failures := len(w.log.lines(t, "not connected"))
		began := time.Now()
		w.session.Enable(false)
		w.session.Enable(true)
		synctest.Wait()
		_ = w.session.WaitConnected(t.Context())
		if c, took := w.session.Connection(), time.Since(began); c.State != telephony.Connected || took > time.Second {
			t.Errorf("after %s: %+v", took, c)
		}
		if n := len(w.log.lines(t, "not connected")) - failures; n != 0 {
			t.Errorf("%d failures are logged", n)
		}
	})
}

// A server that accepts the connection and sends nothing delays neither the end nor Enable(false).
func TestSilentServerDelaysNeitherStopNorDisable(t *testing.T) {
	for name, leave := range map[string]func(s *Session, stop func(), ended <-chan error){
		"the end": func(_ *Session, stop func(), ended <-chan error) { stop(); <-ended },
		"switching off": func(s *Session, stop func(), ended <-chan error) {
			s.Enable(false)
			synctest.Wait()
			if c := s.Connection(); c.State != telephony.Disabled {
				t.Errorf("%+v", c)
			}
			stop()
			<-ended
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := pipenet.Listen()
				opened := make(chan net.Conn, 10)
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						go func() { _, _ = io.Copy(io.Discard, c); opened <- c }()
					}
				}()
				s, err := New(Options{
					URL:         &url.URL{Scheme: "ws", Host: "pbx:10150"},
					Identity:    pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
					Grace:       time.Second,
					Sink:        &sink{},
					Logger:      slog.New(slog.DiscardHandler),
					DialContext: l.Dial,
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- s.Run(ctx) }()
				time.Sleep(time.Second)
				began := time.Now()
				leave(s, cancel, ended)
				if took := time.Since(began); took > 0 {
					t.Errorf("it took %s", took)
				}
				_ = l.Close()
				<-opened // its socket is closed
			})
		})
	}
}

// A connection that is disabled before the server's version arrives never counts as made.
func TestDisabledWhileIdentifyingNeverConnects(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w.session.connected(ctx, nil, "late")
		if c := w.session.Connection(); c.ServerVersion == "late" {
			t.Errorf("it is made although the session gives it up: %+v", c)
		}
		w.session.Enable(false)
		w.session.connected(t.Context(), nil, "late")
		if c := w.session.Connection(); c.State != telephony.Disabled {
			t.Errorf("it is %s", c.State)
		}
	})
}

// A failed Append is retried within a second after the sink has recovered.
func TestAppendIsRetriedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := &sink{fail: errors.New("the outbox is full")}
		in := newIntake(Options{
			Sink:     got,
			Observer: unobserved{},
			Logger:   slog.New(slog.DiscardHandler),
			Grace:    time.Second,
			Clock:    clock.New(time.Time{}, time.Time{}),
		})
		go in.run()
		in.put(pz.Event{Attrs: pz.Attrs{
			{Name: pz.AttrType, Value: pz.TypeCompleted},
			{Name: pz.AttrCallID, Value: "5"},
		}}, time.Now())
		time.Sleep(time.Minute)
		got.mu.Lock()
		got.fail = nil
		got.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		got.mu.Lock()
		if len(got.events) != 1 {
			t.Errorf("%d events are stored", len(got.events))
		}
		got.mu.Unlock()
		if err := in.finish(); err != nil {
			t.Error(err)
		}
	})
}

// If the disk recovers within the grace of a shutdown, everything that was read is stored.
// Otherwise the error counts every lost event, including the one that did not fit into the queue.
func TestShutdownWhileTheDiskFails(t *testing.T) {
	const many = intakeSize + 50
	for name, recoversAfter := range map[string]time.Duration{"for a second": time.Second, "for longer": time.Hour} {
		t.Run(name, func(t *testing.T) {
			wire := func(o *Options) { o.DialContext = dialWire(o.DialContext, make(chan struct{})) }
			inWorld(t, pztest.Options{}, wire, func(t *testing.T, w *world) {
				synctest.Wait()
				w.sink.set(errors.New("no space left on device"))
				for i := range many {
					w.generate(t, fmt.Sprintf("generate transfer 7343 101 1 * %d", i+1))
				}
				synctest.Wait()
				time.AfterFunc(recoversAfter, func() { w.sink.set(nil) })
				err := w.stop()
				w.stop = func() error { return nil }
				stored := len(w.sink.appended())
				lost := fmt.Sprintf("%d events", intakeSize+1) // the rest was not read
				if recoversAfter == time.Second {
					if stored != many || err != nil {
						t.Errorf("%d of %d events stored, %v", stored, many, err)
					}
				} else if stored != 0 || err == nil || !strings.Contains(err.Error(), lost) {
					t.Errorf("%d events stored, %v", stored, err)
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// A server that has stopped reading gets an error of its own, other than a silent one, and delays a
// command no longer than its deadline.
func TestServerThatStopsReading(t *testing.T) {
	server := newRawServer(upgradeAnswer)
	server.deaf = true // what is written waits for the other end to read
	socket, err := dialRaw(t, server)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(socket)
	go c.write()
	read := make(chan error, 1)
	go func() { read <- c.read(func(Message) {}) }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.request(ctx, pz.Request{Method: pz.MethodGetVersion, ID: "1"})
	if !errors.Is(err, telephony.ErrNotSent) {
		t.Errorf("a command: %v", err)
	}
	if err := <-read; !strings.Contains(err.Error(), "the server takes nothing") {
		t.Errorf("the reason: %v", err)
	}
	c.end()
	if len(c.waiting) != 0 {
		t.Errorf("%d requests wait", len(c.waiting))
	}
	_, err = c.request(t.Context(), pz.Request{Method: pz.MethodGetVersion, ID: "2"})
	if !errors.Is(err, telephony.ErrNotConnected) {
		t.Errorf("a command after the end: %v", err)
	}
}

// The server's close code takes precedence over an error of the writer.
func TestCloseCodePrecedesTheWriteError(t *testing.T) {
	c := &conn{writeErr: errors.New("broken pipe")}
	var closed *websocket.CloseError
	err := c.endError(&websocket.CloseError{Code: pz.CloseSameGUID})
	if !errors.As(err, &closed) || closed.Code != pz.CloseSameGUID {
		t.Errorf("it ends with %v", err)
	}
	if err := c.endError(net.ErrClosed); err.Error() != "write to the server: broken pipe" {
		t.Errorf("without a code it ends with %v", err)
	}
}

// A second response to one request is ignored, and does not block the reader.
func TestSecondResponseIsIgnored(t *testing.T) {
	c := &conn{waiting: map[string]chan pz.Response{"1": make(chan pz.Response, 1)}}
	if !c.deliver(pz.Response{RequestID: "1"}) || c.deliver(pz.Response{RequestID: "1"}) {
		t.Error("it is not delivered exactly once")
	}
}

// A refusal of any length gives a short error.
func TestLongRefusalIsShortened(t *testing.T) {
	err := refusal(pz.Response{Code: "2", Details: strings.Repeat("ы", 700_000)})
	if n := len([]rune(err.Error())); n > 300 {
		t.Errorf("the error has %d characters", n)
	}
}

// Each close code that is documented has a code of its own, and no other has.
func TestCloseCodesHaveTheirCauses(t *testing.T) {
	seen := map[telephony.Code]int{}
	for code := 1000; code < 5000; code++ {
		c := closeCause(code)
		isDocumented := !strings.Contains(pz.CloseMeaning(code), "not documented")
		if isDocumented != (c.Code != telephony.CodeClosedUnknown) {
			t.Errorf("%d: %+v", code, c)
		}
		if isDocumented {
			if other, twice := seen[c.Code]; twice {
				t.Errorf("%d and %d have the same code", code, other)
			}
			seen[c.Code] = code
		}
	}
	want := telephony.Cause{Code: telephony.CodeClosedUnknown, Args: []string{"4999"}}
	if got := telephony.CauseOf(closeError{&websocket.CloseError{Code: 4999}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// A dial that fails names why.
func TestDialErrorsHaveTheirCodes(t *testing.T) {
	for answer, want := range map[string]telephony.Code{
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n": telephony.CodeForbidden,
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n": telephony.CodeHandshake,
		"SSH-2.0-OpenSSH_9.2\r\n":                             telephony.CodeNoServer,
		"HTTP/1.1 101 x\r\nno colon\r\n\r\n":                  telephony.CodeNoServer,
	} {
		if _, err := dialRaw(t, newRawServer(answer)); telephony.CauseOf(err).Code != want {
			t.Errorf("%q: %v, %+v", answer, err, telephony.CauseOf(err))
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	_, err = Dial(t.Context(), DialOptions{URL: &url.URL{Scheme: "ws", Host: address}})
	want := telephony.Cause{Code: telephony.CodeConnectionRefused, Args: []string{address}}
	if got := telephony.CauseOf(err); !reflect.DeepEqual(got, want) {
		t.Errorf("%v: %+v", err, got)
	}
}

// A server that closes the connection during a handshake without TLS may expect TLS.
func TestHangupWithoutTLSSuggestsWSS(t *testing.T) {
	for scheme, hint := range map[string]bool{"ws": true, "wss": false} {
		err := dialError(&url.URL{Scheme: scheme, Host: "pbx:10150"}, fmt.Errorf("read: %w", syscall.ECONNRESET))
		if strings.Contains(advice.English(err), "use wss://") != hint {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

// A server that is dead when the session ends delays the end no longer than the grace, and a wait
// for a connection fails after that.
func TestStopAtADeadServerEndsWithinTheGrace(t *testing.T) {
	cut := make(chan struct{})
	wire := func(o *Options) { o.DialContext = dialWire(o.DialContext, cut) }
	inWorld(t, pztest.Options{}, wire, func(t *testing.T, w *world) {
		synctest.Wait()
		close(cut)
		began := time.Now()
		if err := w.stop(); err != nil || time.Since(began) > w.opts.Grace {
			t.Errorf("it ends after %s: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := w.session.WaitConnected(ctx); !errors.Is(err, telephony.ErrNotConnected) {
			t.Errorf("waiting for a connection: %v", err)
		}
	})
}

// The reason of the last close is kept after a reconnection.
func TestLastCloseCodeSurvivesAReconnection(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		time.Sleep(time.Minute)
		w.server.Disconnect(1012, "")
		time.Sleep(time.Minute)
		c := w.session.Connection()
		if c.State != telephony.Connected || c.CloseCode != 1012 || c.CloseMeaning == "" || c.LastError != "" {
			t.Errorf("%+v", c)
		}
	})
}

// A clock that is set forward does not make a replayed call too old.
func TestReplayAfterTheClockWasSetForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := time.Duration(0)
		start := time.Now()
		ages := clock.Reading(time.Time{}, time.Time{}, func() (time.Time, time.Duration) {
			return time.Now().Add(ahead), time.Since(start)
		})
		in := newIntake(Options{
			Sink:         &sink{},
			Observer:     unobserved{},
			Logger:       slog.New(slog.DiscardHandler),
			Grace:        time.Second,
			ReplayMaxAge: 24 * time.Hour,
			Clock:        ages,
		})
		replayed := telephony.Event{Replayed: true, EndedAt: time.Now().Add(-time.Hour), Time: time.Now()}
		old := telephony.Event{Replayed: true, EndedAt: time.Now().Add(-48 * time.Hour), Time: time.Now()}
		if in.tooOld(replayed) || !in.tooOld(old) {
			t.Error("by a correct clock")
		}
		ahead = 30 * 24 * time.Hour
		if in.tooOld(replayed) || !in.tooOld(old) {
			t.Error("by a clock that was just set forward")
		}
		time.Sleep(2 * time.Hour)
		if !in.tooOld(replayed) {
			t.Error("by a clock that was set forward two hours ago")
		}
	})
}
