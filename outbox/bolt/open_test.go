package bolt

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pzbridge/outbox/store/storetest"
)

// TestOpenSaysWhatIsWrong checks what Open says of a file that is in use, of one that is no outbox
// or has been cut off, and of a folder that cannot be made.
func TestOpenSaysWhatIsWrong(t *testing.T) {
	open := func(place string) error {
		o := storetest.WithDefaults(t, harness{}, storetest.Options{Place: place})
		o.Logger = slog.New(slog.DiscardHandler)
		b, err := storetest.Open(harness{}, o)
		if err == nil {
			err = b.Close()
		}
		return err
	}
	used := harness{}.Place(t)
	storetest.OpenBox(t, harness{}, storetest.Options{Place: used})
	if err := open(used); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one on the file: %v", err)
	}
	foreign := harness{}.Place(t)
	if err := os.WriteFile(foreign, bytes.Repeat([]byte("no outbox "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(foreign); !errors.Is(err, ErrNotOutbox) {
		t.Errorf("a file that is no outbox: %v", err)
	}
	for _, size := range []int64{5000, 9000} { // a copy that was cut off
		place := harness{}.Place(t)
		whole, err := storetest.Open(harness{}, storetest.WithDefaults(t, harness{}, storetest.Options{Place: place}))
		if err != nil {
			t.Fatal(err)
		}
		storetest.MustAppend(t, whole, storetest.Event("call.incoming", "5"))
		if err := whole.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(place, size); err != nil {
			t.Fatal(err)
		}
		if err := open(place); !errors.Is(err, ErrNotOutbox) {
			t.Errorf("a file cut off at %d bytes: %v", size, err)
		}
	}
	err := open(filepath.Join(foreign, "outbox.db")) // its folder is a file
	if err == nil || strings.Count(err.Error(), foreign) != 1 {
		t.Errorf("a folder that cannot be made: %v", err)
	}
}
