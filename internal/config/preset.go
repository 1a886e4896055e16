package config

import (
	"cmp"
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

	// defaultEvents is the default of EVENTS, as the tag of endpointText has it. With a preset it
	// is callEvents, since the others have no place there.
	defaultEvents = "call.*,sms.*,pz.event"
	callEvents    = "call.*"
)

// hasPreset reports whether the endpoint speaks a CRM's own interface.
func (t endpointText) hasPreset() bool { return t.Preset != "" }

// presetVariables are those that have a meaning only with a preset.
func (t endpointText) presetVariables() []setting {
	return []setting{
		{"USERS", t.Users},
		{"DEFAULT_USER", t.DefaultUser},
		{"DEFAULT_USER_BY_LINE", t.DefaultUserByLine},
		{"MISSED", t.Missed},
		{"PBX_DOMAIN", t.PBXDomain},
		{"DEFAULT_LINE", t.DefaultLine},
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
		p.add(prefix+"PRESET", "must be megafon, or be unset for a CRM that takes webhooks; it is %q", t.Preset)
		return crm.Settings{}
	}
	if t.Format != string(store.FormatStandard) {
		p.add(prefix+"FORMAT", "has no meaning with %sPRESET: this interface has a form of its own", prefix)
	}
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
	if t.DefaultLine != "" && plan.Client(t.DefaultLine) == "" {
		p.add(prefix+"DEFAULT_LINE", "must be a number of the company, such as +73432000000; it is %q", t.DefaultLine)
	}
	return crm.Settings{Preset: preset, People: people, Domain: domain, DefaultLine: t.DefaultLine}
}

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
		case key == "":
			p.add(variable, "%q is no number", line)
		case isTwice:
			p.add(variable, "has the number %s twice", line)
		default:
			users[key] = name
		}
	}
	return users
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

// parseKey parses the key of a CRM with a preset.
func parseKey(prefix, key string, p *problems) [][]byte {
	switch {
	case key == "":
		p.add(prefix+"SECRET", "is missing: it is the key that the CRM's settings of the virtual PBX show or take")
	case len(key) < minKey:
		p.add(prefix+"SECRET", "must have at least %d characters", minKey)
	}
	return [][]byte{[]byte(key)}
}

// parseCallEvents parses the filter of an endpoint with a preset.
func parseCallEvents(variable, list string, p *problems) store.Filter {
	if list == defaultEvents {
		list = callEvents
	}
	filter, err := store.ParseFilter(list)
	if err != nil {
		p.add(variable, "%v", err)
	}
	for _, pattern := range filter {
		if !strings.HasPrefix(pattern, "call.") {
			p.add(variable, "may hold events of calls only (call.*): this CRM's interface has no place for %s", pattern)
		}
	}
	return filter
}
