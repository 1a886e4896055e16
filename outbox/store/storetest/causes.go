package storetest

import (
	"context"
	"net"
	"os"
	"reflect"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// TestAttemptKeepsItsCause checks that the code of an attempt's error is stored with its text, and
// without a secret, and that a delivery in a list and the status of its endpoint show the same.
func (s suite) TestAttemptKeepsItsCause(t *testing.T) {
	address := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
	for _, c := range []struct {
		fails error
		want  telephony.Cause
	}{
		{
			&net.OpError{Op: "dial", Net: "tcp", Addr: address, Err: syscall.ECONNREFUSED},
			telephony.Cause{Code: telephony.CodeConnectionRefused, Args: []string{"192.0.2.1:443"}},
		},
		{
			&net.DNSError{Err: "no such host", Name: "crm.t0psecret", IsNotFound: true},
			telephony.Cause{Code: telephony.CodeNoHost, Args: []string{"crm.(hidden)"}},
		},
		{
			&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET},
			telephony.Cause{Code: telephony.CodeConnectionReset},
		},
		{
			&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded},
			telephony.Cause{Code: telephony.CodeTimeout},
		},
		{nil, telephony.Cause{Code: telephony.CodeNoResponse, Args: []string{"15s"}}},
		{net.ErrClosed, telephony.Cause{}},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := s.open(t, Options{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				if c.fails != nil {
					return nil, c.fails
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}})
			stop := RunBox(t, b)
			e := Event("call.completed", "5")
			MustAppend(t, b, e)
			time.Sleep(time.Minute)
			d, attempts, err := b.Delivery(e.ID + ".crm")
			if err != nil || len(attempts) == 0 || !reflect.DeepEqual(attempts[0].Cause, c.want) ||
				!reflect.DeepEqual(d.LastCause, c.want) {
				t.Errorf("%v: %+v, %+v, %v", c.fails, d, attempts, err)
			}
			stop()
		})
	}
}

// TestStatusHasItsCause checks that the status of an endpoint that fails names why.
func (s suite) TestStatusHasItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := s.open(t, Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}})
		stop := RunBox(t, b)
		for range failingAfter {
			MustAppend(t, b, Event("call.completed", ""))
		}
		time.Sleep(time.Minute)
		list, err := b.Endpoints()
		if err != nil || list[0].State != "failing" || list[0].LastCause.Code != telephony.CodeConnectionRefused {
			t.Errorf("%+v, %v", list, err)
		}
		stop()
	})
}

// TestRouteKeepsItsCauses checks that the reasons of a missing reply and of a failed transfer are
// stored with their codes.
func (s suite) TestRouteKeepsItsCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := s.open(t, Options{})
		e := Event("call.transfer_requested", "5")
		MustAppend(t, b, e)
		refused := telephony.Cause{Code: telephony.CodeRefused, Args: []string{"busy", "2"}}
		late := &telephony.Fault{Code: telephony.CodeNoReply, Args: []string{"10s"}, Text: "late"}
		noReply := telephony.NoReply("crm", late)
		for i, c := range []telephony.RouteChange{
			{Kind: telephony.RouteSettle, Replies: []telephony.Reply{noReply}},
			{
				Kind:    telephony.RouteAnswer,
				Replies: []telephony.Reply{{By: "operator", Kind: telephony.ReplyNumber, To: "101"}},
			},
			{
				Kind:          telephony.RouteTransferEnded,
				Transfer:      telephony.TransferFailed,
				TransferError: "busy",
				TransferCause: refused,
			},
		} {
			c.ID, c.EventID, c.Now = string(rune('a'+i)), e.ID, time.Now()
			if _, err := b.Engine.ChangeRoute(t.Context(), "5", c); err != nil {
				t.Fatal(err)
			}
		}
		var route *telephony.Route
		var err error
		if route, err = b.Engine.Route(t.Context(), "5"); err != nil || route == nil {
			t.Fatalf("%v, %v", route, err)
		}
		if len(route.Replies) == 0 || !reflect.DeepEqual(route.Replies[0].Cause, noReply.Cause) ||
			!reflect.DeepEqual(route.TransferCause, refused) {
			t.Errorf("%+v", route)
		}
	})
}
