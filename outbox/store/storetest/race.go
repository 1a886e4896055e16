//go:build race

package storetest

// dayOfEvents is how many events there are in the test of an endpoint that is down for a day. With
// the race detector everything takes five times as long.
const dayOfEvents = 10_000
