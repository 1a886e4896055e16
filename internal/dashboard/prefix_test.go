package dashboard

import (
	"bufio"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"pzbridge/internal/telephony"
)

// behindPath starts a proxy that shows a stage under a path.
func behindPath(t *testing.T, s *stage, path string) *httptest.Server {
	t.Helper()
	to, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
		r.Out.URL.Path = strings.TrimPrefix(r.In.URL.Path, path)
		r.Out.Header.Set("X-Forwarded-Prefix", path)
	}}
	mux := http.NewServeMux() // what is not under the path is not there
	mux.Handle(path+"/", proxy)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

var anyLink = regexp.MustCompile(` (href|action|src|data-live)="(/[^"]*)"`)

// A proxy shows the dashboard under a path. Signing in, all that a page leads to, what it loads and
// its live part work there.
func TestUnderAPathBehindAProxy(t *testing.T) {
	const path = "/office/calls-bridge"
	s := newStage(t, func(o *Options) { o.BehindProxy = true })
	s.add(t, "5", telephony.EventIncoming, telephony.EventCompleted)
	proxy := behindPath(t, s, path)
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Jar: jar}
	resp, err := c.PostForm(proxy.URL+path+"/login", url.Values{"token": {token}})
	home := text(t, resp, err)
	if resp.StatusCode != http.StatusOK || resp.Request.URL.Path != path+"/" {
		t.Fatalf("after the sign-in: %d at %s", resp.StatusCode, resp.Request.URL)
	}
	looked, toLook := map[string]bool{}, []string{path + "/"}
	kinds := map[string]int{}
	for len(toLook) > 0 {
		page := toLook[0]
		toLook = toLook[1:]
		if looked[page] {
			continue
		}
		looked[page] = true
		resp, err := c.Get(proxy.URL + page)
		body := text(t, resp, err)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", page, resp.StatusCode)
		}
		for _, link := range anyLink.FindAllStringSubmatch(body, -1) {
			kind, to := link[1], strings.ReplaceAll(link[2], "&amp;", "&")
			kinds[kind]++
			if !strings.HasPrefix(to, path+"/") {
				t.Errorf("%s leads to %s", page, link[0])
			}
			if kind == "href" || kind == "src" {
				toLook = append(toLook, to)
			}
		}
	}
	if len(looked) < 10 || len(kinds) < 4 || !strings.Contains(home, path) {
		t.Errorf("only %d pages with %v were looked at", len(looked), kinds)
	}

	live, err := c.Get(proxy.URL + path + "/live")
	if err != nil {
		t.Fatal(err)
	}
	defer live.Body.Close()
	line, err := bufio.NewReader(live.Body).ReadString('\n')
	if err != nil || !strings.Contains(line, `href=\"`+path+`/calls`) || strings.Contains(line, `href=\"/calls`) {
		t.Errorf("the live part is %v: %s", err, line)
	}
}

// Only a trusted proxy sets the path, and only a path.
func TestPrefixesThatDoNotCount(t *testing.T) {
	for _, c := range []struct {
		behind bool
		header string
	}{
		{false, "/office"},
		{true, `/"><script>`},
		{true, "https://elsewhere"},
		{true, "//elsewhere"},
		{true, "/office/"},
		{true, "office"},
	} {
		s := newStage(t, func(o *Options) { o.BehindProxy = c.behind })
		r, _ := http.NewRequest(http.MethodGet, s.URL+"/", nil)
		r.Header.Set("X-Forwarded-Prefix", c.header)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if text(t, resp, err); resp.Header.Get("Location") != "/login" {
			t.Errorf("%+v leads to %s", c, resp.Header.Get("Location"))
		}
	}
}
