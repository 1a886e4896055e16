package store

import (
	"context"
	"maps"
	"slices"
	"time"
)

// Bridges are the processes that share what an engine stores. An engine of one process has none.
type Bridges interface {
	// Announce stores how a bridge stands, in place of what one of its name has said before.
	Announce(ctx context.Context, b Bridge) error
	// Bridges returns the bridges that were seen since a time, by name.
	Bridges(ctx context.Context, since time.Time) ([]Bridge, error)
}

// Bridge is a process that runs on an engine.
type Bridge struct {
	Name    string
	Version string
	Started time.Time
	Seen    time.Time // when it announced itself last
	// Working means that the bridge is at work, not a spare; Connected that it is connected to the
	// exchange.
	Working, Connected bool
	// Endpoints are the configured ones, with a hash of all that must be the same at each bridge.
	Endpoints map[string]string
}

// EndpointNames returns the names of the configured endpoints.
func (b *Bridge) EndpointNames() []string {
	return slices.Sorted(maps.Keys(b.Endpoints))
}

// DifferingEndpoints returns the endpoints of a bridge that another one of the list lacks or has
// configured in another way, by name.
func DifferingEndpoints(b Bridge, list []Bridge) (names []string) {
	for name, hash := range b.Endpoints {
		if slices.ContainsFunc(list, func(other Bridge) bool { return other.Endpoints[name] != hash }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
