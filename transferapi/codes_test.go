package transferapi

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"

	"github.com/pb33f/libopenapi"
)

// The description lists every code that a problem can have, and no other; its table explains each.
func TestDescriptionListsEveryErrorCode(t *testing.T) {
	document, err := libopenapi.NewDocument(description)
	if err != nil {
		t.Fatal(err)
	}
	model, err := document.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	schema := model.Model.Components.Schemas.GetOrZero("ErrorCode").Schema()
	var listed, known []string
	for _, node := range schema.Enum {
		listed = append(listed, node.Value)
	}
	for _, code := range slices.Concat(causeCodes, slices.Collect(maps.Values(statusCodes)),
		[]telephony.Code{codeBadField}) {
		known = append(known, string(code))
		if !strings.Contains(schema.Description, fmt.Sprintf("\n| `%s` |", code)) {
			t.Errorf("the table does not explain %s", code)
		}
	}
	slices.Sort(listed)
	slices.Sort(known)
	if !slices.Equal(listed, known) {
		t.Errorf("the description has\n%v\nthe code has\n%v", listed, known)
	}
}

func TestProblemsHaveACode(t *testing.T) {
	for _, c := range []struct {
		err  error // of the exchange
		want telephony.Code
	}{
		{telephony.ErrNotConnected, "not_connected"},
		{fmt.Errorf("step: %w", telephony.ErrOutboxFull), "not_listening"},
		{&telephony.RefusedError{Code: "2", Details: "busy"}, "refused"},
		{errors.New("no cause"), "outcome_unknown"},
	} {
		a := newAPI(t, &exchange{err: c.err}, newBox(t), &bytes.Buffer{})
		w := post(a, "/v1/calls", crmToken, `{"from":"101","to":"102"}`)
		if p := asProblem(t, w); p.Code != c.want {
			t.Errorf("%v is answered with the code %q, want %q", c.err, p.Code, c.want)
		}
	}
	a := newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{})
	for _, c := range []struct {
		path, token, body string
		want              telephony.Code
	}{
		{"/v1/calls", crmToken, `{"from":"101"}`, codeBadField},
		{"/v1/calls", crmToken, `[]`, codeBadRequest},
		{"/v1/calls", "unknown", `{}`, codeUnauthorized},
		{"/v1/redeliver", crmToken, `{}`, codeForbidden},
		{"/v1/nothing", crmToken, `{}`, codeNotFound},
		{"/v1/backup", crmToken, `{}`, codeMethodNotAllowed},
		{"/v1/calls", crmToken, `{"from":"` + strings.Repeat("1", maxBody) + `"}`, codeTooLarge},
		{"/v1/endpoints/none/test", operatorToken, "{}", telephony.CodeNoEndpoint},
	} {
		if p := asProblem(t, post(a, c.path, c.token, c.body)); p.Code != c.want {
			t.Errorf("%s %.20s is answered %d with the code %q, want %q", c.path, c.body, p.Status, p.Code, c.want)
		}
	}
}

// That the outbox cannot be read is the bridge's fault, and the code says whether its database is.
func TestDatabaseThatIsAwayHasACode(t *testing.T) {
	gone := &telephony.Fault{Code: telephony.CodeDatabase, Text: "the database is gone"}
	p := deliveryProblem(fmt.Errorf("list deliveries: %w", gone)).titled()
	if p.Status != http.StatusInternalServerError || p.Code != telephony.CodeDatabase ||
		!strings.Contains(p.Detail, "OUTBOX_URL") {
		t.Errorf("%+v", p)
	}
}

// A cause that is not in the list is not shown, and the status has a code.
func TestCausesOutsideTheListAreNotCodes(t *testing.T) {
	p := deliveryProblem(store.ErrDamaged).titled()
	if p.Status != http.StatusInternalServerError || p.Code != codeInternal {
		t.Errorf("%+v", p)
	}
}
