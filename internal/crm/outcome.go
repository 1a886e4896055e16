package crm

import "pzbridge/outbox/store"

// maxKept is how many bytes of a response's body are stored for people.
const maxKept = 1 << 10

// Cut returns the beginning of a response's body, as it is stored.
func Cut(body string) string { return body[:min(len(body), maxKept)] }

// Nothing is the outcome of an event of which a CRM is told nothing, and why.
func Nothing(why string) store.Outcome {
	return store.Outcome{Verdict: store.Done, Response: store.NothingToSend + why}
}
