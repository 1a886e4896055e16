package main

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// asksFrom is asks with a caller.
func (o *office) asksFrom(call, from string) {
	o.t.Helper()
	if err := o.server.Generate(asking(call, from)); err != nil {
		o.t.Fatal(err)
	}
	synctest.Wait()
}

// A call ID that returns with another caller, as after a restart of the server, is a new call: its
// question is asked, and its winner gets the ringing, whatever became of the old call.
func TestCallIDOfAnotherCallerIsANewCall(t *testing.T) {
	for name, old := range map[string]string{
		"won": `{"transfer_to":"101"}`, "declined": `{"transfer_to":""}`, "open": "",
	} {
		t.Run(name, func(t *testing.T) {
			inOffice(t, nil, func(o *office) {
				if old != "" {
					for _, crm := range crms {
						o.says(crm, 0, 200, old)
					}
				}
				o.asksFrom("5", "73430000001")
				time.Sleep(100 * time.Millisecond)
				o.says("a", 0, 200, `{"transfer_to":""}`)
				o.says("b", 0, 200, `{"transfer_to":"202"}`)
				o.says("c", 0, 200, `{"transfer_to":""}`)
				o.asksFrom("5", "73430000002")
				time.Sleep(time.Second)
				if got := o.transfers(); !slices.Contains(got, "5=202") {
					t.Errorf("transfers: %v", got)
				}
				o.happens("transfer 73430000002 202 1 * 5")
				time.Sleep(time.Second)
				if a, b := o.told("a", "call.incoming"), o.told("b", "call.incoming"); a != 0 || b != 1 {
					t.Errorf("that it rings is told a %d times and b %d times", a, b)
				}
			})
		})
	}
}

// A question with the same caller, or without one, belongs to the call that is known: nothing is
// transferred twice.
func TestCallIDOfTheSameCallerIsTheSameCall(t *testing.T) {
	inOffice(t, nil, func(o *office) {
		o.says("a", 0, 200, `{"transfer_to":"101"}`)
		o.asksFrom("5", "73430000001")
		time.Sleep(time.Second)
		o.asksFrom("5", "73430000001")
		time.Sleep(time.Minute)
		if got := o.transfers(); !slices.Equal(got, []string{"5=101"}) {
			t.Errorf("transfers: %v", got)
		}
	})
}
