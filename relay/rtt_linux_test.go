package relay

import (
	"net"
	"testing"
	"time"
)

// The kernel's estimate of a TCP connection's round-trip time is read; any other connection has
// none.
func TestRoundTripIsTheKernelsEstimate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if rtt := roundTrip(c); rtt <= 0 || rtt > time.Second {
		t.Errorf("over loopback: %s", rtt)
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if rtt := roundTrip(near); rtt != 0 {
		t.Errorf("over a pipe: %s", rtt)
	}
}
