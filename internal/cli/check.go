package cli

import (
	"context"
	"fmt"

	"pzbridge/internal/config"
	"pzbridge/outbox/postgres"
)

func (p Program) check(ctx context.Context, args []string) error {
	fs := p.flags("check", "Check the configuration, and print it with secrets hidden. With OUTBOX_URL, "+
		"also try whether that database can be used;\nnothing is changed there. "+
		"The exit code is 2 if something is wrong with the configuration or the database.")
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
	if err := p.checkDatabase(ctx, cfg); err != nil {
		return err
	}
	fmt.Fprintln(p.Out, "\nThe configuration is right.")
	return nil
}

// checkDatabase prints what is right and what is risky about the database of the outbox, if it has
// one, and returns what keeps a bridge from working as an error of the configuration.
func (p Program) checkDatabase(ctx context.Context, cfg config.Config) error {
	if cfg.OutboxURL == "" {
		return nil
	}
	wrong := &config.Error{}
	for _, f := range postgres.Diagnose(ctx, cfg.OutboxURL, cfg.OutboxSchema) {
		switch text := printable(f.Text); f.Severity {
		case postgres.Fine:
			fmt.Fprintln(p.Out, "\nThe database:", text)
		case postgres.Warning:
			fmt.Fprintln(p.Out, "\nWarning: the database:", text)
		default:
			wrong.Problems = append(wrong.Problems, "OUTBOX_URL: "+text)
		}
	}
	if len(wrong.Problems) > 0 {
		return wrong
	}
	return nil
}
