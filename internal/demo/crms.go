package demo

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"pzbridge/internal/crm/bitrix24/bitrix24test"
	"pzbridge/internal/crm/megafon/megafontest"
)

// megaFon is a CRM that takes the bridge for MegaFon's virtual PBX.
type megaFon struct{ *megafontest.SalesMan }

const megaFonKey = "key-of-the-demo-crm"

func newMegaFon() megaFon {
	m := megaFon{megafontest.NewSalesMan(megaFonKey)}
	m.Assign(knownClient, manager)
	return m
}

func (megaFon) variables(url string) map[string]string {
	return map[string]string{
		"ENDPOINT_0_PRESET": "megafon", "ENDPOINT_0_URL": url + "/crm", "ENDPOINT_0_SECRET": megaFonKey,
	}
}

func (m megaFon) calls() (list []shownCall) {
	states := map[string]callState{
		"INCOMING": rings, "OUTGOING": rings, "ACCEPTED": talks,
		"Success": talked, "Missed": missed, "Cancel": failed,
	}
	for _, r := range m.Records() {
		state, known := states[r.Status]
		if !known {
			state = over
		}
		list = append(list, shownCall{
			Client: "+" + r.Phone, IsIncoming: r.Direction == "in", Manager: r.Ext, State: state,
			Talk: r.Duration, Link: r.Link,
		})
	}
	return list
}

func (megaFon) record(int) []byte { return nil } // it has links

func (m megaFon) requests() (list []shownRequest) {
	requests, _ := m.Requests()
	for _, r := range requests {
		words := []string{"cmd", "type", "status", "phone", "ext"}
		for i, name := range words {
			words[i] = r.Form.Get(name)
		}
		list = append(list, shownRequest{
			Time: r.Time, What: strings.Join(strings.Fields(strings.Join(words, " ")), " "),
			Answer:    fmt.Sprintf("HTTP %d %s", r.Status, r.Answer),
			IsRefused: r.Status >= http.StatusBadRequest || strings.Contains(r.Answer, "error"),
		})
	}
	return list
}

func (m megaFon) changed() <-chan struct{} {
	_, more := m.Requests()
	return more
}

func (m megaFon) faults() []string { return m.Faults() }

func (m megaFon) click(ctx context.Context, s *Stage) error {
	_, err := m.Click(ctx, http.DefaultClient, s.API, s.Token, manager, knownClient)
	return err
}

func (m megaFon) revoke()  { m.Revoke() }
func (m megaFon) restore() { m.Restore() }
func (m megaFon) limit()   { m.Limit(3) }

// portal is a portal of Bitrix24.
type portal struct{ *bitrix24test.Portal }

// newPortal makes a portal at an address. Its users 15 and 16 have the extensions 101 and 102.
func newPortal(url string) portal {
	const responsible, contact = 15, 797
	p := portal{bitrix24test.New("code-of-the-demo")}
	p.Domain = strings.TrimPrefix(url, "http://")
	p.Assign("+"+knownClient, "CONTACT", contact, responsible, "OPENED")
	return p
}

func (p portal) variables(url string) map[string]string {
	return map[string]string{
		"ENDPOINT_0_PRESET": "bitrix24", "ENDPOINT_0_URL": url + p.Path(), "ENDPOINT_0_SECRET": "",
	}
}

func (p portal) calls() (list []shownCall) {
	names := map[int]string{}
	for _, u := range p.Users() {
		names[u.ID] = strings.TrimSpace(u.Name+" "+u.LastName) + " " + u.Extension
	}
	for i, c := range p.Calls() {
		shown := shownCall{
			Client: c.Phone, IsIncoming: c.Type == bitrix24test.Incoming, Manager: names[c.UserID], Talk: c.Duration,
		}
		if len(c.Record) > 0 {
			shown.Link = "/crm/recordings/" + strconv.Itoa(i)
		}
		if c.EntityType != "" {
			shown.Note = c.EntityType + " " + strconv.Itoa(c.EntityID)
		}
		switch {
		case !c.Finished:
			shown.State = rings
		case c.Duration > 0:
			shown.State = talked
		case shown.IsIncoming:
			shown.State = missed
		default:
			shown.State = failed
		}
		switch {
		case c.Finished:
			shown.Manager = names[c.FinishedBy]
		case len(c.ShownTo) > 0:
			var list []string
			for _, id := range c.ShownTo {
				list = append(list, names[id])
			}
			shown.Manager = strings.Join(list, ", ")
		}
		list = append(list, shown)
	}
	return list
}

func (p portal) record(number int) []byte {
	if calls := p.Calls(); number >= 0 && number < len(calls) {
		return calls[number].Record
	}
	return nil
}

func (p portal) requests() (list []shownRequest) {
	requests, _ := p.Requests()
	for _, r := range requests {
		what := r.Method
		for _, name := range []string{"PHONE_NUMBER", "USER_ID", "STATUS_CODE"} {
			if value, found := r.Params[name]; found {
				what += fmt.Sprint(" ", value)
			}
		}
		list = append(list, shownRequest{
			Time: r.Time, What: what, Answer: fmt.Sprint("HTTP ", r.Status),
			IsRefused: r.Status >= http.StatusBadRequest,
		})
	}
	return list
}

func (p portal) changed() <-chan struct{} {
	_, more := p.Requests()
	return more
}

func (p portal) faults() []string { return p.Faults() }

func (p portal) click(ctx context.Context, s *Stage) error {
	const user = 15
	_, status, err := p.Click(ctx, http.DefaultClient, s.API+"/hooks/bitrix24/demo", s.Token, user, "+"+knownClient,
		bitrix24test.ClickOptions{})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the bridge answers HTTP %d", status)
	}
	return err
}

func (p portal) revoke()  { p.Revoke() }
func (p portal) restore() { p.Restore() }
func (p portal) limit()   { p.Fail(3) }
