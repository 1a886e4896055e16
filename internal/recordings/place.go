package recordings

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"pzbridge/internal/outbound"
	"pzbridge/internal/telephony"
)

// Allowed is from where recordings may be fetched: hosts and folders. Whatever the exchange names,
// the bridge goes nowhere else.
type Allowed struct {
	hosts   []host
	folders []string // absolute and clean, with slashes
}

// host is a host from which recordings may be fetched.
type host struct {
	scheme string // empty: any
	name   string // in lower case
	port   string // empty: any
}

// schemes are the ways in which a file is fetched from a host.
var schemes = []string{"ftp", "http", "https"}

// ParseAllowed parses a comma-separated list of hosts, such as 192.168.1.5, pbx.local:8080 or
// ftp://192.168.1.5, and of folders, such as /records.
func ParseAllowed(list string) (a Allowed, err error) {
	number := 0
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		number++
		switch {
		case part == "":
			continue
		case isFolder(part):
			folder := cleanPath(part)
			if folder == "/" {
				return a, errors.New("may not hold the folder /, which is everything: name that of the recordings")
			}
			a.folders = append(a.folders, folder)
		default:
			h, ok := parseHost(part)
			if !ok { // not quoted: some write a password there
				return a, fmt.Errorf("must be a list of hosts, such as 192.168.1.5 or ftp://192.168.1.5, "+
					"and of folders, such as /records; its part %d is none", number)
			}
			a.hosts = append(a.hosts, h)
		}
	}
	return a, nil
}

func parseHost(text string) (h host, ok bool) {
	scheme, rest, hasScheme := strings.Cut(text, "://")
	if !hasScheme {
		scheme, rest = "", text
	}
	u, err := url.Parse("//" + rest)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" ||
		hasScheme && !slices.Contains(schemes, scheme) {
		return host{}, false
	}
	return host{scheme, strings.ToLower(u.Hostname()), u.Port()}, true
}

// IsEmpty reports whether nothing is allowed.
func (a Allowed) IsEmpty() bool { return len(a.hosts) == 0 && len(a.folders) == 0 }

// allows reports whether a file may be fetched from a place.
func (a Allowed) allows(p place) bool {
	if p.folder != "" {
		return slices.Contains(a.folders, p.folder)
	}
	return slices.ContainsFunc(a.hosts, func(h host) bool {
		return (h.scheme == "" || h.scheme == p.url.Scheme) && h.name == strings.ToLower(p.url.Hostname()) &&
			(h.port == "" || h.port == portOf(p.url))
	})
}

// Rewrites replace the beginning of addresses.
type Rewrites []rewrite

type rewrite struct{ from, to string }

// ParseRewrites parses a comma-separated list such as ftp://somehost/=/records/. What is replaced
// by must lie in what is allowed. No error quotes the list, which may hold passwords.
func ParseRewrites(list string, a Allowed) (r Rewrites, err error) {
	number := 0
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		number++
		from, to, found := strings.Cut(part, "=")
		if !found || from == "" || to == "" {
			return nil, fmt.Errorf("must be a list such as ftp://somehost/=/records/; its part %d is none", number)
		}
		p, err := a.placeOf(strings.TrimRight(to, "/") + "/file")
		if err != nil || !a.allows(p) {
			return nil, fmt.Errorf("leads, in its part %d, to where nothing may be fetched from", number)
		}
		r = append(r, rewrite{from, to})
	}
	return r, nil
}

// apply replaces the beginning of an address by the first rewrite that fits. Case does not count,
// as in paths of Windows, nor how a path is written.
func (r Rewrites) apply(address string) string {
	address = plain(address)
	for _, w := range r {
		from := plain(w.from)
		if len(address) < len(from) || !strings.EqualFold(address[:len(from)], from) {
			continue
		}
		return strings.TrimRight(w.to, "/") + "/" + strings.TrimLeft(address[len(from):], "/")
	}
	return address
}

// plain returns a path with slashes, also if it is written as a URL; other addresses as they are.
func plain(address string) string {
	if file, isFile := filePath(address); isFile {
		return strings.ReplaceAll(file, `\`, "/")
	}
	return address
}

// place is where a file is: in a folder that is allowed, or at a host.
type place struct {
	folder, file string   // both with slashes; the file is below the folder
	url          *url.URL // nil for a file in a folder
}

// name says where it is, without a login and without the file.
func (p place) name() string {
	if p.folder != "" {
		return p.folder
	}
	return p.url.Scheme + "://" + p.url.Host
}

// top is name for a place that is not allowed: of a folder it is the beginning, since those below
// may be named after clients.
func (p place) top() string {
	const shown = 2 // of the parts between slashes
	parts := strings.SplitAfterN(p.name(), "/", shown+1)
	if p.folder == "" || len(parts) <= shown {
		return p.name()
	}
	return strings.Join(parts[:shown], "") + "…"
}

// hide removes the login, the query and the name of the file from the text of an error of a
// library: exchanges put the number of the client into names.
func (p place) hide(err error) error {
	if err == nil || p.url == nil || telephony.CauseOf(err).Code != "" {
		return err
	}
	password, _ := p.url.User.Password()
	text := err.Error()
	hidden := outbound.NewRedactor("", nil, password, p.url.User.String(), p.url.RawQuery, p.url.Path,
		path.Base(p.url.Path)).Replace(text)
	var file *fileError
	switch {
	case hidden == text:
		return err
	case errors.As(err, &file):
		return &fileError{errors.New(hidden)}
	}
	return errors.New(hidden)
}

// extension returns the ending of the file's name in lower case, without the dot.
func (p place) extension() string {
	file := p.file
	if p.url != nil {
		file = p.url.Path
	}
	return strings.ToLower(strings.TrimPrefix(path.Ext(file), "."))
}

// find returns where the file at an address of the exchange is. Fails with errNotAllowed.
func (o *Options) find(address string) (place, error) {
	p, err := o.From.placeOf(o.Map.apply(strings.TrimSpace(address)))
	if err != nil {
		return place{}, err
	}
	if !o.From.allows(p) {
		return place{}, errNotAllowed(p.top())
	}
	return p, nil
}

// placeOf reads an address: a path, or a URL.
func (a Allowed) placeOf(address string) (place, error) {
	if strings.ContainsFunc(address, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return place{}, errNotAllowed("an address with control characters")
	}
	if file, isFile := filePath(address); isFile {
		return a.inFolder(file), nil
	}
	u, err := url.Parse(escaped(address))
	if err != nil || !slices.Contains(schemes, strings.ToLower(u.Scheme)) || u.Hostname() == "" {
		return place{}, errNotAllowed("an address that is no URL of ftp, http or https, and no path")
	}
	if strings.ContainsFunc(u.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) { // escaped before
		return place{}, errNotAllowed("an address with control characters")
	}
	u.Scheme, u.Fragment = strings.ToLower(u.Scheme), ""
	return place{url: u}, nil
}

// escaped returns an address with what the exchange has not escaped in the name of a file: # and a
// % that stands for itself and, where the path is all that follows the host, ?.
func escaped(address string) string {
	_, isFTP := cutPrefixFold(address, "ftp:")
	var b strings.Builder
	for i, r := range address {
		isPercent := r == '%' && !startsWithHex(address[i+1:])
		if r == '#' || isPercent || r == '?' && isFTP {
			_, _ = fmt.Fprintf(&b, "%%%02X", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// startsWithHex reports whether a text begins with two hexadecimal digits.
func startsWithHex(text string) bool {
	return len(text) > 1 && strings.Trim(text[:2], "0123456789abcdefABCDEF") == ""
}

// inFolder returns the place of a file in the longest folder that contains it. A file in none is in
// its own folder, which is not allowed.
func (a Allowed) inFolder(file string) place {
	file = cleanPath(file)
	found := place{folder: path.Dir(file), file: path.Base(file)}
	longest := 0
	for _, folder := range a.folders {
		if below, ok := strings.CutPrefix(file, folder+"/"); ok && len(folder) > longest {
			found, longest = place{folder: folder, file: below}, len(folder)
		}
	}
	return found
}

// filePath returns the path in an address that is a path, or a URL of a file.
func filePath(address string) (file string, ok bool) {
	rest, isURL := cutPrefixFold(address, "file:")
	if !isURL {
		return address, isFolder(address)
	}
	rest = strings.ReplaceAll(rest, `\`, "/")
	if local, found := strings.CutPrefix(rest, "///"); found { // else it names a host: a share of Windows
		if rest = "/" + local; isDrive(local) {
			rest = local
		}
	}
	if unescaped, err := url.PathUnescape(rest); err == nil {
		rest = unescaped
	}
	return rest, true
}

func cutPrefixFold(s, prefix string) (rest string, found bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// isFolder reports whether a text is an absolute path, in the form of any system.
func isFolder(text string) bool {
	return strings.HasPrefix(text, "/") || strings.HasPrefix(text, `\`) || isDrive(text)
}

// isDrive reports whether a text begins as C:\ or C:/.
func isDrive(text string) bool {
	return len(text) > 2 && text[1] == ':' && (text[2] == '\\' || text[2] == '/')
}

// cleanPath returns a path with slashes and, if it begins with a drive, with that in lower case. A
// share of Windows keeps both slashes at its beginning.
func cleanPath(p string) string {
	p = strings.ReplaceAll(p, `\`, "/")
	isShare := strings.HasPrefix(p, "//")
	p = path.Clean(p)
	switch {
	case isShare:
		return "/" + p
	case isDrive(p):
		return strings.ToLower(p[:1]) + p[1:]
	}
	return p
}

func portOf(u *url.URL) string {
	return cmp.Or(u.Port(), map[string]string{"ftp": "21", "http": "80", "https": "443"}[u.Scheme])
}
