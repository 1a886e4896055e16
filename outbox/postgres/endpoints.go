package postgres

import (
	"context"
	"maps"
	"slices"
	"sync"

	"pzbridge/outbox/store"
)

// endpoints are those that the database knows, also those that are configured no longer.
type endpoints struct {
	mu     sync.Mutex
	byName map[string]int16
}

// id returns the ID of an endpoint, and false if the database knows none of that name.
func (e *endpoints) id(name string) (id int16, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, known = e.byName[name]
	return id, known
}

// names lists the endpoints.
func (e *endpoints) names() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.byName))
}

// ids lists the IDs of the endpoints.
func (e *endpoints) ids() []int16 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.byName))
}

// idsOf lists the IDs of endpoints that the database knows.
func (e *endpoints) idsOf(names []string) []int16 {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]int16, len(names))
	for i, name := range names {
		list[i] = e.byName[name]
	}
	return list
}

// name returns the name of an endpoint.
func (e *endpoints) name(id int16) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, other := range e.byName {
		if other == id {
			return name
		}
	}
	return ""
}

// set sets what the database knows.
func (e *endpoints) set(byName map[string]int16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.byName = byName
}

// addEndpoints adds the configured endpoints to the database, and reads those that it knows.
func (s *Engine) addEndpoints(ctx context.Context) error {
	if err := s.change(ctx, func(tx *txn) error {
		names := slices.Sorted(slices.Values(s.rules.Endpoints))
		// A name that is there takes no number of the sequence.
		tx.write(`INSERT INTO endpoint (name) SELECT * FROM unnest($1::text[]) AS e(name)
			WHERE NOT EXISTS (SELECT FROM endpoint WHERE endpoint.name = e.name) ON CONFLICT DO NOTHING`, names)
		return nil
	}); err != nil {
		return err
	}
	return s.readSubscriptions(ctx)
}

// rowsOf returns what the rules of order see of an endpoint's deliveries, for a rule about that of
// an event.
func (tx *txn) rowsOf(endpoint int16, n uint64, e *store.Event) *rows {
	return &rows{tx: tx, endpoint: endpoint, n: n, call: e.Call, sequence: e.Sequence}
}
