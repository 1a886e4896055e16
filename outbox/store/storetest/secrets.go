package storetest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
	"pzbridge/outbox/store"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// refuse gives a dial to an address at which nothing listens, and counts in n; n may be nil.
func refuse(n *atomic.Int64) dialFunc {
	return func(context.Context, string, string) (net.Conn, error) {
		if n != nil {
			n.Add(1)
		}
		return nil, errors.New("connection refused")
	}
}

// answerRaw gives a dial to a server that answers the beginning of a request with bytes of its own.
func answerRaw(answer func(request string) string) dialFunc {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			b := make([]byte, 4096)
			n, _ := server.Read(b)
			_, _ = io.WriteString(server, answer(string(b[:n])))
			_ = server.Close()
		}()
		return client, nil
	}
}

// TestNoSecretInTheLog checks that no line of the log shows what stands in an endpoint's address.
func (s suite) TestNoSecretInTheLog(t *testing.T) {
	for name, dial := range map[string]dialFunc{
		"refused": refuse(nil),
		"hangs":   func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
		"broken reply": answerRaw(func(string) string {
			return "HTTP/1.1 302 Found\r\nLocation: http://[t0psecret\r\nContent-Length: 0\r\n\r\n"
		}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log logtest.Buffer
				logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				o := s.open(t, Options{DialContext: dial, Logger: logger})
				stop := RunBox(t, o)
				MustAppend(t, o, Event("call.incoming", "5"))
				time.Sleep(time.Hour)
				stop()
				text := log.String()
				if strings.Contains(text, "t0psecret") || !strings.Contains(text, "attempt failed") {
					t.Errorf("the log:\n%s", text)
				}
			})
		})
	}
}

// TestNoSecretInErrors checks that an answer that cannot be read and repeats the request brings no
// secret into an error.
func (s suite) TestNoSecretInErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logtest.Buffer
		dial := answerRaw(func(request string) string { // which is no HTTP
			line, _, _ := strings.Cut(request, "\r\n")
			return line + "\r\n"
		})
		o := s.open(t, Options{DialContext: dial, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := RunBox(t, o)
		e := Event("call.completed", "5")
		MustAppend(t, o, e)
		time.Sleep(time.Second * 3)
		stop()
		_, attempts, _ := o.Delivery(e.ID + ".crm")
		if len(attempts) == 0 || strings.Contains(attempts[0].Error, "t0psecret") ||
			strings.Contains(log.String(), "t0psecret") {
			t.Errorf("stored: %v\nlog: %s", attempts, log.String())
		}
	})
}

// TestNoBasicAuthInAnswers checks the same of an answer that repeats the header which net/http
// makes of an address's user and password.
func (s suite) TestNoBasicAuthInAnswers(t *testing.T) {
	c := &CRM{Answer: func(_ int, r Received, w http.ResponseWriter) {
		_, _ = io.WriteString(w, "authorization: "+r.Header.Get("Authorization"))
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.URL = "http://bridge:t0psecretpassword@crm.example/hook"
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		ev := Event("call.completed", "5")
		MustAppend(t, o, ev)
		time.Sleep(time.Second)
		stop()
		_, attempts, err := o.Delivery(ev.ID + ".crm")
		if err != nil || len(attempts) != 1 {
			t.Fatalf("attempts: %+v, %v", attempts, err)
		}
		if strings.Contains(attempts[0].Response, "YnJpZGdl") {
			t.Errorf("stored and shown: %q (base64 of user:password)", attempts[0].Response)
		}
	})
}

// TestNoSecretAtTheCut checks the same of an answer that is so long that only a part of it is kept.
func (s suite) TestNoSecretAtTheCut(t *testing.T) {
	token := strings.Repeat("abcdefghij", 40)
	c := &CRM{Answer: func(_ int, _ Received, w http.ResponseWriter) {
		_, _ = io.WriteString(w, strings.Repeat(token+" ", 20))
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.URL = "http://crm.example/hook?token=" + token
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		ev := Event("call.completed", "5")
		MustAppend(t, o, ev)
		synctest.Wait()
		stop()
		_, attempts, err := o.Delivery(ev.ID + ".crm")
		if err != nil || len(attempts) != 1 || attempts[0].Response == "" ||
			strings.Contains(attempts[0].Response, "abcdefghij") {
			t.Errorf("kept: %v, %v", attempts, err)
		}
	})
}
