package bitrix24test

import "slices"

// allScopes are the scopes of the webhook, unless WithoutScope removes some.
var allScopes = []string{"crm", "telephony", "user"}

// switches are what is wrong with the portal.
type switches struct {
	revoked, freePlan, appOnly         bool
	noStatistics, refuseLeads, textIDs bool
	without                            []string // scopes
	fail, lose                         int      // countdowns; 0 is off

	unpaid, wrongClient, noReserving bool
	failToken, loseToken             int // countdowns
}

func (p *Portal) set(change func(*switches)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.switches)
}

// Revoke deletes the webhook until Restore: its requests get 401 INVALID_CREDENTIALS. A request
// that has neither a webhook in its path nor an access token always gets 401 NO_AUTH_FOUND.
func (p *Portal) Revoke() {
	p.set(func(s *switches) { s.revoked = true })
}

// Restore makes the webhook valid again.
func (p *Portal) Restore() {
	p.set(func(s *switches) { s.revoked = false })
}

// WithoutScope leaves the webhook all scopes (crm, telephony, and user) but these; without any, it
// has them all again. The methods of a missing scope answer 403 insufficient_scope. An application
// has the scopes of its App.
func (p *Portal) WithoutScope(names ...string) {
	p.set(func(s *switches) { s.without = slices.Clone(names) })
}

// FreePlan makes the portal one without REST: 403 ACCESS_DENIED.
func (p *Portal) FreePlan(on bool) {
	p.set(func(s *switches) { s.freePlan = on })
}

// AppOnly makes register and finish accept applications alone, and refuse the webhook:
// 403 WRONG_AUTH_TYPE.
func (p *Portal) AppOnly(on bool) {
	p.set(func(s *switches) { s.appOnly = on })
}

// ForbidStatistics takes the right to see the call statistics from the webhook's user:
// 403 ACCESS_DENIED.
func (p *Portal) ForbidStatistics(on bool) {
	p.set(func(s *switches) { s.noStatistics = on })
}

// RefuseLeads makes the portal register a call without the lead that CRM_CREATE asks for, and say
// so in LEAD_CREATION_ERROR.
func (p *Portal) RefuseLeads(on bool) {
	p.set(func(s *switches) { s.refuseLeads = on })
}

// TextIDs makes the portal give the identifiers of CRM entities as strings instead of numbers.
func (p *Portal) TextIDs(on bool) {
	p.set(func(s *switches) { s.textIDs = on })
}

// Fail makes the portal answer the next n requests with 500, and not process them. A request that
// the bucket has no room for does not count.
func (p *Portal) Fail(n int) {
	p.set(func(s *switches) { s.fail = n })
}

// Lose makes the portal process the nth request from now, 1 being the next one, and close the
// connection instead of answering.
func (p *Portal) Lose(n int) {
	p.set(func(s *switches) { s.lose = n })
}

// RequirePayment makes the authorization server give no tokens: PAYMENT_REQUIRED.
func (p *Portal) RequirePayment(on bool) {
	p.set(func(s *switches) { s.unpaid = on })
}

// WrongClient makes the authorization server answer wrong_client, with the status 200, as it does
// to some clients that it does not know.
func (p *Portal) WrongClient(on bool) {
	p.set(func(s *switches) { s.wrongClient = on })
}

// FailToken makes the authorization server answer the next n requests with 500, and not process
// them.
func (p *Portal) FailToken(n int) {
	p.set(func(s *switches) { s.failToken = n })
}

// LoseToken makes the authorization server process the nth request from now, 1 being the next one,
// and close the connection instead of answering.
func (p *Portal) LoseToken(n int) {
	p.set(func(s *switches) { s.loseToken = n })
}

// WithoutReserving makes the portal's plan one without clear=0 in event.offline.get:
// 403 WRONG_LICENSE.
func (p *Portal) WithoutReserving(on bool) {
	p.set(func(s *switches) { s.noReserving = on })
}

// scopes returns the webhook's scopes.
func (p *Portal) scopes() []string {
	return slices.DeleteFunc(slices.Clone(allScopes), func(name string) bool {
		return slices.Contains(p.switches.without, name)
	})
}

func (p *Portal) scope(q query) answer {
	if q.app != nil {
		return done(slices.Clone(q.app.Scopes))
	}
	return done(p.scopes())
}
