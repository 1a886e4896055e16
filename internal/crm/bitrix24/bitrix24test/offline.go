package bitrix24test

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// reservedAge is how long the queue keeps an event that was reserved, but not cleared.
const reservedAge = 30 * 24 * time.Hour

// offlineEvent is an event in the queue.
type offlineEvent struct {
	id        int
	time      time.Time
	name      string
	data      row
	user      int
	message   string // MESSAGE_ID, a hash of the name and the data
	connector string
	process   string // empty until event.offline.get reserves it
}

// queue puts an event into the queue. An equal one that waits there already is only renewed.
func (p *Portal) queue(b binding, data row, user int, age time.Duration) {
	text, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("bitrix24test: the data of %s: %v", b.event, err))
	}
	hash := md5.Sum([]byte(b.event + "|" + string(text)))
	event := offlineEvent{
		time: p.Now().Add(-age), name: b.event, data: data, user: user,
		message: hex.EncodeToString(hash[:]), connector: b.connector,
	}
	for _, e := range p.offline {
		if e.message == event.message && e.connector == event.connector && e.process == "" {
			e.time, e.user = event.time, event.user
			return
		}
	}
	event.id = p.next()
	p.offline = append(p.offline, &event)
}

// Offline returns how many events wait in the queue, and how many are reserved.
func (p *Portal) Offline() (waiting, reserved int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.offline {
		if e.process == "" {
			waiting++
		} else {
			reserved++
		}
	}
	return waiting, reserved
}

// getOffline takes the oldest events out of the queue or, with clear=0, reserves them for a process
// until event.offline.clear. A process_id gets again what that process has reserved.
func (p *Portal) getOffline(q query) answer {
	limit := 50
	if q.params["LIMIT"] != nil {
		limit = q.params.number("LIMIT")
	}
	process, again := q.params.text("PROCESS_ID"), q.params["PROCESS_ID"] != nil
	remove := q.params.on("CLEAR", true)
	switch {
	case !q.isAdmin():
		return *denied("")
	case !remove && p.switches.noReserving:
		return refused(http.StatusForbidden, "WRONG_LICENSE",
			"This feature is not enabled for the current license: extended offline events handling")
	case limit <= 0:
		return *argument("LIMIT", "Value must be positive integer")
	}
	filter := p.offlineFilter(q)
	p.offline = slices.DeleteFunc(p.offline, func(e *offlineEvent) bool {
		return e.process != "" && p.Now().Sub(e.time) > reservedAge
	})
	slices.SortStableFunc(p.offline, func(a, b *offlineEvent) int { return a.time.Compare(b.time) })
	if !again {
		process = fmt.Sprintf("process%025x", p.next())
	}
	rows := []row{}
	taken := map[int]bool{}
	for _, e := range p.offline {
		if len(rows) == limit {
			break
		}
		free := e.process == "" && !again || e.process == process && again
		if !free || e.connector != q.connector || !p.offlineRow(e).matches(filter) {
			continue
		}
		e.process = process
		taken[e.id] = true
		rows = append(rows, p.offlineRow(e))
	}
	result := row{"process_id": nil, "events": rows}
	if again || !remove {
		result["process_id"] = process
	}
	if remove {
		p.offline = slices.DeleteFunc(p.offline, func(e *offlineEvent) bool { return taken[e.id] })
	}
	return done(result)
}

// offlineRow returns an event as event.offline.get does.
func (p *Portal) offlineRow(e *offlineEvent) row {
	return row{
		"ID": strconv.Itoa(e.id), "TIMESTAMP_X": e.time.In(p.Now().Location()).Format(time.RFC3339),
		"EVENT_NAME": e.name, "EVENT_DATA": e.data, "MESSAGE_ID": e.message,
		"EVENT_ADDITIONAL": row{"user_id": strconv.Itoa(e.user)},
	}
}

// offlineFilter returns the filter of a request for events, which may only name equal values, and
// notes what else the real method has, and this one does not.
func (p *Portal) offlineFilter(q query) params {
	filter := params{}
	for name, value := range q.params.object("FILTER") {
		field := strings.TrimPrefix(name, "=")
		if !slices.Contains([]string{"ID", "EVENT_NAME", "MESSAGE_ID"}, field) {
			p.fault("The fake has no filter %q in event.offline.get.", name)
		}
		filter[field] = value
	}
	if q.params["ORDER"] != nil || q.params.on("ERROR", false) {
		p.fault("The fake has no order and no error in event.offline.get.")
	}
	return filter
}

// clearOffline removes what a process has reserved: the events in the list id, or else message_id,
// or else all.
func (p *Portal) clearOffline(q query) answer {
	name, isList := "ID", true
	if q.params[name] == nil {
		name = "MESSAGE_ID"
	}
	var list []any
	if q.params[name] != nil {
		list, isList = q.params[name].([]any)
	}
	switch {
	case !q.isAdmin():
		return *denied("")
	case q.params["PROCESS_ID"] == nil:
		return *missing("PROCESS_ID")
	case !isList && name == "ID":
		return *argument("id", "Value must be array of integers")
	case !isList:
		return *argument("message_id", "Value must be array of MESSAGE_ID values")
	}
	process, listed := strings.TrimSpace(q.params.text("PROCESS_ID")), q.params[name] != nil
	p.offline = slices.DeleteFunc(p.offline, func(e *offlineEvent) bool {
		value := e.message
		if name == "ID" {
			value = strconv.Itoa(e.id)
		}
		return e.process != "" && e.process == process && e.connector == q.connector &&
			(!listed || slices.ContainsFunc(list, func(given any) bool { return text(given) == value }))
	})
	return done(true)
}

// getFeature says whether the portal's plan has a feature of the offline events.
func (p *Portal) getFeature(q query) answer {
	value := "N"
	switch code := q.params.text("CODE"); {
	case code == "":
		return refused(http.StatusBadRequest, "CODE_EMPTY", "CODE can't be empty")
	case code == "rest_auth_connector", code == "rest_offline_extended" && !p.switches.noReserving:
		value = "Y"
	}
	return done(row{"value": value})
}
