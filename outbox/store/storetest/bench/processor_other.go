//go:build !unix

package bench

import (
	"testing"
	"time"
)

// ProcessorTime skips the benchmark.
func ProcessorTime(b *testing.B) time.Duration {
	b.Helper()
	b.Skip("how much of the processor a process has used is measured on Unix only")
	return 0
}
