package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pzbridge/internal/pztest"
)

// What the service runs takes the settings of its file and works in the folder of it, wherever it
// is started; a file that is wrong or not there ends it with the exit code that is not tried again.
func TestServiceRunsInTheFolderOfItsSettings(t *testing.T) {
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	folder := t.TempDir()
	vars := variables(t, server, newReceiver(t, nil), "OUTBOX_PATH=data/outbox.db")
	var settings strings.Builder
	for name, value := range vars {
		settings.WriteString(name + "='" + value + "'\n")
	}
	file := filepath.Join(folder, "office.env")
	if err := os.WriteFile(file, []byte(settings.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	bridge := start(t, nil, "service", "run", "-env", file)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	if _, err := os.Stat(filepath.Join(folder, "data", "outbox.db")); err != nil {
		t.Error(err)
	}
	if err := bridge.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	bridge.endsWell(t)
	for file, says := range map[string]string{
		filepath.Join(folder, "none.env"): "none.env: no such file",
		os.DevNull:                        "PZ_URL: is missing",
	} {
		for _, action := range []string{"run", "install"} {
			p := start(t, nil, "service", action, "-env", file)
			if code := p.exitCode(); code != 2 || !strings.Contains(p.log.String(), says) {
				t.Errorf("%s %s: exit code %d, %s", action, file, code, p.log)
			}
		}
	}
}
