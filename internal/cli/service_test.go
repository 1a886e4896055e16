package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kardianos/service"

	"pzbridge/internal/config"
)

var update = flag.Bool("update", false, "write the unit in packaging anew")

// The unit for those who install it themselves is the one that "service install" makes.
func TestUnitInPackagingIsTheInstalledOne(t *testing.T) {
	const file = "../../packaging/pzbridge.service"
	want := Unit("/usr/local/bin/pzbridge", "/etc/pzbridge/.env", "pzbridge")
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		t.Errorf("%v; make it anew with -update; want\n%s", err, want)
	}
}

// systemd takes the unit, also with paths that hold what it would expand.
func TestSystemdTakesTheUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze on this machine")
	}
	folder, settings := filepath.Join(t.TempDir(), "a b%n"), filepath.Join(t.TempDir(), `a "b"%n$HOME\`)
	if err := errors.Join(os.Mkdir(folder, 0o700), os.Mkdir(settings, 0o700)); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "pzbridge")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "pzbridge.service")
	if err := os.WriteFile(unit, []byte(Unit(program, filepath.Join(settings, ".env"), "")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), "pzbridge") {
		t.Errorf("%v: %s", err, out)
	}
}

// journal stands for the event log of Windows.
type journal struct {
	service.Logger
	lines []string
}

func (j *journal) add(level string, v ...any) error {
	j.lines = append(j.lines, level+" "+fmt.Sprint(v...))
	return nil
}

func (j *journal) Info(v ...any) error    { return j.add("info", v...) }
func (j *journal) Warning(v ...any) error { return j.add("warning", v...) }
func (j *journal) Error(v ...any) error   { return j.add("error", v...) }

// The event log of Windows gets each line with its level, in both formats of the log.
func TestEventLogKnowsTheLevel(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		j := &journal{}
		logger := config.Config{LogFormat: format}.Logger(eventLog{j}, config.LogOutput{})
		logger.Info("started")
		logger.Warn("late", "err", "ERR of something else")
		logger.Error("broken")
		for i, want := range []string{"info", "warning", "error"} {
			if len(j.lines) != 3 || !strings.HasPrefix(j.lines[i], want+" ") || strings.HasSuffix(j.lines[i], "\n") {
				t.Errorf("%s: %q", format, j.lines)
				break
			}
		}
	}
}

// The service manager's stop ends the bridge and waits for it; a bridge that ends by itself is
// reported, so that it is started again.
func TestHostedBridgeEndsWithItsService(t *testing.T) {
	stopped := false
	h := &hosted{
		ended: make(chan struct{}),
		run: func(ctx context.Context) error {
			<-ctx.Done()
			stopped = true
			return nil
		},
		failed: func(err error) { t.Errorf("it has failed: %v", err) },
	}
	if err := errors.Join(h.Start(nil), h.Stop(nil)); err != nil || !stopped {
		t.Errorf("%v, stopped: %t", err, stopped)
	}
	for _, ends := range []error{nil, errors.New("the port is taken")} {
		reported := make(chan error, 1)
		h := &hosted{
			ended:  make(chan struct{}),
			run:    func(context.Context) error { return ends },
			failed: func(err error) { reported <- err },
		}
		_ = h.Start(nil)
		if err := <-reported; !errors.Is(err, ends) {
			t.Errorf("reported: %v, want %v", err, ends)
		}
		_ = h.Stop(nil)
	}
}
