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

// A bridge that fails while nobody reads what it says ends all the same, or nobody would start it again.
func TestTheEndIsNotRead(t *testing.T) {
	unread, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	for name, value := range map[string]string{
		"PZ_URL": "ws://127.0.0.1:1", "ENDPOINT_0_NAME": "crm", "ENDPOINT_0_URL": "http://127.0.0.1:1/", "ENDPOINT_0_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
	} {
		t.Setenv(name, value)
	}
	p := Program{Err: written, Bridge: func(_ context.Context, _ config.Config, log *slog.Logger) error {
		for i := range 2000 { // more than a pipe takes
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

// A long line is obeyed, and one that is too long is told of: nobody would know why no line after it is.
func TestLongLinesForTheSimulator(t *testing.T) {
	var says bytes.Buffer
	server := pztest.New(pztest.Options{})
	p := Program{Err: &says, In: strings.NewReader("nonsense " + strings.Repeat("x", 100<<10) + "\n" + strings.Repeat("x", pz.MaxMessage+1) + "\nsimulation off\n")}
	p.readLines(server)
	if said := says.String(); !strings.Contains(said, "is not understood") || !strings.Contains(said, "standard input is not read any more") {
		t.Errorf("it says %.200s", said)
	}
}

// PZBRIDGE_URL may hold the password of a proxy before the bridge.
func TestAddressIsShownWithoutItsPassword(t *testing.T) {
	if shown := (api{url: "https://user:sesame@example.com:8080"}).shown(); strings.Contains(shown, "sesame") || !strings.Contains(shown, "example.com:8080") {
		t.Errorf("it is shown as %s", shown)
	}
}
