package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/logtest"
)

// files stands for the two files: what reading them gives now.
type files struct {
	mu   sync.Mutex
	name string
	err  error
}

func (f *files) put(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.name, f.err = name, err
}

func (f *files) read() (tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return tls.Certificate{Certificate: [][]byte{[]byte(f.name)}, Leaf: &x509.Certificate{}}, f.err
}

// running runs a certificate, and gives what a client is shown.
func running(t *testing.T, f *files, log *logtest.Buffer) (shown func() string) {
	t.Helper()
	c, err := New(Options{Read: f.read, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() { stop(); ended.Wait() })
	return func() string {
		cert, err := c.TLS().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(cert.Certificate[0])
	}
}

func TestRenewedCertificateIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, log := &files{name: "first"}, &logtest.Buffer{}
		shown := running(t, f, log)
		time.Sleep(time.Minute)
		f.put("second", nil)
		time.Sleep(3 * readEvery)
		if got := shown(); got != "second" {
			t.Errorf("clients are shown the %s", got)
		}
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "has a new certificate") {
			t.Errorf("the log: %s", log)
		}
	})
}

func TestBrokenCertificateIsLoggedOnceAndNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, log := &files{name: "first"}, &logtest.Buffer{}
		shown := running(t, f, log)
		f.put("", errors.New("it is torn"))
		time.Sleep(time.Hour)
		if got := shown(); got != "first" {
			t.Errorf("clients are shown the %s", got)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "it is torn") {
			t.Errorf("the log: %s", log)
		}
		f.put("second", nil)
		time.Sleep(time.Minute)
		if got := shown(); got != "second" {
			t.Errorf("after the repair clients are shown the %s", got)
		}
	})
}

// The files are not written at the same moment: what lasts for one reading alone is not logged.
func TestHalfWrittenFilesAreNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, log := &files{name: "first"}, &logtest.Buffer{}
		shown := running(t, f, log)
		time.Sleep(readEvery - time.Second)
		f.put("", errors.New("it is not the key of the certificate"))
		time.Sleep(2 * time.Second)
		f.put("second", nil)
		time.Sleep(time.Minute)
		if got := shown(); got != "second" || strings.Contains(log.String(), "not the key") {
			t.Errorf("clients are shown the %s; the log: %s", got, log)
		}
	})
}

func TestFilesPutBackAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, log := &files{name: "first"}, &logtest.Buffer{}
		running(t, f, log)
		f.put("", errors.New("it is torn"))
		time.Sleep(time.Minute)
		f.put("first", nil)
		time.Sleep(time.Minute)
		if !strings.Contains(log.String(), "are in order again") {
			t.Errorf("the log: %s", log)
		}
	})
}
