package bitrix24test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 64 << 20

// query is a request as the portal read it.
type query struct {
	user   int
	code   string
	method string
	params params
	base   string // the address that the client used: scheme and host
	upload bool   // it is the second step of attachRecord
	file   []byte // what it uploads

	commands array // CMD of a batch, with its order

	token     string       // the access token
	app       *application // whose token it is; nil for the webhook
	connector string       // the queue of offline events that the request is about
}

// read reads a request, as far as that is possible, and says what is wrong with it, if anything is.
func read(w http.ResponseWriter, r *http.Request) (q query, fault string) {
	q, fault = parse(w, r)
	if q.code == "" {
		q.token, q.connector = q.params.text("AUTH"), q.params.text("AUTH_CONNECTOR")
		delete(q.params, "AUTH")
		delete(q.params, "AUTH_CONNECTOR")
	}
	return q, fault
}

// parse does so without the authorization of an application, which is among the parameters.
func parse(w http.ResponseWriter, r *http.Request) (q query, fault string) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	q = query{params: params{}, base: "http://" + r.Host}
	if r.TLS != nil {
		q.base = "https://" + r.Host
	}
	for name := range r.URL.Query() {
		q.params[strings.ToUpper(name)] = r.URL.Query().Get(name)
	}
	path := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, "/rest"), "/"), "/")
	q.method = strings.TrimSuffix(path[len(path)-1], ".json")
	if len(path) == 3 {
		q.user, _ = strconv.Atoi(path[0])
		q.code = path[1]
	}
	if r.Method != http.MethodPost {
		return q, "is a " + r.Method + ", not a POST"
	}
	if len(path) == 1 && q.method == "upload" {
		q.upload = true
		return q, q.readFile(r)
	}

	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); len(path) == 1 && kind == formType {
		return q, q.readForm(r)
	}
	var body map[string]json.RawMessage
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil && !errors.Is(err, io.EOF) {
		return q, fmt.Sprintf("has a body that is no JSON object: %v", err)
	}
	for name, value := range body {
		name = strings.ToUpper(name)
		q.params[name] = decode(value)
		if name == "CMD" {
			q.commands = decodeArray(value)
		}
	}
	return q, ""
}

// formType is the type of a URL-encoded form.
const formType = "application/x-www-form-urlencoded"

// readForm reads a form, in which an application may have its parameters, and says what is wrong
// with it.
func (q *query) readForm(r *http.Request) (fault string) {
	text, err := io.ReadAll(r.Body)
	form, parseErr := parseArray(string(text), func(value string) any { return value })
	for name, value := range form.values {
		name = strings.ToUpper(name)
		if inner, isArray := value.(*array); isArray {
			value = inner.plain()
			if name == "CMD" {
				q.commands = *inner
			}
		}
		q.params[name] = value
	}
	if err := cmp.Or(err, parseErr); err != nil {
		return fmt.Sprintf("has a body that is no form: %v", err)
	}
	return ""
}

// readFile reads the file of an upload, and says what is wrong with it.
func (q *query) readFile(r *http.Request) (fault string) {
	file, header, err := r.FormFile(fileField)
	if err == nil {
		defer func() { _ = file.Close() }()
		q.params["FILENAME"] = header.Filename
		q.file, err = io.ReadAll(file)
	}
	if err != nil {
		return fmt.Sprintf("has no file in the field %q: %v", fileField, err)
	}
	return ""
}

// params are the parameters of a request, with their names in upper case. PHP takes a number and
// its text for the same thing, and so do the methods.
type params map[string]any

func (p params) text(name string) string {
	return text(p[name])
}

func (p params) number(name string) int {
	return number(p[name])
}

// on reports whether a flag is set; def is for one that is absent.
func (p params) on(name string, def bool) bool {
	if p[name] == nil {
		return def
	}
	return isTrue(p[name])
}

// object returns an object with its names in upper case.
func (p params) object(name string) params {
	object := params{}
	given, _ := p[name].(map[string]any)
	for name, value := range given {
		object[strings.ToUpper(name)] = value
	}
	return object
}

func text(value any) string {
	switch value := value.(type) {
	case string:
		return value
	case nil, map[string]any, []any:
		return ""
	case bool:
		if !value {
			return ""
		}
		return "1"
	default:
		return fmt.Sprint(value)
	}
}

func number(value any) int {
	n, _ := strconv.Atoi(text(value))
	return n
}

func isTrue(value any) bool {
	t := text(value)
	return t != "" && t != "0" && t != "N"
}

// row is a row of a list.
type row map[string]any

// page answers with the rows that FILTER selects, a page of them from the given start.
func page(rows []row, q query) answer {
	filter := q.params.object("FILTER")
	selected := []row{}
	for _, r := range rows {
		if r.matches(filter) {
			selected = append(selected, r)
		}
	}
	total := len(selected)
	start := min(max(0, q.params.number("START")), total)
	end := min(start+pageSize, total)
	a := done(selected[start:end])
	a.body["total"] = total
	if end < total {
		a.body["next"] = end
	}
	return a
}

// matches reports whether a row has the values of a filter, or one of them where it has a list.
// Bitrix ignores the names that it does not know.
func (r row) matches(filter params) bool {
	for name, wanted := range filter {
		value, known := r[name]
		if !known {
			continue
		}
		list, isList := wanted.([]any)
		if !isList {
			list = []any{wanted}
		}
		found := false
		for _, one := range list {
			flag, isFlag := value.(bool)
			found = found || isFlag && flag == isTrue(one) || !isFlag && text(value) == text(one)
		}
		if !found {
			return false
		}
	}
	return true
}
