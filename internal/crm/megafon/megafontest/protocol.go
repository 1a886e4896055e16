package megafontest

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// The values of a parameter `type`, in an event and in a history.
var (
	eventTypes = []string{"INCOMING", "ACCEPTED", "COMPLETED", "CANCELLED", "OUTGOING", "TRANSFERRED"}
	directions = []string{"in", "out"}
)

// ringing has the events that begin a call, with the call's direction.
var ringing = map[string]string{"INCOMING": "in", "OUTGOING": "out"}

// statuses are those of a history. The last four are an outgoing call's only.
var statuses = []string{"Success", "Missed", "Cancel", "Busy", "NotAvailable", "NotAllowed", "NotFound"}

// compactUTC is the layout of the parameter `start`.
const compactUTC = "20060102T150405Z"

var (
	digits    = regexp.MustCompile(`^[0-9]+$`)
	userLogin = regexp.MustCompile(`^[^@]+@[^@]+$`)
	webLink   = regexp.MustCompile(`^https?://[^/]+`)
)

func isStatus(status, direction string) bool {
	if direction == "in" {
		return slices.Contains(statuses[:3], status)
	}
	return slices.Contains(statuses, status)
}

func isCompactUTC(start string) bool {
	t, err := time.Parse(compactUTC, start)
	return err == nil && t.Format(compactUTC) == start // Parse takes a fraction, too
}

// seconds reads a number of seconds, 0 if it is none.
func seconds(text string) time.Duration {
	n, _ := strconv.Atoi(text)
	return time.Duration(n) * time.Second
}

// title names a request in a fault.
func title(form url.Values) string {
	kind := form.Get("cmd")
	if kind == "event" {
		kind = form.Get("type")
	}
	return fmt.Sprintf("The request %q of call %q", kind, form.Get("callid"))
}

// fieldFaults returns what is wrong in a request by itself.
func fieldFaults(r Request) (faults []string) {
	form := r.Form
	require := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, title(form)+" "+fmt.Sprintf(format, args...)+".")
		}
	}

	require(r.Method == http.MethodPost && mediaType(r.Header) == "application/x-www-form-urlencoded",
		"is not a form post but %s %q", r.Method, r.Header.Get("Content-Type"))
	require(form.Has("crm_token"), "has no crm_token")
	require(r.Header.Get("X-API-KEY") == form.Get("crm_token"), "does not have the crm_token as its X-API-KEY")

	kind, direction := form.Get("type"), form.Get("direction")
	switch cmd := form.Get("cmd"); cmd {
	case "event":
		require(slices.Contains(eventTypes, kind), "has an unknown type")
		require(slices.Contains(directions, direction), "has the direction %q", direction)
		require(ringing[kind] == "" || ringing[kind] == direction, "does not go with the direction %q", direction)
		require(form.Has("diversion") || direction == "out" && kind != "INCOMING", "is incoming and has no diversion")
	case "history":
		status, start, duration := form.Get("status"), form.Get("start"), form.Get("duration")
		require(slices.Contains(directions, kind), "has the unknown type %q", kind)
		require(isStatus(status, kind), "has the status %q, type %q", status, kind)
		require(isCompactUTC(start), "has the start %q", start)
		require(digits.MatchString(duration), "has the duration %q", duration)
		require(!form.Has("link") || webLink.MatchString(form.Get("link")), "has the link %q", form.Get("link"))
		require(form.Has("diversion"), "has no diversion")
	case "contact":
		require(form.Has("diversion"), "has no diversion")
	default:
		require(false, "has the unknown cmd %q", cmd)
		return faults
	}

	phone, diversion, user, ext := form.Get("phone"), form.Get("diversion"), form.Get("user"), form.Get("ext")
	require(form.Get("callid") != "", "has no callid")
	require(digits.MatchString(phone), "has the phone %q, which is not digits only", phone)
	require(diversion == "" || digits.MatchString(diversion), "has the diversion %q, not digits only", diversion)
	if form.Get("cmd") != "contact" {
		require(userLogin.MatchString(user), "has the user %q, which is not login@domain", user)
		require(ext != "" && len(ext) <= maxExt, "has the ext %q, which is not of 1 to %d characters", ext, maxExt)
	}
	return faults
}

// progress is how far a call has come by the requests that the CRM accepted.
type progress struct {
	accepted, completed, filed bool            // by ACCEPTED, COMPLETED, history
	cancelled                  map[string]bool // by CANCELLED, of each user
}

// follow notes an accepted request's place in its call, and a fault if it is a wrong one.
func (c *CRM) follow(form url.Values) {
	fault := func(text string) { c.faults = append(c.faults, title(form)+" "+text+".") }
	id, user, kind := form.Get("callid"), form.Get("user"), form.Get("type")
	call, known := c.calls[id]
	if !known {
		call = &progress{cancelled: map[string]bool{}}
	}

	switch form.Get("cmd") {
	case "event":
		c.calls[id] = call
	case "history":
		c.calls[id] = call
		ended := call.completed || !call.accepted && len(call.cancelled) > 0
		if known && !ended && !call.filed {
			fault("came before the call's end")
		}
		call.filed = true
		return
	default:
		return
	}

	if _, rings := ringing[kind]; !rings && !known {
		fault("came before any INCOMING or OUTGOING")
	}
	switch kind {
	case "INCOMING", "OUTGOING":
		if call.completed || call.filed || !call.accepted && call.cancelled[user] {
			fault("came after the end, and lets the call ring again")
		}
	case "ACCEPTED":
		if call.completed || call.filed {
			fault("came after the call's end")
		}
		call.accepted = true
	case "COMPLETED":
		call.completed = true
	case "CANCELLED":
		if call.accepted {
			fault("came after ACCEPTED, and marks an answered call as dropped")
		}
		call.cancelled[user] = true
	}
}
