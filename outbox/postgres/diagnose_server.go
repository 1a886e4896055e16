package postgres

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// server is what one server of a database answers.
type server struct {
	c    *pgx.ConnConfig
	name string

	conn     *pgx.Conn // nil: see wrong
	wrong    string    // why it cannot be used; empty if it can
	version  string    // 15.4
	timeline int       // 0: it is a standby
}

// serverName names a server for people: its host, with the port if that is not PostgreSQL's own, or
// the folder of its socket.
func serverName(c *pgx.ConnConfig) string {
	if c.Port == 5432 || strings.HasPrefix(c.Host, "/") {
		return c.Host
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// ask connects to the server, and asks it what it is.
func (s *server) ask(ctx context.Context) {
	if s.wrong = s.greet(ctx); s.wrong != "" {
		return
	}
	conn, err := pgx.ConnectConfig(ctx, s.c)
	if err != nil {
		s.wrong = s.explainRefusal(err)
		return
	}
	s.conn = conn
	var version string
	var number int
	row := conn.QueryRow(ctx, `SELECT version(), current_setting('server_version_num')::int`)
	if err = row.Scan(&version, &number); err == nil {
		if s.wrong = explainVersion(s.name, version, number); s.wrong != "" {
			return
		}
		err = conn.QueryRow(ctx, askTimeline).Scan(&s.timeline)
	}
	if err != nil {
		s.wrong = fmt.Sprintf("%s lets user %s in, but does not say what it is (%s)", s.name, s.c.User, reason(err))
	}
	s.version, _, _ = strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
}

func (s *server) close(ctx context.Context) {
	if s.conn != nil {
		_ = s.conn.Close(ctx)
	}
}

// sslRequest asks a server of PostgreSQL's protocol whether it speaks TLS. It answers S or N.
var sslRequest = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877103)

// greet finds out whether there is a server of PostgreSQL's protocol, and returns what is wrong.
// The library's errors do not tell a server without TLS from one of another protocol.
func (s *server) greet(ctx context.Context) (wrong string) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	network, address := pgconn.NetworkAddress(s.c.Host, s.c.Port)
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return s.explainDial(err)
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	answer := []byte{0}
	err = conn.SetDeadline(deadline)
	if err == nil {
		_, err = conn.Write(sslRequest)
	}
	if err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	switch {
	case isTimeout(err):
		return fmt.Sprintf("%s takes connections and does not answer them within %s: "+
			"it hangs, or is not PostgreSQL", s.name, probeTimeout)
	case err != nil || answer[0] != 'S' && answer[0] != 'N':
		return s.name + " is not PostgreSQL: correct the host and the port in the address"
	case answer[0] == 'N' && s.needsTLS():
		return s.name + " has TLS switched off: switch it on there (ssl = on, with a certificate), " +
			"or write sslmode=disable into the address if the network between is yours alone"
	}
	return ""
}

// needsTLS reports whether the address lets no connection without TLS be made.
func (s *server) needsTLS() bool {
	without := func(f *pgconn.FallbackConfig) bool { return f.TLSConfig == nil }
	return s.c.TLSConfig != nil && !slices.ContainsFunc(s.c.Fallbacks, without) && !strings.HasPrefix(s.c.Host, "/")
}

// explainDial tells why there is no connection.
func (s *server) explainDial(err error) string {
	var name *net.DNSError
	switch {
	case errors.As(err, &name):
		return fmt.Sprintf("the name %s cannot be resolved (%s): correct it in the address, or look at the DNS "+
			"of this machine", s.c.Host, name.Err)
	case errors.Is(err, syscall.ENOENT):
		return fmt.Sprintf("%s has no socket of PostgreSQL for port %d: start it, or correct the folder "+
			"or the port in the address", s.name, s.c.Port)
	case errors.Is(err, syscall.ECONNREFUSED):
		hint := ""
		if ip := net.ParseIP(s.c.Host); ip.IsLoopback() || s.c.Host == "localhost" {
			hint = "; in a container that address is the container itself"
		}
		return fmt.Sprintf("%s refuses the connection: look there whether PostgreSQL runs, and whether it listens "+
			"at that address and port (listen_addresses, port)%s", s.name, hint)
	case isTimeout(err):
		return fmt.Sprintf("%s does not answer within %s: look whether the address is right and that machine runs, "+
			"and at the firewall between", s.name, probeTimeout)
	}
	return fmt.Sprintf("%s cannot be reached (%v)", s.name, err)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// explainRefusal tells why a server of PostgreSQL's protocol does not take the connection.
func (s *server) explainRefusal(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return s.explainCode(refused)
	}
	if text := s.explainCertificate(err); text != "" {
		return text
	}
	if isTimeout(err) {
		return fmt.Sprintf("%s answers, but does not take the connection within %s: it hangs, or has too much to do",
			s.name, probeTimeout)
	}
	return fmt.Sprintf("no connection to %s can be made (%s)", s.name, reason(err))
}

// explainCode explains a refusal by its SQLSTATE, since its words depend on the server's language.
func (s *server) explainCode(refused *pgconn.PgError) string {
	user, database := s.c.User, s.c.Database
	switch refused.Code {
	case "28P01":
		if s.c.Password == "" {
			return fmt.Sprintf("%s wants a password of user %s, and the address has none", s.name, user)
		}
		return fmt.Sprintf("%s does not take the password of user %s, or has no such user: correct them "+
			"in the address, or set the password there (ALTER ROLE %s PASSWORD '…')", s.name, user, user)
	case "28000":
		return fmt.Sprintf("%s does not let user %s in (%s): correct the user in the address, make it there "+
			"(CREATE ROLE), or add a line for it to pg_hba.conf", s.name, user, refused.Message)
	case "3D000":
		return fmt.Sprintf("%s has no database %s: correct its name in the address, or make it there "+
			"(CREATE DATABASE %s OWNER %s)", s.name, database, database, user)
	case "42501":
		return fmt.Sprintf("user %s may not connect to the database %s at %s: GRANT CONNECT ON DATABASE %s TO %s",
			user, database, s.name, database, user)
	case "53300":
		return fmt.Sprintf("%s takes no more connections (%s): raise max_connections there, "+
			"or let others take fewer", s.name, refused.Message)
	case "57P03":
		return fmt.Sprintf("%s takes no connections now (%s): wait, or look at its log", s.name, refused.Message)
	}
	return fmt.Sprintf("%s does not take the connection (%s, SQLSTATE %s)", s.name, refused.Message, refused.Code)
}

// explainCertificate tells what is wrong with a server's certificate; it is empty if nothing is.
func (s *server) explainCertificate(err error) string {
	var unknown x509.UnknownAuthorityError
	var otherName x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown) && s.c.TLSConfig.RootCAs != nil:
		return fmt.Sprintf("the certificate of %s is signed by none of the authorities in the file of sslrootcert: "+
			"put that of its authority there", s.name)
	case errors.As(err, &unknown):
		return fmt.Sprintf("the certificate of %s is not trusted: name the file with its authority's certificate "+
			"as sslrootcert in the address", s.name)
	case errors.As(err, &otherName):
		return fmt.Sprintf("the certificate of %s is for another name (%v): write that name into the address, "+
			"or replace the certificate", s.name, otherName)
	case errors.As(err, &invalid):
		return fmt.Sprintf("the certificate of %s is of no use (%v): renew it, and look at the clock of this machine",
			s.name, invalid)
	}
	return ""
}

// explainVersion tells why a version of a server cannot be used; it is empty if it can. The number
// of 15.4 is 150004.
func explainVersion(name, version string, number int) string {
	for mark, product := range map[string]string{"CockroachDB": "CockroachDB", "-YB-": "YugabyteDB"} {
		if strings.Contains(version, mark) {
			return fmt.Sprintf("%s is %s, which is not supported: use PostgreSQL %d or newer",
				name, product, minPostgres)
		}
	}
	if number/10000 < minPostgres {
		return fmt.Sprintf("%s is PostgreSQL %d, which is too old: use %d or newer", name, number/10000, minPostgres)
	}
	return ""
}

// minPostgres is the oldest version of PostgreSQL that the tables and statements are written for.
const minPostgres = 15

// reason is what the server or the network says, without the user and the database of an address.
func reason(err error) string {
	var refused *pgconn.PgError
	var connecting *pgconn.ConnectError
	switch {
	case errors.As(err, &refused):
		return refused.Message
	case errors.As(err, &connecting):
		return withoutAddress(connecting)
	}
	return err.Error()
}
