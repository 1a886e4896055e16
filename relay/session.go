package relay

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

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

	dialTimeout = 15 * time.Second
	// identifyTimeout is how long a server may take to say its version before it is taken for one that does not tell.
	identifyTimeout = 5 * time.Second
)

// Session is one connection to one server, redialled for ever. Run keeps it, Do sends commands through it.
type Session struct {
	opts    Options
	codec   pz.Codec
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
	if opts.DialContext == nil {
		opts.DialContext = (&net.Dialer{}).DialContext
	}
	s := &Session{
		opts: opts, codec: pz.Base64, intake: newIntake(opts),
		trouble: repeat.New(opts.Logger),
		status:  telephony.Connection{State: telephony.Disconnected, Since: time.Now()},
		// A server answers what it cannot parse with some ID; to start somewhere keeps such noise away from our own.
		lastID: rand.Uint32N(1 << 30),
		up:     make(chan struct{}), ended: make(chan struct{}),
		enabled: !opts.Disabled, switched: make(chan struct{}), dialNow: make(chan struct{}, 1),
	}
	if opts.URL.Scheme == "wss" {
		s.codec = pz.Plain
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
	if errors.As(err, &closed) && !pz.CloseHelpsSoon(closed.Code) {
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
	ws, err := s.dial(ctx)
	if err != nil {
		return err
	}
	c := newConn(ws, s.codec)
	var helpers sync.WaitGroup
	helpers.Go(c.write)
	helpers.Go(func() { s.identify(ctx, c) })
	helpers.Go(func() {
		select {
		case <-ctx.Done():
			s.notLive()
			c.goodbye(min(2*time.Second, s.opts.Grace/2))
		case <-c.gone:
		}
	})
	err = c.read(func(payload []byte) { s.receive(c, payload) }, s.opts.Logger)
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

func (s *Session) dial(ctx context.Context) (*websocket.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stop := func() bool { return true }
	dialer := websocket.Dialer{
		TLSClientConfig: s.opts.TLS, HandshakeTimeout: dialTimeout,
		NetDialContext: func(dialing context.Context, network, address string) (net.Conn, error) {
			c, err := s.opts.DialContext(dialing, network, address)
			if err == nil { // the library waits for the answer to its handshake also when ctx has ended
				stop = context.AfterFunc(ctx, func() { _ = c.Close() })
			}
			return c, err
		},
	}
	u := *s.opts.URL
	u.Path = "/"
	u.RawQuery = s.opts.Identity.Query()
	ws, resp, err := dialer.DialContext(limited, u.String(), nil)
	stop()
	if resp != nil {
		_ = resp.Body.Close()
	}
	switch {
	case errors.Is(err, websocket.ErrBadHandshake) && resp.StatusCode == http.StatusForbidden:
		return nil, errors.New("the server refused the handshake with HTTP 403: check PZ_PASSWORD, and that PZ_URL is a Prostie Zvonki server")
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, fmt.Errorf("the server answered the handshake with HTTP %d: check that PZ_URL is a Prostie Zvonki server", resp.StatusCode)
	case err != nil:
		return nil, dialError(s.opts.URL, s.opts.Identity.HideIn(err))
	}
	return ws, nil
}

// dialError says what to do about a connection that did not come to be, where that can be told.
func dialError(u *url.URL, err error) error {
	var untrusted *tls.CertificateVerificationError
	var refused *net.OpError
	switch {
	case errors.As(err, &untrusted):
		sum := sha256.Sum256(untrusted.UnverifiedCertificates[0].Raw)
		return fmt.Errorf("%w: name its CA in PZ_TLS_CA_FILE or, if the certificate is really that server's, set PZ_TLS_FINGERPRINT=%x", err, sum)
	case errors.Is(err, pz.ErrNoHTTP):
		return fmt.Errorf("%w: check that PZ_URL is a Prostie Zvonki server", err)
	case strings.Contains(err.Error(), "protocol version"), strings.Contains(err.Error(), "handshake failure"):
		return fmt.Errorf("%w: an old connector needs PZ_TLS_FINGERPRINT and PZ_TLS_LEGACY=true", err)
	case u.Scheme == "ws" && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)):
		return fmt.Errorf("dial %s: %w: if the server speaks TLS, use wss:// in PZ_URL", u.Host, err)
	case errors.As(err, &refused): // it names the host
		return err
	}
	return fmt.Errorf("dial %s: %w", u.Host, err)
}

// identify asks the server for its version. A server with a wrong password accepts the handshake and closes right after, so the
// connection counts as made only when the server has answered something, or stayed for identifyTimeout.
func (s *Session) identify(ctx context.Context, c *conn) {
	patience, cancel := context.WithTimeout(context.Background(), identifyTimeout)
	defer cancel()
	resp, err := s.request(patience, c, pz.Request{Method: pz.MethodGetVersion})
	if err != nil && patience.Err() == nil {
		return // the connection has ended
	}
	select {
	case <-c.gone:
	default:
		s.connected(ctx, c, resp.Version)
	}
}

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
		CloseCode: s.status.CloseCode, CloseMeaning: s.status.CloseMeaning,
	}
	s.mu.Unlock()
	s.intake.announce(telephony.Event{Type: telephony.EventConnected})
	s.opts.Logger.Info("connected to the Prostie Zvonki server",
		"server", s.opts.URL.Host, "version", version, "failures", s.trouble.Reset())
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
func (s *Session) receive(c *conn, payload []byte) {
	doc, err := s.codec.Unpack(payload)
	if err == nil && len(doc) == 0 {
		return // nothing but a NUL or white space: some servers keep a line alive with it
	}
	var events []pz.Event
	var responses []pz.Response
	if err == nil {
		events, responses, err = pz.ParseServerMessage(doc)
	}
	if err != nil {
		if doc != nil {
			payload = doc
		}
		s.tellUnread(err, payload, len(events)+len(responses) > 0)
	}
	for _, r := range responses {
		if !c.answered(r) {
			s.opts.Logger.Debug("a response that nobody waits for", "request_id", r.RequestID, "code", r.Code)
		}
	}
	for _, e := range events {
		s.intake.put(e)
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
	resp, err := s.request(ctx, c, wireRequest(cmd))
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

// request gives the request an ID of its own, writes it and waits for the response of that ID.
func (s *Session) request(ctx context.Context, c *conn, req pz.Request) (pz.Response, error) {
	s.mu.Lock()
	s.lastID++
	req.ID = strconv.FormatUint(uint64(s.lastID), 10)
	s.mu.Unlock()
	return c.request(ctx, req)
}
