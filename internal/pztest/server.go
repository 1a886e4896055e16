// Package pztest is a Prostie Zvonki server to test against, in the manner of net/http/httptest. It
// implements the protocol as observed on the vendor's test server v1.1.2, keeps the events that a
// client misses, and accepts the same requests. `pzbridge simulate` and `pzbridge demo` run it,
// too.
package pztest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
)

// pingPeriod and pingPayload are those of the vendor's server.
const (
	pingPeriod  = 30 * time.Second
	pingPayload = "server ping string"
)

// Options configures a server. The zero value is a server without a password, over ws, that no
// client has connected to yet.
type Options struct {
	Password string      // empty accepts any
	TLS      *tls.Config // nil serves ws; ModernTLS and LegacyTLS make one for wss
	History  []pz.Event  // finished calls and SMS statuses that every client has missed so far
	Refuse   int         // close code for every new connection; 0 accepts them
	Licences int         // how many clients may be connected at a time; 0 is no limit
	NoPings  bool        // do not ping the clients
	Codec    pz.Codec    // set it as behind a proxy that adds or removes TLS; UnknownCodec follows TLS

	// Vary returns what a client gets of an event, and false if it gets none; clients are numbered
	// from 0 by their first connection. Nil: all get the same.
	Vary func(client int, e pz.Event) (varied pz.Event, isSent bool)

	// Log receives one line per client request, as in the vendor's server's log. May be nil.
	Log func(line string)
	// Debug receives every frame in its decoded form. May be nil.
	Debug func(line string)
}

// Server is a simulated Prostie Zvonki server. After Close it may be started again: it remembers
// clients and calls, as the real one does.
type Server struct {
	URL string // where NewServer's server listens: ws://… or wss://…

	opts     Options
	handlers sync.WaitGroup

	mu       sync.Mutex
	http     *http.Server // nil while stopped
	links    map[*link]bool
	clients  []*client // one per GUID, connected or not, in order of their first connection
	history  []*missable
	requests []pz.Request
	lastID   uint64
	simulate *simulation // nil while off
}

// missable is an event that the server keeps for clients that are not connected.
type missable struct {
	event pz.Event
	sent  map[string]bool // by GUID
}

// New returns a server that does not listen yet.
func New(opts Options) *Server {
	s := &Server{opts: opts, links: map[*link]bool{}, lastID: uint64(time.Now().UnixMicro())}
	for _, e := range opts.History {
		s.history = append(s.history, &missable{event: e, sent: map[string]bool{}})
	}
	return s
}

// NewServer starts a server on a free port of the loopback address, and panics if it cannot. The
// caller must Close it.
func NewServer(opts Options) *Server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(fmt.Sprintf("pztest: listen on loopback: %v", err))
	}
	s := New(opts)
	s.URL = s.scheme() + "://" + l.Addr().String()
	s.Start(l)
	return s
}

func (s *Server) scheme() string {
	if s.opts.TLS != nil {
		return "wss"
	}
	return "ws"
}

// Start serves the listener until Close, and owns it from then on.
func (s *Server) Start(l net.Listener) {
	if s.opts.TLS != nil {
		l = tls.NewListener(l, s.opts.TLS)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          stdlog.New(lineWriter(s.log), "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, headKey{}, c)
		},
	}
	s.http.SetKeepAlivesEnabled(false) // headConn keeps one head per connection
	server := s.http
	s.handlers.Go(func() { _ = server.Serve(headListener{l, s.log}) })
}

// Close stops listening, breaks every connection and waits until all goroutines of the server have
// ended.
func (s *Server) Close() {
	s.mu.Lock()
	if s.http != nil {
		_ = s.http.Close()
		s.http = nil
	}
	for l := range s.links {
		_ = l.conn.Close()
	}
	s.stopSimulation()
	s.mu.Unlock()
	s.handlers.Wait()
}

// Fingerprint returns the SHA-256 of the certificate in hexadecimal; empty over ws.
func (s *Server) Fingerprint() string {
	if s.opts.TLS == nil {
		return ""
	}
	sum := sha256.Sum256(s.opts.TLS.Certificates[0].Certificate[0])
	return hex.EncodeToString(sum[:])
}

// Certificate returns the server's certificate for wss. It is self-signed, so it is its own CA.
func (s *Server) Certificate() *x509.Certificate {
	cert, err := x509.ParseCertificate(s.opts.TLS.Certificates[0].Certificate[0])
	if err != nil {
		panic(fmt.Sprintf("pztest: parse its own certificate: %v", err))
	}
	return cert
}

// Requests returns the clients' requests so far in order, without GetVersion and GetClients.
func (s *Server) Requests() []pz.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Connected returns the number of clients that are connected now.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.clients {
		if c.link != nil {
			n++
		}
	}
	return n
}

// Disconnect closes every connection with a close code and a reason, which may be in any encoding
// and at most 123 bytes long.
func (s *Server) Disconnect(code int, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clients {
		c.send(outgoing{closeCode: code, payload: []byte(reason)})
	}
}

// EmitRaw sends a payload to every client without packing it, for frames that no healthy server
// sends.
func (s *Server) EmitRaw(payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clients {
		c.send(outgoing{payload: payload})
	}
}

// emit sends an event to the client of a GUID ("*" or "" for all), if its mask or phone number
// selects the event. The caller holds mu.
func (s *Server) emit(e pz.Event, guid string) {
	var kept *missable
	if t, _ := e.Attrs.Lookup(pz.AttrType); t == pz.TypeCompleted || t == pz.TypeSMSStatus {
		kept = &missable{event: e, sent: map[string]bool{}}
		s.history = append(s.history, kept)
	}
	payload := s.packEvent(e)
	for i, c := range s.clients {
		if c.link == nil || !sees(c.identity, e) || guid != "*" && guid != "" && guid != c.identity.GUID {
			continue
		}
		if s.opts.Vary != nil {
			varied, isSent := s.opts.Vary(i, e)
			if !isSent {
				continue
			}
			payload = s.packEvent(varied)
		}
		c.send(outgoing{payload: payload, missable: kept})
	}
}

// replay sends a client the events that were never sent to its GUID. The caller holds mu.
func (s *Server) replay(c *client) {
	var missed []*missable
	for _, m := range s.history {
		if !m.sent[c.identity.GUID] && sees(c.identity, m.event) {
			missed = append(missed, m)
		}
	}
	for i, m := range missed {
		e := with(m.event, pz.AttrMissed, "1")
		if i == len(missed)-1 {
			e = with(e, pz.AttrMissedFinal, "1")
		}
		c.send(outgoing{payload: s.packEvent(e), missable: m})
	}
}

// sees reports whether an event goes to a client: type 1 goes to everyone; any other type goes to
// the phone numbers that it names and to the clients whose mask has its bit.
func sees(id pz.Identity, e pz.Event) bool {
	t := e.Attrs.Get(pz.AttrType)
	if t == pz.TypeTransferRequested {
		return true
	}
	if p := id.PhoneNumber; p != "" && (p == e.Attrs.Get("from") || p == e.Attrs.Get("to")) {
		return true
	}
	bit, err := strconv.ParseUint(t, 10, 32)
	return err == nil && id.EventsMask&uint32(bit) != 0
}

func (s *Server) codec() pz.Codec {
	if s.opts.Codec != pz.UnknownCodec {
		return s.opts.Codec
	}
	return pz.CodecFor(s.scheme())
}

func (s *Server) packEvent(e pz.Event) []byte {
	xml := e.XML()
	if s.opts.Debug != nil {
		s.debug("-> " + string(xml))
	}
	if s.codec() == pz.Plain {
		xml = append(xml, 0)
	}
	return s.codec().Pack(xml)
}

func (s *Server) log(format string, args ...any) {
	if s.opts.Log != nil {
		s.opts.Log(fmt.Sprintf(format, args...))
	}
}

// lineWriter adapts a log function to io.Writer.
type lineWriter func(format string, args ...any)

func (w lineWriter) Write(p []byte) (int, error) {
	w("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func (s *Server) debug(line string) {
	if s.opts.Debug != nil {
		s.opts.Debug(strings.TrimRight(line, "\n"))
	}
}

// upgrader accepts any Origin: the vendor's clients send none, and a browser that runs a CRM sends
// its own.
var upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}

// ServeHTTP handles the handshake, and the connection until it ends.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.handlers.Add(1)
	defer s.handlers.Done()
	client := pz.ReadIntroduction(r.URL.RawQuery, headers(r.Context()))
	refusal := s.refusal(client)
	if refusal != 0 {
		s.log("Client refused: GUID = %s, code = %d", client.GUID, refusal)
	}
	if refusal != 0 && client.Protocol < 2 {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has sent the error
	}
	l := newLink(conn, !s.opts.NoPings, func(m *missable) {
		s.mu.Lock()
		defer s.mu.Unlock()
		m.sent[client.GUID] = true
	})
	if !s.add(l) {
		_ = conn.Close()
		return // Close was called meanwhile
	}
	defer s.remove(l)
	var writer sync.WaitGroup
	writer.Go(l.write)
	defer writer.Wait()
	defer l.end()

	if refusal != 0 {
		l.send(outgoing{closeCode: refusal, payload: []byte(reasons[refusal])})
	} else {
		c := s.join(client.Identity, r.RemoteAddr, l)
		defer s.leave(c, l)
	}
	l.read(func(payload []byte) { s.receive(l, payload) })
}

// reasons gives the observed reason texts of close codes.
var reasons = map[int]string{pz.CloseInvalidPassword: "Invalid password", pz.CloseSameGUID: "Same GUID"}

// refusal returns the close code with which a client is refused, 0 if it is accepted. A client of
// protocol 1 gets HTTP 403 instead, whatever the code.
func (s *Server) refusal(client pz.Introduction) int {
	switch {
	case s.opts.Password != "" && client.Packed != pz.PackPassword(s.opts.Password):
		return pz.CloseInvalidPassword
	case !client.HasType:
		return pz.CloseLicenceClient
	case s.opts.Licences > 0 && s.Connected() >= s.opts.Licences:
		return pz.CloseTooManyUsers
	}
	return s.opts.Refuse
}

// add registers a link for Close. It returns false if the server is closed.
func (s *Server) add(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[l] = true
	return s.http != nil
}

func (s *Server) remove(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
}

// join makes the connection the current one of its GUID; an older connection of the same GUID is
// closed.
func (s *Server) join(id pz.Identity, remote string, l *link) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	i := slices.IndexFunc(s.clients, func(c *client) bool { return c.identity.GUID == id.GUID })
	if i < 0 {
		i = len(s.clients)
		s.clients = append(s.clients, &client{})
	}
	c := s.clients[i]
	c.send(outgoing{closeCode: pz.CloseSameGUID, payload: []byte(reasons[pz.CloseSameGUID])})
	c.identity, c.ip, c.link = id, host, l
	s.log("Client connected: type = %s, GUID = %s, ip = %s", id.ClientType, id.GUID, host)
	s.replay(c)
	return c
}

func (s *Server) leave(c *client, l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.link == l {
		c.link = nil
		s.log("Client disconnected: GUID = %s", c.identity.GUID)
	}
}

// receive handles one frame of a client, and ignores a frame in the other form. The event that a
// request causes goes out before its response.
func (s *Server) receive(l *link, payload []byte) {
	doc, codec, err := pz.Unpack(payload)
	if err != nil || codec != s.codec() {
		return
	}
	s.debug("<- " + string(doc))
	req, err := pz.ParseRequest(doc)
	resp := pz.Response{Code: pz.CodeError, RequestID: invalidRequestID}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		resp = s.answer(req)
		resp.RequestID = req.ID
	}
	xml := resp.XML()
	if s.opts.Debug != nil {
		s.debug("-> " + string(xml))
	}
	l.send(outgoing{payload: codec.Pack(xml)})
}

// invalidRequestID is the request ID in the response to a frame that is no request.
const invalidRequestID = "3435973836"

// client is a GUID that has connected at least once, and its current connection if it has one. The
// server's mu guards it.
type client struct {
	identity pz.Identity
	ip       string
	link     *link
}

func (c *client) send(o outgoing) {
	if c.link != nil {
		c.link.send(o)
	}
}

// link is one socket. One goroutine reads it, another writes it; outgoing messages wait in an
// unbounded queue, so that a client that does not read holds up no other.
type link struct {
	conn  *websocket.Conn
	pings bool
	wake  chan struct{} // the queue is not empty
	done  chan struct{} // the reader has ended
	sent  func(*missable)

	mu    sync.Mutex
	queue []outgoing
}

// outgoing is a message to write or, with a close code, the end of the connection; the payload is
// then the reason, of 123 bytes at most.
type outgoing struct {
	payload   []byte
	closeCode int
	missable  *missable // the event in it, if that counts as missed until it is written
}

func newLink(conn *websocket.Conn, pings bool, sent func(*missable)) *link {
	conn.SetReadLimit(pz.MaxMessage)
	return &link{
		conn:  conn,
		pings: pings,
		sent:  sent,
		wake:  make(chan struct{}, 1),
		done:  make(chan struct{}),
	}
}

func (l *link) send(o outgoing) {
	l.mu.Lock()
	l.queue = append(l.queue, o)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *link) take() []outgoing {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.queue
	l.queue = nil
	return queue
}

func (l *link) read(each func([]byte)) {
	for {
		_, payload, err := l.conn.ReadMessage()
		if err != nil {
			return
		}
		each(payload)
	}
}

// write sends pings and queued messages until the reader has ended, writing fails, or a close frame
// is written; after a close frame the socket stays open for up to a second, so that the frame is
// not lost in a reset.
func (l *link) write() {
	ping := time.NewTicker(pingPeriod)
	defer ping.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-ping.C:
			if !l.pings {
				continue
			}
			_ = l.conn.WriteControl(websocket.PingMessage, []byte(pingPayload), time.Now().Add(pingPeriod))
		case <-l.wake:
			for _, o := range l.take() {
				if o.closeCode != 0 {
					frame := websocket.FormatCloseMessage(o.closeCode, string(o.payload))
					_ = l.conn.WriteControl(websocket.CloseMessage, frame, time.Now().Add(time.Second))
					_ = l.conn.SetReadDeadline(time.Now().Add(time.Second))
					return
				}
				if err := l.conn.WriteMessage(websocket.TextMessage, o.payload); err != nil {
					_ = l.conn.Close()
					return
				}
				if o.missable != nil {
					l.sent(o.missable)
				}
			}
		}
	}
}

func (l *link) end() {
	close(l.done)
	_ = l.conn.Close()
}
