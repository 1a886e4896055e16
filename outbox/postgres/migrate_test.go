package postgres

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/postgres/pgtest"
)

// setVersion stores another version of the tables.
func setVersion(t *testing.T, address string, version int) {
	t.Helper()
	pgtest.SQL(t, address, fmt.Sprintf("UPDATE pzbridge.setting SET value = '%d' WHERE name = '%s'",
		version, settingVersion))
}

// versionOf returns the version of the tables.
func versionOf(t *testing.T, address string) string {
	t.Helper()
	return pgtest.SQL(t, address, "SELECT convert_from(value, 'UTF8') FROM pzbridge.setting WHERE name = 'schema'")
}

// TestFilesOfTheTables checks that there is a file for each version, and none beyond.
func TestFilesOfTheTables(t *testing.T) {
	files, err := schemaFiles.ReadDir("schema")
	if err != nil || len(files) != schemaVersion {
		t.Errorf("there are %d files, %v", len(files), err)
	}
	for i, f := range files {
		if want := fmt.Sprintf("%03d.sql", i+1); f.Name() != want {
			t.Errorf("file %s stands in the place of %s", f.Name(), want)
		}
	}
}

// TestTablesAreMadeOnce checks that of processes that start at once on an empty database one makes
// the tables, and all can use them.
func TestTablesAreMadeOnce(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	var starting sync.WaitGroup
	for range 4 {
		starting.Go(func() {
			s, err := openAt(t, address)
			if err == nil {
				_, err = s.Append(t.Context(), newEvents(t, ""))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if v := versionOf(t, address); v != fmt.Sprint(schemaVersion) {
		t.Errorf("the tables have version %s", v)
	}
	if n := pgtest.SQL(t, address, "SELECT count(*) FROM pzbridge.event"); n != "4" {
		t.Errorf("%s events are stored", n)
	}
}

// TestTablesOfTheNextVersionAreUsed checks that a process runs on tables that the next version has
// made, refuses those of a version beyond, and changes neither.
func TestTablesOfTheNextVersionAreUsed(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	_ = mustOpen(t, address).Close()
	setVersion(t, address, schemaVersion+1)
	s := mustOpen(t, address)
	mustStore(t, s, "5")
	_ = s.Close()
	if v := versionOf(t, address); v != fmt.Sprint(schemaVersion+1) {
		t.Errorf("the tables have version %s then", v)
	}
	setVersion(t, address, schemaVersion+2)
	_, err := openAt(t, address)
	want := fmt.Sprintf("a later version of pzbridge has made its tables (version %d, this one knows %d)",
		schemaVersion+2, schemaVersion)
	if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, errNewerTables) ||
		telephony.CauseOf(err).Code != telephony.CodeNewerTables || isDatabaseError(err) {
		t.Errorf("the error is %v", err)
	}
	if v := versionOf(t, address); v != fmt.Sprint(schemaVersion+2) {
		t.Errorf("the tables have version %s after it", v)
	}
}

// laterFiles are files of two versions beyond this one.
var laterFiles = fstest.MapFS{
	fmt.Sprintf("schema/%03d.sql", schemaVersion+1): {Data: []byte(`
		CREATE TABLE later (a integer);
		INSERT INTO later SELECT count(*) FROM event;`)},
	fmt.Sprintf("schema/%03d.sql", schemaVersion+2): {Data: []byte(`
		ALTER TABLE later ADD COLUMN b integer NOT NULL DEFAULT 2;
		INSERT INTO later (a) VALUES (7);`)},
}

// TestLaterFilesAreApplied checks that the files of all versions above the stored one are applied
// in order, once, also by processes that do so at once, and that a version beyond is left alone.
func TestLaterFilesAreApplied(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	s, other := mustOpen(t, address), mustOpen(t, address)
	mustStore(t, s, "5", "6")
	var running sync.WaitGroup
	for _, s := range []*Engine{s, other} {
		running.Go(func() {
			if err := s.migrateTo(t.Context(), laterFiles, schemaVersion+1); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if rows := pgtest.SQL(t, address, "SELECT a FROM pzbridge.later"); rows != "2" {
		t.Errorf("the next version has the rows %q", rows)
	}
	for range 2 {
		if err := s.migrateTo(t.Context(), laterFiles, schemaVersion+2); err != nil {
			t.Error(err)
		}
	}
	if rows := pgtest.SQL(t, address, "SELECT a, b FROM pzbridge.later"); rows != "2|2\n7|2" {
		t.Errorf("the version after it has the rows %q", rows)
	}
	if v := versionOf(t, address); v != fmt.Sprint(schemaVersion+2) {
		t.Errorf("the tables have version %s", v)
	}
}

// TestMigrationThatFails checks that nothing of it is left.
func TestMigrationThatFails(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	s := mustOpen(t, address)
	files := fstest.MapFS{}
	for name, f := range laterFiles {
		files[name] = f
	}
	files[fmt.Sprintf("schema/%03d.sql", schemaVersion+3)] = &fstest.MapFile{Data: []byte(`SELECT 1 / 0`)}
	err := s.migrateTo(t.Context(), files, schemaVersion+3)
	if err == nil || !strings.Contains(err.Error(), "division by zero") {
		t.Errorf("the error is %v", err)
	}
	if v := versionOf(t, address); v != fmt.Sprint(schemaVersion) {
		t.Errorf("the tables have version %s", v)
	}
	if n := pgtest.SQL(t, address, "SELECT count(*) FROM pg_tables WHERE tablename = 'later'"); n != "0" {
		t.Error("a table is left")
	}
}
