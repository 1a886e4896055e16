package store

import "time"

// DescribeDelivery returns the view of a delivery; history is the record of its attempts.
func DescribeDelivery(e Event, endpoint string, d Delivery, history []byte) DeliveryView {
	id := e.ID.String()
	out := DeliveryView{
		ID:          id + "." + endpoint,
		EventID:     id,
		Endpoint:    endpoint,
		Type:        e.Type,
		CallID:      e.Call,
		EventTime:   e.At.UTC(),
		State:       d.State.String(),
		Attempts:    d.Attempts,
		Redelivered: d.Redelivered > 0,
	}
	if e.Call != "" {
		out.Sequence = e.Sequence
	}
	if last, ok := lastAttempt(history); ok {
		out.LastStatus, out.LastError, out.LastCause = last.Status, last.Error, last.Cause
	}
	switch {
	case d.State != Pending:
		out.Ended = time.Unix(0, d.Due).UTC()
	case d.IsDue():
		// What is due at once was due when it came.
		out.NextAttempt = time.Unix(0, max(d.Due, e.At.UnixNano())).UTC()
	}
	return out
}

// Size is about how many bytes the view takes in an answer.
func (v *DeliveryView) Size() int { return 400 + len(v.CallID) + len(v.LastError) }
