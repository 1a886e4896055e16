// Package pz is the wire of Prostie Zvonki: how a client introduces itself, how a frame is packed, and what events,
// requests and responses look like in XML. It is pure: it turns values into bytes and back and knows no socket.
//
// A client and a server need the same words, so both sides are here: the bridge uses one, the simulated server the other.
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

// DefaultPort is where a Prostie Zvonki server listens when nobody said otherwise.
const DefaultPort = "10150"

// MaxPassword is the longest password, in characters, that a server takes.
const MaxPassword = 32

// Identity is what a client says of itself in the handshake.
type Identity struct {
	Password       string // at most MaxPassword characters
	ClientType     string // what the vendor's licence is bound to
	GUID           string // under which the server remembers what the client has missed: stable across restarts
	PhoneNumber    string // an extension, or empty
	EventsMask     uint32 // the bits of the event types to get of every phone number
	BroadcastGroup string
	Protocol       int // 2 for today's clients; 1 for those that do not say
}

// The fields of a handshake: their names in the query and as headers. The server compares names
// letter by letter, so http.Header.Set, which rewrites "ClientID" to "Clientid", must not be used.
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

// value is a field as it goes on the wire.
type value struct {
	field
	text string
}

// values lists the fields in the order of current clients.
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

// PackPassword is a password as it travels: standard base64, padded. A server compares this text.
func PackPassword(password string) string {
	return base64.StdEncoding.EncodeToString([]byte(password))
}

// Handshake gives the identity as the handshake's query or, where a query cannot carry it, as its
// headers; the other one is empty. Never both: the server joins the two values of a field.
//
// Values go as they are, since the server decodes no percent escapes. That leaves the headers for a
// blank, "&", "#", "%" and everything outside ASCII. Both hold the password.
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

// fitsQuery says whether a query can carry a text without escapes.
func fitsQuery(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == '&' || r == '#' || r == '%'
	})
}

// ErrNoHTTP means that something is there that is no Prostie Zvonki server.
var ErrNoHTTP = errors.New("what answered the handshake does not speak HTTP")

// HideIn takes the identity out of an error's text: the handshake's query, and the password alone,
// packed and plain. What is no Prostie Zvonki server may echo them, and net/http quotes what it
// cannot read; since that may be any part of a secret, such an error becomes ErrNoHTTP.
func (id Identity) HideIn(err error) error {
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
	return hidden{err, strings.NewReplacer(pairs...)}
}

// hidden is an error in whose text something is replaced.
type hidden struct {
	error
	secrets *strings.Replacer
}

func (h hidden) Error() string { return h.secrets.Replace(h.error.Error()) }

func (h hidden) Unwrap() error { return h.error }

// Introduction is what a server has read of a client in its handshake.
type Introduction struct {
	Identity        // without the password
	Packed   string // the password as it came
	HasType  bool   // it says a client type; without one there is no licence that could cover it
}

// ReadIntroduction reads a handshake as the vendor's server was seen to: the query undecoded, the
// names compared letter by letter, and all values of one field joined with ", ", headers first.
// Headers are in the order and with the names of the wire.
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

// leadingNumber reads the decimal digits that a text begins with, as C's strtoul does: of "2, 2",
// which two values of a version are joined to, the server was seen to take the 2. It is 0 for none.
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

// CheckIdentityText says what is wrong with a text that is to stand in a handshake, in words that go
// on from its name; nil if nothing is. A header can carry neither control characters nor blanks at
// its ends.
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
