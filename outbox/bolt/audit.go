package bolt

import (
	"context"
	"encoding/json"

	"pzbridge/outbox/store"
)

// AddAudit stores what an operator has done: see store.Audits.
func (s *Engine) AddAudit(_ context.Context, e store.Audit) error {
	return s.commit(func(tx *txn) error {
		const recent = 16 // entries, among which a repeated one is looked for
		c := tx.audits.Cursor()
		k, v := c.Last()
		for i := 0; k != nil && i < recent; i++ {
			var known store.Audit
			if json.Unmarshal(v, &known) == nil && known.ID == e.ID {
				return nil
			}
			k, v = prev(c, k)
		}
		n, err := tx.audits.NextSequence()
		if err != nil {
			return err
		}
		v, err = json.Marshal(e)
		if err != nil {
			return err
		}
		if err := tx.audits.Put(number(n), v); err != nil {
			return err
		}
		if n > store.MaxAudits {
			return tx.audits.Delete(number(n - store.MaxAudits))
		}
		return nil
	})
}

// Audits gives what operators have done, the latest first: see store.Audits.
func (s *Engine) Audits(_ context.Context, limit int) (list []store.Audit, err error) {
	err = s.view(func(tx *txn) error {
		c := tx.audits.Cursor()
		for k, v := c.Last(); k != nil && len(list) < limit; k, v = c.Prev() {
			var e store.Audit
			if json.Unmarshal(v, &e) == nil {
				list = append(list, e)
			}
		}
		return nil
	})
	return list, err
}
