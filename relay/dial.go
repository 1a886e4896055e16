package relay

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
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
// password or the licence may accept the handshake first and close the socket right after. The
// error never holds a secret.
func Dial(ctx context.Context, o DialOptions) (*Socket, error) {
	limited, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s := &Socket{expected: pz.CodecFor(o.URL.Scheme)}
	stop := func() bool { return true }
	open := func(dialing context.Context, network, address string) (net.Conn, error) {
		began := time.Now()
		below, err := o.dial(dialing, network, address)
		if err != nil {
			return nil, err
		}
		// The library waits for the handshake's response even after ctx has ended.
		stop = context.AfterFunc(ctx, func() { _ = below.Close() })
		s.below = newTCP(below, time.Since(began))
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
		return nil, &telephony.Fault{
			Code: telephony.CodeForbidden,
			Text: "the server refused the handshake with HTTP 403",
		}
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, &telephony.Fault{
			Code: telephony.CodeHandshake,
			Args: []string{strconv.Itoa(resp.StatusCode)},
			Text: fmt.Sprintf("the server answered the handshake with HTTP %d", resp.StatusCode),
		}
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

// dialError gives a dial error its code, where the cause is known.
func dialError(u *url.URL, err error) error {
	var untrusted *tls.CertificateVerificationError
	var refused *net.OpError
	switch {
	case errors.As(err, &untrusted):
		sum := sha256.Sum256(untrusted.UnverifiedCertificates[0].Raw)
		return &telephony.Fault{Code: telephony.CodeUntrusted, Args: []string{hex.EncodeToString(sum[:])}, Err: err}
	case errors.Is(err, pz.ErrNoHTTP), errors.Is(err, errLongHead):
		return &telephony.Fault{Code: telephony.CodeNoServer, Args: []string{err.Error()}, Err: err}
	case isTLSVersion(err):
		return &telephony.Fault{Code: telephony.CodeOldTLS, Err: err}
	case u.Scheme == "ws" && hungUp(err):
		return &telephony.Fault{
			Code: telephony.CodePerhapsTLS,
			Args: []string{u.Host},
			Text: "dial " + u.Host,
			Err:  err,
		}
	case errors.As(err, &refused): // its text names the host
		return err
	}
	return fmt.Errorf("dial %s: %w", u.Host, err)
}

// isTLSVersion reports whether the two ends have no version of TLS, or no cipher, in common.
// crypto/tls has no sentinel for that; a test pins its texts.
func isTLSVersion(err error) bool {
	text := err.Error()
	return strings.Contains(text, "protocol version") || strings.Contains(text, "handshake failure")
}

// hungUp reports whether the peer closed the connection during the handshake.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}
