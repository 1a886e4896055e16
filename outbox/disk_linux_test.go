package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// swapFile puts another file under the descriptor with which the outbox writes, and returns what puts the right one back. Neither may be done in the middle of a
// commit: written to one file and synced to the other, it would seem to have gone well.
func swapFile(t *testing.T, path, other string, mode int) (restore func()) {
	t.Helper()
	open := descriptors(t, path)
	if len(open) != 1 {
		t.Fatalf("%d descriptors of %s are open", len(open), path)
	}
	fd := open[0]
	saved, err := syscall.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(other, mode, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Dup3(int(f.Fd()), fd, syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Dup3(saved, fd, syscall.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Close(saved)
	}
}

// descriptors gives this process's descriptors of a file.
func descriptors(t *testing.T, path string) (list []int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != path {
			continue
		}
		fd, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, fd)
	}
	return list
}

// While the disk fails, Append says so and readiness is red; an outcome that cannot be recorded holds its delivery, so that the CRM is not sent
// it over and over. When the disk is back all goes on, and nothing that was acknowledged is lost.
func TestDiskFailsForAWhile(t *testing.T) {
	for name, device := range map[string]string{"no space": "/dev/full", "sync fails": "/dev/null", "read only": ""} {
		t.Run(name, func(t *testing.T) {
			var answer chan struct{}
			c := &crm{answer: func(int, received, http.ResponseWriter) {
				<-answer
				time.Sleep(100 * time.Millisecond)
			}}
			bubble(t, c, func(t *testing.T) {
				answer = make(chan struct{})
				path := filepath.Join(t.TempDir(), "outbox.db")
				one := endpoint("crm")
				one.Concurrency = 1
				o := openOutbox(t, Options{Path: path, DialContext: c.net.Dial, Endpoints: []Endpoint{one}})
				stop := run(t, o)
				const others = 8
				mustAppend(t, o, event("call.incoming", "5"))
				for i := range others {
					mustAppend(t, o, event("call.completed", fmt.Sprint(10+i)))
				}
				synctest.Wait() // the first attempt waits for its answer

				mode := os.O_RDWR
				if device == "" { // the file itself, but not to be written
					device, mode = path, os.O_RDONLY
				}
				restore := swapFile(t, path, device, mode)
				refused := event("call.incoming", "6")
				if err := o.Append(t.Context(), []telephony.Event{refused}); err == nil {
					t.Error("Append says nothing")
				}
				if o.Writable() == nil {
					t.Error("readiness is green")
				}
				close(answer)
				time.Sleep(time.Minute)
				// Nothing that could not be recorded is sent, but for what had been ordered.
				sent := map[string]int{}
				for _, r := range c.received() {
					sent[r.header.Get("webhook-id")]++
				}
				if n := len(c.received()); n > 3 || len(sent) != n {
					t.Errorf("the CRM was sent %v", sent)
				}
				synctest.Wait()
				restore()
				time.Sleep(10 * time.Second)
				mustAppend(t, o, refused)
				if err := o.Writable(); err != nil {
					t.Errorf("afterwards readiness is red: %v", err)
				}
				synctest.Wait()
				stop()
				if got := states(t, o, "crm"); got[delivered] != 2+others || len(c.received()) != 2+others {
					t.Errorf("states: %v, %d webhooks", got, len(c.received()))
				}
			})
		})
	}
}

// A stop ends within its grace also while outcomes cannot be recorded. They are made again after the start.
func TestStopsWhileTheDiskIsFull(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		o := openOutbox(t, Options{Path: path, DialContext: c.net.Dial, Endpoints: []Endpoint{endpoint("crm")}, Grace: 10 * time.Second})
		for i := range 20 {
			mustAppend(t, o, event("call.completed", fmt.Sprint(i)))
		}
		restore := swapFile(t, path, "/dev/full", os.O_RDWR)
		stop := run(t, o)
		time.Sleep(time.Minute)
		began := time.Now()
		stop()
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("it took %s", took)
		}
		restore()
		if got := states(t, o, "crm"); got[pending] != 20 {
			t.Errorf("states: %v", got)
		}
	})
}

// Whoever compacts or restores, often root, leaves a file that the bridge can open as before: one with the mode and the owner of the file before, or else with
// the owner of the folder.
func TestOwnerIsKept(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	folder := t.TempDir()
	path, backup, fresh := filepath.Join(folder, "outbox.db"), filepath.Join(t.TempDir(), "backup.db"), filepath.Join(folder, "fresh.db")
	for _, path := range []string{path, backup} {
		o, err := Open(withDefaults(t, Options{Path: path, Logger: slog.New(slog.DiscardHandler)}))
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(path, 0o660), os.Chown(path, 1234, 5678), os.Chown(folder, 4321, 8765)); err != nil {
		t.Fatal(err)
	}
	stands := func(path string) string {
		var s syscall.Stat_t
		if err := syscall.Stat(path, &s); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%o %d:%d", s.Mode&0o777, s.Uid, s.Gid)
	}
	if _, _, err := Compact(path); err != nil || stands(path) != "660 1234:5678" {
		t.Errorf("compacted: %s, %v", stands(path), err)
	}
	if _, err := Restore(path, backup); err != nil || stands(path) != "660 1234:5678" {
		t.Errorf("restored: %s, %v", stands(path), err)
	}
	if _, err := Restore(fresh, backup); err != nil || stands(fresh) != "600 4321:8765" {
		t.Errorf("restored where nothing was: %s, %v", stands(fresh), err)
	}
}

// Its owner can compact a file also if its group is another's.
func TestForeignGroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	mine, other := filepath.Join(t.TempDir(), "mine"), filepath.Join(t.TempDir(), "other")
	for _, path := range []string{mine, other} {
		folder := filepath.Dir(path)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(folder, 0o755), os.Chmod(filepath.Dir(folder), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for want, user := range map[string]int{"": 1234, "it belongs to user 4321, and only they or root can do this": 4321} {
		if err := errors.Join(os.Chown(mine, 1234, 1234), os.Chown(other, user, 5678), syscall.Setfsuid(1234)); err != nil { // which takes the rights of root away
			t.Fatal(err)
		}
		err := own(mine, other)
		if back := syscall.Setfsuid(0); back != nil {
			t.Fatal(back)
		}
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("of a file of user %d: %v", user, err)
		}
	}
}

// A file that may not be opened is told apart from a folder in which none may be made.
func TestRightsThatAreMissing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	folder := t.TempDir()
	if err := errors.Join(os.Chmod(folder, 0o755), os.Chmod(filepath.Dir(folder), 0o755)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "outbox.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	asNobody := func(path string) (err error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := syscall.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() { err = errors.Join(err, syscall.Setfsuid(0)) }()
		_, err = openFile(path, 0)
		return err
	}
	if err := asNobody(path); err == nil || err.Error() != "permission denied: give user 0 the right to read and write it" {
		t.Errorf("the file: %v", err)
	}
	if err := asNobody(filepath.Join(folder, "none.db")); err == nil || err.Error() != "permission denied: give user 0 the right to write in "+folder {
		t.Errorf("the folder: %v", err)
	}
}

// A process that waited for the lock while the file was compacted does not go on with the file that is gone.
func TestOpenMeetsCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	opts := Options{Path: path, Retention: time.Hour, RoutingTimeout: time.Second, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)}
	o, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan error)
	go func() {
		late, err := Open(opts)
		if err == nil {
			err = errors.Join(errors.New("it opened"), late.Close())
		}
		opened <- err
	}()
	for len(descriptors(t, path)) < 2 { // it has opened the file and waits for the lock
		runtime.Gosched()
	}
	if err := os.WriteFile(path+".compact", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".compact", path); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
}

// News of the bridge itself that could not be stored does not leave it unready for ever.
func TestReadyAfterNewsWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		e := endpoint("crm")
		e.Events = Filter{"call.*", "delivery.dead"}
		o := openOutbox(t, Options{Path: path, Endpoints: []Endpoint{e}, Logger: slog.New(slog.DiscardHandler)})
		mustAppend(t, o, event("call.completed", "1"))
		restore := swapFile(t, path, "/dev/full", os.O_RDWR)
		o.announce([]telephony.Event{{Type: telephony.EventDeliveryDead, Endpoint: "crm"}})
		if err := o.Writable(); err == nil {
			t.Error("on a full disk it is ready")
		}
		restore()
		if err := o.Writable(); err != nil {
			t.Errorf("once the disk is well again: %v", err)
		}
	})
}

// While the disk fails, what becomes of questions is told as often as any failure that goes on: every 30 s, however many there are.
func TestQuestionsOnAFailingDisk(t *testing.T) {
	c := &crm{}
	bubble(t, c, func(t *testing.T) {
		var log lockedBuffer
		path := filepath.Join(t.TempDir(), "outbox.db")
		o := openOutbox(t, Options{Path: path, DialContext: c.net.Dial, Endpoints: []Endpoint{answersLater()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		for call := range 5 {
			mustAppend(t, o, event("call.transfer_requested", fmt.Sprint(call)))
		}
		restore := swapFile(t, path, "/dev/full", os.O_RDWR)
		stop := run(t, o)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		restore()
		time.Sleep(time.Minute)
		stop()
		if n := strings.Count(log.String(), "what became of a question cannot be recorded"); n == 0 || n > 10 {
			t.Errorf("%d lines in two minutes", n)
		}
		if !strings.Contains(log.String(), "recorded again") {
			t.Error("nothing says that it is over")
		}
	})
}
