//go:build !race

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

const (
	receivers    = 12
	atOnceAtMost = 4 // of each
)

// TestTwoBridgesOfOne compares how fast two bridges deliver to receivers CRMs with one alone, where
// each may use half of the processor that one takes without a limit. CLUSTER_SPEED says in how many
// turns. No CRM sees more requests at once than it is to.
func TestTwoBridgesOfOne(t *testing.T) {
	turns, err := strconv.Atoi(os.Getenv("CLUSTER_SPEED"))
	if err != nil {
		t.Skip("CLUSTER_SPEED says how many turns to take")
	}
	free := startCluster(t, 1, 0)
	free.deliver(t) // the first turn plans statements and opens connections
	before := free.used(t)
	took := free.deliver(t)
	half := (free.used(t) - before).Seconds() / took.Seconds() / 2
	free.stop(t)

	one, two := startCluster(t, 1, half), startCluster(t, 2, half)
	one.deliver(t)
	two.deliver(t)
	var alone, together time.Duration
	for range turns {
		alone += one.deliver(t)
		together += two.deliver(t)
	}
	t.Logf("%.2f of a processor each: one bridge takes %s a turn, two take %s: %.2f times as fast", half,
		alone/time.Duration(turns), together/time.Duration(turns), alone.Seconds()/together.Seconds())
	for _, c := range []*sharing{one, two} {
		if most := c.most.Load(); most > atOnceAtMost {
			t.Errorf("a CRM of %d bridges saw %d requests at once, want %d at most", len(c.bridges), most, atOnceAtMost)
		}
	}
}

// sharing is bridges on one database, their server and their CRMs.
type sharing struct {
	server    *pztest.Server
	bridges   []*process
	calls     int
	got, most atomic.Int64 // requests: all, and at once at one CRM
}

// startCluster starts a number of bridges, each of which may use so much of a processor; 0 is all.
func startCluster(t *testing.T, bridges int, processor float64) *sharing {
	t.Helper()
	c := &sharing{server: pztest.NewServer(pztest.Options{})}
	t.Cleanup(c.server.Close)
	url := pgtest.Shared(t).Database(t)
	more := []string{"LOG_LEVEL=warn", "REPLAY_MAX_AGE=0", "API_TOKEN=" + operatorToken, "OUTBOX_URL=" + url}
	for n := range receivers {
		prefix := fmt.Sprintf("ENDPOINT_%d_", n)
		more = append(more, prefix+fmt.Sprint("NAME=crm", n), prefix+"URL="+c.crm(t), prefix+"SECRET="+secret,
			prefix+fmt.Sprint("CONCURRENCY=", atOnceAtMost))
	}
	want := map[int]string{1: "[12]", 2: "[6 6]"}[bridges]
	var vars map[string]string
	for i := range bridges {
		vars = variables(t, c.server, &receiver{Server: &httptest.Server{}},
			append(more, fmt.Sprint("BRIDGE_NAME=bridge", i+1))...)
		delete(vars, "OUTBOX_PATH")
		p := prepare(t, vars)
		c.bridges = append(c.bridges, p)
		if processor == 0 {
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Process.Kill() })
		} else {
			startIn(t, processorGroup(t, processor), p)
		}
	}
	eventually(t, "one is connected and the CRMs are shared out", func() bool {
		return c.server.Connected() == 1 && fmt.Sprint(lanesOf(t, vars)) == want
	})
	return c
}

// crm starts a CRM that only counts what it gets.
func (c *sharing) crm(t *testing.T) (url string) {
	t.Helper()
	var atOnce atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		now := atOnce.Add(1)
		defer atOnce.Add(-1)
		for most := c.most.Load(); now > most && !c.most.CompareAndSwap(most, now); most = c.most.Load() {
		}
		_, _ = io.Copy(io.Discard, r.Body)
		c.got.Add(1)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// deliver lets some hundred events come at once, and returns how long they take to all CRMs.
func (c *sharing) deliver(t *testing.T) time.Duration {
	t.Helper()
	const events = 800
	want := c.got.Load() + events*receivers
	began := time.Now()
	for range events {
		c.calls++
		if err := c.server.Generate(finished(strconv.Itoa(c.calls))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all have arrived", func() bool { return c.got.Load() >= want })
	return time.Since(began)
}

// used is how much of the processor the first bridge has used.
func (c *sharing) used(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.bridges[0].Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var ticks [2]int // of 10 ms: in the program, and for it in the kernel
	_, behindName, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(behindName)
	for i := range ticks {
		if ticks[i], err = strconv.Atoi(fields[11+i]); err != nil {
			t.Fatal(err)
		}
	}
	return time.Duration(ticks[0]+ticks[1]) * 10 * time.Millisecond
}

func (c *sharing) stop(t *testing.T) {
	t.Helper()
	for _, p := range c.bridges {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

// processorGroup makes a cgroup whose processes may use so much of a processor together.
func processorGroup(t *testing.T, share float64) string {
	t.Helper()
	const period = 20_000 // µs: a bridge is not to stand still for long
	quota := strconv.Itoa(int(share * period))
	return cgroup(t, "cpu", func(set func(file, value string) error) error {
		if err := set("cpu.cfs_period_us", strconv.Itoa(period)); err == nil {
			return set("cpu.cfs_quota_us", quota)
		}
		return set("cpu.max", quota+" "+strconv.Itoa(period))
	})
}
