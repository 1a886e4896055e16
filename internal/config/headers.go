package config

import (
	"net/http"
	"regexp"
	"strings"
)

var (
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	// reservedHeaders are set by the bridge or belong to the connection. Accept-Encoding is among
	// them because net/http decompresses a response only if it has set that header itself.
	reservedHeaders = regexp.MustCompile(`^(?i)(webhook-.*|` +
		`content-type|content-length|content-encoding|user-agent|host|` +
		`connection|keep-alive|proxy-.*|transfer-encoding|accept-encoding|te|trailer|upgrade|expect)$`)
	// parameterHeaders are the headers whose values usually contain semicolons.
	parameterHeaders = regexp.MustCompile(`^(?i)(cookie|forwarded|accept|accept-.*|prefer|link|content-disposition)$`)
	// pairValue matches a value that starts with name=value, but not base64 text, in which only
	// more padding or nothing follows an equals sign.
	pairValue = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+=[^=]")
)

// parseHeaders parses Name=value;Name=value, where a value with semicolons is written between
// double quotes. Problems never show a value, since many values are tokens.
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
			return h // the start of the next part is unknown
		case part.noValue || !headerName.MatchString(part.name):
			p.add(variable, "must be Name=value;Name=value; part %d is not", number)
		case reservedHeaders.MatchString(part.name):
			p.add(variable, "must not set %s: the bridge does, or the connection", name)
		case strings.ContainsFunc(part.value, isControl):
			p.add(variable, "the value of %s holds a control character", name)
		case part.mayContinue() && strings.Trim(rest, "; \t\r\n") != "":
			p.add(variable, "the value of %s may go on after the semicolon: write it between double quotes, "+
				"%s=\"…; …\", and other headers behind that", name, name)
			return h // the rest probably belongs to this value
		default:
			h.Add(name, part.value)
		}
	}
	return h
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 }

// headerPart is one Name=value of a list.
type headerPart struct {
	name, value string
	isQuoted    bool
	isUnclosed  bool // the closing quote is missing, or is not the end of the part
	noValue     bool // there is no equals sign
}

// mayContinue reports whether the semicolon after the part may belong to its value, as in
// Cookie=a=1; theme=dark. Taking it as a separator would cut the value off and send the rest as an
// unintended header.
func (h headerPart) mayContinue() bool {
	return !h.isQuoted && (parameterHeaders.MatchString(h.name) || pairValue.MatchString(h.value))
}

// cutHeader splits the first part off a list. A blank part gives the zero headerPart.
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

// unquote reads up to the next double quote, and returns what follows it as rest. A backslash makes
// the character after it literal. ok is false if there is no closing quote.
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

// redactHeaders replaces the values in a list of headers.
func redactHeaders(list string) string {
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
