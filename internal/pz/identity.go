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
	"strconv"
	"strings"
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

// Query gives the identity as the handshake's query string, the way of current clients. It holds the password.
func (id Identity) Query() string {
	values := url.Values{
		"CID":                 {base64.StdEncoding.EncodeToString([]byte(id.Password))},
		"CT":                  {id.ClientType},
		"GID":                 {id.GUID},
		"PhoneNumber":         {id.PhoneNumber},
		"BroadcastEventsMask": {strconv.FormatUint(uint64(id.EventsMask), 10)},
		"BroadcastGroup":      {id.BroadcastGroup},
		"PzProtocolVersion":   {strconv.Itoa(id.Protocol)},
	}
	// A plus sign for a space is for forms; a server may decode percent signs only.
	return strings.ReplaceAll(values.Encode(), "+", "%20")
}

// Header gives the identity as HTTP headers, the older way of the vendor's console client and PHP library. It holds the
// password.
func (id Identity) Header() http.Header {
	h := http.Header{}
	h.Set("ClientID", base64.StdEncoding.EncodeToString([]byte(id.Password)))
	h.Set("ClientGUID", id.GUID)
	h.Set("ClientType", id.ClientType)
	h.Set("PhoneNumber", id.PhoneNumber)
	h.Set("BroadcastEventsMask", strconv.FormatUint(uint64(id.EventsMask), 10))
	h.Set("BroadcastGroup", id.BroadcastGroup)
	h.Set("PzProtocolVersion", strconv.Itoa(id.Protocol))
	return h
}

// ErrNoHTTP means that something is there that is no Prostie Zvonki server.
var ErrNoHTTP = errors.New("what answered the handshake does not speak HTTP")

// HideIn takes the handshake's query out of an error's text, and the password alone, packed and plain: what is no Prostie Zvonki server may echo them, and
// net/http quotes what it cannot read.
func (id Identity) HideIn(err error) error {
	if text := err.Error(); strings.Contains(text, "malformed HTTP") || strings.Contains(text, "malformed MIME") { // and what is quoted may be a part of it
		return ErrNoHTTP
	}
	pairs := []string{id.Query(), "(hidden)"}
	if id.Password != "" {
		packed := base64.StdEncoding.EncodeToString([]byte(id.Password))
		quoted := strconv.Quote(id.Password)
		pairs = append(pairs, id.Password, "(hidden)", quoted[1:len(quoted)-1], "(hidden)", packed, "(hidden)", url.QueryEscape(packed), "(hidden)")
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

// ReadIdentity reads the identity from a handshake in either way. It is false when the handshake has neither.
func ReadIdentity(query url.Values, header http.Header) (Identity, bool) {
	switch {
	case query.Has("CID") || query.Has("GID"):
		return readIdentity(query.Get, "CID", "GID", "CT"), true
	case header.Values("ClientID") != nil || header.Values("ClientGUID") != nil:
		return readIdentity(header.Get, "ClientID", "ClientGUID", "ClientType"), true
	}
	return Identity{}, false
}

func readIdentity(get func(string) string, password, guid, clientType string) Identity {
	id := Identity{
		GUID: get(guid), ClientType: get(clientType),
		PhoneNumber: get("PhoneNumber"), BroadcastGroup: get("BroadcastGroup"), Protocol: 1,
	}
	// A password that is no base64 cannot be the right one; as itself it will be compared and found wrong.
	id.Password = get(password)
	if plain, err := base64.StdEncoding.DecodeString(id.Password); err == nil {
		id.Password = string(plain)
	}
	if mask, err := strconv.ParseUint(get("BroadcastEventsMask"), 10, 32); err == nil {
		id.EventsMask = uint32(mask)
	}
	if v, err := strconv.Atoi(get("PzProtocolVersion")); err == nil {
		id.Protocol = v
	}
	return id
}
