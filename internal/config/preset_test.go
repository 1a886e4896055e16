package config

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"pzbridge/internal/crm"
	"pzbridge/outbox/store"
)

// withPreset is the smallest configuration of a CRM with a preset, changed as that of minimal.
func withPreset(changes ...string) map[string]string {
	return minimal(append([]string{"ENDPOINT_0_PRESET=megafon", "ENDPOINT_0_SECRET=k3y-of-the-crm"}, changes...)...)
}

func TestPresetHasDefaults(t *testing.T) {
	cfg, err := Load(withPreset())
	if err != nil {
		t.Fatal(err)
	}
	with := cfg.CRMs["crm"]
	if with.Preset != crm.MegaFon || with.Domain != "pzbridge" || with.People.Missed != crm.MissedResponsible {
		t.Errorf("the settings are %+v", with)
	}
	e := cfg.Endpoints[0]
	if string(e.Secrets[0]) != "k3y-of-the-crm" || !slices.Equal(e.Events, store.Filter{"call.*"}) {
		t.Errorf("the endpoint has %q and %q", e.Secrets, e.Events)
	}
	if err := store.ValidateEndpoints(cfg.Endpoints); err != nil {
		t.Error(err)
	}
	if cfg, err := Load(minimal()); err != nil || len(cfg.CRMs) != 0 {
		t.Errorf("without a preset there are %+v (%v)", cfg.CRMs, err)
	}
}

func TestPeopleAreParsed(t *testing.T) {
	cfg, err := Load(withPreset("ENDPOINT_0_USERS= 101=anna ,\n102 = ivan@firm.ru", "ENDPOINT_0_DEFAULT_USER=anna",
		"ENDPOINT_0_DEFAULT_USER_BY_LINE=8 343 272-30-33=102", "ENDPOINT_0_MISSED=last"))
	if err != nil {
		t.Fatal(err)
	}
	p := cfg.CRMs["crm"].People
	if !maps.Equal(p.Users, map[string]string{"101": "anna", "102": "ivan@firm.ru"}) || p.Default != "anna" ||
		!maps.Equal(p.DefaultByLine, map[string]string{"+73432723033": "102"}) || p.Missed != crm.MissedLast {
		t.Errorf("the people are %+v", p)
	}
}

const portal = "ENDPOINT_0_URL=https://firm.bitrix24.ru/rest/1/s3cretcode/"

func TestPortalHasDefaults(t *testing.T) {
	cfg, err := Load(minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET"))
	if err != nil {
		t.Fatal(err)
	}
	e, with := cfg.Endpoints[0], cfg.CRMs["crm"]
	if e.Concurrency != 2 || e.Rate != 2 || with.Preset != crm.Bitrix24 || with.Create != crm.CreateIncoming ||
		!slices.Equal(e.Events, store.Filter{"call.*", "sms.*"}) {
		t.Errorf("the endpoint is %+v, its settings %+v", e, with)
	}
	if err := store.ValidateEndpoints(cfg.Endpoints); err != nil {
		t.Error(err)
	}
}

// withApplication is the smallest configuration of a portal with a local application.
func withApplication(changes ...string) map[string]string {
	return minimal(append([]string{
		"ENDPOINT_0_PRESET=bitrix24", "ENDPOINT_0_SECRET", "ENDPOINT_0_URL=https://firm.bitrix24.ru",
		"ENDPOINT_0_CLIENT_ID=local.1", "ENDPOINT_0_CLIENT_SECRET=s3cret-key",
	}, changes...)...)
}

func TestApplicationHasDefaults(t *testing.T) {
	for _, address := range []string{"https://firm.bitrix24.ru", "https://firm.bitrix24.ru/", "https://firm.ru/rest/"} {
		cfg, err := Load(withApplication("ENDPOINT_0_URL=" + address))
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		want := crm.Application{ID: "local.1", Secret: "s3cret-key", OAuthURL: "https://oauth.bitrix.info/oauth/token/"}
		if got := cfg.CRMs["crm"].Application; got != want || string(cfg.Endpoints[0].Secrets[0]) != "s3cret-key" {
			t.Errorf("%s: the application is %+v, the secrets are %q", address, got, cfg.Endpoints[0].Secrets)
		}
		if err := store.ValidateEndpoints(cfg.Endpoints); err != nil {
			t.Error(err)
		}
	}
}

func TestMistakesInAPreset(t *testing.T) {
	set := func(name, value string) map[string]string { return withPreset("ENDPOINT_0_" + name + "=" + value) }
	for name, c := range map[string]struct {
		vars map[string]string
		want string // in the problems, of which there is one
	}{
		"an unknown one":    {set("PRESET", "amocrm"), "ENDPOINT_0_PRESET: must be bitrix24 or megafon"},
		"no address":        {withPreset("ENDPOINT_0_URL"), "ENDPOINT_0_URL: is missing: it is the address"},
		"no key":            {withPreset("ENDPOINT_0_SECRET"), "ENDPOINT_0_SECRET: is missing: it is the key"},
		"a short key":       {set("SECRET", "12345"), "ENDPOINT_0_SECRET: must have at least 6"},
		"a key of a portal": {minimal("ENDPOINT_0_PRESET=bitrix24", portal), "ENDPOINT_0_SECRET: has no meaning with"},
		"half an address": {
			minimal("ENDPOINT_0_PRESET=bitrix24", "ENDPOINT_0_SECRET", "ENDPOINT_0_URL=https://firm.bitrix24.ru/rest/"),
			"ENDPOINT_0_URL: must be the whole address of an inbound webhook",
		},
		"an application's address": {
			withApplication("ENDPOINT_0_URL=https://firm.bitrix24.ru/rest/1/s3cretcode/"),
			"ENDPOINT_0_URL: is that of an inbound webhook",
		},
		"a page of the portal": {
			withApplication("ENDPOINT_0_URL=https://firm.bitrix24.ru/company/"),
			"ENDPOINT_0_URL: must be the address of the portal alone",
		},
		"an application's key": {withApplication("ENDPOINT_0_CLIENT_SECRET"), "ENDPOINT_0_CLIENT_SECRET: is missing"},
		"a short key of one":   {withApplication("ENDPOINT_0_CLIENT_SECRET=1"), "_SECRET: must have at least 6"},
		"no server of keys":    {withApplication("ENDPOINT_0_OAUTH_URL=here"), "OAUTH_URL: must be an address"},
		"an application of two": {
			withApplication("ENDPOINT_1_NAME=other", "ENDPOINT_1_PRESET=bitrix24",
				"ENDPOINT_1_URL=https://firm.bitrix24.ru",
				"ENDPOINT_1_CLIENT_ID=local.1", "ENDPOINT_1_CLIENT_SECRET=s3cret-key"),
			"ENDPOINT_1_CLIENT_ID: is the same as ENDPOINT_0_CLIENT_ID",
		},
		"a query for keys":       {withApplication("ENDPOINT_0_OAUTH_URL=https://a.ru/?b=c"), "OAUTH_URL: has a ?"},
		"a portal with a query":  {withApplication("ENDPOINT_0_URL=https://a.ru/?b=c"), "of the portal alone"},
		"a code with blanks":     {withApplication("ENDPOINT_0_CLIENT_ID=local 1"), "CLIENT_ID: may hold letters"},
		"an application of none": {set("CLIENT_ID", "local.1"), "ENDPOINT_0_CLIENT_ID: has no meaning with"},
		"a key without its code": {
			minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET", "ENDPOINT_0_CLIENT_SECRET=s3cret-key"),
			"ENDPOINT_0_CLIENT_ID: is missing",
		},
		"a server without a code": {
			minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET",
				"ENDPOINT_0_OAUTH_URL=https://oauth.bitrix24.tech/oauth/token/"),
			"ENDPOINT_0_OAUTH_URL: has a meaning only with",
		},
		"a domain of a portal": {
			minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET", "ENDPOINT_0_PBX_DOMAIN=firm"),
			"ENDPOINT_0_PBX_DOMAIN: has no meaning with",
		},
		"clients of no portal": {set("CRM_CREATE", "never"), "ENDPOINT_0_CRM_CREATE: has no meaning with"},
		"a user of a portal": {
			minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET", "ENDPOINT_0_USERS=101=anna"),
			"ENDPOINT_0_USERS: must name users of the portal by number",
		},
		"a default user of a portal": {
			minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET", "ENDPOINT_0_DEFAULT_USER=anna"),
			"ENDPOINT_0_DEFAULT_USER: must be the number",
		},
		"clients of which": {
			minimal("ENDPOINT_0_PRESET=bitrix24", portal, "ENDPOINT_0_SECRET", "ENDPOINT_0_CRM_CREATE=some"),
			"ENDPOINT_0_CRM_CREATE: must be incoming, always or never",
		},
		"a format":           {set("FORMAT", "flat"), "ENDPOINT_0_FORMAT: has no meaning with"},
		"an SMS":             {set("EVENTS", "call.*,sms.*"), "no place for sms.*"},
		"an alert":           {set("EVENTS", "call.*,alert.disconnected"), "no place for alert"},
		"an unknown event":   {set("EVENTS", "call.lost"), "ENDPOINT_0_EVENTS: "},
		"missed of whom":     {set("MISSED", "first"), "ENDPOINT_0_MISSED: must be responsible, last or"},
		"a broken pair":      {set("USERS", "101"), "ENDPOINT_0_USERS: must be a list such as 101=anna"},
		"no extension":       {set("USERS", "73430112233=anna"), `"73430112233" is no extension`},
		"twice":              {set("USERS", "101=anna,101=ivan"), "has the extension 101 twice"},
		"no number":          {set("DEFAULT_USER_BY_LINE", "main=anna"), `"main" is no number`},
		"an extension":       {set("DEFAULT_USER_BY_LINE", "12=anna"), `"12" is no number`},
		"a line of digits":   {set("DEFAULT_LINE", "101"), "ENDPOINT_0_DEFAULT_LINE: must be a number"},
		"a number twice":     {set("DEFAULT_USER_BY_LINE", "83432000000=a,+73432000000=b"), "twice"},
		"a domain":           {set("PBX_DOMAIN", "a@b"), "ENDPOINT_0_PBX_DOMAIN: may hold letters"},
		"a line":             {set("DEFAULT_LINE", "main"), "ENDPOINT_0_DEFAULT_LINE: must be a number"},
		"people without one": {minimal("ENDPOINT_0_USERS=101=anna"), "ENDPOINT_0_USERS: has a meaning only"},
		"a line without one": {minimal("ENDPOINT_0_DEFAULT_LINE=73432000000"), "ENDPOINT_0_DEFAULT_LINE: has"},
	} {
		_, err := Load(c.vars)
		var wrong *Error
		if !errors.As(err, &wrong) || len(wrong.Problems) != 1 || !strings.Contains(wrong.Problems[0], c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
