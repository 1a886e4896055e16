package cli

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/pz"
	"pzbridge/relay"
)

// read is an event at a second since both connections were made, of a ringing call with an
// attribute more.
func read(second float64, call, more string) *occurrence {
	at := time.Unix(1e9, 0).Add(time.Duration(second * float64(time.Second)))
	e := pz.Event{Attrs: pz.Attrs{
		{Name: pz.AttrType, Value: pz.TypeIncoming},
		{Name: pz.AttrCallID, Value: call},
		{Name: "from", Value: "73430112233"},
		{Name: "channel", Value: more},
	}}
	return &occurrence{Event: relay.Translate(e, at), isEarly: second < 1, isEdge: second < 1 || second > 10}
}

// What two connections have read is paired occurrence by occurrence, and what differs is named
// without its values. At the beginning and at the end one may have read more.
func TestComparisonOfTwoConnections(t *testing.T) {
	type list = []*occurrence
	for name, c := range map[string]struct {
		first, second list
		total         int
		latest        time.Duration
		faults        []string
	}{
		"nothing": {},
		"the same": {
			list{read(2, "1", ""), read(3, "2", ""), read(4, "1", "")},
			list{read(2.2, "1", " "), read(3, "2", ""), read(3.9, "1", "")},
			3,
			200 * time.Millisecond,
			nil,
		},
		"more at the edges": {
			list{read(0.1, "1", ""), read(0.2, "2", ""), read(0.9, "3", ""), read(5, "4", ""), read(10.9, "5", "")},
			list{read(1.1, "3", ""), read(5, "4", ""), read(10.5, "6", "")},
			2,
			200 * time.Millisecond,
			nil,
		},
		"one that was there before the other is repeated": {
			list{read(0.1, "1", ""), read(5, "1", "")},
			list{read(5.1, "1", "")},
			1,
			100 * time.Millisecond,
			nil,
		},
		"at the first alone": {
			list{read(2, "1", ""), read(3, "2", "")},
			list{read(3, "2", "")},
			2,
			0,
			[]string{"1 of 2 events came to one of two connections alone (call.incoming)"},
		},
		"at the second alone, of two that are equal": {
			list{read(2, "1", "")},
			list{read(2, "1", ""), read(3, "1", "")},
			2,
			0,
			[]string{"1 of 2 events came to one of two connections alone (call.incoming)"},
		},
		"attributes": {
			list{read(2, "1", "secret1"), read(3, "2", "")},
			list{read(2, "1", "secret2"), read(3, "2", "secret3")},
			2,
			0,
			[]string{"2 of 2 events differ between the two connections, in the attributes channel"},
		},
		"another order": {
			list{read(2, "1", ""), read(3, "2", "")},
			list{read(2, "2", ""), read(3, "1", "")},
			2,
			time.Second,
			[]string{
				"the events came to the two connections in different orders",
				"one connection had an event 1s after the other, and less than 1s is needed",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, l := range []list{c.first, c.second} {
				for place, o := range l {
					o.place = place
				}
			}
			got := compareHeard(c.first, c.second)
			faults, latest := got.faults(), got.latest.Round(time.Millisecond)
			if got.total != c.total || latest != c.latest || !slices.Equal(faults, c.faults) {
				t.Errorf("%d events within %v: %q", got.total, latest, faults)
			}
			if strings.Contains(fmt.Sprint(faults), "secret") {
				t.Error("it shows a value")
			}
		})
	}
}

// What the server replays is left out, and the comparison waits for its end.
func TestRecordingLeavesReplaysOut(t *testing.T) {
	var r recording
	attrs := pz.Attrs{{Name: pz.AttrType, Value: pz.TypeCompleted}, {Name: pz.AttrCallID, Value: "1"}}
	r.add(pz.Event{Attrs: attrs})
	if !r.replayEnd().IsZero() {
		t.Error("an event that is not replayed counts as a replay")
	}
	r.add(pz.Event{Attrs: append(attrs, pz.Attr{Name: pz.AttrMissed, Value: "1"})})
	if list := r.list(time.Time{}, time.Now()); len(list) != 1 || time.Since(r.replayEnd()) > time.Minute {
		t.Errorf("%d events, the replay has ended at %v", len(list), r.replayEnd())
	}
}
