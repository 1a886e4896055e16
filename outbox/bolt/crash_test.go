package bolt

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pzbridge/internal/clock"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
	"pzbridge/outbox/store/storetest/bench"
)

var crashRounds = flag.Int("crash.rounds", 25, "how often TestKilledBridgeLosesNothing kills its child")

const (
	crashConcurrency = 8
	// maxUnrecorded is how many outcomes of attempts may not be recorded yet: as many as fit into a
	// commit that runs, and as many again that wait for the next one.
	maxUnrecorded = 2 * 256
)

// TestMain makes of the test's binary the process that TestKilledBridgeLosesNothing kills, or the
// receiver of a benchmark.
func TestMain(m *testing.M) {
	bench.BeReceiver()
	if os.Getenv("CRASH_URL") != "" {
		fmt.Fprintln(os.Stderr, crashChild(os.Getenv("CRASH_PATH"), os.Getenv("CRASH_URL"), os.Getenv("CRASH_ROUND")))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// crashChild appends and delivers until it is killed. It writes the ID of each event once Append
// has returned. In the round "last" it appends nothing more.
func crashChild(path, url, round string) error {
	e := storetest.Endpoint("crm")
	e.URL, e.Concurrency = url, crashConcurrency
	o, err := storetest.Open(harness{}, storetest.Options{
		Place:          path,
		Endpoints:      []store.Endpoint{e},
		RetrySchedule:  []time.Duration{time.Millisecond},
		OrderHold:      time.Hour,
		RoutingTimeout: time.Hour,
		Retention:      time.Hour,
		MaxBytes:       1 << 30,
		Grace:          time.Second,
		Logger:         slog.New(slog.DiscardHandler),
		Clock:          clock.New(time.Time{}, time.Time{}),
	})
	if err != nil {
		return err
	}
	if round == "last" {
		return o.Run(context.Background(), silence{})
	}
	go func() { _ = o.Run(context.Background(), silence{}) }()
	for call := 0; ; call++ {
		// Three events of one call, each in its own batch with the first of others.
		for range 3 {
			batch := completed(fmt.Sprintf("%s%06d", round, call))
			for i := range rand.IntN(4) {
				batch = append(batch, completed(fmt.Sprintf("%s%06d", round, 500_000+10*call+i))...)
			}
			if err := o.Append(context.Background(), batch); err != nil {
				return err
			}
			for _, e := range batch {
				fmt.Println(e.ID)
			}
		}
	}
}

// witness is a CRM that takes everything and remembers what came, and in which round.
type witness struct {
	mu       sync.Mutex
	arrived  map[string]bool // by event ID
	last     map[string]int  // sequence by call
	disorder []string
	again    int // events of this round that had come before
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var hook struct {
		ID   string
		Data struct {
			CallID   string `json:"call_id"`
			Sequence int
		}
	}
	if err != nil || json.Unmarshal(body, &hook) != nil {
		rw.WriteHeader(http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.arrived[hook.ID] {
		w.again++
	}
	w.arrived[hook.ID] = true
	if last := w.last[hook.Data.CallID]; hook.Data.Sequence != last && hook.Data.Sequence != last+1 {
		w.disorder = append(w.disorder, fmt.Sprintf("call %s: %d after %d", hook.Data.CallID, hook.Data.Sequence, last))
	}
	w.last[hook.Data.CallID] = hook.Data.Sequence
}

// A process that is killed at any moment has lost nothing of what Append had acknowledged: it
// arrives with its first ID, in order within its call, and of what had arrived before a kill no
// more comes again than was under way or not recorded yet.
func TestKilledBridgeLosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("a bridge is killed again and again")
	}
	w := &witness{arrived: map[string]bool{}, last: map[string]int{}}
	crm := httptest.NewServer(w)
	defer crm.Close()
	path := filepath.Join(t.TempDir(), "outbox.db")
	acknowledged := map[string]bool{}
	start := func(round string) (kill func(), firstLine chan struct{}) {
		child := exec.Command(os.Args[0])
		child.Env = []string{"CRASH_PATH=" + path, "CRASH_URL=" + crm.URL, "CRASH_ROUND=" + round}
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		firstLine = make(chan struct{})
		var reading sync.WaitGroup
		reading.Go(func() {
			begun := sync.OnceFunc(func() { close(firstLine) })
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if len(lines.Text()) == 36 { // a line may be cut off
					acknowledged[lines.Text()] = true
				}
				begun()
			}
			begun()
		})
		return func() {
			_ = child.Process.Kill()
			reading.Wait()
			_ = child.Wait()
		}, firstLine
	}
	for round := range *crashRounds {
		kill, firstLine := start(fmt.Sprint(100 + round))
		<-firstLine
		<-time.After(time.Duration(rand.IntN(150)) * time.Millisecond)
		kill()
		w.mu.Lock()
		if most := crashConcurrency + maxUnrecorded; w.again > most {
			t.Errorf("round %d: %d came again, at most %d can have been under way or unrecorded", round, w.again, most)
		}
		w.again = 0
		w.mu.Unlock()
	}
	kill, _ := start("last")
	missing, deadline := len(acknowledged), time.Now().Add(time.Minute)
	for ; missing > 0 && time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		missing = 0
		w.mu.Lock()
		for id := range acknowledged {
			if !w.arrived[id] {
				missing++
			}
		}
		w.mu.Unlock()
	}
	kill()
	if missing > 0 || len(acknowledged) < 10**crashRounds {
		t.Errorf("%d of %d events that were acknowledged did not arrive", missing, len(acknowledged))
	}
	if len(w.disorder) > 0 {
		t.Errorf("%d events out of order, such as %s", len(w.disorder), w.disorder[0])
	}
	t.Logf("%d events through %d kills", len(acknowledged), *crashRounds)
}
