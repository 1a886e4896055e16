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

	"pzbridge/internal/clock"
	"pzbridge/internal/pipenet"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
)

// sink keeps what is appended, and fails while it is told to.
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

// appended gives the events of the exchange.
func (s *sink) appended() []telephony.Event { return s.choose(false) }

// operational gives those of the connection itself.
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

// log is what the session has written, line by line.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) lines(t *testing.T, message string) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []map[string]any
	for line := range strings.Lines(l.b.String()) {
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

// world is a simulated server, a session with it, and what the session brings. It lives in fake time.
type world struct {
	server  *pztest.Server
	net     atomic.Pointer[pipenet.Listener]
	session *Session
	sink    *sink
	log     *log
	opts    Options
	stop    func() error
}

// inWorld runs f with a session that is running; serve starts the server, which does not listen at first.
func inWorld(t *testing.T, server pztest.Options, change func(*Options), f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{server: pztest.New(server), sink: &sink{}, log: &log{}}
		w.opts = Options{
			URL:      &url.URL{Scheme: "ws", Host: "pbx:10150"},
			Identity: pz.Identity{Password: server.Password, GUID: "bridge", ClientType: "pzbridge", EventsMask: 65535, Protocol: 2},
			Grace:    5 * time.Second, Sink: w.sink,
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

// generate makes an event at the server, as a line of its console would.
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

func TestEventsComeIn(t *testing.T) {
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
		if e.Type != telephony.EventCompleted || e.CallID != "5" || *e.Duration != 0 || e.Direction != telephony.Incoming ||
			e.StartedAt.Unix() != 1385035625 || e.EndedAt.Unix() != 1385035685 || e.RecordingURL != "http://x/1.mp3" || e.Replayed {
			t.Errorf("got %+v", e)
		}
	})
}

func TestTranslate(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		xml  string
		want string
	}{
		{`<Event type="1" callID="5" from="7" line=" "/>`, "call.transfer_requested 5 7> incoming"},
		{`<Event type="2" callID="5" from="7" to="8"/>`, "call.incoming 5 7>8 incoming"},
		{`<Event type="4" callID="5" from="7" to="8" direction="1"/>`, "call.completed 5 7>8 outgoing"},
		{`<Event type="4" callID="5" from="7" to="8" direction="up" start="never" end="0" duration="-1"/>`, "call.completed 5 7>8 "},
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
		e := translate(events[0], now)
		got := fmt.Sprintf("%s %s %s>%s %s%s%s", e.Type, e.CallID, e.From, e.To, e.Direction, e.Text, e.Status)
		if got != c.want || len(e.Wire) != len(events[0].Attrs) || !e.StartedAt.IsZero() || e.Duration != nil {
			t.Errorf("%s: got %s, %+v", c.xml, got, e)
		}
	}
}

func TestFingerprint(t *testing.T) {
	print := func(xml string) [16]byte {
		events, _, err := pz.ParseServerMessage([]byte(xml))
		if err != nil {
			t.Fatal(err)
		}
		return translate(events[0], time.Now()).Fingerprint
	}
	live := print(`<Event type="4" callID="5" from="7" line=" "/>`)
	for xml, same := range map[string]bool{
		`<Event from="7" callID="5" missed="1" missedFinal="1" type="4"/>`: true,
		`<Event type="4" callID="5" from="7" line="" record=" "/>`:         true,
		`<Event type="4" callID="5" from="8"/>`:                            false,
		`<Event type="4" callID="57" from=""/>`:                            false,
	} {
		if (print(xml) == live) != same {
			t.Errorf("%s: same is %v", xml, !same)
		}
	}
	// Fingerprints are kept in outboxes: those of another version would know no replay again.
	if got := fmt.Sprintf("%x", print(`<Event type="2" callID="5" from="Иван" line=""/>`)); got != "ccc5b1f0b03a9c4699b1345606135b47" {
		t.Errorf("the fingerprint has become %s", got)
	}
}

// Frames that cannot be read, and one that is too long, cost a line of the log and nothing else.
func TestBadFrames(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		long := strings.Repeat("ы", 300)
		for _, frame := range [][]byte{
			[]byte("<" + long), // no base64
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
		// Nor does a server that goes on like that fill the log.
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

func TestCommands(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for _, cmd := range []telephony.Command{
			{Kind: telephony.CommandCall, From: "101", To: "+7 (343) 011 <&>"},
			{Kind: telephony.CommandTransfer, CallID: "5", To: ""},
			{Kind: telephony.CommandSMS, From: "101", To: "102", Text: "Привет"},
		} {
			if err := w.session.Do(ctx, cmd); err != nil {
				t.Errorf("%s: %v", cmd.Kind, err)
			}
		}
		var got []string
		for _, r := range w.server.Requests() {
			got = append(got, fmt.Sprint(r.Method, r.Data))
		}
		want := []string{"Call[{From 101} {To +7 (343) 011 <&>}]", "Transfer[{CallID 5} {To }]", "Generate[{Event 128} {From 101} {To 102} {Smstext 0J/RgNC40LLQtdGC}]"}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("the server got\n%s", strings.Join(got, "\n"))
		}
		var refused *telephony.RefusedError
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "", To: "5"}); !errors.As(err, &refused) || refused.Code != "2" {
			t.Errorf("a call from nowhere: %v", err)
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
		if err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "5"}); !errors.Is(err, telephony.ErrNotConnected) {
			t.Errorf("without a connection: %v", err)
		}
	})
}

// dialWire puts a wire between the ends that holds what is under way, as TCP does, and goes dead when cut is closed.
func dialWire(dial func(context.Context, string, string) (net.Conn, error), cut chan struct{}) func(context.Context, string, string) (net.Conn, error) {
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
				for range underWay { // nobody takes the rest
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

// A peer that has gone without a word is noticed within a minute, and what waits for its answer is told so in its own time.
func TestDeadPeer(t *testing.T) {
	cut := make(chan struct{})
	inWorld(t, pztest.Options{NoPings: true}, func(o *Options) { o.DialContext = dialWire(o.DialContext, cut) }, func(t *testing.T, w *world) {
		synctest.Wait()
		time.Sleep(10 * time.Minute) // pings keep a quiet connection alive
		if c := w.session.Connection(); c.State != telephony.Connected {
			t.Fatalf("after ten quiet minutes: %+v", c)
		}
		close(cut)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"}); !errors.Is(err, telephony.ErrNoAnswer) {
			t.Errorf("a command to a dead peer: %v", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it was told after %s", took)
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

// How soon the session dials again after each close code, and what it says.
func TestCloseCodes(t *testing.T) {
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

func TestRedialWait(t *testing.T) {
	broken := errors.New("connection refused")
	for attempt, want := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000} {
		want *= time.Millisecond
		if low, high := redialWait(attempt, broken, 0), redialWait(attempt, broken, 0.999); low < want/2 || low < minRedialWait || high > want || high < want*9/10 {
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

func TestWrongPassword(t *testing.T) {
	inWorld(t, pztest.Options{Password: "sesame"}, func(o *Options) { o.Identity.Password = "hunter2" }, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		if c := w.session.Connection(); c.State != telephony.Disconnected || !strings.Contains(c.LastError, "PZ_PASSWORD") {
			t.Errorf("connection: %+v", c)
		}
		w.log.mu.Lock()
		defer w.log.mu.Unlock()
		if strings.Contains(w.log.b.String(), "hunter2") || strings.Contains(w.log.b.String(), "aHVudGVyMg") {
			t.Errorf("the password is in the log:\n%s", w.log.b.String())
		}
	})
}

// While the sink fails, events wait, the log stays readable, and nothing is lost.
func TestSinkFailsForAWhile(t *testing.T) {
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
			t.Errorf("%d lines say that it is over", n)
		}
	})
}

// While reading is paused, because the queue is full, the silence of the peer is our own doing and does not count.
func TestPauseIsNoSilence(t *testing.T) {
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

// What waits in memory is bounded by number and by size. While it is full nothing is read, and a command, whose answer could not be heard, is refused at once.
func TestFullIntake(t *testing.T) {
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

// One that is larger than all the room there is goes alone.
func TestIntakeOfAHugeEvent(t *testing.T) {
	in := newIntake(Options{Logger: slog.New(slog.DiscardHandler)})
	huge, small := telephony.Event{Text: strings.Repeat("x", 2*intakeBytes)}, telephony.Event{}
	in.mu.Lock()
	defer in.mu.Unlock()
	if sizeOf(&huge) <= intakeBytes || !in.enqueueIfFits(&huge) || in.enqueueIfFits(&small) {
		t.Errorf("%d events of %d bytes", in.events, in.bytes)
	}
}

// A shutdown stores what has been read, and says so if it could not.
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

func TestReplayMaxAge(t *testing.T) {
	for age, want := range map[time.Duration]int{0: 4, 168 * time.Hour: 2} {
		inWorld(t, pztest.Options{}, func(o *Options) { o.ReplayMaxAge = age }, func(t *testing.T, w *world) {
			synctest.Wait()
			w.server.Close()
			now := time.Now().Unix()
			w.generate(t, fmt.Sprintf("generate history 1 2 %d %d 1 in", now-9*86400-5, now-9*86400))
			w.generate(t, fmt.Sprintf("generate history 1 2 %d 0 1 in", now-9*86400)) // when it ended is not known
			w.generate(t, fmt.Sprintf("generate history 1 2 %d %d 1 in", now-86400-5, now-86400))
			if err := w.server.Generate(pz.Attrs{{Name: "Event", Value: "256"}, {Name: "From", Value: "1"}, {Name: "To", Value: "2"}, {Name: "Result", Value: "1"}}); err != nil {
				t.Fatal(err)
			}
			w.serve()
			time.Sleep(2 * time.Minute)
			if got := w.sink.appended(); len(got) != want || !got[0].Replayed {
				t.Errorf("REPLAY_MAX_AGE %s: %d events", age, len(got))
			}
			if n := len(w.log.lines(t, "ended long ago")); (n == 1) != (want == 2) {
				t.Errorf("%d lines about what is left out", n)
			}
			// What is told as it happens is no replay, whatever the exchange's clock says.
			w.generate(t, fmt.Sprintf("generate history 1 2 %d %d 1 in", now-9*86400-5, now-9*86400))
			synctest.Wait()
			if got := w.sink.appended(); len(got) != want+1 {
				t.Errorf("REPLAY_MAX_AGE %s: a call that has just ended is left out", age)
			}
		})
	}
}

// Over real TLS: a certificate is trusted by its CA or by its fingerprint, an old server only by the explicit choice.
func TestTLS(t *testing.T) {
	// Neither modern nor as old as the vendor's: suites that Go does not offer by itself, and some that it does.
	with := func(version uint16, suites ...uint16) *pztest.Server {
		config := pztest.LegacyTLS()
		config.MinVersion, config.MaxVersion, config.CipherSuites = version, version, suites
		return pztest.NewServer(pztest.Options{TLS: config})
	}
	modern, legacy := pztest.NewServer(pztest.Options{TLS: pztest.ModernTLS()}), pztest.NewServer(pztest.Options{TLS: pztest.LegacyTLS()})
	exchange, older := with(tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256), with(tls.VersionTLS10, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA)
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
				URL: address, TLS: TLS(c.roots, c.fingerprint, c.legacy), Identity: pz.Identity{ClientType: "crm", GUID: c.name, Protocol: 2},
			})
			if err == nil {
				socket.Close()
			}
			if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A command whose caller has gone, or whose time is over, is not written, and costs the connection nothing.
func TestLateCommandsAreNotWritten(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		expired, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		for range 50 {
			for _, ctx := range []context.Context{cancelled, expired} {
				if err := w.session.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"}); !errors.Is(err, telephony.ErrNotSent) {
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

// What the server has written before it hears that the bridge stops is not written again, so it must be taken.
func TestStopTakesWhatIsOnTheWay(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var got sink
	session := func(ready func() bool) {
		s, err := New(Options{
			URL: address, Identity: pz.Identity{GUID: "bridge", EventsMask: 65535, Protocol: 2},
			Grace: 5 * time.Second, Sink: &got, Logger: slog.New(slog.DiscardHandler),
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
				fields, err := pz.ParseGenerate(strings.Fields(fmt.Sprintf("generate history 1 2 100 200 50 in r 3 %d", round*many+i)))
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

// Switched off, the session hangs up and stays so; what the server keeps meanwhile comes when it is switched on again.
func TestEnable(t *testing.T) {
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
		if c := w.session.Connection(); c.State != telephony.Disabled || !errors.Is(err, telephony.ErrNotConnected) || len(w.sink.appended()) != 0 {
			t.Errorf("an hour later: %+v, %v", c, err)
		}
		waited := make(chan error, 1)
		go func() { waited <- w.session.WaitConnected(t.Context()) }()
		w.session.Enable(true)
		w.session.Enable(true)
		synctest.Wait()
		if c := w.session.Connection(); c.State != telephony.Connected || len(w.sink.appended()) != 1 || <-waited != nil {
			t.Errorf("switched on: %+v, %d events", c, len(w.sink.appended()))
		}
	})
	inWorld(t, pztest.Options{}, func(o *Options) { o.Disabled = true }, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		if c := w.session.Connection(); c.State != telephony.Disabled || w.server.Connected() != 0 {
			t.Errorf("off from the start: %+v", c)
		}
		if news := w.sink.operational(); len(news) != 0 {
			t.Errorf("it tells of %v", news)
		}
	})
	// While the server is away it is not dialled either, and switching on dials at once.
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

// Each change of the connection is told once, with the reason, however often it is dialled in between.
func TestConnectionIsAnnounced(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
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
		w.session.Enable(false) // after the end nobody is told
		var got []string
		for _, e := range w.sink.operational() {
			if e.ID == "" || e.Time.IsZero() {
				t.Errorf("%+v", e)
			}
			got = append(got, string(e.Type)+" "+e.Reason)
		}
		want := []string{
			"bridge.connected ", "bridge.disconnected connection closed with code 4008: " + pz.CloseMeaning(4008),
			"bridge.connected ", "bridge.disconnected it was switched off",
			"bridge.connected ", "bridge.disconnected the bridge is shutting down",
		}
		if !slices.Equal(got, want) {
			t.Errorf("told:\n%s", strings.Join(got, "\n"))
		}
	})
}

// What the server still has on its way when the session says goodbye is kept: it counts there as sent. Neither a ping of the server's nor a command that comes
// just then ends the connection before that.
func TestGoodbye(t *testing.T) {
	const many = 20
	for name, during := range map[string]func(*testing.T, *Session, *websocket.Conn){
		"nothing": func(*testing.T, *Session, *websocket.Conn) {},
		"a ping": func(_ *testing.T, _ *Session, ws *websocket.Conn) {
			_ = ws.WriteControl(websocket.PingMessage, []byte("server ping string"), time.Now().Add(time.Second))
		},
		"a command": func(t *testing.T, s *Session, _ *websocket.Conn) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := s.Do(ctx, telephony.Command{Kind: telephony.CommandCall, From: "1", To: "2"}); !errors.Is(err, telephony.ErrNotConnected) {
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
					ws.SetCloseHandler(func(int, string) error { return nil }) // it answers when it has sent what it has to send
					read := make(chan struct{})
					go func() {
						defer close(read)
						for err := error(nil); err == nil; {
							_, _, err = ws.ReadMessage()
						}
					}()
					_ = ws.WriteMessage(websocket.TextMessage, pz.Base64.Pack([]byte(`<Response/>`))) // by which its form is known
					<-leaving
					time.Sleep(20 * time.Millisecond) // it has our close frame by now
					during(t, s, ws)
					for i := range many {
						time.Sleep(20 * time.Millisecond)
						doc := pz.Base64.Pack(fmt.Appendf(nil, `<Event type="4" callID="%d" from="1" to="2"/>`, i))
						if ws.WriteMessage(websocket.TextMessage, doc) != nil {
							break
						}
					}
					_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
					<-read
				})}
				var serving sync.WaitGroup
				serving.Go(func() { _ = server.Serve(l) })
				got := &sink{}
				s, err := New(Options{
					URL: &url.URL{Scheme: "ws", Host: "pbx:10150"}, Identity: pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
					Grace: 5 * time.Second, Sink: got, Logger: slog.New(slog.DiscardHandler), DialContext: l.Dial,
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

// What is no Prostie Zvonki server may send the handshake back, and with it the password: no error shows it.
func TestNoPasswordInErrors(t *testing.T) {
	const password, packed = "t0psecret?", "dDBwc2VjcmV0P"
	for name, answer := range map[string]func(handshake string) string{
		"the handshake": func(handshake string) string { return handshake },
		"the password":  func(string) string { return "client " + password + " refused" },
		"the handshake in a header": func(handshake string) string {
			return "HTTP/1.1 101 Ok\r\nContent-Length: " + strings.Fields(handshake)[1] + "\r\n\r\n"
		},
		"the password in a header": func(string) string { return "HTTP/1.1 101 Ok\r\nContent-Length: " + password + "\r\n\r\n" },
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
					URL: &url.URL{Scheme: "ws", Host: "pbx:10150"}, Identity: pz.Identity{Password: password, GUID: "g", EventsMask: 65535, Protocol: 2},
					Grace: 5 * time.Second, Sink: &sink{}, Logger: slog.New(slog.NewJSONHandler(&b, nil)), DialContext: echo,
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
				spoke := strings.Contains(name, "header")
				if all := text + b.b.String(); strings.Contains(text, "does not speak HTTP") == spoke || strings.Contains(text, "(hidden)") != spoke || strings.Contains(all, packed) || strings.Contains(all, password) {
					t.Errorf("last error: %s\nlog: %s", text, b.b.String())
				}
			})
		})
	}
}

// A connection that had lasted is dialled again soon when it breaks, however often that happens; one that breaks at once is not.
func TestRedialAfterALastingConnection(t *testing.T) {
	for name, c := range map[string]struct{ lasts, least, most time.Duration }{
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
					if w.server.Connected() == 0 { // it had not noticed yet
						time.Sleep(time.Millisecond)
						_ = w.session.WaitConnected(t.Context())
					}
					away = time.Since(broke)
				}
				if away < c.least || away > c.most+time.Second {
					t.Errorf("the last time it was away for %s, want %s to %s", away, c.least, c.most)
				}
			})
		})
	}
}

// Whoever switches the connection on does not wait for the next dial.
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
		w.session.Enable(true) // it is: nothing happens
		synctest.Wait()
		if c := w.session.Connection(); c.State != telephony.Connected || len(w.log.lines(t, "connected to the")) != 3 { // two of these begin with "not"
			t.Errorf("switched on again: %+v, %d lines", c, len(w.log.lines(t, "connected to the")))
		}
	})
}

// Whoever switches it off and at once on again waits no longer than for the goodbye, however long an outage before had been.
func TestOffAndOnAtOnce(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		for range 12 { // the waits grow
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
			t.Errorf("%d failures are told", n)
		}
	})
}

// A server that takes the connection and says nothing holds up neither the end nor who switches the connection off and on.
func TestServerThatSaysNothing(t *testing.T) {
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
					URL: &url.URL{Scheme: "ws", Host: "pbx:10150"}, Identity: pz.Identity{GUID: "g", EventsMask: 65535, Protocol: 2},
					Grace: time.Second, Sink: &sink{}, Logger: slog.New(slog.DiscardHandler), DialContext: l.Dial,
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

// A connection that is switched off before the server has said its version never counts as made.
func TestSwitchedOffWhileIdentifying(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w.session.connected(ctx, nil, "late")
		if c := w.session.Connection(); c.ServerVersion == "late" {
			t.Errorf("it is made although it is being given up: %+v", c)
		}
		w.session.Enable(false)
		w.session.connected(t.Context(), nil, "late")
		if c := w.session.Connection(); c.State != telephony.Disabled {
			t.Errorf("it is %s", c.State)
		}
	})
}

// What waits in memory while the sink takes nothing is offered to it again within a second: from then on it is stored, and not only said to be kept.
func TestAppendedSoonAfterTheSinkIsWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := &sink{fail: errors.New("the outbox is full")}
		in := newIntake(Options{Sink: got, Observer: unobserved{}, Logger: slog.New(slog.DiscardHandler), Grace: time.Second, Clock: clock.New(time.Time{}, time.Time{})})
		go in.run()
		in.put(pz.Event{Attrs: pz.Attrs{{Name: pz.AttrType, Value: pz.TypeCompleted}, {Name: pz.AttrCallID, Value: "5"}}}, time.Now())
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

// A disk that is well again within the grace of a shutdown still gets what was read, and what is lost otherwise is counted to the last one: also the one that had no room.
func TestShutdownWhileTheDiskFails(t *testing.T) {
	const many = intakeSize + 50
	for name, wellAfter := range map[string]time.Duration{"for a second": time.Second, "for longer": time.Hour} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, pztest.Options{}, func(o *Options) { o.DialContext = dialWire(o.DialContext, make(chan struct{})) }, func(t *testing.T, w *world) {
				synctest.Wait()
				w.sink.set(errors.New("no space left on device"))
				for i := range many {
					w.generate(t, fmt.Sprintf("generate transfer 7343 101 1 * %d", i+1))
				}
				synctest.Wait()
				time.AfterFunc(wellAfter, func() { w.sink.set(nil) })
				err := w.stop()
				w.stop = func() error { return nil }
				stored := len(w.sink.appended())
				if wellAfter == time.Second {
					if stored != many || err != nil {
						t.Errorf("%d of %d events stored, %v", stored, many, err)
					}
				} else if stored != 0 || err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d events", intakeSize+1)) { // the rest was not read
					t.Errorf("%d events stored, %v", stored, err)
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// A server that has stopped reading is told apart from one that is silent, and holds up a command no longer than its deadline.
func TestServerThatTakesNothing(t *testing.T) {
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
	if _, err := c.request(ctx, pz.Request{Method: pz.MethodGetVersion, ID: "1"}); !errors.Is(err, telephony.ErrNotSent) {
		t.Errorf("a command: %v", err)
	}
	if err := <-read; !strings.Contains(err.Error(), "the server takes nothing") {
		t.Errorf("the reason: %v", err)
	}
	c.end()
	if len(c.waiting) != 0 {
		t.Errorf("%d requests wait", len(c.waiting))
	}
	if _, err := c.request(t.Context(), pz.Request{Method: pz.MethodGetVersion, ID: "2"}); !errors.Is(err, telephony.ErrNotConnected) {
		t.Errorf("a command after the end: %v", err)
	}
}

// What the server says when it closes a connection counts, also if nothing could be written to it any more by then.
func TestCloseCodeOutlivesTheWriter(t *testing.T) {
	c := &conn{writeErr: errors.New("broken pipe")}
	var closed *websocket.CloseError
	if err := c.endError(&websocket.CloseError{Code: pz.CloseSameGUID}); !errors.As(err, &closed) || closed.Code != pz.CloseSameGUID {
		t.Errorf("it ends with %v", err)
	}
	if err := c.endError(net.ErrClosed); err.Error() != "write to the server: broken pipe" {
		t.Errorf("without a code it ends with %v", err)
	}
}

// A second response to one request is nobody's, and holds up nobody.
func TestAnsweredTwice(t *testing.T) {
	c := &conn{waiting: map[string]chan pz.Response{"1": make(chan pz.Response, 1)}}
	if !c.deliver(pz.Response{RequestID: "1"}) || c.deliver(pz.Response{RequestID: "1"}) {
		t.Error("it is not taken once")
	}
}

// An exchange's refusal may be of any length; what is shown of it is not.
func TestLongRefusal(t *testing.T) {
	err := refusal(pz.Response{Code: "2", Details: strings.Repeat("ы", 700_000)})
	if n := len([]rune(err.Error())); n > 300 {
		t.Errorf("it has %d characters", n)
	}
}

// What hangs up at a handshake without TLS may want it.
func TestHintAtTLS(t *testing.T) {
	for scheme, hint := range map[string]bool{"ws": true, "wss": false} {
		err := dialError(&url.URL{Scheme: scheme, Host: "pbx:10150"}, fmt.Errorf("read: %w", syscall.ECONNRESET))
		if strings.Contains(err.Error(), "use wss://") != hint {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

// A server that is dead when the session ends holds up its end no longer than the grace; and nobody waits for a connection after that.
func TestStopAtADeadServer(t *testing.T) {
	cut := make(chan struct{})
	inWorld(t, pztest.Options{}, func(o *Options) { o.DialContext = dialWire(o.DialContext, cut) }, func(t *testing.T, w *world) {
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

// Why the connection was closed last is told also when there is one again.
func TestLastCloseIsKept(t *testing.T) {
	inWorld(t, pztest.Options{}, nil, func(t *testing.T, w *world) {
		time.Sleep(time.Minute)
		w.server.Disconnect(1012, "")
		time.Sleep(time.Minute)
		if c := w.session.Connection(); c.State != telephony.Connected || c.CloseCode != 1012 || c.CloseMeaning == "" || c.LastError != "" {
			t.Errorf("%+v", c)
		}
	})
}

// A clock that is set forward makes no replayed call too old.
func TestReplayAfterTheClockWasSetForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := time.Duration(0)
		start := time.Now()
		ages := clock.Reading(time.Time{}, time.Time{}, func() (time.Time, time.Duration) { return time.Now().Add(ahead), time.Since(start) })
		in := newIntake(Options{Sink: &sink{}, Observer: unobserved{}, Logger: slog.New(slog.DiscardHandler), Grace: time.Second, ReplayMaxAge: 24 * time.Hour, Clock: ages})
		replayed := telephony.Event{Replayed: true, EndedAt: time.Now().Add(-time.Hour), Time: time.Now()}
		old := telephony.Event{Replayed: true, EndedAt: time.Now().Add(-48 * time.Hour), Time: time.Now()}
		if in.tooOld(replayed) || !in.tooOld(old) {
			t.Error("by a clock that is right")
		}
		ahead = 30 * 24 * time.Hour
		if in.tooOld(replayed) || !in.tooOld(old) {
			t.Error("by one that was just set forward")
		}
		time.Sleep(2 * time.Hour)
		if !in.tooOld(replayed) {
			t.Error("by one that was set forward two hours ago")
		}
	})
}
