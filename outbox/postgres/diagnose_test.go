package postgres

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/postgres/pgtest"
	"pzbridge/outbox/store"
)

// secret is the password in the addresses of these tests.
const secret = "s3same-Open"

// diagnosis are findings, with what they say.
type diagnosis []Finding

func diagnose(t *testing.T, address string) diagnosis {
	t.Helper()
	began := time.Now()
	list := diagnosis(Diagnose(t.Context(), address, "pzbridge"))
	if took := time.Since(began); took > diagnoseTimeout+time.Second {
		t.Errorf("it took %s", took)
	}
	if all := list.String(); len(list) == 0 || strings.Contains(all, secret) {
		t.Errorf("the findings are none, or show the password:\n%s", all)
	}
	return list
}

func (d diagnosis) String() string {
	var lines []string
	for _, f := range d {
		lines = append(lines, fmt.Sprintf("%d %s", f.Severity, f.Text))
	}
	return strings.Join(lines, "\n")
}

// of returns the findings of a severity, a line each.
func (d diagnosis) of(severity Severity) string {
	var texts []string
	for _, f := range d {
		if f.Severity == severity {
			texts = append(texts, f.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// says checks that there is one finding of a severity, with all of some texts; without texts, that
// there is none.
func (d diagnosis) says(t *testing.T, severity Severity, texts ...string) {
	t.Helper()
	found := d.of(severity)
	isOne := found != "" && !strings.Contains(found, "\n")
	for _, text := range texts {
		isOne = isOne && strings.Contains(found, text)
	}
	if isOne != (len(texts) > 0) {
		t.Errorf("want of severity %d %q, got:\n%s", severity, texts, d)
	}
}

// has checks that the findings of a severity have some texts.
func (d diagnosis) has(t *testing.T, severity Severity, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(d.of(severity), text) {
			t.Errorf("want of severity %d %q, got:\n%s", severity, text, d)
		}
	}
}

// loopbacks counts the addresses of this machine that tests have taken, so that servers do not
// contend for a port.
var loopbacks atomic.Int64

// listening starts a server that can be reached by TCP with a password, and returns its address.
func listening(t *testing.T) (s *pgtest.Server, ip string) {
	t.Helper()
	n := int(loopbacks.Add(1)) + os.Getpid()%200*250
	ip = net.IPv4(127, 23, byte(n/250), byte(n%250+1)).String()
	s = pgtest.New(t, "listen_addresses="+ip)
	putFile(t, s, "pg_hba.conf", "local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n")
	s.SQL(t, "SELECT pg_reload_conf()")
	return s, ip
}

// putFile writes a file of the server.
func putFile(t *testing.T, s *pgtest.Server, name, content string) {
	t.Helper()
	s.SQL(t, fmt.Sprintf(`COPY (SELECT '%s') TO PROGRAM 'umask 077; base64 -d >%s'`,
		base64.StdEncoding.EncodeToString([]byte(content)), name))
}

// withUser returns an address for another user.
func withUser(t *testing.T, address, user string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, secret)
	return u.String()
}

// makeUser makes a role that may make a schema in a database, with more attributes, and returns the
// address for it.
func makeUser(t *testing.T, address, attributes string) string {
	t.Helper()
	user := fmt.Sprint("user", loopbacks.Add(1), "_", os.Getpid())
	database := pgtest.SQL(t, address, "SELECT current_database()")
	pgtest.SQL(t, address, "CREATE ROLE "+user+" LOGIN "+attributes)
	t.Cleanup(func() { pgtest.SQL(t, address, "DROP OWNED BY "+user+"; DROP ROLE "+user) })
	pgtest.SQL(t, address, "GRANT CREATE ON DATABASE "+database+" TO "+user)
	return withUser(t, address, user)
}

// TestSoundDatabase checks what is said of a database that a bridge can use, before and after its
// first start, and that nothing is made there.
func TestSoundDatabase(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	user := makeUser(t, address, "")
	d := diagnose(t, user)
	d.says(t, Broken)
	d.says(t, Fine, "is the primary, PostgreSQL ", ", timeline 1")
	d.says(t, Warning, "no standby is connected", "everything that is stored there is lost")
	if n := pgtest.SQL(t, address, "SELECT count(*) FROM pg_namespace WHERE nspname = 'pzbridge'"); n != "0" {
		t.Error("the schema has been made")
	}
	s := mustOpen(t, user)
	if again := diagnose(t, user); again.String() != d.String() {
		t.Errorf("with tables:\n%s", again)
	}
	_ = s.Close()
}

// TestDatabaseFarAway checks that a long way to the database is named.
func TestDatabaseFarAway(t *testing.T) {
	t.Parallel()
	server, ip := listening(t)
	server.SQL(t, "CREATE ROLE bridge LOGIN PASSWORD '"+secret+"'")
	server.SQL(t, "CREATE DATABASE calls OWNER bridge")
	for _, c := range []struct {
		name string
		way  time.Duration
		want []string
	}{
		{"near", 0, nil},
		{"far", farAway/2 + time.Millisecond, []string{"for a question and its answer", "near their database"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := diagnose(t, "postgres://bridge:"+secret+"@"+delayed(t, ip+":5432", c.way)+"/calls?sslmode=disable")
			got := ""
			for line := range strings.Lines(d.of(Warning)) {
				if !strings.Contains(line, "no standby") {
					got += line
				}
			}
			for _, text := range c.want {
				if !strings.Contains(got, text) {
					t.Errorf("no word of %q:\n%s", text, d)
				}
			}
			if c.want == nil && got != "" {
				t.Errorf("a warning:\n%s", got)
			}
		})
	}
}

// delayed returns the address of a way to a server on which every packet takes a time.
func delayed(t *testing.T, server string, way time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	carry := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			time.Sleep(way)
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				_ = near.Close()
				return
			}
			go carry(near, far)
			go carry(far, near)
		}
	}()
	return l.Addr().String()
}

// TestUnreachableServers checks what is said of servers that cannot be reached.
func TestUnreachableServers(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 mail.example.com ESMTP\r\n"))
			_ = conn.Close()
		}
	}()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for host, says := range map[string]string{
		"nowhere.invalid":             "the name nowhere.invalid cannot be resolved",
		"127.0.0.1:1":                 "in a container that address is the container itself",
		"127.0.0.2:1":                 "127.0.0.2:1 refuses the connection: look there whether PostgreSQL runs",
		other.Addr().String():         other.Addr().String() + " is not PostgreSQL",
		silent.Addr().String():        "takes connections and does not answer them within 2s",
		url.PathEscape(t.TempDir()):   "has no socket of PostgreSQL for port 5432",
		"nowhere.invalid,127.0.0.1:1": "",
	} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			d := diagnose(t, "postgres://bridge:"+secret+"@"+host+"/calls?sslmode=disable")
			d.has(t, Broken, says)
			d.says(t, Warning)
			d.says(t, Fine)
		})
	}
	diagnose(t, "postgres://bridge:"+secret+"@host:port/calls").says(t, Broken, "its address cannot be read")
}

// TestRefusedUsers checks what is said when a server does not let the user of the address in.
func TestRefusedUsers(t *testing.T) {
	t.Parallel()
	s, ip := listening(t)
	s.SQL(t, "CREATE ROLE bridge LOGIN PASSWORD '"+secret+"'")
	s.SQL(t, "CREATE ROLE other LOGIN PASSWORD 'another'")
	s.SQL(t, "CREATE ROLE banned LOGIN PASSWORD '"+secret+"' CONNECTION LIMIT 0")
	s.SQL(t, "CREATE DATABASE closed")
	s.SQL(t, "REVOKE CONNECT ON DATABASE closed FROM public")
	s.SQL(t, "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	for address, says := range map[string]string{
		"other:" + secret + "@HOST/postgres": "HOST does not take the password of user other",
		"bridge@HOST/postgres":               "HOST wants a password of user bridge, and the address has none",
		"bridge:" + secret + "@HOST/calls":   "HOST has no database calls",
		"bridge:" + secret + "@HOST/closed":  "user bridge may not connect to the database closed at HOST",
		"banned:" + secret + "@HOST/postgres": "HOST takes no more connections " +
			"(too many connections for role \"banned\")",
		"bridge:" + secret + "@HOST/latin":    "encoding LATIN1: make it with ENCODING 'UTF8'",
		"bridge:" + secret + "@HOST/postgres": "may not make the schema pzbridge: GRANT CREATE ON DATABASE postgres",
	} {
		d := diagnose(t, "postgres://"+strings.Replace(address, "HOST", ip, 1)+"?sslmode=disable")
		says = strings.Replace(says, "HOST", ip, 1)
		d.has(t, Broken, says)
	}
	putFile(t, s, "pg_hba.conf", "local all all trust\n")
	s.SQL(t, "SELECT pg_reload_conf()")
	diagnose(t, "postgres://bridge:"+secret+"@"+ip+"/postgres?sslmode=disable").
		says(t, Broken, ip+" does not let user bridge in (no pg_hba.conf entry for host")
}

// TestServerWithTLS checks what is said of a server without TLS, and of its certificate.
func TestServerWithTLS(t *testing.T) {
	t.Parallel()
	s, ip := listening(t)
	s.SQL(t, "CREATE ROLE bridge LOGIN PASSWORD '"+secret+"'")
	s.SQL(t, "CREATE DATABASE calls OWNER bridge")
	address := func(parameters string) string {
		return "postgres://bridge:" + secret + "@" + ip + "/calls?" + parameters
	}
	diagnose(t, address("sslmode=require")).says(t, Broken, ip+" has TLS switched off: switch it on there")
	diagnose(t, address("sslmode=prefer")).says(t, Broken)

	const anHour = time.Hour
	right, old := certificate(t, ip, anHour), certificate(t, ip, -anHour)
	wrongName := certificate(t, "192.0.2.7", anHour)
	for _, c := range []struct {
		certificate madeCertificate
		parameters  string
		severity    Severity
		says        string
	}{
		{right, "sslmode=verify-full&sslrootcert=" + right.file, Fine, "timeline 1, TLS 1.3"},
		{right, "sslmode=verify-full", Broken, "is not trusted: name the file with its authority's"},
		{right, "sslmode=verify-full&sslrootcert=" + old.file, Broken, "signed by none of the authorities in the file"},
		{right, "sslmode=verify-ca&sslrootcert=" + old.file, Broken, "signed by none of the authorities in the file"},
		{wrongName, "sslmode=verify-full&sslrootcert=" + wrongName.file, Broken, "is for another name (x509: "},
		{wrongName, "sslmode=verify-ca&sslrootcert=" + wrongName.file, Fine, "TLS 1.3"},
		{old, "sslmode=verify-full&sslrootcert=" + old.file, Broken, "is of no use (x509: certificate has expired"},
		{old, "sslmode=require", Fine, "TLS 1.3"},
	} {
		putFile(t, s, "server.crt", c.certificate.pem)
		putFile(t, s, "server.key", c.certificate.key)
		s.SQL(t, "ALTER SYSTEM SET ssl = on")
		s.SQL(t, "SELECT pg_reload_conf()")
		await(t, "the server has its certificate", func() bool { return c.certificate.isThatOf(ip) })
		diagnose(t, address(c.parameters)).says(t, c.severity, c.says)
	}
	putFile(t, s, "pg_hba.conf", "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n")
	s.SQL(t, "SELECT pg_reload_conf()")
	diagnose(t, address("sslmode=disable")).says(t, Broken, "does not let user bridge in (", "no encryption")
}

// madeCertificate is a certificate that has signed itself, also in a file.
type madeCertificate struct{ pem, key, file string }

func certificate(t *testing.T, ip string, validFor time.Duration) madeCertificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "of a test"},
		IPAddresses:           []net.IP{net.ParseIP(ip)},
		IsCA:                  true,
		BasicConstraintsValid: true,
		NotBefore:             time.Now().Add(-48 * time.Hour),
		NotAfter:              time.Now().Add(validFor),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := madeCertificate{
		pem:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		key:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
		file: filepath.Join(t.TempDir(), "ca.pem"),
	}
	if err := os.WriteFile(c.file, []byte(c.pem), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// isThatOf reports whether a server shows the certificate.
func (c madeCertificate) isThatOf(ip string) bool {
	conn, err := net.Dial("tcp", net.JoinHostPort(ip, "5432"))
	if err != nil {
		return false
	}
	defer conn.Close()
	answer := []byte{0}
	if _, err := conn.Write(sslRequest); err != nil {
		return false
	}
	if _, err := conn.Read(answer); err != nil || answer[0] != 'S' {
		return false
	}
	over := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if over.Handshake() != nil {
		return false
	}
	block, _ := pem.Decode([]byte(c.pem))
	return bytes.Equal(over.ConnectionState().PeerCertificates[0].Raw, block.Bytes)
}

// TestMissingRights checks what is said of rights that are missing at the schema and the tables,
// one after the other, until nothing is missing.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	user := makeUser(t, address, "")
	u, _ := url.Parse(user)
	name := u.User.Username()
	for _, c := range []struct {
		change string
		broken string // empty: nothing
	}{
		{"CREATE SCHEMA pzbridge", "user NAME may not use the schema pzbridge: ALTER SCHEMA pzbridge OWNER TO NAME"},
		{"GRANT USAGE ON SCHEMA pzbridge TO NAME", "user NAME may not make tables in the schema pzbridge"},
		{"GRANT CREATE ON SCHEMA pzbridge TO NAME", ""},
		{"CREATE TABLE pzbridge.event ()", "user NAME may not use the table event in the schema pzbridge"},
		{"GRANT SELECT, INSERT, UPDATE ON pzbridge.event TO NAME", "user NAME may not use the table event"},
		{"GRANT DELETE ON pzbridge.event TO NAME", ""},
		{"ALTER ROLE NAME SET default_transaction_read_only = on", "user NAME may only read in the database"},
	} {
		pgtest.SQL(t, address, strings.ReplaceAll(c.change, "NAME", name))
		d := diagnose(t, user)
		if c.broken == "" {
			d.says(t, Broken)
		} else {
			d.says(t, Broken, strings.ReplaceAll(c.broken, "NAME", name))
		}
	}
	diagnose(t, user).has(t, Warning, "the table event in the schema pzbridge does not belong to user "+name)
	pgtest.SQL(t, address, "ALTER TABLE pzbridge.event OWNER TO "+name)
	if d := diagnose(t, user); strings.Contains(d.of(Warning), "does not belong") {
		t.Errorf("got:\n%s", d)
	}
}

// TestServersThatAreNotSupported checks what is said of other products and of old versions.
func TestServersThatAreNotSupported(t *testing.T) {
	for _, c := range []struct {
		version string
		number  int
		says    string
	}{
		{"PostgreSQL 15.4 (Debian 15.4-1) on x86_64", 150004, ""},
		{"PostgreSQL 18.0", 180000, ""},
		{"PostgreSQL 14.9", 140009, "db1 is PostgreSQL 14, which is too old: use 15 or newer"},
		{"CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu)", 130000, "db1 is CockroachDB, which is not supported"},
		{"PostgreSQL 11.2-YB-2.18.0.0-b0 on x86_64", 110002, "db1 is YugabyteDB, which is not supported"},
	} {
		says := explainVersion("db1", c.version, c.number)
		if !strings.HasPrefix(says, c.says) || (says == "") != (c.says == "") {
			t.Errorf("%s: %q", c.version, says)
		}
	}
}

// TestTablesOfLaterVersions checks what is said of tables that a later version has made.
func TestTablesOfLaterVersions(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	_ = mustOpen(t, address).Close()
	for ahead, says := range map[int][]string{
		1: nil,
		2: {fmt.Sprintf("a later version of pzbridge has made its tables (version %d, this one knows %d): "+
			"start that version", schemaVersion+2, schemaVersion)},
	} {
		setVersion(t, address, schemaVersion+ahead)
		diagnose(t, address).says(t, Broken, says...)
	}
}

// TestStandbys checks what is said of the servers of a cluster: of one that hangs, of a standby
// alone, and of an old primary that takes itself for one still.
func TestStandbys(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t)
	standby := primary.Standby(t, "second")
	both := primary.URL("postgres", standby)
	d := diagnose(t, both)
	d.says(t, Broken)
	d.says(t, Warning, "as many synchronous standbys are connected", "nothing can be stored until it is back")
	d.has(t, Fine, "is the primary", "is a standby, PostgreSQL ")
	diagnose(t, standby.URL("postgres")).says(t, Broken, "is a standby and accepts no changes: promote it")

	standby.Freeze(t)
	d = diagnose(t, both)
	d.says(t, Broken)
	d.has(t, Warning, "does not answer them within 2s")
	standby.Thaw(t)
	standby.Promote(t)
	d = diagnose(t, both)
	d.says(t, Broken)
	d.has(t, Warning, "takes itself for the primary too, on the older timeline 1")
	d.has(t, Fine, "timeline 2")
	primary.Stop(t)
	d = diagnose(t, both)
	d.says(t, Broken)
	d.has(t, Warning, "has no socket of PostgreSQL")
	standby.Stop(t)
	if d := diagnose(t, both); strings.Count(d.of(Broken), "has no socket of PostgreSQL") != 2 {
		t.Errorf("with both stopped:\n%s", d)
	}
}

// TestStandbyThatIsMissing checks what is said while a commit waits for a standby that is not
// connected, also to a user who may not see which are.
func TestStandbyThatIsMissing(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t)
	user := withUser(t, primary.URL("postgres"), "bridge")
	primary.SQL(t, "CREATE ROLE bridge LOGIN")
	primary.SQL(t, "GRANT CREATE ON DATABASE postgres TO bridge")
	standby := primary.Standby(t, "second")
	d := diagnose(t, user)
	d.says(t, Warning)
	d.has(t, Fine, "GRANT pg_monitor to the user")
	primary.SQL(t, "GRANT pg_monitor TO bridge")
	diagnose(t, user).says(t, Warning, "as many synchronous standbys")
	primary.SQL(t, "ALTER ROLE bridge SET synchronous_commit = local")
	diagnose(t, user).says(t, Warning, "commits do not wait for the standbys", "set synchronous_commit = on")
	primary.SQL(t, "ALTER ROLE bridge RESET synchronous_commit")
	primary.SQL(t, "ALTER SYSTEM SET synchronous_standby_names = ''")
	primary.SQL(t, "SELECT pg_reload_conf()")
	diagnose(t, user).says(t, Warning, "is synchronous: if it dies, the events of the last moments are lost")
	primary.SQL(t, "ALTER SYSTEM SET synchronous_standby_names = 'second'")
	primary.SQL(t, "SELECT pg_reload_conf()")
	standby.Kill(t)
	await(t, "the standby has gone", func() bool {
		return primary.SQL(t, "SELECT count(*) FROM pg_stat_replication") == "0"
	})
	diagnose(t, user).says(t, Broken, "no synchronous standby is connected", "so nothing can be stored")
}

// TestReplicationIsJudged checks what is said of each way to replicate.
func TestReplicationIsJudged(t *testing.T) {
	for _, c := range []struct {
		standbys standbys
		want     Severity
		says     string
	}{
		{standbys{"", true, 0, true, 0}, Warning, "no standby is connected to db1"},
		{standbys{"", true, 2, true, 0}, Warning, "no standby of db1 is synchronous"},
		{standbys{"a", false, 1, true, 1}, Warning, "commits do not wait"},
		{standbys{"a", true, 0, true, 0}, Broken, "no synchronous standby is connected to db1"},
		{standbys{"a", true, 1, true, 0}, Broken, "no synchronous standby is connected to db1"},
		{standbys{"a", true, 1, true, 1}, Warning, "as many synchronous standbys are connected to db1"},
		{standbys{"a, b", true, 2, true, 2}, Fine, "2 synchronous standbys are connected to db1, and"},
		{standbys{"ANY 1 (a, b)", true, 2, true, 2}, Fine, "2 synchronous standbys"},
		{standbys{"ANY 2 (a, b)", true, 2, true, 2}, Warning, "as many synchronous standbys are connected to db1"},
		{standbys{"2 (a, b)", true, 2, true, 1}, Broken, "1 of the 2 synchronous standbys"},
		{standbys{"FIRST 1 (*)", true, 3, true, 3}, Fine, "3 synchronous standbys"},
		{standbys{"a", true, 2, false, 0}, Fine, "db1 has standbys, and commits wait for those of"},
	} {
		if f := c.standbys.judge("db1"); f.Severity != c.want || !strings.HasPrefix(f.Text, c.says) {
			t.Errorf("%+v: %d %s", c.standbys, f.Severity, f.Text)
		}
	}
}

// TestClocksAreCompared checks what is said when this machine's clock is behind that of the
// database: in a bubble it begins in the year 2000.
func TestClocksAreCompared(t *testing.T) {
	address := pgtest.Shared(t).Database(t)
	synctest.Test(t, func(t *testing.T) {
		diagnose(t, address).has(t, Warning, " ahead of that of this machine: set both right (NTP)")
	})
}

// TestTooFewConnections checks what is said when bridges would not get their connections, and that
// those of bridges that run count.
func TestTooFewConnections(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	user := makeUser(t, address, "CONNECTION LIMIT 5")
	u, _ := url.Parse(user)
	name, database := u.User.Username(), strings.Trim(u.Path, "/")
	warns := func(texts ...string) {
		t.Helper()
		d := diagnose(t, user)
		d.has(t, Warning, texts...)
		if len(texts) == 0 && strings.Contains(d.of(Warning), "connections for the bridges") {
			t.Errorf("got:\n%s", d)
		}
	}
	warns("has only 5 connections for the bridges", "need 6, 6 each: raise the limit (ALTER ROLE "+name)
	pgtest.SQL(t, address, "ALTER ROLE "+name+" CONNECTION LIMIT 6")
	warns()
	pgtest.SQL(t, address, "ALTER DATABASE "+database+" CONNECTION LIMIT 5")
	warns("raise the limit (ALTER DATABASE " + database)

	pgtest.SQL(t, address, "ALTER DATABASE "+database+" CONNECTION LIMIT -1")
	pgtest.SQL(t, address, "ALTER ROLE "+name+" CONNECTION LIMIT 12")
	s := mustOpen(t, user)
	for _, bridge := range []string{"one", "two"} {
		if err := s.Announce(t.Context(), store.Bridge{Name: bridge, Seen: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	warns()
	pgtest.SQL(t, address, "ALTER ROLE "+name+" CONNECTION LIMIT 11")
	warns("has only 11 connections for the bridges", "need 12, 6 each")
}

// TestServerOfTooFewConnections checks that the limit of the whole server counts too.
func TestServerOfTooFewConnections(t *testing.T) {
	small := pgtest.New(t, "max_connections=8")
	diagnose(t, small.URL("postgres")).has(t, Warning, "has only 5 connections for the bridges", "(max_connections)")
}

// TestBridgesThatDiffer checks what is said of bridges with other settings for the same endpoint.
func TestBridgesThatDiffer(t *testing.T) {
	t.Parallel()
	address := pgtest.Shared(t).Database(t)
	s, gone := mustOpen(t, address), mustOpen(t, address)
	announce := func(by *Engine, name string, endpoints map[string]string) {
		// Their clocks differ.
		b := store.Bridge{Name: name, Seen: time.Now().Add(-10 * time.Minute), Endpoints: endpoints}
		if err := by.Announce(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	announce(s, "one", map[string]string{"crm": "a", "sheet": "b"})
	announce(s, "two", map[string]string{"crm": "a", "sheet": "b"})
	announce(gone, "gone", map[string]string{"crm": "z"})
	_ = gone.Close()
	if d := diagnose(t, address); strings.Contains(d.of(Warning), "the same settings") {
		t.Errorf("of bridges that do not differ:\n%s", d)
	}
	announce(s, "two", map[string]string{"crm": "c", "sheet": "b"})
	diagnose(t, address).has(t, Warning, "do not have the same settings for crm (one, two differ)")
}

// TestPoolerIsNamed checks that a pooler before the database is found, and that the rest is judged
// through it, but for the connections.
func TestPoolerIsNamed(t *testing.T) {
	t.Parallel()
	d := diagnose(t, pgtest.New(t, "max_connections=8").Pooler(t).Database(t))
	d.says(t, Broken)
	d.says(t, Warning, "no standby is connected")
	d.has(t, Fine, "a pooler such as PgBouncer stands before")
}
