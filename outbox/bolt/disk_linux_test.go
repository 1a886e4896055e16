package bolt

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

	"pzbridge/internal/advice"
	"pzbridge/internal/logtest"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// swapFile puts another file under the descriptor with which the outbox writes, and returns what
// puts the right one back. Neither may be done in the middle of a commit: written to one file and
// synced to the other, it would seem to have gone well.
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

// While the disk fails, Append fails and readiness is red; an outcome that cannot be recorded holds
// its delivery, so that it is not sent over and over. When the disk is back all goes on, and
// nothing that was acknowledged is lost.
func TestNothingIsLostWhileTheDiskFails(t *testing.T) {
	for name, device := range map[string]string{"no space": "/dev/full", "sync fails": "/dev/null", "read only": ""} {
		t.Run(name, func(t *testing.T) {
			var answer chan struct{}
			c := &storetest.CRM{Answer: func(int, storetest.Received, http.ResponseWriter) {
				<-answer
				time.Sleep(100 * time.Millisecond)
			}}
			storetest.Bubble(t, c, func(t *testing.T) {
				answer = make(chan struct{})
				one := storetest.Endpoint("crm")
				one.Concurrency = 1
				o := storetest.OpenBox(t, harness{}, storetest.Options{
					DialContext: c.Net.Dial, Endpoints: []store.Endpoint{one},
				})
				path := engineOf(o).path
				stop := storetest.RunBox(t, o)
				const others = 8
				storetest.MustAppend(t, o, storetest.Event("call.incoming", "5"))
				for i := range others {
					storetest.MustAppend(t, o, completed(fmt.Sprint(10+i))...)
				}
				synctest.Wait() // the first attempt waits for its answer

				mode := os.O_RDWR
				if device == "" { // the file itself, but not to be written
					device, mode = path, os.O_RDONLY
				}
				restore := swapFile(t, path, device, mode)
				refused := storetest.Event("call.incoming", "6")
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
				for _, r := range c.Received() {
					sent[r.Header.Get("webhook-id")]++
				}
				if n := len(c.Received()); n > 3 || len(sent) != n {
					t.Errorf("the CRM was sent %v", sent)
				}
				synctest.Wait()
				restore()
				time.Sleep(10 * time.Second)
				storetest.MustAppend(t, o, refused)
				if err := o.Writable(); err != nil {
					t.Errorf("afterwards readiness is red: %v", err)
				}
				synctest.Wait()
				stop()
				got := storetest.States(t, o, "crm")
				if got[store.Delivered] != 2+others || len(c.Received()) != 2+others {
					t.Errorf("states: %v, %d webhooks", got, len(c.Received()))
				}
			})
		})
	}
}

// A stop takes no longer than its grace also while outcomes cannot be recorded. They are made again
// after the start.
func TestStopsWhileTheDiskIsFull(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		o := storetest.OpenBox(t, harness{}, storetest.Options{DialContext: c.Net.Dial, Grace: 10 * time.Second})
		for i := range 20 {
			storetest.MustAppend(t, o, completed(fmt.Sprint(i))...)
		}
		restore := swapFile(t, engineOf(o).path, "/dev/full", os.O_RDWR)
		stop := storetest.RunBox(t, o)
		time.Sleep(time.Minute)
		began := time.Now()
		stop()
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("it took %s", took)
		}
		restore()
		if got := storetest.States(t, o, "crm"); got[store.Pending] != 20 {
			t.Errorf("states: %v", got)
		}
	})
}

// Compact and Restore, often run by root, leave a file that the bridge can open as before: one with
// the mode and the owner of the file before, or else with the owner of the folder.
func TestCompactAndRestoreKeepTheOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	folder := t.TempDir()
	path, fresh := filepath.Join(folder, "outbox.db"), filepath.Join(folder, "fresh.db")
	backup := filepath.Join(t.TempDir(), "backup.db")
	for _, path := range []string{path, backup} {
		if err := mustOpen(t, storetest.Options{Place: path}).Close(); err != nil {
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
func TestOwnerCanCompactAFileOfAForeignGroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	mine, other := filepath.Join(t.TempDir(), "mine"), filepath.Join(t.TempDir(), "other")
	for _, path := range []string{mine, other} {
		folder := filepath.Dir(path)
		err := os.WriteFile(path, nil, 0o600)
		if err := errors.Join(err, os.Chmod(folder, 0o755), os.Chmod(filepath.Dir(folder), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for want, user := range map[string]int{
		"": 1234,
		"it belongs to user 4321, and only they or root can do this": 4321,
	} {
		// The last of these takes the rights of root away.
		err := errors.Join(os.Chown(mine, 1234, 1234), os.Chown(other, user, 5678), syscall.Setfsuid(1234))
		if err != nil {
			t.Fatal(err)
		}
		err = chownLike(mine, other)
		if back := syscall.Setfsuid(0); back != nil {
			t.Fatal(back)
		}
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("of a file of user %d: %v", user, err)
		}
	}
}

// The error for a file that may not be opened differs from that for a folder in which none may be
// made.
func TestMissingRightIsNamed(t *testing.T) {
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
	asAnotherUser := func(path string) (err error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := syscall.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() { err = errors.Join(err, syscall.Setfsuid(0)) }()
		_, err = openFile(path, 0)
		return err
	}
	const missing = "permission denied: give user 0 the right to "
	if err := asAnotherUser(path); err == nil || advice.English(err) != missing+"read and write it" {
		t.Errorf("the file: %v", err)
	}
	if err := asAnotherUser(filepath.Join(folder, "none.db")); err == nil ||
		advice.English(err) != missing+"write in "+folder {
		t.Errorf("the folder: %v", err)
	}
}

// A process that waited for the lock while the file was compacted does not go on with the file that
// is gone.
func TestOpenThatWaitsForACompactFails(t *testing.T) {
	opts := quietly(t, storetest.Options{})
	path, o := opts.Place, mustOpen(t, opts)
	opened := make(chan error)
	go func() {
		late, err := storetest.Open(harness{}, opts)
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
func TestReadyAgainAfterNewsWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := storetest.Endpoint("crm")
		e.Events = store.Filter{"call.*", "delivery.dead"}
		o := storetest.OpenBox(t, harness{}, quietly(t, storetest.Options{Endpoints: []store.Endpoint{e}}))
		storetest.MustAppend(t, o, completed("1")...)
		restore := swapFile(t, engineOf(o).path, "/dev/full", os.O_RDWR)
		news, err := store.Encode(&eventsOf("", telephony.EventDeliveryDead)[0], time.Second)
		if err != nil {
			t.Fatal(err)
		}
		// As the outbox does it, which tries news once and drops it where that fails.
		if _, err := o.Engine.Append(t.Context(), []store.NewEvent{news}); err == nil {
			t.Error("on a full disk the news is stored")
		}
		if err := o.Writable(); err == nil {
			t.Error("on a full disk it is ready")
		}
		restore()
		if err := o.Writable(); err != nil {
			t.Errorf("once the disk is well again: %v", err)
		}
	})
}

// While the disk fails, what becomes of questions is logged as often as any failure that goes on:
// every 30 s, however many there are.
func TestQuestionsOnAFailingDiskAreLoggedNowAndThen(t *testing.T) {
	c := &storetest.CRM{}
	storetest.Bubble(t, c, func(t *testing.T) {
		var log logtest.Buffer
		crm := storetest.Endpoint("crm")
		crm.Tokens = []string{"a token"} // it can answer later
		o := storetest.OpenBox(t, harness{}, storetest.Options{
			DialContext: c.Net.Dial,
			Endpoints:   []store.Endpoint{crm},
			Logger:      slog.New(slog.NewTextHandler(&log, nil)),
		})
		for call := range 5 {
			storetest.MustAppend(t, o, storetest.Event("call.transfer_requested", fmt.Sprint(call)))
		}
		restore := swapFile(t, engineOf(o).path, "/dev/full", os.O_RDWR)
		stop := storetest.RunBox(t, o)
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
