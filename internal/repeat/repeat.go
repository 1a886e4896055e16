// Package repeat keeps a lasting failure from filling the log: it logs the failure when it begins,
// when it changes, and every 30 s while it lasts, and then its end once.
package repeat

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// period is the interval at which an unchanged failure is logged again.
const period = 30 * time.Second

// Log logs the failures of one operation that may fail repeatedly. Its zero value is not ready: use
// New. Its methods are safe for concurrent use.
type Log struct {
	logger *slog.Logger

	mu       sync.Mutex
	text     string    // of the lasting failure; empty after a success
	loggedAt time.Time // when it was last logged
	count    int       // failures since the last success
}

// New returns a Log that writes to logger.
func New(logger *slog.Logger) *Log { return &Log{logger: logger} }

// Failed records a failure and logs it at level warning, unless the same failure was logged less
// than 30 s ago. The message is constant; err is what may change. Args are further attributes, as
// in slog.
func (l *Log) Failed(message string, err error, args ...any) {
	l.mu.Lock()
	l.count++
	text, count := message+err.Error(), l.count
	quiet := text == l.text && time.Since(l.loggedAt) < period
	if !quiet {
		l.text, l.loggedAt = text, time.Now()
	}
	l.mu.Unlock()
	if !quiet {
		args = append([]any{"err", err, "failures", count}, args...)
		l.logger.Log(context.Background(), slog.LevelWarn, message, args...)
	}
}

// Recovered records a success, and logs it at level info if there was a failure before it.
func (l *Log) Recovered(message string, args ...any) {
	if count := l.Reset(); count > 0 {
		args = append([]any{"failures", count}, args...)
		l.logger.Log(context.Background(), slog.LevelInfo, message, args...)
	}
}

// Reset records a success without logging it, for a caller that writes its own line. It returns the
// number of failures since the last success.
func (l *Log) Reset() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := l.count
	l.text, l.count = "", 0
	return count
}

// Tally logs, at most every 30 s, how often something has happened that outsiders can cause without
// limit. Its zero value is not ready: use NewTally. Its methods are safe for concurrent use.
type Tally struct {
	logger *slog.Logger

	mu       sync.Mutex
	loggedAt time.Time // when it was last logged
	count    int       // occurrences since then
}

// NewTally returns a Tally that writes to logger.
func NewTally(logger *slog.Logger) *Tally { return &Tally{logger: logger} }

// Happened records one occurrence. It logs the first one, and later at most one line every 30 s,
// with the number of occurrences since the previous line.
func (t *Tally) Happened(message string, args ...any) {
	t.mu.Lock()
	t.count++
	count, quiet := t.count, !t.loggedAt.IsZero() && time.Since(t.loggedAt) < period
	if !quiet {
		t.loggedAt, t.count = time.Now(), 0
	}
	t.mu.Unlock()
	if !quiet {
		t.logger.Log(context.Background(), slog.LevelWarn, message, append(args, "times", count)...)
	}
}
