package cli

import (
	"context"
	"fmt"
)

func (p Program) check(_ context.Context, args []string) error {
	fs := p.flags("check", "Check the configuration, and print it with secrets hidden. "+
		"The exit code is 2 if something is wrong with it.")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := load()
	if err != nil {
		return err
	}
	if err := cfg.Describe(p.Out); err != nil {
		return err
	}
	if cfg.OutboxURL != "" {
		fmt.Fprintf(p.Out, "\nThe outbox is the %s; OUTBOX_PATH has no meaning then.\n", printable(cfg.OutboxPlace()))
	}
	if cert := cfg.APICertificate(); cert != nil {
		fmt.Fprintln(p.Out, "\nThe API's certificate:", validity(cert))
	}
	for _, warning := range cfg.Warnings() {
		fmt.Fprintln(p.Out, "\nWarning:", warning)
	}
	fmt.Fprintln(p.Out, "\nThe configuration is right.")
	return nil
}
