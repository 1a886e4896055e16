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
type api struct{ url, token string }

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
	token, err := config.Secret(vars, "API_TOKEN")
	if err != nil {
		return api{}, err
	}
	if token == "" {
		return api{}, usageError("API_TOKEN is missing: it is the operator's token, the same as the bridge's")
	}
	return api{address, token}, nil
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

// call sends a request, with a body as JSON unless it is nil, and reads the answer into a struct. A problem that the bridge tells of is the error. When the bridge
// has had too many requests with this token, it waits and asks again.
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
				return ctx.Err()
			case <-time.After(time.Duration(min(max(1, seconds), 10)) * time.Second):
			}
			continue
		}
		if resp.StatusCode >= http.StatusBadRequest {
			var problem struct {
				Detail string `json:"detail"`
			}
			_ = json.Unmarshal(answer, &problem)
			if problem.Detail == "" && resp.StatusCode >= http.StatusBadGateway { // a proxy before it says so
				return fmt.Errorf("%w: %s", errNoAnswer, resp.Status)
			}
			return errors.New(cmp.Or(problem.Detail, "the bridge answers "+resp.Status))
		}
		if err := json.Unmarshal(answer, into); err != nil {
			return fmt.Errorf("at %s there is no bridge: %w", a.shown(), err)
		}
		return nil
	}
}

// errNoAnswer means that nobody is there, or not now.
var errNoAnswer = errors.New("the bridge does not answer")

// readWithin is how long the bridge may take to say how things stand. What it is asked to do may take longer, such as sending a million deliveries again.
const readWithin = 30 * time.Second

// send makes one request and reads its answer.
func (a api) send(ctx context.Context, method, path string, body any) (*http.Response, []byte, error) {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, nil, err
		}
		content = bytes.NewReader(encoded)
	}
	if method == http.MethodGet {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, readWithin)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, content)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return resp, answer, nil
}
