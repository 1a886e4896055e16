package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"pzbridge/internal/config"
	"pzbridge/internal/pz"
	"pzbridge/relay"
)

const (
	// answerIn is how long the console waits for an answer.
	answerIn = 10 * time.Second
	// otherFormIn is after how long without one it tries the other form.
	otherFormIn = 2 * time.Second
	// websocketNormal is the code of a close that nothing is wrong with (RFC 6455, 7.4.1).
	websocketNormal = 1000
)

// link is the console's connection to a server. One goroutine reads it.
type link struct {
	socket *relay.Socket
	gone   chan struct{} // closed when it has ended

	mu      sync.Mutex
	codec   pz.Codec // to write in
	lastID  int
	waiting map[string]chan pz.Response
	open    bool // the server has let the client in, and nobody has hung up
}

// dialLink connects. Event is told of each event, ended of the end unless it was wanted. It waits until the server has told its version: a wrong password
// is refused only after the handshake.
func dialLink(ctx context.Context, address string, id pz.Identity, event func(pz.Event), ended func(error)) (*link, error) {
	if !strings.Contains(address, "://") {
		address = "ws://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Hostname() == "" || config.ASCIIHost(u) != nil {
		return nil, errors.New("the address must be such as ws://localhost:10150")
	}
	if u.Port() == "" {
		u.Host += ":" + pz.DefaultPort
	}
	// A console for trying things out takes whatever certificate there is, as the vendor's does.
	socket, err := relay.Dial(ctx, relay.DialOptions{URL: u, TLS: anyCertificate(), Identity: id})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", u.Host, err)
	}
	l := &link{socket: socket, codec: pz.CodecFor(u.Scheme), gone: make(chan struct{}), waiting: map[string]chan pz.Response{}}
	first := make(chan error, 1)
	go func() {
		err := l.read(event)
		close(l.gone)
		first <- err
		l.mu.Lock()
		open := l.open
		l.mu.Unlock()
		if open {
			ended(err)
		}
	}()
	if err := l.identify(ctx); err != nil {
		l.close()
		select {
		case ended := <-first:
			if relay.CloseCode(ended) != websocketNormal { // else it answers our own close
				err = ended
			}
		case <-time.After(time.Second):
		}
		return nil, err
	}
	l.mu.Lock()
	l.open = true
	l.mu.Unlock()
	return l, nil
}

// identify asks for the server's version, in the form that its address lets one expect and, while there
// is no answer, in the other one: a proxy may add or remove TLS. Either answer will do.
func (l *link) identify(ctx context.Context) error {
	req, answer := l.expect(pz.MethodGetVersion, nil)
	if err := l.write(req); err != nil {
		return err
	}
	patience := time.NewTimer(otherFormIn)
	defer patience.Stop()
	select {
	case <-answer:
		return nil
	case <-l.gone:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	case <-patience.C:
	}
	if l.socket.Spoken() == pz.UnknownCodec {
		l.mu.Lock()
		l.codec = l.codec.Other()
		l.mu.Unlock()
		if err := l.write(req); err != nil {
			return err
		}
	}
	_, err := l.await(ctx, answer)
	return err
}

func (l *link) read(event func(pz.Event)) error {
	return l.socket.Read(func(m relay.Message) {
		events, responses, _ := pz.ParseServerMessage(m.Doc) // what could be read of it
		for _, e := range events {
			event(e)
		}
		for _, r := range responses {
			l.mu.Lock()
			answer, ok := l.waiting[r.RequestID]
			delete(l.waiting, r.RequestID)
			l.mu.Unlock()
			if ok {
				answer <- r
			}
		}
	}, l.pong)
}

// pong answers a ping.
func (l *link) pong(payload []byte) { _ = l.socket.Pong(payload, time.Now().Add(time.Second)) }

// request asks the server and waits for its answer.
func (l *link) request(ctx context.Context, method string, data pz.Attrs) (pz.Response, error) {
	req, answer := l.expect(method, data)
	if err := l.write(req); err != nil {
		return pz.Response{}, err
	}
	return l.await(ctx, answer)
}

// expect makes a request, and takes the response to it.
func (l *link) expect(method string, data pz.Attrs) (req pz.Request, answer chan pz.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastID++
	req = pz.Request{Method: method, ID: strconv.Itoa(l.lastID), Data: data}
	answer = make(chan pz.Response, 1)
	l.waiting[req.ID] = answer
	return req, answer
}

// write writes a request in the form that the server speaks, as far as that is known.
func (l *link) write(req pz.Request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if spoken := l.socket.Spoken(); spoken != pz.UnknownCodec {
		l.codec = spoken
	}
	return l.socket.Write(req.XML(), l.codec, time.Now().Add(answerIn))
}

// errEnded means that the connection is no more.
var errEnded = errors.New("the connection has ended")

func (l *link) await(ctx context.Context, answer <-chan pz.Response) (pz.Response, error) {
	timeUp := time.NewTimer(answerIn)
	defer timeUp.Stop()
	select {
	case resp := <-answer:
		return resp, nil
	case <-l.gone:
		return pz.Response{}, errEnded
	case <-timeUp.C:
		return pz.Response{}, fmt.Errorf("the server does not answer within %s", answerIn)
	case <-ctx.Done():
		return pz.Response{}, ctx.Err()
	}
}

func (l *link) close() {
	l.mu.Lock()
	l.open = false
	l.mu.Unlock()
	l.socket.Hangup(l.gone, time.Second)
}
