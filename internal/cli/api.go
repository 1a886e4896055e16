package cli

import (
	"bytes"
	"cmp"
	"context"
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

// apiHelp says, in the help of a command that asks the running bridge, how it finds it.
const apiHelp = "It asks the running bridge, at PZBRIDGE_URL or else on this machine at the port of LISTEN_ADDR, with API_TOKEN."

// api is the running bridge's API, as the operator calls it.
type api struct {
	url, token string
	client     *http.Client
}

// directClient makes a client for the bridge's own API. It uses no proxy of the environment, which
// is for the way to the Internet: a proxy would read API_TOKEN, and knows no name of this network.
func directClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	return &http.Client{Transport: transport}
}

// shown is its address for people. A password in it is none of theirs.
func (a api) shown() string {
	u, _ := url.Parse(a.url) // newAPI has seen that it can be
	return u.Redacted()
}

// newAPI finds the bridge by the environment. The rest of the configuration is not asked for: the bridge that runs has read it.
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
	token, err := config.OperatorToken(vars)
	return api{address, token, directClient()}, err
}

// localURL is where the bridge on this machine listens.
func localURL(vars map[string]string) (string, error) {
	host, port, err := net.SplitHostPort(cmp.Or(vars["LISTEN_ADDR"], config.DefaultListenAddr))
	if err != nil {
		return "", usageError("LISTEN_ADDR must be host:port or :port")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// inPath is a name as a part of an address's path. What would lead elsewhere there, or nowhere, is no name of anything.
func inPath(name string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", usageError(fmt.Sprintf("there is nothing with the name %q", name))
	}
	return url.PathEscape(name), nil
}

// problem is what the bridge says is wrong.
type problem struct {
	Detail string `json:"detail"`
	Oldest string `json:"oldest"` // where to read events on from, if those after the cursor are gone
}

func (p *problem) Error() string { return p.Detail }

// call sends a request, with a body as JSON unless it is nil, and reads the answer into a struct. It fails with a *problem if the bridge tells of one. When the
// bridge has had too many requests with this token, it waits and asks again.
func (a api) call(ctx context.Context, method, path string, body, into any) error {
	const most = 10 // times
	for try := 1; ; try++ {
		resp, answer, err := a.send(ctx, method, path, body)
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusTooManyRequests && try < most {
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
			if p.Detail == "" && resp.StatusCode >= http.StatusBadGateway { // a proxy before it says so
				return fmt.Errorf("%w: %s", errNoAnswer, resp.Status)
			}
			switch resp.StatusCode {
			case http.StatusUnauthorized:
				p.Detail = "API_TOKEN is not that of the bridge at " + a.shown()
			case http.StatusForbidden:
				p.Detail = "API_TOKEN is the token of a CRM at the bridge at " + a.shown() + "; this needs the operator's"
			}
			p.Detail = cmp.Or(p.Detail, "the bridge answers "+resp.Status)
			return p
		}
		if err := json.Unmarshal(answer, into); err != nil {
			return fmt.Errorf("at %s there is no bridge: %w", a.shown(), err)
		}
		return nil
	}
}

var (
	// errNoAnswer means that nobody is there, or not now.
	errNoAnswer = errors.New("the bridge does not answer")
	// errInterrupted means that the user did not wait for the answer.
	errInterrupted = errors.New("interrupted before the bridge has answered")
)

// How long the bridge may take to say how things stand, and to do what it is asked to, such as sending a million deliveries again.
const (
	readWithin = 30 * time.Second
	doneWithin = 10 * time.Minute
)

// send makes one request and reads its answer.
func (a api) send(interrupted context.Context, method, path string, body any) (*http.Response, []byte, error) {
	within := doneWithin
	if method == http.MethodGet {
		within = readWithin
	}
	ctx, cancel := context.WithTimeout(interrupted, within)
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
	case err != nil && errors.Is(interrupted.Err(), context.Canceled):
		return nil, nil, errInterrupted
	case err != nil:
		return nil, nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return resp, answer, nil
}

// exchange sends a request and reads the whole answer.
func (a api) exchange(req *http.Request) (*http.Response, []byte, error) {
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	return resp, answer, err
}
