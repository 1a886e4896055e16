package pairing

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestLedgerPairsOccurrenceByOccurrence goes through what two listeners can know of one content.
func TestLedgerPairsOccurrenceByOccurrence(t *testing.T) {
	p, other := Print{1}, Print{2}
	at := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		do   func(l *Ledger) (isNew bool)
		want bool
	}{
		"nobody has stored it": {func(l *Ledger) bool { return l.Read("a", p) }, true},
		"the other has":        {func(l *Ledger) bool { l.StoredByOther(p, at); return l.Read("a", p) }, false},
		"the other has something else": {func(l *Ledger) bool {
			l.StoredByOther(other, at)
			return l.Read("a", p)
		}, true},
		"a second time": {func(l *Ledger) bool {
			l.StoredByOther(p, at)
			l.Read("a", p)
			return l.Read("b", p)
		}, true},
		"the other has it twice": {func(l *Ledger) bool {
			l.StoredByOther(p, at)
			l.StoredByOther(p, at)
			l.Read("a", p)
			return l.Read("b", p)
		}, false},
		"read before the other stores it": {func(l *Ledger) bool {
			l.Read("a", p)
			l.StoredByOther(p, at)
			return l.IsUnconfirmed("a")
		}, false},
		"the second of two is still to be stored": {func(l *Ledger) bool {
			l.Read("a", p)
			l.Read("b", p)
			l.StoredByOther(p, at)
			return !l.IsUnconfirmed("a") && l.IsUnconfirmed("b")
		}, true},
		"what was stored here has no twin": {func(l *Ledger) bool {
			l.Read("a", p)
			l.Stored("a")
			l.StoredByOther(p, at)
			return l.Read("b", p)
		}, false},
		"replayed to the other after it was read": {func(l *Ledger) bool {
			l.Read("a", p)
			l.ReplayedToOther(p)
			return l.IsUnconfirmed("a")
		}, false},
		"replayed to the other before it is read": {func(l *Ledger) bool {
			l.ReplayedToOther(p)
			return l.Read("a", p)
		}, true},
		"void": {func(l *Ledger) bool {
			l.StoredByOther(p, at)
			l.Void(at.Add(1))
			return l.Read("a", p)
		}, true},
		"not void yet": {func(l *Ledger) bool {
			l.StoredByOther(p, at)
			l.Void(at)
			return l.Read("a", p)
		}, false},
		"stored before the connection": {func(l *Ledger) bool {
			l.StoredByOther(p, at)
			l.Join()
			return l.Read("a", p)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLedger()
			if got := c.do(l); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// sim is an exchange with two listeners and what they store, in simulated time.
type sim struct {
	*rand.Rand
	now       time.Time
	emitted   []Print      // by the exchange; the index is the event
	stored    map[int]int  // how often each event was stored
	head      []storedHere // in the order of commits
	listeners [2]*listening
	readers   map[int]map[*listening]bool // the listeners, of one life each, that have read an event
	lost      map[string]int
}

type storedHere struct {
	print Print
	slot  int
}

// listening is one life of a listener, from its connection to its death.
type listening struct {
	slot     int
	ledger   *Ledger
	socket   []message // sent to it, and not read yet
	queue    []read    // read, and not stored yet
	followed int
	isDead   bool
	stalled  time.Time // it does nothing before this time
	joins    time.Time // connected from then on
	pinged   time.Time
}

// message is an event, or the pong of a ping that was sent at a time.
type message struct {
	event int // -1: a pong
	sent  time.Time
}

type read struct {
	id    string
	event int
	at    time.Time
}

func newSim(seed uint64) *sim {
	s := &sim{
		Rand: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_000_000, 0), stored: map[int]int{},
		readers: map[int]map[*listening]bool{}, lost: map[string]int{},
	}
	for i := range s.listeners {
		s.listeners[i] = s.join(i + 1)
	}
	return s
}

func (s *sim) join(slot int) *listening {
	return &listening{slot: slot, ledger: NewLedger(), followed: len(s.head), joins: s.now, pinged: s.now}
}

// emit sends an event to all that are connected: a quarter are repetitions of one of the last.
func (s *sim) emit() {
	n := len(s.emitted)
	p := Print{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
	if n > 0 && s.IntN(4) == 0 {
		p = s.emitted[n-1-s.IntN(min(n, 50))]
	}
	s.emitted = append(s.emitted, p)
	for _, l := range s.listeners {
		if !l.isDead {
			l.socket = append(l.socket, message{n, s.now})
		}
	}
}

// read takes what the socket holds, up to a number of messages.
func (s *sim) read(l *listening, most int) {
	for ; most > 0 && len(l.socket) > 0; most-- {
		m := l.socket[0]
		l.socket = l.socket[1:]
		if m.event < 0 {
			l.ledger.Void(m.sent.Add(-margin))
			continue
		}
		if s.readers[m.event] == nil {
			s.readers[m.event] = map[*listening]bool{}
		}
		s.readers[m.event][l] = true
		id := strconv.Itoa(m.event)
		if l.ledger.Read(id, s.emitted[m.event]) {
			l.queue = append(l.queue, read{id, m.event, s.now})
		}
	}
	if s.now.Sub(l.pinged) > 2*time.Second {
		l.pinged = s.now
		l.socket = append(l.socket, message{-1, s.now})
	}
}

// follow brings what the other one has stored into the ledger.
func (s *sim) follow(l *listening) {
	for _, e := range s.head[l.followed:] {
		if e.slot != l.slot {
			l.ledger.StoredByOther(e.print, s.now)
		}
	}
	l.followed = len(s.head)
}

// store is one append, by the rules of Listener.
func (s *sim) store(l *listening, isFirst bool) {
	isBehind := slices.ContainsFunc(s.head[l.followed:], func(e storedHere) bool { return e.slot != l.slot })
	if isBehind || !isFirst {
		s.follow(l)
	}
	for len(l.queue) > 0 {
		r := l.queue[0]
		if l.ledger.IsUnconfirmed(r.id) {
			if !isFirst && s.now.Sub(r.at) < patience {
				return
			}
			s.stored[r.event]++
			s.head = append(s.head, storedHere{s.emitted[r.event], l.slot})
			l.followed = len(s.head)
			l.ledger.Stored(r.id)
		}
		l.queue = l.queue[1:]
	}
}

// run goes through a number of events. Each listener stalls now and then, and dies on average every
// so often; another takes its place three seconds later.
func (s *sim) run(events int, deadEvery time.Duration) {
	const step = time.Millisecond
	first := 0
	for len(s.emitted) < events || s.isBusy() {
		s.now = s.now.Add(step)
		if len(s.emitted) < events && s.IntN(10) < 3 {
			s.emit()
		}
		for i, l := range s.listeners {
			switch {
			case l.isDead && !s.now.Before(l.joins):
				s.listeners[i] = s.join(l.slot)
				continue
			case l.isDead || s.now.Before(l.stalled):
				continue
			case deadEvery > 0 && len(s.emitted) < events && s.Float64() < float64(step)/float64(deadEvery):
				l.isDead, l.joins, first = true, s.now.Add(3*time.Second), 1-i
				continue
			case s.IntN(20_000) == 0:
				l.stalled = s.now.Add(time.Duration(s.IntN(15_000)) * time.Millisecond)
			}
			s.read(l, s.IntN(4))
			if s.IntN(3) == 0 {
				s.store(l, i == first)
			}
		}
	}
}

func (s *sim) isBusy() bool {
	return slices.ContainsFunc(s.listeners[:], func(l *listening) bool {
		hasEvents := slices.ContainsFunc(l.socket, func(m message) bool { return m.event >= 0 })
		return hasEvents || len(l.queue) > 0 || l.isDead
	})
}

// count returns how many contents are stored less or more often than the exchange has sent them.
// What was lost is divided into what nobody who has read it lived to store, and the rest: an event
// that was taken for the twin of an earlier one with the same content.
func (s *sim) count() (lostWithReaders, lost, twice int) {
	sent, kept, hadLivingReader := map[Print]int{}, map[Print]int{}, map[Print]bool{}
	for n, p := range s.emitted {
		sent[p]++
		kept[p] += s.stored[n]
		if s.stored[n] == 0 {
			for l := range s.readers[n] {
				hadLivingReader[p] = hadLivingReader[p] || !l.isDead
			}
		}
	}
	for p, n := range sent {
		switch {
		case kept[p] > n:
			twice += kept[p] - n
		case kept[p] < n && hadLivingReader[p]:
			lost += n - kept[p]
		case kept[p] < n:
			lostWithReaders += n - kept[p]
		}
	}
	return lostWithReaders, lost, twice
}

// TestTwoListenersStoreEachEventOnce simulates two listeners whose sockets stall, and that die.
// With SIM_EVENTS it goes through so many events, with SIM_SEED from that seed on.
func TestTwoListenersStoreEachEventOnce(t *testing.T) {
	events, seed := 60_000, rand.Uint64()
	for name, to := range map[string]any{"SIM_EVENTS": &events, "SIM_SEED": &seed} {
		if value := os.Getenv(name); value != "" {
			if _, err := fmt.Sscan(value, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name      string
		deadEvery time.Duration
		most      float64 // of the events may be lost though a reader lived on
	}{
		{"nobody dies", 0, 0},
		{"a death every five minutes", 5 * time.Minute, 0.0001},
		{"a death every twenty seconds", 20 * time.Second, 0.001},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(seed)
			s.run(events, c.deadEvery)
			withReaders, lost, twice := s.count()
			t.Logf("seed %d: of %d events %d are lost with all that had read them, %d though a reader lived on, "+
				"%d are stored twice", seed, events, withReaders, lost, twice)
			if twice > 0 || float64(lost) > c.most*float64(events) || c.deadEvery == 0 && withReaders > 0 {
				t.Errorf("seed %d: too many", seed)
			}
		})
	}
}
