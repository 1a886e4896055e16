// Package sendertest is what every sender promises, as tests through Send. A sender's own tests
// call Run with a function that makes one for a receiver in the same process.
package sendertest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Sender says how a sender is made, and what is its own.
type Sender struct {
	// New gives a sender for an endpoint; dial connects to its receiver, whatever the address.
	New func(e store.Endpoint, dial func(ctx context.Context, network, address string) (net.Conn, error)) store.Sender
	// Job is one that takes a single request.
	Job store.Job
	// Verdict says what an answer without a body means by its status. The list of statuses is the
	// test's.
	Verdict func(status int) store.Verdict
}

// The endpoint's secrets. None may stand in any text of an Outcome.
const (
	secretInPath  = "s3cretinpath"
	secretInQuery = "s3cret/in+query"
	secretHeader  = "s3cretinheader"
	secretToken   = "s3crettokentoken"
	secretSigning = "s3cretsigningkey"
	timeout       = 15 * time.Second
)

func endpoint() store.Endpoint {
	return store.Endpoint{
		Name:        "crm",
		URL:         "http://crm.example/" + secretInPath + "?token=s3cret%2Fin%2Bquery",
		Secrets:     [][]byte{[]byte(secretSigning)},
		Headers:     http.Header{"Authorization": {"Bearer " + secretHeader}},
		Tokens:      []string{secretToken},
		Events:      store.Filter{"call.*"},
		Timeout:     timeout,
		RingingTTL:  time.Minute,
		Concurrency: 4,
	}
}

// Run runs every test.
func Run(t *testing.T, s Sender) {
	t.Run("EveryStatusHasAVerdict", s.everyStatusHasAVerdict)
	t.Run("NoSecretInAnOutcome", s.noSecretInAnOutcome)
	t.Run("TimeoutIsAFailure", s.timeoutIsAFailure)
	t.Run("EndOfContextIsNoOutcome", s.endOfContextIsNoOutcome)
	t.Run("AnswersAreBounded", s.answersAreBounded)
	t.Run("RetryAfter", s.retryAfter)
	t.Run("ConcurrentSends", s.concurrentSends)
}

// send sends the job to a receiver in fake time, and gives what came of it and how long it took.
func (s Sender) send(
	t *testing.T, receiver http.HandlerFunc,
	f func(t *testing.T, send func(ctx context.Context) (store.Outcome, time.Duration)),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := pipenet.Listen()
		server := &http.Server{Handler: receiver}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(l) })
		sender := s.New(endpoint(), l.Dial)
		f(t, func(ctx context.Context) (store.Outcome, time.Duration) {
			began := time.Now()
			o := sender.Send(ctx, s.Job)
			return o, time.Since(began)
		})
		sender.Close()
		_ = server.Close()
		serving.Wait()
	})
}

func (s Sender) everyStatusHasAVerdict(t *testing.T) {
	status := 0
	s.send(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) },
		func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
			for status = 200; status < 600; status++ {
				o, _ := send(t.Context())
				if want := s.Verdict(status); o.Verdict != want || o.Status != status && want != store.Done {
					t.Errorf("HTTP %d: verdict %d, want %d; %+v", status, o.Verdict, want, o)
				}
			}
		})
}

// check fails the test where a text of an outcome holds a secret.
func check(t *testing.T, what string, o store.Outcome) {
	t.Helper()
	text := o.Text() + o.Response + string(o.Keep)
	for _, c := range telephony.Causes(o.Err) {
		text += strings.Join(c.Args, " ")
	}
	for _, step := range o.Steps {
		text += step.What + step.Response
	}
	for _, secret := range []string{
		secretInPath, secretInQuery, "s3cret%2Fin%2Bquery", "s3cret%2fin%2bquery", `s3cret\/in+query`,
		secretHeader, secretToken, secretSigning,
	} {
		if strings.Contains(text, secret) {
			t.Errorf("%s: %q stands in %q", what, secret, text)
		}
	}
}

func (s Sender) noSecretInAnOutcome(t *testing.T) {
	hijacked := func(raw string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, raw)
			_ = conn.Close()
		}
	}
	receivers := map[string]http.HandlerFunc{
		"a page that repeats the request": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprintf(w, "%s %s %s %s s3cret%%2fin%%2bquery s3cret\\/in+query %s",
				r.URL, r.URL.Query().Get("token"), r.Header.Get("Authorization"), secretToken, secretSigning)
		},
		"an answer that is none": hijacked("HTTP/1.1 " + secretInPath + " " + secretInQuery + "\r\n\r\n"),
		"a header that is none":  hijacked("HTTP/1.1 200 OK\r\n" + secretInPath + " " + secretHeader + "\r\n\r\n"),
		"a redirect":             hijacked("HTTP/1.1 302 Found\r\nLocation: http://[" + secretInPath + "\r\n\r\n"),
		"a connection that ends": hijacked(""),
	}
	for _, what := range slices.Sorted(maps.Keys(receivers)) {
		s.send(t, receivers[what], func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
			o, _ := send(t.Context())
			if o.Verdict == store.Done || o.Verdict == store.CutOff {
				t.Errorf("%s: %+v", what, o)
			}
			check(t, what, o)
		})
	}
}

func (s Sender) timeoutIsAFailure(t *testing.T) {
	s.send(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}, func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
		o, took := send(t.Context())
		if o.Verdict != store.Again || o.Err == nil || took < timeout || took > timeout+time.Second {
			t.Errorf("after %s: %+v", took, o)
		}
		check(t, "a time-out", o)
	})
}

func (s Sender) endOfContextIsNoOutcome(t *testing.T) {
	s.send(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}, func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if o, took := send(ctx); o.Verdict != store.CutOff || took != time.Second {
			t.Errorf("after %s: %+v", took, o)
		}
	})
}

// An answer without an end, or with a head without one, takes no more than the time of an attempt,
// and leaves no more than a little behind.
func (s Sender) answersAreBounded(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusInternalServerError} {
		s.send(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
					return
				}
			}
		}, func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
			o, took := send(t.Context())
			if o.Status != status && o.Verdict != store.Done || len(o.Response) > 1<<10 || took > timeout+time.Second {
				t.Errorf("after %s: verdict %d, status %d, %d bytes", took, o.Verdict, o.Status, len(o.Response))
			}
		})
	}
	s.send(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
	}, func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
		if o, _ := send(t.Context()); o.Verdict == store.Done || len(o.Text()) > 1<<10 {
			t.Errorf("a head of a megabyte: %+v", o)
		}
	})
}

func (s Sender) retryAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, "31536000": time.Hour, "99999999999999999999": time.Hour, "soon": 0, "-1": 0,
	} {
		s.send(t, func(w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set("Retry-After", header)
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		}, func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
			if o, _ := send(t.Context()); o.RetryAfter != want {
				t.Errorf("Retry-After %q is read as %s", header, o.RetryAfter)
			}
		})
	}
}

func (s Sender) concurrentSends(t *testing.T) {
	s.send(t, func(http.ResponseWriter, *http.Request) {},
		func(t *testing.T, send func(context.Context) (store.Outcome, time.Duration)) {
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() {
					if o, _ := send(t.Context()); o.Verdict != store.Done {
						t.Errorf("%+v", o)
					}
				})
			}
			all.Wait()
		})
}
