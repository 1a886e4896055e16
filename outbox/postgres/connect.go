package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
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

// parseURL parses the address of a database.
func parseURL(url string) (*pgxpool.Config, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		// Not err, which quotes it.
		return nil, errors.New("its address cannot be read: write postgres://user:password@host/database")
	}
	return c, nil
}

// connect connects to the primary among the hosts, directly or through a pooler.
func (s *Engine) connect(ctx context.Context, opts Options) error {
	cluster := &hosts{}
	var err error
	s.pool, err = newPool(ctx, opts, cluster, maxConnections-keeperConnections, false)
	isPooled := isPoolers(err)
	if isPooled {
		s.pooled = pooled(opts.Schema)
		s.pool, err = newPool(ctx, opts, cluster, maxConnections-keeperConnections, true)
	}
	if err != nil {
		return classify(err)
	}
	s.keeper.pooled = s.pooled
	s.keeper.pool, err = newPool(ctx, opts, cluster, keeperConnections, isPooled)
	if err != nil {
		s.pool.Close()
	}
	return classify(err)
}

// newPool returns a pool of connections to the primary among the hosts. They have no parameters if
// a pooler stands between.
func newPool(
	ctx context.Context, opts Options, cluster *hosts, connections int32, isPooled bool,
) (*pgxpool.Pool, error) {
	c, err := parseURL(opts.URL)
	if err != nil {
		return nil, err
	}
	c.MaxConns = connections
	params := c.ConnConfig.RuntimeParams
	params["application_name"] = applicationName(c.ConnConfig)
	if isPooled {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	} else {
		maps.Copy(params, parameters(opts.Schema))
	}
	c.ConnConfig.ConnectTimeout = probeTimeout
	c.ConnConfig.Tracer = opts.tracer
	c.ConnConfig.OnNotice = noteUnconfirmed
	c.BeforeConnect = cluster.choose
	if opts.quiet {
		c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	if isPooled {
		err = pool.Ping(ctx)
	} else {
		err = checkParameters(ctx, pool, opts.Schema)
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	cluster.add(pool)
	return pool, nil
}

// applicationName is how connections name themselves to the server's administrator.
func applicationName(c *pgx.ConnConfig) string {
	return cmp.Or(c.RuntimeParams["application_name"], "pzbridge")
}

// isConflict reports whether a transaction was rolled back for another one that goes on, so that it
// may be repeated after a while.
func isConflict(err error) bool { return hasCode(err, "40001", "40P01", "55P03") }

// isDuplicate reports whether a transaction was rolled back since what it stores was there already,
// committed by another one, so that it may be repeated at once.
func isDuplicate(err error) bool { return hasCode(err, "23505") }

func hasCode(err error, codes ...string) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && slices.Contains(codes, e.Code)
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
	case errors.Is(err, errNoPrimary), errors.Is(err, errUnconfirmed), errors.Is(err, errEnding):
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
