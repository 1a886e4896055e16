package pgtest

import (
	"cmp"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// needed are the programs that must be there.
var needed = []string{"initdb", "postgres", "pg_ctl", "pg_basebackup", "psql"}

// Found returns which program of PostgreSQL is missing, or nil if a server can be started.
func Found() error {
	_, err := programs()
	return err
}

// program returns the path of a program of PostgreSQL.
func program(name string) (string, error) {
	folder, err := programs()
	return filepath.Join(folder, name), err
}

// programs returns the folder of PostgreSQL's programs. Debian keeps those of a server out of PATH,
// since several versions may be installed: the newest is taken.
var programs = sync.OnceValues(func() (folder string, err error) {
	if runtime.GOOS != "linux" {
		return "", errors.New("the tests start PostgreSQL on Linux only")
	}
	folders, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	slices.SortFunc(folders, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
	if path, err := exec.LookPath(needed[0]); err == nil {
		folders = append([]string{filepath.Dir(path)}, folders...)
	}
	missing := needed[0]
	for i, folder := range folders {
		switch name := missingIn(folder); {
		case name == "":
			return folder, nil
		case i == 0:
			missing = name
		}
	}
	return "", fmt.Errorf("PostgreSQL's %s is neither in PATH nor in /usr/lib/postgresql/*/bin", missing)
})

// missingIn returns the first program that a folder lacks, or nothing.
func missingIn(folder string) string {
	for _, name := range needed {
		if _, err := exec.LookPath(filepath.Join(folder, name)); err != nil {
			return name
		}
	}
	return ""
}

// version returns the version in the path of a folder of programs.
func version(folder string) float64 {
	v, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(folder)), 64)
	return v
}
