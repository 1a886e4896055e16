package cli

import (
	"context"
	"fmt"
	"strings"
)

func (p Program) help(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] != "help" && !strings.HasPrefix(args[0], "-") {
		p.Err = p.Out
		return p.dispatch(ctx, []string{args[0], "-h"})
	}
	fmt.Fprint(p.Out, "pzbridge connects a Prostie Zvonki server with CRMs: "+
		"call events become signed webhooks, and an HTTP API takes"+`
calls, transfers and SMS back.

Usage: pzbridge [command]

Without a command it runs the bridge, configured by environment variables or the file .env (see .env.example).

Commands:
`)
	for _, c := range commands() {
		fmt.Fprintf(p.Out, "  %-12s %s\n", c.name, c.summary)
	}
	fmt.Fprintln(p.Out, "\n\"pzbridge help COMMAND\" describes a command.")
	return nil
}

func (p Program) version(_ context.Context, args []string) error {
	if err := parse(p.flags("version", "Print the version."), args); err != nil {
		return err
	}
	fmt.Fprintln(p.Out, "pzbridge", p.Version)
	return nil
}
