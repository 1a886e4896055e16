package cli

import (
	"context"
	"fmt"
	"net/http"
)

func (p Program) status(ctx context.Context, args []string) error {
	fs := p.flags("status", "Say how the running bridge stands and what to do, in the sentences of its dashboard, the "+
		"worst first.\nThe exit code is 1 if something is wrong.\n"+apiHelp)
	if err := parse(fs, args); err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	var verdict struct {
		Level    string `json:"level"`
		Findings []struct {
			Level string `json:"level"`
			Text  string `json:"text"`
		} `json:"findings"`
	}
	if err := a.call(ctx, http.MethodGet, "/v1/verdict", nil, &verdict); err != nil {
		return err
	}
	marks := map[string]string{"good": "✓", "warn": "!", "bad": "✗"}
	for _, f := range verdict.Findings {
		fmt.Fprintln(p.Out, marks[f.Level], printable(f.Text))
	}
	if verdict.Level == "bad" {
		return errChecksFailed
	}
	return nil
}
