package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/config"
	"pzbridge/internal/pz"
	"pzbridge/internal/pztest"
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
