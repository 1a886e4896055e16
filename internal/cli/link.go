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
	// responseTimeout bounds the wait for a response.
	responseTimeout = 10 * time.Second
	// otherCodecAfter is the wait for a response before the console tries the other codec.
	otherCodecAfter = 2 * time.Second
	// websocketNormal is the close code "normal closure" (RFC 6455, 7.4.1).
	websocketNormal = 1000
)

// link is the connection of a command to a server. One goroutine reads from it.
type link struct {
	socket *relay.Socket
	done   chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	codec   pz.Codec // for requests
	lastID  int
	pending map[string]chan pz.Response
	open    bool // the server has accepted the client, and close was not called
}

// dialLink is openLink with the address that a person has typed. The console is a diagnostic tool
// and accepts any certificate, as the vendor's does.
func dialLink(
	ctx context.Context, address string, id pz.Identity, onEvent func(pz.Event), onEnd func(error),
) (*link, error) {
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
	return openLink(ctx, relay.DialOptions{URL: u, TLS: anyCertificate(), Identity: id}, onEvent, onEnd)
}

// openLink connects to a server and waits for the server's version, because the server refuses a
// wrong password only after the handshake. It calls onEvent for each event, and onEnd when the
// connection ends without a call of close.
func openLink(ctx context.Context, o relay.DialOptions, onEvent func(pz.Event), onEnd func(error)) (*link, error) {
	socket, err := relay.Dial(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", o.URL.Host, err)
	}
	l := &link{
		socket:  socket,
		done:    make(chan struct{}),
		codec:   pz.CodecFor(o.URL.Scheme),
		pending: map[string]chan pz.Response{},
	}
	readResult := make(chan error, 1)
	go func() {
		err := l.read(onEvent)
		close(l.done)
		readResult <- err
		l.mu.Lock()
		wasOpen := l.open
		l.mu.Unlock()
		if wasOpen {
			onEnd(err)
		}
	}()
	if err := l.identify(ctx); err != nil {
		l.close()
		select {
		case readErr := <-readResult:
			if relay.CloseCode(readErr) != websocketNormal { // not the reply to our own close
				err = readErr
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

// identify requests the server's version with the codec that goes with its address, and after
// otherCodecAfter without a response with the other codec, because a proxy may add or remove TLS.
// A response to either request is enough.
func (l *link) identify(ctx context.Context) error {
	req, answer := l.newRequest(pz.MethodGetVersion, nil)
	if err := l.write(req); err != nil {
		return err
	}
	timer := time.NewTimer(otherCodecAfter)
	defer timer.Stop()
	select {
	case <-answer:
		return nil
	case <-l.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
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

// read passes events to onEvent and responses to their requests, until the connection ends.
func (l *link) read(onEvent func(pz.Event)) error {
	return l.socket.Read(func(m relay.Message) {
		events, responses, _ := pz.ParseServerMessage(m.Doc) // what is readable, despite an error
		for _, e := range events {
			onEvent(e)
		}
		for _, r := range responses {
			l.mu.Lock()
			answer, ok := l.pending[r.RequestID]
			delete(l.pending, r.RequestID)
			l.mu.Unlock()
			if ok {
				answer <- r
			}
		}
	}, l.pong)
}

// pong replies to a ping.
func (l *link) pong(payload []byte) { _ = l.socket.Pong(payload, time.Now().Add(time.Second)) }

// request sends a request and waits for its response.
func (l *link) request(ctx context.Context, method string, data pz.Attrs) (pz.Response, error) {
	req, answer := l.newRequest(method, data)
	if err := l.write(req); err != nil {
		return pz.Response{}, err
	}
	return l.await(ctx, answer)
}

// newRequest makes a request and registers the channel for its response.
func (l *link) newRequest(method string, data pz.Attrs) (req pz.Request, answer chan pz.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastID++
	req = pz.Request{Method: method, ID: strconv.Itoa(l.lastID), Data: data}
	answer = make(chan pz.Response, 1)
	l.pending[req.ID] = answer
	return req, answer
}

// write sends a request with the codec of the server's messages, once there is one.
func (l *link) write(req pz.Request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if serverCodec := l.socket.Spoken(); serverCodec != pz.UnknownCodec {
		l.codec = serverCodec
	}
	return l.socket.Write(req.XML(), l.codec, time.Now().Add(responseTimeout))
}

// errEnded means that the connection has ended.
var errEnded = errors.New("the connection has ended")

func (l *link) await(ctx context.Context, answer <-chan pz.Response) (pz.Response, error) {
	timeUp := time.NewTimer(responseTimeout)
	defer timeUp.Stop()
	select {
	case resp := <-answer:
		return resp, nil
	case <-l.done:
		return pz.Response{}, errEnded
	case <-timeUp.C:
		return pz.Response{}, fmt.Errorf("the server does not answer within %s", responseTimeout)
	case <-ctx.Done():
		return pz.Response{}, ctx.Err()
	}
}

func (l *link) close() {
	l.mu.Lock()
	l.open = false
	l.mu.Unlock()
	l.socket.Hangup(l.done, time.Second)
}
