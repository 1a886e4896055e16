package bitrix24test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// InstallOptions are what an ONAPPINSTALL may have that is not usual.
type InstallOptions struct {
	// Domain replaces the portal's domain, unless it is empty.
	Domain string
	// Forged sends tokens that the portal does not know.
	Forged bool
}

var errNoApp = errors.New("bitrix24test: no application is installed")

// PostInstall does what the portal does right after the installation: it posts ONAPPINSTALL, with a
// new pair of tokens of the administrator and the application token, to the install address of the
// application. status is that of the answer.
func (p *Portal) PostInstall(
	ctx context.Context, client *http.Client, address string, o InstallOptions,
) (status int, err error) {
	form, err := p.installation(o)
	if err != nil {
		return 0, err
	}
	return post(ctx, client, address, form)
}

// installation returns the form of ONAPPINSTALL.
func (p *Portal) installation(o InstallOptions) (url.Values, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.app == nil || p.app.uninstalled {
		return nil, errNoApp
	}
	domain, access, refresh, token := p.Domain, "forged", "forged", strings.Repeat("x", len(p.app.Token))
	if o.Domain != "" {
		domain = o.Domain
	}
	if !o.Forged {
		g := p.grant(webhookUser)
		g.installed = true
		access, refresh, token = g.access, g.refresh, p.app.Token
	}
	return url.Values{
		"event":                   {"ONAPPINSTALL"},
		"data[VERSION]":           {"1"},
		"data[ACTIVE]":            {"Y"},
		"data[INSTALLED]":         {"Y"},
		"data[LANGUAGE_ID]":       {"ru"},
		"ts":                      {strconv.FormatInt(p.Now().Unix(), 10)},
		"auth[domain]":            {domain},
		"auth[scope]":             {strings.Join(p.app.Scopes, " ")}, // with spaces only here
		"auth[access_token]":      {access},
		"auth[refresh_token]":     {refresh},
		"auth[expires_in]":        {strconv.Itoa(int(accessAge.Seconds()))},
		"auth[server_endpoint]":   {p.serverEndpoint()},
		"auth[status]":            {statusLocal},
		"auth[client_endpoint]":   {p.endpoint(domain)},
		"auth[member_id]":         {memberID},
		"auth[application_token]": {token},
	}, nil
}

// PostFrame does what the portal does when an administrator opens the page of an application: it
// has the browser post a form with a pair of tokens, which are named unlike those of events, from a
// frame. status is that of the answer.
func (p *Portal) PostFrame(ctx context.Context, client *http.Client, address string) (status int, err error) {
	form, query, err := p.frame()
	if err != nil {
		return 0, err
	}
	return post(ctx, client, address+"?"+query.Encode(), form)
}

// frame returns the form of a frame, and what stands in its address.
func (p *Portal) frame() (form, query url.Values, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.app == nil || p.app.uninstalled {
		return nil, nil, errNoApp
	}
	g := p.grant(webhookUser)
	g.installed = true
	query = url.Values{"DOMAIN": {p.Domain}, "PROTOCOL": {"1"}, "LANG": {"ru"}, "APP_SID": {strings.Repeat("a", 32)}}
	return url.Values{
		"AUTH_ID":           {g.access},
		"AUTH_EXPIRES":      {strconv.Itoa(int(accessAge.Seconds()))},
		"REFRESH_ID":        {g.refresh},
		"SERVER_ENDPOINT":   {p.serverEndpoint()},
		"member_id":         {memberID},
		"status":            {statusLocal},
		"PLACEMENT":         {"DEFAULT"},
		"PLACEMENT_OPTIONS": {"{}"},
	}, query, nil
}

// ClickInApp does what the portal does when a user clicks a client's number, and calls go through
// the application: it registers the call, opens its card, and reports ONEXTERNALCALLSTART to the
// handlers that the application has bound, by a request for each one that has an address, and by
// the queue of offline events. status is that of the last answer; 0 if none was asked for.
func (p *Portal) ClickInApp(
	ctx context.Context, client *http.Client, userID int, phone string, o ClickOptions,
) (callID string, status int, err error) {
	callID, events, err := p.clickedInApp(userID, phone, o)
	for _, event := range events {
		for range o.deliveries() {
			if status, err = post(ctx, client, event.address, event.form); err != nil {
				return callID, status, err
			}
		}
	}
	return callID, status, err
}

// onlineEvent is an event on its way to a handler.
type onlineEvent struct {
	address string
	form    url.Values
}

// clickedInApp registers the call of a click, queues the offline events, and returns the others.
func (p *Portal) clickedInApp(userID int, phone string, o ClickOptions) (id string, events []onlineEvent, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	bound := p.boundTo(callStart)
	if len(bound) == 0 {
		return "", nil, errors.New("bitrix24test: the application has bound no handler to " + callStart)
	}
	call, err := p.clicked(userID, phone, p.app.ClientID, o)
	if err != nil {
		return "", nil, err
	}
	for _, b := range bound {
		if b.address != "" {
			events = append(events, onlineEvent{b.address, p.appEvent(call, phone, b, o)})
			continue
		}
		for range o.deliveries() {
			p.queue(b, p.eventData(call, phone), userID, o.Age)
		}
	}
	return call.CallID, events, nil
}

// appEvent returns the form of ONEXTERNALCALLSTART for a handler of the application. It has tokens
// of the user who clicked, unless the handler was bound for another one.
func (p *Portal) appEvent(call Call, phone string, b binding, o ClickOptions) url.Values {
	form := p.event(call, phone, p.app.Token, o)
	user := b.user
	if user == 0 {
		user = call.UserID
	}
	g := p.grant(user)
	form.Set("auth[access_token]", g.access)
	form.Set("auth[refresh_token]", g.refresh)
	form.Set("auth[expires_in]", strconv.Itoa(int(accessAge.Seconds())))
	form.Set("auth[scope]", strings.Join(p.app.Scopes, ","))
	form.Set("auth[status]", statusLocal)
	if form.Has("event_handler_id") {
		form.Set("event_handler_id", strconv.Itoa(b.id))
	}
	return form
}
