package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// logRows gives the cells of the rows of a guide's tables about the log: those that begin with one
// of the headers.
func logRows(t *testing.T, guide string, headers ...string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	within := false
	for line := range strings.Lines(string(text)) {
		switch {
		case !strings.HasPrefix(line, "|"):
			within = false
		case slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(line, "| "+h+" |") }):
			within = true
		case within && !strings.HasPrefix(line, "|---"):
			cells := strings.Split(strings.Trim(line, "|\n"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

// The Russian guide to the log has the lines of the English one in the same order, with every
// message as the log has it, and says in Russian what each means. Where the English one says what
// to do, the Russian one does too, with the same variables and commands.
func TestRussianLogGuideHasEveryLine(t *testing.T) {
	const guide = "docs/log.ru.md"
	english, russian := logRows(t, "docs/log.md", "line", "`err`"), logRows(t, guide, "строка", "`err`")
	if len(english) < 50 || len(english) != len(russian) {
		t.Fatalf("there are %d lines in English, %d in Russian", len(english), len(russian))
	}
	code := regexp.MustCompile("`[^`]+`")
	name := regexp.MustCompile(`^` + "`" + `(?:pzbridge |[A-Z]+_[A-Z<>n_]+` + "`" + `|docker )`)
	for i, row := range english {
		other := russian[i]
		if len(other) != len(row) {
			t.Errorf("%s: %q has %d cells, want %d", guide, other[0], len(other), len(row))
			continue
		}
		if want, got := code.FindAllString(row[0], -1), code.FindAllString(other[0], -1); !slices.Equal(got, want) {
			t.Errorf("%s has %q where the English guide has %q", guide, got, want)
		}
		if !isRussian(other[1]) || (row[2] == "") != (other[2] == "") {
			t.Errorf("%s does not say what %s means, or what to do", guide, row[0])
		}
		rest := strings.Join(other[1:], " ")
		for _, word := range code.FindAllString(strings.Join(row[1:], " "), -1) {
			if name.MatchString(word) && !strings.Contains(rest, word) {
				t.Errorf("%s does not name %s at %s", guide, word, row[0])
			}
		}
	}
}

// isRussian reports whether a text has Cyrillic letters.
func isRussian(text string) bool { return strings.ContainsAny(text, "аеёиоуыэюя") }
