package recordings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jlaffaye/ftp"
)

const (
	// stall is how long a server may send nothing.
	stall = 30 * time.Second
	// maxHead is how many bytes the header of a response may have.
	maxHead = 64 << 10
	// maxRedirects is how often an HTTP server may send on.
	maxRedirects = 5
)

// file is an open file at its source. Size is -1 if the source does not tell it.
type file struct {
	io.ReadCloser
	size int64
}

// sources fetch files.
type sources struct {
	allowed Allowed
	client  *http.Client
}

func newSources(allowed Allowed) *sources {
	s := &sources{allowed: allowed}
	s.client = &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			TLSHandshakeTimeout:    stall,
			ResponseHeaderTimeout:  stall,
			MaxResponseHeaderBytes: maxHead,
			DisableCompression:     true, // else the length would be unknown
			DisableKeepAlives:      true, // calls are rare, and a server has few connections
		},
		CheckRedirect: s.checkRedirect,
	}
	return s
}

func (s *sources) checkRedirect(r *http.Request, via []*http.Request) error {
	if p := (place{url: r.URL}); !s.allowed.allows(p) {
		return errNotAllowed(p.name())
	}
	if len(via) > maxRedirects {
		return errors.New("the server sends on again and again")
	}
	return nil
}

// open opens a file. It fails with a *notYetError if there is none, with a *refusedError if it may
// not be fetched, with a *fileError if it alone cannot be; any other error is one of the host.
func (s *sources) open(ctx context.Context, p place) (file, error) {
	switch {
	case p.folder != "":
		return openInFolder(p)
	case p.url.Scheme == "ftp":
		return openFTP(ctx, p.url)
	}
	return s.openHTTP(ctx, p.url)
}

// look returns the size of a file, and fails as open does. If the source does not tell the size,
// the bytes are counted, up to a limit. HTTP servers are not asked by HEAD, since some answer that
// with another length.
func (s *sources) look(ctx context.Context, p place, limit int64) (size int64, err error) {
	if p.url != nil && p.url.Scheme == "ftp" {
		if size, known := askFTP(ctx, p.url); known {
			return size, nil
		}
	}
	ctx, cancel := context.WithCancel(ctx) // closes the connection of what is not read
	defer cancel()
	f, err := s.open(ctx, p)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	if f.size >= 0 {
		return f.size, nil
	}
	return io.Copy(io.Discard, io.LimitReader(f, limit+1))
}

// askFTP asks a server for the size of a file, without fetching it.
func askFTP(ctx context.Context, u *url.URL) (size int64, known bool) {
	conn, err := connectFTP(ctx, u)
	if err != nil {
		return 0, false
	}
	defer func() { _ = conn.Quit() }()
	size, err = conn.FileSize(u.Path)
	return size, err == nil
}

// openInFolder opens a file below a folder. A link that leads out of the folder is not followed.
func openInFolder(p place) (file, error) {
	root, err := os.OpenRoot(filepath.FromSlash(p.folder))
	if err != nil {
		return file{}, fmt.Errorf("the folder of the recordings cannot be opened: %w", nameless(err))
	}
	defer func() { _ = root.Close() }()
	name := filepath.FromSlash(p.file)
	info, err := root.Stat(name)
	if err == nil && !info.Mode().IsRegular() { // a pipe could not even be opened without a wait
		return file{}, errNotAllowed("something in " + p.folder + " that is no file")
	}
	var f *os.File
	if err == nil {
		f, err = root.Open(name)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file{}, notYet(errAbsent)
	case err != nil && strings.HasSuffix(err.Error(), "escapes from parent"): // as package os says it
		return file{}, errNotAllowed("a link that leads out of " + p.folder)
	case err != nil:
		return file{}, &fileError{fmt.Errorf("the file cannot be opened: %w", nameless(err))}
	}
	if info, err = f.Stat(); err != nil {
		_ = f.Close()
		return file{}, &fileError{fmt.Errorf("the file cannot be opened: %w", nameless(err))}
	}
	return file{f, info.Size()}, nil
}

func (s *sources) openHTTP(ctx context.Context, u *url.URL) (file, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return file{}, errNotAllowed(u.Scheme + "://" + u.Host)
	}
	response, err := s.client.Do(r)
	if err != nil {
		var urlErr *url.Error // it quotes the address, which may hold a password
		if errors.As(err, &urlErr) {
			err = urlErr.Err
		}
		return file{}, err
	}
	switch response.StatusCode {
	case http.StatusOK:
		return file{response.Body, response.ContentLength}, nil
	case http.StatusNotFound, http.StatusGone, http.StatusNoContent:
		err = notYet(errAbsent)
	case http.StatusUnauthorized, http.StatusForbidden:
		err = &fileError{errLogin}
	default:
		err = &fileError{fmt.Errorf("the server of the recordings answers HTTP %d", response.StatusCode)}
	}
	_ = response.Body.Close()
	return file{}, err
}

// anonymous is the name under which FTP servers let everybody in.
const anonymous = "anonymous"

func openFTP(ctx context.Context, u *url.URL) (file, error) {
	conn, err := connectFTP(ctx, u)
	if err != nil {
		return file{}, err
	}
	quit := func() { _ = conn.Quit() }
	opened := file{size: -1}
	if size, err := conn.FileSize(u.Path); err == nil { // not every server tells it
		opened.size = size
	}
	body, err := conn.Retr(u.Path)
	if err != nil {
		quit()
		return file{}, ftpError(err)
	}
	opened.ReadCloser = ftpFile{body, quit}
	return opened, nil
}

// connectFTP signs in to an FTP server.
func connectFTP(ctx context.Context, u *url.URL) (*ftp.ServerConn, error) {
	name, password := anonymous, anonymous
	if u.User != nil {
		name = u.User.Username()
		password, _ = u.User.Password()
	}
	isControl := true // the first connection
	connect := func(network, address string) (net.Conn, error) {
		// The server names a port for the file, which must be one of its own.
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		c, err := dial(ctx, network, net.JoinHostPort(u.Hostname(), port))
		if err == nil && isControl {
			c.(*stallConn).left = maxHead
		}
		isControl = false
		return c, err
	}
	conn, err := ftp.Dial(net.JoinHostPort(u.Hostname(), portOf(u)), ftp.DialWithDialFunc(connect))
	if err != nil {
		return nil, err
	}
	if err := conn.Login(name, password); err != nil {
		_ = conn.Quit()
		return nil, ftpError(err)
	}
	return conn, nil
}

// ftpError returns what an answer of an FTP server means.
func ftpError(err error) error {
	err = fmt.Errorf("the FTP server: %w", err)
	switch ftpStatus(err) {
	case ftp.StatusFileUnavailable:
		return notYet(errAbsent)
	case ftp.StatusNotLoggedIn, ftp.StatusLoginNeedAccount:
		return &fileError{errLogin}
	case 0, ftp.StatusNotAvailable: // it does not answer, or has too many connections
		return err
	}
	return &fileError{err}
}

// ftpStatus returns the code of an FTP server's answer; 0 if there was none.
func ftpStatus(err error) int {
	var answer *textproto.Error
	if errors.As(err, &answer) {
		return answer.Code
	}
	return 0
}

// ftpFile closes the connection with the file.
type ftpFile struct {
	*ftp.Response
	quit func()
}

// Close ends both connections.
func (f ftpFile) Close() error {
	err := f.Response.Close()
	f.quit()
	return err
}

// dial opens a connection that ends with ctx, and when its peer sends nothing for the time stall.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: stall}
	c, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return &stallConn{Conn: c, stop: stop}, nil
}

type stallConn struct {
	net.Conn
	stop func() bool
	left int // how many bytes may still come; 0: any number
}

var errTalkative = errors.New("the FTP server says more than any server has to say")

func (c *stallConn) Read(p []byte) (n int, err error) {
	if c.left == 1 {
		return 0, errTalkative
	}
	if c.left > 0 {
		p = p[:min(len(p), c.left-1)]
		defer func() { c.left -= n }()
	}
	if err := c.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Close closes the connection.
func (c *stallConn) Close() error {
	c.stop()
	return c.Conn.Close()
}
