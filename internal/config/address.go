package config

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/idna"
)

// ASCIIHost converts the host of u to the ASCII form that DNS uses: атс.рф becomes
// xn--80a8ac.xn--p1ai. The resolver and the WebSocket library accept ASCII names only. It fails if
// the host is not a valid name.
func ASCIIHost(u *url.URL) error {
	host, err := asciiName(u.Hostname())
	if err != nil || host == u.Hostname() {
		return err
	}
	if port := u.Port(); port != "" {
		host = net.JoinHostPort(host, port)
	}
	u.Host = host
	return nil
}

var (
	errNoName = errors.New("there can be no such name of a host")
	plainName = regexp.MustCompile(`^[A-Za-z0-9._-]*$`)
)

// asciiName converts a name to its ASCII form. Plain ASCII names stay as they are, because names of
// containers may contain underscores, which IDNA forbids.
func asciiName(name string) (string, error) {
	if _, err := netip.ParseAddr(name); err == nil || plainName.MatchString(name) {
		return name, nil
	}
	if !strings.ContainsFunc(name, func(r rune) bool { return r > '~' }) {
		return "", errNoName
	}
	return idna.Lookup.ToASCII(name)
}

// parseEndpointURL parses the address of a CRM and returns it escaped for requests. Problems
// quote no more than the port and characters of the host, since the rest may contain tokens.
func parseEndpointURL(variable, s string, p *problems) string {
	authority, rest := splitAddress(strings.TrimSpace(s))
	u, err := url.Parse(authority + escaped(rest))
	var badHost url.InvalidHostError
	var badEscape url.EscapeError
	switch {
	case errors.As(err, &badHost):
		p.add(variable, "has %q in the name of the host, where it cannot stand", string(badHost))
	case errors.As(err, &badEscape):
		p.add(variable, "has a %% that no two hexadecimal digits follow: write %%25 for the sign itself")
	case err != nil && hasBadUser(authority):
		p.add(variable, "has a character in the user or the password, before the @, "+
			"that has to be written as %% and two hexadecimal digits, a blank as %%20")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		p.add(variable, "must be an address that begins with https:// or http://")
	case u.Port() != "" && !isPort(u.Port(), 1):
		p.add(variable, "has the port %s: a port is a number from 1 to 65535", u.Port())
	case u.Fragment != "":
		p.add(variable, "has a #, and what stands behind it is never sent: "+
			"remove it, or write %%23 for the sign itself")
	case ASCIIHost(u) != nil:
		p.add(variable, "has a name of the host that there cannot be")
	default:
		return u.String()
	}
	return ""
}

// splitAddress splits an address before its path, query or fragment.
func splitAddress(s string) (authority, rest string) {
	begin := strings.Index(s, "://")
	if begin < 0 {
		return s, ""
	}
	begin += len("://")
	if i := strings.IndexAny(s[begin:], "/?#"); i >= 0 {
		return s[:begin+i], s[begin+i:]
	}
	return s, ""
}

// hasBadUser reports whether an address is valid without its user and password.
func hasBadUser(authority string) bool {
	scheme, rest, _ := strings.Cut(authority, "://")
	at := strings.LastIndex(rest, "@")
	if at < 0 {
		return false
	}
	_, err := url.Parse(scheme + "://" + rest[at+1:])
	return err == nil
}

// escaped percent-encodes the characters of a path, query and fragment that a request cannot
// contain, as browsers do. net/http sends a query unchanged, and a space in it makes the request
// malformed.
func escaped(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c > ' ' && c <= '~' && !strings.ContainsRune("\"<>\\^`{|}", rune(c)) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String()
}
