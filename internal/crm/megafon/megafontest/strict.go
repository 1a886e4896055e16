package megafontest

import (
	"net/http"
	"net/url"
	"slices"
)

// Strict is a home-made CRM that takes the newer API's texts at their word: it refuses what they do
// not allow.
type Strict struct {
	CRM
}

// NewStrict makes a strict CRM that gave the PBX this key.
func NewStrict(key string) *Strict {
	return &Strict{CRM: newCRM(key)}
}

// ServeHTTP receives a form post of the PBX.
func (c *Strict) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.serve(w, r, posted, c.handle)
}

func (c *Strict) handle(r Request) (int, reply) {
	form, header := r.Form, r.Header.Values("X-API-KEY")
	if !c.knows(form.Get("crm_token")) || len(header) > 0 && !c.knows(header[0]) {
		return http.StatusUnauthorized, refusal("Invalid token")
	}
	if name := invalid(form); name != "" {
		return http.StatusBadRequest, refusal("Invalid parameters: [" + name + "]")
	}
	if form.Get("cmd") == "contact" {
		return http.StatusOK, c.contact(form.Get("phone"), reply{})
	}
	return http.StatusOK, reply{}
}

// invalid returns the name of the first parameter that is wrong or missing, empty if there is none.
func invalid(form url.Values) string {
	kind := form.Get("type")
	switch form.Get("cmd") {
	case "event":
		switch {
		case !slices.Contains(eventTypes, kind):
			return "type"
		case !slices.Contains(directions, form.Get("direction")):
			return "direction"
		case form.Get("diversion") == "":
			return "diversion"
		}
	case "history":
		switch {
		case !slices.Contains(directions, kind):
			return "type"
		case !isStatus(form.Get("status"), kind):
			return "status"
		case !isCompactUTC(form.Get("start")):
			return "start"
		case form.Get("diversion") == "":
			return "diversion"
		}
	case "contact":
	default:
		return "cmd"
	}
	if !digits.MatchString(form.Get("phone")) {
		return "phone"
	}
	return ""
}
