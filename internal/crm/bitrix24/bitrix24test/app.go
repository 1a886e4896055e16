package bitrix24test

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

const (
	// memberID identifies the portal, whatever its address.
	memberID = "d41d8cd98f00b204e9800998ecf8427e"
	// statusLocal is the status of a local application.
	statusLocal = "L"
	// accessAge and refreshAge are how long tokens are valid.
	accessAge  = time.Hour
	refreshAge = 180 * 24 * time.Hour
)

// App is a local application that uses the API only, as the administrator creates it.
type App struct {
	ClientID     string
	ClientSecret string
	Scopes       []string
	// Token is the application_token of its events. Install makes one if it is empty.
	Token string
}

// application is an application that was installed.
type application struct {
	App
	uninstalled bool
}

// grant is a pair of tokens of an application.
type grant struct {
	app             *application
	user            int // whose rights it has
	access, refresh string
	issued, expires time.Time // expires is the access token's
	installed       bool      // by PostInstall: the refresh token may be used at once, to prove it
	refused         bool      // the access token, as expired
	used, lost      bool      // the refresh token, and with it the answer
}

// Install makes a local application, in place of the former one if there is any, whose tokens and
// event handlers it ends. It has no tokens before PostInstall or AuthorizeCode.
func (p *Portal) Install(app App) {
	p.Uninstall()
	p.mu.Lock()
	defer p.mu.Unlock()
	app.Scopes = slices.Clone(app.Scopes)
	if app.Token == "" {
		app.Token = fmt.Sprintf("%032x", p.next())
	}
	p.app = &application{App: app}
}

// Uninstall deletes the application, with its event handlers and offline events. A request with a
// valid access token gets 401 APPLICATION_NOT_FOUND, and a refresh invalid_grant.
func (p *Portal) Uninstall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.app != nil {
		p.app.uninstalled = true
	}
	p.bindings, p.offline = nil, nil
}

// ExpireTokens makes all access tokens expire now.
func (p *Portal) ExpireTokens() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.grants {
		g.expires = p.Now()
	}
}

// Tokens returns the last pair of tokens that the application was given for the administrator;
// empty if there is none.
func (p *Portal) Tokens() (access, refresh string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.grants {
		if g.app == p.app && g.user == webhookUser {
			access, refresh = g.access, g.refresh
		}
	}
	return access, refresh
}

// grant gives the application a pair of tokens with a user's rights.
func (p *Portal) grant(user int) *grant {
	n, now := p.next(), p.Now()
	g := &grant{
		app: p.app, user: user, issued: now, expires: now.Add(accessAge),
		access: fmt.Sprintf("access%026x", n), refresh: fmt.Sprintf("refresh%025x", n),
	}
	p.grants = append(p.grants, g)
	return g
}

// findGrant returns the first grant that is the wanted one, nil if there is none.
func (p *Portal) findGrant(is func(*grant) bool) *grant {
	i := slices.IndexFunc(p.grants, is)
	if i < 0 {
		return nil
	}
	return p.grants[i]
}

// authorize finds the webhook or the application of a request, and its user, or refuses it.
func (p *Portal) authorize(q *query, now time.Time) *answer {
	var a answer
	switch {
	case q.code == "" && q.token == "":
		a = refused(http.StatusUnauthorized, "NO_AUTH_FOUND", "Wrong authorization data")
	case q.code == "":
		return p.authorizeApp(q, now)
	case q.user != webhookUser || q.code != p.code || p.switches.revoked:
		a = refused(http.StatusUnauthorized, "INVALID_CREDENTIALS", "Invalid request credentials")
	default:
		return nil
	}
	return &a
}

// authorizeApp finds the application and the user of an access token, or refuses it.
func (p *Portal) authorizeApp(q *query, now time.Time) *answer {
	g := p.findGrant(func(g *grant) bool { return g.access == q.token })
	var a answer
	switch {
	case g == nil:
		a = refused(http.StatusUnauthorized, "invalid_token", "Unable to get application by token")
	case !now.Before(g.expires):
		g.refused = true
		a = refused(http.StatusUnauthorized, "expired_token", "The access token provided has expired")
	case g.app.uninstalled:
		a = refused(http.StatusUnauthorized, "APPLICATION_NOT_FOUND", "Application not found")
	case p.user(g.user).Inactive:
		a = refused(http.StatusUnauthorized, "authorization_error", "Unable to authorize user")
	default:
		q.app, q.user = g.app, g.user
		return nil
	}
	return &a
}

// isAdmin reports whether a request has an administrator's rights.
func (q query) isAdmin() bool {
	return q.user == webhookUser
}

// forApp makes a method one for applications, which refuses the webhook.
func forApp(handle func(*Portal, query) answer) func(*Portal, query) answer {
	return func(p *Portal, q query) answer {
		if q.app == nil {
			return wrongAuthType()
		}
		return handle(p, q)
	}
}

// endpoint returns the address of the REST interface, as an application is told it.
func (p *Portal) endpoint(domain string) string {
	if p.Endpoint != "" && domain == p.Domain {
		return p.Endpoint
	}
	return "https://" + domain + "/rest/"
}

// serverEndpoint returns the address of the authorization server's REST interface.
func (p *Portal) serverEndpoint() string {
	return "https://" + p.ServerDomain + "/rest/"
}
