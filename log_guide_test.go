package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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

// The guide to the log has every warning and error of the program. A message that is put together
// at run time is not found.
func TestLogGuideHasEveryWarning(t *testing.T) {
	text, err := os.ReadFile("docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	messages := loggedMessages(t, "Warn", "Error", "Failed", "Happened")
	for message, file := range messages {
		if !strings.Contains(string(text), "`"+message+"`") {
			t.Errorf("docs/log.md does not have %q, which %s logs", message, file)
		}
	}
	if len(messages) < 60 {
		t.Errorf("only %d were found", len(messages))
	}
}

// loggedMessages gives the constant first arguments of the calls of methods with such names, with a
// file of each. Files that tests use are left out.
func loggedMessages(t *testing.T, methods ...string) map[string]string {
	t.Helper()
	messages := map[string]string{}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil || isForTests(file) {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, isCall := n.(*ast.CallExpr)
			if !isCall || len(call.Args) == 0 {
				return true
			}
			method, isMethod := call.Fun.(*ast.SelectorExpr)
			message := constant(call.Args[0])
			if isMethod && slices.Contains(methods, method.Sel.Name) && message != "" {
				messages[message] = path
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return messages
}

// isForTests reports whether only tests use a file.
func isForTests(file *ast.File) bool {
	return slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing"` })
}

// constant is the value of a string literal, or of several that are added; empty for all else.
func constant(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(e.Value)
		return text
	case *ast.BinaryExpr:
		return constant(e.X) + constant(e.Y)
	}
	return ""
}

// isRussian reports whether a text has Cyrillic letters.
func isRussian(text string) bool { return strings.ContainsAny(text, "аеёиоуыэюя") }
