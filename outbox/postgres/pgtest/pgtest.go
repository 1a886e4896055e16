// Package pgtest starts PostgreSQL servers for tests, in folders of their own, each reached through
// a Unix socket. A server ends with the test that started it, at the latest with the process of the
// tests, whichever way that ends.
package pgtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	owner = "pzbridge"
	port  = "5432" // a part of the socket's name
)

// settings are those of every server. What New is given comes behind them and so takes precedence.
var settings = []string{
	"listen_addresses=",
	"port=" + port,
	"max_connections=300",
	"shared_buffers=64MB",
	"max_wal_size=128MB",
	// Its shared memory is in its folder too, and goes with it.
	"dynamic_shared_memory_type=mmap",
	// The machine does not fail in a test, so nothing needs to reach its disk.
	"fsync=off",
	"full_page_writes=off",
	// A standby that has lost its primary looks for it again, also while it is being promoted.
	"wal_retrieve_retry_interval=200ms",
}

// Server is a PostgreSQL server. Its methods wait in real time, also in a bubble of
// testing/synctest.
type Server struct {
	folder   string // has the data, the socket and the log
	settings []string
	isShared bool

	keeper *exec.Cmd      // see keep; nil while the server does not run
	stdin  io.WriteCloser // of keeper

	databases atomic.Int64 // how many were made
	strategy  string       // of making one
	address   string       // of the loopback interface: see OverTCP
}

// Shared returns the server that all tests of a process share. The test is skipped where there is
// no PostgreSQL: see need.
func Shared(t testing.TB) *Server {
	t.Helper()
	need(t)
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var shared = sync.OnceValues(func() (*Server, error) {
	s, err := create(settings)
	if err == nil {
		s.isShared = true
	}
	return s, err
})

// New starts a server that ends with the test. Its settings have the form "fsync=on". The test is
// skipped where there is no PostgreSQL, see need, and where IsBrief.
func New(t testing.TB, more ...string) *Server {
	t.Helper()
	need(t)
	if IsBrief() {
		t.Skip("a server of its own takes seconds to start")
	}
	s, err := create(append(settings[:len(settings):len(settings)], more...))
	if err != nil {
		t.Fatal(err)
	}
	s.endWith(t)
	return s
}

// IsBrief reports whether tests of PostgreSQL are to take little time, as with -short. If
// POSTGRES_WHOLE is set, they are not.
func IsBrief() bool { return testing.Short() && os.Getenv("POSTGRES_WHOLE") == "" }

// need skips a test where there is no PostgreSQL. If NEED_POSTGRES is set, the test fails
// instead, so that the tests cannot be left out unnoticed where they must run.
func need(t testing.TB) {
	t.Helper()
	err := Found()
	switch {
	case err == nil:
	case os.Getenv("NEED_POSTGRES") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// create makes the folder of a server and starts it.
func create(settings []string) (*Server, error) {
	s, err := newServer(settings)
	if err != nil {
		return nil, err
	}
	err = s.run("initdb", "-D", s.data(), "-U", owner, "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8",
		"--no-instructions", "--no-sync")
	if err == nil {
		err = s.start()
	}
	if err == nil {
		err = s.makeTemplate()
	}
	if err != nil {
		return nil, errors.Join(err, s.end(""), os.RemoveAll(s.folder))
	}
	return s, nil
}

// template is the database that all others are copies of.
const template = "empty"

// makeTemplate makes the template. It sorts texts as dictionaries do, as databases commonly do, so
// that a statement which needs the order of bytes and does not say so fails. PostgreSQL 14 has no
// such order on every machine.
func (s *Server) makeTemplate() error {
	version, err := query(s.URL("postgres"), "SHOW server_version_num")
	if err != nil {
		return err
	}
	order := ""
	if version >= "150000" {
		order = " LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
		s.strategy = " STRATEGY FILE_COPY" // twice as fast as through the log, and all that there was before
	}
	_, err = query(s.URL("postgres"), "CREATE DATABASE "+template+" TEMPLATE template0"+order)
	return err
}

// newServer makes the folder of a server. Its path is short, since that of a socket is limited to
// some hundred bytes.
func newServer(settings []string) (*Server, error) {
	folder, err := os.MkdirTemp(parent(), "pgtest-")
	if err != nil {
		return nil, err
	}
	if err := giveAway(folder); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	n := addresses.Add(1)
	address := fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()%64, os.Getpid()/64%256, 1+n%250)
	return &Server{folder: folder, settings: settings, address: address}, nil
}

// OverTCP is a setting of New with which a server, and a standby of it, also listen on a loopback
// address of their own, as Linux has them: see URLOverTCP.
const OverTCP = "listen_addresses=its own"

// addresses counts those that were given away.
var addresses atomic.Uint32

func (s *Server) data() string { return filepath.Join(s.folder, "data") }

// keep is a shell script that runs a server as its child and keeps it while its standard input is
// open. The other end of that is the tests' process's alone, so it closes also if that is killed.
// Then the script kills the server with all its processes, first the one that would start others,
// and waits until none has memory any more: a server does not start while one of an earlier run
// does. What is left in the system is a piece of shared memory, of which the server's file has the
// number. The script removes the folder, unless it has read a line.
const keep = `
"$@" </dev/null >>"$0/log" 2>&1 &
server=$!
until grep -qs ^ready "$0/data/postmaster.pid"; do
	grep -qs VmSize /proc/$server/status || exit 1
	sleep 0.01
done
echo $server
read -r more
kill -STOP $server
all="$server $(cat /proc/$server/task/$server/children)"
kill -KILL $all
while grep -qs VmSize $(printf '/proc/%s/status ' $all); do sleep 0.01; done
wait
ipcrm -m $(sed -n '7s/.* //p' "$0/data/postmaster.pid")
rm -f "$0/data/postmaster.pid"
[ "$more" ] || rm -rf "$0"
`

// start starts the server and waits until it accepts connections.
func (s *Server) start() error {
	postgres, err := program("postgres")
	if err != nil {
		return err
	}
	args := []string{"-c", keep, s.folder, postgres, "-D", s.data(), "-k", s.folder}
	for _, setting := range s.settings {
		if setting == OverTCP {
			setting = "listen_addresses=" + s.address
		}
		args = append(args, "-c", setting)
	}
	return s.startKeeper(args...)
}

// startKeeper runs a shell script that keeps a server, and waits for its first line: the server is
// ready then.
func (s *Server) startKeeper(args ...string) error {
	keeper := command("/bin/sh", args...)
	stdin, err := keeper.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := keeper.StdoutPipe()
	if err != nil {
		return err
	}
	if err := keeper.Start(); err != nil {
		return err
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		why, _ := os.ReadFile(filepath.Join(s.folder, "log"))
		return fmt.Errorf("PostgreSQL does not start: %w\n%s", errors.Join(stdin.Close(), keeper.Wait()), why)
	}
	s.keeper, s.stdin = keeper, stdin
	return nil
}

// end kills the server, if it runs. Its folder goes unless more is a line.
func (s *Server) end(more string) error {
	if s.keeper == nil {
		return nil
	}
	_, err := io.WriteString(s.stdin, more)
	err = errors.Join(err, s.stdin.Close(), s.keeper.Wait())
	s.keeper = nil
	return err
}

func (s *Server) endWith(t testing.TB) {
	t.Cleanup(func() {
		if err := errors.Join(s.end(""), os.RemoveAll(s.folder)); err != nil {
			t.Error(err)
		}
	})
}

// Kill kills all processes of the server at once. It can be started again.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.end("keep\n"); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server in order, without waiting for its clients. It can be started again.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.run("pg_ctl", "-D", s.data(), "-m", "fast", "-w", "stop"); err != nil {
		t.Fatal(err)
	}
	s.Kill(t)
}

// Start starts the server again with what it has kept.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// signal is a shell script that sends a signal to all processes of a server, first to the one that
// starts the others. One of them may have ended meanwhile.
const signal = `
read -r server <"$0/data/postmaster.pid"
kill -$1 $server && { kill -$1 $(cat /proc/$server/task/$server/children) 2>/dev/null; :; }
`

// Freeze stops all processes of the server where they are. Its connections stay open, and nobody
// answers.
func (s *Server) Freeze(t testing.TB) { s.signal(t, "STOP") }

// Thaw lets the processes of a frozen server go on.
func (s *Server) Thaw(t testing.TB) { s.signal(t, "CONT") }

func (s *Server) signal(t testing.TB, name string) {
	t.Helper()
	if err := output(command("/bin/sh", "-c", signal, s.folder, name), nil); err != nil {
		t.Fatal(err)
	}
}

// Standby starts a copy of the server that ends with the test. From now on the server confirms only
// what this standby has stored too.
func (s *Server) Standby(t testing.TB, name string) *Server {
	t.Helper()
	standby, err := newServer(s.settings)
	if err != nil {
		t.Fatal(err)
	}
	standby.endWith(t)
	from := fmt.Sprintf("host=%s port=%s user=%s application_name=%s", s.folder, port, owner, name)
	err = standby.run("pg_basebackup", "-d", from, "-D", standby.data(), "-X", "stream", "-c", "fast", "-R",
		"-C", "-S", name, "--no-sync")
	if err == nil {
		err = standby.start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.SQL(t, "ALTER SYSTEM SET synchronous_standby_names = '"+name+"'")
	s.SQL(t, "SELECT pg_reload_conf()")
	s.SQL(t, `DO $$ BEGIN
		WHILE NOT EXISTS (SELECT FROM pg_stat_replication
			WHERE application_name = '`+name+`' AND sync_state = 'sync') LOOP
			PERFORM pg_sleep(0.01), pg_stat_clear_snapshot(); -- else it sees what it saw first
		END LOOP;
	END $$`)
	return standby
}

// Promote makes a standby a server that accepts changes, and waits until it does.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	if s.SQL(t, "SELECT pg_promote()") != "t" {
		t.Fatal("the standby cannot be promoted")
	}
}

// Database makes an empty database and returns its address. It goes when the test ends.
func (s *Server) Database(t testing.TB) (address string) {
	t.Helper()
	name := fmt.Sprint("test", s.databases.Add(1))
	s.SQL(t, "CREATE DATABASE "+name+" TEMPLATE "+template+s.strategy)
	if s.isShared { // otherwise it goes with the server
		t.Cleanup(func() { s.SQL(t, "DROP DATABASE "+name+" WITH (FORCE)") })
	}
	return s.URL(name)
}

// URL returns the address of a database, with the servers that may take this one's place.
func (s *Server) URL(database string, others ...*Server) string {
	q := url.Values{"host": {s.folder}, "port": {port}}
	for _, o := range others {
		q.Set("host", q.Get("host")+","+o.folder)
		q.Set("port", q.Get("port")+","+port)
	}
	u := url.URL{Scheme: "postgres", User: url.User(owner), Path: "/" + database, RawQuery: q.Encode()}
	return u.String()
}

// URLOverTCP is URL for servers that were started with OverTCP.
func (s *Server) URLOverTCP(database string, others ...*Server) string {
	hosts := s.address + ":" + port
	for _, o := range others {
		hosts += "," + o.address + ":" + port
	}
	return "postgres://" + owner + "@" + hosts + "/" + database + "?sslmode=disable"
}

// SQL carries out a statement in the database postgres, and returns the rows of its answer, a line
// each, with their columns separated by |.
func (s *Server) SQL(t testing.TB, statement string) string {
	t.Helper()
	return SQL(t, s.URL("postgres"), statement)
}

// SQL carries out a statement in the database at an address, and returns the rows of its answer, a
// line each, with their columns separated by |.
func SQL(t testing.TB, address, statement string) string {
	t.Helper()
	answer, err := query(address, statement)
	if err != nil {
		t.Fatalf("%v\n%s", err, statement)
	}
	return answer
}

func query(address, statement string) (string, error) {
	psql, err := program("psql")
	if err != nil {
		return "", err
	}
	var answer strings.Builder
	err = output(command(psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", address, "-c", statement), &answer)
	return strings.TrimSuffix(answer.String(), "\n"), err
}

// Dump returns a schema of the database at an address, as pg_dump stores it.
func Dump(t testing.TB, address, schema string) (dump []byte) {
	t.Helper()
	var out bytes.Buffer
	path, err := program("pg_dump")
	if err == nil {
		err = output(command(path, "-Fc", "-n", schema, address), &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Restore puts a dump back, as pg_restore does.
func Restore(t testing.TB, address string, dump []byte) {
	t.Helper()
	path, err := program("pg_restore")
	if err == nil {
		c := command(path, "-d", address)
		c.Stdin = bytes.NewReader(dump)
		err = output(c, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a program of PostgreSQL.
func (s *Server) run(name string, args ...string) error {
	path, err := program(name)
	if err != nil {
		return err
	}
	return output(command(path, args...), nil)
}

// command makes a command that no variable of the environment influences, not run by root.
func command(path string, args ...string) *exec.Cmd {
	c := exec.Command(path, args...)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	unprivileged(c)
	return c
}

// output runs a command. Its error has what the command has written to standard error.
func output(c *exec.Cmd, stdout io.Writer) error {
	var why strings.Builder
	c.Stdout, c.Stderr = stdout, &why
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(c.Path), err, strings.TrimSpace(why.String()))
	}
	return nil
}
