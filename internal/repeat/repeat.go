// Package repeat keeps a failure that goes on from filling the log: it is told when it begins, when it changes and every
// 30 s while it lasts, then once that it is over.
package repeat

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// period is how often a failure that does not change is told again.
const period = 30 * time.Second

// Log tells of one thing that may fail again and again. Its zero value is not ready: use New.
type Log struct {
	logger *slog.Logger

	mu    sync.Mutex
	text  string    // of the failure that lasts; empty while all is well
	told  time.Time // when it was last logged
	count int       // failures since the last success
}

// New gives a Log that writes to logger.
func New(logger *slog.Logger) *Log { return &Log{logger: logger} }

// Failed says that the thing failed once more. The message is constant, err says what is new.
func (l *Log) Failed(message string, err error, args ...any) {
	l.mu.Lock()
	l.count++
	text, count := message+err.Error(), l.count
	quiet := text == l.text && time.Since(l.told) < period
	if !quiet {
		l.text, l.told = text, time.Now()
	}
	l.mu.Unlock()
	if !quiet {
		l.logger.Log(context.Background(), slog.LevelWarn, message, append([]any{"err", err.Error(), "failures", count}, args...)...)
	}
}

// Recovered says that the thing works. It logs only where it had failed before.
func (l *Log) Recovered(message string, args ...any) {
	if count := l.Reset(); count > 0 {
		l.logger.Log(context.Background(), slog.LevelInfo, message, append([]any{"failures", count}, args...)...)
	}
}

// Reset is Recovered for a caller with words of its own: it gives the failures since the last success.
func (l *Log) Reset() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := l.count
	l.text, l.count = "", 0
	return count
}

// Tally tells now and then how often something has happened that strangers can make happen as often as they like. Its zero value is not ready: use NewTally.
type Tally struct {
	logger *slog.Logger

	mu    sync.Mutex
	told  time.Time // when it was last logged
	count int       // since then
}

// NewTally gives a Tally that writes to logger.
func NewTally(logger *slog.Logger) *Tally { return &Tally{logger: logger} }

// Happened says that it has happened once more. It logs the first time, and then every 30 s at most, with how often it has happened since the line before.
func (t *Tally) Happened(message string, args ...any) {
	t.mu.Lock()
	t.count++
	count, quiet := t.count, !t.told.IsZero() && time.Since(t.told) < period
	if !quiet {
		t.told, t.count = time.Now(), 0
	}
	t.mu.Unlock()
	if !quiet {
		t.logger.Log(context.Background(), slog.LevelWarn, message, append(args, "times", count)...)
	}
}
