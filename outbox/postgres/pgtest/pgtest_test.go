package pgtest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestKilledServerHasWhatItHasCommitted checks that a server that was killed starts again with what
// it had.
func TestKilledServerHasWhatItHasCommitted(t *testing.T) {
	t.Parallel()
	s := New(t)
	s.SQL(t, "CREATE TABLE t AS SELECT 1 AS a")
	for _, end := range []func(testing.TB){s.Kill, s.Stop} {
		end(t)
		s.Start(t)
		if got := s.SQL(t, "SELECT a, 'b' FROM t"); got != "1|b" {
			t.Errorf("the table has %q", got)
		}
	}
}

// TestStandbyTakesOver checks that a standby has what its primary had confirmed when it was killed,
// and accepts changes once it is promoted.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	primary := New(t, "fsync=on")
	if got := primary.SQL(t, "SHOW fsync"); got != "on" {
		t.Errorf("fsync is %s", got)
	}
	standby := primary.Standby(t, "second")
	primary.SQL(t, "CREATE TABLE t AS SELECT 1 AS a")
	primary.Kill(t)
	standby.Promote(t)
	standby.SQL(t, "INSERT INTO t VALUES (2)")
	if got := standby.SQL(t, "SELECT a FROM t ORDER BY a"); got != "1\n2" {
		t.Errorf("the table has %q", got)
	}
}

// TestFrozenServerGoesOn checks that a frozen server answers nothing until it goes on, and that it
// can be killed while it is frozen.
func TestFrozenServerGoesOn(t *testing.T) {
	t.Parallel()
	s := New(t)
	s.Freeze(t)
	answered := make(chan string, 1)
	go func() { answered <- s.SQL(t, "SELECT 1") }()
	select {
	case got := <-answered:
		t.Errorf("a frozen server answers %q", got)
	case <-time.After(200 * time.Millisecond):
	}
	s.Thaw(t)
	if got := <-answered; got != "1" {
		t.Errorf("it answers %q", got)
	}
	s.Freeze(t)
	s.Kill(t)
	s.Start(t)
}

// TestDatabasesAreEmpty checks that each test has a database of its own, also in a bubble, and that
// it goes with the test.
func TestDatabasesAreEmpty(t *testing.T) {
	s := Shared(t)
	var address string
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			address = s.Database(t)
			SQL(t, address, "CREATE TABLE t ()")
		})
	}
	name := address[strings.LastIndex(address, "/")+1 : strings.Index(address, "?")]
	if got := s.SQL(t, "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'"); got != "0" {
		t.Errorf("%s is still there", name)
	}
}

// TestServerEndsWithItsTests checks that a server ends, and its folder goes, when the process of
// its tests is killed.
func TestServerEndsWithItsTests(t *testing.T) {
	if os.Getenv("PGTEST_CHILD") != "" {
		s := Shared(t)
		s.Freeze(t)
		server, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, _, _ := strings.Cut(string(server), "\n")
		fmt.Println("\n" + s.folder + " " + pid)
		select {}
	}
	need(t)
	child := exec.Command(os.Args[0], "-test.run=^TestServerEndsWithItsTests$")
	child.Env = append(os.Environ(), "PGTEST_CHILD=1")
	stdout, err := child.StdoutPipe()
	if err != nil || child.Start() != nil {
		t.Fatal("the tests cannot be started once more")
	}
	var folder, pid string
	for lines := bufio.NewScanner(stdout); pid == "" && lines.Scan(); {
		_, _ = fmt.Sscan(lines.Text(), &folder, &pid)
	}
	if _, err := os.Stat("/proc/" + pid); pid == "" || err != nil {
		t.Fatalf("there is no server %q in %q", pid, folder)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	for _, path := range []string{folder, "/proc/" + pid} {
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(path); os.IsNotExist(err) {
				break
			}
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s is still there", path)
			}
		}
	}
}
