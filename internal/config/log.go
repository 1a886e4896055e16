package config

import (
	"io"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/lmittmann/tint"

	"pzbridge/internal/advice"
)

// The values of LOG_FORMAT.
const (
	formatAuto = "auto" // text on a terminal, else JSON
	formatJSON = "json"
	formatText = "text"
)

// LogOutput describes what the log is written to.
type LogOutput struct {
	Terminal bool // a person sees it
	Colour   bool // it shows colours
}

// Logger makes a logger that writes to out, in the configured format and from the configured level.
// Where several bridges may share the outbox, each line has the name of this one.
func (c Config) Logger(out io.Writer, o LogOutput) *slog.Logger {
	var h slog.Handler
	if c.LogFormat == formatText || c.LogFormat == formatAuto && o.Terminal {
		h = tint.NewTextHandler(out, &tint.Options{
			Level:       c.LogLevel,
			ReplaceAttr: legible,
			TimeFormat:  "2006-01-02 15:04:05.000",
			NoColor:     !o.Colour,
		})
	} else {
		h = slog.NewJSONHandler(out, &slog.HandlerOptions{Level: c.LogLevel, ReplaceAttr: shorten})
	}
	logger := slog.New(advice.Handler(h))
	if c.OutboxURL != "" {
		return logger.With("bridge", c.BridgeName)
	}
	return logger
}

// maxLogged is the maximum number of bytes of a string value in the log. A value from the exchange,
// such as a call's ID, may be very long and recur in many lines.
const maxLogged = 1 << 10

// shorten cuts a string attribute, or the text of an error, to maxLogged bytes.
func shorten(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindAny {
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(err.Error())
		}
	}
	if a.Value.Kind() == slog.KindString && len(a.Value.String()) > maxLogged {
		return slog.String(a.Key, strings.ToValidUTF8(a.Value.String()[:maxLogged], "")+"…")
	}
	return a
}

// brightRed is the number of a colour of terminals.
const brightRed = 9

// legible is shorten for the format text. It replaces what is not printable in a value by blanks: a
// value may come from a caller, and the library writes escape sequences as they are in colour, and
// without colour drops what follows an invalid character.
func legible(groups []string, a slog.Attr) slog.Attr {
	a = shorten(groups, a)
	_, isLevel := a.Value.Any().(slog.Level)
	if kind := a.Value.Kind(); kind == slog.KindString || kind == slog.KindAny && !isLevel {
		a.Value = slog.StringValue(strings.Map(printable, a.Value.String()))
	}
	if a.Key == "err" {
		return tint.Attr(brightRed, a)
	}
	return a
}

// printable returns a character, or a blank in place of one that is invalid or controls a terminal.
func printable(r rune) rune {
	if r == utf8.RuneError || !unicode.IsPrint(r) {
		return ' '
	}
	return r
}
