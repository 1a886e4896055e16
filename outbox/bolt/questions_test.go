package bolt

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pzbridge/internal/telephony"
	"pzbridge/outbox/store"
	"pzbridge/outbox/store/storetest"
)

// answers is a router that notes what it is answered.
type answers struct {
	mu   sync.Mutex
	list []string
}

func (*answers) Settle(context.Context, string, string, bool, []telephony.Reply) {}

func (a *answers) Answer(_ context.Context, call, _, endpoint, to string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, call+endpoint+to)
	return nil
}

func (*answers) NoAnswer(context.Context, string, string, string, error) {}

// appendUnasked stores a question of which routing does not learn, as where its commit seems to
// fail.
func appendUnasked(t *testing.T, s *Engine, question telephony.Event) {
	t.Helper()
	e, err := store.Encode(&question, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), []store.NewEvent{e}); err != nil {
		t.Fatal(err)
	}
}

// TestQuestionIsAskedOnce checks this also for one that is stored by a commit that seemed to fail;
// one that is damaged holds nothing up.
func TestQuestionIsAskedOnce(t *testing.T) {
	c := &storetest.CRM{Answer: func(_ int, _ storetest.Received, w http.ResponseWriter) {
		_, _ = io.WriteString(w, `{"transfer_to":"1"}`)
	}}
	storetest.Bubble(t, c, func(t *testing.T) {
		b := storetest.OpenBox(t, harness{}, storetest.Options{DialContext: c.Net.Dial})
		s, router := b.Engine.(*Engine), &answers{}
		stop := storetest.RunWith(t, b, router)
		synctest.Wait()
		question := storetest.Event("call.transfer_requested", "5")
		appendUnasked(t, s, question)
		synctest.Wait()
		if n := c.Count(); n != 0 {
			t.Fatalf("%d webhooks", n)
		}
		for range 3 {
			storetest.MustAppend(t, b, question)
			synctest.Wait()
		}
		if n := c.Count(); n != 1 || !slices.Equal(router.list, []string{"5crm1"}) {
			t.Errorf("asked %d times: %v", n, router.list)
		}
		damaged := storetest.Event("call.transfer_requested", "6")
		appendUnasked(t, s, damaged)
		if err := s.commit(func(tx *txn) error { return tx.events.Put(number(2), []byte("x")) }); err != nil {
			t.Fatal(err)
		}
		storetest.MustAppend(t, b, damaged, storetest.Event("call.incoming", "6"))
		synctest.Wait()
		if n := c.Count(); n != 2 {
			t.Errorf("what comes behind a damaged question: %d webhooks", n)
		}
		time.Sleep(time.Minute)
		stop()
		if list, err := s.TakeQuestions(t.Context()); len(list) != 0 || err != nil {
			t.Errorf("questions are left: %v, %v", list, err)
		}
		// The checks of the file do not know a record that was damaged on purpose.
		if err := s.commit(func(tx *txn) error {
			return errors.Join(
				tx.queue("crm").remove(2),
				tx.events.Delete(number(2)),
				tx.ids.Delete(idOf(t, damaged)),
				tx.calls.Delete(append(callKey("6"), number(1)...)),
			)
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func idOf(t *testing.T, e telephony.Event) []byte {
	t.Helper()
	encoded, err := store.Encode(&e, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return encoded.ID[:]
}
