package bitrix24test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// callStart is the name of the event of a click.
const callStart = "ONEXTERNALCALLSTART"

// ClickOptions are what a click may have that is not usual.
type ClickOptions struct {
	// Old sends the event in its shape before November 2024: with auth[server_endpoint], and
	// without event_handler_id and data[IS_MOBILE].
	Old bool
	// Twice delivers the event twice, one after the other.
	Twice bool
	// WrongToken sends a token of the same length that is not the one of the outgoing webhook.
	WrongToken bool
	// Domain replaces the portal's domain, unless it is empty.
	Domain string
	// Age is how long ago the user clicked: the start of the call, and TIMESTAMP_X of an offline
	// event.
	Age time.Duration
}

// Click does what the portal does when a user clicks a client's number: it registers the call
// without an EXTERNAL_CALL_ID, opens its card to the user, and posts ONEXTERNALCALLSTART with the
// application token to the address of the outgoing webhook's handler, hook. status is the
// handler's answer, to the second delivery if there are two.
func (p *Portal) Click(
	ctx context.Context, client *http.Client, hook, token string, userID int, phone string, o ClickOptions,
) (callID string, status int, err error) {
	p.mu.Lock()
	call, err := p.clicked(userID, phone, "", o)
	if err != nil {
		p.mu.Unlock()
		return "", 0, err
	}
	form := p.event(call, phone, token, o)
	p.mu.Unlock()
	for range o.deliveries() {
		if status, err = post(ctx, client, hook, form); err != nil {
			return call.CallID, status, err
		}
	}
	return call.CallID, status, nil
}

func (o ClickOptions) deliveries() int {
	if o.Twice {
		return 2
	}
	return 1
}

// clicked registers the call of a click, for the application app or, if it is empty, a webhook.
func (p *Portal) clicked(userID int, phone, app string, o ClickOptions) (Call, error) {
	number := stripLetters(phone)
	if number == "" || !p.isActive(userID) {
		return Call{}, fmt.Errorf("bitrix24test: the user %d cannot click %q", userID, phone)
	}
	call := Call{UserID: userID, Phone: number, Type: Outgoing, App: app, Started: p.Now().Add(-o.Age)}
	added, _ := p.add(call, true)
	added.open(userID)
	return *added, nil
}

// event returns the form of ONEXTERNALCALLSTART.
func (p *Portal) event(call Call, phone, token string, o ClickOptions) url.Values {
	domain := p.Domain
	if o.Domain != "" {
		domain = o.Domain
	}
	if o.WrongToken {
		token = strings.Repeat("x", len(token))
	}
	form := url.Values{
		"event":                   {callStart},
		"event_handler_id":        {"1055"},
		"ts":                      {strconv.FormatInt(p.Now().Unix(), 10)},
		"auth[domain]":            {domain},
		"auth[client_endpoint]":   {p.endpoint(domain)},
		"auth[member_id]":         {memberID},
		"auth[application_token]": {token},
	}
	for name, value := range p.eventData(call, phone) {
		form.Set("data["+name+"]", text(value))
	}
	if o.Old {
		form.Del("event_handler_id")
		form.Del("data[IS_MOBILE]")
		form.Set("auth[server_endpoint]", "https://oauth.bitrix.info/rest/")
	}
	return form
}

// eventData returns the data of ONEXTERNALCALLSTART.
func (p *Portal) eventData(call Call, phone string) row {
	return row{
		"PHONE_NUMBER": phone, "PHONE_NUMBER_INTERNATIONAL": international(phone), "EXTENSION": "",
		"USER_ID": call.UserID, "CALL_LIST_ID": 0, "LINE_NUMBER": call.Line, "IS_MOBILE": "0",
		"CALL_ID": call.CallID, "CRM_ENTITY_TYPE": call.EntityType, "CRM_ENTITY_ID": p.entityID(call.EntityID),
	}
}

// international returns a number in E.164; a national one is of Russia.
func international(phone string) string {
	digits := strings.TrimPrefix(stripLetters(phone), "+")
	switch {
	case len(digits) == 11 && strings.HasPrefix(digits, "8"):
		return "+7" + digits[1:]
	case len(digits) == 10:
		return "+7" + digits
	default:
		return "+" + digits
	}
}

// post posts a form, and returns the status of the answer.
func post(ctx context.Context, client *http.Client, address string, form url.Values) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", formType)
	resp, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
