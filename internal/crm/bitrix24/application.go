package bitrix24

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
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
//	Hook (install.go) ─ code, or tokens ─► exchange ─► the note
//	a request ─ expired_token ─► renew ─► exchange ─► the note
type application struct {
	crm.Application
	host     string // of the portal
	endpoint string
	notes    store.Notes
	client   func(secret ...string) *outbound.Client
	own      string // the name of this process in claims
	// renewing holds one while tokens are renewed.
	renewing chan struct{}

	mu        sync.Mutex // guards the rest
	isClosed  bool
	exchanges sync.WaitGroup
}

// tokens are what an application has been given.
type tokens struct {
	Access  string `json:"access"`  // for requests, for an hour
	Refresh string `json:"refresh"` // for the next two, once, for half a year
	User    int    `json:"user"`    // the administrator in whose name requests are made
	// Event comes with the events that the portal sends, as a proof; "" if it is not known.
	Event string `json:"event,omitempty"`
	// Of is whose they are: those of another portal, or of another application, count for nothing.
	Of        string `json:"of"`
	Installed string `json:"installed"` // tells the installation from others
	// Claim is of the bridge that exchanges Refresh, until ClaimedUntil: if that bridge is killed,
	// another one tries it.
	Claim        string    `json:"claim,omitempty"`
	ClaimedUntil time.Time `json:"claimed_until,omitzero"`
}

const (
	tokensNote = "application"
	// exchangeTime bounds a request for tokens, and keepTime how long it is tried to store what it
	// brings: the database may be away just then.
	exchangeTime, keepTime = 15 * time.Second, 30 * time.Second
	// claimTime is how long other bridges leave an exchange to the one that has begun it.
	claimTime = exchangeTime + keepTime
	// claimPoll is how often they look, and how often it is tried to store.
	claimPoll = 200 * time.Millisecond
	// takeoverWait is how long a refusal is doubted: the bridge whose claim was taken over may be
	// about to store what it got.
	takeoverWait = 2 * time.Second
)

var errNotInstalled = &telephony.Fault{
	Code: telephony.CodePortalInstall, Text: "the application is not installed in the portal yet",
}

// identity tells the application from others.
func (a *application) identity() string { return a.ID + "@" + a.host }

// read returns the tokens, and the version of their note. The outcome is Done if there are some.
func (a *application) read(ctx context.Context) (t tokens, version uint64, o store.Outcome) {
	value, version, err := a.notes.Note(ctx, a.endpoint, tokensNote, time.Now())
	switch {
	case ctx.Err() != nil:
		return tokens{}, 0, store.Outcome{}
	case err != nil:
		return tokens{}, 0, notKept(err)
	}
	if json.Unmarshal(value, &t) != nil || t.Access == "" || t.Of != a.identity() {
		return tokens{}, version, store.Outcome{Verdict: store.Misconfigured, Err: errNotInstalled}
	}
	return t, version, store.Outcome{Verdict: store.Done}
}

// notKept is the outcome when the outbox fails.
func notKept(err error) store.Outcome {
	return store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: err}
}

func (a *application) write(ctx context.Context, t tokens, version uint64) error {
	t.Of = a.identity()
	value, _ := json.Marshal(t) // of texts and a time alone
	return a.notes.SetNote(ctx, a.endpoint, tokensNote, version, value, time.Time{})
}

var (
	errOthersRenew = errors.New("another bridge renews the application's tokens")
	errEnding      = errors.New("the bridge ends, and renews no tokens any more")
)

// renew returns the tokens that follow those that the portal has refused. They are renewed once at
// a time. From the exchange on, it is finished also if ctx ends: what it brings is stored before it
// is used.
func (a *application) renew(ctx context.Context, refused string) (tokens, store.Outcome) {
	select {
	case a.renewing <- struct{}{}:
	case <-ctx.Done():
		return tokens{}, store.Outcome{}
	}
	t, version, o := a.claim(ctx, refused)
	if o.Verdict != store.More {
		<-a.renewing
		return t, o
	}
	type result struct {
		tokens
		store.Outcome
	}
	done := make(chan result, 1)
	isBegun := a.begin(func() {
		defer func() { <-a.renewing }()
		t, o := a.exchangeClaimed(context.WithoutCancel(ctx), t, version)
		done <- result{t, o}
	})
	if !isBegun {
		<-a.renewing
		return tokens{}, store.Outcome{Verdict: store.Later, RetryAfter: time.Second, Err: errEnding}
	}
	select {
	case r := <-done:
		return r.tokens, r.Outcome
	case <-ctx.Done():
		return tokens{}, store.Outcome{}
	}
}

// begin runs an exchange beside its caller, unless the application is closed.
func (a *application) begin(exchange func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.isClosed {
		a.exchanges.Go(exchange)
	}
	return !a.isClosed
}

// close waits for the exchange under way, and lets no other begin: nobody could store what it
// brings.
func (a *application) close() {
	a.mu.Lock()
	a.isClosed = true
	a.mu.Unlock()
	a.exchanges.Wait()
}

// claim claims the exchange for this bridge. The outcome is More if it has it, and Done if the
// tokens have changed since they were refused.
func (a *application) claim(ctx context.Context, refused string) (tokens, uint64, store.Outcome) {
	for giveUp := time.Now().Add(2 * claimTime); ; {
		t, version, o := a.read(ctx)
		left := time.Until(t.ClaimedUntil)
		switch {
		case o.Verdict != store.Done:
			return tokens{}, 0, o
		case t.Access != refused: // by another bridge, or it was installed anew
			return t, version, o
		case t.Claim == a.own: // also one whose request was cut off before its exchange
			return t, version, store.Outcome{Verdict: store.More}
		case t.Claim != "" && left > 0 && left <= claimTime: // a longer one is of a wrong clock
			switch {
			case time.Now().After(giveUp):
				return tokens{}, 0, store.Outcome{Verdict: store.Later, RetryAfter: claimPoll, Err: errOthersRenew}
			case !sleep.For(ctx, claimPoll):
				return tokens{}, 0, store.Outcome{}
			}
			continue
		}
		t.Claim, t.ClaimedUntil = a.own, time.Now().Add(claimTime)
		switch err := a.write(ctx, t, version); {
		case ctx.Err() != nil:
			return tokens{}, 0, store.Outcome{}
		case err != nil && !errors.Is(err, store.ErrChanged):
			return tokens{}, 0, notKept(err)
		}
	}
}

// exchangeClaimed exchanges tokens that have a claim of this bridge, and stores what that brings.
func (a *application) exchangeClaimed(ctx context.Context, t tokens, version uint64) (tokens, store.Outcome) {
	got, o := a.exchange(ctx, "refresh_token", t.Refresh)
	if o.Verdict == store.Misconfigured {
		sleep.For(ctx, takeoverWait)
	}
	return a.keep(ctx, t, version, got, o)
}

// keep stores the outcome of an exchange. What was stored meanwhile counts only if it is newer: the
// claim may have been taken over.
func (a *application) keep(
	ctx context.Context, t tokens, version uint64, got tokens, o store.Outcome,
) (tokens, store.Outcome) {
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	spent := t.Refresh
	for {
		t.Claim, t.ClaimedUntil = "", time.Time{}
		if o.Verdict == store.Done {
			t.Access, t.Refresh = got.Access, got.Refresh
		}
		err := a.write(ctx, t, version)
		switch {
		case err == nil:
			return t, o
		case errors.Is(err, store.ErrChanged):
			stored, newer, found := a.read(ctx)
			switch {
			case found.Verdict == store.Done && stored.Refresh != spent: // also of an installation
				return stored, found
			case found.Verdict == store.Done:
				t, version = stored, newer
			}
		}
		if !sleep.For(ctx, claimPoll) {
			return tokens{}, notKept(err)
		}
	}
}

// install stores the tokens of an installation. Event is "" if the portal has not said it.
func (a *application) install(ctx context.Context, got tokens, event string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	for {
		t, version, o := a.read(ctx)
		if err = o.Err; o.Verdict == store.Done || o.Verdict == store.Misconfigured {
			err = a.write(ctx, tokens{
				Access:    got.Access,
				Refresh:   got.Refresh,
				User:      got.User,
				Event:     cmp.Or(event, t.Event),
				Installed: rand.Text(),
			}, version)
		}
		if err == nil && o.Verdict != store.CutOff {
			return nil
		}
		if !sleep.For(ctx, claimPoll) {
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
		return tokens{}, store.Outcome{Verdict: store.Again, Err: errSlowOAuth}
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
	errSlowOAuth = &telephony.Fault{
		Code: telephony.CodePortalOAuth, Text: "the server of Bitrix24 does not answer in time",
	}
	errNoTokens = &telephony.Fault{
		Code: telephony.CodePortalOAuth, Text: "the server of Bitrix24 has answered without tokens",
	}
	errOtherPortal = &telephony.Fault{
		Code: telephony.CodePortalOther, Text: "the tokens are of another portal",
	}
)

// errorCode is the form of an error of the server of Bitrix24. What has another form is not shown:
// a proxy may repeat the request there, which has secrets.
var errorCode = regexp.MustCompile(`^[A-Za-z_]{1,40}$`)

// exchangeFault is what an error of the server of Bitrix24 means.
func exchangeFault(status int, code string) (store.Verdict, error) {
	said := ""
	if errorCode.MatchString(code) {
		said = code
	}
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
