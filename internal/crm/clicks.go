package crm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// Clicks are the calls that a CRM has asked for. The CRM knows each by an ID and waits for events
// under it, but the exchange answers a command without the ID of the call: so the call that next
// begins between the two gets that of the click.
type Clicks struct {
	Notes    store.Notes
	Endpoint string
}

const (
	// clickWindow is how long after a click its call may begin.
	clickWindow = time.Minute
	// twiceWindow is within which time a click that is the same counts as the same: people click
	// twice, and PHP scripts are repeated.
	twiceWindow = 10 * time.Second
	// clockSkew is by how much the clocks of two bridges may differ.
	clockSkew = 5 * time.Second
	// clickLife is how long a click is kept for a call whose events wait for the CRM.
	clickLife = 24 * time.Hour
	// maxClicks bounds those on one number.
	maxClicks = 16
	// national is how many digits of a number count: the rest is written in several ways.
	national = 10
	// calledLife is how long the ID of a call is kept for the list of calls.
	calledLife = 8 * 24 * time.Hour
)

type click struct {
	ID   string    `json:"id"`
	By   string    `json:"by"` // the extension of the user
	At   time.Time `json:"at"`
	Call string    `json:"call,omitempty"` // that has begun
	// Nonce makes the notes of two that write the same differ: else the second would count as the
	// first, written once more.
	Nonce string `json:"nonce"`
}

// clickName is the name of the note with the clicks on a number, which is not to be read in it.
func clickName(number string) string {
	if n := len(number); n > national {
		number = number[n-national:]
	}
	sum := sha256.Sum256([]byte(number))
	return "click:" + hex.EncodeToString(sum[:16])
}

// Forget removes the clicks on a number. Key is of the number: see store.Rules.NumberKey.
func (c Clicks) Forget(ctx context.Context, key string) error {
	number := []byte(key[:min(len(key), national)])
	slices.Reverse(number) // the digits of a key stand in reverse order
	return c.change(ctx, clickName(string(number)), func(list *[]click) bool {
		had := len(*list) > 0
		*list = nil
		return had
	})
}

func calledName(callID string) string { return "called:" + callID }

// change changes the clicks in a note. Do returns whether there is something to store.
func (c Clicks) change(ctx context.Context, name string, do func(list *[]click) bool) error {
	const tries = 10
	for try := 1; ; try++ {
		now := time.Now()
		value, version, err := c.Notes.Note(ctx, c.Endpoint, name, now)
		if err != nil {
			return err
		}
		var list []click
		_ = json.Unmarshal(value, &list) // what cannot be read is forgotten
		if !do(&list) {
			return nil
		}
		if n := len(list); n > maxClicks {
			list = list[n-maxClicks:]
		}
		value, _ = json.Marshal(list) // of texts and times alone
		err = c.Notes.SetNote(ctx, c.Endpoint, name, version, value, now.Add(clickLife))
		if err == nil || !errors.Is(err, store.ErrChanged) || try == tries {
			return err
		}
	}
}

// Begin notes a click with the ID that it has at the CRM, and returns the ID that counts. IsNew is
// false for a click that is the same as the last one, or has the ID of one.
func (c Clicks) Begin(ctx context.Context, extension, number, id string) (counts string, isNew bool, err error) {
	err = c.change(ctx, clickName(number), func(list *[]click) bool {
		now := time.Now()
		counts, isNew = id, false
		for _, x := range *list {
			if x.ID == id {
				counts = id
				return false
			}
			if x.By == extension && now.Sub(x.At).Abs() < twiceWindow {
				counts = x.ID
			}
		}
		if counts != id {
			return false
		}
		isNew = true
		*list = append(*list, click{ID: id, By: extension, At: now, Nonce: rand.Text()})
		return true
	})
	return counts, isNew, err
}

// lastNote is the note of when a user clicked last, and what came of it.
const lastNote = "clicked"

// LastClick is when a user clicked last. The zero value is never.
type LastClick struct {
	At      time.Time `json:"at"`
	Failure string    `json:"failure,omitempty"` // why it made no call
}

// Clicked notes that a user has clicked, and why that has made no call. It says nothing of who was
// to be called: a note is not found by a number.
func (c Clicks) Clicked(ctx context.Context, failure error) error {
	const tries = 3 // the next click says as much
	last := LastClick{At: time.Now()}
	if failure != nil {
		last.Failure = failure.Error()
	}
	value, _ := json.Marshal(last) // of a time and a text alone
	for try := 1; ; try++ {
		_, version, err := c.Notes.Note(ctx, c.Endpoint, lastNote, last.At)
		if err == nil {
			err = c.Notes.SetNote(ctx, c.Endpoint, lastNote, version, value, time.Time{})
		}
		if !errors.Is(err, store.ErrChanged) || try == tries {
			return err
		}
	}
}

// Last returns when a user clicked last.
func (c Clicks) Last(ctx context.Context) (last LastClick, err error) {
	value, _, err := c.Notes.Note(ctx, c.Endpoint, lastNote, time.Now())
	_ = json.Unmarshal(value, &last) // what cannot be read is forgotten
	return last, err
}

// Drop forgets a click for which no call was made.
func (c Clicks) Drop(ctx context.Context, number, id string) error {
	return c.change(ctx, clickName(number), func(list *[]click) bool {
		*list = slices.DeleteFunc(*list, func(x click) bool { return x.ID == id })
		return true
	})
}

// take returns the ID of the click that has led to a call, "" if there was none. A click leads to
// one call.
func (c Clicks) take(ctx context.Context, extension, number, callID string, at time.Time) (id string, err error) {
	err = c.change(ctx, clickName(number), func(list *[]click) bool {
		own := slices.IndexFunc(*list, func(x click) bool { return x.By == extension && x.Call == callID })
		free := -1 // the latest: an earlier one has come to nothing
		for i, x := range *list {
			if after := at.Sub(x.At); x.By == extension && x.Call == "" && after > -clockSkew && after < clickWindow {
				free = i
			}
		}
		id = ""
		switch {
		case own >= 0:
			id = (*list)[own].ID
		case free >= 0:
			id, (*list)[free].Call = (*list)[free].ID, callID
		}
		return own < 0 && free >= 0
	})
	if err != nil || id == "" {
		return "", err
	}
	return id, c.keep(ctx, callID, id)
}

// keep stores the ID of a call for the list of calls.
func (c Clicks) keep(ctx context.Context, callID, id string) error {
	now := time.Now()
	name := calledName(callID)
	_, version, err := c.Notes.Note(ctx, c.Endpoint, name, now)
	if err != nil || version > 0 {
		return err
	}
	err = c.Notes.SetNote(ctx, c.Endpoint, name, version, []byte(id), now.Add(calledLife))
	if errors.Is(err, store.ErrChanged) { // the same was stored meanwhile
		return nil
	}
	return err
}

// IDOf returns the ID under which the CRM knows a call.
func (c Clicks) IDOf(ctx context.Context, callID string) (string, error) {
	value, _, err := c.Notes.Note(ctx, c.Endpoint, calledName(callID), time.Now())
	if err != nil || value == nil {
		return callID, err
	}
	return string(value), nil
}

// OfCall returns the ID of the click that has led to a call, "" if there was none. Read is when the
// event was read.
func (c Clicks) OfCall(ctx context.Context, e *Event, read time.Time) (id string, err error) {
	if e.Extension == "" || e.Client == "" ||
		e.Direction != telephony.Outgoing && e.Type != telephony.EventOutgoing {
		return "", nil
	}
	began := read // by our own clock
	switch {
	case e.Type == telephony.EventCompleted && e.Replayed:
		began = e.Began(read)
	case e.Type == telephony.EventCompleted: // read as soon as it was over
		began = read.Add(-max(e.EndedAt.Sub(e.StartedAt), e.Duration))
	}
	return c.take(ctx, e.Extension, digits(e.Client), e.CallID, began)
}

// digits is a number without the plus.
func digits(number string) string { return strings.TrimPrefix(number, "+") }
