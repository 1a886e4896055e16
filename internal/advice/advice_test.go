package advice

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"pzbridge/internal/telephony"
)

// declared returns the codes that the package telephony declares.
func declared(t *testing.T) map[telephony.Code]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../telephony/fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[telephony.Code]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok != token.CONST {
			return false
		}
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Code" {
			t.Errorf("%s has no type Code", spec.Names[0])
			return false
		}
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil || codes[telephony.Code(code)] {
			t.Errorf("%s: %q is declared twice, or no text (%v)", spec.Names[0], code, err)
		}
		codes[telephony.Code(code)] = true
		return false
	})
	return codes
}

func TestEachCodeHasAnEntry(t *testing.T) {
	codes := declared(t)
	if len(codes) < 50 {
		t.Errorf("only %d codes are found", len(codes))
	}
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	cyrillic := regexp.MustCompile(`[а-я]`)
	for code := range codes {
		e, ok := entries[code]
		switch {
		case !ok || !cyrillic.MatchString(e.russian):
			t.Errorf("%s has no sentence in Russian", code)
		case !name.MatchString(string(code)):
			t.Errorf("%s is no snake_case", code)
		case e.do != "" && !strings.ContainsAny(e.do[:1], ":; "):
			t.Errorf("%s: %q does not begin with punctuation", code, e.do)
		}
	}
	for code := range entries {
		if !codes[code] {
			t.Errorf("%s has an entry, and is not declared", code)
		}
	}
}

// A setting that the English advice names is named in the Russian sentence too.
func TestBothLanguagesNameTheSameSettings(t *testing.T) {
	setting := regexp.MustCompile(`[A-Z]{2,}(_[A-Z]+)+|\{\d\}`)
	for code, e := range entries {
		for _, name := range setting.FindAllString(e.do, -1) {
			if !strings.Contains(e.russian, name) {
				t.Errorf("%s: the Russian sentence lacks %s", code, name)
			}
		}
	}
}

func TestTextsOfBothLanguages(t *testing.T) {
	full := &telephony.Fault{Code: telephony.CodeFull, Text: "the outbox is full"}
	notOutbox := &telephony.Fault{Code: telephony.CodeNotOutbox, Text: "it is damaged"}
	for _, c := range []struct {
		err              error
		english, russian string
	}{
		{errors.New("no code"), "no code", "no code"},
		{
			full,
			"the outbox is full (OUTBOX_MAX_BYTES)",
			"хранилище заполнено: в нём события, которые CRM ещё не приняла (OUTBOX_MAX_BYTES)",
		},
		{
			full.With(": 2 of 1", "2", "1"),
			"the outbox is full: 2 of 1 (OUTBOX_MAX_BYTES)",
			"хранилище заполнено: в нём события, которые CRM ещё не приняла; занято 2, разрешено 1 (OUTBOX_MAX_BYTES)",
		},
		{ // the outermost cause counts
			fmt.Errorf("restore: %w", &telephony.Fault{Code: telephony.CodeBadBackup, Err: notOutbox}),
			"restore: it is damaged: take another backup",
			"файл — не хранилище или повреждён: возьмите другую резервную копию",
		},
		{ // an outer cause without advice leaves that of the inner one
			fmt.Errorf("%w: %w", telephony.ErrNotKept, full),
			telephony.ErrNotKept.Error() + ": the outbox is full (OUTBOX_MAX_BYTES)",
			"ответ не удалось сохранить, поэтому звонок не переведён",
		},
		{
			errors.Join(errors.New("first"), notOutbox),
			"first\nit is damaged: restore it from a backup, or move it away to start with an empty one",
			"файл — не хранилище или повреждён: восстановите его из резервной копии или уберите, " +
				"чтобы начать с пустого",
		},
		{fmt.Errorf("write: %w", syscall.ENOSPC), "write: no space left on device", "на диске нет места"},
	} {
		if got := English(c.err); got != c.english {
			t.Errorf("%q, not %q", got, c.english)
		}
		if got := Russian(c.err); got != c.russian {
			t.Errorf("%q, not %q", got, c.russian)
		}
		if errors.Unwrap(c.err) != nil {
			continue
		}
		// Kept texts read the same.
		text, cause := c.err.Error(), telephony.CauseOf(c.err)
		if en, ru := EnglishText(text, cause), RussianText(text, cause); ru != c.russian || en != c.english &&
			len(telephony.Causes(c.err)) == 1 {
			t.Errorf("kept: %q, %q", en, ru)
		}
	}
}

// The log says what to do about a warning, and costs nothing more for other lines.
func TestWarningsSayWhatToDo(t *testing.T) {
	err := fmt.Errorf("open: %w", &telephony.Fault{Code: telephony.CodeToNotAllowed, Text: "not allowed"})
	for level, want := range map[slog.Level]string{
		slog.LevelInfo:  `level=INFO msg=failed who=crm err="open: not allowed" times=2`,
		slog.LevelWarn:  `level=WARN msg=failed who=crm err="open: not allowed (CALL_TO)" times=2`,
		slog.LevelError: `level=ERROR msg=failed who=crm err="open: not allowed (CALL_TO)" times=2`,
	} {
		var out bytes.Buffer
		text := slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})
		logger := slog.New(Handler(text)).With("who", "crm")
		logger.Log(t.Context(), level, "failed", "err", err, "times", 2)
		if got := strings.TrimSpace(out.String()); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

// A bridge whose place another one has taken is not told to stop that one, nor to take another
// GUID, as the server's close code has it for a bridge that is alone.
func TestBridgeThatWasReplacedIsNotToldToStopTheOther(t *testing.T) {
	err := &telephony.Fault{
		Code: telephony.CodeTakenOver, Text: "another bridge has taken this one's place at the server",
		Err: &telephony.Fault{Code: telephony.CodeSameGUID, Text: "connection closed with code 4009"},
	}
	if said := English(err); strings.Contains(said, "PZ_CLIENT_GUID") || !strings.Contains(said, "by itself") {
		t.Errorf("it is told %q", said)
	}
}
