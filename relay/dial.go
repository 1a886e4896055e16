package relay

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
)

// dialTimeout bounds the time from the first packet to the response to the handshake.
const dialTimeout = 15 * time.Second

// DialOptions is a server's address and the client's identity.
type DialOptions struct {
	URL      *url.URL    // ws or wss, with a host and a port
	TLS      *tls.Config // for wss; nil trusts the system's CAs
	Identity pz.Identity

	// DialContext opens the connection below TLS; nil dials TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial connects to a server and performs the handshake, within 15 s. A server that refuses the
// password or the licence may accept the handshake first and close the socket right after. Where
// the cause is known, the error says what to do; it never holds a secret.
func Dial(ctx context.Context, o DialOptions) (*Socket, error) {
	limited, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s := &Socket{expected: pz.CodecFor(o.URL.Scheme)}
	stop := func() bool { return true }
	open := func(dialing context.Context, network, address string) (net.Conn, error) {
		below, err := o.dial(dialing, network, address)
		if err != nil {
			return nil, err
		}
		// The library waits for the handshake's response even after ctx has ended.
		stop = context.AfterFunc(ctx, func() { _ = below.Close() })
		s.below = &tcp{Conn: below}
		s.stream = &stream{Conn: s.below, below: s.below}
		if o.URL.Scheme == "wss" {
			secure := tls.Client(s.below, o.tls())
			if err := secure.HandshakeContext(dialing); err != nil {
				return nil, errors.Join(err, below.Close())
			}
			s.stream.Conn = secure
		}
		return s.stream, nil
	}
	dialer := websocket.Dialer{HandshakeTimeout: dialTimeout, NetDialContext: open, NetDialTLSContext: open}
	u := *o.URL
	query, header := o.Identity.Handshake()
	u.Path, u.RawQuery = "/", query
	ws, resp, err := dialer.DialContext(limited, u.String(), header)
	stop()
	if resp != nil {
		_ = resp.Body.Close()
	}
	switch {
	case errors.Is(err, websocket.ErrBadHandshake) && resp.StatusCode == http.StatusForbidden:
		return nil, errors.New("the server refused the handshake with HTTP 403: " +
			"check PZ_PASSWORD, and that PZ_URL is a Prostie Zvonki server")
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, fmt.Errorf("the server answered the handshake with HTTP %d: "+
			"check that PZ_URL is a Prostie Zvonki server", resp.StatusCode)
	case err != nil:
		return nil, dialError(o.URL, o.Identity.Redact(err))
	}
	s.ws = ws
	s.below.watch()
	return s, nil
}

func (o DialOptions) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if o.DialContext != nil {
		return o.DialContext(ctx, network, address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// tls returns the TLS configuration with the server name that the certificate must match.
func (o DialOptions) tls() *tls.Config {
	cfg := o.TLS.Clone()
	if cfg == nil {
		cfg = TLS(nil, nil, false)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = o.URL.Hostname()
	}
	return cfg
}

// dialError adds what to do to a dial error, where the cause is known.
func dialError(u *url.URL, err error) error {
	var untrusted *tls.CertificateVerificationError
	var refused *net.OpError
	switch {
	case errors.As(err, &untrusted):
		sum := sha256.Sum256(untrusted.UnverifiedCertificates[0].Raw)
		return fmt.Errorf("%w: name its CA in PZ_TLS_CA_FILE or, if the certificate is really that server's, "+
			"set PZ_TLS_FINGERPRINT=%x", err, sum)
	case errors.Is(err, pz.ErrNoHTTP), errors.Is(err, errLongHead):
		return fmt.Errorf("%w: check that PZ_URL is a Prostie Zvonki server", err)
	case strings.Contains(err.Error(), "protocol version"), strings.Contains(err.Error(), "handshake failure"):
		return fmt.Errorf("%w: an old connector needs PZ_TLS_FINGERPRINT and PZ_TLS_LEGACY=true", err)
	case u.Scheme == "ws" && hungUp(err):
		return fmt.Errorf("dial %s: %w: if the server speaks TLS, use wss:// in PZ_URL", u.Host, err)
	case errors.As(err, &refused): // its text names the host
		return err
	}
	return fmt.Errorf("dial %s: %w", u.Host, err)
}

// hungUp reports whether the peer closed the connection during the handshake.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}
