package postgres

import (
	"context"
	"embed"
	"fmt"
	"hash/fnv"
	"io/fs"
	"strconv"

	"github.com/jackc/pgx/v5"

	"pzbridge/internal/telephony"
)

// The files of schema make the tables: 001.sql makes those of version 1, and each later one changes
// the tables of the version before it. A bridge also runs on tables of the next version, so that
// bridges can be replaced one by one: a file only adds to them, and what the version before still
// reads goes one version later.
//
//go:embed schema
var schemaFiles embed.FS

// schemaVersion is the version of the tables that this program makes: the number of the last file.
const schemaVersion = 2

// settingVersion is the name of the setting that has the version of the tables.
const settingVersion = "schema"

// errNewerTables means that the database has tables of a version that this program does not know.
var errNewerTables = &telephony.Fault{
	Code: telephony.CodeNewerTables,
	Text: "a later version of pzbridge has made its tables",
}

// checkVersion returns an error unless a program can use tables of a version, of which it knows
// those up to the newest.
func checkVersion(version, newest int) error {
	if version <= newest+1 {
		return nil
	}
	return errNewerTables.With(fmt.Sprintf(" (version %d, this one knows %d)", version, newest),
		strconv.Itoa(version), strconv.Itoa(newest))
}

// migrate brings the tables to the newest version that this program knows, in one transaction. Of
// several processes that start at once, one does, while the others wait.
func (s *Engine) migrate(ctx context.Context) error {
	return s.migrateTo(ctx, schemaFiles, schemaVersion)
}

// migrateTo is migrate to a version of the tables, whose files are in a folder schema.
func (s *Engine) migrateTo(ctx context.Context, files fs.FS, newest int) error {
	options := pgx.TxOptions{BeginQuery: beginChange + s.pooled}
	return classify(pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error {
		version, err := s.lockVersion(ctx, tx)
		if err == nil {
			err = checkVersion(version, newest)
		}
		if err != nil || version >= newest {
			return err
		}
		for n := version + 1; n <= newest; n++ {
			statements, err := fs.ReadFile(files, fmt.Sprintf("schema/%03d.sql", n))
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, string(statements)); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, putSetting, settingVersion, []byte(strconv.Itoa(newest)))
		return err
	}))
}

// lockVersion returns the version of the tables, 0 if there are none. It makes the schema if it is
// missing. Until the end of the transaction no other process does the same.
func (s *Engine) lockVersion(ctx context.Context, tx pgx.Tx) (version int, err error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte("migrate\x00" + s.schema))
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(h.Sum64())); err != nil {
		return 0, err
	}
	var hasSchema, hasTables bool
	row := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1),
		EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = 'setting')`, s.schema)
	if err := row.Scan(&hasSchema, &hasTables); err != nil {
		return 0, err
	}
	switch {
	case !hasSchema:
		_, err = tx.Exec(ctx, `CREATE SCHEMA `+pgx.Identifier{s.schema}.Sanitize())
		return 0, err
	case !hasTables:
		return 0, nil
	}
	row = tx.QueryRow(ctx, `SELECT convert_from(value, 'UTF8')::int FROM setting WHERE name = $1`, settingVersion)
	err = row.Scan(&version)
	return version, err
}
