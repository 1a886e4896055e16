package pgtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Pooler is a PgBouncer in transaction mode before a server.
type Pooler struct {
	server *Server
	front  *Server // in whose folder its socket is
}

// pool is a shell script that runs PgBouncer as keep runs a server: while its standard input is
// open. Then it removes the folder.
const pool = `
"$@" </dev/null >>"$0/log" 2>&1 &
until [ -S "$0/.s.PGSQL.5432" ]; do
	kill -0 $! || exit 1
	sleep 0.01
done
echo ready
read -r more
kill -KILL $!
wait
rm -rf "$0"
`

// Pooler starts PgBouncer before the server, with more settings such as "max_client_conn = 10". It
// ends with the test. Each transaction gets another one of few connections. The test is skipped
// where there is no PgBouncer.
func (s *Server) Pooler(t testing.TB, more ...string) *Pooler {
	t.Helper()
	path, err := pgbouncer()
	if err != nil {
		t.Skip(err)
	}
	front, err := newServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	front.endWith(t)
	settings := append([]string{
		"[databases]",
		fmt.Sprintf("* = host=%s port=%s user=%s", s.folder, port, owner),
		"[pgbouncer]",
		"listen_port = " + port,
		"unix_socket_dir = " + front.folder,
		"auth_type = any",
		"pool_mode = transaction",
		"default_pool_size = 5",
		"max_client_conn = 1000",
		"server_round_robin = 1",
	}, more...)
	file := filepath.Join(front.folder, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(strings.Join(settings, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := front.startKeeper("-c", pool, front.folder, path, file); err != nil {
		t.Fatal(err)
	}
	return &Pooler{s, front}
}

// pgbouncer returns the path of PgBouncer, which Debian keeps out of the PATH of some users.
func pgbouncer() (path string, err error) {
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err = exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no PgBouncer")
}

// Database makes an empty database and returns its address through the pooler. It goes when the
// test ends.
func (p *Pooler) Database(t testing.TB) (address string) {
	t.Helper()
	return p.through(t)
}

// DatabaseWith is Database with another pooler that may take this one's place.
func (p *Pooler) DatabaseWith(t testing.TB, other *Pooler) (address string) {
	t.Helper()
	return p.through(t, other.front)
}

func (p *Pooler) through(t testing.TB, others ...*Server) string {
	t.Helper()
	u, err := url.Parse(p.server.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	return p.front.URL(strings.TrimPrefix(u.Path, "/"), others...)
}
