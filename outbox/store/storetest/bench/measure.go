package bench

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Took is how long something takes.
func Took(b *testing.B, do func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// Steadily does two things b.N times, 50 times a second, the second in the middle between two of
// the first, and returns how long they said that they took.
func Steadily(b *testing.B, ours, theirs func(i int) time.Duration) (first, second []time.Duration) {
	b.Helper()
	const gap = 20 * time.Millisecond
	ticks := time.NewTicker(gap)
	defer ticks.Stop()
	b.ResetTimer()
	for i := range b.N {
		<-ticks.C
		first = append(first, ours(i))
		<-time.After(gap / 2) // its outcome is recorded by now
		second = append(second, theirs(i))
	}
	return first, second
}

// InParallel does n things from so many goroutines.
func InParallel(b *testing.B, goroutines, n int, do func(i int) error) time.Duration {
	b.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for i := g; i < n; i += goroutines {
				if err := do(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// Percentile is the time that so many percent of some times, 99 at most, do not exceed.
func Percentile(times []time.Duration, percent int) time.Duration {
	return slices.Sorted(slices.Values(times))[len(times)*percent/100]
}

// RSSAnon is how much memory of its own a process has, in MiB: a mapped file is not in it. Process
// is its number, or "self".
func RSSAnon(b testing.TB, process string) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		b.Skip("only Linux says how much memory is a process's own: ", err)
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	b.Fatal("no RssAnon in ", string(status))
	return 0
}
