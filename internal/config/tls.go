package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// parseTLS reads which authorities to trust at an endpoint's address, and the client certificate to
// present there. It returns nil for the default: the system's authorities and no client
// certificate.
func (t endpointText) parseTLS(prefix, address string, certificates *[]certificate, p *problems) *tls.Config {
	files := []setting{
		{prefix + "CA_FILE", t.CAFile}, {prefix + "CERT_FILE", t.CertFile}, {prefix + "KEY_FILE", t.KeyFile},
	}
	if t.URL != "" && address == "" {
		return nil // a problem with the address is reported already
	}
	isSet := false
	for _, f := range files {
		isSet = isSet || f.value != ""
		if f.value != "" && !strings.HasPrefix(address, "https://") {
			p.add(f.name, "has a meaning only where %sURL begins with https://", prefix)
		}
	}
	if !isSet || !strings.HasPrefix(address, "https://") {
		return nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		c.RootCAs = x509.NewCertPool()
		for _, cert := range readCertificates(prefix+"CA_FILE", t.CAFile, p) {
			c.RootCAs.AddCert(cert)
			*certificates = append(*certificates, certificate{prefix + "CA_FILE", cert})
		}
	}
	switch {
	case t.CertFile != "" && t.KeyFile != "":
		if cert, ok := readKeyPair(prefix, t.CertFile, t.KeyFile, p); ok {
			c.Certificates = []tls.Certificate{cert}
			*certificates = append(*certificates, certificate{prefix + "CERT_FILE", cert.Leaf})
		}
	case t.CertFile != "":
		p.add(prefix+"CERT_FILE", "needs %sKEY_FILE, the file with the certificate's private key; "+
			"that may be the same file", prefix)
	case t.KeyFile != "":
		p.add(prefix+"KEY_FILE", "needs %sCERT_FILE, the file with the certificate of this key", prefix)
	}
	return c
}

// parseAPITLS parses the certificate of the API and its key into c.
func (t text) parseAPITLS(c *Config, p *problems) {
	switch {
	case t.APICertFile != "" && t.APIKeyFile != "":
		c.APICertFile, c.APIKeyFile = t.APICertFile, t.APIKeyFile
		if cert, ok := readKeyPair(apiTLS, t.APICertFile, t.APIKeyFile, p); ok {
			c.certificates = append(c.certificates, certificate{apiTLS + "CERT_FILE", cert.Leaf})
		}
	case t.APICertFile != "":
		p.add(apiTLS+"CERT_FILE", "needs %sKEY_FILE, the file with the certificate's private key; "+
			"that may be the same file", apiTLS)
	case t.APIKeyFile != "":
		p.add(apiTLS+"KEY_FILE", "needs %sCERT_FILE, the file with the certificate of this key", apiTLS)
	}
}

// apiTLS begins the names of the variables of the API's HTTPS.
const apiTLS = "API_TLS_"

// ReadAPICertificate reads the certificate of the API and its key from their files as they are now.
func (c Config) ReadAPICertificate() (tls.Certificate, error) {
	var p problems
	cert, ok := readKeyPair(apiTLS, c.APICertFile, c.APIKeyFile, &p)
	if !ok {
		return tls.Certificate{}, errors.New(strings.Join(p.list, "; "))
	}
	return cert, nil
}

// APICertificate returns the certificate of the API as it was when the configuration was loaded, or
// nil if the API is served over HTTP.
func (c Config) APICertificate() *x509.Certificate {
	for _, cert := range c.certificates {
		if cert.variable == apiTLS+"CERT_FILE" {
			return cert.Certificate
		}
	}
	return nil
}

// TrustedCertificate reads the first certificate of API_TLS_CERT_FILE, for commands that ask the
// bridge and need nothing else of the configuration. It returns nil if the variable is not set.
func TrustedCertificate(vars map[string]string) (*x509.Certificate, error) {
	const variable = apiTLS + "CERT_FILE"
	file := vars[variable]
	if file == "" {
		return nil, nil
	}
	var p problems
	certs := readCertificates(variable, file, &p)
	if len(certs) == 0 {
		return nil, &Error{p.list}
	}
	return certs[0], nil
}

// certificate is a certificate and the variable that names its file.
type certificate struct {
	variable string
	*x509.Certificate
}

// untilSoon is how long before its end a certificate counts as about to expire: Let's Encrypt
// renews a month before, so with two weeks left the renewal has failed for a while.
const untilSoon = 14 * 24 * time.Hour

// fault describes why a certificate is not valid now; it returns "" if it is valid.
func (c certificate) fault(now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		day := c.NotAfter.UTC().Format(time.DateOnly)
		return fmt.Sprintf("holds a certificate that has expired on %s: %s", day, c.Subject)
	case now.Before(c.NotBefore):
		day := c.NotBefore.UTC().Format(time.DateOnly)
		return fmt.Sprintf("holds a certificate that is not valid before %s: %s", day, c.Subject)
	}
	return ""
}

// expiresSoon returns a warning if the certificate of the API is valid now, but not for long.
func (c Config) expiresSoon(now time.Time) (warning string) {
	cert := c.APICertificate()
	if cert == nil || now.After(cert.NotAfter) || now.Add(untilSoon).Before(cert.NotAfter) {
		return ""
	}
	return fmt.Sprintf(apiTLS+"CERT_FILE holds a certificate that expires on %s: put a new one into the file in time, "+
		"a restart is not needed", cert.NotAfter.UTC().Format(time.DateOnly))
}

// CertificateFaults describes the certificates of the endpoints' CA_FILE and CERT_FILE, and of
// API_TLS_CERT_FILE, that have expired or are not valid yet, one line each. They do not fail Load,
// since a clock may be wrong and other endpoints may not need them.
func (c Config) CertificateFaults() (list []string) {
	for _, cert := range c.certificates {
		if fault := cert.fault(time.Now()); fault != "" {
			list = append(list, cert.variable+" "+fault)
		}
	}
	return list
}

// readCertificates reads the certificates of a file in PEM form. It returns none after it has added
// a problem.
func readCertificates(variable, file string, p *problems) (certs []*x509.Certificate) {
	content, err := os.ReadFile(file)
	if err != nil {
		p.add(variable, "%v", err)
		return nil
	}
	hasKey := false
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		hasKey = hasKey || strings.HasSuffix(block.Type, "PRIVATE KEY")
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			p.add(variable, "its certificate number %d cannot be read (%v): is the file whole?", len(certs)+1, err)
			return nil
		}
		certs = append(certs, cert)
	}
	if len(certs) > 0 {
		return certs
	}
	switch _, err := x509.ParseCertificate(content); {
	case err == nil:
		p.add(variable, "holds no certificate in PEM form but one in DER form: "+
			"write it anew with: openssl x509 -inform der -in FILE")
	case hasKey:
		p.add(variable, "holds no certificate but a private key")
	default:
		p.add(variable, "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
	}
	return nil
}

// readKeyPair reads a certificate of the bridge and its key from the files that the variables
// CERT_FILE and KEY_FILE with this prefix name. It returns false after it has
// added a problem.
func readKeyPair(prefix, certFile, keyFile string, p *problems) (tls.Certificate, bool) {
	certs := readCertificates(prefix+"CERT_FILE", certFile, p)
	block, ok := readKey(prefix+"KEY_FILE", keyFile, p)
	if len(certs) == 0 || !ok {
		return tls.Certificate{}, false
	}
	var chain []byte
	for _, cert := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	pair, err := tls.X509KeyPair(chain, pem.EncodeToMemory(block))
	if err != nil {
		p.add(prefix+"KEY_FILE", "is not the key of the first certificate in %sCERT_FILE (%s), "+
			"or of a kind that TLS does not have", prefix, certs[0].Subject)
		return tls.Certificate{}, false
	}
	return pair, true
}

// readKey reads the private key of a file in PEM form. Problems never quote the file.
func readKey(variable, file string, p *problems) (*pem.Block, bool) {
	content, err := os.ReadFile(file)
	if err != nil {
		p.add(variable, "%v", err)
		return nil, false
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"):
			continue
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
			p.add(variable, "holds a key that a password protects: write it without one, with: openssl pkey -in FILE")
			return nil, false
		}
		block.Headers = nil
		return block, true
	}
	p.add(variable, "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
	return nil, false
}
