package cli

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func (p Program) audit(ctx context.Context, args []string) error {
	fs := p.flags("audit [flags]", "Show what the operator has done, by the dashboard, the API or a command; "+
		"the latest first.\n"+apiHelp)
	limit := fs.Int("limit", 30, "how many at most, to 500")
	if err := parse(fs, args); err != nil {
		return err
	}
	a, err := newAPI()
	if err != nil {
		return err
	}
	var answer struct {
		Entries []struct {
			At      time.Time `json:"at"`
			Action  string    `json:"action"`
			From    string    `json:"from"`
			Through string    `json:"through"`
			Subject string    `json:"subject"`
			Count   int       `json:"count"`
		} `json:"entries"`
	}
	if err := a.call(ctx, http.MethodGet, "/v1/audit?limit="+strconv.Itoa(*limit), nil, &answer); err != nil {
		return err
	}
	if len(answer.Entries) == 0 {
		fmt.Fprintln(p.Out, "Nothing has been done yet.")
		return nil
	}
	table := tabwriter.NewWriter(p.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tWHAT\tTO WHAT\tCOUNT\tFROM\tTHROUGH")
	for _, e := range answer.Entries {
		count := "-"
		if e.Count > 0 {
			count = strconv.Itoa(e.Count)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", e.At.Local().Format(time.DateTime),
			strings.ReplaceAll(e.Action, "_", " "), orDash(e.Subject), count, orDash(e.From), e.Through)
	}
	return table.Flush()
}
