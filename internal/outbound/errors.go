package outbound

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// The codes of this package's own errors, as the package telephony declares them.
const (
	codeNoResponse  = "no_response"
	codeBadStatus   = "bad_status"
	codeBadRedirect = "bad_redirect"
)

// codedError is an error with a code, for those who show it.
type codedError struct {
	code string
	args []string
	text string
}

func (e *codedError) Error() string { return e.text }

// Code names the error.
func (e *codedError) Code() string { return e.code }

// Args returns the values that the text repeats.
func (e *codedError) Args() []string { return e.args }

// coded returns an error with one value, which text repeats.
func coded(code, arg, text string) error {
	return &codedError{code, []string{arg}, fmt.Sprintf(text, arg)}
}

// redactedError is an error of a library without secrets. It wraps only what its kind is known by.
type redactedError struct {
	text string
	kind error // nil if the kind is not known
}

func (e *redactedError) Error() string { return e.text }

func (e *redactedError) Unwrap() error { return e.kind }

// redact removes the URL from an error, since its path and query may hold a token, and secrets from
// the rest: net/http quotes responses that it cannot parse. Own are those of the request; nil:
// none.
func (c *Client) redact(err error, own *Redactor) error {
	var urlErr *url.Error
	for errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	if isBadLocation(err) {
		return &codedError{code: codeBadRedirect, text: "the answer redirects to an address that cannot be read"}
	}
	text := c.opts.Redact.Replace(err.Error())
	if own != nil {
		text = own.Replace(text)
	}
	return &redactedError{text, c.kind(err)}
}

// kind returns an error of the kinds that people often meet, without anything that may hold a
// secret.
func (c *Client) kind(err error) error {
	var op *net.OpError
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) && errors.As(err, &op):
		return &net.OpError{Op: op.Op, Net: op.Net, Addr: op.Addr, Err: syscall.ECONNREFUSED}
	case errors.Is(err, syscall.ECONNRESET):
		return syscall.ECONNRESET
	case errors.As(err, &name) && name.IsNotFound:
		return &net.DNSError{Err: name.Err, Name: c.opts.Redact.Replace(name.Name), IsNotFound: true}
	case errors.As(err, &timeout) && timeout.Timeout():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// isBadLocation reports whether net/http could not parse the address of a redirect. It has no
// sentinel for that; a test pins the text.
func isBadLocation(err error) bool { return strings.Contains(err.Error(), "Location header") }
