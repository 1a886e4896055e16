package cli

import (
	"context"
	"fmt"

	"pzbridge/outbox/bolt"

	"github.com/dustin/go-humanize"
)

func (p Program) compact(_ context.Context, args []string) error {
	fs := p.flags("compact", "Rewrite the outbox (OUTBOX_PATH) without its free space. "+
		"The bridge must be stopped meanwhile; for a moment\nthe disk holds both files. "+
		"With OUTBOX_URL there is no file.")
	if err := parse(fs, args); err != nil {
		return err
	}
	cfg, err := load()
	if err != nil {
		return err
	}
	if cfg.OutboxURL != "" {
		return usageError("with OUTBOX_URL there is no file to compact: " +
			"autovacuum of PostgreSQL makes room usable again, and VACUUM FULL gives it back to the disk")
	}
	before, after, err := bolt.Compact(cfg.OutboxPath)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.Out, "%s: %s before, %s now.\n",
		cfg.OutboxPath, humanize.IBytes(uint64(before)), humanize.IBytes(uint64(after)))
	return nil
}
