package advice

import (
	"context"
	"log/slog"
	"slices"

	"pzbridge/internal/telephony"
)

// Handler returns a slog.Handler that writes, in lines of level warning and above, each error with
// what to do about it, and without the telephone numbers in it.
func Handler(next slog.Handler) slog.Handler { return handler{next} }

type handler struct{ slog.Handler }

// Handle passes on a line. Lines of lower levels go through as they are, since there is one for
// each event and for each attempt.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		r = explained(r)
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs returns the handler with more attributes.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

// WithGroup returns the handler for a group.
func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }

// quoting are the attributes whose texts come from errors or from other programs, and may quote a
// telephone number.
var quoting = []string{"err", "number", "frame", "starts_with", "response", "reason"}

// explained returns a record with texts in place of its errors, in which numbers are masked.
func explained(r slog.Record) slog.Record {
	out := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Value.Kind() == slog.KindAny {
			if err, ok := a.Value.Any().(error); ok {
				a.Value = slog.StringValue(English(err))
			}
		}
		if a.Value.Kind() == slog.KindString && slices.Contains(quoting, a.Key) {
			a.Value = slog.StringValue(telephony.MaskNumbers(a.Value.String()))
		}
		out.AddAttrs(a)
		return true
	})
	return out
}
