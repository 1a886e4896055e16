package transferapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"pzbridge/internal/crm"
	"pzbridge/internal/crm/megafon"
	"pzbridge/internal/crm/megafon/megafontest"
	"pzbridge/internal/phone"
	"pzbridge/outbox/store"
)

// A CRM with a preset is checked by its running sender, and the last click of its users is shown.
func TestCRMWithAPresetIsChecked(t *testing.T) {
	const key = "k3y-of-the-crm"
	server := httptest.NewServer(megafontest.NewSalesMan(key))
	defer server.Close()
	plan, err := phone.New(phone.Options{Region: "RU", InternalDigits: 4})
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t)
	a := newAPI(t, &exchange{}, b, &bytes.Buffer{})
	sender := megafon.New(store.Endpoint{
		Name: "crm", URL: server.URL, Secrets: [][]byte{[]byte(key)}, Concurrency: 1, Timeout: 15e9,
	}, megafon.Options{
		Settings: crm.Settings{
			Preset: crm.MegaFon, People: crm.People{Plan: plan, Users: map[string]string{"101": "anna"}},
		},
		Notes: b.engine,
	})
	defer sender.Close()
	a.opts.CRMs = map[string]crm.Checker{"crm": sender}

	check := func(body string) (status int, findings string) {
		t.Helper()
		w := send(a, "POST", "/v1/endpoints/crm/check", operatorToken, body)
		var result struct{ Findings []Finding }
		if err := json.Unmarshal(w.Body.Bytes(), &result); err != nil {
			t.Fatalf("%s: %v", w.Body, err)
		}
		for _, f := range result.Findings {
			findings += f.Level + " " + f.Text + "\n"
		}
		return w.Code, findings
	}
	status, said := check(`{"extensions":["101","102"],"try":"+73430112233"}`)
	for _, want := range []string{
		"good it takes the key", "warn nobody can call from this CRM", "nobody in this CRM has: 102;",
		"good a missed call of +73430112233 is entered",
	} {
		if status != 200 || !strings.Contains(said, want) {
			t.Errorf("%d: %s, want %q", status, said, want)
		}
	}
	const noClient = "bad a missed call of 101 could not be entered: it is not the number of a client"
	if _, said := check(`{"try":"101"}`); !strings.Contains(said, noClient) {
		t.Errorf("an extension to try: %s", said)
	}
	server.Close()
	_, said = check(`{}`)
	if !strings.HasPrefix(said, "bad no answer to a request") || strings.Count(said, "\n") != 1 {
		t.Errorf("a CRM that is away: %s", said)
	}
	for path, want := range map[string]int{"crm": 400, "other": 404} {
		body := map[string]string{"crm": `{"number":"1"}`, "other": `{}`}[path]
		if w := send(a, "POST", "/v1/endpoints/"+path+"/check", operatorToken, body); w.Code != want {
			t.Errorf("%s with %s: %d %s", path, body, w.Code, w.Body)
		}
	}
	if w := send(a, "POST", "/v1/endpoints/crm/check", crmToken, `{}`); w.Code != 403 {
		t.Errorf("a CRM gets %d", w.Code)
	}

	if w := get(a, "/v1/endpoints", operatorToken); strings.Contains(w.Body.String(), "last_click") {
		t.Errorf("before a click: %s", w.Body)
	}
	clicks := crm.Clicks{Notes: b.engine, Endpoint: "crm"}
	if err := clicks.Clicked(t.Context(), errors.New("the user has no extension")); err != nil {
		t.Fatal(err)
	}
	w := get(a, "/v1/endpoints", operatorToken)
	if !strings.Contains(w.Body.String(), `"error":"the user has no extension"}`) {
		t.Errorf("after a click: %s", w.Body)
	}
}
