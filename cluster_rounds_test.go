//go:build unix

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/demo"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

// rounds is how many rounds a test of failures goes through: CLUSTER_ROUNDS. Without it, it is
// skipped: a round takes some ten seconds.
func rounds(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("CLUSTER_ROUNDS"))
	if err != nil {
		t.Skip("CLUSTER_ROUNDS says how many rounds to go through")
	}
	return n
}

// load sends events to a server, as many a second, until it is stopped. A part of them repeats an
// earlier one: the same content of the same call.
type load struct {
	server  *pztest.Server
	repeats float64 // of the events
	stopped chan struct{}
	running sync.WaitGroup

	mu   sync.Mutex
	sent map[string]int // how often, by call
	last int
}

func startLoad(t *testing.T, server *pztest.Server, perSecond int, repeats float64) *load {
	l := &load{server: server, repeats: repeats, stopped: make(chan struct{}), sent: map[string]int{}}
	l.running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-l.stopped:
				return
			case <-tick.C:
			}
			if err := l.send(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return l
}

func (l *load) send() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.last
	if l.last > 0 && rand.Float64() < l.repeats {
		n -= rand.IntN(min(l.last, 100))
	} else {
		l.last++
		n = l.last
	}
	l.sent[strconv.Itoa(n)]++
	return l.server.Generate(ringing(strconv.Itoa(n), "73430112233"))
}

// stop ends the load and returns how often the event of each call was sent.
func (l *load) stop() map[string]int {
	close(l.stopped)
	l.running.Wait()
	return l.sent
}

// compare counts what has arrived too rarely and too often, by the IDs of the events: one that
// arrives twice with one ID is delivered twice, which an unknown outcome may lead to.
func compare(sent map[string]int, hooks []demo.Webhook) (lost, twice, repeated int) {
	ids, arrived := map[string]bool{}, map[string]int{}
	for i := range hooks {
		if h := &hooks[i]; ids[h.ID] {
			repeated++
		} else {
			ids[h.ID] = true
			arrived[h.Data.CallID]++
		}
	}
	for call, n := range sent {
		lost += max(0, n-arrived[call])
		twice += max(0, arrived[call]-n)
	}
	return lost, twice, repeated
}

// settle waits until nothing more arrives, and compares.
func settle(t *testing.T, sent map[string]int, crm *receiver) (lost, twice, repeated int) {
	t.Helper()
	total := 0
	for _, n := range sent {
		total += n
	}
	last, since := -1, time.Now()
	eventually(t, fmt.Sprintf("all %d events have arrived, or no more do", total), func() bool {
		time.Sleep(100 * time.Millisecond)
		if n := len(crm.webhooks(t)); n != last {
			last, since = n, time.Now()
		}
		return last >= total && time.Since(since) > 500*time.Millisecond || time.Since(since) > 8*time.Second
	})
	return compare(sent, crm.webhooks(t))
}

// Two bridges listen to one server at some hundred events a second, and each round kills one of
// them. What has been sent arrives once, also if it repeats an earlier event of its call: then one
// may be taken for the other where a bridge dies just after it has connected, which is counted.
func TestRoundsOfKillingOneOfTwoListeners(t *testing.T) {
	n := rounds(t)
	for name, repeats := range map[string]float64{"all different": 0, "a quarter repeated": 0.25} {
		t.Run(name, func(t *testing.T) {
			url := pgtest.Shared(t).Database(t)
			server := pztest.NewServer(pztest.Options{})
			defer server.Close()
			crm := newReceiver(t, nil)
			list := bridges(t, server, crm, url, "LOG_LEVEL=warn", "LISTENERS=2", "ENDPOINT_0_RINGING_TTL=1h")
			processes := []*process{start(t, list[0]), start(t, list[1])}
			bothListen(t, list)
			ring := startLoad(t, server, 500, repeats)
			for range n {
				time.Sleep(time.Second + rand.N(time.Second))
				killed := rand.IntN(2)
				_ = processes[killed].Process.Signal(syscall.SIGKILL)
				_ = processes[killed].Wait()
				time.Sleep(rand.N(4 * time.Second))
				processes[killed] = start(t, list[killed])
				bothListen(t, list)
			}
			lost, twice, repeated := settle(t, ring.stop(), crm)
			t.Logf("%d kills, %d contents: %d events lost, %d stored twice, %d delivered twice",
				n, len(ring.sent), lost, twice, repeated)
			if twice > 0 || repeats == 0 && lost > 0 || lost > n {
				t.Errorf("%d are lost, %d stored twice", lost, twice)
			}
		})
	}
}

// Bridges are restarted one after the other, as for an upgrade, while two of them listen. Nothing
// is lost, and nothing but what was in flight may be delivered twice. VERSION_BEFORE names a
// program of the version before: then both bridges begin with it, and each restart changes a
// bridge's version, back and forth.
func TestRoundsOfRollingRestarts(t *testing.T) {
	n := rounds(t)
	before := os.Getenv("VERSION_BEFORE")
	startAt := func(round int, vars map[string]string) *process {
		p := prepare(t, vars)
		if before != "" && round/2%2 == 0 {
			p.Path = before
		}
		p.mustStart(t)
		return p
	}
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, url, "LOG_LEVEL=warn", "LISTENERS=2", "ENDPOINT_0_RINGING_TTL=1h")
	processes := []*process{startAt(0, list[0]), startAt(1, list[1])}
	bothListen(t, list)
	ring := startLoad(t, server, 500, 0)
	for round := range n {
		time.Sleep(time.Second)
		p := round % 2
		_ = processes[p].Process.Signal(syscall.SIGTERM)
		processes[p].endsWell(t)
		processes[p] = startAt(round+2, list[p])
		bothListen(t, list)
	}
	lost, twice, repeated := settle(t, ring.stop(), crm)
	t.Logf("%d restarts, %d events: %d lost, %d stored twice, %d delivered twice",
		n, len(ring.sent), lost, twice, repeated)
	const inFlight = 16 // at most, where a machine is so slow that a bridge has to cut its attempts off
	if lost > 0 || twice > 0 || repeated > n*inFlight {
		t.Errorf("%d are lost, %d stored twice, %d delivered twice", lost, twice, repeated)
	}
}

// The primary is killed under load and its synchronous standby promoted. No event is lost that was
// stored, storing goes on within two seconds, and nobody follows the old primary when it comes
// back.
func TestRoundsOfFailOver(t *testing.T) {
	for round := range rounds(t) {
		t.Run(fmt.Sprint(round+1), failOver) // whose bridges end with it: an address may soon be another's
	}
}

func failOver(t *testing.T) {
	old := pgtest.New(t, pgtest.OverTCP)
	promoted := old.Standby(t, "b")
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	list := bridges(t, server, crm, old.URLOverTCP("postgres", promoted),
		"LOG_LEVEL=warn", "ENDPOINT_0_RINGING_TTL=1h")
	startBoth(t, list)
	ring := startLoad(t, server, 300, 0)
	time.Sleep(time.Second + rand.N(time.Second))
	old.Kill(t)
	time.Sleep(rand.N(2 * time.Second))
	promoted.Promote(t)
	began := time.Now()
	stored := func() int {
		n, err := strconv.Atoi(promoted.SQL(t, `SELECT count(*) FROM pzbridge.event`))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := stored()
	eventually(t, "events are stored again", func() bool { return stored() > before })
	took := time.Since(began)
	time.Sleep(time.Second)
	old.Start(t)
	onOld := old.SQL(t, `SELECT last FROM pzbridge.head`)
	time.Sleep(2 * time.Second)
	lost, twice, repeated := settle(t, ring.stop(), crm)
	t.Logf("%d events, stored again after %v: %d lost, %d stored twice, %d delivered twice",
		len(ring.sent), took.Round(time.Millisecond), lost, twice, repeated)
	if lost > 0 || twice > 0 || took > 2*time.Second {
		t.Errorf("%d are lost, %d stored twice, stored again after %v", lost, twice, took)
	}
	if now := old.SQL(t, `SELECT last FROM pzbridge.head`); now != onOld {
		t.Errorf("the old primary had %s events, now %s", onOld, now)
	}
}

// Three CRMs are asked where calls go and answer at both bridges at once, while bridges are killed.
// No call is transferred twice, and none that somebody has been told is transferred is not.
func TestRoundsOfQuestions(t *testing.T) {
	const perRound = 200
	n := rounds(t)
	url := pgtest.Shared(t).Database(t)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	const token = "crm-token-0123456789"
	more := []string{"LOG_LEVEL=warn", "LISTENERS=2", "ROUTING_TIMEOUT=20s", "API_RATE=10000"}
	var list []map[string]string
	var transferred, failed atomic.Int64
	var promised sync.Map // the calls that a CRM was told are transferred
	var answering sync.WaitGroup
	answer := func(crm int, call string) {
		for try := range 20 {
			vars := list[(crm+try)%2]
			r, err := http.NewRequest(http.MethodPost, "http://"+vars["LISTEN_ADDR"]+"/v1/transfers",
				strings.NewReader(fmt.Sprintf(`{"call_id":"%s","to":"10%d"}`, call, crm)))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", fmt.Sprint("Bearer ", token, crm))
			r.Header.Set("Content-Type", "application/json")
			response, err := http.DefaultClient.Do(r)
			if err == nil {
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				switch response.StatusCode {
				case http.StatusOK:
					transferred.Add(1)
					promised.Store(call, true)
					return
				case http.StatusConflict, http.StatusGone, http.StatusGatewayTimeout:
					return
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		failed.Add(1)
	}
	for crm := range 3 {
		asked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if _, call, isAsked := strings.Cut(string(body), `"call_id":"`); isAsked {
				call, _, _ = strings.Cut(call, `"`)
				answering.Go(func() { answer(crm, call) })
			}
		}))
		defer asked.Close()
		prefix := fmt.Sprintf("ENDPOINT_%d_", crm)
		more = append(more, prefix+fmt.Sprint("NAME=crm", crm), prefix+"URL="+asked.URL, prefix+"SECRET="+secret,
			prefix+fmt.Sprint("TOKEN=", token, crm), prefix+"EVENTS=call.transfer_requested")
	}
	list = bridges(t, server, newReceiver(t, nil), url, more...)
	processes := []*process{start(t, list[0]), start(t, list[1])}
	defer func() {
		if t.Failed() {
			t.Log(processes[0].log)
		}
	}()
	for round := range n {
		bothListen(t, list)
		for call := range perRound {
			if err := server.Generate(asking(strconv.Itoa(round*perRound+call+1), "73430112233")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
			if call == perRound/2 {
				killed := round % 2
				_ = processes[killed].Process.Signal(syscall.SIGKILL)
				_ = processes[killed].Wait()
				processes[killed] = start(t, list[killed])
			}
		}
	}
	time.Sleep(5 * time.Second)
	answering.Wait()
	times := map[string]int{}
	for _, r := range server.Requests() {
		if to := r.Data.Get("To"); to != "" {
			times[r.Data.Get("CallID")]++
		}
	}
	twice, missing := 0, 0
	for _, number := range times {
		if number > 1 {
			twice++
		}
	}
	promised.Range(func(call, _ any) bool {
		if times[call.(string)] == 0 {
			missing++
		}
		return true
	})
	t.Logf("%d questions with %d kills: %d calls transferred, %d twice, %d answers were told so, %d of them wrongly, "+
		"%d got no answer", n*perRound, n, len(times), twice, transferred.Load(), missing, failed.Load())
	if twice > 0 || missing > 0 || len(times) < n*perRound*9/10 {
		t.Errorf("%d calls are transferred, %d twice, %d not though a CRM was told so", len(times), twice, missing)
	}
}
