package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// hosts are the servers of a cluster, of which one is the primary. After a fail-over the old
// primary may come back and still take itself for it: then the one of the highest timeline counts,
// since each promotion begins a new one, and never one below the highest that was seen.
type hosts struct {
	mu       sync.Mutex
	timeline int             // the highest that was seen
	pools    []*pgxpool.Pool // whose connections go when a higher one is seen
}

// add adds a pool to those whose connections go when another server has become the primary.
func (h *hosts) add(pool *pgxpool.Pool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pools = append(h.pools, pool)
}

// probeTimeout bounds how long a server may take to say what it is.
const probeTimeout = 2 * time.Second

// askTimeline asks a server for its timeline, which is 0 while it is a standby.
const askTimeline = `SELECT CASE WHEN pg_is_in_recovery() THEN 0
	ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END`

// errNoPrimary means that no server of the cluster accepts changes.
var errNoPrimary = errors.New("none of the database's servers accepts changes")

// choose makes a connection's configuration that of the primary.
func (h *hosts) choose(ctx context.Context, c *pgx.ConnConfig) error {
	list := eachServer(c)
	if len(list) == 1 {
		return nil
	}
	answers := make(chan answer, len(list))
	for _, one := range list {
		go func() { answers <- probe(ctx, one) }()
	}
	best, failures := answer{}, errNoPrimary
	for range list {
		switch a := <-answers; {
		case a.err != nil:
			failures = fmt.Errorf("%w; %w", failures, a.err)
		case a.timeline > best.timeline:
			best = a
		}
	}
	if best.timeline == 0 || !h.follow(best.timeline) {
		return failures
	}
	c.Host, c.Port, c.TLSConfig, c.Fallbacks = best.c.Host, best.c.Port, best.c.TLSConfig, best.c.Fallbacks
	return nil
}

// follow reports whether a timeline is not below the highest that was seen.
func (h *hosts) follow(timeline int) bool {
	h.mu.Lock()
	before, pools := h.timeline, h.pools
	h.timeline = max(before, timeline)
	h.mu.Unlock()
	if before != 0 && timeline > before {
		for _, pool := range pools {
			pool.Reset()
		}
	}
	return timeline >= before
}

// answer is what a server says that it is.
type answer struct {
	c        *pgx.ConnConfig // as it was asked; with and without TLS, if either may be used
	timeline int
	err      error
}

func probe(ctx context.Context, c *pgx.ConnConfig) answer {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	a := answer{c: c}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		a.err = classify(err)
		return a
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := conn.QueryRow(ctx, askTimeline).Scan(&a.timeline); err != nil {
		a.err = classify(err)
	}
	return a
}

// eachServer returns a configuration for each server of a cluster, with which to ask it what it is:
// without the parameters and prepared statements that a pooler would refuse. The library lists a
// server twice that may be reached with and without TLS: those stay together.
func eachServer(c *pgx.ConnConfig) (list []*pgx.ConnConfig) {
	all := append([]*pgconn.FallbackConfig{{Host: c.Host, Port: c.Port, TLSConfig: c.TLSConfig}}, c.Fallbacks...)
	for _, f := range all {
		if n := len(list); n > 0 && list[n-1].Host == f.Host && list[n-1].Port == f.Port {
			list[n-1].Fallbacks = append(list[n-1].Fallbacks, f)
			continue
		}
		one := c.Copy()
		one.Host, one.Port, one.TLSConfig, one.Fallbacks = f.Host, f.Port, f.TLSConfig, nil
		one.RuntimeParams = map[string]string{"application_name": applicationName(c)}
		one.DefaultQueryExecMode = pgx.QueryExecModeExec
		list = append(list, one)
	}
	return list
}
