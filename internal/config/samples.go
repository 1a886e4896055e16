package config

import (
	"encoding/base64"
	"slices"
	"strings"
)

// samples are the secrets, tokens and passwords in the files of this repository, such as the guides
// and .env.example. They are public, but they work, so a user who copies one would not notice.
// TestEverySampleSecretCausesAWarning finds samples that are missing here.
var samples = map[string]bool{
	"whsec_cHpicmlkZ2UtZXhhbXBsZS1zZWNyZXQh": true,
	"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw": true, // from the Standard Webhooks specification
	"8a5f0c2d9be14f7796ad53e1c04b28f6":       true,
	"f3b1c7a84d2e4b0f9e6a5d7c8b90a1e2":       true,
	"operator-token-0123456789":              true,
	rehearsalToken:                           true,
	"the-password-of-the-server":             true,
	"пароль-сервера":                         true,
}

// The operator's token and the server of the rehearsal, as .env.example and docker-compose.yml have
// them.
const (
	rehearsalToken  = "operator-of-the-rehearsal"
	rehearsalServer = "simulator"
)

// checkRehearsal refuses the rehearsal's token at any other server. With it anybody could have that
// server ring numbers, and a warning in the log is easily overlooked when only PZ_URL is changed.
func (c Config) checkRehearsal(p *problems) {
	if c.URL != nil && c.URL.Hostname() != rehearsalServer && slices.Contains(c.APITokens, rehearsalToken) {
		p.add("API_TOKEN", "is the token of the rehearsal, which everybody can read: "+
			"make your own with: openssl rand -hex 24")
	}
}

func isSample(token string) bool { return samples[token] }

// isSampleSecret reports whether a decoded secret is a sample.
func isSampleSecret(key []byte) bool {
	return samples["whsec_"+strings.TrimRight(base64.StdEncoding.EncodeToString(key), "=")]
}
