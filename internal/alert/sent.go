package alert

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
)

// key is what alerts are told apart by: their kind, and the endpoint that they are about.
type key struct {
	kind     telephony.EventType
	endpoint string // empty if it is about the bridge
}

// condition is something that is wrong now.
type condition struct {
	key
	level   int // of something that can become worse: an alert is due again when it has
	percent int
	cause   telephony.Cause
	text    string // in English; Cause has the Russian
}

// notice is an alert that is to be sent: that a condition is there, or that it is over.
type notice struct {
	condition
	recovered bool
}

// sent is what was sent about each key. It is a value that outlives the process as JSON.
type sent map[key]*record

type record struct {
	At     time.Time // when an alert was last sent
	Level  int       // of that alert
	Active bool      // its recovery was not sent
}

// isActive reports whether an alert was sent whose recovery was not.
func (s sent) isActive(k key) bool { return s[k] != nil && s[k].Active }

// step returns the alerts to be sent now, and remembers them as sent. Of a condition that comes and
// goes there is at most one alert in the time quiet; a recovery is sent once for an alert.
func (s sent) step(now time.Time, conditions []condition) (list []notice) {
	present := map[key]bool{}
	for _, c := range conditions {
		present[c.key] = true
		r := s[c.key]
		if r == nil {
			r = &record{}
			s[c.key] = r
		}
		isNew := !r.Active || c.level > r.Level
		// A time in the future is of a clock that was set back.
		isQuiet := !r.At.IsZero() && !now.Before(r.At) && now.Sub(r.At) < quiet
		if isNew && !isQuiet {
			*r = record{At: now, Level: c.level, Active: true}
			list = append(list, notice{condition: c})
		}
	}
	for k, r := range s {
		switch {
		case present[k]:
		case r.Active:
			r.Active, r.Level = false, 0
			list = append(list, notice{condition: condition{key: k}, recovered: true})
		case now.Sub(r.At) >= quiet:
			delete(s, k)
		}
	}
	slices.SortStableFunc(list, func(a, b notice) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.endpoint, b.endpoint))
	})
	return list
}

// keepOf forgets what was sent about endpoints that are configured no longer: that they are is no
// recovery.
func (s sent) keepOf(endpoints []outbox.EndpointStatus) {
	maps.DeleteFunc(s, func(k key, _ *record) bool {
		return k.endpoint != "" &&
			!slices.ContainsFunc(endpoints, func(e outbox.EndpointStatus) bool { return e.Name == k.endpoint })
	})
}

// storedRecord is the form in which a record is stored.
type storedRecord struct {
	Kind     telephony.EventType
	Endpoint string `json:",omitempty"`
	record
}

func (s sent) String() string {
	list := []storedRecord{}
	for k, r := range s {
		list = append(list, storedRecord{k.kind, k.endpoint, *r})
	}
	slices.SortFunc(list, func(a, b storedRecord) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	text, _ := json.Marshal(list) // it holds nothing that JSON cannot
	return string(text)
}

// readSent returns nothing sent for a text that cannot be read.
func readSent(text string) sent {
	var list []storedRecord
	s := sent{}
	if json.Unmarshal([]byte(text), &list) != nil {
		return s
	}
	for _, r := range list {
		s[key{r.Kind, r.Endpoint}] = &r.record
	}
	return s
}
