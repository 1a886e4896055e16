package transferapi

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"pzbridge/outbox/store"
)

// allIsWell is a verdict.
func allIsWell(*http.Request) ([]Finding, error) {
	return []Finding{{Level: "good", Text: "All is well."}}, nil
}

func TestVerdictHasTheLevelOfItsWorstFinding(t *testing.T) {
	a := newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{})
	a.opts.Verdict = func(*http.Request) ([]Finding, error) {
		return []Finding{
			{Level: "bad", About: "crm", Text: "crm takes nothing."},
			{Level: "good", Text: "The phone system is connected."},
		}, nil
	}
	w := get(a, "/v1/verdict", operatorToken)
	const want = `{"level":"bad","findings":[{"level":"bad","about":"crm","text":"crm takes nothing."},` +
		`{"level":"good","text":"The phone system is connected."}]}`
	if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || got != want {
		t.Errorf("%d %s", w.Code, got)
	}
	if w := get(a, "/v1/verdict", crmToken); w.Code != 403 {
		t.Errorf("a CRM gets %d", w.Code)
	}
	a.opts.Verdict = func(*http.Request) ([]Finding, error) { return nil, store.ErrDamaged }
	if w := get(a, "/v1/verdict", operatorToken); w.Code != 500 || !strings.Contains(w.Body.String(), "damaged") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
