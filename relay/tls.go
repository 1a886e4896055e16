package relay

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"

	"pzbridge/internal/telephony"
)

// TLS returns a configuration for wss that trusts roots (nil for the system's CAs) or, with a
// SHA-256 fingerprint, exactly the certificate with that fingerprint, whatever else it contains.
// Legacy also allows TLS 1.0 and RSA key exchange, for old connectors; it works only with a
// fingerprint, since a certificate of that age proves nothing by itself.
func TLS(roots *x509.CertPool, fingerprint []byte, legacy bool) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if fingerprint == nil {
		return cfg
	}
	// VerifyConnection replaces the usual verification; it runs on every handshake.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		sum := sha256.Sum256(state.PeerCertificates[0].Raw)
		if subtle.ConstantTimeCompare(sum[:], fingerprint) != 1 {
			found := hex.EncodeToString(sum[:])
			return &telephony.Fault{
				Code: telephony.CodeOtherCertificate,
				Args: []string{found},
				Text: "the server's certificate has the fingerprint " + found + ", which is not the configured one",
			}
		}
		return nil
	}
	if legacy {
		cfg.MinVersion = tls.VersionTLS10
		cfg.CipherSuites = []uint16{
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
		}
		for _, suite := range tls.CipherSuites() {
			cfg.CipherSuites = append(cfg.CipherSuites, suite.ID)
		}
	}
	return cfg
}
