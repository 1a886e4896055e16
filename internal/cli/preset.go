package cli

import (
	"context"

	"pzbridge/internal/advice"
	"pzbridge/internal/crm"
	"pzbridge/internal/crm/megafon"
	"pzbridge/outbox/store"
)

// preset checks a CRM with a preset, whose host is reached already: whether it takes the key, and
// what it can do with these settings. Hint is what to try if it cannot be asked.
func (d *checker) preset(ctx context.Context, e store.Endpoint, with crm.Settings, hint string) {
	sender := megafon.New(e, megafon.Options{Settings: with, UserAgent: "pzbridge/" + d.p.Version})
	defer sender.Close()
	_, made, err := sender.Test(ctx)
	switch {
	case err != nil:
		d.fail(e.Name, "%v", err)
		return
	case made.Status == 0:
		d.fail(e.Name, "no answer to a request (%s): check its URL, its certificate and the proxy between%s",
			made.Error, hint)
		return
	case made.Error != "" || made.Status < 200 || made.Status > 299:
		d.fail(e.Name, "it was asked who a number belongs to, and answers %s%s", advice.English(made.Failure()), hint)
		return
	}
	d.pass(e.Name, "it takes the key, and answers whom a number belongs to, in %d ms", made.Took.Milliseconds())
	d.people(e, with)
	if d.try == "" {
		return
	}
	callID, err := sender.Try(ctx, d.try)
	if err != nil {
		d.fail(e.Name, "a missed call of %s could not be entered: %s", d.try, advice.English(err))
		return
	}
	d.pass(e.Name, "a missed call of %s is entered: look for it in the CRM's list of calls (its ID is %s)",
		d.try, callID)
}

// people tells what the settings of a preset leave open.
func (d *checker) people(e store.Endpoint, with crm.Settings) {
	if with.People.Default == "" && len(with.People.DefaultByLine) == 0 {
		d.warn(e.Name, "calls that are nobody's, such as missed ones of a group, are entered for the user pbx: "+
			"set its DEFAULT_USER")
	}
	if len(e.Tokens) == 0 {
		d.warn(e.Name, "nobody can call from this CRM: for that set its TOKEN, and give it to the CRM as the key of "+
			"the PBX, with the address of this bridge's API and %s", megafon.Path)
		return
	}
	d.pass(e.Name, "it may have employees call: the address of the PBX in its settings is that of this bridge's API "+
		"and %s, and the key its TOKEN; %d of its users have a name in USERS", megafon.Path, len(with.People.Users))
}
