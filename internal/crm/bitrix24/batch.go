package bitrix24

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
)

// enter enters a call that the portal would not know again if it were registered twice: it looks
// for the call in the statistics, and registers and finishes it in one request if it is not there.
// A kill at any point leaves either nothing, or a call in the statistics.
func (t *telling) enter() store.Outcome {
	o := t.lookUp(map[string]any{"EXTERNAL_CALL_ID": t.event.CallID}, false)
	if o.Verdict != store.More {
		return o
	}
	if t.call.Params == nil {
		t.call.Params = t.params()
	}
	params := maps.Clone(t.call.Params)
	params["SHOW"] = 0
	made, a := t.both(params, t.ending("$result["+register+"][CALL_ID]"))
	a.Steps = append(o.Steps, a.Steps...)
	switch {
	case made.ID != "" && len(made.ID) <= maxID:
		t.call.ID, t.call.Params = made.ID, nil
		t.remarkClient(&a, &made)
		a.remarkEnd(a.result)
		if t.call.IsOver = a.Verdict == store.Done; a.Verdict == store.Refused {
			a.Verdict, a.Err = store.More, nil // it is finished alone
		}
	case a.Verdict == store.Done:
		a.Verdict, a.Err = store.Again, errNoID
	}
	return a.Outcome
}

// The names of the two calls of a batch.
const register, finish = "register", "finish"

// both registers and finishes a call in one request. The outcome is that of the first of the two
// that fails, the result that of the second.
func (t *telling) both(call, ending map[string]any) (made registered, a answer) {
	a = t.do(t.ctx, "batch", map[string]any{"halt": 1, "cmd": commands{
		{register, registerCall, call}, {finish, finishCall, ending},
	}}, false, func() bool { return false }) // what became of it is looked up before it is made again
	if a.Verdict != store.Done {
		return made, a
	}
	var results struct {
		Results json.RawMessage `json:"result"`
		Errors  json.RawMessage `json:"result_error"`
	}
	var each map[string]json.RawMessage
	var failed map[string]struct {
		Code any    `json:"error"`
		Text string `json:"error_description"`
	}
	_ = json.Unmarshal(a.result, &results)
	_ = json.Unmarshal(results.Results, &each)  // an empty one is a list, as PHP has it
	_ = json.Unmarshal(results.Errors, &failed) // likewise
	_ = json.Unmarshal(each[register], &made)   // what it lacks is found by its caller
	a.result = each[finish]
	for _, name := range []string{register, finish} {
		if f, isFailed := failed[name]; isFailed {
			a.code, _ = f.Code.(string)
			a.text = telephony.BriefText(t.redact.Replace(f.Text))
			a.Verdict, a.Err = t.meaning(statusOf(a.code), a.code, a.text)
			if a.Verdict == store.Pause {
				a.RetryAfter = pauseFor(a.code, time.Time{})
			}
			break
		}
	}
	return made, a
}

// statusOf is the status with which a method answers an error alone: in a batch it has none.
func statusOf(code string) int {
	switch code {
	case "OPERATION_TIME_LIMIT":
		return http.StatusTooManyRequests
	case "QUERY_LIMIT_EXCEEDED", "OVERLOAD_LIMIT":
		return http.StatusServiceUnavailable
	case "INTERNAL_SERVER_ERROR", "ERROR_UNEXPECTED_ANSWER":
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// commands are the calls of a batch, in order: the later ones may refer to the results of those
// before.
type commands []command

type command struct {
	name, method string
	params       map[string]any
}

// MarshalJSON writes an object whose members are in order, each a method with its parameters as in
// a query.
func (list commands) MarshalJSON() ([]byte, error) {
	object := []byte{'{'}
	for i, c := range list {
		values := url.Values{}
		for name, value := range c.params {
			values.Set(name, fmt.Sprint(value))
		}
		text, err := json.Marshal(c.method + "?" + values.Encode())
		if err != nil {
			return nil, err
		}
		if i > 0 {
			object = append(object, ',')
		}
		object = store.AppendString(object, c.name)
		object = append(append(object, ':'), text...)
	}
	return append(object, '}'), nil
}
