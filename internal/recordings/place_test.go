package recordings

import (
	"errors"
	"net"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAllowed(t *testing.T) {
	for list, want := range map[string]struct{ yes, no []string }{
		"192.168.1.5": {
			yes: []string{"ftp://192.168.1.5/1.mp3", "http://192.168.1.5:8080/1.mp3", "ftp://a:b@192.168.1.5/1.mp3"},
			no:  []string{"ftp://192.168.1.50/1.mp3", "ftp://x@10.0.0.1/192.168.1.5", "/192.168.1.5/1.mp3"},
		},
		"PBX.local:8080": {
			yes: []string{"http://pbx.LOCAL:8080/1.mp3", "https://pbx.local:8080/1"},
			no:  []string{"http://pbx.local/1.mp3"},
		},
		"ftp://pbx, https://store.example/": {
			yes: []string{"FTP://pbx:21/1.mp3", "https://store.example/a/b?c"},
			no:  []string{"http://pbx/1.mp3", "http://store.example/1.mp3"},
		},
		`/records/, C:\Rec`: {
			yes: []string{
				"/records/1.mp3", "file:/records/a/../1.mp3", "file:///records/1.mp3",
				`c:\Rec\1.mp3`, "C:/Rec/1.mp3",
			},
			no: []string{
				"/records", "/records/../etc/passwd", "/recordsx/1.mp3", "file:///etc/passwd",
				`C:\Recs\1.mp3`,
			},
		},
	} {
		a, err := ParseAllowed(list)
		if err != nil {
			t.Errorf("%s: %v", list, err)
		}
		o := Options{From: a}
		for _, address := range want.yes {
			if _, err := o.find(address); err != nil {
				t.Errorf("%s does not allow %s: %v", list, address, err)
			}
		}
		for _, address := range want.no {
			if p, err := o.find(address); err == nil {
				t.Errorf("%s allows %s: %+v", list, address, p)
			}
		}
	}
	for _, wrong := range []string{"gopher://pbx", "ftp://a:b@pbx", "http://pbx/folder", "/", "http://", "pbx?x"} {
		if a, err := ParseAllowed(wrong); err == nil {
			t.Errorf("%q is taken as %+v", wrong, a)
		}
	}
}

func TestRewrites(t *testing.T) {
	a, err := ParseAllowed("/records,ftp://nas")
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRewrites(`ftp://somehost/=/records/, D:\Rec=ftp://u:p@nas/rec ,\\srv\x\=/records`, a)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"ftp://somehost/1.mp3":   "/records/1.mp3",
		"FTP://SOMEHOST/a/1.mp3": "/records/a/1.mp3",
		`d:\rec\2026\1.wav`:      "ftp://u:p@nas/rec/2026/1.wav",
		`\\SRV\x\a\1.wav`:        "/records/a/1.wav",
		"http://somehost/1.mp3":  "http://somehost/1.mp3",
	} {
		if got := r.apply(address); got != want {
			t.Errorf("%s became %s, want %s", address, got, want)
		}
	}
	for _, wrong := range []string{
		"ftp://x", "=/records", "a=", "a=/other", "a=http://nas/", "a=ftp://u:geheim@evil/", "a=ftp://u:geh,eim@nas/",
	} {
		if r, err := ParseRewrites(wrong, a); err == nil || strings.Contains(err.Error(), "geh") {
			t.Errorf("%q is taken as %+v: %v", wrong, r, err)
		}
	}
}

// FuzzPlace: whatever the exchange names, a file is in a folder that is allowed, or at such a host.
func FuzzPlace(f *testing.F) {
	for _, seed := range []string{
		"/records/1.mp3", "/records/../etc/passwd", `\\host\records`, "file:///records/%2e%2e/x", "ftp://pbx/../..",
		"http://pbx@evil/1", "http://evil#@pbx/", "file://records/x", "/records/a\x00b",
	} {
		f.Add(seed)
	}
	a, err := ParseAllowed("/records,ftp://pbx")
	if err != nil {
		f.Fatal(err)
	}
	o := Options{From: a}
	f.Fuzz(func(t *testing.T, address string) {
		p, err := o.find(address)
		switch {
		case err != nil:
		case p.url != nil && (!strings.EqualFold(p.url.Hostname(), "pbx") || p.url.Scheme != "ftp"):
			t.Errorf("%q leads to %s", address, p.url)
		case p.url == nil && (p.folder != "/records" || path.IsAbs(p.file) ||
			slices.Contains(strings.Split(p.file, "/"), "..")):
			t.Errorf("%q leads to %+v", address, p)
		}
	})
}

// A server that sends nothing for half a minute counts as away; one that sends slowly does not.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := &stallConn{Conn: ours, stop: func() bool { return true }}
		go func() {
			for range 5 {
				time.Sleep(stall - time.Second)
				_, _ = theirs.Write([]byte("x"))
			}
		}()
		began := time.Now()
		buf := make([]byte, 1)
		n := 0
		for {
			if _, err := c.Read(buf); err != nil {
				break
			}
			n++
		}
		if took := time.Since(began); n != 5 || took != 5*(stall-time.Second)+stall {
			t.Errorf("%d bytes in %s", n, took)
		}
	})
}

// A fetch does not wait long for its turn at a host, and those that fail together fail once.
func TestTurnsAtAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts()
		h := hosts.get("ftp://pbx")
		var leave []func()
		for range perHost {
			l, err := h.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
		began := time.Now()
		var busy *busyError
		if _, err := h.enter(t.Context()); !errors.As(err, &busy) || time.Since(began) != turnWait ||
			busy.wait != turnPause {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		away := errors.New("away")
		for range perHost {
			if err := h.note(away, began); !errors.As(err, &busy) || busy.wait > firstWait+time.Second {
				t.Errorf("%v, again after %s", err, busy.wait)
			}
			time.Sleep(time.Second)
		}
		for _, l := range leave {
			l()
		}
		if _, err := h.enter(t.Context()); !errors.As(err, &busy) {
			t.Errorf("a host that is away is tried: %v", err)
		}
		time.Sleep(firstWait)
		if _, err := h.enter(t.Context()); err != nil {
			t.Errorf("it is not tried again: %v", err)
		}
		if _, err := h.enter(t.Context()); !errors.As(err, &busy) {
			t.Errorf("two try whether it is there: %v", err)
		}
	})
}
