package megafon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"

	"pzbridge/internal/crm"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// clicks are the calls that a CRM has asked for. The CRM gets an ID at once and waits for events
// under it, but the exchange answers a command without the ID of the call: so the call that next
// begins between the two gets that of the click.
type clicks struct {
	notes    store.Notes
	endpoint string
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
	// maxClicks bounds those of the same two numbers.
	maxClicks = 16
	// calledLife is how long the ID of a call is kept for the list of calls.
	calledLife = 8 * 24 * time.Hour
)

type click struct {
	ID   string    `json:"id"`
	At   time.Time `json:"at"`
	Call string    `json:"call,omitempty"` // that has begun
}

// clickName is the name of the note with the clicks of an extension and a number. The number is not
// to be read in it: a note is not found by the number of a person who wants to be forgotten.
func clickName(extension, number string) string {
	const national = 10 // digits: the rest is written in several ways
	if n := len(number); n > national {
		number = number[n-national:]
	}
	sum := sha256.Sum256([]byte(extension + "\x00" + number))
	return "click:" + hex.EncodeToString(sum[:16])
}

func calledName(callID string) string { return "called:" + callID }

// change changes the clicks in a note. Do returns whether there is something to store.
func (c clicks) change(ctx context.Context, name string, do func(list *[]click) bool) error {
	const tries = 10
	for try := 1; ; try++ {
		now := time.Now()
		value, version, err := c.notes.Note(ctx, c.endpoint, name, now)
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
		err = c.notes.SetNote(ctx, c.endpoint, name, version, value, now.Add(clickLife))
		if err == nil || !errors.Is(err, store.ErrChanged) || try == tries {
			return err
		}
	}
}

// begin notes a click, and returns the ID for the CRM. IsNew is false for a click that is the same
// as the last one.
func (c clicks) begin(ctx context.Context, extension, number string) (id string, isNew bool, err error) {
	err = c.change(ctx, clickName(extension, number), func(list *[]click) bool {
		now := time.Now()
		if n := len(*list); n > 0 && now.Sub((*list)[n-1].At).Abs() < twiceWindow {
			id, isNew = (*list)[n-1].ID, false
			return false
		}
		id, isNew = uuid.Must(uuid.NewV7()).String(), true
		*list = append(*list, click{ID: id, At: now})
		return true
	})
	return id, isNew, err
}

// drop forgets a click for which no call was made.
func (c clicks) drop(ctx context.Context, extension, number, id string) error {
	return c.change(ctx, clickName(extension, number), func(list *[]click) bool {
		*list = slices.DeleteFunc(*list, func(x click) bool { return x.ID == id })
		return true
	})
}

// take returns the ID of the click that has led to a call, "" if there was none. A click leads to
// one call.
func (c clicks) take(ctx context.Context, extension, number, callID string, at time.Time) (id string, err error) {
	err = c.change(ctx, clickName(extension, number), func(list *[]click) bool {
		own := slices.IndexFunc(*list, func(x click) bool { return x.Call == callID })
		free := slices.IndexFunc(*list, func(x click) bool {
			after := at.Sub(x.At)
			return x.Call == "" && after > -clockSkew && after < clickWindow
		})
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
func (c clicks) keep(ctx context.Context, callID, id string) error {
	now := time.Now()
	name := calledName(callID)
	_, version, err := c.notes.Note(ctx, c.endpoint, name, now)
	if err != nil || version > 0 {
		return err
	}
	err = c.notes.SetNote(ctx, c.endpoint, name, version, []byte(id), now.Add(calledLife))
	if errors.Is(err, store.ErrChanged) { // the same was stored meanwhile
		return nil
	}
	return err
}

// idOf returns the ID under which the CRM knows a call.
func (c clicks) idOf(ctx context.Context, callID string) (string, error) {
	value, _, err := c.notes.Note(ctx, c.endpoint, calledName(callID), time.Now())
	if err != nil || value == nil {
		return callID, err
	}
	return string(value), nil
}

// recognise looks once for the click that has led to an outgoing call.
func (s *Sender) recognise(ctx context.Context, c *call, j store.Job, e *crm.Event) error {
	if c.IsKnown || e.Extension == "" || e.Client == "" ||
		e.Direction != telephony.Outgoing && e.Type != telephony.EventOutgoing {
		return nil
	}
	began := j.Event.At // by our own clock
	switch {
	case e.Type == telephony.EventCompleted && e.Replayed:
		began = e.Began(began)
	case e.Type == telephony.EventCompleted: // read as soon as it was over
		began = began.Add(-max(e.EndedAt.Sub(e.StartedAt), e.Duration))
	}
	id, err := s.clicks.take(ctx, e.Extension, plain(e.Client), e.CallID, began)
	if err == nil {
		c.ID, c.IsKnown = id, true
	}
	return err
}
