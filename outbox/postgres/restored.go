package postgres

import (
	"context"
	"time"
)

const (
	// settingTables is the name of the setting that says which tables these are.
	settingTables = "tables"
	// askTables asks for what a restore changes: the table of events is another one after a dump
	// was put back, and the server's timeline after a base backup was.
	askTables = `SELECT 'event'::regclass::oid || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`
)

// raiseAfterRestore raises the number of the last event if the database was restored while no
// bridge ran: above all numbers that were used after the backup was made, and after earlier
// restores of it. Else a reader would take new events for those that it has read already. The next
// number is at least the microseconds since 1970, since events never come faster than one a
// microsecond. After a fail-over the numbers go further too, which does no harm.
func (s *Engine) raiseAfterRestore(ctx context.Context) error {
	var from, to int64
	err := s.change(ctx, func(tx *txn) error {
		var last int64
		if _, err := tx.queryRow([]any{&last}, `SELECT last FROM head FOR UPDATE`); err != nil {
			return err
		}
		var are string
		if _, err := tx.queryRow([]any{&are}, askTables); err != nil {
			return err
		}
		var were []byte
		isKnown, err := tx.queryRow([]any{&were}, `SELECT value FROM setting WHERE name = $1`, settingTables)
		if err != nil || string(were) == are {
			return err
		}
		tx.write(putSetting, settingTables, []byte(are))
		if isKnown && last > 0 {
			from, to = last, max(last, time.Now().UnixMicro())
			tx.write(`UPDATE head SET last = $1`, to)
		}
		return nil
	})
	if err == nil && to > 0 {
		s.logger.Warn("the database was restored or has another primary than before, so new events get higher numbers",
			"last", from, "raised_to", to)
	}
	return err
}
