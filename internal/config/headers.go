package config

import (
	"net/http"
	"regexp"
	"strings"
)

var (
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	// reservedHeaders are the bridge's own, and those of the connection. With an Accept-Encoding of
	// somebody else's net/http would leave answers packed.
	reservedHeaders = regexp.MustCompile(`^(?i)(webhook-.*|content-type|content-length|content-encoding|user-agent|host|` +
		`connection|keep-alive|proxy-.*|transfer-encoding|accept-encoding|te|trailer|upgrade|expect)$`)
	// parameterHeaders are those in whose values semicolons are usual.
	parameterHeaders = regexp.MustCompile(`^(?i)(cookie|forwarded|accept|accept-.*|prefer|link|content-disposition)$`)
	// pairValue matches a value that begins as a list of pairs does, and no base64 with its
	// padding.
	pairValue = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+=[^=]")
)

// parseHeaders reads Name=value;Name=value, where a value with semicolons stands between double
// quotes. Values are not quoted in what it says: many are tokens.
func parseHeaders(variable, list string, p *problems) http.Header {
	h := http.Header{}
	number := 0
	for rest := list; rest != ""; {
		var part headerPart
		number++
		part, rest = cutHeader(rest)
		name := http.CanonicalHeaderKey(part.name)
		switch {
		case part == headerPart{}:
		case part.isUnclosed:
			p.add(variable, "the value of %s has a double quote that does not end it: write \\\" for one within", name)
			return h // where the next part begins cannot be known
		case part.noValue || !headerName.MatchString(part.name):
			p.add(variable, "must be Name=value;Name=value; part %d is not", number)
		case reservedHeaders.MatchString(part.name):
			p.add(variable, "must not set %s: the bridge does, or the connection", name)
		case strings.ContainsFunc(part.value, isControl):
			p.add(variable, "the value of %s holds a control character", name)
		case part.mayGoOn() && strings.Trim(rest, "; \t\r\n") != "":
			p.add(variable, "the value of %s may go on after the semicolon: write it between double quotes, %s=\"…; …\", "+
				"and other headers behind that", name, name)
			return h // what follows is no header of its own
		default:
			h.Add(name, part.value)
		}
	}
	return h
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 }

// headerPart is one Name=value.
type headerPart struct {
	name, value string
	isQuoted    bool
	isUnclosed  bool // it begins with a quote, and something else than its end follows the next one
	noValue     bool // there is no equals sign
}

// mayGoOn says whether what a semicolon ends may be a part of a value, as in Cookie=a=1;
// theme=dark: a header that nobody meant would be sent, and the one that was meant would be cut
// off.
func (h headerPart) mayGoOn() bool {
	return !h.isQuoted && (parameterHeaders.MatchString(h.name) || pairValue.MatchString(h.value))
}

// cutHeader takes the first part off a list. A blank one is empty.
func cutHeader(list string) (part headerPart, rest string) {
	plain, rest, _ := strings.Cut(list, ";")
	name, value, ok := strings.Cut(plain, "=")
	part = headerPart{name: strings.TrimSpace(name), value: strings.TrimSpace(value), noValue: !ok}
	if strings.TrimSpace(plain) == "" {
		return headerPart{}, rest
	}
	if !strings.HasPrefix(part.value, `"`) {
		return part, rest
	}
	_, quoted, _ := strings.Cut(list, `"`)
	part.isQuoted = true
	part.value, rest, ok = unquote(quoted)
	plain, rest, _ = strings.Cut(rest, ";")
	part.isUnclosed = !ok || strings.TrimSpace(plain) != ""
	return part, rest
}

// unquote reads up to the next double quote, and gives what stands behind it. A backslash takes the
// meaning of the character after it away.
func unquote(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// showHeaders shows the names of the headers of a list.
func showHeaders(list string) string {
	var names []string
	for list != "" {
		var part headerPart
		part, list = cutHeader(list)
		if part != (headerPart{}) {
			names = append(names, part.name+"=(hidden)")
		}
	}
	return strings.Join(names, ";")
}
