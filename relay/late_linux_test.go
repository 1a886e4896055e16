package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"
)

// Events that the server sent before it closed are still in the sockets of both sides when the disk
// recovers: a ping meanwhile would be answered with a reset, which discards what the server's side
// has not transmitted. The test uses real TCP, with a small buffer for what is received, and with
// segments as on Ethernet: on the loopback interface one may be larger than that buffer, and the
// sender would learn of the space for it only half a minute later.
func TestEventsInTheSocketSurviveTheServersClose(t *testing.T) {
	if os.Getenv("PZBRIDGE_SLOW") == "" {
		t.Skip("PZBRIDGE_SLOW=1 runs it: it takes a minute")
	}
	const ethernetSegment = 1460 // bytes
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, ethernetSegment)
		})
		return errors.Join(err, failed)
	}}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const many = intakeSize + 1000
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		in := bufio.NewReader(c)
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, accept(upgradeAnswer, r))
		// What is not read makes the close a reset, which drops what has not been sent yet.
		go func() { _, _ = io.Copy(io.Discard, in) }()
		for i := range many {
			frame := frameOf(0x81, fmt.Sprintf(`<Event type="2" callID="%d" from="7" to="1"/>`, i))
			if _, err := io.WriteString(c, frame); err != nil {
				t.Log("server:", i, err)
			}
		}
		time.Sleep(3 * time.Second)
		_ = c.Close() // as a server does that has had no pong for too long
		t.Log("server: all sent, closed")
		_ = l.Close()
	}()
	got := &sink{}
	got.set(errors.New("no space left on device"))
	session := rawSession(t, got, func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(16 << 10)
		}
		return c, err
	})
	time.Sleep(50 * time.Second)
	got.set(nil)
	for range 20 {
		time.Sleep(time.Second)
		if len(got.appended()) == many {
			break
		}
	}
	if n := len(got.appended()); n != many {
		t.Errorf("%d of %d events were stored: %v", n, many, session.Connection().LastError)
	}
}
