package transferapi

import (
	"context"
	"net/http"
	"time"

	"pzbridge/outbox/store"
)

// Bridges lists the bridges that share the outbox.
type Bridges interface {
	// Bridges returns those that were seen within an hour, by name: this one alone if the outbox is
	// a file.
	Bridges(ctx context.Context) ([]store.Bridge, error)
}

// listBridges returns the bridges that share the outbox, and what differs between those that run.
func (a *API) listBridges(r *http.Request) answer {
	list, err := a.opts.Bridges.Bridges(r.Context())
	if err != nil {
		return problemAnswer(deliveryProblem(err))
	}
	type bridge struct {
		Name      string    `json:"name"`
		Version   string    `json:"version"`
		StartedAt time.Time `json:"started_at"`
		SeenAt    time.Time `json:"seen_at"`
		Connected bool      `json:"connected"`
		Lanes     []string  `json:"lanes"`
		Endpoints []string  `json:"endpoints"`
		Lacking   []string  `json:"lacking,omitempty"`
		Differing []string  `json:"differing,omitempty"`
	}
	shown := struct {
		Bridges []bridge `json:"bridges"`
	}{[]bridge{}}
	now := time.Now()
	living := store.Living(list, now)
	for i := range list {
		b := &list[i]
		item := bridge{
			Name:      b.Name,
			Version:   b.Version,
			StartedAt: b.Started,
			SeenAt:    b.Seen,
			Connected: b.Connected && !b.IsGone(now),
			Lanes:     append([]string{}, b.Lanes...),
			Endpoints: b.EndpointNames(),
		}
		if !b.IsGone(now) {
			item.Lacking, item.Differing = b.Lacking(living), b.Differing(living)
		}
		shown.Bridges = append(shown.Bridges, item)
	}
	return okAnswer(shown)
}
