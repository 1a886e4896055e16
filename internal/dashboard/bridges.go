package dashboard

import (
	"context"
	"fmt"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

// Bridges lists the bridges that share the outbox.
type Bridges interface {
	// Bridges returns those that were seen within an hour, by name.
	Bridges(ctx context.Context) ([]store.Bridge, error)
}

// The states of a bridge.
const (
	bridgeConnected   = "connected"
	bridgeSpare       = "spare"       // waits until it can connect in place of another
	bridgeUnconnected = "unconnected" // is to be connected and is not
	bridgeGone        = "gone"
)

// chipOf maps the state of a bridge to the style in which it is shown.
var chipOf = map[string]string{
	bridgeConnected:   "delivered",
	bridgeSpare:       "none",
	bridgeUnconnected: "dead",
	bridgeGone:        "pending",
}

// bridgeView is a bridge that shares the outbox.
type bridgeView struct {
	store.Bridge
	State     string
	Chip      string
	IsThis    bool // the page is its own
	Lacking   []string
	Differing []difference
}

// difference is an endpoint that a bridge has configured in another way than others.
type difference struct {
	Endpoint string
	Others   string // their names
}

// viewBridges returns the bridges of a list as the page of one of them shows them.
func viewBridges(list []store.Bridge, this string, now time.Time) (views []bridgeView) {
	living := store.Living(list, now)
	for i := range list {
		v := bridgeView{Bridge: list[i], State: bridgeSpare, IsThis: list[i].Name == this}
		switch {
		case v.IsGone(now):
			v.State = bridgeGone
		case v.Connected:
			v.State = bridgeConnected
		case v.Slot > 0:
			v.State = bridgeUnconnected
		}
		v.Chip = chipOf[v.State]
		if v.State != bridgeGone {
			v.Lacking = v.Bridge.Lacking(living)
			v.Differing = differences(&v.Bridge, living)
		}
		views = append(views, v)
	}
	return views
}

// differences returns the endpoints that a bridge has configured in another way than others of a
// list.
func differences(b *store.Bridge, list []store.Bridge) (found []difference) {
	for _, name := range b.Differing(list) {
		var others []string
		for i := range list {
			if theirs, has := list[i].Endpoints[name]; has && theirs != b.Endpoints[name] {
				others = append(others, list[i].Name)
			}
		}
		found = append(found, difference{name, strings.Join(others, ", ")})
	}
	return found
}

// addBridges adds the bridges that share the outbox to the first page.
func (d *Dashboard) addBridges(ctx context.Context, o *overview, now time.Time) error {
	if d.opts.Bridge == "" {
		return nil
	}
	list, err := d.opts.Bridges.Bridges(ctx)
	if err != nil {
		return err
	}
	o.Bridges = viewBridges(list, d.opts.Bridge, now)
	o.IsSpare = !o.Connected
	var connected, unconnected []string // other bridges
	for i := range o.Bridges {
		switch b := &o.Bridges[i]; {
		case b.IsThis && b.Slot > 0:
			o.IsSpare = false
		case b.IsThis:
		case b.State == bridgeConnected:
			connected = append(connected, b.Name)
		case b.State == bridgeUnconnected:
			unconnected = append(unconnected, b.Name)
		}
	}
	o.ConnectedAt, o.UnconnectedAt = strings.Join(connected, ", "), strings.Join(unconnected, ", ")
	return nil
}

// shownConnection returns the connection of this bridge. Where several share the outbox, what is
// stored says whether it is paused: a spare switches its own only when it connects.
func (d *Dashboard) shownConnection(pause outbox.Pause) telephony.Connection {
	c := d.opts.Exchange.Connection()
	switch isPaused := !pause.Since.IsZero(); {
	case d.opts.Bridge == "":
	case isPaused:
		c.State = telephony.Disabled
	case c.State == telephony.Disabled:
		c.State = telephony.Disconnected
	}
	return c
}

// bridgeFindings returns which bridges are gone, and what differs between the others.
func (t words) bridgeFindings(o *overview) (list []finding) {
	add := func(who, format string, args ...any) {
		list = append(list, finding{Level: levelWarn, Who: who, Text: fmt.Sprintf(format, args...)})
	}
	said := map[string]bool{} // of an endpoint that differs, once
	for i := range o.Bridges {
		b := &o.Bridges[i]
		if b.State == bridgeGone {
			text := t["has not been seen since %s: it does not run, or does not reach the database."]
			add(b.Name, text, t.moment(b.Seen))
		}
		if len(b.Lacking) > 0 {
			add(b.Name, t["has no CRM %s, which another bridge has. Give all bridges the same configuration."],
				strings.Join(b.Lacking, ", "))
		}
		for _, diff := range b.Differing {
			if said[diff.Endpoint] {
				continue
			}
			said[diff.Endpoint] = true
			text := t["is configured in another way at %s than at %s. Compare its URL, events, secrets and format."]
			add(diff.Endpoint, text, b.Name, diff.Others)
		}
	}
	return list
}

// spareFindings returns what is wrong with the connection, at a bridge that waits as a spare.
func (t words) spareFindings(o *overview) []finding {
	switch {
	case o.ConnectedAt != "":
		return nil
	case o.UnconnectedAt != "":
		text := t["No bridge is connected to the phone system: live calls are lost meanwhile. The page of %s says why."]
		return []finding{{Level: levelBad, Text: fmt.Sprintf(text, o.UnconnectedAt)}}
	}
	return []finding{{
		Level: levelBad,
		Text:  t["No bridge is connected to the phone system: live calls are lost until one is, in some seconds."],
	}}
}
