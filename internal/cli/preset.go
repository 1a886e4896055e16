package cli

import (
	"context"
	"strings"

	"pzbridge/internal/advice"
	"pzbridge/internal/crm"
	"pzbridge/internal/crm/bitrix24"
	"pzbridge/internal/crm/megafon"
	"pzbridge/outbox/store"
)

// preset checks a CRM with a preset, whose host is reached already. Hint is what to try if it
// cannot be asked.
func (d *checker) preset(ctx context.Context, e store.Endpoint, with crm.Settings, hint string) {
	var try func(context.Context, string) (string, error)
	var unknown func(context.Context, []string) []string
	isFine := false
	switch with.Preset {
	case crm.Bitrix24:
		portal := bitrix24.New(e, bitrix24.Options{
			Settings: with, Portals: bitrix24.NewPortals(), UserAgent: "pzbridge/" + d.p.Version,
		})
		defer portal.Close()
		isFine, try, unknown = d.portal(ctx, e, portal), portal.Try, portal.Unknown
	case crm.MegaFon:
		sender := megafon.New(e, megafon.Options{Settings: with, UserAgent: "pzbridge/" + d.p.Version})
		defer sender.Close()
		isFine, try, unknown = d.megafon(ctx, e, with, sender, hint), sender.Try, sender.Unknown
	}
	if isFine {
		if list := unknown(ctx, d.recent.extensions); len(list) > 0 {
			d.warn(e.Name, "calls were made with extensions that nobody in this CRM has: %s; name them in its USERS",
				strings.Join(list, ", "))
		}
	}
	if !isFine || d.try == "" {
		return
	}
	callID, err := try(ctx, d.try)
	if err != nil {
		d.fail(e.Name, "a missed call of %s could not be entered: %s", d.try, advice.English(err))
		return
	}
	d.pass(e.Name, "a missed call of %s is entered: look for it in the CRM's list of calls (its ID is %s)",
		d.try, callID)
}

// portal checks a portal of Bitrix24, and reports whether it can be used.
func (d *checker) portal(ctx context.Context, e store.Endpoint, portal *bitrix24.Sender) bool {
	isFine := true
	for _, f := range portal.Diagnose(ctx) {
		switch {
		case f.Err != nil:
			d.fail(e.Name, "%s", advice.English(f.Err))
			isFine = false
		case f.IsWarning:
			d.warn(e.Name, "%s", f.Text)
		default:
			d.pass(e.Name, "%s", f.Text)
		}
	}
	if isFine && len(e.Tokens) == 0 {
		d.warn(e.Name, "nobody can call from this CRM: make an outgoing webhook for the event ONEXTERNALCALLSTART to "+
			"the address of this bridge's API and /hooks/bitrix24/%s, and set the endpoint's TOKEN to that webhook's",
			e.Name)
	}
	return isFine
}

// megafon checks whether a CRM takes the key, and what it can do with these settings. It reports
// whether the CRM can be used.
func (d *checker) megafon(
	ctx context.Context, e store.Endpoint, with crm.Settings, sender *megafon.Sender, hint string,
) bool {
	_, made, err := sender.Test(ctx)
	switch {
	case err != nil:
		d.fail(e.Name, "%v", err)
		return false
	case made.Status == 0:
		d.fail(e.Name, "no answer to a request (%s): check its URL, its certificate and the proxy between%s",
			made.Error, hint)
		return false
	case made.Error != "" || made.Status < 200 || made.Status > 299:
		d.fail(e.Name, "it was asked who a number belongs to: %s%s", advice.English(made.Failure()), hint)
		return false
	}
	d.pass(e.Name, "it takes the key, and answers whom a number belongs to, in %d ms", made.Took.Milliseconds())
	if with.People.Default == "" && len(with.People.DefaultByLine) == 0 {
		d.warn(e.Name, "calls that are nobody's, such as missed ones of a group, are entered for the user pbx: "+
			"set its DEFAULT_USER")
	}
	if len(e.Tokens) == 0 {
		d.warn(e.Name, "nobody can call from this CRM: for that set its TOKEN, and give it to the CRM as the key of "+
			"the PBX, with the address of this bridge's API and %s", megafon.Path)
		return true
	}
	d.pass(e.Name, "it may have employees call: the address of the PBX in its settings is that of this bridge's API "+
		"and %s, and the key its TOKEN; %d of its users have a name in USERS", megafon.Path, len(with.People.Users))
	return true
}
