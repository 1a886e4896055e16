package storetest

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"pzbridge/outbox/store"
)

// TestRateSpacesRequests checks that without a rate everything goes at once, and with one, a
// request after the other.
func (s suite) TestRateSpacesRequests(t *testing.T) {
	for rate, want := range map[float64]time.Duration{0: 0, 2: 9500 * time.Millisecond, 0.5: 38 * time.Second} {
		c := &CRM{}
		Bubble(t, c, func(t *testing.T) {
			e := Endpoint("crm")
			e.Rate = rate
			o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
			stop := RunBox(t, o)
			began := time.Now()
			for i := range 20 {
				MustAppend(t, o, Event("call.incoming", fmt.Sprint(i)))
			}
			time.Sleep(time.Minute)
			stop()
			hooks := c.Received()
			if took := hooks[len(hooks)-1].At.Sub(began); len(hooks) != 20 || took.Round(50*time.Millisecond) != want {
				t.Errorf("rate %v: %d requests in %s, want %s", rate, len(hooks), took, want)
			}
		})
	}
}

// TestRateKeepsItsDistanceBehindSlowRequests checks that a request that begins late does not take
// the time of the next one: those behind it keep their distance.
func (s suite) TestRateKeepsItsDistanceBehindSlowRequests(t *testing.T) {
	c := &CRM{Answer: func(n int, _ Received, _ http.ResponseWriter) {
		if n <= 2 {
			time.Sleep(5 * time.Second)
		}
	}}
	Bubble(t, c, func(t *testing.T) {
		e := Endpoint("crm")
		e.Rate, e.Concurrency = 2, 2
		o := s.open(t, Options{DialContext: c.Net.Dial, Endpoints: []store.Endpoint{e}})
		stop := RunBox(t, o)
		for i := range 10 {
			MustAppend(t, o, Event("call.incoming", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		stop()
		hooks := c.Received()
		for i := range hooks[1:] {
			if gap := hooks[i+1].At.Sub(hooks[i].At); gap < 490*time.Millisecond {
				t.Errorf("request %d came %s after the one before it", i+2, gap)
			}
		}
		if len(hooks) != 10 {
			t.Errorf("%d requests", len(hooks))
		}
	})
}

// givenUp counts what is given up.
type givenUp struct {
	unobserved
	n atomic.Int64
}
