//go:build unix

package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pzbridge/internal/demo"
	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// takingSender takes everything.
type takingSender struct{}

func (takingSender) Close() {}

func (takingSender) Send(context.Context, store.Job) store.Outcome {
	return store.Outcome{Verdict: store.Done, Status: 200}
}

// filledFile fills the outbox's file of a bridge with calls of the last days, of which the endpoint
// crm has got all but the newest, and gives the options of what stands on it.
func filledFile(t *testing.T, vars map[string]string, calls, waiting int) storetest.Options {
	t.Helper()
	opts := storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
		Place:     vars["OUTBOX_PATH"],
		Endpoints: []store.Endpoint{storetest.Endpoint("crm")},
		Senders:   map[string]store.Sender{"crm": takingSender{}},
		Logger:    slog.New(slog.DiscardHandler),
	})
	b, err := storetest.Open(bolttest.Harness{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	stop := storetest.RunBox(t, b)
	const between = 72 * time.Hour
	for from := 0; from < calls; from += 500 {
		if from+500 >= calls {
			eventually(t, "all is delivered", func() bool { return storetest.States(t, b, "crm")[store.Pending] == 0 })
			stop()
		}
		var events []telephony.Event
		for i := from; i < min(from+500, calls); i++ {
			for _, kind := range []telephony.EventType{telephony.EventIncoming, telephony.EventCompleted} {
				if i >= calls-waiting || from+500 < calls {
					e := storetest.Event(kind, fmt.Sprint(i+1))
					e.Time = time.Now().Add(-between * time.Duration(calls-i) / time.Duration(calls))
					e.From, e.To = fmt.Sprint("+7343011", 1000+i%5000), "101"
					events = append(events, e)
				}
			}
		}
		storetest.MustAppend(t, b, events...)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return opts
}

// withPassword is the address of a database with a password, which that does not ask for.
func withPassword(url string) string { return strings.Replace(url, "@", ":s3cret-password@", 1) }

// wholeOf gives all that is stored at a place.
func wholeOf(t *testing.T, engine store.Engine, err error, opts storetest.Options, now time.Time) []string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	}()
	return storetest.Whole(t, engine, opts.Endpoints, now)
}

// A copy that is killed again and again, in each part, ends with all that the file has, and no
// bridge opens the file from its beginning on. A bridge on the database goes on: it sends what was
// pending, under the identity that the file has, and the copy is not taken back any more.
func TestCopyIsKilledAgainAndAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes many starts")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	vars := variables(t, server, crm, "BRIDGE_NAME=bridge1", "LOG_LEVEL=info")
	const calls, waiting = 1200, 100
	opts := filledFile(t, vars, calls, waiting)
	identity := guidOf(t, vars)
	twin := filepath.Join(t.TempDir(), "twin.db")
	content, err := os.ReadFile(vars["OUTBOX_PATH"])
	if err == nil {
		err = os.WriteFile(twin, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	url := withPassword(pgtest.Shared(t).Database(t))
	vars["OUTBOX_URL"] = url

	// killAfter kills it some moments after it has written one of some texts, and gives its output.
	killAfter := func(moments time.Duration, texts ...string) string {
		t.Helper()
		p := start(t, vars, "copy", vars["OUTBOX_PATH"])
		hasWritten := func(text string) bool { return strings.Contains(p.log.String(), text) }
		eventually(t, fmt.Sprint("it says one of ", texts), func() bool {
			return slices.ContainsFunc(texts, hasWritten)
		})
		time.Sleep(rand.N(moments))
		if err := p.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if p.exitCode() == 0 {
			t.Fatalf("it was whole before it was killed: %s", p.log)
		}
		if strings.Contains(p.log.String(), "s3cret") {
			t.Errorf("it tells the password: %s", p.log)
		}
		return p.log.String()
	}
	const soon = 20 * time.Millisecond
	var out string
	for moments := soon; !strings.Contains(out, "Going on"); moments += soon / 4 { // a slow machine needs more
		out = killAfter(moments, "Copying", "Going on")
	}
	if strings.Contains(out, "the first part") {
		killAfter(soon, "The first part is whole")
	}
	killAfter(soon, "Going on with the history")
	last := start(t, vars, "copy", vars["OUTBOX_PATH"])
	if code := last.exitCode(); code != 0 || !strings.Contains(last.log.String(), "The copy is whole") {
		t.Fatalf("it ends with %d: %s", code, last.log)
	}
	now := time.Now()
	file, fileErr := bolttest.Harness{}.Open(storetest.EngineOptions{
		Place: twin, MaxBytes: 1 << 30, Rules: opts.Rules(), Logger: opts.Logger,
	})
	want := wholeOf(t, file, fileErr, opts, now)
	database, databaseErr := postgres.Open(t.Context(), postgres.Options{
		URL: url, MaxBytes: 1 << 30, Rules: opts.Rules(), Logger: opts.Logger,
	})
	got := wholeOf(t, database, databaseErr, opts, now)
	if len(got) != len(want) || len(want) < calls {
		t.Errorf("there are %d lines, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("the file has\n%.1000s\nand the database\n%.1000s", want[i], got[i])
		}
	}
	again := start(t, vars, "copy", vars["OUTBOX_PATH"])
	if code := again.exitCode(); code != 0 || !strings.Contains(again.log.String(), "whole already") {
		t.Errorf("once more it ends with %d: %s", code, again.log)
	}

	delete(vars, "OUTBOX_URL")
	p := start(t, vars)
	if code := p.exitCode(); code != 1 || !strings.Contains(p.log.String(), "moved to the database") ||
		!strings.Contains(p.log.String(), "copy -abort") || strings.Contains(p.log.String(), "s3cret") {
		t.Errorf("a bridge on the file ends with %d: %s", code, p.log)
	}
	vars["OUTBOX_URL"] = url
	bridge := start(t, vars)
	eventually(t, "what was pending has arrived", func() bool { return len(crm.webhooks(t)) >= 2*waiting })
	arrived := map[string]demo.Webhook{}
	for _, h := range crm.webhooks(t) {
		if _, twice := arrived[h.ID]; twice {
			t.Errorf("event %s has arrived twice", h.ID)
		}
		arrived[h.ID] = h
	}
	eventually(t, "it is connected", func() bool { return server.Connected() == 1 })
	if err := bridge.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	bridge.endsWell(t)
	if !strings.Contains(bridge.log.String(), identity) {
		t.Errorf("it is not %s at the server: %s", identity, bridge.log)
	}
	if p := start(t, vars, "copy", "-abort", vars["OUTBOX_PATH"]); p.exitCode() != 1 ||
		!strings.Contains(p.log.String(), "have delivered or stored something") {
		t.Errorf("it can be taken back: %s", p.log)
	}
}

// guidOf starts a bridge until it has an identity at the server, and gives that.
func guidOf(t *testing.T, vars map[string]string) string {
	t.Helper()
	b, err := storetest.Open(bolttest.Harness{}, storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
		Place: vars["OUTBOX_PATH"], Logger: slog.New(slog.DiscardHandler),
	}))
	if err != nil {
		t.Fatal(err)
	}
	guid, err := b.ClientGUID("5f0c2c1a-7f7e-4b5c-9a33-0a9f6f0f2b11")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return guid
}

// While the history follows, a bridge on the database delivers, and a call of which only the latest
// event is there yet goes on with the next number.
func TestBridgeDeliversWhileTheHistoryFollows(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	vars := variables(t, server, crm, "BRIDGE_NAME=bridge1", "LOG_LEVEL=info")
	const calls, waiting, old = 2000, 50, 50
	filledFile(t, vars, calls, waiting)
	vars["OUTBOX_URL"] = pgtest.Shared(t).Database(t)
	p := start(t, vars, "copy", vars["OUTBOX_PATH"])
	eventually(t, "the first part is whole", func() bool {
		return strings.Contains(p.log.String(), "The first part is whole")
	})
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start(t, vars)
	eventually(t, "the bridge is ready", func() bool { return ready(vars) == http.StatusOK })
	if err := server.Generate(ringing("3", "7343")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has arrived", func() bool { return len(crm.webhooks(t)) == 2*waiting+1 })
	if err := p.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for i := range old {
		if err := server.Generate(ringing(fmt.Sprint(i+1), "7343")); err != nil {
			t.Fatal(err)
		}
	}
	p.endsWell(t)
	if strings.Contains(p.log.String(), "missing") || !strings.Contains(p.log.String(), "The copy is whole") {
		t.Errorf("it says: %s", p.log)
	}
	eventually(t, "all have arrived", func() bool { return len(crm.webhooks(t)) == 2*waiting+1+old })
	got, want := map[string][]int{}, map[string][]int{}
	for _, h := range crm.webhooks(t) {
		if call, err := strconv.Atoi(h.Data.CallID); err == nil && call <= old {
			got[h.Data.CallID] = append(got[h.Data.CallID], h.Data.Sequence)
		}
	}
	for i := range old {
		want[fmt.Sprint(i+1)] = []int{3}
	}
	if want["3"] = []int{3, 4}; !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("events of the old calls have the numbers %v, want %v", got, want)
	}
}

// The command says what is wrong before it changes anything, and takes a copy back: then the file
// is used again, and the database is not.
func TestCopyIsTakenBack(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the bridge again and again")
	}
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	crm := newReceiver(t, nil)
	const identity = "{2b1f3a10-5f0e-4f7b-8a53-7d0c9a0b5a11}"
	vars := variables(t, server, crm, "BRIDGE_NAME=bridge1", "LOG_LEVEL=info", "PZ_CLIENT_GUID="+identity)
	file := vars["OUTBOX_PATH"]
	filledFile(t, vars, 600, 20)
	url := withPassword(pgtest.Shared(t).Database(t))
	run := func(wantCode int, want string, args ...string) {
		t.Helper()
		p := start(t, vars, args...)
		if code := p.exitCode(); code != wantCode || !strings.Contains(p.log.String(), want) {
			t.Errorf("%v ends with %d, want %d and %q: %s", args, code, wantCode, want, p.log)
		}
		if strings.Contains(p.log.String(), "s3cret") {
			t.Errorf("%v tells the password: %s", args, p.log)
		}
	}
	run(2, "name the outbox's file", "copy")
	run(2, "name the database", "copy", file)
	run(2, "one argument too many", "copy", file, url, "more")
	run(2, "OUTBOX_URL: must be postgres://", "copy", file, "mysql://bridge:s3cret@db/bridge")
	run(1, "no such file", "copy", file+".none", url)
	run(1, "copied into no database", "copy", "-abort", file, url)

	run(0, "The copy is whole", "copy", file, url)
	run(0, "whole already", "copy", file, url)
	run(1, "is copied into another database", "copy", file, pgtest.Shared(t).Database(t))
	run(0, "The copy is taken back", "copy", "-abort", file, url)
	run(1, "copied into no database", "copy", "-abort", file, url)
	guid := vars["PZ_CLIENT_GUID"]
	delete(vars, "PZ_CLIENT_GUID")
	vars["OUTBOX_URL"] = url
	run(1, "was taken back: unset OUTBOX_URL")
	delete(vars, "OUTBOX_URL")

	bridge := start(t, vars)
	eventually(t, "what was pending has arrived", func() bool { return len(crm.webhooks(t)) == 40 })
	run(1, "stop the bridge first", "copy", file, url)
	if err := bridge.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	bridge.endsWell(t)
	vars["PZ_CLIENT_GUID"] = guid
	run(0, "The copy is whole", "copy", file, url)
	delete(vars, "PZ_CLIENT_GUID")
	vars["OUTBOX_URL"] = url
	bridge = start(t, vars)
	eventually(t, "the bridge is ready", func() bool { return ready(vars) == http.StatusOK })
	if !strings.Contains(bridge.log.String(), identity) {
		t.Errorf("it is not %s at the server: %s", identity, bridge.log)
	}
	run(1, "bridge1: stop it first", "copy", "-abort", file)
}
