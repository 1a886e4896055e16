package megafontest

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pbx is the PBX as one CRM asks it.
type pbx struct {
	client     *http.Client
	address    string // https://host
	token      string
	newRequest func(ctx context.Context, address string, params url.Values) (*http.Request, error)
}

// formPost, multipartPost, and queryGet are the ways in which CRMs pass their parameters.
func formPost(ctx context.Context, address string, params url.Values) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(params.Encode()))
	if err == nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return r, err
}

func multipartPost(ctx context.Context, address string, params url.Values) (*http.Request, error) {
	var body bytes.Buffer
	parts := multipart.NewWriter(&body)
	for name := range params {
		if err := parts.WriteField(name, params.Get(name)); err != nil {
			return nil, err
		}
	}
	if err := parts.Close(); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, &body)
	if err == nil {
		r.Header.Set("Content-Type", parts.FormDataContentType())
	}
	return r, err
}

func queryGet(ctx context.Context, address string, params url.Values) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, http.MethodGet, address+"?"+params.Encode(), http.NoBody)
}

// do sends a command, and returns the status and the text of the answer.
func (p pbx) do(ctx context.Context, cmd string, params url.Values) (status int, text string, err error) {
	params.Set("cmd", cmd)
	params.Set("token", p.token)
	r, err := p.newRequest(ctx, p.address+"/sys/crm_api.wcgp", params)
	if err != nil {
		return 0, "", err
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return resp.StatusCode, string(body), err
}

// ask is do, but any status other than 200 is an error.
func (p pbx) ask(ctx context.Context, cmd string, params url.Values) (text string, err error) {
	status, text, err := p.do(ctx, cmd, params)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the PBX answered %s with status %d: %s", cmd, status, text)
	}
	return text, err
}

func (p pbx) makeCall(ctx context.Context, user, phone string) (uuid string, err error) {
	text, err := p.ask(ctx, "makeCall", url.Values{"user": {user}, "phone": {phone}})
	if err != nil {
		return "", err
	}
	var call struct {
		UUID string `json:"uuid"`
	}
	if err := json.Unmarshal([]byte(text), &call); err != nil {
		return "", fmt.Errorf("the PBX answered makeCall with %q: %w", text, err)
	}
	if call.UUID == "" {
		return "", fmt.Errorf("the PBX answered makeCall without a uuid: %s", text)
	}
	return call.UUID, nil
}

// Account is an employee of the PBX.
type Account struct {
	Name     string `json:"name"` // the login
	RealName string `json:"realName"`
	Ext      string `json:"ext"`
	Telnum   string `json:"telnum"`
	Email    string `json:"email"`
}

func (p pbx) accounts(ctx context.Context) (list []Account, err error) {
	text, err := p.ask(ctx, "accounts", url.Values{})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("the PBX answered accounts with %q: %w", text, err)
	}
	return list, nil
}

// PastCall is one line of the PBX's history.
type PastCall struct {
	UID      string
	Type     string // in, out, or missed
	Client   string
	Account  string // the employee's login
	Via      string
	Start    time.Time
	Wait     time.Duration
	Duration time.Duration
	Record   string // the recording's address
}

// history asks for the calls that the parameters select. The answer is CSV without a header.
func (p pbx) history(ctx context.Context, params url.Values) (calls []PastCall, err error) {
	text, err := p.ask(ctx, "history", params)
	if err != nil {
		return nil, err
	}
	lines := csv.NewReader(strings.NewReader(text))
	lines.FieldsPerRecord = 9
	table, err := lines.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("the PBX's history is no CSV of %d fields: %w", lines.FieldsPerRecord, err)
	}
	for _, fields := range table {
		call, err := pastCall(fields)
		if err != nil {
			return nil, fmt.Errorf("the line %q of the PBX's history: %w", fields, err)
		}
		calls = append(calls, call)
	}
	return calls, nil
}

func pastCall(fields []string) (PastCall, error) {
	start, errStart := time.Parse(compactUTC, fields[5])
	if errStart != nil {
		start, errStart = time.Parse(time.RFC3339, fields[5])
	}
	wait, errWait := strconv.Atoi(fields[6])
	duration, errDuration := strconv.Atoi(fields[7])
	var errType error
	if !slices.Contains([]string{"in", "out", "missed"}, fields[1]) {
		errType = fmt.Errorf("the type is %q", fields[1])
	}
	return PastCall{
		UID: fields[0], Type: fields[1], Client: fields[2], Account: fields[3], Via: fields[4], Start: start,
		Wait: time.Duration(wait) * time.Second, Duration: time.Duration(duration) * time.Second, Record: fields[8],
	}, errors.Join(errType, errStart, errWait, errDuration)
}
