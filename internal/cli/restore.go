package cli

import (
	"context"
	"fmt"

	"pzbridge/outbox/bolt"
)

func (p Program) restore(_ context.Context, args []string) error {
	fs := p.flags("restore FILE", "Put a copy of a backup (from GET /v1/backup) "+
		"in the place of the outbox (OUTBOX_PATH). The bridge must be stopped meanwhile. "+
		"What was\nthere is kept beside it, with the ending .before-restore. "+
		"With OUTBOX_URL there is no file.")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if err := checkMaxArgs(fs, 1); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return usageError("name the backup's file")
	}
	cfg, err := load()
	if err != nil {
		return err
	}
	if cfg.OutboxURL != "" {
		return usageError("with OUTBOX_URL there is no file to restore: use PostgreSQL's own tools, " +
			"pg_restore for what pg_dump has made, or a base backup with its archived WAL")
	}
	before, err := bolt.Restore(cfg.OutboxPath, fs.Arg(0))
	if err != nil {
		return err
	}
	fmt.Fprintf(p.Out, "%s is restored from %s.\n", cfg.OutboxPath, fs.Arg(0))
	if before != "" {
		fmt.Fprintf(p.Out, "What was there is %s now; remove it when all is well.\n", before)
	}
	return nil
}
