package telephony

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"
)

func TestFaultIsItsSentinel(t *testing.T) {
	sentinel := &Fault{Code: "a", Text: "it is so"}
	other := &Fault{Code: "b", Text: "it is so"}
	err := fmt.Errorf("step: %w", sentinel.With(": 5", "5"))
	if !errors.Is(err, sentinel) || errors.Is(err, other) || err.Error() != "step: it is so: 5" {
		t.Errorf("%v", err)
	}
	if got := CauseOf(err); !reflect.DeepEqual(got, Cause{"a", []string{"5"}}) {
		t.Errorf("%+v", got)
	}
	if sentinel.Args != nil || sentinel.Text != "it is so" {
		t.Errorf("With has changed the sentinel: %+v", sentinel)
	}
	if errors.Is(&Fault{Text: "x"}, &Fault{Text: "y"}) {
		t.Error("two faults without a code are taken for the same")
	}
	wrapped := &Fault{Code: "c", Text: "it fails", Err: io.EOF}
	if !errors.Is(wrapped, io.EOF) || wrapped.Error() != "it fails: EOF" {
		t.Errorf("%v", wrapped)
	}
	if plain := (&Fault{Code: "c", Err: io.EOF}); plain.Error() != "EOF" {
		t.Errorf("%v", plain)
	}
}

// coded is an error of a package that does not import this one.
type coded struct{}

func (coded) Error() string  { return "coded" }
func (coded) Code() string   { return "coded" }
func (coded) Args() []string { return []string{"1"} }

func TestCausesBeginWithTheOutermost(t *testing.T) {
	inner := &Fault{Code: "inner", Err: syscall.ENOSPC}
	outer := &Fault{Code: "outer", Err: fmt.Errorf("%w, %w", coded{}, inner)}
	var codes []Code
	for _, c := range Causes(errors.Join(io.EOF, outer)) {
		codes = append(codes, c.Code)
	}
	if want := []Code{"outer", "coded", "inner", CodeDiskFull}; !reflect.DeepEqual(codes, want) {
		t.Errorf("%q, not %q", codes, want)
	}
	if got := CauseOf(nil); got.Code != "" {
		t.Errorf("nil: %+v", got)
	}
	if got := CauseOf(&RefusedError{Code: "2", Details: "busy"}); !reflect.DeepEqual(got,
		Cause{CodeRefused, []string{"busy", "2"}}) {
		t.Errorf("%+v", got)
	}
}

// The errors are those of the real network and the real disk.
func TestCausesOfTheLibrary(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	_, refused := net.Dial("tcp", address)
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no network")
	}}
	_, unknown := resolver.LookupHost(t.Context(), "nowhere.invalid")
	var dns *net.DNSError
	if errors.As(unknown, &dns) {
		dns.IsNotFound = true // as a resolver that answers says
	}
	near, far := net.Pipe()
	defer far.Close()
	_ = near.SetReadDeadline(time.Now())
	_, late := near.Read(make([]byte, 1))
	full := &os.PathError{Op: "write", Path: filepath.Join(t.TempDir(), "x"), Err: syscall.ENOSPC}
	if f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		_, err = f.WriteString("x")
		errors.As(err, &full)
	}
	for _, c := range []struct {
		err  error
		want Cause
	}{
		{refused, Cause{CodeConnectionRefused, []string{address}}},
		{syscall.ECONNRESET, Cause{Code: CodeConnectionReset}},
		{unknown, Cause{CodeNoHost, []string{"nowhere.invalid"}}},
		{late, Cause{Code: CodeTimeout}},
		{full, Cause{Code: CodeDiskFull}},
		{io.EOF, Cause{}},
	} {
		if got := CauseOf(fmt.Errorf("step: %w", c.err)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %+v, not %+v", c.err, got, c.want)
		}
	}
}
