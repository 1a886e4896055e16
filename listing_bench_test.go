package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/clock"
	"pzbridge/internal/metrics"
	"pzbridge/internal/routing"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/relay"
	"pzbridge/transferapi"
)

// BenchmarkFreshEventBesideListings measures how long a fresh event takes to its CRM, in turns with
// nothing else going on and beside 50 requests a second with the token of another CRM that look
// through an outbox of 150,000 events for what is not there. It reports both medians and how many
// times the quiet one the other is.
func BenchmarkFreshEventBesideListings(b *testing.B) {
	const kept, rate, turn = 150_000, 50, 50
	arrived := make(chan struct{}, 1)
	crm := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived <- struct{}{} }))
	defer crm.Close()
	box, api := benchAPI(b, crm.URL)
	batch := make([]telephony.Event, 1000)
	for i := range kept {
		batch[i%len(batch)] = benchEvent(telephony.EventCompleted, fmt.Sprint(i))
		if i%len(batch) == len(batch)-1 {
			if err := box.Append(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
		}
	}
	fresh := func() time.Duration {
		began := time.Now()
		if err := box.Append(b.Context(), []telephony.Event{benchEvent(telephony.EventSMSSent, "")}); err != nil {
			b.Fatal(err)
		}
		<-arrived
		return time.Since(began)
	}
	for _, path := range []string{
		"/v1/deliveries?state=dead",
		"/v1/deliveries?state=dead&limit=500",
		"/v1/events?types=sms.status&limit=500",
		"/v1/events?types=sms.status&order=desc",
		"/v1/events?limit=500", "/v1/events?after=now&wait=30s",
	} {
		b.Run(path[1:], func(b *testing.B) {
			var quiet, beside []time.Duration
			for range b.N {
				for range turn {
					quiet = append(quiet, fresh())
					<-time.After(time.Second / rate)
				}
				stop := ask(b, api+path, time.Second/rate)
				for range turn {
					beside = append(beside, fresh())
					<-time.After(time.Second / rate)
				}
				stop()
			}
			slices.Sort(quiet)
			slices.Sort(beside)
			p50, p50Beside := quiet[len(quiet)/2], beside[len(beside)/2]
			b.ReportMetric(float64(p50.Microseconds())/1000, "quiet-ms")
			b.ReportMetric(float64(p50Beside.Microseconds())/1000, "beside-ms")
			b.ReportMetric(float64(p50Beside)/float64(p50), "times-quiet")
		})
	}
}

func benchEvent(kind telephony.EventType, call string) telephony.Event {
	return telephony.Event{
		ID:     uuid.Must(uuid.NewV7()).String(),
		Type:   kind,
		Time:   time.Now(),
		CallID: call,
		From:   "73430112233",
		To:     "101",
	}
}

const benchToken = "reader-token-0123456789"

// benchAPI gives an outbox that delivers SMS to a CRM and keeps calls for another one to read, and
// the address of its API.
func benchAPI(b *testing.B, crm string) (*storetest.Box, string) {
	b.Helper()
	logger := slog.New(slog.DiscardHandler)
	endpoint := store.Endpoint{
		Name:        "reader",
		Events:      store.Filter{"call.*"},
		Timeout:     time.Minute,
		Concurrency: 1,
		RingingTTL:  time.Hour,
		Tokens:      []string{benchToken},
	}
	sms := endpoint
	sms.Name, sms.URL, sms.Secrets, sms.Events = "crm", crm, [][]byte{make([]byte, 24)}, store.Filter{"sms.*"}
	box, err := storetest.Open(bolttest.Harness{}, storetest.Options{
		Place:          filepath.Join(b.TempDir(), "outbox.db"),
		Endpoints:      []store.Endpoint{endpoint, sms},
		RetrySchedule:  []time.Duration{time.Second},
		Retention:      time.Hour,
		RoutingTimeout: time.Second,
		MaxBytes:       1 << 40,
		Grace:          time.Second,
		Logger:         logger,
		Clock:          clock.New(time.Time{}, time.Time{}),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = box.Run(ctx, &routing.Router{}) })
	b.Cleanup(func() {
		stop()
		running.Wait()
		_ = box.Close()
	})
	api, err := transferapi.New(transferapi.Options{
		Exchange:       &relay.Session{},
		Router:         &routing.Router{},
		Outbox:         box.Outbox,
		Backup:         box.Engine.(transferapi.Backup),
		Deliveries:     box.Outbox,
		Events:         box.Outbox,
		Keys:           box.Engine,
		Metrics:        metrics.New("").Handler(),
		Tokens:         map[string][]string{"reader": {benchToken}},
		CommandTimeout: time.Second,
		Rate:           1000,
		Logger:         logger,
	})
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(api)
	b.Cleanup(server.Close)
	return box, server.URL
}

// ask makes requests, one in each so long, whether the one before is answered or not, until it is
// stopped.
func ask(b *testing.B, url string, every time.Duration) (stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	var requests sync.WaitGroup
	requests.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			requests.Go(func() {
				r, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil) // the address is one
				r.Header.Set("Authorization", "Bearer "+benchToken)
				if resp, err := http.DefaultClient.Do(r); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
		}
	})
	return func() { cancel(); requests.Wait() }
}
