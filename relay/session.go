package relay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/clock"
	"pzbridge/internal/pz"
	"pzbridge/internal/repeat"
	"pzbridge/internal/telephony"
)

// The wait before the session reconnects doubles from minRedialWait to maxRedialWait, but for the
// first absentAttempts while no server answers only to absentRedialWait. It is permanentRedialWait
// if the server has refused with a permanent cause.
const (
	minRedialWait       = 500 * time.Millisecond
	maxRedialWait       = time.Minute
	permanentRedialWait = 5 * time.Minute

	// A server that starts, or restarts, is back within minutes, and live calls are missed until
	// the bridge is connected. An attempt at a port where nothing listens costs nobody anything.
	absentRedialWait = 3 * time.Second
	absentAttempts   = 100 // about four minutes

	// startupPatience is how long after the start it is expected that no server answers, as when
	// both start with the machine.
	startupPatience = 30 * time.Second

	// stableAfter is how long a connection must have lasted for its end to count as a new failure.
	stableAfter = 10 * time.Second

	// identifyTimeout bounds the wait for the server's version; some servers do not reveal it.
	identifyTimeout = 5 * time.Second
)

// Session is the connection to one server, which it renews for as long as Run runs. Do sends
// commands through it.
type Session struct {
	opts     Options
	intake   *intake
	failures *repeat.Log
	awaited  bool // that no server answers was logged as expected; only Run touches it

	mu     sync.Mutex
	status telephony.Connection
	live   *conn         // nil unless the server has accepted the connection
	up     chan struct{} // closed while live is set
	lastID uint32
	// hasConnected is whether there has been a connection since the start.
	hasConnected bool
	isSpare      bool // it has no Options.Slot, and waits for one
	// enabled is whether there should be a connection; switched is closed when that changes.
	enabled  bool
	switched chan struct{}
	dialNow  chan struct{} // cuts short the wait for the next dial

	// Only the reader of the socket touches these.
	unreadable      int       // frames since the last line about them
	unreadableLines int       // lines in the current period
	unreadableSince time.Time // the start of the period

	ended chan struct{} // closed when Run has ended
}

// New validates the options and returns a session that is not connected yet.
func New(opts Options) (*Session, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Observer == nil {
		opts.Observer = unobserved{}
	}
	if opts.Explain == nil {
		opts.Explain = error.Error
	}
	if opts.Clock == nil {
		opts.Clock = clock.New(time.Time{}, time.Time{})
	}
	s := &Session{
		opts:     opts,
		intake:   newIntake(opts),
		failures: repeat.New(opts.Logger),
		status:   telephony.Connection{State: telephony.Disconnected, Since: time.Now()},
		// A server answers a frame that it cannot parse with an arbitrary ID. A random start makes
		// it unlikely that such an ID is that of a waiting request.
		lastID:   rand.Uint32N(1 << 30),
		up:       make(chan struct{}),
		ended:    make(chan struct{}),
		enabled:  !opts.Disabled,
		switched: make(chan struct{}),
		dialNow:  make(chan struct{}, 1),
		isSpare:  opts.Slot != nil,
	}
	s.noteSpare()
	return s, nil
}

// Run connects, and reconnects, until ctx ends. It returns once every event that was read is
// appended, or with an error if some could not be within Options.Grace.
func (s *Session) Run(ctx context.Context) error {
	defer close(s.ended)
	var appender sync.WaitGroup
	defer appender.Wait()
	appender.Go(s.intake.run)
	defer context.AfterFunc(ctx, s.intake.beginShutdown)()
	began := time.Now()
	for attempt := 0; ctx.Err() == nil; attempt++ {
		switched := s.waitEnabled(ctx)
		if switched == nil || !s.takeSlot(ctx) {
			break
		}
		if isClosed(switched) { // while it waited for the slot
			attempt = -1
			continue
		}
		err := s.connectUntil(ctx, switched)
		if ctx.Err() != nil {
			break
		}
		if isClosed(switched) {
			attempt = -1 // enabled again, perhaps meanwhile: dial at once
			continue
		}
		if c := s.Connection(); c.State == telephony.Connected && time.Since(c.Since) > stableAfter {
			attempt = 0
		}
		wait := redialWait(attempt, err, rand.Float64())
		err = s.explained(err)
		s.disconnected(err, wait)
		if isAbsent(err) && s.isStarting(began) {
			s.logAwaited(err)
		} else {
			s.failures.Failed("not connected to the Prostie Zvonki server", err,
				"retry_in", wait.Round(time.Millisecond).String())
		}
		if s.pause(ctx, switched, wait) {
			attempt = -1
		}
	}
	s.disconnected(errStopping, maxRedialWait)
	return s.intake.finish()
}

// Enable connects, without the wait before a reconnection, or disconnects until it is called with
// true again. It returns at once.
func (s *Session) Enable(enabled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.enabled != enabled {
		s.enabled = enabled
		close(s.switched)
		s.switched = make(chan struct{})
	} else if enabled && s.status.State == telephony.Disconnected && s.status.DialsAt.After(time.Now()) {
		wake(s.dialNow)
	}
	switch {
	case !enabled:
		s.markDisabled()
	case s.status.State == telephony.Disabled:
		now := time.Now()
		s.status.State, s.status.Since = telephony.Disconnected, now
		s.status.LastError, s.status.LastCause, s.status.DialsAt = "", telephony.Cause{}, now
		s.noteSpare()
	}
}

// markDisabled sets the status of a disabled session. The caller holds mu.
func (s *Session) markDisabled() {
	if s.status.State == telephony.Connected {
		s.intake.enqueueOperational(telephony.Event{Type: telephony.EventDisconnected, Reason: "it was switched off"})
	}
	s.status = telephony.Connection{
		State:        telephony.Disabled,
		Since:        time.Now(),
		LastError:    errSwitchedOff.Error(),
		LastCause:    errSwitchedOff.Cause(),
		CloseCode:    s.status.CloseCode,
		CloseMeaning: s.status.CloseMeaning,
		CloseCause:   s.status.CloseCause,
	}
}

// waitEnabled waits until the session is enabled, and returns a channel that is closed when that
// changes; nil if ctx ended before.
func (s *Session) waitEnabled(ctx context.Context) (switched <-chan struct{}) {
	for {
		s.mu.Lock()
		switched, enabled := s.switched, s.enabled
		if !enabled && s.status.State != telephony.Disabled {
			s.markDisabled()
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

// connectUntil serves one connection until it ends or the session is disabled.
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

// redialWait returns the wait before the next dial after a number of failures; jitter is in [0, 1).
func redialWait(attempt int, err error, jitter float64) time.Duration {
	var closed *websocket.CloseError
	if errors.As(err, &closed) && !pz.CloseRetriable(closed.Code) {
		return permanentRedialWait
	}
	wait := maxRedialWait
	if attempt < absentAttempts && isAbsent(err) {
		wait = absentRedialWait
	}
	if attempt < 7 { // 0.5 s × 2⁷ is past the minute
		wait = min(minRedialWait<<attempt, wait)
	}
	// Up to half of the wait is random, so that the bridges of a whole town do not reconnect at the
	// same moment.
	return max(minRedialWait, wait/2+time.Duration(jitter*float64(wait/2)))
}

// isAbsent reports whether an attempt failed because no server is at the address: its name is
// unknown, nothing listens there, or no packet gets there.
func isAbsent(err error) bool {
	var failed *net.OpError
	return errors.As(err, &failed) && failed.Op == "dial"
}

// isStarting reports whether the session has begun only startupPatience ago, and has not been
// connected yet.
func (s *Session) isStarting(began time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.hasConnected && time.Since(began) < startupPatience
}

// logAwaited logs once that the server is expected. It is no warning, since a bridge that starts
// before its server is usual.
func (s *Session) logAwaited(err error) {
	if !s.awaited {
		s.awaited = true
		s.opts.Logger.Info("waiting for the Prostie Zvonki server, which does not answer yet",
			"server", s.opts.URL.Host, "reason", err)
	}
}

// connectOnce dials and serves one connection until it ends, and returns why it ended. The error is
// never nil.
func (s *Session) connectOnce(ctx context.Context) error {
	s.updateStatus(func(c *telephony.Connection) { c.State = telephony.Connecting })
	if s.opts.Twin != nil {
		s.opts.Twin.Joining(ctx)
	}
	socket, err := Dial(ctx, DialOptions{
		URL:         s.opts.URL,
		TLS:         s.opts.TLS,
		Identity:    s.opts.Identity,
		DialContext: s.opts.DialContext,
	})
	if err != nil {
		return err
	}
	c := newConn(socket)
	if s.opts.Twin != nil {
		c.pairWith(s.opts.Twin)
	}
	var helpers sync.WaitGroup
	helpers.Go(c.write)
	helpers.Go(func() { s.identify(ctx, c) })
	helpers.Go(func() {
		select {
		case <-ctx.Done():
			s.clearLive()
			c.Hangup(c.gone, min(2*time.Second, s.opts.Grace/2))
		case <-c.gone:
		}
	})
	err = c.read(func(m Message) { s.receive(c, m) })
	c.end()
	helpers.Wait()
	s.clearLive()
	return err
}

// clearLive lets no more commands begin on the connection.
func (s *Session) clearLive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live != nil {
		s.live, s.up = nil, make(chan struct{})
	}
}

// identify requests the server's version and marks the connection as made. A server that refuses
// the password accepts the handshake and closes right after, so the connection counts as made only
// once a message was read. A message also reveals the server's form; a command in the other form
// would be ignored.
func (s *Session) identify(ctx context.Context, c *conn) {
	patience, cancel := context.WithTimeout(context.Background(), identifyTimeout)
	defer cancel()
	resp, err := c.requestEither(patience, pz.Request{Method: pz.MethodGetVersion, ID: s.nextID()})
	if err != nil && patience.Err() == nil {
		return // the connection has ended
	}
	select {
	case <-c.detected:
	default:
		s.reportSilence()
		select {
		case <-c.detected:
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

// reportSilence sets and logs the error of a server that accepts the connection and sends nothing.
func (s *Session) reportSilence() {
	s.updateStatus(func(c *telephony.Connection) {
		if c.State == telephony.Connecting {
			c.LastError, c.LastCause, c.EndedByClose = errSilentServer.Error(), errSilentServer.Cause(), false
		}
	})
	s.opts.Logger.Warn("the Prostie Zvonki server lets the bridge in and says nothing", "err", errSilentServer)
}

var (
	// errSilentServer means that the peer accepts the connection and sends nothing.
	errSilentServer = &telephony.Fault{
		Code: telephony.CodeUnidentified,
		Args: []string{identifyTimeout.String()},
		Text: fmt.Sprintf("it has not answered within %s, in base64 or as XML", identifyTimeout),
	}
	// errStopping means that Run ends.
	errStopping = &telephony.Fault{Code: telephony.CodeStopping, Text: "the bridge is shutting down"}
	// errSwitchedOff means that the session is disabled.
	errSwitchedOff = &telephony.Fault{
		Code: telephony.CodeSwitchedOff,
		Text: "it was switched off, on the dashboard or with PUT /v1/connection",
	}
)

// connected makes a connection the live one, for commands, unless the session gives it up.
func (s *Session) connected(ctx context.Context, c *conn, version string) {
	s.mu.Lock()
	if ctx.Err() != nil || !s.enabled {
		s.mu.Unlock()
		return
	}
	s.live, s.hasConnected = c, true
	close(s.up)
	s.status = telephony.Connection{
		State:         telephony.Connected,
		Since:         time.Now(),
		ServerVersion: version,
		Form:          c.Spoken().String(),
		FormOfAddress: c.expected.String(),
		CloseCode:     s.status.CloseCode,
		CloseMeaning:  s.status.CloseMeaning,
		CloseCause:    s.status.CloseCause,
	}
	s.mu.Unlock()
	s.intake.enqueueOperational(telephony.Event{Type: telephony.EventConnected})
	s.opts.Logger.Info("connected to the Prostie Zvonki server",
		"server", s.opts.URL.Host, "version", version, "form", c.Spoken().String(), "failures", s.failures.Reset())
}

// disconnected sets the status after a connection or an attempt has ended, and announces its loss.
func (s *Session) disconnected(err error, wait time.Duration) {
	s.updateStatus(func(c *telephony.Connection) {
		if c.State == telephony.Connected {
			c.Since = time.Now()
			s.intake.enqueueOperational(telephony.Event{Type: telephony.EventDisconnected, Reason: s.opts.Explain(err)})
		}
		c.State, c.DialsAt = telephony.Disconnected, time.Now().Add(wait)
		c.LastError, c.LastCause = err.Error(), telephony.CauseOf(err)
		var closed *websocket.CloseError
		if c.EndedByClose = errors.As(err, &closed); c.EndedByClose {
			c.CloseCode, c.CloseMeaning = closed.Code, pz.CloseMeaning(closed.Code)
			c.CloseCause = closeCause(closed.Code)
		}
	})
}

func (s *Session) updateStatus(change func(*telephony.Connection)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// Connection returns the state of the connection now.
func (s *Session) Connection() telephony.Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// WaitConnected waits until there is a connection. It fails with ctx's error, or with
// telephony.ErrNotConnected once Run has ended.
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

// receive dispatches the parts of one message: responses to the requests that wait for them, events
// to the intake.
func (s *Session) receive(c *conn, m Message) {
	if errors.Is(m.Err, errLongMessage) {
		start := firstRunes(string(m.Payload[:1024]), maxShown)
		s.opts.Logger.Warn(errLongMessage.Error(), "starts_with", start)
		return
	}
	if m.Err == nil && len(m.Doc) == 0 {
		return // only a NUL or white space: some servers keep the connection alive with it
	}
	var events []pz.Event
	var responses []pz.Response
	payload, err := m.Payload, m.Err
	if err == nil {
		payload = m.Doc
		events, responses, err = pz.ParseServerMessage(m.Doc)
	}
	if err != nil {
		s.logUnreadable(err, payload, len(events)+len(responses) > 0)
	}
	for _, r := range responses {
		if !c.deliver(r) {
			s.opts.Logger.Debug("a response without a waiting request", "request_id", r.RequestID, "code", r.Code)
		}
	}
	at := time.Now()
	if since, late := c.DelayedSince(); late {
		at = since
	}
	for _, e := range events {
		s.intake.put(e, at)
	}
}

// logUnreadable logs a frame of which all, or a part, could not be parsed. It writes at most 10
// lines in 30 s, so that a server that sends many such frames does not fill the log.
func (s *Session) logUnreadable(err error, payload []byte, inPart bool) {
	const period, maxLines = 30 * time.Second, 10
	s.unreadable++
	if now := time.Now(); now.Sub(s.unreadableSince) >= period {
		s.unreadableSince, s.unreadableLines = now, 0
	}
	if s.unreadableLines == maxLines {
		return
	}
	s.unreadableLines++
	args := []any{
		"err", firstRunes(err.Error(), maxShown),
		"frame", firstRunes(string(payload), maxShown),
		"frames", s.unreadable,
	}
	s.unreadable = 0
	if inPart {
		s.opts.Logger.Warn("a part of a frame could not be read and is left out", args...)
		return
	}
	s.opts.Logger.Warn("a frame could not be read and is left out", args...)
}

// maxShown bounds a quotation of the server's data in logs and errors, in characters.
const maxShown = 200

// firstRunes returns the first n characters of a text.
func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// Do sends a command and waits for the server's response until ctx ends. Nil means that the server
// has executed it. It fails with a *telephony.RefusedError, or with telephony.ErrNotConnected,
// ErrOutboxFull, ErrNotSent or ErrNoAnswer.
func (s *Session) Do(ctx context.Context, cmd telephony.Command) error {
	err := s.do(ctx, cmd)
	s.opts.Observer.CommandEnded(cmd.Kind, commandOutcome(err))
	return err
}

// commandOutcome returns the word for how a command has ended.
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

// refusal returns the error of a response that refuses a command. The response may be of any
// length, and the error goes to the log and to the caller, so it is shortened.
func refusal(resp pz.Response) error {
	return &telephony.RefusedError{Code: firstRunes(resp.Code, maxShown), Details: firstRunes(resp.Details, maxShown)}
}

func wireRequest(cmd telephony.Command) pz.Request {
	switch cmd.Kind {
	case telephony.CommandCall:
		return pz.Request{Method: pz.MethodCall, Data: pz.Attrs{
			{Name: "From", Value: cmd.From},
			{Name: "To", Value: cmd.To},
		}}
	case telephony.CommandTransfer:
		return pz.Request{Method: pz.MethodTransfer, Data: pz.Attrs{
			{Name: "CallID", Value: cmd.CallID},
			{Name: "To", Value: cmd.To},
		}}
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

// nextID returns an unused request ID.
func (s *Session) nextID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	return strconv.FormatUint(uint64(s.lastID), 10)
}
