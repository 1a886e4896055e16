// Package pz is the wire protocol of Prostie Zvonki: the identity in the handshake, the packing of
// a frame, and the XML of events, requests and responses. It turns values into bytes and back and
// does no I/O.
//
// It holds both sides of the protocol: the bridge uses the client's, the simulated server in pztest
// the server's.
package pz

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DefaultPort is the port of a Prostie Zvonki server if none is configured.
const DefaultPort = "10150"

// MaxPassword is the longest password that a server accepts, in characters.
const MaxPassword = 32

// Identity is how a client identifies itself in the handshake.
type Identity struct {
	Password       string // at most MaxPassword characters
	ClientType     string // the vendor's licence covers certain types
	GUID           string // the server replays missed events by GUID, so it must be stable across restarts
	PhoneNumber    string // an extension, or empty
	EventsMask     uint32 // bits of the event types to receive for every phone number
	BroadcastGroup string
	Protocol       int // 2 for current clients; a server assumes 1 if it is missing
}

// The fields of a handshake, with their names in the query and as headers. The server compares
// names case-sensitively, so http.Header.Set, which rewrites "ClientID" to "Clientid", must not be
// used.
var (
	fieldPassword = field{"CID", "ClientID"}
	fieldType     = field{"CT", "ClientType"}
	fieldGUID     = field{"GID", "ClientGUID"}
	fieldPhone    = field{"PhoneNumber", "PhoneNumber"}
	fieldMask     = field{"BroadcastEventsMask", "BroadcastEventsMask"}
	fieldGroup    = field{"BroadcastGroup", "BroadcastGroup"}
	fieldProtocol = field{"PzProtocolVersion", "PzProtocolVersion"}
)

type field struct{ query, header string }

// value is a field with its text on the wire.
type value struct {
	field
	text string
}

// values lists the fields in the order in which current clients send them.
func (id Identity) values() []value {
	return []value{
		{fieldPassword, PackPassword(id.Password)},
		{fieldType, id.ClientType},
		{fieldGUID, id.GUID},
		{fieldPhone, id.PhoneNumber},
		{fieldMask, strconv.FormatUint(uint64(id.EventsMask), 10)},
		{fieldGroup, id.BroadcastGroup},
		{fieldProtocol, strconv.Itoa(id.Protocol)},
	}
}

// PackPassword encodes a password for the wire, in standard base64 with padding. A server compares
// this text.
func PackPassword(password string) string {
	return base64.StdEncoding.EncodeToString([]byte(password))
}

// Handshake returns the identity as the handshake's query or, if a query cannot carry it, as its
// headers; the other result is empty. It never fills both, since the server joins the two values of
// a field.
//
// Values go out unescaped, since the server decodes no percent escapes. A blank, "&", "#", "%" and
// everything outside ASCII therefore need the headers. Both results hold the password.
func (id Identity) Handshake() (query string, header http.Header) {
	values := id.values()
	if slices.ContainsFunc(values, func(v value) bool { return !fitsQuery(v.text) }) {
		header = http.Header{}
		for _, v := range values {
			header[v.header] = []string{v.text}
		}
		return "", header
	}
	pairs := make([]string, len(values))
	for i, v := range values {
		pairs[i] = v.query + "=" + v.text
	}
	return strings.Join(pairs, "&"), nil
}

// fitsQuery reports whether a query can carry a text without escapes.
func fitsQuery(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == '&' || r == '#' || r == '%'
	})
}

// ErrNoHTTP means that the peer is no Prostie Zvonki server.
var ErrNoHTTP = errors.New("what answered the handshake does not speak HTTP")

// Redact removes the identity from an error's text: the handshake's query, and the password alone,
// packed and plain. A peer that is no Prostie Zvonki server may echo them. net/http quotes input
// that it cannot parse, which may be any part of a secret; such an error becomes ErrNoHTTP.
func (id Identity) Redact(err error) error {
	if text := err.Error(); strings.Contains(text, "malformed HTTP") || strings.Contains(text, "malformed MIME") {
		return ErrNoHTTP
	}
	var pairs []string
	if query, _ := id.Handshake(); query != "" {
		pairs = append(pairs, query, "(hidden)")
	}
	if id.Password != "" {
		packed := PackPassword(id.Password)
		quoted := strconv.Quote(id.Password)
		for _, secret := range []string{id.Password, quoted[1 : len(quoted)-1], packed, url.QueryEscape(packed)} {
			pairs = append(pairs, secret, "(hidden)")
		}
	}
	return redactedError{err, strings.NewReplacer(pairs...)}
}

// redactedError replaces secrets in the text of the error that it wraps.
type redactedError struct {
	error
	secrets *strings.Replacer
}

func (e redactedError) Error() string { return e.secrets.Replace(e.error.Error()) }

func (e redactedError) Unwrap() error { return e.error }

// Introduction is a client's handshake as a server reads it.
type Introduction struct {
	Identity        // Password is empty
	Packed   string // the password as received
	HasType  bool   // a client type is given; no licence covers a client without one
}

// ReadIntroduction parses a handshake as the vendor's server does by observation: the query
// undecoded, the names case-sensitive, and all values of one field joined with ", ", headers first.
// Headers must have the order and the names of the wire.
func ReadIntroduction(query string, headers Attrs) Introduction {
	get := func(f field) (text string, found bool) {
		var texts []string
		for _, h := range headers {
			if h.Name == f.header {
				texts = append(texts, h.Value)
			}
		}
		for pair := range strings.SplitSeq(query, "&") {
			if name, text, _ := strings.Cut(pair, "="); name == f.query {
				texts = append(texts, text)
			}
		}
		return strings.Join(texts, ", "), texts != nil
	}
	text := func(f field) string { text, _ := get(f); return text }
	in := Introduction{Packed: text(fieldPassword)}
	in.ClientType, in.HasType = get(fieldType)
	in.GUID, in.PhoneNumber, in.BroadcastGroup = text(fieldGUID), text(fieldPhone), text(fieldGroup)
	in.EventsMask = uint32(leadingNumber(text(fieldMask)))
	in.Protocol = 1
	if version, found := get(fieldProtocol); found {
		in.Protocol = int(leadingNumber(version))
	}
	return in
}

// leadingNumber parses the decimal digits at the start of a text, as C's strtoul does: the vendor's
// server was seen to read "2, 2", the joined values of a repeated version, as 2. It is 0 without
// digits or above 32 bits.
func leadingNumber(text string) uint64 {
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(text[:end], 10, 32)
	if err != nil {
		return 0
	}
	return n
}

// CheckIdentityText returns an error if a text cannot stand in a handshake: a header can carry
// neither control characters nor blanks at its ends. The error's text is a predicate, to follow the
// name of the setting.
func CheckIdentityText(text string) error {
	switch {
	case !utf8.ValidString(text):
		return errors.New("is not UTF-8: save the file it stands in as UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("holds a control character, such as a tab or a line end: remove it")
	case strings.TrimSpace(text) != text:
		return errors.New("begins or ends with a blank: remove it")
	}
	return nil
}
