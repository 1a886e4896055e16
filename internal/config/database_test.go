package config

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// databaseURL is the address of a database, whose password is hunter2.
const databaseURL = "postgres://bridge:hunter2@db.example/pzbridge?sslmode=verify-full"

func TestDatabaseAddressIsRead(t *testing.T) {
	for in, want := range map[string]struct{ url, place string }{
		databaseURL: {databaseURL, "database pzbridge at db.example, schema pzbridge"},
		"postgresql://u:p@a,b/x": {
			"postgresql://u:p@a,b/x", "database x at a,b, schema pzbridge",
		},
		"postgres://u@a:5432,b:5433,[::1]:5434,[fe80::1%25eth0]/x": {
			"postgres://u@a:5432,b:5433,[::1]:5434,[fe80::1%25eth0]/x",
			"database x at a:5432,b:5433,[::1]:5434,[fe80::1%25eth0], schema pzbridge",
		},
		" POSTGRES://u:p@a,b:5433/x?sslmode=verify-ca&target_session_attrs=any ": {
			"postgres://u:p@a,b:5433/x?sslmode=verify-ca&target_session_attrs=any",
			"database x at a,b:5433, schema pzbridge",
		},
		"postgres://u%40x:p%2F%40%3A%25@a/my%20outbox": {
			"postgres://u%40x:p%2F%40%3A%25@a/my%20outbox", "database my outbox at a, schema pzbridge",
		},
		"postgres://u:p:q+r@a/x": {"postgres://u:p:q+r@a/x", "database x at a, schema pzbridge"},
		"postgres://u@база.рф:5433,my_db/x": {
			"postgres://u@xn--80aabz.xn--p1ai:5433,my_db/x",
			"database x at xn--80aabz.xn--p1ai:5433,my_db, schema pzbridge",
		},
		"postgres://u@/x?host=/var/run/postgresql&port=5433": {
			"postgres://u@/x?host=/var/run/postgresql&port=5433", "database x at /var/run/postgresql, schema pzbridge",
		},
		"postgres://u@%2Fvar%2Frun%2fpostgresql:5433/x": {
			"postgres://u@%2Fvar%2Frun%2fpostgresql:5433/x", "database x at /var/run/postgresql, schema pzbridge",
		},
	} {
		c, err := Load(minimal("OUTBOX_URL=" + in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if c.OutboxURL != want.url || c.OutboxPlace() != want.place {
			t.Errorf("%s: got %q, %q", in, c.OutboxURL, c.OutboxPlace())
		}
	}
	c, err := Load(minimal("OUTBOX_PATH=a/b.db"))
	if err != nil || c.OutboxURL != "" || c.OutboxPlace() != "a/b.db" {
		t.Errorf("without a database: %q, %q, %v", c.OutboxURL, c.OutboxPlace(), err)
	}
}

// Each address has one fault. Its problem says it in a sentence that shows nothing of the address,
// since a sign that is not escaped makes a part of the password look like a host or a name.
func TestEachFaultOfADatabaseAddress(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for in, says := range map[string]string{
		"mysql://u:hunter2@a/x":                                 "must be postgres://user:password@host/database",
		"u:hunter2@a/x":                                         "must be postgres://user:password@host/database",
		"host=a user=u password=hunter2":                        "must be postgres://user:password@host/database",
		"postgres://a/hunter2":                                  "names no user",
		"postgres://:hunter2@a/x":                               "names no user",
		"postgres://u:hunter2@/x":                               "names no host",
		"postgres://u:hunter2@:5432/x":                          "names no host",
		"postgres://u:hunter2@a,,b/x":                           "names no host, or none beside a comma",
		"postgres://u:hunter2@a,/x":                             "names no host, or none beside a comma",
		"postgres://u:hunter2@a":                                "names no database",
		"postgres://u:hunter2@a/":                               "names no database",
		"postgres://u:hunter2@a/?sslmode=verify-full":           "names no database",
		"postgres://u:hunter2@a?sslmode=verify-full":            "names no database",
		"postgres://u:hunter2@a/x/":                             "must end after the name of the database",
		"postgres://u:hunter2@a/x/y":                            "must end after the name of the database",
		"postgres://u:hun@ter2hunter2@a/x":                      "@ as %40",
		"postgres://u:5/hunter2@a/x":                            "/ as %2F",
		"postgres://u:hunter2?@a/x":                             "? as %3F",
		"postgres://u:hunter2#@a/x":                             "# as %23",
		"postgres://u:hunter2%@a/x":                             "% as %25",
		"postgres://u:hunter2 x@a/x":                            "a blank as %20",
		"postgres://u:hunter2[@a/x":                             "two hexadecimal digits",
		"postgres://u:5@hunter2/y@a/x":                          "@ as %40",
		"postgres://u:hunter2@a/x#y":                            "# as %23",
		"postgres://u:hunter2@a/x%0Ay":                          "must end after the name of the database",
		"postgres://u:hunter2@a:0/x":                            "must have ports between 1 and 65535",
		"postgres://u:hunter2@a:65536,b/x":                      "must have ports between 1 and 65535",
		"postgres://u:hunter2@a,b:x/x":                          "a name of a host that there cannot be",
		"postgres://u:hunter2@a:1:2/x":                          "a name of a host that there cannot be",
		"postgres://u:hunter2@::1/x":                            "a name of a host that there cannot be",
		"postgres://u:hunter2@[::1/x":                           "a name of a host that there cannot be",
		"postgres://u:hunter2@a<b/x":                            "a name of a host that there cannot be",
		"postgres://u:hunter2@база_.рф/x":                       "a name of a host that there cannot be",
		"postgres://u:hunter2@%2Frun:x/x":                       "must have ports between 1 and 65535",
		"postgres://u:hunter2@a/x?sslmode=on":                   "must have an sslmode of disable, allow,",
		"postgres://u:hunter2@a/x?sslmode=":                     "must have an sslmode of disable, allow,",
		"postgres://u:hunter2@a/x?sslmode=verify-full&ssl=true": "must not have ssl behind the ?",
		"postgres://u:hunter2@/x?host=/run,/tmp":                "says behind the ? what belongs before it",
		"postgres://u:hunter2@/x?port=5433":                     "says behind the ? what belongs before it",
		"postgres://u:hunter2@a/x?hunter2":                      "something else than name=value behind the ?",
		"postgres://u:hunter2@a/x?sslmode=a=b":                  "something else than name=value behind the ?",
		"postgres://u:hunter2@a/x?sslmode=%zz":                  "something else than name=value behind the ?",
		"postgres://u@a/x?password=hunter2":                     "says behind the ? what belongs before it",
		"postgres://u@a/x?user=v":                               "says behind the ? what belongs before it",
		"postgres://u@a/x?dbname=x":                             "says behind the ? what belongs before it",
		"postgres://u:hunter2@a/x?host=/run":                    "says behind the ? what belongs before it",
		"postgres://u:hunter2@/x?host=a":                        "says behind the ? what belongs before it",
		"postgres://u:hunter2@a/x?port=5433":                    "says behind the ? what belongs before it",
		"postgres://u:hunter2@/x?host=/run&port=0":              "must have ports between 1 and 65535",
		"postgres://u:hunter2@a/x?sslrootcert=" + empty:         "sslrootcert: holds no certificate",
		"postgres://u:hunter2@a/x?sslrootcert=/none.pem":        "sslrootcert: open /none.pem: no such file",
	} {
		_, err := Load(minimal("OUTBOX_URL=" + in))
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
			t.Errorf("%s: got %v", in, err)
			continue
		}
		if line := wrong.Problems[0]; !strings.HasPrefix(line, "OUTBOX_URL: ") || !strings.Contains(line, says) ||
			strings.Contains(line, "hunter2") {
			t.Errorf("%s: %s", in, line)
		}
	}
}

// What belongs to a file, or to one bridge alone, is refused with a database, and says what to use
// instead.
func TestSettingsOfAFileAreRefusedWithADatabase(t *testing.T) {
	for setting, says := range map[string]string{
		"PZ_CLIENT_GUID=6f2c": "PZ_CLIENT_GUID: must not be set with OUTBOX_URL: a GUID belongs to the bridge " +
			"that is connected to the server, and is kept in the database",
		"BACKUP_DIR=/backup": "BACKUP_DIR: must not be set with OUTBOX_URL: a database is copied by PostgreSQL's own " +
			"tools, pg_dump, or base backups with archiving of the WAL",
	} {
		if _, err := Load(minimal(setting)); err != nil {
			t.Errorf("%s with a file: %v", setting, err)
		}
		_, err := Load(minimal(setting, "OUTBOX_URL="+databaseURL))
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 || wrong.Problems[0] != says {
			t.Errorf("%s: %v", setting, err)
		}
	}
	// The file's path may be set: docker-compose.yml always sets it.
	if _, err := Load(minimal("OUTBOX_PATH=/data/outbox.db", "OUTBOX_URL="+databaseURL)); err != nil {
		t.Error(err)
	}
}

// A database may take more than a file by default, and more than a program of 32 bits can map.
func TestLimitOfADatabase(t *testing.T) {
	for _, c := range []struct {
		vars []string
		want int64
	}{
		{nil, 1 << 30},
		{[]string{"OUTBOX_URL=" + databaseURL}, 10 << 30},
		{[]string{"OUTBOX_URL=" + databaseURL, "OUTBOX_MAX_BYTES=1GiB"}, 1 << 30},
		{[]string{"OUTBOX_URL=" + databaseURL, "OUTBOX_MAX_BYTES=9223372036854775807"}, math.MaxInt64},
	} {
		cfg, err := Load(minimal(c.vars...))
		if err != nil || cfg.OutboxMaxBytes != c.want {
			t.Errorf("%q: %d, %v", c.vars, cfg.OutboxMaxBytes, err)
		}
	}
}

func TestSchemaIsAPlainIdentifier(t *testing.T) {
	c, err := Load(minimal())
	if err != nil || c.OutboxSchema != "pzbridge" {
		t.Errorf("%q, %v", c.OutboxSchema, err)
	}
	longest := strings.Repeat("s", 63)
	for schema, isRight := range map[string]bool{
		"Calls_2": true, longest: true, longest + "s": false, "2calls": false, "_calls": false, "my calls": false,
		"calls;drop": false, "звонки": false, "my.calls": false, "pg_calls": false, "PG_calls": true, "pgcalls": true,
	} {
		c, err := Load(minimal("OUTBOX_SCHEMA="+schema, "OUTBOX_URL="+databaseURL))
		switch {
		case isRight && (err != nil || c.OutboxSchema != schema):
			t.Errorf("%s: %v", schema, err)
		case !isRight && (err == nil || !strings.Contains(err.Error(), "OUTBOX_SCHEMA: must be letters, digits and _")):
			t.Errorf("%s: %v", schema, err)
		}
	}
}

func TestBridgeIsNamedAfterItsMachine(t *testing.T) {
	host, err := os.Hostname()
	if err != nil || !bridgeName.MatchString(host) {
		t.Skipf("the name of this machine is %q, %v", host, err)
	}
	// A link of Docker to a container named bridge sets the variable too.
	for _, vars := range [][]string{nil, {"OUTBOX_URL=" + databaseURL}, {"BRIDGE_NAME=/crm/bridge"}} {
		if c, err := Load(minimal(vars...)); err != nil || c.BridgeName != host {
			t.Errorf("%q: %q, %v", vars, c.BridgeName, err)
		}
	}
}

func TestNameOfABridge(t *testing.T) {
	for name, isRight := range map[string]bool{
		"bridge2.example-A_1": true, strings.Repeat("n", 64): true, strings.Repeat("n", 65): false, "two words": false,
		"мост": false, "a/b": false,
	} {
		c, err := Load(minimal("BRIDGE_NAME=" + name))
		switch {
		case isRight && (err != nil || c.BridgeName != name):
			t.Errorf("%s: %v", name, err)
		case !isRight && (err == nil || !strings.Contains(err.Error(), "BRIDGE_NAME: must be 1 to 64")):
			t.Errorf("%s: %v", name, err)
		}
	}
	// The machine's name cannot stand in its place.
	for url, fails := range map[string]bool{"": false, databaseURL: true} {
		var p problems
		text{OutboxURL: url, OutboxSchema: "pzbridge"}.parseDatabase(&Config{}, &p)
		if got := strings.Join(p.list, "\n"); fails != strings.HasPrefix(got, "BRIDGE_NAME: is missing") {
			t.Errorf("with OUTBOX_URL=%s: %q", url, got)
		}
	}
}

// Two bridges may be connected to the server at a time if they share a database.
func TestTwoListenersNeedADatabase(t *testing.T) {
	for want, vars := range map[int][]string{
		1: nil,
		2: {"LISTENERS=2", "OUTBOX_URL=" + databaseURL},
	} {
		if c, err := Load(minimal(vars...)); err != nil || c.Listeners != want {
			t.Errorf("%q: %d, %v", vars, c.Listeners, err)
		}
	}
	_, err := Load(minimal("LISTENERS=2"))
	if err == nil || !strings.Contains(err.Error(), "LISTENERS: may be 2 only with OUTBOX_URL") {
		t.Errorf("without a database: %v", err)
	}
}

// Each line of the log has the name of its bridge where several may share the outbox.
func TestLogNamesTheBridge(t *testing.T) {
	for url, want := range map[string]string{"": "", databaseURL: ` bridge=bridge2`} {
		c, err := Load(minimal("LOG_FORMAT=text", "BRIDGE_NAME=bridge2", "OUTBOX_URL="+url))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		c.Logger(&out, LogOutput{}).Info("said")
		if !strings.HasSuffix(out.String(), " said"+want+"\n") {
			t.Errorf("with OUTBOX_URL=%s: %s", url, out.String())
		}
	}
}

func TestDatabaseAddressIsReadFromAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(databaseURL+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(minimal("OUTBOX_URL_FILE=" + file))
	if err != nil || c.OutboxURL != databaseURL || c.OutboxMaxBytes != 10<<30 {
		t.Errorf("%q, %d, %v", c.OutboxURL, c.OutboxMaxBytes, err)
	}
	_, err = Load(minimal("OUTBOX_URL_FILE="+file, "OUTBOX_URL="+databaseURL))
	if err == nil || !strings.Contains(err.Error(), "only one of the two") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("both: %v", err)
	}
}

// A connection whose server proves nothing causes a warning, unless it stays on this machine.
func TestDatabaseConnectionThatCanBeReadCausesAWarning(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert, _ := pair(t, "ca", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	for in, warned := range map[string]string{
		"postgres://u:hunter2@db/x":                                           "db",
		"postgres://u:hunter2@10.0.0.5:5433/x?sslmode=require":                "10.0.0.5:5433",
		"postgres://u:hunter2@127.0.0.1,db2,db3/x?sslmode=disable":            "db2",
		"postgres://u:hunter2@db/x?sslmode=verify-full&sslmode=prefer":        "db", // the last one counts
		"postgres://u:hunter2@db/x?sslmode=prefer&sslrootcert=" + ca:          "db",
		"postgres://u:hunter2@db/x?sslmode=verify-full":                       "",
		"postgres://u:hunter2@db/x?sslmode=verify%2Dca":                       "",
		"postgres://u:hunter2@db/x?sslrootcert=system":                        "", // is verify-full
		"postgres://u:hunter2@db/x?sslmode=require&sslrootcert=" + ca:         "", // is verify-ca
		"postgres://u:hunter2@localhost,127.0.0.2:5433,[::1]/x?sslmode=allow": "",
		"postgres://u:hunter2@/x?host=/run/postgresql":                        "",
	} {
		c, err := Load(minimal("OUTBOX_URL=" + in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var got string
		for _, w := range c.Warnings() {
			if strings.HasPrefix(w, "OUTBOX_URL ") {
				got += w
			}
		}
		want := ""
		if warned != "" {
			want = "OUTBOX_URL leads to " + warned + " without sslmode=verify-full: " +
				"what is sent there can be read on the way, or go to another server"
		}
		if got != want {
			t.Errorf("%s: the warning is %q", in, got)
		}
	}
}

// What is shown of a database are its hosts, its name and the mode of TLS.
func TestDatabaseIsShownWithoutItsPassword(t *testing.T) {
	c, err := Load(minimal("OUTBOX_SCHEMA=calls",
		"OUTBOX_URL=postgres://hunter2:hunter2@a,b:5433/x?sslpassword=hunter2&sslmode=verify-full"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Describe(&out); err != nil {
		t.Fatal(err)
	}
	table := regexp.MustCompile("  +").ReplaceAllString(out.String(), " ")
	shown := table + c.OutboxPlace() + strings.Join(c.Warnings(), "\n")
	if strings.Contains(shown, "hunter2") {
		t.Errorf("the password is shown:\n%s", shown)
	}
	for _, want := range []string{
		"OUTBOX_URL database x at a,b:5433, sslmode verify-full (the rest is hidden)\n",
		"database x at a,b:5433, schema calls", " 10GiB\n",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not in:\n%s", want, shown)
		}
	}
}
