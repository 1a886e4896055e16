package relay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/clock"
	"pzbridge/internal/pz"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
)

// How the session dials again: after waits that double from redialFirst to redialMost, and after redialHopeless where the server
// has said that it will go on refusing.
const (
	redialFirst    = 500 * time.Millisecond
	redialMost     = time.Minute
	redialHopeless = 5 * time.Minute

	// settled is how long a connection must have lasted for its end to be new trouble, and not the old one going on.
	settled = 10 * time.Second

	// identifyTimeout is how long a server may take to say its version before it is taken for one that does not tell.
	identifyTimeout = 5 * time.Second
)

// Session is one connection to one server, redialled for ever. Run keeps it, Do sends commands through it.
type Session struct {
	opts    Options
	intake  *intake
	trouble *repeat.Log

	mu     sync.Mutex
	status telephony.Connection
	live   *conn         // nil while there is no connection that the server has accepted
	up     chan struct{} // closed while live is set
	lastID uint32
	// enabled says that there is to be a connection; switched is closed when that changes.
	enabled  bool
	switched chan struct{}
	dialNow  chan struct{} // somebody does not want to wait for the next dial

	// The reader of the socket alone touches these.
	unread      int       // frames that could not be read since the last line about them
	unreadLines int       // lines about them
	unreadSince time.Time // since when they are counted

	ended chan struct{} // closed when Run has ended
}

// New checks the options and gives a session that is not connected yet.
func New(opts Options) (*Session, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Observer == nil {
		opts.Observer = unobserved{}
	}
	if opts.Clock == nil {
		opts.Clock = clock.New(time.Time{}, time.Time{})
	}
	s := &Session{
		opts: opts, intake: newIntake(opts),
		trouble: repeat.New(opts.Logger),
		status:  telephony.Connection{State: telephony.Disconnected, Since: time.Now()},
		// A server answers what it cannot parse with some ID; to start somewhere keeps such noise away from our own.
		lastID: rand.Uint32N(1 << 30),
		up:     make(chan struct{}), ended: make(chan struct{}),
		enabled: !opts.Disabled, switched: make(chan struct{}), dialNow: make(chan struct{}, 1),
	}
	return s, nil
}

// Run connects, and connects again, until ctx ends. It returns once every event that was read has been appended, or could not be
// within Options.Grace.
func (s *Session) Run(ctx context.Context) error {
	defer close(s.ended)
	var appender sync.WaitGroup
	defer appender.Wait()
	appender.Go(s.intake.run)
	defer context.AfterFunc(ctx, s.intake.stopping)()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		switched := s.waitEnabled(ctx)
		if switched == nil {
			break
		}
		err := s.connectUntil(ctx, switched)
		if ctx.Err() != nil {
			break
		}
		select {
		case <-switched:
			attempt = -1 // it is dialled at once when it is switched on again, which it may have been meanwhile
			continue
		default:
		}
		if c := s.Connection(); c.State == telephony.Connected && time.Since(c.Since) > settled {
			attempt = 0
		}
		wait := redialWait(attempt, err, rand.Float64())
		s.disconnected(err, wait)
		s.trouble.Failed("not connected to the Prostie Zvonki server", err, "retry_in", wait.Round(time.Millisecond).String())
		select {
		case <-ctx.Done():
		case <-switched:
		case <-s.dialNow:
			attempt = -1
		case <-time.After(wait):
		}
	}
	s.disconnected(errors.New("the bridge is shutting down"), redialMost)
	return s.intake.finish()
}

// Enable connects, at once where it would wait to dial again, or hangs up and stays so until it is called again. It does not wait for that.
func (s *Session) Enable(enabled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.enabled != enabled {
		s.enabled = enabled
		close(s.switched)
		s.switched = make(chan struct{})
	} else if enabled && s.status.State == telephony.Disconnected && s.status.DialsAt.After(time.Now()) {
		signal(s.dialNow)
	}
	switch {
	case !enabled:
		s.switchedOff()
	case s.status.State == telephony.Disabled:
		s.status.State, s.status.Since, s.status.LastError, s.status.DialsAt = telephony.Disconnected, time.Now(), "", time.Now()
	}
}

// switchedOff is how a connection that is not to be stands. The caller holds mu.
func (s *Session) switchedOff() {
	if s.status.State == telephony.Connected {
		s.intake.announce(telephony.Event{Type: telephony.EventDisconnected, Reason: "it was switched off"})
	}
	s.status = telephony.Connection{
		State: telephony.Disabled, Since: time.Now(), LastError: "it was switched off, on the dashboard or with PUT /v1/connection",
		CloseCode: s.status.CloseCode, CloseMeaning: s.status.CloseMeaning,
	}
}

// waitEnabled waits until there is to be a connection, and gives what is closed when there is to be none any more; nil if ctx ended before.
func (s *Session) waitEnabled(ctx context.Context) (switched <-chan struct{}) {
	for {
		s.mu.Lock()
		switched, enabled := s.switched, s.enabled
		if !enabled && s.status.State != telephony.Disabled {
			s.switchedOff()
		}
		s.mu.Unlock()
		if enabled {
			return switched
		}
		select {
		case <-switched:
		case <-ctx.Done():
			return nil
		}
	}
}

// connectUntil serves one connection until it ends or is switched off.
func (s *Session) connectUntil(ctx context.Context, switched <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		select {
		case <-switched:
			cancel()
		case <-ctx.Done():
		}
	})
	return s.connectOnce(ctx)
}

// redialWait is how long to wait before dialling again after a number of failures; jitter is in [0, 1).
func redialWait(attempt int, err error, jitter float64) time.Duration {
	var closed *websocket.CloseError
	if errors.As(err, &closed) && !pz.CloseRetriable(closed.Code) {
		return redialHopeless
	}
	wait := redialMost
	if attempt < 7 { // 0.5 s × 2⁷ is past the minute
		wait = min(redialFirst<<attempt, redialMost)
	}
	// Up to half is left to chance, so that the bridges of a whole town do not return at the same moment.
	return max(redialFirst, wait/2+time.Duration(jitter*float64(wait/2)))
}

// connectOnce dials and serves one connection until it ends, and says why it did. It never returns nil.
func (s *Session) connectOnce(ctx context.Context) error {
	s.set(func(c *telephony.Connection) { c.State = telephony.Connecting })
	socket, err := Dial(ctx, DialOptions{URL: s.opts.URL, TLS: s.opts.TLS, Identity: s.opts.Identity, DialContext: s.opts.DialContext})
	if err != nil {
		return err
	}
	c := newConn(socket)
	var helpers sync.WaitGroup
	helpers.Go(c.write)
	helpers.Go(func() { s.identify(ctx, c) })
	helpers.Go(func() {
		select {
		case <-ctx.Done():
			s.notLive()
			c.Hangup(c.gone, min(2*time.Second, s.opts.Grace/2))
		case <-c.gone:
		}
	})
	err = c.read(func(m Message) { s.receive(c, m) })
	c.end()
	helpers.Wait()
	s.notLive()
	return err
}

// notLive lets no command begin on the connection any more.
func (s *Session) notLive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live != nil {
		s.live, s.up = nil, make(chan struct{})
	}
}

// identify asks the server for its version. A server with a wrong password accepts the handshake and
// closes right after, so the connection counts as made only when something was read. That tells the
// form that the server speaks, too, without which a command would be written to nobody.
func (s *Session) identify(ctx context.Context, c *conn) {
	patience, cancel := context.WithTimeout(context.Background(), identifyTimeout)
	defer cancel()
	resp, err := c.requestEither(patience, pz.Request{Method: pz.MethodGetVersion, ID: s.nextID()})
	if err != nil && patience.Err() == nil {
		return // the connection has ended
	}
	select {
	case <-c.heard:
	default:
		s.mute()
		select {
		case <-c.heard:
		case <-c.gone:
			return
		}
	}
	select {
	case <-c.gone:
	default:
		s.connected(ctx, c, resp.Version)
	}
}

// mute says of a connection that the server has let the client in and says nothing.
func (s *Session) mute() {
	s.set(func(c *telephony.Connection) {
		if c.State == telephony.Connecting {
			c.LastError = errMute.Error()
		}
	})
	s.opts.Logger.Warn("the Prostie Zvonki server lets the bridge in and says nothing", "err", errMute.Error())
}

// errMute means that something takes the connection and is silent.
var errMute = fmt.Errorf("it has not answered within %s, in base64 or as XML: check that PZ_URL is a Prostie Zvonki server", identifyTimeout)

// connected lets commands begin on a connection, unless it is being given up.
func (s *Session) connected(ctx context.Context, c *conn, version string) {
	s.mu.Lock()
	if ctx.Err() != nil || !s.enabled {
		s.mu.Unlock()
		return
	}
	s.live = c
	close(s.up)
	s.status = telephony.Connection{
		State: telephony.Connected, Since: time.Now(), ServerVersion: version,
		Form: c.Spoken().String(), FormOfAddress: c.expected.String(),
		CloseCode: s.status.CloseCode, CloseMeaning: s.status.CloseMeaning,
	}
	s.mu.Unlock()
	s.intake.announce(telephony.Event{Type: telephony.EventConnected})
	s.opts.Logger.Info("connected to the Prostie Zvonki server",
		"server", s.opts.URL.Host, "version", version, "form", c.Spoken().String(), "failures", s.trouble.Reset())
}

func (s *Session) disconnected(err error, wait time.Duration) {
	s.set(func(c *telephony.Connection) {
		if c.State == telephony.Connected {
			c.Since = time.Now()
			s.intake.announce(telephony.Event{Type: telephony.EventDisconnected, Reason: err.Error()})
		}
		c.State, c.LastError, c.DialsAt = telephony.Disconnected, err.Error(), time.Now().Add(wait)
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			c.CloseCode, c.CloseMeaning = closed.Code, pz.CloseMeaning(closed.Code)
		}
	})
}

func (s *Session) set(change func(*telephony.Connection)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// Connection tells where the session stands now.
func (s *Session) Connection() telephony.Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// WaitConnected waits until there is a connection. It fails with ctx's error, or with telephony.ErrNotConnected once Run has ended.
func (s *Session) WaitConnected(ctx context.Context) error {
	s.mu.Lock()
	up := s.up
	s.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-s.ended:
		return telephony.ErrNotConnected
	case <-ctx.Done():
		return ctx.Err()
	}
}

// receive takes one message apart: responses go to whoever waits for them, events into the intake.
func (s *Session) receive(c *conn, m Message) {
	if errors.Is(m.Err, errLongMessage) {
		s.opts.Logger.Warn(errLongMessage.Error(), "starts_with", firstRunes(string(m.Payload[:1024]), shown))
		return
	}
	if m.Err == nil && len(m.Doc) == 0 {
		return // nothing but a NUL or white space: some servers keep a line alive with it
	}
	var events []pz.Event
	var responses []pz.Response
	payload, err := m.Payload, m.Err
	if err == nil {
		payload = m.Doc
		events, responses, err = pz.ParseServerMessage(m.Doc)
	}
	if err != nil {
		s.tellUnread(err, payload, len(events)+len(responses) > 0)
	}
	for _, r := range responses {
		if !c.answered(r) {
			s.opts.Logger.Debug("a response that nobody waits for", "request_id", r.RequestID, "code", r.Code)
		}
	}
	at := time.Now()
	if since, late := c.CameAt(); late {
		at = since
	}
	for _, e := range events {
		s.intake.put(e, at)
	}
}

// tellUnread says that a frame, or a part of it, could not be read. A server that sends one after the other does not fill the log.
func (s *Session) tellUnread(err error, payload []byte, inPart bool) {
	const period, most = 30 * time.Second, 10
	s.unread++
	if now := time.Now(); now.Sub(s.unreadSince) >= period {
		s.unreadSince, s.unreadLines = now, 0
	}
	if s.unreadLines == most {
		return
	}
	s.unreadLines++
	args := []any{"err", firstRunes(err.Error(), shown), "frame", firstRunes(string(payload), shown), "frames", s.unread}
	s.unread = 0
	if inPart {
		s.opts.Logger.Warn("a part of a frame could not be read and is left out", args...)
		return
	}
	s.opts.Logger.Warn("a frame could not be read and is left out", args...)
}

// shown is how many characters of what the server sends are shown to people.
const shown = 200

func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// Do sends a command and waits for the server's answer until ctx ends. Nil means that the server has done it. It fails with a
// *telephony.RefusedError or one of telephony's errors.
func (s *Session) Do(ctx context.Context, cmd telephony.Command) error {
	err := s.do(ctx, cmd)
	s.opts.Observer.CommandEnded(cmd.Kind, commandOutcome(err))
	return err
}

// commandOutcome says in a word how a command has ended.
func commandOutcome(err error) string {
	var refused *telephony.RefusedError
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &refused):
		return "refused"
	case errors.Is(err, telephony.ErrNoAnswer):
		return "no_answer"
	}
	return "not_sent"
}

func (s *Session) do(ctx context.Context, cmd telephony.Command) error {
	s.mu.Lock()
	c := s.live
	s.mu.Unlock()
	if c == nil {
		return telephony.ErrNotConnected
	}
	if s.intake.isPaused() {
		return telephony.ErrOutboxFull
	}
	req := wireRequest(cmd)
	req.ID = s.nextID()
	resp, err := c.request(ctx, req)
	if err != nil {
		return err
	}
	if resp.Code != pz.CodeDone {
		return refusal(resp)
	}
	return nil
}

// refusal is the exchange's "no". It may be of any length, and goes to the log and to whoever has commanded.
func refusal(resp pz.Response) error {
	return &telephony.RefusedError{Code: firstRunes(resp.Code, shown), Details: firstRunes(resp.Details, shown)}
}

func wireRequest(cmd telephony.Command) pz.Request {
	switch cmd.Kind {
	case telephony.CommandCall:
		return pz.Request{Method: pz.MethodCall, Data: pz.Attrs{{Name: "From", Value: cmd.From}, {Name: "To", Value: cmd.To}}}
	case telephony.CommandTransfer:
		return pz.Request{Method: pz.MethodTransfer, Data: pz.Attrs{{Name: "CallID", Value: cmd.CallID}, {Name: "To", Value: cmd.To}}}
	case telephony.CommandSMS:
		return pz.Request{Method: pz.MethodGenerate, Data: pz.Attrs{
			{Name: "Event", Value: pz.TypeSMS},
			{Name: "From", Value: cmd.From},
			{Name: "To", Value: cmd.To},
			{Name: "Smstext", Value: pz.SMSText(cmd.Text)},
		}}
	}
	panic("relay: a command of the unknown kind " + string(cmd.Kind))
}

// nextID gives an ID that no request has had.
func (s *Session) nextID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	return strconv.FormatUint(uint64(s.lastID), 10)
}
