package storetest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/outbox/store"
)

// TestShutdownDuringAnAttempt checks that a shutdown lets an attempt in flight end and records it,
// and that one that takes longer than the grace is cut off, to be made again later.
func (s suite) TestShutdownDuringAnAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration
		state store.State
	}{"within the grace": {2 * time.Second, store.Delivered}, "longer": {time.Minute, store.Pending}} {
		t.Run(name, func(t *testing.T) {
			receiver := &CRM{Answer: func(int, Received, http.ResponseWriter) { time.Sleep(c.takes) }}
			Bubble(t, receiver, func(t *testing.T) {
				const grace = 5 * time.Second
				e := Endpoint("crm")
				e.Timeout = time.Hour
				o := s.open(t, Options{
					Grace: grace, DialContext: receiver.Net.Dial, Endpoints: []store.Endpoint{e},
				})
				stop := RunBox(t, o)
				MustAppend(t, o, Event("call.incoming", "5"))
				synctest.Wait()
				began := time.Now()
				stop()
				if took := time.Since(began); took > grace {
					t.Errorf("the shutdown took %s", took)
				}
				if got := States(t, o, "crm"); got[c.state] != 1 {
					t.Errorf("states: %v", got)
				}
				time.Sleep(time.Hour) // lets the receiver's handler end
			})
		})
	}
}

// TestGraceBeginsWithTheStop checks that the time for attempts in flight begins when the program
// begins to stop, whatever stops before the outbox does.
func (s suite) TestGraceBeginsWithTheStop(t *testing.T) {
	receiver := &CRM{Answer: func(int, Received, http.ResponseWriter) { time.Sleep(time.Hour) }}
	Bubble(t, receiver, func(t *testing.T) {
		e := Endpoint("crm")
		e.Timeout = time.Hour
		stopping, begin := context.WithCancel(t.Context())
		o := s.open(t, Options{
			Grace:       10 * time.Second,
			Stopping:    stopping,
			DialContext: receiver.Net.Dial,
			Endpoints:   []store.Endpoint{e},
		})
		stop := RunBox(t, o)
		MustAppend(t, o, Event("call.completed", "5"))
		synctest.Wait()
		began := time.Now()
		begin()
		time.Sleep(4 * time.Second)
		stop()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %s", took)
		}
		time.Sleep(time.Hour) // lets the receiver's handler end
	})
}

// TestNoRedialWhileStopping checks that once the bridge is stopping, a connection that is refused
// is not dialled again.
func (s suite) TestNoRedialWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		dial := func(context.Context, string, string) (net.Conn, error) {
			dials++
			time.Sleep(time.Second)
			return nil, errors.New("connection refused")
		}
		o, closeEngine := s.openAgain(t, Options{
			DialContext: dial, Grace: 10 * time.Second, RetrySchedule: []time.Duration{time.Hour},
		})
		stop := RunBox(t, o)
		MustAppend(t, o, Event("call.completed", "5"))
		synctest.Wait()
		stop()
		time.Sleep(time.Minute)
		if dials != 1 {
			t.Errorf("%d dials", dials)
		}
		closeEngine()
	})
}
