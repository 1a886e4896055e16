//go:build !race

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store/storetest/bench"
)

// A bridge on a database has at most six connections, while events come for three CRMs, its lists
// are read and another bridge waits to take over. The test reports how much memory it takes, beside
// a bridge on a file under the same load; with the race detector that says nothing.
func TestBridgeHasSixConnections(t *testing.T) {
	const connections = 6
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm, got := newCounter(t)
	list := bridges(t, server, crm, url, moreCRMs(crm)...)
	for i := range list {
		list[i]["OUTBOX_URL"] = fmt.Sprintf("%s&application_name=bridge%d", url, i+1)
	}
	first := startBoth(t, list)[0]
	most := map[string]int{}
	onDatabase := underLoad(t, server, got, list[0], first, func() {
		for _, bridge := range []string{"bridge1", "bridge2"} {
			n, err := strconv.Atoi(pgtest.SQL(t, url,
				`SELECT count(*) FROM pg_stat_activity WHERE application_name = '`+bridge+`'`))
			if err != nil {
				t.Fatal(err)
			}
			most[bridge] = max(most[bridge], n)
		}
	})

	other := pztest.NewServer(pztest.Options{})
	defer other.Close()
	vars := variables(t, other, crm, moreCRMs(crm)...)
	alone := start(t, vars)
	eventually(t, "the bridge on a file is ready", func() bool { return ready(vars) == http.StatusOK })
	onFile := underLoad(t, other, got, vars, alone, func() {})

	t.Logf("RssAnon at most %.1f MiB, on a file %.1f MiB; connections at most: %v", onDatabase, onFile, most)
	for bridge, n := range most {
		if n == 0 || n > connections {
			t.Errorf("%s had %d connections", bridge, n)
		}
	}
}

// newCounter starts a CRM that only counts what it gets.
func newCounter(t *testing.T) (crm *receiver, got *atomic.Int64) {
	t.Helper()
	got = &atomic.Int64{}
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got.Add(1)
	}))
	t.Cleanup(s.Close)
	return &receiver{Server: s}, got
}

// moreCRMs are variables for two more CRMs at the same address, and for the operator.
func moreCRMs(crm *receiver) []string {
	list := []string{"LOG_LEVEL=warn", "API_TOKEN=" + operatorToken}
	for n := 1; n <= 2; n++ {
		prefix := fmt.Sprintf("ENDPOINT_%d_", n)
		list = append(list, prefix+"NAME="+fmt.Sprint("crm", n), prefix+"URL="+crm.URL, prefix+"SECRET="+secret)
	}
	return list
}

// underLoad lets events come to a bridge, a thousand at a time, and returns the most memory that it
// took. Meanwhile its lists are read. It calls look ten times a second.
func underLoad(
	t *testing.T, server *pztest.Server, got *atomic.Int64, vars map[string]string, p *process, look func(),
) (mostMiB float64) {
	t.Helper()
	const turns, together, crms = 10, 1000, 3
	done := make(chan struct{})
	var beside sync.WaitGroup
	defer beside.Wait()
	defer close(done)
	whileItRuns := func(gap time.Duration, do func()) {
		beside.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(gap):
					do()
				}
			}
		})
	}
	for _, path := range []string{"/v1/deliveries?state=pending", "/v1/events?order=desc", "/v1/endpoints"} {
		whileItRuns(10*time.Millisecond, func() { getFrom(t, vars, path) })
	}
	whileItRuns(100*time.Millisecond, func() {
		mostMiB = max(mostMiB, bench.RSSAnon(t, strconv.Itoa(p.Process.Pid)))
		look()
	})
	for turn := range turns {
		want := got.Load() + together*crms
		for n := range together {
			if err := server.Generate(ringing(fmt.Sprint(turn*together+n), "73430112233")); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "all have arrived", func() bool { return got.Load() >= want })
	}
	return mostMiB
}
