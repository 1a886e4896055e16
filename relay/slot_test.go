package relay

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/pztest"
	"pzbridge/internal/telephony"
)

// oneSlot is left after 15 s without a connection, as if another bridge waited. That one then has
// it for an hour.
type oneSlot struct {
	taken, left time.Time
	has         bool
	wait        time.Duration // before it is free at first
}

func (s *oneSlot) Take(ctx context.Context) (string, bool) {
	wait := s.wait
	switch {
	case s.has:
		wait = 0
	case !s.left.IsZero():
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return "", false
	}
	if !s.has {
		s.has, s.taken = true, time.Now()
	}
	return "guid", true
}

func (s *oneSlot) Failed(_ context.Context, since time.Time) bool {
	if since.Before(s.taken) {
		since = s.taken
	}
	if time.Since(since) < 15*time.Second {
		return false
	}
	s.has, s.left = false, time.Now()
	return true
}

// A bridge that the server refuses for good would try again after minutes. It leaves its slot long
// before, and goes on saying why it is not connected.
func TestSlotIsLeftDuringALongWait(t *testing.T) {
	slot := &oneSlot{}
	inWorld(t, pztest.Options{Refuse: 4002}, func(o *Options) { o.Slot = slot }, func(t *testing.T, w *world) {
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if took := slot.left.Sub(slot.taken); slot.left.IsZero() || took > 20*time.Second {
			t.Errorf("it leaves the slot after %s", took)
		}
		if c := w.session.Connection(); c.LastCause.Code == telephony.CodeSpare || c.LastError == "" {
			t.Errorf("it is not connected since %q", c.LastError)
		}
	})
}

// A bridge that waits for a slot says so until it has one.
func TestSpareSaysThatItIsOne(t *testing.T) {
	slot := &oneSlot{wait: 10 * time.Second}
	change := func(o *Options) {
		o.Slot = slot
		o.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	inWorld(t, pztest.Options{}, change, func(t *testing.T, w *world) {
		for _, c := range []struct {
			after   time.Duration
			isSpare bool
		}{{5 * time.Second, true}, {10 * time.Second, false}} {
			time.Sleep(c.after)
			synctest.Wait()
			if now := w.session.Connection(); (now.LastCause.Code == telephony.CodeSpare) != c.isSpare {
				t.Errorf("after %s it says %q in state %s", c.after, now.LastError, now.State)
			}
		}
	})
}

// A spare that is switched off stays so when it could connect.
func TestSpareThatIsSwitchedOff(t *testing.T) {
	slot := &oneSlot{wait: 10 * time.Second}
	inWorld(t, pztest.Options{}, func(o *Options) { o.Slot = slot }, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		w.session.Enable(false)
		since := w.session.Connection().Since
		time.Sleep(20 * time.Second)
		if c := w.session.Connection(); c.State != telephony.Disabled || !c.Since.Equal(since) {
			t.Errorf("it is %s since %s, was switched off at %s", c.State, c.Since, since)
		}
		w.session.Enable(true)
		time.Sleep(time.Second)
		if c := w.session.Connection(); c.State != telephony.Connected {
			t.Errorf("switched on it is %s", c.State)
		}
	})
}

// Where bridges share a server, the client that has connected with this one's GUID is the bridge
// that has its slot now; a bridge that is alone is told of another program.
func TestConnectionThatAnotherBridgeTakesOver(t *testing.T) {
	for _, c := range []struct {
		slot Slot
		want telephony.Code
	}{{&oneSlot{}, telephony.CodeTakenOver}, {nil, telephony.CodeSameGUID}} {
		change := func(o *Options) { o.Slot = c.slot }
		inWorld(t, pztest.Options{Refuse: 4009}, change, func(t *testing.T, w *world) {
			time.Sleep(time.Second)
			got := w.session.Connection()
			if got.LastCause.Code != c.want || !got.EndedByClose || got.CloseCode != 4009 {
				t.Errorf("it is not connected because of %q (close code %d), want %q",
					got.LastCause.Code, got.CloseCode, c.want)
			}
		})
	}
}
