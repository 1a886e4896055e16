package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"pzbridge/internal/config"
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

// PZBRIDGE_URL may hold the password of a proxy before the bridge.
func TestAddressIsShownWithoutItsPassword(t *testing.T) {
	if shown := (api{url: "https://user:sesame@example.com:8080"}).shown(); strings.Contains(shown, "sesame") || !strings.Contains(shown, "example.com:8080") {
		t.Errorf("it is shown as %s", shown)
	}
}
