package dashboard

import (
	"cmp"
	"slices"
	"strings"

	"pzbridge/outbox/store"
)

// nothing returns why an attempt has sent nothing, "" if it has sent something.
func (t words) nothing(a *store.Attempt) string {
	why, found := strings.CutPrefix(a.Response, store.NothingToSend)
	if !found || a.Status != 0 || a.Error != "" {
		return ""
	}
	return t["nothing to send"] + ": " + cmp.Or(t[why], why)
}

// remark returns a remark in the page's language, as far as that has its words.
func (t words) remark(r store.Remark) store.Remark {
	return store.Remark{Words: cmp.Or(t[r.Words], r.Words), Value: r.Value}
}

// request returns a request of an attempt, and what came of it.
func (t words) request(s *store.Step) string {
	what, remarks := s.Remarks()
	shown := store.Step{What: what}
	for _, r := range remarks {
		r = t.remark(r)
		shown.Remark(r.Words, r.Value)
	}
	return shown.What
}

// made returns what the CRM made of an event by all attempts, or why nothing was sent.
func (t words) made(attempts []store.Attempt) string {
	var list []string
	add := func(text string) {
		if text != "" && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	for i := range attempts {
		add(t.nothing(&attempts[i]))
		for j := range attempts[i].Steps {
			_, remarks := attempts[i].Steps[j].Remarks()
			for _, r := range remarks {
				add(t.remark(r).String())
			}
		}
	}
	return strings.Join(list, " · ")
}
