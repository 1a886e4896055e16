package dashboard

import (
	"errors"
	"net/url"
	"slices"
	"time"
)

// choice is an option of a list in a form.
type choice struct {
	Value, Text string
	Chosen      bool
}

// choices returns the options of a list, with the text of each under a key of the words.
func (t words) choices(chosen, prefix string, values ...string) (list []choice) {
	for _, v := range values {
		list = append(list, choice{v, t[prefix+v], v == chosen})
	}
	return list
}

// oneOf returns a value of a query if it is one of those that there are, otherwise "", which
// matches all.
func oneOf(value string, values ...string) string {
	if slices.Contains(values, value) {
		return value
	}
	return ""
}

// timeLayouts are the ways in which a time may be typed. The first is what browsers send and
// expect in a field for a time.
var timeLayouts = []string{
	"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02 15:04:05", time.DateOnly,
	"02.01.2006 15:04", "02.01.2006",
}

var (
	errBadTime  = errors.New("this is no time")
	errBadOrder = errors.New("the end is not later than the beginning")
)

// parseTime reads a time of the zone in which the pages show times. Empty gives the zero time.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range timeLayouts {
		if at, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return at, nil
		}
	}
	return time.Time{}, errBadTime
}

// period is two fields of a form that bound a time, as they were typed and as times.
type period struct {
	Since, Until           string
	SinceError, UntilError string // in the page's language
	since, until           time.Time
}

func (t words) readPeriod(q url.Values) period {
	p := period{Since: q.Get("since"), Until: q.Get("until")}
	var errSince, errUntil error
	p.since, errSince = parseTime(p.Since)
	p.until, errUntil = parseTime(p.Until)
	if !p.since.IsZero() && !p.until.IsZero() && !p.since.Before(p.until) {
		errUntil = errBadOrder
	}
	if errSince != nil {
		p.SinceError = t[errSince.Error()]
	}
	if errUntil != nil {
		p.UntilError = t[errUntil.Error()]
	}
	return p
}

func (p *period) isValid() bool { return p.SinceError == "" && p.UntilError == "" }

// link returns a path with a query of names and values in turn. Those with an empty value are left
// out.
func link(path string, pairs ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}
