package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pzbridge/internal/pztest"
)

// An upgrade puts a copy of the file into BACKUP_DIR before it gets its new layout. If that is not
// possible, the start fails, says what to do, and leaves the file to the version before.
func TestUpgradeCopiesTheOutboxFirst(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	old, err := os.ReadFile("outbox/bolt/testdata/layout3.db")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "copies")
	vars := variables(t, server, newReceiver(t, nil), "BACKUP_DIR="+folder)
	if err := os.WriteFile(vars["OUTBOX_PATH"], old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder, nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	refused := start(t, vars)
	eventually(t, "the start fails", func() bool {
		return strings.Contains(refused.log.String(), "make room in "+folder)
	})
	if code := refused.exitCode(); code != 1 {
		t.Errorf("exit code %d: %s", code, refused.log)
	}
	if now, err := os.ReadFile(vars["OUTBOX_PATH"]); err != nil || string(now) != string(old) {
		t.Errorf("the file has changed, %v", err)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	start(t, vars)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	copies, err := filepath.Glob(filepath.Join(folder, "outbox-*-before-layout-*.db"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("there is %q, %v", copies, err)
	}
	vars["OUTBOX_PATH"] = filepath.Join(t.TempDir(), "restored.db")
	if p := start(t, vars, "restore", copies[0]); p.exitCode() != 0 {
		t.Errorf("it cannot be restored: %s", p.log)
	}
}
