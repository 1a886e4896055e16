package recordings_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/phone"
	"pzbridge/internal/recordings"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// events are those that are stored: all but the forgotten ones.
type events struct {
	mu        sync.Mutex
	forgotten map[string]bool
}

func (e *events) Event(_ context.Context, id string) (store.Event, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.forgotten[id] {
		return store.Event{}, store.ErrNotFound
	}
	return store.Event{}, nil
}

func (e *events) forget(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forgotten[id] = true
}

// bench is a keeper with its folder.
type bench struct {
	*recordings.Keeper
	dir    string
	events *events
	log    *strings.Builder
	plan   *phone.Plan
}

// newBench returns a keeper that fetches from some places.
func newBench(t *testing.T, from, rewrites string, change ...func(*recordings.Options)) *bench {
	t.Helper()
	allowed, err := recordings.ParseAllowed(from)
	if err != nil {
		t.Fatal(err)
	}
	list, err := recordings.ParseRewrites(rewrites, allowed)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := phone.New(phone.Options{Region: "RU", InternalDigits: 6})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		dir:    filepath.Join(t.TempDir(), "recordings"),
		events: &events{forgotten: map[string]bool{}},
		log:    &strings.Builder{},
		plan:   plan,
	}
	o := recordings.Options{
		Dir:       b.dir,
		From:      allowed,
		Map:       list,
		Retention: 24 * time.Hour,
		MaxBytes:  10 << 20,
		PublicURL: "https://bridge.example",
		Key:       []byte("a key"),
		NumberKey: plan.Key,
		Events:    b.events,
		Stopping:  context.Background(),
		Logger:    slog.New(slog.NewTextHandler(b.log, nil)),
	}
	for _, f := range change {
		f(&o)
	}
	if b.Keeper, err = recordings.New(o); err != nil {
		t.Fatal(err)
	}
	return b
}

// completed returns the delivery of a call with a recording, which has ended some time ago.
func completed(address string, age time.Duration) store.Job {
	e := telephony.Event{
		ID:     uuid.Must(uuid.NewV7()).String(),
		Type:   telephony.EventCompleted,
		Time:   time.Now().Add(-age),
		CallID: "470657307770881", From: "73430112233", To: "79161234567", Line: "73432000000",
		Client: "+73430112233", Extension: "101", Direction: telephony.Incoming,
		RecordingURL: address,
	}
	encoded, err := store.Encode(&e, time.Second)
	if err != nil {
		panic(err)
	}
	encoded.Body = encoded.AppendBody(nil, 1, telephony.OutcomeAnswered)
	return store.Job{Event: encoded.Event, EventID: e.ID}
}

// long is the age of a call whose file is not written to any more.
const long = time.Hour

// sound is a file that is an mp3 by its beginning.
func sound(size int) string { return "ID3" + strings.Repeat("~", size-3) }

// files returns the names of all files in the folder.
func (b *bench) files(t *testing.T) (list []string) {
	t.Helper()
	err := filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, filepath.Base(path))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

// fetched fails the test unless an outcome is that a recording was fetched, and returns the event.
func fetched(t *testing.T, o store.Outcome) telephony.Event {
	t.Helper()
	if o.Verdict != store.Done || len(o.Events) != 1 {
		t.Fatalf("%d %v", o.Verdict, o.Err)
	}
	return o.Events[0]
}

func verdictOf(o store.Outcome) string { return fmt.Sprintf("%d: %v", o.Verdict, o.Err) }
