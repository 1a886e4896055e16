//go:build unix

package recordings_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"pzbridge/outbox/store"
)

// A pipe in a folder, which nobody writes to, is no file: opening it would never end.
func TestPipeInAFolder(t *testing.T) {
	folder := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(folder, "1.mp3"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, folder, "")
	if o := b.Send(t.Context(), completed(folder+"/1.mp3", long)); o.Verdict != store.Refused {
		t.Error(verdictOf(o))
	}
}
