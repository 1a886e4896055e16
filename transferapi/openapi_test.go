package transferapi

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
)

// described is a validator of the embedded OpenAPI description.
var described = sync.OnceValue(func() validator.Validator {
	document, err := libopenapi.NewDocument(description)
	if err != nil {
		panic(err)
	}
	v, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		panic(fmt.Sprint(errs))
	}
	return v
})

// serve serves a request and panics if the response does not match the description.
func serve(a *API, w *httptest.ResponseRecorder, r *http.Request) {
	a.ServeHTTP(w, r)
	if w.Code == http.StatusMethodNotAllowed ||
		w.Code == http.StatusNotFound && strings.Contains(w.Body.String(), "nothing at this path") {
		return // the description has no such request
	}
	response := w.Result()
	response.Body = io.NopCloser(bytes.NewReader(w.Body.Bytes()))
	if ok, errs := described().GetResponseBodyValidator().ValidateResponseBody(r, response); !ok {
		for _, err := range errs {
			panic(fmt.Sprintf("%s %s: %d %s is no answer of the description: %s %+v", r.Method, r.URL, w.Code, w.Body,
				err, err.SchemaValidationErrors))
		}
	}
}

func TestDescriptionListsEveryRoute(t *testing.T) {
	if ok, errs := described().ValidateDocument(); !ok {
		for _, err := range errs {
			t.Errorf("%s: %+v", err, err.SchemaValidationErrors)
		}
	}
	document, err := libopenapi.NewDocument(description)
	if err != nil {
		t.Fatal(err)
	}
	// An unquoted text within braces ends at a comma; the rest becomes a member without a value. A
	// schema may hold such a member, so the validation accepts it.
	for values := document.GetSpecInfo().RootNode.Content; len(values) > 0; values = values[1:] {
		values = append(values, values[0].Content...)
		if values[0].Tag == "!!null" {
			t.Errorf("line %d: something has no value", values[0].Line)
		}
	}
	model, err := document.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	var inCode, inDescription []string
	for _, r := range newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{}).routes() {
		inCode = append(inCode, r.method+" "+r.path)
	}
	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			inDescription = append(inDescription, strings.ToUpper(method)+" "+path)
			free := operation.Security != nil && len(operation.Security) == 0
			isLink := strings.HasPrefix(path, "/v1/recordings/") // its signature stands in place of a token
			if (strings.HasPrefix(path, "/v1/") && !isLink || path == "/metrics") == free {
				t.Errorf("%s %s: whether it needs a token is wrong", method, path)
			}
		}
	}
	slices.Sort(inCode)
	slices.Sort(inDescription)
	if !slices.Equal(inCode, inDescription) {
		t.Errorf("the routes are\n%v\nthe description has\n%v", inCode, inDescription)
	}
	w := httptest.NewRecorder()
	serve(newAPI(t, &exchange{}, newBox(t), &bytes.Buffer{}), w,
		httptest.NewRequest(http.MethodGet, "/openapi.yaml", nil))
	if w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), description) {
		t.Errorf("it is served as %d %s", w.Code, w.Body)
	}
}

// The validation of answers can fail: an answer with an extra member does not match.
func TestAnswerSchemasAreStrict(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
	for body, want := range map[string]bool{
		`{"status":"ok"}`: true, `{"status":"ok","x":1}`: false, `{}`: false, `[]`: false,
	} {
		response := &http.Response{
			StatusCode: 200,
			Header:     http.Header{"Content-Type": {"application/json"}},
			Body:       io.NopCloser(strings.NewReader(body)),
		}
		if ok, _ := described().GetResponseBodyValidator().ValidateResponseBody(r, response); ok != want {
			t.Errorf("%s: %v", body, ok)
		}
	}
}
