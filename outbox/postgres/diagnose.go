package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pzbridge/outbox/store"
)

// Finding is one thing that Diagnose has found out about a database.
type Finding struct {
	Severity Severity
	Text     string // one sentence, without secrets; it may quote the server
}

// Severity tells what a finding means for a bridge.
type Severity int

// The severities.
const (
	Fine    Severity = iota // as it should be
	Warning                 // a bridge works, with a risk that is named
	Broken                  // a bridge cannot work
)

// diagnoseTimeout bounds the whole of a diagnosis.
const diagnoseTimeout = 6 * time.Second

// Diagnose connects to each server of a database and returns what is wrong with it, and what is as
// it should be. It changes nothing there. Of several servers one has to be the primary; what is
// wrong with another one is only a warning then.
func Diagnose(ctx context.Context, url, schema string) []Finding {
	c, err := parseURL(url)
	if err != nil {
		return []Finding{{Broken, err.Error()}}
	}
	ctx, cancel := context.WithTimeout(ctx, diagnoseTimeout)
	defer cancel()
	var servers []*server
	for _, one := range eachServer(c.ConnConfig) {
		one.ValidateConnect, one.ConnectTimeout = nil, probeTimeout
		servers = append(servers, &server{c: one, name: serverName(one)})
	}
	done := make(chan struct{})
	for _, s := range servers {
		go func() {
			s.ask(ctx)
			done <- struct{}{}
		}()
	}
	for range servers {
		<-done
	}
	defer func() {
		for _, s := range servers {
			s.close(ctx)
		}
	}()
	list, primary := compareServers(servers)
	if primary == nil {
		return list
	}
	e := examination{ctx: ctx, server: primary, schema: schema}
	if err := e.run(); err != nil {
		e.add(Broken, "%s answers, but not to all questions (%s)", primary.name, reason(err))
	}
	return append(list, e.findings...)
}

// compareServers returns what the servers are to each other, and the one that a bridge uses; nil if
// there is none.
func compareServers(servers []*server) (list []Finding, primary *server) {
	for _, s := range servers {
		if s.wrong == "" && s.timeline > 0 && (primary == nil || s.timeline > primary.timeline) {
			primary = s
		}
	}
	ofOthers := Broken
	if primary != nil {
		ofOthers = Warning
	}
	for _, s := range servers {
		switch {
		case s.wrong != "":
			list = append(list, Finding{ofOthers, s.wrong})
		case s == primary:
			list = append(list, Finding{Fine, s.description()})
		case s.timeline == 0 && primary != nil:
			list = append(list, Finding{Fine, s.name + " is a standby, PostgreSQL " + s.version})
		case s.timeline == 0:
			list = append(list, Finding{Broken, s.name + " is a standby and accepts no changes: " +
				"promote it, or name the primary in the address too"})
		case s.timeline == primary.timeline:
			list = append(list, Finding{Warning, fmt.Sprintf("%s and %s both accept changes, on timeline %d: if they "+
				"are two servers, what is stored at one is missing at the other; make one of them a standby",
				primary.name, s.name, s.timeline)})
		default:
			list = append(list, Finding{Warning, fmt.Sprintf("%s takes itself for the primary too, on the older "+
				"timeline %d: the bridges leave it out; make it a standby, or stop it", s.name, s.timeline)})
		}
	}
	return list, primary
}

// description says what a primary is, and how it is reached.
func (s *server) description() string {
	text := fmt.Sprintf("%s is the primary, PostgreSQL %s, timeline %d", s.name, s.version, s.timeline)
	if conn, ok := s.conn.PgConn().Conn().(*tls.Conn); ok {
		text += ", " + tls.VersionName(conn.ConnectionState().Version)
	}
	return text
}

// examination asks a primary whether a bridge can work with it.
type examination struct {
	ctx      context.Context
	server   *server
	schema   string
	living   int // how many bridges run
	findings []Finding
}

func (e *examination) add(severity Severity, format string, args ...any) {
	e.findings = append(e.findings, Finding{severity, fmt.Sprintf(format, args...)})
}

// run asks everything. The later questions need the answers to the earlier ones.
func (e *examination) run() error {
	if err := e.distance(); err != nil {
		return err
	}
	usable, err := e.database()
	parts := []func() error{e.clock, e.replication}
	if usable {
		parts = append(parts, e.bridges)
	}
	parts = append(parts, e.connections)
	for _, part := range parts {
		if err == nil {
			err = part()
		}
	}
	return err
}

// farAway is the time for a question and its answer from which on a database is too far away. For
// each event a bridge asks it several times, one after the other.
const farAway = 50 * time.Millisecond

// distance measures how far away the database is: the shortest of a few ways there and back, since
// longer ones tell of a busy machine.
func (e *examination) distance() error {
	shortest := diagnoseTimeout
	for range 4 {
		asked := time.Now()
		if err := e.server.conn.Ping(e.ctx); err != nil {
			return err
		}
		shortest = min(shortest, time.Since(asked))
	}
	if shortest >= farAway {
		e.add(Warning, "%s takes %s for a question and its answer, and a bridge asks several times for each event, "+
			"so calls come late to the CRMs: run the bridges near their database",
			e.server.name, shortest.Round(time.Millisecond))
	}
	return nil
}

// database looks at the database, its schema and its tables, and reports whether a bridge can use
// them.
func (e *examination) database() (usable bool, err error) {
	before := len(e.findings)
	var encoding string
	var readOnly, mayCreate, hasSchema, mayUse, mayAdd bool
	row := e.server.conn.QueryRow(e.ctx, `SELECT current_setting('server_encoding'),
			current_setting('transaction_read_only')::boolean, has_database_privilege(current_database(), 'CREATE'),
			oid IS NOT NULL, coalesce(has_schema_privilege(oid, 'USAGE'), false),
			coalesce(has_schema_privilege(oid, 'CREATE'), false)
		FROM (SELECT) one LEFT JOIN pg_namespace ON nspname = $1`, e.schema)
	if err := row.Scan(&encoding, &readOnly, &mayCreate, &hasSchema, &mayUse, &mayAdd); err != nil {
		return false, err
	}
	c := e.server.c
	if encoding != "UTF8" {
		e.add(Broken, "the database %s has the encoding %s: make it with ENCODING 'UTF8'", c.Database, encoding)
	}
	if readOnly {
		e.add(Broken, "user %s may only read in the database %s: set default_transaction_read_only = off for both",
			c.User, c.Database)
	}
	version := 0
	switch {
	case !hasSchema && !mayCreate:
		e.add(Broken, "user %s may not make the schema %s: GRANT CREATE ON DATABASE %s TO %s",
			c.User, e.schema, c.Database, c.User)
	case hasSchema && !mayUse:
		e.add(Broken, "user %s may not use the schema %s: ALTER SCHEMA %s OWNER TO %s",
			c.User, e.schema, e.schema, c.User)
	case hasSchema:
		if version, err = e.tables(); err != nil {
			return false, err
		}
		if !mayAdd && version < schemaVersion {
			e.add(Broken, "user %s may not make tables in the schema %s: ALTER SCHEMA %s OWNER TO %s",
				c.User, e.schema, e.schema, c.User)
		}
	}
	return len(e.findings) == before && version > 0, nil
}

// tables looks at the tables of a schema and returns their version, 0 if there are none.
func (e *examination) tables() (version int, err error) {
	var has bool
	var closed, foreign string // names of tables
	row := e.server.conn.QueryRow(e.ctx, `SELECT coalesce(bool_or(relname = 'setting'), false),
			coalesce(min(relname) FILTER (WHERE NOT (has_table_privilege(oid, 'SELECT')
				AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE')
				AND has_table_privilege(oid, 'DELETE'))), ''),
			coalesce(min(relname) FILTER (WHERE NOT pg_has_role(relowner, 'USAGE')), '')
		FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND relkind = 'r'`,
		e.schema)
	if err := row.Scan(&has, &closed, &foreign); err != nil {
		return 0, err
	}
	switch user := e.server.c.User; {
	case closed != "":
		e.add(Broken, "user %s may not use the table %s in the schema %s: give the tables to that user "+
			"(ALTER TABLE %s.%s OWNER TO %s)", user, closed, e.schema, e.schema, closed, user)
		return schemaVersion, nil // which is not to be read
	case foreign != "":
		e.add(Warning, "the table %s in the schema %s does not belong to user %s, so a next version of pzbridge "+
			"could not change it: ALTER TABLE %s.%s OWNER TO %s", foreign, e.schema, user, e.schema, foreign, user)
	}
	if !has {
		return 0, nil
	}
	row = e.server.conn.QueryRow(e.ctx, `SELECT coalesce(max(convert_from(value, 'UTF8')::int), 0)
		FROM `+pgx.Identifier{e.schema, "setting"}.Sanitize()+` WHERE name = $1`, settingVersion)
	if err := row.Scan(&version); err != nil {
		return 0, err
	}
	if err := checkVersion(version, schemaVersion); err != nil {
		e.add(Broken, "the database %s: %v: start that version", e.server.c.Database, err)
	}
	return version, nil
}

// clock compares the clocks. Nothing depends on that of the database, but a difference tells that
// the one of this machine may be wrong.
func (e *examination) clock() error {
	var theirs time.Time
	asked := time.Now()
	if err := e.server.conn.QueryRow(e.ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return err
	}
	ahead := clockAhead(theirs, asked, time.Now())
	if ahead == 0 {
		return nil
	}
	where := "ahead of"
	if ahead < 0 {
		where = "behind"
	}
	e.add(Warning, "the clock of %s is %s %s that of this machine: set both right (NTP); "+
		"the times in the database are those of the bridges", e.server.name, ahead.Abs(), where)
	return nil
}

// replication looks whether a commit is on a second machine before it is confirmed. Who is
// connected is told to the members of pg_monitor alone, how many to everybody.
func (e *examination) replication() error {
	var names, commit string
	var connected, known, synchronous int
	row := e.server.conn.QueryRow(e.ctx, `SELECT current_setting('synchronous_standby_names'),
			current_setting('synchronous_commit'), count(*), count(sync_state),
			count(*) FILTER (WHERE sync_state IN ('sync', 'quorum', 'potential'))
		FROM pg_stat_replication`)
	if err := row.Scan(&names, &commit, &connected, &known, &synchronous); err != nil {
		return err
	}
	s := standbys{
		names:       names,
		waits:       commit == "on" || commit == "remote_apply",
		connected:   connected,
		known:       known == connected,
		synchronous: synchronous,
	}
	e.findings = append(e.findings, s.judge(e.server.name))
	return nil
}

// standbys is how a primary replicates.
type standbys struct {
	names       string // synchronous_standby_names
	waits       bool   // synchronous_commit makes commits wait for them
	connected   int    // of all kinds
	known       bool   // whether the next one is
	synchronous int    // connected, and named in names
}

// needed is how many standbys a commit waits for: names is "a", "a, b", "2 (a, b)", "ANY 1 (a, b)"
// or "FIRST 2 (a, b)".
func (s standbys) needed() int {
	list, _, hasList := strings.Cut(s.names, "(")
	words := strings.Fields(list)
	if !hasList || len(words) == 0 {
		return 1
	}
	n, err := strconv.Atoi(words[len(words)-1])
	if err != nil {
		return 1
	}
	return n
}

// judge says what the standbys are worth.
func (s standbys) judge(primary string) Finding {
	const two = "synchronous_standby_names = 'ANY 1 (a, b)'"
	switch needed := s.needed(); {
	case s.names == "" && s.connected == 0:
		return Finding{Warning, "no standby is connected to " + primary + ": if it dies for good, everything that is " +
			"stored there is lost; add two standbys and set " + two}
	case s.names == "":
		return Finding{Warning, "no standby of " + primary + " is synchronous: if it dies, the events of the last " +
			"moments are lost, though they were stored; set " + two}
	case !s.waits:
		return Finding{Warning, "commits do not wait for the standbys of " + primary + ": if it dies, the events of " +
			"the last moments are lost, though they were stored; set synchronous_commit = on"}
	case s.connected == 0, s.known && s.synchronous == 0:
		return Finding{Broken, "no synchronous standby is connected to " + primary + ", so nothing can be stored: " +
			"start one of synchronous_standby_names, or correct that setting"}
	case s.known && s.synchronous < needed:
		return Finding{Broken, fmt.Sprintf("%d of the %d synchronous standbys that a commit waits for are connected "+
			"to %s, so nothing can be stored: start the others, or set %s", s.synchronous, needed, primary, two)}
	case s.known && s.synchronous == needed:
		return Finding{Warning, fmt.Sprintf("as many synchronous standbys are connected to %s as a commit waits for "+
			"(%d): when one of them dies, nothing can be stored until it is back; add another one, and set %s",
			primary, needed, two)}
	case s.known:
		return Finding{Fine, fmt.Sprintf("%d synchronous standbys are connected to %s, and a commit waits for %d",
			s.synchronous, primary, needed)}
	}
	return Finding{Fine, primary + " has standbys, and commits wait for those of synchronous_standby_names; " +
		"to see which are connected, GRANT pg_monitor to the user of the address"}
}

// bridges looks whether the bridges that run have the same endpoints.
func (e *examination) bridges() error {
	schema := pgx.Identifier{e.schema}.Sanitize()
	rows, err := e.server.conn.Query(e.ctx, `SELECT value FROM `+schema+`.bridge b
		WHERE seen >= $1 AND EXISTS (SELECT FROM `+schema+`.process p WHERE p.id::text = b.value->>'Process')
		ORDER BY name`,
		time.Now().Add(-livingSince).UnixMilli()) // after a crash of all nobody has removed their processes
	if err != nil {
		return err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[store.Bridge])
	if err != nil {
		return err
	}
	e.living = len(list)
	var bridges, endpoints []string
	for _, b := range list {
		if differing := store.DifferingEndpoints(b, list); len(differing) > 0 {
			bridges, endpoints = append(bridges, b.Name), append(endpoints, differing...)
		}
	}
	if len(endpoints) > 0 {
		slices.Sort(endpoints)
		e.add(Warning, "the bridges do not have the same settings for %s (%s differ): give all bridges the same",
			strings.Join(slices.Compact(endpoints), ", "), strings.Join(bridges, ", "))
	}
	return nil
}

// connections looks whether the bridges get their connections: those that live, or the first one. A
// pooler has those that it needs.
func (e *examination) connections() error {
	var held int
	var left [3]int
	row := e.server.conn.QueryRow(e.ctx, `SELECT
			(SELECT count(*)::int FROM pg_stat_activity WHERE usesysid = pg_roles.oid AND datid = pg_database.oid
				AND application_name = $1 AND pid <> pg_backend_pid()),
			current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
				- coalesce(current_setting('reserved_connections', true)::int, 0)
				- (SELECT sum(numbackends) FROM pg_stat_database)::int,
			CASE WHEN datconnlimit < 0 OR rolsuper THEN 1000000 ELSE datconnlimit
				- (SELECT numbackends FROM pg_stat_database WHERE datid = pg_database.oid) END,
			CASE WHEN rolconnlimit < 0 OR rolsuper THEN 1000000 ELSE rolconnlimit
				- (SELECT count(*)::int FROM pg_stat_activity WHERE usesysid = pg_roles.oid) END
		FROM pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user`,
		applicationName(e.server.c))
	if err := row.Scan(&held, &left[0], &left[1], &left[2]); err != nil {
		return err
	}
	isPooled, err := e.pooler()
	if isPooled || err != nil {
		return err
	}
	c := e.server.c
	needed := maxConnections * max(e.living, 1)
	for i, limit := range []string{
		"max_connections",
		"ALTER DATABASE " + c.Database + " CONNECTION LIMIT",
		"ALTER ROLE " + c.User + " CONNECTION LIMIT",
	} {
		if left := held + max(left[i]+1, 0); left < needed { // the connection that asks goes
			e.add(Warning, "%s has only %d connections for the bridges (user %s, database %s), and they need %d, "+
				"%d each: raise the limit (%s)", e.server.name, left, c.User, c.Database, needed, maxConnections, limit)
		}
	}
	return nil
}

// pooler reports whether a pooler stands before the database, by a connection as bridges make it.
func (e *examination) pooler() (isPooled bool, err error) {
	c := e.server.c.Copy()
	c.RuntimeParams = parameters(e.schema)
	conn, err := pgx.ConnectConfig(e.ctx, c)
	if err == nil {
		err = errors.Join(checkParameters(e.ctx, conn, e.schema), conn.Close(e.ctx))
	}
	if !isPoolers(err) {
		return false, err
	}
	e.add(Fine, "a pooler such as PgBouncer stands before %s: each transaction sets its own parameters",
		e.server.name)
	return true, nil
}
