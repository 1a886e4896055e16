package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/config"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
	"pzbridge/outbox/postgres/pgtest"
)

// A bridge that fails exits even if its log is not read; otherwise a supervisor would not restart
// it.
func TestExitDoesNotWaitForALogReader(t *testing.T) {
	unread, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	for name, value := range map[string]string{
		"PZ_URL":            "ws://127.0.0.1:1",
		"ENDPOINT_0_NAME":   "crm",
		"ENDPOINT_0_URL":    "http://127.0.0.1:1/",
		"ENDPOINT_0_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
	} {
		t.Setenv(name, value)
	}
	p := Program{Err: written, Bridge: func(_ context.Context, _ config.Config, log *slog.Logger) error {
		for i := range 2000 { // more than the buffer of a pipe
			log.Warn(fmt.Sprintf("%0100d", i))
		}
		return errors.New("it has failed")
	}}
	ended := make(chan int, 1)
	go func() { ended <- p.Main(t.Context(), nil) }()
	select {
	case code := <-ended:
		if code != exitFailed {
			t.Errorf("it exits with %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
}

// The simulator executes long lines, and reports one that is too long, since it reads no lines
// after it.
func TestSimulatorReportsATooLongLine(t *testing.T) {
	var stderr bytes.Buffer
	server := pztest.New(pztest.Options{})
	input := "nonsense " + strings.Repeat("x", 100<<10) + "\n" +
		strings.Repeat("x", pz.MaxMessage+1) + "\nsimulation off\n"
	p := Program{Err: &stderr, In: strings.NewReader(input)}
	p.executeLines(server)
	if got := stderr.String(); !strings.Contains(got, "is not understood") ||
		!strings.Contains(got, "standard input is not read any more") {
		t.Errorf("it prints %.200s", got)
	}
}

// PZBRIDGE_URL may contain the password of a proxy in front of the bridge.
func TestShownAddressHasNoPassword(t *testing.T) {
	address := (api{url: "https://user:sesame@example.com:8080"}).redactedURL()
	if strings.Contains(address, "sesame") || !strings.Contains(address, "example.com:8080") {
		t.Errorf("it is shown as %s", address)
	}
}

// setVariables sets the smallest configuration, with the outbox in a database whose password is
// sesame.
func setVariables(t *testing.T) {
	t.Helper()
	for name, value := range map[string]string{
		"PZ_URL":            "ws://127.0.0.1:1",
		"ENDPOINT_0_NAME":   "crm",
		"ENDPOINT_0_URL":    "http://127.0.0.1:1/",
		"ENDPOINT_0_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"OUTBOX_PATH":       filepath.Join(t.TempDir(), "outbox.db"),
		"OUTBOX_URL":        "postgres://bridge:sesame@db1,db2:5433/calls?sslmode=require",
		"OUTBOX_SCHEMA":     "tables",
		"BRIDGE_NAME":       "first",
	} {
		t.Setenv(name, value)
	}
}

// The commands for the file say what to use instead if the outbox is a database, and touch no file.
func TestCommandsForTheFileAreRefusedWithADatabase(t *testing.T) {
	setVariables(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"compact"}, "there is no file to compact: autovacuum of PostgreSQL"},
		{[]string{"restore", "backup.db"}, "there is no file to restore: use PostgreSQL's own tools, pg_restore"},
	} {
		var out, stderr bytes.Buffer
		code := (Program{Out: &out, Err: &stderr}).Main(t.Context(), c.args)
		if says := stderr.String(); code != exitUsage || out.Len() > 0 || strings.Count(says, "\n") != 1 ||
			!strings.HasPrefix(says, "pzbridge: with OUTBOX_URL "+c.says) || strings.Contains(says, "sesame") {
			t.Errorf("%v: exit code %d, %q, %q", c.args, code, says, out.String())
		}
	}
	if _, err := os.Stat(os.Getenv("OUTBOX_PATH")); !os.IsNotExist(err) {
		t.Errorf("there is a file: %v", err)
	}
}

// A database that cannot be reached is named as every other mistake is, after the rest was judged.
func TestCheckShowsTheDatabaseWithoutItsPassword(t *testing.T) {
	setVariables(t)
	var out, stderr bytes.Buffer
	code := (Program{Out: &out, Err: &stderr}).Main(t.Context(), []string{"check"})
	if says := stderr.String(); code != exitUsage || strings.Count(says, "\n  OUTBOX_URL: ") != 2 ||
		!strings.HasPrefix(says, "pzbridge: the configuration is wrong:\n  OUTBOX_URL: ") ||
		!strings.Contains(says, "db1") || !strings.Contains(says, "db2") || strings.Contains(out.String(), "is right") {
		t.Errorf("exit code %d: %s", code, says)
	}
	for _, want := range []string{
		"\nThe outbox is the database calls at db1,db2:5433, schema tables; OUTBOX_PATH has no meaning then.\n",
		"\nWarning: OUTBOX_URL leads to db1 without sslmode=verify-full",
		" tables\n", " first\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
	if all := out.String() + stderr.String(); strings.Contains(all, "sesame") {
		t.Errorf("the password is shown:\n%s", all)
	}
}

// The checks of a database that can be used say so, and what is risky about it, and fail nothing.
func TestCheckLooksAtTheDatabase(t *testing.T) {
	setVariables(t)
	t.Setenv("OUTBOX_URL", pgtest.Shared(t).Database(t))
	var out, stderr bytes.Buffer
	if code := (Program{Out: &out, Err: &stderr}).Main(t.Context(), []string{"check"}); code != exitDone {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	for _, want := range []string{
		" is the primary, PostgreSQL ",
		"\nWarning: the database: no standby is connected to ",
		"\nThe configuration is right.\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
}
