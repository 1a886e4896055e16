package config

import (
	"cmp"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"pzbridge/internal/crm"
	"pzbridge/internal/phone"
	"pzbridge/outbox/store"
)

const (
	// minKey is the least length of a CRM's key in characters: a shorter one could not be told from
	// ordinary text, and would be shown where the CRM repeats it.
	minKey = 6

	defaultMissed = string(crm.MissedResponsible)
	defaultDomain = "pzbridge"
	defaultCreate = string(crm.CreateIncoming)

	// A portal of Bitrix24 takes two requests a second: more at once would wait.
	portalConcurrency, portalRate = "2", "2"

	// defaultEvents is the default of EVENTS, as the tag of endpointText has it. With a preset it
	// is callEvents, since the others have no place there.
	defaultEvents = "call.*,sms.*,pz.event"
	callEvents    = "call.*"

	// defaultConcurrency is the default of CONCURRENCY, as that tag has it.
	defaultConcurrency = "16"
)

// eventsOf are the events that have a place in the interface of a preset.
var eventsOf = map[crm.Preset]store.Filter{
	crm.Bitrix24: {"call.*", "sms.*"},
	crm.MegaFon:  {"call.*"},
}

// hasPreset reports whether the endpoint speaks a CRM's own interface.
func (t endpointText) hasPreset() bool { return t.Preset != "" }

// setPresetDefaults replaces defaults that have another value with a preset.
func (t *endpointText) setPresetDefaults() {
	if places := eventsOf[crm.Preset(t.Preset)]; places != nil && t.Events == defaultEvents {
		t.Events = strings.Join(places, ",")
	}
	if t.Preset != string(crm.Bitrix24) {
		return
	}
	if t.Concurrency == defaultConcurrency {
		t.Concurrency = portalConcurrency
	}
	t.Rate = cmp.Or(t.Rate, portalRate)
}

// presetVariables are those that have a meaning only with a preset.
func (t endpointText) presetVariables() []setting {
	return []setting{
		{"USERS", t.Users},
		{"DEFAULT_USER", t.DefaultUser},
		{"DEFAULT_USER_BY_LINE", t.DefaultUserByLine},
		{"MISSED", t.Missed},
		{"PBX_DOMAIN", t.PBXDomain},
		{"DEFAULT_LINE", t.DefaultLine},
		{"CRM_CREATE", t.CRMCreate},
		{"CLIENT_ID", t.ClientID},
		{"CLIENT_SECRET", t.ClientSecret},
		{"OAUTH_URL", t.OAuthURL},
	}
}

// parsePreset parses and checks the variables of an endpoint's preset. It returns the zero value if
// the endpoint has none, or a wrong one. The plan is nil if PHONE_REGION is wrong.
func (t endpointText) parsePreset(prefix string, plan *phone.Plan, p *problems) crm.Settings {
	preset := crm.Preset(t.Preset)
	if !t.hasPreset() {
		for _, v := range t.presetVariables() {
			if v.value != "" {
				p.add(prefix+v.name, "has a meaning only with %sPRESET", prefix)
			}
		}
		return crm.Settings{}
	}
	if !slices.Contains(crm.Presets, preset) {
		p.add(prefix+"PRESET", "must be bitrix24 or megafon, or be unset for a CRM that takes webhooks; it is %q",
			t.Preset)
		return crm.Settings{}
	}
	if t.Format != string(store.FormatStandard) {
		p.add(prefix+"FORMAT", "has no meaning with %sPRESET: this interface has a form of its own", prefix)
	}
	t.checkOfPreset(preset, prefix, p)
	if plan == nil {
		return crm.Settings{}
	}
	people := crm.People{
		Users:   parseUsers(prefix+"USERS", t.Users, plan, p),
		Default: strings.TrimSpace(t.DefaultUser),
		Missed:  crm.Missed(cmp.Or(t.Missed, defaultMissed)),
		Plan:    plan,
	}
	people.DefaultByLine = parseByLine(prefix+"DEFAULT_USER_BY_LINE", t.DefaultUserByLine, plan, p)
	if !slices.Contains(crm.MissedPolicies, people.Missed) {
		p.add(prefix+"MISSED", "must be responsible, last or default; it is %q", t.Missed)
	}
	domain := cmp.Or(t.PBXDomain, defaultDomain)
	if !domainShape.MatchString(domain) {
		p.add(prefix+"PBX_DOMAIN", "may hold letters, digits, dots and hyphens only, such as firm.megapbx.ru; it is %q",
			t.PBXDomain)
	}
	if t.DefaultLine != "" && !isWholeNumber(t.DefaultLine, plan) {
		p.add(prefix+"DEFAULT_LINE", "must be a number of the company, such as +73432000000; it is %q", t.DefaultLine)
	}
	for _, list := range []struct {
		name  string
		users map[string]string
	}{{"USERS", people.Users}, {"DEFAULT_USER_BY_LINE", people.DefaultByLine}} {
		for _, name := range slices.Sorted(maps.Values(list.users)) {
			if preset == crm.Bitrix24 && !isPortalUser(name) {
				p.add(prefix+list.name, "must name users of the portal by number or e-mail address; one is %q", name)
			}
		}
	}
	create := crm.Create(cmp.Or(t.CRMCreate, defaultCreate))
	if !slices.Contains(crm.Creates, create) {
		p.add(prefix+"CRM_CREATE", "must be incoming, always or never; it is %q", t.CRMCreate)
	}
	return crm.Settings{
		Preset:      preset,
		People:      people,
		Create:      create,
		Application: t.application(),
		Domain:      domain,
		DefaultLine: t.DefaultLine,
	}
}

// checkOfPreset checks what only one of the presets has, and the addresses of a portal of Bitrix24.
func (t endpointText) checkOfPreset(preset crm.Preset, prefix string, p *problems) {
	others := map[crm.Preset][]setting{
		crm.Bitrix24: {{"PBX_DOMAIN", t.PBXDomain}, {"DEFAULT_LINE", t.DefaultLine}, {"SECRET", t.Secret}},
		crm.MegaFon: {
			{"CRM_CREATE", t.CRMCreate},
			{"CLIENT_ID", t.ClientID},
			{"CLIENT_SECRET", t.ClientSecret},
			{"OAUTH_URL", t.OAuthURL},
		},
	}
	for _, v := range others[preset] {
		if v.value != "" {
			p.add(prefix+v.name, "has no meaning with %sPRESET=%s", prefix, preset)
		}
	}
	if preset != crm.Bitrix24 {
		return
	}
	if t.DefaultUser != "" && !isPortalUser(t.DefaultUser) {
		p.add(prefix+"DEFAULT_USER", "must be the number of a user of the portal, or an e-mail address; it is %q",
			t.DefaultUser)
	}
	t.checkApplication(prefix, p)
	u, err := url.Parse(t.URL)
	switch isWebhook := err == nil && webhookShape.MatchString(u.Path); {
	case t.URL == "" || err != nil:
	case t.ClientID == "" && !isWebhook:
		p.add(prefix+"URL", "must be the whole address of an inbound webhook of Bitrix24, "+
			"such as https://firm.bitrix24.ru/rest/1/code/, "+
			"or that of the portal, such as https://firm.bitrix24.ru, with %sCLIENT_ID of a local application", prefix)
	case t.ClientID != "" && isWebhook:
		p.add(prefix+"URL", "is that of an inbound webhook, and %sCLIENT_ID is of a local application: "+
			"set the address of the portal alone, such as https://firm.bitrix24.ru, or remove CLIENT_ID", prefix)
	case t.ClientID != "" && (u.RawQuery != "" || !portalShape.MatchString(u.Path)):
		p.add(prefix+"URL", "must be the address of the portal alone, such as https://firm.bitrix24.ru")
	}
}

// defaultOAuthURL is where Bitrix24 exchanges the tokens of an application, for all portals.
const defaultOAuthURL = "https://oauth.bitrix.info/oauth/token/"

// application returns the local application of an endpoint, the zero value if it has none.
func (t endpointText) application() crm.Application {
	if t.ClientID == "" {
		return crm.Application{}
	}
	return crm.Application{
		ID: t.ClientID, Secret: t.ClientSecret, OAuthURL: cmp.Or(strings.TrimSpace(t.OAuthURL), defaultOAuthURL),
	}
}

// checkApplication checks the variables of a local application of Bitrix24.
func (t endpointText) checkApplication(prefix string, p *problems) {
	switch {
	case t.ClientID == "" && t.ClientSecret != "":
		p.add(prefix+"CLIENT_ID", "is missing: the portal shows it beside the key of the local application")
	case t.ClientID != "" && t.ClientSecret == "":
		p.add(prefix+"CLIENT_SECRET", "is missing: it is the key that the portal shows beside the CLIENT_ID")
	case t.ClientID != "" && !clientIDShape.MatchString(t.ClientID):
		p.add(prefix+"CLIENT_ID", "may hold letters, digits and . _ - only, such as local.68a1b2c3d4e5f6.01234567; "+
			"it is %q", t.ClientID)
	case t.ClientID != "" && len(t.ClientSecret) < minKey:
		p.add(prefix+"CLIENT_SECRET", "must have at least %d characters", minKey)
	case t.ClientID == "" && t.OAuthURL != "":
		p.add(prefix+"OAUTH_URL", "has a meaning only with %sCLIENT_ID", prefix)
	}
	if t.OAuthURL == "" {
		return
	}
	u, err := url.Parse(parseEndpointURL(prefix+"OAUTH_URL", t.OAuthURL, p))
	if err == nil && u.RawQuery != "" {
		p.add(prefix+"OAUTH_URL", "has a ?, and what stands behind it is what the bridge sends: remove it")
	}
}

// isPortalUser reports whether a portal of Bitrix24 can know a user by a name: a number, or an
// e-mail address.
func isPortalUser(name string) bool {
	return strings.Contains(name, "@") || strings.Trim(name, "0123456789") == ""
}

// webhookShape is the path of an inbound webhook: /rest/, the number of a user, and the code.
var webhookShape = regexp.MustCompile(`^(/.*)?/rest/[0-9]+/[^/]+/?$`)

// portalShape is the path of a portal, with or without that of its REST interface.
var portalShape = regexp.MustCompile(`^/?$|/rest/?$`)

var clientIDShape = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

var domainShape = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

// parseUsers parses a list such as 101=anna,102=ivan.
func parseUsers(variable, list string, plan *phone.Plan, p *problems) map[string]string {
	users := map[string]string{}
	for extension, name := range pairs(variable, list, "101=anna,102=ivan", p) {
		_, isTwice := users[extension]
		switch {
		case !plan.IsInternal(extension):
			p.add(variable, "%q is no extension: it must have at most %d digits (INTERNAL_DIGITS)",
				extension, plan.InternalDigits())
		case isTwice:
			p.add(variable, "has the extension %s twice", extension)
		default:
			users[extension] = name
		}
	}
	return users
}

// parseByLine parses a list such as +73432723033=anna.
func parseByLine(variable, list string, plan *phone.Plan, p *problems) map[string]string {
	users := map[string]string{}
	for line, name := range pairs(variable, list, "+73432723033=anna", p) {
		key := plan.Client(line)
		_, isTwice := users[key]
		switch {
		case !isWholeNumber(line, plan):
			p.add(variable, "%q is no number of the company", line)
		case isTwice:
			p.add(variable, "has the number %s twice", line)
		default:
			users[key] = name
		}
	}
	return users
}

// isWholeNumber reports whether a text is a number, and no extension.
func isWholeNumber(number string, plan *phone.Plan) bool {
	return plan.Client(number) != "" && !plan.IsInternal(number)
}

// pairs yields the parts of a comma-separated list of name=value.
func pairs(variable, list, example string, p *problems) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		if list == "" {
			return
		}
		for pair := range strings.SplitSeq(list, ",") {
			name, value, found := strings.Cut(pair, "=")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			if !found || name == "" || value == "" {
				p.add(variable, "must be a list such as %s; a part of it is %q", example, strings.TrimSpace(pair))
				return
			}
			if !yield(name, value) {
				return
			}
		}
	}
}

// parseKey parses the key of a CRM with a preset. That of Bitrix24 is a part of the address, or
// that of its application.
func (t endpointText) parseKey(prefix string, p *problems) [][]byte {
	key := t.Secret
	switch {
	case t.Preset == string(crm.Bitrix24):
		return [][]byte{[]byte(cmp.Or(t.ClientSecret, t.URL))}
	case key == "":
		p.add(prefix+"SECRET", "is missing: it is the key that the CRM's settings of the virtual PBX show or take")
	case len(key) < minKey:
		p.add(prefix+"SECRET", "must have at least %d characters", minKey)
	}
	return [][]byte{[]byte(key)}
}

// parsePresetEvents parses the filter of an endpoint with a preset.
func (t endpointText) parsePresetEvents(variable string, p *problems) store.Filter {
	filter, err := store.ParseFilter(t.Events)
	if err != nil {
		p.add(variable, "%v", err)
	}
	places := eventsOf[crm.Preset(t.Preset)]
	for _, pattern := range filter {
		kind, _, _ := strings.Cut(pattern, ".")
		if len(places) > 0 && !slices.Contains(places, kind+".*") {
			p.add(variable, "may hold %s only: this CRM's interface has no place for %s",
				strings.Join(places, " and "), pattern)
		}
	}
	return filter
}
