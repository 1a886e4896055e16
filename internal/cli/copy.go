package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/google/uuid"

	"pzbridge/internal/backup"
	"pzbridge/internal/clock"
	"pzbridge/internal/config"
	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/bolt"
	"pzbridge/outbox/postgres"
	"pzbridge/outbox/store"
)

const copyHelp = "Bring the contents of an outbox's file into an empty PostgreSQL database, which several bridges " +
	"can share. The bridge\nmust be stopped. First comes all that deliveries need; then bridges may start on the " +
	"database, while the history follows.\nWithout OUTBOX_URL on the command line that of the environment counts, " +
	"which hides the password from other users. The\ncommand may be broken off and run again. " +
	"From its beginning on no bridge opens the file."

func (p Program) copy(ctx context.Context, args []string) error {
	fs := p.flags("copy [flags] FILE [OUTBOX_URL]", copyHelp)
	abort := fs.Bool("abort", false, "take a copy back as long as the database has delivered nothing: "+
		"empty the database, and let\nthe bridge use the file again")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 2); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return usageError("name the outbox's file, such as data/outbox.db")
	}
	m, err := p.openMove(ctx, fs.Arg(0), fs.Arg(1))
	if err != nil {
		return err
	}
	if *abort {
		return errors.Join(m.takeBack(ctx), m.close())
	}
	return errors.Join(m.run(ctx), m.close())
}

// move is the copy of a file into a database.
type move struct {
	file, place string // for people
	source      *bolt.Source
	loader      *postgres.Loader
	guid        string // that PZ_CLIENT_GUID sets; empty if the file has it
	progress    progress
}

func (p Program) openMove(ctx context.Context, path, url string) (*move, error) {
	ofFile, ofDatabase, err := moveConfigs(path, url)
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	logger := ofFile.Logger(p.Err, config.LogOutput{Terminal: isTerminal(p.Err), Colour: showsColours(p.Err)})
	ages := clock.New(time.Time{}, time.Time{}) // what the file doubts of the clock, the database doubts then
	source, err := bolt.OpenSource(bolt.Options{
		Path:     path,
		MaxBytes: ofFile.OutboxMaxBytes,
		Rules:    moveRules(ofFile),
		Logger:   logger,
		Clock:    ages,
		Migrating: func(layout int, write func(io.Writer) error) error {
			if ofFile.BackupDir == "" {
				return nil
			}
			return backup.Folder{Dir: ofFile.BackupDir, Keep: ofFile.BackupKeep}.BeforeLayout(layout, write, logger)
		},
	})
	if err != nil {
		return nil, err
	}
	loader, err := postgres.OpenLoader(ctx, postgres.Options{
		URL:      ofDatabase.OutboxURL,
		Schema:   ofDatabase.OutboxSchema,
		MaxBytes: ofDatabase.OutboxMaxBytes,
		Rules:    moveRules(ofDatabase),
		Logger:   logger,
		Clock:    ages,
	})
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return &move{
		file:     file,
		place:    ofDatabase.OutboxPlace(),
		source:   source,
		loader:   loader,
		guid:     ofFile.Identity.GUID,
		progress: progress{out: p.Out, isTerminal: isTerminal(p.Out)},
	}, nil
}

// moveConfigs returns the configuration of a bridge with the file, and that of one with the
// database. Each refuses some variables that the other needs.
func moveConfigs(path, url string) (ofFile, ofDatabase config.Config, err error) {
	vars, err := config.Environment()
	if err != nil {
		return config.Config{}, config.Config{}, err
	}
	if url != "" {
		vars["OUTBOX_URL"] = url
		delete(vars, "OUTBOX_URL_FILE")
	}
	if vars["OUTBOX_URL"] == "" && vars["OUTBOX_URL_FILE"] == "" {
		err := usageError("name the database: set OUTBOX_URL, or write it behind the file")
		return config.Config{}, config.Config{}, err
	}
	with := func(path string, without ...string) (config.Config, error) {
		some := maps.Clone(vars)
		some["OUTBOX_PATH"] = path
		for _, name := range without {
			delete(some, name)
		}
		return config.Load(some)
	}
	if ofFile, err = with(path, "OUTBOX_URL", "OUTBOX_URL_FILE", "LISTENERS"); err == nil {
		ofDatabase, err = with(path, "PZ_CLIENT_GUID", "BACKUP_DIR")
	}
	return ofFile, ofDatabase, err
}

// moveRules are the rules that the copy needs. It appends nothing and changes no route.
func moveRules(cfg config.Config) store.Rules {
	return outbox.Rules(outbox.RulesOptions{
		Endpoints:          cfg.Endpoints,
		RetrySchedule:      cfg.RetrySchedule,
		OrderHold:          cfg.OrderHold,
		RoutingTimeout:     cfg.RoutingTimeout,
		QuietWithoutWinner: cfg.QuietWithoutWinner,
		Numbers:            cfg.Phone,
	})
}

func (m *move) close() error { return errors.Join(m.loader.Close(), m.source.Close()) }

// checkPlace fails if the file is marked as moved to another database.
func (m *move) checkPlace(ctx context.Context) error {
	mark, isMoved := m.source.Moved()
	if !isMoved || mark.Database == m.place {
		return nil
	}
	known, err := m.loader.Knows(ctx, mark.ID) // the same one may be reached by another name
	if err == nil && !known {
		err = &telephony.Fault{
			Code: telephony.CodeMovedElsewhere,
			Args: []string{mark.Database},
			Text: m.file + " is copied into another database, the " + mark.Database,
		}
	}
	return err
}

// begin marks the file and the database.
func (m *move) begin(ctx context.Context) (after []byte, whole bool, err error) {
	if err := m.checkPlace(ctx); err != nil {
		return nil, false, err
	}
	mark, isMoved := m.source.Moved()
	if !isMoved {
		mark.ID = uuid.New()
		// Before anything is changed.
		if err := m.loader.Check(ctx, mark.ID); err != nil {
			return nil, false, err
		}
		if err := m.source.Mark(mark.ID, m.place); err != nil {
			return nil, false, err
		}
	}
	after, whole, err = m.loader.Begin(ctx, mark.ID, m.file)
	isRefused := errors.Is(err, postgres.ErrNotEmpty) || errors.Is(err, postgres.ErrOtherCopy)
	if isRefused && !isMoved { // somebody was faster
		err = errors.Join(err, m.source.Unmark())
	}
	return after, whole, err
}

// copyBatch is about how many records one transaction copies: few enough to hold up no bridge.
const copyBatch = 256

func (m *move) run(ctx context.Context) error {
	after, whole, err := m.begin(ctx)
	if err != nil {
		return err
	}
	out := m.progress.out
	switch {
	case whole:
		fmt.Fprintf(out, "%s is copied whole already: there is nothing left to do.\n", m.file)
		return nil
	case after == nil:
		fmt.Fprintf(out, "Copying %s into the %s.\n", m.file, m.place)
	case m.loader.HasFirstPart():
		fmt.Fprintf(out, "Going on with the history of %s in the %s.\n", m.file, m.place)
	default:
		fmt.Fprintf(out, "Going on with the first part of %s in the %s.\n", m.file, m.place)
	}
	for !whole {
		if after, whole, err = m.step(ctx, after); err != nil {
			m.progress.end()
			if ctx.Err() != nil {
				return errors.New("the copy was broken off: run the command again, and it goes on")
			}
			return fmt.Errorf("the copy has stopped, and goes on when the command is run again: %w", err)
		}
	}
	m.progress.end()
	m.conclude()
	return nil
}

// step copies the next records.
func (m *move) step(ctx context.Context, after []byte) (next []byte, whole bool, err error) {
	d, err := m.source.Dump(ctx, after, copyBatch)
	if err != nil {
		return nil, false, err
	}
	hadFirstPart, endsFirstPart := m.loader.HasFirstPart(), d.EndsFirstPart()
	if m.guid != "" && endsFirstPart { // in place of that of the file, if it has one
		d.Records = append(d.Records, store.SettingRecord{Name: outbox.SettingClientGUID, Value: m.guid})
	}
	loaded, err := m.loader.Load(ctx, d)
	if err != nil {
		return nil, false, err
	}
	m.progress.add(d, loaded, hadFirstPart)
	if endsFirstPart {
		m.progress.end()
		fmt.Fprintln(m.progress.out, "The first part is whole. "+
			"Bridges may start on the database now, with OUTBOX_URL; the history follows meanwhile.")
	}
	return d.Next, d.Next == nil || loaded.Full, nil
}

// conclude says what has come of it.
func (m *move) conclude() {
	g := &m.progress
	fmt.Fprintf(g.out, "The copy is whole: %s events were copied now. "+
		"No bridge opens %s any more; remove it once all is well.\n", humanize.Comma(int64(g.events)), m.file)
	if g.damaged > 0 {
		fmt.Fprintf(g.out, "%s events cannot be read in the file, and are missing.\n", humanize.Comma(int64(g.damaged)))
	}
	if g.conflicts > 0 {
		fmt.Fprintf(g.out, "%s events are missing, since another one has their ID or their place in their call.\n",
			humanize.Comma(int64(g.conflicts)))
	}
	if g.full {
		fmt.Fprintf(g.out, "Events from before %s are missing, for which no CRM waits: "+
			"nine tenths of OUTBOX_MAX_BYTES are in use.\n", g.reachedText())
	}
}

func (m *move) takeBack(ctx context.Context) error {
	mark, isMoved := m.source.Moved()
	if !isMoved {
		return &telephony.Fault{Code: telephony.CodeNotMoved, Text: m.file + " is copied into no database"}
	}
	if err := m.checkPlace(ctx); err != nil {
		return err
	}
	fmt.Fprintf(m.progress.out, "Comparing %s with the %s.\n", m.file, m.place)
	if err := m.loader.TakeBack(ctx, mark.ID, m.file, m.source); err != nil {
		return err
	}
	if err := m.source.Unmark(); err != nil {
		return err
	}
	fmt.Fprintf(m.progress.out, "The copy is taken back: the bridge may use %s again, without OUTBOX_URL. "+
		"The database is empty, and no bridge starts on it.\n", m.file)
	return nil
}

// progress shows how far a copy has come: on a terminal on one line, and else on a line now and
// then.
type progress struct {
	out        io.Writer
	isTerminal bool

	events, conflicts, damaged int
	full                       bool
	reached                    time.Time // when the event was read that came last
	shown                      time.Time // when that was shown last
	width                      int       // of the line that is on the terminal; 0 if none is
}

func (g *progress) add(d store.Dumped, loaded store.Loaded, isHistory bool) {
	g.events += loaded.Events
	g.conflicts += loaded.Conflicts
	g.damaged += d.Damaged
	if g.full = loaded.Full; g.full {
		return
	}
	for _, r := range d.Records {
		if e, isEvent := r.(store.EventRecord); isEvent {
			g.reached = e.Event.At
		}
	}
	line := "First part: " + humanize.Comma(int64(g.events)) + " events"
	if isHistory {
		line = "History: " + humanize.Comma(int64(g.events)) + " events, back to " + g.reachedText()
	}
	g.show(line)
}

func (g *progress) reachedText() string { return g.reached.Local().Format(time.DateTime) }

func (g *progress) show(line string) {
	pause := 5 * time.Second
	if g.isTerminal {
		pause = 100 * time.Millisecond
	}
	if time.Since(g.shown) < pause {
		return
	}
	g.shown = time.Now()
	if !g.isTerminal {
		fmt.Fprintln(g.out, line)
		return
	}
	fmt.Fprintf(g.out, "\r%-*s", g.width, line)
	g.width = len(line)
}

// end leaves the line on the terminal.
func (g *progress) end() {
	if g.width > 0 {
		fmt.Fprintln(g.out)
		g.width = 0
	}
	g.shown = time.Time{}
}
