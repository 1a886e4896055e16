package bitrix24

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/outbound"
	"pzbridge/internal/sleep"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// application is a local application of a portal, which takes the place of an inbound webhook. Its
// tokens are a note of the endpoint: they outlive the process, and bridges on one database share
// them.
//
//	Hook (install.go)  ── code, or tokens ─► exchange ─► the note
//	a request          ── expired_token ───► renew ────► exchange ─► the note
type application struct {
	crm.Application
	host     string // of the portal
	endpoint string
	notes    store.Notes
	client   func(secret ...string) *outbound.Client
	// renewing holds one while tokens are exchanged.
	renewing  chan struct{}
	exchanges sync.WaitGroup
}

// tokens are what an application has been given.
type tokens struct {
	Access  string `json:"access"`  // for requests, for an hour
	Refresh string `json:"refresh"` // for the next two, once, for half a year
	User    int    `json:"user"`    // the administrator in whose name requests are made
	// Event comes with the events that the portal sends, as a proof; "" if it is not known.
	Event string `json:"event,omitempty"`
	// Installed tells the installation from others.
	Installed string `json:"installed"`
	// Claim is of the bridge that exchanges Refresh, until ClaimedUntil: if that bridge is killed,
	// another one tries it.
	Claim        string    `json:"claim,omitempty"`
	ClaimedUntil time.Time `json:"claimed_until,omitzero"`
}

const (
	tokensNote = "application"
	// exchangeTime bounds an exchange of tokens.
	exchangeTime = 15 * time.Second
	// claimTime is how long other bridges leave it to the one that has begun it.
	claimTime = 2 * exchangeTime
	// claimPoll is how often they look.
	claimPoll = 200 * time.Millisecond
)

var errNotInstalled = &telephony.Fault{
	Code: telephony.CodePortalInstall, Text: "the application is not installed in the portal yet",
}

// read returns the tokens, and the version of their note. The outcome is Done if there are some.
func (a *application) read(ctx context.Context) (t tokens, version uint64, o store.Outcome) {
	value, version, err := a.notes.Note(ctx, a.endpoint, tokensNote, time.Now())
	switch {
	case ctx.Err() != nil:
		return tokens{}, 0, store.Outcome{}
	case err != nil:
		return tokens{}, 0, store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: err}
	}
	if json.Unmarshal(value, &t) != nil || t.Access == "" {
		return tokens{}, version, store.Outcome{Verdict: store.Misconfigured, Err: errNotInstalled}
	}
	return t, version, store.Outcome{Verdict: store.Done}
}

func (a *application) write(ctx context.Context, t tokens, version uint64) error {
	value, _ := json.Marshal(t) // of texts and a time alone
	return a.notes.SetNote(ctx, a.endpoint, tokensNote, version, value, time.Time{})
}

// renew returns the tokens that follow those that the portal has refused. They are exchanged once
// at a time; what the exchange brings is stored before it is used, also if ctx ends meanwhile.
func (a *application) renew(ctx context.Context, refused string) (tokens, store.Outcome) {
	select {
	case a.renewing <- struct{}{}:
	case <-ctx.Done():
		return tokens{}, store.Outcome{}
	}
	type result struct {
		tokens
		store.Outcome
	}
	done := make(chan result, 1)
	a.exchanges.Go(func() {
		defer func() { <-a.renewing }()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTime+exchangeTime)
		defer cancel()
		t, o := a.renewAlone(ctx, refused)
		done <- result{t, o}
	})
	select {
	case r := <-done:
		return r.tokens, r.Outcome
	case <-ctx.Done():
		return tokens{}, store.Outcome{}
	}
}

// renewAlone exchanges the tokens unless they have changed since, or another bridge does it.
func (a *application) renewAlone(ctx context.Context, refused string) (tokens, store.Outcome) {
	own := rand.Text()
	for {
		t, version, o := a.read(ctx)
		switch {
		case o.Verdict != store.Done:
			return tokens{}, o
		case t.Access != refused: // by another bridge, or it was installed anew
			return t, o
		case t.Claim == own:
			return a.exchangeClaimed(ctx, t, version)
		case t.Claim != "" && time.Until(t.ClaimedUntil) > 0:
			if !sleep.For(ctx, claimPoll) {
				return tokens{}, store.Outcome{}
			}
			continue
		}
		t.Claim, t.ClaimedUntil = own, time.Now().Add(claimTime)
		if err := a.write(ctx, t, version); err != nil && !errors.Is(err, store.ErrChanged) {
			return tokens{}, store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: err}
		}
	}
}

// exchangeClaimed exchanges tokens that have a claim of this bridge.
func (a *application) exchangeClaimed(ctx context.Context, t tokens, version uint64) (tokens, store.Outcome) {
	got, o := a.exchange(ctx, "refresh_token", t.Refresh)
	t.Claim, t.ClaimedUntil = "", time.Time{}
	if o.Verdict == store.Done {
		t.Access, t.Refresh = got.Access, got.Refresh
	}
	err := a.write(ctx, t, version)
	switch {
	case errors.Is(err, store.ErrChanged): // it was installed anew meanwhile
		t, _, o = a.read(ctx)
	case err != nil && o.Verdict == store.Done:
		return tokens{}, store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: err}
	}
	return t, o
}

// install stores the tokens of an installation. Event is "" if the portal has not said it.
func (a *application) install(ctx context.Context, got tokens, event string) error {
	const tries = 10
	for try := 1; ; try++ {
		t, version, o := a.read(ctx)
		if o.Verdict != store.Done && o.Verdict != store.Misconfigured {
			return o.Err
		}
		err := a.write(ctx, tokens{
			Access:    got.Access,
			Refresh:   got.Refresh,
			User:      got.User,
			Event:     cmp.Or(event, t.Event),
			Installed: rand.Text(),
		}, version)
		if !errors.Is(err, store.ErrChanged) || try == tries {
			return err
		}
	}
}

// exchange has the server of Bitrix24 make new tokens of what the application was given: a code, or
// a refresh token. The server knows which application that is of, so that a stranger's is refused.
func (a *application) exchange(ctx context.Context, grant, value string) (got tokens, o store.Outcome) {
	address, err := url.Parse(a.OAuthURL)
	if err != nil {
		return tokens{}, store.Outcome{Verdict: store.Again, Err: errBadURL}
	}
	name := grant
	if grant == "authorization_code" {
		name = "code"
	}
	address.RawQuery = url.Values{
		"grant_type": {grant}, "client_id": {a.ID}, "client_secret": {a.Secret}, name: {value},
	}.Encode()
	request, err := http.NewRequest(http.MethodGet, address.String(), http.NoBody)
	if err != nil {
		return tokens{}, store.Outcome{Verdict: store.Again, Err: errBadURL}
	}
	request.Header.Set("Accept", "application/json")
	client := a.client(a.Secret, value)
	defer client.Close()
	never := func() bool { return false } // a refresh token is good for once
	answer, err := client.Do(ctx, outbound.Request{HTTP: request, MayRedial: never})
	switch {
	case ctx.Err() != nil:
		return tokens{}, store.Outcome{}
	case err != nil:
		return tokens{}, store.Outcome{Verdict: store.Again, Err: err}
	}
	var body struct {
		Access   string `json:"access_token"`
		Refresh  string `json:"refresh_token"`
		Endpoint string `json:"client_endpoint"`
		Error    string `json:"error"`
	}
	_ = json.Unmarshal(answer.Body, &body) // a page of a proxy is none: then the status says all
	switch {
	case body.Error != "" || answer.Status != http.StatusOK:
		verdict, err := exchangeFault(answer.Status, body.Error)
		return tokens{}, store.Outcome{Verdict: verdict, Status: answer.Status, Err: err, RetryAfter: answer.RetryAfter}
	case body.Access == "" || body.Refresh == "":
		return tokens{}, store.Outcome{Verdict: store.Again, Status: answer.Status, Err: errNoTokens}
	case body.Endpoint != "" && !a.isPortal(body.Endpoint):
		return tokens{}, store.Outcome{Verdict: store.Misconfigured, Err: errOtherPortal}
	}
	return tokens{Access: body.Access, Refresh: body.Refresh}, store.Outcome{Verdict: store.Done}
}

// isPortal reports whether an address is of the endpoint's portal.
func (a *application) isPortal(address string) bool {
	u, err := url.Parse(address)
	return err == nil && strings.EqualFold(u.Hostname(), hostname(a.host))
}

func hostname(host string) string { return (&url.URL{Host: host}).Hostname() }

var (
	errNoTokens    = errors.New("the server of Bitrix24 has answered without tokens")
	errOtherPortal = &telephony.Fault{
		Code: telephony.CodePortalInstall, Text: "the tokens are of another portal",
	}
)

// exchangeFault is what an error of the server of Bitrix24 means.
func exchangeFault(status int, code string) (store.Verdict, error) {
	said := telephony.BriefText(code)
	switch strings.ToLower(code) {
	case "invalid_grant", "expired_token", "invalid_token":
		return store.Misconfigured, fault(telephony.CodePortalInstall, "the application is to be installed anew", said)
	case "invalid_client", "wrong_client":
		return store.Misconfigured, fault(telephony.CodePortalClient, "Bitrix24 does not know the application", said)
	case "payment_required":
		return store.Misconfigured, fault(telephony.CodePortalPlan, "the portal denies the request", said)
	case "insufficient_scope", "invalid_scope":
		return store.Misconfigured, fault(telephony.CodePortalScope, "it has too few rights", said)
	}
	if status == http.StatusTooManyRequests {
		return store.Pause, nil
	}
	return store.Again, fault(telephony.CodePortalOAuth, "the server of Bitrix24 has renewed no tokens", said)
}

// authorizeURL is where the administrator lets the application in: the portal leads the browser
// back to the application's address, with a code.
func (a *application) authorizeURL(scheme string) string {
	u := url.URL{
		Scheme: scheme, Host: a.host, Path: "/oauth/authorize/",
		RawQuery: url.Values{"client_id": {a.ID}}.Encode(),
	}
	return u.String()
}
