//go:build !race

package outbox

// dayOfEvents is how many there are in TestDownForADay.
const dayOfEvents = 100_000
