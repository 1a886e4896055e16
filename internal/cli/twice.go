package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/advice"
	"pzbridge/internal/pz"
	"pzbridge/internal/telephony"
	"pzbridge/relay"
)

// Two bridges that listen to one server store each event once, because both read the same of it:
// package pairing relies on that. doctor -listen-twice tries it at the real server.

const (
	// listenTwiceFor is how long the two connections are compared.
	listenTwiceFor = time.Minute
	// twinWithin is the time within which an event must come to both: the margin of pairing.
	twinWithin = time.Second
)

// listenTwice connects to the server twice, as two bridges do, and compares what comes. It uses new
// client GUIDs, so that the server neither disconnects a running bridge nor takes events from it.
func (d *checker) listenTwice(ctx context.Context, period time.Duration) {
	fmt.Fprintf(d.p.Out, "  server: it is listened to on two connections for %s, which takes two of its licences, "+
		"besides those of bridges that run\n", period)
	ended := make(chan error, 2)
	var heard [2]recording
	for i := range heard {
		identity := d.cfg.Identity
		identity.GUID = uuid.NewString()
		l, err := openLink(ctx, relay.DialOptions{
			URL:      d.cfg.URL,
			TLS:      relay.TLS(d.cfg.TLSRoots, d.cfg.TLSFingerprint, d.cfg.TLSLegacy),
			Identity: identity,
		}, heard[i].add, func(err error) { ended <- err })
		if err != nil {
			d.fail("server", "it does not let in connection %d of two (%s): LISTENERS=2 needs a licence for each, "+
				"use LISTENERS=1 if there is none", i+1, advice.English(err))
			return
		}
		defer l.close()
	}
	begin, isTime := d.awaitBegin(ctx, &heard, ended)
	if !isTime {
		return
	}
	end := begin.Add(period)
	if d.listenUntil(ctx, end.Add(twinWithin), ended) { // the twin of the last event may come later
		d.judge(compareHeard(heard[0].list(begin, end), heard[1].list(begin, end)), period)
	}
}

// awaitBegin returns the time from which both connections read the same, once that has come. What
// is read in the first moment may have been sent before the second connection was made, and what
// stands behind a replay comes late.
func (d *checker) awaitBegin(ctx context.Context, heard *[2]recording, ended <-chan error) (time.Time, bool) {
	begin := time.Now().Add(twinWithin)
	for d.listenUntil(ctx, begin, ended) {
		next := begin
		for i := range heard {
			if quiet := heard[i].replayEnd().Add(twinWithin); quiet.After(next) {
				next = quiet
			}
		}
		if next.Equal(begin) {
			return begin, true
		}
		begin = next
	}
	return begin, false
}

// listenUntil waits until a time. It prints why not if the two connections do not last as long.
func (d *checker) listenUntil(ctx context.Context, at time.Time, ended <-chan error) bool {
	select {
	case <-time.After(time.Until(at)):
		return true
	case err := <-ended:
		d.fail("server", "one of two connections has ended (%s), so they cannot be compared: try again",
			advice.English(err))
	case <-ctx.Done():
		d.fail("server", "the two connections could not be compared to the end")
	}
	return false
}

// judge prints what a comparison means for LISTENERS.
func (d *checker) judge(c comparison, period time.Duration) {
	switch faults := c.faults(); {
	case c.total == 0:
		d.warn("server", "nothing came within %s, so the two connections cannot be compared: "+
			"try again while somebody calls", period)
	case len(faults) > 0:
		d.fail("server", "%s: use LISTENERS=1", strings.Join(faults, "; "))
	default:
		d.pass("server", "every event came to both connections in the same order (%d events), "+
			"and to the later one after %s at most: LISTENERS=2 will work", c.total, c.latest.Round(time.Millisecond))
	}
}

// recording keeps what one connection reads.
type recording struct {
	mu         sync.Mutex
	events     []telephony.Event
	replayedAt time.Time // when the last replayed event was read; zero: none was
}

// add keeps an event, unless it is replayed: what was missed differs by the client.
func (r *recording) add(wire pz.Event) {
	e := relay.Translate(wire, time.Now())
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Replayed {
		r.replayedAt = e.Time
		return
	}
	r.events = append(r.events, e)
}

func (r *recording) replayEnd() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replayedAt
}

// list returns the occurrences, of which those from begin to end must be on both connections.
func (r *recording) list(begin, end time.Time) (list []*occurrence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range r.events {
		list = append(list, &occurrence{
			Event:   e,
			place:   i,
			isEarly: e.Time.Before(begin),
			isEdge:  e.Time.Before(begin) || e.Time.After(end),
		})
	}
	return list
}

// occurrence is an event that one connection has read.
type occurrence struct {
	telephony.Event
	place   int  // in the order of the connection
	isEarly bool // the other connection may have been made later
	isEdge  bool // the other one may not have read it
}

// comparison is how far two connections have read the same.
type comparison struct {
	total     int                         // events that both should have read
	latest    time.Duration               // how long after the first the second had an event at most
	reordered bool                        // the two have read the events in different orders
	alone     map[telephony.EventType]int // events that came to one alone
	varied    int                         // events whose attributes differ
	differing map[string]bool             // the names of these attributes
}

// compareHeard pairs what two connections have read occurrence by occurrence: first what is equal,
// then, of the rest, what belongs to the same call and has the same type.
func compareHeard(first, second []*occurrence) comparison {
	c := comparison{alone: map[telephony.EventType]int{}, differing: map[string]bool{}}
	equal, first, second := pairUp(first, second, func(o *occurrence) string { return string(o.Fingerprint[:]) })
	last := -1
	for _, p := range equal {
		if p.isEdge() {
			continue
		}
		c.total++
		c.latest = max(c.latest, p[1].Time.Sub(p[0].Time).Abs())
		c.reordered = c.reordered || p[1].place < last
		last = p[1].place
	}
	varied, first, second := pairUp(first, second, func(o *occurrence) string {
		return string(o.Type) + " " + o.CallID
	})
	for _, p := range varied {
		if p.isEdge() {
			continue
		}
		c.total++
		c.varied++
		for _, name := range differingAttributes(p[0].Wire, p[1].Wire) {
			c.differing[name] = true
		}
	}
	for _, o := range slices.Concat(first, second) {
		if !o.isEdge {
			c.total++
			c.alone[o.Type]++
		}
	}
	return c
}

// twins are the occurrences of one event on the two connections.
type twins [2]*occurrence

func (t twins) isEdge() bool { return t[0].isEdge && t[1].isEdge }

// pairUp pairs the occurrences with the same key in order, and returns what is left of each
// connection. The first connection has more of a key if it was made earlier: those are left out.
func pairUp(first, second []*occurrence, key func(*occurrence) string) (
	pairs []twins, leftOfFirst, leftOfSecond []*occurrence,
) {
	more := map[string]int{}
	waiting := map[string][]*occurrence{}
	for _, o := range second {
		more[key(o)]--
		waiting[key(o)] = append(waiting[key(o)], o)
	}
	for _, o := range first {
		more[key(o)]++
	}
	paired := map[*occurrence]bool{}
	for _, o := range first {
		k := key(o)
		switch list := waiting[k]; {
		case o.isEarly && more[k] > 0:
			more[k]--
			leftOfFirst = append(leftOfFirst, o)
		case len(list) > 0:
			pairs, paired[list[0]], waiting[k] = append(pairs, twins{o, list[0]}), true, list[1:]
		default:
			leftOfFirst = append(leftOfFirst, o)
		}
	}
	for _, o := range second {
		if !paired[o] {
			leftOfSecond = append(leftOfSecond, o)
		}
	}
	return pairs, leftOfFirst, leftOfSecond
}

// differingAttributes returns the names of the attributes whose values differ; a blank one counts
// as absent, as for the fingerprint.
func differingAttributes(a, b []telephony.Attr) (names []string) {
	values := [2]map[string]string{{}, {}}
	for i, attrs := range [2][]telephony.Attr{a, b} {
		for _, attr := range attrs {
			if value := strings.TrimSpace(attr.Value); value != "" {
				values[i][attr.Name] += "\n" + value
			}
		}
	}
	for _, attr := range slices.Concat(a, b) {
		if values[0][attr.Name] != values[1][attr.Name] {
			names = append(names, attr.Name)
		}
	}
	return names
}

// faults returns what speaks against two listeners, in parts of a sentence that hold no values.
func (c comparison) faults() (list []string) {
	if len(c.alone) > 0 {
		n := 0
		var types []string
		for _, kind := range slices.Sorted(maps.Keys(c.alone)) {
			n += c.alone[kind]
			types = append(types, string(kind))
		}
		list = append(list, fmt.Sprintf("%d of %d events came to one of two connections alone (%s)",
			n, c.total, strings.Join(types, ", ")))
	}
	if c.varied > 0 {
		list = append(list, fmt.Sprintf("%d of %d events differ between the two connections, in the attributes %s",
			c.varied, c.total, strings.Join(slices.Sorted(maps.Keys(c.differing)), ", ")))
	}
	if c.reordered {
		list = append(list, "the events came to the two connections in different orders")
	}
	if c.latest >= twinWithin {
		list = append(list, fmt.Sprintf("one connection had an event %s after the other, and less than %s is needed",
			c.latest.Round(time.Millisecond), twinWithin))
	}
	return list
}
