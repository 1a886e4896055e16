package bitrix24test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// codeAge is how long an authorization code is valid.
	codeAge = 30 * time.Second
	// longUnused is the age from which a refresh may serve only to keep the refresh token valid.
	longUnused = 30 * 24 * time.Hour
)

// code is an authorization code.
type code struct {
	text   string
	app    *application
	user   int
	issued time.Time
	used   bool
}

// TokenRequest is a request that came to the authorization server.
type TokenRequest struct {
	Time   time.Time
	Grant  string // the grant_type
	Status int
	Error  string // empty if tokens were given
	Lost   bool   // processed, but not answered
}

// TokenRequests returns the requests that came to the authorization server in order of arrival, and
// a channel that closes when the next one arrives.
func (p *Portal) TokenRequests() ([]TokenRequest, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.tokenRequests), p.tokenArrived
}

// OAuth returns the authorization server, an http.Handler for /oauth/token/.
func (p *Portal) OAuth() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/oauth/token/{$}", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm() // what is wrong with it is missing
		logged, text := p.processToken(r.Form)
		if logged.Lost {
			panic(http.ErrAbortHandler) // net/http closes the connection
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(logged.Status)
		_, _ = w.Write(text)
	})
	return mux
}

// processToken answers a request for tokens, and logs it.
func (p *Portal) processToken(form url.Values) (logged TokenRequest, text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := false
	if p.switches.loseToken > 0 {
		p.switches.loseToken--
		lost = p.switches.loseToken == 0
	}
	a := p.token(form, lost)
	logged = TokenRequest{Time: p.Now(), Grant: form.Get("grant_type"), Status: a.status, Lost: lost}
	logged.Error, _ = a.body["error"].(string)
	text, err := json.Marshal(a.body)
	if err != nil {
		panic(fmt.Sprintf("bitrix24test: the answer of the authorization server: %v", err))
	}
	p.tokenRequests = append(p.tokenRequests, logged)
	close(p.tokenArrived)
	p.tokenArrived = make(chan struct{})
	return logged, text
}

// token gives tokens, if the server is able and willing to. lost is whether the answer will be.
func (p *Portal) token(form url.Values, lost bool) answer {
	id, secret := form.Get("client_id"), form.Get("client_secret")
	parameters := map[string]string{"refresh_token": "refresh_token", "authorization_code": "code"}
	parameter := parameters[form.Get("grant_type")]
	switch {
	case p.switches.failToken > 0:
		p.switches.failToken--
		return refused(http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", "Internal server error")
	case p.switches.wrongClient:
		return refused(http.StatusOK, "wrong_client", "Wrong client")
	case p.app == nil || id != p.app.ClientID || secret != p.app.ClientSecret:
		return refused(http.StatusBadRequest, "invalid_client", "Invalid client")
	case parameter == "":
		return refused(http.StatusBadRequest, "invalid_request", "Invalid grant_type parameter or parameter missing")
	case form.Get(parameter) == "":
		return refused(http.StatusBadRequest, "invalid_request", fmt.Sprintf("No %q parameter found", parameter))
	case p.switches.unpaid:
		return refused(http.StatusBadRequest, "PAYMENT_REQUIRED", "Payment required")
	case parameter == "code":
		return p.exchange(form.Get("code"))
	}
	return p.refresh(form.Get("refresh_token"), lost)
}

func invalidGrant() answer {
	return refused(http.StatusBadRequest, "invalid_grant", "Invalid grant")
}

// refresh gives a new pair of tokens for a refresh token, which is valid only once.
func (p *Portal) refresh(token string, lost bool) answer {
	g := p.findGrant(func(g *grant) bool { return g.refresh == token })
	if g == nil {
		return invalidGrant()
	}
	age := p.Now().Sub(g.issued)
	switch {
	case g.used && !g.lost:
		p.fault("The refresh token %s is used again.", token)
	case !g.refused && !g.installed && age < longUnused:
		p.fault("The refresh token %s is used before the access token was refused as expired.", token)
	}
	if g.used || g.app.uninstalled || age >= refreshAge {
		return invalidGrant()
	}
	g.used, g.lost = true, lost
	renewed := p.grant(g.user)
	a := p.tokens(renewed)
	a.body["expires"] = renewed.expires.Unix()
	a.body["user_id"] = renewed.user
	return a
}

// exchange gives the first pair of tokens for an authorization code.
func (p *Portal) exchange(text string) answer {
	i := slices.IndexFunc(p.codes, func(c *code) bool { return c.text == text })
	if i < 0 {
		return invalidGrant()
	}
	c := p.codes[i]
	if c.used || c.app.uninstalled || p.Now().Sub(c.issued) > codeAge {
		return invalidGrant()
	}
	c.used = true
	return p.tokens(p.grant(c.user))
}

// tokens answers with a pair of tokens.
func (p *Portal) tokens(g *grant) answer {
	return answer{status: http.StatusOK, body: map[string]any{
		"access_token": g.access, "refresh_token": g.refresh, "expires_in": int(accessAge.Seconds()),
		"client_endpoint": p.endpoint(p.Domain), "server_endpoint": p.serverEndpoint(), "domain": p.ServerDomain,
		"member_id": memberID, "scope": strings.Join(g.app.Scopes, ","), "status": statusLocal,
	}}
}

// AuthorizeCode returns the code that the administrator's browser gets at /oauth/authorize/. It is
// valid once, for 30 seconds; empty if no application is installed.
func (p *Portal) AuthorizeCode() string {
	return p.AuthorizeCodeOf(webhookUser)
}

// AuthorizeCodeOf does the same for another user, whose rights the tokens have.
func (p *Portal) AuthorizeCodeOf(userID int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.app == nil || p.app.uninstalled {
		return ""
	}
	c := &code{text: fmt.Sprintf("code%028x", p.next()), app: p.app, user: userID, issued: p.Now()}
	p.codes = append(p.codes, c)
	return c.text
}

// RedirectQuery returns the query with which the portal sends the browser back to the application
// after /oauth/authorize/; state is what the application gave.
func (p *Portal) RedirectQuery(code, state string) url.Values {
	p.mu.Lock()
	defer p.mu.Unlock()
	query := url.Values{
		"code": {code}, "state": {state}, "domain": {p.Domain}, "member_id": {memberID},
		"server_domain": {p.ServerDomain},
	}
	if p.app != nil {
		query.Set("scope", strings.Join(p.app.Scopes, ","))
	}
	return query
}
