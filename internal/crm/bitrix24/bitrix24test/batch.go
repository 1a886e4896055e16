package bitrix24test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	// batchMethod is the name of the method that calls others.
	batchMethod = "batch"
	// maxCommands is how many sub-calls of a batch are executed.
	maxCommands = 50
)

// batch calls methods one after the other, in the order in which CMD has them. It succeeds,
// whatever the sub-calls do: their errors are part of its result. HALT ends it after the first
// error. For the bucket and for Fail and Lose it is one request.
func (p *Portal) batch(q query, now time.Time) answer {
	if n := len(q.commands.keys); n > maxCommands {
		p.fault("A batch has %d sub-calls.", n)
	}
	parts := map[string]*array{"result": {}, "error": {}, "total": {}, "next": {}, "time": {}}
	var calls []Request
	for i, command := range q.commands.keys {
		text, isText := q.commands.values[command].(string)
		if !isText {
			p.fault("The sub-call %q is no text.", command)
			continue
		}
		call := p.command(command, text, parts["result"].plain(), q)
		name, a := p.runCommand(i, call)
		calls = append(calls, Request{Time: now, Method: name, Command: command, Params: call.params, Status: a.status})
		for part, value := range a.parts(now) {
			parts[part].set(command, value)
		}
		if a.status != http.StatusOK && q.params.on("HALT", false) {
			break
		}
	}
	a := done(row{
		"result": parts["result"].plain(), "result_error": parts["error"].plain(),
		"result_total": parts["total"].plain(), "result_next": parts["next"].plain(),
		"result_time": parts["time"].plain(),
	})
	a.commands = calls
	return a
}

// command reads a sub-call of the batch q: a method, with its parameters URL-encoded.
func (p *Portal) command(name, text string, results any, q query) query {
	text, _, _ = strings.Cut(text, "#")
	method, encoded, _ := strings.Cut(text, "?")
	parsed, err := parseParams(encoded, func(value string) any { return substitute(value, results) })
	if err != nil {
		p.fault("The sub-call %q has parameters that are not URL-encoded: %v.", name, err)
	}
	return query{
		user: q.user, code: q.code, app: q.app, connector: q.connector, base: q.base, method: method, params: parsed,
	}
}

// runCommand runs the ith sub-call of a batch.
func (p *Portal) runCommand(i int, q query) (name string, a answer) {
	m := lookUp(q.method)
	switch {
	case i >= maxCommands:
		return m.name, refused(http.StatusBadRequest, "ERROR_BATCH_LENGTH_EXCEEDED", "Max batch length exceeded")
	case m.name == batchMethod:
		return m.name, refused(http.StatusMethodNotAllowed, "ERROR_BATCH_METHOD_NOT_ALLOWED",
			"Method is not allowed for batch usage")
	}
	a = p.invoke(m, q)
	if a.body["error"] == insufficientScope {
		a.body["error_description"] = "" // as in the documentation's example
	}
	return m.name, a
}

// parts returns what a sub-call adds to the parts of its batch's result, as JSON decodes it.
func (a answer) parts(now time.Time) map[string]any {
	parts := map[string]any{"error": a.body}
	if a.status == http.StatusOK {
		parts = a.body
		parts["time"] = timing(now)
	}
	text, err := json.Marshal(parts)
	if err != nil {
		panic(fmt.Sprintf("bitrix24test: the answer to a sub-call: %v", err))
	}
	return decode(text).(map[string]any)
}

// reference is a reference to a result. As Bitrix reads it, it extends to the next white space.
var reference = regexp.MustCompile(`\$result\S*`)

// substitute replaces the references in a parameter, such as $result[name][FIELD]. One that is the
// whole parameter may bring a value of any type, one inside of it only a text or a number.
func substitute(param string, results any) any {
	if reference.FindString(param) == param {
		if value, ok := resolve(param, results); ok {
			return value
		}
	}
	return reference.ReplaceAllStringFunc(param, func(ref string) string {
		value, ok := resolve(ref, results)
		switch value.(type) {
		case string, json.Number:
			if ok {
				return text(value)
			}
		}
		return ref
	})
}

// resolve returns what a reference refers to. A path that leads nowhere ends, as in Bitrix, at the
// last value on it, which may be all the results. What has no path is no reference.
func resolve(ref string, results any) (value any, ok bool) {
	path := brackets.FindAllStringSubmatch(ref, -1)
	value = results
	for _, key := range path {
		next := member(value, key[1])
		if next == nil {
			break
		}
		value = next
	}
	return value, len(path) > 0
}

// member returns a member of an object or a list; nil if there is none.
func member(value any, key string) any {
	switch value := value.(type) {
	case map[string]any:
		return value[key]
	case []any:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(value) {
			return value[i]
		}
	}
	return nil
}
