package outbox

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
)

// swapFile puts another file under the descriptor with which the outbox writes, and returns what puts the right one back.
func swapFile(t *testing.T, path, other string) (restore func()) {
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
		saved, err := syscall.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(other, os.O_RDWR, 0)
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
	t.Fatalf("no descriptor of %s is open", path)
	return nil
}

// While the disk fails, Append says so and readiness is red; an outcome that cannot be recorded holds its delivery, so that the CRM is not sent
// it over and over. When the disk is back all goes on, and nothing that was acknowledged is lost.
func TestDiskFailsForAWhile(t *testing.T) {
	for _, device := range []string{"/dev/full", "/dev/null"} { // no space left; fdatasync fails
		t.Run(device, func(t *testing.T) {
			var answer chan struct{}
			c := &crm{answer: func(int, received, http.ResponseWriter) { <-answer }}
			bubble(t, c, func(t *testing.T) {
				answer = make(chan struct{})
				path := filepath.Join(t.TempDir(), "outbox.db")
				o := openOutbox(t, Options{Path: path, DialContext: c.net.Dial})
				stop := run(t, o)
				mustAppend(t, o, event("call.incoming", "5"))
				synctest.Wait() // the attempt waits for its answer

				restore := swapFile(t, path, device)
				refused := event("call.incoming", "6")
				if err := o.Append(t.Context(), []telephony.Event{refused}); err == nil {
					t.Error("Append says nothing")
				}
				if o.Writable() == nil {
					t.Error("readiness is green")
				}
				close(answer)
				time.Sleep(time.Minute)
				if n := len(c.received()); n != 1 {
					t.Errorf("the CRM was sent it %d times", n)
				}
				restore()
				time.Sleep(10 * time.Second)
				mustAppend(t, o, refused)
				if err := o.Writable(); err != nil {
					t.Errorf("afterwards readiness is red: %v", err)
				}
				synctest.Wait()
				stop()
				if got := states(t, o, "crm"); got[delivered] != 2 || len(c.received()) != 2 {
					t.Errorf("states: %v, %d webhooks", got, len(c.received()))
				}
			})
		})
	}
}
