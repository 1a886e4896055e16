//go:build !linux

package pgtest

import (
	"os"
	"os/exec"
)

func unprivileged(*exec.Cmd) {}

func giveAway(string) error { return nil }

func parent() string { return os.TempDir() }
