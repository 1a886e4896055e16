package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"pzbridge/internal/telephony"
)

// ErrUnavailable means that the database cannot be reached or does not accept changes; nothing was
// stored, or it is not known.
var ErrUnavailable = &telephony.Fault{Code: telephony.CodeDatabase, Text: "the database of the outbox is not available"}

const (
	// maxConnections is how many connections a bridge has at most.
	maxConnections = 6
	// keeperConnections are those for leases: one, and one more while a broken one is being closed,
	// which may take some seconds where the server does not answer.
	keeperConnections = 2
	// maxViews is how many of the others people and programs may use at once for reading.
	maxViews = 2
)

// planOptions keep PostgreSQL from plans that it makes while tables are empty and keeps when they
// are full: each statement is written for an index.
var planOptions = map[string]string{
	"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "enable_bitmapscan": "off",
	"jit": "off",
}

// connect returns a pool of connections to the primary among the hosts.
func connect(ctx context.Context, opts Options, cluster *hosts, connections int32) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(opts.URL)
	if err != nil {
		// Not err, which quotes it.
		return nil, errors.New("its address cannot be read: write postgres://user:password@host/database")
	}
	c.MaxConns = connections
	params := c.ConnConfig.RuntimeParams
	params["search_path"] = pgx.Identifier{opts.Schema}.Sanitize()
	if params["application_name"] == "" {
		params["application_name"] = "pzbridge"
	}
	for name, value := range planOptions {
		params[name] = value
	}
	// A limit that is set for the role would end the wait for a standby.
	params["statement_timeout"] = "0"
	c.ConnConfig.ConnectTimeout = probeTimeout
	c.ConnConfig.Tracer = opts.tracer
	c.ConnConfig.OnNotice = noteUnconfirmed
	c.BeforeConnect = cluster.choose
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, classify(err)
	}
	cluster.add(pool)
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, classify(err)
	}
	return pool, nil
}

//go:embed schema.sql
var schemaSQL string

// schemaVersion is the version of the tables that this program makes.
const schemaVersion = 1

// migrate makes the tables, unless they are there. Of several processes that start at once, one
// does, while the others wait.
func (s *Engine) migrate(ctx context.Context) error {
	return classify(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		h := fnv.New64a()
		_, _ = h.Write([]byte("migrate\x00" + s.schema))
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(h.Sum64())); err != nil {
			return err
		}
		var has bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, s.schema).Scan(&has)
		if err != nil {
			return err
		}
		if !has {
			if _, err := tx.Exec(ctx, `CREATE SCHEMA `+pgx.Identifier{s.schema}.Sanitize()); err != nil {
				return err
			}
		}
		var version int
		err = tx.QueryRow(ctx, `SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'setting'`,
			s.schema).Scan(&version)
		if err != nil {
			return err
		}
		if version == 0 {
			if _, err := tx.Exec(ctx, schemaSQL); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO setting VALUES ($1, $2)`, settingVersion,
				[]byte(fmt.Sprint(schemaVersion)))
			return err
		}
		err = tx.QueryRow(ctx, `SELECT convert_from(value, 'UTF8')::int FROM setting WHERE name = $1`,
			settingVersion).Scan(&version)
		if err == nil && version > schemaVersion+1 {
			err = fmt.Errorf("a later version of pzbridge has made its tables (version %d, this one knows %d): "+
				"start that version", version, schemaVersion)
		}
		return err
	}))
}

// settingVersion is the name of the setting that has the version of the tables.
const settingVersion = "schema"

// isConflict reports whether a transaction was rolled back for another one, so that it may be
// repeated at once.
func isConflict(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01" || e.Code == "55P03" || e.Code == "23505")
}

// isDatabaseError reports whether an error is the database's, not one that a change has returned.
func isDatabaseError(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) || errors.Is(err, ErrUnavailable)
}

// classify returns the error of a transaction as callers know it. An error of the connection is
// ErrUnavailable: whether the transaction was committed is not known then. Any other error of the
// database means that nothing was done.
func classify(err error) error {
	var connecting *pgconn.ConnectError
	var pgError *pgconn.PgError
	var netError net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoPrimary), errors.Is(err, errUnconfirmed):
		return ErrUnavailable.With(": "+err.Error(), err.Error())
	case errors.As(err, &pgError):
		switch pgError.Code[:2] {
		// Connection, state of the transaction, conflict, resources, operator, system.
		case "08", "25", "40", "53", "57", "58":
			return ErrUnavailable.With(": "+pgError.Message, pgError.Message)
		}
		return refusal{pgError}
	case errors.As(err, &connecting):
		return ErrUnavailable.With(": "+withoutAddress(connecting), withoutAddress(connecting))
	case errors.As(err, &netError), errors.Is(err, context.DeadlineExceeded), pgconn.Timeout(err),
		strings.Contains(err.Error(), "conn closed"), strings.Contains(err.Error(), "unexpected EOF"):
		return ErrUnavailable.With(": "+err.Error(), err.Error())
	}
	return err
}

// refusal is an error of the database that no retry mends: the password is wrong, a right is
// missing.
type refusal struct{ *pgconn.PgError }

func (r refusal) Error() string {
	return fmt.Sprintf("the database refuses it: %s (SQLSTATE %s)", r.Message, r.Code)
}

func (r refusal) Unwrap() error { return r.PgError }

// withoutAddress is why a connection could not be made, without the user and the database, which
// the library names.
func withoutAddress(err *pgconn.ConnectError) string {
	reason := err.Unwrap()
	if reason == nil {
		return "no connection"
	}
	return reason.Error()
}
