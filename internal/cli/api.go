package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/config"
)

// apiHelp is the part of a command's help that describes how the command finds the running bridge.
const apiHelp = "It asks the running bridge, at PZBRIDGE_URL or else on this machine at the port of LISTEN_ADDR, " +
	"with API_TOKEN."

// api is a client for the API of the running bridge, with the operator's token.
type api struct {
	url, token string
	client     *http.Client
}

// directClient makes an HTTP client that ignores the proxy of the environment, which is meant for
// the Internet: the proxy would see API_TOKEN, and could not resolve names of the local network.
func directClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	return &http.Client{Transport: transport}
}

// bridgeClient makes a client for a request with the operator's token. It trusts a certificate that
// the system's authorities vouch for, and the one in API_TLS_CERT_FILE whatever its names are. The
// latter makes the address of this machine work, for which no authority gives a certificate, and a
// self-signed certificate, of which another machine needs a copy. The token is never sent to a
// server that shows another one.
func bridgeClient(vars map[string]string) (*http.Client, error) {
	own, err := config.TrustedCertificate(vars)
	if err != nil {
		return nil, err
	}
	client := directClient()
	verify := func(state tls.ConnectionState) error {
		shown := state.PeerCertificates
		if own != nil && shown[0].Equal(own) {
			return nil
		}
		opts := x509.VerifyOptions{DNSName: state.ServerName, Intermediates: x509.NewCertPool()}
		for _, cert := range shown[1:] {
			opts.Intermediates.AddCert(cert)
		}
		if _, err := shown[0].Verify(opts); err != nil {
			return fmt.Errorf("its certificate is neither trusted by this machine nor the one in API_TLS_CERT_FILE "+
				"(a new one in that file counts after some seconds, unless the bridge's log says why not): %w", err)
		}
		return nil
	}
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // verify does it
		VerifyConnection:   verify,
	}
	return client, nil
}

// redactedURL returns the bridge's address for messages, without a password.
func (a api) redactedURL() string {
	u, _ := url.Parse(a.url) // newAPI has checked the address
	return u.Redacted()
}

// newAPI reads the bridge's address and the operator's token from the environment. It needs no
// other setting, since only the running bridge uses the rest of the configuration.
func newAPI() (api, error) {
	vars, err := config.Environment()
	if err != nil {
		return api{}, err
	}
	address := strings.TrimSuffix(vars["PZBRIDGE_URL"], "/")
	if address == "" {
		if address, err = localURL(vars); err != nil {
			return api{}, err
		}
	}
	if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return api{}, usageError("PZBRIDGE_URL must be the bridge's address, such as http://192.168.1.5:8080")
	}
	client, err := bridgeClient(vars)
	if err != nil {
		return api{}, err
	}
	token, err := config.OperatorToken(vars)
	return api{address, token, client}, err
}

// localURL returns the address of the bridge on this machine.
func localURL(vars map[string]string) (string, error) {
	host, port, err := net.SplitHostPort(cmp.Or(vars["LISTEN_ADDR"], config.DefaultListenAddr))
	if err != nil {
		return "", usageError("LISTEN_ADDR must be host:port or :port")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if vars["API_TLS_CERT_FILE"] != "" {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// pathSegment escapes a name for the path of an address. It fails for an empty name and for . and
// .., which would give another path.
func pathSegment(name string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", usageError(fmt.Sprintf("there is nothing with the name %q", name))
	}
	return url.PathEscape(name), nil
}

// problem is the body of an error response of the bridge.
type problem struct {
	Detail string `json:"detail"`
	Oldest string `json:"oldest"` // first readable cursor, if events after the given one are gone
}

func (p *problem) Error() string { return p.Detail }

// call sends a request, with body as JSON unless it is nil, and decodes the JSON response into
// result. If the token's rate is exceeded (HTTP 429), it waits and tries again, up to 10 times in
// all. It fails with a *problem for an error response of the bridge, with errNoAnswer if there is
// none, and with errInterrupted if ctx is cancelled.
func (a api) call(ctx context.Context, method, path string, body, result any) error {
	const maxTries = 10
	for try := 1; ; try++ {
		resp, answer, err := a.send(ctx, method, path, body)
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusTooManyRequests && try < maxTries {
			seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
			select {
			case <-ctx.Done():
				return errInterrupted
			case <-time.After(time.Duration(min(max(1, seconds), 10)) * time.Second):
			}
			continue
		}
		if resp.StatusCode >= http.StatusBadRequest {
			p := &problem{}
			_ = json.Unmarshal(answer, p)
			if p.Detail == "" && resp.StatusCode >= http.StatusBadGateway {
				// The response is from a proxy in front of the bridge.
				return fmt.Errorf("%w: %s", errNoAnswer, resp.Status)
			}
			switch resp.StatusCode {
			case http.StatusUnauthorized:
				p.Detail = "API_TOKEN is not that of the bridge at " + a.redactedURL()
			case http.StatusForbidden:
				p.Detail = "API_TOKEN is the token of a CRM at the bridge at " + a.redactedURL() +
					"; this needs the operator's"
			}
			p.Detail = cmp.Or(p.Detail, "the bridge answers "+resp.Status)
			return p
		}
		if err := json.Unmarshal(answer, result); err != nil {
			return fmt.Errorf("there is no bridge at %s: %w", a.redactedURL(), err)
		}
		return nil
	}
}

var (
	// errNoAnswer means that the bridge cannot be reached, or not now.
	errNoAnswer = errors.New("the bridge does not answer")
	// errInterrupted means that the user pressed Ctrl-C before the response.
	errInterrupted = errors.New("interrupted before the bridge has answered")
)

// The time that a request may take.
const (
	readTimeout   = 30 * time.Second // for GET
	changeTimeout = 10 * time.Minute // for others, such as a redelivery of a million deliveries
)

// send makes one request and reads its response.
func (a api) send(parent context.Context, method, path string, body any) (*http.Response, []byte, error) {
	timeout := changeTimeout
	if method == http.MethodGet {
		timeout = readTimeout
	}
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, nil, err
		}
		content = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, content)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, answer, err := a.exchange(req)
	switch {
	case err != nil && errors.Is(parent.Err(), context.Canceled):
		return nil, nil, errInterrupted
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return resp, answer, nil
}

// exchange sends a request and reads the whole response.
func (a api) exchange(req *http.Request) (*http.Response, []byte, error) {
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	return resp, answer, err
}
