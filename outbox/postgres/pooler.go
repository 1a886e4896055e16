package postgres

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A pooler such as PgBouncer in transaction mode gives each transaction another connection to the
// server. Run-time parameters cannot be set for a connection then: PgBouncer refuses them, or drops
// them if it is told to. So each transaction sets its own, in the round trip with which it begins.
// Statements are not prepared. The library asks once, before it sends a statement, what types it
// has; so a transaction has begun, and finds its tables, before its first statement is sent.

// idleTimeout is after what time a process of which nothing is heard in the middle of a transaction
// loses that, with its locks. Its machine may have lost its power, which PostgreSQL itself would
// notice after two hours, while nobody else could store an event.
const idleTimeout = 5 * time.Second

// parameters are what the statements rely on. The plans that PostgreSQL makes while tables are
// empty, and keeps when they are full, must be good: each statement is written for an index. A
// limit that is set for the role would end the wait for a standby.
func parameters(schema string) map[string]string {
	return map[string]string{
		"search_path":       pgx.Identifier{schema}.Sanitize(),
		"enable_seqscan":    "off",
		"enable_hashjoin":   "off",
		"enable_mergejoin":  "off",
		"enable_bitmapscan": "off",
		"jit":               "off",
		"plan_cache_mode":   "force_generic_plan",
		"statement_timeout": "0",
		"client_encoding":   "UTF8",

		"idle_in_transaction_session_timeout": strconv.Itoa(int(idleTimeout.Milliseconds())),
	}
}

// isPoolers reports whether a connection with parameters has failed for a pooler, which refuses
// them.
func isPoolers(err error) bool {
	const protocolViolation = "08P01"
	var refused *pgconn.PgError
	return errors.Is(err, errPooler) || errors.As(err, &refused) && refused.Code == protocolViolation
}

// errPooler means that a pooler has dropped the parameters of a connection.
var errPooler = errors.New("a pooler has dropped the parameters of the connection")

// checkParameters returns errPooler if a connection does not have its parameters.
func checkParameters(ctx context.Context, db rower, schema string) error {
	var path, scan string
	row := db.QueryRow(ctx, `SELECT current_setting('search_path'), current_setting('enable_seqscan')`,
		pgx.QueryExecModeExec)
	err := row.Scan(&path, &scan)
	if want := parameters(schema); err == nil && (path != want["search_path"] || scan != want["enable_seqscan"]) {
		return errPooler
	}
	return err
}

// rower is a connection, or a pool of them.
type rower interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// pooled sets the parameters for one transaction, behind the statement with which it begins.
func pooled(schema string) string {
	var sql strings.Builder
	list := parameters(schema)
	for _, name := range slices.Sorted(maps.Keys(list)) {
		sql.WriteString("; SET LOCAL " + name + " = " + list[name])
	}
	return sql.String()
}

// keeper has the connections for leases, which must wait for nothing else.
type keeper struct {
	pool   *pgxpool.Pool
	pooled string // see Engine
}

// send sends statements in one transaction.
func (k keeper) send(ctx context.Context, b *pgx.Batch) error {
	if k.pooled == "" {
		return k.pool.SendBatch(ctx, b).Close()
	}
	return pgx.BeginTxFunc(ctx, k.pool, pgx.TxOptions{BeginQuery: beginChange + k.pooled}, func(tx pgx.Tx) error {
		return tx.SendBatch(ctx, b).Close()
	})
}

// exec sends a statement in a transaction of its own.
func (k keeper) exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	b := &pgx.Batch{}
	b.Queue(sql, args...).Exec(func(t pgconn.CommandTag) error {
		tag = t
		return nil
	})
	return tag, k.send(ctx, b)
}
