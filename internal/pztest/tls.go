package pztest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"
)

// ModernTLS returns the TLS configuration of an up-to-date connector: TLS 1.2 or newer and a fresh
// self-signed certificate for the loopback addresses and "localhost".
func ModernTLS() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(fmt.Sprintf("pztest: make a key: %v", err))
	}
	template := certificate(time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	template.DNSNames = []string{"localhost"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{sign(template, key)}}
}

// LegacyTLS returns the TLS configuration of the vendor's test server, as observed: TLS 1.0 only,
// RSA key exchange, and a self-signed, expired, 1024-bit sha1WithRSA certificate that names no
// host.
func LegacyTLS() *tls.Config {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(fmt.Sprintf("pztest: make a key: %v", err))
	}
	template := certificate(time.Now().AddDate(-11, 0, 0), time.Now().AddDate(-1, 0, 0))
	template.SignatureAlgorithm = x509.SHA1WithRSA
	return &tls.Config{
		MinVersion:   tls.VersionTLS10,
		MaxVersion:   tls.VersionTLS10,
		CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA},
		Certificates: []tls.Certificate{sign(template, key)},
	}
}

func certificate(from, to time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(from.Unix()),
		Subject:               pkix.Name{CommonName: "Prostie Zvonki simulator"},
		NotBefore:             from,
		NotAfter:              to,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func sign(template *x509.Certificate, key crypto.Signer) tls.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(fmt.Sprintf("pztest: sign a certificate: %v", err))
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
