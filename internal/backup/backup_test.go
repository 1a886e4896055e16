package backup

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
)

// The nights of the tests are those of UTC, wherever they run.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	m.Run()
}

// names gives the names of the files in a folder.
func names(t *testing.T, folder string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// put makes empty files.
func put(t *testing.T, folder string, list ...string) {
	t.Helper()
	for _, name := range list {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func content(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

var noon = time.Date(2026, time.December, 1, 12, 0, 0, 0, time.UTC)

func TestCopyIsNamedByItsTime(t *testing.T) {
	f := Folder{filepath.Join(t.TempDir(), "new", "folder"), 7}
	for layout, want := range map[int]string{
		0: "outbox-2026-12-01T120000Z.db",
		5: "outbox-2026-12-01T120000Z-before-layout-5.db",
	} {
		path, err := f.Write(noon.In(time.FixedZone("", 5*3600)), layout, content("whole"))
		if err != nil || path != filepath.Join(f.Dir, want) {
			t.Fatalf("%s, %v", path, err)
		}
		if got, err := os.ReadFile(path); string(got) != "whole" || err != nil {
			t.Errorf("it holds %q, %v", got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others can read it: %v, %v", info.Mode(), err)
		}
	}
}

// While it is written, and after a failure, there is no file with the name of a copy.
func TestUnfinishedCopyHasNoNameOfACopy(t *testing.T) {
	f := Folder{t.TempDir(), 7}
	broken := errors.New("the disk is full")
	_, err := f.Write(noon, 0, func(w io.Writer) error {
		if got := names(t, f.Dir); !slices.Equal(got, []string{"outbox-2026-12-01T120000Z.db.part"}) {
			t.Errorf("meanwhile there is %q", got)
		}
		_, _ = io.WriteString(w, "a part")
		return broken
	})
	if !errors.Is(err, broken) || len(names(t, f.Dir)) > 0 {
		t.Errorf("%v; there is %q", err, names(t, f.Dir))
	}
}

// Only the oldest copies go, and nothing that the program has not made.
func TestPruneRemovesOwnCopiesOnly(t *testing.T) {
	f := Folder{t.TempDir(), 2}
	others := []string{
		"outbox-2020-01-01T000000Z.db.gz", "my-outbox-2020-01-01T000000Z.db", "outbox-2020-01-01.db", "outbox.db",
		"outbox-2020-13-01T000000Z.db", "outbox-2020-01-01T000000Z-before-layout-.db",
		"outbox-2020-01-01T000000Z-before-layout-5-of-anna.db", "outbox-2020-01-01T000000Z-anna.db", "notes.part",
	}
	put(t, f.Dir, others...)
	folder := "outbox-2019-01-01T000000Z.db"
	if err := os.Mkdir(filepath.Join(f.Dir, folder), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, f.Dir, "outbox-2026-11-28T010000Z.db", "outbox-2026-11-29T010000Z-before-layout-4.db",
		"outbox-2026-11-30T010000Z.db", "outbox-2026-12-01T010000Z.db", "outbox-2026-11-30T020000Z.db.part")
	if err := f.Prune(filepath.Join(f.Dir, "outbox-2026-12-01T010000Z.db")); err != nil {
		t.Fatal(err)
	}
	want := append(slices.Clone(others), folder, "outbox-2026-11-30T010000Z.db", "outbox-2026-12-01T010000Z.db")
	slices.Sort(want)
	if got := names(t, f.Dir); !slices.Equal(got, want) {
		t.Errorf("there is\n%q, want\n%q", got, want)
	}
}

// A clock that was wrong has left a copy of the future. It displaces no new one, and none counts as
// missing or as made because of it.
func TestCopyOfTheFutureDisplacesNone(t *testing.T) {
	f := Folder{t.TempDir(), 1}
	put(t, f.Dir, "outbox-2099-01-01T000000Z.db", "outbox-2026-11-30T010000Z.db")
	newest, err := f.Newest(noon)
	if want := time.Date(2026, 11, 30, 1, 0, 0, 0, time.UTC); err != nil || !newest.Equal(want) {
		t.Errorf("the newest is of %s, %v", newest, err)
	}
	made, err := f.Write(noon, 0, content("new"))
	if err := errors.Join(err, f.Prune(made)); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names(t, f.Dir), filepath.Base(made)) {
		t.Errorf("there is %q", names(t, f.Dir))
	}
}

func TestLastNight(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := func(month time.Month, day, hour, minute int) time.Time {
		return time.Date(2026, month, day, hour, minute, 0, 0, berlin)
	}
	for _, c := range []struct{ now, want time.Time }{
		{at(12, 1, 12, 0), at(12, 1, 4, 0)},
		{at(12, 1, 3, 59), at(11, 30, 4, 0)},
		{at(12, 1, 4, 0), at(12, 1, 4, 0)},
		{at(3, 29, 5, 0), at(3, 29, 4, 0)},    // the clock was set forward at 2
		{at(10, 25, 2, 30), at(10, 24, 4, 0)}, // this half hour comes twice
	} {
		if got := lastNight(c.now); !got.Equal(c.want) {
			t.Errorf("at %s: %s, want %s", c.now, got, c.want)
		}
	}
}

// night is a Nightly with what it copies and counts.
type night struct {
	folder Folder
	log    logtest.Buffer

	mu           sync.Mutex
	usable, fail error
	found        time.Time
	made, failed int
}

func (n *night) BackupFound(at time.Time) { n.found = at }
func (n *night) BackupMade(time.Time)     { n.made++ }
func (n *night) BackupFailed()            { n.failed++ }

// runs runs a Nightly in a bubble, in which it is midnight in UTC.
func runs(t *testing.T, n *night, f func()) {
	t.Helper()
	nightly, err := New(Options{
		Folder: n.folder,
		Copy: func(begin func(int64) io.Writer) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			_, err := io.WriteString(begin(5), "whole")
			return errors.Join(err, n.fail)
		},
		Usable: func(context.Context) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.usable
		},
		Logger:   slog.New(slog.NewTextHandler(&n.log, nil)),
		Observer: n,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := nightly.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	f()
	synctest.Wait()
	stop()
	ended.Wait()
}

// The first copy is made soon after the start, the next ones at four, and the oldest go.
func TestCopyIsMadeEachNight(t *testing.T) {
	n := &night{folder: Folder{t.TempDir(), 2}}
	synctest.Test(t, func(t *testing.T) {
		runs(t, n, func() {
			time.Sleep(time.Minute)
			if got := names(t, n.folder.Dir); !slices.Equal(got, []string{"outbox-2000-01-01T000010Z.db"}) {
				t.Errorf("after a minute there is %q", got)
			}
			time.Sleep(3*24*time.Hour - 2*time.Minute)
		})
	})
	got := names(t, n.folder.Dir)
	if len(got) != 2 || !strings.HasPrefix(got[0], "outbox-2000-01-02T0400") ||
		!strings.HasPrefix(got[1], "outbox-2000-01-03T0400") {
		t.Errorf("there is %q", got)
	}
	if n.made != 4 || n.failed != 0 {
		t.Errorf("%d made, %d failed: %s", n.made, n.failed, &n.log)
	}
}

// A start after a night with a copy makes none before the next night.
func TestRestartMakesNoCopyTwice(t *testing.T) {
	n := &night{folder: Folder{t.TempDir(), 7}}
	put(t, n.folder.Dir, "outbox-1999-12-31T040020Z.db")
	synctest.Test(t, func(t *testing.T) { runs(t, n, func() { time.Sleep(3 * time.Hour) }) })
	if n.made != 0 || n.found.IsZero() {
		t.Errorf("%d made; found: %s", n.made, n.found)
	}
}

// What fails is logged and counted, and tried again; what is not worth copying displaces nothing.
func TestFailedCopyIsTriedAgain(t *testing.T) {
	for name, c := range map[string]*night{
		"the disk is full":      {fail: errors.New("no space left")},
		"the outbox is damaged": {usable: errors.New("a page is damaged")},
	} {
		t.Run(name, func(t *testing.T) {
			c.folder = Folder{t.TempDir(), 1}
			put(t, c.folder.Dir, "outbox-1999-12-30T040020Z.db")
			synctest.Test(t, func(t *testing.T) {
				runs(t, c, func() {
					time.Sleep(90 * time.Minute)
					synctest.Wait()
					if got := names(t, c.folder.Dir); len(got) != 1 || c.failed != 2 || c.made != 0 {
						t.Errorf("%d failed, %d made, there is %q", c.failed, c.made, got)
					}
					if n := strings.Count(c.log.String(), "level=WARN"); n != 2 {
						t.Errorf("the log: %s", &c.log)
					}
					c.mu.Lock()
					c.fail, c.usable = nil, nil
					c.mu.Unlock()
					time.Sleep(time.Hour)
				})
			})
			if c.made != 1 {
				t.Errorf("%d made: %s", c.made, &c.log)
			}
		})
	}
}

// A shutdown does not wait for a copy, and leaves nothing of it.
func TestShutdownBreaksOffACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &night{folder: Folder{t.TempDir(), 7}}
		ctx, stop := context.WithCancel(t.Context())
		nightly, err := New(Options{
			Folder: n.folder,
			Copy: func(begin func(int64) io.Writer) error {
				w := begin(1 << 40)
				for {
					if _, err := w.Write(make([]byte, 4096)); err != nil {
						return err
					}
					time.Sleep(time.Second)
				}
			},
			Usable:   func(context.Context) error { return nil },
			Logger:   slog.New(slog.NewTextHandler(&n.log, nil)),
			Observer: n,
		})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- nightly.Run(ctx) }()
		time.Sleep(time.Minute)
		stop()
		if err := <-ended; err != nil || n.failed != 0 || len(names(t, n.folder.Dir)) > 0 {
			t.Errorf("%v, %d failed, there is %q", err, n.failed, names(t, n.folder.Dir))
		}
	})
}
