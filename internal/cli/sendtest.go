package cli

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

func (p Program) sendTest(ctx context.Context, args []string) error {
	fs := p.flags("send-test NAME", "Send the endpoint of that name a signed event of the type pzbridge.test "+
		"and print what it answers. The exit code is 1 if\nthat is no 2xx. "+apiHelp)
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return usageError("name one endpoint: pzbridge send-test NAME")
	}
	name := fs.Arg(0)
	path, err := pathSegment(name)
	if err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var result struct {
		Delivered bool    `json:"delivered"`
		Took      float64 `json:"duration_ms"`
		Status    int     `json:"status"`
		Response  string  `json:"response"`
		Error     string  `json:"error"`
	}
	if err := a.call(ctx, http.MethodPost, "/v1/endpoints/"+path+"/test", nil, &result); err != nil {
		return err
	}
	switch {
	case result.Error != "":
		return fmt.Errorf("%s cannot be reached: %s", name, result.Error)
	case !result.Delivered:
		return fmt.Errorf("%s refused the test with %d: %q", name, result.Status, result.Response)
	}
	fmt.Fprintf(p.Out, "%s took the test with %d, in %.0f ms.\n", name, result.Status, result.Took)
	if result.Response != "" {
		fmt.Fprintln(p.Out, printableLines(result.Response))
	}
	return nil
}
