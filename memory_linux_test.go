//go:build !race

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pzbridge/internal/pztest"
)

// In a cgroup of 64 MB the bridge takes 150,000 events at once for three CRMs that hang, and
// survives. The race detector needs many times as much.
func TestStormIn64MB(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 150,000 events")
	}
	group := memoryGroup(t, 64_000_000)
	server := pztest.NewServer(pztest.Options{})
	defer server.Close()
	hang := make(chan struct{})
	crm := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer crm.Close()
	defer close(hang)
	vars := variables(t, server, &receiver{Server: crm}, "METRICS_PUBLIC=true", "LOG_LEVEL=info")
	for n := 1; n < 3; n++ {
		prefix := fmt.Sprintf("ENDPOINT_%d_", n)
		vars[prefix+"NAME"] = fmt.Sprint("crm", n)
		vars[prefix+"URL"], vars[prefix+"SECRET"] = vars["ENDPOINT_0_URL"], secret
	}
	p := prepare(t, vars)
	startIn(t, group, p)
	eventually(t, "the bridge is connected", func() bool { return server.Connected() == 1 })
	const events = 150_000
	for n := range events {
		err := server.Generate(ringing(fmt.Sprint(n), "73430112233"))
		if err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf(`pzbridge_outbox_pending{endpoint="crm2"} %d`, events)
	eventually(t, "all are stored", func() bool { return strings.Contains(metricsOf(vars["LISTEN_ADDR"]), want) })
	if peak, err := os.ReadFile(filepath.Join(group, "memory.max_usage_in_bytes")); err == nil {
		t.Logf("at most %s bytes were in use, the page cache included", strings.TrimSpace(string(peak)))
	}
}

func shell(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	return path
}

func metricsOf(address string) string {
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return strings.ReplaceAll(string(b), "1.5e+05", strconv.Itoa(150_000))
}

// memoryGroup makes a cgroup whose processes may use so many bytes together.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	return cgroup(t, "memory", func(set func(file, value string) error) error {
		if err := set("memory.limit_in_bytes", strconv.Itoa(limit)); err == nil {
			return nil
		}
		_ = set("memory.swap.max", "0") // where there is swap
		return set("memory.max", strconv.Itoa(limit))
	})
}

// cgroup makes a cgroup that ends with the test, of version 1 with a controller of its own, or 2.
// Without root, or where none can be made, the test is skipped.
func cgroup(t *testing.T, controller string, limit func(set func(file, value string) error) error) (folder string) {
	t.Helper()
	for _, root := range []string{filepath.Join("/sys/fs/cgroup", controller), "/sys/fs/cgroup"} {
		group, err := os.MkdirTemp(root, "pzbridge-test")
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(group) })
		err = limit(func(file, value string) error {
			f, err := os.OpenFile(filepath.Join(group, file), os.O_WRONLY, 0) // in any other folder it is not there
			if err != nil {
				return err
			}
			_, err = f.WriteString(value)
			return errors.Join(err, f.Close())
		})
		if err == nil {
			return group
		}
	}
	t.Skip("no cgroup can be made here")
	return ""
}

// startIn starts a program in a cgroup.
func startIn(t *testing.T, group string, p *process) {
	t.Helper()
	p.Path, p.Args = shell(t), []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$1"`, group, p.Path}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait() // else the cgroup cannot be removed
	})
}
