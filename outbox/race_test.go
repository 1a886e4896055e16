//go:build race

package outbox

// dayOfEvents is how many there are in TestDownForADay. With the race detector everything takes five times as long.
const dayOfEvents = 10_000
