package bitrix24test

import (
	"bytes"
	"encoding/json"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// array is an array of PHP, whose keys have an order. The zero value is an empty one.
type array struct {
	keys   []string
	values map[string]any
}

// set sets a value. A key that is there already keeps its place.
func (a *array) set(key string, value any) {
	if a.values == nil {
		a.values = map[string]any{}
	}
	if _, known := a.values[key]; !known {
		a.keys = append(a.keys, key)
	}
	a.values[key] = value
}

// put sets a value in the arrays within the array. An empty key is the next number.
func (a *array) put(path []string, value any) {
	key := path[0]
	if key == "" {
		key = strconv.Itoa(len(a.keys))
	}
	if len(path) == 1 {
		a.set(key, value)
		return
	}
	inner, isArray := a.values[key].(*array)
	if !isArray {
		inner = &array{}
		a.set(key, inner)
	}
	inner.put(path[1:], value)
}

// plain returns what JSON makes of the array: a list if its keys are 0, 1, and so on, which holds
// for an empty one as well, or else an object.
func (a *array) plain() any {
	isList := true
	list, object := []any{}, map[string]any{}
	for i, key := range a.keys {
		value := a.values[key]
		if inner, isArray := value.(*array); isArray {
			value = inner.plain()
		}
		isList = isList && key == strconv.Itoa(i)
		list = append(list, value)
		object[key] = value
	}
	if isList {
		return list
	}
	return object
}

// brackets is a key in brackets.
var brackets = regexp.MustCompile(`\[([^\]]*)\]`)

// parseParams parses URL-encoded parameters as PHP does: all values are texts, which convert may
// convert, USER_ID[0]=15 is in a list, and FILTER[ACTIVE]=1 in an object. What is not URL-encoded
// is taken as it is, and the error says so.
func parseParams(encoded string, convert func(string) any) (params, error) {
	parsed, err := parseArray(encoded, convert)
	params := params{}
	for name, value := range parsed.values {
		if inner, isArray := value.(*array); isArray {
			value = inner.plain()
		}
		params[strings.ToUpper(name)] = value
	}
	return params, err
}

// parseArray does the same, and keeps the order and the case of the names.
func parseArray(encoded string, convert func(string) any) (*array, error) {
	parsed := &array{}
	for pair := range strings.SplitSeq(encoded, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name = unescape(name)
		path := []string{name}
		if start := strings.IndexByte(name, '['); start > 0 {
			path[0] = name[:start]
			for _, key := range brackets.FindAllStringSubmatch(name[start:], -1) {
				path = append(path, key[1])
			}
		}
		if path[0] != "" {
			parsed.put(path, convert(unescape(value)))
		}
	}
	_, err := url.ParseQuery(encoded)
	return parsed, err
}

func unescape(text string) string {
	unescaped, err := url.QueryUnescape(text)
	if err != nil {
		return text
	}
	return unescaped
}

// decode decodes valid JSON, its numbers as json.Number.
func decode(text []byte) (value any) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	_ = decoder.Decode(&value)
	return value
}

// decodeArray decodes a valid object or list of JSON with the order of its keys.
func decodeArray(text []byte) (a array) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	opening, _ := decoder.Token()
	for i := 0; decoder.More(); i++ {
		key := strconv.Itoa(i)
		if opening == json.Delim('{') {
			token, _ := decoder.Token()
			key, _ = token.(string)
		}
		var value json.RawMessage
		_ = decoder.Decode(&value)
		a.set(key, decode(value))
	}
	return a
}
