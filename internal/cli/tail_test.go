package cli

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pipenet"
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

// A proxy before the bridge answers in its place while it restarts, or the bridge takes the connection and says nothing.
func TestTailWhileNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		looks := 0
		l := pipenet.Listen()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/events" {
				looks++
			}
			switch looks {
			case 2:
				w.WriteHeader(http.StatusBadGateway)
			case 4, 6:
				<-r.Context().Done()
			}
			_, _ = io.WriteString(w, "{}")
		})}
		go func() { _ = server.Serve(l) }()
		defer server.Close()
		transport := &http.Transport{DialContext: l.Dial}
		defer transport.CloseIdleConnections()
		defer func(usual http.RoundTripper) { http.DefaultTransport = usual }(http.DefaultTransport)
		http.DefaultTransport = transport

		var out, says bytes.Buffer
		tail := tailer{p: Program{Out: &out, Err: &says}, api: api{"http://bridge", "operator"}, seen: map[string]string{}}
		began := time.Now()
		time.AfterFunc(time.Minute, stop) // in its sixth look
		if err := tail.run(ctx); err != nil || time.Since(began) != time.Minute {
			t.Errorf("after %s it ends: %v", time.Since(began), err)
		}
		const want = `Looking at http://bridge; Ctrl-C ends it.
the bridge does not answer: 502 Bad Gateway; trying again.
It answers again.
the bridge does not answer: Get "http://bridge/v1/events?limit=500&after=": context deadline exceeded; trying again.
It answers again.
`
		if got := says.String(); got != want {
			t.Errorf("it says %s", got)
		}
	})
}
