package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"pzbridge/internal/advice"
	"pzbridge/internal/crm"
	"pzbridge/internal/crm/bitrix24"
	"pzbridge/internal/crm/megafon"
	"pzbridge/internal/sleep"
	"pzbridge/outbox/store"
)

// preset checks a CRM with a preset, whose host is reached already. Hint is what to try if it
// cannot be asked.
func (d *checker) preset(ctx context.Context, e store.Endpoint, with crm.Settings, hint string) {
	if with.Application.ID != "" {
		d.askBridge(ctx, e.Name)
		return
	}
	var sender interface {
		store.Sender
		crm.Checker
	}
	switch with.Preset {
	case crm.Bitrix24:
		sender = bitrix24.New(e, bitrix24.Options{
			Settings: with, Portals: bitrix24.NewPortals(), UserAgent: "pzbridge/" + d.p.Version,
		})
	case crm.MegaFon:
		sender = megafon.New(e, megafon.Options{Settings: with, UserAgent: "pzbridge/" + d.p.Version})
	}
	defer sender.Close()
	for _, f := range crm.Check(ctx, sender, crm.Wish{Extensions: d.recent.extensions, Try: d.try}) {
		level, text := f.Sentence(advice.English)
		if level == crm.Bad {
			text += hint
		}
		d.say(e.Name, level, text)
	}
}

// say prints the line of a finding.
func (d *checker) say(what, level, text string) {
	switch level {
	case crm.Bad:
		d.fail(what, "%s", text)
	case crm.Warn:
		d.warn(what, "%s", text)
	default:
		d.pass(what, "%s", text)
	}
}

// askBridge has the running bridge check a CRM with a local application: its tokens are in the
// outbox.
func (d *checker) askBridge(ctx context.Context, endpoint string) {
	a, err := newAPI()
	var found struct {
		Findings []struct {
			Level string `json:"level"`
			Text  string `json:"text"`
		} `json:"findings"`
	}
	if err == nil {
		wish := crm.Wish{Extensions: d.recent.extensions, Try: d.try}
		err = a.call(ctx, http.MethodPost, "/v1/endpoints/"+url.PathEscape(endpoint)+"/check", wish, &found)
	}
	if err != nil {
		d.fail(endpoint, "the running bridge cannot be asked, and the tokens of the local application are in its "+
			"outbox: start it, and run this beside it (%v)", err)
		return
	}
	for _, f := range found.Findings {
		d.say(endpoint, f.Level, f.Text)
	}
}

// clickWait is how long doctor waits for a click.
const clickWait = time.Minute

// clicks waits for a click in each CRM with a preset, one after the other.
func (d *checker) clicks(ctx context.Context) {
	for _, e := range d.cfg.Endpoints {
		if _, hasPreset := d.cfg.CRMs[e.Name]; !hasPreset {
			continue
		}
		before, err := lastClick(ctx, e.Name)
		if err != nil {
			d.fail(e.Name, "the running bridge cannot be asked for clicks: %v", err)
			return
		}
		fmt.Fprintf(d.p.Out, "→ %s: now click on a telephone number in this CRM, within a minute\n", e.Name)
		d.waitForClick(ctx, e.Name, before)
	}
}

func (d *checker) waitForClick(ctx context.Context, endpoint string, before crm.LastClick) {
	ctx, cancel := context.WithTimeout(ctx, clickWait)
	defer cancel()
	for sleep.For(ctx, time.Second) {
		last, err := lastClick(ctx, endpoint)
		switch {
		case err != nil || !last.At.After(before.At):
		case last.Failure != "":
			d.fail(endpoint, "the click has come, and made no call: %s", last.Failure)
			return
		default:
			d.pass(endpoint, "the click has come, and made a call")
			return
		}
	}
	d.fail(endpoint, "no click has come: see the guide of this CRM for what to set there, and whether it reaches "+
		"the bridge's API")
}

// lastClick asks the running bridge when somebody clicked last in a CRM.
func lastClick(ctx context.Context, endpoint string) (last crm.LastClick, err error) {
	a, err := newAPI()
	if err != nil {
		return crm.LastClick{}, err
	}
	var list struct {
		Endpoints []struct {
			Name string `json:"name"`
			Last struct {
				At    time.Time `json:"at"`
				Error string    `json:"error"`
			} `json:"last_click"`
		} `json:"endpoints"`
	}
	err = a.call(ctx, http.MethodGet, "/v1/endpoints", nil, &list)
	for _, e := range list.Endpoints {
		if e.Name == endpoint {
			last = crm.LastClick{At: e.Last.At, Failure: e.Last.Error}
		}
	}
	return last, err
}
