//go:build !race

package storetest

// dayOfEvents is how many events there are in the test of an endpoint that is down for a day.
const dayOfEvents = 100_000
