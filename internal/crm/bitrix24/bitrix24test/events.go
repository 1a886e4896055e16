package bitrix24test

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// The types of event handlers.
const (
	online  = "online"
	offline = "offline"
)

// eventScopes are the events that an application may bind a handler to, and their scopes.
var eventScopes = map[string]string{
	callStart: "telephony", "ONEXTERNALCALLBACKSTART": "telephony",
	"ONAPPINSTALL": "", "ONAPPUNINSTALL": "", "ONOFFLINEEVENT": "",
}

// binding is an event handler of the application.
type binding struct {
	id        int
	event     string // in upper case
	address   string // empty for an offline one
	user      int    // whose tokens the event has; 0 is the one who caused it
	connector string // of an offline one
}

// argument refuses an argument of a method.
func argument(name, text string) *answer {
	a := refused(http.StatusBadRequest, "ERROR_ARGUMENT", text)
	a.body["argument"] = name
	return &a
}

func missing(name string) *answer {
	return argument(name, fmt.Sprintf("Argument '%s' is null or empty", name))
}

func denied(reason string) *answer {
	a := refused(http.StatusForbidden, "ACCESS_DENIED", strings.TrimSpace("Access denied! "+reason))
	return &a
}

// binding reads the handler that a request is about, and refuses what is wrong with it; action is
// what the request does to it.
func (q query) binding(action string) (b binding, refusal *answer) {
	b = binding{
		event: strings.ToUpper(q.params.text("EVENT")), address: q.params.text("HANDLER"),
		user: q.params.number("AUTH_TYPE"),
	}
	kind := strings.ToLower(q.params.text("EVENT_TYPE"))
	switch {
	case b.event == "":
		return b, missing("EVENT")
	case kind != "" && kind != online && kind != offline:
		return b, argument("EVENT_TYPE", "Value must be one of {online|offline}")
	case kind == offline && !q.isAdmin():
		return b, denied("Offline events " + action + " requires administrator access rights")
	case kind == offline:
		return binding{event: b.event, connector: q.connector}, nil
	case b.address == "":
		return b, missing("HANDLER")
	case !q.isAdmin() && b.user != 0 && b.user != q.user:
		return b, denied("Event " + action + " with AUTH_TYPE requires administrator access rights")
	case !q.isAdmin():
		b.user = q.user
	}
	return b, nil
}

// bindEvent binds a handler to an event, but not the same one twice.
func (p *Portal) bindEvent(q query) answer {
	b, refusal := q.binding("binding")
	if refusal != nil {
		return *refusal
	}
	scope, known := eventScopes[b.event]
	if !known || scope != "" && !slices.Contains(q.app.Scopes, scope) {
		return refused(http.StatusBadRequest, "ERROR_EVENT_NOT_FOUND", "Event not found")
	}
	for _, bound := range p.bindings {
		bound.id = 0
		if bound == b {
			return refused(http.StatusBadRequest, "ERROR_CORE", "Unable to set event handler: Handler already binded")
		}
	}
	b.id = p.next()
	p.bindings = append(p.bindings, b)
	return done(true)
}

// unbindEvent removes the handlers of an event. Without AUTH_TYPE it does so for all users.
func (p *Portal) unbindEvent(q query) answer {
	b, refusal := q.binding("unbinding")
	if refusal != nil {
		return *refusal
	}
	_, ofUser := q.params["AUTH_TYPE"]
	ofUser = ofUser || !q.isAdmin()
	before := len(p.bindings)
	p.bindings = slices.DeleteFunc(p.bindings, func(bound binding) bool {
		return bound.event == b.event && bound.address == b.address && bound.connector == b.connector &&
			(bound.user == b.user || !ofUser || b.address == "")
	})
	return done(row{"count": before - len(p.bindings)})
}

// getBindings lists the handlers: the administrator gets all, another user his own.
func (p *Portal) getBindings(q query) answer {
	rows := []row{}
	for _, b := range p.bindings {
		switch {
		case !q.isAdmin() && b.user != q.user:
		case b.address == "":
			rows = append(rows, row{"event": b.event, "connector_id": b.connector, "offline": 1})
		default:
			rows = append(rows, row{
				"event": b.event, "handler": b.address, "auth_type": strconv.Itoa(b.user), "offline": 0,
			})
		}
	}
	return done(rows)
}

// boundTo returns the handlers of an event.
func (p *Portal) boundTo(event string) (bound []binding) {
	for _, b := range p.bindings {
		if b.event == event {
			bound = append(bound, b)
		}
	}
	return bound
}
