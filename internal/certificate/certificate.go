// Package certificate serves HTTPS with a certificate that is replaced when its files change, so
// that a renewal needs no restart, which would cost calls.
//
// The files are read at intervals. Notifications of the file system would miss some changes: of a
// mounted folder, and of links that are moved to another folder, as certbot and Kubernetes do.
package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// readEvery is the interval at which the files are read.
const readEvery = 5 * time.Second

// Options describes where the certificate comes from.
type Options struct {
	// Read reads the certificate and its key from their files.
	Read   func() (tls.Certificate, error)
	Logger *slog.Logger
}

// Certificate is the current certificate of a server.
type Certificate struct {
	opts    Options
	current atomic.Pointer[tls.Certificate]
}

// New reads the certificate for the first time. Fails if that is not possible.
func New(opts Options) (*Certificate, error) {
	if opts.Read == nil || opts.Logger == nil {
		return nil, errors.New("certificate: Options.Read and Logger must be set")
	}
	c := &Certificate{opts: opts}
	first, err := opts.Read()
	if err != nil {
		return nil, err
	}
	c.current.Store(&first)
	return c, nil
}

// TLS returns the configuration of a server with this certificate. It offers HTTP/1.1 alone: with
// HTTP/2 one connection carries any number of requests at once, which a limit of connections would
// not bound.
func (c *Certificate) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}

// Run replaces the certificate when its files have changed, until ctx ends. Files that cannot be
// used are logged once, and the certificate stays. A change counts once it has been read twice in
// a row, since the two files are not replaced at the same moment.
func (c *Certificate) Run(ctx context.Context) error {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	last := read{cert: *c.current.Load()}
	used := last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		next := c.read()
		if next.equal(last) && !next.equal(used) {
			used = next
			c.use(next)
		}
		last = next
	}
}

// read is the outcome of one reading of the files.
type read struct {
	cert  tls.Certificate
	fault string // empty if the files can be used
}

func (c *Certificate) read() read {
	cert, err := c.opts.Read()
	if err != nil {
		return read{fault: err.Error()}
	}
	return read{cert: cert}
}

func (r read) equal(other read) bool {
	return r.fault == other.fault && slices.EqualFunc(r.cert.Certificate, other.cert.Certificate, bytes.Equal)
}

// use makes a new certificate the current one, or logs why that is not possible.
func (c *Certificate) use(next read) {
	if next.fault != "" {
		c.opts.Logger.Warn("the new certificate of the API cannot be used, and the one before stays",
			"err", next.fault, "valid_until", c.current.Load().Leaf.NotAfter)
		return
	}
	message := "the API has a new certificate"
	if next.equal(read{cert: *c.current.Load()}) {
		message = "the files of the API's certificate are in order again"
	}
	c.current.Store(&next.cert)
	c.opts.Logger.Info(message, "valid_until", next.cert.Leaf.NotAfter)
}
