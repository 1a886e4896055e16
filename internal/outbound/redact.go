package outbound

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Redactor removes secrets from texts, in every spelling that a response may use.
type Redactor struct{ replacer *strings.Replacer }

// NewRedactor returns a redactor for the secrets given and those in the address and the headers of
// an endpoint. Error pages often repeat the requested address, whose path and query hold tokens.
func NewRedactor(address string, headers http.Header, secrets ...string) *Redactor {
	s := secretSet{}
	s.addAddress(address)
	s.add(secrets...)
	for _, values := range headers {
		s.add(values...)
		for _, v := range values {
			s.add(strings.Fields(v)...)
		}
	}
	return s.redactor()
}

// Replace returns a text with "(hidden)" in place of each secret.
func (r *Redactor) Replace(text string) string { return r.replacer.Replace(text) }

// secretSet collects secrets.
type secretSet struct{ list []string }

func (s *secretSet) add(list ...string) {
	const minLength = 6 // bytes; a shorter value is no secret, and would match ordinary text
	for _, secret := range list {
		if len(secret) >= minLength {
			s.list = append(s.list, secret)
		}
	}
}

func (s *secretSet) addAddress(address string) {
	u, err := url.Parse(address)
	if err != nil {
		return
	}
	s.add(u.RequestURI(), u.RawQuery)
	s.add(strings.Split(u.EscapedPath(), "/")...)
	s.add(strings.Split(u.Path, "/")...)
	for _, values := range u.Query() {
		s.add(values...)
	}
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		_, value, _ := strings.Cut(pair, "=")
		s.add(value)
	}
	s.addUser(u.User)
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy != nil {
		s.addUser(proxy.User)
	}
}

func (s *secretSet) addUser(user *url.Userinfo) {
	if password, set := user.Password(); set {
		s.add(password, base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	s.add(user.Username())
}

func (s *secretSet) redactor() *Redactor {
	for _, secret := range slices.Clone(s.list) {
		s.list = append(s.list, spellings(secret)...)
	}
	// strings.Replacer takes the first pair that matches, so the longest comes first.
	slices.SortFunc(s.list, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	pairs := make([]string, 0, 2*len(s.list))
	for _, secret := range s.list {
		pairs = append(pairs, secret, "(hidden)")
	}
	return &Redactor{strings.NewReplacer(pairs...)}
}

// spellings returns the other ways in which a response may spell a secret: escaped for JSON, HTML
// or a URL, also as PHP does it.
func spellings(secret string) (ways []string) {
	inJSON := strings.Trim(encodeJSON(secret), `"`)
	inAddress := url.QueryEscape(secret)
	for _, way := range []string{
		inJSON, strings.ReplaceAll(inJSON, "/", `\/`), html.EscapeString(secret),
		inAddress, strings.ReplaceAll(inAddress, "+", "%20"), lowerEscapes(inAddress), lowerEscapes(secret),
	} {
		if way != secret && !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	}
	return ways
}

// encodeJSON returns a JSON string in which <, > and & are not escaped.
func encodeJSON(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string can always be encoded
	return strings.TrimSuffix(b.String(), "\n")
}

// lowerEscapes writes the hexadecimal digits of percent escapes in lower case.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}
