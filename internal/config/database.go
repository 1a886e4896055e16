package config

import (
	"math"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"pzbridge/outbox/store"
)

// databaseMaxBytes is the default of OUTBOX_MAX_BYTES with OUTBOX_URL.
const databaseMaxBytes = "10GiB"

var (
	schemaName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,62}$`)
	bridgeName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
)

// setDefaults sets the defaults that depend on another variable or on the machine.
func setDefaults(vars map[string]string) {
	if vars["OUTBOX_URL"] != "" && vars["OUTBOX_MAX_BYTES"] == "" {
		vars["OUTBOX_MAX_BYTES"] = databaseMaxBytes
	}
	if host, err := os.Hostname(); vars["BRIDGE_NAME"] == "" && err == nil && bridgeName.MatchString(host) {
		vars["BRIDGE_NAME"] = host
	}
}

// largestMaxBytes is the maximum of OUTBOX_MAX_BYTES: a file has one, since it is mapped into the
// memory of the process.
func (t text) largestMaxBytes() int64 {
	if t.OutboxURL != "" {
		return math.MaxInt64
	}
	return store.LargestMaxBytes
}

// parseDatabase parses the variables of the database into c, and refuses those that have no meaning
// with one.
func (t text) parseDatabase(c *Config, p *problems) {
	c.OutboxSchema, c.BridgeName = t.OutboxSchema, t.BridgeName
	switch {
	case t.BridgeName == "" && t.OutboxURL != "":
		p.add("BRIDGE_NAME", "is missing, and the name of this machine cannot stand in its place: "+
			"give this bridge a name of 1 to 64 letters, digits and . _ -")
	case t.BridgeName != "" && !bridgeName.MatchString(t.BridgeName):
		p.add("BRIDGE_NAME", "must be 1 to 64 letters, digits and . _ -; it is %q", t.BridgeName)
	}
	if !schemaName.MatchString(t.OutboxSchema) || strings.HasPrefix(t.OutboxSchema, "pg_") {
		p.add("OUTBOX_SCHEMA", "must be letters, digits and _, at most 63, and begin with a letter, "+
			"but not with pg_; it is %q", t.OutboxSchema)
	}
	switch {
	case t.Listeners == "1":
		c.Listeners = 1
	case t.Listeners == "2" && t.OutboxURL != "":
		c.Listeners = 2
	case t.Listeners == "2":
		p.add("LISTENERS", "may be 2 only with OUTBOX_URL: a bridge with a file of its own is alone")
	default:
		p.add("LISTENERS", "must be 1 or 2; it is %q", t.Listeners)
	}
	if t.OutboxURL == "" {
		return
	}
	if d, fault := readDatabase(t.OutboxURL); fault != "" {
		p.add("OUTBOX_URL", "%s", fault)
	} else {
		c.OutboxURL, c.database = d.url, d
		t.parseDatabaseCA(c, p)
	}
	if t.ClientGUID != "" {
		p.add("PZ_CLIENT_GUID", "must not be set with OUTBOX_URL: "+
			"a GUID belongs to the bridge that is connected to the server, and is kept in the database")
	}
	if t.BackupDir != "" {
		p.add("BACKUP_DIR", "must not be set with OUTBOX_URL: "+
			"a database is copied by PostgreSQL's own tools, pg_dump, or base backups with archiving of the WAL")
	}
}

// parseDatabaseCA checks the file of sslrootcert, which the address of the database may name.
func (t text) parseDatabaseCA(c *Config, p *problems) {
	file := c.database.parameters["sslrootcert"]
	if file == "" || file == systemRoots {
		return
	}
	for _, cert := range readCertificates("OUTBOX_URL: sslrootcert", file, p) {
		c.certificates = append(c.certificates, certificate{"OUTBOX_URL: sslrootcert", cert})
	}
}

// OutboxPlace returns where the outbox is, for people: the path of its file, or the name, the hosts
// and the schema of its database.
func (c Config) OutboxPlace() string {
	if c.database == nil {
		return c.OutboxPath
	}
	return c.database.place() + ", schema " + c.OutboxSchema
}

// database is what OUTBOX_URL says.
type database struct {
	url        string // for the driver: as it is written, with the names of hosts in ASCII
	name       string // of the database
	hosts      []databaseHost
	parameters map[string]string // those behind the question mark
}

// databaseHost is one host of a database, or the folder of a Unix socket.
type databaseHost struct {
	name string // without the port
	text string // as people read it, with the port if there is one
	raw  string // as it stands in the address
}

const (
	databaseForm = "must be postgres://user:password@host/database?sslmode=verify-full, " +
		"with commas between several hosts"
	signFault = "has a sign in the user, the password or the name of the database that has to be written " +
		"as % and two hexadecimal digits: @ as %40, / as %2F, ? as %3F, # as %23, % as %25, a blank as %20"
	noHostFault = "names no host, or none beside a comma: it " + databaseForm
	hostFault   = "has a name of a host that there cannot be: it " + databaseForm +
		"; an IPv6 address stands in brackets"
	portFault = "must have ports between 1 and 65535"
	moveFault = "says behind the ? what belongs before it: it " + databaseForm + "; only the folder of a Unix socket " +
		"is host=/folder, with port= if it has another"

	// systemRoots is the value of sslrootcert that means the authorities of the system.
	systemRoots = "system"
)

// sslModes are the values of sslmode.
var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// readDatabase parses the address of a database as libpq and the driver do, which know several
// hosts with a port each. net/url knows one. What the driver would read in another way than this
// function is refused, so that the bridge connects to what was checked. A fault never quotes the
// address, since a sign that is not escaped makes a part of the password look like a host, a port
// or a name.
func readDatabase(s string) (d *database, fault string) {
	s = strings.TrimSpace(s)
	address, rest := splitAddress(s)
	scheme, authority, isURL := strings.Cut(address, "://")
	if scheme = strings.ToLower(scheme); !isURL || scheme != "postgres" && scheme != "postgresql" {
		return nil, databaseForm
	}
	user, hosts, hasUser := strings.Cut(authority, "@")
	path, query, _ := strings.Cut(rest, "?")
	name, err := url.PathUnescape(strings.TrimPrefix(path, "/"))
	d = &database{name: name, parameters: map[string]string{}}
	switch {
	case err != nil, strings.ContainsAny(s, "# "), strings.Contains(hosts+path, "@"),
		!hasUser && strings.Contains(rest, "@"), hasUser && !isUserinfo(user):
		return nil, signFault
	case !hasUser, user == "", user[0] == ':':
		return nil, "names no user: it " + databaseForm
	case name == "":
		return nil, "names no database: it " + databaseForm
	case strings.Contains(path[1:], "/"), strings.ContainsFunc(name, unicode.IsControl):
		return nil, "must end after the name of the database, or go on with ?: it " + databaseForm
	}
	if fault := d.readParameters(query); fault != "" {
		return nil, fault
	}
	if fault := d.readHosts(hosts); fault != "" {
		return nil, fault
	}
	if hosts != "" {
		var raw []string
		for _, h := range d.hosts {
			raw = append(raw, h.raw)
		}
		hosts = strings.Join(raw, ",")
	}
	d.url = scheme + "://" + user + "@" + hosts + rest
	return d, ""
}

// isUserinfo reports whether a user, or a user and a password, are escaped as they must be.
func isUserinfo(s string) bool {
	_, err := url.Parse("postgres://" + s + "@host")
	return err == nil
}

// readParameters parses what stands behind the question mark. Of several values of one name the
// last one counts.
func (d *database) readParameters(query string) (fault string) {
	if query == "" {
		return ""
	}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, isPair := strings.Cut(pair, "=")
		key, keyErr := url.PathUnescape(key)
		text, valueErr := url.PathUnescape(value)
		if !isPair || strings.Contains(value, "=") || keyErr != nil || valueErr != nil {
			return "has something else than name=value behind the ?, with & between several"
		}
		d.parameters[key] = text
	}
	if mode, isSet := d.parameters["sslmode"]; isSet && !slices.Contains(sslModes, mode) {
		return "must have an sslmode of " + strings.Join(sslModes, ", ")
	}
	if d.parameters["ssl"] != "" {
		return "must not have ssl behind the ?: write sslmode=verify-full instead"
	}
	for _, key := range []string{"user", "password", "dbname", "database"} {
		if _, isSet := d.parameters[key]; isSet {
			return moveFault
		}
	}
	return ""
}

// readHosts parses the hosts before the path. If there are none, the parameter host may be the
// folder of a Unix socket.
func (d *database) readHosts(list string) (fault string) {
	folder, hasFolder := d.parameters["host"]
	port, hasPort := d.parameters["port"]
	switch {
	case list == "" && !hasFolder && !hasPort:
		return noHostFault
	case !hasFolder && !hasPort:
	case list != "" || !strings.HasPrefix(folder, "/") || strings.Contains(folder, ","):
		return moveFault
	case hasPort && !isPort(port, 1):
		return portFault
	default:
		d.hosts = []databaseHost{{name: folder, text: folder}}
		return ""
	}
	for raw := range strings.SplitSeq(list, ",") {
		h, fault := readDatabaseHost(raw)
		if fault != "" {
			return fault
		}
		d.hosts = append(d.hosts, h)
	}
	return ""
}

// readDatabaseHost parses one host with its port. One that begins with an escaped slash is the
// folder of a Unix socket.
func readDatabaseHost(raw string) (h databaseHost, fault string) {
	if len(raw) >= 3 && strings.EqualFold(raw[:3], "%2F") {
		escaped, port, hasPort := strings.Cut(raw, ":")
		folder, err := url.PathUnescape(escaped)
		switch {
		case err != nil || strings.Contains(folder, ","):
			return h, hostFault
		case hasPort && !isPort(port, 1):
			return h, portFault
		}
		return databaseHost{folder, folder, raw}, ""
	}
	u, err := url.Parse("postgres://" + raw)
	switch {
	case err == nil && u.Hostname() == "":
		return h, noHostFault
	case err != nil || strings.Count(u.Host, ":") > 1 && u.Host[0] != '[':
		return h, hostFault
	case u.Port() != "" && !isPort(u.Port(), 1):
		return h, portFault
	}
	name := u.Hostname()
	if ASCIIHost(u) != nil {
		return h, hostFault
	}
	if u.Hostname() != name {
		raw = u.Host
	}
	return databaseHost{u.Hostname(), raw, raw}, ""
}

// isLocal reports whether connections to a host stay on this machine.
func (h databaseHost) isLocal() bool {
	ip := net.ParseIP(h.name)
	return strings.HasPrefix(h.name, "/") || strings.EqualFold(h.name, "localhost") || ip != nil && ip.IsLoopback()
}

// place names the database and its hosts.
func (d *database) place() string {
	var hosts []string
	for _, h := range d.hosts {
		hosts = append(hosts, h.text)
	}
	return "database " + d.name + " at " + strings.Join(hosts, ",")
}

// isVerified reports whether a host has to prove by its certificate who it is. With a file of
// authorities, the mode require does what verify-ca does.
func (d *database) isVerified() bool {
	mode, roots := d.parameters["sslmode"], d.parameters["sslrootcert"]
	return strings.HasPrefix(mode, "verify-") || roots == systemRoots || mode == "require" && roots != ""
}

// warning returns what is insecure about the connection, or "".
func (d *database) warning() string {
	i := slices.IndexFunc(d.hosts, func(h databaseHost) bool { return !h.isLocal() })
	if i < 0 || d.isVerified() {
		return ""
	}
	return "OUTBOX_URL leads to " + d.hosts[i].text + " without sslmode=verify-full: " +
		"what is sent there can be read on the way, or go to another server"
}

// redactDatabase keeps the hosts, the name and the mode of TLS of a database's address.
func redactDatabase(s string) string {
	d, fault := readDatabase(s)
	if fault != "" {
		return "(hidden)"
	}
	shown := d.place()
	if mode := d.parameters["sslmode"]; mode != "" {
		shown += ", sslmode " + mode
	}
	return shown + " (the rest is hidden)"
}
