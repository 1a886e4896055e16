package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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

// certificate is a certificate and the variable that names its file.
type certificate struct {
	variable string
	*x509.Certificate
}

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

// CertificateFaults describes the certificates of the endpoints' CA_FILE and CERT_FILE that have
// expired or are not valid yet, one line each. They do not fail Load, since a clock may be wrong
// and other endpoints may not need them.
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

// readKeyPair reads the client certificate of the bridge and its key. It returns false after it has
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
