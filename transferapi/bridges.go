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

// listBridges returns the bridges that share the outbox, and what differs between them.
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
		AtWork    bool      `json:"at_work"`
		Connected bool      `json:"connected"`
		Endpoints []string  `json:"endpoints"`
		Differing []string  `json:"differing,omitempty"`
	}
	shown := struct {
		Bridges []bridge `json:"bridges"`
	}{[]bridge{}}
	for _, b := range list {
		shown.Bridges = append(shown.Bridges, bridge{
			Name:      b.Name,
			Version:   b.Version,
			StartedAt: b.Started,
			SeenAt:    b.Seen,
			AtWork:    b.Working,
			Connected: b.Connected,
			Endpoints: b.EndpointNames(),
			Differing: store.DifferingEndpoints(b, list),
		})
	}
	return okAnswer(shown)
}
