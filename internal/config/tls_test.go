package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pair makes a certificate and its key, in PEM form.
func pair(t *testing.T, name string, from, to time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             from,
		NotAfter:              to,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// files writes files into a new folder, and returns a function that gives their paths.
func files(t *testing.T, contents map[string][]byte) func(name string) string {
	t.Helper()
	folder := t.TempDir()
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(name string) string { return filepath.Join(folder, name) }
}

func TestEndpointCertificateFiles(t *testing.T) {
	now := time.Now()
	ca, caKey := pair(t, "an authority", now.Add(-time.Hour), now.Add(time.Hour))
	cert, key := pair(t, "the bridge", now.Add(-time.Hour), now.Add(time.Hour))
	expired, _ := pair(t, "an old authority", now.Add(-48*time.Hour), now.Add(-24*time.Hour))
	early, earlyKey := pair(t, "a new bridge", now.Add(24*time.Hour), now.Add(48*time.Hour))
	der, _ := pem.Decode(ca)
	locked := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("hunter2")})
	lockedOld := pem.EncodeToMemory(&pem.Block{
		Type: "EC PRIVATE KEY", Bytes: []byte("hunter2"),
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"},
	})
	in := files(t, map[string][]byte{
		"ca": ca, "ca.der": der.Bytes, "ca.key": caKey, "cert": cert, "key": key,
		"both": slices.Concat(cert, ca, key), "cas": slices.Concat(ca, cert),
		"expired": expired, "early": early, "early.key": earlyKey, "locked": locked, "locked.old": lockedOld,
		"text": []byte("hunter2"), "empty": nil,
		"torn":     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der.Bytes[:99]}),
		"key.torn": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("hunter2")}),
	})
	load := func(values ...string) (Config, error) {
		vars := minimal("ENDPOINT_0_SECRET=whsec_" + strings.Repeat("AbCd", 8))
		for i := 0; i < len(values); i += 2 {
			vars["ENDPOINT_0_"+values[i]] = values[i+1]
			if file, ok := strings.CutPrefix(values[i+1], "in:"); ok {
				vars["ENDPOINT_0_"+values[i]] = in(file)
			}
		}
		return Load(vars)
	}

	for _, right := range [][]string{
		{"CA_FILE", "in:ca"},
		{"CA_FILE", "in:cas"},
		{"CERT_FILE", "in:cert", "KEY_FILE", "in:key"},
		{"CA_FILE", "in:ca", "CERT_FILE", "in:both", "KEY_FILE", "in:both"},
	} {
		c, err := load(right...)
		if err != nil || len(c.Warnings()) > 0 {
			t.Errorf("%v: %v, %v", right, err, c.Warnings())
			continue
		}
		e := c.Endpoints[0]
		if withCA := right[0] == "CA_FILE"; e.TLS == nil || (e.TLS.RootCAs != nil) != withCA {
			t.Errorf("%v: got %+v", right, e.TLS)
		}
		if len(e.TLS.Certificates) == 1 != slices.Contains(right, "CERT_FILE") {
			t.Errorf("%v: %d certificates", right, len(e.TLS.Certificates))
		}
	}
	if c, err := load(); err != nil || c.Endpoints[0].TLS != nil {
		t.Errorf("without any: %v, %v", c.Endpoints, err)
	}

	for _, c := range []struct {
		values   []string
		variable string
		says     string
	}{
		{[]string{"CA_FILE", "in:none"}, "CA_FILE", "no such file"},
		{[]string{"CA_FILE", "in:."}, "CA_FILE", "is a directory"},
		{[]string{"CA_FILE", "in:empty"}, "CA_FILE", "no certificate in PEM form"},
		{[]string{"CA_FILE", "in:text"}, "CA_FILE", "no certificate in PEM form"},
		{[]string{"CA_FILE", "in:ca.der"}, "CA_FILE", "in DER form: write it anew with: openssl x509 -inform der"},
		{[]string{"CA_FILE", "in:ca.key"}, "CA_FILE", "no certificate but a private key"},
		{[]string{"CA_FILE", "in:torn"}, "CA_FILE", "its certificate number 1 cannot be read"},
		{
			[]string{"CA_FILE", "in:ca", "URL", "http://crm/"},
			"CA_FILE",
			"has a meaning only where ENDPOINT_0_URL begins with https://",
		},
		{[]string{"CA_FILE", "in:ca", "URL", "", "SECRET", "", "TOKEN", token}, "CA_FILE", "has a meaning only where"},
		{[]string{"CA_FILE", "in:ca", "URL", "hunter2"}, "URL", "must be an address"},
		{[]string{"CERT_FILE", "in:cert"}, "CERT_FILE", "needs ENDPOINT_0_KEY_FILE"},
		{[]string{"KEY_FILE", "in:key"}, "KEY_FILE", "needs ENDPOINT_0_CERT_FILE"},
		{[]string{"CERT_FILE", "in:cert", "KEY_FILE", "in:none"}, "KEY_FILE", "no such file"},
		{[]string{"CERT_FILE", "in:cert", "KEY_FILE", "in:cert"}, "KEY_FILE", "holds no private key in PEM form"},
		{[]string{"CERT_FILE", "in:key", "KEY_FILE", "in:key"}, "CERT_FILE", "no certificate but a private key"},
		{
			[]string{"CERT_FILE", "in:cert", "KEY_FILE", "in:ca.key"},
			"KEY_FILE",
			"is not the key of the first certificate in ENDPOINT_0_CERT_FILE (CN=the bridge)",
		},
		{
			[]string{"CERT_FILE", "in:cert", "KEY_FILE", "in:key.torn"},
			"KEY_FILE",
			"is not the key of the first certificate",
		},
		{[]string{"CERT_FILE", "in:cert", "KEY_FILE", "in:locked"}, "KEY_FILE", "that a password protects"},
		{[]string{"CERT_FILE", "in:cert", "KEY_FILE", "in:locked.old"}, "KEY_FILE", "that a password protects"},
	} {
		_, err := load(c.values...)
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 {
			t.Errorf("%v: got %v", c.values, err)
			continue
		}
		if line := wrong.Problems[0]; !strings.HasPrefix(line, "ENDPOINT_0_"+c.variable+": ") ||
			!strings.Contains(line, c.says) || strings.Contains(line, "hunter2") {
			t.Errorf("%v: %s", c.values, line)
		}
	}

	// A certificate out of its time is only a warning: the clock may be wrong, and the other CRMs
	// do not need the certificate.
	for _, c := range []struct {
		values []string
		says   string
	}{
		{
			[]string{"CA_FILE", "in:expired"},
			"ENDPOINT_0_CA_FILE holds a certificate that has expired on ",
		},
		{
			[]string{"CERT_FILE", "in:early", "KEY_FILE", "in:early.key"},
			"ENDPOINT_0_CERT_FILE holds a certificate that is not valid before ",
		},
	} {
		cfg, err := load(c.values...)
		if err != nil || !strings.Contains(strings.Join(cfg.Warnings(), "\n"), c.says) {
			t.Errorf("%v: %v, %v", c.values, cfg.Warnings(), err)
		}
	}
}

// An address from a file is treated as one from the environment is.
func TestAddressFromFileIsEscapedAndHidden(t *testing.T) {
	in := files(t, map[string][]byte{"url": []byte("https://crm.example/hunter2?name=Ivan Petrov\r\n")})
	c, err := Load(minimal("ENDPOINT_0_URL", "ENDPOINT_0_URL_FILE="+in("url")))
	if err != nil || c.Endpoints[0].URL != "https://crm.example/hunter2?name=Ivan%20Petrov" {
		t.Fatalf("got %+v, %v", c.Endpoints, err)
	}
	var out bytes.Buffer
	if err := c.Describe(&out); err != nil || strings.Contains(out.String(), "hunter2") ||
		!strings.Contains(out.String(), "https://crm.example/…") {
		t.Errorf("it is shown as %s, %v", out.String(), err)
	}
}

// Rotating a token needs two valid tokens for a while.
func TestSeveralTokensAreAccepted(t *testing.T) {
	c, err := Load(minimal("API_TOKEN="+token+"a, "+token+"b", "ENDPOINT_0_TOKEN="+token+"c,"+token+"d"))
	if err != nil || !slices.Equal(c.APITokens, []string{token + "a", token + "b"}) ||
		!slices.Equal(c.Endpoints[0].Tokens, []string{token + "c", token + "d"}) {
		t.Errorf("got %+v, %v", c, err)
	}
	var out bytes.Buffer
	if err := c.Describe(&out); err != nil || strings.Contains(out.String(), token) {
		t.Errorf("a token is shown: %s, %v", out.String(), err)
	}
	first, err := OperatorToken(map[string]string{"API_TOKEN": token + "a, " + token + "b"})
	if err != nil || first != token+"a" {
		t.Errorf("the commands use %q, %v", first, err)
	}
	for list, says := range map[string]string{
		token + ",short": "ENDPOINT_0_TOKEN: must have at least 16 characters " +
			"(several tokens are separated by commas)",
		token + ",":                             "ENDPOINT_0_TOKEN: must have at least 16 characters",
		token + "," + token:                     "ENDPOINT_0_TOKEN: holds the same token twice",
		"x" + token + "," + "operator-" + token: "ENDPOINT_0_TOKEN: is the same as API_TOKEN",
	} {
		_, err := Load(minimal("API_TOKEN=another-"+token+",operator-"+token, "ENDPOINT_0_TOKEN="+list))
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 ||
			!strings.HasPrefix(wrong.Problems[0], says) || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", list, err)
		}
	}
	c, err = Load(minimal("API_TOKEN=" + token + ",8a5f0c2d9be14f7796ad53e1c04b28f6"))
	if err != nil || !strings.Contains(strings.Join(c.Warnings(), ""), "API_TOKEN is a sample") {
		t.Errorf("nobody is warned of a second token: %v", err)
	}
}

// The certificate of the API and its key are both set or neither is, and belong together.
func TestAPICertificateFiles(t *testing.T) {
	now := time.Now()
	cert, key := pair(t, "the API", now.Add(-time.Hour), now.Add(365*24*time.Hour))
	soon, soonKey := pair(t, "the API", now.Add(-time.Hour), now.Add(24*time.Hour))
	old, oldKey := pair(t, "the API", now.Add(-48*time.Hour), now.Add(-time.Hour))
	in := files(t, map[string][]byte{
		"cert": cert, "key": key, "soon": slices.Concat(soon, soonKey), "old": slices.Concat(old, oldKey),
	})
	load := func(cert, key string) (Config, error) {
		vars := minimal("ENDPOINT_0_SECRET=whsec_" + strings.Repeat("AbCd", 8))
		for name, file := range map[string]string{"API_TLS_CERT_FILE": cert, "API_TLS_KEY_FILE": key} {
			if file != "" {
				vars[name] = in(file)
			}
		}
		return Load(vars)
	}
	c, err := load("cert", "key")
	if err != nil || c.APICertificate() == nil || len(c.Warnings()) > 0 {
		t.Errorf("a good pair: %v, %v", err, c.Warnings())
	}
	if _, err := c.ReadAPICertificate(); err != nil {
		t.Error(err)
	}
	if c, err := load("", ""); err != nil || c.APICertFile != "" || c.APICertificate() != nil {
		t.Errorf("neither: %v", err)
	}
	for file, warning := range map[string]string{
		"soon": "API_TLS_CERT_FILE holds a certificate that expires on",
		"old":  "API_TLS_CERT_FILE holds a certificate that has expired on",
	} {
		c, err := load(file, file)
		if err != nil || len(c.Warnings()) != 1 || !strings.HasPrefix(c.Warnings()[0], warning) {
			t.Errorf("%s: %v, %q", file, err, c.Warnings())
		}
	}
	for _, c := range []struct{ cert, key, says string }{
		{"cert", "", "API_TLS_CERT_FILE: needs API_TLS_KEY_FILE"},
		{"", "key", "API_TLS_KEY_FILE: needs API_TLS_CERT_FILE"},
		{"cert", "old", "API_TLS_KEY_FILE: is not the key of the first certificate in API_TLS_CERT_FILE"},
		{"none", "key", "API_TLS_CERT_FILE: open "},
	} {
		var wrong *Error
		if _, err := load(c.cert, c.key); !errors.As(err, &wrong) || len(wrong.Problems) != 1 ||
			!strings.HasPrefix(wrong.Problems[0], c.says) {
			t.Errorf("%s and %s: %v", c.cert, c.key, err)
		}
	}
}
