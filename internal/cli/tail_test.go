package cli

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A caller's name neither begins a line nor does anything else to a terminal.
func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"Иван 7343":              "Иван 7343",
		"a\n10:00:00 delivered":  "a 10:00:00 delivered",
		"a\x1b[31mred\x07\u009b": "a [31mred  ",
		"abc\u202ecba\u2069":     "abc cba ",
		"a\u2028b":               "a b",
	} {
		if got := printable(s); got != want {
			t.Errorf("%q is printed as %q", s, got)
		}
	}
	if got := printableLines("a\nb\x1b\n"); got != "a\nb \n" {
		t.Errorf("lines are printed as %q", got)
	}
}

// A proxy before the bridge answers in its place while it restarts.
func TestTailBehindAProxy(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	looks := 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/events" {
			looks++
		}
		switch looks {
		case 2:
			w.WriteHeader(http.StatusBadGateway)
		case 4:
			cancel()
		}
		_, _ = io.WriteString(w, "{}")
	}))
	defer proxy.Close()
	var out, says bytes.Buffer
	tail := tailer{p: Program{Out: &out, Err: &says}, api: api{url: proxy.URL, token: "operator"}, seen: map[string]string{}}
	if err := tail.run(ctx); err != nil {
		t.Errorf("it ends: %v", err)
	}
	if !strings.Contains(says.String(), "502 Bad Gateway; trying again.") || !strings.Contains(says.String(), "It answers again.") {
		t.Errorf("it says %s", &says)
	}
}
