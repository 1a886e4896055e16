package dashboard

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/telephony"
)

// finding is a sentence of the verdict: what is wrong, and what to do about it.
type finding struct {
	Level string // bad, warn or good
	Who   string // the CRM that it is about; empty if it is about none
	Text  string
	Path  string // where to do something about it; empty if that is not on these pages
	Link  string // the text of the link to Path
}

// Finding is a sentence of the verdict for other faces.
type Finding struct {
	Level string // bad, warn or good
	About string // the CRM or the bridge that it is about; empty if it is about none
	Text  string // the whole sentence
}

// Verdict returns the sentences of the first page, in the language that a request prefers.
func (d *Dashboard) Verdict(r *http.Request) (list []Finding, err error) {
	t := wordsFor(r)
	o, _, err := d.standing(r.Context(), t)
	if err != nil {
		return nil, err
	}
	for _, f := range t.verdict(&o) {
		list = append(list, Finding{f.Level, f.Who, strings.TrimSpace(f.Who + " " + f.Text)})
	}
	return list, nil
}

// The levels of a finding.
const (
	levelBad  = "bad"
	levelWarn = "warn"
	levelGood = "good"
)

// verdict sums up the first page in sentences, the worst first: the bridge that stores nothing, the
// missing connection, the CRMs, other bridges. It sets the level and the sentence of each endpoint.
func (t words) verdict(o *overview) []finding {
	list := slices.Concat(t.outboxFindings(o), t.connectionFindings(o))
	isConnected := len(list) == 0
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		found := t.endpointFindings(e)
		if e.State != "reads" {
			e.Level = levelGood
		}
		if len(found) > 0 {
			e.Level, e.Why = found[0].Level, found[0].Text
		}
		list = append(list, found...)
	}
	list = append(list, t.bridgeFindings(o)...)
	slices.SortStableFunc(list, func(a, b finding) int { return cmp.Compare(a.Level, b.Level) }) // bad, then warn
	switch {
	case len(list) == 0 && len(o.Endpoints) == 0:
		return []finding{{Level: levelGood, Text: t["The phone system is connected. No CRM is configured."]}}
	case len(list) == 0:
		return []finding{{
			Level: levelGood,
			Text:  t["All is well: the phone system is connected, and every CRM gets its events."],
		}}
	case isConnected:
		list = append(list, finding{Level: levelGood, Text: t["The phone system is connected."]})
	}
	return list
}

func (t words) outboxFindings(o *overview) []finding {
	switch {
	case o.Trouble == "":
		return nil
	case o.InDanger:
		return []finding{{Level: levelBad, Text: t["Events are in danger:"] + " " + o.Trouble + "."}}
	}
	return []finding{{Level: levelBad, Text: t["Events cannot be stored:"] + " " + o.Trouble + "."}}
}

func (t words) connectionFindings(o *overview) []finding {
	c := &o.Connection
	switch c.State {
	case telephony.Connected:
		return nil
	case telephony.Disabled:
		return []finding{{
			Level: levelBad,
			Text:  t["The connection to the phone system is paused: live calls are lost meanwhile. Resume it."],
			Path:  "/connection",
			Link:  t["Resume the connection"],
		}}
	case telephony.Connecting:
		return []finding{{Level: levelWarn, Text: t["The connection to the phone system is being made."]}}
	}
	if o.IsSpare {
		return t.spareFindings(o)
	}
	level, text := levelBad, t["The phone system has not been connected since %s"]
	if o.ConnectedAt != "" {
		level, text = levelWarn, t["This bridge has not been connected to the phone system since %s"]
	}
	text = fmt.Sprintf(text, t.moment(c.Since))
	if why := t.disconnectedBy(c); why != "" {
		text += ": " + why
	}
	text += "."
	if o.ConnectedAt != "" {
		text += " " + fmt.Sprintf(t["Events come through %s."], o.ConnectedAt)
	}
	return []finding{{Level: level, Text: text}}
}

// disconnectedBy returns why there is no connection, and what to do about it.
func (t words) disconnectedBy(c *telephony.Connection) string {
	if c.EndedByClose {
		meaning := t.say(c.CloseMeaning, c.CloseCause)
		return fmt.Sprintf("%s %d: %s", t["connection closed with code"], c.CloseCode, meaning)
	}
	return t.say(c.LastError, c.LastCause)
}

// endpointFindings returns what is wrong at a CRM, the worst first.
func (t words) endpointFindings(e *endpointView) (list []finding) {
	why := t.say(e.LastError, e.LastCause)
	add := func(level, text, path, link string) {
		list = append(list, finding{Level: level, Who: e.Name, Text: text, Path: path, Link: link})
	}
	waiting := link("/deliveries", "endpoint", e.Name, "state", "pending")
	switch {
	case e.State == "failing":
		text := fmt.Sprintf(t["takes nothing since %s: %s. Deliveries that wait: %d."],
			t.moment(e.Since), why, e.Pending)
		add(levelBad, text, waiting, t["What waits"])
	case e.State == "paused":
		text := fmt.Sprintf(t["has asked for a pause until %s: %s. Deliveries that wait: %d."],
			t.moment(e.NextAttempt), why, e.Pending)
		add(levelWarn, text, waiting, t["What waits"])
	case e.State == "reads":
		if e.HasOldest && e.Oldest > maxUnreadAge {
			text := fmt.Sprintf(t["has not read its events for %s. Not read yet: %s."], t.short(e.Oldest), e.Unread)
			add(levelWarn, text, "", "")
		}
	case e.Failures > 0 && e.Pending > 0:
		text := fmt.Sprintf(t["has refused the latest attempts (%d): %s. They are made again by themselves."],
			e.Failures, why)
		add(levelWarn, text, waiting, t["What waits"])
	}
	if e.Dead > 0 {
		text := fmt.Sprintf(t["has not got everything. Dead, and not sent again: %d."], e.Dead)
		add(levelWarn, text, link("/deliveries", "endpoint", e.Name, "state", "dead"), t["Look, and send again"])
	}
	return list
}

// maxUnreadAge is how long a CRM that reads its events may leave one unread until the verdict says
// so.
const maxUnreadAge = 15 * time.Minute

// moment formats a time, without its date if that is today.
func (words) moment(at time.Time) string {
	at, now := at.Local(), time.Now()
	if at.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return at.Format("15:04")
	}
	return at.Format("2006-01-02 15:04")
}
