package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
	"pzbridge/outbox/store"
)

type stub struct{}

func (stub) Connection() telephony.Connection {
	return telephony.Connection{State: telephony.Connected}
}
func (stub) InUse(context.Context) (int64, error) { return 4096, nil }
func (stub) Endpoints(context.Context) ([]outbox.EndpointStatus, error) {
	return []outbox.EndpointStatus{{Name: "crm", State: "failing", Pending: 3}, {Name: "other", State: "ok"}}, nil
}

func (stub) OldestPending(_ context.Context, endpoint string) (time.Time, error) {
	if endpoint == "crm" {
		return time.Now().Add(-time.Hour), nil
	}
	return time.Time{}, nil
}

func (stub) LaneStatus() map[string]store.LaneStatus { return map[string]store.LaneStatus{"crm": {}} }

// scrape returns the text of a scrape of one of several bridges after one event of most kinds.
func scrape(t *testing.T) string {
	t.Helper()
	m := New("1.2.3")
	m.Watch(stub{}, stub{}, 8192, "bridge1")
	m.EventReceived("call.incoming")
	m.AttemptEnded("crm", outbox.OutcomeDelivered, time.Second, 2*time.Second)
	m.AttemptEnded("crm", outbox.OutcomeFailed, time.Second, 2*time.Second)
	m.Expired("crm")
	m.Committed(time.Millisecond)
	m.CommandEnded(telephony.CommandCall, "done")
	m.Decided(telephony.RouteWon, time.Second)
	m.WrongToken(ToAPI)
	m.BackupMade(time.UnixMilli(1_000_500))
	m.BackupFailed()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

func TestScrapeHasEverySeries(t *testing.T) {
	text := scrape(t)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	for _, line := range []string{
		`pzbridge_connected 1`,
		`pzbridge_wrong_tokens_total{to="api"} 1`,
		`pzbridge_backups_total{outcome="made"} 1`,
		`pzbridge_backups_total{outcome="failed"} 1`,
		`pzbridge_backup_timestamp_seconds 1000.5`,
		`pzbridge_wrong_tokens_total{to="dashboard"} 0`,
		`pzbridge_events_received_total{type="call.incoming"} 1`,
		`pzbridge_deliveries_total{endpoint="crm",outcome="delivered"} 1`,
		`pzbridge_deliveries_total{endpoint="crm",outcome="failed"} 1`,
		`pzbridge_deliveries_total{endpoint="crm",outcome="expired"} 1`,
		`pzbridge_delivery_attempt_seconds_count{endpoint="crm"} 2`,
		// Series without a count are 0, not absent.
		`pzbridge_deliveries_total{endpoint="other",outcome="dead"} 0`,
		`pzbridge_events_received_total{type="pz.event"} 0`,
		`pzbridge_commands_total{kind="sms",outcome="no_answer"} 0`,
		`pzbridge_routing_decisions_total{outcome="closed"} 0`,
		`pzbridge_event_to_delivery_seconds_sum{endpoint="crm"} 2`,
		`pzbridge_outbox_pending{endpoint="crm"} 3`,
		`pzbridge_outbox_oldest_pending_seconds{endpoint="other"} 0`,
		`pzbridge_outbox_bytes 4096`,
		`pzbridge_outbox_limit_bytes 8192`,
		`pzbridge_commit_seconds_count 1`,
		`pzbridge_commands_total{kind="call",outcome="done"} 1`,
		`pzbridge_routing_decisions_total{outcome="won"} 1`,
		`pzbridge_routing_seconds_sum 1`,
		`pzbridge_endpoint_failing{endpoint="crm"} 1`,
		`pzbridge_build_info{version="1.2.3"} 1`,
		`pzbridge_bridge_info{bridge="bridge1"} 1`,
		`pzbridge_lanes 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("there is no line %s", line)
		}
	}
	anHour := regexp.MustCompile(`(?m)^pzbridge_outbox_oldest_pending_seconds\{endpoint="crm"\} 3600(\.|$)`)
	if !anHour.MatchString(text) {
		t.Error("the oldest is not an hour old")
	}
}

// A bridge with a file of its own has no metrics of several bridges.
func TestBridgeWithAFileHasNoLanes(t *testing.T) {
	m := New("1.2.3")
	m.Watch(stub{}, stub{}, 8192, "")
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	if strings.Contains(text, "pzbridge_lanes") || strings.Contains(text, "pzbridge_bridge") ||
		!strings.Contains(text, "\npzbridge_connected 1\n") {
		t.Errorf("it says %s", text)
	}
}

// Every metric of the alert rules and of the Grafana board exists, and the board shows each.
func TestRulesAndBoardNameExistingMetrics(t *testing.T) {
	text := scrape(t)
	name := regexp.MustCompile(`\bpzbridge_[a-z_]+`)
	used := map[string][]string{}
	for _, file := range []string{"alerts.yml", "grafana.json"} {
		content, err := os.ReadFile("../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		used[file] = slices.Compact(slices.Sorted(slices.Values(name.FindAllString(string(content), -1))))
		if len(used[file]) < 7 {
			t.Errorf("%s names only %v", file, used[file])
		}
		for _, metric := range used[file] {
			if !strings.Contains(text, "\n"+metric+" ") && !strings.Contains(text, "\n"+metric+"{") {
				t.Errorf("%s names %s, and there is no such metric", file, metric)
			}
		}
	}
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (pzbridge_\w+)`).FindAllStringSubmatch(text, -1) {
		if !slices.ContainsFunc(used["grafana.json"], func(metric string) bool {
			return metric == family[1] || metric == family[1]+"_bucket"
		}) {
			t.Errorf("the board does not show %s", family[1])
		}
	}
}

// promtool accepts the alert rules, and the queries of the Grafana board as rules.
func TestPromtoolAcceptsRulesAndBoard(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool on this machine")
	}
	content, err := os.ReadFile("../../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err = json.Unmarshal(content, &board); err != nil {
		t.Fatal(err)
	}
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: board\n    rules:\n")
	queries := 0
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			queries++
			query := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			fmt.Fprintf(&rules, "      - { record: query:%d, expr: %q }\n", queries, query)
		}
	}
	if queries < 10 {
		t.Errorf("only %d queries were found", queries)
	}
	asRules := filepath.Join(t.TempDir(), "board.yml")
	if err = os.WriteFile(asRules, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(promtool, "check", "rules", "../../docs/alerts.yml", asRules).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// A spare that waits beside a connected bridge is no alert; a cluster of which no bridge is
// connected is one, and so is a bridge with a file of its own.
func TestSpareBridgeIsNoAlert(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool on this machine")
	}
	if out, err := exec.Command(promtool, "test", "rules", "testdata/connection.yml").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
