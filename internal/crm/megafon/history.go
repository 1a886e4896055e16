package megafon

import (
	"context"
	"encoding/csv"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
)

// maxHistory is the largest number of calls in one answer.
const maxHistory = 10_000

// span is which calls a CRM asks for: those that began in it, of a kind, the latest ones.
type span struct {
	from, to time.Time // to is not part of it
	kind     string    // all, in, out or missed
	limit    int
}

// readSpan reads what a request asks for; bad is the name of a parameter that is wrong.
func readSpan(form url.Values, now time.Time) (s span, bad string) {
	s = span{to: now, kind: strings.ToLower(form.Get("type")), limit: maxHistory}
	switch s.kind {
	case "":
		s.kind = "all"
	case "all", "in", "out", "missed":
	default:
		return s, "type"
	}
	if text := form.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return s, "limit"
		}
		s.limit = min(n, maxHistory)
	}
	if period := form.Get("period"); period != "" {
		var known bool
		if s.from, s.to, known = periodOf(period, now); !known {
			return s, "period"
		}
		return s, ""
	}
	for name, at := range map[string]*time.Time{"start": &s.from, "end": &s.to} {
		text := form.Get(name)
		if text == "" {
			continue
		}
		var err error
		if *at, err = time.Parse(timeFormat, text); err != nil {
			if *at, err = time.Parse(time.RFC3339, text); err != nil {
				return s, name
			}
		}
	}
	return s, ""
}

// periodOf returns a period of the calendar; a week begins with Monday.
func periodOf(name string, now time.Time) (from, to time.Time, known bool) {
	day := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	week := day.AddDate(0, 0, -(int(day.Weekday())+6)%7)
	month := day.AddDate(0, 0, 1-day.Day())
	switch name {
	case "today":
		return day, day.AddDate(0, 0, 1), true
	case "yesterday":
		return day.AddDate(0, 0, -1), day, true
	case "this_week":
		return week, week.AddDate(0, 0, 7), true
	case "last_week":
		return week.AddDate(0, 0, -7), week, true
	case "this_month":
		return month, month.AddDate(0, 1, 0), true
	case "last_month":
		return month.AddDate(0, -1, 0), month, true
	}
	return time.Time{}, time.Time{}, false
}

// history lists finished calls, the oldest first, as far as the outbox still has them.
func (c *caller) history(w http.ResponseWriter, r *http.Request) *problem {
	s, bad := readSpan(r.Form, time.Now())
	if bad != "" {
		return badParameter(bad)
	}
	lines, err := c.calls(r.Context(), s)
	if err != nil {
		return c.unreadable(err)
	}
	slices.Reverse(lines)
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	_ = csv.NewWriter(w).WriteAll(lines) // else the CRM has hung up
	return nil
}

// lateEnd is by how much a call may be read before it began, by the exchange's clock.
const lateEnd = 24 * time.Hour

func (c *caller) calls(ctx context.Context, s span) (lines [][]string, err error) {
	var failed error
	err = c.eachCall(ctx, func(e *crm.Event, read time.Time) bool {
		began := e.Began(read)
		if read.Add(lateEnd).Before(s.from) {
			return false // they are read in the order in which they ended, and all others are older
		}
		kind := kindOf(e)
		isWanted := s.kind == "all" || s.kind == kind || s.kind == "in" && kind == "missed"
		if began.Before(s.from) || !began.Before(s.to) || !isWanted {
			return true
		}
		line, err := c.line(ctx, e, kind, began)
		if err != nil {
			failed = err
			return false
		}
		lines = append(lines, line)
		return len(lines) < s.limit
	})
	if failed != nil {
		err = failed
	}
	return lines, err
}

func kindOf(e *crm.Event) string {
	switch {
	case e.Direction == telephony.Outgoing:
		return "out"
	case e.IsAnswered():
		return "in"
	}
	return "missed"
}

// line is a call: UID, type, client, account, via, start, wait, duration, record.
func (c *caller) line(ctx context.Context, e *crm.Event, kind string, began time.Time) ([]string, error) {
	id := e.CallID
	if kind == "out" {
		var err error
		if id, err = c.clicks.IDOf(ctx, e.CallID); err != nil {
			return nil, err
		}
	}
	people := &c.settings.People
	person := people.Of(e.Extension)
	if e.Extension == "" {
		person, _ = people.DefaultFor(e.Line)
	}
	wait := time.Duration(0)
	if !e.EndedAt.IsZero() {
		wait = max(0, e.EndedAt.Sub(began)-e.Duration)
	}
	record := e.Recording
	if !isWeb(record) {
		record = ""
	}
	return []string{
		id, kind, plain(e.Client), person.Name, plain(people.Plan.Client(e.Line)),
		began.UTC().Format(timeFormat), seconds(wait), seconds(e.Duration), record,
	}, nil
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }
