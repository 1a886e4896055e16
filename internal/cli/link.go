package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/config"
	"pzbridge/internal/pz"
)

// answerIn is how long the console waits for an answer.
const answerIn = 10 * time.Second

// link is the console's connection to a server. One goroutine reads it.
type link struct {
	ws    *websocket.Conn
	codec pz.Codec
	gone  chan struct{} // closed when it has ended

	mu      sync.Mutex
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
	u.Path = "/"
	u.RawQuery = id.Query()
	// A console for trying things out takes whatever certificate there is, as the vendor's does.
	dialer := websocket.Dialer{HandshakeTimeout: answerIn, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS10,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
		},
	}}
	ws, resp, err := dialer.DialContext(ctx, u.String(), nil)
	if resp != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", u.Host, id.HideIn(err))
	}
	l := &link{ws: ws, codec: pz.Base64, gone: make(chan struct{}), waiting: map[string]chan pz.Response{}}
	if u.Scheme == "wss" {
		l.codec = pz.Plain
	}
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
	if _, err := l.request(ctx, pz.MethodGetVersion, nil); err != nil {
		l.close()
		select {
		case err = <-first:
		case <-time.After(time.Second):
		}
		return nil, err
	}
	l.mu.Lock()
	l.open = true
	l.mu.Unlock()
	return l, nil
}

func (l *link) read(event func(pz.Event)) error {
	l.ws.SetReadLimit(pz.MaxMessage)
	for {
		_, payload, err := l.ws.ReadMessage()
		var closed *websocket.CloseError
		switch {
		case errors.As(err, &closed):
			return fmt.Errorf("closed with code %d: %s", closed.Code, pz.CloseMeaning(closed.Code))
		case err != nil:
			return err
		}
		doc, err := l.codec.Unpack(payload)
		if err != nil {
			continue
		}
		events, responses, _ := pz.ParseServerMessage(doc) // what could be read of it
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
	}
}

// request asks the server and waits for its answer.
func (l *link) request(ctx context.Context, method string, data pz.Attrs) (pz.Response, error) {
	answer := make(chan pz.Response, 1)
	l.mu.Lock()
	l.lastID++
	req := pz.Request{Method: method, ID: strconv.Itoa(l.lastID), Data: data}
	l.waiting[req.ID] = answer
	_ = l.ws.SetWriteDeadline(time.Now().Add(answerIn))
	err := l.ws.WriteMessage(websocket.TextMessage, l.codec.Pack(req.XML()))
	l.mu.Unlock()
	if err != nil {
		return pz.Response{}, err
	}
	timeUp := time.NewTimer(answerIn)
	defer timeUp.Stop()
	select {
	case resp := <-answer:
		return resp, nil
	case <-l.gone:
		return pz.Response{}, errors.New("the connection has ended")
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
	frame := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = l.ws.WriteControl(websocket.CloseMessage, frame, time.Now().Add(time.Second))
	select {
	case <-l.gone:
	case <-time.After(time.Second):
	}
	_ = l.ws.Close()
}
