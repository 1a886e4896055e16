package store

import (
	"maps"
	"slices"
	"time"
)

// maxUnseen is how long a bridge may not have announced itself before it counts as gone. It
// announces itself each second; the rest is for a slow database.
const maxUnseen = 10 * time.Second

// IsGone reports whether a bridge has not announced itself for so long that it does not run, or
// cannot reach the outbox.
func (b *Bridge) IsGone(now time.Time) bool { return now.Sub(b.Seen) > maxUnseen }

// Living returns the bridges of a list that are not gone.
func Living(list []Bridge, now time.Time) (living []Bridge) {
	for i := range list {
		if !list[i].IsGone(now) {
			living = append(living, list[i])
		}
	}
	return living
}

// EndpointNames returns the names of the configured endpoints.
func (b *Bridge) EndpointNames() []string {
	return slices.Sorted(maps.Keys(b.Endpoints))
}

// DifferingEndpoints returns the endpoints that a bridge lacks, or has configured in another way
// than another one of the list, by name.
func DifferingEndpoints(b Bridge, list []Bridge) []string {
	return slices.Sorted(slices.Values(append(b.Lacking(list), b.Differing(list)...)))
}

// Lacking returns the endpoints that another bridge of a list has and this one has not, by name.
func (b *Bridge) Lacking(list []Bridge) (names []string) {
	for i := range list {
		for name := range list[i].Endpoints {
			if _, has := b.Endpoints[name]; !has {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Differing returns the endpoints of a bridge that another one of a list has configured in another
// way, by name.
func (b *Bridge) Differing(list []Bridge) (names []string) {
	for name, hash := range b.Endpoints {
		if slices.ContainsFunc(list, func(other Bridge) bool {
			theirs, has := other.Endpoints[name]
			return has && theirs != hash
		}) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
