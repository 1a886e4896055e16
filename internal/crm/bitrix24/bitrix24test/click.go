package bitrix24test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

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
}

// Click does what the portal does when a user clicks a client's number: it registers the call
// without an EXTERNAL_CALL_ID, opens its card to the user, and posts ONEXTERNALCALLSTART with the
// application token to the address of the outgoing webhook's handler, hook. status is the
// handler's answer, to the second delivery if there are two.
func (p *Portal) Click(
	ctx context.Context, client *http.Client, hook, token string, userID int, phone string, o ClickOptions,
) (callID string, status int, err error) {
	call, err := p.clicked(userID, phone)
	if err != nil {
		return "", 0, err
	}
	deliveries := 1
	if o.Twice {
		deliveries = 2
	}
	form := p.event(call, phone, token, o)
	for range deliveries {
		if status, err = post(ctx, client, hook, form); err != nil {
			return call.CallID, status, err
		}
	}
	return call.CallID, status, nil
}

// clicked registers the call of a click.
func (p *Portal) clicked(userID int, phone string) (Call, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	number := stripLetters(phone)
	if number == "" || !p.isActive(userID) {
		return Call{}, fmt.Errorf("bitrix24test: the user %d cannot click %q", userID, phone)
	}
	call, _ := p.add(Call{UserID: userID, Phone: number, Type: Outgoing, Started: p.Now()}, true)
	call.open(userID)
	return *call, nil
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
	entityID := ""
	if call.EntityID != 0 {
		entityID = strconv.Itoa(call.EntityID)
	}
	form := url.Values{
		"event":                            {"ONEXTERNALCALLSTART"},
		"event_handler_id":                 {"1055"},
		"data[PHONE_NUMBER]":               {phone},
		"data[PHONE_NUMBER_INTERNATIONAL]": {international(phone)},
		"data[EXTENSION]":                  {""},
		"data[USER_ID]":                    {strconv.Itoa(call.UserID)},
		"data[CALL_LIST_ID]":               {"0"},
		"data[LINE_NUMBER]":                {call.Line},
		"data[IS_MOBILE]":                  {"0"},
		"data[CALL_ID]":                    {call.CallID},
		"data[CRM_ENTITY_TYPE]":            {call.EntityType},
		"data[CRM_ENTITY_ID]":              {entityID},
		"ts":                               {strconv.FormatInt(p.Now().Unix(), 10)},
		"auth[domain]":                     {domain},
		"auth[client_endpoint]":            {"https://" + domain + "/rest/"},
		"auth[member_id]":                  {"d41d8cd98f00b204e9800998ecf8427e"},
		"auth[application_token]":          {token},
	}
	if o.Old {
		form.Del("event_handler_id")
		form.Del("data[IS_MOBILE]")
		form.Set("auth[server_endpoint]", "https://oauth.bitrix.info/rest/")
	}
	return form
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
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
