package recordings_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/recordings"
	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// get opens a link, with a header.
func (b *bench) get(link, from string) *httptest.ResponseRecorder {
	u, err := url.Parse(link)
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequest(http.MethodGet, u.RequestURI(), http.NoBody)
	if from != "" {
		r.Header.Set("Range", from)
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

// A recording is fetched from each kind of source, and the link leads to the same bytes.
func TestRecordingsAreFetched(t *testing.T) {
	content := sound(200_000)
	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, "2026", "12"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "2026", "12", "a b.mp3"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunked.mp3":
			w.(http.Flusher).Flush() // so that the length is not told
		case "/get.mp3":
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			w.Header().Set("Content-Length", "200000")
		}
		_, _ = io.WriteString(w, content)
	}))
	defer web.Close()
	ftp, oldFTP := newFTP(t), newFTP(t)
	oldFTP.noSize, oldFTP.passive = true, "127.0.0.1"
	ftp.put("/rec/1.mp3", content)
	oldFTP.put("/rec/1.mp3", content)
	hosts := web.URL + "," + ftp.address("") + "," + oldFTP.address("") + "," + folder
	rewrites := `C:\Records\=` + folder + `/,ftp://old=` + oldFTP.address("pbx:Geheim-123@") + `,//nas/rec=` + folder
	b := newBench(t, hosts, rewrites)
	for name, address := range map[string]string{
		"HTTP":                   web.URL + "/1.mp3",
		"HTTP without a length":  web.URL + "/chunked.mp3",
		"HTTP without HEAD":      web.URL + "/get.mp3",
		"FTP":                    ftp.address("pbx:Geheim-123@") + "/rec/1.mp3",
		"FTP without SIZE":       oldFTP.address("pbx:Geheim-123@") + "/rec/1.mp3",
		"a login by a rewrite":   "ftp://old/rec/1.mp3",
		"a folder":               folder + "/2026/12/a b.mp3",
		"a file: URL":            "file://" + folder + "/2026/12/a%20b.mp3",
		"a drive of Windows":     `c:\records\2026\12\a b.mp3`,
		"a file: URL of Windows": `file:///C:\Records\2026\12\a b.mp3`,
		"a share":                "file://nas/rec/2026/12/a%20b.mp3",
	} {
		t.Run(name, func(t *testing.T) {
			j := completed(address, long)
			ready := fetched(t, b.Send(t.Context(), j))
			if ready.Type != telephony.EventRecordingReady || ready.CallID != "470657307770881" ||
				ready.Client != "+73430112233" || ready.Extension != "101" || ready.From != "73430112233" {
				t.Errorf("%+v", ready)
			}
			if r := ready.Recording; r == nil || r.Size != 200_000 || r.Type != "audio/mpeg" {
				t.Errorf("%+v", r)
			}
			w := b.get(ready.RecordingURL, "")
			if w.Code != http.StatusOK || w.Body.String() != content || w.Header().Get("Content-Type") != "audio/mpeg" {
				t.Errorf("%d %d bytes %v", w.Code, w.Body.Len(), w.Header())
			}
		})
	}
}

// A file that was fetched before a kill, and not recorded, is not fetched again: the event is the
// same, also if its source is gone meanwhile.
func TestFetchedFileIsNotFetchedAgain(t *testing.T) {
	requests := atomic.Int32{}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		_, _ = io.WriteString(w, sound(100))
	}))
	defer web.Close()
	b := newBench(t, web.URL, "")
	j := completed(web.URL+"/1.mp3", long)
	first, made := fetched(t, b.Send(t.Context(), j)), requests.Load()
	again := fetched(t, b.Send(t.Context(), j))
	if requests.Load() != made || again.ID != first.ID || len(b.files(t)) != 1 {
		t.Errorf("%d requests, then %d; %s, then %s; %v", made, requests.Load(), first.ID, again.ID, b.files(t))
	}
	if other := fetched(t, b.Send(t.Context(), completed(web.URL+"/1.mp3", long))); other.ID == first.ID {
		t.Error("another call has the same ID")
	}
}

// A file that is not there yet is looked for again: the first time after five seconds, in the end
// after six hours. That does not count against its source.
func TestLateFileIsWaitedFor(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, folder, "")
		j, began := completed(folder+"/late.mp3", 0), time.Now()
		var looks []time.Duration
		for {
			o := b.Send(t.Context(), j)
			looks = append(looks, time.Since(began))
			if o.Verdict != store.Later {
				if o.Verdict != store.Refused || telephony.CauseOf(o.Err).Code != telephony.CodeRecordingAbsent {
					t.Errorf("at last: %s", verdictOf(o))
				}
				break
			}
			time.Sleep(o.RetryAfter)
		}
		want := []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, time.Hour}
		if len(looks) != 7 {
			t.Fatalf("looked at %v", looks)
		}
		for i := range want {
			if looks[i] != want[i] {
				t.Errorf("look %d after %s, want %s", i, looks[i], want[i])
			}
		}
	})
}

// While a file is being written it is not taken: neither when it is empty, nor when it grows, nor
// when its head tells a larger size.
func TestFileIsTakenOnceItIsWhole(t *testing.T) {
	folder := t.TempDir()
	name := filepath.Join(folder, "1.wav")
	head := append([]byte("RIFF\x00\x00\x00\x00WAVEfmt "), make([]byte, 100)...)
	binary.LittleEndian.PutUint32(head[4:], 508)
	write := func(content string) {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, folder, "")
		j := completed(name, 0)
		write("")
		if o := b.Send(t.Context(), j); o.Verdict != store.Later {
			t.Errorf("an empty file: %s", verdictOf(o))
		}
		write(string(head))
		time.AfterFunc(2*time.Second, func() { write(string(head) + "more") })
		time.Sleep(time.Second)
		for _, what := range []string{"a growing file", "a part"} {
			o := b.Send(t.Context(), j)
			if o.Verdict != store.Later || telephony.CauseOf(o.Err).Code != telephony.CodeRecordingGrows {
				t.Errorf("%s: %s", what, verdictOf(o))
			}
		}
		if files := b.files(t); len(files) != 0 {
			t.Errorf("left: %v", files)
		}
		write(string(head) + strings.Repeat("~", 516-len(head)))
		if ready := fetched(t, b.Send(t.Context(), j)); ready.Recording.Type != "audio/wav" {
			t.Errorf("%+v", ready.Recording)
		}
	})
}

// Hostile and broken sources cost one recording, and leave nothing behind.
func TestHostileSources(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret.mp3")
	folder := t.TempDir()
	if err := os.WriteFile(outside, []byte(sound(10)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(folder, "link.mp3")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(folder, "way")); err != nil {
		t.Fatal(err)
	}
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a host that is not allowed was asked")
	}))
	defer other.Close()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/endless.mp3":
			for r.Method == http.MethodGet && r.Context().Err() == nil {
				if _, err := io.WriteString(w, sound(100_000)); err != nil {
					return
				}
			}
		case "/told.mp3":
			w.Header().Set("Content-Length", "99999999999")
			w.WriteHeader(http.StatusOK)
		case "/cut.mp3":
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, sound(500))
		case "/away.mp3":
			http.Redirect(w, r, other.URL+"/x.mp3", http.StatusFound)
		case "/round.mp3":
			http.Redirect(w, r, "/round.mp3", http.StatusFound)
		case "/page.mp3":
			_, _ = io.WriteString(w, "\n<!DOCTYPE html><title>Login</title>")
		case "/login.mp3":
			w.WriteHeader(http.StatusUnauthorized)
		case "/broken.mp3":
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer web.Close()
	ftp := newFTP(t)
	ftp.put("/1.mp3", sound(100))
	const limit = 1 << 20
	for address, want := range map[string]string{
		web.URL + "/endless.mp3": "refused, recording_large",
		web.URL + "/told.mp3":    "refused, recording_large",
		web.URL + "/cut.mp3":     "later, ",
		web.URL + "/away.mp3":    "refused, recording_place",
		web.URL + "/round.mp3":   "later, ",
		web.URL + "/page.mp3":    "later, recording_page",
		web.URL + "/login.mp3":   "later, recording_login",
		web.URL + "/broken.mp3":  "later, ",
		web.URL + "/empty.mp3":   "later, recording_absent",
		other.URL + "/1.mp3":     "refused, recording_place",
		"https" + strings.TrimPrefix(web.URL, "http") + "/1.mp3":                          "refused, recording_place",
		"gopher://" + strings.TrimPrefix(web.URL, "http://") + "/1.mp3":                   "refused, recording_place",
		ftp.address("pbx:Falsch-77777@") + "/1.mp3":                                       "later, recording_login",
		ftp.address("pbx:Geheim-123@") + "/1.mp3%0d%0aDELE%20/1.mp3":                      "refused, recording_place",
		folder + "/../" + filepath.Base(filepath.Dir(outside)) + "/secret.mp3":            "refused, recording_place",
		"file://" + folder + "/%2e%2e/" + filepath.Base(filepath.Dir(outside)) + "/s.mp3": "refused, recording_place",
		folder + "/link.mp3":       "refused, recording_place",
		folder + "/way/secret.mp3": "refused, recording_place",
		folder:                     "refused, recording_place",
		folder + "x/1.mp3":         "refused, recording_place",
		"/etc/passwd":              "refused, recording_place",
		`\\server\share\1.mp3`:     "refused, recording_place",
		"1.mp3":                    "refused, recording_place",
		"http://[::1":              "refused, recording_place",
	} {
		t.Run(address, func(t *testing.T) {
			b := newBench(t, web.URL+","+ftp.address("")+","+folder, "",
				func(o *recordings.Options) { o.MaxBytes = limit })
			o := b.Send(t.Context(), completed(address, 7*time.Minute+3*time.Hour))
			verdict := map[store.Verdict]string{store.Later: "later", store.Refused: "refused"}[o.Verdict]
			if got := verdict + ", " + string(telephony.CauseOf(o.Err).Code); got != want {
				t.Errorf("%s (%s)", got, verdictOf(o))
			}
			if files := b.files(t); len(files) != 0 {
				t.Errorf("left: %v", files)
			}
			if o.Err == nil || strings.Contains(o.Err.Error()+b.log.String(), "7777") {
				t.Errorf("the password is shown: %v", o.Err)
			}
		})
	}
}

// An FTP server may name another host for the file: it is fetched from the server itself.
func TestFTPServerCannotSendElsewhere(t *testing.T) {
	ftp := newFTP(t)
	ftp.put("/1.mp3", sound(100))
	ftp.passive = "192.0.2.1"
	b := newBench(t, ftp.address(""), "")
	fetched(t, b.Send(t.Context(), completed(ftp.address("pbx:Geheim-123@")+"/1.mp3", long)))
	if ftp.dialed != 1 {
		t.Errorf("%d connections for the file", ftp.dialed)
	}
}

// accepting listens, serves one connection after the other, and returns the address.
func accepting(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// A host that is away is tried by one fetch at a time, and holds up no other host.
func TestHostThatIsAwayHoldsUpNoOther(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(sound(100)), 0o600); err != nil {
		t.Fatal(err)
	}
	connections := atomic.Int32{}
	address := accepting(t, func(net.Conn) { connections.Add(1) })
	away := "http://" + address
	b := newBench(t, away+","+folder, "")
	first := b.Send(t.Context(), completed(away+"/1.mp3", long))
	if first.Verdict != store.Later || first.RetryAfter != 15*time.Second {
		t.Errorf("%s, again after %s", verdictOf(first), first.RetryAfter)
	}
	made := connections.Load()
	for range 5 {
		o := b.Send(t.Context(), completed(away+"/2.mp3", long))
		if o.Verdict != store.Later || o.RetryAfter > 17*time.Second {
			t.Errorf("%s, again after %s", verdictOf(o), o.RetryAfter)
		}
	}
	if connections.Load() != made {
		t.Errorf("%d more connections to a host that is away", connections.Load()-made)
	}
	fetched(t, b.Send(t.Context(), completed(folder+"/1.mp3", long)))
	if o := b.Send(t.Context(), completed(away+"/3.mp3", 100*time.Hour)); o.Verdict != store.Refused {
		t.Errorf("after four days: %s", verdictOf(o))
	}
}

// A file that its host refuses is tried again for days, and holds up no other file of that host.
func TestFileThatIsRefusedHoldsUpNoOther(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/500.mp3":
			w.WriteHeader(http.StatusInternalServerError)
		case "/403.mp3":
			w.WriteHeader(http.StatusForbidden)
		default:
			_, _ = io.WriteString(w, sound(100))
		}
	}))
	defer web.Close()
	ftp := newFTP(t)
	ftp.put("/1.mp3", sound(100))
	b := newBench(t, web.URL+","+ftp.address(""), "")
	for _, bad := range []string{
		web.URL + "/500.mp3", web.URL + "/403.mp3", ftp.address("pbx:wrong-password@") + "/1.mp3",
	} {
		for age, want := range map[time.Duration]time.Duration{
			long: time.Hour, 5 * time.Hour: time.Hour, 10 * time.Hour: 2 * time.Hour,
		} {
			o := b.Send(t.Context(), completed(bad, age))
			if o.Verdict != store.Later || o.RetryAfter.Round(time.Minute) != want {
				t.Errorf("%s after %s: %s, again after %s, want %s", bad, age, verdictOf(o), o.RetryAfter, want)
			}
		}
		if o := b.Send(t.Context(), completed(bad, 80*time.Hour)); o.Verdict != store.Refused {
			t.Errorf("%s after three days: %s", bad, verdictOf(o))
		}
	}
	fetched(t, b.Send(t.Context(), completed(web.URL+"/1.mp3", long)))
	fetched(t, b.Send(t.Context(), completed(ftp.address("pbx:Geheim-123@")+"/1.mp3", long)))
}

// What the bridge cannot store is tried again, and is no fault of the source.
func TestFullDiskIsNoFaultOfTheSource(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(sound(100)), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, folder, "")
	if err := os.WriteFile(b.dir, nil, 0o600); err != nil { // where a folder should be
		t.Fatal(err)
	}
	j := completed(folder+"/1.mp3", long)
	for range 2 {
		if o := b.Send(t.Context(), j); o.Verdict != store.Later || o.RetryAfter != time.Minute {
			t.Errorf("%s, again after %s", verdictOf(o), o.RetryAfter)
		}
	}
	if n := strings.Count(b.log.String(), "recordings cannot be stored"); n != 1 {
		t.Errorf("%d lines:\n%s", n, b.log)
	}
	if err := os.Remove(b.dir); err != nil {
		t.Fatal(err)
	}
	fetched(t, b.Send(t.Context(), j))
	if !strings.Contains(b.log.String(), "recordings are stored again") {
		t.Error(b.log)
	}
}

// A shutdown does not wait until a file is due, and what it cuts off is made again.
func TestShutdownWaitsForNoFile(t *testing.T) {
	folder := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		stopping, stop := context.WithCancel(context.Background())
		b := newBench(t, folder, "", func(o *recordings.Options) { o.Stopping = stopping })
		time.AfterFunc(time.Second, stop)
		began := time.Now()
		o := b.Send(t.Context(), completed(folder+"/1.mp3", 0))
		if o.Verdict != store.Later || time.Since(began) != time.Second {
			t.Errorf("%s after %s", verdictOf(o), time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if o := b.Send(ctx, completed(folder+"/1.mp3", long)); o.Verdict != store.CutOff {
			t.Errorf("cut off: %s", verdictOf(o))
		}
	})
}

// Links are of use without a token, in parts, and to nobody who has changed them. Each time that
// one is opened is logged.
func TestLinks(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(sound(1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, folder, "")
	link := fetched(t, b.Send(t.Context(), completed(folder+"/1.mp3", long))).RecordingURL
	if !strings.HasPrefix(link, "https://bridge.example/v1/recordings/") {
		t.Fatal(link)
	}
	if w := b.get(link, "bytes=0-99"); w.Code != http.StatusPartialContent || w.Body.Len() != 100 ||
		w.Header().Get("Content-Range") != "bytes 0-99/1000" {
		t.Errorf("%d, %d bytes, %v", w.Code, w.Body.Len(), w.Header())
	}
	if w := b.get(link, "bytes=500-"); w.Code != http.StatusPartialContent || w.Body.Len() != 500 {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
	if n := strings.Count(b.log.String(), "a recording was opened"); n != 1 {
		t.Errorf("%d lines:\n%s", n, b.log)
	}
	u, _ := url.Parse(link)
	change := func(name, value string) string {
		changed := *u
		query := changed.Query()
		query.Set(name, value)
		changed.RawQuery = query.Encode()
		return changed.String()
	}
	for _, wrong := range []string{
		change("until", "99999999999"),
		change("signature", ""),
		change("signature", "x"),
		strings.Replace(link, u.Path, "/v1/recordings/../../x.mp3", 1),
		strings.Replace(link, u.Path, "/v1/recordings/", 1),
	} {
		if w := b.get(wrong, ""); w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", wrong, w.Code)
		}
	}
	other := newBench(t, folder, "", func(o *recordings.Options) { o.Key = []byte("another") })
	if w := other.get(link, ""); w.Code != http.StatusForbidden {
		t.Errorf("with another key: %d", w.Code)
	}
	private := newBench(t, folder, "", func(o *recordings.Options) { o.PublicURL = "" })
	e := fetched(t, private.Send(t.Context(), completed(folder+"/1.mp3", long)))
	if e.RecordingURL != "" || e.Recording.Size != 1000 {
		t.Errorf("without an address: %q %+v", e.RecordingURL, e.Recording)
	}
}

// What was removed, or is too old, is gone: the link says so.
func TestOldRecordingsAreGone(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(sound(400_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, folder, "", func(o *recordings.Options) { o.MaxBytes = 1 << 20 })
	var links []string
	for i := range 4 {
		links = append(links, fetched(t, b.Send(t.Context(), completed(folder+"/1.mp3", long))).RecordingURL)
		old := time.Now().Add(time.Duration(i-10) * time.Minute)
		for _, name := range b.files(t) {
			if strings.Contains(links[i], name[:36]) {
				if err := os.Chtimes(filepath.Join(b.dir, name[:2], name), old, old); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for i, want := range []int{http.StatusGone, http.StatusGone, http.StatusOK, http.StatusOK} {
		if w := b.get(links[i], ""); w.Code != want {
			t.Errorf("recording %d: %d %s", i, w.Code, w.Body)
		}
	}
	// A part that a kill has left, and a file that is not ours.
	left := filepath.Join(b.dir, ".part-1")
	foreign := filepath.Join(b.dir, "notes.txt")
	for _, name := range []string{left, foreign} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Date(1999, time.December, 1, 0, 0, 0, 0, time.UTC) // before the time of a bubble
	for _, name := range b.files(t) {
		path := filepath.Join(b.dir, name)
		if len(name) > 36 {
			path = filepath.Join(b.dir, name[:2], name)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if files := b.files(t); len(files) != 1 || files[0] != "notes.txt" {
		t.Errorf("left: %v", files)
	}
	if w := b.get(links[3], ""); w.Code != http.StatusGone {
		t.Errorf("a removed recording: %d", w.Code)
	}
}

// Forgetting a person reaches the recordings, however the number was written, and those that are
// being fetched.
func TestForget(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(sound(100)), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, folder, "")
	for key, want := range map[string]int{
		b.plan.Key("+7 343 999-99-99"): 0, b.plan.Key("8 (343) 011-22-33"): 1, b.plan.Key("89161234567"): 1,
	} {
		fetched(t, b.Send(t.Context(), completed(folder+"/1.mp3", long)))
		for _, dryRun := range []bool{true, false} {
			if n, err := b.Forget(t.Context(), key, dryRun); n != want || err != nil {
				t.Errorf("%d forgotten (dry run: %v), want %d: %v", n, dryRun, want, err)
			}
		}
		if want == 0 {
			_, _ = b.Forget(t.Context(), b.plan.Key("8 (343) 011-22-33"), false)
		}
	}
	if files := b.files(t); len(files) != 0 {
		t.Errorf("left: %v", files)
	}
	j := completed(folder+"/1.mp3", long)
	b.events.forget(j.EventID)
	if o := b.Send(t.Context(), j); o.Verdict != store.Refused || len(o.Events) > 0 || len(b.files(t)) != 0 {
		t.Errorf("fetched although it is forgotten: %s, %v", verdictOf(o), b.files(t))
	}
}

// Forms that CRMs do not play are converted by ffmpeg, if there is one.
func TestOtherFormsBecomeMP3(t *testing.T) {
	converter, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Skip("there is no ffmpeg")
	}
	folder := t.TempDir()
	name := filepath.Join(folder, "1.ogg")
	encode := exec.Command(converter, "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", name)
	if out, err := encode.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// A list of files is no recording: nothing of what it names may be read.
	list := filepath.Join(folder, "list.gsm")
	if err := os.WriteFile(list, []byte("ffconcat version 1.0\nfile '"+name+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := newBench(t, folder, "", func(o *recordings.Options) { o.Converter = converter })
	e := fetched(t, with.Send(t.Context(), completed(name, long)))
	if e.Recording.Type != "audio/mpeg" || !strings.Contains(e.RecordingURL, ".mp3?") {
		t.Errorf("%+v %s", e.Recording, e.RecordingURL)
	}
	if e := fetched(t, with.Send(t.Context(), completed(list, long))); e.Recording.Type != "application/octet-stream" {
		t.Errorf("a list became %+v", e.Recording)
	}
	without := newBench(t, folder, "")
	if e := fetched(t, without.Send(t.Context(), completed(name, long))); e.Recording.Type != "audio/ogg" {
		t.Errorf("%+v", e.Recording)
	}
	if n := len(with.files(t)); n != 2 {
		t.Errorf("files: %v", with.files(t))
	}
}

// An FTP server that talks without end is left alone: it must not fill the memory.
func TestFTPServerThatTalksWithoutEnd(t *testing.T) {
	said := atomic.Int64{}
	address := accepting(t, func(c net.Conn) {
		for {
			n, err := io.WriteString(c, "220-"+strings.Repeat("x", 100_000))
			if said.Add(int64(n)); err != nil {
				return
			}
		}
	})
	b := newBench(t, "ftp://"+address, "")
	o := b.Send(t.Context(), completed("ftp://"+address+"/1.mp3", long))
	if o.Verdict != store.Later || !strings.Contains(o.Err.Error(), "says more than") {
		t.Error(verdictOf(o))
	}
	if n := said.Load(); n > 100<<20 {
		t.Errorf("it could say %d bytes", n)
	}
}

// Signs that addresses give a meaning to stand for themselves in the names of files.
func TestNamesWithSigns(t *testing.T) {
	ftp := newFTP(t)
	var asked atomic.Value
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path + "?" + r.URL.RawQuery)
		_, _ = io.WriteString(w, sound(100))
	}))
	defer web.Close()
	b := newBench(t, ftp.address("")+","+web.URL, "")
	for _, name := range []string{"/out-#31#79161234567.mp3", "/100%.mp3", "/a?b.mp3", "/привет мир.mp3"} {
		ftp.put(name, sound(100))
		fetched(t, b.Send(t.Context(), completed(ftp.address("pbx:Geheim-123@")+name, long)))
	}
	fetched(t, b.Send(t.Context(), completed(web.URL+"/a#1%20b.mp3?c=%", long)))
	if got := asked.Load(); got != "/a#1 b.mp3?c=%25" {
		t.Errorf("the server was asked for %q", got)
	}
}

// No text of a failure holds a password or the name of a file, and hiding them costs nothing of
// what the failure means.
func TestTextsOfFailures(t *testing.T) {
	ftp := newFTP(t)
	ftp.put("/1.mp3", sound(100))
	ftp.busy = "/in_73430112233.mp3"
	b := newBench(t, ftp.address(""), "")
	wrong := b.Send(t.Context(), completed(ftp.address("pbx:password@")+"/1.mp3", long))
	if telephony.CauseOf(wrong.Err).Code != telephony.CodeRecordingLogin {
		t.Errorf("a wrong password that is a word of our own: %s", verdictOf(wrong))
	}
	busy := b.Send(t.Context(), completed(ftp.address("pbx:Geheim-123@")+ftp.busy, long))
	if busy.Verdict != store.Later || strings.Contains(busy.Err.Error(), "73430112233") {
		t.Errorf("a file that is busy: %s", verdictOf(busy))
	}
	fetched(t, b.Send(t.Context(), completed(ftp.address("pbx:Geheim-123@")+"/1.mp3", long)))
	for _, from := range []string{"reader:S3cret-99@192.168.1.5", "ftp://reader:S3c/ret-99@192.168.1.5"} {
		if _, err := recordings.ParseAllowed(from); err == nil || strings.Contains(err.Error(), "ret-99") {
			t.Errorf("%s: %v", from, err)
		}
	}
}

// The age of a file is counted by the clock that the outbox has too, since that of the machine may
// jump.
func TestJumpOfTheClockRemovesNothing(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "1.mp3"), []byte(sound(100)), 0o600); err != nil {
		t.Fatal(err)
	}
	jumped := time.Duration(0)
	b := newBench(t, folder, "", func(o *recordings.Options) {
		o.Age = func(at time.Time) time.Duration { return time.Since(at) - jumped }
	})
	fetched(t, b.Send(t.Context(), completed(folder+"/1.mp3", long)))
	old := time.Date(1999, time.December, 1, 0, 0, 0, 0, time.UTC)
	for _, name := range b.files(t) {
		if err := os.Chtimes(filepath.Join(b.dir, name[:2], name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	prune := func() {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- b.Run(ctx) }()
			synctest.Wait()
			cancel()
			<-ended
		})
	}
	jumped = 40 * 24 * time.Hour // a bubble begins in 2000
	if prune(); len(b.files(t)) != 1 {
		t.Error("a recording was removed")
	}
	jumped = 0
	if prune(); len(b.files(t)) != 0 {
		t.Error("an old recording stays")
	}
}

// A folder that cannot be written is said at the start, and keeps the bridge from nothing else.
func TestFolderThatCannotBeWritten(t *testing.T) {
	place := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(place, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, "ftp://pbx", "", func(o *recordings.Options) { o.Dir = place })
	if !strings.Contains(b.log.String(), "recordings cannot be stored") {
		t.Errorf("the log: %s", b.log)
	}
	off := newBench(t, "", "", func(o *recordings.Options) { o.Dir = place })
	if off.log.Len() > 0 {
		t.Errorf("while none are fetched, the log: %s", off.log)
	}
}
