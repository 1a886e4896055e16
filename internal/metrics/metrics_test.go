package metrics

import (
	"context"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"pzbridge/internal/telephony"
	"pzbridge/outbox"
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

// scrape returns the text of a scrape after one event of most kinds.
func scrape(t *testing.T) string {
	t.Helper()
	m := New("1.2.3")
	m.Watch(stub{}, stub{})
	m.EventReceived("call.incoming")
	m.AttemptEnded("crm", outbox.OutcomeDelivered, time.Second, 2*time.Second)
	m.AttemptEnded("crm", outbox.OutcomeFailed, time.Second, 2*time.Second)
	m.Expired("crm")
	m.Committed(time.Millisecond)
	m.CommandEnded(telephony.CommandCall, "done")
	m.Decided(telephony.RouteWon, time.Second)
	m.WrongToken(ToAPI)
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
		`pzbridge_commit_seconds_count 1`,
		`pzbridge_commands_total{kind="call",outcome="done"} 1`,
		`pzbridge_routing_decisions_total{outcome="won"} 1`,
		`pzbridge_routing_seconds_sum 1`,
		`pzbridge_endpoint_failing{endpoint="crm"} 1`,
		`pzbridge_build_info{version="1.2.3"} 1`,
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

// Every metric in the alert rules exists.
func TestAlertRulesNameExistingMetrics(t *testing.T) {
	rules, err := os.ReadFile("../../docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	text := scrape(t)
	names := regexp.MustCompile(`pzbridge_[a-z_]+`).FindAllString(string(rules), -1)
	if len(slices.Compact(slices.Sorted(slices.Values(names)))) < 7 {
		t.Errorf("only %v", names)
	}
	for _, name := range names {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("there is no metric %s", name)
		}
	}
}
