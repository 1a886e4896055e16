package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

func (p Program) forget(ctx context.Context, args []string) error {
	fs := p.flags("forget [flags] NUMBER", "Remove all that is stored of a person: the calls with a number, whole, "+
		"also what a CRM has not got yet. It cannot be undone.\n"+apiHelp)
	dryRun := fs.Bool("dry-run", false, "only say how much")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return usageError("give the number of the person, such as \"+7 343 011-22-33\"")
	}
	path, err := pathSegment(fs.Arg(0))
	if err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	var gone struct {
		Calls      int      `json:"calls"`
		Events     int      `json:"events"`
		Deliveries int      `json:"deliveries"`
		Pending    int      `json:"pending"`
		Routes     int      `json:"routes"`
		Recordings int      `json:"recordings"`
		NotReached []string `json:"not_reached"`
	}
	query := url.Values{}
	if *dryRun {
		query.Set("dry_run", "true")
	}
	if err := a.call(ctx, http.MethodDelete, "/v1/numbers/"+path+"?"+query.Encode(), nil, &gone); err != nil {
		return err
	}
	verb := "were removed"
	if *dryRun {
		verb = "would be removed"
	}
	fmt.Fprintf(p.Out, "%d calls with %d events, %d deliveries, %d routes and %d recordings %s; "+
		"%d of the deliveries had not arrived.\n",
		gone.Calls, gone.Events, gone.Deliveries, gone.Routes, gone.Recordings, verb, gone.Pending)
	fmt.Fprintln(p.Out, "This does not reach:")
	for _, what := range gone.NotReached {
		fmt.Fprintln(p.Out, "- "+what)
	}
	return nil
}
