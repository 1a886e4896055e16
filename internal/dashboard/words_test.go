package dashboard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// told is an outbox that fails and shows what a test wants.
type told struct {
	Outbox
	writable error
	status   outbox.EndpointStatus
	call     *store.CallPage
	attempt  store.Attempt
}

func (o told) Writable(context.Context) error { return o.writable }

func (o told) Endpoints(context.Context) ([]outbox.EndpointStatus, error) {
	return []outbox.EndpointStatus{o.status}, nil
}

func (o told) Call(ctx context.Context, id string, after uint64) (store.CallPage, error) {
	if o.call == nil {
		return o.Outbox.Call(ctx, id, after)
	}
	return *o.call, nil
}

func (o told) SendTest(context.Context, string) (string, store.Attempt, error) {
	return "", o.attempt, o.writable
}

// connectionOf is a connection that has ended with an error.
func connectionOf(err error) telephony.Connection {
	return telephony.Connection{
		State:     telephony.Disconnected,
		Since:     time.Now(),
		LastError: err.Error(),
		LastCause: telephony.CauseOf(err),
	}
}

// closedWith is a connection that the server has closed.
func closedWith(code int, meaning string, c telephony.Code) telephony.Connection {
	text := fmt.Sprintf("connection closed with code %d: %s", code, meaning)
	out := connectionOf(&telephony.Fault{Code: c, Text: text})
	out.CloseCode, out.CloseMeaning, out.CloseCause = code, meaning, telephony.Cause{Code: c}
	out.EndedByClose = true
	return out
}

// routeWith is a page of a call that asked where to go.
func routeWith(change func(*telephony.Route)) *store.CallPage {
	now := time.Now()
	r := &telephony.Route{CallID: "5", AskedAt: now, Outcome: telephony.RouteWon}
	change(r)
	return &store.CallPage{
		Events: []store.CallEvent{{ID: "1", Type: "call.transfer_requested", Time: now}},
		Route:  r,
	}
}

// Each page shows an error in its language, whatever room it comes from.
func TestErrorsAreInThePagesLanguage(t *testing.T) {
	refused := &net.OpError{
		Op:   "dial",
		Net:  "tcp",
		Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443},
		Err:  syscall.ECONNREFUSED,
	}
	full := store.ErrFull.With(": 9 GiB of it are in use, 8 GiB are allowed", "9 GiB", "8 GiB")
	noToken := &telephony.Fault{Code: telephony.CodeNoReplyNoToken, Text: "it has no token"}
	notAllowed := &telephony.NotAllowedError{Code: telephony.CodeToNotAllowed, Text: "this number is not allowed"}
	busy := &telephony.RefusedError{Code: "2", Details: "занято"}
	transferOf := func(err error) *store.CallPage {
		return routeWith(func(r *telephony.Route) {
			r.Transfer, r.TransferAt, r.To = telephony.TransferFailed, time.Now(), "101"
			r.TransferError, r.TransferCause = err.Error(), telephony.CauseOf(err)
		})
	}
	replyOf := func(err error) *store.CallPage {
		return routeWith(func(r *telephony.Route) { r.Replies = []telephony.Reply{telephony.NoReply("crm", err)} })
	}
	for name, c := range map[string]struct {
		path             string
		connection       telephony.Connection
		box              told
		english, russian string
	}{
		"wrong password": {
			connection: closedWith(4008, "the password is wrong", telephony.CodeWrongPassword),
			english:    "connection closed with code 4008: the password is wrong: set PZ_PASSWORD to the server&#39;s<",
			russian:    "соединение закрыто с кодом 4008: пароль неверен: укажите в PZ_PASSWORD пароль сервера<",
		},
		"403": {
			connection: connectionOf(&telephony.Fault{
				Code: telephony.CodeForbidden,
				Text: "the server refused the handshake with HTTP 403",
			}),
			english: "the server refused the handshake with HTTP 403: check PZ_PASSWORD, and that PZ_URL is",
			russian: "сервер отказал в подключении (HTTP 403): проверьте PZ_PASSWORD и то, что по адресу PZ_URL",
		},
		"the exchange is not there": {
			connection: connectionOf(refused),
			english:    "dial tcp 192.0.2.1:443: connection refused<",
			russian:    "в соединении отказано (192.0.2.1:443)<",
		},
		"a CRM is not there": {
			box: told{status: outbox.EndpointStatus{
				Name:      "crm",
				State:     "failing",
				LastError: refused.Error(),
				LastCause: telephony.CauseOf(refused),
			}},
			english: ": dial tcp 192.0.2.1:443: connection refused. Deliveries that wait: 0.",
			russian: ": в соединении отказано (192.0.2.1:443). Ждут доставки: 0.",
		},
		"an attempt without an answer": {
			path: "test",
			box: told{attempt: store.Attempt{
				Error: "no answer within 15s",
				Cause: telephony.Cause{Code: telephony.CodeNoResponse, Args: []string{"15s"}},
			}},
			english: "no answer within 15s ·",
			russian: "нет ответа за 15s ·",
		},
		"a test at a CRM that reads": {
			path:    "test",
			box:     told{writable: store.ErrNoURL.With(`: "crm"`, "crm")},
			english: "the endpoint has no URL: it reads its events: &#34;crm&#34;<",
			russian: "у этой CRM нет URL: она читает события сама: «crm»<",
		},
		"full outbox": {
			box:     told{writable: full},
			english: "the outbox is full: 9 GiB of it are in use, 8 GiB are allowed (OUTBOX_MAX_BYTES)<",
			russian: "хранилище заполнено: в нём события, которые CRM ещё не приняла; занято 9 GiB, разрешено 8 GiB (",
		},
		"full disk": {
			box:     told{writable: fmt.Errorf("write /data/outbox.db: %w", syscall.ENOSPC)},
			english: "write /data/outbox.db: no space left on device<",
			russian: "на диске нет места<",
		},
		"damaged file": {
			box:     told{writable: store.ErrDamaged.With(" (page 7 is damaged)", "page 7 is damaged")},
			english: "a page of the outbox&#39;s file is damaged (page 7 is damaged): stop the bridge and",
			russian: "страница файла хранилища повреждена (page 7 is damaged): остановите мост и",
		},
		"no answer": {
			path:    "calls/5",
			box:     told{call: transferOf(telephony.ErrNoAnswer)},
			english: "The transfer failed: no answer from the Prostie Zvonki server in time: the command may have",
			russian: "Перевести не удалось: сервер «Простых Звонков» не ответил вовремя: команда, возможно, выполнена.",
		},
		"refused transfer": {
			path:    "calls/5",
			box:     told{call: transferOf(busy)},
			english: "The transfer failed: the Prostie Zvonki server refused: занято (code 2).<",
			russian: "Перевести не удалось: сервер «Простых Звонков» отказал: занято (код 2).<",
		},
		"a reply without a token": {
			path:    "calls/5",
			box:     told{call: replyOf(noToken)},
			english: "no answer: it has no token <",
			russian: "нет ответа: вопрос принят без ответа, а токена, чтобы ответить позже, нет <",
		},
		"a reply that is not allowed": {
			path:    "calls/5",
			box:     told{call: replyOf(fmt.Errorf("its answer is not allowed: %w", notAllowed))},
			english: "no answer: its answer is not allowed: this number is not allowed (CALL_TO) <",
			russian: "нет ответа: на этот номер звонить не разрешено (CALL_TO) <",
		},
		"an error without a code": {
			connection: connectionOf(errors.New("read from the server: EOF")),
			english:    "read from the server: EOF<",
			russian:    "read from the server: EOF<",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, func(o *Options) {
				c.box.Outbox = o.Outbox
				o.Outbox = c.box
			})
			s.exchange.mu.Lock()
			s.exchange.c = c.connection
			s.exchange.mu.Unlock()
			client := s.client(t)
			for lang, want := range map[string]string{"en": c.english, "ru": c.russian} {
				method, path := http.MethodGet, "/"+c.path
				if c.path == "test" {
					method, path = http.MethodPost, "/actions/test"
				}
				r, err := http.NewRequest(method, s.URL+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Accept-Language", lang)
				resp, err := client.Do(r)
				if body := text(t, resp, err); !strings.Contains(body, want) {
					t.Errorf("%s: the page does not say %q:\n%.6000s", lang, want, body)
				}
			}
		})
	}
}

// The last close code is shown unless the last error is about it.
func TestLastCloseIsShownOnce(t *testing.T) {
	s := newStage(t, nil)
	client := s.client(t)
	c := connectionOf(errors.New("dial tcp: no route"))
	c.CloseCode, c.CloseMeaning, c.CloseCause = 1012, "it restarts", telephony.Cause{Code: telephony.CodeRestarting}
	for _, ended := range []bool{false, true} {
		c.EndedByClose = ended
		s.exchange.mu.Lock()
		s.exchange.c = c
		s.exchange.mu.Unlock()
		resp, err := client.Get(s.URL + "/")
		body := text(t, resp, err)
		if strings.Contains(body, "last closed with code 1012: it restarts<") == ended ||
			strings.Contains(body, "connection closed with code 1012: it restarts<") != ended {
			t.Errorf("ended by it %t:\n%.4000s", ended, body)
		}
	}
}
