package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/bolt"
	"pzbridge/outbox/bolt/bolttest"
	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// moodySender fails, keeps bytes, answers questions, and takes the rest, by what the event is.
type moodySender struct {
	mu    sync.Mutex
	fails func(n int, j store.Job) bool
	n     int
}

func (s *moodySender) NeedsCall() {}
func (s *moodySender) Close()     {}

func (s *moodySender) Send(_ context.Context, j store.Job) store.Outcome {
	s.mu.Lock()
	s.n++
	n := s.n
	s.mu.Unlock()
	out := store.Outcome{
		Verdict:  store.Done,
		Status:   200,
		Response: "taken",
		Steps:    []store.Step{{What: "look", Status: 200}},
	}
	switch {
	case s.fails(n, j):
		return store.Outcome{Verdict: store.Again, Status: 503, Response: "busy"}
	case n%37 == 0:
		return store.Outcome{Verdict: store.Refused, Status: 422}
	case n%31 == 0:
		return store.Outcome{Verdict: store.Later, Status: 202, RetryAfter: 23 * time.Hour}
	}
	if j.Event.Call != "" && n%5 == 0 {
		out.Keep = append(slices.Clone(j.Kept), '.')
	}
	if j.IsQuestion && n%2 == 0 {
		out.Reply = &store.RouteReply{To: "101"}
	}
	return out
}

// copied is a file with all that a file can have, and the options of what stands on it.
type copied struct {
	file string
	twin string // the same file, that is not moved
	opts storetest.Options

	schema string      // of the database; empty is the default
	seen   *statements // those of loaders; may be nil
}

// oldCalls is how many calls have only old events, which all endpoints have got.
const oldCalls = 30

// filled is the file of newCopied, and when it was closed.
var filled struct {
	sync.Once
	content []byte
	at      time.Time
}

// newCopied gives a file that was filled over some days of fake time, and closed while something
// was pending in each way.
func newCopied(t *testing.T, h harness) copied {
	t.Helper()
	c := copied{
		file:   filepath.Join(t.TempDir(), "outbox.db"),
		twin:   filepath.Join(t.TempDir(), "twin.db"),
		schema: h.schema,
	}
	healthy := &moodySender{fails: func(n int, _ store.Job) bool { return n%11 == 0 }}
	failing := &moodySender{fails: func(n int, _ store.Job) bool { return n > 2*oldCalls+5 }}
	reader := storetest.Endpoint("reader")
	reader.URL = ""
	c.opts = storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
		Place:     c.file,
		Logger:    slog.New(slog.DiscardHandler),
		Endpoints: []store.Endpoint{storetest.Endpoint("crm"), storetest.Endpoint("failing"), reader},
		Senders:   map[string]store.Sender{"crm": healthy, "failing": failing, "former": healthy},
	})
	c.opts.Endpoints[0].RingingTTL = time.Hour
	filled.Do(func() {
		c.fill(t)
		content, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		filled.content, filled.at = content, time.Now()
	})
	time.Sleep(time.Until(filled.at))
	for _, path := range []string{c.file, c.twin} {
		if err := os.WriteFile(path, filled.content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// fill fills the file. Its first endpoints are one more than later.
func (c *copied) fill(t *testing.T) {
	t.Helper()
	first := c.opts
	first.Endpoints = append(slices.Clone(first.Endpoints), storetest.Endpoint("former"))
	c.use(t, first, func(b *storetest.Box) {
		stop := storetest.RunBox(t, b)
		for i := range oldCalls { // before an endpoint begins to fail
			for _, kind := range []telephony.EventType{telephony.EventIncoming, telephony.EventCompleted} {
				storetest.MustAppend(t, b, storetest.Event(kind, fmt.Sprint("old-", i)))
			}
		}
		synctest.Wait()
		storetest.MustAppend(t, b, someEvents(1, 60)...)
		time.Sleep(30 * time.Hour)
		storetest.MustAppend(t, b, someEvents(2, 60)...)
		stop()
		storetest.MustAppend(t, b, someEvents(3, 10)...)
	})
	c.use(t, c.opts, func(b *storetest.Box) {
		c.fillRest(t, b)
		stop := storetest.RunBox(t, b)
		storetest.MustAppend(t, b, someEvents(4, 60)...)
		time.Sleep(20 * time.Hour)
		storetest.MustAppend(t, b, someEvents(5, 60)...)
		time.Sleep(time.Second)
		stop()
		redeliverSome(t, b)
		storetest.MustAppend(t, b, someEvents(6, 60)...)
		answerSome(t, b)
	})
}

func (c *copied) use(t *testing.T, opts storetest.Options, f func(b *storetest.Box)) {
	t.Helper()
	b, err := storetest.Open(bolttest.Harness{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	f(b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// fillRest stores what is no event.
func (c *copied) fillRest(t *testing.T, b *storetest.Box) {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.ClientGUID("{the-guid}")
	must(err)
	_, err = b.EndSessions()
	must(err)
	must(b.Outbox.Connect(ctx, false, "the operator"))
	must(b.Engine.SetNote(ctx, "crm", "token", 0, []byte("secret"), now.Add(100*time.Hour)))
	must(b.Engine.SetNote(ctx, "crm", "token", 1, []byte("newer"), time.Time{}))
	must(b.Engine.SetNote(ctx, "former", "empty", 0, nil, time.Time{}))
	for i := range 20 {
		_, err := b.Engine.ClaimKey(ctx, fmt.Sprint("bearer", i%2), [32]byte{byte(i)}, store.KeyClaim{
			ID: uuid.New(), Request: [32]byte{1, byte(i)}, Status: 200 * (i % 2), Answer: []byte("yes")[:i%4], At: now,
		})
		must(err)
		must(b.Engine.AddAudit(ctx, store.Audit{ID: uuid.New(), At: now.UTC(), Action: store.AuditPaused, Count: i}))
	}
	_, err = b.RedeliverAll(ctx, store.Redelivery{Endpoint: "crm", States: []string{"dead", "expired"}})
	must(err)
	for range 3 {
		page, err := b.Events(store.EventQuery{Endpoint: "reader", Limit: 20})
		must(err)
		b.Engine.SetRead(ctx, store.EventQuery{Endpoint: "reader"}, page, 0, now)
	}
}

// redeliverSome makes a few of the latest deliveries to crm again.
func redeliverSome(t *testing.T, b *storetest.Box) {
	t.Helper()
	list, _, err := b.Deliveries(store.DeliveryQuery{Endpoint: "crm", State: "delivered", Limit: 5})
	for _, d := range list {
		if err == nil {
			_, err = b.Redeliver(d.ID)
		}
	}
	if err != nil || len(list) < 5 {
		t.Fatal(len(list), err)
	}
}

// answerSome answers the questions of some calls.
func answerSome(t *testing.T, b *storetest.Box) {
	t.Helper()
	questions, err := b.Engine.TakeQuestions(t.Context())
	if err != nil || len(questions) < 2 {
		t.Fatal(questions, err)
	}
	for _, n := range questions[1:] {
		q, err := b.Engine.Question(t.Context(), n)
		if err == nil {
			_, err = b.Engine.ChangeRoute(t.Context(), q.Event.Call, telephony.RouteChange{
				Kind:    telephony.RouteAnswer,
				Replies: []telephony.Reply{{By: "crm", At: time.Now(), Kind: telephony.ReplyNumber, To: "101"}},
				Now:     time.Now(),
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// someEvents gives events of calls, some of which others have begun.
func someEvents(seed uint64, count int) (list []telephony.Event) {
	r := rand.New(rand.NewPCG(seed, seed))
	kinds := []telephony.EventType{
		telephony.EventIncoming, telephony.EventIncomingAnswered, telephony.EventCompleted, telephony.EventOutgoing,
		telephony.EventTransferRequested, telephony.EventSMSSent, telephony.EventOther,
	}
	for i := range count {
		call := fmt.Sprint("call-", seed, "-", r.IntN(1+count/4))
		switch r.IntN(12) {
		case 0:
			call = fmt.Sprint("call-1-", r.IntN(15))
		case 1:
			call = strings.Repeat("long", 20) // a file keeps it by its hash
		case 2:
			call = ""
		}
		e := storetest.Event(kinds[r.IntN(len(kinds))], call)
		e.From, e.To = fmt.Sprint("+7343011", 1000+r.IntN(40)), fmt.Sprint(100+r.IntN(9))
		e.Fingerprint[0], e.Fingerprint[1] = byte(seed), byte(i)
		list = append(list, e)
	}
	return list
}

// step copies one batch by a process of its own, as it were, and each batch twice, as after an
// error. It reports whether that was the last.
func (c *copied) step(t *testing.T, place string, limit int) (whole bool) {
	t.Helper()
	ctx := context.Background()
	source, loader := c.source(t), c.loader(t, place)
	defer closeAll(t, loader, source)
	mark, moved := source.Moved()
	if !moved {
		mark.ID = uuid.New()
		if err := source.Mark(mark.ID, "a database"); err != nil {
			t.Fatal(err)
		}
	}
	after, whole, err := loader.Begin(ctx, mark.ID, c.file)
	if err != nil || whole {
		t.Fatal(err, whole)
	}
	d, err := source.Dump(ctx, after, limit)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if loaded, err := loader.Load(ctx, d); err != nil || loaded.Conflicts > 0 || d.Damaged > 0 {
			t.Fatal(loaded, err, d.Damaged)
		}
	}
	return d.Next == nil
}

func closeAll(t *testing.T, list ...io.Closer) {
	t.Helper()
	for _, c := range list {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func (c *copied) source(t *testing.T) *bolt.Source {
	t.Helper()
	s, err := bolt.OpenSource(bolt.Options{
		Path: c.file, MaxBytes: 1 << 30, Rules: c.opts.Rules(), Logger: c.opts.Logger, Clock: c.opts.Clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *copied) loader(t *testing.T, place string) *Loader {
	t.Helper()
	opts := Options{
		URL:      place,
		Schema:   c.schema,
		MaxBytes: c.opts.MaxBytes,
		Rules:    c.opts.Rules(),
		Logger:   c.opts.Logger,
		Clock:    c.opts.Clock,
		Beat:     time.Hour, // as the harness has it
	}
	if c.seen != nil {
		opts.tracer = c.seen
	}
	l, err := OpenLoader(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// firstPart copies the first part.
func (c *copied) firstPart(t *testing.T, place string, limit int) {
	t.Helper()
	for has := false; !has; {
		if c.step(t, place, limit) {
			t.Fatal("there is no history")
		}
		source, loader := c.source(t), c.loader(t, place)
		mark, _ := source.Moved()
		if _, _, err := loader.Begin(t.Context(), mark.ID, c.file); err != nil {
			t.Fatal(err)
		}
		has = loader.HasFirstPart()
		closeAll(t, loader, source)
	}
}

// open opens the outbox that is at a place.
func (c *copied) open(t *testing.T, h storetest.Harness, place string) *storetest.Box {
	t.Helper()
	opts := c.opts
	opts.Place = place
	b, err := storetest.Open(h, opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compare compares all that two outboxes have stored.
func (c *copied) compare(t *testing.T, file, database *storetest.Box) {
	t.Helper()
	now := time.Now()
	want := storetest.Whole(t, file.Engine, c.opts.Endpoints, now)
	got := storetest.Whole(t, database.Engine, c.opts.Endpoints, now)
	if len(want) < 500 {
		t.Errorf("there are only %d lines", len(want))
	}
	wrong := 0
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g && wrong < 5 {
			wrong++
			t.Errorf("the file has\n%.600s\nand the database\n%.600s", w, g)
		}
	}
}

// compareRest compares what Whole does not have.
func compareRest(t *testing.T, file, database store.Engine) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"client_guid", "disconnected", "sessions", "charts"} {
		want, err := file.Setting(ctx, name, "")
		got, otherErr := database.Setting(ctx, name, "")
		if got != want || err != nil || otherErr != nil {
			t.Errorf("setting %s is %q, and was %q (%v, %v)", name, got, want, err, otherErr)
		}
	}
	for _, note := range []string{"crm/token", "former/empty", "crm/failing", "failing/failing"} {
		endpoint, name, _ := strings.Cut(note, "/")
		want, version, err := file.Note(ctx, endpoint, name, time.Now())
		got, otherVersion, otherErr := database.Note(ctx, endpoint, name, time.Now())
		if string(got) != string(want) || otherVersion != version || err != nil || otherErr != nil {
			t.Errorf("note %s is %q, %d (%v), and was %q, %d (%v)",
				note, got, otherVersion, otherErr, want, version, err)
		}
	}
	for i := range 20 {
		claim := store.KeyClaim{ID: uuid.New(), At: time.Now()}
		want, err := file.ClaimKey(ctx, fmt.Sprint("bearer", i%2), [32]byte{byte(i)}, claim)
		got, otherErr := database.ClaimKey(ctx, fmt.Sprint("bearer", i%2), [32]byte{byte(i)}, claim)
		if err != nil || otherErr != nil || fmt.Sprint(want) != fmt.Sprint(got) {
			t.Errorf("key %d is %v, and was %v (%v, %v)", i, got, want, err, otherErr)
		}
	}
}

// skipCopy skips a test that copies a file once more, where one copy is enough.
func skipCopy(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it copies a file once more")
	}
}

// A copy that is broken off after each batch, and each batch of which is loaded twice, has all that
// the file has. What comes afterwards goes on in both in the same way: calls and their numbers,
// replays, deliveries, keys, redeliveries.
func TestCopyHasAllOfTheFile(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{40, 1000} {
		t.Run(fmt.Sprint("batches of ", limit), func(t *testing.T) {
			t.Parallel()
			if limit > 40 {
				skipCopy(t)
			}
			h := newHarness(t)
			place := h.Place(t)
			synctest.Test(t, func(t *testing.T) {
				c := newCopied(t, h)
				steps := 1
				for !c.step(t, place, limit) {
					steps++
				}
				t.Logf("%d batches", steps)
				file, database := c.open(t, bolttest.Harness{}, c.twin), c.open(t, h, place)
				defer closeAll(t, file, database)
				h.Check(t, database.Engine)
				checkVariety(t, database.Engine.(*Engine))
				checkKeyBytes(t, database.Engine.(*Engine))
				c.compare(t, file, database)
				compareRest(t, file.Engine, database.Engine)

				events := someEvents(7, 60)
				for _, e := range someEvents(6, 60) { // the exchange sends them again
					if e.ID, e.Replayed = uuid.Must(uuid.NewV7()).String(), true; e.CallID != "" {
						events = append(events, e)
					}
				}
				for _, b := range []*storetest.Box{file, database} {
					storetest.MustAppend(t, b, slices.Clone(events)...)
					redeliverAll(t, b.Engine)
				}
				h.Check(t, database.Engine)
				c.compare(t, file, database)
			})
		})
	}
}

// redeliverAll makes all deliveries to crm again.
func redeliverAll(t *testing.T, e store.Engine) {
	t.Helper()
	r := store.Redelivery{Endpoint: "crm", Token: [16]byte{7}}
	last, err := e.LastNumber(t.Context())
	if err == nil {
		r.Number, err = e.AddRedelivery(t.Context(), r, time.Now())
	}
	for from := uint64(0); from <= last && err == nil; {
		_, from, err = e.RedeliverSome(t.Context(), r, from, last, time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkKeyBytes checks that the bytes of bearers are those of their keys.
func checkKeyBytes(t *testing.T, s *Engine) {
	t.Helper()
	var bearers, wrong int
	err := s.view(t.Context(), func(tx *txn) error {
		_, err := tx.queryRow([]any{&bearers, &wrong}, `SELECT count(*), count(*) FILTER (WHERE size <>
			(SELECT sum(size) FROM claim WHERE claim.bearer = bearer.name)) FROM bearer`)
		return err
	})
	if err != nil || bearers != 2 || wrong > 0 {
		t.Errorf("of %d bearers, the bytes of %d are wrong (%v)", bearers, wrong, err)
	}
}

// checkVariety checks that the tests' file has something of each kind.
func checkVariety(t *testing.T, s *Engine) {
	t.Helper()
	for _, what := range []string{
		"pending WHERE due = 0", "pending WHERE due > 0", "pending WHERE due = -1", "pending WHERE due = -2",
		"pending WHERE put_off", "pending WHERE history IS NOT NULL", "pending WHERE redelivered > 0",
		"ended WHERE state = 1", "ended WHERE state = 2", "ended WHERE state = 3", "ended WHERE request > 0",
		"question", "kept WHERE version > 1", "note", "claim WHERE status = 0", "route", "audit", "redelivery",
		"endpoint WHERE read_up_to > 0", "event WHERE call = ''", "event WHERE from_key <> ''",
		"route WHERE convert_from(value, 'UTF8') LIKE '%\"won\"%'",
	} {
		count := 0
		err := s.view(t.Context(), func(tx *txn) error {
			_, err := tx.queryRow([]any{&count}, "SELECT count(*) FROM "+what)
			return err
		})
		if err != nil || count == 0 {
			t.Errorf("there is no %s (%v)", what, err)
		}
	}
}

// codeOf is the code of an error.
func codeOf(err error) telephony.Code {
	var fault *telephony.Fault
	if !errors.As(err, &fault) {
		return ""
	}
	return fault.Code
}

// refuses checks that an outbox cannot be opened.
func (c *copied) refuses(t *testing.T, h storetest.Harness, place string, want telephony.Code) {
	t.Helper()
	opts := c.opts
	opts.Place = place
	b, err := storetest.Open(h, opts)
	if codeOf(err) != want {
		t.Errorf("opened with %v, want %s", err, want)
	}
	if err == nil {
		closeAll(t, b)
	}
}

// From its first batch on no bridge opens the file, and none the database until the first part is
// whole. Then one may deliver while the history follows: what it appends goes on behind what is
// stored of old calls, and is missing in no number. Nothing is read, forgotten or made again before
// its time.
func TestBridgeRunsWhileTheHistoryFollows(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	h := newHarness(t)
	place := h.Place(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCopied(t, h)
		ctx := t.Context()
		for range 3 {
			c.step(t, place, 20)
			c.refuses(t, bolttest.Harness{}, c.file, telephony.CodeMoved)
			c.refuses(t, h, place, telephony.CodeHalfCopied)
		}
		c.firstPart(t, place, 20)
		c.refuses(t, bolttest.Harness{}, c.file, telephony.CodeMoved)
		file, database := c.open(t, bolttest.Harness{}, c.twin), c.open(t, h, place)
		defer closeAll(t, file, database)
		h.Check(t, database.Engine)

		_, err := database.Events(store.EventQuery{Limit: 10})
		if !errors.Is(err, store.ErrStillCopied) {
			t.Errorf("reading from the oldest event on ends with %v", err)
		}
		for _, after := range []string{"now", fmt.Sprint(lastNumber(t, file) - 1), readerCursor(t, file)} {
			q := store.EventQuery{Endpoint: "reader", After: after, Limit: 10}
			want, err := file.Events(q)
			got, otherErr := database.Events(q)
			if err != nil || otherErr != nil || fmt.Sprint(want) != fmt.Sprint(got) {
				t.Errorf("after %s there is %v, %v, and in the file %v, %v", after, got, otherErr, want, err)
			}
		}
		if _, err := database.Engine.Forget(ctx, "x", true); !errors.Is(err, store.ErrStillCopied) {
			t.Errorf("forgetting ends with %v", err)
		}
		_, err = database.RedeliverAll(ctx, store.Redelivery{Endpoint: "crm"})
		if !errors.Is(err, store.ErrStillCopied) {
			t.Errorf("redelivering ends with %v", err)
		}
		for i, isWhole := uint64(0), false; !isWhole; i++ {
			// Also of calls of which only the latest event is there yet.
			events := someEvents(20+i, 5)
			old := storetest.Event(telephony.EventOther, fmt.Sprint("old-", i))
			for _, b := range []*storetest.Box{file, database} {
				storetest.MustAppend(t, b, append(events[:len(events):len(events)], old)...)
			}
			isWhole = c.step(t, place, 20)
		}
		h.Check(t, database.Engine)
		c.compare(t, file, database)
		compareRest(t, file.Engine, database.Engine)
	})
}

func lastNumber(t *testing.T, b *storetest.Box) uint64 {
	t.Helper()
	n, err := b.Engine.LastNumber(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// readerCursor is where the endpoint reader has read to: see fillRest.
func readerCursor(t *testing.T, b *storetest.Box) string {
	t.Helper()
	page, err := b.Events(store.EventQuery{Endpoint: "reader", Limit: 20})
	if err != nil {
		t.Fatal(err)
	}
	return page.Cursor
}

// Calls whose IDs no column can have are found by these, and go on.
func TestCopyHasCallsOfStrangeIDs(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	place := h.Place(t)
	c := copied{file: filepath.Join(t.TempDir(), "outbox.db"), schema: h.schema}
	c.opts = storetest.WithDefaults(t, bolttest.Harness{}, storetest.Options{
		Place: c.file, Logger: slog.New(slog.DiscardHandler),
	})
	calls := []string{strings.Repeat("longer", 200), "bad \xff byte", "zero \x00 byte"}
	c.use(t, c.opts, func(b *storetest.Box) {
		for _, call := range calls {
			storetest.MustAppend(t, b, storetest.Event(telephony.EventTransferRequested, call))
		}
	})
	for !c.step(t, place, 100) {
	}
	b := c.open(t, h, place)
	defer closeAll(t, b)
	for _, call := range calls {
		storetest.MustAppend(t, b, storetest.Event(telephony.EventCompleted, call))
		page, err := b.Call(call, 0)
		goesOn := err == nil && len(page.Events) == 2 && page.Events[1].Sequence == 2
		if !goesOn || page.Route == nil || page.Route.OverAt.IsZero() {
			t.Errorf("call %.20q is %+v (%v)", call, page, err)
		}
	}
	h.Check(t, b.Engine)
}

// takeBack takes the copy back, as the command does.
func (c *copied) takeBack(t *testing.T, place string) error {
	t.Helper()
	source, loader := c.source(t), c.loader(t, place)
	defer closeAll(t, loader, source)
	mark, _ := source.Moved()
	if err := loader.TakeBack(t.Context(), mark.ID, c.file, source); err != nil {
		return err
	}
	return source.Unmark()
}

// A copy can be taken back at any time as long as the database has delivered and stored nothing.
// Then the file is what it was, and the database empty: no bridge starts on it until a file is
// copied again.
func TestCopyIsTakenBack(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	for name, until := range map[string]func(t *testing.T, c *copied, place string){
		"in the first part": func(t *testing.T, c *copied, place string) {
			for range 3 {
				c.step(t, place, 20)
			}
		},
		"in the history": func(t *testing.T, c *copied, place string) { c.firstPart(t, place, 20) },
		"after a bridge that did nothing": func(t *testing.T, c *copied, place string) {
			for !c.step(t, place, 100) {
			}
			closeAll(t, c.open(t, newHarness(t), place))
		},
		"broken off": func(t *testing.T, c *copied, place string) {
			c.firstPart(t, place, 20)
			source, loader := c.source(t), c.loader(t, place)
			defer closeAll(t, loader, source)
			mark, _ := source.Moved()
			if err := loader.TakeBack(t.Context(), mark.ID, c.file, source); err != nil { // and not unmarked
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name != "in the first part" {
				skipCopy(t)
			}
			h := newHarness(t)
			place := h.Place(t)
			synctest.Test(t, func(t *testing.T) {
				c := newCopied(t, h)
				until(t, &c, place)
				if err := c.takeBack(t, place); err != nil {
					t.Fatal(err)
				}
				c.refuses(t, h, place, telephony.CodeTakenBack)
				before, after := c.open(t, bolttest.Harness{}, c.twin), c.open(t, bolttest.Harness{}, c.file)
				c.compare(t, before, after)
				storetest.MustAppend(t, after, someEvents(30, 10)...)
				storetest.MustAppend(t, before, someEvents(30, 10)...)
				closeAll(t, before, after)

				for !c.step(t, place, 100) {
				}
				closeAll(t, c.open(t, h, place))
			})
		})
	}
}

// What the database has delivered or stored, the file has not: a copy is not taken back any more,
// and goes on.
func TestCopyInUseIsNotTakenBack(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	for name, use := range map[string]func(t *testing.T, b *storetest.Box){
		"an event": func(t *testing.T, b *storetest.Box) { storetest.MustAppend(t, b, someEvents(30, 1)...) },
		"an attempt": func(t *testing.T, b *storetest.Box) {
			lane, err := b.Engine.Lane(t.Context(), "crm", true)
			if err != nil {
				t.Fatal(err)
			}
			claimed, err := lane.Claim(t.Context(), time.Now(), 1, nil)
			if err != nil || len(claimed.Jobs) != 1 {
				t.Fatal(claimed, err)
			}
			j := claimed.Jobs[0]
			now := j.Delivery
			now.Attempts++
			made := &store.Attempt{At: time.Now(), Status: 503}
			if err := lane.Record(t.Context(), []store.Result{{Job: j, Now: now, Attempt: made}}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			place := h.Place(t)
			synctest.Test(t, func(t *testing.T) {
				c := newCopied(t, h)
				c.firstPart(t, place, 50)
				b := c.open(t, h, place)
				if err := c.takeBack(t, place); !errors.Is(err, ErrBridge) {
					t.Errorf("while a bridge runs it ends with %v", err)
				}
				use(t, b)
				closeAll(t, b)
				for range 2 {
					if err := c.takeBack(t, place); !errors.Is(err, ErrDelivered) {
						t.Errorf("it ends with %v", err)
					}
					closeAll(t, c.open(t, h, place))
					c.breakOffTakingBack(t, place)
					c.refuses(t, h, place, telephony.CodeTakenBack)
				}
				c.refuses(t, bolttest.Harness{}, c.file, telephony.CodeMoved)
				for !c.step(t, place, 100) {
				}
				closeAll(t, c.open(t, h, place))
			})
		})
	}
}

// breakOffTakingBack leaves a database as a process does that is killed while it compares.
func (c *copied) breakOffTakingBack(t *testing.T, place string) {
	t.Helper()
	l := c.loader(t, place)
	defer closeAll(t, l)
	if err := l.engine.change(t.Context(), func(tx *txn) error {
		state, _, err := tx.copyState()
		state.TakingBack = true
		return errors.Join(err, tx.putCopyState(state))
	}); err != nil {
		t.Fatal(err)
	}
}

// What was loaded last is lost with a server that is killed, and is loaded again.
func TestCopyGoesOnAfterTheServerWasKilled(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	server := pgtest.New(t, "wal_writer_delay=10s")
	h := harness{server: server}
	place := h.Place(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCopied(t, h)
		lost := 0
		for steps := 1; !c.step(t, place, 20); steps++ {
			if steps%4 != 0 {
				continue
			}
			before := c.position(t, place)
			server.Kill(t)
			server.Start(t)
			if c.position(t, place) != before {
				lost++
			}
		}
		if lost == 0 {
			t.Error("nothing was lost")
		}
		file, database := c.open(t, bolttest.Harness{}, c.twin), c.open(t, h, place)
		defer closeAll(t, file, database)
		h.Check(t, database.Engine)
		c.compare(t, file, database)
		compareRest(t, file.Engine, database.Engine)
	})
}

// position is where the copy stands.
func (c *copied) position(t *testing.T, place string) (position string) {
	t.Helper()
	l := c.loader(t, place)
	defer closeAll(t, l)
	if err := l.engine.look(t.Context(), func(tx *txn) error {
		state, _, err := tx.copyState()
		position = string(state.Position)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return position
}

// Only an empty database that no bridge uses is taken, and only one file is copied into it.
func TestCopyTakesAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	h := newHarness(t)
	used, free := h.Place(t), h.Place(t)
	synctest.Test(t, func(t *testing.T) {
		c, other := newCopied(t, h), newCopied(t, h)
		b := c.open(t, h, used)
		check := func(place string, want error) {
			t.Helper()
			l := other.loader(t, place)
			defer closeAll(t, l)
			id := uuid.New()
			if err := l.Check(t.Context(), id); !errors.Is(err, want) {
				t.Errorf("it is checked with %v, want %v", err, want)
			}
			if _, _, err := l.Begin(t.Context(), id, other.file); !errors.Is(err, want) {
				t.Errorf("it begins with %v, want %v", err, want)
			}
		}
		check(used, ErrBridge)
		closeAll(t, b)
		c.refuses(t, h, used, telephony.CodeHalfCopied) // it has begun
		c.step(t, free, 20)
		check(free, ErrOtherCopy)
		occupied := c.open(t, h, h.server.Database(t))
		storetest.MustAppend(t, occupied, someEvents(1, 1)...)
		place := occupied.Engine.(*Engine).pool.Config().ConnString()
		closeAll(t, occupied)
		check(place, ErrNotEmpty)
		closeAll(t, c.open(t, h, place))
	})
}

// The history ends where the database would be nearly full, and what is missing counts as removed:
// whoever reads from an earlier event on learns that.
func TestHistoryEndsWhereTheDatabaseIsNearlyFull(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	h := newHarness(t)
	place := h.Place(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCopied(t, h)
		c.firstPart(t, place, 20)
		b := c.open(t, h, place)
		used, _, err := b.Engine.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		closeAll(t, b)
		c.opts.MaxBytes = (used + 8000) * 10 / 9 // the next five events fit into nine tenths of it
		ends := false
		for steps := 0; !ends; steps++ {
			source, loader := c.source(t), c.loader(t, place)
			mark, _ := source.Moved()
			after, whole, err := loader.Begin(t.Context(), mark.ID, c.file)
			d, dumpErr := source.Dump(t.Context(), after, 5)
			loaded, loadErr := loader.Load(t.Context(), d)
			if err != nil || whole || dumpErr != nil || loadErr != nil || d.Next == nil {
				t.Fatal(err, whole, dumpErr, loadErr, d.Next)
			}
			if ends = loaded.Full; ends && steps == 0 {
				t.Error("there was no room at all")
			}
			closeAll(t, loader, source)
		}
		b = c.open(t, h, place)
		defer closeAll(t, b)
		h.Check(t, b.Engine)
		var pruned *store.PrunedError
		if _, err := b.Events(store.EventQuery{After: "1", Limit: 10}); !errors.As(err, &pruned) {
			t.Errorf("it ends with %v", err)
		}
		page, err := b.Events(store.EventQuery{After: pruned.Oldest, Limit: 10})
		if err != nil || len(page.Events) == 0 {
			t.Errorf("after %s there is %v (%v)", pruned.Oldest, page, err)
		}
	})
}

// Every statement of a copy uses an index of each table that may be large, also if it is planned
// while the table is empty: the history is loaded while bridges work.
func TestCopyReadsNoTableWhole(t *testing.T) {
	t.Parallel()
	skipCopy(t)
	h := newHarness(t)
	if h.schema != "" {
		t.Skip("behind a pooler, statements are planned as without")
	}
	full, empty := h.Place(t), h.Place(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCopied(t, h)
		c.seen = &statements{args: map[string][]any{}}
		for !c.step(t, empty, 100) {
		}
		if err := c.takeBack(t, empty); err != nil {
			t.Fatal(err)
		}
		for !c.step(t, full, 100) {
		}
		seen := c.seen.args
		if len(seen) < 30 {
			t.Fatalf("only %d statements were sent", len(seen))
		}
		c.seen = nil
		for _, place := range []string{full, empty} {
			l := c.loader(t, place)
			defer closeAll(t, l)
			if _, err := l.engine.pool.Exec(t.Context(), "ANALYZE"); err != nil {
				t.Fatal(err)
			}
			for sql, args := range seen {
				if plan := explain(t, l.engine.pool, sql, args); isScan(plan) {
					t.Errorf("%s\nis planned so:\n%s", sql, plan)
				}
			}
		}
	})
}
