package outbound

import (
	"testing"
	"time"
)

// TestRetryAfterIsReadAndBounded checks what is read of the header: seconds or a date, an hour at
// most, and nothing of anything else.
func TestRetryAfterIsReadAndBounded(t *testing.T) {
	now := time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"5":                             5 * time.Second,
		"-5":                            0,
		"1.5":                           0,
		"soon":                          0,
		"31536000":                      time.Hour,
		"99999999999":                   time.Hour,
		"Mon, 23 Nov 2026 06:00:30 GMT": 30 * time.Second,
		"Mon, 23 Nov 2026 05:00:00 GMT": 0,
	} {
		if got := parseRetryAfter(header, now); got != want {
			t.Errorf("%q: got %s, want %s", header, got, want)
		}
	}
}
