package webhook

import (
	"slices"
	"strings"
	"testing"
)

// TestNoSecretHoweverItIsWritten checks that an answer which repeats a secret shows nothing of it,
// in any way in which a language writes it.
func TestNoSecretHoweverItIsWritten(t *testing.T) {
	e := testEndpoint("http://crm.example/in/p4th-s3cret?token=abc%2Fdef&SECRET=T%26A%22IL~ok<ay>")
	e.Tokens, e.Secrets = []string{"an-old-t0ken", "p4th-of-a-token"}, [][]byte{[]byte("p4th-of-the-secrets")}
	redact := redactor(&e)
	for name, answer := range map[string]string{
		"as it is":                  "/in/p4th-s3cret?token=abc%2Fdef&SECRET=T%26A%22IL~ok<ay>",
		"PHP's json_encode":         `{"uri":"\/in\/p4th-s3cret?token=abc%2Fdef&SECRET=T%26A%22IL~ok<ay>"}`,
		"small digits":              "token=abc%2fdef, T%26A%22IL~ok<ay>, t%26a",
		"decoded":                   `abc/def T&A"IL~ok<ay>`,
		"decoded, in JSON":          `{"token":"abc\/def","s":"T&A\"IL~ok<ay>"}`,
		"decoded, in HTML":          "<p>abc/def T&amp;A&#34;IL~ok&lt;ay&gt;</p>",
		"the token and the secret":  `{"token":"p4th-of-a-token","old":"an-old-t0ken","secret":"p4th-of-the-secrets"}`,
		"the secret in base64":      "whsec_cDR0aC1vZi10aGUtc2VjcmV0cw, whsec_cDR0aC1vZi10aGUtc2VjcmV0cw==",
		"decoded and encoded again": "abc%2Fdef T%26A%22IL~ok%3Cay%3E T%26A%22IL~ok%3cay%3e",
	} {
		got := redact.Replace(answer)
		for _, part := range []string{"abc", "def", "IL~ok", "p4th", "t0ken", "cDR0a"} {
			if strings.Contains(got, part) {
				t.Errorf("%s: %q is shown in %q", name, part, got)
			}
		}
	}
}

// TestTheListOfTokensIsLeftAlone checks that what is collected as secret is not written behind the
// list of tokens, where the caller's array may go on.
func TestTheListOfTokensIsLeftAlone(t *testing.T) {
	list := []string{"the first token", "the second token", "the third token", "the fourth token"}
	want := slices.Clone(list)
	e := testEndpoint("http://crm.example")
	e.Tokens = list[:1]
	_ = redactor(&e)
	if !slices.Equal(list, want) {
		t.Errorf("the caller's tokens are now %q", list)
	}
}
