package webhook

import (
	"io"
	"strings"
	"testing"
)

// TestReplyWithANumberFromAPage checks that a number in an answer is cleaned as one in a command
// is: what an event carries, and what was copied from a page, comes through.
func TestReplyWithANumberFromAPage(t *testing.T) {
	for in, want := range map[string]string{
		`SIP/101`:                              "SIP/101",
		`+7\u00a0343\u2009011\u201122\u221233`: "+7 343 011-22-33",
	} {
		r := readReply([]byte(`{"transfer_to":"` + in + `"}`))
		if r == nil || r.To != want || r.Err != nil {
			t.Errorf("%s: %+v", in, r)
		}
	}
}

// TestReplyIsReadFromWhatProgramsAnswer holds what programs answer where a call should go, and what
// that says.
func TestReplyIsReadFromWhatProgramsAnswer(t *testing.T) {
	for body, want := range map[string]struct {
		to             string
		found, isWrong bool
	}{
		`{"transfer_to":"101"}`:                      {"101", true, false},
		"\uFEFF" + `{"transfer_to":"101"}`:           {"101", true, false},
		`{"transfer_to":101}`:                        {"101", true, false},
		`{"transfer_to":79161234567}`:                {"79161234567", true, false},
		`{"transfer_to":""}`:                         {"", true, false},
		`[{"transfer_to":"101"}]`:                    {"101", true, false},
		` [ {"ok":true}, {"transfer_to":102} ] `:     {"102", true, false},
		`[{"transfer_to":""},{"transfer_to":"101"}]`: {"", true, false},
		`{"transfer_to":null}`:                       {"", false, false},
		`{"transfer_to":1.5}`:                        {"", false, true},
		`{"transfer_to":-1}`:                         {"", false, true},
		`{"transfer_to":1e3}`:                        {"", false, true},
		`{"transfer_to":["101"]}`:                    {"", false, true},
		`[{"transfer_to":"1;x"}]`:                    {"", false, true},
		`[]`:                                         {"", false, false},
		`[[{"transfer_to":"101"}]]`:                  {"", false, false},
		`"101"`:                                      {"", false, false},
		`{"ok":true}`:                                {"", false, false},
		`<html>`:                                     {"", false, false},
		``:                                           {"", false, false},
		`{"transfer_to":"101"`:                       {"", false, false},
		`{"transfer_to":"101"}` + "\n<!-- footer -->": {"101", true, false},
	} {
		to, found, err := findTransferTo([]byte(body))
		if to != want.to || found != want.found || (err != nil) != want.isWrong {
			t.Errorf("%s: %q, %v, %v", body, to, found, err)
		}
		if r := readReply([]byte(body)); (r != nil) != (want.found || want.isWrong) {
			t.Errorf("%s: %+v", body, r)
		}
	}
}

// dripping is a body that comes byte by byte.
type dripping struct{ io.Reader }

func (d dripping) Read(p []byte) (int, error) { return d.Reader.Read(p[:min(1, len(p))]) }

// TestReplyThatDripsInIsReadOnce checks that a long answer takes no more for each byte than a short
// one.
func TestReplyThatDripsInIsReadOnce(t *testing.T) {
	cost := func(size int) float64 {
		answer := `{"x":"` + strings.Repeat("x", size) + `","transfer_to":"101"}`
		return testing.AllocsPerRun(3, func() {
			if got := readUntilReply(dripping{strings.NewReader(answer)}, func() {}); len(got) != len(answer) {
				t.Fatalf("%d of %d bytes were read", len(got), len(answer))
			}
		})
	}
	if short, long := cost(100), cost(58<<10); long > short+100 {
		t.Errorf("100 bytes allocate %.0f times, 58 KiB %.0f times", short, long)
	}
}
