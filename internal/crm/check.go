package crm

import (
	"context"
	"strings"
)

// Finding is the result of one check of a CRM.
type Finding struct {
	Text      string // what is well, what is a risk, or what could not be done
	IsWarning bool
	Err       error // what is wrong; nil if nothing is
}

// Warning is the finding of a risk.
func Warning(text string) Finding { return Finding{Text: text, IsWarning: true} }

// The levels of a finding.
const (
	Good = "good"
	Warn = "warn"
	Bad  = "bad"
)

// Sentence returns the level of a finding, and all of it in words; explain is for errors.
func (f Finding) Sentence(explain func(error) string) (level, text string) {
	switch {
	case f.Err != nil && f.Text != "":
		return Bad, f.Text + ": " + explain(f.Err)
	case f.Err != nil:
		return Bad, explain(f.Err)
	case f.IsWarning:
		return Warn, f.Text
	}
	return Good, f.Text
}

// Checker is a sender that can say in words how its CRM stands.
type Checker interface {
	// Check checks what a bridge needs of the CRM, and changes nothing there. It ends with the
	// first thing without which the rest cannot be checked.
	Check(ctx context.Context) []Finding
	// Unknown returns those of some extensions that nobody in the CRM has.
	Unknown(ctx context.Context, extensions []string) []string
	// Try enters a missed call of a number, and returns its ID in the CRM. It fails with what the
	// CRM says, or the error of ctx.
	Try(ctx context.Context, number string) (callID string, err error)
	// LastClick returns when a user of the CRM last clicked on a number to call it.
	LastClick(ctx context.Context) (LastClick, error)
}

// Wish is what a check is to look at beyond the CRM itself.
type Wish struct {
	Extensions []string `json:"extensions,omitempty"` // of calls: does somebody have each?
	Try        string   `json:"try,omitempty"`        // a number of which a missed call is entered; "": none is
}

// Check checks a CRM. Of one with which something is wrong no more than that is found out.
func Check(ctx context.Context, c Checker, w Wish) (list []Finding) {
	list = c.Check(ctx)
	for _, f := range list {
		if f.Err != nil {
			return list
		}
	}
	if unknown := c.Unknown(ctx, w.Extensions); len(unknown) > 0 {
		list = append(list, Warning("calls were made with extensions that nobody in this CRM has: "+
			strings.Join(unknown, ", ")+"; name them in its USERS"))
	}
	if w.Try == "" {
		return list
	}
	callID, err := c.Try(ctx, w.Try)
	if err != nil {
		return append(list, Finding{Text: "a missed call of " + w.Try + " could not be entered", Err: err})
	}
	return append(list, Finding{Text: "a missed call of " + w.Try + " is entered: look for it in the CRM's list of " +
		"calls (its ID is " + callID + ")"})
}
